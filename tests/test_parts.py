"""The networks that a recipe names: what they start from, widened, inflated, refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.byte_encoder import ByteEncoder, save_byte_encoder
from model.checkpoint import load_dit, load_vae, save
from model.dit import WanDiT
from model.image import ImageEncoder
from model.presets import BOTH_ENDS, PRESETS, VAES
from model.tensors import CheckpointError
from model.text import load_text_encoder
from model.vae import WanVAE
from recipes.keys import UsageError
from recipes.load import load
from recipes.training import Fit
from tests.drawn import draw
from tests.small_fit import DIT, shrink
from training import frozen
from training.parts import found, network_of, parts_of, text_encoder, widen


@pytest.fixture(autouse=True)
def small(monkeypatch) -> None:
    shrink(monkeypatch)


def config(*keys: str) -> Fit:
    return load(Fit, ["text_encoder=bytes", *keys])


def ask(dit: WanDiT, **given: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 16, 1, 4, 4, generator=generator)
    text = torch.randn(1, DIT["text_length"], DIT["text_width"], generator=generator)
    with torch.no_grad():
        return dit(latents, torch.tensor([500.0]), text, **given)


def test_a_model_that_is_given_frames_begins_as_the_one_that_was_not():
    source = draw(WanDiT(**PRESETS["tiny"]))
    wide = WanDiT(**PRESETS["tiny"] | {"in_channels": 36, "image_width": 24})
    widen(wide, source)
    told = {"condition": torch.randn(1, 20, 1, 4, 4), "image": torch.randn(1, 257, 24)}
    torch.testing.assert_close(ask(wide, **told), ask(source))
    # and learns from what it is given: neither zero blocks the gradient
    wide(
        torch.randn(1, 16, 1, 4, 4),
        torch.tensor([500.0]),
        torch.randn(1, DIT["text_length"], DIT["text_width"]),
        **told,
    ).square().mean().backward()
    assert wide.patch_embedding.weight.grad[:, 16:].abs().max() > 0
    assert wide.blocks[0].cross_attn.v_img.weight.grad.abs().max() > 0


def test_weights_in_a_public_format_are_what_it_starts_from(tmp_path):
    source = draw(WanDiT(**PRESETS["tiny"]))
    save(source, tmp_path / "dit")
    started = network_of(config("model=tiny", "trains=dit"), tmp_path / "dit")
    torch.testing.assert_close(ask(started), ask(source))
    assert all(value.requires_grad for value in started.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masks", ["0", "1"])  # as it is, and widened
def test_what_is_trained_is_float32_whatever_its_file_holds(tmp_path, dtype, masks):
    source = save(draw(WanDiT(**PRESETS["tiny"])).to(dtype), tmp_path / "dit")
    keys = ("model=tiny", "trains=dit", f"objective.masks.first={masks}")
    dit = network_of(config(*keys), source)
    assert {one.dtype for one in dit.parameters()} == {torch.float32}
    assert torch.equal(
        dit.blocks[0].ffn[0].weight, load_dit(source).blocks[0].ffn[0].weight.float()
    )
    save(draw(WanVAE(width=4, blocks=1)).to(dtype), tmp_path / "vae")
    vae = network_of(config("trains=vae", "model=micro"), tmp_path / "vae")
    # and what it is trained with computes in float32, as it samples
    still = parts_of(config(f"vae={tmp_path / 'vae'}", "model=tiny"), dit, tmp_path / "run").vae
    for one in (vae, still):
        assert {value.dtype for value in one.state_dict().values()} == {torch.float32}
        assert torch.equal(one.conv1.weight, load_vae(tmp_path / "vae").conv1.weight.float())


def test_masks_make_an_image_to_video_model_of_it(tmp_path):
    save(draw(WanDiT(**PRESETS["tiny"])), tmp_path / "dit")
    keys = ("model=tiny", "trains=dit", "objective.masks.first=1")
    assert network_of(config(*keys), tmp_path / "dit").config["in_channels"] == 36
    assert network_of(config(*keys), None).config["in_channels"] == 36


def test_an_image_vae_is_inflated_and_rebuilds_still_video_as_before(tmp_path):
    image = draw(WanVAE(width=4, blocks=1, taps=1, temporal=[False] * 3))
    save(image, tmp_path / "vae")
    video = network_of(config("trains=vae", "model=micro"), tmp_path / "vae")
    assert video.config["taps"] == 3
    picture = torch.rand(1, 3, 1, 16, 16) * 2 - 1
    with torch.no_grad():
        once = image.decode(image.encode(picture).mean)
        still = video.decode(video.encode(picture.expand(-1, -1, 5, -1, -1)).mean)
    torch.testing.assert_close(still, once.expand(-1, -1, 5, -1, -1), rtol=0, atol=1e-4)


def test_a_new_vae_begins_with_a_narrow_posterior():
    vae = network_of(config("trains=vae", "model=micro"), None)
    with torch.no_grad():
        posterior = vae.encode(torch.rand(1, 3, 1, 32, 32) * 2 - 1)
    assert float(posterior.std.max()) < 0.1


def test_sizes_that_differ_are_refused_with_both_numbers(tmp_path, monkeypatch):
    save(draw(WanDiT(**PRESETS["tiny"])), tmp_path / "dit")
    monkeypatch.setitem(PRESETS, "tiny", PRESETS["tiny"] | {"num_layers": 2})
    with pytest.raises(UsageError, match="its num_layers is 1, model=tiny has 2"):
        network_of(config("trains=dit", "model=tiny", f"starts_from={tmp_path}"), tmp_path / "dit")
    save(draw(WanVAE(**VAES["micro"])), tmp_path / "vae")
    monkeypatch.setitem(VAES, "micro", {"width": 8, "blocks": 1})
    with pytest.raises(UsageError, match="its width is 4, model=micro has 8"):
        network_of(config("trains=vae", "model=micro"), tmp_path / "vae")


@pytest.mark.parametrize("trains", ["vae", "dit"])
def test_a_size_of_the_other_network_is_refused_with_those_it_has(trains, tmp_path):
    own, other = {"vae": ("full, small, micro", "14b"), "dit": ("1.3b, 14b, tiny", "micro")}[trains]
    with pytest.raises(UsageError, match=f"model={other}: no size of a {trains}; .* {own}$"):
        network_of(config(f"trains={trains}", f"model={other}"), None)
    with pytest.raises(UsageError, match="model=micro: no size of a dit"):  # latents.py's
        text_encoder(config("model=micro"))


def test_weights_that_see_images_are_refused_unless_the_recipe_shows_them_some(tmp_path):
    sizes = PRESETS["tiny"] | BOTH_ENDS
    save(draw(WanDiT(**sizes)), tmp_path / "both")
    keys = ["trains=dit", "model=tiny", f"starts_from={tmp_path / 'both'}"]
    for more, says in (
        (["image_encoder=x"], "its in_channels is 36; give objective.masks"),
        (["objective.masks.first=1"], "its image_width is 1280; give image_encoder="),
    ):
        with pytest.raises(UsageError, match=says):
            network_of(config(*keys, *more), tmp_path / "both")
    asked = config(*keys, "objective.masks.first=1", "image_encoder=x")
    dit = network_of(asked, tmp_path / "both")
    assert dit.config == WanDiT(**sizes).config
    # resumed it is the same, which no key says
    again = network_of(asked, None, {"class": "WanDiT", **dit.config})
    again.load_state_dict(dit.state_dict())
    narrow = save(draw(WanDiT(**sizes | {"image_width": 24})), tmp_path / "narrow")
    with pytest.raises(UsageError, match="its image_width is 24, model=tiny has 1280"):
        network_of(asked, narrow)


def test_an_image_encoder_of_another_width_is_refused_with_both_numbers(tmp_path):
    tower = ImageEncoder(width=16, num_layers=2, num_heads=2, image_size=28)
    save(tower, tmp_path / "images")
    save(draw(WanVAE(width=4, blocks=1)), tmp_path / "vae")
    keys = (f"vae={tmp_path / 'vae'}", f"image_encoder={tmp_path / 'images'}", "model=tiny")
    for width, has in ((24, 16), (None, 16)):
        dit = WanDiT(**PRESETS["tiny"] | {"image_width": width})
        says = f"image_encoder: width {has}, but model=tiny wants {width}"
        with pytest.raises(UsageError, match=says):
            parts_of(config(*keys), dit, tmp_path / "run")


@pytest.mark.parametrize(("part", "sizes"), [("width", {"width": 8}), ("length", {"length": 99})])
def test_a_text_encoder_of_another_size_is_refused_with_both_numbers(tmp_path, part, sizes):
    right = {"width": DIT["text_width"], "length": DIT["text_length"]}
    save_byte_encoder(ByteEncoder(**right | sizes), tmp_path / "words")
    save(draw(WanVAE(width=4, blocks=1)), tmp_path / "vae")
    keys = (f"vae={tmp_path / 'vae'}", f"text_encoder={tmp_path / 'words'}", "model=tiny")
    dit = WanDiT(**PRESETS["tiny"])
    says = f"text_encoder: {part} {sizes[part]}, but model=tiny wants {right[part]}"
    with pytest.raises(UsageError, match=says):
        parts_of(config("trains=dit", *keys), dit, tmp_path / "run")


def test_a_recipe_without_a_finished_run_names_the_command_that_makes_one(tmp_path):
    with pytest.raises(UsageError, match=r"vae=tiny-vae: .*python training/fit.py recipe=tiny-vae"):
        found("vae", config("vae=tiny-vae", f"runs={tmp_path}"))


def finished(folder: Path, time: str = "", **parts: str) -> Path:
    """A run that trained a DiT, with a byte encoder of its own and the parts that it names."""
    place = save(draw(WanDiT(**PRESETS["tiny"])), folder / "checkpoints/step=00000002")
    meta = {"class": "WanDiT", "step": 2, "parts": {"text_encoder": "text_encoder", **parts}}
    (place / "meta.json").write_text(json.dumps(meta))
    (folder / "config.yaml").write_text("trains: dit")
    (folder / "done.json").write_text(json.dumps({"finished": time}))
    save_byte_encoder(ByteEncoder(16, length=64, seed=7), folder / "text_encoder")
    return folder


@pytest.mark.parametrize("name", ["tiny", "{}/tiny/b", "{}/tiny/b/checkpoints/step=00000002"])
def test_encoders_of_a_run_or_recipe_are_those_it_was_trained_with(tmp_path, name):
    finished(tmp_path / "tiny/a", "2020")
    run = finished(tmp_path / "tiny/b", "2021", image_encoder="someone/clip")
    name = name.format(tmp_path)
    keys = (f"runs={tmp_path}", f"text_encoder={name}", f"image_encoder={name}")
    asked = load(Fit, [*keys, "model=tiny"])
    assert found("text_encoder", asked) == run / "text_encoder"
    assert str(found("image_encoder", asked)) == "someone/clip"
    save(draw(WanVAE(width=4, blocks=1)), tmp_path / "vae")
    asked = replace(asked, vae=str(tmp_path / "vae"), image_encoder=None)
    parts = parts_of(asked, WanDiT(**PRESETS["tiny"]), tmp_path / "mine")
    assert parts.text.config["seed"] == 7
    # it is stored with the run that is trained with it
    assert parts.places["text_encoder"] == "text_encoder"
    assert load_text_encoder(tmp_path / "mine/text_encoder").config["seed"] == 7


def test_a_plan_reckons_with_the_encoder_of_a_recipe_before_that_has_a_run():
    dit = WanDiT(**PRESETS["tiny"])
    drawn = frozen.text(config("model=tiny"), dit)
    assert frozen.text(load(Fit, ["text_encoder=tiny"]), dit) == drawn
    assert frozen.text(load(Fit, ["text_encoder=480p"]), dit).bytes > 1e10


def test_a_run_that_trained_a_vae_has_no_encoders(tmp_path):
    run = finished(tmp_path / "tiny-vae-video/a")
    meta = run / "checkpoints/step=00000002/meta.json"
    meta.write_text(json.dumps({"class": "WanVAE", "step": 2}))
    with pytest.raises(CheckpointError, match="weights of a WanVAE; a WanDiT is wanted"):
        found("text_encoder", load(Fit, [f"runs={tmp_path}", "text_encoder=tiny-vae"]))


def test_a_recipe_from_anywhere_stands_for_its_newest_finished_run(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("trains: dit\nmodel: tiny\ntext_encoder: bytes\n")
    asked = config(f"starts_from={mine}", f"runs={tmp_path}", "trains=dit")
    with pytest.raises(UsageError, match=rf"starts_from={mine}: .*fit.py recipe={mine}`"):
        found("starts_from", asked)
    run = finished(tmp_path / "mine/a")
    assert found("starts_from", asked).parent.parent.parent == run
    (tmp_path / "both.yaml").write_text(f"trains: chain\nchain: [tiny-vae, {mine}]\n")
    of_chain = replace(asked, starts_from=f"{tmp_path}/both.yaml")
    assert found("starts_from", of_chain) == found("starts_from", asked)


def test_in_a_chain_its_own_run_comes_before_newer_ones(tmp_path):
    own = finished(tmp_path / "tiny/mine", "2020")
    newer = finished(tmp_path / "tiny/other", "2021")
    keys = ("starts_from=tiny", f"runs={tmp_path}", "trains=dit")
    for name, run in (("mine", own), ("another", newer), ("null", newer)):
        assert found("starts_from", config(*keys, f"name={name}")).is_relative_to(run)


def test_a_name_that_is_neither_recipe_nor_path_is_left_for_the_hub():
    assert found("vae", config("vae=Wan-AI/Wan2.1")) == "Wan-AI/Wan2.1"
