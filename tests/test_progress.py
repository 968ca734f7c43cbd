"""The bar and its lines, by a clock that the test turns."""

import io
import re
from itertools import pairwise

import pytest
from rich.console import Console

from tests.test_board import recipe
from tests.test_meters import Clock, Slow
from tests.tiny_fit import fit
from training.board import Board
from training.meters import Meters
from training.progress import EVERY, Bar, duration

LINE = re.compile(
    r"step (?P<step>\d+)/(?P<steps>\d+)  loss (?P<loss>\d+\.\d{4})  (?P<pace>.+) a step  "
    r"data (?P<wait>\d+) %  (?P<left>.+) left"
)


@pytest.fixture
def trained(tmp_path):
    """What a run of 40 steps of 3 s, validated for 50 s after every 20, says."""

    def train(terminal: bool) -> str:
        clock, out = Clock(), io.StringIO()
        board = Board(tmp_path)
        meters = Meters(board, clock=clock)
        console = Console(file=out, force_terminal=terminal, width=120, highlight=False)
        config = recipe()
        module = Slow(config)
        module.clock = clock
        fit(config, [board, meters, Bar(meters, console, clock)], module=module)
        return out.getvalue()

    return train


def test_off_a_terminal_a_line_comes_now_and_then_and_at_the_end(trained):
    first, *lines = trained(terminal=False).splitlines()
    assert re.fullmatch(r"curves: tensorboard --logdir \S+, then http://\S+/#custom_scalars", first)
    found = [LINE.fullmatch(line) for line in lines if "held-out" not in line]
    assert all(found)
    steps = [int(one["step"]) for one in found]
    assert steps[0] == 2  # the first step says nothing of the pace
    assert steps[-1] == 40
    gaps = [3 * (after - before) for before, after in pairwise(steps[:-1])]
    assert min(gaps) >= EVERY - 50 - 3
    assert len(steps) < 8


def test_time_left_counts_the_steps_at_their_pace_and_what_comes_beside(trained):
    found = {int(one["step"]): one for one in LINE.finditer(trained(terminal=False))}
    assert found[2]["pace"] == "3.00 s"
    assert found[2]["wait"] == "0"
    assert found[2]["left"] == duration(38 * 3.0)
    after = next(step for step in sorted(found) if 20 < step < 40)  # 50 s of validation are known
    assert found[after]["left"] == duration((40 - after) * (3 + 50 / (after - 1)))
    assert found[40]["left"] == "0 s"


def test_validations_are_told(trained):
    told = re.findall(r"step (\d+)  held-out loss \d+\.\d{4}  psnr \d+\.\d\d", trained(False))
    assert told == ["20", "40"]


def test_on_a_terminal_one_bar_is_drawn_over_and_over_and_removed(trained):
    text = trained(terminal=True)
    assert "training" in text
    assert "validating" in text
    assert "40/40" in text
    assert "s a step  data 0 %" in text
    assert text.endswith(("\x1b[?25h", "\x1b[2K", "\n"))  # the cursor is back, the line is clear


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (59.4, "59 s"),
        (59.7, "1 min 0 s"),
        (60.0, "1 min 0 s"),
        (245.0, "4 min 5 s"),
        (3599.9, "1 h 0 min"),
        (27000.0, "7 h 30 min"),
        (86399.0, "1 d 0 h"),
        (6 * 86400 + 7 * 3600.0, "6 d 7 h"),
    ],
)
def test_durations_read_as_people_write_them(seconds, text):
    assert duration(seconds) == text


def test_a_duration_of_two_digits_keeps_them_to_the_end():
    assert [duration(one, 2) for one in (59.7, 59.994, 59.996)] == [
        "59.70 s",
        "59.99 s",
        "1 min 0 s",
    ]
