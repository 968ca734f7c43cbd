"""Which objects are in it, where, and of what colour: four of VBench's dimensions, through OWLv2.

    detector = load_owlv2("google/owlv2-base-patch16-ensemble")
    found = detector(frames, ["cat", "dog"])          # of each frame: label, box, score

VBench looks through GRiT, which gives a frame's objects one of COCO's names each and a caption.
OWLv2 (Minderer et al., arXiv 2306.09683) is asked for names; so that a horse is no cow, COCO's
names compete for each box with those asked for. Another word for one of them (bike) loses to it:
ask by COCO's. Frames and shares are VBench's; its bounds do not transfer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou

from eval.measures.encoders import ClipModel, pretrained, weights_sha256
from eval.measures.measure import Measure, Video, asked_for, middles
from recipes.keys import UsageError

FRAMES = 16  # of each video, as VBench
THRESHOLD = 0.3  # of a box's score; ours: OWLv2's scores are not GRiT's, of which VBench wants 0.5
OVERLAP = 0.1  # IoU from which a spatial relationship counts less
SIDES = {  # axis, and the sign of the second object's centre less the first's
    "on the left of": (0, 1),
    "on the right of": (0, -1),
    "on the top of": (1, 1),
    "on the bottom of": (1, -1),
}
# VBench's; brown is ours, since CLIP must choose, and would call it orange
COLOURS = ["white", "red", "pink", "blue", "silver", "purple"]
COLOURS += ["orange", "green", "gray", "yellow", "black", "brown"]
Boxes = tuple[Tensor, Tensor, Tensor]  # [N, 4] pixels x0 y0 x1 y1, [N] places of names, [N] scores


@dataclass(frozen=True)
class Detection:
    """An object in a frame.

    Attributes:
        label: one of the names that were asked for.
        box: x0, y0, x1, y1 in pixels, within the frame.
        score: 0–1.
    """

    label: str
    box: tuple[float, float, float, float]
    score: float


@dataclass(frozen=True)
class Detector:
    """Frames and names → what is found of them.

    Attributes:
        name: of the network.
        sha256: of its weights.
        detect: a frame, uint8 [H, W, 3], and names → boxes, each with its best name.
    """

    name: str
    sha256: str
    detect: Callable[[np.ndarray, list[str]], Boxes]

    def __call__(self, frames: np.ndarray, asked: Sequence[str]) -> list[list[Detection]]:
        """What is asked for in each of the frames, uint8 [T, H, W, 3]."""
        names = list(dict.fromkeys([*asked, *coco()]))
        height, width = frames.shape[1:3]
        found = []
        for frame in frames:
            boxes, places, scores = self.detect(frame, names)
            keep = (scores >= THRESHOLD) & (places < len(set(asked)))
            # OWLv2 pads pictures to squares, and a box may reach into that
            boxes = boxes.clamp(min=0).minimum(boxes.new_tensor([width, height] * 2))
            keep &= (boxes[:, 2:] > boxes[:, :2]).all(-1)
            rows = (one[keep].tolist() for one in (boxes, places, scores))
            found.append(
                [
                    Detection(names[k], tuple(box), score)
                    for box, k, score in zip(*rows, strict=True)
                ]
            )
        return found


@cache
def coco() -> tuple[str, ...]:
    """COCO's 80 names."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    known = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    return tuple(one for one in known if one not in ("__background__", "N/A"))


