"""Flow matching against closed forms and diffusers' schedules."""

import math

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from model import flow

SHIFTS = (1.0, 2.0, 3.04, 5.0, 8.0, 16.0)
STEPS = (1, 2, 3, 7, 20, 40, 50, 1000)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_least_squares_over_samples_recovers_the_known_velocity_field():
    """Data ~ N(m, s²), noise ~ N(0, 1): E[noise − data | x] is a line known in closed form."""
    mean, spread = 0.7, 0.4
    data = mean + spread * drawn(400_000)
    noise = drawn(400_000, seed=1)
    for sigma in (0.1, 0.5, 0.9):
        x = flow.interpolate(data, noise, sigma)
        line = torch.stack([x, torch.ones_like(x)], 1)
        slope, offset = torch.linalg.lstsq(line, flow.target(data, noise)[:, None]).solution
        variance = (1 - sigma) ** 2 * spread**2 + sigma**2
        expected = (sigma - (1 - sigma) * spread**2) / variance
        assert float(slope) == pytest.approx(expected, abs=0.01)
        assert float(offset) == pytest.approx(-mean - expected * (1 - sigma) * mean, abs=0.01)


def test_sigma_one_is_noise_and_sigma_zero_is_data():
    data, noise = drawn(2, 3, 4), drawn(2, 3, 4, seed=1)
    assert torch.equal(flow.interpolate(data, noise, 0.0), data)
    assert torch.equal(flow.interpolate(data, noise, 1.0), noise)
    ends = flow.interpolate(data, noise, torch.tensor([0.0, 1.0]))
    assert torch.equal(ends, torch.stack([data[0], noise[1]]))


def test_the_target_is_the_slope_of_the_path():
    data, noise = drawn(2, 3, 4), drawn(2, 3, 4, seed=1)
    rise = flow.interpolate(data, noise, 0.6) - flow.interpolate(data, noise, 0.4)
    torch.testing.assert_close(rise / 0.2, flow.target(data, noise))


def test_the_reports_convention_is_this_one_run_backwards():
    data, noise, t = drawn(2, 3), drawn(2, 3, seed=1), 0.3
    reports = t * data + (1 - t) * noise
    torch.testing.assert_close(flow.interpolate(data, noise, 1 - t), reports)
    torch.testing.assert_close(flow.target(data, noise), -(data - noise))


@pytest.mark.parametrize("sigma", [0.3, torch.tensor([0.1, 0.9], dtype=torch.float64)])
def test_data_noise_and_velocity_tell_the_same(sigma):
    data, noise = drawn(2, 3, 4, 5, 6), drawn(2, 3, 4, 5, 6, seed=1)
    x, v = flow.interpolate(data, noise, sigma), flow.target(data, noise)
    torch.testing.assert_close(flow.data_from_velocity(x, v, sigma), data)
    torch.testing.assert_close(flow.noise_from_velocity(x, v, sigma), noise)
    torch.testing.assert_close(flow.velocity_from_data(x, data, sigma), v)
    torch.testing.assert_close(flow.velocity_from_noise(x, noise, sigma), v)


def test_a_sigma_for_another_batch_is_refused():
    with pytest.raises(ValueError, match="sigma has shape"):
        flow.interpolate(drawn(3, 4), drawn(3, 4), torch.tensor([0.1, 0.2]))


def test_the_loss_is_the_mean_square_of_each_sample_in_float32():
    data, noise, v = (drawn(3, 4, 5, seed=i).bfloat16() for i in range(3))
    expected = ((v.float() - (noise.float() - data.float())) ** 2).mean((1, 2))
    found = flow.loss(v, data, noise)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    assert flow.loss(v.double(), data, noise).dtype == torch.float64


def cumulative(sigma, mean, std):
    """The distribution function of the logit-normal, in closed form."""
    z = (torch.logit(sigma.double()) - mean) / std
    return 0.5 * (1 + torch.erf(z / math.sqrt(2)))


def distance_from_uniform(u):
    """Kolmogorov and Smirnov's statistic."""
    u, n = u.double().sort().values, len(u)
    return max(
        float((torch.arange(1, n + 1) / n - u).max()), float((u - torch.arange(n) / n).max())
    )


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.8, 0.5)])
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("stratified", [False, True])
def test_logit_normal_sigmas_follow_their_distribution(mean, std, shift, stratified):
    generator = torch.Generator().manual_seed(0)
    sigma = flow.sample_sigmas(20_000, "logit-normal", mean, std, shift, stratified, generator)
    u = cumulative(flow.unshift_sigma(sigma, shift), mean, std)
    # 1.63 / sqrt(n) is passed by one fair sample in a hundred
    assert distance_from_uniform(u) < 1.63 / math.sqrt(20_000)


def test_uniform_sigmas_follow_their_distribution():
    sigma = flow.sample_sigmas(20_000, "uniform", generator=torch.Generator().manual_seed(0))
    assert distance_from_uniform(sigma) < 1.63 / math.sqrt(20_000)


def test_a_positive_mean_and_a_shift_draw_more_noise():
    def mean_of(**settings):
        generator = torch.Generator().manual_seed(0)
        return float(flow.sample_sigmas(4000, generator=generator, **settings).mean())

    assert mean_of(mean=-0.5) < mean_of() < mean_of(mean=0.5)
    assert mean_of(shift=0.5) < mean_of() < mean_of(shift=2.0)


