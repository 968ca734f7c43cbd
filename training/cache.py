"""Latent shards: clips as a VAE's posterior, encoded once, read instead of the video.

    <out>/{train,val}/00000.tar      <key>.json, .txt, .safetensors: mean, logvar, and its captions'
                                    features (training.features); of an image-to-video recipe's
                                    videos condition.0, condition.1, …: [4 + C, L, h, w] each
                      00000.parquet  the index, with curation's columns; `media` is safetensors
                      manifest.json  checksums, which VAE and text encoder, and how masks were
                                    drawn; written last

Mean and log-variance are kept, not a sample of them, so that training may take either. A condition
is that of `model.condition` under a mask of its own, its latents as little normalised as the mean.
The shards are those of `curation.shards` in all else, and `training.index` reads both.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save
from torch import Tensor

from curation.shards import INDEX, KEY, Tar, file_sha256, promised
from model.text import TextEncoder
from model.vae import WanVAE
from recipes.load import UsageError
from recipes.training import MASKS, Fit
from training import features, foreign, tars
from training.batch import Bucket
from training.decode import Decoded
from training.tars import Row

FORMAT = "latents 3"
DTYPE = torch.float16  # of mean, logvar and conditions: 11 bits, where bfloat16 has 8
ENCODES = ("encoder.", "conv1.")  # the weights that decide what latents are
TEMPORARY = ".tmp-"


def fingerprint(vae: WanVAE) -> str:
    """SHA-256 of what encodes: a VAE whose decoder alone was trained on has the same.

    It is of the numbers, in float32, and does not depend on the file that they came in.
    """
    digest = hashlib.sha256()
    sizes = {
        k: v for k, v in vae.config.items() if k not in ("latent_mean", "latent_std", "dropout")
    }
    digest.update(json.dumps(sizes, sort_keys=True).encode())
    for name, value in sorted(vae.state_dict().items()):
        if name.startswith(ENCODES):
            digest.update(f"{name} {list(value.shape)}".encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def manifests(folder: str, splits: tuple[str, ...] = ("train", "val")) -> Iterator[dict[str, Any]]:
    """Those of a folder's splits that are finished.

    Raises:
        UsageError: one can't be read.
    """
    for split in splits:
        place = f"{folder.rstrip('/')}/{split}/manifest.json"
        try:
            yield json.loads(tars.read(place) if tars.is_remote(place) else _read(place))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise UsageError(f"{place}: can't be read: {error}") from None


def _read(place: str) -> bytes:
    """A local file as it is now: tars keep files open, and a manifest may be written anew."""
    return Path(place).expanduser().read_bytes()


def has_text(folder: str) -> bool:
    """Whether latent shards hold their captions' features."""
    found = list(manifests(folder))
    return bool(found) and all(said.get("text") for said in found)


def check(folder: str, vae: WanVAE, text: TextEncoder | None = None) -> None:
    """Refuses latents that another VAE encoded, and features of another text encoder.

    Args:
        folder: `data.latents`.

    Raises:
        UsageError: they are another's, or no latents.
    """
    for said in manifests(folder):
        theirs = (said.get("vae") or {}).get("sha256")
        if theirs is None:
            raise UsageError(f"data.latents={folder}: shards of video, not of latents")
        if theirs != fingerprint(vae):
            raise UsageError(
                f"data.latents={folder}: encoded by another VAE than vae= names; encode them anew "
                "with `python training/latents.py`, or leave out data.latents"
            )
        read = (said.get("text") or {}).get("sha256")
        if read and text is not None and read != features.fingerprint(text):
            raise UsageError(
                f"data.latents={folder}: its captions were read by another text encoder than "
                "text_encoder= names; encode them anew with `python training/latents.py`"
            )


def shares(masks: Mapping[str, float]) -> dict[str, float]:
    """`objective.masks` as parts of one, those above 0; empty: text-to-video."""
    some = {name: masks[name] for name in MASKS if masks.get(name, 0) > 0}
    return {name: round(share / sum(some.values()), 6) for name, share in some.items()}


