"""What a batch holds, counted without memory, is what PyTorch's allocator gives out for it.

Networks are small and real here; nothing that is counted depends on their size.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile, record_function

from model.attention import Context
from model.byte_encoder import ByteEncoder
from model.dit import WanDiT
from model.recompute import Recompute
from model.vae import WanVAE
from recipes.training import Data, Fit, Optimizer, VaeLoss
from training import footprint
from training.batch import Batch, Bucket
from training.dit_module import DiTModule
from training.footprint import How, Promoted, dit_loss, of_dit, of_vae
from training.ledger import Ledger, measure
from training.vae_module import VAEModule

SIZES = {"width": 256, "ffn_width": 640, "num_heads": 2, "num_layers": 3, "text_width": 16}
SIZES |= {"text_length": 24}
IMAGE = {"in_channels": 36, "image_width": 32}
BUCKET = Bucket(96, 64, 9)
CLIPS = Bucket(64, 64, 5)


def dit(**sizes) -> WanDiT:
    torch.manual_seed(0)
    network = WanDiT(**SIZES | sizes)
    nn.init.normal_(network.head.head.weight, std=0.02)
    return network


def vae(width: int = 8) -> WanVAE:
    torch.manual_seed(0)
    return WanVAE(width=width, blocks=1)


def given_out(loss: Callable[[], Tensor], bfloat16: bool) -> tuple[int, int]:
    """Bytes that the allocator has given out at the end of the forward pass, and at most."""
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=bfloat16),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen,
    ):
        value = loss()
        with record_function("backward"):
            value.backward()
    events = seen.profiler.kineto_results.events()
    turn = next(one.start_ns() for one in events if one.name() == "backward")
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = sum(size for when, size in changes if when < turn)
    now = most = 0
    for _, size in changes:
        now += size
        most = max(most, now)
    return held, most


def saved(loss: Callable[[], Tensor], network: nn.Module) -> int:
    """Bytes of what autograd saves for backward, through its hooks; parameters aside."""
    own = {one.untyped_storage()._cdata for one in network.parameters()}
    kept: dict[int, Tensor] = {}  # that they live, so that no address is used twice

    def pack(one: Tensor) -> Tensor:
        if one.untyped_storage()._cdata not in own:
            kept[one.untyped_storage()._cdata] = one
        return one

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one):
        value = loss()
    found = sum(one.untyped_storage().nbytes() for one in kept.values())
    value.backward()
    return found


# --- the DiT -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "bfloat16"),
    [("none", True), ("selective", False), ("attention", True), ("full", False)],
)
def test_a_dit_holds_what_the_allocator_gives_out(mode, bfloat16):
    network = dit()
    network.recompute = Recompute(mode)
    held, most = given_out(lambda: dit_loss(network, BUCKET, 2), bfloat16)
    found = of_dit(network.config, BUCKET, 2, How(bfloat16, recompute=mode))
    table = BUCKET.tokens * 128 * 4  # rotary, which is drawn once
    assert found.activations + found.copies == pytest.approx(held, abs=table + 1000)
    assert (found.copies > 0) == bfloat16
    # gradients come while activations go: at most all of them are there at the highest moment
    gradients = sum(4 * one.numel() for one in network.parameters())
    total = found.activations + found.copies + found.working
    assert total - table <= 1.01 * most
    assert most <= 1.01 * max(total, found.copies + found.working + gradients)


@pytest.mark.parametrize(("mode", "image"), [("none", True), ("full", False)])
def test_a_dit_holds_what_saved_tensor_hooks_see(mode, image):
    network = dit(**IMAGE if image else {})
    network.recompute = Recompute(mode)
    seen = saved(lambda: dit_loss(network, BUCKET, 2), network)
    found = of_dit(network.config, BUCKET, 2, How(recompute=mode))
    assert found.activations == pytest.approx(seen, rel=0.1)


def test_of_the_blocks_that_recompute_only_the_inputs_are_held():
    network = dit()
    network.recompute = Recompute("full", blocks=2)
    held, most = given_out(lambda: dit_loss(network, BUCKET, 1), False)
    found = of_dit(network.config, BUCKET, 1, How(recompute="full", blocks=2))
    assert found.activations == pytest.approx(held, rel=0.03)
    assert found.activations + found.working <= 1.03 * most
    none, full = (of_dit(network.config, BUCKET, 1, How(recompute=m)) for m in ("none", "full"))
    assert full.activations < found.activations < none.activations
    alike = of_dit(network.config, BUCKET, 1, How(recompute="full", blocks=9))
    assert alike == full


def test_it_is_the_modules_own_step_that_is_counted():
    config = Fit(text_encoder="bytes", optimizer=Optimizer(ema=0), data=Data(posterior="mean"))
    network = dit()
    text = ByteEncoder(16, length=24).requires_grad_(False)
    module = DiTModule(network, config, vae().requires_grad_(False), text)
    grid = (3, BUCKET.height // 8, BUCKET.width // 8)
    latents = torch.zeros(2, 16, *grid)
    batch = Batch(BUCKET, ["a", "b"], ["one", "two"], mean=latents, logvar=latents)
    found = measure(
        network,
        lambda: module.losses(batch, torch.Generator()).total.mean(),
        others=[*text.parameters(), *module.vae.parameters(), *module.vae.buffers(), latents],
    )
    wanted = of_dit(network.config, BUCKET, 2, How())
    assert wanted.activations == pytest.approx(found.activations, rel=0.05)
    assert wanted.activations + wanted.working == pytest.approx(
        found.activations + found.working, rel=0.05
    )


class Flash(TorchFunctionMode):
    """A GPU that isn't here can't be asked which attention kernel it takes."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is functional.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_flash_attention(*args)[0]
        return func(*args, **(kwargs or {}))


