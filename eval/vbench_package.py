"""VBench's own package as a source of its sixteen dimensions, from an environment of its own.

    package = Package("vbench/bin/python", "cuda")   # where `pip install vbench` has been run
    found = package.measure(["scene", "color"], suite, contender.videos, folder)
    found.values["scene"][i, j], found.failed, found.broken

Its release 0.1.5 pins transformers 4.33 and NumPy 1, so it can't live among our libraries: each
dimension runs in a process of its own (`eval/vbench_runner.py`), and one that fails costs no other.
The package fetches its weights itself and keeps them in `$VBENCH_CACHE_DIR` (else
`~/.cache/vbench`), those of DINO and CLIP in their libraries' caches. It tells no hash of them, so
an identity is the package's version alone.

Two of its habits are mended here:

- imaging_quality is 0–100 for a video and 0–1 in the aggregate (imaging_quality.py): `_read`
  divides, and refuses a file of which the two don't agree.
- an unreadable video is passed over (temporal_flickering.py) or stops a dimension: those that
  can't be opened are left out beforehand, and one without a number is named.
"""

import hashlib
import json
import math
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curation.video import VideoError, probe
from eval.measures.measure import Measure
from eval.suite import Prompt, Suite
from recipes.keys import UsageError, nearest

Key = tuple[int, int]  # number of the prompt, of the seed
RUNNER = Path(__file__).with_name("vbench_runner.py")
NAME_BYTES = 255  # of a file's name
GRIT, VICLIP = "grit_b_densecap_objectdet.pth", "ViClip-InternVid-10M-FLT.pth"
# dimension → the weights that it looks through (VBench, utils.py, init_submodules)
WEIGHTS = {
    "subject_consistency": "dino_vitbase16_pretrain.pth",
    "background_consistency": "ViT-B-32.pt",
    "temporal_flickering": "",
    "motion_smoothness": "amt-s.pth",
    "dynamic_degree": "raft-things.pth",
    "aesthetic_quality": "ViT-L-14.pt and sa_0_4_vit_l_14_linear.pth",
    "imaging_quality": "musiq_spaq_ckpt-358bb6af.pth",
    "object_class": GRIT,
    "multiple_objects": GRIT,
    "human_action": "l16_ptk710_ftk710_ftk400_f16_res224.pth",
    "color": GRIT,
    "spatial_relationship": GRIT,
    "scene": "tag2text_swin_14m.pth",
    "appearance_style": "ViT-B-32.pt",
    "temporal_style": VICLIP,
    "overall_consistency": VICLIP,
}
DIMENSIONS = tuple(WEIGHTS)
# what these look for is in a prompt's `asked`; without it the package stops
ASKING = {
    "object_class": "object",
    "multiple_objects": "object",
    "color": "color",
    "spatial_relationship": "spatial_relationship",
    "scene": "scene",
    "appearance_style": "appearance_style",
}


def dimensions(names: Sequence[str], measures: Sequence[Measure]) -> list[str]:
    """Those named; without names, all that are not measured here.

    Raises:
        UsageError: there is no such dimension, or it is measured here too.
    """
    here = {one.name for one in measures}
    for name in names:
        if name not in DIMENSIONS:
            near = nearest(name, DIMENSIONS)
            raise UsageError(f"vbench.dimensions={name}: there is none; the nearest is {near}")
        if name in here:
            raise UsageError(f"vbench.dimensions={name}: is measured here too; measures= says what")
    return list(dict.fromkeys(names)) or [one for one in DIMENSIONS if one not in here]


@dataclass
class Found:
    """What the package measured of one contender.

    Attributes:
        values: dimension → (number of the prompt, of the seed) → 0–1; NaN where it says nothing,
            as `color` does where it sees no such object.
        totals: dimension → the package's own aggregate, 0–1.
        failed: dimension → one line why it is not there.
        broken: videos without a number, by name, and why.
    """

    values: dict[str, dict[Key, float]] = field(default_factory=dict)
    totals: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)


