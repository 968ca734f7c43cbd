"""A umT5 encoder, small and random, and a tokenizer for it, in the files that people have."""

import json
from pathlib import Path

CONFIG = {"vocab_size": 300, "d_model": 32, "d_kv": 4, "d_ff": 48, "num_layers": 2, "num_heads": 4}
OFFICIAL = "models_t5_umt5-xxl-enc-bf16.pth"
WORDS = ("▁", "▁a", "▁cat", "cat", "▁red", "s", "红", "色", "的", "猫", ",", ".")


def model(seed: int = 0):
    """transformers' UMT5EncoderModel with every weight re-drawn, norms and position biases too."""
    import torch
    from transformers import UMT5Config, UMT5EncoderModel

    generator = torch.Generator().manual_seed(seed)
    net = UMT5EncoderModel(UMT5Config(**CONFIG)).eval().requires_grad_(False)
    for name, value in net.named_parameters():
        drawn = torch.randn(value.shape, generator=generator)
        if "norm" in name:
            drawn = 1 + 0.2 * drawn
        elif value.shape[1] == CONFIG["d_model"] and "shared" not in name:
            drawn *= 0.2
        value.copy_(drawn)
    return net


def tokenizer(folder: Path) -> Path:
    """A folder with tokenizer.json (unigrams and bytes) and the config that umT5's has."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    words += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    words += [(word, -2.0 - len(word) / 4) for word in WORDS]
    made = Tokenizer(models.Unigram(words, unk_id=2, byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "T5Tokenizer",
        "extra_ids": 0,
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def diffusers_folder(folder: Path, net=None, dtype=None) -> Path:
    """A pipeline's folder: `text_encoder/` and `tokenizer/`."""
    net = net or model()
    (net if dtype is None else net.to(dtype)).save_pretrained(folder / "text_encoder")
    tokenizer(folder / "tokenizer")
    return folder


def official_folder(folder: Path, tensors: dict) -> Path:
    """A folder as Wan publishes it: the encoder's .pth, its tokenizer, and the DiT's config."""
    import torch

    tokenizer(folder / "google" / "umt5-xxl")
    torch.save(tensors, folder / OFFICIAL)
    (folder / "config.json").write_text(
        json.dumps({"_class_name": "WanModel", "model_type": "t2v"})
    )
    return folder
