"""A run, or weights in any format, in; another format out.

    python training/export.py source=runs/720p/2026-01-31 target=exported
    python training/export.py source=Wan2.1-T2V-14B target=wan-diffusers dtype=bfloat16
    python training/export.py source=wan-diffusers target=wan-official to=official

to=diffusers gives what `diffusers.WanPipeline.from_pretrained(target)` opens, where the source has
all parts (of a run: the VAE and the encoders it was trained with), else transformer/ or vae/ alone.
to=official gives what Wan's own code and ComfyUI open: put diffusion_pytorch_model.safetensors into
ComfyUI's models/diffusion_models/ (its loader reads one file) and Wan2.1_VAE into models/vae/.
DiT and VAE pass tensor by tensor, whatever their size; the encoders pass memory as a whole. The
target appears when it is complete. `--help` lists every key.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from model import layout as layouts
from model.bundle import Card, card
from model.byte_encoder import is_byte_encoder
from model.convert import write
from model.image import load_image_encoder
from model.stored import INSIDE, Absent, Stored, find
from model.tensors import CheckpointError
from model.text import load_text_encoder
from model.writer import SHARD_BYTES, fresh
from recipes.export import PARTS, Export
from recipes.load import UsageError, main
from training import pipeline


@dataclass(frozen=True)
class Parts:
    """What a source has: its networks, and the whole that they make with their encoders."""

    networks: dict[str, Stored]  # by kind, dit or vae
    whole: Card | None
    lacking: str  # why there is no whole


def export(config: Export) -> None:
    """Writes what is asked for; says what it wrote and how it is opened."""
    if not config.source or not config.target:
        raise UsageError(
            "source=… and target=… are wanted: what to export, and the folder to write"
        )
    if config.shard_gb is not None and config.shard_gb <= 0:
        raise UsageError(f"shard_gb={config.shard_gb:g}: a size above 0")
    if config.shift is not None and config.shift <= 0:
        raise UsageError(f"shift={config.shift:g}: a number above 0; 1 is no shift")
    try:
        parts = found(config)
        with fresh(config.target) as folder:
            is_pipeline = config.to == "diffusers" and parts.whole is not None
            if is_pipeline:
                write_pipeline(parts.whole, folder, config)
            write_networks(parts.networks, folder, config, apart=is_pipeline)
    except CheckpointError as error:
        raise UsageError(str(error)) from error
    close(parts, config)


def found(config: Export) -> Parts:
    """The networks that a source has and that are wanted; with the encoders, if all are there.

    Raises:
        CheckpointError: nothing that is wanted is there, or it is broken.
        UsageError: a whole that no diffusers pipeline can be.
    """
    source = config.source
    if source.startswith("random:"):
        raise UsageError(f"source={source}: a model drawn at random has no weights to export")
    given = (config.vae, config.text_encoder, config.image_encoder)
    whole, lacking = None, ""
    try:
        whole = card(layouts.find(source, *given))
    except CheckpointError as error:
        lacking = str(error)
    places = {"dit": root(source), "vae": config.vae or root(source)}
    if whole:
        places = {"dit": whole.layout.dit, "vae": whole.layout.vae}
    networks, missing = {}, []
    for kind in config.parts or PARTS:
        heads = {"num_heads": config.num_heads} if kind == "dit" and config.num_heads else {}
        try:
            networks[kind] = find(places[kind], kind, heads)
        except Absent as error:
            missing.append(error)
    if missing and (config.parts or not networks):
        raise CheckpointError("; ".join(map(str, missing)))
    if config.parts or "dit" not in networks:
        whole = None
    if whole and config.to == "diffusers" and is_bytes(whole.layout.text):
        raise UsageError(
            f"{whole.layout.text}: a ByteEncoder, which diffusers doesn't have: give text_encoder= "
            "with umT5, or parts=[dit,vae] for transformer/ and vae/ without a pipeline"
        )
    return Parts(networks, whole, lacking)


def root(source: str) -> Path | str:
    """Where to look for networks: of a run in its best checkpoint."""
    path = Path(source).expanduser()
    return layouts.best(path) if (path / "checkpoints").is_dir() else source


def is_bytes(text: Path | str) -> bool:
    return isinstance(text, Path) and is_byte_encoder(text)


def write_pipeline(whole: Card, folder: Path, config: Export) -> None:
    """Encoders, scheduler and index; the encoders one after the other, to hold one at a time."""
    layout, wanted = whole.layout, whole.config
    text = load_text_encoder(layout.text)
    if text.width != wanted["text_width"]:
        raise CheckpointError(
            f"{layout.text}: the text encoder has width {text.width}, the DiT wants "
            f"{wanted['text_width']}: they don't belong together"
        )
    pipeline.write_text_encoder(text, folder)
    del text
    if wanted["image_width"]:
        image = load_image_encoder(layout.image)
        if image.width != wanted["image_width"]:
            raise CheckpointError(
                f"{layout.image}: the image encoder has width {image.width}, the DiT wants "
                f"{wanted['image_width']}: they don't belong together"
            )
        pipeline.write_image_encoder(image, folder)
    shift = whole.defaults.shift if config.shift is None else config.shift
    pipeline.write_index(folder, whole.kind, shift, bool(wanted["image_width"]))


def write_networks(networks: dict[str, Stored], folder: Path, config: Export, apart: bool) -> None:
    """DiT and VAE: in folders of their own where they stand beside others, else right there."""
    apart = apart or (len(networks) > 1 and config.to != "official")
    whole = None if config.to == "official" else SHARD_BYTES
    shard_bytes = whole if config.shard_gb is None else int(config.shard_gb * 10**9)
    for kind, stored in networks.items():
        place = folder / INSIDE[kind] if apart else folder
        place.mkdir(exist_ok=True)
        dtype = getattr(torch, config.dtype) if config.dtype and kind == "dit" else None
        write(
            stored,
            place,
            config.to,
            dtype=dtype,
            shard_bytes=shard_bytes,
            pickled=config.vae_file == "pth",
        )


def close(parts: Parts, config: Export) -> None:
    """Says what was read and written, and what to do with it."""
    rows = [(kind, str(stored.origin)) for kind, stored in parts.networks.items()]
    target = config.target
    size = sum(
        path.stat().st_size for path in Path(target).expanduser().rglob("*") if path.is_file()
    )
    if config.to == "diffusers" and parts.whole:
        kind = "WanPipeline" if parts.whole.kind == "t2v" else "WanImageToVideoPipeline"
        rows.append(("text", str(parts.whole.layout.text)))
        rows.append(("open", f'diffusers.{kind}.from_pretrained("{target}")'))
    elif config.to == "diffusers" and not config.parts and "dit" in parts.networks:
        rows.append(("note", f"no pipeline: {parts.lacking}"))
    elif config.to == "official" and "dit" in parts.networks:
        rows.append(("note", f"{layouts.T5} and {layouts.T5_TOKENIZER}/ belong beside it"))
    rows.append(("out", f"{target}, {size / 1e9:.2f} GB"))
    print("Exported")
    for name, value in rows:
        print(f" {name:6}{value}")


if __name__ == "__main__":
    sys.exit(main(Export, export))
