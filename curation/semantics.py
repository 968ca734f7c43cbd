"""Step 2, what needs CLIP (`scorers=full`): `aesthetic`, `quality`, and the embedding.

One forward pass of open_clip's image tower over a clip's samples serves all three. PyTorch is
imported inside the functions, so that light workers do not pay for it. Where the weights lie is
told by `weights.clip`, `weights.aesthetic` and `weights.quality`; `check` says what is missing
before a run begins, and nothing falls back silently.
"""

import multiprocessing
import re
from functools import lru_cache
from pathlib import Path

import numpy as np

from curation.crop import samples
from curation.scorer import Clip, Column, scorer
from recipes.load import UsageError
from recipes.schema import Weights

OFF = "off"  # weights.quality=off: the column stays NULL, and someone said so
QUALITY_FORMAT = "wan-recipes quality head 1"
BATCH = 16  # pictures a forward pass

Layers = list[tuple[np.ndarray, np.ndarray]]  # of one head: weight [out, in], bias [out]


def check(weights: Weights) -> None:
    """Loads everything once.

    Raises:
        UsageError: what is missing or does not fit, where it was looked for, what to do.
    """
    size = _model(weights.clip)[0].visual.output_dim
    _aesthetic_head(weights, size)
    _quality_head(weights, size)


def embedding_name(clip_weights: str) -> str:
    """What the column `model` says of an embedding: the hub's name, or the folder's or file's."""
    name = clip_weights.removeprefix("hf-hub:")
    return f"open_clip:{Path(name).name if Path(name).exists() else name}"


@scorer(
    "visual",
    version="1",
    source="LAION aesthetic heads over CLIP ViT-L/14 (Schuhmann et al., LAION-5B, 2022)",
    sets=("full",),
    aesthetic=Column("1–10", "what people would rate the pictures, mean over the samples"),
)
def aesthetic(clip: Clip) -> dict:
    """Takes either public head: the linear one of 2022 (`sa_0_4_vit_l_14_linear.pth`) or the five
    layers without activation (`sac+logos+ava1-l14-linearMSE.pth`)."""
    embeddings = _embeddings(clip)
    layers = _aesthetic_head(clip.weights, embeddings.shape[1])
    if layers is None:
        return {"aesthetic": None}
    return {"aesthetic": float(np.clip(_affine(layers, embeddings).mean(), 1, 10))}


@scorer(
    "visual",
    version="1",
    source="a head trained on people's labels, as in the Wan report's expert scorer",
    sets=("full",),
    quality=Column("0–1", "what the trained quality head says of the clip's embedding"),
)
def quality(clip: Clip) -> dict:
    """See `write_quality_head` for the format, and for how to train one."""
    vector = _clip_vector(_embeddings(clip))
    head = _quality_head(clip.weights, vector.size)
    if head is None:
        return {"quality": None}
    for weight, bias in head[:-1]:
        vector = np.maximum(weight @ vector + bias, 0)
    weight, bias = head[-1]
    return {"quality": float(1 / (1 + np.exp(-(weight @ vector + bias)[0])))}


@scorer(
    "embeddings",
    version="1",
    source="open_clip (Ilharco et al., 2021; Radford et al., 2021)",
    sets=("full",),
    model=Column("name", "what made the vector", "VARCHAR"),
    vector=Column("float32", "unit length; compare by dot product", "FLOAT[]"),
)
def meaning(clip: Clip) -> dict:
    """The mean of the samples' image embeddings, each of unit length, scaled to unit length."""
    return {
        "model": embedding_name(clip.weights.clip),
        "vector": _clip_vector(_embeddings(clip)).astype(np.float32),
    }


def write_quality_head(path: Path, layers: Layers, embedding: str) -> None:
    """Writes a quality head: a small MLP, ReLU between its layers, a sigmoid at its end.

    To train one: let people label some hundred clips from 1 to 5, best spread over the catalog's
    clusters; join their labels with `embeddings`, whose `model` must be the `embedding` named here;
    fit an MLP whose last layer has one output to (label − 1) / 4 by binary cross-entropy, on clips
    of other videos than those it is tested on; write its layers with this function and give
    `weights.quality=FILE`.

    Args:
        path: of the .safetensors file.
        layers: weight [out, in] and bias [out] of each; the last has out = 1.
        embedding: the name of the embedding that it was trained on (`embedding_name`).
    """
    from safetensors.numpy import save_file

    tensors = {}
    for i, (weight, bias) in enumerate(layers):
        tensors[f"layers.{i}.weight"] = np.ascontiguousarray(weight, np.float32)
        tensors[f"layers.{i}.bias"] = np.ascontiguousarray(bias, np.float32)
    save_file(tensors, path, metadata={"format": QUALITY_FORMAT, "embedding": embedding})


def _embeddings(clip: Clip) -> np.ndarray:
    """Unit vectors [k, d] of the samples; kept on the clip, for three scorers ask."""
    key = "_image_embeddings"
    if key not in vars(clip):
        setattr(clip, key, embed(samples(clip), clip.weights.clip))
    return vars(clip)[key]


def _clip_vector(embeddings: np.ndarray) -> np.ndarray:
    mean = embeddings.mean(0)
    return mean / max(np.linalg.norm(mean), 1e-12)


def embed(images: list[np.ndarray], clip_weights: str) -> np.ndarray:
    """Unit vectors, float32 [k, d], of k pictures, uint8 [h, w, 3] RGB, as the model prepares them.

    Raises:
        UsageError: the model cannot be loaded.
    """
    import torch
    from PIL import Image

    model, prepare = _model(clip_weights)
    device = next(model.parameters()).device
    rows = []
    with torch.inference_mode():
        for start in range(0, len(images), BATCH):
            batch = [prepare(Image.fromarray(image)) for image in images[start : start + BATCH]]
            found = model.encode_image(torch.stack(batch).to(device), normalize=True)
            rows.append(found.float().cpu().numpy())
    return np.concatenate(rows)


