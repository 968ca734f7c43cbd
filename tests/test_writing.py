"""Written text is read back from renderings, and things are counted."""

import numpy as np
import pytest
from torchmetrics.functional.text import edit_distance

from curation import synthetic
from eval.faults import FAULTS
from eval.measures import following, rendered, writing
from eval.measures.count import count
from eval.measures.measure import Video
from recipes.schema import Synthetic

TEXT = Synthetic(size=128, frames=5, seed=4)
THINGS = Synthetic(size=64, frames=9, seed=4, objects=3)


@pytest.fixture(scope="module")
def written() -> list[synthetic.Scene]:
    return [synthetic.text(number, TEXT) for number in range(4)]


def video(scene: synthetic.Scene, prompt: str | None = None) -> Video:
    number = len(scene.captions["en"]) % 2
    return Video(scene.frames, 16, prompt or scene.captions[("en", "zh")[number]])


def test_english_and_chinese_are_read_back(written):
    assert {one.attributes["language"] for one in written} == {"en", "zh"}
    assert np.mean([following.text(video(one)) for one in written]) > 0.97


def test_other_words_and_pictures_without_any_are_told(written):
    for one, other in zip(written, written[2:], strict=False):
        assert following.text(video(one, other.captions["en"])) < 0.5
    blank = np.full((5, 128, 128, 3), 120, np.uint8)
    assert following.text(Video(blank, 16, 'the word "Winter"')) == 0
    # what quotes nothing is not asked for it
    assert np.isnan(following.text(Video(blank, 16, "a red circle")))


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ('the words "Night Dragon" in red', "Night Dragon"),
        ("红色的汉字“兆街”，文字向左移动", "兆街"),
        ("a sign 「出口」", "出口"),
        ("a cat", ""),
    ],
)
def test_what_a_prompt_quotes(prompt, text):
    assert writing.quoted(prompt) == text


def test_likeness_is_one_minus_the_edit_distance():
    random = np.random.RandomState(0)
    for _ in range(50):
        one, other = ("".join(random.choice(list("ab番"), random.randint(1, 9))) for _ in range(2))
        steps = float(edit_distance(one, other, reduction="sum"))
        assert writing.likeness(one, other) == pytest.approx(1 - steps / max(len(one), len(other)))
    assert writing.likeness("Night Dragon", "NIGHTDRAGON") == 1
    assert writing.likeness("a", "") == 0


def test_things_are_counted():
    scenes = [synthetic.shapes(number, THINGS) for number in range(24)]
    found = [(len(one.attributes["objects"]), count(one.frames)) for one in scenes]
    assert {asked for asked, _ in found} == {1, 2, 3}
    assert all(asked == seen for asked, seen in found)
    for one in scenes:
        number = len(one.attributes["objects"])
        assert {rendered.things(text) for text in one.captions.values()} == {number}
        # another of each, or one too many in the prompt
        twice = FAULTS["duplicate"].plant(one.frames)
        if count(twice) != number:
            assert following.number(Video(twice, 16, one.captions["zh"])) == 0
    changed = [count(FAULTS["duplicate"].plant(one.frames)) for one in scenes]
    assert np.mean([new != old for new, (old, _) in zip(changed, found, strict=True)]) > 0.7
    nothing = np.full((9, 64, 64, 3), 120, np.uint8)
    assert count(nothing) == 0
    assert following.number(Video(nothing, 16, "a red circle and a blue square")) == 0
    assert np.isnan(following.number(Video(nothing, 16, "a cat")))
    noisy = np.random.RandomState(0).randint(0, 255, (9, 64, 64, 3)).astype(np.uint8)
    assert count(noisy) != 1
