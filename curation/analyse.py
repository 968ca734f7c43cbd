"""One file's analysis: decode once, split, score. What the workers run.

The rows of a file leave together, when the file is finished, so that a run killed at any moment
has each file whole or not at all.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2

from curation import basic, motion, sources, split, video, visual
from curation.engine import one_line
from curation.scorer import REGISTRY, Clip, Column, Scorer, score, scorer
from curation.shards import bucket
from curation.sources import Source
from recipes.load import UsageError
from recipes.schema import Curation, Split

Rows = dict[str, list[dict]]

MEASURES = (basic, visual, motion)  # imported, they have registered their scorers

SPLIT_VERSION = "1"
THUMBNAIL = 160  # pixels wide
SIGN_OF_LIFE_S = 0.5


@dataclass(frozen=True)
class Job:
    """One file to analyse."""

    source: Source
    config: Curation
    scorers: tuple[str, ...]  # which of the registry run
    known: dict | None = None  # clip_id → scores that stand; None: the file is new


@dataclass(frozen=True)
class Progress:
    """A sign of life: seconds of the file walked so far, and of how many."""

    done_s: float
    of_s: float


def in_order() -> list[Scorer]:
    """All scorers as they run: borders first, since others look inside them; the tier last, since
    it judges what the others found. Whoever imported a module first changes nothing."""
    steps = ("basic", "visual", "embeddings", "motion", "thumbnails")
    return sorted(
        REGISTRY.values(),
        key=lambda one: (steps.index(one.step), one.name != "border", one.name == "tier", one.name),
    )


def chosen(config: Curation) -> list[Scorer]:
    """The scorers that a configuration's set and steps name, in the order in which they run."""
    steps = {"embeddings", "thumbnails", *config.steps}
    if unknown := set(config.skip) - REGISTRY.keys():
        names = ", ".join(REGISTRY)
        raise UsageError(f"skip={unknown.pop()}: no such scorer; there are {names}")
    return [
        one
        for one in in_order()
        if config.scorers in one.sets and one.step in steps and one.name not in config.skip
    ]


def split_version(options: Split) -> str:
    """Tells two ways of splitting apart: clips of another version are not comparable."""
    text = json.dumps(asdict(options), sort_keys=True)
    return f"{SPLIT_VERSION}:{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def prepare() -> None:
    """Once in each worker: every library keeps to its one core."""
    cv2.setNumThreads(1)


def analyse(job: Job) -> Iterator[Progress | Rows]:
    """Decodes one file once and yields signs of life, then all of its rows.

    A file that can't be read costs one row in `videos`, with its error.
    """
    source, config = job.source, job.config
    scorers = [REGISTRY[name] for name in job.scorers]
    row = lost_row(source, "")
    try:
        with sources.local(source, fetched(config)) as path:
            row = video_row(source, *sources.identify(path, source.name))
            row["split"] = split_version(config.split)
            yield from _walk(job, path, row, scorers)
    except (video.VideoError, OSError) as error:
        yield {"videos": [row | {"status": "error", "error": one_line(error)}]}


def fetched(config: Curation) -> Path:
    """Where remote files and tar members lie while they are read."""
    return Path(config.out) / "fetched"


def _walk(job: Job, path: Path, row: dict, scorers: list[Scorer]) -> Iterator[Progress | Rows]:
    config = job.config
    probe = video.probe(path, config.max_pixels)
    rows: Rows = {} if job.known is not None else {"videos": [row], "clips": []}
    errors: list[str] = []
    frames = 0
    last_s = 0.0

    def counted() -> Iterator[video.Frame]:
        nonlocal frames, last_s
        for frame in video.frames(path, probe, max_pixels=config.max_pixels, errors=errors):
            frames, last_s = frames + 1, frame.time_s
            yield frame

    found = split.clips(
        counted(), probe, config.split, sample_fps=config.sample_fps, weights=config.weights
    )
    beat = time.monotonic()
    for item in found:
        if item is not None:
            span, clip = item
            clip_id = f"{row['video_id']}-{span.start_frame:08d}-{span.end_frame:08d}"
            clip.scores.update((job.known or {}).get(clip_id, {}))
            for step, values in score(clip, scorers).items():
                if step in ("embeddings", "thumbnails"):
                    values.pop("versions")
                rows.setdefault(step, []).append({"clip_id": clip_id, **values})
            placed = clip_row(clip_id, row["video_id"], span, clip)
            rows.setdefault("clips", []).append(placed)
        if time.monotonic() - beat > SIGN_OF_LIFE_S:
            beat = time.monotonic()
            yield Progress(last_s, probe.duration_s)
    if not frames:
        raise video.VideoError(errors[0] if errors else "no frame can be decoded")
    row |= {
        "container": probe.container,
        "codec": probe.codec,
        "pix_fmt": probe.pix_fmt,
        "width": probe.width,
        "height": probe.height,
        "fps": probe.fps,
        "frames": frames,
        "duration_s": 0.0 if probe.is_image else last_s + 1 / probe.fps,
        "rotation": probe.rotation,
        "sar": probe.sar,
        "interlaced": probe.interlaced,
        "bit_depth": probe.bit_depth,
        "has_audio": probe.has_audio,
        "is_image": probe.is_image,
        "decode_errors": len(errors),
    }
    yield rows


def video_row(source: Source, video_id: str, digest: str | None) -> dict:
    """What is known of a file before it is opened."""
    return {
        "video_id": video_id,
        "uri": source.uri,
        "name": source.name,
        "bytes": source.bytes,
        "mtime_ns": source.mtime_ns,
        "hash": digest,
        "status": "ok",
        "error": None,
    }


def lost_row(source: Source, error: str) -> dict:
    """The row of a file whose worker died or hung, or which could not even be read."""
    video_id = hashlib.sha256(f"{source.name}\0{source.bytes}".encode()).hexdigest()[:16]
    return video_row(source, video_id, None) | {"status": "error", "error": error}


def clip_row(clip_id: str, video_id: str, span: split.Span, clip: Clip) -> dict:
    """Row of `clips`; the crop box is what the black borders leave."""
    x, y, w, h = clip.scores.get("border_box") or (0, 0, clip.width, clip.height)
    frames = 1 if clip.is_image else split.frames_at_16fps(span.start_s, span.end_s)
    length = split.length_4k1(frames)
    return {
        "clip_id": clip_id,
        "video_id": video_id,
        "start_frame": span.start_frame,
        "end_frame": span.end_frame,
        "start_s": span.start_s,
        "end_s": span.end_s,
        "fps": clip.fps,
        "width": clip.width,
        "height": clip.height,
        "crop_x": x,
        "crop_y": y,
        "crop_w": w,
        "crop_h": h,
        "frames_16fps": frames,
        "length_4k1": length,
        "bucket": bucket(w, h, length),
        "bytes": clip.bytes,
    }


@scorer(
    "thumbnails",
    version="1",
    source="the report's contact sheets",
    jpeg=Column("JPEG", "the middle sample, 160 pixels wide", "BLOB"),
)
def thumbnail(clip: Clip) -> dict:
    """What the report shows of a clip, kept so that selection is redone without decoding."""
    rgb = clip.rgb[len(clip.rgb) // 2]
    height = max(1, round(rgb.shape[0] * THUMBNAIL / rgb.shape[1]))
    small = cv2.resize(rgb, (THUMBNAIL, height), interpolation=cv2.INTER_AREA)
    done, jpeg = cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 75])
    if not done:
        raise ValueError(f"a frame of {rgb.shape} cannot be stored as a JPEG")
    return {"jpeg": jpeg.tobytes()}
