"""The keys of `python eval/accelerate.py`: which shortcuts, of which model, on what."""

from dataclasses import dataclass

from recipes.reconstruction import PerceptualBackbone
from recipes.sample import DTYPES, SOLVERS
from recipes.schema import key, section


@dataclass
class Acceleration:
    """`python eval/accelerate.py`: what caches, fewer steps or bits save, and what they change."""

    checkpoint: str | None = key(
        None, "a text-to-video one, as eval/sample.py takes it; random:tiny tries the command"
    )
    variants: list[str] = key(
        ["guidance=2", "guidance=4", "reuse=0.25", "reuse=0.4", "guidance=4+reuse=0.25"],
        "each of parts joined by +: guidance=N (CFG cache: the negative pass every N steps), "
        "step=DRIFT (step cache up to that drift), reuse=SHARE (step cache of so many of the "
        "steps), compensate=SHARE (of a cache's last slope), steps=N, float32, bfloat16, float16, "
        "int8, int8-weights, float8, float8-weights (torchao)",
    )
    rescale: str | None = key(
        None, "step cache: TeaCache's fit of the drift, for public weights, e.g. t2v-1.3b"
    )
    suite: str = key("rendered", "prompts: rendered, or a file (.txt, .jsonl, or VBench's .json)")
    prompts: int = key(4, "the first so many of the suite, a video each")
    seed: int = key(0, "video i has seed + 100000 i; its twin, for the floor, one more")
    size: str | None = key(None, "width x height; null: what the checkpoint was trained on")
    frames: int | None = key(None, "of the form 4k+1; null: as trained")
    steps: int | None = key(None, "of the uncached run; null: the checkpoint's default")
    guidance: float | None = key(None, "weight of the prompt; null: as trained")
    shift: float | None = key(None, "of the noise levels; null: as trained")
    solver: str = key("unipc", "of the sampler", choices=SOLVERS)
    batched: bool = key(True, "both passes of guidance at once; false: in turn, in less memory")
    batch: int = key(1, "videos that are sampled at once")
    turns: int = key(3, "how often each variant is timed; the median counts")
    dtype: str | None = key(
        None, "of the uncached run's DiT; null: bfloat16 on a GPU, else float32", choices=DTYPES
    )
    backbones: PerceptualBackbone = section(PerceptualBackbone)
    device: str = key("auto", "what computes", choices=("auto", "cuda", "cpu"))
    out: str = key("runs/acceleration", "the folder of acceleration.json")
