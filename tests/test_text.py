"""Prompts become features, whichever encoder makes them."""

import logging

import pytest
import torch

from model.byte_encoder import ByteEncoder
from model.prompt import clean
from model.tensors import CheckpointError
from model.text import load_text_encoder
from tests import tiny_umt5

PROMPTS = ["a red cat, a cat.", "", "红色的猫 é"]


@pytest.fixture(scope="module")
def umt5(tmp_path_factory):
    return load_text_encoder(tiny_umt5.diffusers_folder(tmp_path_factory.mktemp("pipeline")))


@pytest.fixture(params=["umt5", "bytes"])
def either(request, umt5):
    return umt5 if request.param == "umt5" else ByteEncoder().eval()


def test_a_prompts_features_do_not_depend_on_its_neighbours(either):
    prompts = [*PROMPTS, "a cat " * 60]
    with torch.no_grad():
        together = either.encode(prompts)
        for i, prompt in enumerate(prompts):
            alone = either.encode([prompt])
            torch.testing.assert_close(alone.features[0], together.features[i], rtol=0, atol=2e-5)
            assert alone.lengths[0] == together.lengths[i]


def test_beyond_a_prompts_tokens_there_is_zero_and_within_there_is_not(either):
    with torch.no_grad():
        made = either.encode(["a red cat", "红色的猫"])
    for row, length in zip(made.features, made.lengths.tolist(), strict=True):
        assert 1 < length < 512
        assert row[length:].abs().max() == 0
        assert row[:length].abs().amax(1).min() > 0.1


def test_an_empty_prompt_has_one_token(either):
    made = either.encode([""])
    assert made.lengths.tolist() == [1]
    assert made.features.shape == (1, 512, either.width)
    assert made.features[0, 0].norm() > 0.1
    assert torch.equal(made.features, either.encode([" \n\t"]).features)


def test_a_long_prompt_is_cut_and_that_is_reported(either, caplog):
    with caplog.at_level(logging.WARNING), torch.no_grad():
        made = either.encode(["a cat", "红色的猫 " * 400])
    assert made.truncated == (False, True)
    assert 510 <= made.lengths[1] <= 512  # bytes are cut between characters
    assert len(caplog.records) == 1
    assert "红色的猫" in caplog.text
    assert "lost" in caplog.text


def test_a_list_of_prompts_is_asked_for(either):
    with pytest.raises(TypeError, match="list of prompts"):
        either.encode("a cat")
    with pytest.raises(ValueError, match="no prompt"):
        either.encode([])


def test_cleaning_is_the_public_pipelines():
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean

    prompts = [
        "  a\n cat\t ",
        "&amp;lt;b&amp;gt; &eacute;",
        "schÃ¶n",
        "a <b> &amp;amp;lt;",  # where there is a tag, ftfy leaves entities alone
        "“红色”的\u3000猫，ｆｕｌｌ",
        "",
    ]
    cleaned = [clean(one) for one in prompts]
    assert cleaned == [prompt_clean(one) for one in prompts]
    assert cleaned[:4] == ["a cat", "<b> é", "schön", "a <b> &lt;"]


def test_missing_weights_say_in_one_line_where_they_belong(tmp_path):
    (tmp_path / "empty").mkdir()
    for spec, names in {
        "google/umt5-xxl": ("google/umt5-xxl", "Hugging Face hub", tiny_umt5.OFFICIAL),
        tmp_path / "nothing": ("nothing", tiny_umt5.OFFICIAL, "tokenizer|google/umt5-xxl"),
        tmp_path / "empty": ("empty", tiny_umt5.OFFICIAL, "text_encoder/"),
    }.items():
        with pytest.raises(CheckpointError) as caught:
            load_text_encoder(spec)
        message = str(caught.value)
        assert "\n" not in message
        assert all(any(one in message for one in name.split("|")) for name in names), message
