"""Samplers against diffusers' schedulers step by step, and against a flow known in closed form."""

import math
from itertools import count, islice, pairwise

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from model import flow
from model.solver import SOLVERS, dpmpp_2m, euler, heun, unipc

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
# diffusers' DPM++ hands a tensor to numpy.array
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """These tensors are so small that a second thread only waits for the first."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def drawn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def network(seed=0, width=8):
    """A random nonlinear velocity(x [B, …, width], sigma)."""
    into, out = drawn(width, 32, seed=seed), drawn(32, width, seed=seed + 1) / 6
    return lambda x, sigma: torch.tanh(x @ into + 3 * sigma) @ out + math.sin(5 * sigma) * x


class Mixture:
    """Data from a mixture of Gaussians, for which E[noise − data | x] has a closed form."""

    def __init__(self, weights, means, spreads):
        self.weights, self.means, self.spreads = (
            torch.tensor(one, dtype=torch.float64) for one in (weights, means, spreads)
        )

    def __call__(self, x, sigma):
        keep = 1 - sigma
        variance = keep**2 * self.spreads**2 + sigma**2  # [K] of x around each mean
        away = x[:, None] - keep * self.means  # [B, K, D]
        logits = self.weights.log() - 0.5 * (
            away.square().sum(-1) / variance + x.shape[1] * variance.log()
        )
        slope = (sigma - keep * self.spreads**2) / variance
        each = slope[:, None] * away - self.means
        return (torch.softmax(logits, 1)[..., None] * each).sum(1)


MIXTURE = Mixture([0.3, 0.5, 0.2], [[-1.0, 0.5], [0.8, 0.9], [0.2, -1.2]], [0.5, 0.3, 0.7])


def carried(solver, velocity, noise, sigmas, **settings):
    """x and the data estimate after every step."""
    steps = []
    result = solver(velocity, noise, sigmas, lambda *seen: steps.append(seen), **settings)
    assert torch.equal(steps[-1][2], result)
    assert [(step, sigma) for step, sigma, _, _ in steps] == list(enumerate(sigmas))[1:]
    return [x for _, _, x, _ in steps], [data for _, _, _, data in steps]


def stepped(scheduler, velocity, noise, steps, sigmas):
    """x after each step of a diffusers scheduler."""
    scheduler.set_timesteps(steps)
    xs = [noise]
    for t, sigma in zip(scheduler.timesteps, sigmas, strict=False):
        xs.append(scheduler.step(velocity(xs[-1], sigma), t, xs[-1], return_dict=False)[0])
    return xs[1:]


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("shift", [1.0, 5.0, 16.0])
def test_unipc_equals_diffusers_at_every_step(shift, order):
    for steps in (1, 2, 3, 15, 50):
        noise, sigmas = drawn(2, 3, 8, seed=steps), flow.sigmas(steps, shift)
        theirs = UniPCMultistepScheduler(**FLOW, flow_shift=shift, solver_order=order)
        expected = stepped(theirs, network(steps), noise, steps, sigmas)
        found, _ = carried(unipc, network(steps), noise, sigmas, order=order)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        assert found[-1].std() > 0.5


def test_unipcs_default_is_the_public_configuration():
    noise, sigmas = drawn(2, 3, 8), flow.sigmas(20, 5.0)
    public = UniPCMultistepScheduler(**FLOW, flow_shift=5.0)
    assert (public.config.solver_order, public.config.solver_type) == (2, "bh2")
    expected = stepped(public, network(), noise, 20, sigmas)[-1]
    torch.testing.assert_close(unipc(network(), noise, sigmas), expected, atol=1e-4, rtol=0)
    assert (unipc(network(), noise, sigmas, order=3) - expected).abs().max() > 1e-3


def test_unipc_steps_onto_data_where_no_lower_order_was_asked_for():
    """There h is infinite: the order must fall all the same."""
    noise, sigmas = drawn(2, 3, 8), flow.sigmas(4, 3.0)
    seen, data = carried(unipc, network(), noise, sigmas, lower_order_final=False)
    torch.testing.assert_close(seen[-1], data[-1])


@pytest.mark.parametrize("shift", [1.0, 5.0, 16.0])
def test_dpmpp_2m_equals_diffusers_at_every_step(shift):
    for steps in (1, 2, 3, 15, 50):
        noise, sigmas = drawn(2, 3, 8, seed=steps), flow.sigmas(steps, shift, "dpm++")
        theirs = DPMSolverMultistepScheduler(**FLOW, flow_shift=shift)
        expected = stepped(theirs, network(steps), noise, steps, sigmas)
        found, _ = carried(dpmpp_2m, network(steps), noise, sigmas)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_dpmpp_2m_starts_at_sigma_one_as_the_official_sampler_does():
    """There lambda is −inf: the formulas' limit, which diffusers' arithmetic also reaches."""
    even = [1 - i / 10 for i in range(10)]
    sigmas = [*(flow.shift_sigma(one, 5.0) for one in even), 0.0]
    theirs = DPMSolverMultistepScheduler(**FLOW)
    theirs.set_timesteps(10)
    theirs.sigmas = torch.tensor(sigmas)
    theirs.set_begin_index(0)
    x = noise = drawn(2, 3, 8)
    for i in range(10):
        x = theirs.step(network()(x, sigmas[i]), i, x, return_dict=False)[0]
    torch.testing.assert_close(dpmpp_2m(network(), noise, sigmas), x, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shift", [1.0, 5.0, 16.0])
def test_dpmpp_2m_with_fresh_noise_equals_diffusers_at_every_step(shift):
    for steps in (1, 2, 3, 15, 50):
        noise, sigmas = drawn(2, 3, 8, seed=steps), flow.sigmas(steps, shift, "dpm++")
        theirs = DPMSolverMultistepScheduler(
            **FLOW, flow_shift=shift, algorithm_type="sde-dpmsolver++"
        )
        theirs.set_timesteps(steps)
        velocity, x, expected = network(steps), noise, []
        for t, sigma, added in zip(theirs.timesteps, sigmas, fresh(2, 3, 8), strict=False):
            done = theirs.step(velocity(x, sigma), t, x, variance_noise=added)
            expected.append(x := done.prev_sample)
        found, _ = carried(dpmpp_2m, velocity, noise, sigmas, noises=fresh(2, 3, 8))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        assert steps == 1 or (found[-1] - dpmpp_2m(velocity, noise, sigmas)).abs().max() > 0.1


def fresh(*shape, seed=1000, dtype=torch.float32):
    """Noise without end, another each time."""
    return (drawn(*shape, seed=number, dtype=dtype) for number in count(seed))


def test_fresh_noise_makes_up_for_a_bad_start():
    """Data ~ N(m, s²), and every sample starts at the same wrong point: it is forgotten."""
    gaussian = Mixture([1.0], [[0.6, -0.3]], [0.5])
    start, sigmas = torch.full((8000, 2), 0.4, dtype=torch.float64), inside(100)
    stuck = dpmpp_2m(gaussian, start, sigmas)
    assert stuck.std(0).max() < 1e-6
    landed = dpmpp_2m(gaussian, start, sigmas, noises=fresh(8000, 2, dtype=torch.float64))
    end = sigmas[-1]
    mean, spread = (1 - end) * torch.tensor([0.6, -0.3]), math.hypot((1 - end) * 0.5, end)
    torch.testing.assert_close(landed.mean(0), mean.double(), atol=0.03, rtol=0)
    torch.testing.assert_close(landed.std(0), torch.full((2,), spread).double(), atol=0.02, rtol=0)


def test_no_noise_is_asked_for_that_is_not_used():
    """One a step but for the last, which lands on data: what follows a run is the same again."""
    noises = fresh(2, 8)
    dpmpp_2m(network(), drawn(2, 8), flow.sigmas(6, 3.0), noises=noises)
    assert torch.equal(next(noises), next(islice(fresh(2, 8), 5, None)))


@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_euler_equals_diffusers_at_every_step(shift):
    for steps in (1, 2, 3, 50):
        noise, sigmas = drawn(2, 3, 8, seed=steps), flow.sigmas(steps, shift, "euler")
        theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
        expected = stepped(theirs, network(steps), noise, steps, sigmas)
        found, _ = carried(euler, network(steps), noise, sigmas)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_heun_is_the_trapezoid_rule_and_asks_twice_a_step():
    """On a velocity that only depends on sigma, against the sums written out."""
    asked = []

    def velocity(x, sigma):
        asked.append(sigma)
        return torch.full_like(x, math.exp(sigma))

    sigmas = [1.0, 0.7, 0.2, 0.0]
    x = heun(velocity, torch.zeros(2, dtype=torch.float64), sigmas)
    grown = [math.exp(sigma) for sigma in sigmas]
    expected = -0.3 * (grown[0] + grown[1]) / 2 - 0.5 * (grown[1] + grown[2]) / 2 - 0.2 * grown[2]
    assert x.tolist() == pytest.approx([expected] * 2)
    assert asked == [1.0, 0.7, 0.7, 0.2, 0.2]


def inside(steps):
    """Even steps from 0.95 to 0.05: away from the ends, where a step in lambda is infinite."""
    return [0.95 - 0.9 * i / steps for i in range(steps)] + [0.05]


START = drawn(64, 2, seed=5, dtype=torch.float64)


def classical(sigmas):
    """Where the mixture's flow carries START, by Runge and Kutta's rule of fourth order."""
    x = START
    for sigma, to in pairwise(sigmas):
        step, middle = to - sigma, (sigma + to) / 2
        first = MIXTURE(x, sigma)
        second = MIXTURE(x + step / 2 * first, middle)
        third = MIXTURE(x + step / 2 * second, middle)
        last = MIXTURE(x + step * third, to)
        x = x + step / 6 * (first + 2 * second + 2 * third + last)
    return x


@pytest.fixture(scope="module")
def truth():
    return classical(inside(150))


def order_of(solver, truth, **settings):
    """−d log(error) / d log(steps), fitted over three doublings."""
    counts = [40, 80, 160]
    errors = [(solver(MIXTURE, START, inside(n), **settings) - truth).norm() for n in counts]
    x, y = torch.tensor(counts).double().log(), torch.stack(errors).log()
    x, y = x - x.mean(), y - y.mean()
    return float(-(x @ y) / (x @ x))


@pytest.mark.parametrize(
    ("solver", "settings", "low", "high"),
    [
        (euler, {}, 0.9, 1.1),
        (heun, {}, 1.85, 2.15),
        (dpmpp_2m, {}, 1.85, 2.4),
        # one predictor of order 1 at the end keeps the public configuration at 2
        (unipc, {}, 1.8, 2.2),
        (unipc, {"lower_order_final": False}, 2.6, 3.3),  # 2, and 1 for the corrector
        (unipc, {"lower_order_final": False, "order": 1}, 1.8, 2.2),
        (unipc, {"lower_order_final": False, "order": 3}, 3.3, 4.3),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),  # no address: one on every worker
)
def test_the_error_falls_with_the_order_that_the_method_promises(
    solver, settings, low, high, truth
):
    assert low < order_of(solver, truth, **settings) < high


def test_at_equal_cost_every_solver_beats_euler_on_a_sampling_schedule():
    """40 model calls (Heun: 39) over the whole way, against a fine run."""
    goal = classical(flow.sigmas(150))

    def error(name, steps):
        return float((SOLVERS[name](MIXTURE, START, flow.sigmas(steps)) - goal).norm())

    worst = error("euler", 40)
    assert error("heun", 20) < worst / 3
    assert error("dpmpp_2m", 40) < worst / 3
    assert error("unipc", 40) < error("dpmpp_2m", 40)


@pytest.mark.parametrize("name", SOLVERS)
def test_noise_becomes_the_data_of_a_gaussian(name):
    """Data ~ N(m, s²): the flow maps noise z to m + s · z, exactly."""
    gaussian = Mixture([1.0], [[0.6, -0.3]], [0.5])
    landed = SOLVERS[name](gaussian, START, flow.sigmas(150, 3.0))
    expected = torch.tensor([0.6, -0.3]) + 0.5 * START
    torch.testing.assert_close(landed, expected, atol=0.03 if name == "euler" else 0.005, rtol=0)


@pytest.mark.parametrize("name", SOLVERS)
def test_one_step_is_the_data_estimate_from_noise(name):
    noise, sigmas = drawn(2, 8), flow.sigmas(1, 5.0)
    expected = noise - sigmas[0] * network()(noise, sigmas[0])
    torch.testing.assert_close(SOLVERS[name](network(), noise, sigmas), expected)


@pytest.mark.parametrize(("name", "calls"), [(name, 6) for name in SOLVERS if name != "heun"])
def test_multistep_solvers_ask_once_a_step(name, calls):
    asked = []

    def velocity(x, sigma):
        asked.append(sigma)
        return network()(x, sigma)

    sigmas = flow.sigmas(calls, 3.0)
    SOLVERS[name](velocity, drawn(2, 8), sigmas)
    assert asked == sigmas[:-1]
    assert all(type(sigma) is float for sigma in asked)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_callback_sees_each_steps_data_estimate_and_changes_nothing(name):
    noise, sigmas = drawn(2, 8), flow.sigmas(5, 3.0)
    xs, estimates = carried(SOLVERS[name], network(), noise, sigmas)
    assert torch.equal(SOLVERS[name](network(), noise, sigmas), xs[-1])
    for x, sigma, estimate in zip([noise, *xs], sigmas, estimates, strict=False):
        torch.testing.assert_close(estimate, x - sigma * network()(x, sigma))


@pytest.mark.parametrize("name", SOLVERS)
def test_the_noise_is_left_alone_and_half_precision_is_carried_in_float32(name):
    noise, sigmas = drawn(2, 8).bfloat16(), flow.sigmas(5, 3.0)
    kept = noise.clone()
    half = SOLVERS[name](lambda x, sigma: network()(x, sigma).bfloat16(), noise, sigmas)
    assert half.dtype == torch.float32
    assert torch.equal(noise, kept)
    assert SOLVERS[name](network(), noise.float(), torch.tensor(sigmas)).dtype == torch.float32


@pytest.mark.parametrize("name", SOLVERS)
def test_a_samples_result_does_not_depend_on_its_batch(name):
    noise, sigmas = drawn(3, 8, dtype=torch.float64), flow.sigmas(6, 3.0)
    together = SOLVERS[name](MIXTURE, noise[:, :2], sigmas)
    alone = torch.cat([SOLVERS[name](MIXTURE, one[None, :2], sigmas) for one in noise])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("sigmas", [[1.0], [0.5, 0.5, 0.0], [0.0, 1.0], [1.2, 0.0], [0.5, -0.1]])
def test_sigmas_that_do_not_fall_from_noise_to_data_are_refused(name, sigmas):
    with pytest.raises(ValueError, match="sigmas must fall"):
        SOLVERS[name](network(), drawn(1, 8), sigmas)


@pytest.mark.parametrize("name", SOLVERS)
def test_nothing_in_the_loop_waits_for_the_device(name):
    """Tensors of the meta device have no values to wait for: reading one raises."""
    weight = torch.empty(8, 8, device="meta")
    with pytest.raises((RuntimeError, NotImplementedError)):
        float(weight.sum())
    noise, sigmas = torch.empty(2, 8, device="meta"), flow.sigmas(5, 3.0)
    landed = SOLVERS[name](lambda x, sigma: torch.tanh(x @ weight + sigma), noise, sigmas)
    assert landed.shape == (2, 8)
