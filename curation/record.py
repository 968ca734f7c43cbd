"""One sample of a shard: what is known of a clip, and how its JSON lays it out.

Beside our own names the JSON has those that readers of cosmos-curate's and of video2dataset's
output look for, so that their loaders find what they need.
"""

import hashlib
import json
import math
import re
import uuid
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Sample:
    """One clip that goes into a shard.

    `source_path` says where the file is now and leaves no trace in the shard; `name` does.
    """

    clip_id: str
    source_path: Any  # a local path, or what `write_shard`'s fetch turns into one
    start_s: float
    end_s: float
    crop: tuple[int, int, int, int] | None = None  # x, y, width, height, source pixels
    is_image: bool = False
    captions: tuple[dict[str, Any], ...] = ()  # text, language, source, model; the first leads
    name: str = ""  # of the source, relative to its root
    uri: str = ""  # of the source; kept only if remote, for a local path is nobody else's business
    start_frame: int = 0
    end_frame: int = 0  # exclusive; 0: unknown
    width: int | None = None  # of the source
    height: int | None = None
    fps: float | None = None
    scores: dict[str, Any] = field(default_factory=dict)
    tier: str | None = None
    sampling_weight: float = 1.0
    bucket: str = ""
    split: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)  # whatever else; ours wins

    @property
    def frames(self) -> int | None:
        return None if self.is_image else self.end_frame - self.start_frame or None

    @property
    def caption(self) -> str:
        """The first caption; empty where there is none."""
        text = self.captions[0]["text"] if self.captions else ""
        return text.encode("utf-8", "replace").decode()

    @property
    def url(self) -> str:
        text = self.uri if "://" in self.uri and not self.uri.startswith("file:") else self.name
        return text.encode("utf-8", "replace").decode()


def plain(sample: Sample) -> dict[str, Any]:
    """Everything of a sample that its shard depends on."""
    names = [one.name for one in fields(sample) if one.name not in ("source_path", "uri")]
    return {name: getattr(sample, name) for name in names} | {"url": sample.url}


def record(sample: Sample, row: dict[str, Any]) -> dict[str, Any]:
    """The JSON of one sample.

    Args:
        row: of the shard's index: what was really cut (see `curation.shards.INDEX`).
    """
    media = f"{sample.clip_id}.{row['media']}"
    scores = sample.scores
    return {
        **sample.metadata,
        "clip_id": sample.clip_id,
        "source": sample.name,
        "span": [sample.start_s, sample.end_s],
        "span_frames": [sample.start_frame, sample.end_frame],
        "crop": row["crop"],
        "is_image": sample.is_image,
        **{name: row[name] for name in ("width", "height", "frames", "fps", "duration_s")},
        "sha256": row["sha256"],
        "captions": list(sample.captions),
        "scores": scores,
        "tier": sample.tier,
        "sampling_weight": sample.sampling_weight,
        "bucket": sample.bucket,
        "split": sample.split,
        # video2dataset
        "url": sample.url,
        "key": sample.clip_id,
        "caption": sample.caption,
        "status": "success",
        "error_message": None,
        # cosmos-curate
        "span_uuid": str(uuid.uuid5(uuid.NAMESPACE_OID, sample.clip_id)),
        "source_video": sample.url,
        "duration_span": [sample.start_s, sample.end_s],
        "width_source": sample.width,
        "height_source": sample.height,
        "framerate_source": sample.fps,
        "clip_location": media,
        # our own measure of motion, in short sides a second: theirs comes from codec vectors
        "motion_score": {"global_mean": scores.get("flow_mean"), "per_patch_min_256": None},
        "aesthetic_score": scores.get("aesthetic"),
        "errors": [],
        "windows": _windows(sample, row["frames"]),
        "valid": True,
    }


def _windows(sample: Sample, frames: int) -> list[dict[str, Any]]:
    """One window, the whole clip, its last frame included; one `<model>_caption` a caption."""
    window: dict[str, Any] = {"start_frame": 0, "end_frame": frames - 1}
    for caption in sample.captions:
        author = caption.get("model") or caption.get("source") or "unknown"
        name = re.sub(r"[^a-z0-9]+", "_", str(author).lower()).strip("_") or "unknown"
        names = [name, f"{name}_{caption.get('language')}"]
        names += [f"{names[1]}_{number}" for number in range(2, len(sample.captions) + 2)]
        free = next(one for one in names if f"{one}_caption" not in window)
        window[f"{free}_caption"] = caption["text"]
    return [window]


def json_bytes(value: Any, indent: int | None = None) -> bytes:
    """JSON whose bytes depend on the value alone; what is not a number becomes null."""
    text = json.dumps(
        _finite(value), sort_keys=True, ensure_ascii=False, allow_nan=False, indent=indent
    )
    # a file name that is no Unicode holds lone surrogates, which JSON can write only escaped
    return text.encode("utf-8", "backslashreplace")


def hashed(value: Any) -> str:
    """SHA-256 of a value's JSON, hex."""
    return hashlib.sha256(json_bytes(value)).hexdigest()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    if hasattr(value, "tolist"):  # NumPy's
        return _finite(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