def forward_held(kind: str, mode: str) -> int:
    """Bytes at the end of a forward pass in bfloat16 on a device without memory."""
    with FakeTensorMode(), torch.device(kind):
        network = WanDiT(**SIZES)
        network.recompute = (Promoted if kind == "cpu" else Recompute)(mode)
        network.context = Context("kernel")
        ledger = Ledger(network.parameters())
        torch.set_autocast_dtype(kind, torch.bfloat16)
        torch.set_autocast_enabled(kind, True)  # torch.autocast would switch itself off
        torch.autocast_increment_nesting()
        try:
            with Flash(), ledger:
                value = dit_loss(network, BUCKET, 2)
                return ledger.held(casts=False) + ledger.held(casts=True) + 0 * value.ndim
        finally:
            if torch.autocast_decrement_nesting() == 0:
                torch.clear_autocast_cache()
            torch.set_autocast_enabled(kind, False)


@pytest.mark.parametrize("mode", ["none", pytest.param("attention", marks=pytest.mark.slow)])
def test_a_gpu_played_on_the_cpu_holds_what_its_own_autocast_makes_it_hold(mode):
    played, own = forward_held("cpu", mode), forward_held("cuda", mode)
    assert played == pytest.approx(own, abs=1000)  # the state of random numbers aside
    if mode == "none":
        plain = of_dit(dit().config, BUCKET, 2, How(bfloat16=True))
        assert played > 1.02 * (plain.activations + plain.copies)


def test_a_sequence_shared_by_two_takes_about_half_each():
    network = dit(num_layers=12)
    one, two = (of_dit(network.config, BUCKET, 1, How(context=n)) for n in (1, 2))
    assert 0.45 < two.activations / one.activations < 0.6


# --- the VAE -----------------------------------------------------------------------------------


