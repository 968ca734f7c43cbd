"""Guidance on a small network that mixes all it is told, counted call by call."""

import pytest
import torch

from model import flow
from model.guidance import Conditioning, Guidance
from model.solver import SOLVERS, unipc
from model.stepcache import GuidanceCache
from tests.test_solver import Mixture

SHAPE = (4, 2, 4, 6)  # C T H W


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Network:
    """A dit whose velocity depends on every input; it notes the batch and timestep of each call."""

    def __init__(self):
        self.calls = []
        self.into = drawn(4, 4, seed=7)

    def __call__(self, latents, timestep, text, image=None, condition=None):
        self.calls.append((len(latents), sorted(set(timestep.tolist()))))
        assert timestep.shape == (len(latents),)
        assert len(text) == len(latents)
        told = text.mean((1, 2)) + 0.001 * timestep
        if image is not None:
            assert len(image) == len(latents)
            told = told + image.square().mean((1, 2))
        told = told.view(-1, 1, 1, 1, 1)
        if condition is not None:
            assert condition.shape == (len(latents), 20, *SHAPE[1:])
            told = told + condition.mean(1, keepdim=True)
        return torch.tanh(torch.einsum("dc,bcthw->bdthw", self.into, latents) + told)


def told(batch, seed, full=True):
    return Conditioning(
        drawn(batch, 5, 3, seed=seed),
        drawn(batch, 7, 6, seed=seed + 1) if full else None,
        drawn(batch, 20, *SHAPE[1:], seed=seed + 2) if full else None,
    )


def answer(network, x, sigma, part):
    """The plain network, asked as the documentation says."""
    time = torch.full((len(x),), flow.timestep(sigma, whole=True))
    return network(x, time, part.text, image=part.image, condition=part.condition)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_together_or_in_turn_guidance_is_its_formula(batch, full):
    x, positive, negative = drawn(batch, *SHAPE), told(batch, 10, full), told(batch, 20, full)
    pos, neg = (answer(Network(), x, 0.7, part) for part in (positive, negative))
    for batched, calls in ((True, [2 * batch]), (False, [batch, batch])):
        network = Network()
        velocity = Guidance(4.0, batched=batched)(network, positive, negative)
        torch.testing.assert_close(velocity(x, 0.7), neg + 4 * (pos - neg), atol=1e-5, rtol=0)
        assert [one for one, _ in network.calls] == calls
    assert (pos - neg).abs().max() > 0.1


def test_scale_one_leaves_the_negative_pass_out():
    network, x = Network(), drawn(2, *SHAPE)
    velocity = Guidance(1.0)(network, told(2, 10))
    torch.testing.assert_close(velocity(x, 0.7), answer(Network(), x, 0.7, told(2, 10)))
    assert [one for one, _ in network.calls] == [2]
    assert velocity.counts["negative"].computed == 0
    # and it is what the formula tends to
    near = Guidance(1.0001)(Network(), told(2, 10), told(2, 20))(x, 0.7)
    torch.testing.assert_close(near, velocity(x, 0.7), atol=1e-3, rtol=0)


def test_scale_zero_is_the_negative_pass():
    x, negative = drawn(2, *SHAPE), told(2, 20)
    guided = Guidance(0.0)(Network(), told(2, 10), negative)(x, 0.7)
    torch.testing.assert_close(guided, answer(Network(), x, 0.7, negative))


@pytest.mark.parametrize("batched", [True, False])
def test_outside_of_the_interval_only_the_positive_pass_is_computed(batched):
    network, x = Network(), drawn(2, *SHAPE)
    guidance = Guidance(5.0, interval=(0.3, 0.8), batched=batched)
    velocity = guidance(network, told(2, 10), told(2, 20))
    everywhere = Guidance(5.0)(Network(), told(2, 10), told(2, 20))
    for sigma, guided in ((0.9, False), (0.8, True), (0.5, True), (0.3, True), (0.2, False)):
        network.calls.clear()
        expected = everywhere(x, sigma) if guided else answer(Network(), x, sigma, told(2, 10))
        torch.testing.assert_close(velocity(x, sigma), expected, atol=1e-5, rtol=0)
        assert sum(one for one, _ in network.calls) == (4 if guided else 2)
    assert (velocity.counts["positive"].computed, velocity.counts["negative"].computed) == (5, 3)