def words(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {shares[name]:.3g}" for name in MASKS if name in shares)


def check_made(config: Fit) -> None:
    """Refuses latents that are not there, and those of another frame rate.

    Args:
        config: with `data.latents`.

    Raises:
        UsageError: they are none, or such.
    """
    where, wanted = f"data.latents={config.data.latents}", config.buckets.fps
    if not any(manifests(config.data.latents, ("train",))):
        raise UsageError(f"{where}: no finished shards there; {_command(config)} writes them")
    for said in manifests(config.data.latents):
        fps = said.get("fps", wanted)
        if fps != wanted:
            raise UsageError(
                f"{where}: encoded at {fps:g} frames a second, not at buckets.fps={wanted:g}; "
                f"give buckets.fps={fps:g}, or encode it anew with {_command(config)}"
            )


def _command(config: Fit) -> str:
    """What writes `data.latents`."""
    recipe = config.recipe or "…"
    return f"`python training/latents.py recipe={recipe} cache.out={config.data.latents}`"


def check_conditions(config: Fit) -> None:
    """Refuses latents without conditions, and conditions under masks other than the recipe's.

    Args:
        config: of an image-to-video model, with `data.latents`.

    Raises:
        UsageError: they are such latents.
    """
    where = f"data.latents={config.data.latents}"
    command = _command(config)
    wanted = shares(config.objective.masks)
    for said in manifests(config.data.latents):
        drawn = (said.get("masks") or {}).get("shares")
        if not drawn:
            raise UsageError(f"{where}: has no conditions; encode it with {command}")
        if drawn != wanted:
            raise UsageError(
                f"{where}: its masks were drawn as {words(drawn)}, objective.masks says "
                f"{words(wanted)}; encode it anew with {command}, or give objective.masks as it was"
            )


@dataclass(frozen=True)
class Piece:
    """One clip to encode."""

    row: Row
    bucket: Bucket
    key: str  # in the new tar
    place: float = 0.5  # 0 … 1, which of the possible first frames
    weight: float = 1.0  # how often an epoch has it


def safe(key: str) -> str:
    """A key that may stand in a tar of ours; others' may hold anything."""
    if KEY.fullmatch(key):
        return key
    tail = re.sub(r"[^A-Za-z0-9_-]+", "-", key)[-40:].strip("-")
    return f"{hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}-{tail}"


@dataclass(frozen=True)
class Shard:
    """One tar to write."""

    folder: Path
    number: int
    pieces: list[Piece]
    how: tuple  # what else decides its content: VAE, type, frame rate, text encoder, masks

    @property
    def name(self) -> str:
        return f"{self.number:05d}"

    @property
    def index(self) -> Path:
        return self.folder / f"{self.name}.parquet"

    @property
    def hash(self) -> str:
        rows = [
            [
                one.key,
                one.row.key,
                one.row.start,
                one.row.stop,
                one.bucket.name,
                one.place,
                one.weight,
            ]
            for one in self.pieces
        ]
        return hashlib.sha256(json.dumps([FORMAT, self.how, rows]).encode()).hexdigest()

    def finished(self) -> bool:
        """Whether it is there and whole."""
        promise = promised(self.index) if self.index.exists() else None
        if promise is None or promise["plan"] != self.hash:
            return False
        tar = self.folder / f"{self.name}.tar"
        size = tar.stat().st_size if tar.exists() else 0
        return promise["tar_bytes"] == str(size)


@dataclass
class Encoded:
    """One clip's posterior, or why there is none."""

    piece: Piece
    sample: Decoded | None
    mean: Tensor | None = None  # [C, L, h, w]
    logvar: Tensor | None = None
    text: dict[str, Tensor] = field(default_factory=dict)  # [tokens, D], by training.features.name
    conditions: list[Tensor] = field(default_factory=list)  # [4 + C, L, h, w]
    error: str = ""


def texts(sample: Decoded) -> list[str]:
    """The captions that training may take of a clip once it is encoded."""
    some = [one["text"].strip() for one in foreign.captions(_without_windows(sample.told))]
    return list(dict.fromkeys([*some, sample.prompt]))


def _without_windows(told: dict[str, Any]) -> dict[str, Any]:
    """Those of cosmos-curate's are of spans of the whole clip; the one of ours is in `captions`."""
    return {name: value for name, value in told.items() if name != "windows"}


def write(shard: Shard, encoded: Iterable[Encoded], fps: float) -> Iterator[Encoded]:
    """Writes one shard, passing on what it is given; it is there once the iterator is exhausted."""
    scratch = shard.folder / f"{TEMPORARY}{shard.name}-{os.getpid()}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    rows = []
    try:
        with Tar(scratch / "tar") as tar:
            for one in encoded:
                rows.append(_packed(tar, one, fps))
                yield one
        promise = {"plan": shard.hash, "tar_bytes": "0", "tar_sha256": ""}
        target = shard.folder / f"{shard.name}.tar"
        if any(row["status"] == "success" for row in rows):
            promise |= {"tar_bytes": str(tar.bytes), "tar_sha256": tar.sha256}
            os.replace(scratch / "tar", target)
        else:  # a tar without a member is an error to its readers
            target.unlink(missing_ok=True)
        table = pa.Table.from_pylist(rows, INDEX.with_metadata(promise))
        pq.write_table(table, scratch / "index")
        os.replace(scratch / "index", shard.index)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _packed(tar: Tar, one: Encoded, fps: float) -> dict[str, Any]:
    """Adds one sample's members; returns its row."""
    key, bucket = one.piece.key, one.piece.bucket
    row = dict.fromkeys(INDEX.names) | {"key": key, "clip_id": one.piece.row.key}
    if one.sample is None:
        return row | {"status": "failed", "error_message": one.error}
    told = one.sample.told
    tensors = {"mean": one.mean.to(DTYPE), "logvar": one.logvar.to(DTYPE)}
    tensors |= {f"condition.{k}": some.to(DTYPE) for k, some in enumerate(one.conditions)}
    tensors |= one.text
    data = save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()})
    row |= {
        "status": "success",
        "url": told.get("url"),
        "caption": one.sample.prompt,
        "media": "safetensors",
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "width": bucket.width,
        "height": bucket.height,
        "frames": bucket.frames,
        "fps": 0.0 if bucket.is_image else fps,
        "duration_s": 0.0 if bucket.is_image else bucket.frames / fps,
        "crop": [0, 0, bucket.width, bucket.height],
        "bucket": bucket.name,
        "tier": one.sample.tier,
        "sampling_weight": one.piece.weight,
    }
    # what was said of the clip, but for what is no longer true of it
    record = _without_windows(told) | {
        name: row[name] for name in ("width", "height", "frames", "fps", "duration_s")
    }
    record |= {"key": key, "sha256": row["sha256"], "source_key": one.piece.row.key}
    record["sampling_weight"] = one.piece.weight
    if "captions" not in told and one.sample.prompt:
        record["captions"] = [{"text": one.sample.prompt}]
    members = {
        "json": json.dumps(record, sort_keys=True, ensure_ascii=False).encode(),
        "safetensors": data,
        "txt": one.sample.prompt.encode(),
    }
    offsets = {name: tar.add(f"{key}.{name}", members[name]) for name in sorted(members)}
    return row | {"offset": offsets["safetensors"]}


