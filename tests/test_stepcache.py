"""The caches on a network whose residual is known, and on a small WanDiT."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from model import flow
from model.distance import psnr
from model.dit import WanDiT
from model.guidance import Conditioning, Guidance
from model.presets import PRESETS
from model.solver import SOLVERS, euler, heun, unipc
from model.stepcache import RESCALE, Count, GuidanceCache, StepCache
from tests.test_solver import Mixture
from tests.twins import redraw

SHAPE = (3, 2, 4, 4)  # C T H W
SIGMAS = flow.sigmas(20, 3.0)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Known:
    """A dit whose one block adds residual(told, time) to tokens that drift with the latents."""

    def __init__(self, residual):
        self.residual = residual
        self.blocks = [self.block]
        self.recompute = lambda index, block, *inputs: block(*inputs)
        self.ran = 0

    def block(self, tokens, told, time):
        self.ran += 1
        return tokens + self.residual(tokens, told, time)

    def embed_time(self, timestep):
        angles = timestep.double()[:, None] / 1000 * torch.arange(1.0, 5.0, dtype=torch.float64)
        time = torch.cat([2 + angles.cos(), angles.sin()], 1)
        return time, torch.stack([time * i for i in range(1, 7)], 1)

    def __call__(self, latents, timestep, text, image=None, condition=None):
        tokens = latents.flatten(2).transpose(1, 2)
        told = text.mean((1, 2)).view(-1, 1, 1), timestep.double().view(-1, 1, 1) / 1000
        for index, block in enumerate(self.blocks):
            tokens = self.recompute(index, block, tokens, *told)
        return tokens.transpose(1, 2).reshape(latents.shape) * 0.7


def constant(tokens, told, time):
    return torch.ones_like(tokens) * told


def linear(tokens, told, time):
    return torch.ones_like(tokens) * (told + told * time)


def curved(tokens, told, time):
    return torch.tanh(tokens.roll(1, dims=1) + told) * (1 + torch.sin(3 * time))


def told(batch=2, seed=10):
    return Conditioning(drawn(batch, 5, 3, seed=seed)), Conditioning(drawn(batch, 5, 3, seed=90))


def run(guidance, dit, batch=2, seed=0, solver=unipc, sigmas=SIGMAS):
    """The sampled latents and the velocity that tells its counts."""
    velocity = guidance(dit, *told(batch), sigmas=sigmas)
    return solver(velocity, drawn(batch, *SHAPE, seed=seed), sigmas), velocity


BOTH = (True, False)


@pytest.mark.parametrize("batched", BOTH)
@pytest.mark.parametrize(
    "caches",
    [{"step_cache": StepCache(0.0)}, {"guidance_cache": GuidanceCache(1)}],
    ids=["step", "guidance"],
)
def test_a_cache_that_may_reuse_nothing_changes_nothing(caches, batched):
    """Heun asks twice at a sigma, where nothing has drifted."""
    plain = Guidance(4.0, batched=batched)
    for solver, calls in ((unipc, 20), (heun, 39)):
        expected, _ = run(plain, Known(curved), solver=solver)
        found, velocity = run(replace(plain, **caches), Known(curved), solver=solver)
        assert torch.equal(found, expected)
        assert [count.reused for count in velocity.counts.values()] == [0, 0]
        assert [count.computed for count in velocity.counts.values()] == [calls, calls]


def test_more_passes_are_reused_the_higher_the_threshold():
    reused = []
    for threshold in (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1e9):
        dit = Known(curved)
        _, velocity = run(Guidance(4.0, step_cache=StepCache(threshold)), dit)
        count = velocity.counts["positive"]
        assert velocity.counts["negative"] == count
        assert dit.ran == count.computed == 20 - count.reused
        reused.append(count.reused)
    assert reused == sorted(reused)
    assert reused[0] == 0
    assert len(set(reused)) >= 5
    assert reused[-1] == 18  # all but the first and the last


@pytest.mark.parametrize("indicator", ["embedding", "modulation"])
@pytest.mark.parametrize("rescale", [None, "t2v-1.3b", "i2v-14b-480p"])
@pytest.mark.parametrize("threshold", [0.03, 0.1, 0.3])
def test_steps_are_chosen_by_teacaches_rule(threshold, rescale, indicator):
    """The rule written out as the paper has it, with numpy's polynomials."""
    dit = Known(curved)
    cache = StepCache(threshold, indicator, rescale, first=2, last=1)
    sigmas = flow.sigmas(40, 5.0)
    fit = np.poly1d(RESCALE[rescale][indicator] if rescale else [1, 0])
    seen = dit.embed_time(torch.tensor([flow.timestep(one, True) for one in sigmas[:-1]]))
    seen = seen[indicator == "modulation"].numpy()
    expected, drift = [], 0.0
    for i in range(40):
        if i:
            change = np.abs(seen[i] - seen[i - 1]).mean() / np.abs(seen[i - 1]).mean()
            drift += max(fit(change), 0)
        computed = i < 2 or i >= 39 or drift >= threshold
        drift = 0.0 if computed else drift
        expected.append(computed)

    found, guidance = [], Guidance(1.0, step_cache=cache)
    velocity = guidance(dit, told()[0], sigmas=sigmas)
    for sigma in sigmas[:-1]:
        before = dit.ran
        velocity(drawn(2, *SHAPE), sigma)
        found.append(dit.ran > before)
    assert found == expected
    assert guidance(dit, told()[0], sigmas=sigmas).step_run.plan() == [not one for one in found]


