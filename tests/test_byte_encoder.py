"""A small encoder of bytes: any language, cut between characters, the same from its seed."""

import json

import pytest
import torch
from torch.nn.functional import pad

from model.byte_encoder import BEGIN, ByteEncoder, load_byte_encoder, save_byte_encoder
from model.tensors import CheckpointError
from model.text import load_text_encoder

PROMPTS = ["a red cat, a cat.", "", "红色的猫 é"]


def test_bytes_are_cut_between_characters(caplog):
    encoder = ByteEncoder(length=9)
    ids, lengths, cut = encoder.tokens(["猫猫猫", "12345678", "猫猫12", "猫猫123"])
    assert cut == (True, False, False, True)
    assert lengths.tolist() == [7, 9, 9, 9]  # the third 猫 would need a ninth byte
    kept = [
        bytes(row[1:length].tolist()).decode() for row, length in zip(ids, lengths, strict=True)
    ]
    assert kept == ["猫猫", "12345678", "猫猫12", "猫猫12"]
    assert set(ids[:, 0].tolist()) == {BEGIN}
    assert "from 9 to 6 bytes" in caplog.text


def test_different_prompts_have_different_features_in_any_language():
    prompts = ["a cat", "a cow", "cat a", "红色的猫", "红色的狗", ""]
    with torch.no_grad():
        features = ByteEncoder().encode(prompts).features
    for i, one in enumerate(features):
        for other in features[:i]:
            assert (one - other).norm() / one.norm() > 0.1


def test_the_order_of_bytes_and_the_whole_prompt_reach_every_feature():
    encoder = ByteEncoder()
    with torch.no_grad():
        first, second = encoder.encode(["a cat sits", "a cat sith"]).features
    assert (first[:10] - second[:10]).abs().amax(1).min() > 1e-4


def test_a_byte_encoder_is_the_same_from_its_seed_and_leaves_the_global_one_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = ByteEncoder(seed=5)
    # nn.Linear draws too, before ours; what follows must not depend on how much it drew
    torch.manual_seed(2)
    second = ByteEncoder(seed=5)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(first.embedding.weight, ByteEncoder(seed=6).embedding.weight)
    torch.manual_seed(1)
    ByteEncoder()
    assert torch.equal(before, torch.get_rng_state())


def test_a_byte_encoder_is_the_transformer_it_says():
    encoder = redrawn(ByteEncoder(width=8, num_layers=2, num_heads=2))
    ids, lengths, _ = encoder.tokens(["猫s"])
    x = encoder.embedding.weight[ids[0]]
    rates = 10_000.0 ** -(torch.arange(4) / 4)
    angles = torch.arange(len(x))[:, None] * rates
    x = (x + torch.cat([angles.sin(), angles.cos()], 1))[None]
    for block in encoder.blocks:
        # PyTorch's own layer, given the same weights
        layer = torch.nn.TransformerEncoderLayer(
            8, 2, 32, 0.0, "gelu", batch_first=True, norm_first=True
        )
        state = block.state_dict()
        renamed = {
            **{"qkv": "self_attn.in_proj_", "out": "self_attn.out_proj."},
            **{"ffn.0": "linear1.", "ffn.1": "linear2.", "norm1": "norm1.", "norm2": "norm2."},
        }
        layer.load_state_dict(
            {
                f"{to}{leaf}": state[f"{at}.{leaf}"]
                for at, to in renamed.items()
                for leaf in ("weight", "bias")
            }
        )
        x = layer(x)
    expected = pad(encoder.norm(x), (0, 0, 0, 512 - x.shape[1]))
    torch.testing.assert_close(encoder(ids, lengths), expected, rtol=1e-5, atol=1e-5)


def redrawn(encoder: ByteEncoder) -> ByteEncoder:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in encoder.parameters():
            value.copy_(0.5 * torch.randn(value.shape, generator=generator))
    return encoder


def test_gradients_reach_every_weight_of_a_byte_encoder_and_none_the_padding():
    encoder = ByteEncoder(width=16, num_layers=1)
    features = encoder.encode(["a cat", "猫" * 10]).features
    features.square().mean().backward()
    assert all(value.grad.abs().max() > 0 for value in encoder.parameters())
    used = {BEGIN, *b"a cat", *"猫".encode()}
    assert set(encoder.embedding.weight.grad.abs().sum(1).nonzero().flatten().tolist()) == used


def test_a_byte_encoder_saved_is_the_one_loaded(tmp_path):
    encoder = redrawn(ByteEncoder(width=16, num_layers=1, length=64))
    save_byte_encoder(encoder, tmp_path / "bytes")
    loaded = load_text_encoder(tmp_path / "bytes")
    assert loaded.config == encoder.config
    assert (loaded.name, loaded.width, loaded.length) == ("bytes", 16, 64)
    assert not any(value.requires_grad for value in loaded.parameters())
    with torch.no_grad():
        assert torch.equal(loaded.encode(PROMPTS).features, encoder.encode(PROMPTS).features)
    trainable = load_byte_encoder(tmp_path / "bytes", dtype=torch.bfloat16)
    assert {value.dtype for value in trainable.parameters()} == {torch.bfloat16}
    assert trainable.encode(["a"]).features.requires_grad


def test_a_byte_encoder_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    from model import byte_encoder

    def killed(*_) -> None:
        raise KeyboardInterrupt

    for at in ("write_weights", "write_json"):
        with monkeypatch.context() as patch:
            patch.setattr(byte_encoder, at, killed)
            with pytest.raises(KeyboardInterrupt):
                save_byte_encoder(ByteEncoder(width=16), tmp_path / "bytes")
        assert not (tmp_path / "bytes").exists()
    save_byte_encoder(ByteEncoder(width=16), tmp_path / "bytes")
    assert load_text_encoder(tmp_path / "bytes").width == 16


def test_a_byte_encoders_folder_must_fit_its_config(tmp_path):
    save_byte_encoder(ByteEncoder(width=16), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(CheckpointError, match="no tokenizer"):
        load_text_encoder(tmp_path, tokenizer="google/umt5-xxl")
    for change, said in {"num_layers": "missing: blocks.2", "colour": "colour"}.items():
        (tmp_path / "config.json").write_text(json.dumps({**config, change: 3}))
        with pytest.raises(CheckpointError, match=said):
            load_text_encoder(tmp_path)
