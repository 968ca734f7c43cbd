"""The networks that a recipe names: what they start from, widened, inflated, refused."""

import pytest
import torch

from model.byte_encoder import ByteEncoder, save_byte_encoder
from model.checkpoint import save
from model.dit import WanDiT
from model.presets import PRESETS, VAES
from model.vae import WanVAE
from recipes.keys import UsageError
from recipes.load import load
from recipes.training import Fit
from tests.drawn import draw
from tests.small_fit import DIT, shrink
from training.parts import found, network_of, parts_of, widen


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


def test_a_name_that_is_neither_recipe_nor_path_is_left_for_the_hub():
    assert found("vae", config("vae=Wan-AI/Wan2.1")) == "Wan-AI/Wan2.1"
