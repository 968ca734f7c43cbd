"""How sure are we: paired comparisons of checkpoints over the same prompts and seeds.

    draws = Draws(prompts, seed=0)                        # once for a report
    found = compare(before, after, draws)                 # of one measure
    found.delta, found.low, found.high, found.p
    adjusted = holm([one.p for one in comparisons])       # over measures

A prompt is what was sampled from the population of prompts; the seeds of a prompt say how far one
video is from another, and more of them do not make more prompts. So prompts are drawn with
replacement and keep all their seeds (Ren et al. 2010, J. Applied Statistics 37:1487, on nested
data), both checkpoints' together, and one set of draws serves every measure and every total.

P prompts, S seeds, R draws. Values are floats [P, S]; a video that could not be measured is NaN.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import stats

RESAMPLES = 10_000
LEVEL = 0.95
POWER = 0.8
ROUNDING = 1e-9  # differences this small are ties


@dataclass(frozen=True)
class Scores:
    """One measure of one checkpoint.

    Attributes:
        prompts: [P], each once.
        values: [P, S], seed j the same for every checkpoint.
        higher_is_better: else lower is.
    """

    prompts: tuple[str, ...]
    values: np.ndarray
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or len(self.values) != len(self.prompts):
            raise ValueError(f"values {list(self.values.shape)} of {len(self.prompts)} prompts")
        if len(set(self.prompts)) != len(self.prompts):
            raise ValueError("a prompt is named twice")

    @property
    def by_prompt(self) -> np.ndarray:
        """[P], the mean over the seeds that were measured; NaN where none was."""
        return nan_mean(self.values)

    @property
    def mean(self) -> float:
        """Over prompts; each counts once, however many of its seeds were measured."""
        known = self.by_prompt[np.isfinite(self.by_prompt)]
        return float(known.mean()) if len(known) else np.nan


@dataclass(frozen=True)
class Interval:
    """A value and where, at the level asked for, its true one lies."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


class Draws:
    """How often each prompt comes in each of R resamples, the same for all that is computed.

    Args:
        prompts: all of a report.
        seed: of the draws.
    """

    def __init__(self, prompts: Sequence[str], resamples: int = RESAMPLES, seed: int = 0) -> None:
        self.place = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
        if not self.place:
            raise ValueError("no prompt to draw")
        count = len(self.place)
        random = np.random.default_rng(seed)
        self.times = random.multinomial(count, np.full(count, 1 / count), resamples)

    def means(self, prompts: Sequence[str], by_prompt: np.ndarray) -> np.ndarray:
        """[R], the mean over some of the prompts in each resample; NaN where none of them came."""
        there = np.isfinite(by_prompt)
        rows = [self.place[one] for one, is_there in zip(prompts, there, strict=True) if is_there]
        times = self.times[:, rows].astype(np.float64)
        weight = times.sum(1)
        with np.errstate(invalid="ignore"):
            return np.where(weight > 0, times @ by_prompt[there] / weight, np.nan)

    def interval(self, value: float, resampled: np.ndarray, count: int) -> Interval:
        """The expanded percentile interval (Hesterberg 2015, arXiv 1411.5279, section 4.3.2).

        Its percentiles lie as far out as Student's t says for so few prompts: plain ones are too
        narrow by that much.

        Args:
            value: of the whole sample.
            resampled: [R].
            count: prompts that it rests on.
        """
        resampled = resampled[np.isfinite(resampled)]
        if count < 2 or not len(resampled):
            return Interval(value, -np.inf, np.inf)
        reach = np.sqrt(count / (count - 1)) * stats.t.ppf((1 + LEVEL) / 2, count - 1)
        tail = stats.norm.cdf(-reach)
        low, high = np.quantile(resampled, [tail, 1 - tail])
        return Interval(value, float(low), float(high))


