"""Clips whose every frame shows its own number, and the tars and shards that hold them."""

import io
import json
import tarfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from curation import shards
from curation.shards import Sample
from recipes.load import load
from recipes.schema import Shards
from recipes.training import Fit

BITS = 8  # vertical stripes, white for 1
CLOCK = 90_000
ENGLISH, CHINESE = "a number counts up", "一个数字在增加"


def picture(number: int, width: int = 64, height: int = 64) -> np.ndarray:
    """RGB [H, W, 3]: the number in binary, its lowest bit at the left."""
    stripes = np.array([255 * (number >> bit & 1) for bit in range(BITS)], np.uint8)
    row = stripes[np.arange(width) * BITS // width]
    return np.broadcast_to(row[None, :, None], (height, width, 3)).copy()


def number(frame: np.ndarray) -> int:
    """What a frame [3, H, W] shows."""
    columns = np.asarray(frame, np.float64).mean((0, 1))
    stripes = columns.reshape(BITS, -1).mean(1)
    return int(sum(1 << bit for bit, value in enumerate(stripes) if value > 127))


def numbers(video: Any) -> list[int]:
    """What the frames of a video [3, T, H, W] show."""
    return [number(frame) for frame in np.asarray(video).transpose(1, 0, 2, 3)]


def clip(
    stamps: Sequence[float] | int = 9,
    fps: float = 16,
    size: tuple[int, int] = (64, 64),
    start: int = 0,
    **options: str,
) -> bytes:
    """An MP4 whose frame k shows `start + k` from `stamps[k]` seconds on.

    Args:
        stamps: seconds, or how many frames there are at `fps`.
    """
    if isinstance(stamps, int):
        stamps = [k / fps for k in range(stamps)]
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "10", "preset": "veryfast"} | options
        stream.codec_context.time_base = stream.time_base = Fraction(1, CLOCK)
        for k, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(picture(start + k, *size), format="rgb24")
            frame.pts, frame.time_base = round(stamp * CLOCK), Fraction(1, CLOCK)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def image(number: int, kind: str = "png", size: tuple[int, int] = (64, 64)) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(number, *size)).save(file, "JPEG" if kind == "jpg" else "PNG")
    return file.getvalue()


def tar(path: Path, members: dict[str, bytes | dict | str], kind: int = tarfile.PAX_FORMAT) -> Path:
    """A tar as others write it: names → bytes, text, or what becomes JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as file:
        for name, data in members.items():
            if isinstance(data, dict):
                data = json.dumps(data)
            data = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1_700_000_000
            file.addfile(info, io.BytesIO(data))
    return path


def curated(
    folder: Path,
    clips: Sequence[bytes],
    split: str = "train",
    samples: int = 4,
    **facts: Any,
) -> Path:
    """A profile's folder as curation writes it; the clips' keys begin with their numbers."""
    sources = folder.parent / f"{folder.name}-{split}"
    sources.mkdir(parents=True, exist_ok=True)
    some = []
    for at, data in enumerate(clips):
        suffix = "mp4" if data[4:8] == b"ftyp" else "png" if data[:4] == b"\x89PNG" else "jpg"
        path = sources / f"{at:03d}.{suffix}"
        path.write_bytes(data)
        some.append(sample(path, f"{at:03d}-{split}", suffix != "mp4", split=split, **facts))
    place = folder / split
    jobs = shards.plan(some, place, Shards(samples=samples, preset="veryfast", crf=12))
    for job in jobs:
        rows = [row for row in shards.write_shard(job) if row]
        assert {row["status"] for row in rows} <= {"success"}
    shards.finish(place, jobs)
    return folder


def sample(path: Path, key: str, is_image: bool, **facts: Any) -> Sample:
    length = 0.0 if is_image else 1e6  # all of it
    captions = [
        {"text": f"{ENGLISH} in {key}", "language": "en", "source": "sidecar", "model": None},
        {"text": f"{CHINESE} {key}", "language": "zh", "source": "sidecar", "model": None},
    ]
    given = {
        "clip_id": key,
        "source_path": path,
        "name": path.name,
        "start_s": 0.0,
        "end_s": length,
        "is_image": is_image,
        "captions": tuple(captions),
        "scores": {"flow_mean": 0.25, "aesthetic": None, "border_box": [0, 0, 64, 64]},
        "tier": "optimal",
    }
    return Sample(**given | facts)


def config(*arguments: str, shards: Path | str | None = None) -> Fit:
    """64 × 64, images and 9 frames, everything read in this process."""
    given = ["buckets.sizes=64x64", "buckets.frames=1,9", "buckets.tokens=192", "data.workers=0"]
    places = [f"data.shards={shards}"] if shards else []
    return load(Fit, [*given, *places, *arguments])
