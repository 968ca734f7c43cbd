"""Sampling: diffusers' videos from the same noise, in any batch; and what cannot be sampled."""

from dataclasses import replace

import pytest
import torch

from model import sampler
from model.bundle import Bundle, load_bundle
from model.sampler import TASKS, Inputs, Settings, TaskError, decode, noise, sample, tasks
from model.solver import SOLVERS, STOCHASTIC
from model.stepcache import GuidanceCache, StepCache
from tests import pipelines

PROMPTS = ["a red cat", "的红色猫, 'cats'", ""]
NEGATIVE = "红, s"
SMALL = {"width": 32, "height": 48, "frames": 9, "steps": 3, "negative": NEGATIVE}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The networks are so small that threads only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def text_pipe(tmp_path_factory):
    return pipelines.text_to_video(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def bundle(text_pipe, tmp_path_factory) -> Bundle:
    """Text to video, loaded from what diffusers' own pipeline saved."""
    return load_bundle(str(pipelines.saved(text_pipe, tmp_path_factory.mktemp("saved"))))


@pytest.fixture(scope="module", params=["i2v", "flf2v"])
def image_pair(request, tmp_path_factory):
    """Image to video: diffusers' pipeline, and the bundle from its folder."""
    folder = tmp_path_factory.mktemp(request.param)
    pipe = pipelines.image_to_video(folder, request.param)
    return pipe, load_bundle(str(pipelines.saved(pipe, folder / "saved")))


def picture(seed: int, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 3, 48, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def clip(seed: int, frames: int = 9, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, frames, 48, 32, generator=generator) * 2 - 1


def settings(bundle: Bundle, **more) -> Settings:
    return Settings.of(bundle.card, **SMALL | more)


def test_from_the_same_noise_comes_diffusers_video(text_pipe, bundle):
    wanted = text_pipe(
        prompt=PROMPTS[:2],
        negative_prompt=NEGATIVE,
        height=48,
        width=32,
        num_frames=9,
        num_inference_steps=6,
        guidance_scale=5.0,
        generator=pipelines.generators([3, 4]),
        output_type="pt",
    ).frames
    latents = sample(bundle, PROMPTS[:2], [3, 4], settings(bundle, steps=6, guidance=5.0))
    got = torch.cat(list(decode(bundle, latents)), dim=2).transpose(1, 2) / 2 + 0.5
    assert bundle.card.defaults.shift == 5.0  # the folder's own scheduler says so
    assert got.shape == wanted.shape == (2, 9, 3, 48, 32)
    assert wanted.std() > 0.1
    assert (got - wanted).abs().max() < 1e-4


def test_image_to_video_and_first_last_frame_are_diffusers_too(image_pair, monkeypatch):
    pipe, bundle = image_pair
    both = bundle.card.kind == "flf2v"
    first, last = picture(0), picture(1) if both else None
    task = "first-last-frame" if both else "image-to-video"
    tokens = bundle.image.encode(first if last is None else torch.cat([first, last]))
    # diffusers' processor resizes in its own way; what it makes of the tokens is compared here
    monkeypatch.setattr(pipe, "encode_image", lambda image, device: tokens)
    wanted = pipe(
        image=first / 2 + 0.5,
        last_image=None if last is None else last / 2 + 0.5,
        prompt=PROMPTS[0],
        negative_prompt=NEGATIVE,
        height=48,
        width=32,
        num_frames=9,
        num_inference_steps=3,
        guidance_scale=5.0,
        generator=pipelines.generators([7]),
        output_type="latent",
    ).frames
    got = sample(
        bundle,
        PROMPTS[:1],
        [7],
        settings(bundle, task=task, guidance=5.0),
        Inputs(image=first, last_image=last),
    )
    assert bundle.card.defaults.shift == 3.0
    assert (got - wanted).abs().max() < 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("strength", [0.5, 0.8, 1.0])
def test_video_to_video_is_diffusers_too(text_pipe, bundle, strength):
    video = clip(2)
    wanted = pipelines.video_to_video(text_pipe)(
        video=(video[0].transpose(0, 1) / 2 + 0.5),
        prompt=PROMPTS[0],
        negative_prompt=NEGATIVE,
        height=48,
        width=32,
        num_inference_steps=5,
        strength=strength,
        guidance_scale=4.0,
        generator=pipelines.generators([5]),
        output_type="latent",
    ).frames
    asked = settings(bundle, task="video-to-video", steps=5, guidance=4.0, strength=strength)
    got = sample(bundle, PROMPTS[:1], [5], asked, Inputs(video=video))
    assert (got - wanted).abs().max() < 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("solver", ["unipc", *STOCHASTIC])
def test_a_seed_gives_its_video_whatever_the_batch(bundle, solver):
    asked = settings(bundle, guidance=5.0, solver=solver)
    together = sample(bundle, PROMPTS, [11, 12, 13], asked)
    alone = torch.cat(
        [sample(bundle, [p], [s], asked) for p, s in zip(PROMPTS, (11, 12, 13), strict=True)]
    )
    assert (together - alone).abs().max() < 1e-4
    assert torch.equal(noise([12, 11], (4,))[1], noise([11], (4,))[0])
    assert (together[0] - together[1]).abs().max() > 0.1


def test_a_seed_gives_its_video_whatever_the_batch_with_images_too(image_pair):
    _, bundle = image_pair
    task = tasks(bundle.card)[0]
    names = TASKS[task].inputs
    given = {name: picture(i, batch=3) for i, name in enumerate(names)}
    asked = settings(bundle, task=task, steps=2)
    together = sample(bundle, PROMPTS, [1, 2, 3], asked, Inputs(**given))
    alone = sample(
        bundle, PROMPTS[1:2], [2], asked, Inputs(**{n: v[1:2] for n, v in given.items()})
    )
    assert (together[1:2] - alone).abs().max() < 1e-4
    same = Inputs(**{n: v[1:2] for n, v in given.items()})  # one picture for all videos
    assert (sample(bundle, PROMPTS, [1, 2, 3], asked, same)[1:2] - alone).abs().max() < 1e-4


def test_prompts_may_stand_twice_in_a_batch(bundle):
    twice = sample(bundle, ["cat", "red", "cat"], [1, 2, 3], settings(bundle, guidance=5.0))
    alone = sample(bundle, ["cat"], [3], settings(bundle, guidance=5.0))
    assert (twice[2:] - alone).abs().max() < 1e-4


def test_both_passes_at_once_or_in_turn_give_the_same(bundle):
    asked = settings(bundle, guidance=5.0)
    at_once = sample(bundle, PROMPTS, [1, 2, 3], asked)
    in_turn = sample(bundle, PROMPTS, [1, 2, 3], replace(asked, batched=False))
    assert (at_once - in_turn).abs().max() < 1e-4


def test_guidance_outside_its_interval_is_none(bundle):
    def of(**more):
        return sample(bundle, PROMPTS[:1], [1], settings(bundle, **more))

    plain = of(guidance=1.0)
    assert torch.equal(of(guidance=7.0, interval=(0.0, 0.0)), plain)
    assert torch.equal(of(guidance=7.0), of(guidance=7.0, interval=(0.0, 1.0)))
    assert not torch.allclose(of(guidance=7.0), plain)
    assert not torch.allclose(of(guidance=7.0, interval=(0.8, 1.0)), of(guidance=7.0))


def test_each_video_may_have_a_negative_prompt_of_its_own(bundle):
    asked = settings(bundle, guidance=5.0)
    mixed = sample(bundle, PROMPTS[:1] * 2, [1, 1], asked, negatives=[NEGATIVE, "cat"])
    other = sample(bundle, PROMPTS[:1], [1], replace(asked, negative="cat"))
    assert (mixed[:1] - sample(bundle, PROMPTS[:1], [1], asked)).abs().max() < 1e-4
    assert (mixed[1:] - other).abs().max() < 1e-4


def test_noise_that_is_added_is_not_the_start_again(bundle, monkeypatch):
    """Also where the start is given, as videos are compared from the same noise."""
    seen = []

    def watched(velocity, x, sigmas, callback, noises):
        seen.append((x, next(noises), next(noises)))
        return x

    monkeypatch.setitem(sampler.STOCHASTIC, "dpmpp_2m_sde", watched)
    asked, shape = settings(bundle, solver="dpmpp_2m_sde"), (16, 3, 6, 4)
    sample(bundle, [""], [7], asked)
    sample(bundle, [""], [7], asked, start=noise([7], shape))
    for start, first, second in seen:
        assert torch.equal(start, noise([7], shape))
        assert max((start * first).mean().abs(), (first * second).mean().abs()) < 0.15


@pytest.mark.parametrize("solver", [*SOLVERS, *STOCHASTIC])
def test_along_the_true_velocity_every_solver_arrives_at_the_data(bundle, monkeypatch, solver):
    """Where all data is one point, the velocity is (x − data) / sigma."""
    data = noise([99], (16, 3, 6, 4))

    def velocity(x, timestep, text, image=None, condition=None):
        return (x - data) / (timestep / 1000).clamp(min=1e-6).view(-1, 1, 1, 1, 1)

    monkeypatch.setattr(bundle.dit, "forward", velocity)
    # whole timesteps miss sigma by up to 1e-3
    got = sample(bundle, PROMPTS[:1], [0], settings(bundle, steps=8, solver=solver))
    assert (got - data).abs().max() < 0.05


def test_more_strength_leaves_less_of_the_video(bundle):
    video = clip(4)
    start = sampler.encode(bundle.vae, video)

    def moved(strength: float) -> float:
        asked = settings(bundle, task="video-to-video", steps=10, strength=strength)
        return float((sample(bundle, [""], [0], asked, Inputs(video=video)) - start).abs().mean())

    assert moved(0.1) < moved(0.4) < moved(0.9)


def test_a_continuation_depends_on_the_frames_that_it_goes_on_from(image_pair):
    _, bundle = image_pair
    if bundle.card.kind == "flf2v":
        assert "continuation" not in tasks(bundle.card)
        return
    asked = settings(bundle, task="continuation", steps=2)
    given = clip(5, frames=5)
    got = sample(bundle, PROMPTS[:1], [0], asked, Inputs(video=given))
    told, _ = sampler.told_by(bundle, asked, Inputs(video=given))
    assert told[0, :4, :, 0, 0].T.tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]]
    other = given.clone()
    other[:, :, 4] = 0  # the last given frame alone
    assert not torch.allclose(got, sample(bundle, PROMPTS[:1], [0], asked, Inputs(video=other)))


