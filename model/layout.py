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
CLASSES = {"dit": "WanDiT", "vae": "WanVAE"}
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
        vae, text_encoder, image_encoder: used instead of what the checkpoint has or names; each
            may be a run too.

    Raises:
        CheckpointError: a part that every model needs is missing.
    """
    given = {"vae": vae, "text": text_encoder, "image": image_encoder}
    given = {part: _spec(spec) for part, spec in given.items() if spec}
    given |= {part: weights(at, part) for part, at in given.items() if isinstance(at, Path)}
    if checkpoint.startswith("random:"):
        if given:
            raise CheckpointError(f"{checkpoint} draws every part; leave out the others")
        return Layout("random", checkpoint, *[Path(checkpoint)] * 4, RANDOM)
    path = _place(checkpoint)
    if is_run(path) or (path / "meta.json").is_file():
        folder = best(path) if is_run(path) else path
        layout = _trained(Checkpoint(folder, read_json(folder / "meta.json")))
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


@dataclass(frozen=True)
class Checkpoint:
    """One whole checkpoint of a run: a folder whose meta.json was written last."""

    path: Path
    meta: dict[str, Any]

    @property
    def step(self) -> int:
        return self.meta.get("step", 0)

    @property
    def validation(self) -> float | None:
        """Lower is better; None: nobody validated at that step."""
        score = self.meta.get("validation")
        return score if isinstance(score, int | float) and math.isfinite(score) else None

    @property
    def weights(self) -> Path:
        """The averaged weights, where they are kept."""
        averaged = self.path / "ema.safetensors"
        return averaged if averaged.is_file() else self.path / "model.safetensors"


def is_run(path: Path) -> bool:
    return (path / "checkpoints").is_dir()


def checkpoints(run: Path) -> list[Checkpoint]:
    """A run's whole checkpoints, in the order of their steps."""
    places = (run / "checkpoints").glob("step=*/meta.json")
    return sorted((Checkpoint(one.parent, read_json(one)) for one in places), key=lambda c: c.step)


def best(run: Path) -> Path:
    """A run's checkpoint folder: of a finished run the one that its done.json names; else the best
    by `validation`, the later of equals; else the newest.

    Raises:
        CheckpointError: it has none that is whole.
    """
    found = checkpoints(run)
    if not found:
        raise CheckpointError(f"{run}: no checkpoint yet (checkpoints/step=…/meta.json)")
    done = run / "done.json"
    named = read_json(done).get("best") if done.is_file() else None
    if named in [one.path.name for one in found]:
        return run / "checkpoints" / named
    scored = [one for one in found if one.validation is not None]
    if not scored:
        return found[-1].path
    return min(scored, key=lambda one: (one.validation, -one.step)).path


def weights(path: Path, kind: str | None = None) -> Path | str:
    """Where the weights of a run are, or of one checkpoint of it; any other path is its own answer.

    Args:
        kind: dit, vae, text or image; of a run that trained a DiT the others are those it was
            trained with, which may be a name on the hub. None: what the run trained.

    Raises:
        CheckpointError: the run has no checkpoint yet, or is of another kind.
    """
    if is_run(path):
        path = best(path)
    elif not (path / "meta.json").is_file():
        return path
    found = Checkpoint(path, read_json(path / "meta.json"))
    trained = found.meta.get("class")
    if kind is None or trained == CLASSES.get(kind):
        return found.weights
    if trained == CLASSES["dit"]:
        return getattr(_trained(found), kind)
    raise CheckpointError(
        f"{path}: weights of a {trained}; a {CLASSES.get(kind, CLASSES['dit'])} is wanted"
    )


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


def _trained(found: Checkpoint) -> Layout:
    """A DiT's checkpoint folder and the parts of its run."""
    folder, meta = found.path, found.meta
    if meta.get("class") != CLASSES["dit"]:
        raise CheckpointError(
            f"{folder}: weights of a {meta.get('class')}; sampling wants a WanDiT"
        )
    run, parts = folder.parent.parent, meta.get("parts") or {}
    where = [
        _spec(parts[name], run) if parts.get(name) else run / name
        for name in ("vae", "text_encoder", "image_encoder")
    ]
    told = meta.get("trained_on") or {}
    return Layout("run", str(folder), found.weights, *where, told, meta.get("step"))


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
