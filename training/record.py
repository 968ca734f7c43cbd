"""validation.jsonl: a line a validation, with its step and every number that was measured.

    {"step": 1000, "loss": 0.2871, "timestep/0050": 0.6127, …}

Lines come in the order of their steps, each step once, also in a run that was killed and resumed.
A number that is none (NaN, infinity) is null.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.notes import rewrite


class Record:
    """The file of one run; only the first rank writes.

    Args:
        path: the file; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """The whole lines; one that was cut short by a crash is left out."""
        if not self.path.is_file():
            return []
        found = []
        for line in self.path.read_text("utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def cut(self, step: int) -> None:
        """Forgets what came after a step: the run goes on from there."""
        if not self.path.is_file():
            return
        kept = [row for row in self.read() if row["step"] <= step]
        rewrite(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """One validation; what stood there from this step on is replaced."""
        if any(row["step"] >= step for row in self.read()):
            self.cut(step - 1)
        row = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step} | row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def has(self, step: int) -> bool:
        return any(row["step"] == step for row in self.read())
