"""The keys of `python training/export.py`: what is exported, into which format, and where to."""

from dataclasses import dataclass

from recipes.schema import key

FORMATS = ("diffusers", "official", "ours")
PARTS = ("dit", "vae")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass
class Export:
    """`python training/export.py`: a run, or weights in any format, in; another format out."""

    source: str | None = key(
        None,
        "a run or one of its checkpoint folders; weights in any format: a diffusers or official "
        "Wan folder, a DiT's or VAE's own file or folder; or owner/name on the hub",
    )
    target: str | None = key(None, "the folder to write, new or empty")
    to: str = key(
        "diffusers",
        "diffusers: a whole pipeline where the source has its parts; official: Wan's own files, "
        "without the encoders, which ComfyUI opens too; ours: model.safetensors and config.json",
        choices=FORMATS,
    )
    parts: list[str] = key(
        [], "only these networks, and no pipeline; empty: all that there is", choices=PARTS
    )
    dtype: str | None = key(
        None, "of the DiT; null: as it is, like VAE and encoders always", choices=DTYPES
    )
    shard_gb: float | None = key(
        None,
        "a larger file of a DiT is cut into shards, in units of 10^9 bytes; null: 10 in diffusers' "
        "format, while official is one file, as ComfyUI wants it",
    )
    vae_file: str = key(
        "pth", "to=official: Wan2.1_VAE as the public pickle or not", choices=("pth", "safetensors")
    )
    shift: float | None = key(
        None,
        "the pipeline's shift of the noise schedule; null: what the source was trained with, else "
        "the public setting",
    )
    num_heads: int | None = key(
        None, "of a DiT without config file whose heads aren't 128 wide; else null"
    )
    vae: str | None = key(None, "another VAE than the source's")
    text_encoder: str | None = key(None, "another text encoder than the source's")
    image_encoder: str | None = key(None, "another image encoder than the source's")
