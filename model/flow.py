"""Flow matching: the straight path from data to noise, its velocity, and where on it to look.

The one convention, here and everywhere in this repository: **sigma = 1 is noise, sigma = 0 is
data**, and the velocity is dx/dsigma = noise − data. The technical report (arXiv 2503.20314) runs
the other way, with t = 1 − sigma and v = data − noise: its velocity is ours negated. The released
weights, and diffusers, run on sigma, with timestep = 1000 · sigma as the network's input.

Legend: B batch, … any further axes (latents: C T H W). `sigma` is a number, or a tensor[B] with one
value a sample. Every function works in the type of its tensors and on any device.
"""

import math

import torch
from torch import Tensor

TIMESTEPS = 1000.0  # the network sees timestep = TIMESTEPS · sigma
NEAR_NOISE = 1.0 - 1e-6  # UniPC's first sigma: at 1 itself log((1 − sigma) / sigma) is infinite
TOKENS_480P = 32_760  # 81 frames at 832×480: 21 × 30 × 52 patches

DISTRIBUTIONS = ("logit-normal", "uniform")
SPACINGS = ("unipc", "euler", "dpm++", "official")


# --- the path ---------------------------------------------------------------------------------


def interpolate(data: Tensor, noise: Tensor, sigma: Tensor | float) -> Tensor:
    """x_sigma = (1 − sigma) · data + sigma · noise (the report's x_t, with t = 1 − sigma)."""
    sigma = _beside(sigma, data)
    return (1 - sigma) * data + sigma * noise


def target(data: Tensor, noise: Tensor) -> Tensor:
    """What the network learns: v = noise − data = dx/dsigma (the report's v_t, negated)."""
    return noise - data


def timestep(sigma: float, whole: bool = False) -> float:
    """timestep = 1000 · sigma. `whole` drops the fraction, as both public pipelines do.

    The network's fastest sine turns by a radian a unit, so the fraction changes what it sees.
    """
    value = sigma * TIMESTEPS
    return float(math.floor(value)) if whole else value


def data_from_velocity(x: Tensor, velocity: Tensor, sigma: Tensor | float) -> Tensor:
    """data = x − sigma · v: the estimate of the clean sample (UniPC's and DPM++'s prediction)."""
    return x - _beside(sigma, x) * velocity


def noise_from_velocity(x: Tensor, velocity: Tensor, sigma: Tensor | float) -> Tensor:
    """noise = x + (1 − sigma) · v."""
    return x + (1 - _beside(sigma, x)) * velocity


def velocity_from_data(x: Tensor, data: Tensor, sigma: Tensor | float) -> Tensor:
    """v = (x − data) / sigma, for sigma > 0."""
    return (x - data) / _beside(sigma, x)


def velocity_from_noise(x: Tensor, noise: Tensor, sigma: Tensor | float) -> Tensor:
    """v = (noise − x) / (1 − sigma), for sigma < 1."""
    return (noise - x) / (1 - _beside(sigma, x))


def loss(velocity: Tensor, data: Tensor, noise: Tensor) -> Tensor:
    """mean |v − (noise − data)|² for each sample, [B] in float32 at least (the report's loss).

    No weight depends on sigma: how often a sigma is drawn is the only weighting.
    """
    wide = torch.promote_types(velocity.dtype, torch.float32)
    error = velocity.to(wide) - target(data.to(wide), noise.to(wide))
    return error.square().flatten(1).mean(1)


# --- where on the path: training ---------------------------------------------------------------


