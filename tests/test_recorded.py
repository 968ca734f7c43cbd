"""What runs recorded stands beside one another as it was at each checkpoint's step."""

from pathlib import Path

import numpy as np
import pytest

from eval import page, recorded
from eval.contenders import Contender
from eval.measures.measure import Measure
from eval.scoring import Table
from eval.stats import Scores

ROWS = [
    {
        "step": step,
        "loss": 1 / step,
        "timestep/0050": 9.0,
        "timestep/0050/64x64x9": 5 / step,
        "timestep/0950/64x64x9": 9 / step,
        "timestep/0950/一幅图": 7 / step,
    }
    for step in (100, 200, 300)
]
MEASURES = [Measure(name, len, "", True, "") for name in ("sharp", "smooth")]


def contender(name: str, step: int | None, run: str | None = "runs/a") -> Contender:
    about = {"step": step, "run": run and {"folder": run, "config": {}, "validation": ROWS}}
    return Contender(name, name, {(0, 0): Path(f"{name}.mp4")}, about)


def table(*means: float) -> Table:
    scores = zip(("sharp", "smooth"), means, strict=True)
    return Table({name: Scores(("p",), np.array([[mean]])) for name, mean in scores})


def test_losses_are_those_of_the_checkpoints_own_step():
    some = [contender("early", 250), contender("last", None), contender("folder", None, None)]
    found = recorded.levels([one.name for one in some], some)
    assert found["steps"] == {"early": 200, "last": 300}
    assert [(row["bucket"], row["timestep"]) for row in found["rows"]] == [
        ("64x64x9", 50),
        ("64x64x9", 950),
        ("一幅图", 950),
    ]
    assert found["rows"][1]["loss"] == {"early": 9 / 200, "last": 9 / 300}
    # a checkpoint from before the first validation has none
    assert recorded.levels(["new"], [contender("new", 50)]) == {}
    assert recorded.curves(["last"], some[1:2]) == {
        "last": [[row["step"], row["loss"]] for row in ROWS]
    }


def test_a_runs_checkpoints_make_a_curve_of_each_measure():
    some = [contender("b", 300), contender("a", 100), contender("other", 100, "runs/b")]
    tables = [table(0.9, np.nan), table(0.5, 0.1), table(0.2, 0.2)]
    (found,) = recorded.learning(some, MEASURES, tables)
    assert found == {"run": "runs/a", "measures": {"sharp": [[100, 0.5], [300, 0.9]]}}
    (line,) = page.sparks(found["measures"])
    assert line["points"] == "0.0,100.0 100.0,0.0"  # y runs down
    assert recorded.learning(some[1:], MEASURES, tables[1:]) == []


def test_the_radar_shows_shares_of_the_best():
    measures = {
        "sharp": {"higher_is_better": True},
        "noise": {"higher_is_better": False},
        "smooth": {"higher_is_better": True},
        "speed": {"higher_is_better": None},
        "clipped": {"higher_is_better": False},
    }
    means = [
        {"sharp": 4.0, "noise": 2.0, "smooth": 0.5, "speed": 1.0, "clipped": 0.0},
        {"sharp": 1.0, "noise": 1.0, "smooth": 0.5, "speed": 9.0, "clipped": 0.1},
    ]
    contenders = [{"name": name, "means": one} for name, one in zip("ab", means, strict=True)]
    found = page.radar({"measures": measures, "contenders": contenders})
    # what has no better side is not there, nor are shares of 0
    assert [one["name"] for one in found["spokes"]] == ["sharp", "noise", "smooth"]
    middle = np.array([found["width"], found["height"]]) / 2
    for line, wanted in zip(found["lines"], ([1, 0.5, 1], [0.25, 1, 1]), strict=True):
        corners = np.array([one.split(",") for one in line["points"].split()], float)
        assert np.hypot(*(corners - middle).T) / page.RIM == pytest.approx(wanted, abs=1e-2)
    assert page.radar({"measures": measures, "contenders": contenders[:1]}) is None
