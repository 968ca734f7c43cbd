"""Operations are those that PyTorch's own counter sees, and near the report's figures."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.dit import PRESETS, WanDiT
from model.recompute import MODES, Recompute
from model.vae import WanVAE
from recipes.load import load
from recipes.training import Fit, Optimizer, VaeLoss
from training.batch import Batch, Bucket
from training.flops import counted, of_dit, of_encoding, of_judging, of_vae, step_flops
from training.footprint import dit_loss
from training.machine import Machine
from training.preflight import planned
from training.vae_module import VAEModule

BUCKET = Bucket(64, 48, 5)


def meta(preset: str, **sizes) -> WanDiT:
    with torch.device("meta"):
        return WanDiT(**PRESETS[preset] | sizes)


@pytest.mark.parametrize("preset", ["1.3b", "i2v-14b", "flf2v-tiny"])
@pytest.mark.parametrize("bucket", [BUCKET, Bucket(96, 32, 1)])
def test_a_dits_operations_are_those_that_are_counted(preset, bucket):
    network = meta(preset, num_layers=2)
    with torch.device("meta"):
        seen = counted(lambda: dit_loss(network, bucket, 1))
    found = of_dit(network.config, bucket)
    assert (found.forward, found.backward) == (seen.forward, seen.backward)


@pytest.mark.parametrize("mode", MODES)
def test_what_is_computed_again_is_what_a_way_of_recomputing_adds(mode):
    network = meta("tiny", num_layers=2)
    network.recompute = Recompute(mode)
    with torch.device("meta"):
        seen = counted(lambda: dit_loss(network, BUCKET, 1))
    found = of_dit(network.config, BUCKET)
    again = seen.backward - found.backward
    if mode == "attention":  # on the meta device it isn't told from other products, and done again
        again -= found.attention
    assert again == found.again(mode)


def test_a_real_step_is_counted_alike(monkeypatch):
    network = WanDiT(**PRESETS["tiny"] | {"num_layers": 1, "text_length": 16})
    # PyTorch's counter knows neither oneDNN's products nor the CPU's attention kernel
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    with sdpa_kernel(SDPBackend.MATH):
        seen = counted(lambda: dit_loss(network, BUCKET, 2))
    found = of_dit(network.config, BUCKET)
    assert 2 * found.step == pytest.approx(seen.step, rel=0.1)


# The DiT of the report costs forward about 2·P·s + 4·s²·d·L FLOP, which takes every
# weight to meet every token; those of the text meet few
@pytest.mark.parametrize(
    ("preset", "size", "peta"),
    [
        ("1.3b", (832, 480), 0.29),
        ("1.3b", (1280, 720), 1.27),
        ("14b", (832, 480), 1.82),
        ("14b", (1280, 720), 6.84),
    ],
)
def test_the_published_models_take_what_the_report_says(preset, size, peta):
    found = of_dit(meta(preset).config, Bucket(*size, 81))
    assert found.forward / 1e15 == pytest.approx(peta, rel=0.1)
    assert found.step == pytest.approx(3 * found.forward, rel=0.001)


def test_a_vae_is_counted_in_both_directions_or_only_encodes():
    with torch.device("meta"):
        vae = WanVAE(width=8)
    both, images = of_vae(vae.config, Bucket(32, 32, 5)), of_vae(vae.config, Bucket(32, 32, 1))
    encoding = of_encoding(vae.config, Bucket(32, 32, 5))
    assert 0 < encoding < both.forward
    assert both.backward == pytest.approx(2 * both.forward, rel=0.05)
    assert images.forward < both.forward


@pytest.mark.parametrize(
    "loss",
    [
        {"perceptual": 3.0},
        {"perceptual": 0.0, "gan": 0.1},
        {"perceptual": 0.0, "gan": 0.1, "gan_adaptive": True},
        {"perceptual": 3.0, "gan": 0.1, "gan_adaptive": True, "l2": 1.0, "perceptual_frames": 2},
    ],
)
def test_what_judges_a_vae_is_counted_as_its_module_runs_it(loss, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    torch.manual_seed(0)
    vae, bucket = WanVAE(width=4, blocks=1), Bucket(32, 32, 5)
    config = Fit(trains="vae", loss=VaeLoss(gan_width=8, **loss), optimizer=Optimizer(ema=0))
    module = VAEModule(vae, config)
    video = torch.randint(0, 256, (2, 3, 5, 32, 32), dtype=torch.uint8)
    batch = Batch(bucket, ["a", "b"], ["", ""], video)
    seen = counted(lambda: module.losses(batch, torch.Generator()).total.mean()).step
    # an adaptive weight also takes two slopes at the last layer, which is large in so small a VAE
    last = vae.decoder.head[-1].weight
    seen -= 2 * 2 * last.numel() * video[:, 0].numel() * config.loss.gan_adaptive
    each = of_vae(vae.config, bucket).step + of_judging(config.loss, bucket)
    assert seen == pytest.approx(2 * each, rel=0.002)


def test_a_vaes_plan_has_what_judges_it_for_as_many_steps_as_it_does():
    def work(*keys: str) -> tuple[float, float]:
        given = ["trains=vae", "model=micro", "buckets.sizes=64x64", "buckets.frames=5"]
        given += ["buckets.tokens=32", "optimizer.steps=100", "loss.gan_width=8", *keys]
        plan = planned(load(Fit, given), Machine("gpu", True, 10**15, 1e15, 1e14))
        assert plan.work.total == plan.work.forward + plan.work.backward + plan.work.still
        return plan.work.still, plan.days

    plain, days = work("loss.perceptual=0")
    assert plain == 0
    always, more = work("loss.perceptual=0", "loss.gan=0.1")
    late, _ = work("loss.perceptual=0", "loss.gan=0.1", "loss.gan_start=75")
    assert late == pytest.approx(always / 4)
    assert more > days
    seen, _ = work("loss.perceptual=3")
    both, _ = work("loss.perceptual=3", "loss.gan=0.1")
    assert both == pytest.approx(seen + always)


def test_a_step_is_the_sum_of_its_batches_and_shared_by_those_who_share_a_sequence():
    network = meta("tiny")
    some = [Batch(BUCKET, ["a", "b"], ["", ""]), Batch(Bucket(32, 32, 1), ["c"], [""])]
    each = [of_dit(network.config, one.bucket).step * len(one) for one in some]
    assert step_flops(network, some) == sum(each)
    assert step_flops(network, some, context=2) == sum(each) / 2
    with_text = Batch(BUCKET, ["a"], ["a cat"], text=torch.zeros(1, 70, 64))
    long = meta("tiny", text_length=512)
    assert step_flops(long, [with_text]) == of_dit(long.config, BUCKET, 128).step
    assert of_dit(long.config, BUCKET, 128) == of_dit(long.config | {"text_length": 128}, BUCKET)
    vae = WanVAE(width=4, blocks=1)
    clips = [Batch(Bucket(16, 16, 1), ["a", "b", "c"], [""] * 3)]
    assert step_flops(vae, clips) == 3 * of_vae(vae.config, clips[0].bucket).step
