"""Samples videos and images from a checkpoint.

    python eval/sample.py checkpoint=random:tiny prompt="a red circle moves left" out=circle.mp4
    python eval/sample.py checkpoint=Wan-AI/Wan2.1-T2V-1.3B prompts=prompts.txt out=samples count=4
    python eval/sample.py checkpoint=runs/720p/… image=cat.jpg prompt="the cat yawns" out=yawn.mp4

Beside each video lies a JSON with all that it came from. The same command again does nothing; a run
that was killed goes on where it stopped; another configuration never overwrites what is there.
`--help` lists every key.
"""

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from eval import inputs, memory, provenance
from eval.jobs import MOVIE, PICTURE, Job, jobs
from eval.video_out import pixels, whole, write_image, write_video
from model import layout as layouts
from model import sampler
from model.bundle import Bundle, Card, card, fingerprints, load_bundle
from model.stepcache import GuidanceCache, StepCache
from model.tensors import CheckpointError
from recipes.keys import UsageError
from recipes.load import main
from recipes.sample import Sample

err = Console(stderr=True, highlight=False)


class OutOfMemory(Exception):
    """One line: what was asked for, what it takes, what would fit."""


@dataclass(frozen=True)
class Work:
    """A job that is to be done, and how."""

    job: Job
    settings: sampler.Settings
    fps: float
    given: int  # frames of the video that a continuation begins with
    out: Path
    request: dict


def sample(config: Sample) -> int:
    """Samples what is asked for and not there yet; returns the exit status."""
    began = time.monotonic()
    asked = jobs(config)
    device = chosen(config.device)
    if config.checkpoint is None:
        raise UsageError("checkpoint=… is missing; checkpoint=random:tiny tries the command")
    encoders = (config.text_encoder, config.image_encoder)
    try:
        about = card(layouts.find(config.checkpoint, config.vae, *encoders))
        parts = fingerprints(about.layout)
        work = [planned(job, about, provenance.request(job, parts)) for job in asked]
        waiting = [one for one in work if not finished(one)]
        for one in waiting:
            read([one])  # what can't be read is told before the weights are, which takes longer
        if waiting:
            dtype = getattr(torch, config.dtype) if config.dtype else None
            bundle = load_bundle(about, device, dtype)
            run(waiting, bundle, config)
    except (CheckpointError, sampler.TaskError) as error:
        raise UsageError(str(error)) from error
    close(work, waiting, time.monotonic() - began)
    return 0


def chosen(name: str) -> torch.device:
    """The device; a UsageError where it is not there."""
    has = torch.cuda.is_available()
    if name == "cuda" and not has:
        raise UsageError(
            f"device=cuda: PyTorch {torch.__version__} sees no CUDA GPU here; device=cpu works"
        )
    return torch.device("cuda" if name != "cpu" and has else "cpu")


def planned(job: Job, about: Card, request: dict) -> Work:
    """How a job will be done; everything that can be refused is refused here.

    Raises:
        UsageError, TaskError: one line that says which key, and what it may be.
    """
    config, known = job.config, about.defaults
    size = sized(config.size)
    task = config.task or told(config)
    fps = config.fps or known.fps
    needed = sampler.TASKS[task].inputs
    for name in ("image", "last_image", "video"):
        if (getattr(config, name) is not None) != (name in needed):
            verb = "needs" if name in needed else "takes no"
            raise UsageError(f"task={task}: {verb} {name}=")
    frames = config.frames
    if task == "video-to-video" and frames is None:
        frames = inputs.length(config.video, fps, known.frames)
    settings = sampler.Settings.of(
        about,
        task=task,
        width=size and size[0],
        height=size and size[1],
        frames=frames,
        steps=config.steps,
        guidance=config.guidance,
        shift=config.shift,
        negative=config.negative,
        solver=config.solver,
        interval=tuple(config.interval),
        batched=config.batched,
        strength=config.strength,
        **caches(config),
    )
    settings.check(about)
    if not 1 <= config.crf <= 51:
        raise UsageError(f"crf={config.crf}: 1 to 51")
    if config.tile is not None and (config.tile < 128 or config.tile % 8):
        raise UsageError(f"tile={config.tile}: a multiple of 8 pixels, 128 or more")
    suffix = PICTURE if settings.frames == 1 else MOVIE
    if not job.named:
        path = job.out.with_name(job.out.name + suffix)
    elif job.out.suffix == suffix:
        path = job.out
    else:
        raise UsageError(f"out={job.out}: {settings.frames} frames are written as {suffix}")
    return Work(job, settings, fps, begun(config, settings), path, request)


def begun(config: Sample, settings: sampler.Settings) -> int:
    """How many given frames a continuation begins with; 0 for another task."""
    if settings.task != "continuation":
        return 0
    most = settings.frames // 2
    count = min(sampler.GIVEN_FRAMES, most) if config.given is None else config.given
    if not 0 < count < settings.frames:
        raise UsageError(f"given={count}: between 1 and frames={settings.frames}, less one")
    return count


def caches(config: Sample) -> dict:
    """The caches that are switched on."""
    step, every = config.cache.step, config.cache.guidance
    try:
        return {
            "step_cache": StepCache(step, rescale=config.cache.rescale) if step else None,
            "guidance_cache": GuidanceCache(every) if every else None,
        }
    except ValueError as error:
        raise UsageError(f"cache: {error}") from error


