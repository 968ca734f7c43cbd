"""Where the parts of a checkpoint lie: in a run, a diffusers folder, an official Wan folder.

Nothing is loaded here: what is missing is told before minutes are spent on what is there.
"""

import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from model.tensors import CheckpointError, read_json

TRANSFORMER = "diffusion_pytorch_model*.safetensors"
VAE = "Wan2.1_VAE.pth"
T5 = "models_t5_umt5-xxl-enc-bf16.pth"
T5_TOKENIZER = "google/umt5-xxl"
CLIP = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
KEYS = {"dit": None, "vae": "vae", "text": "text_encoder", "image": "image_encoder"}
SHAPES = (
    "a run (runs/<recipe>/<time>), a diffusers folder (transformer/, vae/, …), an official Wan "
    f"folder ({VAE}, …), owner/name on the hub, or random:tiny"
)
# How random:<preset> is sampled, in seconds on a CPU
RANDOM = {"width": 64, "height": 64, "frames": 9, "steps": 2, "shift": 5.0, "guidance": 5.0}
# Of a repository on the hub: all that is read of either layout, no pictures, no examples
WANTED = ("*.json", "*.safetensors", "*.pth", "*.model", "*/*.json", "*/*.safetensors", "*/*.model")


@dataclass(frozen=True)
class Layout:
    """The parts of a checkpoint: each a file or folder, or text naming one on the hub."""

    kind: str  # random, run, diffusers, official, or weights: a DiT alone
    path: str  # what the others were found from
    dit: Path
    vae: Path | str
    text: Path | str
    image: Path | str  # only a model with an image branch needs it
    trained_on: dict[str, Any] = field(default_factory=dict)  # fields of model.defaults.Defaults
    step: int | None = None  # a run's

    def missing(self, part: str) -> str | None:
        """Why a part cannot be loaded, in one line; None: it is there, or the hub may have it."""
        where = getattr(self, part)
        if isinstance(where, str) or where.exists():
            return None
        instead = f", or give {KEYS[part]}=PATH" if KEYS[part] else ""
        return f"{self.path}: {where.name} is missing; it belongs at {where}{instead}"


def find(
    checkpoint: str,
    vae: str | None = None,
    text_encoder: str | None = None,
    image_encoder: str | None = None,
) -> Layout:
    """The parts of a checkpoint.

    Args:
        checkpoint: a run, one checkpoint folder of it, a diffusers folder, an official Wan folder,
            `owner/name` on the hub of either, a DiT's own file or folder, or `random:<preset>`.
        vae, text_encoder, image_encoder: used instead of what the checkpoint has or names.

    Raises:
        CheckpointError: a part that every model needs is missing.
    """
    given = {"vae": vae, "text": text_encoder, "image": image_encoder}
    given = {part: _spec(spec) for part, spec in given.items() if spec}
    if checkpoint.startswith("random:"):
        if given:
            raise CheckpointError(f"{checkpoint} draws every part; leave out the others")
        return Layout("random", checkpoint, *[Path(checkpoint)] * 4, RANDOM)
    path = _place(checkpoint)
    if (path / "checkpoints").is_dir():
        layout = _trained(best(path))
    elif (path / "meta.json").is_file():
        layout = _trained(path)
    elif (path / "model_index.json").is_file() or (path / "transformer").is_dir():
        layout = _diffusers(path)
    elif path.is_dir() and ((path / VAE).is_file() or (path / T5).is_file()):
        layout = _official(path)
    else:
        layout = _alone(path)
    layout = replace(layout, **given)
    for part in ("dit", "vae", "text"):
        if why := layout.missing(part):
            raise CheckpointError(why)
    return layout


def best(run: Path) -> Path:
    """A run's checkpoint folder: the best by `validation` (lower is better), else the newest.

    Raises:
        CheckpointError: it has none that is whole.
    """
    found = []
    for path in (run / "checkpoints").glob("step=*/meta.json"):
        meta = read_json(path)
        score = meta.get("validation")
        scored = isinstance(score, int | float) and math.isfinite(score)
        found.append((not scored, score if scored else 0.0, -meta.get("step", 0), path.parent))
    if not found:
        raise CheckpointError(f"{run}: no checkpoint yet (checkpoints/step=…/meta.json)")
    return min(found)[3]


def _spec(text: str, base: Path = Path()) -> Path | str:
    """A path, if there is one (also from `base` on) or it can be no name on the hub; else text."""
    for path in (base / Path(text).expanduser(), Path(text).expanduser()):
        if path.exists():
            return path
    return text if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text) else Path(text).expanduser()


def _place(checkpoint: str) -> Path:
    """The folder or file that is meant, brought from the hub if it is a repository there."""
    spec = _spec(checkpoint)
    if isinstance(spec, Path):
        if not spec.exists():
            raise CheckpointError(f"{checkpoint}: no such file or folder; give {SHAPES}")
        return spec
    import huggingface_hub as hub

    try:
        return Path(hub.snapshot_download(checkpoint, allow_patterns=list(WANTED)))
    except Exception as error:  # httpx's, the system's or the hub's own: all mean "not from there"
        try:
            return Path(hub.snapshot_download(checkpoint, local_files_only=True))
        except Exception:
            raise CheckpointError(
                f"{checkpoint}: no such folder, and not to be had from the hub "
                f"({type(error).__name__}); give {SHAPES}"
            ) from None


def _trained(folder: Path) -> Layout:
    """A checkpoint folder of a run; its EMA weights where it has them."""
    meta = read_json(folder / "meta.json")
    if meta.get("class") != "WanDiT":
        raise CheckpointError(
            f"{folder}: weights of a {meta.get('class')}; sampling wants a WanDiT"
        )
    run, parts = folder.parent.parent, meta.get("parts") or {}
    dit = folder / "ema.safetensors"
    if not dit.is_file():
        dit = folder / "model.safetensors"
    where = [
        _spec(parts[name], run) if parts.get(name) else run / name
        for name in ("vae", "text_encoder", "image_encoder")
    ]
    return Layout("run", str(folder), dit, *where, meta.get("trained_on") or {}, meta.get("step"))


def _diffusers(folder: Path) -> Layout:
    if (folder / "transformer_2").exists():
        raise CheckpointError(f"{folder}: two transformers, so Wan 2.2; this samples Wan 2.1")
    text = folder / "text_encoder"
    if text.exists():
        text = folder if (folder / "tokenizer").exists() else folder / "tokenizer"
    parts = (folder / "transformer", folder / "vae", text, folder / "image_encoder")
    scheduler = folder / "scheduler" / "scheduler_config.json"
    told = read_json(scheduler) if scheduler.is_file() else {}
    shift = told.get("flow_shift", told.get("shift"))
    return Layout("diffusers", str(folder), *parts, {"shift": shift} if shift else {})


def _official(folder: Path) -> Layout:
    dit = folder if list(folder.glob(TRANSFORMER)) else folder / TRANSFORMER
    text = folder / T5
    if text.is_file() and not (folder / T5_TOKENIZER).is_dir():
        text = folder / T5_TOKENIZER
    return Layout("official", str(folder), dit, folder / VAE, text, folder / CLIP)


def _alone(path: Path) -> Layout:
    """A DiT's weights, and whatever of an official folder lies beside them."""
    if path.is_dir() and not [*path.glob("*.safetensors"), *path.glob("*.pth")]:
        raise CheckpointError(f"{path}: no weights there; give {SHAPES}")
    folder = path if path.is_dir() else path.parent
    return Layout("weights", str(path), path, folder / VAE, folder / T5, folder / CLIP)
