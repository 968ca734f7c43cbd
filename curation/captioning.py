"""The caption step of `scorers=full`: clips that were kept get a caption from a VLM.

It runs after selection, since a captioner costs more than everything before it, and only over clips
that the same model has not described yet; selection is then run again.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from curation import analyse, captioner, captions, console, emit, engine, sources, text, video
from curation.catalog import Catalog
from curation.sources import Source
from recipes.schema import Curation

OCR_FRAMES = 3  # of a clip, whose text the prompt quotes
WANTED = """
    SELECT c.clip_id, c.start_frame, c.end_frame, c.start_s, c.end_s, b.text_area,
        v.name, v.uri, v.bytes AS file_bytes, v.mtime_ns, v.is_image
    FROM decisions d JOIN clips c USING (clip_id) JOIN videos v USING (video_id)
    LEFT JOIN basic b USING (clip_id)
    WHERE d.profile = $profile AND (d.kept OR d.reason = 'require_caption') AND NOT EXISTS
        (FROM captions p WHERE p.clip_id = c.clip_id AND p.model = $model)
    ORDER BY v.uri, c.start_frame
"""


@dataclass(frozen=True)
class Job:
    """The clips of one file that want a caption."""

    source: Source
    clips: tuple[dict, ...]
    config: Curation


def describe(catalog: Catalog, config: Curation) -> bool:
    """Captions what the profile keeps, or would keep had it a caption; whether any was added."""
    model = config.captions.model
    if config.scorers != "full" or model is None:
        return False
    wanted = catalog.query(WANTED, {"profile": config.profile, "model": model})
    by_file: dict[Source, list[dict]] = {}
    for row in wanted:
        by_file.setdefault(emit.source_of(row), []).append(row)
    jobs = [Job(source, tuple(rows), config) for source, rows in by_file.items()]
    added = False
    with console.bars() as bars:
        task = bars.add_task("captions", total=len(wanted), unit="clips", note="")
        for event in engine.run(
            write, jobs, workers=1, timeout_s=config.timeout_s * 10, setup=analyse.prepare
        ):  # one worker: it holds the model
            if event.value:
                catalog.update({"captions": event.value})
                bars.advance(task)
                added = True
            if event.error:
                console.say(f"{event.job.source.name} has no caption: {event.error}")
    return added


def write(job: Job) -> Iterator[list[dict] | None]:
    """Yields the rows of `captions` of each clip of one file; None as a sign of life."""
    config = job.config
    options = config.captions
    languages = ("en", "zh") if options.write == "both" else (options.write,)
    with sources.local(job.source, analyse.fetched(config)) as path:
        probe = video.probe(path, config.max_pixels)
        for clip, frames, fps in seen(path, probe, job.clips, options.fps, options.frames):
            if clip is None:
                yield None
                continue
            detected = ""
            if clip["text_area"]:
                chosen = frames[np.linspace(0, len(frames) - 1, OCR_FRAMES).astype(int)]
                detected = " / ".join(dict.fromkeys(t for f in chosen for t in text.read(f)))
            rows = []
            for language in languages:
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


def seen(path, probe: video.Probe, clips: tuple[dict, ...], fps: float, most: int):
    """What the captioner sees of each clip, in one pass over the file.

    Yields:
        (clip, RGB uint8 [k, H, W, 3], their rate), or (None, None, 0) once a second of video.
    """
    wanted: dict[int, list[int]] = {}
    rates, frames = [], []
    for number, clip in enumerate(clips):
        count = clip["end_frame"] - clip["start_frame"]
        times = np.linspace(clip["start_s"], clip["end_s"], count, endpoint=False)
        indices, rate = captioner.sample(times, fps, most)
        rates.append(rate)
        frames.append([])
        for index in indices:
            wanted.setdefault(clip["start_frame"] + int(index), []).append(number)
    second = 0
    for frame in video.frames(path, probe):
        for number in wanted.pop(frame.index, ()):
            frames[number].append(frame.picture.detail(frame.raw))
        for number, clip in enumerate(clips):
            if frame.index == clip["end_frame"] - 1 and frames[number]:
                yield clip, np.stack(frames[number]), rates[number]
                frames[number] = []
        if frame.time_s >= second:
            second += 1
            yield None, None, 0.0
