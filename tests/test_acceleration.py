"""What a shortcut saves and changes: against the sampler itself, and with planted differences."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from eval import accelerate as command
from eval import acceleration
from eval.acceleration import Scene, Variant, away, decoded, parsed, threshold
from model import sampler
from model.bundle import load_bundle
from model.sampler import Settings
from model.stepcache import GuidanceCache, StepCache, StepRun
from recipes.acceleration import Acceleration
from recipes.keys import UsageError
from recipes.load import main

PROMPTS = ("a red circle moves left", "海浪拍打礁石")
SEEDS = (3, 100_003)
STEPS = 6


@pytest.fixture(scope="module")
def scene() -> Scene:
    bundle = load_bundle("random:tiny")
    settings = Settings.of(bundle.card, steps=STEPS, width=32, height=32, frames=5)
    return Scene.of(bundle, PROMPTS, settings, batch=2)


@pytest.mark.parametrize(
    "caches",
    [
        {},
        {"guidance_cache": GuidanceCache(3)},
        {"step_cache": StepCache(0.3), "guidance_cache": GuidanceCache(2)},
    ],
)
def test_a_variant_is_sampled_as_the_sampler_does(scene, caches):
    settings = replace(scene.settings, **caches)
    wanted = sampler.sample(scene.bundle, PROMPTS, SEEDS, settings)
    found = Variant("any", STEPS, **caches)
    scene.sample(found, scene.noise(SEEDS))
    assert torch.equal(found.latents, wanted)
    one_by_one = Variant("any", STEPS, **caches)
    replace(scene, batch=1).sample(one_by_one, scene.noise(SEEDS))
    torch.testing.assert_close(one_by_one.latents, wanted, atol=1e-4, rtol=1e-4)
    assert one_by_one.passes == found.passes


def test_passes_are_those_that_the_network_is_asked_for(scene, monkeypatch):
    """Counted at the network's own door, videos of a batch apart."""
    asked = []
    inner = scene.bundle.dit.forward
    monkeypatch.setattr(
        scene.bundle.dit, "forward", lambda x, *a, **k: asked.append(len(x)) or inner(x, *a, **k)
    )
    for text in ("guidance=4", "guidance=2", "steps=3"):
        asked.clear()
        found = parsed(text, scene)
        scene.sample(found, scene.noise(SEEDS))
        assert found.passes == sum(asked) / len(SEEDS), text
        assert found.passes < 2 * STEPS


def test_names_of_variants_mean_what_they_say(scene):
    found = parsed("guidance=4+compensate=0.25+steps=9+bfloat16", scene)
    assert found.guidance_cache == GuidanceCache(4, compensate=0.25)
    assert (found.step_cache, found.steps, found.dtype) == (None, 9, torch.bfloat16)
    found = parsed("step=0.08", scene, rescale="t2v-1.3b")
    assert found.step_cache == StepCache(0.08, rescale="t2v-1.3b")
    assert (found.guidance_cache, found.steps, found.dtype) == (None, STEPS, None)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("guidance", "'guidance' is none of guidance=N"),
        ("cache=3", "'cache=3' is none of"),
        ("guidance=0", "every=0: at least 1"),
        ("guidance=four", "invalid literal"),
        ("steps=0", "steps=0: at least one"),
        ("step=0.1+reuse=0.2", "two ways to say one threshold"),
        ("steps=3+steps=4", "steps twice"),
        ("compensate=0.5", "belongs to a cache"),
        ("reuse=0.99", "not so many can be reused"),
        ("reuse=0", "above 0"),
        ("float32", "is the uncached run itself"),
        ("int8+float8-weights", "eight twice"),
        ("float8", "want a GPU of compute capability 8.9"),
        (f"steps={STEPS}", "is the uncached run itself"),
    ],
)
def test_a_variant_that_is_none_is_refused(scene, text, line):
    with pytest.raises(UsageError, match=line) as refused:
        parsed(text, scene)
    assert str(refused.value).startswith(f"variants={text}: ")


def test_without_guidance_there_is_no_negative_pass_to_cache(scene):
    plain = Scene.of(scene.bundle, PROMPTS, replace(scene.settings, guidance=1.0))
    with pytest.raises(UsageError, match="no negative pass"):
        parsed("guidance=4", plain)
    found = Variant("uncached", STEPS)
    plain.sample(found, plain.noise(SEEDS))
    assert found.passes == STEPS