def sized(text: str | None) -> tuple[int, int] | None:
    """`832x480` (also with ×, X or *) as width and height."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)\s*[x×X*]\s*(\d+)", text)
    if not found:
        raise UsageError(f"size={text}: wants width x height, such as 832x480")
    return int(found[1]), int(found[2])


def told(config: Sample) -> str:
    """The task that the inputs speak of."""
    if config.image:
        return "first-last-frame" if config.last_image else "image-to-video"
    if config.video:
        return "video-to-video"
    return "text-to-image" if config.frames == 1 else "text-to-video"


def finished(one: Work) -> bool:
    """Whether a video is there, made from just this request.

    Raises:
        UsageError: something else is there, and may not be overwritten.
    """
    if not one.out.exists():
        return False
    was = provenance.made_from(one.out)
    if was == one.request:
        return True
    if one.job.config.overwrite:
        return False
    what = (
        "made from another configuration" if was else "and no JSON beside it says how it was made"
    )
    raise UsageError(f"{one.out}: is there, {what}; overwrite=true replaces it")


def run(waiting: list[Work], bundle: Bundle, config: Sample) -> None:
    """Samples in batches of what has the same settings."""
    batches = list(batched(waiting, config.batch))
    with bars() as progress:
        done = 0
        for group in batches:
            settings = group[0].settings
            of = f"{done + 1}–{done + len(group)}" if len(group) > 1 else f"{done + 1}"
            task = progress.add_task(f"video {of} of {len(waiting)}", total=settings.steps)
            try:
                make(group, bundle, config, lambda step, t=task: progress.update(t, completed=step))
            except Exception as error:
                if memory.is_exhausted(error):
                    line = memory.advice(bundle, settings, len(group))
                    raise OutOfMemory(line) from error
                raise
            progress.remove_task(task)
            done += len(group)


def batched(waiting: list[Work], size: int) -> Iterator[list[Work]]:
    """Jobs of the same settings that follow one another, at most `size` at once."""
    for _, group in groupby(waiting, key=lambda one: (one.settings, one.fps, one.given)):
        rest = iter(group)
        while part := list(islice(rest, size)):
            yield part


def make(group: list[Work], bundle: Bundle, config: Sample, tell) -> None:
    """Samples and writes one batch."""
    settings = group[0].settings
    began = time.monotonic()

    def after(step: int, sigma: float, x: torch.Tensor, data: torch.Tensor) -> None:
        tell(step)
        if config.preview and step % config.preview == 0:
            for one, latents in zip(group, data, strict=True):
                preview(one.out, bundle, latents[None])

    latents = sampler.sample(
        bundle,
        [one.job.config.prompt for one in group],
        [one.job.seed for one in group],
        settings,
        read(group),
        callback=after,
    )
    sampled_s = (time.monotonic() - began) / len(group)
    for one, its in zip(group, latents, strict=True):
        began = time.monotonic()
        with whole(one.out) as part:
            frames = (pixels(p[0]) for p in sampler.decode(bundle, its[None], config.tile))
            if settings.frames == 1:
                write_image(part, next(frames)[0])
            else:
                write_video(part, frames, one.fps, config.crf)
            took = {"sampling": sampled_s, "decoding": time.monotonic() - began}
            provenance.write(
                one.out,
                one.job,
                one.request,
                bundle,
                settings={**asdict(settings), "fps": one.fps},
                took_s={name: round(seconds, 3) for name, seconds in took.items()},
                batch=len(group),
            )
        previewed(one.out).unlink(missing_ok=True)


def read(group: list[Work]) -> sampler.Inputs:
    """The images or videos that a batch starts from."""
    first = group[0]
    settings, size = first.settings, (first.settings.width, first.settings.height)
    found = {}
    for name in sampler.TASKS[settings.task].inputs:
        paths = [getattr(one.job.config, name) for one in group]
        if name != "video":
            rows = [inputs.image(path, *size) for path in paths]
        elif first.given:
            rows = [inputs.video(path, *size, first.fps, last=first.given) for path in paths]
        else:
            rows = [inputs.video(path, *size, first.fps, settings.frames) for path in paths]
        found[name] = torch.stack(rows)
    return sampler.Inputs(**found)


def preview(video: Path, bundle: Bundle, data: torch.Tensor) -> None:
    """A PNG of the middle of the estimate, decoded as if it stood alone, so only roughly."""
    middle = data[:, :, data.shape[2] // 2][:, :, None]
    frames = next(sampler.decode(bundle, middle))
    with whole(previewed(video)) as part:
        write_image(part, pixels(frames[0])[0])


def previewed(video: Path) -> Path:
    return video.with_name(f"{video.stem}.preview.png")


@contextmanager
def bars() -> Iterator[Progress]:
    """A progress bar on a terminal; nothing elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn())
    left = (TextColumn("steps,"), TimeRemainingColumn(compact=True), TextColumn("left"))
    with Progress(
        *columns, *left, console=err, disable=not err.is_terminal, transient=True
    ) as progress:
        yield progress


def close(work: list[Work], made: list[Work], took_s: float) -> None:
    """Says what was made, and what was there already."""
    before = len(work) - len(made)
    kinds = {f"{s.width}x{s.height}, {s.frames} frames" for s in (one.settings for one in work)}
    rows = [
        ("videos", f"{len(made)}" + (f", {before} done already" if before else "")),
        ("each", kinds.pop() if len(kinds) == 1 else f"one of {len(kinds)} sizes and lengths"),
        ("took", f"{took_s:.1f} s"),
        ("out", str(work[0].out if len(work) == 1 else work[0].out.parent)),
    ]
    print("Sampled")
    for name, value in rows:
        print(f" {name:8}{value}")


if __name__ == "__main__":
    sys.exit(main(Sample, sample))
