"""Wan-VAE: the published shape, diffusers' numbers, a stream like one shot, causal, trainable."""

import copy
import gc
import json

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from torch.distributions import Normal, kl_divergence

from model.coder import RMSNorm
from model.vae import LATENT_MEAN, Posterior, WanVAE
from tests.drawn import draw
from tests.published import names


def video(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def vae() -> WanVAE:
    return draw(WanVAE(width=8))


@pytest.fixture(scope="module")
def small() -> WanVAE:
    """Every kind of layer, once or twice."""
    shape = {"multipliers": (1, 2), "blocks": 1, "temporal": (True,)}
    return draw(WanVAE(width=4, latent_channels=2, **shape))


@pytest.fixture(scope="module")
def theirs(vae: WanVAE) -> AutoencoderKLWan:
    model = AutoencoderKLWan(base_dim=8).eval()
    weights = {name: weight.clone() for name, weight in vae.state_dict().items()}
    model.load_state_dict(convert_wan_vae_to_diffusers(weights))
    return model


def test_the_full_size_has_the_published_names_shapes_and_count() -> None:
    with torch.device("meta"):
        vae = WanVAE()
    assert {name: list(weight.shape) for name, weight in vae.state_dict().items()} == names("vae")
    count = {
        name: sum(weight.numel() for weight in part.parameters())
        for name, part in (("encoder", vae.encoder), ("decoder", vae.decoder), ("all", vae))
    }
    assert (count["encoder"] + 32 * 33) / 1e6 == pytest.approx(53.60, abs=0.01)
    assert count["decoder"] / 1e6 == pytest.approx(73.30, abs=0.01)
    assert count["all"] / 1e6 == pytest.approx(126.89, abs=0.005)


@pytest.mark.parametrize("size", [(1, 32, 48), (5, 40, 24), (9, 16, 16), (17, 16, 32)])
def test_the_numbers_are_those_of_diffusers(
    vae: WanVAE, theirs: AutoencoderKLWan, size: tuple[int, int, int]
) -> None:
    x = video(2, 3, *size)
    with torch.no_grad():
        mine, other = vae.encode(x), theirs.encode(x).latent_dist
        assert other.mean.std() > 0.05
        torch.testing.assert_close(mine.mean, other.mean, atol=1e-4, rtol=0)
        torch.testing.assert_close(mine.logvar, other.logvar, atol=1e-4, rtol=0)
        seen = theirs.decode(other.mean).sample
        assert seen.std() > 0.05
        torch.testing.assert_close(vae.decode(other.mean), seen, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("chunk", "cut"), [(4, 1), (8, 3), (16, 100)])
def test_a_stream_gives_the_numbers_of_one_shot_however_it_is_cut(
    vae: WanVAE, chunk: int, cut: int
) -> None:
    x = video(2, 3, 21, 16, 24)
    with torch.no_grad():
        whole = vae.encode(x)
        parts = list(vae.encode_stream(iter(x.split(cut, dim=2)), chunk=chunk))
        assert len(parts) == 1 + -(-20 // chunk)
        for name in ("mean", "logvar"):
            streamed = torch.cat([getattr(part, name) for part in parts], dim=2)
            torch.testing.assert_close(streamed, getattr(whole, name), atol=1e-4, rtol=0)
        frames = list(vae.decode_stream(iter(whole.mean.split(cut, dim=2)), chunk=chunk // 4))
        assert [part.shape[2] for part in frames[:2]] == [1, chunk]
        torch.testing.assert_close(
            torch.cat(frames, dim=2), vae.decode(whole.mean), atol=1e-4, rtol=0
        )


def test_a_stream_yields_before_its_input_ends(vae: WanVAE) -> None:
    taken = []

    def frames():  # never ends
        while True:
            taken.append(1)
            yield video(1, 3, 1, 16, 16)

    stream = vae.encode_stream(frames())
    for _ in range(3):
        next(stream)
    assert len(taken) <= 1 + 3 * 4 + 1


def test_what_a_stream_remembers_does_not_grow_with_its_length(small: WanVAE) -> None:
    def held(frames: int) -> int:
        latents = torch.zeros(1, 2, 1, 2, 2)
        stream = small.decode_stream(latents for _ in range(frames))
        for _ in range(frames - 1):
            next(stream)
        gc.collect()
        alive = [one for one in gc.get_objects() if type(one) is torch.Tensor]
        size = sum(one.untyped_storage().nbytes() for one in alive)
        stream.close()
        return size

    assert held(12) == held(4)


@pytest.mark.parametrize("at", [1, 4, 5, 8])
def test_a_changed_frame_changes_nothing_that_comes_before(vae: WanVAE, at: int) -> None:
    x = video(1, 3, 9, 16, 16)
    changed = x.clone()
    changed[:, :, at:] = video(1, 3, 9 - at, 16, 16, seed=9)
    with torch.no_grad():
        before, after = vae.encode(x).mean, vae.encode(changed).mean
        first = (at + 3) // 4  # the latent frame that sees frame `at`
        assert torch.equal(before[:, :, :first], after[:, :, :first])
        assert not torch.allclose(before[:, :, first], after[:, :, first])
        shown, other = (
            vae.decode(before),
            vae.decode(torch.cat([before[:, :, :first], after[:, :, first:]], 2)),
        )
        frame = 1 + 4 * (first - 1)
        assert torch.equal(shown[:, :, :frame], other[:, :, :frame])
        assert not torch.allclose(shown[:, :, frame:], other[:, :, frame:])


def test_the_norms_gradient_is_pytorchs_own() -> None:
    norm = draw(RMSNorm(6)).double()
    x = video(2, 6, 3, 4, 5).double().requires_grad_()
    weight = norm.gamma

    def plain(x: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(x, dim=1) * 6**0.5 * gamma

    out = norm(x)
    torch.testing.assert_close(out, plain(x, weight))
    toward = video(2, 6, 3, 4, 5, seed=3).double()
    mine = torch.autograd.grad((out * toward).sum(), (x, weight))
    theirs = torch.autograd.grad((plain(x, weight) * toward).sum(), (x, weight))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_are_those_of_a_finite_difference(small: WanVAE) -> None:
    vae = copy.deepcopy(small).double()
    x = video(1, 3, 5, 4, 4).double().requires_grad_()
    torch.autograd.gradcheck(lambda x: vae.decode(vae.encode(x).mean), x, fast_mode=True)


def test_checkpointed_activations_give_the_same_gradients_from_less_memory() -> None:
    vae = draw(WanVAE(width=4, latent_channels=4)).train()
    x = video(1, 3, 5, 16, 16)

    def step() -> tuple[list[torch.Tensor], int]:
        saved = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal saved
            saved += tensor.numel()
            return tensor

        vae.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = (vae.decode(vae.encode(x).sample(torch.Generator().manual_seed(3))) - x).abs()
        loss.mean().backward()
        return [weight.grad.clone() for weight in vae.parameters()], saved

    plain, much = step()
    vae.checkpoint_activations()
    again, little = step()
    assert little < much / 3
    assert all(grad.abs().max() > 0 for grad in plain)
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_one_shot_compiles_into_a_single_graph(small: WanVAE) -> None:
    x = video(1, 3, 5, 8, 8)
    compiled = torch.compile(
        lambda x: small.decode(small.encode(x).mean), fullgraph=True, backend="eager"
    )
    torch.testing.assert_close(compiled(x), small.decode(small.encode(x).mean))


def test_half_precision_stays_near_full(vae: WanVAE) -> None:
    x = video(1, 3, 5, 16, 16)
    half = WanVAE(**vae.config).to(torch.bfloat16).eval()
    half.load_state_dict(vae.state_dict())
    with torch.no_grad():
        mine, near = vae.encode(x).mean, half.encode(x).mean
    assert near.dtype == torch.bfloat16
    assert (near.float() - mine).abs().mean() < 0.03 * mine.abs().mean()


def test_other_lengths_and_sizes_are_refused_with_the_numbers(vae: WanVAE) -> None:
    with pytest.raises(ValueError, match=r"7 frames are not 1 \+ 4k: cut 2.*repeat.*2 times"):
        vae.encode(video(1, 3, 7, 16, 16))
    with pytest.raises(ValueError, match="width 20 and height 16 must be multiples of 8"):
        vae.encode(video(1, 3, 5, 16, 20))
    with pytest.raises(ValueError, match=r"\[B, 3, T, H, W\], not \[1, 4, 5, 16, 16\]"):
        vae.encode(video(1, 4, 5, 16, 16))
    with pytest.raises(ValueError, match=r"\[B, 16, T, H, W\]"):
        vae.decode(video(1, 4, 2, 2, 2))
    stream = vae.encode_stream([video(1, 3, 7, 16, 16)])
    with pytest.raises(ValueError, match=r"2 frames at the end are not 0 \+ 4k"):
        list(stream)
    with pytest.raises(ValueError, match="multiple of 4"):
        next(vae.encode_stream([video(1, 3, 5, 16, 16)], chunk=6))


def test_padding_repeats_the_last_frame(vae: WanVAE) -> None:
    x = video(1, 3, 7, 16, 16)
    longer = torch.cat([x, x[:, :, -1:], x[:, :, -1:]], dim=2)
    with torch.no_grad():
        expected = vae.encode(longer).mean
        assert torch.equal(vae.encode(x, pad=True).mean, expected)
        streamed = [part.mean for part in vae.encode_stream([x], pad=True)]
    torch.testing.assert_close(torch.cat(streamed, dim=2), expected, atol=1e-4, rtol=0)


def test_the_posterior_samples_and_measures_its_distance_from_the_normal() -> None:
    mean, logvar = video(3, 2, 2, 4, 4), video(3, 2, 2, 4, 4, seed=2)
    posterior = Posterior(mean, logvar)
    reference = kl_divergence(Normal(mean, (logvar / 2).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(posterior.kl(), reference.flatten(1).sum(1))
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([posterior.sample(generator) for _ in range(4000)])
    torch.testing.assert_close(draws.mean(0), mean, atol=0.15, rtol=0)
    torch.testing.assert_close(draws.std(0), posterior.std, atol=0.1, rtol=0)
    same = [posterior.sample(torch.Generator().manual_seed(7)) for _ in range(2)]
    assert torch.equal(*same)


def test_latents_are_normalised_by_the_published_statistics_and_back(vae: WanVAE) -> None:
    latents = video(1, 16, 2, 2, 2)
    normal = vae.normalize(latents)
    assert normal[0, 0, 0, 0, 0] == pytest.approx(
        ((latents[0, 0, 0, 0, 0] + 0.7571) / 2.8184).item(), abs=1e-6
    )
    torch.testing.assert_close(vae.denormalize(normal), latents)
    theirs = AutoencoderKLWan(base_dim=8).config
    assert tuple(theirs.latents_mean) == LATENT_MEAN
    assert vae.config["latent_std"] == list(theirs.latents_std)
    assert not [name for name in vae.state_dict() if "latent" in name]
    other = WanVAE(width=4, latent_channels=2, latent_mean=[1.0, 2.0], latent_std=[1.0, 4.0])
    assert other.normalize(torch.full((1, 2, 1, 1, 1), 4.0)).flatten().tolist() == [3.0, 0.5]


def test_the_configuration_makes_the_same_shape_again(vae: WanVAE) -> None:
    odd = WanVAE(
        width=4, latent_channels=3, multipliers=(1, 2, 3), blocks=1, temporal=(True, False)
    )
    for one in (vae, odd):
        again = WanVAE(**json.loads(json.dumps(one.config)))
        again.load_state_dict(one.state_dict())
    assert odd.compression == (2, 4, 4)
    with pytest.raises(ValueError, match="3 levels have 2 changes of level; temporal names 3"):
        WanVAE(multipliers=(1, 2, 4))
    with pytest.raises(ValueError, match="latent_mean has 2 values for 16"):
        WanVAE(latent_mean=[0.0, 1.0])
