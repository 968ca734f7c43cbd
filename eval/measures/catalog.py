"""All measures by name: those that need nothing, and those whose backbones are given.

A measure that is asked for without its backbone is refused by name, and never replaced.
"""

from collections.abc import Callable
from functools import cached_property

from eval.measures import (
    action,
    captions,
    consistency,
    detection,
    following,
    image_to_video,
    likeness,
    looks,
    motion,
    musiq,
    pixels,
)
from eval.measures.encoders import BackboneError, ClipModel, Encoder, load_clip, load_dino
from eval.measures.measure import Measure
from recipes.evaluation import Backbones
from recipes.keys import UsageError, nearest

LIGHT = {one.name: one for one in (*pixels.MEASURES, *following.MEASURES, image_to_video.CAMERA)}


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
                lambda: consistency.subject_consistency(self.dino),
            ),
            "background_consistency": (
                ("clip_b32",),
                lambda: consistency.background_consistency(self.clip_b32.images),
            ),
            "aesthetic_quality": (
                ("clip_l14", "aesthetic"),
                lambda: looks.aesthetic_quality(
                    self.clip_l14, looks.load_head(backbones.aesthetic)
                ),
            ),
            "imaging_quality": (
                ("musiq",),
                lambda: musiq.imaging_quality(*musiq.load_musiq(backbones.musiq, device)),
            ),
            "dynamic_degree": (
                ("raft",),
                lambda: motion.dynamic_degree(*motion.load_raft(backbones.raft, device)),
            ),
            "appearance_style": (("clip_b32",), lambda: looks.appearance_style(self.clip_b32)),
            "object_class_owlv2": (
                ("owlv2",),
                lambda: detection.object_class_owlv2(self.owlv2),
            ),
            "multiple_objects_owlv2": (
                ("owlv2",),
                lambda: detection.multiple_objects_owlv2(self.owlv2),
            ),
            "color_owlv2": (
                ("owlv2", "clip_l14"),
                lambda: detection.color_owlv2(self.owlv2, self.clip_l14),
            ),
            "spatial_relationship_owlv2": (
                ("owlv2",),
                lambda: detection.spatial_relationship_owlv2(self.owlv2),
            ),
            "human_action_videomae": (
                ("videomae",),
                lambda: action.human_action_videomae(
                    action.load_videomae(backbones.videomae, device)
                ),
            ),
            "scene_blip": (
                ("blip",),
                lambda: captions.scene_blip(captions.load_blip(backbones.blip, device)),
            ),
            "temporal_style_xclip": (
                ("xclip",),
                lambda: likeness.temporal_style_xclip(self.xclip),
            ),
            "overall_consistency_xclip": (
                ("xclip",),
                lambda: likeness.overall_consistency_xclip(self.xclip),
            ),
            "i2v_subject": (("dino",), lambda: image_to_video.i2v_subject(self.dino)),
            "i2v_background_clip": (
                ("clip_b32",),
                lambda: image_to_video.i2v_background_clip(self.clip_b32.images),
            ),
        }

    @cached_property
    def dino(self) -> Encoder:
        return load_dino(self.backbones.dino, self.device)

    @cached_property
    def clip_b32(self) -> ClipModel:
        return load_clip("ViT-B-32", self.backbones.clip_b32, self.device)

    @cached_property
    def clip_l14(self) -> ClipModel:
        return load_clip("ViT-L-14", self.backbones.clip_l14, self.device)

    @cached_property
    def owlv2(self) -> detection.Detector:
        return detection.load_owlv2(self.backbones.owlv2, self.device)

    @cached_property
    def xclip(self) -> likeness.VideoText:
        return likeness.load_xclip(self.backbones.xclip, self.device)

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
        chosen = list(dict.fromkeys(names)) or [name for name in known if not self.missing(name)]
        try:
            return [LIGHT[name] if name in LIGHT else self.deep[name][1]() for name in chosen]
        except BackboneError as error:
            raise UsageError(f"backbones: {error}") from error
