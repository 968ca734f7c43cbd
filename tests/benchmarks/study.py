"""Where a study of learning keeps what it makes, and how it runs the project's commands."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAME = "learning"  # of every run


@dataclass(frozen=True)
class Scale:
    """What a machine can do: the size of rendered clips, and keys of each recipe."""

    size: int
    keys: dict[str, tuple[str, ...]]


GPU = ("compute.device=cuda", "data.workers=8")
WIDE = (*GPU, "model=small")
SCALES = {
    "cpu": Scale(64, {}),
    "gpu": Scale(
        128,
        {
            # 64 images, 32 and 48 clips a step
            "tiny-vae-image": (*WIDE, "buckets.tokens=1024", "optimizer.steps=8000"),
            "tiny-vae-video": (*WIDE, "buckets.tokens=1536", "optimizer.steps=8000"),
            "tiny": (*GPU, "buckets.sizes=128x128", "buckets.tokens=9216"),
            "tiny-i2v": (*GPU, "buckets.sizes=128x128", "buckets.tokens=9216"),
        },
    ),
}


class Study:
    """Where everything lies, and how its commands are run.

    Args:
        out: of all that is made.
        clips: real videos; None: to be fetched.
        scale: of the machine.
        minutes: to train before it stops, to be called again.
        keys: of the training command.
    """

    def __init__(
        self, out: Path, clips: Path | None, scale: Scale, minutes: float | None, keys: list[str]
    ) -> None:
        self.out, self.clips, self.scale, self.keys = out, clips, scale, keys
        self.ends = time.monotonic() + 60 * minutes if minutes else None
        self.runs = out / "runs"
        self.shards = {name: out / name / "shards" / "tiny" for name in ("shapes", "real")}

    def command(self, script: str, *keys: str, ends: float | None = None) -> float:
        """Runs one of the project's commands to its end; seconds.

        Args:
            ends: when it is told to save and stop.
        """
        line = [sys.executable, script, *keys]
        print("$ python", *line[1:], flush=True)
        began = time.monotonic()
        with subprocess.Popen(line, cwd=ROOT) as process:
            try:
                process.wait(ends and max(0, ends - began))
            except subprocess.TimeoutExpired:
                process.terminate()
                process.wait()
                sys.exit("its minutes are over; the same command goes on")
        if process.returncode:
            sys.exit(f"{script} failed")
        return time.monotonic() - began

    def encode(self, recipe: str, shards: Path, latents: Path) -> float:
        """Writes the latents that a recipe trains on at this scale; seconds."""
        return self.command(
            "training/latents.py",
            f"recipe={recipe}",
            f"runs={self.runs}",
            f"data.shards={shards}",
            f"cache.out={latents}",
            *self.scale.keys.get(recipe, ()),
        )

    def fit(self, recipe: str, *keys: str, name: str = NAME) -> float:
        """Trains a recipe to its end; seconds of all calls that it took."""
        began = time.monotonic()
        try:
            self.command(
                "training/fit.py",
                f"recipe={recipe}",
                f"runs={self.runs}",
                f"name={name}",
                *self.scale.keys.get(recipe, ()),
                *keys,
                *self.keys,
                ends=self.ends,
            )
        finally:
            spent = self.out / "seconds.json"
            known = json.loads(spent.read_text()) if spent.is_file() else {}
            run = f"{recipe}/{name}"
            known[run] = known.get(run, 0.0) + time.monotonic() - began
            spent.write_text(json.dumps(known, indent=1))
        return known[run]

    def run(self, recipe: str) -> Path:
        return self.runs / recipe / NAME

    def keep(self, part: str, found: dict) -> None:
        """Writes what was found of a part."""
        place = self.out / f"{part}.json"
        place.write_text(json.dumps(found, indent=1, ensure_ascii=False), "utf-8")
        print(part, json.dumps(found, indent=1, ensure_ascii=False))


def recorded(run: Path, column: str) -> list[tuple[float, float]]:
    """(step, value) of each validation."""
    rows = map(json.loads, (run / "validation.jsonl").read_text("utf-8").splitlines())
    return [(row["step"], row[column]) for row in rows]