@pytest.mark.parametrize("batched", BOTH)
@pytest.mark.parametrize("guidance_cache", [None, GuidanceCache(3, first=2, compensate=1.0)])
@pytest.mark.parametrize(
    ("residual", "compensate", "interval"),
    [
        (constant, 0.0, (0.1, 0.8)),
        (constant, 1.0, (0.1, 0.8)),
        (linear, 1.0, (0.0, 1.0)),
    ],
)
def test_reuse_is_exact_where_the_residual_stays_or_drifts_in_a_line(
    residual, compensate, interval, guidance_cache, batched
):
    """The first two steps fix the line; positive and negative residuals differ."""
    plain = Guidance(4.0, interval, batched, whole_timesteps=False)
    cached = replace(
        plain,
        step_cache=StepCache(1e9, first=2, compensate=compensate),
        guidance_cache=guidance_cache,
    )
    expected, _ = run(plain, Known(residual))
    found, velocity = run(cached, Known(residual))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)  # timesteps are float32
    assert velocity.counts["positive"].reused >= 16  # one more where the negative pass sets in


def test_a_drifting_residual_is_followed_better_with_compensation():
    """And a cache that reuses is not the uncached run."""
    expected, _ = run(Guidance(4.0), Known(curved), solver=euler)
    errors = []
    for compensate in (0.0, 0.5):
        cache = StepCache(0.08, first=2, compensate=compensate)
        found, velocity = run(Guidance(4.0, step_cache=cache), Known(curved), solver=euler)
        assert velocity.counts["positive"].reused > 3
        errors.append(float((found - expected).norm()))
    assert errors[0] > errors[1] > 1e-6


@pytest.mark.parametrize(
    "caches",
    [
        {"step_cache": StepCache(0.3, compensate=0.5)},
        {"guidance_cache": GuidanceCache(3)},
        {"step_cache": StepCache(0.3), "guidance_cache": GuidanceCache(3)},
    ],
    ids=["step", "guidance", "both"],
)
@pytest.mark.parametrize("batched", BOTH)
class TestNothingLeaks:
    def test_from_one_run_to_the_next(self, caches, batched):
        guidance, dit = Guidance(4.0, batched=batched, **caches), Known(curved)
        first, before = run(guidance, dit, seed=1)
        run(guidance, dit, seed=2, batch=3)
        again, after = run(guidance, dit, seed=1)
        assert torch.equal(first, again)
        assert before.counts == after.counts
        assert before.counts["negative"].reused > 0

    def test_from_one_sample_to_another(self, caches, batched):
        guidance, noise = Guidance(4.0, batched=batched, **caches), drawn(3, *SHAPE)
        positive, negative = told(3)

        def sampled(rows):
            parts = Conditioning(positive.text[rows]), Conditioning(negative.text[rows])
            return unipc(guidance(Known(curved), *parts, sigmas=SIGMAS), noise[rows], SIGMAS)

        alone = torch.cat([sampled(slice(i, i + 1)) for i in range(3)])
        torch.testing.assert_close(sampled(slice(0, 3)), alone)

    def test_from_a_batch_to_one_of_another_shape(self, caches, batched):
        guidance, dit = Guidance(4.0, batched=batched, **caches), Known(curved)
        velocity = guidance(dit, *told(1), sigmas=SIGMAS)
        for sigma in SIGMAS[:4]:
            velocity(drawn(1, *SHAPE), sigma)
        computed = velocity.counts["negative"].computed
        velocity(drawn(1, *SHAPE), SIGMAS[4])
        assert velocity.counts["negative"].computed == computed
        wide = drawn(2, 3, 2, 4, 6)
        expected = Guidance(4.0, batched=batched)(Known(curved), *told(1))(wide, SIGMAS[5])
        torch.testing.assert_close(velocity(wide, SIGMAS[5]), expected)
        assert velocity.counts["negative"].computed == computed + 1


