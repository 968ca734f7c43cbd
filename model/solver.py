"""Samplers: functions that carry noise along a velocity to data.

    solver(velocity, noise, sigmas, callback=None) -> x at the last sigma

`velocity(x, sigma)` returns dx/dsigma in the shape of x for one sigma of the whole batch (a Python
float); `sigmas` are the steps + 1 falling values of `model.flow.sigmas`. Any shape, any device;
half-precision noise is carried in float32, and that is what comes back. Starting lower than 1 is
video-to-video: pass the tail of the sigmas, and the video noised to the first of them.

Everything that depends on sigmas alone is computed on the host in float64, before or between model
calls: nothing in the loop waits for the device. After each step `callback(step, sigma, x, data)` is
told how many steps are done (1 … steps), the sigma that x now stands at, x, and the model's
estimate of the data from that step's call, x − sigma · v.

Notation of the papers: alpha = 1 − sigma, lambda = log(alpha / sigma), h a step in lambda, m a data
estimate. Costs: one model call a step, Heun two but for its last.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from model.flow import NEAR_NOISE, data_from_velocity

Velocity = Callable[[Tensor, float], Tensor]
Callback = Callable[[int, float, Tensor, Tensor], None]


def euler(
    velocity: Velocity, noise: Tensor, sigmas: Sequence[float], callback: Callback | None = None
) -> Tensor:
    """x' = x + (sigma' − sigma) · v; first order. For straight paths it is DDIM, exactly."""
    x, sigmas = _start(noise, sigmas)
    for step, (sigma, to) in enumerate(pairwise(sigmas), 1):
        v = velocity(x, sigma).to(x.dtype)
        data = data_from_velocity(x, v, sigma) if callback else None
        x = x + (to - sigma) * v
        if callback:
            callback(step, to, x, data)
    return x


def heun(
    velocity: Velocity, noise: Tensor, sigmas: Sequence[float], callback: Callback | None = None
) -> Tensor:
    """The mean slope of both ends of Euler's step; second order (Karras et al., arXiv 2206.00364).

    The step onto sigma = 0 is Euler's, so that the model is never asked at 0: 2 · steps − 1 calls.
    """
    x, sigmas = _start(noise, sigmas)
    for step, (sigma, to) in enumerate(pairwise(sigmas), 1):
        v = velocity(x, sigma).to(x.dtype)
        data = data_from_velocity(x, v, sigma) if callback else None
        there = x + (to - sigma) * v
        if to > 0:
            there = x + 0.5 * (to - sigma) * (v + velocity(there, to).to(x.dtype))
        x = there
        if callback:
            callback(step, to, x, data)
    return x


def dpmpp_2m(
    velocity: Velocity,
    noise: Tensor,
    sigmas: Sequence[float],
    callback: Callback | None = None,
    noises: Iterator[Tensor] | None = None,
) -> Tensor:
    """DPM-Solver++(2M): second order, multistep (Lu et al., arXiv 2211.01095, algorithm 2).

    x' = (sigma'/sigma) x − alpha' (e^−h − 1) (m0 + (m0 − m1) / 2r), r the last step's h over this
    one's. The first and the last step are of first order, as in diffusers and in Wan's own copy.

    Args:
        noises: standard normal, in the shape of x, one a step; then it is SDE-DPM-Solver++(2M) of
            the same paper: x is pulled twice as far to the data, e^−2h, and σ' √(1 − e^−2h) of
            fresh noise makes up for it. What the first steps got wrong is forgotten by and by.
    """
    x, sigmas = _start(noise, sigmas)
    lambdas = [_log_snr(one) for one in sigmas]
    before, steps = None, len(sigmas) - 1
    for i in range(steps):
        data = data_from_velocity(x, velocity(x, sigmas[i]).to(x.dtype), sigmas[i])
        h = lambdas[i + 1] - lambdas[i]
        scale, drift = sigmas[i + 1] / sigmas[i], h
        if noises is not None:
            scale, drift = scale * math.exp(-h), 2 * h
        gain = -(1 - sigmas[i + 1]) * math.expm1(-drift)
        bend = 0.0
        if before is not None and i < steps - 1:
            bend = 0.5 * h / (lambdas[i] - lambdas[i - 1])  # 0 after a start at sigma = 1
        terms = [(gain * (1 + bend), data)]
        if bend:
            terms.append((-gain * bend, before))
        if noises is not None and sigmas[i + 1] > 0:
            terms.append((sigmas[i + 1] * math.sqrt(-math.expm1(-drift)), next(noises).to(x)))
        x = _sum(scale, x, terms)
        before = data
        if callback:
            callback(i + 1, sigmas[i + 1], x, data)
    return x


def unipc(
    velocity: Velocity,
    noise: Tensor,
    sigmas: Sequence[float],
    callback: Callback | None = None,
    order: int = 2,
    lower_order_final: bool = True,
) -> Tensor:
    """UniPC with B(h) = e^h − 1 ("bh2") on the data estimate (Zhao et al., arXiv 2302.04867).

    Wan's public default, at order 2. A predictor of the given order takes the step; when the model
    has spoken there, its answer also corrects the step just taken (UniC, which raises the order by
    one) at no further call. The order rises from 1 as history grows and, with
    `lower_order_final`, falls to 1 at the end; onto sigma = 0, where h is infinite, it is always 1.
    """
    if order < 1:
        raise ValueError(f"order={order}: UniPC needs at least 1")
    x, sigmas = _start(noise, sigmas)
    lambdas = [_log_snr(min(one, NEAR_NOISE)) for one in sigmas]
    steps = len(sigmas) - 1
    orders = [min(order, i + 1) for i in range(steps)]
    if lower_order_final:
        orders = [min(one, steps - i) for i, one in enumerate(orders)]
    if sigmas[-1] == 0:
        orders[-1] = 1
    history: deque[Tensor] = deque(maxlen=order)  # data estimates, the latest first
    corrected = x  # where the last step began
    for i in range(steps):
        data = data_from_velocity(x, velocity(x, sigmas[i]).to(x.dtype), sigmas[i])
        if i > 0:
            scale, weights = _unified(sigmas, lambdas, i - 1, orders[i - 1], corrects=True)
            x = _sum(scale, corrected, zip(weights, (data, *history), strict=False))
        corrected = x
        history.appendleft(data)
        scale, weights = _unified(sigmas, lambdas, i, orders[i], corrects=False)
        x = _sum(scale, x, zip(weights, history, strict=False))
        if callback:
            callback(i + 1, sigmas[i + 1], x, data)
    return x


SOLVERS: dict[str, Callable[..., Tensor]] = {
    "unipc": unipc,
    "dpmpp_2m": dpmpp_2m,
    "heun": heun,
    "euler": euler,
}
STOCHASTIC = {"dpmpp_2m_sde": dpmpp_2m}  # called with `noises`


def _unified(
    sigmas: list[float], lambdas: list[float], i: int, order: int, corrects: bool
) -> tuple[float, list[float]]:
    """One step i → i + 1 as scale · x + the weights' sum of data estimates.

    The weights' order is that of the estimates: at sigma_i, sigma_i−1, …; in front, for a
    correction, the one at sigma_i+1 (arXiv 2302.04867, section 3).
    """
    h = lambdas[i + 1] - lambdas[i]
    ratios = [(lambdas[i - k] - lambdas[i]) / h for k in range(1, order)]
    if corrects:
        ratios.append(1.0)
    # the paper's k! · phi_k(h) / B(h): what a polynomial's k-th power contributes
    grown = math.expm1(-h)
    phi, product, factorial = [], grown / -h - 1, 1.0
    for k in range(1, len(ratios) + 1):
        phi.append(product * factorial / grown)
        factorial *= k + 1
        product = product / -h - 1 / factorial
    if len(ratios) == 1:
        rho = [0.5]  # the paper's closed form, exact enough for the order, and what everyone runs
    elif ratios:
        powers = [[ratio**k for ratio in ratios] for k in range(len(ratios))]
        matrix = torch.tensor(powers, dtype=torch.float64, device="cpu")
        right = torch.tensor(phi, dtype=torch.float64, device="cpu")
        rho = torch.linalg.solve(matrix, right).tolist()
    else:
        rho = []
    gain = -(1 - sigmas[i + 1]) * grown
    slopes = [gain * one / ratio for one, ratio in zip(rho, ratios, strict=True)]
    weights = [gain - sum(slopes), *slopes]
    if corrects:  # the last ratio, 1, is the estimate at the step's end
        weights.insert(0, weights.pop())
    return sigmas[i + 1] / sigmas[i], weights


def _log_snr(sigma: float) -> float:
    """lambda = log((1 − sigma) / sigma), from −inf at noise to inf at data."""
    if sigma <= 0:
        return math.inf
    return math.log((1 - sigma) / sigma) if sigma < 1 else -math.inf


def _sum(scale: float, x: Tensor, terms) -> Tensor:
    """scale · x + the sum of weight · tensor."""
    total = x * scale
    for weight, term in terms:
        total = total.add(term, alpha=weight)
    return total


def _start(noise: Tensor, sigmas: Sequence[float]) -> tuple[Tensor, list[float]]:
    """The noise in the type it is carried in, and the sigmas as checked floats."""
    sigmas = [float(one) for one in sigmas]
    falls = all(a > b for a, b in pairwise(sigmas))
    if len(sigmas) < 2 or not falls or sigmas[0] > 1 or sigmas[-1] < 0:
        shown = ", ".join(f"{one:.4g}" for one in sigmas[:6])
        raise ValueError(
            f"sigmas must fall from at most 1 to at least 0, in a step or more: {shown}"
        )
    return noise.to(torch.promote_types(noise.dtype, torch.float32)), sigmas
