"""umT5 from every form of its weights computes what Wan's own encoder does."""

import json
import math

import pytest
import torch
from torch.nn.functional import gelu
from transformers import UMT5EncoderModel

from model import umt5
from model.prompt import clean
from model.tensors import CheckpointError
from model.text import load_text_encoder
from tests import tiny_umt5

PROMPTS = ["a red cat, a cat.", "", "红色的猫 é"]


def official(net) -> dict:
    """A model's tensors as Wan names them, written out by hand for the two layers of the tests."""
    old = net.state_dict()
    new = {"token_embedding.weight": old["shared.weight"]}
    new["norm.weight"] = old["encoder.final_layer_norm.weight"]
    for i in range(2):
        attention, ffn = f"encoder.block.{i}.layer.0.", f"encoder.block.{i}.layer.1."
        new[f"blocks.{i}.norm1.weight"] = old[f"{attention}layer_norm.weight"]
        for letter in "qkvo":
            new[f"blocks.{i}.attn.{letter}.weight"] = old[
                f"{attention}SelfAttention.{letter}.weight"
            ]
        bias = old[f"{attention}SelfAttention.relative_attention_bias.weight"]
        new[f"blocks.{i}.pos_embedding.embedding.weight"] = bias
        new[f"blocks.{i}.norm2.weight"] = old[f"{ffn}layer_norm.weight"]
        new[f"blocks.{i}.ffn.gate.0.weight"] = old[f"{ffn}DenseReluDense.wi_0.weight"]
        new[f"blocks.{i}.ffn.fc1.weight"] = old[f"{ffn}DenseReluDense.wi_1.weight"]
        new[f"blocks.{i}.ffn.fc2.weight"] = old[f"{ffn}DenseReluDense.wo.weight"]
    return new


def published(tensors: dict, ids: list[int], heads: int = 4) -> torch.Tensor:
    """The encoder of `wan/modules/t5.py` on one prompt, [N, D], from its formulas."""

    def normed(x, name):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * tensors[f"{name}.weight"]

    def bucket(distance):  # from a token to the one attended to: 16 buckets each way
        side, distance = 16 * (distance > 0), abs(distance)
        far = 8 + int(math.log(max(distance, 1) / 8) / math.log(128 / 8) * 8)
        return side + (distance if distance < 8 else min(far, 15))

    n = len(ids)
    buckets = torch.tensor([[bucket(k - q) for k in range(n)] for q in range(n)])
    x = tensors["token_embedding.weight"][ids]
    for i in range(2):
        at = {name.removeprefix(f"blocks.{i}."): value for name, value in tensors.items()}
        y = normed(x, f"blocks.{i}.norm1")
        q, k, v = (
            (y @ at[f"attn.{one}.weight"].T).view(n, heads, -1).transpose(0, 1) for one in "qkv"
        )
        bias = at["pos_embedding.embedding.weight"][buckets].permute(2, 0, 1)
        attended = (q @ k.transpose(1, 2) + bias).softmax(-1) @ v
        x = x + attended.transpose(0, 1).reshape(n, -1) @ at["attn.o.weight"].T
        y = normed(x, f"blocks.{i}.norm2")
        gate = gelu(y @ at["ffn.gate.0.weight"].T, approximate="tanh")
        x = x + (gate * (y @ at["ffn.fc1.weight"].T)) @ at["ffn.fc2.weight"].T
    return normed(x, "norm")


@pytest.fixture(scope="module")
def net():
    return tiny_umt5.model()


@pytest.fixture(scope="module")
def folder(net, tmp_path_factory):
    return tiny_umt5.official_folder(tmp_path_factory.mktemp("Wan2.1"), official(net))


@pytest.fixture(scope="module")
def encoder(folder):
    return load_text_encoder(folder)


def test_umt5_from_the_official_file_computes_what_wans_own_encoder_does(encoder, net):
    prompts = [*PROMPTS, " ".join(["a red cat"] * 50)]  # far beyond the exact position buckets
    made = encoder.encode(prompts)
    for row, length, prompt in zip(made.features, made.lengths, prompts, strict=True):
        ids = encoder.tokenizer(clean(prompt)).input_ids
        expected = published(official(net), ids)
        assert length == len(ids)
        torch.testing.assert_close(row[:length], expected, rtol=1e-5, atol=1e-5)
        assert expected.std() > 0.5


