"""The export command: diffusers opens what it writes, and samples the same video from it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from safetensors.torch import load_file, save_file

from model.bundle import load_bundle
from model.byte_encoder import ByteEncoder, save_byte_encoder
from model.checkpoint import load_dit, load_vae, save
from model.dit import WanDiT
from model.image import ImageEncoder
from model.sampler import Settings, decode, sample
from recipes.export import Export
from recipes.load import main
from tests import pipelines, tiny_umt5, tiny_wan
from tests.tiny_wan import ours, redrawn, same_tensors
from training.export import export

ROOT = Path(__file__).parents[1]
PROMPTS = ["a red cat", "红色的猫 🐈, 'cats'"]  # the second has characters that no vocabulary has
TEXT = {"text_width": tiny_umt5.CONFIG["d_model"]}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The networks are so small that threads only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def official(tmp_path_factory) -> Path:
    """A folder as Wan publishes it: DiT, VAE, umT5 and its tokenizer."""
    folder = tmp_path_factory.mktemp("wan")
    pipe = pipelines.text_to_video(folder)
    return pipelines.official(pipe, folder / "official")


@pytest.fixture
def run(tmp_path, official) -> Path:
    """A training run of two checkpoints, of which the older one is the better."""
    folder = tmp_path / "runs" / "tiny" / "2026-01-31"
    for step, loss in ((7, 0.5), (9, 0.6)):
        place = folder / "checkpoints" / f"step={step:08d}"
        place.mkdir(parents=True)
        for name, seed in (("model", step), ("ema", 10 * step)):
            save_file(ours("t2v", seed, **TEXT).state_dict(), place / f"{name}.safetensors")
        meta = {
            "class": "WanDiT",
            "model": ours("t2v", **TEXT).config,
            "step": step,
            "validation": loss,
            "parts": {
                "vae": str(official / "Wan2.1_VAE.pth"),
                "text_encoder": os.path.relpath(official, folder),
                "image_encoder": None,
            },
            "trained_on": {"width": 32, "height": 48, "frames": 9, "fps": 16, "shift": 3.0},
        }
        (place / "meta.json").write_text(json.dumps(meta))
    return folder


def done(*keys: str) -> None:
    assert main(Export, export, [str(one) for one in keys]) == 0


def refused(capsys, *keys: str) -> str:
    """The one line that it ends in, with exit status 2."""
    capsys.readouterr()
    assert main(Export, export, [str(one) for one in keys]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


PIPELINE = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
}


@pytest.mark.parametrize("origin", ["official", "run"])
def test_diffusers_opens_an_export_and_samples_the_same_video_from_the_same_noise(
    request, tmp_path, capsys, origin
):
    source = request.getfixturevalue(origin)
    done(f"source={source}", f"target={tmp_path / 'out'}")
    assert f'WanPipeline.from_pretrained("{tmp_path / "out"}")' in capsys.readouterr().out
    assert files(tmp_path / "out") == PIPELINE
    pipe = pipelines.quiet(WanPipeline.from_pretrained(tmp_path / "out"))
    assert isinstance(pipe.scheduler, UniPCMultistepScheduler)
    wanted = pipe(
        prompt=PROMPTS,
        negative_prompt="红, s",
        height=48,
        width=32,
        num_frames=9,
        num_inference_steps=4,
        guidance_scale=5.0,
        generator=pipelines.generators([3, 4]),
        output_type="pt",
    ).frames
    bundle = load_bundle(str(source))
    small = {"width": 32, "height": 48, "frames": 9, "steps": 4, "guidance": 5.0}
    settings = Settings.of(bundle.card, negative="红, s", **small)
    assert settings.shift == (3.0 if origin == "run" else 8.0)  # what it was trained on, or public
    latents = sample(bundle, PROMPTS, [3, 4], settings)
    found = torch.cat(list(decode(bundle, latents)), dim=2).transpose(1, 2) / 2 + 0.5
    assert wanted.std() > 0.1
    assert (wanted[0] - wanted[1]).abs().max() > 0.1
    assert (found - wanted).abs().max() < 1e-4


def test_of_a_run_the_best_averaged_weights_are_exported(tmp_path, run):
    best = ours("t2v", 70, **TEXT).state_dict()
    done(f"source={run}", f"target={tmp_path / 'a'}", "to=ours", "parts=dit")
    assert same_tensors(load_file(tmp_path / "a" / "model.safetensors"), best)
    last = run / "checkpoints" / "step=00000009"
    done(f"source={last}", f"target={tmp_path / 'b'}", "parts=dit")
    found = WanTransformer3DModel.from_pretrained(tmp_path / "b")
    assert same_tensors(tiny_wan.renamed(found), ours("t2v", 90, **TEXT).state_dict())


def test_the_tokenizer_gives_diffusers_the_same_tokens_rare_characters_included(tmp_path, official):
    done(f"source={official}", f"target={tmp_path / 'out'}")
    theirs = WanPipeline.from_pretrained(tmp_path / "out").tokenizer
    words = load_bundle(str(official)).text.tokenizer
    texts = ["", "a red cat", "龘 é 🐈", "红色的猫,"]
    assert theirs(texts).input_ids == words(texts).input_ids
    unknown = theirs.convert_tokens_to_ids("<unk>")
    assert not any(unknown in row for row in theirs(texts).input_ids)
    padded = theirs(texts, padding="max_length", max_length=20, truncation=True)
    assert {len(row) for row in padded.input_ids} == {20}


@pytest.mark.parametrize("kind", ["i2v", "flf2v"])
def test_an_image_to_video_model_is_exported_with_its_image_encoder(tmp_path, official, kind):
    dit = redrawn(WanDiT(**tiny_wan.DITS[kind][0] | TEXT))
    save(dit, tmp_path / "dit")
    sizes = {"num_layers": 3, "num_heads": 2, "mlp_width": 24, "image_size": 28}
    image = redrawn(ImageEncoder(width=16, **sizes))
    save(image, tmp_path / "clip")
    done(
        f"source={tmp_path / 'dit'}",
        f"target={tmp_path / 'out'}",
        f"vae={official / 'Wan2.1_VAE.pth'}",
        f"text_encoder={official}",
        f"image_encoder={tmp_path / 'clip'}",
        "shift=7",
    )
    clip = {
        "image_encoder/config.json",
        "image_encoder/model.safetensors",
        "image_processor/preprocessor_config.json",
    }
    assert files(tmp_path / "out") == PIPELINE | clip
    pipe = WanImageToVideoPipeline.from_pretrained(tmp_path / "out")
    assert same_tensors(tiny_wan.renamed(pipe.transformer), dit.state_dict())
    assert pipe.scheduler.config.flow_shift == 7
    torch.manual_seed(0)
    pixels = torch.randn(2, 3, 28, 28)
    seen = pipe.image_encoder(pixels, output_hidden_states=True).hidden_states[-2]
    assert seen.std() > 0.1
    torch.testing.assert_close(image(pixels), seen, atol=1e-4, rtol=0)
    prepared = pipe.image_processor(torch.rand(3, 40, 60), do_rescale=False, return_tensors="pt")
    assert prepared.pixel_values.shape == (1, 3, 28, 28)
    from transformers import CLIPImageProcessor

    public = CLIPImageProcessor()  # OpenAI's means, which Wan keeps
    assert pipe.image_processor.image_mean == public.image_mean
    assert pipe.image_processor.image_std == public.image_std


def test_to_official_and_back_is_the_same_transformer_byte_for_byte(tmp_path, official):
    for source, target, to in (
        (official, "there", "diffusers"),
        (tmp_path / "there", "back", "official"),
        (tmp_path / "back", "again", "diffusers"),
    ):
        done(f"source={source}", f"target={tmp_path / target}", f"to={to}")
    assert files(tmp_path / "back") == {
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "Wan2.1_VAE.pth",
    }
    name = "diffusion_pytorch_model.safetensors"
    assert (tmp_path / "back" / name).read_bytes() == (official / name).read_bytes()
    for part in ("transformer", "vae"):
        data = [(tmp_path / one / part / name).read_bytes() for one in ("there", "again")]
        assert data[0] == data[1]
    vaes = [torch.load(one / "Wan2.1_VAE.pth") for one in (official, tmp_path / "back")]
    assert same_tensors(*vaes)


@pytest.mark.parametrize("to", ["diffusers", "official", "ours"])
def test_networks_without_encoders_are_exported_alone(tmp_path, capsys, to):
    save(ours("t2v"), tmp_path / "dit")
    save(ours("other"), tmp_path / "vae")
    done(f"source={tmp_path / 'dit'}", f"target={tmp_path / 'a'}", f"to={to}")
    assert same_tensors(load_dit(tmp_path / "a").state_dict(), ours("t2v").state_dict())
    assert ("no pipeline" in capsys.readouterr().out) == (to == "diffusers")
    done(f"source={tmp_path / 'vae'}", f"target={tmp_path / 'b'}", f"to={to}")
    assert load_vae(tmp_path / "b").config == ours("other").config
    both = (f"source={tmp_path / 'dit'}", f"vae={tmp_path / 'vae'}", f"target={tmp_path / 'c'}")
    done(*both, f"to={to}")
    assert same_tensors(load_dit(tmp_path / "c").state_dict(), ours("t2v").state_dict())
    assert same_tensors(load_vae(tmp_path / "c").state_dict(), ours("other").state_dict())


def test_a_run_of_a_vae_is_exported_as_a_vae(tmp_path):
    place = tmp_path / "run" / "checkpoints" / "step=00000003"
    place.mkdir(parents=True)
    save_file(ours("other").state_dict(), place / "model.safetensors")
    save_file(ours("other", 5).state_dict(), place / "ema.safetensors")
    meta = {"class": "WanVAE", "model": ours("other").config, "step": 3}
    (place / "meta.json").write_text(json.dumps(meta))
    done(f"source={tmp_path / 'run'}", f"target={tmp_path / 'out'}")
    found = AutoencoderKLWan.from_pretrained(tmp_path / "out")
    assert same_tensors(tiny_wan.renamed(found), ours("other", 5).state_dict())
    assert found.config.latents_mean == tiny_wan.STATISTICS[0]


def test_a_dtype_is_the_dit_s_alone(tmp_path, official):
    done(f"source={official}", f"target={tmp_path / 'out'}", "dtype=bfloat16")
    folders = ("transformer", "vae", "text_encoder")
    loaded = [load_file(next((tmp_path / "out" / one).glob("*.safetensors"))) for one in folders]
    dtypes = [{value.dtype for value in tensors.values()} for tensors in loaded]
    assert dtypes == [{torch.bfloat16}, {torch.float32}, {torch.float32}]


def test_official_is_one_file_however_large_it_is_as_comfyui_wants_it(tmp_path, monkeypatch):
    """Its loader is given one file's name, and reads that file alone."""
    monkeypatch.setattr("training.export.SHARD_BYTES", 1_600_000)
    network = ours("t2v")
    save(network, tmp_path / "dit")
    names = {}
    for to in ("official", "diffusers"):
        done(f"source={tmp_path / 'dit'}", f"target={tmp_path / to}", f"to={to}")
        names[to] = sorted(path.name for path in (tmp_path / to).glob("*.safetensors"))
    assert names["official"] == ["diffusion_pytorch_model.safetensors"]
    assert len(names["diffusers"]) > 1
    tensors = load_file(tmp_path / "official" / names["official"][0])
    assert same_tensors(tensors, network.state_dict())
    done(f"source={tmp_path / 'dit'}", f"target={tmp_path / 'cut'}", "to=official", "shard_gb=1e-3")
    assert len([*(tmp_path / "cut").glob("*.safetensors")]) > 1


