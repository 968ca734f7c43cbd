"""Pairs to vote on, and the votes: nothing that a voter sees says whose a video is.

    ballot = Ballots(out, seed=0, voter="me")
    pair = ballot.next()                              # prompt, and two tokens for two videos
    ballot.vote(pair.left, pair.right, "left")        # a line of votes.jsonl

Pairs with the fewest votes come first, so that every prompt and every two contenders are voted on
about equally often.
"""

import itertools
import json
import random
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eval.preference import Vote
from recipes.keys import UsageError

FILE = "votes.jsonl"
CHOICES = {"left": 1.0, "right": 0.0, "same": 0.5}


@dataclass(frozen=True)
class Pair:
    """What is shown: tokens stand for the videos."""

    prompt: str
    left: str
    right: str
    done: int
    all: int


class Ballots:
    """All pairs of a report's contenders.

    Args:
        out: the folder of the report.
        seed: of the order.
        voter: kept with each vote.

    Raises:
        UsageError: no report there, or fewer than two contenders in it.
    """

    def __init__(self, out: Path, seed: int = 0, voter: str = "") -> None:
        self.out, self.voter = out, voter
        found = report_of(out)
        self.prompts = {row["number"]: row["prompt"] for row in found["prompts"]}
        videos = {
            one["identity"]: {(i, j): Path(path) for i, j, path in one["videos"]}
            for one in found["contenders"]
        }
        if len(videos) < 2:
            raise UsageError(f"report={out}: votes want two contenders, and it compares one")
        self.pairs = [
            (key, first, second)
            for first, second in itertools.combinations(videos, 2)
            for key in sorted(videos[first].keys() & videos[second].keys())
        ]
        if not self.pairs:
            raise UsageError(f"report={out}: no two contenders have a video of one prompt and seed")
        self.videos = videos
        self.random = random.Random(seed)
        self.random.shuffle(self.pairs)
        self.tokens: dict[str, tuple[str, tuple[int, int]]] = {}
        self.voted: set[str] = set()  # tokens of pairs that are done; their videos still play
        self.counts = Counter(
            (tuple(row["video"]), *sorted((row["left"], row["right"])))
            for row in rows_of(out)
            if row["prompt"] == self.prompts.get(row["video"][0])
        )

    def next(self) -> Pair:
        """The pair with the fewest votes, its sides drawn."""
        key, *both = min(self.pairs, key=lambda pair: self.counts[pair[0], *sorted(pair[1:])])
        self.random.shuffle(both)
        left, right = (self._token(one, key) for one in both)
        return Pair(self.prompts[key[0]], left, right, sum(self.counts.values()), len(self.pairs))

    def _token(self, identity: str, key: tuple[int, int]) -> str:
        token = secrets.token_urlsafe(12)
        self.tokens[token] = identity, key
        return token

    def video(self, token: str) -> Path | None:
        """The file that a token stands for."""
        found = self.tokens.get(token)
        return found and self.videos[found[0]][found[1]]

    def vote(self, left: str, right: str, choice: str) -> None:
        """Keeps a vote; the same pair is never counted twice.

        Raises:
            ValueError: these tokens are of no pair that was shown, or were voted on already.
        """
        if choice not in CHOICES:
            raise ValueError(f"{choice}: left, right or same")
        try:
            (first, key), (second, other) = self.tokens[left], self.tokens[right]
        except KeyError:
            raise ValueError("no such pair") from None
        if key != other or first == second:
            raise ValueError("not of one pair")
        if {left, right} & self.voted:
            raise ValueError("voted on already")
        row = {
            "video": key,
            "prompt": self.prompts[key[0]],
            "left": first,
            "right": second,
            "choice": choice,
        }
        row |= {"voter": self.voter, "when": datetime.now(UTC).isoformat(timespec="seconds")}
        with (self.out / FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.voted |= {left, right}
        self.counts[key, *sorted((first, second))] += 1


def report_of(out: Path) -> dict[str, Any]:
    try:
        return json.loads((out / "report.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"report={out}: no report.json there; `python eval/run.py checkpoints=[a,b] out={out}` "
            "writes one"
        ) from error


def rows_of(out: Path) -> list[dict[str, Any]]:
    """Lines of votes.jsonl; one that was cut off is no vote."""
    try:
        lines = (out / FILE).read_text("utf-8").split("\n")
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows.append({"prompt": None} | row)
    return rows


def votes_of(out: Path, names: dict[str, str], prompts: Sequence[str]) -> list[Vote]:
    """Votes on those named, of these prompts: another suite's are other votes.

    Args:
        names: identity → name.
    """
    numbered = dict(enumerate(prompts))
    return [
        Vote(
            row["video"][0],
            names[row["left"]],
            names[row["right"]],
            CHOICES[row["choice"]],
            row["video"][1],
        )
        for row in rows_of(out)
        if row["left"] in names
        and row["right"] in names
        and row["prompt"] == numbered.get(row["video"][0])
    ]
