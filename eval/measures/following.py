"""Does a video show what a rendered prompt says: one aspect a measure, 1 or 0.

Of a prompt that names no one color and shape (`eval.measures.rendered` says which do), and of an
aspect that it does not name, nothing is said.
"""

import numpy as np

from eval.measures import rendered
from eval.measures.measure import Measure, Video


def judgement(video: Video) -> tuple[dict[str, str], rendered.Judgement] | None:
    """What is asked for, and what is seen; None where the prompt is no rendered one."""
    try:
        asked = rendered.wanted(video.prompt)
    except ValueError:
        return None
    return asked, video.once("judgement", lambda: rendered.judge(video.frames))


def follows(aspect: str):
    """A measure of one aspect: color, shape or direction."""

    def of(video: Video) -> float:
        found = judgement(video)
        if found is None or aspect not in found[0]:
            return np.nan
        asked, seen = found
        return float(getattr(seen, aspect) == asked[aspect])

    return of


def count(video: Video) -> float:
    """Whether one thing stands out, as the prompt says, and no second one."""
    found = judgement(video)
    return np.nan if found is None else float(found[1].thing is not None)


MEASURES = (
    Measure("follows_color", follows("color"), "0 or 1", True, "the color that the prompt names"),
    Measure("follows_shape", follows("shape"), "0 or 1", True, "the shape that it names"),
    Measure("follows_direction", follows("direction"), "0 or 1", True, "where it says it goes"),
    Measure("follows_count", count, "0 or 1", True, "one thing, as it says, and not two"),
)
