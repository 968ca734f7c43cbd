"""The keys of `python eval/sample.py`: what is sampled, from which checkpoint, and how."""

from dataclasses import dataclass

from recipes.schema import key, section

TASKS = (
    "text-to-video",
    "text-to-image",
    "image-to-video",
    "first-last-frame",
    "continuation",
    "video-to-video",
)
SOLVERS = ("unipc", "dpmpp_2m", "heun", "euler")
STOCHASTIC = ("dpmpp_2m_sde",)  # add fresh noise at every step
DTYPES = ("float32", "bfloat16", "float16")


@dataclass
class Caches:
    """What one step may reuse of the one before; off by default."""

    step: float | None = key(
        None,
        "step cache: drift of the time embedding up to which the blocks are skipped, e.g. 0.05",
    )
    rescale: str | None = key(
        None, "step cache: TeaCache's fit of the drift, for public weights, e.g. t2v-1.3b"
    )
    guidance: int | None = key(
        None, "CFG cache: the negative pass is computed only every so many steps, e.g. 4"
    )


@dataclass
class Sample:
    """`python eval/sample.py`: a checkpoint and prompts in, videos out."""

    checkpoint: str | None = key(
        None,
        "a run, a checkpoint folder of it, a diffusers folder, an official Wan folder, owner/name "
        "on the hub, or random:tiny, random:i2v-tiny, random:flf2v-tiny (small, drawn at random)",
    )
    prompt: str | None = key(None, "what the video shows, in any language")
    prompts: str | None = key(
        None,
        "a file of prompts, one a line; or .jsonl, one object a line with prompt and any of: name, "
        "negative, seed, count, task, image, last_image, video, size, frames, steps, guidance, "
        "shift, strength, given, solver",
    )
    out: str = key("samples", "a file (.mp4, or .png for one frame), or a folder for 0000.mp4, …")
    task: str | None = key(
        None, "null: told from image, last_image, video and frames", choices=TASKS
    )
    negative: str | None = key(
        None, "what to keep away from; null: the public long Chinese prompt (byte encoder: empty)"
    )
    size: str | None = key(None, "width x height in pixels, multiples of 16, e.g. 832x480")
    frames: int | None = key(None, "of the form 4k+1")
    steps: int | None = key(None, "steps of the solver")
    guidance: float | None = key(None, "guidance scale; 1 is none")
    shift: float | None = key(None, "shift of the noise schedule; 1 is none")
    fps: float | None = key(
        None,
        "frames a second; null, as with the five keys above: what the checkpoint was trained on, "
        "else the public setting",
    )
    seed: int = key(0, "video j of prompt i is drawn from seed + 100000 i + j, i and j from 0")
    count: int = key(1, "videos a prompt")
    batch: int = key(1, "videos sampled at once; the videos are the same whatever it is")
    image: str | None = key(
        None,
        "the first frame; pictures are scaled to cover the size, then cut to the middle",
    )
    last_image: str | None = key(None, "the last frame")
    video: str | None = key(
        None, "video-to-video: what to change; continuation: what to go on from"
    )
    strength: float = key(0.8, "video-to-video: share of the steps that are run, up to 1")
    given: int | None = key(
        None,
        "continuation: how many last frames of video begin the new one; null: 25 (1.5 s), or half "
        "where frames is under 50",
    )
    solver: str | None = key(
        None, "the sampler; null: the checkpoint's default", choices=(*SOLVERS, *STOCHASTIC)
    )
    interval: list[float] = key(
        [0.0, 1.0], "noise levels (sigma, 1 is noise) within which to guide"
    )
    batched: bool = key(True, "both passes of guidance at once; false: in turn, in less memory")
    vae: str | None = key(None, "another VAE than the checkpoint's")
    text_encoder: str | None = key(None, "another than the checkpoint's; a run: its text encoder")
    image_encoder: str | None = key(None, "another than the checkpoint's; a run: its image encoder")
    device: str = key("auto", "auto: a GPU if there is one", choices=("auto", "cuda", "cpu"))
    dtype: str | None = key(
        None, "of the DiT; null: bfloat16 on a GPU, else float32", choices=DTYPES
    )
    tile: int | None = key(None, "decode in squares of so many pixels, in less memory; e.g. 256")
    crf: int = key(12, "x264's constant rate factor, 1 to 51")
    preview: int = key(
        0, "write a PNG of the middle frame as estimated, every so many steps; 0: off"
    )
    overwrite: bool = key(False, "replace what another configuration has written to out")
    cache: Caches = section(Caches)
