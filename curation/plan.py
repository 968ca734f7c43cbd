"""`plan=true`: what a run would cost, from every file's probe and a short trial; writes nothing.

The trial decodes and scores the first seconds of a few files with the run's own functions, on this
machine, so the time is measured, not assumed. Expect the estimate within a factor of two: films
differ in how many cuts and how much text they hold.
"""

import itertools
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

from curation import analyse, console, engine, sources, split, video
from curation.engine import one_line
from curation.scorer import score
from curation.sources import Source
from recipes.schema import Curation

TRIAL_FILES = 3
TRIAL_S = 4.0
# x264 at crf 18, preset veryfast, over the bundled samples; grain takes more, cartoons less
SHARD_BITS_PER_PIXEL = 0.10
CATALOG_BYTES_PER_CLIP = 12_000  # mostly thumbnail and embedding


@dataclass(frozen=True)
class Look:
    """One file's probe."""

    source: Source
    config: Curation


@dataclass
class Estimate:
    """What a run would cost."""

    files: int
    broken: dict[str, str]  # name → why
    images: int
    video_s: float
    clips: int
    run_s: float
    workers: int
    catalog_bytes: int
    shard_bytes: int  # at most: were every clip kept


def look(job: Look) -> Iterator[video.Probe | str]:
    """Probes one file; what the workers run."""
    try:
        with sources.local(job.source, job.config.out) as path:
            yield video.probe(path, job.config.max_pixels)
    except (video.VideoError, OSError) as error:
        yield one_line(error)


def estimate(found: list[Source], config: Curation) -> Estimate:
    """Probes every file and tries a few."""
    probes: dict[str, video.Probe] = {}
    broken: dict[str, str] = {}
    jobs = [Look(source, config) for source in found]
    with console.bars() as bars:
        task = bars.add_task("probing", total=len(jobs), unit="files", note="")
        events = engine.run(look, jobs, workers=config.workers, timeout_s=config.timeout_s)
        for event in events:
            name = event.job.source.name
            if isinstance(event.value, video.Probe):
                probes[name] = event.value
            elif event.value or event.error:
                broken[name] = event.value or event.error
            if event.done:
                bars.advance(task)
    videos = {name: one for name, one in probes.items() if not one.is_image}
    video_s = sum(one.duration_s for one in videos.values())
    images = len(probes) - len(videos)
    pace, clip_s, image_s = trial(
        [s for s in found if s.name in videos], [s for s in found if s.name in probes], config
    )
    workers = min(config.workers or engine.available_cores(), max(1, len(probes)))
    pixels = sum(one.width * one.height * one.fps * one.duration_s for one in videos.values())
    clips = images + round(video_s / clip_s) if videos else images
    return Estimate(
        files=len(found),
        broken=broken,
        images=images,
        video_s=video_s,
        clips=clips,
        run_s=(pixels * pace + images * image_s) / workers,
        workers=workers,
        catalog_bytes=clips * CATALOG_BYTES_PER_CLIP,
        shard_bytes=round(pixels * SHARD_BITS_PER_PIXEL / 8),
    )


def trial(
    videos: list[Source], readable: list[Source], config: Curation
) -> tuple[float, float, float]:
    """Scores the beginnings of a few files.

    Returns:
        seconds a pixel of video, seconds of video a clip, seconds an image.
    """
    analyse.prepare()
    scorers = analyse.chosen(config)
    took_s, pixels, lengths, stills = 0.0, 0, [], []
    step = max(1, len(videos) // TRIAL_FILES)
    images = [source for source in readable if source not in videos][:1]
    for source in [*videos[::step][:TRIAL_FILES], *images]:
        with sources.local(source, config.out) as path:
            probe = video.probe(path, config.max_pixels)
            for warm in (True, False):  # the first turn loads the models
                began, clips, frames = time.monotonic(), 0, 0
                walk = video.frames(path, probe)
                count = max(1, round((0.6 if warm else TRIAL_S) * probe.fps))
                some = itertools.islice(walk, count)
                for item in split.clips(
                    some, probe, config.split, sample_fps=config.sample_fps, weights=config.weights
                ):
                    frames += 1
                    if item is not None:
                        clips += 1
                        score(item[1], scorers)
                took = time.monotonic() - began
        if probe.is_image:
            stills.append(took)
        else:
            took_s += took
            pixels += frames * probe.width * probe.height
            lengths.append(min(config.split.window_s, TRIAL_S / max(1, clips)))
    return (
        took_s / pixels if pixels else 0.0,
        statistics.fmean(lengths) if lengths else 1.0,
        statistics.fmean(stills) if stills else 0.0,
    )


def show(cost: Estimate) -> None:
    """The estimate as a table."""
    rows = [
        ("files", f"{cost.files}, of which {len(cost.broken)} cannot be read"),
        ("video", console.hours(cost.video_s)),
        ("images", str(cost.images)),
        ("clips", f"about {cost.clips}"),
        ("time", f"about {console.hours(cost.run_s)} with {cost.workers} workers, shards apart"),
        ("catalog", f"about {console.size(cost.catalog_bytes)}"),
        ("shards", f"at most about {console.size(cost.shard_bytes)}, were every clip kept"),
    ]
    rows += [(name, why) for name, why in sorted(cost.broken.items())[:10]]
    console.table("The run would cost", rows)
