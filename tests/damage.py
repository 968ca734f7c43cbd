"""What codecs and networks do to a video: frames → frames, both uint8 [T, H, W, 3] RGB.

Mild to strong; a person still names color, shape and direction of what was rendered, except where
the table of `tests/benchmarks/judging.py` shows that a measure can't either.
"""

import functools
from collections.abc import Callable

import cv2
import numpy as np

from curation.synthetic import shapes
from recipes.schema import Synthetic

cv2.setNumThreads(1)
Damage = Callable[[np.ndarray], np.ndarray]


def whole(frames: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(frames), 0, 255).astype(np.uint8)


def blur(frames: np.ndarray, sigma: float = 1) -> np.ndarray:
    return np.stack([cv2.GaussianBlur(one, (0, 0), sigma) for one in frames])


def ringing(frames: np.ndarray) -> np.ndarray:
    """Sharpened after a blur: a bright and a dark line along every edge."""
    soft = blur(frames).astype(float)
    return whole(soft + 1.5 * (soft - blur(frames, 2)))


def noise(frames: np.ndarray, share: float = 0.05) -> np.ndarray:
    random = np.random.RandomState(int(frames[0, 0, 0, 0]))
    return whole(frames + 255 * share * random.randn(*frames.shape))


def blotches(frames: np.ndarray, share: float = 0.05) -> np.ndarray:
    """Noise of eighths of the frame, another one in every frame: what latent noise looks like."""
    random = np.random.RandomState(int(frames[0, 0, 0, 0]))
    size = frames.shape[2:0:-1]
    coarse = [
        cv2.resize(random.randn(8, 8, 3), size, interpolation=cv2.INTER_CUBIC) for _ in frames
    ]
    return whole(frames + 255 * share * np.stack(coarse))


def flicker(frames: np.ndarray) -> np.ndarray:
    gains = np.random.RandomState(int(frames[0, 0, 0, 0])).uniform(
        0.85, 1.1, (len(frames), 1, 1, 1)
    )
    return whole(frames * gains)


def jpeg(frames: np.ndarray, quality: int = 30) -> np.ndarray:
    def once(frame: np.ndarray) -> np.ndarray:
        _, data = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]

    return np.stack([once(frame) for frame in frames])


def cast(frames: np.ndarray, gains=(1.15, 1, 0.8), lift: float = 0) -> np.ndarray:
    return whole(frames * np.array(gains) + lift)


def box(frames: np.ndarray, side: int = 8) -> np.ndarray:
    """Means of side × side pixels, interpolated back."""
    height, width = frames.shape[1:3]
    size = (width // side, height // side)
    small = [cv2.resize(one, size, interpolation=cv2.INTER_AREA) for one in frames]
    return np.stack([cv2.resize(one, (width, height)) for one in small])


def trivial(frames: np.ndarray) -> np.ndarray:
    """The trivial codec of 4×8×8: `box` of every fourth frame, interpolated back."""
    kept = box(frames[::4]).astype(float)
    times = np.arange(len(frames)) / 4
    before = np.minimum(times.astype(int), len(kept) - 1)
    after = np.minimum(before + 1, len(kept) - 1)
    share = (times - before)[:, None, None, None]
    return whole(kept[before] * (1 - share) + kept[after] * share)


def linear(frames: np.ndarray, components: int = 16) -> np.ndarray:
    """The best linear codec of 4×8×8 for renderings of 64 px, with so many components a cell."""
    first, rest = _cells(frames)
    rebuilt = []
    for part, cells in (("first", first), ("rest", rest)):
        mean, basis = _basis(part, components)
        rebuilt.append((cells - mean) @ basis @ basis.T + mean)
    head, tail = (
        cells.reshape(-1, 8, 8, t, 8, 8, 3).transpose(0, 3, 1, 4, 2, 5, 6).reshape(-1, 64, 64, 3)
        for cells, t in zip(rebuilt, (1, 4), strict=True)
    )
    return whole(np.concatenate([head, tail]))


def _cells(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the first frame [64, 192], and of every four after it [n * 64, 768]."""
    parts = []
    for part, t in ((frames[:1], 1), (frames[1:], 4)):
        split = part.reshape(-1, t, 8, 8, 8, 8, 3).astype(np.float32)
        parts.append(split.transpose(0, 2, 4, 1, 3, 5, 6).reshape(-1, t * 192))
    return parts[0], parts[1]


@functools.cache
def _basis(part: str, components: int) -> tuple[np.ndarray, np.ndarray]:
    config = Synthetic(size=64, frames=9, seed=1234)
    videos = [shapes(index, config).frames for index in range(96)]
    cells = np.concatenate([_cells(video)[part == "rest"] for video in videos])
    mean = cells.mean(0)
    vectors = np.linalg.eigh((cells - mean).T @ (cells - mean))[1]
    return mean, vectors[:, -components:]


DAMAGES: dict[str, Damage] = {
    "none": lambda frames: frames,
    "blur, sigma 1 px": blur,
    "blur, sigma 2 px": functools.partial(blur, sigma=2),
    "blur, sigma 3 px": functools.partial(blur, sigma=3),
    "ringing": ringing,
    "noise of 5 %": noise,
    "noise of 10 %": functools.partial(noise, share=0.1),
    "blotches of 5 %": blotches,
    "blotches of 10 %": functools.partial(blotches, share=0.1),
    "flicker": flicker,
    "JPEG, quality 30": jpeg,
    "JPEG, quality 10": functools.partial(jpeg, quality=10),
    "warm cast": cast,
    "cool cast": functools.partial(cast, gains=(0.8, 1, 1.15)),
    "green cast": functools.partial(cast, gains=(0.9, 1.1, 0.9)),
    "pale": functools.partial(cast, gains=(0.7, 0.7, 0.7), lift=60),
    "dark": functools.partial(cast, gains=(0.6, 0.6, 0.6)),
    "linear codec, 64 of 4x8x8": functools.partial(linear, components=64),
    "linear codec, 32 of 4x8x8": functools.partial(linear, components=32),
    "linear codec, 16 of 4x8x8": linear,
    "linear codec, 8 of 4x8x8": functools.partial(linear, components=8),
    "box of 4x4": functools.partial(box, side=4),
    "box of 8x8": box,
    "trivial codec of 4x8x8": trivial,
}
