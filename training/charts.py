"""How TensorBoard is laid out: what each number is called, and which curves stand in one chart.

The names sort so that what is looked at first comes first; the charts are those of TensorBoard's
page Custom Scalars (`PAGE`). A chart is there once one of its curves is, so none stays empty.
"""

import re
from collections.abc import Iterable, Mapping

PAGE = "http://localhost:6006/#custom_scalars"  # once `tensorboard --logdir …` runs

LEARNING = "Does it learn?"
PARTS = "What the training loss is made of"
HEALTH = "Is it sound?"
SPEED = "Is it fast?"
CURATION = "Does curation pay? Loss of the training samples"
TIMESTEPS = "Held-out loss by timestep, a chart a bucket"

SCORE, TIMESTEP, BUCKET = "score ", "held-out by timestep", "held-out by bucket"

# Category, title, and the tags whose curves it holds; {} is whatever makes a chart of its own, for
# curves that no chart before it holds
CHARTS = (
    (LEARNING, "held-out loss", r"held-out/loss"),
    (LEARNING, "training loss", r"loss/training"),
    (LEARNING, "held-out loss by timestep", rf"{TIMESTEP}/.*"),
    (LEARNING, "held-out loss by bucket", rf"{BUCKET}/.*"),
    (LEARNING, "PSNR on held-out clips, dB", r"held-out/psnr"),
    (LEARNING, "PSNR by bucket and frame, dB", r"held-out psnr/.*"),
    (LEARNING, "SSIM on held-out clips", r"held-out/ssim"),
    (LEARNING, "{} on held-out clips", r"held-out/{}"),
    (PARTS, "{}", r"loss/{}"),
    (HEALTH, "gradient norm before clipping", r"optimizer/gradient norm"),
    (HEALTH, "learning rate", r"optimizer/learning rate"),
    (HEALTH, "distance of the EMA, in lengths of the weights", r"optimizer/EMA drift"),
    (HEALTH, "steps skipped so far", r"optimizer/skipped steps"),
    (HEALTH, "samples that could not be read so far", r"data/broken"),
    (SPEED, "seconds a step", r"machine/step seconds"),
    (SPEED, "share of a step waiting for data", r"machine/data wait"),
    (SPEED, "share of the time beside steps: validation, samples, saving", r"machine/beside"),
    (SPEED, "tokens a second", r"machine/tokens a second"),
    (SPEED, "samples a second", r"machine/samples a second"),
    (SPEED, "TFLOP/s a GPU", r"machine/TFLOP a second"),
    (SPEED, "MFU: share of the peak FLOP/s", r"machine/MFU"),
    (SPEED, "memory, GiB: of a GPU the peak, of a CPU what is held then", r"machine/memory GiB"),
    (CURATION, "by tier", r"tier/.*"),
    (CURATION, "by decile of {}", rf"{SCORE}{{}}/.*"),
    (TIMESTEPS, "{}", rf"{TIMESTEP} {{}}/.*"),
)


def held_out(name: str) -> str:
    """The tag of what a validation calls so: psnr, psnr/B, bucket/B, timestep/T, timestep/T/B."""
    kind, _, rest = name.partition("/")
    if not rest:
        return f"held-out/{name}"
    if kind == "bucket":
        return f"{BUCKET}/{rest}"
    if kind == "timestep":
        level, _, bucket = rest.partition("/")
        return f"{TIMESTEP} {bucket}/{level}" if bucket else f"{TIMESTEP}/{level}"
    return f"held-out {kind}/{rest}"


def layout(tags: Iterable[str]) -> dict[str, dict[str, str]]:
    """The charts that have curves: category → title → a regular expression over tags."""
    found: dict[str, dict[str, str]] = {}
    left = set(tags)
    for category, title, pattern in CHARTS:
        search = re.compile(pattern.replace("{}", "(?P<rest>[^/]+)"))
        for match in filter(None, map(search.fullmatch, sorted(left))):
            left.remove(match.string)
            rest = match.groupdict().get("rest", "")
            # TensorBoard matches beginnings
            expression = f"{pattern.replace('{}', re.escape(rest))}$"
            found.setdefault(category, {})[title.replace("{}", rest)] = expression
    return found


def multiline(charts: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, list]]:
    """As `SummaryWriter.add_custom_scalars` takes it."""
    return {
        category: {title: ["Multiline", [tags]] for title, tags in titles.items()}
        for category, titles in charts.items()
    }
