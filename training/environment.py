"""What a run was started with: the command, versions, commit, machine. Facts, read by people."""

import importlib.metadata
import os
import platform
import shlex
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("wan-recipes", "torch", "lightning", "transformers", "safetensors", "av", "numpy")


def environment() -> dict[str, Any]:
    """Of this process, now."""
    return {
        "time": now(),
        "command": command(),
        "folder": os.getcwd(),
        "host": socket.gethostname(),
        "process": os.getpid(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
    }


def now() -> str:
    """UTC, so that text sorts as time does."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def command(*drop: str) -> str:
    """What was typed, but for some of its arguments."""
    return shlex.join(["python", *(one for one in sys.argv if one not in drop)])


def machine() -> dict[str, Any]:
    found: dict[str, Any] = {
        "system": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        found |= {"gpus": names, "cuda": torch.version.cuda}
    return found


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
    git = ("git", "-C", str(root), "-c", "safe.directory=*")
    run = {"capture_output": True, "text": True, "check": True, "timeout": 10}
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], **run).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], **run).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return head + "+" * bool(changed)
