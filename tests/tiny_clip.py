"""A model of open_clip's and heads for it, small and random, as files like a person's."""

import json
from pathlib import Path

import numpy as np

SIZE = 24  # of the embedding
CONFIG = {
    "model_cfg": {
        "embed_dim": SIZE,
        "vision_cfg": {
            "image_size": 32,
            "layers": 2,
            "width": 32,
            "head_width": 16,
            "patch_size": 8,
        },
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]},
}


def model(folder: Path) -> Path:
    """A folder that `weights.clip` may name."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG))
    torch.manual_seed(0)
    net = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    tensors = {name: value.contiguous() for name, value in net.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")
    return folder


def linear(seed: int, bias: float) -> tuple[np.ndarray, np.ndarray]:
    """One layer from an embedding to one number."""
    weight = np.random.default_rng(seed).standard_normal((1, SIZE)).astype(np.float32)
    return weight, np.array([bias], np.float32)


def aesthetic_head(path: Path, layer: tuple[np.ndarray, np.ndarray]) -> Path:
    """A file that `weights.aesthetic` may name, in the form of LAION's linear head."""
    import torch

    weight, bias = map(torch.from_numpy, layer)
    torch.save({"weight": weight, "bias": bias}, path)
    return path
