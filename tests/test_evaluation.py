"""eval/run.py from end to end: the right verdict, nothing twice or lost, errors in one line."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from curation.synthetic import encode, shapes
from eval import run as command
from eval import selftest
from eval.faults import FAULTS
from eval.inputs import sha256
from eval.measures import pixels
from eval.measures.measure import Measure, Video
from eval.report import labels
from recipes.evaluation import Evaluation
from recipes.load import main
from recipes.schema import Synthetic

COUNT = 14
LIGHT = "temporal_flickering,sharpness,noise,speed_dis,follows_color,follows_direction"


@pytest.fixture(scope="module")
def scenes():
    config = Synthetic(size=64, frames=9, seed=11)
    return [shapes(number, config) for number in range(COUNT)]


@pytest.fixture(scope="module")
def suite(scenes, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("suite") / "rendered prompts.txt"
    path.write_text("\n".join(prompts(scenes)) + "\n", "utf-8")
    return path


def prompts(scenes) -> list[str]:
    """Some in Chinese, none twice."""
    return list(
        dict.fromkeys(one.captions["zh" if k % 3 else "en"] for k, one in enumerate(scenes))
    )


def folder(place: Path, scenes, fault: str | None = None, named=None) -> Path:
    """Each scene's video, twice, under `0003-1.mp4` or what `named` makes of prompt and seed."""
    place.mkdir()
    texts = prompts(scenes)
    for number, text in enumerate(texts):
        at = next(k for k, one in enumerate(scenes) if text in one.captions.values())
        frames = scenes[at].frames
        for seed in range(2):
            shown = FAULTS[fault].plant(frames, number + seed) if fault else frames
            name = named(text, seed) if named else f"{number:04d}-{seed}"
            encode(shown, place / f"{name}.mp4")
    return place


@pytest.fixture(scope="module")
def good(scenes, tmp_path_factory) -> Path:
    return folder(tmp_path_factory.mktemp("videos") / "good", scenes)


def ran(capsys, *keys: str) -> tuple[int, str, str]:
    status = main(Evaluation, command.evaluate, list(keys))
    return status, *capsys.readouterr()


def told(out: Path) -> dict:
    return json.loads((out / "report.json").read_text("utf-8"))


def find(tree: dict, name: str) -> dict:
    """What stands under a name, however deep."""
    if name in tree:
        return tree[name]
    inside = (find(one, name) for one in tree.values() if isinstance(one, dict))
    return next(filter(None, inside), {})


# --- verdicts ------------------------------------------------------------------------------------


def test_the_verdict_names_what_was_planted(good, scenes, suite, tmp_path, capsys):
    blurred = folder(tmp_path / "blurred", scenes, "blur")
    out = tmp_path / "out"
    keys = [f"suite={suite}", f"measures={LIGHT}", f"out={out}"]
    status, said, _ = ran(capsys, f"videos={good},{blurred}", *keys)
    assert status == 0
    (found,) = told(out)["comparisons"]
    assert "sharpness" in found["worse"]
    assert "follows_direction" not in found["worse"]
    assert found["verdict"] in said
    row = found["measures"]["sharpness"]
    assert row["high"] < 0
    assert (row["wins"], row["losses"]) == (0, row["prompts"])
    # p is adjusted for all that have a better side; the smallest of them by their number
    judged = [one for one in found["measures"].values() if one["adjusted"] is not None]
    assert len(judged) == 5
    least = min(one["p"] for one in judged)
    assert min(one["adjusted"] for one in judged) == pytest.approx(min(1, 5 * least))
    # the other way round it is better
    ran(capsys, f"videos={blurred},{good}", *keys)
    assert "sharpness" in told(out)["comparisons"][0]["better"]


def test_one_against_itself_differs_nowhere(good, suite, tmp_path, capsys):
    keys = [f"suite={suite}", f"measures={LIGHT}", f"out={tmp_path}"]
    assert ran(capsys, f"videos={good},{good}", *keys)[0] == 0
    (found,) = told(tmp_path)["comparisons"]
    assert found["verdict"] == "no difference found on 5"  # speed has no better side
    assert all(one["delta"] == one["low"] == one["high"] == 0 for one in found["measures"].values())


