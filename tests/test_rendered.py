"""The judge of rendered prompts says what was rendered, also after damage, and else nothing."""

import itertools

import cv2
import numpy as np
import pytest

from curation import drawing, synthetic
from eval.measures import outline, rendered
from eval.measures.rendered import follows, follows_from, judge, wanted
from recipes.schema import Synthetic
from tests.damage import DAMAGES, noise, whole

SMALL = Synthetic(size=64, frames=9, seed=5)
SCENES = [synthetic.shapes(index, SMALL) for index in range(96)]
ASPECTS = ("color", "shape", "direction")
PROMPTS = [synthetic.shapes(index, SMALL).captions["en"] for index in range(48)]


def truth(scene: synthetic.Scene) -> tuple[str, ...]:
    return tuple(scene.attributes["objects"][0][aspect] for aspect in ASPECTS)


def said(frames: np.ndarray) -> tuple[str | None, ...]:
    seen = judge(frames)
    return tuple(getattr(seen, aspect) for aspect in ASPECTS)


def share(damage: str) -> float:
    right = [said(DAMAGES[damage](one.frames)) == truth(one) for one in SCENES[:48]]
    return float(np.mean(right))


def grounds(count: int, frames: int = 9) -> list[np.ndarray]:
    random = np.random.RandomState(3)
    colors = [rgb for _, rgb in synthetic.COLORS.values()]
    tones = [drawing.ground(random, 64, colors)[1] for _ in range(count)]
    return [np.repeat(whole(tone)[None], frames, axis=0) for tone in tones]


def moved(inside, color, step=(2, 0), at=(24, 32), frames: int = 9) -> np.ndarray:
    """Draws where inside(x, y), in units of 8 px around the middle, on plain grey."""
    y, x = (np.indices((512, 512)) + 0.5) / 8
    video = np.full((frames, 64, 64, 3), 150, np.float32)
    for frame, time in zip(video, range(frames), strict=True):
        mask = inside((x - at[0] - step[0] * time) / 8, (y - at[1] - step[1] * time) / 8)
        cover = cv2.resize(mask.astype(np.float32), (64, 64), interpolation=cv2.INTER_AREA)
        frame += cover[..., None] * (np.float32(color) - frame)
    return whole(video)


def disc(x, y):
    return np.hypot(x, y) < 1


def test_the_names_and_colors_are_those_that_curation_renders():
    for name in ("COLORS", "SHAPES", "DIRECTIONS"):
        assert getattr(rendered, name) == getattr(synthetic, name)
    assert set(outline.SHAPES) == set(synthetic.SHAPES)


@pytest.mark.parametrize("shape", synthetic.SHAPES)
@pytest.mark.parametrize("tilt", [-0.26, 0, 0.2])
def test_the_outlines_are_those_that_curation_draws(shape, tilt):
    ticks = np.linspace(-outline.REACH, outline.REACH, outline.SIDE) / outline.STEP
    radius = 1 / outline.STEP
    drawn = drawing.coverage(shape, radius, tilt, ticks[None], ticks[:, None])
    ours = outline.coverage(shape, tilt, 0.01)
    assert np.abs(drawn - ours).mean() < 0.005
    assert np.sqrt(ours.sum() / np.pi) == pytest.approx(radius, rel=0.01)


@pytest.mark.parametrize("shape", outline.SIDES)
def test_the_rounder_an_outline_the_nearer_the_circle_and_its_area_stays(shape):
    circle = outline.coverage("circle", 0, 0.01)
    found = [outline.coverage(shape, 0.1, 0.01, rounded) for rounded in (0, 0.2, 0.5, 0.8)]
    assert [one.sum() / circle.sum() for one in found] == pytest.approx([1] * 4, rel=0.02)
    away = [float(np.abs(one - circle).mean()) for one in found]
    assert away == sorted(away, reverse=True)
    assert away[-1] < 0.3 * away[0]


@pytest.mark.parametrize("corner", [0.3, 0.5, 0.65])  # the last fails with sharp ones alone
def test_a_square_that_lost_its_corners_is_a_square(corner):
    def square(x, y):
        beyond = np.maximum(np.abs(np.stack([x, y])) - 0.9 * (1 - corner), 0)
        return np.hypot(*beyond) < 0.9 * corner

    assert judge(moved(square, (219, 36, 36))).shape == "square"
    assert judge(moved(disc, (219, 36, 36))).shape == "circle"


