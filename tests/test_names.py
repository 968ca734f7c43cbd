"""Names: ours, the official ones, against diffusers' own models and diffusers' own converters.

The full-size models are built on the meta device, where they take no memory.
"""

from functools import cache

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.loaders.single_file_utils import (
    convert_wan_transformer_to_diffusers,
    convert_wan_vae_to_diffusers,
)

from model.dit import WanDiT
from model.names import COMFY, dit_modules, recognise, vae_modules
from model.vae import WanVAE
from tests import published

SMALL = {"width": 1536, "ffn_width": 8960, "num_heads": 12, "num_layers": 30}
LARGE = {"width": 5120, "ffn_width": 13824, "num_heads": 40, "num_layers": 40}
I2V = {"in_channels": 36, "image_width": 1280}
FLF2V = {**I2V, "image_positions": 514}
# what WanDiT is told and what diffusers is told, for each public variant
DITS = {
    "t2v-1.3b": (SMALL, {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}),
    "t2v-14b": (LARGE, {}),
    "i2v-14b": (
        {**LARGE, **I2V},
        {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120},
    ),
    "flf2v-14b": (
        {**LARGE, **FLF2V},
        {
            "in_channels": 36,
            "image_dim": 1280,
            "added_kv_proj_dim": 5120,
            "pos_embed_seq_len": 514,
        },
    ),
}
VAES = {
    "wan": ({}, {}),
    "narrow": ({"width": 8}, {"base_dim": 8}),
    "three blocks": ({"width": 8, "blocks": 3}, {"base_dim": 8, "num_res_blocks": 3}),
    "three levels": (
        {"width": 8, "multipliers": [1, 3, 2], "temporal": [True, False]},
        {"base_dim": 8, "dim_mult": [1, 3, 2], "temperal_downsample": [True, False]},
    ),
    "one level": (
        {"width": 8, "multipliers": [2], "temporal": []},
        {"base_dim": 8, "dim_mult": [2], "temperal_downsample": []},
    ),
}


def shapes(network: type, **keywords) -> dict[str, tuple]:
    with torch.device("meta"):
        model = network(**keywords)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


# what the public checkpoints are called in published.json
PUBLIC = {
    "t2v-1.3b": "t2v_1_3B",
    "t2v-14b": "t2v_14B",
    "i2v-14b": "i2v_14B",
    "flf2v-14b": "flf2v_14B",
    "wan": "vae",
}


@cache
def both(variant: str) -> tuple[dict, dict]:
    """Shapes by name of our model and of diffusers' model of the same size."""
    if variant in DITS:
        ours, theirs = DITS[variant]
        return shapes(WanDiT, **ours), shapes(WanTransformer3DModel, **theirs)
    ours, theirs = VAES[variant]
    return shapes(WanVAE, **ours), shapes(AutoencoderKLWan, **theirs)


@pytest.mark.parametrize("variant", [*DITS, *VAES])
def test_names_and_shapes_are_those_of_diffusers_own_model_both_ways(variant):
    ours, theirs = both(variant)
    kind = "dit" if variant in DITS else "vae"
    names = recognise(ours)
    assert (names.kind, names.format) == (kind, "official")
    assert {names.diffusers(name): shape for name, shape in ours.items()} == theirs
    assert all(names.official(name) == name for name in ours)
    back = recognise(theirs)
    assert (back.kind, back.format) == (kind, "diffusers")
    assert {back.official(name): shape for name, shape in theirs.items()} == ours


@pytest.mark.parametrize("variant", PUBLIC)
def test_the_public_checkpoints_names_and_shapes_become_those_of_diffusers(variant):
    official = {name: tuple(shape) for name, shape in published.names(PUBLIC[variant]).items()}
    _, theirs = both(variant)
    names = recognise(official)
    assert {names.diffusers(name): shape for name, shape in official.items()} == theirs


@pytest.mark.parametrize("variant", [*DITS, "wan", "narrow"])
def test_names_are_those_that_diffusers_own_converter_gives(variant):
    ours, _ = both(variant)
    names = recognise(ours)
    convert = (
        convert_wan_transformer_to_diffusers if variant in DITS else convert_wan_vae_to_diffusers
    )
    theirs = convert({name: name for name in ours})  # new name → old name
    # the converter forgets the position embedding, which diffusers' model has
    ours = ours.keys() - {"img_emb.emb_pos"}
    theirs = {new: old for new, old in theirs.items() if old in ours}
    assert {names.diffusers(name): name for name in ours} == theirs


@pytest.mark.parametrize(
    "table", [dit_modules(40), *(vae_modules(n, m) for n in (1, 2, 4, 5) for m in (1, 2, 3))]
)
def test_no_two_modules_share_a_name(table):
    assert len(set(table.values())) == len(table)


def test_the_norms_before_cross_attention_and_feed_forward_swap_their_numbers():
    table = dit_modules(2)
    assert table["blocks.1.norm3"] == "blocks.1.norm2"
    assert table["blocks.1.norm2"] == "blocks.1.norm3"


def test_a_file_with_lost_and_strange_names_is_still_told_for_what_it_is():
    for variant in ("t2v-1.3b", "wan"):
        for one in both(variant):
            whole = recognise(one)
            kept = [name for i, name in enumerate(one) if i % 3] + ["strange.weight", "x"]
            names = recognise(kept)
            assert (names.kind, names.format) == (whole.kind, whole.format)
            assert names.official("strange.weight") is None
            assert names.official("x") is None


def test_names_of_other_networks_are_not_recognised():
    assert recognise([]) is None
    clip = [f"visual.transformer.{i}.attn.to_qkv.weight" for i in range(32)]
    t5 = [f"blocks.{i}.attn.q.weight" for i in range(24)]
    assert recognise(clip) is None
    assert recognise(t5) is None


def test_comfyui_s_prefix_is_taken_off():
    ours, _ = both("t2v-1.3b")
    names = recognise([COMFY + name for name in ours])
    assert [names.official(COMFY + name) for name in ours] == list(ours)
    assert names.official("head.head.weight") is None


def test_a_name_with_a_huge_number_costs_nothing():
    names = recognise([*both("t2v-1.3b")[0], "blocks.99999999999.norm3.weight"])
    assert names.official("blocks.99999999999.norm3.weight") is None
    assert recognise(["decoder.upsamples.99999999999.resample.1.weight"]) is None
    assert recognise([f"decoder.up_blocks.{10**12}.resnets.{10**12}.norm1.gamma"]) is None


def test_a_name_that_the_network_does_not_have_is_an_error_on_the_way_out():
    names = recognise(both("t2v-1.3b")[0])
    with pytest.raises(KeyError):
        names.diffusers("blocks.30.norm3.weight")