def test_what_lost_most_comes_first(good, scenes, suite, tmp_path, capsys):
    other = folder(tmp_path / "other", scenes)
    worst = prompts(scenes)[5]
    frames = next(one.frames for one in scenes if worst in one.captions.values())
    for seed in range(2):
        encode(FAULTS["noise"].plant(frames, seed), other / f"0005-{seed}.mp4")
    ran(capsys, f"videos={good},{other}", f"suite={suite}", f"measures={LIGHT}", f"out={tmp_path}")
    first = told(tmp_path)["prompts"][0]
    assert first["prompt"] == worst
    assert first["fall"] > 0


# --- checkpoints ---------------------------------------------------------------------------------


def test_checkpoints_are_sampled_measured_and_never_twice(suite, tmp_path, capsys, monkeypatch):
    keys = ["prompts=2", "seeds=2", "steps=1", "size=32x32", "frames=5", "batch=4", "device=cpu"]
    keys += [f"suite={suite}", "measures=sharpness,temporal_flickering", f"out={tmp_path}"]
    status, said, error = ran(capsys, "checkpoints=random:tiny", *keys)
    assert status == 0, error
    assert len(list((tmp_path / "videos").rglob("*.mp4"))) == 4
    known = (tmp_path / "scores.jsonl").read_text().splitlines()
    assert len(known) == 8
    status, said, _ = ran(capsys, "checkpoints=random:tiny,random:tiny", *keys)
    assert "0, 4 done already" in said
    assert (tmp_path / "scores.jsonl").read_text().splitlines() == known
    assert "no difference found on 2" in said
    # seed j of prompt i is 100000 i + j
    beside = [json.loads(one.read_text()) for one in (tmp_path / "videos").rglob("*-*.json")]
    assert sorted(one["seed"] for one in beside) == [0, 1, 100000, 100001]


def test_a_suite_with_pictures_is_for_image_to_video(scenes, tmp_path, capsys):
    names = [f"图{number}.png" for number in range(2)]
    for name, scene in zip(names, scenes, strict=False):
        Image.fromarray(scene.frames[0]).save(tmp_path / name)
    rows = [{"prompt": f"it moves {k}", "image": name} for k, name in enumerate(names)]
    suite = tmp_path / "i2v.jsonl"
    suite.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    keys = ["seeds=1", "steps=1", "size=64x64", "frames=5", "device=cpu", f"suite={suite}"]
    keys += ["measures=sharpness", f"out={tmp_path / 'out'}"]
    status, _, error = ran(capsys, "checkpoints=random:i2v-tiny", *keys)
    assert status == 0, error
    films = sorted((tmp_path / "out" / "videos").rglob("*.mp4"))
    beside = [json.loads(one.with_suffix(".json").read_text("utf-8")) for one in films]
    given = {sha256(tmp_path / name) for name in names}
    assert {find(one, "inputs")["image"] for one in beside} == given
    # another picture under the same name is another question
    Image.fromarray(scenes[5].frames[0]).save(tmp_path / names[0])
    assert ran(capsys, "checkpoints=random:i2v-tiny", *keys)[0] == 0
    assert len(list((tmp_path / "out" / "videos").rglob("*.mp4"))) == 3
    # a model that takes no picture is refused
    status, _, error = ran(capsys, "checkpoints=random:tiny", *keys)
    assert status == 2
    assert "random:tiny is of kind t2v" in error


def test_a_killed_run_loses_nothing(good, suite, tmp_path, capsys, monkeypatch):
    keys = [f"suite={suite}", f"measures={LIGHT}", f"out={tmp_path}", f"videos={good}"]
    ran(capsys, *keys)
    whole = (tmp_path / "scores.jsonl").read_text("utf-8")
    lines = whole.splitlines()
    (tmp_path / "scores.jsonl").write_text("\n".join(lines[:20]) + "\n" + lines[20][:15], "utf-8")
    assert ran(capsys, *keys)[0] == 0
    assert sorted((tmp_path / "scores.jsonl").read_text("utf-8").splitlines()) == sorted(lines)


