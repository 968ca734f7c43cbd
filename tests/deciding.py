"""Deciding a made-up catalog: videos of one clip each, thresholds as keywords."""

import numpy as np

from curation import selection
from curation.catalog import Catalog
from recipes.schema import Curation, Select
from tests import rows


def select(catalog: Catalog, profile: str = "tiny", **keys) -> selection.Funnel:
    keys = {"duplicate_similarity": None, "require_caption": False} | keys
    return selection.select(catalog, Curation(profile=profile, select=Select(**keys)))


def decided(catalog: Catalog, column: str = "reason", profile: str = "tiny") -> dict[str, object]:
    """First letters of the clip_id, up to the dash → what was decided."""
    found = catalog.query(
        f"SELECT clip_id, {column} AS x FROM decisions WHERE profile = ?", [profile]
    )
    return {row["clip_id"].split("-")[0]: row["x"] for row in found}


def near(base: np.ndarray, cosine: float, seed: str) -> np.ndarray:
    """A unit vector at that cosine from a unit vector."""
    other = rows.vector(seed)
    other = other - (other @ base) * base
    other /= np.linalg.norm(other)
    return (cosine * base + np.sqrt(1 - cosine**2) * other).astype(np.float32)


def clip(
    name: str, vector: np.ndarray | None = None, size: tuple[int, int] = (1280, 720), **scores
):
    """A video of one clip."""
    one = rows.batch(name, clips=1, **scores)
    one["clips"][0] |= {"crop_w": size[0], "crop_h": size[1]}
    if vector is not None:
        one["embeddings"][0]["vector"] = vector
    return one
