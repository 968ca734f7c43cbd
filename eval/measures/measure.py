"""A measure: a name, what its numbers mean, and a function of one video.

Every measure yields one float a video, NaN where it says nothing of it (one frame has no motion).
Where a definition is VBench's to the letter it bears VBench's name; where anything differs, a
backbone too, the name is another, and the constants of VBench's totals do not apply to it.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np

from recipes.keys import UsageError

SHORT = 256  # pixels of the short side that motion is measured at, as VBench scales its threshold


class Video:
    """A decoded video, and what several measures need of it, computed once.

    Attributes:
        frames: uint8 [T, H, W, 3], RGB.
        fps: frames a second.
        prompt: what was asked for; empty where nothing was.
        asked: what of it single measures look for, by their names, as VBench's file has it.
        image: uint8 [H, W, 3], the picture that it was to begin with, at its own size; None where
            there was none.
    """

    def __init__(
        self,
        frames: np.ndarray,
        fps: float,
        prompt: str = "",
        asked: Mapping[str, Any] | None = None,
        image: np.ndarray | None = None,
    ) -> None:
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
            raise ValueError(f"frames are uint8 [T, H, W, 3], not {frames.dtype} {frames.shape}")
        self.frames, self.fps, self.prompt, self.asked = frames, fps, prompt, asked or {}
        self.image = image
        self._known: dict[Hashable, Any] = {}

    def __len__(self) -> int:
        return len(self.frames)

    @cached_property
    def luma(self) -> np.ndarray:
        """uint8 [T, H, W], of BT.601, at full size."""
        return np.stack([cv2.cvtColor(one, cv2.COLOR_RGB2GRAY) for one in self.frames])

    @cached_property
    def small(self) -> np.ndarray:
        """uint8 [T, h, w], luma at SHORT pixels; never enlarged."""
        height, width = self.luma.shape[1:]
        scale = SHORT / min(height, width)
        if scale >= 1:
            return self.luma
        size = (round(width * scale), round(height * scale))
        return np.stack([cv2.resize(one, size, interpolation=cv2.INTER_AREA) for one in self.luma])

    def flow(self, first: int, second: int) -> np.ndarray:
        """float32 [h, w, 2], pixels of `small` from one frame to another (DIS, Kroeger et al. 2016,
        arXiv 1603.03590)."""
        engine = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        pair = self.small[first], self.small[second]
        return self.once((first, second), lambda: engine.calc(*pair, None))

    def once(self, name: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` gives, made once for all measures."""
        if name not in self._known:
            self._known[name] = make()
        return self._known[name]


@dataclass(frozen=True)
class Measure:
    """What is measured.

    Attributes:
        name: of its column.
        of: the function; NaN where it says nothing.
        unit: of its numbers; 0–1 for shares.
        higher_is_better: None where neither is: more motion is not better motion.
        says: one line for the report.
        backbone: what network it looks through, and the SHA-256 of its weights; None: none.
        stands_for: the dimension of VBench whose prompts it is for and in whose place it stands in
            a substituted total; a measure to the letter bears the dimension's name instead.
    """

    name: str
    of: Callable[[Video], float]
    unit: str
    higher_is_better: bool | None
    says: str
    backbone: tuple[str, str] | None = None
    stands_for: str | None = None

    @property
    def dimension(self) -> str:
        """By which suites call it."""
        return self.stands_for or self.name

    def __call__(self, video: Video) -> float:
        return float(self.of(video))


def asked_for(video: Video, dimension: str, key: str) -> str:
    """Of "red" or {"color": "red"}, as a suite has it; empty where it asks for nothing.

    Raises:
        UsageError: it is neither.
    """
    what: Any = video.asked.get(dimension)
    what = what.get(key) if isinstance(what, Mapping) else what
    if what is not None and not isinstance(what, str):
        raise UsageError(f"suite: {video.prompt!r} asks for {dimension}={what!r}; it wants words")
    return (what or "").strip()


def middles(count: int, wanted: int) -> np.ndarray:
    """[wanted] places of frames, each the middle of its share of `count`; where there are fewer,
    the last one again (VBench, utils.py, get_frame_indices, "middle")."""
    edges = np.linspace(0, count, min(wanted, count) + 1).astype(int)
    found = (edges[:-1] + edges[1:] - 1) // 2
    return np.pad(found, (0, wanted - len(found)), mode="edge")
