"""VBench's package from an environment of its own: against a small fake one everywhere, and
against the real one where WAN_RECIPES_VBENCH names its python."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from curation.video import clip_frames, probe
from eval import run, vbench_package
from eval.measures.catalog import LIGHT
from eval.measures.measure import Video
from eval.measures.pixels import flickering
from eval.suite import Prompt, Suite, read_suite
from eval.totals import TOTALS
from eval.vbench_package import DIMENSIONS, Package, asks, dimensions, link_name, vbenchs_row
from eval.video_out import write_video
from recipes.evaluation import Evaluation
from recipes.keys import UsageError
from recipes.load import main
from tests.planted import decode, package_video

REAL = os.environ.get("WAN_RECIPES_VBENCH")

# The real one's behaviour, as far as it is called: evaluate() gets the weights of all dimensions,
# builds its list of videos, and writes {dimension: [aggregate, [{video_path, video_results}]]}.
# Here a video's number is the digits that its file's name ends in, as a percentage.
FAKE = """
import importlib.util, json, os, subprocess, sys
from urllib.error import URLError

def number(path):
    return int(os.path.realpath(path)[-6:-4]) / 100

def temporal_flickering(rows):
    found = [(p, number(p)) for row in rows for p in row["video_list"] if number(p) != 0.66]
    return sum(v for _, v in found) / len(found), found

def imaging_quality(rows):
    found = [(p, 100 * number(p)) for row in rows for p in row["video_list"]]
    return sum(v for _, v in found) / len(found) / 100, found

def color(rows):
    found = []
    for row in rows:
        asked = row["auxiliary_info"]["color"]["color"]
        found += [(p, number(p)) for p in row["video_list"] if asked != "red"]
    return 1.0, found

def scene(rows):
    words = [row["auxiliary_info"]["scene"]["scene"]["scene"].split(" ") for row in rows]
    return 0.5, [(p, len(w) / 10) for w, row in zip(words, rows) for p in row["video_list"]]

def human_action(rows):
    found = []
    for row in rows:
        for path in row["video_list"]:
            label = path.split("/")[-1].lower().split("-")[0].split("person is ")[-1]
            found.append((path, label == "clapping"))
    return 0.5, found

def temporal_style(rows):
    return 0.3, [(p, len(row["prompt_en"]) / 100) for row in rows for p in row["video_list"]]

def overall_consistency(rows):
    return 30.0, [(p, 30.0) for row in rows for p in row["video_list"]]

def dynamic_degree(rows):
    sys.stdout.flush()
    os.kill(os.getpid(), 9)

def motion_smoothness(rows):
    raise RuntimeError("sizes of tensors\\n  do not match")

class VBench:
    def __init__(self, device, full_info_dir, output_path):
        self.device, self.full_info_dir, self.output_path = device, full_info_dir, output_path

    def build_full_info_json(self, videos_path, name, dimension_list, prompt_list=[],
                             special_str="", verbose=False, mode="vbench_standard", **kwargs):
        raise AssertionError("looks for <prompt>-0 to <prompt>-4 only")

    def evaluate(self, videos_path, name, prompt_list=[], dimension_list=None, local=False,
                 read_frame=False, mode="vbench_standard", **kwargs):
        assert str(self.device) == "cpu"
        assert importlib.util.find_spec("suite") is None  # eval/'s own modules are not its
        if dimension_list == ["subject_consistency"]:
            raise URLError("no network")
        if dimension_list == ["object_class"]:
            subprocess.run(["false", "grit.pth"], check=True)
        path = self.build_full_info_json(videos_path, name, dimension_list, prompt_list, mode=mode)
        with open(path, encoding="utf-8") as file:
            rows = json.load(file)
        results = {}
        for dimension in dimension_list:
            mine = [row for row in rows if dimension in row["dimension"]]
            total, found = globals()[dimension](mine)
            videos = [{"video_path": p, "video_results": value} for p, value in found]
            results[dimension] = [total, videos]
        output = os.path.join(self.output_path, name + "_eval_results.json")
        with open(output, "w", encoding="utf-8") as file:
            json.dump(results, file)
