"""CLIP's embedding, the aesthetic and the quality head, with a small model made here."""

import json
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from curation import semantics
from curation.scorer import REGISTRY, score
from recipes.load import UsageError
from recipes.schema import Weights
from tests.planted import clip_of, real_clips
from tests.tiny_clip import CONFIG, SIZE


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of open_clip's in a local folder, at random."""
    import open_clip

    path = tmp_path_factory.mktemp("models") / "small"
    path.mkdir()
    (path / "open_clip_config.json").write_text(json.dumps(CONFIG))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{path}", load_weights=False)
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()},
        path / "open_clip_model.safetensors",
    )
    return path


@pytest.fixture(scope="module")
def layers():
    """The widths of the public five-layer head after its input, scaled so that ratings vary."""
    torch.manual_seed(1)
    widths = [SIZE, 1024, 128, 64, 16, 1]
    head = torch.nn.Sequential(*(torch.nn.Linear(a, b) for a, b in pairwise(widths)))
    with torch.no_grad():
        head[-1].weight *= 30
        head[-1].bias += 5
    return head


@pytest.fixture(scope="module")
def heads(tmp_path_factory, folder, layers):
    path = tmp_path_factory.mktemp("heads")
    # The public file counts the dropouts between its layers: 0, 2, 4, 6, 7.
    places = (0, 2, 4, 6, 7)
    five = {}
    for place, layer in zip(places, layers, strict=True):
        five[f"layers.{place}.weight"], five[f"layers.{place}.bias"] = layer.weight, layer.bias
    five = {name: value.detach().clone() for name, value in five.items()}
    torch.save(five, path / "five.pth")
    save_file(five, path / "five.safetensors")
    torch.manual_seed(2)
    linear = torch.nn.Linear(SIZE, 1)
    with torch.no_grad():
        linear.bias += 4
    torch.save(linear.state_dict(), path / "linear.pth")
    rng = np.random.default_rng(0)
    quality = [
        (rng.normal(size=(8, SIZE)), rng.normal(size=8)),
        (rng.normal(size=(1, 8)), rng.normal(size=1)),
    ]
    name = semantics.embedding_name(str(folder))
    semantics.write_quality_head(path / "quality.safetensors", quality, name)
    return path


@pytest.fixture(scope="module")
def weights(folder, heads):
    return Weights(str(folder), str(heads / "five.pth"), str(heads / "quality.safetensors"))


def clip(weights: Weights, index: int = 0):
    real = real_clips()[index]
    made = clip_of(real.frames, real.fps)
    made.weights = weights
    return made


def reference(folder, images) -> torch.Tensor:
    """open_clip's own way, one picture at a time."""
    import open_clip

    model, prepare = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    model.eval()
    with torch.inference_mode():
        found = [model.encode_image(prepare(Image.fromarray(i))[None])[0] for i in images]
    return torch.stack([f / f.norm() for f in found])


def full() -> list:
    steps = ("visual", "embeddings")
    return [s for s in REGISTRY.values() if s.step in steps and s.sets == ("full",)]


def test_embeddings_are_open_clips_own(folder, weights):
    made = clip(weights)
    expected = reference(folder, made.rgb)
    assert semantics.embed(list(made.rgb), str(folder)) == pytest.approx(expected.numpy(), abs=1e-5)
    mean = expected.mean(0)
    row = semantics.meaning(made)
    assert row["vector"] == pytest.approx((mean / mean.norm()).numpy(), abs=1e-5)
    assert row["model"] == "open_clip:small"


def test_more_pictures_than_a_batch_change_nothing(folder, monkeypatch):
    images = [real.frames[0] for real in real_clips()]
    whole = semantics.embed(images, str(folder))
    monkeypatch.setattr(semantics, "BATCH", 4)
    assert semantics.embed(images, str(folder)) == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize("name", ["five.pth", "five.safetensors"])
def test_the_five_layer_aesthetic_head_rates_as_its_own_module_does(
    folder, heads, layers, weights, name
):
    ratings = []
    for index in (0, 4, 7, 10):
        made = clip(Weights(str(folder), str(heads / name), "off"), index)
        with torch.inference_mode():
            expected = layers(reference(folder, made.rgb)).mean().clamp(1, 10).item()
        ratings.append(semantics.aesthetic(made)["aesthetic"])
        assert ratings[-1] == pytest.approx(expected, abs=1e-4)
    assert len({round(r, 3) for r in ratings}) == 4


def test_the_linear_aesthetic_head_rates_as_its_own_module_does(folder, heads):
    made = clip(Weights(str(folder), str(heads / "linear.pth"), "off"))
    linear = torch.nn.Linear(SIZE, 1)
    linear.load_state_dict(torch.load(heads / "linear.pth", weights_only=True))
    with torch.inference_mode():
        expected = linear(reference(folder, made.rgb)).mean().item()
    assert semantics.aesthetic(made)["aesthetic"] == pytest.approx(expected, abs=1e-4)