class Package:
    """VBench's package.

    Args:
        python: of the environment where it is installed.
        device: cpu or cuda.

    Raises:
        UsageError: there is no such python, or no package in it.
    """

    def __init__(self, python: str, device: str = "cpu") -> None:
        place = shutil.which(os.path.expanduser(python))
        if place is None:
            raise UsageError(f"vbench.python={python}: no such program")
        self.python, self.device = os.path.abspath(place), device
        code = "import importlib.metadata as m; print(m.version('vbench'))"
        told = subprocess.run([self.python, "-c", code], capture_output=True, text=True)
        if told.returncode:
            why = (told.stderr.strip().splitlines() or [f"status {told.returncode}"])[-1]
            raise UsageError(f"vbench.python={python}: has no vbench ({why})")
        self.identity = f"vbench {told.stdout.strip()}"

    def measure(
        self,
        dimensions: Sequence[str],
        suite: Suite,
        videos: Mapping[Key, Path],
        folder: Path,
    ) -> Found:
        """Each dimension of those videos whose prompts are for it.

        Args:
            videos: (number of the prompt, of the seed) → file.
            folder: of links, of what the package writes, and of what it says (`<dimension>.log`).

        Raises:
            UsageError: there is no such dimension.
        """
        found, folder, prompts = Found(), folder.resolve(), suite.prompts
        links, found.broken = linked(prompts, videos, folder / "links")
        for name in dimensions:
            wanted = {key: link for key, link in links.items() if asks(name, suite, key[0])}
            if not wanted:
                found.failed[name] = "no video of a prompt that is for it"
                continue
            why = self._run(name, full_info(name, prompts, wanted), folder)
            if why is None:
                try:
                    found.totals[name], values = _read(folder, name, wanted)
                except (OSError, ValueError, KeyError, TypeError) as error:
                    why = f"what it wrote is not understood ({_line(error)})"
            if why is not None:
                found.failed[name] = why
                continue
            for key in sorted(wanted.keys() - values.keys()):
                if name == "color":  # passes over a video in which it sees no such object
                    values[key] = math.nan
                else:
                    found.broken.append(f"{videos[key].name}: {name} gave no number of it")
            found.values[name] = values
        return found

    def _run(self, dimension: str, rows: list[dict[str, Any]], folder: Path) -> str | None:
        """Why there is no result; None where there is one."""
        job, info = folder / f"{dimension}_job.json", folder / f"{dimension}_prompts.json"
        result, said = _result(folder, dimension), folder / f"{dimension}_error.json"
        log = folder / f"{dimension}.log"
        info.write_text(json.dumps(rows, ensure_ascii=False, indent=1), "utf-8")
        told = {
            "dimension": dimension,
            "device": self.device,
            "full_info": str(info),
            "videos": str(folder / "links"),
            "out": str(folder),
        }
        job.write_text(json.dumps(told), "utf-8")
        for old in (result, said):
            old.unlink(missing_ok=True)
        with log.open("wb") as file:
            status = subprocess.run(
                [self.python, str(RUNNER), str(job)],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            ).returncode
        if status == 0 and result.is_file():
            return None
        if not said.is_file():
            return f"its process ended with status {status}; what it said is in {log}"
        error = json.loads(said.read_text("utf-8"))
        outside = {"OSError", "SubprocessError"} & {*error["kinds"]}
        weights = f"; wants {WEIGHTS[dimension]}" if outside and WEIGHTS[dimension] else ""
        return f"{error['line']}{weights}; what it said is in {log}"


def linked(
    prompts: Sequence[Prompt], videos: Mapping[Key, Path], folder: Path
) -> tuple[dict[Key, Path], list[str]]:
    """Links named as VBench names videos, and those that can't be opened, with why.

    Its human_action reads what is done from a file's name; all else is told it in JSON.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        if old.is_symlink():
            old.unlink()
    links, broken = {}, []
    for (i, j), path in sorted(videos.items()):
        try:
            probe(path)
        except (VideoError, OSError) as error:
            broken.append(f"{path.name}: {_line(error)}")
            continue
        links[i, j] = folder / link_name(prompts[i].text, j)
        links[i, j].symlink_to(path.resolve())
    return links, broken


def link_name(text: str, seed: int) -> str:
    """`<prompt>-<seed>.mp4`; what can't be a file's name is changed, and told apart by a hash."""
    ending = f"-{seed}.mp4"
    if "/" not in text and "\0" not in text and len((text + ending).encode()) <= NAME_BYTES:
        return text + ending
    digest = f" {hashlib.sha256(text.encode()).hexdigest()[:12]}"
    room = NAME_BYTES - len(digest + ending)
    start = text.replace("/", "_").replace("\0", "_").encode()[:room].decode("utf-8", "ignore")
    return start + digest + ending


def asks(dimension: str, suite: Suite, number: int) -> bool:
    """Whether a prompt is for a dimension: where the suite names it, those that name it; and never
    one that lacks what the dimension looks for."""
    prompt = suite.prompts[number]
    named = dimension in suite.dimensions and prompt.dimensions
    if named and dimension not in prompt.dimensions:
        return False
    if dimension == "human_action":  # it reads the action in the file's name, after these words
        return "person is " in prompt.text
    return dimension not in ASKING or bool(prompt.asked.get(dimension))


def full_info(
    dimension: str, prompts: Sequence[Prompt], links: Mapping[Key, Path]
) -> list[dict[str, Any]]:
    """Rows as VBench's `VBench_full_info.json` has them, of one dimension, with their videos."""
    rows = []
    for i in sorted({i for i, _ in links}):
        row = vbenchs_row(dimension, prompts[i])
        row["video_list"] = [str(links[key]) for key in sorted(links) if key[0] == i]
        rows.append(row)
    return rows


def vbenchs_row(dimension: str, prompt: Prompt) -> dict[str, Any]:
    """A prompt in VBench's nesting: what eval/suite.py has unpacked is packed again."""
    row: dict[str, Any] = {"prompt_en": prompt.text, "dimension": [dimension]}
    if dimension in ASKING:
        what, inner = prompt.asked[dimension], ASKING[dimension]
        if inner == "object" or dimension == "scene":  # {"object": "dog"}, {"scene": "alley"}
            what = what if isinstance(what, dict) else {inner: what}
        row["auxiliary_info"] = {dimension: what if inner == "object" else {inner: what}}
    return row


def _result(folder: Path, dimension: str) -> Path:
    return folder / f"{dimension}_eval_results.json"


def _read(folder: Path, dimension: str, links: Mapping[Key, Path]) -> tuple[float, dict]:
    """The package's aggregate, and each video's number, both 0–1.

    Raises:
        ValueError: they are on no scale that is known.
    """
    total, rows = json.loads(_result(folder, dimension).read_text("utf-8"))[dimension]
    keys = {link.name: key for key, link in links.items()}
    values = {keys[Path(row["video_path"]).name]: float(row["video_results"]) for row in rows}
    if dimension == "imaging_quality":
        values = {key: value / 100 for key, value in values.items()}
        mean = math.fsum(values.values()) / max(1, len(values))
        if not math.isclose(mean, total, rel_tol=1e-6):
            raise ValueError(f"videos' mean is {mean:.6g}, the aggregate {total:.6g}")
    if any(value > 1 + 1e-5 for value in (total, *values.values())):
        raise ValueError("numbers beyond 1")
    return float(total), values


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