def test_true_renderings_are_judged_right():
    wrong = [one.captions["en"] for one in SCENES if said(one.frames) != truth(one)]
    assert len(wrong) <= 0.01 * len(SCENES), wrong


@pytest.mark.parametrize(
    "damage",
    [
        *("blur, sigma 1 px", "noise of 5 %", "blotches of 5 %", "ringing", "flicker"),
        *("warm cast", "cool cast", "pale", "linear codec, 32 of 4x8x8"),
    ],
)
def test_mild_damage_changes_nothing(damage):
    assert share(damage) >= 0.95


def test_where_shapes_are_lost_the_judge_is_less_sure_and_still_sees_color_and_direction():
    sure = {name: [] for name in ("none", "box of 8x8")}
    for scene, name in itertools.product(SCENES[:32], sure):
        seen = judge(DAMAGES[name](scene.frames))
        assert (seen.color, seen.direction) == truth(scene)[::2]
        sure[name].append(seen.shape_margin)
    assert np.median(sure["none"]) > 0.9
    assert np.median(sure["box of 8x8"]) < 0.5


@pytest.mark.parametrize(("size", "frames"), [(256, 81), (128, 17), (64, 2)])
def test_other_sizes_and_lengths_are_judged_alike(size, frames):
    config = Synthetic(size=size, frames=frames, seed=6)
    for index in range(4):
        scene = synthetic.shapes(index, config)
        found = scene.attributes["objects"][0]
        seen = judge(scene.frames)
        ways = (found["start"], found["end"])
        assert (seen.color, seen.shape) == truth(scene)[:2]
        assert seen.thing.radius == pytest.approx(found["radius"], rel=0.05)
        np.testing.assert_allclose(seen.thing.centres[[0, -1]], ways, atol=0.01 * size)


def test_of_all_prompts_a_video_follows_the_one_that_it_was_rendered_from():
    assert len(set(PROMPTS)) == 48
    for scene in SCENES[:2]:
        assert [one for one in PROMPTS if follows(scene.frames, one)["all"]] == [
            scene.captions["en"]
        ]
        assert follows(scene.frames, scene.captions["zh"])["all"]


def test_without_a_thing_nothing_is_said_and_nothing_is_right():
    random = np.random.RandomState(0)
    still = grounds(12)
    coarse = random.uniform(0, 255, (12, 3, 8, 8, 3)).astype(np.float32)
    blobs = [[cv2.resize(one, (64, 64)) for one in np.repeat(video, 3, 0)] for video in coarse]
    videos = [
        *still,
        *(noise(video) for video in still),
        *random.randint(0, 256, (12, 9, 64, 64, 3)).astype(np.uint8),
        *(whole(128 + 40 * random.randn(9, 64, 64, 3)) for _ in range(12)),
        *(whole(np.stack(video)) for video in blobs),
        np.zeros((9, 64, 64, 3), np.uint8),
    ]
    assert {said(video) for video in videos} == {(None, None, None)}
    nothing = dict.fromkeys((*ASPECTS, "all"), False)
    assert all(follows(video, "a red circle moving left") == nothing for video in videos[::6])


@pytest.mark.parametrize("color", [(200, 40, 220), (30, 200, 220), (245, 150, 40), (255,) * 3])
def test_another_color_is_none_of_the_four(color):
    seen = said(moved(disc, color))
    assert seen in ((None, "circle", "right"), (None, None, None))


def test_another_shape_is_none_of_the_three():
    red = synthetic.COLORS["red"][1]
    star = moved(lambda x, y: np.hypot(x, y) < 1 + 0.35 * np.cos(5 * np.arctan2(y, x)), red)
    half = moved(lambda x, y: (np.hypot(x, y) < 1.3) & (y > 0), red)
    oval = moved(lambda x, y: np.hypot(x * 1.4, y / 1.4) < 1, red)
    bar = moved(lambda x, y: (np.abs(x) < 1.5) & (np.abs(y) < 0.5), red)
    for video in (star, half, oval, bar):
        assert said(video) == ("red", None, "right")
    diamond = moved(lambda x, y: np.abs(x) + np.abs(y) < 1.25, red)
    assert said(diamond) == ("red", "square", "right")


