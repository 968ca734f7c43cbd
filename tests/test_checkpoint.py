"""Checkpoints: any of the three formats, with or without a config file, gives the same network."""

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint import load_dit, load_vae, save
from model.tensors import CheckpointError
from tests import tiny_wan
from tests.tiny_wan import DITS, VAES, VARIANTS, ours, same_tensors, theirs, write_official

DIT = "diffusion_pytorch_model.safetensors"


def load(variant: str, path: Path, **keywords):
    return (load_dit if variant in DITS else load_vae)(path, **keywords)


def write(variant: str, whose: str, folder: Path) -> dict[str, torch.Tensor]:
    """A checkpoint in a format, written by diffusers' own code if it is theirs; official names."""
    if whose == "diffusers":
        model = theirs(variant)
        model.save_pretrained(folder)
        return tiny_wan.renamed(model)
    model = ours(variant)
    if whose == "official":
        write_official(model, folder)
    else:
        save(model, folder)
    return model.state_dict()


def refused(call, *arguments, **keywords) -> str:
    """The one line that it ends in."""
    with pytest.raises(CheckpointError) as caught:
        call(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("whose", ["official", "diffusers", "ours"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_format_gives_every_variant_bit_for_bit_and_with_its_sizes(tmp_path, variant, whose):
    tensors = write(variant, whose, tmp_path / "a")
    given = {}
    if (variant, whose) == ("other", "official"):  # whose latent statistics no official file holds
        given = {name: VAES["other"][0][name] for name in ("latent_mean", "latent_std")}
    module = load(variant, tmp_path / "a", **given)
    assert same_tensors(module.state_dict(), tensors)
    assert module.config == ours(variant).config
    assert module.origin.format == whose
    assert not module.training


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_a_config_file_the_shapes_tell_every_size(tmp_path, variant):
    model = ours(variant)
    save_file(model.state_dict(), tmp_path / "some.safetensors")
    module = load(variant, tmp_path / "some.safetensors")
    untold = {"latent_mean", "latent_std"} if variant == "other" else set()
    expected = {name: value for name, value in model.config.items() if name not in untold}
    assert {name: module.config[name] for name in expected} == expected
    assert module.origin.config_file is None
    defaults = {"text_length", "eps", "dropout", "latent_mean", "latent_std"}
    unused = {name for name, value in expected.items() if value is None}
    assert module.origin.inferred.keys() == expected.keys() - defaults - unused
    assert module.origin.inferred.items() <= expected.items() if variant in DITS else True


@pytest.mark.parametrize("variant", DITS)
def test_a_dit_from_diffusers_own_file_computes_what_diffusers_computes(tmp_path, variant):
    reference = theirs(variant)
    reference.save_pretrained(tmp_path)
    given = tiny_wan.inputs(variant)
    latents = given["latents"]
    if variant != "t2v":
        latents = torch.cat([latents, given["condition"]], dim=1)
    image = given.get("image")
    if variant == "flf2v":  # diffusers wants the two frames' tokens as samples of their own
        image = image.unflatten(1, (2, 5)).flatten(0, 1)
    expected = reference(latents, given["timestep"], given["text"], image).sample
    found = load_dit(tmp_path)(**given)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("variant", VAES)
def test_a_vae_from_diffusers_own_file_computes_what_diffusers_computes(tmp_path, variant):
    reference = theirs(variant)
    reference.save_pretrained(tmp_path)
    vae = load_vae(tmp_path)
    torch.manual_seed(0)
    video = torch.randn(1, 3, 9, 16, 16).clamp(-1, 1)
    expected = reference.encode(video).latent_dist.mean
    torch.testing.assert_close(vae.encode(video).mean, expected, atol=1e-4, rtol=0)
    shown = reference.decode(expected).sample
    assert shown.std() > 0.01
    torch.testing.assert_close(vae.decode(expected), shown, atol=1e-4, rtol=0)
    mean, std = (torch.tensor(reference.config[f"latents_{one}"]) for one in ("mean", "std"))
    expected = (expected - mean.view(1, -1, 1, 1, 1)) / std.view(1, -1, 1, 1, 1)
    torch.testing.assert_close(vae.normalize(vae.encode(video).mean), expected, atol=1e-4, rtol=0)


def test_what_was_inferred_is_reported_and_logged_in_a_line(tmp_path, caplog):
    save_file(ours("i2v").state_dict(), tmp_path / "some.safetensors")
    with caplog.at_level(logging.INFO):
        origin = load_dit(tmp_path / "some.safetensors", num_layers=2).origin
    assert origin.inferred["num_heads"] == 2
    assert origin.inferred["image_width"] == 16
    assert "num_layers" not in origin.inferred
    line = caplog.records[-1].getMessage()
    assert "\n" not in line
    for said in ("some.safetensors", "official", "F32", "no config file", "num_heads=2"):
        assert said in line
    (tmp_path / "config.json").write_text(json.dumps(tiny_wan.official_config(ours("i2v").config)))
    origin = load_dit(tmp_path).origin
    assert origin.config_file == tmp_path / "config.json"
    assert origin.inferred == {
        **{"text_width": 24, "image_width": 16, "patch": [1, 2, 2]},
    }


def test_the_head_count_is_by_head_width_128_unless_it_is_given(tmp_path):
    save_file(ours("t2v").state_dict(), tmp_path / "a.safetensors")
    assert load_dit(tmp_path).config["num_heads"] == 2
    assert load_dit(tmp_path, num_heads=4).config["num_heads"] == 4
    narrow = {"width": 96, "num_heads": 3}
    save_file(ours("t2v", **narrow).state_dict(), tmp_path / "a.safetensors")
    assert "num_heads=" in refused(load_dit, tmp_path)
    assert load_dit(tmp_path, num_heads=3).config["num_heads"] == 3


@pytest.mark.parametrize("variant", ["i2v", "wan"])
@pytest.mark.parametrize("whose", ["official", "diffusers"])
def test_missing_unexpected_and_misshapen_tensors_are_listed_and_counted(tmp_path, variant, whose):
    write(variant, "diffusers" if whose == "diffusers" else "ours", tmp_path / "a")
    file = next((tmp_path / "a").glob("*.safetensors"))
    tensors = load_file(file)
    total = len(tensors)
    biases = [name for name in tensors if name.endswith("bias")][-5:]
    for name in biases[:4]:
        del tensors[name]
    tensors |= {"lora.down": torch.ones(2), "lora.up": torch.ones(2)}
    tensors[biases[4]] = torch.ones(tensors[biases[4]].shape[0] + 1)
    save_file(tensors, file)
    said = refused(load, variant, tmp_path / "a")
    assert str(file) in said
    assert f"4 of {total} names missing: " in said
    assert "(4 in all)" in said
    assert "2 names unexpected: lora.down, lora.up" in said
    assert "1 of another shape: " in said
    assert f"[{tensors[biases[4]].shape[0]}] for [{tensors[biases[4]].shape[0] - 1}]" in said
    # ours are the official names, in messages too
    names = tiny_wan.recognise(tensors)
    listed = said.split("missing: ")[1].split(", … ")[0].split(", ")
    assert len(listed) == 3
    assert {*listed} < {names.official(name) for name in biases[:4]}
    assert f"shape: {names.official(biases[4])} [" in said


def test_dtypes_are_kept_each_its_own_unless_one_is_asked_for(tmp_path):
    tensors = ours("t2v").state_dict()
    for i, name in enumerate(tensors):
        tensors[name] = tensors[name].to((torch.float32, torch.bfloat16, torch.float16)[i % 3])
    save_file(tensors, tmp_path / "a.safetensors")
    module = load_dit(tmp_path)
    assert same_tensors(module.state_dict(), tensors)
    assert set(module.origin.dtype.split("+")) == {"F32", "BF16", "F16"}
    cast = load_dit(tmp_path, dtype=torch.bfloat16).state_dict()
    assert same_tensors(cast, {name: value.bfloat16() for name, value in tensors.items()})


def test_latent_statistics_are_real_and_float32_whatever_the_dtype(tmp_path):
    save(ours("other"), tmp_path / "a")
    vae = load_vae(tmp_path / "a", dtype=torch.bfloat16)
    for name, values in zip(("latent_mean", "latent_std"), tiny_wan.STATISTICS, strict=True):
        buffer = getattr(vae, name)
        assert (buffer.device.type, buffer.dtype) == ("cpu", torch.float32)
        assert buffer.flatten().tolist() == values
    assert vae.conv1.weight.dtype == torch.bfloat16


def test_all_of_it_is_on_the_device_asked_for(tmp_path):
    save(ours("wan"), tmp_path / "a")
    vae = load_vae(tmp_path / "a", device="meta")  # the one other device that every machine has
    found = [*vae.parameters(), *vae.buffers()]
    assert {value.device.type for value in found} == {"meta"}


def test_what_is_loaded_trains_and_owns_its_memory(tmp_path):
    save(ours("t2v"), tmp_path / "a")
    before = (tmp_path / "a" / "model.safetensors").read_bytes()
    module = load_dit(tmp_path / "a")
    assert all(value.requires_grad for value in module.parameters())
    module(**tiny_wan.inputs("t2v")).sum().backward()
    assert all(value.grad is not None for value in module.parameters())
    with torch.no_grad():
        for value in module.parameters():
            value.zero_()
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == before


# --- saving -------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["flf2v", "other"])
def test_what_is_saved_is_official_names_and_a_config_that_builds_the_same(tmp_path, variant):
    model = ours(variant)
    save(model, tmp_path / "a", {"step": "7"})
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        "model.safetensors",
        "config.json",
    }
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert type(model).__name__ == config.pop("class")
    assert type(model)(**config).config == model.config
    assert same_tensors(load_file(tmp_path / "a" / "model.safetensors"), model.state_dict())


def test_saving_never_overwrites(tmp_path):
    save(ours("t2v"), tmp_path / "a")
    assert "is there already" in refused(save, ours("t2v", 1), tmp_path / "a")
    assert same_tensors(load_dit(tmp_path / "a").state_dict(), ours("t2v").state_dict())