def test_shards_are_as_large_as_asked_for(tmp_path):
    save(ours("t2v"), tmp_path / "dit")
    done(f"source={tmp_path / 'dit'}", f"target={tmp_path / 'out'}", "shard_gb=0.0016")
    assert len(list((tmp_path / "out").glob("*-of-*.safetensors"))) > 2
    assert same_tensors(load_dit(tmp_path / "out").state_dict(), ours("t2v").state_dict())


# --- what goes wrong ----------------------------------------------------------------------------


def test_a_byte_encoder_makes_no_pipeline_and_the_networks_go_without_it(
    tmp_path, official, capsys
):
    save_byte_encoder(ByteEncoder(width=TEXT["text_width"]), tmp_path / "bytes")
    keys = (
        f"source={official}",
        f"text_encoder={tmp_path / 'bytes'}",
        f"target={tmp_path / 'out'}",
    )
    said = refused(capsys, *keys)
    assert "ByteEncoder" in said
    assert "parts=[dit,vae]" in said
    assert not (tmp_path / "out").exists()
    done(*keys, "parts=[dit,vae]")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"transformer", "vae"}
    WanTransformer3DModel.from_pretrained(tmp_path / "out" / "transformer")


def test_an_encoder_of_another_width_is_refused_and_nothing_is_left(tmp_path, official, capsys):
    save(ours("t2v"), tmp_path / "dit")
    said = refused(
        capsys,
        f"source={tmp_path / 'dit'}",
        f"vae={official / 'Wan2.1_VAE.pth'}",
        f"text_encoder={official}",
        f"target={tmp_path / 'out'}",
    )
    assert "don't belong together" in said
    assert [path.name for path in tmp_path.iterdir()] == ["dit"]


