"""What the tests of shards share: small sources of every kind, and clips of them."""

import hashlib
from pathlib import Path

from curation import shards
from curation.shards import Sample
from recipes.schema import Shards
from tests import zoo

RATE = 25
FAST = Shards(samples=2, preset="ultrafast", crf=30)
CHINESE = "一个红色的圆形向左移动，背景是“夜晚”"


def made(folder: Path) -> dict[str, Path]:
    """Small files of every kind: short name → path."""
    zoo.ffmpeg(*zoo.moving("64x48", seconds=4), *zoo.X264, folder / "film 影.mp4")
    zoo.ffmpeg(*zoo.moving("65x49", seconds=4), "-c:v", "ffv1", folder / "odd.mkv")
    ten = ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p10le"]
    zoo.ffmpeg(*zoo.moving("64x48", seconds=1), *ten, folder / "ten.mkv")
    zoo.picture(folder / "picture.jpg")
    zoo.picture(folder / "picture.png")
    (folder / "broken.mp4").write_text("this is no video")
    return {path.stem.split()[0] + path.suffix: path for path in folder.iterdir()}


def video_id(path: Path) -> str:
    return hashlib.sha256(path.name.encode()).hexdigest()[:16]


def clip(path: Path, start: int, end: int, **more) -> Sample:
    """Frames start … end of a file with 25 frames a second; an image where there are none."""
    given = {
        "clip_id": f"{video_id(path)}-{start:08d}-{end:08d}",
        "source_path": path,
        "name": path.name,
        "uri": str(path),
        "start_s": start / RATE,
        "end_s": end / RATE,
        "start_frame": start,
        "end_frame": end,
        "captions": (
            {"text": CHINESE, "language": "zh", "source": "sidecar", "model": None},
            {"text": "a red circle", "language": "en", "source": "vlm", "model": "Org/VLM-7B.v2"},
        ),
        "width": 64,
        "height": 48,
        "fps": float(RATE),
        "scores": {"flow_mean": 0.1 + 0.2, "aesthetic": 5.5, "border_box": [0, 0, 64, 48]},
        "tier": "optimal",
        "sampling_weight": 0.25,
        "bucket": "192p-17f-4x3",
        "split": "train",
    }
    return Sample(**given | more)


def several(sources: dict[str, Path]) -> list[Sample]:
    """Two of eight can't be cut."""
    film, odd = sources["film.mp4"], sources["odd.mkv"]
    return [
        clip(film, 0, 20),
        clip(film, 30, 55, crop=(9, 5, 41, 31)),
        clip(odd, 40, 60),
        clip(sources["ten.mkv"], 3, 20),
        clip(sources["picture.jpg"], 0, 1, start_s=0, end_s=0, is_image=True),
        clip(sources["picture.png"], 0, 1, start_s=0, end_s=0, is_image=True),
        clip(sources["broken.mp4"], 0, 9),
        clip(film, 90, 120),  # more frames than there are
    ]


def written(samples, folder: Path, settings: Shards = FAST) -> dict:
    """Plans, writes and finishes; returns the manifest."""
    jobs = shards.plan(samples, folder, settings)
    for job in jobs:
        list(shards.write_shard(job))
    return shards.finish(folder, jobs)


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