def sample_sigmas(
    batch: int,
    distribution: str = "logit-normal",
    mean: float = 0.0,
    std: float = 1.0,
    shift: float = 1.0,
    stratified: bool = False,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw [B] training sigmas in (0, 1), float32.

    logit-normal: sigma = sigmoid(mean + std · z), z ~ N(0, 1) (Esser et al., arXiv 2403.03206,
    section 3.1); a positive mean draws more noise. uniform: sigma ~ U(0, 1). Then `shift_sigma`.
    `stratified` takes one draw from each of B equal slices of the distribution, in random order,
    so that a batch covers it evenly (the idea of Kingma et al., arXiv 2107.00630); every single
    draw still has the full distribution. The generator's device is where it is drawn; the result
    lies on `device`, the generator's by default.
    """
    if distribution not in DISTRIBUTIONS:
        raise ValueError(f"distribution={distribution!r}: choose {' or '.join(DISTRIBUTIONS)}")
    if batch < 1:
        raise ValueError(f"batch={batch}: draw at least one")
    where = generator.device if generator is not None else torch.device("cpu")
    u = torch.rand(batch, generator=generator, device=where, dtype=torch.float64)
    if stratified:
        u = (torch.randperm(batch, generator=generator, device=where) + u) / batch
    u = u.clamp(1e-7, 1 - 1e-7)  # the ends have infinite logits
    if distribution == "logit-normal":
        u = torch.sigmoid(mean + std * torch.special.ndtri(u))
    return shift_sigma(u, shift).float().to(device if device is not None else where)


def shift_sigma(sigma, shift: float):
    """sigma' = s · sigma / (1 + (s − 1) · sigma) (Esser et al., arXiv 2403.03206, section 5.3).

    The bigger the picture, the more noise it takes to hide it: s > 1 moves sigmas towards noise.
    A number or a tensor; 0 and 1 stay.
    """
    if shift <= 0:
        raise ValueError(f"shift={shift}: it must be greater than 0")
    return shift * sigma / (1 + (shift - 1) * sigma)


def unshift_sigma(sigma, shift: float):
    """The inverse of `shift_sigma`, which is the shift by 1/s."""
    return shift_sigma(sigma, 1.0 / shift)


def training_shift(tokens: int) -> float:
    """The shift to train with, from the number of tokens of a sample: max(1, 2·sqrt(n / 32760)).

    Known: logit-normal with a shift of 2 at 480p, more at 720p (Wan2.1 issues 291 and 279, by a
    maintainer). The square root is Esser et al.'s rule (s = sqrt(m / n)), anchored
    there: 3.04 at 720p. Never below 1, so that small pictures are not pushed towards data: that
    bound is ours. Sampling uses larger shifts: `model.defaults.public`.
    """
    return max(1.0, 2.0 * math.sqrt(tokens / TOKENS_480P))


# --- where on the path: sampling ---------------------------------------------------------------


def sigmas(steps: int, shift: float = 1.0, spacing: str = "unipc") -> list[float]:
    """The steps + 1 falling sigmas of a sampling run, the last 0, after `shift_sigma`.

    In Python floats, computed in the order in which NumPy would, so that truncated timesteps agree
    with the schedulers to the last one. Spacings before the shift, n = steps:
    - unipc: 1 − 0.999 i/n, the first lowered to 1 − 1e-6 (diffusers UniPCMultistepScheduler with
      use_flow_sigmas, which is Wan's public diffusers pipeline)
    - euler: from 1 to shifted(1/1000) in n − 1 equal parts, then shifted, a second time for the
      smallest (diffusers FlowMatchEulerDiscreteScheduler)
    - dpm++: 0.999 (n − i)/n (diffusers DPMSolverMultistepScheduler with use_flow_sigmas)
    - official: the same, 0.999 being float32's (FlowUniPCMultistepScheduler of the Wan2.1
      repository); the rounding moves some truncated timesteps
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: sampling takes at least one step")
    smallest = 1 / TIMESTEPS
    if spacing == "unipc":
        even = _linspace(1.0, smallest, steps + 1)[:-1]
    elif spacing == "euler":
        last = float(shift_sigma(smallest, shift)) * TIMESTEPS
        even = [one / TIMESTEPS for one in _linspace(TIMESTEPS, last, steps)]
    elif spacing == "dpm++":
        even = [1.0 - one for one in _linspace(1.0, smallest, steps + 1)][:0:-1]
    elif spacing == "official":
        even = _linspace(torch.tensor(1.0 - smallest).item(), 0.0, steps + 1)[:-1]
    else:
        raise ValueError(f"spacing={spacing!r}: choose {', '.join(SPACINGS)}")
    shifted = [float(shift_sigma(one, shift)) for one in even]
    if spacing == "unipc" and shifted[0] > NEAR_NOISE:
        shifted[0] -= 1.0 - NEAR_NOISE
    return [*shifted, 0.0]


def _linspace(first: float, last: float, count: int) -> list[float]:
    """numpy.linspace, rounding included."""
    if count == 1:
        return [first]
    step = (last - first) / (count - 1)
    return [*(i * step + first for i in range(count - 1)), last]


def _beside(sigma: Tensor | float, x: Tensor) -> Tensor | float:
    """sigma[B] with as many axes as x; a number stays one."""
    if not isinstance(sigma, Tensor) or sigma.ndim == 0:
        return sigma
    if sigma.shape != x.shape[:1]:
        raise ValueError(f"sigma has shape {tuple(sigma.shape)}, the batch {tuple(x.shape)}")
    return sigma.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