def test_a_user_s_mistake_is_one_line_and_status_2(tmp_path, capsys):
    save(ours("t2v"), tmp_path / "dit")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes((tmp_path / "dit" / "model.safetensors").read_bytes()[:-100])
    strange = tmp_path / "strange.safetensors"
    save_file({"a.weight": torch.ones(2)}, strange)
    lacking = ours("t2v").state_dict()
    del lacking["head.head.weight"]
    save_file(lacking, tmp_path / "lacking.safetensors")
    there = {path.name for path in tmp_path.iterdir()}
    dit, out = f"source={tmp_path / 'dit'}", f"target={tmp_path / 'out'}"
    for keys, said in (
        ([], "source"),
        ([dit], "target"),
        ([f"source={tmp_path / 'nowhere'}", out], "nowhere"),
        ([f"source={tmp_path / 'empty'}", out], "no weights"),
        ([f"source={broken}", out], "broken.safetensors"),
        ([f"source={strange}", out], "unknown format"),
        ([f"source={tmp_path / 'lacking.safetensors'}", out], "1 of 69 names missing: head.head."),
        (["source=random:tiny", out], "no weights to export"),
        ([dit, f"target={tmp_path / 'full'}"], "is there already"),
        ([dit, f"target={tmp_path / 'file'}"], "is there already"),
        ([dit, f"target={tmp_path / 'file' / 'below'}"], "can't be written"),
        ([dit, out, "to=comfy"], "diffusers, official, ours"),
        ([dit, out, "parts=vae"], "no weights of a VAE"),
        ([dit, out, "shard_gb=0"], "shard_gb"),
        ([dit, out, "shift=0"], "shift"),
        ([dit, out, "num_heads=3"], "3 heads"),
        ([dit, out, "sorce=x"], "the nearest is source"),
    ):
        assert said in refused(capsys, *keys), keys
        assert {path.name for path in tmp_path.iterdir()} == there, keys


@pytest.mark.slow
def test_the_command_runs_as_a_person_starts_it(tmp_path):
    save(ours("t2v"), tmp_path / "dit")
    ended = subprocess.run(
        [
            sys.executable,
            "training/export.py",
            f"source={tmp_path / 'dit'}",
            f"target={tmp_path}/a",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "Exported" in ended.stdout
    assert f"{tmp_path}/a" in ended.stdout
    assert same_tensors(load_dit(tmp_path / "a").state_dict(), ours("t2v").state_dict())
