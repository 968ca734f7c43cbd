"""Rendered video shows what its caption says, measured from the pixels, and never changes."""

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from curation import drawing, reading, synthetic
from recipes.load import UsageError
from recipes.schema import Curation, Synthetic

cv2.setNumThreads(1)
SMALL = {"size": 96, "frames": 17}
HUES = {"red": 0, "yellow": 25, "green": 68, "blue": 113}  # OpenCV's, of 180


def decoded(path: Path) -> np.ndarray:
    """uint8 [T, H, W, 3], RGB."""
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def things(frame: np.ndarray) -> list[tuple[str, str, tuple[float, float]]]:
    """What stands out of the grey ground: (color by its hue, shape by its outline, centre)."""
    hsv = cv2.cvtColor(frame, cv2.COLOR_RGB2HSV)
    vivid = ((hsv[..., 1] > 150) & (hsv[..., 2] > 90)).astype(np.uint8)
    found = []
    for outline in cv2.findContours(vivid, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]:
        mask = cv2.drawContours(np.zeros(vivid.shape, np.uint8), [outline], 0, 1, -1)
        if mask.sum() < 25:
            continue
        angle = np.median(hsv[..., 0][mask > 0].astype(float))
        color = min(HUES, key=lambda name: abs((angle - HUES[name] + 90) % 180 - 90))
        # share of the smallest circle around it: 1, 2/π and 3√3/4π for the three shapes
        _, radius = cv2.minEnclosingCircle(outline)
        share = mask.sum() / (np.pi * (radius + 0.5) ** 2)
        shape = min(
            {"circle": 1.0, "square": 0.637, "triangle": 0.413}.items(),
            key=lambda item: abs(share - item[1]),
        )[0]
        y, x = np.nonzero(mask)
        found.append((color, shape, (x.mean(), y.mean())))
    return found


def seen(frames: np.ndarray) -> tuple[str, str, str]:
    """Color, shape and direction of the one thing in a video."""
    tracks = [things(frame) for frame in frames]
    assert {len(found) for found in tracks} == {1}
    color, shape = Counter(found[0][:2] for found in tracks).most_common(1)[0][0]
    way = np.diff([found[0][2] for found in tracks], axis=0)
    along = int(np.abs(way.mean(0)).argmax())
    assert np.abs(way[:, 1 - along]).max() < 1, "it leaves its line"
    step = way[:, along]
    assert np.abs(step - step.mean()).max() < 0.6 + 0.1 * abs(step.mean()), "its speed changes"
    names = (("left", "right"), ("up", "down"))[along]
    return color, shape, names[int(step.mean() > 0)]


def test_shapes_show_the_color_shape_and_direction_that_the_caption_says(tmp_path):
    config = Synthetic(size=160, frames=17)
    for index in range(48):
        scene = synthetic.shapes(index, config)
        synthetic.encode(scene.frames, tmp_path / "x.mp4")
        frames = decoded(tmp_path / "x.mp4")
        color, shape, direction = seen(frames)
        assert scene.captions["en"] == f"a {color} {shape} moving {direction}"
        back = seen(frames[::-1])[2]  # the measure does tell directions apart
        assert {direction, back} in ({"left", "right"}, {"up", "down"})


def test_captions_read_as_the_issue_asks():
    config = Synthetic(size=64, frames=2, exclude=[])
    captions = [synthetic.shapes(index, config).captions for index in range(48)]
    assert {"en": "a red circle moving left", "zh": "一个红色的圆形向左移动"} in captions
    assert {"en": "a blue square moving up", "zh": "一个蓝色的正方形向上移动"} in captions


def test_an_image_is_captioned_without_a_direction():
    for index in range(6):
        captions = synthetic.shapes(index, Synthetic(size=64, frames=1)).captions
        assert "moving" not in captions["en"]
        assert "移动" not in captions["zh"]
        captions = synthetic.text(index, Synthetic(size=64, frames=1)).captions
        assert "moving" not in captions["en"]


def firsts(laps: int, **keys) -> list[str]:
    config = Synthetic(size=64, frames=1, **keys)
    count = 48 - len(config.exclude)
    objects = [
        synthetic.shapes(index, config).attributes["objects"][0] for index in range(laps * count)
    ]
    return [f"{o['color']}-{o['shape']}-{o['direction']}" for o in objects]


def test_48_videos_show_each_combination_once_in_an_order_of_the_seed():
    names = firsts(2, seed=3)
    assert sorted(names[:48]) == sorted(names[48:]) == sorted(synthetic.COMBINATIONS)
    assert names[:48] != names[48:]
    assert names[:48] != firsts(1, seed=4)


def test_held_out_combinations_never_appear_not_even_as_a_further_object():
    exclude = ["red-circle-left", "blue-square-up", *synthetic.COMBINATIONS[-12:]]
    config = Synthetic(size=64, frames=1, exclude=exclude, objects=3)
    shown = set()
    for index in range(80):
        for thing in synthetic.shapes(index, config).attributes["objects"]:
            shown.add(f"{thing['color']}-{thing['shape']}-{thing['direction']}")
    assert shown == set(synthetic.COMBINATIONS) - set(exclude)


