"""What is compared: checkpoints, each with a video of every prompt and seed; or folders of videos.

    one = sampled(config, suite, "runs/tiny/…")     # samples what is not there yet
    one = found(suite, "their videos", seeds=2)
    one.videos[prompt, seed]                         # its path

Videos of a checkpoint lie at <out>/videos/<its weights' and settings' hash>/, so what was sampled
once is found again whatever it is compared with.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from eval import inputs
from eval import sample as sampling
from eval.jobs import MOVIE, STRIDE
from eval.suite import Suite
from model import layout as layouts
from model.bundle import card, fingerprints
from model.tensors import CheckpointError
from recipes.evaluation import Evaluation
from recipes.keys import UsageError
from recipes.sample import Sample

SETTINGS = ("size", "frames", "steps", "guidance", "shift", "solver")


@dataclass(frozen=True)
class Contender:
    """One that is compared.

    Attributes:
        name: as the command called it.
        identity: of weights and settings, or of the videos; the same for the same.
        videos: (number of the prompt, of the seed) → file.
        about: where it came from, for the report.
        odd: files that are no video of the suite, or videos that are missing.
    """

    name: str
    identity: str
    videos: dict[tuple[int, int], Path]
    about: dict[str, Any]
    odd: list[str] = field(default_factory=list)


def sampled(config: Evaluation, suite: Suite, checkpoint: str) -> Contender:
    """A checkpoint's videos, sampled where they are not there yet.

    Raises:
        UsageError: the checkpoint can't be sampled, in one line.
    """
    settings = {name: getattr(config, name) for name in SETTINGS}
    try:
        about = card(layouts.find(checkpoint))
        parts = fingerprints(about.layout)
    except CheckpointError as error:
        raise UsageError(str(error)) from error
    weights = {name: one.get("sha256", one["path"]) for name, one in parts.items()}
    identity = _digest(json.dumps([weights, settings], sort_keys=True))
    folder = Path(config.out).expanduser() / "videos" / identity
    folder.mkdir(parents=True, exist_ok=True)
    if (config.frames or about.defaults.frames) == 1:
        raise UsageError(f"checkpoints={checkpoint}: makes pictures; frames=5 makes videos of them")
    rows, videos = [], {}
    for i, prompt in enumerate(suite.prompts):
        for j in range(config.seeds):
            seed = STRIDE * i + j
            row = {"prompt": prompt.text, "seed": seed}
            name = f"{_digest(prompt.text)}-{seed}"
            if prompt.image is not None:
                row["image"] = str(prompt.image.absolute())
                name = f"{_digest(prompt.text + inputs.sha256(prompt.image))}-{seed}"
            rows.append(row | {"name": name})
            videos[i, j] = folder / f"{name}{MOVIE}"
    wanted = folder / "prompts.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    wanted.write_text("\n".join(lines) + "\n", "utf-8")
    sampling.sample(
        replace(
            Sample(),
            checkpoint=checkpoint,
            prompts=str(wanted),
            out=str(folder),
            batch=config.batch,
            device=config.device,
            **settings,
        )
    )
    return Contender(
        checkpoint,
        identity,
        videos,
        {
            "checkpoint": str(about.layout.path),
            "kind": about.layout.kind,
            "step": about.layout.step,
            "weights": weights,
            "settings": {name: value for name, value in settings.items() if value is not None},
            "defaults": asdict(about.defaults),
            "run": _run(about.layout.path),
        },
    )


def found(suite: Suite, folder: str, seeds: int) -> Contender:
    """Videos that lie in a folder: told by the JSON beside them (eval/sample.py's), by VBench's
    names (`<prompt>-<seed>.mp4`), or by number (`0003-1.mp4`: the fourth prompt's second).

    Raises:
        UsageError: no such folder, or nothing in it is of the suite.
    """
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise UsageError(f"videos={folder}: no such folder")
    number = {prompt.text: i for i, prompt in enumerate(suite.prompts)}
    known: dict[int, dict[int, Path]] = {}
    odd = []
    for path in sorted(place.rglob(f"*{MOVIE}")):
        i, seed = _key(path, number) or (len(suite.prompts), 0)
        if i >= len(suite.prompts) or seed in known.setdefault(i, {}):
            odd.append(f"{path.relative_to(place)}: of no prompt of the suite, or there twice")
            continue
        known[i][seed] = path
    # whatever the seeds are, the lowest is the first
    videos = {
        (i, j): path
        for i, some in sorted(known.items())
        for j, (_, path) in enumerate(sorted(some.items())[:seeds])
    }
    if not videos:
        raise UsageError(
            f"videos={folder}: no video of suite={suite.name} in it; names are 0000-0{MOVIE}, "
            f"<prompt>-0{MOVIE}, or a JSON beside each has its prompt and seed"
        )
    missing = len(suite.prompts) * seeds - len(videos)
    if missing:
        odd.append(f"{missing} of {len(suite.prompts) * seeds} videos are not there")
    hashes = [[*key, inputs.sha256(one)] for key, one in videos.items()]
    return Contender(folder, _digest(json.dumps(hashes)), videos, {"folder": str(place)}, odd)


def _key(path: Path, number: dict[str, int]) -> tuple[int, int] | None:
    """Which prompt and seed a video is of."""
    try:
        told = json.loads(path.with_suffix(".json").read_text("utf-8"))
        return number[told["prompt"]], int(told["seed"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    if path.stem in number:
        return number[path.stem], 0
    name, last = re.fullmatch(r"(.+?)(?:-([0-9]+))?", path.stem).groups("0")
    if name in number:
        return number[name], int(last)
    return (int(name), int(last)) if re.fullmatch(r"[0-9]{1,6}", name) else None


def _run(path: str) -> dict[str, Any] | None:
    """A run's configuration and what it measured of itself while it trained."""
    import yaml

    for place in (Path(path), *Path(path).parents[:2]):
        if (place / "config.yaml").is_file() and (place / "validation.jsonl").is_file():
            lines = (place / "validation.jsonl").read_text("utf-8").split("\n")
            rows = [json.loads(line) for line in lines if line.endswith("}")]
            config = yaml.safe_load((place / "config.yaml").read_text("utf-8"))
            return {"folder": str(place), "config": config, "validation": rows}
    return None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:12]
