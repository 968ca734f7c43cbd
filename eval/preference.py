"""What votes say: Bradley–Terry scores with intervals, and which measures foretell the votes.

    scores = bradley_terry(votes, names)             # {"a": Interval(0.4, 0.1, 0.7), …}
    weights = foretelling(votes, values)             # {"sharpness": Interval(…), …}, agreement

A vote is a pair and who won; a tie counts half for each. Scores are in nats: a difference of 1
means that one is preferred in 73 of 100 pairs. They sum to 0. Intervals are over prompts, since
votes on one prompt go together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from eval.stats import Interval

RESAMPLES = 500
TAILS = 0.025, 0.975
PRIOR = 0.1  # of a vote, either way, for each pair: no score is infinite where one won every time
RIDGE = 1.0  # weight of the squared weights, in votes


@dataclass(frozen=True)
class Vote:
    """One answer.

    Attributes:
        prompt: number of the prompt.
        first, second: names of the two.
        won: 1 the first, 0 the second, 0.5 neither.
        seed: number of the video of that prompt.
    """

    prompt: int
    first: str
    second: str
    won: float
    seed: int = 0


def bradley_terry(
    votes: Sequence[Vote], names: Sequence[str], seed: int = 0
) -> dict[str, Interval]:
    """Scores by name (Bradley and Terry 1952).

    Raises:
        ValueError: a vote on one that is not named.
    """
    place = {name: k for k, name in enumerate(names)}
    for one in votes:
        if one.first not in place or one.second not in place or one.first == one.second:
            raise ValueError(f"a vote on {one.first} and {one.second}, but there is {list(names)}")
    wins, groups = np.zeros((len(votes), len(names), len(names))), []
    for k, one in enumerate(votes):
        a, b = place[one.first], place[one.second]
        wins[k, a, b] += one.won
        wins[k, b, a] += 1 - one.won
        groups.append(one.prompt)
    value = strengths(wins.sum(0))
    drawn = [strengths(np.tensordot(times, wins, 1)) for times in resampled(groups, seed)]
    low, high = np.quantile(drawn, TAILS, axis=0) if drawn else (value, value)
    return {
        name: Interval(float(value[k]), float(low[k]), float(high[k])) for name, k in place.items()
    }


def strengths(wins: np.ndarray) -> np.ndarray:
    """[N] in nats, summing to 0, of wins [N, N]; Hunter's MM iteration (2004, Annals of Statistics
    32:384)."""
    count = len(wins)
    wins = wins + PRIOR * (1 - np.eye(count))
    met, won = wins + wins.T, wins.sum(1)
    power = np.ones(count)
    for _ in range(1000):
        new = won / (met / (power[:, None] + power[None])).sum(1)
        new /= np.exp(np.log(new).mean())
        if np.abs(np.log(new / power)).max() < 1e-9:
            break
        power = new
    return np.log(power)


def foretelling(
    votes: Sequence[Vote], values: Mapping[str, Mapping[tuple[str, int, int], float]], seed: int = 0
) -> tuple[dict[str, Interval], float]:
    """How much each measure foretells the votes, and how many votes all of them together foretell.

    Logistic regression of votes on the differences of the measures, each in its own spread (as the
    Wan report weighs its dimensions by human preference, section 4.6); a little ridge.

    Args:
        values: measure → (name, prompt, seed) → value, higher being better.

    Returns:
        weights by measure, and the share of the decided votes on whose side the fit is, each prompt
        foretold without its own votes.
    """
    names = list(values)
    rows = np.array(
        [
            [
                values[name].get((one.first, one.prompt, one.seed), np.nan)
                - values[name].get((one.second, one.prompt, one.seed), np.nan)
                for name in names
            ]
            for one in votes
        ]
    ).reshape(len(votes), len(names))
    rows = np.nan_to_num(rows)  # where one was not measured, nothing speaks for either
    spread = rows.std(axis=0) if len(votes) else np.ones(len(names))
    rows = rows / np.where(spread > 0, spread, 1)
    won = np.array([one.won for one in votes])
    groups = np.array([one.prompt for one in votes])
    fit = logistic(rows, won, np.ones(len(votes)))
    drawn = [logistic(rows, won, times) for times in resampled(groups.tolist(), seed)]
    low, high = np.quantile(drawn, TAILS, axis=0) if drawn else (fit, fit)
    right = decided = 0
    for group in np.unique(groups):
        inside = groups == group
        others = logistic(rows, won, (~inside).astype(float))
        for row, outcome in zip(rows[inside], won[inside], strict=True):
            if outcome != 0.5:
                decided += 1
                right += (row @ others > 0) == (outcome > 0.5)
    weights = {
        name: Interval(float(fit[k]), float(low[k]), float(high[k])) for k, name in enumerate(names)
    }
    return weights, right / decided if decided else np.nan


def logistic(rows: np.ndarray, won: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Weights [M] of rows [V, M] → chance that the first won, each row counted so often."""
    if not rows.size:
        return np.zeros(rows.shape[1])

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        score = rows @ weights
        chance = 1 / (1 + np.exp(-score))
        cost = times @ (np.logaddexp(0, score) - won * score) + RIDGE / 2 * weights @ weights
        return cost, rows.T @ (times * (chance - won)) + RIDGE * weights

    return minimize(loss, np.zeros(rows.shape[1]), jac=True, method="L-BFGS-B").x


def resampled(groups: Sequence[int], seed: int) -> list[np.ndarray]:
    """How often each vote counts in each draw of prompts; none where there is one prompt only."""
    kinds, place = np.unique(groups, return_inverse=True)
    if len(kinds) < 2:
        return []
    random = np.random.default_rng(seed)
    draws = random.multinomial(len(kinds), np.full(len(kinds), 1 / len(kinds)), RESAMPLES)
    return [times[place].astype(float) for times in draws]