@dataclass(frozen=True)
class Comparison:
    """One measure of two checkpoints; a positive delta is an improvement of the second.

    Attributes:
        delta: second − first, its sign turned where lower is better.
        wins, ties, losses: prompts on which the second is better, as good, worse.
        p: two-sided, that they are equally good.
        test: how p was found.
        detectable: the smallest true delta that would be found in four of five such comparisons.
        floor: how far two samples of one checkpoint lie apart, in 95 of 100 cases; NaN of one seed.
        prompts: how many both were measured on.
    """

    delta: Interval
    wins: int
    ties: int
    losses: int
    p: float
    test: str
    detectable: float
    floor: float
    prompts: int

    def told(self, adjusted: float | None) -> dict[str, float | int | str | None]:
        """For JSON, with p adjusted for all measures; null where a number is not finite."""
        return {
            "delta": plain(self.delta.value),
            "low": plain(self.delta.low),
            "high": plain(self.delta.high),
            "wins": self.wins,
            "ties": self.ties,
            "losses": self.losses,
            "p": self.p,
            "adjusted": adjusted,
            "test": self.test,
            "detectable": plain(self.detectable),
            "floor": plain(self.floor),
            "prompts": self.prompts,
        }


def plain(value: float) -> float | None:
    """JSON has neither NaN nor infinity."""
    return float(value) if np.isfinite(value) else None


def compare(first: Scores, second: Scores, draws: Draws, tests: int = 1) -> Comparison:
    """Compares two checkpoints on what both were measured on.

    Args:
        tests: how many measures are compared; `detectable` is for as strict a level as that asks.

    Raises:
        ValueError: other prompts or seeds, or another direction.
    """
    if first.prompts != second.prompts or first.values.shape != second.values.shape:
        raise ValueError("a paired comparison wants the same prompts and seeds")
    if first.higher_is_better != second.higher_is_better:
        raise ValueError("one measure, two directions")
    sign = 1.0 if first.higher_is_better else -1.0
    pairs = sign * (second.values - first.values)  # NaN where either is
    by_prompt = nan_mean(pairs)
    there = by_prompt[np.isfinite(by_prompt)]
    if not len(there):
        raise ValueError("no video was measured for both")
    resampled = draws.means(first.prompts, by_prompt)
    wins, losses = int((there > ROUNDING).sum()), int((there < -ROUNDING).sum())
    binary = all(is_binary(one.values) for one in (first, second))
    p = signs_flipped(pairs) if binary else sign_test(wins, losses)
    return Comparison(
        delta=draws.interval(float(there.mean()), resampled, len(there)),
        wins=wins,
        ties=len(there) - wins - losses,
        losses=losses,
        p=p,
        test="McNemar, exact, by prompt" if binary else "sign test, exact",
        detectable=detectable(there, tests),
        floor=noise_floor(first, second),
        prompts=len(there),
    )


def total(
    first: Sequence[Scores],
    second: Sequence[Scores],
    combine: Callable[[np.ndarray], np.ndarray],
    draws: Draws,
) -> tuple[Interval, Interval, Interval]:
    """A score over several measures: of the first, of the second, and the second's − the first's.

    Args:
        first, second: their measures, in the order that `combine` takes them.
        combine: means of the measures [..., M] → scores [...]: the whole normalisation, which each
            resample goes through anew.
    """
    values, resampled, prompts = [], [], set()
    for measures in (first, second):
        values.append(float(combine(np.array([one.mean for one in measures]))))
        means = [draws.means(one.prompts, one.by_prompt) for one in measures]
        resampled.append(combine(np.stack(means, axis=-1)))
        prompts |= {prompt for one in measures for prompt in one.prompts}
    values.append(values[1] - values[0])
    resampled.append(resampled[1] - resampled[0])
    return tuple(
        draws.interval(value, some, len(prompts))
        for value, some in zip(values, resampled, strict=True)
    )


# --- tests ---------------------------------------------------------------------------------------


