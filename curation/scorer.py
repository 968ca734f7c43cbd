"""What a score is: a plain function from a clip's frames to named values.

    @scorer("basic", version="1", source="ITU-R BT.709", luma_mean=Column("0–1", "mean luma"))
    def luma(clip: Clip) -> dict: ...

Adding one is one such function in `basic`, `visual` or `motion`; its columns, their units and its
version reach the catalog, the report and data/README.md from this line. Values lie in 0–1, are
independent of size and frame rate and grow with what they are named for, unless the column says
otherwise.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from recipes.schema import Weights


@dataclass(frozen=True)
class Column:
    """One column of a step's table."""

    unit: str
    meaning: str
    type: str = "DOUBLE"  # DuckDB's


@dataclass
class Clip:
    """One clip as the scorers see it. Frames are upright, with square pixels and full range.

    Shapes: n frames of the clip, k of them sampled (about `sample_fps` a second, at least one).
    """

    gray: np.ndarray  # uint8 [n, h, w]: every frame, short side 180 or the source's if smaller
    times: np.ndarray  # float64 [n]: seconds since the file's first frame
    rgb: np.ndarray  # uint8 [k, H, W, 3]: the samples, long side 640 or the source's if smaller
    native: list[np.ndarray]  # k × uint8 [≤1080, ≤1920]: the samples' luma, source pixels, centre
    samples: np.ndarray  # int64 [k]: which of the n frames were sampled
    width: int  # source pixels, upright and square
    height: int
    fps: float  # mean frame rate of the source
    bytes: int  # of the source's video stream that this clip takes
    weights: Weights = field(default_factory=Weights)  # where the models of scorers=full lie
    scores: dict = field(default_factory=dict)  # what the scorers before this one found

    @property
    def is_image(self) -> bool:
        return len(self.gray) == 1

    @property
    def duration_s(self) -> float:
        """Seconds, the last frame's own included; 0 for an image."""
        return 0.0 if self.is_image else float(self.times[-1] - self.times[0]) + 1 / self.fps


@dataclass(frozen=True)
class Scorer:
    """A registered score: which step's table it fills, and with what."""

    name: str
    step: str
    version: str
    source: str
    columns: dict[str, Column]
    sets: tuple[str, ...]
    video_only: bool
    score: Callable[[Clip], dict]


REGISTRY: dict[str, Scorer] = {}


def scorer(
    step: str,
    *,
    version: str,
    source: str,
    sets: tuple[str, ...] = ("light", "full"),
    video_only: bool = False,
    **columns: Column,
) -> Callable:
    """Registers the decorated function.

    Args:
        step: the table it fills, `basic`, `visual` or `motion`.
        version: changes whenever the numbers do, so that only stale scores are computed again.
        source: the paper, standard or package that the measure comes from.
        sets: the sets (`scorers=light|full`) that it belongs to.
        video_only: an image gets NULL.
        columns: what it returns.
    """

    def register(score: Callable[[Clip], dict]) -> Callable[[Clip], dict]:
        REGISTRY[score.__name__] = Scorer(
            score.__name__, step, version, source, columns, sets, video_only, score
        )
        return score

    return register


def score(clip: Clip, scorers: list[Scorer]) -> dict[str, dict]:
    """Runs the scorers over one clip, in order.

    Returns:
        step → its row: one value a column, and `versions`, scorer name → version.
    """
    rows: dict[str, dict] = {}
    for one in scorers:
        row = rows.setdefault(one.step, {"versions": {}})
        if one.video_only and clip.is_image:
            values = dict.fromkeys(one.columns)
        else:
            values = one.score(clip)
        if values.keys() != one.columns.keys():
            raise ValueError(
                f"{one.name} returned {sorted(values)}, declared {sorted(one.columns)}"
            )
        row.update(values)
        row["versions"][one.name] = one.version
        clip.scores.update(values)
    return rows
