"""Each sample's media: cut from its source, or copied from a shard that was written before."""

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from curation import encode
from curation.buckets import bucket_size
from curation.cut import Info, Span, cut_many
from curation.record import Sample, hashed
from curation.video import VideoError
from recipes.schema import Shards

Fetch = Callable[[Any], AbstractContextManager[Path]]


@dataclass(frozen=True)
class Donor:
    """Where a clip lies that was encoded before."""

    tar: Path
    row: dict[str, Any]


@dataclass
class Made:
    """A sample's media, or why there is none."""

    sample: Sample
    data: bytes | None = None
    suffix: str = ""
    facts: dict[str, Any] = field(default_factory=dict)  # the columns of `Info`
    error: str | None = None


def media(
    samples: Iterable[Sample],
    settings: Shards,
    scratch: Path,
    fetch: Fetch,
    donors: dict[str, Donor],
    broken: dict[str, str],
) -> Iterator[Made | None]:
    """Each sample's media, in order, and None as a sign of life.

    Clips of one source are neighbours, since its id leads theirs, and are cut in one pass.
    """
    for _, group in itertools.groupby(samples, key=lambda sample: sample.source_path):
        some = list(group)
        copied = {one.clip_id: donors.get(cut_hash(one, settings)) for one in some}
        todo = [one for one in some if not (one.clip_id in broken or copied[one.clip_id])]
        cuts, ready = _cuts(todo, settings, scratch, fetch), {}
        for one in some:
            made = None
            if one.clip_id in broken:
                made = Made(one, error=broken[one.clip_id])
            elif copied[one.clip_id]:
                made = _copy(one, copied[one.clip_id])
                if made is None:  # the older shard is no longer what its index says
                    cuts = itertools.chain(_cuts([one], settings, scratch, fetch), cuts)
            while made is None and one.clip_id not in ready:
                found = next(cuts)
                if found is None:
                    yield None
                else:
                    ready[found.sample.clip_id] = found
            yield made or ready.pop(one.clip_id)


def _copy(sample: Sample, donor: Donor) -> Made | None:
    row = donor.row
    with contextlib.suppress(OSError), donor.tar.open("rb") as file:
        file.seek(row["offset"])
        data = file.read(row["bytes"])
        if hashlib.sha256(data).hexdigest() == row["sha256"]:
            return Made(sample, data, row["media"], row)
    return None


def _cuts(
    samples: list[Sample], settings: Shards, scratch: Path, fetch: Fetch
) -> Iterator[Made | None]:
    """Cuts clips of one source, each exactly once, as they are finished; None: still at work."""
    todo: dict[str, tuple[Sample, Span]] = {}
    for one in samples:
        try:
            size = bucket_size(one.bucket) if settings.size == "bucket" else None
        except ValueError as error:
            yield Made(one, error=str(error))
            continue
        out = scratch / f"{one.clip_id}.mp4"
        span = Span(one.start_s, one.end_s, out, one.crop, size, one.frames)
        todo[one.clip_id] = (one, span)
    if not todo:
        return
    order = list(todo.values())
    spans = [span for _, span in order]
    try:
        with fetch(samples[0].source_path) as path:
            for result in cut_many(path, spans, crf=settings.crf, preset=settings.preset):
                yield result and _made(order[result[0]][0], result[1])
                if result:
                    del todo[order[result[0]][0].clip_id]
    except VideoError as error:  # the source is gone, or can't be read at all
        for one, _ in todo.values():
            yield Made(one, error=str(error))


def _made(sample: Sample, found: Info | VideoError) -> Made:
    if isinstance(found, VideoError):
        return Made(sample, error=str(found))
    data = found.path.read_bytes()
    found.path.unlink()
    return Made(sample, data, found.path.suffix[1:], asdict(found))


def cut_hash(sample: Sample, settings: Shards) -> str:
    """What decides the bytes of a clip; its id holds the hash of the source's."""
    size = sample.bucket if settings.size == "bucket" else "source"
    how = () if sample.is_image else (settings.crf, settings.preset)
    what = (sample.clip_id, sample.start_s, sample.end_s, sample.crop)
    return hashed([encode.VERSION, size, how, what])