def test_up_to_three_objects_stay_apart_inside_the_frame_and_are_all_named():
    counts = Counter()
    for index in range(24):
        scene = synthetic.shapes(index, Synthetic(**SMALL, objects=3))
        objects = scene.attributes["objects"]
        counts[len(objects)] += 1
        named = sorted((o["color"], o["shape"]) for o in objects)
        assert len(set(named)) == len(named)
        for frame in scene.frames:
            assert sorted(thing[:2] for thing in things(frame)) == named
            hsv = cv2.cvtColor(frame, cv2.COLOR_RGB2HSV)
            border = np.concatenate([hsv[0], hsv[-1], hsv[:, 0], hsv[:, -1]])
            assert not ((border[:, 1] > 150) & (border[:, 2] > 90)).any()
        pattern = r"a (\w+) (\w+) moving (\w+)"
        said = [list(words) for words in re.findall(pattern, scene.captions["en"])]
        assert said == [[o["color"], o["shape"], o["direction"]] for o in objects]
        assert scene.captions["zh"].count("一个") == len(objects)
    assert set(counts) == {1, 2, 3}


def test_edges_are_smooth_and_the_area_is_that_of_the_radius():
    y, x = np.mgrid[-40:41, -40:41].astype(float)
    for shape in synthetic.SHAPES:
        for tilt in (0.0, 0.2):
            cover = drawing.coverage(shape, 20.0, tilt, x + 0.3, y - 0.4)
            assert cover.sum() == pytest.approx(np.pi * 400, rel=0.01)
            assert 0.015 < ((cover > 0) & (cover < 1)).mean() < 0.05


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("kind", ["shapes", "text"])
def test_the_same_seed_renders_the_same_bytes_whatever_the_workers(kind, tmp_path):
    for name, seed, workers in (("a", 1, 1), ("b", 1, 3), ("c", 2, 1)):
        synthetic.render(kind, Synthetic(**SMALL, count=4, seed=seed), tmp_path / name, workers)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert len(a) == 8
    assert a == b
    assert not set(a.values()) & set(c.values())


def test_the_same_frames_give_the_same_bytes_whatever_lay_in_memory(tmp_path):
    frames = synthetic.text(1, Synthetic(**SMALL, seed=1)).frames
    files = set()
    for byte in range(24):
        dirt = [np.full(size, 10 * byte, np.uint8) for size in range(1000, 200_000, 9000)]
        del dirt  # what x264 allocates next is not zero
        synthetic.encode(frames, tmp_path / "x.mp4")
        files.add((tmp_path / "x.mp4").read_bytes())
    assert len(files) == 1


def test_a_video_does_not_depend_on_how_many_are_rendered(tmp_path):
    synthetic.render("shapes", Synthetic(**SMALL, count=2), tmp_path / "two")
    synthetic.render("shapes", Synthetic(**SMALL, count=4), tmp_path / "four")
    assert contents(tmp_path / "two").items() <= contents(tmp_path / "four").items()


def test_a_killed_rendering_is_continued_and_a_finished_one_left_alone(tmp_path):
    config = Synthetic(**SMALL, count=3)
    synthetic.render("shapes", config, tmp_path)
    whole = contents(tmp_path)
    videos = sorted(tmp_path.glob("*.mp4"))
    videos[1].rename(videos[1].with_name(videos[1].name + ".part"))
    times = [path.stat().st_mtime_ns for path in (videos[0], videos[2])]
    synthetic.render("shapes", config, tmp_path)
    assert contents(tmp_path) == whole
    assert [path.stat().st_mtime_ns for path in (videos[0], videos[2])] == times


def test_a_source_is_a_folder_of_its_configuration_with_captions_beside_the_videos(tmp_path):
    config = Curation(source="synthetic:text", out=str(tmp_path))
    config.synthetic = Synthetic(**SMALL, count=2, language="zh")
    folder = synthetic.folder(config)
    assert folder.parent == tmp_path / "synthetic"
    assert folder.name.startswith("text-")
    assert synthetic.folder(config) == folder
    videos = sorted(folder.glob("*.mp4"))
    assert [path.suffix for path in sorted(folder.iterdir())] == [".json", ".mp4"] * 2
    for path in videos:
        with av.open(str(path)) as file:
            stream = file.streams.video[0]
            assert (stream.codec.name, stream.pix_fmt, stream.average_rate) == (
                "h264",
                "yuv420p",
                16,
            )
            assert (stream.width, stream.height, stream.frames) == (96, 96, 17)
        captions = json.loads(path.with_suffix(".json").read_text("utf-8"))["captions"]
        assert [caption["language"] for caption in captions] == ["zh"]
    config.synthetic.seed = 1
    assert synthetic.folder(config) != folder


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"exclude": ["red-circel-left"]}, "red-circle-left"),
        ({"exclude": list(synthetic.COMBINATIONS)}, "at least one"),
        ({"size": 100}, "synthetic.size=100: must be a multiple of 16"),
        ({"objects": 4}, "synthetic.objects=4: must be 1 to 3"),
        ({"count": 0}, "synthetic.count=0"),
        ({"seed": -1}, "synthetic.seed=-1"),
    ],
)
def test_a_key_out_of_range_is_one_line_that_says_what_is_allowed(keys, message, tmp_path):
    with pytest.raises(UsageError) as error:
        synthetic.render("shapes", Synthetic(**keys), tmp_path / "x")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "x").exists()


