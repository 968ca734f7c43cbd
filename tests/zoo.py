"""Files that people have: rendered once a session by ffmpeg, each odd in its own way."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


def ffmpeg(*arguments: str | Path) -> None:
    """Runs ffmpeg quietly; a failure is a test's failure."""
    command = [FFMPEG, "-v", "error", "-y", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def moving(size: str = "320x180", rate: str = "25", seconds: float = 1.2) -> list[str]:
    """Input arguments of a moving test picture."""
    return ["-f", "lavfi", "-i", f"testsrc2=size={size}:rate={rate}:duration={seconds}"]


X264 = ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p"]


def rotated(path: Path) -> None:
    """Phone video: stored lying, shown standing."""
    flat = path.with_name("flat-" + path.name)
    ffmpeg(*moving(), *X264, flat)
    ffmpeg("-display_rotation", "90", "-i", flat, "-c", "copy", path)
    flat.unlink()


def truncated(path: Path) -> None:
    whole = path.with_name("whole-" + path.name)
    ffmpeg(*moving(seconds=3), *X264, whole)
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    whole.unlink()


def variable_rate(path: Path) -> None:
    """Every third frame of the second half is missing, and the time stamps say so."""
    drop = "select='lt(n,15)+mod(n,3)'"
    ffmpeg(*moving(), "-vf", drop, "-fps_mode", "vfr", *X264, path)


def picture(path: Path) -> None:
    x, y = np.meshgrid(np.arange(320), np.arange(240))
    rgb = np.stack([x * 255 // 320, y, (x + y) % 256], -1).astype(np.uint8)
    Image.fromarray(rgb).save(path)


def made(*arguments: str) -> Callable[[Path], None]:
    return lambda path: ffmpeg(*arguments, path)


SILENCE = ["-f", "lavfi", "-i", "anullsrc=r=44100:d=1"]

# name → how to make it; the good ones can be read, the broken ones cost a row with an error
GOOD: dict[str, Callable[[Path], None]] = {
    "plain.mp4": made(*moving(), *X264),
    "quicktime.mov": made(*moving(), *X264),
    "old.avi": made(*moving(), "-c:v", "mpeg4"),
    "matroska.mkv": made(*moving(), *X264),
    "web.webm": made(*moving(), "-c:v", "libvpx", "-deadline", "realtime"),
    "theora.ogv": made(*moving(), "-c:v", "libtheora"),
    "mpeg.mpg": made(*moving(), "-c:v", "mpeg2video"),
    "rotated.mp4": rotated,
    "variable rate.mkv": variable_rate,
    "anamorphic.mp4": made(*moving(), "-vf", "setsar=4/3", *X264),
    "interlaced.mpg": made(
        *moving(rate="50"), "-vf", "interlace", "-c:v", "mpeg2video", "-flags", "+ildct+ilme"
    ),
    "ten-bit.mkv": made(
        *moving(), "-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p10le"
    ),
    "alpha.mov": made(*moving(), "-pix_fmt", "argb", "-c:v", "qtrle"),
    "odd.mkv": made(*moving(size="321x181"), "-c:v", "ffv1"),
    "with sound.mp4": made(*moving(), *SILENCE, *X264, "-c:a", "aac"),
    "中文 名字 (1).mp4": made(*moving(), *X264),
    "one-frame.mp4": made(*moving(), "-frames:v", "1", *X264),
    "picture.jpg": picture,
    "picture.png": picture,
    "picture.webp": picture,
}
BROKEN: dict[str, Callable[[Path], None]] = {
    "sound only.m4a": made(*SILENCE, "-c:a", "aac"),
    "empty.mp4": lambda path: path.write_bytes(b""),
    "truncated.mp4": truncated,
    "not a video.mp4": lambda path: path.write_text("this is a letter, not a video\n" * 50),
    "noise.mkv": lambda path: path.write_bytes(np.random.default_rng(0).bytes(20000)),
}


def stock(folder: Path) -> Path:
    """Fills a folder with every file of the zoo."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in (GOOD | BROKEN).items():
        make(folder / name)
    return folder
