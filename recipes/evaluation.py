"""The keys of `python eval/run.py`: what is compared, on which prompts, by which measures."""

from dataclasses import dataclass

from recipes.sample import SOLVERS, STOCHASTIC
from recipes.schema import key, section


@dataclass
class Backbones:
    """Networks that measures look through; a measure without its own is refused by name."""

    dino: str | None = key(None, "a folder or a hub name: facebook/dino-vitb16")
    clip_b32: str | None = key(None, "a file of open_clip's ViT-B-32, or openai, from the hub")
    clip_l14: str | None = key(None, "a file of open_clip's ViT-L-14, or openai, from the hub")
    aesthetic: str | None = key(None, "LAION's linear head, sa_0_4_vit_l_14_linear.pth")
    raft: str | None = key(None, "a file of torchvision's RAFT, or C_T_V1, from its site")
    musiq: str | None = key(None, "a file of MUSIQ's weights, musiq_spaq_ckpt-358bb6af.pth")
    owlv2: str | None = key(None, "a folder or a hub name: google/owlv2-base-patch16-ensemble")
    videomae: str | None = key(
        None, "a folder or a hub name: MCG-NJU/videomae-base-finetuned-kinetics"
    )
    blip: str | None = key(None, "a folder or a hub name: Salesforce/blip-image-captioning-large")
    xclip: str | None = key(None, "a folder or a hub name: microsoft/xclip-base-patch32")


@dataclass
class VBench:
    """VBench's own package, for numbers to the letter; it lives in an environment of its own."""

    python: str | None = key(None, "of that environment; null: the package is not asked")
    dimensions: list[str] = key([], "by name; empty: all that are not measured here already")


@dataclass
class Evaluation:
    """`python eval/run.py`: checkpoints in, a report out that says which is better, and how sure.

    What is sampled already, and what is measured already, is not done again: a third checkpoint
    costs only the third.
    """

    checkpoints: list[str] = key(
        [], "runs, or checkpoints of any format; all others are compared with the first"
    )
    videos: list[str] = key(
        [],
        "folders of videos instead: 0000-1.mp4 is the prompt's first line's second, or VBench's "
        "names, <prompt>-1.mp4",
    )
    suite: str = key(
        "rendered",
        "prompts: rendered, broad, broad-zh, or a file (.txt, .jsonl, or VBench's .json)",
    )
    images: str | None = key(
        None, "the folder of the pictures that a suite names; null: the suite's own"
    )
    prompts: int | None = key(None, "only the first so many of the suite; null: all")
    seeds: int = key(2, "videos of each prompt; video j of prompt i has seed 100000 i + j")
    measures: list[str] = key(
        [], "by name; empty: those that need no weights, and those whose backbones are given"
    )
    backbones: Backbones = section(Backbones)
    vbench: VBench = section(VBench)
    size: str | None = key(None, "width x height; null: what each checkpoint was trained on")
    frames: int | None = key(None, "of the form 4k+1; null: as trained")
    steps: int | None = key(None, "steps of the solver; null: the checkpoint's default")
    guidance: float | None = key(None, "weight of the prompt; null: as trained")
    shift: float | None = key(None, "of the noise levels; null: as trained")
    solver: str | None = key(
        None, "of the sampler; null: the checkpoint's default", choices=(*SOLVERS, *STOCHASTIC)
    )
    batch: int = key(1, "videos that are sampled at once")
    device: str = key("auto", "what computes", choices=("auto", "cuda", "cpu"))
    self_test: bool = key(
        False, "plant faults into videos, and see whether each moves its own measure"
    )
    resamples: int = key(10_000, "draws of the bootstrap")
    out: str = key("runs/evaluation", "the folder of report.json, report.html and all videos")


@dataclass
class Ballot:
    """`python eval/vote.py`: two videos of one prompt, which is better? Whose is hidden."""

    report: str = key("runs/evaluation", "a folder that eval/run.py has written")
    voter: str = key("", "a name that is kept with each vote")
    port: int = key(8765, "of http://localhost, where the page is; 0: any that is free")
    seed: int = key(0, "of the order of pairs and of sides")