def load_owlv2(spec: str, device: str = "cpu") -> Detector:
    """OWLv2 through transformers.

    Args:
        spec: a folder of its Owlv2ForObjectDetection and processor, or a hub name.

    Raises:
        BackboneError: there is none, or a part of it is missing.
    """
    from transformers import Owlv2ForObjectDetection, Owlv2Processor
    from transformers.models.owlv2.modeling_owlv2 import Owlv2ObjectDetectionOutput

    network, processor = pretrained("OWLv2", Owlv2ForObjectDetection, Owlv2Processor, spec, device)
    length = network.config.text_config.max_position_embeddings

    @lru_cache(64)
    @torch.no_grad()
    def read(names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Embeddings [1, N, D], and which of them are no padding [1, N]; once for all frames."""
        asked = processor.tokenizer(
            [f"a photo of a {name}" for name in names],
            padding="max_length",
            max_length=length,
            truncation=True,
            return_tensors="pt",
        ).to(device)
        found = network.owlv2.get_text_features(**asked).pooler_output
        return F.normalize(found, dim=-1)[None], asked.input_ids[None, :, 0] > 0

    @torch.no_grad()
    def detect(frame: np.ndarray, names: list[str]) -> Boxes:
        pictures = processor.image_processor(frame, return_tensors="pt").pixel_values
        grid = network.image_embedder(pictures.to(device))[0]
        patches = grid.flatten(1, 2)
        seen = Owlv2ObjectDetectionOutput(
            logits=network.class_predictor(patches, *read(tuple(names)))[0],
            pred_boxes=network.box_predictor(patches, grid),
        )
        best = processor.image_processor.post_process_object_detection(
            seen, threshold=0.0, target_sizes=[frame.shape[:2]]
        )[0]
        return best["boxes"].cpu(), best["labels"].cpu(), best["scores"].cpu()

    return Detector("OWLv2", weights_sha256(network), detect)


def seen_in(detector: Detector, video: Video, names: Sequence[str]) -> list[list[Detection]]:
    """What is found of the names in each of VBench's frames, looked for once."""
    frames = middles(len(video), FRAMES)
    key = (detector.name, *names)
    return video.once(key, lambda: detector(video.frames[frames], names))


def _together(dimension: str, says: str, detector: Detector) -> Measure:
    """Share of frames in which all names are found."""

    def of(video: Video) -> float:
        if not (words := asked_for(video, dimension, "object")):
            return np.nan
        names = [name.strip() for name in words.lower().split(" and ")]
        seen = seen_in(detector, video, names)
        return float(np.mean([{one.label for one in frame} >= set(names) for frame in seen]))

    return _measure(dimension, of, says, (detector.name, detector.sha256))


def _measure(
    dimension: str, of: Callable[[Video], float], says: str, backbone: tuple[str, str]
) -> Measure:
    name = f"{dimension}_owlv2"
    return Measure(name, of, "0–1", True, says, backbone, stands_for=dimension)


def object_class_owlv2(detector: Detector) -> Measure:
    """Share of frames with the object (as VBench, object_class.py)."""
    says = "share of frames in which OWLv2 finds the object that is asked for"
    return _together("object_class", says, detector)


def multiple_objects_owlv2(detector: Detector) -> Measure:
    """Share of frames with all objects at once (as VBench, multiple_objects.py)."""
    says = "share of frames in which OWLv2 finds all objects that are asked for"
    return _together("multiple_objects", says, detector)


def spatial_relationship_owlv2(detector: Detector) -> Measure:
    """Mean over frames of the best placed pair, 0 where there is none (VBench,
    spatial_relationship.py, whose two defects are avoided: left is told from right, and top from
    bottom; and a pair is one of each object, not two of the same).

    Raises:
        UsageError: when it measures: what is asked is of another form, or no known relationship.
    """

    def of(video: Video) -> float:
        if not (what := video.asked.get("spatial_relationship")):
            return np.nan
        try:
            keys = ("object_a", "object_b", "relationship")
            first, second, side = (what[k].lower() for k in keys)
            axis_and_sign = SIDES[side]
        except (TypeError, KeyError, AttributeError) as error:
            raise UsageError(
                f"suite: {video.prompt!r} asks for spatial_relationship={what!r}; it wants "
                f"object_a, object_b, and relationship, one of {', '.join(SIDES)}"
            ) from error
        scores = []
        for frame in seen_in(detector, video, [first, second]):
            pairs = [
                placed(one.box, other.box, *axis_and_sign)
                for one in frame
                for other in frame
                if one is not other and (one.label, other.label) == (first, second)
            ]
            scores.append(max(pairs, default=0.0))
        return float(np.mean(scores))

    says = "how far OWLv2 finds the two objects where they are asked to be, to each other"
    return _measure("spatial_relationship", of, says, (detector.name, detector.sha256))


def placed(first: Sequence[float], second: Sequence[float], axis: int, sign: int) -> float:
    """0–1: whether the second box's centre lies from the first's mainly along an axis, on the side
    of that sign; less where they overlap, in inverse proportion to the IoU above OVERLAP."""
    pair = torch.tensor([first, second], dtype=torch.float64)
    centres = (pair[:, :2] + pair[:, 2:]) / 2
    away = centres[1] - centres[0]
    if not sign * away[axis] > away[1 - axis].abs():
        return 0.0
    overlap = float(box_iou(pair[:1], pair[1:]))
    return 1.0 if overlap < OVERLAP else OVERLAP / overlap


def color_owlv2(detector: Detector, clip: ClipModel) -> Measure:
    """Frames in which an object is of the colour that is asked for, out of those in which it is
    found; NaN where it is never found (as VBench, color.py). The object is what a suite says, else
    what the prompt leaves without its colour.

    VBench reads colours in GRiT's captions. Here CLIP chooses among them for the crop of each box,
    as GenEval does (Ghosh et al., arXiv 2310.11513, evaluate_images.py), whose agreement with
    people is known; OWLv2's own scores for "a red car" say how sure it is of a car first. Two
    defects of VBench's are avoided: a box's colour counts only for its own name, where VBench goes
    by the name of the frame's first box; and words are not cut out of other words.
    """

    def of(video: Video) -> float:
        colour = asked_for(video, "color", "color").lower()
        name = asked_for(video, "object_class", "object") or coloured(video.prompt, colour)
        if not colour or not name:
            return np.nan
        colour = "gray" if colour == "grey" else colour
        colours = list(dict.fromkeys([colour, *COLOURS]))
        frames = video.frames[middles(len(video), FRAMES)]
        right, texts = [], None
        for frame, seen in zip(frames, seen_in(detector, video, [name]), strict=True):
            if seen and texts is None:
                texts = clip.texts([f"a photo of a {one} {name}" for one in colours])
            crops = [clip.images(middle(frame, one.box)[None]) for one in seen]
            if crops:
                right.append(bool(((torch.cat(crops) @ texts.T).argmax(-1) == 0).any()))
        return float(np.mean(right)) if right else np.nan

    return _measure(
        "color",
        of,
        "share of frames in which the object that OWLv2 finds is, to CLIP, of the colour asked for",
        (f"{detector.name} and {clip.images.name}", f"{detector.sha256}+{clip.sha256}"),
    )


def coloured(prompt: str, colour: str) -> str:
    """What is to be of that colour: the prompt without it and without articles."""
    words = prompt.lower().strip(" .").split()
    return " ".join(one for one in words if one not in ("a", "an", "the", colour))


def middle(frame: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """The box's middle square of a frame [H, W, 3], all that CLIP's preparation leaves of it, and
    at least a pixel."""
    x0, y0, x1, y1 = box
    height, width = frame.shape[:2]
    side = max(1, round(min(x1 - x0, y1 - y0)))
    left = min(max(0, round((x0 + x1 - side) / 2)), width - side)
    top = min(max(0, round((y0 + y1 - side) / 2)), height - side)
    return np.ascontiguousarray(frame[top : top + side, left : left + side])
