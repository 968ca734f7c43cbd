"""Where networks lie: in folders of every kind, in shards, on the hub; with which config file."""

import json

import pytest
import torch
from safetensors.torch import save_file

from model.checkpoint import load_dit, load_vae, save
from tests import tiny_wan
from tests.test_checkpoint import DIT, load, refused
from tests.tiny_wan import ours, same_tensors, theirs, write_official


def test_a_diffusers_pipeline_s_folder_has_both(tmp_path):
    theirs("t2v").save_pretrained(tmp_path / "transformer")
    theirs("wan").save_pretrained(tmp_path / "vae")
    (tmp_path / "model_index.json").write_text("{}")
    assert load_dit(tmp_path).origin.path == tmp_path / "transformer" / DIT
    assert load_vae(tmp_path).origin.path == tmp_path / "vae" / DIT


@pytest.mark.parametrize("name", ["Wan2.1_VAE.pth", "Wan2.1_VAE.safetensors"])
def test_an_official_folder_has_both_and_the_dit_s_config_is_not_the_vae_s(tmp_path, name):
    write_official(ours("t2v"), tmp_path)
    vae = ours("wan")
    if name.endswith(".pth"):
        write_official(vae, tmp_path)
    else:
        save_file(vae.state_dict(), tmp_path / name)
    (tmp_path / "models_t5_umt5-xxl-enc-bf16.pth").write_bytes(b"not to be opened")
    assert load_dit(tmp_path).origin.config_file == tmp_path / "config.json"
    found = load_vae(tmp_path)
    assert found.origin.path == tmp_path / name
    assert found.origin.config_file is None
    assert same_tensors(found.state_dict(), vae.state_dict())


