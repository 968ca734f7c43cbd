"""The broad suite in two languages: what its prompts ask for exists, is said, and is balanced."""

import re
from collections import Counter

import pytest
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights
from torchvision.models.video import R3D_18_Weights

from eval import totals
from eval.suite import Prompt, read_suite

ENGLISH, CHINESE = read_suite("broad").prompts, read_suite("broad-zh").prompts
BOTH = list(zip(ENGLISH, CHINESE, strict=True))
COCO = {*FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]} - {"__background__", "N/A"}
KINETICS = {*R3D_18_Weights.KINETICS400_V1.meta["categories"]}
SIDES = {
    "on the left of": ("on the left of", "左边"),
    "on the right of": ("on the right of", "右边"),
    "on the top of": ("on the top of|above", "上面"),
    "on the bottom of": ("below", "下面"),
}
COLOURS = dict(
    zip(
        ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black", "white"),
        "红橙黄绿蓝紫粉黑白",
        strict=True,
    )
)
# of which a suite says what is looked for; on the others a measure needs only the video
TOLD = set(totals.SEMANTIC)
HAN = re.compile(r"[\u4e00-\u9fff]")


def of(dimension: str) -> list[Prompt]:
    return [one for one in ENGLISH if dimension in one.dimensions]


def says(text: str, words: str) -> bool:
    return re.search(rf"\b(?:{words})\b", text, re.IGNORECASE) is not None


@pytest.mark.parametrize("dimension", totals.TOTALS["total"])
def test_each_dimension_has_seventy_prompts(dimension):
    # a share of one half is then known to ±0.12, at 95 %
    assert len(of(dimension)) >= 70


def test_there_are_no_dimensions_but_those_of_the_totals():
    assert {name for one in ENGLISH for name in one.dimensions} == set(totals.TOTALS["total"])


def test_both_languages_ask_for_the_same_line_by_line():
    for english, chinese in BOTH:
        assert english.dimensions == chinese.dimensions, chinese.text
        assert english.asked == chinese.asked, chinese.text


def test_each_file_is_in_its_own_language():
    for english, chinese in BOTH:
        assert english.text.isascii(), english.text
        assert re.fullmatch(r"[\u4e00-\u9fff，、]+", chinese.text), chinese.text
        assert HAN.search(chinese.text), chinese.text


def test_nothing_is_asked_twice():
    for prompts in (ENGLISH, CHINESE):
        texts = Counter(re.sub(r"\W", "", one.text.casefold()) for one in prompts)
        assert [text for text, count in texts.items() if count > 1] == []


def test_a_prompt_can_name_a_file():
    # videos may come as <prompt>-<seed>.mp4, and a name has 255 bytes
    for one in (*ENGLISH, *CHINESE):
        assert len(one.text.encode()) <= 200, one.text
        assert not set(one.text) & set('-/\\:*?"<>|.'), one.text


def test_what_is_looked_for_is_told_of_each_dimension_that_needs_it():
    for one in ENGLISH:
        # a colour is looked for on an object, which can't be read out of a Chinese prompt
        also = {"object_class"} if "color" in one.dimensions else set()
        assert set(one.asked) == (TOLD & set(one.dimensions)) | also, one.text


def test_asked_is_of_vbenchs_form():
    for one in ENGLISH:
        for name, what in one.asked.items():
            if name == "spatial_relationship":
                assert list(what) == ["object_a", "object_b", "relationship"], one.text
                assert what["relationship"] in SIDES, one.text
            else:
                assert isinstance(what, str), one.text
                assert re.fullmatch(r"[\x21-\x7e](.*[\x21-\x7e])?", what), one.text
            if name == "multiple_objects":
                assert len(set(what.split(" and "))) == 2, one.text


def test_objects_are_cocos_and_the_prompt_says_them():
    for one in ENGLISH:
        alone = [one.asked["object_class"]] if "object_class" in one.asked else []
        for name in (*alone, *(name for pair in pairs([one]) for name in pair)):
            assert name in COCO, name
            assert says(one.text, name), f"{one.text!r} says no {name}"
    assert Counter(one.asked["object_class"] for one in of("object_class")) == Counter(COCO)
    together = [frozenset(pair) for pair in pairs(of("multiple_objects"))]
    assert len(set(together)) == len(together)
    assert set().union(*together) == COCO


