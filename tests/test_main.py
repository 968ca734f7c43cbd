"""What every entry point shares: exit statuses, one-line errors, `--help`, `--show`, `--debug`."""

import dataclasses
import subprocess
import sys
from operator import attrgetter
from pathlib import Path

import yaml

from recipes.keys import keys
from recipes.load import load, main
from recipes.schema import Curation
from tests.test_load import PROMPT, Fit, write


def run(argv: list[str], function=lambda config: 0, schema: type = Fit) -> int:
    return main(schema, function, argv)


def test_the_function_gets_the_configuration_and_gives_the_status():
    seen = []
    assert run(["steps=3"], lambda config: seen.append(config)) == 0
    assert seen == [Fit(steps=3)]
    assert run([], lambda config: 1) == 1


def test_a_users_mistake_is_one_line_on_stderr_and_status_2(capsys):
    assert run(["stesp=3"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "the nearest is steps" in err


def test_a_failure_is_one_line_and_status_1_and_a_traceback_only_on_request(capsys):
    def fail(config):
        raise OSError("no\nspace")

    assert run([], fail) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "OSError: no space" in err
    assert run(["--debug"], fail) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "in fail" in err


def test_ctrl_c_is_status_130(capsys):
    def interrupt(config):
        raise KeyboardInterrupt

    assert run([], interrupt) == 130
    assert capsys.readouterr().err.endswith("interrupted\n")


def test_help_lists_every_key_with_default_type_meaning_and_choices(capsys):
    assert run(["--help"], schema=Curation) == 0
    page = " ".join(capsys.readouterr().out.split())
    config = load(Curation, [])
    for one in keys(Curation).values():
        value = attrgetter(one.path)(config)
        written = {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))
        if isinstance(value, list):
            written = f"[{','.join(value)}]"
        lines = [f"{one.path}={written}"]
        if isinstance(value, dict):
            lines = [f"{one.path}.{name}={share}" for name, share in value.items()]
        choices = f": {', '.join(one.choices)}" if one.choices else ""
        assert f" {' '.join(lines)} {one.help} ({one.words}{choices})" in page
        assert one.help


def test_help_shows_what_the_arguments_compose_to(capsys):
    assert run(["-h", "steps=77"]) == 0
    assert "steps=77\n      how many (a whole number)" in capsys.readouterr().out
    assert run(["--help", "stesp=77"]) == 0
    out = capsys.readouterr().out
    assert "steps=10\n" in out
    assert "optimizer: How the weights move.\n" in out
    assert "optimizer.name=adamw\n      which one (text: adamw, muon)" in out


def test_show_prints_yaml_from_which_the_same_configuration_loads(tmp_path, capsys):
    argv = [f"prompt={PROMPT}", "names=yes,480p,~", "seeds=3", "mix.image=1e-9", "sizes.x=1"]
    assert run(["--show", *argv, "negative=no"]) == 0
    shown = write(tmp_path / "shown.yaml", capsys.readouterr().out)
    expected = load(Fit, [*argv, "negative=no"])
    assert yaml.safe_load(shown.read_text(encoding="utf-8"))["prompt"] == PROMPT
    again = load(Fit, [f"recipe={shown}"])
    assert dataclasses.replace(again, recipe=None) == expected


ENTRY = "import sys\nfrom recipes.load import main\nfrom recipes.schema import Curation\n"


def entry_point(tmp_path: Path, body: str, shell: str) -> subprocess.CompletedProcess:
    script = write(tmp_path / "entry.py", ENTRY + body + "\nsys.exit(main(Curation, work))\n")
    command = f"set -o pipefail; '{sys.executable}' '{script}' {shell}"
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )


def test_a_reader_that_leaves_is_no_error(tmp_path):
    body = "def work(config):\n    while True:\n        print('x' * 9999)"
    done = entry_point(tmp_path, body, "| head -1")
    assert done.returncode == 141
    assert done.stderr == ""


def test_a_broken_pipe_of_another_kind_is_a_failure(tmp_path):
    body = "def work(config):\n    raise BrokenPipeError('a worker left')"
    done = entry_point(tmp_path, body, "")
    assert done.returncode == 1
    assert "BrokenPipeError: a worker left" in done.stderr


def test_chinese_arguments_come_through_in_any_locale(tmp_path):
    body = "def work(config):\n    print(ascii(config.source))"
    done = entry_point(tmp_path, body, "'source=红,色'")
    assert done.stdout == "'\\u7ea2,\\u8272'\n"