def finish(folder: Path, shards: list[Shard], encoders: dict[str, Any], fps: float) -> dict | None:
    """Writes the manifest, last; None where other processes still write shards.

    Args:
        encoders: what the manifest says of the VAE, the text encoder, and masks.
    """
    if not all(shard.finished() for shard in shards):
        return None
    entries, left_out = [], []
    for shard in shards:
        rows = pq.read_table(shard.index).to_pylist()
        failed = [row for row in rows if row["status"] != "success"]
        left_out += [{"key": row["clip_id"], "reason": row["error_message"]} for row in failed]
        promise, some = promised(shard.index), len(rows) > len(failed)
        entry = {"index": shard.index.name, "index_sha256": file_sha256(shard.index)}
        entry |= {
            "shard": f"{shard.name}.tar" if some else None,
            "samples": len(rows) - len(failed),
        }
        entry |= {"bytes": int(promise["tar_bytes"]), "sha256": promise["tar_sha256"] or None}
        entries.append(entry)
    content = {
        "format": FORMAT,
        **encoders,
        "dtype": str(DTYPE).removeprefix("torch."),
        "fps": fps,
        "samples": sum(entry["samples"] for entry in entries),
        "bytes": sum(entry["bytes"] for entry in entries),
        "left_out": left_out,
        "shards": entries,
    }
    temporary = folder / f"{TEMPORARY}manifest-{os.getpid()}"
    temporary.write_text(json.dumps(content, indent=1, sort_keys=True))
    os.replace(temporary, folder / "manifest.json")
    names = {f"{shard.name}.{kind}" for shard in shards for kind in ("tar", "parquet")}
    for left in folder.iterdir():
        if re.fullmatch(r"\d{5,}\.(tar|parquet)", left.name) and left.name not in names:
            left.unlink()
    return content
