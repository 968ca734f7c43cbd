"""Which frames an image-to-video model is given while it learns (report, section 5.1).

The report trains image-to-video, continuation, first-and-last-frame and random interpolation as one
task with masks; it states neither their shares nor lengths, which are ours here.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

LONGEST = 25  # frames of a continuation's beginning, 1.5 s at 16 fps (report, section 5.1)


def draw_mask(frames: int, shares: Mapping[str, float], generator: torch.Generator) -> Tensor:
    """The frames that are given, bool [T]; never all of them, and none of an image.

    Args:
        shares: how often each of first, continuation, both and random, relative to one another.

    Raises:
        ValueError: no share is above 0.
    """
    given = torch.zeros(frames, dtype=torch.bool)
    names = [name for name, share in shares.items() if share > 0]
    if not names:
        raise ValueError("objective.masks: an image-to-video model needs one above 0")
    weights = torch.tensor([float(shares[name]) for name in names])
    kind = names[int(torch.multinomial(weights, 1, generator=generator))]
    if frames == 1:
        return given
    if kind == "first":
        given[0] = True
    elif kind == "both":
        given[0] = given[-1] = True
    elif kind == "continuation":
        # whole latent frames: 1 + 4k, at most half the video
        most = max(0, (min(LONGEST, (frames + 1) // 2) - 1) // 4)
        count = 1 + 4 * int(torch.randint(most + 1, (), generator=generator))
        given[:count] = True
    else:
        share = 0.5 * float(torch.rand((), generator=generator))
        given = torch.rand(frames, generator=generator) < share
        one, other = torch.randperm(frames, generator=generator)[:2].tolist()
        given[one], given[other] = True, False
    return given
