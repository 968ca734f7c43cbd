"""Shards of rendered shapes, as curation writes them, without a run of curation."""

import json
from pathlib import Path

from curation.shards import Sample, finish, plan, write_shard
from curation.synthetic import FPS, render
from recipes.schema import Shards, Synthetic


def rendered(folder: Path, count: int = 12, held_out: int = 2, **keys: object) -> Path:
    """`train/` and `val/` in a folder, of videos of 64 × 64 pixels and 9 frames.

    Args:
        held_out: how many of the count, the last ones, are val.
        keys: of `recipes.schema.Synthetic`.
    """
    config = Synthetic(count=count, **{"size": 64, "frames": 9} | keys)
    render("shapes", config, folder / "raw", workers=1)
    videos = sorted((folder / "raw").glob("*.mp4"))
    for split, some in (("train", videos[:-held_out]), ("val", videos[-held_out:])):
        jobs = plan([sample(one, config) for one in some], folder / split, Shards())
        for job in jobs:
            list(write_shard(job))
        finish(folder / split, jobs)
    return folder


def sample(video: Path, config: Synthetic) -> Sample:
    captions = json.loads(video.with_suffix(".json").read_text("utf-8"))["captions"]
    return Sample(
        clip_id=video.stem,
        source_path=video,
        start_s=0.0,
        end_s=config.frames / FPS,
        captions=tuple(captions),
        name=video.name,
        end_frame=config.frames,
        width=config.size,
        height=config.size,
        fps=float(FPS),
        scores={"sharpness": 0.5},
        tier="optimal",
    )
