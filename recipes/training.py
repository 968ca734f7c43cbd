"""The keys of `training/fit.py` and `training/latents.py`: what is trained, and how."""

from dataclasses import dataclass

from recipes.sample import SOLVERS, STOCHASTIC
from recipes.schema import key, section

TRAINS = ("dit", "vae", "chain")
# Sizes in model.presets, which this folder can't import; a test holds them equal
DITS = ("1.3b", "14b", "tiny")
VAES = ("full", "small", "micro")
PRECISIONS = ("float32", "bfloat16")
RECOMPUTE = ("none", "selective", "attention", "full")
BACKENDS = ("sdpa", "cudnn", "flash2", "flash3", "flash")
MASKS = ("first", "continuation", "both", "random")


@dataclass
class Data:
    """What is read: shards of `python curation/run.py`, or other WebDataset shards."""

    shards: list[str] = key(
        [],
        "folders that hold train/ and val/, folders of tars, tars or URLs with braces; empty: "
        "data/curated/shards/<profile>",
    )
    weights: list[float] = key(
        [], "how often an epoch shows each of them, one number a place; empty: once each"
    )
    profile: str = key("480p", "whose shards are read where data.shards is empty")
    latents: str | None = key(
        None, "a folder written by training/latents.py, read instead of the shards"
    )
    posterior: str = key(
        "sample", "which latents of a cached or encoded posterior", choices=("sample", "mean")
    )
    image_share: float = key(
        0.2, "share of the batches that are images, where there are images and video"
    )
    frames_as_images: bool = key(
        False, "single frames of videos stand in where there is no image among the shards"
    )
    captions: str = key(
        "any",
        "which caption of several: any is drawn anew each time; en and zh are preferred where a "
        "clip has them",
        choices=("any", "en", "zh"),
    )
    sampling_weights: bool = key(
        True, "curation's sampling weight is the share of the epochs that show a clip"
    )
    workers: int = key(2, "processes that read and decode; 0: none but the training's own")
    prefetch: int = key(2, "steps that each of them reads ahead")
    broken_share: float = key(
        0.01, "share of samples that can't be read, from which on the run stops"
    )


@dataclass
class Buckets:
    """Sizes and lengths: every batch is of one, and all batches cost about the same."""

    sizes: list[str] = key(
        ["480p"], "192p, 256p, 480p, 720p (each with seven aspect ratios), or width x height"
    )
    image_sizes: list[str] = key([], "sizes of images; empty: as sizes")
    frames: list[int] = key([1, 17, 33, 49, 65, 81], "lengths at buckets.fps, each 4k+1")
    mixed: list[str] = key(
        [],
        "sizes, frames: a clip goes to any of those that it fills, drawn by its key; of what is "
        "left out here to the largest size, the greatest length",
        choices=("sizes", "frames"),
    )
    growth: dict[str, int] = key(
        {}, "longest clip from a step on, e.g. growth.0=17 growth.20000=81; empty: all of frames"
    )
    fps: float = key(16.0, "frames a second, taken by time stamps")
    tokens: int = key(
        32_760, "tokens of a batch on one GPU, at most: (1 + (frames-1)/4) x height/16 x width/16"
    )
    batches: int = key(1, "batches a step, over all GPUs; more than GPUs are accumulated")
    enlarge: float = key(1.0, "a clip may be enlarged by so much to fill a size")
    cut: float = key(0.5, "share of a picture that may be cut off to fill a size")
    zoom: float = key(
        1.0,
        "from 1 up to this a picture is magnified where its pixels allow, another part of it each "
        "time; 1: always its middle, whole",
    )
    flip: bool = key(
        False, "half of the samples are mirrored; a DiT's captions tell left from right"
    )


@dataclass
class Objective:
    """The DiT's: flow matching (Wan report, section 4.2)."""

    distribution: str = key(
        "logit-normal", "of the noise levels", choices=("logit-normal", "uniform")
    )
    shift: float | None = key(
        None, "of the noise levels; null: by the tokens of a sample (2 at 480p, 3 at 720p)"
    )
    text_dropout: float = key(0.1, "share of samples that see the empty prompt, for guidance")
    image_dropout: float = key(0.1, "i2v: share of samples that see no CLIP tokens but zeros")
    masks: dict[str, float] = key(
        {"first": 0.0, "continuation": 0.0, "both": 0.0, "random": 0.0},
        "how often which frames are given, relative to one another; all 0: text-to-video, else the "
        "network takes a condition beside the latents (36 channels)",
    )


