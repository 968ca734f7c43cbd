"""The DiT's training step against flow matching written out, and what it draws at random."""

import math
from dataclasses import replace

import pytest
import torch

from model import flow
from model.byte_encoder import ByteEncoder
from model.condition import fold
from model.dit import WanDiT
from model.vae import WanVAE
from recipes.load import load
from recipes.training import Fit
from tests.drawn import draw
from training import dit_module, features
from training.batch import Batch, Bucket, pixels
from training.dit_module import DiTModule

BUCKET = Bucket(32, 16, 5)
SIZES = {"width": 64, "ffn_width": 32, "num_heads": 2, "num_layers": 1}
SIZES |= {"text_width": 16, "text_length": 32}


def module(*keys: str, **sizes: int) -> DiTModule:
    torch.manual_seed(0)
    config = load(Fit, ["optimizer.ema=0", "text_encoder=bytes", *keys])
    dit = draw(WanDiT(**SIZES | sizes)).train()
    vae = draw(WanVAE(width=4, blocks=1)).requires_grad_(False)
    text = ByteEncoder(width=16, length=32).requires_grad_(False)
    return DiTModule(dit, config, vae, text)


def batch(count: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(1)
    shape = (count, 3, BUCKET.frames, BUCKET.height, BUCKET.width)
    video = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    prompts = [f"prompt {number}" for number in range(count)]
    return Batch(BUCKET, [f"clip-{number}" for number in range(count)], prompts, video)


def cached(module: DiTModule, one: Batch) -> Batch:
    posterior = module.vae.encode(pixels(one.video))
    return replace(one, video=None, mean=posterior.mean, logvar=posterior.logvar)


class Watched(torch.nn.Module):
    """A network that remembers what it was asked, and says what it is told to."""

    def __init__(self, says) -> None:
        super().__init__()
        self.config = {"in_channels": 16, "out_channels": 16, "image_width": None}
        self.says, self.asked = says, []

    def forward(self, latents, timestep, text, **given):
        self.asked.append((latents, timestep, text, given))
        return self.says(latents)


def test_the_loss_is_the_squared_distance_from_noise_less_data():
    one = module("objective.text_dropout=0", "data.posterior=mean")
    spy = one.network = Watched(torch.zeros_like)
    losses = one.losses(batch(), one.generator(4, 1)).total
    (x, timestep, *_) = spy.asked[0]
    data = one.vae.normalize(one.vae.encode(pixels(batch().video)).mean)
    sigma = (timestep / 1000).view(-1, 1, 1, 1, 1)
    noise = (x - (1 - sigma) * data) / sigma
    torch.testing.assert_close(
        losses, (noise - data).square().flatten(1).mean(1), rtol=1e-3, atol=0
    )
    assert 0.9 < float(noise.std()) < 1.1


def test_a_network_that_knows_the_velocity_loses_nothing():
    one = module("objective.text_dropout=0", "data.posterior=mean")
    data = one.latents(batch(), one.generator(0, 0))
    asked = one.network = Watched(None)

    def velocity(x):
        return (x - data) / (asked.asked[-1][1] / 1000).view(-1, 1, 1, 1, 1)

    asked.says = velocity
    assert float(one.losses(batch(), one.generator(0, 0)).total.max()) < 1e-6


def test_what_is_drawn_depends_on_seed_step_and_batch_alone():
    one = module()
    first = one.losses(batch(), one.generator(4, 1)).total
    torch.rand(100)  # the global generator has no say
    assert torch.equal(first, one.losses(batch(), one.generator(4, 1)).total)
    for other in (one.generator(5, 1), one.generator(4, 2), module("seed=1").generator(4, 1)):
        assert not torch.equal(first, one.losses(batch(), other).total)


def test_a_cached_posterior_trains_as_the_pixels_do():
    one = module()
    pixel = one.losses(batch(), one.generator(0, 0)).total
    torch.testing.assert_close(one.losses(cached(one, batch()), one.generator(0, 0)).total, pixel)


def test_a_share_of_the_prompts_is_dropped_for_the_empty_one():
    one = module("objective.text_dropout=0.25")
    one.network = Watched(torch.zeros_like)
    empty = one.features.filled(one.features([""]))[0]
    for step in range(40):
        one.losses(cached(one, batch(8)), one.generator(step, 0))
    rows = [row for _, _, text, _ in one.network.asked for row in text]
    share = sum(torch.equal(row, empty) for row in rows) / len(rows)
    assert share == pytest.approx(0.25, abs=0.06)


@pytest.mark.parametrize("dropout", [0, 0.5])
def test_text_that_is_all_zeros_is_left_out_and_makes_no_difference(dropout, monkeypatch):
    one = module(f"objective.text_dropout={dropout}", text_length=512)
    one.features.encoder.length = 512
    some = replace(cached(one, batch()), prompts=["a", "an", "一只猫在走路 " * 5])
    short = one.losses(some, one.generator(0, 0)).total
    assert one.text(some).shape == (3, 128, 16)
    monkeypatch.setattr(features, "given", lambda longest, length: length)
    assert one.text(some).shape == (3, 512, 16)
    torch.testing.assert_close(one.losses(some, one.generator(0, 0)).total, short)


@pytest.mark.parametrize(("keys", "shift"), [((), 1.0), (("objective.shift=3",), 3.0)])
def test_noise_levels_have_the_recipes_distribution(keys, shift):
    one = module("objective.distribution=uniform", *keys)
    one.network = Watched(torch.zeros_like)
    for step in range(60):
        one.losses(cached(one, batch(8)), one.generator(step, 0))
    sigmas = torch.cat([timestep for _, timestep, *_ in one.network.asked]) / 1000
    even = flow.unshift_sigma(sigmas, shift)
    assert float(even.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(even.std()) == pytest.approx(12**-0.5, abs=0.02)


def test_validation_asks_the_same_question_every_time():
    one = module("validate.timesteps=4")
    first = one.measure(batch(), 0)
    torch.rand(10)
    again = one.measure(batch(), 0)
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    levels = [name for name in first if name.startswith("timestep/") and name.count("/") == 1]
    assert levels == [f"timestep/{one}" for one in ("0125", "0375", "0625", "0875")]
    mean = torch.stack([first[name] for name in levels]).mean(0)
    torch.testing.assert_close(first["loss"], mean)
    assert f"timestep/0125/{BUCKET.name}" in first


def test_validation_measures_the_averaged_weights():
    one = module("optimizer.ema=0.9")
    with torch.no_grad():
        one.ema.network.head.head.weight.zero_()
        one.ema.network.head.head.bias.zero_()
    one.ema.network.eval()
    found = one.measure(cached(one, batch()), 0)
    data = one.latents(cached(one, batch()), one.generator(-1, 0))
    # a network that says nothing is off by noise less data
    assert float(found["timestep/0050"].mean()) == pytest.approx(
        1 + float(data.square().mean()), rel=0.1
    )


def test_image_to_video_is_told_the_given_frames_and_nothing_of_the_others():
    one = module("objective.masks.first=1", "objective.text_dropout=0", in_channels=36)
    told = one.given(batch(), one.generator(0, 0))
    mask = torch.zeros(BUCKET.frames, dtype=torch.bool)
    mask[0] = True
    condition = told["condition"]
    assert torch.equal(condition[0, :4, :, 0, 0], fold(mask.float()))
    other = batch()
    other.video[:, :, 1:] = 0
    assert torch.equal(one.given(other, one.generator(0, 0))["condition"], condition)
    other.video[:, :, 0] = 0
    assert not torch.equal(one.given(other, one.generator(0, 0))["condition"], condition)
    assert one.losses(batch(), one.generator(0, 0)).total.shape == (3,)


class Sight:
    """An image encoder whose tokens say how bright what it is shown is."""

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((1, 2, 3))[:, None, None].expand(-1, 3, 8)


def bright(bucket: Bucket = BUCKET) -> Batch:
    """Of white frames, which no mask makes zero."""
    white = torch.full((3, 3, bucket.frames, bucket.height, bucket.width), 255, dtype=torch.uint8)
    return replace(batch(), bucket=bucket, video=white)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize(
    "mask", [[1, 0, 0, 0, 0], [0, 0, 1, 0, 0], [1, 1, 0, 0, 1], [0, 1, 0, 0, 1]]
)
def test_clip_sees_a_frame_only_where_the_mask_gives_it(mask, dropout, both, monkeypatch):
    sizes = {"image_width": 8} | ({"image_positions": 6} if both else {})
    one = module("objective.masks.random=1", "objective.image_dropout=0", in_channels=36, **sizes)
    one._parts["image"] = Sight()
    monkeypatch.setattr(dit_module, "draw_mask", lambda *_: torch.tensor(mask, dtype=torch.bool))
    tokens = one.given(bright(), one.generator(0, 0), dropout)["image"]
    assert tokens.shape == (3, 6 if both else 3, 8)
    for row in tokens:
        assert (row[:3] == mask[0]).all()
        assert (row[3:] == mask[-1]).all()


def test_clip_is_shown_nothing_of_an_image_that_is_to_be_made():
    sizes = {"in_channels": 36, "image_width": 8}
    one = module("objective.masks.first=1", "objective.image_dropout=0", **sizes)
    one._parts["image"] = Sight()
    assert not one.given(bright(Bucket(32, 16, 1)), one.generator(0, 0))["image"].any()
    assert one.given(bright(), one.generator(0, 0))["image"].all()  # of a video's first frame


def test_the_vae_encodes_in_float32_also_where_training_computes_in_bfloat16():
    one = module("objective.masks.random=1", "data.posterior=mean", in_channels=36)
    picture = replace(batch(), bucket=Bucket(32, 16, 1), video=None)
    picture.mean = picture.logvar = torch.zeros(3, 16, 1, 2, 4)
    wanted = [one.latents(batch(), one.generator(0, 0))]
    wanted += [one.condition(some, one.generator(0, 0)) for some in (batch(), picture)]
    one._nothing.clear()
    with torch.autocast("cpu", torch.bfloat16):
        found = [one.latents(batch(), one.generator(0, 0))]
        found += [one.condition(some, one.generator(0, 0)) for some in (batch(), picture)]
        rounded = one.vae.encode(pixels(batch().video)).mean
    assert all(torch.equal(*pair) for pair in zip(wanted, found, strict=True))
    assert not torch.equal(one.vae.normalize(rounded.float()), wanted[0])  # it would differ


def test_a_sampled_latent_is_noise_of_the_posteriors_width_about_its_mean():
    drawn, mean = module("data.posterior=sample"), module("data.posterior=mean")
    wide = cached(drawn, batch())
    wide.mean, wide.logvar = torch.ones_like(wide.mean), torch.full_like(wide.mean, 2.0)
    assert torch.equal(
        mean.latents(wide, mean.generator(0, 0)), mean.vae.normalize(torch.ones_like(wide.mean))
    )
    found = [drawn.vae.denormalize(drawn.latents(wide, drawn.generator(k, 0))) for k in range(20)]
    noise = torch.stack(found) - 1
    assert float(noise.std()) == pytest.approx(math.e, rel=0.03)
    assert float(noise.mean()) == pytest.approx(0, abs=0.1)
    assert not torch.equal(found[0], found[1])


def told(module: DiTModule, one: Batch, *masks: list[int]) -> Batch:
    """Cached, each clip with the condition of its own mask, written out."""
    video, rows = pixels(one.video), []
    for k, mask in enumerate(masks):
        given = torch.tensor(mask)
        latents = module.vae.encode(video[k : k + 1] * given[:, None, None]).mean[0]
        rows.append(torch.cat([fold(given)[..., None, None].expand(-1, -1, 2, 4), latents]))
    return replace(cached(module, one), condition=torch.stack(rows))


def test_a_cached_condition_trains_as_the_pixels_do(monkeypatch):
    one = module("objective.masks.random=1", "validate.timesteps=2", in_channels=36)
    mask = [1, 0, 0, 1, 0]
    monkeypatch.setattr(dit_module, "draw_mask", lambda *_: torch.tensor(mask, dtype=torch.bool))
    latents, pixel = told(one, batch(), mask, mask, mask), batch()
    losses = [one.losses(some, one.generator(3, 1)).total for some in (latents, pixel)]
    torch.testing.assert_close(*losses)
    validated = [one.measure(some, 0) for some in (latents, pixel)]
    torch.testing.assert_close(*validated)
    # each clip has its own: the second's alone changes
    other = told(one, batch(), mask, [1, 1, 1, 1, 0], mask)
    changed = one.losses(other, one.generator(3, 1)).total - losses[1]
    assert [bool(value.abs() > 1e-4) for value in changed] == [False, True, False]


def test_a_cached_image_is_given_nothing_as_one_of_pixels_is():
    one = module("objective.masks.first=1", in_channels=36)
    pixel = batch()
    pixel.bucket, pixel.video = Bucket(32, 16, 1), pixel.video[:, :, :1]
    latents = cached(one, pixel)
    with torch.inference_mode():  # as Lightning validates; what is kept must do for training too
        one.measure(latents, 0)
    losses = [one.losses(some, one.generator(3, 1)).total for some in (latents, pixel)]
    torch.testing.assert_close(*losses)
    losses[0].mean().backward()
    with pytest.raises(AttributeError):  # of a video without condition nothing is made up
        one.losses(cached(one, batch()), one.generator(3, 1))


def test_gradients_reach_every_weight_and_no_frozen_part():
    one = module()
    one.losses(batch(), one.generator(0, 0)).total.mean().backward()
    assert all(value.grad is not None for value in one.network.parameters())
    assert all(value.grad is None for value in one.vae.parameters())
    assert not any(name.startswith(("vae", "text")) for name in one.state_dict())


def test_cached_features_train_as_the_prompts_do():
    one = module("objective.text_dropout=0.5")
    plain, read = batch(8), batch(8)
    rows = one.features.rows(read.prompts)
    read.text = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    read.prompts = ["nothing of it is read"] * len(read)
    losses = [one.losses(some, one.generator(3, 0)).total for some in (plain, read)]
    torch.testing.assert_close(*losses)
    validated = [one.measure(some, 0)["loss"] for some in (plain, read)]
    torch.testing.assert_close(*validated)
