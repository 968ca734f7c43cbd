"""VBench's dimensions through other backbones: its formulas restated, on planted detectors and
classifiers. What loads the real ones is in test_backbones."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from eval.measures import action, captions, detection, measure
from eval.measures.measure import Video
from eval.suite import read_suite
from recipes.keys import UsageError

PAINT = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
KINDS = {"red": "cat", "green": "horse", "blue": "dog"}  # what a painted square is


def painted(*frames: dict[tuple[int, int, int, int], str]) -> np.ndarray:
    """uint8 [T, 60, 80, 3], each with boxes in colours."""
    found = np.full((len(frames), 60, 80, 3), 40, np.uint8)
    for picture, boxes in zip(found, frames, strict=True):
        for (x0, y0, x1, y1), colour in boxes.items():
            picture[y0:y1, x0:x1] = PAINT[colour]
    return found


def sees_paint(frame: np.ndarray, names: list[str]) -> detection.Boxes:
    """Every painted square, by its kind."""
    rows = []
    for colour, kind in KINDS.items():
        mask = (frame == PAINT[colour]).all(-1).astype(np.uint8)
        _, _, stats, _ = cv2.connectedComponentsWithStats(mask)
        rows += [([x, y, x + w, y + h], names.index(kind), 0.9) for x, y, w, h, _ in stats[1:]]
    boxes, places, scores = zip(*rows, strict=True) if rows else ([], [], [])
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return boxes, torch.tensor(places, dtype=torch.long), torch.tensor(scores)


PAINTED = detection.Detector("paint", "0", sees_paint)
CAT, DOG = {(4, 20, 24, 40): "red"}, {(50, 20, 70, 40): "blue"}


def of_frames(frames: np.ndarray, prompt: str, **asked) -> Video:
    return Video(frames, 8, prompt, asked)


@pytest.mark.parametrize("wanted", [8, 16])
def test_frames_are_vbenchs_middles(wanted):
    for count in range(1, 130):
        some = min(wanted, count)
        starts = [int(count * k / some) for k in range(some + 1)]
        places = [(starts[k] + starts[k + 1] - 1) // 2 for k in range(some)]
        places += places[-1:] * (wanted - some)
        assert measure.middles(count, wanted).tolist() == places


def test_a_missing_object_lowers_its_share():
    frames = painted(*[CAT | DOG] * 4, *[CAT] * 4, *[DOG] * 4, *[{}] * 4)
    single = detection.object_class_owlv2(PAINTED)
    both = detection.multiple_objects_owlv2(PAINTED)
    assert single(of_frames(frames, "a cat", object_class={"object": "cat"})) == 0.5
    assert single(of_frames(frames, "a horse", object_class="horse")) == 0
    assert single(of_frames(frames, "Cat", object_class="Cat")) == 0.5
    assert both(of_frames(frames, "", multiple_objects={"object": "cat and dog"})) == 0.25
    assert both(of_frames(frames, "", multiple_objects="cat and horse")) == 0
    for one in (single, both):
        assert np.isnan(one(of_frames(frames, "a cat")))
    with pytest.raises(UsageError, match="object_class=7; it wants words"):
        single(of_frames(frames, "a cat", object_class=7))


def test_a_box_counts_from_the_threshold_on_by_its_best_name_and_within_the_frame():
    def scripted(frame, names):
        assert names[:2] == ["cow", "dog"]
        assert len(names) == len(set(names)) == 80
        boxes = torch.tensor([[0.0, 0, 9, 9]] * 3 + [[70, 5, 95, 20], [10, 62, 20, 75]])
        scores = torch.tensor([detection.THRESHOLD, detection.THRESHOLD - 1e-4, 0.9, 0.9, 0.9])
        return boxes, torch.tensor([0, 1, names.index("horse"), 0, 1]), scores

    found = detection.Detector("", "", scripted)(painted({}), ["cow", "dog"])[0]
    assert [one.label for one in found] == ["cow", "cow"]  # no dog, sure enough, in the frame
    assert found[1].box == (70, 5, 80, 20)
    assert len(detection.coco()) == 80


def vbenchs_position(relationship: str, one, other) -> float:
    """spatial_relationship.py, whose left is its right."""
    dx = (other[0] + other[2]) / 2 - (one[0] + one[2]) / 2
    dy = (other[1] + other[3]) / 2 - (one[1] + one[3]) / 2
    width = max(0, min(one[2], other[2]) - max(one[0], other[0]))
    common = width * max(0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    iou = common / (sum(areas) - common)
    across = relationship in ("on the right of", "on the left of")
    if not (abs(dx) > abs(dy) if across else abs(dy) > abs(dx)):
        return 0.0
    return 1.0 if iou < 0.1 else 0.1 / iou


def test_both_sides_together_score_as_vbench_does_for_either():
    random, partial = np.random.RandomState(0), 0
    pairs = [("on the left of", "on the right of"), ("on the top of", "on the bottom of")]
    for _ in range(300):
        corner, size = random.uniform(0, 30, (2, 2)), random.uniform(10, 40, (2, 2))
        boxes = np.concatenate([corner, corner + size], 1).tolist()
        for pair in pairs:
            ours = [detection.placed(*boxes, *detection.SIDES[side]) for side in pair]
            assert min(ours) == 0
            assert sum(ours) == pytest.approx(vbenchs_position(pair[0], *boxes), abs=1e-12)
            partial += 0 < sum(ours) < 1
    assert partial > 50


def test_mirrored_frames_flip_left_and_right_and_no_more():
    frames = painted(*[CAT | DOG] * 16)
    tall = painted(*[{(30, 2, 50, 22): "red", (28, 36, 48, 56): "blue"}] * 16)
    for side, found in {"left": 1, "right": 0, "top": 0, "bottom": 0}.items():
        asked = {"object_a": "cat", "object_b": "dog", "relationship": f"on the {side} of"}
        measure = detection.spatial_relationship_owlv2(PAINTED)
        assert measure(of_frames(frames, "", spatial_relationship=asked)) == found
        mirrored = np.ascontiguousarray(frames[:, :, ::-1])
        opposite = {"left": 0, "right": 1}.get(side, 0)
        assert measure(of_frames(mirrored, "", spatial_relationship=asked)) == opposite
        assert measure(of_frames(tall, "", spatial_relationship=asked)) == (side == "top")
        upset = np.ascontiguousarray(tall[:, ::-1])
        assert measure(of_frames(upset, "", spatial_relationship=asked)) == (side == "bottom")


def test_two_of_one_kind_are_no_pair_and_the_best_pair_counts():
    asked = {"object_a": "cat", "object_b": "dog", "relationship": "on the left of"}
    two_cats = CAT | {(50, 20, 70, 40): "red"}
    between = {(4, 20, 24, 40): "red", (30, 20, 45, 40): "blue", (55, 20, 75, 40): "red"}
    measure = detection.spatial_relationship_owlv2(PAINTED)
    frames = painted(*[two_cats] * 8, *[between] * 4, *[{}] * 4)
    assert measure(of_frames(frames, "", spatial_relationship=asked)) == 0.25
    assert np.isnan(measure(of_frames(frames, "")))
    for wrong in ({**asked, "relationship": "beside"}, {"object_a": "cat"}, "left", 7):
        with pytest.raises(UsageError, match="on the left of, on the right of"):
            measure(of_frames(frames, "a cat", spatial_relationship=wrong))


def direction(colour) -> torch.Tensor:
    """Of a colour from grey, so that likeness goes by hue."""
    value = torch.as_tensor(np.asarray(colour), dtype=torch.float32)
    return F.normalize(value - value.mean(), dim=-1)


def paints(prompts: list[str]) -> torch.Tensor:
    hues = [[PAINT[word] for word in one.split() if word in PAINT] for one in prompts]
    return torch.stack([direction(one[0]) if one else torch.zeros(3) for one in hues])


class Hues:
    name = "hues"

    def __call__(self, crops: np.ndarray) -> torch.Tensor:
        return torch.stack([direction(one.mean((0, 1))) for one in crops])


CLIP = SimpleNamespace(texts=paints, images=Hues(), sha256="1")


def vbenchs_color(colour: str, name: str, told: list[list[tuple[str, str]]]) -> float:
    """color.py, on captions and names of each frame's boxes, each box with its own name."""
    with_object = with_colour = 0
    for frame in told:
        mine = [caption for caption, label in frame if label == name]
        with_object += any(any(one in caption for one in PAINT) for caption in mine)
        with_colour += any(colour in caption for caption in mine)
    return with_colour / with_object if with_object else np.nan