def test_decoding_piece_by_piece_is_decoding_whole(bundle):
    latents = noise([0, 1], (16, 3, 6, 4))
    pieces = list(decode(bundle, latents))
    assert [piece.shape[2] for piece in pieces] == [1, 4, 4]
    whole = bundle.vae.decode(bundle.vae.denormalize(latents))
    assert (torch.cat(pieces, dim=2) - whole).abs().max() < 1e-4


def test_the_callback_sees_every_step_and_ends_at_the_result(bundle):
    seen = []
    asked = settings(bundle, steps=4)
    got = sample(bundle, [""], [0], asked, callback=lambda *told: seen.append(told))
    assert [step for step, *_ in seen] == [1, 2, 3, 4]
    assert seen[-1][1] == 0
    assert torch.equal(seen[-1][2], got)
    assert seen[0][3].shape == got.shape


def test_caches_are_off_unless_asked_for_and_then_change_little(bundle):
    plain = sample(bundle, PROMPTS[:1], [0], settings(bundle, steps=8))
    nothing = settings(bundle, steps=8, step_cache=StepCache(0.0))
    assert torch.equal(sample(bundle, PROMPTS[:1], [0], nothing), plain)
    for more in ({"step_cache": StepCache(0.5)}, {"guidance_cache": GuidanceCache(2)}):
        cached = sample(bundle, PROMPTS[:1], [0], settings(bundle, steps=8, **more))
        assert 0 < (cached - plain).abs().mean() < plain.abs().mean()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"task": "image-to-video"}, "is of kind t2v, which does text-to-video, text-to-image"),
        ({"task": "text2video"}, "there is text-to-video"),
        ({"width": 40}, "multiples of 16; the nearest is 32x48"),
        ({"height": 0}, "multiples of 16; the nearest is 32x16"),
        ({"frames": 8}, "must be 4k.1, such as 9"),
        ({"frames": 0}, "such as 1"),
        ({"task": "text-to-image", "frames": 9}, "is one frame, not frames=9"),
        ({"steps": 0}, "at least one"),
        ({"guidance": 0.5}, "at least 1"),
        ({"shift": 0.0}, "greater than 0"),
        ({"interval": (0.9, 0.1)}, "two rising sigmas"),
        ({"solver": "ddim"}, "there is unipc"),
        ({"task": "video-to-video", "strength": 0.1}, "leaves none"),
        ({"task": "video-to-video", "strength": 1.1}, "at most 1"),
    ],
    ids=str,
)
def test_what_cannot_be_sampled_is_told_in_one_line(bundle, wrong, says):
    with pytest.raises(TaskError, match=says) as caught:
        settings(bundle, **wrong).check(bundle.card)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("task", "given", "says"),
    [
        ("text-to-video", {"image": picture(0)}, "takes no image="),
        ("video-to-video", {}, "needs video="),
        ("video-to-video", {"video": clip(0, frames=5)}, "5 frames, the sample 9"),
        ("video-to-video", {"video": clip(0)[..., :16]}, "16x48, the sample 32x48"),
    ],
)
def test_inputs_that_do_not_fit_are_told_in_one_line(bundle, task, given, says):
    with pytest.raises(TaskError, match=says):
        sample(bundle, [""], [0], settings(bundle, task=task), Inputs(**given))


def test_what_a_model_does_follows_from_what_it_takes(image_pair, bundle):
    assert tasks(bundle.card) == ("text-to-video", "text-to-image", "video-to-video")
    card = image_pair[1].card
    both = card.kind == "flf2v"
    wanted = ("first-last-frame",) if both else ("image-to-video", "continuation")
    assert tasks(card) == wanted
    bare = replace(card, config=card.config | {"image_width": None, "image_positions": None})
    assert tasks(bare) == ("image-to-video", "first-last-frame", "continuation")
    with pytest.raises(TaskError, match="leaves nothing to sample"):
        Settings.of(card, task=wanted[0], **SMALL | {"frames": 1}).check(card)


def test_a_text_to_image_sample_is_one_frame(bundle):
    asked = Settings.of(bundle.card, task="text-to-image", width=32, height=32, steps=2)
    assert asked.frames == 1
    (frames,) = decode(bundle, sample(bundle, PROMPTS[:1], [0], asked))
    assert frames.shape == (1, 3, 1, 32, 32)