@pytest.mark.parametrize("share", [0.2, 0.4])
def test_the_threshold_is_the_lowest_that_reuses_its_share(scene, share):
    steps = 20

    def reused(cache: StepCache) -> int:
        sigmas = scene.sigmas(steps)[:-1]
        timesteps = [1000 * one // 1 for one in sigmas]
        return sum(StepRun(scene.bundle.dit, cache, sigmas, timesteps).plan())

    found = threshold(scene, steps, share, StepCache(0.0))
    assert reused(found) >= share * steps
    digit = 10.0 ** (np.floor(np.log10(found.threshold)) - 1)
    assert reused(replace(found, threshold=found.threshold - digit)) < share * steps


def test_a_control_costs_as_many_passes(scene):
    uncached, cached, fewer = Variant("uncached", 50), parsed("guidance=4", scene), Variant("", 20)
    uncached.passes, cached.passes, fewer.passes = 100, 63, 40
    found = acceleration.control(cached, uncached)
    assert (found.steps, found.step_cache, found.guidance_cache) == (32, None, None)
    assert acceleration.control(fewer, uncached) is None  # is one itself
    cached.passes = 100
    assert acceleration.control(cached, uncached) is None
    uncached.passes, cached.passes = 200, 50  # a solver of two passes a step
    assert acceleration.control(cached, uncached).steps == 12


def test_a_cast_network_is_the_one_that_would_be_loaded(scene):
    loaded = load_bundle("random:tiny", dtype=torch.bfloat16).dit.state_dict()
    cast = scene.dit(Variant("bfloat16", STEPS, dtype=torch.bfloat16)).state_dict()
    assert cast.keys() == loaded.keys()
    assert all(torch.equal(cast[name], loaded[name]) for name in loaded)
    assert scene.dtype == torch.float32  # of the first, still
    assert scene.dit(Variant("float32", STEPS, dtype=torch.float32)) is scene.bundle.dit


def test_a_planted_difference_is_found_where_it_is(scene):
    latents = scene.noise(SEEDS)
    goal = decoded(scene, latents)
    same = away(latents, goal, scene, None)
    assert same["psnr"]["worst"] == same["psnr"]["frames_worst"] == 100
    assert same["ssim"]["worst"] == pytest.approx(1)
    # frame 2 of the second video, off by a tenth: 20 dB + 20 log10 2 there, a fifth of it in all
    goal[1][:, :, 2] += 0.1
    found = away(latents, goal, scene, None)["psnr"]
    there = 20 * np.log10(2 / 0.1)
    assert found["frames_worst"] == pytest.approx(there, abs=1e-3)
    whole = there + 10 * np.log10(5)
    assert found["by_video"] == pytest.approx([100, whole], abs=1e-3)
    assert found["worst"] == pytest.approx(whole, abs=1e-3)
    assert found["mean"] == pytest.approx((100 + whole) / 2, abs=1e-3)
    assert found["frames_mean"] == pytest.approx((9 * 100 + there) / 10, abs=1e-3)


def test_the_worst_of_a_distance_is_its_largest(scene):
    class Planted:
        name = "lpips"

        def __call__(self, one, two):
            return (one - two).abs().mean(dim=(1, 3, 4)).double()

    goal = decoded(scene, scene.noise(SEEDS))
    goal[1][:, :, 2] += 0.5
    found = away(scene.noise(SEEDS), goal, scene, Planted())["lpips"]
    assert found["frames_worst"] == pytest.approx(0.5, abs=1e-5)
    assert found["worst"] == pytest.approx(0.1, abs=1e-5)


def test_gates_ask_for_more_than_their_limits():
    near = {"psnr": {"mean": 25.1}, "ssim": {"mean": 0.91}}
    assert acceleration.gates(near) == {"psnr": True, "ssim": True}
    assert not acceleration.gates(near | {"psnr": {"mean": 25.0}})["psnr"]
    assert not acceleration.gates(near | {"ssim": {"mean": 0.9}})["ssim"]


def test_nearer_is_the_cache_minus_its_control():
    cache, fewer = ({"psnr": {"by_video": values}} for values in ([30.0, 33.0], [28.0, 29.0]))
    found = acceleration.nearer(cache, fewer, PROMPTS)
    assert (found["delta"], found["wins"], found["losses"]) == (3.0, 2, 0)


def test_turns_are_taken_in_order(scene, monkeypatch):
    order = []
    monkeypatch.setattr(Scene, "sample", lambda self, one, noise: order.append(one.name))
    some = [Variant("a", 1, passes=2), Variant("b", 1)]  # b has not run yet
    some[0].seconds = [9.0]
    acceleration.take_turns(some, scene, scene.noise(SEEDS), 2)
    assert order == ["b", "a", "b", "a", "b"]
    assert some[0].seconds == []


# --- the command ---------------------------------------------------------------------------------

QUICK = ("checkpoint=random:tiny", "steps=6", "size=32x32", "frames=5", "prompts=2", "turns=1")


def run(tmp_path, *keys: str) -> int:
    return main(
        Acceleration,
        command.accelerate,
        [*QUICK, "device=cpu", f"out={tmp_path}", *keys],
    )


def test_a_checkpoint_is_set_against_itself(tmp_path, capsys):
    keys = ("variants=[guidance=4,steps=3,bfloat16]", "backbones.lpips=effnet-lite0")
    assert run(tmp_path, *keys) == 0
    told = capsys.readouterr().out
    found = json.loads((tmp_path / "acceleration.json").read_text("utf-8"))
    assert found["uncached"]["passes"] == 12
    cached, fewer, cast = (found["variants"][n] for n in ("guidance=4", "steps=3", "bfloat16"))
    # the first and the last step's negative pass, and one of the four between
    assert cached["passes"] == 6 + 3
    assert (cached["control"], fewer["control"], cast["control"]) == ("4 steps", None, None)
    assert found["variants"]["4 steps"]["passes"] == 8
    gain = np.subtract(cached["psnr"]["by_video"], found["variants"]["4 steps"]["psnr"]["by_video"])
    assert cached["nearer"]["delta"] == pytest.approx(gain.mean())
    assert cached["speed_up"] == found["uncached"]["seconds"] / cached["seconds"]
    assert cast["dtype"] == "bfloat16"
    assert cast["psnr"]["worst"] > found["floor"]["psnr"]["mean"] + 10
    assert cast["perceptual"]["worst"] < found["floor"]["perceptual"]["mean"]
    assert found["settings"]["seeds"] == [0, 100_000]
    for line in ("two seeds of one prompt", "    4 steps instead", "The model is a random one"):
        assert line in told
    assert "LPIPS is not measured" not in told
    (floor,) = [line for line in told.splitlines() if "two seeds" in line]
    assert floor.endswith("NOT passed")


def test_the_floor_is_of_two_seeds_of_each_prompt(tmp_path):
    assert run(tmp_path, "variants=[steps=5]", "seed=7") == 0
    found = json.loads((tmp_path / "acceleration.json").read_text("utf-8"))
    bundle = load_bundle("random:tiny")
    settings = Settings.of(bundle.card, steps=6, width=32, height=32, frames=5)
    videos = [
        torch.cat(
            list(sampler.decode(bundle, sampler.sample(bundle, [prompt], [seed], settings))), 2
        )
        for seed in (7, 8)
        for prompt in found["settings"]["prompts"][:1]
    ]
    error = (videos[0] - videos[1]).double().square().mean()
    wanted = float(10 * torch.log10(4 / error))
    assert found["floor"]["psnr"]["by_video"][0] == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (("checkpoint=random:i2v-tiny",), "of kind i2v; only text-to-video"),
        (("checkpoint=nowhere",), "nowhere: no such file or folder"),
        (("variants=[cache]",), "variants=cache: 'cache' is none of"),
        (("backbones.lpips=none.pth",), "backbones.lpips=none.pth: "),
        (("frames=6",), "frames=6: must be 4k+1"),
        (("turns=0",), "turns=0: at least 1"),
        (("variants=[step=0.1]", "rescale=t2v-9b"), "choose one of t2v-1.3b"),
    ],
)
def test_a_mistake_is_told_in_one_line(tmp_path, capsys, keys, line):
    assert run(tmp_path, *keys) == 2
    told = capsys.readouterr().err
    assert line in told
    assert told.count("\n") == 1
