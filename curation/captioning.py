"""The caption step of `scorers=full`: clips that were kept get a caption from a VLM.

It runs after selection, since a captioner costs more than everything before it, and only over clips
that the same model has not described yet; selection is then run again.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from curation import analyse, captioner, captions, console, emit, engine, reading, sources, video
from curation.catalog import Catalog
from curation.crop import inside
from curation.sources import Source
from recipes.load import UsageError
from recipes.schema import Captions, Curation

OCR_FRAMES = 3  # of a clip, whose text the prompt quotes
SILENCE = 10  # times timeout_s: a large model is silent for longer than a decoder
WANTED = """
    SELECT c.clip_id, c.start_frame, c.end_frame, c.start_s, c.end_s, c.width, c.crop_x, c.crop_y,
        c.crop_w, c.crop_h, b.text_area, v.name, v.uri, v.bytes AS file_bytes, v.mtime_ns,
        v.is_image
    FROM decisions d JOIN clips c USING (clip_id) JOIN videos v USING (video_id)
    LEFT JOIN basic b USING (clip_id)
    WHERE d.profile = $profile AND (d.kept OR d.reason = 'require_caption')
        AND (SELECT count(DISTINCT p.language) FROM captions p WHERE p.clip_id = c.clip_id
            AND p.model = $model AND list_contains($languages, p.language)) < $enough
    ORDER BY v.uri, c.start_frame, c.end_frame
"""


@dataclass(frozen=True)
class Job:
    """The clips of one file that want a caption."""

    source: Source
    clips: tuple[dict, ...]
    config: Curation


def describe(catalog: Catalog, config: Curation) -> bool:
    """Captions what the profile keeps, or would keep had it a caption; whether any was added.

    Without a captioner (`captions.model=null`, or scorers=light) there is nothing to do. What a
    model wrote replaces what another model wrote of the clip; a person's captions stay.

    Raises:
        UsageError: the captioner is not where the configuration says, or a number is out of range.
    """
    options = config.captions
    if options.model is None:
        return False
    if config.scorers != "full":
        console.say(f"captions.model={options.model} is not used: it belongs to scorers=full")
        return False
    check(options)
    captioner.place(options.model)
    asked = languages(options)
    # one's own instruction may ask for any language: one caption of this model is then enough
    known = ["en", "zh"] if options.prompt else asked
    wanted = catalog.query(
        WANTED,
        {
            "profile": config.profile,
            "model": options.model,
            "languages": known,
            "enough": len(asked),
        },
    )
    by_file: dict[Source, list[dict]] = {}
    for row in wanted:
        by_file.setdefault(emit.source_of(row), []).append(row)
    jobs = [Job(source, tuple(rows), config) for source, rows in by_file.items()]
    added, silent = False, 0
    with console.bars() as bars:
        task = bars.add_task("captions", total=len(wanted), unit="clips", note="")
        for event in engine.run(
            write, jobs, workers=1, timeout_s=config.timeout_s * SILENCE, setup=analyse.prepare
        ):  # one worker: it holds the model
            if event.value is not None:
                bars.advance(task)
                silent += not event.value
            if event.value:
                catalog.update({"captions": event.value})
                added = True
            if event.error:
                console.say(f"{event.job.source.name} has no caption: {event.error}")
    if silent:
        console.say(f"{options.model} said nothing of {silent} of {len(wanted)} clips")
    return added


def check(options: Captions) -> None:
    """Refuses numbers that no captioner can work with."""
    for name in ("fps", "frames", "tokens"):
        if not getattr(options, name) > 0:
            raise UsageError(f"captions.{name}={getattr(options, name)}: must be more than 0")


def languages(options: Captions) -> list[str]:
    """The languages that the captioner is asked for: one, where a person wrote the instruction."""
    both = options.write == "both" and not options.prompt
    return ["en", "zh"] if both else ["en" if options.write == "both" else options.write]


def write(job: Job) -> Iterator[list[dict] | None]:
    """Yields the rows of `captions` of each clip of one file; None as a sign of life.

    A clip of which the model says nothing has no rows.
    """
    config = job.config
    options = config.captions
    captioner.load(options.model)  # before anything is decoded: it may not be there
    with sources.local(job.source, analyse.fetched(config)) as path:
        probe = video.probe(path, config.max_pixels)
        walk = video.frames(path, probe, max_pixels=config.max_pixels)
        for clip, frames, fps in seen(walk, job.clips, options.fps, options.frames):
            if clip is None:
                yield None
                continue
            detected = " / ".join(lines(frames)) if clip["text_area"] else ""
            rows = []
            for language in languages(options):
                prompt = captioner.instruction(language, detected, len(frames) == 1, options.prompt)
                said = captioner.caption(frames, options.model, prompt, options.tokens, fps)
                if said:
                    rows.append(
                        {
                            "clip_id": clip["clip_id"],
                            "source": "model",
                            "model": options.model,
                            "language": captions.language_of(said) if options.prompt else language,
                            "text": said,
                        }
                    )
            yield rows


def lines(frames: np.ndarray) -> list[str]:
    """What stands written in a few of the frames, uint8 [k, H, W, 3], each line once."""
    chosen = np.unique(np.linspace(0, len(frames) - 1, OCR_FRAMES).round().astype(int))
    return list(dict.fromkeys(line for i in chosen for line in reading.read(frames[i])))


def seen(
    walk: Iterator[video.Frame], clips: tuple[dict, ...], fps: float, most: int
) -> Iterator[tuple[dict | None, np.ndarray | None, float]]:
    """What the captioner sees of each clip, without black borders, in one walk over the file.

    Clips may overlap. Only the pictures of the clips under way are held, at most `most` a clip.

    Yields:
        (clip, RGB uint8 [k, H, W, 3], their rate), or (None, None, 0) once a second of video.
    """
    wanted: dict[int, list[int]] = defaultdict(list)
    ends: dict[int, list[int]] = defaultdict(list)
    rates, pictures = [], []
    for number, clip in enumerate(clips):
        count = clip["end_frame"] - clip["start_frame"]
        times = np.linspace(clip["start_s"], clip["end_s"], count, endpoint=False)
        indices, rate = captioner.sample(times, fps, most)
        rates.append(rate)
        pictures.append([])
        ends[clip["end_frame"] - 1].append(number)
        for index in indices:
            wanted[clip["start_frame"] + int(index)].append(number)
    second = 0
    last = max(ends)
    for frame in walk:
        if numbers := wanted.get(frame.index):
            picture = frame.picture.detail(frame.raw)
            for number in numbers:
                clip = clips[number]
                box = [clip[f"crop_{side}"] for side in "xywh"]
                pictures[number].append(inside(picture, box, picture.shape[1] / clip["width"]))
        for number in ends.get(frame.index, ()):
            stacked, pictures[number] = np.stack(pictures[number]), []
            yield clips[number], stacked, rates[number]
            del stacked
        if frame.index == last:
            return  # the rest of the file is nobody's
        if frame.time_s >= second:
            second += 1
            yield None, None, 0.0
