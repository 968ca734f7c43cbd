"""Is it like the prompt as a whole, in time: two of VBench's dimensions, through X-CLIP.

    xclip = load_xclip("microsoft/xclip-base-patch32")

VBench looks through ViCLIP, whose cosines lie elsewhere: VBench's bounds do not transfer.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from eval.measures.encoders import pretrained, weights_sha256
from eval.measures.measure import Measure, Video, asked_for, middles


@dataclass(frozen=True)
class VideoText:
    """Frames and words → how alike they are.

    Attributes:
        name: of the network.
        sha256: of its weights.
        frames: how many it takes.
        cosine: uint8 [frames, H, W, 3] and words → −1–1.
    """

    name: str
    sha256: str
    frames: int
    cosine: Callable[[np.ndarray, str], float]


def load_xclip(spec: str, device: str = "cpu") -> VideoText:
    """X-CLIP (Ni et al., arXiv 2208.02816), which attends over time, and lets the video bend the
    words' features (section 3.3): the cosine is of those, as it was trained.

    Args:
        spec: a folder of transformers' XCLIPModel and its processor, or a hub name; one that takes
            8 frames looks at those that VBench's ViCLIP does.

    Raises:
        BackboneError: there is none, or a part of it is missing.
    """
    from transformers import XCLIPModel, XCLIPProcessor

    network, processor = pretrained("X-CLIP", XCLIPModel, XCLIPProcessor, spec, device)
    length = network.config.text_config.max_position_embeddings

    @torch.no_grad()
    def cosine(frames: np.ndarray, words: str) -> float:
        asked = processor.tokenizer(
            [words], max_length=length, truncation=True, return_tensors="pt"
        )
        pictures = processor.image_processor(list(frames), return_tensors="pt").pixel_values
        found = network(
            input_ids=asked.input_ids.to(device),
            attention_mask=asked.attention_mask.to(device),
            pixel_values=pictures.to(device),
        )
        # both of unit length: [1, D] and [1, 1, D]
        return float((found.video_embeds[0] * found.text_embeds[0, 0]).sum())

    frames = network.config.vision_config.num_frames
    return VideoText("X-CLIP", weights_sha256(network), frames, cosine)


def overall_consistency_xclip(xclip: VideoText) -> Measure:
    """Cosine of the video and its prompt, or what a suite says it is in English (as VBench,
    overall_consistency.py)."""
    says = "how alike the video and its prompt are to X-CLIP"
    return _likeness("overall_consistency", says, xclip)


def temporal_style_xclip(xclip: VideoText) -> Measure:
    """Cosine of the video and the style that a suite asks for; without one, as in VBench's suite,
    of its prompt, which names the style (as VBench, temporal_style.py)."""
    says = "how alike the video and the camera work that is asked for are to X-CLIP"
    return _likeness("temporal_style", says, xclip)


def _likeness(dimension: str, says: str, xclip: VideoText) -> Measure:
    def of(video: Video) -> float:
        if not (words := asked_for(video, dimension, dimension) or video.prompt):
            return np.nan
        frames = middles(len(video), xclip.frames)
        return video.once((xclip.name, words), lambda: xclip.cosine(video.frames[frames], words))

    return Measure(
        f"{dimension}_xclip",
        of,
        "−1–1",
        True,
        says,
        (xclip.name, xclip.sha256),
        stands_for=dimension,
    )
