"""README's commands exist, parse and run; its queries have answers; its links lead somewhere."""

import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import av
import duckdb
import pytest

from curation import document
from curation.schema import tables
from eval import accelerate, sample
from recipes.acceleration import Acceleration
from recipes.evaluation import Evaluation
from recipes.export import Export
from recipes.load import RECIPES, load
from recipes.reconstruction import Reconstruction
from recipes.sample import Sample
from recipes.schema import Curation
from recipes.training import Fit, Latents
from tests import pipelines, zoo
from tests.running import ROOT, curate, curated
from training import export, fit

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[list[str]]:
    """Every shell command of README, one list of words each."""
    lines = [line for block in blocks("bash") for line in block.strip().splitlines()]
    return [shlex.split(part) for line in lines for part in line.split("&&")]


def runs(script: str = "curation/run.py") -> list[list[str]]:
    """The arguments of every run of a script that README shows."""
    return [words[2:] for words in commands() if words[1:2] == [script]]


def test_readme_shows_the_commands_that_this_file_knows_how_to_check():
    kinds = {
        " ".join(Path(word).name if "/" in word else word for word in c[:3]) for c in commands()
    }
    known = (
        "python3 -m venv",
        "pip install",
        "python run.py",
        "python sample.py",
        "python export.py",
        "python fit.py",
        "python latents.py",
        "python -m pytest",
        "python curation.py",
        "python model.py",
        "python reconstruct.py",
        "python accelerate.py",
    )
    assert len(runs()) >= 5
    assert all(any(kind.startswith(name) for name in known) for kind in kinds), kinds


def test_every_script_that_readme_runs_or_names_exists():
    scripts = {word for words in commands() for word in words if word.endswith(".py")}
    scripts |= set(re.findall(r"`(tests/\S+\.py)`", README))
    assert len(scripts) >= 4
    assert [script for script in scripts if not (ROOT / script).exists()] == []


@pytest.mark.parametrize("arguments", runs(), ids=" ".join)
def test_each_command_parses(arguments):
    flags = [word for word in arguments if word.startswith("--")]
    assert set(flags) <= {"--help", "--show", "--debug"}
    load(Curation, [word for word in arguments if word not in flags])


def first() -> list[str]:
    """The arguments of README's first command."""
    (words,) = [words for words in runs() if words == ["profile=tiny"]]
    return words


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """README's first command on a second of a bundled sample, into a folder of the test's own."""
    second, out = tmp_path_factory.mktemp("second"), tmp_path_factory.mktemp("made")
    samples = ROOT / "data" / "samples"
    zoo.ffmpeg("-i", samples / "bunny.mp4", "-t", "1", "-c", "copy", second / "bunny.mp4")
    for name in ("bunny.txt", "bunny.zh.txt"):
        shutil.copy(samples / name, second)
    done = curate(*first(), f"source={second}", f"out={out}")
    assert done.returncode == 0, done.stderr
    assert "report.html" in done.stdout
    return out


@pytest.mark.slow
def test_the_first_command_prints_what_readme_shows(tmp_path):
    done = curate(*first(), f"out={tmp_path}")
    assert done.returncode == 0, done.stderr
    (shown,) = re.findall(r"```\n(Curated\n.*?)```", README, flags=re.DOTALL)

    def told(text: str) -> list[str]:
        """Without the time that it took; where things lie, as README's command has it."""
        text = text.replace(str(tmp_path), "data/curated")
        return [line.rstrip() for line in text.splitlines() if not line.startswith(" took")]

    assert told(done.stdout) == told(shown)


@pytest.mark.parametrize("arguments", [r for r in runs() if r != first()], ids=" ".join)
def test_each_command_runs_end_to_end_at_its_smallest_size(arguments, made, tmp_path, capsys):
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    zoo.GOOD["plain.mp4"](videos / "a video.mp4")
    if not any(word.startswith("source=") for word in arguments):
        shutil.copytree(made, out)  # the command goes on with what the first one made
    small = {"source=~/videos": f"source={videos}", "synthetic.count=4": "synthetic.count=1"}
    small["synthetic.count=12000"] = "synthetic.count=2"
    words = [small.get(word, word) for word in arguments if not word.startswith("out=")]
    assert curated(*words, f"out={out}") == 0
    assert capsys.readouterr().out
    if "plan=true" in words:
        assert not out.exists()