def test_what_does_not_move_straight_along_an_axis_has_no_direction():
    blue = synthetic.COLORS["blue"][1]
    assert said(moved(disc, blue)) == ("blue", "circle", "right")
    assert said(moved(disc, blue, step=(0, 0)))[2] is None
    assert said(moved(disc, blue, step=(1.5, 1.5), at=(20, 20)))[2] is None
    to_and_fro = moved(disc, blue)[[0, 2, 4, 6, 8, 6, 4, 2, 0]]
    assert said(to_and_fro)[2] is None
    put_elsewhere = moved(disc, blue)[[0, 0, 0, 0, 8, 8, 8, 8, 8]]
    assert said(put_elsewhere)[2] is None


def test_played_backwards_the_direction_is_the_opposite():
    opposite = {"left": "right", "right": "left", "up": "down", "down": "up"}
    for scene in SCENES[:12]:
        assert said(scene.frames[::-1])[2] == opposite[truth(scene)[2]]
        mirrored = said(scene.frames[:, :, ::-1])[2]
        across = truth(scene)[2] in ("left", "right")
        assert mirrored == (opposite[truth(scene)[2]] if across else truth(scene)[2])


def test_two_things_or_one_that_vanishes_or_changes_its_color_are_not_the_one_thing():
    red, blue = (synthetic.COLORS[name][1] for name in ("red", "blue"))
    one, other = moved(disc, red, at=(16, 16)), moved(disc, blue, at=(16, 48))
    both = np.concatenate([one[:, :32], other[:, 32:]], axis=1)
    vanished = np.concatenate([one[:5], np.full_like(one[:4], 150)])
    changed = np.concatenate([one[:5], moved(disc, blue, at=(16, 16))[5:]])
    for video in (both, vanished, changed):
        assert said(video) == (None, None, None)


def test_a_single_frame_shows_color_and_shape_and_is_not_asked_for_a_direction():
    for scene in SCENES[:12]:
        color, shape, _ = truth(scene)
        assert said(scene.frames[:1]) == (color, shape, None)
        right = {"color": True, "shape": True, "all": True}
        assert follows(scene.frames[:1], f"a {color} {shape}") == right


def test_from_a_first_frame_the_thing_of_that_frame_must_go_there():
    for scene, other in itertools.pairwise(SCENES[:12]):
        first, prompt = scene.frames[0], scene.captions["zh"]
        assert follows_from(first, scene.frames, prompt) == {"direction": True, "all": True}
        assert not follows_from(first, scene.frames[::-1], prompt)["all"]
        assert not follows_from(first, other.frames, other.captions["en"])["all"], "another thing"
        assert not follows_from(grounds(1)[0][0], scene.frames, prompt)["all"]
    here, there = (moved(disc, synthetic.COLORS["red"][1], at=(24, y)) for y in (16, 48))
    assert follows_from(here[0], here, "moving right")["all"]
    assert not follows_from(here[0], there, "moving right")["all"], "it has jumped"
    large = cv2.resize(here[0], (128, 128))
    assert follows_from(large, here, "moving right")["all"]


def test_every_rendered_caption_is_read():
    for scene in SCENES[:48]:
        asked = dict(zip(ASPECTS, truth(scene), strict=True))
        assert wanted(scene.captions["en"]) == wanted(scene.captions["zh"]) == asked


@pytest.mark.parametrize(
    "prompt",
    [
        *("A red circle moves to the left.", "the red circle is moving leftwards", "红圆形往左移"),
        *("a circle, red, drifting left on a grey ground", "画面中，红色圆形朝左边移动。"),
    ],
)
def test_simple_variants_are_read(prompt):
    assert wanted(prompt) == {"color": "red", "shape": "circle", "direction": "left"}


@pytest.mark.parametrize(
    ("prompt", "what"),
    [
        ("a circle moving left", "color.*none"),
        ("a red dog moving left", "shape.*none"),
        ("a red circle and a blue circle", "color.*blue, red"),
        ("a red circle on the left moving right", "direction.*left, right"),
        ("一个红色的圆形向左移动，一个红色的三角形向左移动", "shape.*circle, triangle"),
    ],
)
def test_a_prompt_that_does_not_name_one_thing_is_refused(prompt, what):
    with pytest.raises(ValueError, match=what):
        wanted(prompt)


def test_frames_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="float32"):
        judge(np.zeros((9, 64, 64, 3), np.float32))
    with pytest.raises(ValueError, match="uint8"):
        judge(np.zeros((9, 3, 64, 64), np.uint8))
