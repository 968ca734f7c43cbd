"""Is it the scene that is asked for: VBench's scene, through BLIP's captions.

    captioner = load_blip("Salesforce/blip-image-captioning-large")

VBench looks through Tag2Text, whose captions are led by tags that it sees; BLIP's name fewer
things, so fewer scenes, and VBench's bounds do not transfer.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from eval.measures.detection import FRAMES
from eval.measures.encoders import BATCH, pretrained, weights_sha256
from eval.measures.measure import Measure, Video, asked_for, middles

BEAMS, SHORTEST, LONGEST = 3, 10, 30  # tokens; as VBench's Tag2Text


@dataclass(frozen=True)
class Captioner:
    """Frames → captions.

    Attributes:
        name: of the network.
        sha256: of its weights.
        describe: uint8 [T, H, W, 3] → T captions.
    """

    name: str
    sha256: str
    describe: Callable[[np.ndarray], list[str]]


def load_blip(spec: str, device: str = "cpu") -> Captioner:
    """BLIP (Li et al., arXiv 2201.12086), fine-tuned for captions.

    Args:
        spec: a folder of transformers' BlipForConditionalGeneration and its processor, or a hub
            name.

    Raises:
        BackboneError: there is none, or a part of it is missing.
    """
    from transformers import BlipForConditionalGeneration, BlipProcessor

    network, processor = pretrained(
        "BLIP", BlipForConditionalGeneration, BlipProcessor, spec, device
    )

    @torch.no_grad()
    def describe(frames: np.ndarray) -> list[str]:
        found = []
        for start in range(0, len(frames), BATCH):
            some = list(frames[start : start + BATCH])
            pictures = processor.image_processor(some, return_tensors="pt").pixel_values
            tokens = network.generate(
                pictures.to(device),
                do_sample=False,
                num_beams=BEAMS,
                min_length=SHORTEST,
                max_length=LONGEST,
            )
            found += processor.tokenizer.batch_decode(tokens[:, 1:], skip_special_tokens=True)
        return found

    return Captioner("BLIP", weights_sha256(network), describe)


def scene_blip(captioner: Captioner) -> Measure:
    """Share of frames whose caption has every word of the scene (as VBench, scene.py, which also
    takes a word for another that holds it, a barn for a bar; here a word is itself or its plural).
    """

    def of(video: Video) -> float:
        if not (what := asked_for(video, "scene", "scene")):
            return np.nan
        captions = captioner.describe(video.frames[middles(len(video), FRAMES)])
        return float(np.mean([named(what, caption) for caption in captions]))

    return Measure(
        "scene_blip",
        of,
        "0–1",
        True,
        "share of frames whose caption by BLIP has all words of the scene that is asked for",
        (captioner.name, captioner.sha256),
        stands_for="scene",
    )


def named(scene: str, caption: str) -> bool:
    """Whether every word of the scene, or its plural, is in the caption."""
    there = set(re.findall(r"[^\W_]+", caption.lower()))
    words = re.findall(r"[^\W_]+", scene.lower())
    return all(there & {word, f"{word}s", f"{word}es"} for word in words)