def test_every_form_of_umt5s_weights_gives_diffusers_features(encoder, net, folder, tmp_path):
    from diffusers.pipelines.wan.pipeline_wan import WanPipeline
    from safetensors.torch import save_file

    tiny_umt5.diffusers_folder(tmp_path, net)
    save_file(official(net), tmp_path / "official.safetensors")
    words = tmp_path / "tokenizer"
    forms = {
        "official folder": encoder,
        "official .pth": load_text_encoder(folder / tiny_umt5.OFFICIAL),
        "official names in safetensors": load_text_encoder(tmp_path / "official.safetensors"),
        "diffusers pipeline": load_text_encoder(tmp_path),
        "transformers folder": load_text_encoder(tmp_path / "text_encoder"),
        "one file of transformers": load_text_encoder(
            tmp_path / "text_encoder" / "model.safetensors", tokenizer=words
        ),
    }
    public = WanPipeline.__new__(WanPipeline)
    public.tokenizer, public.text_encoder = encoder.tokenizer, net
    public.tokenizer.pad_token = "<pad>"
    expected = public._get_t5_prompt_embeds(
        PROMPTS, max_sequence_length=512, device=torch.device("cpu")
    )
    for form, one in forms.items():
        made = one.encode(PROMPTS)
        assert made.features.shape == (3, 512, 32), form
        torch.testing.assert_close(made.features, expected, rtol=1e-5, atol=1e-5, msg=form)
    assert (encoder.width, encoder.length, encoder.name) == (32, 512, "umt5-2x32")


def test_umt5s_names_go_both_ways_and_are_the_public_ones(net):
    theirs = [name for name in net.state_dict() if name != umt5.TIED]
    assert {umt5.to_official(name) for name in theirs} == set(official(net))
    assert [umt5.to_transformers(umt5.to_official(name)) for name in theirs] == theirs


def test_the_official_files_shapes_tell_umt5_xxls_own_config():
    width, ffn, heads = 4096, 10240, 64
    shapes = {"token_embedding.weight": (256384, width), "norm.weight": (width,)}
    for i in range(24):
        block = {f"attn.{one}": (width, width) for one in "qkvo"} | {"ffn.fc2": (width, ffn)}
        block |= {"norm1": (width,), "norm2": (width,), "pos_embedding.embedding": (32, heads)}
        block |= {"ffn.gate.0": (ffn, width), "ffn.fc1": (ffn, width)}
        shapes |= {f"blocks.{i}.{name}.weight": shape for name, shape in block.items()}
    config = umt5.sizes({umt5.to_transformers(name): shape for name, shape in shapes.items()})
    with torch.device("meta"):
        full = UMT5EncoderModel(config)
    expected = {name: tuple(value.shape) for name, value in full.state_dict().items()}
    del expected[umt5.TIED]
    assert {umt5.to_transformers(name): shape for name, shape in shapes.items()} == expected
    assert sum(value.numel() for value in full.parameters()) == 5_680_910_336
    # google/umt5-xxl's config.json
    assert (config.d_kv, config.feed_forward_proj, config.dense_act_fn) == (
        *(64, "gated-gelu"),
        "gelu_new",
    )