@pytest.mark.parametrize("distribution", flow.DISTRIBUTIONS)
def test_a_stratified_batch_has_one_sigma_in_each_slice(distribution):
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        sigma = flow.sample_sigmas(8, distribution, 0.3, 1.2, 1.0, True, generator)
        u = cumulative(sigma, 0.3, 1.2) if distribution == "logit-normal" else sigma
        assert sorted((u * 8).floor().int().tolist()) == list(range(8))


def test_a_samples_place_in_a_stratified_batch_says_nothing_about_its_sigma():
    generator = torch.Generator().manual_seed(0)
    first = torch.stack(
        [flow.sample_sigmas(4, "uniform", stratified=True, generator=generator) for _ in range(500)]
    )
    torch.testing.assert_close(first.mean(0), torch.full((4,), 0.5), atol=0.05, rtol=0)


def test_the_same_seed_draws_the_same_sigmas_strictly_between_the_ends():
    one, two = (
        flow.sample_sigmas(1000, std=8.0, generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    assert torch.equal(one, two)
    assert one.dtype == torch.float32
    assert not torch.equal(one, flow.sample_sigmas(1000, std=8.0))
    assert 0 <= one.min() <= one.max() <= 1


@pytest.mark.parametrize(("settings", "said"), [((0,), "batch=0"), ((4, "cosine"), "logit-normal")])
def test_wrong_draws_say_what_is_allowed(settings, said):
    with pytest.raises(ValueError, match=said):
        flow.sample_sigmas(*settings)


@pytest.mark.parametrize("shift", SHIFTS)
def test_unshift_undoes_shift_and_the_ends_stay(shift):
    sigma = torch.linspace(0, 1, 101, dtype=torch.float64)
    there = flow.shift_sigma(sigma, shift)
    torch.testing.assert_close(flow.unshift_sigma(there, shift), sigma)
    assert (there[0], there[-1]) == (0, 1)
    assert (there >= sigma).all()


def test_a_shift_scales_the_ratio_of_noise_to_signal():
    """What the formula is for: sigma'/(1 − sigma') = s · sigma/(1 − sigma)."""
    there = flow.shift_sigma(0.3, 5.0)
    assert there / (1 - there) == pytest.approx(5 * 0.3 / 0.7)
    with pytest.raises(ValueError, match="shift=0"):
        flow.shift_sigma(0.3, 0)


def test_the_training_shift_is_2_at_480p_and_3_at_720p():
    assert flow.training_shift(21 * 30 * 52) == 2.0
    assert flow.training_shift(21 * 45 * 80) == pytest.approx(3.04, abs=0.01)
    assert flow.training_shift(256) == 1.0


# diffusers' DPM++ hands a tensor to numpy.array
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("spacing", ["unipc", "dpm++"])
def test_sigmas_and_whole_timesteps_are_the_schedulers_to_the_last_bit(spacing, shift):
    kind = {"unipc": UniPCMultistepScheduler, "dpm++": DPMSolverMultistepScheduler}[spacing]
    theirs = kind(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    for steps in STEPS:
        theirs.set_timesteps(steps)
        ours = flow.sigmas(steps, shift, spacing)
        assert torch.equal(torch.tensor(ours), theirs.sigmas)
        assert [flow.timestep(one, whole=True) for one in ours[:-1]] == theirs.timesteps.tolist()


@pytest.mark.parametrize("shift", SHIFTS)
def test_eulers_sigmas_are_the_schedulers(shift):
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    for steps in STEPS:
        theirs.set_timesteps(steps)
        ours = flow.sigmas(steps, shift, "euler")
        torch.testing.assert_close(torch.tensor(ours), theirs.sigmas, atol=1e-6, rtol=0)
        times = torch.tensor([flow.timestep(one) for one in ours[:-1]])
        torch.testing.assert_close(times, theirs.timesteps, atol=1e-3, rtol=0)


def test_the_official_sigmas_start_at_the_largest_training_sigma():
    """FlowUniPCMultistepScheduler, 4 steps: 0.999 · (4, 3, 2, 1) / 4, then the shift."""
    even = [0.999, 0.74925, 0.4995, 0.24975]
    expected = [3 * one / (1 + 2 * one) for one in even]
    assert flow.sigmas(4, 3.0, "official") == pytest.approx([*expected, 0.0])
    # its timesteps at 3 steps and no shift, as the official class gives them
    thirds = flow.sigmas(3, 1.0, "official")[:-1]
    assert [flow.timestep(one, whole=True) for one in thirds] == [999, 666, 333]


@pytest.mark.parametrize("spacing", flow.SPACINGS)
def test_sigmas_fall_from_noise_to_zero(spacing):
    sigmas = flow.sigmas(30, 5.0, spacing)
    assert len(sigmas) == 31
    assert sigmas == sorted(set(sigmas), reverse=True)
    assert 0.99 < sigmas[0] <= 1
    assert sigmas[-1] == 0


def test_wrong_schedules_say_what_is_allowed():
    with pytest.raises(ValueError, match="steps=0"):
        flow.sigmas(0)
    with pytest.raises(ValueError, match="unipc"):
        flow.sigmas(4, 1.0, "karras")
