"""The DiT is diffusers' number by number, and runs in all the ways that training needs.

Shapes here keep Wan's head dim of 128 and its 512 text tokens, and are small otherwise.
"""

import json
import math

import pytest
import torch
import torch.multiprocessing as processes
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.dit import PRESETS, WanDiT
from model.recompute import MODES, Recompute
from tests.published import names
from tests.spread import compare
from tests.twins import ask, inputs, redraw, their_names, twins

OFFICIAL = {"1.3b": "t2v_1_3B", "14b": "t2v_14B", "i2v-14b": "i2v_14B", "flf2v-14b": "flf2v_14B"}
SMALL = ("tiny", "i2v-tiny", "flf2v-tiny")


def small(preset: str, **changes) -> dict:
    return PRESETS[preset] | {"num_layers": 2, "ffn_width": 320} | changes


def drawn(preset: str = "tiny", **changes) -> WanDiT:
    model = WanDiT(**small(preset, **changes))
    redraw(model)
    return model


def backward(model, run, given: dict) -> tuple[Tensor, dict[str, Tensor]]:
    """The output, and the gradients of parameters and of the latents."""
    model.zero_grad()
    given = given | {"latents": given["latents"].clone().requires_grad_()}
    out = run(**given)
    (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return out.detach(), gradients | {"latents": given["latents"].grad}


def assert_same(these: dict[str, Tensor], those: dict[str, Tensor], floor: float = 1e-6) -> None:
    assert these.keys() == those.keys()
    for name, these_one in these.items():
        scale = those[name].abs().max()
        assert scale > 0, f"{name} has no gradient, so nothing is compared"
        assert (these_one - those[name]).abs().max() <= 1e-4 * scale + floor, name


# --- names, shapes, first values ---------------------------------------------------------------


@pytest.mark.parametrize("preset", OFFICIAL)
def test_names_and_shapes_are_those_of_the_public_checkpoint(preset):
    with torch.device("meta"):
        model = WanDiT(**PRESETS[preset])
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == names(OFFICIAL[preset])


@pytest.mark.parametrize(
    ("preset", "billions", "tensors"),
    [("1.3b", 1.4190, 825), ("14b", 14.288, 1095), ("i2v-14b", 16.395, 1303)],
)
def test_parameter_counts_are_those_of_wan(preset, billions, tensors):
    with torch.device("meta"):
        parameters = list(WanDiT(**PRESETS[preset]).parameters())
    digits = 4 if billions < 2 else 3
    assert round(sum(p.numel() for p in parameters) / 1e9, digits) == billions
    assert len(parameters) == tensors


@pytest.mark.parametrize("preset", ["1.3b", *SMALL])
def test_config_is_json_and_makes_the_same_shapes(preset):
    with torch.device("meta"):
        model = WanDiT(**PRESETS[preset])
        again = WanDiT(**json.loads(json.dumps(model.config)))
    assert again.config == model.config
    shapes = [{name: p.shape for name, p in one.named_parameters()} for one in (model, again)]
    assert shapes[0] == shapes[1]
    assert not list(model.buffers())


def test_a_new_model_starts_as_wan_does():
    torch.manual_seed(0)
    with torch.device("meta"):
        model = WanDiT(**small("flf2v-tiny"))
    model.to_empty(device="cpu").reset_parameters()
    spread = {name: p.std().item() for name, p in model.named_parameters() if p.numel() > 1}
    width = model.config["width"]
    assert spread["head.head.weight"] == spread["img_emb.emb_pos"] == 0
    for name in ("text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2"):
        assert spread[f"{name}.weight"] == pytest.approx(0.02, rel=0.05)
    for name in ("blocks.1.modulation", "head.modulation"):
        assert spread[name] == pytest.approx(width**-0.5, rel=0.15)
    for name in ("blocks.0.self_attn.q", "blocks.1.ffn.0", "time_projection.1", "patch_embedding"):
        weight = model.get_parameter(f"{name}.weight").flatten(1)
        limit = math.sqrt(6 / sum(weight.shape))  # Glorot and Bengio 2010, eq. 16
        assert 0.97 * limit < weight.abs().max() <= limit
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
    assert not model(**inputs(model, (1, 4, 4))).any()  # zero head, so zero velocity


# --- the numbers of diffusers ------------------------------------------------------------------


@pytest.mark.parametrize("preset", SMALL)
def test_output_and_gradients_are_diffusers_on_an_odd_grid_and_texts_of_three_lengths(preset):
    ours, theirs = twins(**small(preset))
    given = inputs(ours, (3, 10, 6), batch=3)
    out, gradients = backward(ours, ours, given)
    want, wanted = backward(theirs, lambda **x: ask(theirs, **x), given)
    assert want.std() > 0.5
    assert (out - want).abs().max() <= 1e-4
    names = their_names(ours) | {"latents": "latents"}
    assert_same({names[name]: gradient for name, gradient in gradients.items()}, wanted)


@pytest.mark.parametrize("sizes", [(1, 2, 2), (2, 14, 2), (1, 6, 22)])
def test_one_sample_of_any_grid_is_diffusers(sizes):
    ours, theirs = twins(**small("tiny", width=96, num_heads=2, text_length=20))  # head dim 48
    given = inputs(ours, sizes)
    given["timestep"] = torch.tensor([999])  # a whole number, as schedulers give it
    given["latents"] = given["latents"].mT.contiguous().mT  # any layout in memory
    with torch.no_grad():
        assert (ours(**given) - ask(theirs, **given)).abs().max() <= 1e-4


@pytest.mark.parametrize(("batch", "tokens"), [(1, 8), (2, 301)])
@pytest.mark.parametrize("preset", ["tiny", "i2v-tiny"])
def test_one_zero_stands_for_all_that_are_left_out_of_a_text(preset, batch, tokens):
    ours, theirs = twins(**small(preset, text_length=512))
    given = inputs(ours, (2, 6, 4), batch)
    shorter = given | {"text": given["text"][:, :tokens]}
    assert not shorter["text"][:, -1].any()
    out, gradients = backward(ours, ours, shorter)
    want, wanted = backward(theirs, lambda **x: ask(theirs, **x), given)
    assert (out - want).abs().max() <= 1e-4
    names = their_names(ours) | {"latents": "latents"}
    # where nearly all keys are equal, those that reach the keys' biases all but cancel
    assert_same({names[name]: one for name, one in gradients.items()}, wanted, floor=1e-5)


def test_a_sample_does_not_depend_on_its_neighbours():
    model = drawn("i2v-tiny")
    given = inputs(model, (2, 4, 6), batch=3)
    with torch.no_grad():
        together = model(**given)
        for i in range(3):
            alone = model(**{name: x[i : i + 1] for name, x in given.items()})
            assert (together[i] - alone[0]).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["timestep", "text", "image", "condition"])
