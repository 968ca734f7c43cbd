"""The blind page: nothing tells whose a video is, votes are kept once, the report shows them."""

import json
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from curation.synthetic import encode, shapes
from eval import run, vote
from eval.ballot import CHOICES, Ballots, rows_of
from recipes.evaluation import Ballot, Evaluation
from recipes.keys import UsageError
from recipes.load import load
from recipes.schema import Synthetic
from tests.browser import Page

PROMPTS = ["a red circle moving left", "一个蓝色的正方形向上移动", "a green triangle moving down"]


@pytest.fixture
def out(tmp_path) -> Path:
    config = Synthetic(size=64, frames=5)
    for name in ("better", "worse"):
        (tmp_path / name).mkdir()
        for number in range(3):
            encode(
                shapes(number + 10 * (name == "worse"), config).frames,
                tmp_path / name / f"000{number}-0.mp4",
            )
    (tmp_path / "suite.txt").write_text("\n".join(PROMPTS), "utf-8")
    compared(tmp_path)
    return tmp_path / "out"


def compared(place: Path) -> dict:
    keys = [f"videos={place / 'better'},{place / 'worse'}", f"suite={place / 'suite.txt'}"]
    keys += ["seeds=1", "measures=sharpness", f"out={place / 'out'}"]
    run.evaluate(load(Evaluation, keys))
    return json.loads((place / "out" / "report.json").read_text("utf-8"))


@pytest.fixture
def url(out):
    with vote.server(load(Ballot, [f"report={out}", "port=0", "voter=王"])) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://localhost:{listening.server_port}"
        listening.shutdown()
        thread.join()


def asked(url: str, body: dict | None = None) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(url, data) as answer:
        return answer.read()


def test_a_vote_goes_from_the_page_to_the_report(out, url):
    assert b"Which video shows this better?" in asked(f"{url}/")
    known = {one["identity"]: one for one in told(out)["contenders"]}
    for _ in range(6):
        pair = json.loads(asked(f"{url}/pair"))
        assert pair["prompt"] in PROMPTS
        shown = {side: asked(f"{url}/video/{pair[side]}") for side in ("left", "right")}
        files = {
            Path(path).read_bytes(): one["name"]
            for one in known.values()
            for *_, path in one["videos"]
        }
        better = next(side for side, data in shown.items() if files[data] == "better")
        asked(f"{url}/vote", {"left": pair["left"], "right": pair["right"], "choice": better})
    rows = rows_of(out)
    assert len(rows) == 6
    assert {row["voter"] for row in rows} == {"王"}
    votes = compared(out.parent)["votes"]
    assert votes["count"] == 6
    assert votes["scores"]["better"]["value"] > 0.5 > votes["scores"]["worse"]["value"]
    assert "sharpness" in votes["weights"]
    assert "Blind votes" in (out / "report.html").read_text("utf-8")


def test_a_person_votes_in_a_browser(out, url, tmp_path):
    with Page(url, tmp_path / "browser") as page:
        page.until("document.getElementById('prompt').textContent")
        assert page.value("document.getElementById('prompt').textContent") in PROMPTS
        for side in ("left", "right"):  # both play
            page.until(f"document.getElementById('{side}').currentTime > 0")
        assert "better" not in page.value(
            "document.body.innerText.replace(/shows this better/, '')"
        )
        keys = [lambda: page.press("1"), lambda: page.press("0"), lambda: page.press("2")]
        keys += [
            lambda: page.click("[data-choice=left]"),
            lambda: page.click("[data-choice=right]"),
        ]
        for count, act in enumerate(keys, 1):
            act()
            page.until(f"document.getElementById('count').textContent.startsWith('{count} ')")
        page.press("x")  # no choice
        assert page.value("document.getElementById('error').textContent") == ""
        assert page.errors == []
    choices = [row["choice"] for row in rows_of(out)]
    assert choices == ["left", "same", "right", "left", "right"]


def told(out: Path) -> dict:
    return json.loads((out / "report.json").read_text("utf-8"))


def test_nothing_tells_whose_a_video_is(out, url):
    sides = set()
    for _ in range(12):
        raw = asked(f"{url}/pair")
        for one in told(out)["contenders"]:
            assert one["identity"].encode() not in raw
            assert b'"better"' not in raw
        pair = json.loads(raw)
        data = asked(f"{url}/video/{pair['left']}")
        sides.add(any(data == one.read_bytes() for one in (out.parent / "better").iterdir()))
    assert sides == {True, False}  # it is on the left sometimes


def test_every_pair_comes_before_one_comes_again(out):
    ballots = Ballots(out)
    seen = []
    for _ in range(6):
        pair = ballots.next()
        seen.append(pair.prompt)
        ballots.vote(pair.left, pair.right, "same")
    assert sorted(seen[:3]) == sorted(seen[3:]) == sorted(PROMPTS)
    again = Ballots(out)  # goes on where it stopped
    assert again.next().done == 6


def test_what_is_no_vote_is_refused_and_not_kept(out, url):
    pair, other = (json.loads(asked(f"{url}/pair")) for _ in range(2))
    good = {"left": pair["left"], "right": pair["right"], "choice": "left"}
    wrong = [
        good | {"choice": "both"},
        good | {"left": "x"},
        good | {"right": pair["left"]},
        {"left": pair["left"]},
        ["left"],
    ]
    for body in wrong:
        with pytest.raises(urllib.error.HTTPError, match="400"):
            asked(f"{url}/vote", body)
    assert rows_of(out) == []
    asked(f"{url}/vote", good)
    with pytest.raises(urllib.error.HTTPError, match="400"):
        asked(f"{url}/vote", good)  # a second click
    assert len(rows_of(out)) == 1
    for place in ("/video/x", "/report.json", "/../report.json", "/videos"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            asked(f"{url}{place}")
    assert other["left"] != pair["left"]


def test_a_line_that_was_cut_off_is_no_vote(out):
    ballots = Ballots(out)
    pair = ballots.next()
    ballots.vote(pair.left, pair.right, "left")
    with (out / "votes.jsonl").open("a") as file:
        file.write('{"video": [0')
    assert len(rows_of(out)) == 1
    assert set(CHOICES) == {"left", "right", "same"}


def test_without_a_report_it_says_which_command_writes_one(tmp_path):
    with pytest.raises(UsageError, match=r"eval/run.py checkpoints=\[a,b\]"):
        vote.server(load(Ballot, [f"report={tmp_path}"]))
