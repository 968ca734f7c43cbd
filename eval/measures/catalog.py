"""All measures by name: those that need nothing, and those whose backbones are given.

A measure that is asked for without its backbone is refused by name, and never replaced.
"""

from collections.abc import Callable
from functools import cached_property

from eval.measures import consistency, following, looks, motion, pixels
from eval.measures.encoders import BackboneError, ClipModel, load_clip, load_dino
from eval.measures.measure import Measure
from recipes.evaluation import Backbones
from recipes.keys import UsageError, nearest

LIGHT = {one.name: one for one in (*pixels.MEASURES, *following.MEASURES)}


class Catalog:
    """Measures and the networks they share.

    Args:
        backbones: where each is.
        device: that they compute on.
    """

    def __init__(self, backbones: Backbones, device: str = "cpu") -> None:
        self.backbones, self.device = backbones, device
        # name → keys of the backbones that it needs, and how it is made of them
        self.deep: dict[str, tuple[tuple[str, ...], Callable[[], Measure]]] = {
            "subject_consistency": (
                ("dino",),
                lambda: consistency.subject_consistency(load_dino(backbones.dino, device)),
            ),
            "background_consistency": (
                ("clip_b32",),
                lambda: consistency.background_consistency(self.clip_b32.images),
            ),
            "appearance_style": (("clip_b32",), lambda: looks.appearance_style(self.clip_b32)),
            "aesthetic_quality": (
                ("clip_l14", "aesthetic"),
                lambda: looks.aesthetic_quality(
                    load_clip("ViT-L-14", backbones.clip_l14, device),
                    looks.load_head(backbones.aesthetic),
                ),
            ),
            "dynamic_degree": (
                ("raft",),
                lambda: motion.dynamic_degree(*motion.load_raft(backbones.raft, device)),
            ),
        }

    @cached_property
    def clip_b32(self) -> ClipModel:
        return load_clip("ViT-B-32", self.backbones.clip_b32, self.device)

    def missing(self, name: str) -> list[str]:
        """Keys of the backbones that a measure lacks."""
        needs, _ = self.deep.get(name, ((), None))
        return [one for one in needs if not getattr(self.backbones, one)]

    def measures(self, names: list[str]) -> list[Measure]:
        """Those named; without names, all that are not refused.

        Raises:
            UsageError: there is no such measure, its backbone is not given, or can't be loaded.
        """
        known = [*LIGHT, *self.deep]
        for name in names:
            if name not in known:
                raise UsageError(
                    f"measures={name}: no such measure; the nearest is {nearest(name, known)}"
                )
            if lacks := self.missing(name):
                keys = " and ".join(f"backbones.{one}=" for one in lacks)
                raise UsageError(f"measures={name}: wants {keys}, and nothing stands in for it")
        chosen = names or [name for name in known if not self.missing(name)]
        try:
            return [LIGHT[name] if name in LIGHT else self.deep[name][1]() for name in chosen]
        except BackboneError as error:
            raise UsageError(f"backbones: {error}") from error
