"""Numbers go with what was asked, one bad video or line costs itself, and identities are honest."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from curation.synthetic import encode, shapes
from eval import ballot, contenders, memory, report, selftest
from eval.contenders import Contender
from eval.measures.measure import Measure
from eval.scoring import Known, Table, score
from eval.stats import Draws, Scores
from eval.suite import Prompt, Suite, read_suite
from recipes.evaluation import Evaluation
from recipes.keys import UsageError
from recipes.load import load
from recipes.schema import Synthetic


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("films")
    paths = [folder / f"{number:04d}-0.mp4" for number in range(3)]
    for number, path in enumerate(paths):
        encode(shapes(number, Synthetic(size=64, frames=5, seed=2)).frames, path)
    return paths


def measured(films, suite, measures, known, count: int = 1) -> Table:
    videos = {(i, 0): films[i] for i in range(len(suite.prompts))}
    return score([Contender("one", "one", videos, {})] * count, suite, measures, 1, known)[0]


ASKED = Measure("asked", lambda video: float(len(video.asked.get("asked", ""))), "", True, "")


def test_what_is_asked_is_part_of_what_is_known(films, tmp_path):
    for words in ("red", "yellow", "red"):
        suite = Suite.of("x", [Prompt("a wall", (), {"asked": words})])
        table = measured(films, suite, [ASKED], Known(tmp_path / "scores.jsonl"))
        assert table.scores["asked"].mean == len(words)
    assert len((tmp_path / "scores.jsonl").read_text("utf-8").splitlines()) == 2


def test_a_damaged_line_is_measured_again_and_odd_signs_are_none(films, tmp_path):
    path = tmp_path / "scores.jsonl"
    suite = Suite.of("x", [Prompt("a\u2028wall"), Prompt("墙\u0085")])
    measured(films, suite, [ASKED], Known(path))
    lines = path.read_bytes().split(b"\n")
    assert len(lines) == 3
    path.write_bytes(lines[0][:20] + b"\n" + lines[1] + b"\n")
    assert len(Known(path).rows) == 1
    measured(films, suite, [ASKED], Known(path))
    assert len(Known(path).rows) == 2


def test_a_measure_that_fails_on_one_video_costs_that_number(films, tmp_path):
    def fussy(video) -> float:
        if video.prompt == "b":
            raise ValueError("feature maps are too small\nby far")
        return 1.0

    suite = Suite.of("x", [Prompt("a"), Prompt("b"), Prompt("c")])
    measures = [ASKED, Measure("fussy", fussy, "", True, "")]
    table = measured(films, suite, measures, Known(tmp_path / "scores.jsonl"))
    assert np.isnan(table.scores["fussy"].values[:, 0]).tolist() == [False, True, False]
    assert np.isfinite(table.scores["asked"].values).all()
    assert table.broken == ["0001-0.mp4: fussy: feature maps are too small by far"]
    assert len(Known(tmp_path / "scores.jsonl").rows) == 5  # the failure is no number


def test_an_unwritable_file_of_scores_is_told(films, tmp_path):
    known = Known(tmp_path / "scores.jsonl")
    known.path = Path("/dev/full")
    with pytest.raises(UsageError, match=r"/dev/full: can't be written \(No space left"):
        measured(films, Suite.of("x", [Prompt("a")]), [ASKED], known)


def test_prompts_are_for_dimensions_whatever_is_left_of_the_suite(films, tmp_path):
    rows = [
        {"prompt": "a", "dimensions": ["subject_consistency"]},
        {"prompt": "b"},
        {"prompt": "c", "dimensions": ["asked"]},
    ]
    path = tmp_path / "suite.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\n".join(map(json.dumps, rows)).encode())  # with a BOM
    whole, part = read_suite(str(path)), read_suite(str(path), 2)
    assert whole.dimensions == part.dimensions == {"asked", "subject_consistency"}
    table = measured(films, part, [ASKED], Known(tmp_path / "scores.jsonl"))
    # one of another dimension is not for it; one that names none is for all
    assert np.isfinite(table.scores["asked"].values[:, 0]).tolist() == [False, True]
    rows[0]["dimensions"] = "asked"
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    with pytest.raises(UsageError, match="line 1: wants an object"):
        read_suite(str(path))


def test_one_prompt_with_two_pictures_is_refused(tmp_path):
    for name in ("x.jpg", "y.jpg"):
        (tmp_path / name).touch()
    rows = [
        {"prompt_en": "a cat", "dimension": ["i2v_subject"], "image_name": name}
        for name in ("x.jpg", "y.jpg")
    ]
    (tmp_path / "i2v.json").write_text(json.dumps(rows))
    with pytest.raises(UsageError, match="'a cat' has two pictures"):
        read_suite(str(tmp_path / "i2v.json"))


# --- contenders ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("0000.mp4", "0002.mp4"), {(0, 0), (2, 0)}),
        (("0000-42.mp4", "0000-43.mp4", "a b-c-7.mp4"), {(0, 0), (0, 1), (1, 0)}),
        (("a b-c.mp4", "no-²3.mp4", "0001-0.mp4"), {(1, 0)}),
    ],
)
def test_names_tell_prompt_and_seed(names, found, films, tmp_path):
    for name in names:
        (tmp_path / name).write_bytes(films[0].read_bytes())
    suite = Suite.of("x", [Prompt("a"), Prompt("a b-c"), Prompt("d")])
    one = contenders.found(suite, str(tmp_path), 2)
    assert set(one.videos) == found


def test_another_seed_of_the_sampler_is_no_other_prompt(films, tmp_path):
    suite = Suite.of("x", [Prompt("a"), Prompt("b")])
    for i, text in enumerate("ab"):
        for j in range(2):
            path = tmp_path / f"{i}{j}.mp4"
            path.write_bytes(films[0].read_bytes())
            told = {"prompt": text, "seed": 42 + 100_000 * i + j}
            path.with_suffix(".json").write_text(json.dumps(told))
    one = contenders.found(suite, str(tmp_path), 2)
    assert {key: path.stem for key, path in one.videos.items()} == {
        (i, j): f"{i}{j}" for i in range(2) for j in range(2)
    }


def test_an_identity_is_of_the_bytes(films, tmp_path):
    suite, identities = Suite.of("x", [Prompt("a")]), []
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        data = bytearray(films[0].read_bytes())
        data[-1] ^= name == "two"
        (tmp_path / name / "0000-0.mp4").write_bytes(data)
        identities.append(contenders.found(suite, str(tmp_path / name), 1).identity)
    assert identities[0] == identities[2] != identities[1]


def test_a_checkpoint_of_pictures_is_refused_before_it_is_sampled(tmp_path):
    config = load(Evaluation, ["frames=1", f"out={tmp_path}", "device=cpu"])
    with pytest.raises(UsageError, match="random:tiny: makes pictures"):
        contenders.sampled(config, Suite.of("x", [Prompt("a")]), "random:tiny")


# --- the report ----------------------------------------------------------------------------------


def test_two_spellings_of_one_path_get_two_labels():
    assert report.labels(["runs/a", "runs/a/"]) == ["a", "a (2)"]


def test_a_fall_is_the_mean_over_what_was_measured():
    prompts = tuple("abcd")
    rising, falling = np.arange(4.0)[:, None], np.arange(4.0)[:, None].copy()
    falling[2] -= np.std(rising)
    some = [Measure("own", len, "", True, "")]
    some += [Measure(f"neutral {k}", len, "", None, "") for k in range(3)]
    tables = [
        Table({one.name: Scores(prompts, values) for one in some}) for values in (rising, falling)
    ]
    first = report.by_prompt(Suite.of("x", [Prompt(one) for one in prompts]), some, tables)[0]
    assert (first["prompt"], first["fall"]) == ("c", pytest.approx(1.0))


def test_no_interval_is_null_and_half_a_measure_is_missing():
    measures = [Measure(name, len, "", True, "") for name in report.totals.TOTALS["quality"]]
    good = Table({one.name: Scores(("p",), np.ones((1, 2))) for one in measures})
    found = report.vbenchs("a", "b", measures, good, good, Draws(["p"], 200))
    json.dumps(found, allow_nan=False)
    assert found["quality"]["delta"] == {"value": 0.0, "low": None, "high": None}
    half = Table({name: Scores(("p",), np.full((1, 2), np.nan)) for name in good.scores})
    found = report.vbenchs("a", "b", measures, good, half, Draws(["p"], 200))
    assert found["quality"] == {"missing": list(report.totals.TOTALS["quality"])}


def test_votes_of_another_suite_are_other_votes(tmp_path):
    row = {"video": [0, 0], "prompt": "a cat", "left": "x", "right": "y", "choice": "left"}
    old = {name: value for name, value in row.items() if name != "prompt"}
    lines = [json.dumps(row), json.dumps(row | {"prompt": "a dog"}), json.dumps(old)]
    (tmp_path / ballot.FILE).write_text("\n".join(lines) + "\n", "utf-8")
    names = {"x": "one", "y": "two"}
    assert len(ballot.votes_of(tmp_path, names, ["a cat"])) == 1
    assert len(ballot.votes_of(tmp_path, names, ["a cow"])) == 0


def test_a_self_test_of_other_backbones_is_none(tmp_path):
    rows = [{"fault": "blur", "measure": "sharpness", "noticed": False}]
    told = {"videos": 6, "drawings": 24, "of": {"sharpness": ["net", "abc"]}, "faults": rows}
    (tmp_path / selftest.FILE).write_text(json.dumps(told))
    same = Measure("sharpness", len, "", True, "", ("net", "abc"))
    assert selftest.known([same], tmp_path)["faults"] == rows
    other = Measure("sharpness", len, "", True, "", ("net", "def"))
    assert selftest.known([other], tmp_path) is None
    assert selftest.known([Measure("noise", len, "", True, "")], tmp_path)["faults"] == []


def test_memory_that_ran_out_stops_the_run_and_is_told(films, tmp_path):
    def hungry(video) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    suite = Suite.of("x", [Prompt("a"), Prompt("b")])
    with pytest.raises(UsageError, match="hungry: memory ran out"):
        measured(films, suite, [Measure("hungry", hungry, "", True, "")], Known(tmp_path / "s"))
    written = pytest.raises(UsageError, match=r"out=x: can't be written \(No space left")
    with written, memory.told("x"):
        raise OSError(28, "No space left on device")