def test_shards_are_read_through_their_index_and_one_of_them_stands_for_all(tmp_path):
    model = theirs("i2v")
    model.save_pretrained(tmp_path, max_shard_size="400KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    one = sorted(tmp_path.glob("*.safetensors"))[1]
    for path in (tmp_path, one, tmp_path / f"{DIT}.index.json"):
        assert same_tensors(load_dit(path).state_dict(), tiny_wan.renamed(model))


def test_of_a_run_s_checkpoint_the_averaged_weights_are_taken_and_meta_tells_the_sizes(tmp_path):
    trained, averaged = ours("t2v", 1, num_heads=4), ours("t2v", 2, num_heads=4)
    save_file(trained.state_dict(), tmp_path / "model.safetensors")
    meta = {"class": "WanDiT", "model": trained.config, "step": 7}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    assert same_tensors(load_dit(tmp_path).state_dict(), trained.state_dict())
    save_file(averaged.state_dict(), tmp_path / "ema.safetensors")
    found = load_dit(tmp_path)
    assert same_tensors(found.state_dict(), averaged.state_dict())
    assert found.config == trained.config
    assert found.origin.format == "ours"
    asked = load_dit(tmp_path / "model.safetensors")
    assert same_tensors(asked.state_dict(), trained.state_dict())
    assert asked.config["num_heads"] == 4


def test_two_candidates_are_named_and_neither_is_taken(tmp_path):
    for name in ("a", "b"):
        save_file(ours("t2v").state_dict(), tmp_path / f"{name}.safetensors")
    said = refused(load_dit, tmp_path)
    assert "a.safetensors" in said
    assert "b.safetensors" in said
    load_dit(tmp_path / "b.safetensors")


def test_where_there_is_nothing_one_line_says_so(tmp_path):
    assert "no weights of a VAE" in refused(load_vae, tmp_path)
    assert str(tmp_path) in refused(load_dit, tmp_path)
    assert "nowhere" in refused(load_dit, tmp_path / "nowhere")
    write_official(ours("t2v"), tmp_path)
    assert DIT in refused(load_vae, tmp_path)
    assert "holds a DiT, not a VAE" in refused(load_vae, tmp_path / DIT)


def test_another_network_s_weights_are_not_taken_for_ours(tmp_path):
    save_file({"model.layers.0.weight": torch.ones(2)}, tmp_path / "a.safetensors")
    assert "unknown format" in refused(load_dit, tmp_path / "a.safetensors")
    assert "a.safetensors" in refused(load_dit, tmp_path)


def test_a_broken_file_is_named(tmp_path):
    write_official(ours("t2v"), tmp_path)
    write_official(ours("wan"), tmp_path)
    for name, call in ((DIT, load_dit), ("Wan2.1_VAE.pth", load_vae)):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        assert name in refused(call, tmp_path / name)
        assert name in refused(call, tmp_path)
        (tmp_path / name).write_bytes(data)


HUB = {
    "official": [
        *("README.md", "config.json", DIT, "Wan2.1_VAE.pth", "assets/logo.png"),
        "models_t5_umt5-xxl-enc-bf16.pth",
    ],
    "diffusers": [
        *("model_index.json", "transformer/config.json", f"transformer/{DIT}"),
        *("vae/config.json", f"vae/{DIT}", "text_encoder/model.safetensors"),
    ],
}


@pytest.mark.parametrize(
    ("kind", "whose", "brought"),
    [
        ("dit", "official", {"config.json", DIT}),
        ("vae", "official", {"Wan2.1_VAE.pth"}),
        ("dit", "diffusers", {"transformer/config.json", f"transformer/{DIT}"}),
        ("vae", "diffusers", {"vae/config.json", f"vae/{DIT}"}),
    ],
)
def test_of_a_repository_on_the_hub_only_that_network_is_brought(
    tmp_path, monkeypatch, kind, whose, brought
):
    import huggingface_hub as hub

    asked = []

    def download(name, allow_patterns):
        assert name == "Wan-AI/Wan2.1"
        asked.extend(allow_patterns)
        model = ours("t2v" if kind == "dit" else "wan")
        if whose == "official":
            write_official(model, tmp_path)
        else:
            save(model, tmp_path / next(iter(brought)).split("/")[0])
        return str(tmp_path)

    monkeypatch.setattr(hub, "list_repo_files", lambda name: HUB[whose])
    monkeypatch.setattr(hub, "snapshot_download", download)
    module = (load_dit if kind == "dit" else load_vae)("Wan-AI/Wan2.1")
    assert set(asked) == brought
    assert module.origin.path.is_relative_to(tmp_path)


# --- config files -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "change", "said"),
    [
        ("t2v", {"qk_norm": None}, "qk_norm"),
        ("t2v", {"cross_attn_norm": False}, "cross_attn_norm"),
        ("wan", {"is_residual": True}, "is_residual"),
        ("wan", {"decoder_base_dim": 12}, "decoder_base_dim"),
        ("wan", {"temperal_downsample": [True]}, "levels"),
        ("t2v", {"num_layers": 10**9}, "num_layers"),
        ("t2v", {"num_layers": 3}, "missing: blocks.2."),
        ("t2v", {"num_layers": 1}, "unexpected: blocks.1."),
        ("t2v", {"ffn_dim": "wide"}, "sizes"),
        ("t2v", {"num_attention_heads": 3}, "another shape"),
    ],
)
def test_a_config_file_that_does_not_fit_is_told(tmp_path, variant, change, said):
    theirs(variant).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert all(config.get(name, "") != value for name, value in change.items())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    assert said in refused(load, variant, tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "\udcff"])
def test_a_config_file_that_is_no_json_object_is_told(tmp_path, text):
    save(ours("t2v"), tmp_path / "a")
    path = tmp_path / "a" / "config.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    assert str(path) in refused(load_dit, tmp_path / "a")


def test_an_unknown_keyword_is_refused(tmp_path):
    save(ours("t2v"), tmp_path / "a")
    assert "heads" in refused(load_dit, tmp_path / "a", heads=2)