def test_every_input_matters(name):
    model = drawn("flf2v-tiny")
    given = inputs(model, (1, 4, 4))
    with torch.no_grad():
        assert (model(**given) - model(**given | {name: given[name].roll(1, -1) + 1})).std() > 0.01


# --- dtypes ------------------------------------------------------------------------------------


def test_bfloat16_is_as_near_to_float32_as_diffusers_is():
    ours, theirs = twins(**small("i2v-tiny"))
    given = inputs(ours, (3, 10, 6), batch=2)
    for model in (ours, theirs):
        model.to(torch.bfloat16).float()  # both judged on the weights that bfloat16 holds
    with torch.no_grad():
        exact = ours(**given)
        out = ours.to(torch.bfloat16)(**given)
        kept = theirs._keep_in_fp32_modules
        for name, parameter in theirs.named_parameters():
            if not any(one in name for one in kept):
                parameter.data = parameter.data.bfloat16()
        half = {n: x if n == "timestep" else x.bfloat16() for n, x in given.items()}
        want = ask(theirs, **half)
    noise = (want - exact).square().mean().sqrt()
    assert noise < 0.05 * exact.std()
    assert (out - exact).square().mean().sqrt() < 1.1 * noise
    assert (out - want).square().mean().sqrt() < 1.5 * noise
    assert out.dtype == torch.float32  # as the latents that were given


@pytest.mark.parametrize("way", ["parameters", "autocast"])
def test_in_bfloat16_the_stream_is_half_and_the_time_is_not(way):
    model = drawn()
    given = inputs(model, (1, 4, 4), batch=2)
    if way == "parameters":
        model.to(torch.bfloat16).float()
    seen = []
    model.blocks[1].register_forward_pre_hook(lambda _, args: seen.append(args))
    with torch.no_grad():
        model(**given)
        if way == "parameters":
            model.to(torch.bfloat16)
            model(**given)
        else:
            with torch.autocast("cpu", torch.bfloat16):
                model(**given)
    (_, exact, *_), (x, modulation, text, _, rope, _) = seen
    assert x.dtype == text.dtype == torch.bfloat16
    assert rope.dtype == modulation.dtype == torch.float32
    assert torch.equal(modulation, exact)


# --- how it runs -------------------------------------------------------------------------------


def test_a_second_forward_does_not_build_the_rotary_table_again(monkeypatch):
    from model import rope

    model, built = drawn(), []
    assemble = rope._assemble
    monkeypatch.setattr(rope, "_tables", type(rope._tables)())
    monkeypatch.setattr(rope, "_assemble", lambda *x: built.append(x) or assemble(*x))
    with torch.no_grad():
        for _ in range(3):
            model(**inputs(model, (1, 4, 6)))
        assert len(built) == 1
        model(**inputs(model, (1, 6, 4)))
    assert len(built) == 2