@dataclass
class VaeLoss:
    """The VAE's: weighted sum (Wan report, section 3.1)."""

    l1: float = key(3.0, "weight of the mean absolute error")
    l2: float = key(0.0, "weight of the mean squared error; the report has none")
    kl: float = key(3e-6, "weight of the divergence from the standard normal")
    perceptual: float = key(3.0, "weight of the perceptual distance")
    backbone: str = key(
        "effnet-lite0",
        "of the perceptual distance: effnet-lite0 (its weights come in a package), or a folder or "
        "file with LPIPS' backbone (torchvision's AlexNet or VGG16), or owner/name on the hub",
    )
    perceptual_frames: int = key(
        0, "of a clip that the perceptual distance looks at, drawn anew each time; 0: all"
    )
    gan: float = key(0.0, "weight of the adversarial loss; 0: no discriminator")
    gan_start: int = key(0, "step at which the adversarial loss begins")
    gan_adaptive: bool = key(
        False, "scale it so that its gradient at the last layer is as long as the reconstruction's"
    )
    gan_lr: float = key(1e-4, "learning rate of the discriminator")
    gan_width: int = key(64, "channels of its first layer, a multiple of 4")


@dataclass
class Optimizer:
    """What updates the weights, and its schedule."""

    kind: str = key(
        "adamw",
        "adamw, the report's; muon learns faster in a small budget, on one process",
        choices=("adamw", "muon"),
    )
    steps: int = key(100_000, "optimiser steps of the whole recipe")
    lr: float = key(1e-4, "learning rate after the warm-up")
    weight_decay: float = key(1e-3, "of matrices and kernels")
    betas: list[float] = key([0.9, 0.95], "running means of gradient and of its square")
    eps: float = key(1e-8, "AdamW's")
    warmup: int = key(1000, "steps over which the rate rises from 0")
    decay: float = key(0.0, "share of the steps, the last ones, over which the rate falls to 0")
    patience: int = key(
        0, "validations without improvement after which the rate is lowered; 0: it never is"
    )
    factor: float = key(0.5, "by which it is lowered then")
    improvement: float = key(1e-3, "share by which the measure must fall to count")
    clip: float = key(1.0, "longest gradient; 0: as it is")
    ema: float = key(0.9999, "decay of the weights' running mean; 0: none is kept")
    spike: float = key(
        5.0, "a step is skipped whose loss exceeds the running mean by so many deviations; 0: never"
    )
    give_up: int = key(10, "steps skipped in a row after which the run stops")


@dataclass
class Compute:
    """How it runs; nothing here changes what is learned, up to rounding."""

    device: str = key("auto", "auto: GPUs if there are any", choices=("auto", "cuda", "cpu"))
    devices: int = key(0, "GPUs or, on a CPU, processes of a machine; 0: all GPUs, or one process")
    nodes: int = key(1, "machines, each started by torchrun")
    precision: str = key("bfloat16", "of the arithmetic; weights are float32", choices=PRECISIONS)
    strategy: str = key(
        "auto",
        "auto: ddp where a whole model fits, else fsdp",
        choices=("auto", "single", "ddp", "fsdp"),
    )
    shard: int = key(0, "fsdp: GPUs that hold one copy of the weights; 0: all")
    context: int = key(1, "GPUs that share a sequence (Ulysses)")
    recompute: str = key("none", "activation checkpointing", choices=RECOMPUTE)
    recompute_blocks: int | None = key(None, "of so many blocks, the first ones; null: of all")
    backend: str = key("sdpa", "attention kernel", choices=BACKENDS)
    compile: bool = key(False, "torch.compile the blocks")
    threads: int = key(0, "of a process on a CPU; 0: PyTorch's own choice")
    gpu: str | None = key(
        None, "for plan=true: a GPU that is not here, e.g. h100; null: the one that is"
    )
    price: float = key(2.5, "of a GPU hour, for plan=true, in any currency")
    mfu: float = key(0.4, "share of peak FLOP/s that plan=true reckons with")