@pytest.mark.parametrize("colour", PAINT)
def test_color_is_vbenchs_share_of_the_frames_in_which_the_object_is(colour):
    random = np.random.RandomState(0)
    places = [(2, 20, 22, 40), (30, 20, 50, 45), (58, 5, 78, 40)]
    rows, frames = [], []
    for k in range(16):
        boxes = [one for one in places if random.rand() < 0.6]
        hues = random.choice([*PAINT], len(boxes)).tolist()
        rows.append(list(zip(boxes, hues, random.choice(["car", "bird"], len(boxes)), strict=True)))
        frames.append(painted(dict(zip(boxes, hues, strict=True)))[0])
        frames[-1][0, 0, 0] = k  # so that the script knows its frame

    def scripted(frame, names):
        seen = rows[frame[0, 0, 0]]
        boxes = torch.tensor([box for box, _, _ in seen], dtype=torch.float32).reshape(-1, 4)
        kinds = torch.tensor([names.index(kind) for _, _, kind in seen], dtype=torch.long)
        return boxes, kinds, torch.ones(len(seen))

    told = [[(f"a {hue} {kind}", kind) for _, hue, kind in seen] for seen in rows]
    wanted = vbenchs_color(colour, "car", told)
    assert 0 < wanted < 1
    assert sum(any(kind == "car" for _, kind in frame) for frame in told) < 16
    measure = detection.color_owlv2(detection.Detector("scripted", "0", scripted), CLIP)
    assert measure(of_frames(np.stack(frames), f"a {colour} car", color=colour)) == wanted
    assert measure.backbone == ("scripted and hues", "0+1")


