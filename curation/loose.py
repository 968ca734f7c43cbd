"""Clips cut aside, one file each, before a shard packs them: so that all cores cut one shard.

A clip is there when its `.json` is, which is written last. What a killed run left is used again.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from curation.layout import TEMPORARY
from curation.media import Donor, Fetch, Made, cut_hash, media
from curation.record import Sample, json_bytes
from recipes.schema import Shards


@dataclass
class Loose:
    """What lies in a folder of loose clips."""

    clips: dict[str, Donor] = field(default_factory=dict)  # hash of a cut → its bytes
    failed: dict[str, str] = field(default_factory=dict)  # clip_id → why it can't be cut

    @property
    def ids(self) -> set[str]:
        return {donor.row["clip_id"] for donor in self.clips.values()} | self.failed.keys()


def cut_loose(
    samples: Iterable[Sample], settings: Shards, folder: Path, fetch: Fetch
) -> Iterator[bool]:
    """Cuts the clips of one source into a folder.

    Yields:
        True for each clip that is there now, or never will be; False as a sign of life.
    """
    samples = list(samples)
    scratch = folder / f"{TEMPORARY}{samples[0].clip_id}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    for made in media(samples, settings, scratch, fetch, {}, {}):
        if made is not None:
            _keep(made, cut_hash(made.sample, settings), folder, scratch)
        yield made is not None
    shutil.rmtree(scratch)


def _keep(made: Made, name: str, folder: Path, scratch: Path) -> None:
    row = {"clip_id": made.sample.clip_id, "error": made.error}
    if made.data is not None:
        row |= made.facts | {
            "path": None,
            "media": made.suffix,
            "offset": 0,
            "bytes": len(made.data),
            "sha256": hashlib.sha256(made.data).hexdigest(),
        }
        (scratch / name).write_bytes(made.data)
        os.replace(scratch / name, folder / name)
    (scratch / "row").write_bytes(json_bytes(row))
    os.replace(scratch / "row", folder / f"{name}.json")


def loose(folder: Path) -> Loose:
    """Everything that has been cut into a folder."""
    found = Loose()
    for path in sorted(folder.glob("*.json")):
        row = json.loads(path.read_bytes())
        if row["error"] is None:
            found.clips[path.stem] = Donor(path.with_suffix(""), row)
        else:
            found.failed[row["clip_id"]] = row["error"]
    return found