@pytest.mark.parametrize("batched", BOTH)
def test_the_negative_pass_is_computed_every_kth_time_and_at_the_ends(batched):
    dit, pattern = Known(constant), []
    guidance = Guidance(4.0, batched=batched, guidance_cache=GuidanceCache(4, first=2, last=3))
    velocity = guidance(dit, *told(), sigmas=SIGMAS)
    for sigma in SIGMAS[:-1]:
        before = velocity.counts["negative"].computed
        velocity(drawn(2, *SHAPE), sigma)
        pattern.append(velocity.counts["negative"].computed - before)
    #          first two, then each fourth                          the last three
    assert pattern == [1, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 1, 1]
    assert velocity.counts["positive"].computed == 20
    assert velocity.counts["negative"].reused == 20 - sum(pattern)


def test_the_difference_is_followed_exactly_along_a_line():
    plain = Guidance(4.0, whole_timesteps=False)
    expected, _ = run(plain, Known(linear))
    errors = []
    for share in (1.0, 0.5, 0.0):
        cache = GuidanceCache(5, first=2, compensate=share)
        found, velocity = run(replace(plain, guidance_cache=cache), Known(linear))
        assert velocity.counts["negative"].reused > 10
        errors.append(float((found - expected).abs().max()))
    assert errors[0] < 1e-5
    assert errors[2] > errors[1] > 1e-3


def mixtures(latents, timestep, text, image=None, condition=None):
    """A dit that knows two mixtures: what the prompt asks for, and everything."""
    asked = Mixture([0.6, 0.4], [[0.8, 0.9], [0.2, 1.2]], [0.3, 0.5])
    all_of_it = Mixture([0.3, 0.2, 0.5], [[0.8, 0.9], [0.2, 1.2], [-1.0, -0.5]], [0.3, 0.5, 0.6])
    sigma = float(timestep[0]) / 1000
    rows = [
        (asked if float(one.sum()) > 0 else all_of_it)(x, sigma)
        for x, one in zip(latents.double().squeeze((3, 4)).transpose(1, 2), text, strict=True)
    ]
    return torch.stack(rows).transpose(1, 2).reshape(latents.shape)


def test_half_the_slope_brings_known_guided_samples_nearest_to_the_uncached_ones():
    """On a flow in closed form: nearer than none or all of it, and than fewer steps at its cost."""
    prompts = Conditioning(torch.ones(1, 1, 1)), Conditioning(-torch.ones(1, 1, 1))
    noise = drawn(1, 2, 256, 1, 1, seed=3)

    def sampled(steps, cache=None):
        sigmas = flow.sigmas(steps, 5.0)
        guidance = Guidance(5.0, whole_timesteps=False, guidance_cache=cache)
        return unipc(guidance(mixtures, *prompts, sigmas=sigmas), noise, sigmas)

    full = sampled(40)
    near = {
        share: float(psnr(sampled(40, GuidanceCache(4, compensate=share)), full))
        for share in (0.0, 0.5, 1.0)
    }
    assert near[0.5] > max(near[0.0], near[1.0]) + 5
    assert near[0.5] > float(psnr(sampled(26), full)) + 5  # 2 · 26 passes against 40 + 11


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_runs_with_both_caches(name):
    guidance = Guidance(
        4.0, step_cache=StepCache(0.05), guidance_cache=GuidanceCache(3), interval=(0.0, 0.95)
    )
    found, velocity = run(guidance, Known(curved), solver=SOLVERS[name])
    expected, _ = run(Guidance(4.0, interval=(0.0, 0.95)), Known(curved), solver=SOLVERS[name])
    assert velocity.counts["positive"].reused > 0
    assert velocity.counts["negative"].reused > 0
    assert float(psnr(found, expected, peak=float(expected.max() - expected.min())).min()) > 20


@pytest.fixture(scope="module")
def dit():
    """A small WanDiT, every parameter drawn anew."""
    tiny = WanDiT(**PRESETS["tiny"] | {"num_layers": 3, "text_length": 8}).requires_grad_(False)
    redraw(tiny, seed=1)
    return tiny


