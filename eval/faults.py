"""Faults planted into good videos, to see which measures notice.

    FAULTS["freeze"].plant(frames, seed=0)        # uint8 [T, H, W, 3], RGB, as given
    FAULTS["freeze"].measure                      # the one that must tell

Each is as strong as a person sees at a glance. Nothing is changed in place.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

Random = np.random.RandomState


@dataclass(frozen=True)
class Fault:
    """One kind of damage.

    Attributes:
        of: frames and a source of chance → frames.
        measure: the name of the measure that must notice it first of all.
        falls: whether that measure's numbers fall; else they rise.
        says: one line for the report.
    """

    of: Callable[[np.ndarray, Random], np.ndarray]
    measure: str
    falls: bool
    says: str

    def plant(self, frames: np.ndarray, seed: int = 0) -> np.ndarray:
        return self.of(frames, Random(seed))


def freeze(frames: np.ndarray, random: Random) -> np.ndarray:
    return np.repeat(frames[len(frames) // 2][None], len(frames), axis=0)


def shuffle(frames: np.ndarray, random: Random) -> np.ndarray:
    return frames[random.permutation(len(frames))]


def flicker(frames: np.ndarray, random: Random) -> np.ndarray:
    """Every frame a little brighter or darker than it should be."""
    return _whole(frames * random.uniform(0.8, 1.2, (len(frames), 1, 1, 1)))


def blur(frames: np.ndarray, random: Random) -> np.ndarray:
    sigma = min(frames.shape[1:3]) / 64
    return np.stack([cv2.GaussianBlur(one, (0, 0), sigma) for one in frames])


def noise(frames: np.ndarray, random: Random) -> np.ndarray:
    return _whole(frames + 12 * random.randn(*frames.shape).astype(np.float32))


def mirror(frames: np.ndarray, random: Random) -> np.ndarray:
    """Left becomes right."""
    return np.ascontiguousarray(frames[:, :, ::-1])


def recolor(frames: np.ndarray, random: Random) -> np.ndarray:
    """Every hue becomes another."""
    return np.ascontiguousarray(frames[..., [1, 2, 0]])


def duplicate(frames: np.ndarray, random: Random) -> np.ndarray:
    """What is in the left half is in the right one too."""
    half = frames.shape[2] // 2
    return np.concatenate([frames[:, :, :half], frames[:, :, : frames.shape[2] - half]], axis=2)


def _whole(frames: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(frames), 0, 255).astype(np.uint8)


FAULTS = {
    "freeze": Fault(freeze, "speed_dis", True, "one frame, again and again"),
    "shuffle": Fault(shuffle, "smoothness_dis", True, "frames in another order"),
    "flicker": Fault(flicker, "temporal_flickering", True, "brightness varies by a fifth"),
    "blur": Fault(blur, "sharpness", True, "as if out of focus"),
    "noise": Fault(noise, "noise", False, "12 grey levels of it"),
    "mirror": Fault(mirror, "follows_direction", True, "left and right exchanged"),
    "recolor": Fault(recolor, "follows_color", True, "every hue another"),
    "duplicate": Fault(duplicate, "follows_count", True, "what is on the left, on the right too"),
}