def test_color_is_of_the_object_alone_and_nothing_where_it_is_never_found():
    measure = detection.color_owlv2(PAINTED, CLIP)
    frames = painted(*[CAT | DOG] * 16)
    assert measure(of_frames(frames, "a red cat", color={"color": "red"})) == 1
    assert measure(of_frames(frames, "A blue cat.", color="blue")) == 0
    assert np.isnan(measure(of_frames(frames, "a blue horse", color="blue")))
    assert np.isnan(measure(of_frames(frames, "a red cat")))
    # VBench cuts "a " out of "pizza slice" too
    assert detection.coloured("a red pizza slice", "red") == "pizza slice"
    assert detection.coloured("an orange umbrella", "orange") == "umbrella"


def test_a_crop_is_the_middle_square_of_its_box():
    frame = np.arange(60 * 80 * 3).reshape(60, 80, 3).astype(np.uint8)
    assert (detection.middle(frame, (10, 20, 50, 30)) == frame[20:30, 25:35]).all()
    assert (detection.middle(frame, (10, 20, 20, 60)) == frame[35:45, 10:20]).all()
    assert detection.middle(frame, (79.7, 0, 80, 60)).shape == (1, 1, 3)
    assert detection.middle(frame, (0, 0, 80, 60)).shape == (60, 60, 3)


def vbenchs_action(logits: list[float], labels: list[str], prompt: str) -> float:
    """human_action.py, with the name of the video's file."""
    wanted = f"{prompt}-0.mp4".lower().split("-")[0].split("person is ")[-1].split("_")[0]
    odds = sorted(((1 / (1 + np.exp(-one)), k) for k, one in enumerate(logits)), reverse=True)[:5]
    return float(wanted in [labels[k] for one, k in odds if round(one, 4) >= 0.85])


def test_human_action_is_vbenchs_rule():
    labels = ["riding a bike", "clapping", "petting animal (not cat)", "a", "b", "c", "d", "e"]
    random, values = np.random.RandomState(0), []
    for _ in range(60):
        logits = random.normal(1.7, 0.6, 8).astype(np.float32)
        known = action.Classifier("", "", tuple(labels), 16, lambda _, x=logits: torch.tensor(x))
        measure = action.human_action_videomae(known)
        for label in labels[:3]:
            prompt = f"A person is {label}"
            values.append(measure(of_frames(painted({}), prompt)))
            assert values[-1] == vbenchs_action(logits.tolist(), labels, prompt)
    assert 0.2 < np.mean(values) < 0.8


@pytest.mark.parametrize(("share", "found"), [(0.84996, 1), (0.84994, 0)])
def test_human_action_is_sure_from_eighty_five_hundredths_in_four_digits(share, found):
    logits = torch.tensor([np.log(share / (1 - share)), -3.0], dtype=torch.float64)
    known = action.Classifier("", "", ("Tai Chi", "clapping"), 16, lambda _: logits)
    measure = action.human_action_videomae(known)
    assert measure(of_frames(painted({}), "A person is tai chi.")) == found
    assert measure(of_frames(painted({}), "Two friends", human_action="tai chi")) == found
    assert np.isnan(measure(of_frames(painted({}), "a cat")))


def test_scene_is_vbenchs_share_of_captions_but_a_barn_is_no_bar():
    told = ["a dog on the beach", "Two beaches, and a ski resort", "a resort", "skiing dogs"] * 4
    measure = captions.scene_blip(captions.Captioner("", "", lambda frames: told))
    for scene in ("beach", "ski resort", "dog"):
        video = of_frames(painted({}), scene, scene={"scene": scene})
        wanted = np.mean([all(word in one.lower() for word in scene.split(" ")) for one in told])
        assert measure(video) == wanted > 0
    assert np.isnan(measure(of_frames(painted({}), "beach")))
    assert captions.named("bar", "a bar with two stools")
    assert not captions.named("bar", "a barn")


def test_what_vbenchs_file_asks_for_is_looked_for(tmp_path):
    spatial = {"object_a": "cat", "object_b": "dog", "relationship": "on the left of"}
    asked = {
        "object_class": {"object": "cat"},
        "multiple_objects": {"object": "cat and dog"},
        "spatial_relationship": {"spatial_relationship": spatial},
        "color": {"color": "red"},
        "scene": {"scene": {"scene": "alley"}},
    }
    row = {"prompt_en": "a red cat", "dimension": [*asked], "auxiliary_info": asked}
    (tmp_path / "full.json").write_text(json.dumps([row]))
    prompt = read_suite(str(tmp_path / "full.json")).prompts[0]
    video = Video(painted(*[CAT | DOG] * 16), 8, prompt.text, prompt.asked)
    measures = [
        detection.object_class_owlv2(PAINTED),
        detection.multiple_objects_owlv2(PAINTED),
        detection.spatial_relationship_owlv2(PAINTED),
        detection.color_owlv2(PAINTED, CLIP),
        captions.scene_blip(captions.Captioner("", "", lambda frames: ["an alley"] * 16)),
    ]
    assert [(one.dimension, one(video)) for one in measures] == [(name, 1) for name in asked]