class Storages(TorchDispatchMode):
    """Bytes of all that was computed and is still held, the model's own parameters aside."""

    def __init__(self, model: WanDiT) -> None:
        super().__init__()
        self.own = {p.untyped_storage()._cdata for p in model.parameters()}
        self.seen: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in tree_leaves(out):
            if isinstance(one, Tensor):
                storage = one.untyped_storage()
                if storage._cdata not in self.own:
                    self.seen[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return out

    def held(self) -> int:
        return sum(size for reference, size in self.seen.values() if not reference.expired())


def test_every_way_of_recomputing_gives_the_same_gradients_for_less_memory():
    model = drawn(num_layers=3, text_length=32)
    given = inputs(model, (4, 16, 16))
    held, wanted = {}, None
    for mode in MODES:
        model.recompute = Recompute(mode)
        with Storages(model) as storages:
            out = model(**given)
            held[mode] = storages.held()
        del out, storages
        _, gradients = backward(model, model, given)
        wanted = wanted or {name: one.clone() for name, one in gradients.items()}
        assert_same(gradients, wanted)
    sizes = [held[mode] for mode in MODES]
    assert sizes == sorted(sizes, reverse=True)
    assert held["selective"] < 0.8 * held["none"]
    assert held["attention"] < 0.5 * held["selective"]
    assert held["full"] < 0.9 * held["attention"]
    model.recompute = Recompute("full", blocks=1)
    with Storages(model) as storages:
        out = model(**given)
        assert held["full"] < storages.held() < held["none"]
    assert out.requires_grad


@pytest.mark.parametrize("arguments", [("most",), ("full", -1)])
def test_a_wrong_way_of_recomputing_is_refused(arguments):
    with pytest.raises(ValueError, match="recompute"):
        Recompute(*arguments)


@pytest.mark.parametrize(
    ("preset", "mode", "backend"),
    [
        ("tiny", "none", "eager"),
        pytest.param("i2v-tiny", "none", "aot_eager", marks=pytest.mark.slow),
        pytest.param("tiny", "selective", "aot_eager", marks=pytest.mark.slow),
        pytest.param("tiny", "full", "aot_eager", marks=pytest.mark.slow),
    ],
)
def test_it_compiles_as_one_graph_with_the_same_gradients(preset, mode, backend):
    torch.compiler.reset()
    model = drawn(preset, num_layers=1)
    model.recompute = Recompute(mode)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for sizes, batch, tokens in (((1, 4, 6), 2, 64), ((2, 6, 4), 2, 48), ((2, 4, 4), 2, 32)):
        given = inputs(model, sizes, batch)
        given["text"] = given["text"][:, :tokens]
        want, wanted = backward(model, model, given)
        out, gradients = backward(model, compiled, given)
        assert (out - want).abs().max() < 1e-4
        assert_same(gradients, wanted)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_sequence_spread_over_two_processes_gives_the_same_output_and_gradients(tmp_path):
    model = drawn("i2v-tiny", num_layers=1)
    cases = [
        ("ulysses", inputs(model, (2, 4, 6), batch=2)),
        ("keys", inputs(model, (3, 2, 10))),  # 15 tokens: 8 here, 7 there
    ]
    arguments = (2, str(tmp_path / "store"), model.state_dict(), model.config, cases)
    processes.spawn(compare, arguments, nprocs=2)


# --- what a person gets wrong ------------------------------------------------------------------


def change(name: str, *shape: int):
    return lambda given: given | {name: torch.zeros(shape)}


@pytest.mark.parametrize(
    ("preset", "wrong", "says"),
    [
        ("tiny", change("latents", 16, 1, 4, 4), r"latents \[16, 1, 4, 4\]: five axes"),
        ("tiny", change("latents", 1, 16, 1, 5, 4), "H = 5 is no multiple of 2"),
        ("tiny", change("latents", 1, 16, 1, 4, 2050), "W = 2050 .* 2 and 2048"),
        ("tiny", change("latents", 1, 8, 1, 4, 4), "8 channels .* takes 16"),
        ("tiny", change("timestep", 2), r"timestep \[2\]: one a sample wanted, \[1\]"),
        ("tiny", lambda x: x | {"timestep": x["timestep"].bfloat16()}, "too coarse for 0..1000"),
        ("tiny", change("text", 1, 128, 4096), r"text \[1, 128, 4096\]: .* \[1, 64, 64\]"),
        ("tiny", change("text", 1, 77, 64), r"text \[1, 77, 64\]: .* \[1, 64, 64\]"),
        ("tiny", change("image", 1, 257, 1280), "has no image branch"),
        ("i2v-tiny", lambda x: x | {"image": None}, "needs image tokens"),
        ("i2v-tiny", lambda x: x | {"condition": None}, "16 channels .*no condition.* takes 36"),
        ("i2v-tiny", change("condition", 1, 20, 1, 2, 4), r"condition \[1, 20, 1, 2, 4\] does not"),
        ("i2v-tiny", change("condition", 1, 16, 1, 4, 4), "32 channels .* takes 36"),
        (
            "flf2v-tiny",
            change("image", 1, 257, 1280),
            r"image \[1, 257, 1280\]: .* \[1, 514, 1280\]",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_named_in_one_line(preset, wrong, says):
    with torch.device("meta"):
        model = WanDiT(**small(preset))
    with pytest.raises(ValueError, match=says) as error:
        model(**wrong(inputs(model, (1, 4, 4))))
    assert "\n" not in str(error.value)


def test_a_width_that_does_not_split_into_heads_is_refused():
    with pytest.raises(ValueError, match="width 100 does not split into 3 heads"):
        WanDiT(width=100, num_heads=3)
