"""What a sample came from: the JSON beside it, which also tells whether it is done already."""

import hashlib
import importlib.metadata
import json
import platform
import shlex
import subprocess
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from eval.jobs import Job
from eval.video_out import whole
from model.bundle import Bundle

# Keys that don't change what a video shows, or that stand in the request in another way
ASIDE = (
    *("checkpoint", "vae", "text_encoder", "image_encoder", "prompts", "out", "seed", "count"),
    *("image", "last_image", "video", "batch", "device", "preview", "overwrite"),
)
PACKAGES = ("wan-recipes", "torch", "transformers", "av", "numpy", "pillow")


def request(job: Job, parts: dict[str, dict[str, str]]) -> dict[str, Any]:
    """Everything that decides a video, as the JSON keeps it; the same request is not done twice.

    Weights and input files go by their SHA-256, so that a moved checkpoint is the same one and a
    changed picture is another.

    Args:
        parts: `model.bundle.fingerprints`.
    """
    keys = {name: value for name, value in asdict(job.config).items() if name not in ASIDE}
    inputs = {
        name: digest(Path(getattr(job.config, name)).expanduser())
        for name in ("image", "last_image", "video")
        if getattr(job.config, name)
    }
    weights = {name: one.get("sha256", one["path"]) for name, one in parts.items()}
    wanted = {**keys, "seed": job.seed, "inputs": inputs, "weights": weights}
    return json.loads(json.dumps(wanted))


def digest(path: Path) -> str | None:
    """SHA-256 of a file; None where it can't be read, which its reader tells better."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def beside(video: Path) -> Path:
    """Where a video's JSON lies."""
    return video.with_name(f"{video.stem}.json")


def made_from(video: Path) -> dict[str, Any] | None:
    """The request that an existing video was made from; None: it doesn't say."""
    try:
        return json.loads(beside(video).read_text(encoding="utf-8"))["request"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(video: Path, job: Job, wanted: dict[str, Any], bundle: Bundle, **facts: Any) -> None:
    """The JSON beside a video, written before the video takes its name."""
    layout = bundle.card.layout
    content = {
        "file": video.name,
        "prompt": job.config.prompt,
        "seed": job.seed,
        **facts,
        "checkpoint": {
            "path": str(Path(layout.path).absolute()) if layout.kind != "random" else layout.path,
            "kind": layout.kind,
            "step": layout.step,
            "model": bundle.card.config,
            "text_encoder": bundle.text.name,
        },
        "command": shlex.join(["python", *sys.argv]),
        "configuration": asdict(job.config),
        "request": wanted,
        "versions": versions(),
        "commit": commit(),
        "device": machine(bundle.device),
        "dtype": str(next(bundle.dit.parameters()).dtype).removeprefix("torch."),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with whole(beside(video)) as part:
        text = json.dumps(content, indent=2, ensure_ascii=False, default=str)
        part.write_text(text + "\n", encoding="utf-8")


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit() -> str | None:
    """The commit that this code stands at, with + where files differ; None: no repository."""
    root = Path(__file__).parents[1]
    try:
        git = ("git", "-C", str(root), "-c", "safe.directory=*")
        run = {"capture_output": True, "text": True, "check": True, "timeout": 10}
        head = subprocess.run([*git, "rev-parse", "HEAD"], **run).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], **run).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return head + "+" * bool(changed)


def machine(device: torch.device) -> str:
    """The device by its name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
