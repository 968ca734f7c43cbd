"""diffusers' Wan pipelines from small random parts, and the folders that they and Wan write."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
    WanVideoToVideoPipeline,
)
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
)

from model.dit import WanDiT
from model.umt5 import to_official
from model.vae import WanVAE
from tests import tiny_umt5, tiny_wan

TEXT_WIDTH = tiny_umt5.CONFIG["d_model"]
CLIP = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,  # 2 × 2 patches and the class token: 5 tokens
    "patch_size": 14,
    "hidden_act": "gelu",
}


def scheduler(shift: float = 5.0) -> UniPCMultistepScheduler:
    """The public pipelines' own."""
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )


def vae(seed: int = 1) -> AutoencoderKLWan:
    return tiny_wan.redrawn(AutoencoderKLWan(**tiny_wan.VAES["wan"][1]), seed)


def parts(kind: str, folder: Path, shift: float) -> dict:
    """A pipeline's parts, every weight drawn; `folder` is for the tokenizer's file."""
    file = tiny_umt5.tokenizer(folder / "words") / "tokenizer.json"
    words = PreTrainedTokenizerFast(
        tokenizer_file=str(file), pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    sizes = tiny_wan.DITS[kind][1] | {"text_dim": TEXT_WIDTH}
    return {
        "tokenizer": words,
        "text_encoder": tiny_umt5.model(),
        "vae": vae(),
        "scheduler": scheduler(shift),
        "transformer": tiny_wan.redrawn(WanTransformer3DModel(**sizes)),
    }


def text_to_video(folder: Path, shift: float = 5.0) -> WanPipeline:
    return quiet(WanPipeline(**parts("t2v", folder, shift)))


def video_to_video(pipe: WanPipeline) -> WanVideoToVideoPipeline:
    names = ("tokenizer", "text_encoder", "vae", "scheduler", "transformer")
    return quiet(WanVideoToVideoPipeline(**{name: getattr(pipe, name) for name in names}))


def image_to_video(folder: Path, kind: str = "i2v", shift: float = 3.0) -> WanImageToVideoPipeline:
    clip = tiny_wan.redrawn(CLIPVisionModel(CLIPVisionConfig(**CLIP)))
    more = {"image_encoder": clip, "image_processor": CLIPImageProcessor()}
    return quiet(WanImageToVideoPipeline(**parts(kind, folder, shift), **more))


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def saved(pipe, folder: Path) -> Path:
    """The pipeline's folder, as its own code writes it."""
    pipe.save_pretrained(folder)
    return folder


def official(pipe: WanPipeline, folder: Path) -> Path:
    """The same weights as Wan publishes them."""
    text = {to_official(name): value for name, value in pipe.text_encoder.state_dict().items()}
    text.pop(None, None)  # transformers' second name for the embedding
    tiny_umt5.official_folder(folder, text)
    net = WanVAE(**tiny_wan.VAES["wan"][0])
    dit = WanDiT(**tiny_wan.DITS["t2v"][0] | {"text_width": TEXT_WIDTH})
    for module, theirs in ((net, pipe.vae), (dit, pipe.transformer)):
        module.load_state_dict(tiny_wan.renamed(theirs))
        tiny_wan.write_official(module, folder)
    return folder


def generators(seeds: list[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]
