"""Conversion: there and back bit for bit; diffusers opens what it gives; in a shard's memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import load_file, save_file

from model.checkpoint import load_dit, load_vae, save
from model.convert import FORMATS, convert
from model.dit import WanDiT
from model.presets import PRESETS
from model.sizes import described, from_config, to_config
from model.tensors import CheckpointError, open_weights
from model.vae import WanVAE
from tests import tiny_wan
from tests.tiny_wan import DITS, VAES, VARIANTS, ours, same_tensors, theirs


def weights_file(folder: Path) -> Path:
    """The one file of weights in a folder."""
    (found,) = [one for one in folder.iterdir() if one.suffix in (".safetensors", ".pth")]
    return found


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Of a folder in any format, by the names in its files."""
    found = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    for path in folder.glob("*.pth"):
        found |= torch.load(path, weights_only=True)
    return found


def mixed(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Its tensors in several dtypes, with numbers that no cast would leave alone."""
    state = module.state_dict()
    for i, name in enumerate(state):
        state[name] = state[name].to((torch.float32, torch.bfloat16, torch.float64)[i % 3])
    next(iter(state.values())).view(-1)[0] = float("nan")
    return state


@pytest.mark.parametrize("way", ["diffusers", "ours"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_there_and_back_is_the_same_file_byte_for_byte(tmp_path, variant, way):
    source = tmp_path / "source.safetensors"
    save_file(mixed(ours(variant)), source, metadata={"format": "pt"})
    convert(source, tmp_path / "there", to=way)
    convert(tmp_path / "there", tmp_path / "back", to="official", pickled=False)
    assert weights_file(tmp_path / "back").read_bytes() == source.read_bytes()
    changed = weights_file(tmp_path / "there").read_bytes() != source.read_bytes()
    assert changed == (way == "diffusers")  # ours has the official names


@pytest.mark.parametrize("way", ["official", "ours"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_from_diffusers_there_and_back_is_the_same_file_and_the_same_network(
    tmp_path, variant, way
):
    theirs(variant).save_pretrained(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "there", to=way)
    convert(tmp_path / "there", tmp_path / "back", to="diffusers")
    name = "diffusion_pytorch_model.safetensors"
    if (variant in VAES) and way == "official":  # a pickle keeps no notes
        assert same_tensors(tensors(tmp_path / "back"), tensors(tmp_path / "source"))
    else:
        data = (tmp_path / "source" / name).read_bytes()
        assert (tmp_path / "back" / name).read_bytes() == data
    configs = [
        json.loads((tmp_path / one / "config.json").read_text()) for one in ("source", "back")
    ]
    sizes = [from_config(one) for one in configs]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("whose", ["official", "ours"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_diffusers_opens_what_it_gives_and_computes_the_same(tmp_path, variant, whose):
    model = ours(variant)
    if whose == "official":
        tiny_wan.write_official(model, tmp_path / "source")
    else:
        save(model, tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "a", to="diffusers")
    network = WanTransformer3DModel if variant in DITS else AutoencoderKLWan
    found, report = network.from_pretrained(tmp_path / "a", output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert same_tensors(tiny_wan.renamed(found), model.state_dict())
    expected = theirs(variant).config
    expected = expected | {name: list(one) for name, one in expected.items() if type(one) is tuple}
    unlike = {name for name, value in expected.items() if found.config.get(name) != value}
    lost = {"latents_mean", "latents_std"} if (variant, whose) == ("other", "official") else set()
    assert {name for name in unlike if not name.startswith("_")} == lost
    if variant in DITS:
        given = tiny_wan.inputs(variant)
        if variant == "t2v":
            shown = found(given["latents"], given["timestep"], given["text"]).sample
            torch.testing.assert_close(model(**given), shown, atol=1e-4, rtol=0)
    else:
        torch.manual_seed(0)
        latents = torch.randn(1, model.config["latent_channels"], 2, 3, 2)
        shown = found.decode(latents).sample
        torch.testing.assert_close(model.decode(latents), shown, atol=1e-4, rtol=0)


@pytest.mark.parametrize("preset", PRESETS)
def test_config_files_of_every_preset_build_the_same_network_in_diffusers(preset):
    with torch.device("meta"):
        mine = WanDiT(**PRESETS[preset] | {"text_length": 512})  # diffusers' only one
    config = to_config("dit", mine.config, "diffusers")
    with torch.device("meta"):
        found = WanTransformer3DModel.from_config(config)
    names = tiny_wan.recognise(mine.state_dict())
    shapes = {names.diffusers(name): value.shape for name, value in mine.state_dict().items()}
    assert {name: value.shape for name, value in found.state_dict().items()} == shapes
    assert found.config.num_attention_heads == mine.config["num_heads"]
    for whose in FORMATS:
        config = to_config("dit", mine.config, whose)
        assert described(config) == ("dit", whose)
        stated = from_config(config)
        untold = {"official": {"image_width", "image_positions"}, "diffusers": {"text_length"}}
        assert mine.config.keys() - stated.keys() == untold.get(whose, set())
        assert {name: mine.config[name] for name in stated} == stated


def test_the_public_official_config_files_are_understood():
    for variant, width in (("t2v", 256), ("i2v", 256), ("flf2v", 256)):
        config = ours(variant).config
        public = tiny_wan.official_config(config)
        stated = from_config(public)
        assert stated["width"] == width
        assert {name: config[name] for name in stated} == stated
        written = to_config("dit", config, "official")
        written["_diffusers_version"] = public["_diffusers_version"]
        assert public.items() <= written.items()


@pytest.mark.parametrize("to", FORMATS)
def test_dtypes_are_kept_or_all_made_one(tmp_path, to):
    state = mixed(ours("t2v"))
    save_file(state, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "kept", to=to)
    convert(tmp_path / "a.safetensors", tmp_path / "cast", to=to, dtype=torch.bfloat16)
    assert same_tensors(load_dit(tmp_path / "kept").state_dict(), state)
    cast = {name: value.bfloat16() for name, value in state.items()}
    assert same_tensors(load_dit(tmp_path / "cast").state_dict(), cast)


@pytest.mark.parametrize("to", ["official", "diffusers"])
def test_large_models_are_cut_into_shards_and_come_back_whole(tmp_path, to):
    save(ours("i2v"), tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "b", to=to, shard_bytes=1_600_000)
    assert len(list((tmp_path / "b").glob("*.safetensors"))) > 3
    assert max(path.stat().st_size for path in (tmp_path / "b").glob("*.safetensors")) < 1_620_000
    assert same_tensors(load_dit(tmp_path / "b").state_dict(), ours("i2v").state_dict())
    if to == "diffusers":
        found = WanTransformer3DModel.from_pretrained(tmp_path / "b")
        assert same_tensors(tiny_wan.renamed(found), ours("i2v").state_dict())
    convert(tmp_path / "b", tmp_path / "c", to="ours")
    assert same_tensors(tensors(tmp_path / "c"), ours("i2v").state_dict())


def test_the_official_vae_is_the_public_pickle_of_plain_tensors(tmp_path):
    save(ours("wan"), tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "b", to="official")
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["Wan2.1_VAE.pth"]
    found = torch.load(tmp_path / "b" / "Wan2.1_VAE.pth", weights_only=True)
    assert same_tensors(found, ours("wan").state_dict())


@pytest.mark.parametrize("pickled", [True, False])
def test_latent_statistics_survive_the_official_format_in_a_file_beside(tmp_path, pickled):
    save(ours("other"), tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "b", to="official", pickled=pickled)
    assert (tmp_path / "b" / "Wan2.1_VAE.json").is_file()
    vae = load_vae(tmp_path / "b")
    assert vae.config == ours("other").config
    assert vae.latent_mean.flatten().tolist() == tiny_wan.STATISTICS[0]


def test_a_pipeline_s_folder_needs_a_word_on_which_of_the_two(tmp_path):
    theirs("t2v").save_pretrained(tmp_path / "a" / "transformer")
    theirs("wan").save_pretrained(tmp_path / "a" / "vae")
    with pytest.raises(CheckpointError, match="a DiT and a VAE"):
        convert(tmp_path / "a", tmp_path / "b")
    convert(tmp_path / "a", tmp_path / "b", to="official", kind="vae")
    assert same_tensors(tensors(tmp_path / "b"), tiny_wan.renamed(theirs("wan")))


@pytest.mark.parametrize(
    ("module", "to", "said"),
    [
        (lambda: WanVAE(width=8, taps=1, temporal=[False] * 3), "diffusers", "image VAE"),
        (lambda: WanVAE(width=8, taps=1, temporal=[False] * 3), "official", "image VAE"),
        (lambda: ours("t2v", text_length=64), "diffusers", "text_length"),
        (lambda: ours("t2v"), "comfy", "no such format"),
    ],
)
def test_what_a_format_has_no_place_for_is_refused_and_nothing_is_left(tmp_path, module, to, said):
    save(module(), tmp_path / "a")
    with pytest.raises(CheckpointError, match=said):
        convert(tmp_path / "a", tmp_path / "b", to=to)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_source_that_does_not_fit_leaves_nothing_behind(tmp_path):
    state = ours("t2v").state_dict()
    del state["head.head.bias"]
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"1 of 69 names missing: head\.head\.bias"):
        convert(tmp_path / "a.safetensors", tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


# Runs alone, so that nothing else is in its memory. It measures each peak above what was there
# before; `clear_refs` sets the kernel's record back.
MEASURE = """
import sys
from pathlib import Path
import torch
from model.convert import convert
from model.checkpoint import load_dit

def status(name):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024

def taken(call, *arguments, **keywords):
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    kept = call(*arguments, **keywords)
    return status("VmHWM") - before

source, target = sys.argv[1:]
convert(source + "-small", target + "-small")  # whatever is imported late
print(
    taken(convert, source, target, shard_bytes=16_000_000),
    taken(convert, source, target + "-cast", dtype=torch.bfloat16),
    taken(load_dit, source),
)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """144 MB in ten shards, and a small one beside it."""
    folder = tmp_path_factory.mktemp("large")
    sizes = {"width": 512, "ffn_width": 2048, "num_heads": 4, "num_layers": 8, "text_width": 64}
    save(WanDiT(**sizes), folder / "whole")
    convert(folder / "whole", folder / "a", to="official", shard_bytes=16_000_000)
    save(ours("t2v"), folder / "a-small")
    return folder


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the record is Linux's")
@pytest.mark.slow
def test_converting_takes_at_most_a_shard_s_memory_and_loading_the_model_s(large, tmp_path):
    shards = [path.stat().st_size for path in (large / "a").glob("*.safetensors")]
    assert len(shards) > 8
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, large / "a", tmp_path / "b"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    copied, cast, loaded = map(int, done.stdout.split())
    assert copied < 1.2 * max(shards)
    assert cast < 2.2 * max(shards)  # a piece in either dtype
    assert 0.9 * sum(shards) < loaded < 1.2 * sum(shards)  # and the measure sees what is held
    for name in ("b", "b-cast"):
        assert same_sizes(large / "a", tmp_path / name)


def same_sizes(source: Path, target: Path) -> bool:
    """Whether all of it arrived."""
    found = open_weights(first(target)).shapes
    names = tiny_wan.recognise(found)
    found = {names.official(name): shape for name, shape in found.items()}
    return found == open_weights(first(source)).shapes


def first(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[0]
