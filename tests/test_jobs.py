"""Which videos a command asks for: their prompts, seeds and names."""

import json
from pathlib import Path

import pytest

from eval.jobs import jobs
from recipes.keys import UsageError
from recipes.load import load
from recipes.sample import Sample


def asked(*keys: str) -> list:
    return jobs(load(Sample, list(keys)))


def file(path: Path, *lines: object) -> str:
    texts = [one if isinstance(one, str) else json.dumps(one) for one in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return f"prompts={path}"


def refused(*keys: str) -> str:
    with pytest.raises(UsageError) as caught:
        asked(*keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_one_prompt_is_one_video_under_the_name_that_is_given():
    (job,) = asked("prompt=a cat's, 红", "seed=7", "out=圆.mp4")
    assert (job.config.prompt, job.seed, job.out) == ("a cat's, 红", 7, Path("圆.mp4"))
    (job,) = asked("prompt=", "out=folder.v1")
    assert (job.config.prompt, job.out) == ("", Path("folder.v1/0000"))


def test_a_file_of_prompts_keeps_every_character_and_passes_over_empty_lines(tmp_path):
    lines = ["a cat, it's red", "", "# 红色 {x}: ${y}", "  null  ", '"quoted"']
    found = asked(file(tmp_path / "提示 1.txt", *lines), "seed=5")
    wanted = ["a cat, it's red", "# 红色 {x}: ${y}", "null", '"quoted"']
    assert [job.config.prompt for job in found] == wanted
    assert [job.seed for job in found] == [5, 100_005, 200_005, 300_005]
    assert [job.out.name for job in found] == ["0000", "0001", "0002", "0003"]


def test_seeds_stay_when_more_videos_or_prompts_are_asked_for(tmp_path):
    def seeds(count: int, *prompts: str) -> dict[tuple[str, str], int]:
        found = asked(file(tmp_path / "a.txt", *prompts), f"count={count}", "seed=3")
        return {(job.config.prompt, job.out.name[4:] or "-0"): job.seed for job in found}

    few, many = seeds(1, "a", "b"), seeds(3, "a", "b", "c")
    assert few.items() <= many.items()
    assert many["b", "-2"] == 3 + 100_000 + 2
    assert len(set(many.values())) == 9


def test_a_line_of_json_sets_keys_of_its_own(tmp_path):
    rows = [
        {"prompt": "a", "name": "first 一", "seed": 41, "size": "32x32", "guidance": 1, "count": 2},
        {"prompt": "b", "task": "text-to-image", "negative": "null", "steps": None},
        {"prompt": "c", "image": "null"},
    ]
    found = asked(file(tmp_path / "a.jsonl", *rows), "steps=9", "out=here", "negative=x")
    assert [str(job.out) for job in found] == [
        *("here/first 一-0", "here/first 一-1", "here/0001", "here/0002")
    ]
    assert [job.seed for job in found] == [41, 42, 100_000, 200_000]
    first, _, second, third = [job.config for job in found]
    assert (first.size, first.guidance, first.steps, first.negative) == ("32x32", 1.0, 9, "x")
    assert (second.task, second.negative, second.steps) == ("text-to-image", "null", None)
    assert third.image == "null"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("no json", "line 2: no JSON"),
        ('["a"]', "wants an object"),
        ({"seed": 1}, "wants an object"),
        ({"prompt": "a", "step": 1}, "unknown key step; the nearest is steps"),
        ({"prompt": "a", "steps": "many"}, "line 2: steps=many: wants a whole number"),
        ({"prompt": "a", "task": "i2v"}, "is not one of text-to-video"),
        ({"prompt": "a", "image": 3}, "image wants text"),
        ({"prompt": "a", "name": "../b"}, "no plain file name"),
        ({"prompt": "a", "name": ""}, "no plain file name"),
        ({"prompt": "a", "name": "ONE"}, "two videos would be called"),
        ({"prompt": "a", "count": 0}, "at least 1"),
    ],
    ids=str,
)
def test_a_wrong_line_is_told_with_its_number(tmp_path, row, says):
    path = tmp_path / "a.jsonl"
    assert says in refused(file(path, {"prompt": "x", "name": "one"}, row))


def test_what_cannot_be_asked_for_is_told_in_one_line(tmp_path):
    assert "there is nothing to sample" in refused()
    text = file(tmp_path / "a.txt", "a", "b")
    assert "both are given" in refused("prompt=a", text)
    assert "2 videos need a folder" in refused(text, "out=a.mp4")
    assert "2 videos need a folder" in refused("prompt=a", "count=2", "out=a.png")
    assert "holds no prompt" in refused(file(tmp_path / "b.txt", ""))
    assert "none.txt" in refused(f"prompts={tmp_path / 'none.txt'}")
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe\x00")
    assert "c.txt" in refused(f"prompts={tmp_path / 'c.txt'}")
    assert "count=0" in refused("prompt=a", "count=0")
