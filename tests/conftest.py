"""What holds for every test: the hub is out of reach, tokenizers fork nothing, and networks run on
one thread, since the small ones of tests only wait for one another on more. Whole folders are
tested by one process a core."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from curation.engine import available_cores

# before any test imports the libraries that read them
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell script's background jobs have it
    signal.signal(signal.SIGINT, signal.default_int_handler)

MOST = 4  # processes; each imports PyTorch, transformers and diffusers: 1 GB, seven seconds


def pytest_xdist_auto_num_workers(config) -> int:
    """Of `-n auto` in pyproject.toml: none where single files are asked for, which start sooner."""
    folders = any(Path(argument).is_dir() for argument in config.args)
    return min(available_cores(), MOST) if folders else 0


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """A training that a test ends by a signal leaves its handlers: its process would be gone."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