def sampled(dit, guidance, seeds=(0, 1), sigmas=SIGMAS[:4] + SIGMAS[-4:]):
    """Latents [B, 16, 2, 4, 6] and the velocity's counts."""
    text = drawn(2, 8, 64, seed=5).float()
    prompts = Conditioning(text[:1]), Conditioning(text[1:])
    noise = torch.stack([drawn(16, 2, 4, 6, seed=seed).float() for seed in seeds])
    velocity = guidance(dit, *prompts, sigmas=sigmas)
    return unipc(velocity, noise, sigmas), velocity.counts


@pytest.mark.parametrize("batched", BOTH)
def test_a_real_dit_at_threshold_zero_is_the_uncached_one_to_the_bit(dit, batched):
    expected, _ = sampled(dit, Guidance(4.0, batched=batched))
    cached = Guidance(4.0, batched=batched, step_cache=StepCache(0.0))
    found, counts = sampled(dit, cached)
    assert torch.equal(found, expected)
    assert counts["positive"].computed == 7


@pytest.mark.parametrize("indicator", ["embedding", "modulation"])
def test_a_real_dits_reused_step_adds_what_its_blocks_added_last(dit, indicator):
    """Against the stages of the network put together by hand."""
    cache = StepCache(1e9, indicator)
    velocity = Guidance(1.0, step_cache=cache)(
        dit, Conditioning(drawn(1, 8, 64).float()), sigmas=SIGMAS
    )
    x, seen = drawn(1, 16, 2, 4, 6).float(), {}
    hooks = [
        dit.blocks[0].register_forward_hook(lambda _, into, __: seen.update(before=into[0])),
        dit.blocks[-1].register_forward_hook(lambda _, __, out: seen.update(after=out)),
        dit.head.register_forward_hook(lambda _, into, __: seen.update(head=into[0])),
    ]
    velocity(x, SIGMAS[0])
    residual = seen["after"] - seen["before"]
    velocity(2 * x, SIGMAS[1])
    tokens = dit.patch_embedding(2 * x)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(seen["head"], tokens + residual)
    assert velocity.counts["positive"] == Count(computed=1, reused=1)
    assert residual.abs().max() > 0.1


def test_a_real_dit_is_left_as_it_was(dit):
    """Also by a run that breaks off."""
    usual = dit.recompute
    guidance = Guidance(4.0, step_cache=StepCache(0.1), guidance_cache=GuidanceCache(2))
    first, counts = sampled(dit, guidance)
    assert counts["negative"].reused > 0
    with pytest.raises(ValueError, match="channels"):
        guidance(dit, *[Conditioning(drawn(1, 8, 64).float())] * 2, sigmas=SIGMAS)(
            drawn(1, 5, 2, 4, 6).float(), SIGMAS[0]
        )
    assert dit.recompute is usual
    assert torch.equal(sampled(dit, guidance)[0], first)
    alone = torch.cat([sampled(dit, guidance, seeds=[seed])[0] for seed in (0, 1)])
    torch.testing.assert_close(first, alone, atol=1e-4, rtol=1e-4)


def test_nothing_in_a_cached_run_waits_for_the_device():
    """Latents of the meta device have no values to wait for: reading one raises."""
    guidance = Guidance(4.0, step_cache=StepCache(0.05), guidance_cache=GuidanceCache(3))
    texts = [Conditioning(torch.empty(1, 5, 3, device="meta")) for _ in "ab"]

    class Meta(Known):
        def embed_time(self, timestep):  # read once, before the run
            steps = [flow.timestep(one, True) for one in SIGMAS[:-1]]
            return super().embed_time(torch.tensor(steps))

    velocity = guidance(Meta(curved), *texts, sigmas=SIGMAS)
    noise = torch.empty(2, *SHAPE, device="meta", dtype=torch.float64)
    assert unipc(velocity, noise, SIGMAS).shape == noise.shape
    assert velocity.counts["positive"].reused > 0


@pytest.mark.parametrize(
    ("cache", "settings", "said"),
    [
        (StepCache, {"threshold": -0.1}, "threshold=-0.1"),
        (StepCache, {"threshold": 0.1, "indicator": "tokens"}, "embedding or modulation"),
        (StepCache, {"threshold": 0.1, "rescale": "t2v-2b"}, "t2v-1.3b"),
        (StepCache, {"threshold": 0.1, "compensate": 2.0}, "compensate=2.0"),
        (GuidanceCache, {"every": 0}, "every=0"),
        (GuidanceCache, {"compensate": -1.0}, "compensate=-1.0"),
    ],
)
def test_wrong_settings_say_what_is_allowed(cache, settings, said):
    with pytest.raises(ValueError, match=said):
        cache(**settings)
