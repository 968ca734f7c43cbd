"""The whole configuration as one dataclass tree: every key, its default, type and meaning.

YAML files and `key=value` arguments may only name what stands here; `recipes.load` reads them.
A key's type is its annotation, so a typo or a wrong type is refused before any work begins.
"""

from dataclasses import dataclass, field
from typing import Any


def key(default: Any, meaning: str, choices: tuple[str, ...] = ()) -> Any:
    """One key of the tree: its default, its meaning, and, for text, the values it may take."""
    metadata = {"help": meaning, "choices": choices}
    if isinstance(default, (list, dict)):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def section(node: type) -> Any:
    """A nested group of keys."""
    return field(default_factory=node)


STEPS = ("basic", "visual", "motion", "select", "caption", "shards", "report")
PROFILES = ("192p", "480p", "720p", "sft", "tiny")
LANGUAGES = ("en", "zh", "both")


@dataclass
class Split:
    """How a video becomes clips."""

    detector: str = key(
        "adaptive",
        "what finds the cuts",
        choices=("adaptive", "content", "histogram", "transnetv2", "none"),
    )
    threshold: float | None = key(
        None, "the detector's own threshold (adaptive 3, content 27, …); null: its default"
    )
    fade_threshold: float = key(
        12.0, "mean grey level (0–255) under which a frame is faded out; 0 finds no fades"
    )
    flash_frames: int = key(2, "a flash of so many frames or fewer is not a cut")
    guard_frames: int = key(1, "frames left out on either side of a cut")
    min_s: float = key(0.5, "a shorter shot gets no row")
    window_s: float = key(10.0, "a longer shot is windowed into clips of this length")


@dataclass
class Synthetic:
    """Rendered sources: `source=synthetic:shapes` and `source=synthetic:text`."""

    count: int = key(48, "how many videos")
    seed: int = key(0, "the same seed renders the same videos, byte for byte")
    language: str = key("both", "captions and written text", choices=LANGUAGES)
    exclude: list[str] = key(
        [], "combinations held out, as color-shape-direction, e.g. red-circle-left"
    )
    size: int = key(256, "width and height in pixels, a multiple of 16")
    frames: int = key(81, "frames at 16 fps")
    objects: int = key(1, "at most so many shapes in one video, 1 to 3")


@dataclass
class Select:
    """Thresholds of a profile, in the order of the funnel; null switches one off.

    `min_<score>` and `max_<score>` name columns of the catalog; a clip falls at the first one it
    fails, and that name is its reason. A score that is NULL (an image's motion, a scorer that did
    not run) fails nothing.
    """

    min_duration_s: float | None = key(None, "seconds; images are exempt")
    min_short_side: float | None = key(None, "pixels, after the borders are cropped")
    max_aspect_ratio: float | None = key(None, "long side over short side")
    min_bits_per_pixel: float | None = key(None, "bits a pixel of the source's video stream")
    max_border_area: float | None = key(
        None, "black borders, share of the frame (cropped, not kept)"
    )
    min_luma_mean: float | None = key(None, "mean brightness, 0–1")
    max_luma_mean: float | None = key(None, "mean brightness, 0–1")
    max_overexposed: float | None = key(None, "share of pixels")
    max_underexposed: float | None = key(None, "share of pixels")
    min_sharpness: float | None = key(None, "0–1")
    max_text_area: float | None = key(None, "share of the frame under text")
    max_nsfw: float | None = key(None, "0–1")
    max_watermark: float | None = key(None, "0–1; the box stays in the catalog for cropping")
    max_synthetic: float | None = key(None, "0–1; screen recordings, slides, graphics")
    min_colorfulness: float | None = key(None, "0–1")
    min_contrast: float | None = key(None, "0–1")
    max_noise: float | None = key(None, "0–1")
    max_blockiness: float | None = key(None, "0–1")
    min_quality: float | None = key(None, "0–1, scorers=full")
    min_aesthetic: float | None = key(None, "1–10, scorers=full")
    max_freeze: float | None = key(None, "share of repeated frames")
    max_flicker: float | None = key(None, "0–1")
    max_shake: float | None = key(None, "0–1")
    min_flow_mean: float | None = key(None, "short sides per second")
    max_flow_peak: float | None = key(None, "short sides per second")
    tiers: dict[str, float] = key(
        {"optimal": 1.0, "medium": 1.0, "static": 0.25, "camera": 0.1, "low": 0.0, "shaky": 0.0},
        "sampling weight of each motion tier; 0 drops it (Wan report, motion quality)",
    )
    duplicate_similarity: float | None = key(
        0.95, "cosine of two clips' embeddings from which the lesser one is dropped"
    )
    cluster_quota: int | None = key(None, "at most so many clips of one cluster")
    require_caption: bool = key(True, "drop clips that have no caption")
    val_share: float = key(0.02, "share of sources (at least one) in the val split")


