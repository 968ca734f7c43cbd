"""Bundles: every kind of checkpoint gives the same parts, and what is missing is told by name."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model import layout as layouts
from model.bundle import Bundle, card, fingerprints, load_bundle
from model.byte_encoder import ByteEncoder, save_byte_encoder
from model.checkpoint import save
from model.defaults import NEGATIVE, NEGATIVE_FLF2V, NEGATIVE_I2V, public
from model.dit import PRESETS
from model.sampler import Settings, sample
from model.tensors import CheckpointError
from tests import pipelines, tiny_wan

SMALL = {"width": 32, "height": 32, "frames": 5, "steps": 2, "shift": 5.0, "guidance": 5.0}
DIT = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The networks are so small that threads only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """The same weights as diffusers and as Wan publish them."""
    place = tmp_path_factory.mktemp("checkpoints")
    pipe = pipelines.text_to_video(place)
    return {
        "diffusers": pipelines.saved(pipe, place / "diffusers"),
        "official": pipelines.official(pipe, place / "official"),
    }


@pytest.fixture
def run(tmp_path) -> Path:
    """A run with two checkpoints, its VAE and its text encoder."""
    run = tmp_path / "runs" / "tiny" / "2026-01-31"
    save(tiny_wan.ours("wan"), run / "vae")
    save_byte_encoder(ByteEncoder(width=24), run / "words")
    for step in (100, 200):
        checkpoint(run, step)
    return run


def checkpoint(run: Path, step: int, ema: bool = True, **meta) -> Path:
    folder = run / "checkpoints" / f"step={step:08d}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    dit = tiny_wan.ours("t2v")
    for name, seed in (("model", step), ("ema", step + 1)):
        if ema or name == "model":
            tensors = tiny_wan.redrawn(dit, seed).state_dict()
            save_file(tensors, folder / f"{name}.safetensors")
    parts = {"vae": "vae", "text_encoder": "words", "image_encoder": None}
    trained_on = {"width": 48, "height": 32, "frames": 5, "fps": 8, "shift": 2.0}
    trained_on |= {"solver": "dpmpp_2m_sde"}
    told = {"class": "WanDiT", "model": dit.config, "step": step}
    told |= {"parts": parts, "trained_on": trained_on} | meta
    (folder / "meta.json").write_text(json.dumps(told))
    return folder


def weights(bundle: Bundle) -> dict[str, torch.Tensor]:
    return {**bundle.dit.state_dict(), **bundle.vae.state_dict()}


def latents(bundle: Bundle) -> torch.Tensor:
    settings = Settings.of(bundle.card, **SMALL)
    return sample(bundle, ["a red cat"], [0], settings)


def refused(*arguments, **keywords) -> str:
    """The one line that it ends in."""
    with pytest.raises(CheckpointError) as caught:
        card(layouts.find(*arguments, **keywords))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_wans_own_folder_gives_what_diffusers_folder_gives(folders):
    bundles = [load_bundle(str(folder)) for folder in folders.values()]
    assert [bundle.card.layout.kind for bundle in bundles] == ["diffusers", "official"]
    assert tiny_wan.same_tensors(*map(weights, bundles))
    assert torch.equal(*map(latents, bundles))
    assert not any(value.requires_grad for one in bundles for value in weights(one).values())


def test_a_card_tells_sizes_and_defaults_before_weights_are_read(folders, monkeypatch):
    from model import bundle

    for name in ("load_dit", "load_vae", "load_text_encoder"):
        monkeypatch.delattr(bundle, name)
    for folder in folders.values():
        told = card(layouts.find(str(folder)))
        assert told.config["num_layers"] == 2
        assert told.compression == (4, 8, 8)
        assert told.defaults.negative == NEGATIVE


def test_a_run_means_its_best_averaged_weights(run):
    def step() -> tuple[int, str]:
        layout = layouts.find(str(run))
        return layout.step, layout.dit.name

    assert step() == (200, "ema.safetensors")  # nobody validated: the newest
    checkpoint(run, 100, validation=0.3)
    assert step() == (100, "ema.safetensors")
    checkpoint(run, 200, validation=0.2, ema=False)
    assert step() == (200, "model.safetensors")
    (run / "checkpoints/step=00000300").mkdir()  # still being written: no meta.json
    assert step() == (200, "model.safetensors")
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    assert "no checkpoint yet" in refused(str(run))


@pytest.mark.parametrize("whole", [True, False], ids=["run", "checkpoint folder"])
def test_a_run_is_sampled_as_it_was_trained(run, whole):
    bundle = load_bundle(str(run if whole else run / "checkpoints/step=00000100"))
    wanted = tiny_wan.ours("t2v", seed=201 if whole else 101).state_dict()
    assert tiny_wan.same_tensors(bundle.dit.state_dict(), wanted)
    assert bundle.text.name == "bytes"
    defaults = bundle.defaults
    assert (defaults.width, defaults.height, defaults.frames) == (48, 32, 5)
    assert (defaults.fps, defaults.shift, defaults.solver) == (8, 2.0, "dpmpp_2m_sde")
    assert (defaults.steps, defaults.negative) == (50, "")
    assert Settings.of(bundle.card, width=64, height=64).shift == 2.0
    assert latents(bundle).isfinite().all()


def test_a_part_that_is_given_stands_for_the_checkpoints_own(folders, run):
    vae = str(run / "vae")
    layout = layouts.find(str(folders["official"]), vae=vae)
    assert layout.vae == Path(vae)
    bundle = load_bundle(layout)
    assert tiny_wan.same_tensors(bundle.vae.state_dict(), tiny_wan.ours("wan").state_dict())
    alone = folders["official"] / DIT  # the other parts lie beside it
    assert torch.equal(latents(load_bundle(str(alone))), latents(load_bundle(str(alone.parent))))


@pytest.mark.parametrize(
    ("kind", "gone", "says"),
    [
        ("diffusers", "transformer", "transformer is missing"),
        ("diffusers", "vae", "vae is missing; it belongs at {}/vae, or give vae=PATH"),
        ("diffusers", "text_encoder", "text_encoder is missing; it belongs at {}/text_encoder"),
        ("diffusers", "tokenizer", "tokenizer is missing"),
        ("official", DIT, "diffusion_pytorch_model*.safetensors is missing"),
        ("official", "Wan2.1_VAE.pth", "Wan2.1_VAE.pth is missing; it belongs at {}/Wan2.1_VAE"),
        ("official", layouts.T5, "give text_encoder=PATH"),
        ("official", "google", "umt5-xxl is missing; it belongs at {}/google/umt5-xxl"),
    ],
)
def test_a_missing_part_is_told_with_its_place(folders, tmp_path, kind, gone, says):
    folder = shutil.copytree(folders[kind], tmp_path / "broken")
    path = folder / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert says.format(folder) in refused(str(folder))


def test_an_image_model_asks_for_its_image_encoder(tmp_path):
    pipe = pipelines.image_to_video(tmp_path)
    folder = pipelines.saved(pipe, tmp_path / "saved")
    assert card(layouts.find(str(folder))).kind == "i2v"
    shutil.rmtree(folder / "image_encoder")
    assert "image_encoder is missing" in refused(str(folder))


def test_a_runs_missing_part_is_told_with_its_place(run):
    shutil.rmtree(run / "vae")
    assert "vae is missing; it belongs at" in refused(str(run))
    checkpoint(run, 300, **{"class": "WanVAE"})
    assert "weights of a WanVAE" in refused(str(run))


def test_what_is_no_checkpoint_is_told_in_one_line(tmp_path):
    assert "no such file or folder; give a run" in refused(str(tmp_path / "nothing"))
    assert "no weights there; give a run" in refused(str(tmp_path))
    assert "not to be had from the hub" in refused("nobody/no-such-model")
    assert "random:tiny, random:i2v-tiny" in refused("random:huge")
    assert "leave out the others" in refused("random:tiny", vae="vae")
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer_2").mkdir()
    assert "Wan 2.2" in refused(str(tmp_path))


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"width": 24}, "bytes has width 24, the DiT wants 32"),
        # else the last byte of a long prompt would count for all that the DiT misses
        ({"width": 32, "length": 64}, "bytes has length 64, the DiT wants 512"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(folders, tmp_path, sizes, says):
    save_byte_encoder(ByteEncoder(**sizes), tmp_path / "words")
    mixed = layouts.find(str(folders["official"]), text_encoder=str(tmp_path / "words"))
    with pytest.raises(CheckpointError, match=says):
        load_bundle(mixed)


@pytest.mark.parametrize("preset", ["tiny", "i2v-tiny", "flf2v-tiny"])
def test_a_random_model_is_the_same_one_each_time_and_disturbs_no_dice(preset):
    torch.manual_seed(5)
    bundle = load_bundle(f"random:{preset}")
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)
    torch.manual_seed(6)
    again = load_bundle(f"random:{preset}")
    assert tiny_wan.same_tensors(weights(bundle), weights(again))
    assert all(value.any() for value in bundle.dit.state_dict().values() if value.dim() > 1)
    assert bundle.dit.config == card(layouts.find(f"random:{preset}")).config
    assert (bundle.image is not None) == ("image_width" in PRESETS[preset])


def test_fingerprints_are_of_the_files_and_change_with_them(folders, tmp_path):
    folder = shutil.copytree(folders["official"], tmp_path / "official")
    before = fingerprints(layouts.find(str(folder)))
    assert sorted(before) == ["dit", "text", "vae"]
    sha = hashlib.sha256((folder / DIT).read_bytes()).hexdigest()
    assert before["dit"]["sha256"] == sha
    save_file(tiny_wan.ours("t2v", seed=9).state_dict(), folder / DIT)
    after = fingerprints(layouts.find(str(folder)))
    assert [name for name in before if before[name] != after[name]] == ["dit"]


def test_the_negative_prompt_is_the_public_one():
    """wan/configs/shared_config.py and its variants, by their SHA-256."""
    digest = hashlib.sha256(NEGATIVE.encode()).hexdigest()
    assert digest == "ce96e0324e4b54ce4b6e867f669ca520952e1a34cc116543516b1897f0d3c47e"
    assert NEGATIVE_I2V == "镜头晃动，" + NEGATIVE
    assert NEGATIVE_FLF2V == "镜头切换，镜头晃动，" + NEGATIVE


@pytest.mark.parametrize(
    ("preset", "size", "wanted"),
    [
        ("1.3b", None, (832, 480, 81, 16, 50, 6.0, 8.0, NEGATIVE, "unipc")),
        ("14b", None, (1280, 720, 81, 16, 50, 5.0, 5.0, NEGATIVE, "unipc")),
        ("i2v-14b", None, (832, 480, 81, 16, 40, 5.0, 3.0, NEGATIVE_I2V, "unipc")),
        ("i2v-14b", (720, 1280), (720, 1280, 81, 16, 40, 5.0, 5.0, NEGATIVE_I2V, "unipc")),
        ("flf2v-14b", None, (1280, 720, 81, 16, 50, 5.0, 16.0, NEGATIVE_FLF2V, "unipc")),
    ],
)
def test_public_models_have_the_public_defaults(preset, size, wanted):
    from model.dit import WanDiT

    with torch.device("meta"):
        config = WanDiT(**PRESETS[preset]).config
    got = public(config, size)
    assert tuple(vars(got).values()) == wanted


def test_the_shift_of_image_to_video_goes_by_the_size_that_is_sampled(folders):
    told = card(layouts.find(str(folders["official"])))
    image = replace(told, config=told.config | {"in_channels": 36, "width": 5120})
    assert Settings.of(image).shift == 3.0
    assert Settings.of(image, width=1280, height=720).shift == 5.0
    assert Settings.of(image, width=1280, height=720, shift=7.0).shift == 7.0
