"""Videos and images in a Hugging Face dataset, through `datasets`: from the hub or a local folder.

    source=datasets:<hub name, folder or .parquet file>[:<split>]

The column is found by its type (Video, else Image) and never decoded by `datasets`: its bytes, or
the path that it names, go the way of every other file. `datasets` keeps its own cache (HF_HOME).
"""

import functools
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from curation import captions
from curation.listing import readable, uri_of
from curation.video import VideoError
from recipes.load import UsageError

PREFIX = "datasets:"


@dataclass(frozen=True)
class Row:
    """One video or image of a dataset."""

    name: str
    uri: str  # a path or URL, or datasets:<name>:<split>#<row> where its bytes lie in the dataset
    bytes: int
    mtime_ns: int  # no time: a number that changes with the dataset
    captions: tuple[captions.Caption, ...]
    warnings: tuple[str, ...]


def rows(source: str, column: str, language: str | None = None) -> Iterator[Row]:
    """The videos or images of a dataset, in its order.

    Args:
        source: `datasets:<name or path>[:<split>]`.
        column: the caption column; one that is missing means no captions.
        language: of the captions; None: told from the text.

    Raises:
        UsageError: no such dataset or split, or no column of videos or images.
    """
    import pyarrow.compute as pc

    name, split = _names(source)
    data, media, split = load(name, split)
    version = int(hashlib.sha256(data._fingerprint.encode()).hexdigest()[:15], 16)
    cells = data.data.column(media)
    sizes = pc.binary_length(pc.struct_field(cells, "bytes")).to_pylist()
    paths = pc.struct_field(cells, "path").to_pylist()
    texts = data.data.column(column).to_pylist() if column in data.column_names else None
    root = str(Path(name).absolute())
    for row, (size, path) in enumerate(zip(sizes, paths, strict=True)):
        found, warnings = [], []
        if texts is not None:
            try:
                found = captions.column(texts[row], language)
            except ValueError as error:
                warnings.append(f"row {row}: {error}")
        own = _relative(path, root) if path else f"{split}/{row:08d}"
        uri, modified = f"{PREFIX}{name}:{split}#{row}", version
        if size is None and path:
            size = 0
            if "://" in path:
                uri = path
            elif Path(path).is_file():
                status = Path(path).stat()
                uri, size, modified = uri_of(path), status.st_size, status.st_mtime_ns
        yield Row(own, uri, size or 0, modified, tuple(found), tuple(warnings))


def content(uri: str) -> bytes:
    """The bytes in one row.

    Raises:
        VideoError: the row holds none, or the dataset is no longer there.
    """
    name, _, row = uri.removeprefix(PREFIX).rpartition("#")
    name, _, split = name.rpartition(":")
    try:
        data, media, _ = load(name, split)
    except UsageError as error:
        raise VideoError(str(error)) from None
    cell = data[int(row)][media]
    if not cell or cell["bytes"] is None:
        missing = cell and cell["path"]
        raise VideoError(f"{missing} is missing" if missing else "the dataset's row is empty")
    return cell["bytes"]


def _relative(path: str, root: str) -> str:
    """A row's path as every machine would name it: inside its dataset."""
    if path.startswith(root + "/"):
        return readable(path[len(root) + 1 :])
    if "://" in path:  # hf://datasets/<owner>/<name>@<revision>/<path>
        return readable(path.partition("@")[2].partition("/")[2] or path.partition("://")[2])
    return readable(path.rpartition("/")[2] if path.startswith("/") else path)


def _names(source: str) -> tuple[str, str | None]:
    """(name or path, split), the split None if it is not named."""
    name = source.removeprefix(PREFIX)
    if ":" in name and not Path(name).exists():
        name, _, split = name.rpartition(":")
        return _path(name), split
    return _path(name), None


def _path(name: str) -> str:
    # absolute, so that a worker finds it from any folder
    return str(Path(name).expanduser().absolute()) if Path(name).expanduser().exists() else name


@functools.lru_cache(maxsize=4)
def load(name: str, split: str | None):
    """The dataset, undecoded; its column of videos or images; and the name of its split."""
    import datasets

    where = f"source={PREFIX}{name}"
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        if Path(name, "state.json").is_file() or Path(name, "dataset_dict.json").is_file():
            data = datasets.load_from_disk(name)
        elif Path(name).is_file():
            kind = {".jsonl": "json", ".arrow": "arrow"}.get(
                Path(name).suffix, Path(name).suffix[1:]
            )
            data = datasets.load_dataset(kind, data_files=name)
        else:
            data = datasets.load_dataset(name)
    except Exception as error:  # connection, layout, format: `datasets` has many
        reason = " ".join(str(error).split())[:300]
        raise UsageError(
            f"{where}: cannot be loaded: {reason} (datasets:<folder, .parquet file or hub name>)"
        ) from None
    parts = dict(data) if isinstance(data, dict) else {str(data.split or split or "train"): data}
    chosen = split or ("train" if "train" in parts or len(parts) > 1 else next(iter(parts)))
    if chosen not in parts:
        raise UsageError(f"{where}: no split {chosen!r} among {', '.join(parts)}; name one")
    data = parts[chosen]
    for kind in (datasets.Video, datasets.Image):
        for media, feature in data.features.items():
            if isinstance(feature, kind):
                return data.cast_column(media, kind(decode=False)), media, chosen
    types = ", ".join(f"{n} ({type(f).__name__})" for n, f in data.features.items())
    raise UsageError(f"{where}: no column of type Video or Image among {types}")
