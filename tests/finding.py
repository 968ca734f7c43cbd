"""What a `source=` finds: files of known content, folders and tars of them, and what was found."""

import io
import tarfile
from pathlib import Path

from curation import sources
from curation.sources import Source
from recipes.schema import Captions, Curation


def find(source, out="nowhere-out", **captions) -> list[Source]:
    return sources.find(Curation(source=str(source), out=str(out), captions=Captions(**captions)))


def names(found: list[Source]) -> list[str]:
    return [one.name for one in found]


def texts(one: Source) -> list[str]:
    return [caption.text for caption in one.captions]


def content(one: Source, **more) -> bytes:
    with sources.local(one, **more) as path:
        return path.read_bytes()


def put(path: Path, data: bytes | str = b"") -> Path:
    """A file; its own path is its content unless told otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = data.encode() if isinstance(data, str) else data
    path.write_bytes(data or str(path).encode())
    return path


def stocked(root: Path) -> Path:
    """A folder with media of every kind, captions beside them, and what is neither."""
    put(root / "b.mp4", b"bee")
    put(root / "b.txt", "a bee\n一只蜜蜂\n")
    put(root / "a b (c) [d].mov", b"spaces")
    put(root / "子 目录" / "猫.webm", b"cat")
    put(root / "子 目录" / "猫.zh.txt", "一只猫")
    put(root / "子 目录" / "photo.JPG", b"photo")
    put(root / "not-a-video.bin", b"junk")
    put(root / "empty.mp4").write_bytes(b"")
    for plain in ("notes.md", "table.csv", "b.srt", ".hidden.mp4", "README", ".cache/x.mp4"):
        put(root / plain, b"plain")
    return root


ALL = [
    "a b (c) [d].mov",
    "b.mp4",
    "empty.mp4",
    "not-a-video.bin",
    "子 目录/photo.JPG",
    "子 目录/猫.webm",
]


SAMPLES = {
    "000001.mp4": b"one" * 500,
    "000001.txt": b"first",
    "000001.json": b'{"caption": "first", "url": "x", "status": "success"}',
    "d/000002.cam.mp4": b"two",
    "d/000002.json": '{"captions": ["second", "第二个"]}'.encode(),
    "图.png": b"picture",
}


def tar(path: Path, members: dict[str, bytes | tarfile.TarInfo], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as out:
        for name, data in members.items():
            if isinstance(data, tarfile.TarInfo):
                out.addfile(data)
            else:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                out.addfile(member, io.BytesIO(data))
    return path
