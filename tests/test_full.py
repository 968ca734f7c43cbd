"""`scorers=full` end to end, with small random models in place of the published ones."""

import cv2
import numpy as np
import pytest

from curation import engine, run, semantics, synthetic
from curation.catalog import Catalog
from recipes.load import load, main
from recipes.schema import Curation, Synthetic
from tests import tiny_clip
from tests.running import alone

cv2.setNumThreads(1)
AESTHETIC, QUALITY = tiny_clip.linear(1, 5.0), tiny_clip.linear(2, 0.0)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """One video, a model and its heads."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "raw").mkdir()
    scene = synthetic.shapes(0, Synthetic(size=96, frames=16))
    synthetic.encode(scene.frames, folder / "raw" / "x.mp4")
    (folder / "raw" / "x.txt").write_text("a shape")
    clip = tiny_clip.model(folder / "small")
    tiny_clip.aesthetic_head(folder / "aesthetic.pth", AESTHETIC)
    name = semantics.embedding_name(str(clip))
    semantics.write_quality_head(folder / "quality.safetensors", [QUALITY], name)
    return folder


def arguments(folder, out, **weights) -> list[str]:
    """The command's; a weight that is None is not given."""
    given = {
        "clip": folder / "small",
        "aesthetic": folder / "aesthetic.pth",
        "quality": folder / "quality.safetensors",
        **weights,
    }
    keys = [f"weights.{name}={where}" for name, where in given.items() if where is not None]
    return [
        f"source={folder / 'raw'}",
        f"out={out}",
        *("profile=tiny", "scorers=full", "skip=text_area,nsfw", "workers=1", *keys),
    ]


@pytest.mark.parametrize(
    "at_work", ["this process", pytest.param("a worker", marks=pytest.mark.slow)]
)
def test_a_full_run_fills_quality_and_aesthetic_from_the_models_that_it_names(
    world, tmp_path, monkeypatch, at_work
):
    if at_work == "this process":
        monkeypatch.setattr(engine, "run", alone)
    assert run.curate(load(Curation, arguments(world, tmp_path))) == 0
    with Catalog(tmp_path) as catalog:
        (row,) = catalog.query(
            "SELECT v.aesthetic, v.quality, v.versions, e.model, e.vector, d.kept "
            "FROM visual v JOIN embeddings e USING (clip_id) JOIN decisions d USING (clip_id)"
        )
        (shard,) = catalog.query("FROM shards")
    assert row["model"] == "open_clip:small"
    assert {"aesthetic", "quality"} <= row["versions"].keys()
    vector = np.array(row["vector"])
    assert vector.shape == (tiny_clip.SIZE,)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    # the quality head sees the very vector that the catalog holds
    weight, bias = QUALITY
    assert row["quality"] == pytest.approx(1 / (1 + np.exp(-(weight @ vector + bias)[0])), abs=1e-5)
    # the aesthetic head is affine: its mean over the samples is near its value at their mean
    weight, bias = AESTHETIC
    assert row["aesthetic"] == pytest.approx((weight @ vector + bias)[0], abs=0.5)
    assert row["aesthetic"] != pytest.approx(bias[0], abs=1e-3)
    assert row["kept"]
    assert shard["split"] in ("train", "val")
    assert (tmp_path / "report.html").is_file()


@pytest.mark.parametrize(
    ("weights", "place"),
    [
        ({"aesthetic": None}, "weights.aesthetic=FILE"),
        pytest.param({"quality": None}, "weights.quality=FILE", marks=pytest.mark.slow),
        pytest.param(
            {"clip": "/nowhere/clip"}, "put open_clip's ViT-L/14 there", marks=pytest.mark.slow
        ),
    ],
)
def test_a_missing_weight_ends_the_run_with_one_line_and_exit_status_2(
    world, tmp_path, capsys, weights, place
):
    keys = [*arguments(world, tmp_path, **weights), "steps=visual"]
    assert main(Curation, run.curate, keys) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    (name,) = weights
    assert f"weights.{name}" in line
    assert place in line