# --- folders -------------------------------------------------------------------------------------


def test_vbenchs_names_are_read(good, scenes, suite, tmp_path, capsys):
    named = folder(tmp_path / "named", scenes, named=lambda text, seed: f"{text}-{seed}")
    out = tmp_path / "out"
    keys = [f"suite={suite}", "measures=sharpness", f"out={out}"]
    assert ran(capsys, f"videos={good},{named}", *keys)[0] == 0
    assert told(out)["comparisons"][0]["measures"]["sharpness"]["delta"] == 0


def test_results_are_written_in_vbenchs_form_too(good, suite, tmp_path, capsys):
    measures = "measures=temporal_flickering,sharpness"
    ran(capsys, f"videos={good}", f"suite={suite}", measures, f"out={tmp_path}")
    (path,) = tmp_path.glob("vbench-*.json")
    found = json.loads(path.read_text("utf-8"))
    assert list(found) == ["temporal_flickering"]  # sharpness is none of its dimensions
    mean, rows = found["temporal_flickering"]
    assert mean == pytest.approx(np.mean([row["video_results"] for row in rows]))
    assert {Path(row["video_path"]).parent for row in rows} == {good}


def test_tensorboard_has_the_means_and_a_picture(good, suite, tmp_path, capsys):
    keys = [f"suite={suite}", "measures=sharpness", f"out={tmp_path}", f"videos={good}"]
    for _ in range(2):  # nothing stands there twice
        ran(capsys, *keys)
    (place,) = (tmp_path / "tensorboard").iterdir()
    events = EventAccumulator(str(place))
    events.Reload()
    (scalar,) = events.Scalars("eval/sharpness")
    mean = told(tmp_path)["contenders"][0]["means"]["sharpness"]
    assert scalar.value == pytest.approx(mean, rel=1e-6)
    (image,) = events.Images("eval/largest losses first")
    assert (image.height, image.width) == (64, 8 * 64)


def test_what_can_not_be_read_is_counted_and_named(good, scenes, suite, tmp_path, capsys):
    other = folder(tmp_path / "other", scenes)
    (other / "0001-0.mp4").write_bytes(b"no video")
    (other / "0002-0.mp4").unlink()
    (other / "holiday.mp4").write_bytes(b"")
    out = tmp_path / "out"
    keys = [f"suite={suite}", "measures=sharpness", f"out={out}"]
    status, said, error = ran(capsys, f"videos={good},{other}", *keys)
    assert status == 0, error
    one = told(out)["contenders"][1]
    assert len(one["broken"]) == 1
    assert one["broken"][0].startswith("0001-0.mp4")
    assert any("holiday.mp4" in note for note in one["odd"])
    assert any("1 of" in note for note in one["odd"])
    assert "3 notes" in said
    assert told(out)["comparisons"][0]["measures"]["sharpness"]["delta"] == 0


def test_names_are_as_short_as_they_can_be_told_apart():
    assert labels(["runs/tiny/a", "runs/tiny/b"]) == ["a", "b"]
    assert labels(["runs/tiny/a", "runs/480p/a"]) == ["tiny/a", "480p/a"]
    assert labels(["runs/tiny/a", "runs/tiny/a", "x/b"]) == ["a", "a (2)", "b"]
    assert labels(["a", "b/a"]) == ["a", "b/a"]
    assert labels([]) == []


# --- the page ------------------------------------------------------------------------------------