def judged(mode: str, **loss) -> tuple[VAEModule, Batch, list[Tensor]]:
    """The real module, a batch, and the tensors that stand beside it."""
    config = Fit(
        trains="vae", loss=VaeLoss(gan_width=16, **loss), optimizer=Optimizer(ema=0), compute=None
    )
    config = replace(config, compute=Fit().compute)
    config.compute.recompute = mode
    module = VAEModule(vae(), config)
    beside = [*module.perceptual.distance.parameters()] if module.perceptual else []
    beside += [*module.adversary.network.parameters()] if module.adversary else []
    video = torch.zeros(2, 3, CLIPS.frames, CLIPS.height, CLIPS.width, dtype=torch.uint8)
    return module, Batch(CLIPS, ["a", "b"], ["", ""], video=video), [*beside, video]


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "gan", "bfloat16"), [("none", 0.1, False), ("full", 0.0, True)])
def test_a_vae_holds_what_its_module_makes_it_hold(mode, gan, bfloat16):
    module, batch, beside = judged(mode, gan=gan)
    found = measure(
        module.network,
        lambda: module.losses(batch, torch.Generator()).total.mean(),
        bfloat16,
        beside,
    )
    how = How(bfloat16, recompute=mode)
    wanted = of_vae(module.network.config, module.config.loss, CLIPS, 2, how)
    assert wanted.activations == pytest.approx(found.activations, rel=0.1)
    assert wanted.copies == pytest.approx(found.copies, rel=0.1)
    total = wanted.activations + wanted.working
    assert total == pytest.approx(found.activations + found.working, rel=0.1)


@pytest.mark.parametrize("mode", ["none", pytest.param("full", marks=pytest.mark.slow)])
def test_a_vae_holds_what_the_allocator_gives_out(mode):
    module, batch, _ = judged(mode, perceptual=0)
    held, most = given_out(lambda: module.losses(batch, torch.Generator()).total.mean(), False)
    how = How(recompute=mode)
    found = of_vae(module.network.config, module.config.loss, CLIPS, 2, how)
    assert found.activations == pytest.approx(held, rel=0.1)
    gradients = sum(4 * one.numel() for one in module.network.parameters())
    total = found.activations + found.working
    assert 0.9 * total <= most <= 1.1 * max(total, found.working + gradients)


@pytest.mark.parametrize(
    "loss", [{"l2": 1.0}, {"gan": 0.1}, {"gan": 0.1, "gan_adaptive": True, "l2": 1.0}]
)
def test_every_term_of_a_vaes_loss_holds_what_its_module_makes_it_hold(loss):
    module, batch, beside = judged("none", perceptual=0, **loss)
    found = measure(
        module.network,
        lambda: module.losses(batch, torch.Generator()).total.mean(),
        others=beside,
    )
    wanted = of_vae(module.network.config, module.config.loss, CLIPS, 2, How())
    assert wanted.activations == pytest.approx(found.activations, rel=0.01)
    total = wanted.activations + wanted.working
    assert total == pytest.approx(found.activations + found.working, rel=0.01)


def test_a_vae_holds_what_saved_tensor_hooks_see():
    module, batch, _ = judged("none", perceptual=0)
    seen = saved(lambda: module.losses(batch, torch.Generator()).total.mean(), module.network)
    found = of_vae(module.network.config, module.config.loss, CLIPS, 2, How())
    assert found.activations == pytest.approx(seen, rel=0.1)


@pytest.mark.slow
def test_encoding_a_long_clip_is_told_from_short_ones():
    network, bucket = vae(4), Bucket(32, 32, 21)
    sizes = network.config
    told = footprint.encoding(sizes, bucket, 2)
    whole = footprint._encoding(footprint.json.dumps(sizes), bucket, 2)
    assert told == pytest.approx(whole, rel=0.1)
    assert footprint.encoding(sizes, bucket, 2, little=2**40) >= whole


def test_decoding_a_stream_takes_about_what_is_reckoned():
    network, bucket = vae(8).requires_grad_(False), Bucket(96, 64, 13)
    ledger = Ledger([*network.parameters(), *network.buffers()])
    with ledger, torch.no_grad():
        for _ in network.decode_stream([torch.zeros(1, 16, 4, 8, 12)]):
            pass
    assert footprint.decoding(network.config, bucket) == pytest.approx(ledger.peak(), rel=0.2)