@pytest.mark.parametrize("arguments", runs("eval/run.py"), ids=" ".join)
def test_each_evaluation_parses(arguments):
    load(Evaluation, arguments)


def test_the_commands_over_one_model_parse_and_run(tmp_path, capsys):
    (arguments,) = runs("eval/reconstruct.py")
    load(Reconstruction, arguments)
    trained, drawn = (load(Acceleration, some) for some in runs("eval/accelerate.py"))
    assert len(trained.variants) == 5
    accelerate.accelerate(replace(drawn, out=str(tmp_path)))
    assert "two seeds of one prompt" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", runs("eval/sample.py"), ids=" ".join)
def test_each_sample_is_made(arguments, tmp_path, capsys):
    (out,) = [word for word in arguments if word.startswith("out=")]
    path = tmp_path / out.removeprefix("out=")
    words = [f"out={path}" if word == out else word for word in arguments]
    words = [word.replace("=data/", f"={ROOT}/data/") for word in words]
    assert sample.sample(load(Sample, words)) == 0
    with av.open(str(path)) as container:
        assert sum(1 for _ in container.decode(video=0)) >= 9
    assert path.with_suffix(".json").is_file()
    told = re.sub(r"took +\S+ s", "took    1.6 s", capsys.readouterr().out)
    shown = re.findall(r"```\n(Sampled\n.*?)```", README, flags=re.DOTALL)
    if path.name in shown[0]:
        assert told.replace(f"{tmp_path}/", "") == shown[0]


def test_the_export_command_runs_on_a_small_official_folder(tmp_path):
    (arguments,) = runs("training/export.py")
    source = pipelines.official(pipelines.text_to_video(tmp_path), tmp_path / "source")
    words = [
        {"source": f"source={source}", "target": f"target={tmp_path / 'out'}"}.get(
            word.partition("=")[0], word
        )
        for word in arguments
    ]
    export.export(load(Export, words))
    assert (tmp_path / "out" / "model_index.json").is_file()


@pytest.mark.parametrize("arguments", runs("training/fit.py"), ids=" ".join)
def test_each_training_command_parses(arguments):
    assert load(Fit, arguments).recipe


@pytest.mark.parametrize("arguments", runs("training/latents.py"), ids=" ".join)
def test_the_latents_command_parses(arguments):
    assert load(Latents, arguments).cache.out


def test_the_plan_is_what_readme_shows(capsys):
    (arguments,) = [words for words in runs("training/fit.py") if "plan=true" in words]
    fit.fit(load(Fit, arguments))
    told = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    (shown,) = re.findall(r"```\n(Plan: .*?)```", README, flags=re.DOTALL)
    wanted = [line for line in shown.splitlines() if line.strip() != "…"]
    assert wanted == [line for line in told if line in wanted]


def test_every_recipe_is_named():
    for path in RECIPES.glob("*.yaml"):
        assert f"`{path.stem}`" in README or path.stem.startswith("tiny-vae-")


@pytest.mark.parametrize("sql", blocks("sql"), ids=lambda sql: sql.splitlines()[0])
def test_each_query_has_an_answer(sql, made):
    with duckdb.connect(str(made / "catalog.duckdb"), read_only=True) as con:
        assert con.execute(sql).fetchall()


def test_readme_and_data_readme_name_every_table():
    for name in tables():
        assert f"`{name}`" in README
        assert name in (ROOT / "data" / "README.md").read_text(encoding="utf-8")


def test_the_generated_parts_of_data_readme_are_up_to_date():
    text = document.README.read_text(encoding="utf-8")
    assert text == document.written(text), "run python -m curation.document"
    for name, table in tables().items():
        assert f"`{name}`" in text
        assert [column for column in table.columns if f"| `{column}`" not in text] in (
            [],
            ["versions"],
            ["clip_id", "versions"],
        )


def test_every_link_leads_to_a_file():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(links) > 6
    assert [link for link in links if not (ROOT / link).exists()] == []