def pairs(prompts: list[Prompt]) -> list[tuple[str, str]]:
    found = []
    for one in prompts:
        if two := one.asked.get("multiple_objects"):
            found.append(tuple(two.split(" and ")))
        if side := one.asked.get("spatial_relationship"):
            found.append((side["object_a"], side["object_b"]))
    return found


def test_actions_are_kinetics_and_distinct():
    labels = [one.asked["human_action"] for one in of("human_action")]
    assert set(labels) <= KINETICS
    assert len(set(labels)) == len(labels)


def test_sides_are_balanced_and_both_languages_say_them():
    found = Counter()
    for english, chinese in BOTH:
        if side := english.asked.get("spatial_relationship"):
            wanted = SIDES[side["relationship"]]
            said = [words for words, _ in SIDES.values() if says(english.text, words)]
            assert said == [wanted[0]], english.text
            said = [words for _, words in SIDES.values() if words in chinese.text]
            assert said == [wanted[1]], chinese.text
            found[side["relationship"]] += 1
    assert set(found) == set(SIDES)
    assert max(found.values()) <= 1.2 * min(found.values())


def test_left_and_right_are_asked_of_the_same_pairs():
    # else a model that puts dogs on the left would look as if it knew what left is
    of_side = {side: Counter() for side in SIDES}
    for one in of("spatial_relationship"):
        of_side[one.asked["spatial_relationship"]["relationship"]].update(pairs([one]))
    assert of_side["on the left of"] == of_side["on the right of"]


def test_colours_are_balanced_over_objects_and_both_languages_say_them():
    found = Counter()
    for english, chinese in BOTH:
        if colour := english.asked.get("color"):
            assert says(english.text, colour), english.text
            assert f"{COLOURS[colour]}色" in chinese.text, chinese.text
            found[colour, english.asked["object_class"]] += 1
    for place in (0, 1):
        counts = Counter()
        for key, count in found.items():
            counts[key[place]] += count
        assert max(counts.values()) <= 1.2 * min(counts.values())
    assert {colour for colour, _ in found} == set(COLOURS)


def test_a_colour_is_asked_in_the_words_that_vbench_cuts_it_out_of():
    for one in of("color"):
        article = "an" if one.asked["color"] == "orange" else "a"
        assert one.text == f"{article} {one.asked['color']} {one.asked['object_class']}"


@pytest.mark.parametrize("dimension", ["appearance_style", "temporal_style"])
def test_a_style_comes_last_and_has_one_name_in_each_language(dimension):
    names = {}
    for english, chinese in BOTH:
        if style := english.asked.get(dimension):
            assert english.text.endswith(f", {style}"), english.text
            names.setdefault(style, set()).add(chinese.text.rsplit("，", 1)[1])
    assert all(len(one) == 1 for one in names.values()), names
    assert len(set().union(*names.values())) == len(names)
    counts = Counter(one.asked[dimension] for one in of(dimension))
    assert max(counts.values()) <= 1.2 * min(counts.values())


def test_scenes_are_distinct_and_the_prompt_says_them():
    scenes = [one.asked["scene"] for one in of("scene")]
    assert len(set(scenes)) == len(scenes)
    assert all(says(one.text, one.asked["scene"]) for one in of("scene"))


def test_an_english_encoder_has_english_to_compare_with():
    for one in of("overall_consistency"):
        assert one.asked["overall_consistency"] == one.text


def test_the_first_hundred_are_a_fair_sample():
    # prompts=100 of the command
    first, all_of_them = ENGLISH[:100], len(ENGLISH)
    for dimension in totals.TOTALS["total"]:
        share = sum(dimension in one.dimensions for one in first) / 100
        assert share == pytest.approx(len(of(dimension)) / all_of_them, abs=0.02)
    sides = Counter(
        one.asked["spatial_relationship"]["relationship"]
        for one in first
        if "spatial_relationship" in one.dimensions
    )
    assert set(sides) == set(SIDES)
    assert {one.asked["color"] for one in first if "color" in one.asked} == set(COLOURS)
