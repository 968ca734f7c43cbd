"""Does a person do what is asked: VBench's human_action, through VideoMAE.

    classifier = load_videomae("MCG-NJU/videomae-base-finetuned-kinetics")

VBench looks through UMT. Both give a logit for each of Kinetics-400's actions, and VBench takes
each one's sigmoid, although they were trained under a softmax; so do we, without which no more than
one could reach 0.85, and the top five would mean nothing. The scale of VideoMAE's logits is its
own: the figures are for comparison among themselves.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eval.measures.encoders import BackboneError, pretrained, weights_sha256
from eval.measures.measure import Measure, Video, middles

TOP = 5
SURE = 0.85  # of a sigmoid, rounded to four digits as VBench does


@dataclass(frozen=True)
class Classifier:
    """Frames → how likely each action is.

    Attributes:
        name: of the network.
        sha256: of its weights.
        labels: of the actions.
        frames: how many it takes.
        classify: uint8 [frames, H, W, 3] → logits [labels].
    """

    name: str
    sha256: str
    labels: tuple[str, ...]
    frames: int
    classify: Callable[[np.ndarray], Tensor]


def load_videomae(spec: str, device: str = "cpu") -> Classifier:
    """VideoMAE (Tong et al., arXiv 2203.12602), fine-tuned on Kinetics-400.

    Args:
        spec: a folder of transformers' VideoMAEForVideoClassification and its image processor, or a
            hub name.

    Raises:
        BackboneError: there is none, or it does not name its actions.
    """
    from transformers import VideoMAEForVideoClassification, VideoMAEImageProcessor

    network, prepares = pretrained(
        "VideoMAE", VideoMAEForVideoClassification, VideoMAEImageProcessor, spec, device
    )
    labels = tuple(label for _, label in sorted(network.config.id2label.items()))
    if labels[0] == "LABEL_0":
        raise BackboneError(f"{spec}: no VideoMAE for actions (its config names none in id2label)")

    @torch.no_grad()
    def classify(frames: np.ndarray) -> Tensor:
        pictures = prepares(list(frames), return_tensors="pt").pixel_values
        return network(pictures.to(device)).logits[0].float().cpu()

    frames = network.config.num_frames
    return Classifier("VideoMAE", weights_sha256(network), labels, frames, classify)


def human_action_videomae(classifier: Classifier) -> Measure:
    """1 where the action is among the five likeliest, and sure enough (as VBench, human_action.py,
    on whose frames); NaN where it is none that the network knows, which VBench counts as 0."""
    known = [plain(label) for label in classifier.labels]

    def of(video: Video) -> float:
        action = plain(asked_action(video))
        if action not in known:
            return np.nan
        logits = classifier.classify(video.frames[middles(len(video), classifier.frames)])
        likely, places = torch.sigmoid(logits).topk(min(TOP, len(known)))
        sure = [k for k, one in zip(places, likely.tolist(), strict=True) if round(one, 4) >= SURE]
        return float(action in [known[k] for k in sure])

    return Measure(
        "human_action_videomae",
        of,
        "0 or 1",
        True,
        "whether VideoMAE sees the action that is asked for",
        (classifier.name, classifier.sha256),
        stands_for="human_action",
    )


def asked_action(video: Video) -> str:
    """A suite's, or what comes in the prompt after "person is"."""
    asked = video.asked.get("human_action") or video.prompt
    return re.split(r"person is ", asked, flags=re.IGNORECASE)[-1]


def plain(label: str) -> str:
    """Letters and digits only: Kinetics' names are spelt with and without brackets and quotes."""
    return " ".join(re.findall(r"[a-z0-9]+", label.lower()))
