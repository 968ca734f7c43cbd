"""What a diffusers pipeline's folder holds beside DiT and VAE: encoders, scheduler, the index.

diffusers itself isn't needed: its folders are safetensors and JSON, and the encoders are
transformers' own models. Layout: the public Wan2.1-…-Diffusers repositories.
"""

from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel
from transformers.utils.logging import disable_progress_bar

from model.image import MEAN, STD, ImageEncoder, own_names
from model.sizes import WRITTEN_FOR
from model.umt5 import UMT5Encoder
from model.writer import write_json

SCHEDULER = {
    "_class_name": "UniPCMultistepScheduler",
    "_diffusers_version": WRITTEN_FOR,
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "solver_order": 2,
    "use_flow_sigmas": True,
}
# umT5's; the pipeline pads with the first
TOKENS = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


def write_text_encoder(encoder: UMT5Encoder, folder: Path) -> None:
    """`text_encoder/` and `tokenizer/`."""
    disable_progress_bar()
    encoder.model.save_pretrained(folder / "text_encoder")
    place = folder / "tokenizer"
    place.mkdir()
    # not its save_pretrained, which names a class that transformers 4 doesn't have
    encoder.tokenizer.backend_tokenizer.save(str(place / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": encoder.length,
        "clean_up_tokenization_spaces": False,
        **TOKENS,
    }
    write_json(place / "tokenizer_config.json", config)


def write_image_encoder(encoder: ImageEncoder, folder: Path) -> None:
    """`image_encoder/`, as transformers' CLIPVisionModel, and `image_processor/`."""
    disable_progress_bar()
    sizes = encoder.config
    config = CLIPVisionConfig(
        hidden_size=sizes["width"],
        intermediate_size=sizes["mlp_width"],
        num_hidden_layers=sizes["num_layers"],
        num_attention_heads=sizes["num_heads"],
        image_size=sizes["image_size"],
        patch_size=sizes["patch"],
        hidden_act=sizes["activation"],
        layer_norm_eps=sizes["eps"],
    )
    with torch.device("meta"):
        model = CLIPVisionModel(config)
    ours = apart(encoder.state_dict())
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    names = own_names(shapes)  # theirs → ours
    tensors = {name: ours[names[name]].reshape(shape) for name, shape in shapes.items()}
    model.load_state_dict(tensors, assign=True)
    model.save_pretrained(folder / "image_encoder")
    side = {"height": sizes["image_size"], "width": sizes["image_size"]}
    processor = CLIPImageProcessor(
        size={"shortest_edge": sizes["image_size"]},
        crop_size=side,
        image_mean=list(MEAN),
        image_std=list(STD),
    )
    processor.save_pretrained(folder / "image_processor")


def apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values in a tensor each, as transformers has them."""
    found = {}
    for name, value in tensors.items():
        if ".to_qkv." not in name:
            found[name] = value
            continue
        for one, part in zip("qkv", value.chunk(3), strict=True):
            found[name.replace(".to_qkv.", f".to_{one}.")] = part.contiguous()
    return found


def write_index(folder: Path, kind: str, shift: float, has_image_encoder: bool) -> None:
    """`scheduler/` and, last, `model_index.json`, which says of what class each part is.

    Args:
        kind: t2v, i2v or flf2v.
        shift: of the noise schedule.
        has_image_encoder: i2v and flf2v, but for models that were trained without one.
    """
    (folder / "scheduler").mkdir()
    config = {**SCHEDULER, "flow_shift": shift}
    write_json(folder / "scheduler" / "scheduler_config.json", config)
    index = {
        "_class_name": "WanPipeline" if kind == "t2v" else "WanImageToVideoPipeline",
        "_diffusers_version": WRITTEN_FOR,
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    if kind != "t2v":
        clip = {"image_encoder": "CLIPVisionModel", "image_processor": "CLIPImageProcessor"}
        for part, name in clip.items():
            index[part] = ["transformers", name] if has_image_encoder else [None, None]
    write_json(folder / "model_index.json", index)