"""


@pytest.fixture(scope="module")
def movie(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("movie") / "movie.mp4"
    write_video(path, [np.zeros((4, 32, 32, 3), np.uint8)], 8)
    return path


@pytest.fixture
def package(tmp_path, monkeypatch) -> Package:
    folder = tmp_path / "site"
    (folder / "vbench").mkdir(parents=True)
    (folder / "vbench" / "__init__.py").write_text(FAKE, "utf-8")
    (folder / "torch.py").write_text("device = str\n")  # the real one takes seconds to import
    about = folder / "vbench-0.1.5.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: vbench\nVersion: 0.1.5\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return Package(sys.executable)


@pytest.fixture
def videos(tmp_path, movie):
    """Key → file with that number at its end, as many as are asked for."""

    def make(numbers: dict[tuple[int, int], int]) -> dict[tuple[int, int], Path]:
        made = {key: tmp_path / f"{n:02d}.mp4" for key, n in numbers.items()}
        for path in made.values():
            shutil.copy(movie, path)
        return made

    return make


def test_it_has_the_dimensions_of_the_total():
    assert set(DIMENSIONS) == set(TOTALS["total"])


def test_each_video_gets_its_own_number(package, videos, tmp_path):
    prompts = [Prompt("a cat"), Prompt("一只猫/一只狗"), Prompt("word " * 80), Prompt("word " * 81)]
    numbers = {(0, 0): 10, (0, 7): 20, (1, 0): 30, (1, 1): 40, (2, 0): 50, (3, 0): 60}
    found = package.measure(
        ["temporal_flickering"], Suite.of("x", prompts), videos(numbers), tmp_path / "out"
    )
    wanted = {key: n / 100 for key, n in numbers.items()}
    assert found.values == {"temporal_flickering": pytest.approx(wanted)}
    assert found.totals == {"temporal_flickering": pytest.approx(0.35)}
    assert found.failed == {}
    assert found.broken == []
    assert package.identity == "vbench 0.1.5"
    # again, fewer: nothing is left of before
    some = videos({(1, 0): 70})
    found = package.measure(["temporal_flickering"], Suite.of("x", prompts), some, tmp_path / "out")
    assert found.values == {"temporal_flickering": {(1, 0): pytest.approx(0.7)}}


def test_names_are_vbenchs_wherever_a_file_can_have_them():
    assert link_name("a red cat, Van Gogh style", 3) == "a red cat, Van Gogh style-3.mp4"
    assert link_name("一只猫", 0) == "一只猫-0.mp4"
    odd = ["a/b", "a_b", "a\0b", "字" * 90, "字" * 91, "x" * 250, "x" * 249]
    names = [link_name(text, 0) for text in odd]
    assert len(set(names)) == len(odd)
    assert all(len(name.encode()) <= 255 and "/" not in name for name in names)
    assert names[-1] == "x" * 249 + "-0.mp4"  # 255 bytes: just fits


def test_imaging_quality_of_a_video_is_on_the_scale_of_its_aggregate(package, videos, tmp_path):
    made = videos({(0, 0): 62, (0, 1): 70})
    found = package.measure(["imaging_quality"], Suite.of("x", [Prompt("a cat")]), made, tmp_path)
    assert found.values["imaging_quality"] == pytest.approx({(0, 0): 0.62, (0, 1): 0.70})
    assert found.totals["imaging_quality"] == pytest.approx(0.66)


def test_numbers_on_another_scale_are_refused(package, videos, tmp_path):
    made = videos({(0, 0): 62})
    found = package.measure(
        ["overall_consistency"], Suite.of("x", [Prompt("a cat")]), made, tmp_path
    )
    assert found.values == {}
    assert "beyond 1" in found.failed["overall_consistency"]
    # a later package that mends its scale must not be divided once more
    source = tmp_path / "site/vbench/__init__.py"
    source.write_text(source.read_text().replace("100 * number(p)", "number(p)"))
    mended = source.read_text().replace("/ len(found) / 100, found", "/ len(found), found")
    source.write_text(mended)
    found = package.measure(["imaging_quality"], Suite.of("x", [Prompt("a cat")]), made, tmp_path)
    assert found.values == {}
    assert "0.62" in found.failed["imaging_quality"]


def test_a_dimension_that_fails_says_why_and_costs_no_other(package, videos, tmp_path):
    names = ["subject_consistency", "object_class", "motion_smoothness", "dynamic_degree"]
    prompts = [Prompt("a dog", (), {"object_class": {"object": "dog"}})]
    made = videos({(0, 0): 30})
    found = package.measure([*names, "temporal_flickering"], Suite.of("x", prompts), made, tmp_path)
    assert list(found.failed) == names
    assert list(found.values) == ["temporal_flickering"]
    assert all("\n" not in why for why in found.failed.values())
    # what it wants from outside is named
    assert found.failed["subject_consistency"].startswith("URLError: <urlopen error no network>")
    assert "wants dino_vitbase16_pretrain.pth" in found.failed["subject_consistency"]
    assert "wants grit_b_densecap_objectdet.pth" in found.failed["object_class"]
    # and not where something else is wrong
    assert found.failed["motion_smoothness"].startswith("RuntimeError: sizes of tensors; what")
    assert "status -9" in found.failed["dynamic_degree"]
    assert "do not match" in (tmp_path / "motion_smoothness.log").read_text()


def test_what_failed_today_does_not_pass_for_what_was_measured_yesterday(package, videos, tmp_path):
    made = videos({(0, 0): 30})
    stale = tmp_path / "dynamic_degree_eval_results.json"
    link = str(tmp_path / "links/a cat-0.mp4")
    row = {"video_path": link, "video_results": 0.9}
    stale.write_text(json.dumps({"dynamic_degree": [0.9, [row]]}))
    found = package.measure(["dynamic_degree"], Suite.of("x", [Prompt("a cat")]), made, tmp_path)
    assert found.values == {}
    assert "dynamic_degree" in found.failed


def test_videos_without_a_number_are_named(package, videos, tmp_path):
    made = videos({(0, 0): 30, (0, 1): 31, (0, 2): 32, (0, 3): 66})
    made[0, 1].unlink()
    made[0, 2].write_bytes(b"no video")
    found = package.measure(
        ["temporal_flickering"], Suite.of("x", [Prompt("a cat")]), made, tmp_path
    )
    assert found.values["temporal_flickering"] == {(0, 0): pytest.approx(0.3)}
    assert [line.split(":")[0] for line in found.broken] == ["31.mp4", "32.mp4", "66.mp4"]
    assert found.broken[2] == "66.mp4: temporal_flickering gave no number of it"


def test_prompts_are_told_as_vbench_nests_them(package, videos, tmp_path):
    prompts = [
        Prompt("a red car", ("color",), {"color": "red"}),
        Prompt("a blue car", ("color",), {"color": "blue"}),
        Prompt("train station platform", ("scene",), {"scene": {"scene": "train station"}}),
        Prompt("a person is clapping", ("human_action", "scene")),
    ]
    made = videos({(i, 0): 10 * i for i in range(4)})
    names = ["color", "scene", "human_action", "temporal_style"]
    found = package.measure(names, Suite.of("x", prompts), made, tmp_path)
    assert found.failed == {}
    assert found.broken == []
    # the package passes over a video in which it sees no such object: it says nothing of it
    assert found.values["color"] == pytest.approx({(0, 0): np.nan, (1, 0): 0.1}, nan_ok=True)
    # the last is for scene, and says of none
    assert found.values["scene"] == {(2, 0): 0.2}
    assert found.values["human_action"] == {(3, 0): 1.0}
    # what the suite does not name is for all
    lengths = {(i, 0): len(one.text) / 100 for i, one in enumerate(prompts)}
    assert found.values["temporal_style"] == lengths
    found = package.measure(["spatial_relationship"], Suite.of("x", prompts), made, tmp_path)
    assert found.failed["spatial_relationship"] == "no video of a prompt that is for it"


# one row of VBench_full_info.json for each of its nestings
ROWS = [
    {"object_class": {"object": "person"}},
    {"multiple_objects": {"object": "bird and cat"}},
    {"color": {"color": "red"}},
    {"appearance_style": {"appearance_style": "Van Gogh style"}},
    {"scene": {"scene": {"scene": "alley"}}},
    {
        "spatial_relationship": {
            "spatial_relationship": {
                "object_a": "bicycle",
                "object_b": "car",
                "relationship": "on the left of",
            }
        }
    },
]


@pytest.mark.parametrize("asked", ROWS, ids=lambda asked: next(iter(asked)))
def test_a_row_survives_being_read_and_written(asked, tmp_path):
    name = next(iter(asked))
    row = {"prompt_en": "a prompt", "dimension": [name], "auxiliary_info": asked}
    (tmp_path / "suite.json").write_text(json.dumps([row]))
    assert vbenchs_row(name, read_suite(str(tmp_path / "suite.json")).prompts[0]) == row


def test_a_suite_of_ones_own_may_ask_in_a_word():
    row = vbenchs_row("scene", Prompt("an alley", (), {"scene": "alley"}))
    assert row["auxiliary_info"] == {"scene": {"scene": {"scene": "alley"}}}
    row = vbenchs_row("object_class", Prompt("a dog", (), {"object_class": "dog"}))
    assert row["auxiliary_info"] == {"object_class": {"object": "dog"}}


def test_a_python_without_the_package_is_refused(package, monkeypatch, tmp_path):
    with pytest.raises(UsageError, match="no such program"):
        Package(str(tmp_path / "python"))
    with pytest.raises(UsageError, match="dimensions=colour: there is none; the nearest is color"):
        dimensions(["colour"], [])
    with pytest.raises(UsageError, match="temporal_flickering: is measured here too"):
        dimensions(["temporal_flickering"], [LIGHT["temporal_flickering"]])
    assert set(dimensions([], [LIGHT["temporal_flickering"]])) == {*DIMENSIONS} - {
        "temporal_flickering"
    }
    monkeypatch.delenv("PYTHONPATH")
    with pytest.raises(UsageError, match="has no vbench"):
        Package(sys.executable)


def test_links_are_made_anew_and_files_are_left_alone(videos, tmp_path):
    mine = tmp_path / "links" / "mine.mp4"
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    made = videos({(0, 0): 1})
    for _ in range(2):
        links, _ = vbench_package.linked([Prompt("a cat")], made, mine.parent)
    assert links[0, 0].resolve() == made[0, 0].resolve()
    assert mine.read_bytes() == b"mine"


@pytest.mark.skipif(not REAL, reason="WAN_RECIPES_VBENCH names no python that has vbench")
def test_flickering_of_the_real_package_is_ours(tmp_path):
    package = Package(REAL)
    prompts, videos = [Prompt("a street/a road"), Prompt("一只兔子")], {}
    for (i, j), name in {(0, 0): "bikes.mp4", (0, 7): "carphone_pristine.mp4"}.items():
        videos[i, j] = tmp_path / name
        shutil.copy(package_video(name), videos[i, j])
    frames, fps = decode(package_video("bigbuckbunny.mp4"), 0, 33, long_side=320)
    videos[1, 0] = tmp_path / "written.mp4"
    write_video(videos[1, 0], [frames], fps)
    found = package.measure(
        ["temporal_flickering"], Suite.of("x", prompts), videos, tmp_path / "out"
    )
    assert found.failed == {}
    assert found.broken == []
    ours = {
        key: flickering(Video(clip_frames(path), probe(path).fps)) for key, path in videos.items()
    }
    assert found.values["temporal_flickering"] == pytest.approx(ours, abs=1e-6)
    assert len(set(ours.values())) == 3


@pytest.mark.skipif(not REAL, reason="WAN_RECIPES_VBENCH names no python that has vbench")
def test_the_real_packages_own_prompts_survive_being_read_and_written():
    code = "import vbench, os; print(os.path.dirname(vbench.__file__))"
    told = subprocess.run([REAL, "-c", code], capture_output=True, text=True, check=True)
    path = Path(told.stdout.splitlines()[-1]) / "VBench_full_info.json"
    written = {one.text: one for one in read_suite(str(path)).prompts}
    rows = json.loads(path.read_text("utf-8"))
    assert len(rows) > 900
    for row in rows:
        for dimension in row["dimension"]:
            made = vbenchs_row(dimension, written[row["prompt_en"].strip()])
            asked = row.get("auxiliary_info", {})
            wanted = {dimension: asked[dimension]} if dimension in asked else None
            assert made.get("auxiliary_info") == wanted


def test_its_numbers_stand_in_the_report_and_are_asked_once(package, movie, tmp_path, monkeypatch):
    for k, name in enumerate(("one", "two")):
        (tmp_path / name).mkdir()
        for i in range(3):  # no two are the same file
            (tmp_path / name / f"{i:04d}-0.mp4").write_bytes(movie.read_bytes() + bytes([k, i]))
    rows = [{"prompt": f"猫 {k}", "dimensions": ["temporal_style"]} for k in range(3)]
    suite = tmp_path / "suite.jsonl"
    suite.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    keys = [f"videos={tmp_path / 'one'},{tmp_path / 'two'}", f"suite={suite}", "seeds=1"]
    keys += ["measures=sharpness", f"vbench.python={sys.executable}", f"out={tmp_path / 'out'}"]
    keys += ["vbench.dimensions=temporal_style,motion_smoothness", "device=cpu"]
    assert main(Evaluation, run.evaluate, keys) == 0
    found = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    one, two = found["contenders"]
    assert one["means"]["temporal_style"] == two["means"]["temporal_style"] == pytest.approx(0.03)
    assert found["measures"]["temporal_style"]["backbone"][0] == "vbench 0.1.5"
    # what failed is told, and is no 0
    assert one["means"]["motion_smoothness"] is None
    assert any("vbench motion_smoothness: " in note for note in one["broken"])
    assert "temporal_style" in found["comparisons"][0]["measures"]
    assert found["comparisons"][0]["left_out"] == ["motion_smoothness"]
    # again: nothing is asked that is known
    asked: list[str] = []
    measure = Package.measure
    monkeypatch.setattr(
        Package,
        "measure",
        lambda self, names, *rest: asked.extend(names) or measure(self, names, *rest),
    )
    assert main(Evaluation, run.evaluate, keys) == 0
    assert set(asked) == {"motion_smoothness"}


def test_an_action_that_no_file_name_says_is_not_measured():
    suite = Suite.of("x", [Prompt("a person is clapping"), Prompt("Guests clap")])
    assert [asks("human_action", suite, k) for k in range(2)] == [True, False]
