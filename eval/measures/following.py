"""Does a video show what a rendered prompt says: one aspect a measure, 1 or 0.

Of a prompt that names no one color and shape (`eval.measures.rendered` says which do), and of an
aspect that it does not name, nothing is said. Things are counted, and text is read, of any prompt
that names or quotes some.
"""

import numpy as np

from eval.measures import rendered, writing
from eval.measures.count import count
from eval.measures.measure import Measure, Video

READ = 3  # frames


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


def number(video: Video) -> float:
    """Whether as many things stand out as the prompt names."""
    asked = rendered.things(video.prompt)
    return float(count(video.frames) == asked) if asked else np.nan


def text(video: Video) -> float:
    """How much of the text that the prompt quotes is read in the middle frame and two others: 1 −
    edit distance / length, letters and signs alone."""
    asked = writing.quoted(video.prompt)
    if not asked:
        return np.nan
    at = np.unique(np.linspace(0, len(video) - 1, READ + 2).round().astype(int)[1:-1])
    return float(np.mean([writing.likeness(asked, writing.read(video.frames[k])) for k in at]))


MEASURES = (
    Measure("follows_color", follows("color"), "0 or 1", True, "the color that the prompt names"),
    Measure("follows_shape", follows("shape"), "0 or 1", True, "the shape that it names"),
    Measure("follows_direction", follows("direction"), "0 or 1", True, "where it says it goes"),
    Measure("follows_count", number, "0 or 1", True, "as many things as it names"),
    Measure(
        "follows_text",
        text,
        "0–1",
        True,
        "how much of the text that it quotes can be read",
        backbone=writing.BACKBONE,
    ),
)