def test_sharded_pickles_of_a_whole_umt5_give_its_encoder(encoder, net, tmp_path):
    # google/umt5-xxl: encoder, decoder and head in pytorch_model-0000N-of-0000M.bin
    tensors = dict(net.state_dict())
    tensors["decoder.block.0.layer.0.layer_norm.weight"] = torch.ones(32)
    tensors["lm_head.weight"] = torch.ones(300, 32)
    names = sorted(tensors)
    shards = {f"pytorch_model-0000{i + 1}-of-00002.bin": names[i::2] for i in range(2)}
    for shard, held in shards.items():
        torch.save({name: tensors[name] for name in held}, tmp_path / shard)
    index = {"weight_map": {name: shard for shard, held in shards.items() for name in held}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    net.config.save_pretrained(tmp_path)
    tiny_umt5.tokenizer(tmp_path)
    made = load_text_encoder(tmp_path).encode(PROMPTS).features
    torch.testing.assert_close(made, encoder.encode(PROMPTS).features)
    (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(CheckpointError, match="lacks pytorch_model-00002"):
        load_text_encoder(tmp_path)


def test_umt5_from_the_hubs_cache_needs_no_network(encoder, net, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--Wan2.1"
    tiny_umt5.diffusers_folder(repository / "snapshots" / "abc", net)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    made = load_text_encoder("someone/Wan2.1").encode(PROMPTS).features
    torch.testing.assert_close(made, encoder.encode(PROMPTS).features)


def test_of_a_hub_repository_only_the_text_encoder_is_brought(monkeypatch, tmp_path):
    import huggingface_hub

    brought = {}
    repositories = {
        "a/diffusers": "transformer/model.safetensors vae/config.json text_encoder/config.json "
        "text_encoder/model.safetensors tokenizer/tokenizer.json tokenizer/spiece.model",
        "a/official": f"diffusion_pytorch_model.safetensors config.json {tiny_umt5.OFFICIAL} "
        "google/umt5-xxl/tokenizer.json google/umt5-xxl/spiece.model assets/logo.png",
        "a/umt5": "tf_model.h5 config.json pytorch_model-00001-of-00002.bin spiece.model "
        "pytorch_model.bin.index.json flax_model.msgpack",
    }

    def download(name, allow_patterns=None, **_):
        brought[name] = allow_patterns
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda one: repositories[one].split())
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    for name in repositories:
        with pytest.raises(CheckpointError, match="no text encoder there"):
            load_text_encoder(name)
    assert brought == {
        "a/diffusers": repositories["a/diffusers"].split()[2:],
        "a/official": repositories["a/official"].split()[2:5],
        "a/umt5": repositories["a/umt5"].split()[1:5],
    }


def test_the_tokenizer_is_the_files_own_and_keeps_what_transformers_drops(encoder, folder):
    from tokenizers import Tokenizer

    place = folder / "google" / "umt5-xxl"
    own = Tokenizer.from_file(str(place / "tokenizer.json"))
    for prompt in PROMPTS:
        assert encoder.tokenizer(prompt).input_ids == own.encode(prompt).ids
    # é is in no vocabulary: two bytes, not <unk>, which transformers' T5Tokenizer makes of it
    assert encoder.tokenizer("é").input_ids[-3:] == [3 + 0xC3, 3 + 0xA9, 1]


def test_a_dtype_is_kept_or_asked_for(net, tmp_path):
    half = {name: value.bfloat16() for name, value in official(net).items()}
    tiny_umt5.official_folder(tmp_path, half)
    assert load_text_encoder(tmp_path).encode(["a"]).features.dtype == torch.bfloat16
    made = load_text_encoder(tmp_path, dtype=torch.float32)
    assert made.encode(["a"]).features.dtype == torch.float32
    # `wo` overflows float16: transformers keeps it in float32 there, and so do we
    halves = load_text_encoder(tmp_path, dtype=torch.float16).model
    assert {name for name, value in halves.named_parameters() if value.dtype == torch.float32} == {
        f"encoder.block.{i}.layer.1.DenseReluDense.wo.weight" for i in range(2)
    }
    made.to(torch.float64)
    assert made.encode(["a"]).features.dtype == torch.float64


def test_umt5_is_frozen_and_without_dropout(encoder):
    assert not any(value.requires_grad for value in encoder.model.parameters())
    first, second = (encoder.encode(["a red cat"]).features for _ in range(2))
    assert torch.equal(first, second)
    assert not first.requires_grad


def test_umt5_keeps_the_last_token_of_a_cut_prompt_and_names_how_many_are_lost(encoder, caplog):
    exact, longer = "s" * 510, "s" * 520  # "▁", the letters and </s>
    made = encoder.encode([exact, longer])
    assert made.truncated == (False, True)
    assert "from 522 to 512 tokens (the last 10 are lost)" in caplog.text
    # the public pipeline cuts the same way, and so both are the same tokens
    assert torch.equal(made.features[0], made.features[1])


def test_a_missing_tokenizer_says_where_it_was_looked_for(net, tmp_path):
    torch.save(official(net), tmp_path / tiny_umt5.OFFICIAL)
    with pytest.raises(CheckpointError, match=r"tokenizer.json is missing.*google/umt5-xxl"):
        load_text_encoder(tmp_path)


def planted(tensors: dict, fault: str) -> dict:
    tensors = dict(tensors)
    if fault == "missing":
        del tensors["blocks.1.ffn.fc1.weight"]
    elif fault == "unexpected":
        tensors["blocks.1.ffn.fc3.weight"] = torch.ones(1)
    elif fault == "shape":
        tensors["blocks.1.pos_embedding.embedding.weight"] = torch.ones(32, 2)
    else:
        tensors = {"conv1.weight": torch.ones(1)}
    return tensors


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("missing", r"missing: encoder.block.1.layer.1.DenseReluDense.wi_1.weight"),
        ("unexpected", r"blocks.1.ffn.fc3.weight"),
        ("shape", r"another shape: .*relative_attention_bias.weight \(32, 2\) for \(32, 4\)"),
        ("another model", r"not umT5"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(net, tmp_path, fault, said):
    tiny_umt5.official_folder(tmp_path, planted(official(net), fault))
    with pytest.raises(CheckpointError, match=said) as caught:
        load_text_encoder(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_code_in_a_pickle_is_refused_and_does_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    tiny_umt5.official_folder(tmp_path, {"norm.weight": Trap()})
    with pytest.raises(CheckpointError, match=tiny_umt5.OFFICIAL):
        load_text_encoder(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_another_language_model_or_tokenizer_is_refused(net, folder, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(CheckpointError, match="of type t5"):
        load_text_encoder(tmp_path)
    small = {**official(net), "token_embedding.weight": torch.ones(200, 32)}
    encoder = load_text_encoder(tiny_umt5.official_folder(tmp_path / "small", small))
    with pytest.raises(ValueError, match="the tokenizer gives token"):
        encoder.encode(["a cat"])