def test_an_unknown_kind_names_the_known_ones(tmp_path):
    with pytest.raises(UsageError, match="synthetic:shapes or synthetic:text"):
        synthetic.folder(Curation(source="synthetic:shape", out=str(tmp_path)))


def ink(scene: synthetic.Scene, frame: np.ndarray) -> np.ndarray:
    """uint8 [H, W]: 255 where the text is, from its color's luma against the ground's."""
    attributes = scene.attributes
    names = (attributes["paper"], attributes["ink"])
    weights = (0.299, 0.587, 0.114)
    paper, text = (np.dot(drawing.INKS[name][1], weights) for name in names)
    luma = np.dot(frame, weights)
    # the ground's second tone reaches a sixth of the way to the ink
    return np.uint8(255 * np.clip((luma - paper) / (text - paper) * 1.3 - 0.3, 0, 1))


def legible(mask: np.ndarray) -> str:
    """What one line of a mask says."""
    y, x = np.nonzero(mask > 128)
    page = 255 - np.pad(mask[y.min() : y.max() + 1, x.min() : x.max() + 1], 6)
    return reading.line(np.repeat(page[..., None], 3, 2))[0]


def rows(mask: np.ndarray, lines: int) -> list[np.ndarray]:
    """Splits a mask of text into its lines, at the widest gaps without ink."""
    filled = (mask > 128).any(1)
    edges = np.flatnonzero(np.diff(np.r_[0, filled, 0]))
    gaps = sorted(range(1, len(edges) - 1, 2), key=lambda i: edges[i] - edges[i + 1])[: lines - 1]
    cuts = [edges[0], *sorted((edges[i] + edges[i + 1]) // 2 for i in gaps), edges[-1]]
    return [mask[a:b] for a, b in pairwise(cuts)]


def distance(a: str, b: str) -> int:
    """Levenshtein."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row, last = [i], row
        for j, y in enumerate(b, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (x != y)))
    return row[-1]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_written_text_is_read_back_by_a_recogniser(language, tmp_path):
    wrong = letters = 0
    grounds = set()
    config = Synthetic(frames=5, language=language, seed=5)
    for index in range(16):
        scene = synthetic.text(index, config)
        synthetic.encode(scene.frames, tmp_path / "x.mp4")
        frame = decoded(tmp_path / "x.mp4")[-1]
        lines = scene.attributes["lines"]
        for line, mask in zip(lines, rows(ink(scene, frame), len(lines)), strict=True):
            read = legible(mask)
            wrong += distance(line.replace(" ", ""), read.replace(" ", ""))
            letters += len(line.replace(" ", ""))
        assert f'"{scene.attributes["text"]}"' in scene.captions["en"]
        assert f"“{scene.attributes['text']}”" in scene.captions["zh"]
        assert scene.attributes["text"].isascii() == (language == "en")
        grounds.add(scene.attributes["ground"])
    assert letters > 30
    assert wrong / letters < 0.05
    assert "plain" in grounds
    assert len(grounds) > 1


def test_text_moves_as_its_caption_says():
    ways = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}
    met = set()
    for index in range(24):
        scene = synthetic.text(index, Synthetic(frames=9))
        centres = []
        for frame in scene.frames[::4]:
            y, x = np.nonzero(ink(scene, frame) > 64)
            centres.append((x.mean(), y.mean()))
        motion = scene.attributes["motion"]
        for move in np.diff(centres, axis=0):
            along = move @ ways[motion]
            assert along > 1 or motion == "still"
            across = move - along * np.array(ways[motion])
            assert np.abs(across).max() < 0.5 + 0.1 * along
        assert (f"moving {motion}" in scene.captions["en"]) == (motion != "still")
        met.add(motion)
    assert met == set(ways)


def test_the_font_has_every_chinese_character_that_may_be_written():
    face = drawing.font(16)
    assert face.getname()[0] == "Noto Sans CJK SC"
    missing = bytes(face.getmask("\U0010fffe"))  # drawn as the box of an unknown character
    assert missing == bytes(face.getmask("\U0010ffff"))
    characters = set(synthetic.CHARACTERS) | set(synthetic.PHRASES.replace(" ", ""))
    assert len(synthetic.CHARACTERS) == 3755
    assert all(bytes(face.getmask(character)) != missing for character in characters)
