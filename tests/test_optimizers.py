"""Which optimiser moves which weight, and Muon on kernels against PyTorch's own on matrices."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from model.dit import WanDiT
from model.vae import WanVAE
from recipes.training import Optimizer
from training.optimizers import Muon, optimizers


def vae() -> WanVAE:
    torch.manual_seed(0)
    return WanVAE(width=4, blocks=1)


def dit() -> WanDiT:
    torch.manual_seed(0)
    return WanDiT(width=64, ffn_width=32, num_heads=2, num_layers=1, text_width=16)


@pytest.mark.parametrize("network", [vae, dit])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_every_weight_is_moved_by_exactly_one(network, kind):
    one = network()
    held = [
        value.data_ptr()
        for optimizer in optimizers(one, Optimizer(kind=kind))
        for group in optimizer.param_groups
        for value in group["params"]
    ]
    assert sorted(held) == sorted(value.data_ptr() for value in one.parameters())


def test_both_move_weights_about_as_far():
    one = dit()
    before = {name: value.detach().clone() for name, value in one.named_parameters()}
    for value in one.parameters():
        value.grad = torch.randn_like(value)
    for optimizer in optimizers(one, Optimizer(kind="muon", lr=1e-3, weight_decay=0)):
        optimizer.step()
    moved = [
        float((value.detach() - before[name]).square().mean())
        for name, value in one.named_parameters()
    ]
    assert all(1e-4 < far**0.5 < 2e-3 for far in moved), moved


def test_adamw_decays_matrices_and_neither_gains_nor_biases():
    one = vae()
    before = {name: value.detach().clone() for name, value in one.named_parameters()}
    for value in one.parameters():
        value.grad = torch.zeros_like(value)
    (adamw,) = optimizers(one, Optimizer(lr=0.1, weight_decay=0.5))
    adamw.step()
    for name, value in one.named_parameters():
        kept = 0.95 if value.ndim > 1 else 1.0
        torch.testing.assert_close(value, kept * before[name])


def test_muon_moves_a_kernel_as_pytorchs_moves_the_matrix():
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(6, 4, 3, 3, 3))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    ours = Muon([kernel], 0.02, 0.1)
    theirs = torch.optim.Muon([matrix], 0.02, 0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        ours.zero_grad()
        assert kernel.grad is None
        kernel.grad = torch.randn_like(kernel)
        matrix.grad = kernel.grad.flatten(1).clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(kernel.detach().flatten(1), matrix.detach())


def test_muon_leaves_what_is_from_and_to_pixels_to_adamw():
    one = vae()
    muon = optimizers(one, Optimizer(kind="muon"))[1]
    taken = {matrix.data_ptr() for matrix in muon.param_groups[0]["params"]}
    names = {name for name, value in one.named_parameters() if value.data_ptr() in taken}
    assert "decoder.middle.0.residual.2.weight" in names
    assert not {"encoder.conv1.weight", "decoder.head.2.weight"} & names
    assert all(one.get_parameter(name).ndim > 1 for name in names)


def test_a_resumed_muon_goes_on_as_one_that_never_stopped():
    torch.manual_seed(0)
    whole = nn.Parameter(torch.randn(8, 4, 3))
    first = Muon([whole], 0.01, 0.0)
    gradients = torch.randn(4, 8, 4, 3)

    def step(weight: nn.Parameter, optimizer: Muon, gradient: torch.Tensor) -> None:
        weight.grad = gradient.clone()
        optimizer.step()

    for gradient in gradients[:2]:
        step(whole, first, gradient)
    again = nn.Parameter(whole.detach().clone())
    second = Muon([again], 0.01, 0.0)
    second.load_state_dict(deepcopy(first.state_dict()))
    for gradient in gradients[2:]:
        step(whole, first, gradient)
        step(again, second, gradient)
    assert torch.equal(whole, again)


def test_weights_that_were_moved_away_from_muon_are_noticed():
    kernel = nn.Parameter(torch.randn(6, 4, 3))
    muon = Muon([kernel], 0.01, 0.0)
    kernel.data = kernel.data.clone()
    kernel.grad = torch.randn_like(kernel)
    with pytest.raises(RuntimeError, match="have moved"):
        muon.step()
