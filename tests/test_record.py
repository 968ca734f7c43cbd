"""validation.jsonl: each step once, in order, whatever happened on the way."""

import json
import math

from training.record import Record


def test_lines_are_appended_with_their_step_first(tmp_path):
    record = Record(tmp_path / "validation.jsonl")
    record.add(10, {"loss": 0.5, "timestep/0050": 0.75})
    record.add(20, {"loss": 0.25})
    assert record.path.read_text() == (
        '{"step": 10, "loss": 0.5, "timestep/0050": 0.75}\n{"step": 20, "loss": 0.25}\n'
    )


def test_what_comes_after_the_step_resumed_from_is_forgotten(tmp_path):
    record = Record(tmp_path / "validation.jsonl")
    for step in (10, 20, 30):
        record.add(step, {"loss": step})
    record.cut(20)
    assert [row["step"] for row in record.read()] == [10, 20]
    record.cut(0)
    assert record.path.read_text() == ""


def test_a_step_that_comes_again_replaces_its_line(tmp_path):
    record = Record(tmp_path / "validation.jsonl")
    record.add(10, {"loss": 1.0})
    record.add(20, {"loss": 2.0})
    record.add(20, {"loss": 3.0})
    assert record.read() == [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 3.0}]


def test_a_line_cut_short_by_a_crash_is_no_line(tmp_path):
    record = Record(tmp_path / "validation.jsonl")
    record.add(10, {"loss": 1.0})
    with record.path.open("a") as file:
        file.write('{"step": 20, "lo')
    assert [row["step"] for row in record.read()] == [10]
    record.cut(10)
    record.add(20, {"loss": 2.0})
    assert [json.loads(line)["step"] for line in record.path.read_text().splitlines()] == [10, 20]


def test_every_line_is_json_where_a_measure_is_no_number(tmp_path):
    record = Record(tmp_path / "validation.jsonl")
    record.add(10, {"psnr": math.inf, "loss": math.nan})
    text = record.path.read_text()
    assert json.loads(text, parse_constant=None) == {"step": 10, "psnr": None, "loss": None}
    assert "NaN" not in text


def test_a_run_without_validations_has_none(tmp_path):
    record = Record(tmp_path / "validation.jsonl")
    record.cut(5)
    assert (record.read(), record.has(5)) == ([], False)
