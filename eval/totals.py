"""VBench's totals: sixteen dimensions, normalised, weighted (VBench, scripts/constant.py and
cal_final_score.py). While one of them is missing there is no total, and nothing counts as 0.

Where every dimension is measured, but some through another backbone than VBench's, there is
`total_substituted` instead. VBench's bounds do not transfer to another backbone's numbers, so a
substitute counts as it is, and the sum is not to be set beside VBench's.
"""

from collections.abc import Iterable, Sequence

import numpy as np

# name → lowest and highest of its normalisation, weight
QUALITY = {
    "subject_consistency": (0.1462, 1.0, 1.0),
    "background_consistency": (0.2615, 1.0, 1.0),
    "temporal_flickering": (0.6293, 1.0, 1.0),
    "motion_smoothness": (0.706, 0.9975, 1.0),
    "aesthetic_quality": (0.0, 1.0, 1.0),
    "imaging_quality": (0.0, 1.0, 1.0),
    "dynamic_degree": (0.0, 1.0, 0.5),
}
SEMANTIC = {
    "object_class": (0.0, 1.0, 1.0),
    "multiple_objects": (0.0, 1.0, 1.0),
    "human_action": (0.0, 1.0, 1.0),
    "color": (0.0, 1.0, 1.0),
    "spatial_relationship": (0.0, 1.0, 1.0),
    "scene": (0.0, 0.8222, 1.0),
    "appearance_style": (0.0009, 0.2855, 1.0),
    "temporal_style": (0.0, 0.364, 1.0),
    "overall_consistency": (0.0, 0.364, 1.0),
}
SHARE = 4.0, 1.0  # of quality and semantic in the total
TOTALS = {"quality": tuple(QUALITY), "semantic": tuple(SEMANTIC), "total": (*QUALITY, *SEMANTIC)}


def missing(name: str, measured: set[str]) -> list[str]:
    """Dimensions that a total lacks."""
    return [one for one in TOTALS[name] if one not in measured]


def standing(name: str, measured: Iterable[tuple[str, str]]) -> dict[str, str]:
    """By dimension of a total, what measures it: itself, else the first that stands for it.

    Args:
        measured: name and dimension of each measure that there is.
    """
    found: dict[str, str] = {}
    for measure, dimension in measured:
        if measure == dimension or dimension not in found:
            found[dimension] = measure
    return {one: found[one] for one in TOTALS[name] if one in found}


def combine(name: str, means: np.ndarray, substitutes: Sequence[str] = ()) -> np.ndarray:
    """A total of means [..., M], in the order of TOTALS[name]; 0–1, not clipped.

    Args:
        substitutes: dimensions whose means are another backbone's.
    """
    if name == "total":
        count = len(QUALITY)
        quality = combine("quality", means[..., :count], substitutes)
        semantic = combine("semantic", means[..., count:], substitutes)
        return (SHARE[0] * quality + SHARE[1] * semantic) / sum(SHARE)
    dimensions = QUALITY if name == "quality" else SEMANTIC
    bounds = [(0.0, 1.0, row[2]) if one in substitutes else row for one, row in dimensions.items()]
    low, high, weight = np.array(bounds).T
    return ((means - low) / (high - low) * weight).sum(-1) / weight.sum()