@dataclass
class Captions:
    """Where captions come from, besides the sidecars beside a clip (name.txt, name.json)."""

    csv: str | None = key(None, "a CSV file with a path or video column and a caption column")
    column: str = key("caption", "the CSV's, or the dataset's, caption column")
    language: str | None = key(None, "language of the CSV's captions; null: told from the text")
    model: str | None = key(
        None,
        "the captioning model of scorers=full: a folder or a hub name, any video- or image-text",
    )
    prompt: str | None = key(None, "the captioner's instruction; null: the built-in one")
    tokens: int = key(256, "most new tokens of a caption")
    write: str = key("en", "the language that the captioner writes", choices=LANGUAGES)
    fps: float = key(3.0, "frames a second that the captioner sees (Wan report)")
    frames: int = key(129, "most frames of a clip that the captioner sees (Wan report)")


@dataclass
class Weights:
    """Where the models of `scorers=full` lie: each a local folder or file, or a name on the hub."""

    clip: str = key("hf-hub:timm/vit_large_patch14_clip_224.openai", "open_clip ViT-L/14")
    aesthetic: str | None = key(
        None, "the LAION aesthetic head, .safetensors or .pth; off leaves its score NULL"
    )
    quality: str | None = key(
        None, "a trained quality head over the same embedding, .safetensors; off: NULL"
    )


@dataclass
class Shards:
    """How kept clips are written."""

    samples: int = key(1000, "samples a shard")
    size: str = key("source", "pixels of the clips", choices=("source", "bucket"))
    crf: int = key(18, "x264's constant rate factor")
    preset: str = key("veryfast", "x264's preset")


@dataclass
class Curation:
    """`python curation/run.py`: raw video → catalog, report, shards."""

    source: str = key(
        "data/samples",
        "a folder, glob, list file (.txt), remote URL, tar of videos, datasets:<name or path>, "
        "synthetic:shapes or synthetic:text",
    )
    out: str = key("data/curated", "the folder that catalog, report and shards are written to")
    profile: str = key("480p", "which set of thresholds selects", choices=PROFILES)
    scorers: str = key("light", "which set of scorers runs", choices=("light", "full"))
    skip: list[str] = key(
        [], "scorers left out, for instance text_area,nsfw; their columns are NULL"
    )
    steps: list[str] = key(list(STEPS), "which steps run", choices=STEPS)
    engine: str = key("local", "what runs the steps", choices=("local",))
    workers: int = key(0, "worker processes; 0: one a core")
    timeout_s: float = key(120.0, "a worker silent for so long is replaced, its file marked")
    retry: bool = key(False, "try files again that an earlier run could not read")
    max_pixels: int = key(7680 * 4320, "a larger frame is refused")
    sample_fps: float = key(2.0, "frames a second that the costly scorers look at")
    plan: bool = key(False, "probe, say what the run would cost, write nothing")
    split: Split = section(Split)
    synthetic: Synthetic = section(Synthetic)
    select: Select = section(Select)
    captions: Captions = section(Captions)
    weights: Weights = section(Weights)
    shards: Shards = section(Shards)
