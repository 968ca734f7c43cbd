"""An index of samples that lie nowhere: for what is planned before anything is read."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from training.index import MEDIA, Index


def index(
    count: int | None = None,
    *,
    sizes: Sequence[tuple[int, int]] = ((64, 64),),
    frames: Sequence[float] = (9,),
    weight: Sequence[float] = (1.0,),
    media: Sequence[str] = ("mp4",),
    captioned: Sequence[bool] = (True,),
) -> Index:
    """Rows `k0`, `k1`, …; each column's values are taken in turn.

    Args:
        frames: at 16 a second; of an image 1.
    """
    count = max(map(len, (sizes, frames, weight, media, captioned))) if count is None else count
    at = np.arange(count)

    def column(values: Sequence, kind: type) -> np.ndarray:
        return np.array(values, kind)[at % len(values)]

    kinds = column([MEDIA.index(one) for one in media], np.int8)
    lengths = column(frames, np.float32)
    shape = np.array(sizes, np.int32)[at % len(sizes)]
    return Index(
        sources=["somewhere"],
        places=["somewhere/00000.tar"],
        keys=pa.chunked_array([[f"k{k}" for k in range(count)]], pa.large_string()),
        source=np.zeros(count, np.int16),
        place=np.zeros(count, np.int32),
        start=at * 1024,
        stop=at * 1024 + 1024,
        media=kinds,
        width=shape[:, 0],
        height=shape[:, 1],
        frames=lengths.astype(np.int32),
        duration=np.where(np.isin(kinds, [1, 2]), 0, lengths / 16).astype(np.float32),
        weight=column(weight, np.float32),
        captioned=column(captioned, bool),
    )