@dataclass
class Validate:
    """What is measured on held-out clips, and shown."""

    every: int = key(1000, "steps between two validations; 0: none")
    clips: int = key(64, "held-out clips a bucket, always the same")
    timesteps: int = key(10, "fixed noise levels, evenly spaced")
    sample_every: int = key(5000, "steps between sample videos; 0: none")
    prompts: list[str] = key([], "what they show; empty: captions of held-out clips")
    samples: int = key(4, "how many where prompts is empty, or reconstructions of a VAE")
    steps: int = key(50, "of the sampler; this and what follows is also what a checkpoint advises")
    guidance: float = key(5.0, "guidance scale")
    shift: float | None = key(None, "of the sampler's noise levels; null: the public models'")
    solver: str = key("unipc", "the sampler", choices=(*SOLVERS, *STOCHASTIC))


@dataclass
class Save:
    """Checkpoints."""

    every: int = key(1000, "steps between two; 0: only at the end")
    minutes: float = key(30.0, "and so many minutes after the last; 0: never")
    keep: int = key(3, "the last ones are kept, besides the best")


@dataclass
class Fit:
    """`python training/fit.py`: shards in, a run with checkpoints out.

    recipe=NAME picks what is trained; the keys below differ from it where they are given.
    """

    recipe: str | None = key(None, "a file of recipes/, by name, or a path to one of yours")
    trains: str = key("dit", "which network the recipe trains, or a chain", choices=TRAINS)
    model: str = key(
        "1.3b", "its size: of a DiT or of a VAE (full, small, micro)", choices=(*DITS, *VAES)
    )
    taps: int = key(3, "VAE: reach of its convolutions over time; 1: an image VAE")
    chain: list[str] = key([], "trains=chain: recipes, run one after the other")
    starts_from: str | None = key(
        None,
        "whose weights to begin with: a recipe (its newest finished run; also a path to YAML), a "
        "run, or weights in any format; null: drawn at random",
    )
    vae: str | None = key(None, "the DiT's: a recipe, a run, or weights in any format")
    text_encoder: str | None = key(
        None,
        "bytes (drawn at random, fixed), a recipe or run (what it was trained with), a folder, or "
        "owner/name on the hub",
    )
    image_encoder: str | None = key(
        None,
        "CLIP for image-to-video: a recipe or run, a folder, or owner/name on the hub; null: no "
        "image branch",
    )
    runs: str = key("runs", "the folder of all runs")
    name: str | None = key(None, "the run's own folder in runs/<recipe>/; null: the time")
    resume: str = key(
        "auto",
        "auto: go on with the newest unfinished run of this recipe; never: begin anew",
        choices=("auto", "never"),
    )
    seed: int = key(0, "of everything that is drawn")
    plan: bool = key(False, "say what it takes and costs, and train nothing")
    expect: str = key(
        "",
        "in a recipe: what it costs (hours of an H100, as plan=true reckons), and what to look for",
    )
    data: Data = section(Data)
    buckets: Buckets = section(Buckets)
    objective: Objective = section(Objective)
    loss: VaeLoss = section(VaeLoss)
    optimizer: Optimizer = section(Optimizer)
    compute: Compute = section(Compute)
    validate: Validate = section(Validate)
    save: Save = section(Save)


@dataclass
class Cache:
    """What training/latents.py writes."""

    out: str | None = key(None, "the folder to write; null: runs/latents/<recipe>")
    windows: int = key(1, "clips taken of each video, evenly spaced")
    samples: int = key(1000, "samples a tar")
    text: bool = key(
        True, "the captions' features too; training then keeps no text encoder on the GPU"
    )
    masks: int = key(
        4,
        "image-to-video: masks of each clip whose conditions are encoded; training takes one of "
        "them a time",
    )


@dataclass
class Latents(Fit):
    """`python training/latents.py`: shards in, latent shards out, for data.latents.

    recipe=NAME says which VAE encodes, and into which buckets; keys are those of training/fit.py.
    """

    cache: Cache = section(Cache)