@lru_cache(maxsize=1)
def _model(clip_weights: str):
    """open_clip's model and the transform that prepares its pictures."""
    import open_clip
    import torch

    where, pretrained = _address(clip_weights)
    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)  # a pool has a worker for each core
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model, prepare = open_clip.create_model_from_pretrained(
            where, pretrained, device=device, weights_only=True
        )
    except Exception as error:  # whatever a hub, a file or a mismatch raises
        raise UsageError(
            f"weights.clip={clip_weights}: open_clip cannot load it ({_first_line(error)}); give a "
            "folder with open_clip_config.json and its .safetensors, OpenAI's ViT-L/14 as one "
            ".safetensors file, or a hub name (hf-hub:…) that is cached or can be reached"
        ) from error
    return model.eval(), prepare


def _address(clip_weights: str) -> tuple[str, str | None]:
    """open_clip's name of a model and, for a lone file, its weights."""
    path = Path(clip_weights)
    if clip_weights.startswith("hf-hub:"):
        return clip_weights, None
    if path.is_dir():
        if not (path / "open_clip_config.json").is_file():
            raise UsageError(
                f"weights.clip={clip_weights}: no open_clip_config.json in that folder; put it "
                "there, beside the model's .safetensors"
            )
        return f"local-dir:{path}", None
    if path.is_file():
        # A lone file does not name its architecture. The heads belong to OpenAI's ViT-L/14, whose
        # activation is QuickGELU.
        return "ViT-L-14-quickgelu", str(path)
    raise UsageError(
        f"weights.clip={clip_weights}: no such folder or file; put open_clip's ViT-L/14 there, or "
        "give a hub name that begins with hf-hub:"
    )


def _aesthetic_head(weights: Weights, size: int) -> Layers | None:
    if weights.aesthetic == OFF:
        return None
    if weights.aesthetic is None:
        raise UsageError(
            "weights.aesthetic is not set: scorers=full needs a LAION aesthetic head; get "
            "sac+logos+ava1-l14-linearMSE.pth (improved-aesthetic-predictor) and give "
            f"weights.aesthetic=FILE, or weights.aesthetic={OFF} to leave that column NULL"
        )
    return _fitting(_read(weights.aesthetic, "aesthetic")[0], size, "aesthetic", weights.aesthetic)


def _quality_head(weights: Weights, size: int) -> Layers | None:
    if weights.quality == OFF:
        return None
    if weights.quality is None:
        raise UsageError(
            "weights.quality is not set: scorers=full needs a trained quality head (how to train "
            "one: curation/semantics.py, write_quality_head); give weights.quality=FILE, or "
            f"weights.quality={OFF} to leave that column NULL"
        )
    layers, metadata = _read(weights.quality, "quality")
    name = embedding_name(weights.clip)
    if metadata.get("format") != QUALITY_FORMAT:
        raise UsageError(
            f"weights.quality={weights.quality}: not a quality head; curation/semantics.py, "
            "write_quality_head, writes one"
        )
    if metadata.get("embedding") != name:
        raise UsageError(
            f"weights.quality={weights.quality}: trained on {metadata.get('embedding')}, but "
            f"weights.clip gives {name}; train it again, or give the weights.clip it belongs to"
        )
    return _fitting(layers, size, "quality", weights.quality)


@lru_cache(maxsize=4)
def _read(path: str, head: str) -> tuple[Layers, dict]:
    """A head's layers in order, and the file's metadata. No pickled code is run."""
    metadata = {}
    try:
        if path.endswith(".safetensors"):
            from safetensors import safe_open

            with safe_open(path, framework="np") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        else:
            import torch

            state = torch.load(path, map_location="cpu", weights_only=True)
            state = state.get("state_dict", state)
            tensors = {name: value.float().numpy() for name, value in state.items()}
        # The public heads name their layers layers.0.weight, layers.2.weight, … or just weight.
        order = sorted(tensors, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])
        names = [name.removesuffix("weight") for name in order if name.endswith("weight")]
        return [
            (tensors[f"{name}weight"].astype(np.float32), tensors[f"{name}bias"].astype(np.float32))
            for name in names
        ], metadata
    except Exception as error:  # a missing file, another format, a refused pickle
        raise UsageError(
            f"weights.{head}={path}: cannot read a head from it ({_first_line(error)}); give a "
            ".safetensors file or a .pth that holds plain weights"
        ) from error


def _fitting(layers: Layers, size: int, head: str, path: str) -> Layers:
    """The layers, if they lead from `size` numbers to one."""
    widths = [size, *(len(bias) for _, bias in layers)]
    expected = list(zip(widths[1:], widths, strict=False))
    if not layers or widths[-1] != 1 or [weight.shape for weight, _ in layers] != expected:
        shapes = ", ".join(str(list(weight.shape)) for weight, _ in layers) or "none"
        raise UsageError(
            f"weights.{head}={path}: its layers {shapes} do not lead from the model's {size} "
            "numbers to one; give the head that belongs to weights.clip"
        )
    return layers


def _affine(layers: Layers, x: np.ndarray) -> np.ndarray:
    """A head without activations, [k, d] → [k, 1]: affine, so its mean is that of the mean."""
    for weight, bias in layers:
        x = x @ weight.T + bias
    return x


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:120].strip()