def test_the_page_needs_no_network_and_runs_no_prompt(scenes, tmp_path, capsys):
    nasty = '<script>alert("x")</script> & 一只猫'
    (tmp_path / "suite.txt").write_text(nasty + "\nb\n", "utf-8")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for number in range(2):
            encode(scenes[number].frames, tmp_path / name / f"000{number}-0.mp4")
    places = f"videos={tmp_path / 'one'},{tmp_path / 'two'}"
    keys = [f"suite={tmp_path / 'suite.txt'}", "seeds=1", f"out={tmp_path / 'out'}"]
    status, _, error = ran(capsys, places, *keys)
    assert status == 0, error
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "<script>alert" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert page.count("data:video/mp4;base64,") == 4
    assert "no difference found" in page
    assert told(tmp_path / "out")["prompts"][0]["values"]["follows_color"] == [[None], [None]]


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ((), r"nothing to do: checkpoints=\[a,b\]"),
        (("videos=x", "seeds=0"), "seeds=0, prompts=None: at least 1"),
        (("videos=nowhere",), "videos=nowhere: no such folder"),
        (
            ("videos=x", "suite=nothing"),
            "suite=nothing: can't be read .* of ours there is broad, broad-zh, rendered",
        ),
        (("videos=x", "measures=sharpnes"), "no such measure; the nearest is sharpness"),
        (
            ("videos=x", "measures=aesthetic_quality"),
            "wants backbones.clip_l14= and backbones.aesthetic=, and nothing stands in for it",
        ),
        (
            ("videos=x", "measures=subject_consistency", "backbones.dino=nowhere/at-all"),
            "backbones: nowhere/at-all: no DINO",
        ),
        (("checkpoints=nowhere",), "nowhere"),
    ],
)
def test_errors_are_one_line(keys, says, tmp_path, capsys):
    status, _, error = ran(capsys, *keys, f"out={tmp_path / 'out'}")
    assert status == 2
    assert len(error.strip().splitlines()) == 1
    assert re.search(says, error)


def test_a_place_that_can_not_be_written_is_refused(tmp_path, capsys):
    (tmp_path / "file").touch()
    status, _, error = ran(capsys, "videos=x", f"out={tmp_path / 'file'}")
    assert status == 2
    assert "can't be written" in error


def test_a_folder_of_other_videos_is_refused(scenes, suite, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    encode(scenes[0].frames, tmp_path / "mine" / "holiday.mp4")
    status, _, error = ran(
        capsys, f"videos={tmp_path / 'mine'}", f"suite={suite}", f"out={tmp_path}"
    )
    assert status == 2
    assert "no video of suite=" in error


# --- the self-test -------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_fault_moves_its_own_measure(tmp_path, capsys):
    status, said, _ = ran(capsys, "self_test=true", f"out={tmp_path}")
    assert status == 0
    assert "all faults noticed" in said
    found = told(tmp_path)["self_test"]
    assert {row["fault"] for row in found["faults"]} == set(FAULTS)
    for row in found["faults"]:
        assert np.sign(row["moved"][row["measure"]]["delta"]) == (-1 if row["falls"] else 1)
        assert abs(row["moved"][row["measure"]]["delta"]) > row["floor"]


def test_a_measure_that_chance_moves_as_far_does_not_notice(scenes):
    """Brightness, which every take has its own of, and something that nothing but blur moves."""
    takes = [[Video(one.frames, 16) for one in some] for some in (scenes[:6], scenes[6:12])]
    blurred = [Video(FAULTS["blur"].plant(one.frames), 16) for one in takes[0]]
    told = {}
    for name, of in (("bright", lambda x: x.luma.mean() - 9), ("sharp", pixels.sharpness)):
        measure = Measure(name, of, "", True, "")
        before, after = (np.array([of(video) for video in some]) for some in (takes[0], blurred))
        # as if blur darkened every video by 9 grey levels too
        after = after - 9 * (name == "bright")
        told[name] = selftest.moves(before, after), selftest.floor(measure, *takes)
    assert not selftest.noticed(told["bright"][0], True, told["bright"][1])
    assert selftest.noticed(told["bright"][0], True, 1.0)
    assert selftest.noticed(told["sharp"][0], True, told["sharp"][1])
    assert not selftest.noticed(told["sharp"][0], False, told["sharp"][1])