def test_quality_is_the_heads_mlp_over_the_clips_vector(weights):
    from safetensors.torch import load_file

    made = clip(weights)
    file = load_file(weights.quality)
    x = torch.from_numpy(semantics.meaning(made)["vector"])
    x = torch.relu(file["layers.0.weight"] @ x + file["layers.0.bias"])
    expected = torch.sigmoid(file["layers.1.weight"] @ x + file["layers.1.bias"]).item()
    assert semantics.quality(made)["quality"] == pytest.approx(expected, abs=1e-5)


def test_one_forward_pass_serves_all_three_scores(weights, monkeypatch):
    passes = []
    embed = semantics.embed

    def counted(images, clip_weights):
        passes.append(len(images))
        return embed(images, clip_weights)

    monkeypatch.setattr(semantics, "embed", counted)
    made = clip(weights)
    rows = score(made, full())
    assert passes == [len(made.rgb)]
    assert 1 <= rows["visual"]["aesthetic"] <= 10
    assert 0 < rows["visual"]["quality"] < 1
    assert np.linalg.norm(rows["embeddings"]["vector"]) == pytest.approx(1, abs=1e-5)
    assert rows["embeddings"]["vector"].dtype == np.float32


def test_black_borders_are_left_out(weights):
    frames = real_clips()[7].frames[:1]
    bordered = clip_of(np.pad(frames, ((0, 0), (40, 40), (0, 0), (0, 0))), 1)
    bordered.weights = weights
    bordered.scores["border_box"] = [0, 40, frames.shape[2], frames.shape[1]]
    plain = clip_of(frames, 1)
    plain.weights = weights
    assert semantics.meaning(bordered)["vector"] == pytest.approx(
        semantics.meaning(plain)["vector"], abs=1e-5
    )


def test_off_leaves_the_columns_null(folder):
    weights = Weights(str(folder), "off", "off")
    semantics.check(weights)
    rows = score(clip(weights), full())
    assert rows["visual"]["aesthetic"] is None
    assert rows["visual"]["quality"] is None


def test_what_is_there_passes_the_check(weights):
    semantics.check(weights)


def wrong(folder, heads, tmp_path) -> dict[str, tuple[Weights, str]]:
    """A mistake, and a word that its line must hold."""
    five, quality = str(heads / "five.pth"), str(heads / "quality.safetensors")
    empty = tmp_path / "empty"
    empty.mkdir()
    alien = tmp_path / "alien.safetensors"
    save_file({"layers.0.weight": torch.ones(1, 768), "layers.0.bias": torch.ones(1)}, alien)
    other = tmp_path / "other.safetensors"
    semantics.write_quality_head(other, [(np.ones((1, SIZE)), np.ones(1))], "open_clip:other")
    pickled = tmp_path / "pickled.pth"
    torch.save(torch.nn.Linear(SIZE, 1), pickled)
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "open_clip_config.json").write_text(json.dumps(CONFIG))
    (torn / "open_clip_model.safetensors").write_bytes(b"torn")
    return {
        "no aesthetic": (Weights(str(folder), None, "off"), "weights.aesthetic=FILE"),
        "no quality": (Weights(str(folder), five, None), "weights.quality=FILE"),
        "no such model": (Weights("/nowhere/model", five, quality), "no such folder or file"),
        "an empty folder": (Weights(str(empty), five, quality), "open_clip_config.json"),
        "a torn model": (Weights(str(torn), five, quality), "cannot load it"),
        "no such head": (Weights(str(folder), "/nowhere/head.pth", quality), "/nowhere/head.pth"),
        "a head of another size": (Weights(str(folder), str(alien), "off"), r"[1, 768]"),
        "a pickled module": (Weights(str(folder), str(pickled), "off"), "plain weights"),
        "not a quality head": (
            Weights(str(folder), five, str(heads / "five.safetensors")),
            "not a quality head",
        ),
        "another model's quality": (Weights(str(folder), five, str(other)), "open_clip:other"),
    }


def test_every_mistake_is_one_line_that_names_its_key(folder, heads, tmp_path):
    for mistake, (weights, word) in wrong(folder, heads, tmp_path).items():
        with pytest.raises(UsageError) as error:
            semantics.check(weights)
        line = str(error.value)
        assert word in line, mistake
        assert "\n" not in line, mistake
        assert line.startswith("weights."), mistake


def test_light_scorers_do_not_load_pytorch():
    code = "import sys, curation.visual; print('torch' in sys.modules, 'PIL' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