def sign_test(wins: int, losses: int) -> float:
    """Two-sided, exact; ties say nothing (Dixon and Mood 1946)."""
    return float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def signs_flipped(pairs: np.ndarray) -> float:
    """Two-sided and exact, that binary outcomes [P, S] of both are exchangeable within a prompt.

    The sum of a prompt's differences may as well have had the other sign; the distribution of their
    total over all signs is computed, not drawn. With one seed this is McNemar's exact test (1947);
    with several it does not take videos of one prompt for independent.

    Args:
        pairs: second − first, −1, 0 or 1, NaN where either is missing.
    """
    sums = np.abs(np.nansum(pairs, axis=1)).round().astype(int)
    observed = abs(round(float(np.nansum(pairs))))
    reach = int(sums.sum())
    chances = np.zeros(2 * reach + 1)
    chances[reach] = 1.0
    for one in sums[sums > 0]:
        chances = (np.roll(chances, one) + np.roll(chances, -one)) / 2
    away = np.abs(np.arange(-reach, reach + 1))
    return float(min(1.0, chances[away >= observed].sum()))


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted, so that one false finding among all of them is as rare as asked for (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    adjusted, worst = [0.0] * len(p), 0.0
    for rank, at in enumerate(order):
        worst = max(worst, min(1.0, (len(p) - rank) * p[at]))
        adjusted[at] = worst
    return adjusted


def detectable(differences: np.ndarray, tests: int = 1) -> float:
    """The smallest true mean that so many differences as scattered would show, with power 0.8 at a
    two-sided level of 5 % shared among the tests."""
    count = len(differences)
    if count < 2:
        return np.inf
    error = differences.std(ddof=1) / np.sqrt(count)
    level = (1 - LEVEL) / tests
    reach = stats.t.ppf(1 - level / 2, count - 1) + stats.t.ppf(POWER, count - 1)
    return float(reach * error)


def noise_floor(*checkpoints: Scores) -> float:
    """How far apart two samples of one checkpoint lie in 95 of 100 cases, each with other seeds of
    the same prompts: from the scatter over seeds, pooled over checkpoints. NaN of one seed."""
    squares = seeds = 0.0
    for one in checkpoints:
        spread = one.values - nan_mean(one.values)[:, None]
        squares += float(np.nansum(spread**2))
        counts = np.isfinite(one.values).sum(1)
        seeds += float((counts[counts > 0] - 1).sum())
    if not seeds:
        return np.nan
    videos = np.mean([np.isfinite(one.values).sum() for one in checkpoints])
    return float(stats.norm.ppf((1 + LEVEL) / 2) * np.sqrt(2 * squares / seeds / videos))


# --- words ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What a reader is told first."""

    better: tuple[str, ...]  # measures on which the second is
    worse: tuple[str, ...]
    undecided: tuple[str, ...]

    @cached_property
    def words(self) -> str:
        count = len(self.better) + len(self.worse) + len(self.undecided)
        parts = [
            f"{words} {len(some)} of {count}"
            for words, some in (("better on", self.better), ("worse on", self.worse))
            if some
        ]
        if self.undecided:
            parts.append(f"no difference found on {len(self.undecided)}")
        return ", ".join(parts) or "nothing was compared"


def verdict(comparisons: dict[str, Comparison], level: float = 1 - LEVEL) -> Verdict:
    """By measure: a difference is found where its p, adjusted for all of them, is below the level
    and its interval excludes zero on the same side."""
    adjusted = dict(zip(comparisons, holm([one.p for one in comparisons.values()]), strict=True))
    found = {
        name: one
        for name, one in comparisons.items()
        if adjusted[name] < level and one.delta.excludes_zero
    }
    return Verdict(
        better=tuple(name for name, one in found.items() if one.delta.value > 0),
        worse=tuple(name for name, one in found.items() if one.delta.value < 0),
        undecided=tuple(name for name in comparisons if name not in found),
    )


def nan_mean(values: np.ndarray) -> np.ndarray:
    """[P, S] → [P], over what is there; NaN where nothing is, without a warning."""
    there = np.isfinite(values)
    count = there.sum(1)
    total_ = np.where(there, values, 0).sum(1)
    return np.where(count > 0, total_ / np.maximum(count, 1), np.nan)


def is_binary(values: np.ndarray) -> bool:
    return bool(np.isin(values[np.isfinite(values)], (0, 1)).all())