def test_one_conditioning_serves_every_sample():
    x, positive, negative = drawn(3, *SHAPE), told(1, 10), told(1, 20)
    together = Guidance(4.0)(Network(), positive, negative)(x, 0.7)
    alone = [Guidance(4.0)(Network(), positive, negative)(one[None], 0.7) for one in x]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


def test_the_network_is_asked_at_whole_timesteps_or_at_exact_ones():
    for whole, expected in ((True, 712.0), (False, 712.5)):
        network = Network()
        Guidance(4.0, whole_timesteps=whole)(network, told(1, 10), told(1, 20))(
            drawn(1, *SHAPE), 0.7125
        )
        assert network.calls == [(2, [expected])]


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_carries_guided_noise(name):
    network, sigmas = Network(), flow.sigmas(4, 3.0)
    guidance = Guidance(3.0, interval=(0.0, 0.9))
    x = SOLVERS[name](guidance(network, told(2, 10), told(2, 20)), drawn(2, *SHAPE), sigmas)
    assert x.shape == (2, *SHAPE)
    assert x.isfinite().all()
    calls = 7 if name == "heun" else 4
    assert len(network.calls) == calls
    assert {times[0] for _, times in network.calls} == {float(int(1000 * s)) for s in sigmas[:-1]}


def test_the_answer_has_the_type_of_the_latents():
    class Half(Network):
        def __call__(self, *args, **kwargs):
            return super().__call__(*args, **kwargs).bfloat16()

    velocity = Guidance(4.0)(Half(), told(1, 10), told(1, 20))
    assert velocity(drawn(1, *SHAPE), 0.5).dtype == torch.float32


def test_what_cannot_be_guided_is_refused_in_a_line():
    with pytest.raises(ValueError, match="needs a negative prompt"):
        Guidance(5.0)(Network(), told(1, 10))
    with pytest.raises(ValueError, match="rising sigmas"):
        Guidance(5.0, interval=(0.8, 0.2))
    with pytest.raises(ValueError, match="needs the run's sigmas"):
        Guidance(5.0, guidance_cache=GuidanceCache())(Network(), told(1, 10), told(1, 20))
    with pytest.raises(ValueError, match="2 samples, latents for 3"):
        Guidance(1.0)(Network(), told(2, 10))(drawn(3, *SHAPE), 0.5)
    with pytest.raises(ValueError, match="both passes or to neither"):
        Guidance(2.0)(Network(), told(1, 10), told(1, 20, full=False))(drawn(1, *SHAPE), 0.5)


def test_guidance_leads_towards_the_positive_prompts_data():
    """Two Gaussians as the prompts' data: guided samples pass the one, away from the other."""
    towards, away = Mixture([1.0], [[0.5, 0.0]], [0.5]), Mixture([1.0], [[0.0, 0.0]], [0.5])

    def dit(latents, timestep, text, image=None, condition=None):
        sigma = float(timestep[0]) / 1000
        parts = zip(latents.double().squeeze((3, 4)).transpose(1, 2), text, strict=True)
        rows = [(towards if float(one.sum()) > 0 else away)(x, sigma) for x, one in parts]
        return torch.stack(rows).transpose(1, 2).reshape(latents.shape)

    prompts = Conditioning(torch.ones(1, 1, 1)), Conditioning(-torch.ones(1, 1, 1))
    noise = drawn(1, 2, 512, 1, 1, seed=3).double()
    means = []
    for scale in (0.0, 1.0, 3.0):
        guidance = Guidance(scale, whole_timesteps=False)
        velocity = guidance(dit, *prompts)
        means.append(float(unipc(velocity, noise, flow.sigmas(20))[:, 0].mean()))
    offset = float(0.5 * noise[:, 0].mean())
    assert means[0] == pytest.approx(offset, abs=0.01)
    assert means[1] == pytest.approx(0.5 + offset, abs=0.01)
    # both have one spread, so the guided flow is a Gaussian's too, of mean scale · 0.5
    assert means[2] == pytest.approx(1.5 + offset, abs=0.03)
