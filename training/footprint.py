"""How many bytes a batch holds through forward and backward, counted without having them.

    found = of_dit(WanDiT(...).config, bucket, 1, How(bfloat16=True, recompute="attention"))

The real modules run once, forward and backward, on tensors that have a shape and no memory
(PyTorch's FakeTensorMode). So what is counted is what the code does, in any size, on any machine,
in about a second. A DiT's blocks are alike, so one of them and two are run, and the rest follows.

A GPU is played on the CPU: of its autocast what differs there is added, and its attention kernels
keep the same tensors. What kernels allocate for themselves isn't seen.

Shapes: B samples, T frames, H × W pixels.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from model import flow
from model.attention import Context
from model.dit import WanDiT
from model.efficientnet import EfficientNetDistance, EfficientNetLite0
from model.lpips import LPIPS
from model.recompute import Recompute
from model.vae import WanVAE
from recipes.training import VaeLoss
from training.batch import Batch, Bucket
from training.discriminator import PatchDiscriminator
from training.dit_module import DiTModule, pixels
from training.ledger import Footprint, Ledger, measure
from training.perceptual import PACKAGED
from training.vae_loss import adaptive_weight, hinge_discriminator, hinge_generator, kl, l1, l2
from training.vae_module import wide

IMAGE_TOKENS = 257  # of CLIP's ViT-H for one image
STEADY = (9, 13)  # frames at which a VAE's stream is in full swing


@dataclass(frozen=True)
class How:
    """What decides how much is held, besides sizes."""

    bfloat16: bool = False  # autocast; parameters are float32
    cuda: bool = False
    recompute: str = "none"
    blocks: int | None = None  # of a DiT that recompute, the first ones; None: all
    context: int = 1  # processes that share a sequence


# --- the DiT -----------------------------------------------------------------------------------


class Promotion(TorchFunctionMode):
    """What CUDA's autocast has and the CPU's lacks: `addcmul` in the widest type it is given."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.addcmul and torch.is_autocast_enabled("cpu"):
            wide = max((one.dtype for one in args), key=lambda dtype: dtype.itemsize)
            args = tuple(one.to(wide) for one in args)
        return func(*args, **(kwargs or {}))


class Promoted(Recompute):
    """Runs blocks as CUDA's autocast does, also when backward computes them again."""

    def __call__(self, index: int, block: Callable[..., Tensor], *inputs) -> Tensor:
        def promoted(*inputs) -> Tensor:
            with Promotion():
                return block(*inputs)

        return super().__call__(index, promoted, *inputs)


class Part(Context):
    """One process's tokens of a sequence that several share, without the others."""

    def __init__(self, processes: int, backend: str) -> None:
        super().__init__(backend)
        self.processes = processes

    def shard(self, x: Tensor) -> Tensor:
        self.tokens = x.shape[1]
        return x[:, : -(-self.tokens // self.processes)].clone()

    def gather(self, x: Tensor) -> Tensor:
        return torch.cat([x, x.new_zeros(len(x), self.tokens - x.shape[1], x.shape[2])], dim=1)


def of_dit(sizes: dict[str, Any], bucket: Bucket, samples: int, how: How) -> Footprint:
    """Of a batch whose latents, and features of prompts and images, are ready.

    Args:
        sizes: all of WanDiT's keywords.
    """
    layers = sizes["num_layers"]
    again = 0 if how.recompute == "none" else layers
    if how.blocks is not None:
        again = min(again, how.blocks)

    def run(how: How) -> tuple[Footprint, Footprint]:
        one, two = (json.dumps(sizes | {"num_layers": count}) for count in (1, 2))
        return _dit(one, bucket, samples, how), _dit(two, bucket, samples, how)

    how = replace(how, blocks=None)
    one, two = run(how if again else replace(how, recompute="none"))
    each, block = two.activations - one.activations, two.copies - one.copies
    activations = one.activations + (layers - 1) * each
    copies = one.copies + (layers - 1) * block
    if again in (0, layers):
        return Footprint(activations, copies, two.working)
    # the last blocks keep everything; when backward comes to the first, that is gone
    first, second = run(replace(how, recompute="none"))
    more = (layers - again) * (second.activations - first.activations - each)
    return Footprint(activations + more, copies, max(second.working, two.working - more))


@lru_cache(maxsize=512)
def _dit(sizes: str, bucket: Bucket, samples: int, how: How) -> Footprint:
    with FakeTensorMode():
        network = WanDiT(**json.loads(sizes))
        network.recompute = (Promoted if how.cuda else Recompute)(how.recompute)
        # a GPU has its kernel for short sequences too
        backend = "kernel" if how.cuda else "sdpa"
        network.context = Part(how.context, backend) if how.context > 1 else Context(backend)
        return measure(network, lambda: dit_loss(network, bucket, samples), how.bfloat16)


def dit_loss(network: WanDiT, bucket: Bucket, samples: int) -> Tensor:
    """What `training.dit_module` computes when all is encoded, of tensors that say nothing."""
    config = network.config
    grid = (1 + (bucket.frames - 1) // 4, bucket.height // 8, bucket.width // 8)
    data = torch.zeros(samples, config["out_channels"], *grid)
    noise = torch.zeros_like(data)
    sigma = torch.full((samples,), 0.5)
    text = torch.zeros(samples, config["text_length"], config["text_width"])
    given = {}
    if extra := config["in_channels"] - config["out_channels"]:
        given["condition"] = torch.zeros(samples, extra, *grid)
    if config["image_width"]:
        tokens = config["image_positions"] or IMAGE_TOKENS
        given["image"] = torch.zeros(samples, tokens, config["image_width"])
    x = flow.interpolate(data, noise, sigma)
    velocity = network(x, sigma * flow.TIMESTEPS, text, **given)
    return flow.loss(velocity, data, noise).mean()


# --- the VAE -----------------------------------------------------------------------------------


def of_vae(
    sizes: dict[str, Any], loss: VaeLoss, bucket: Bucket, samples: int, how: How
) -> Footprint:
    """Of a batch of pixels, with all that judges the VAE; sizes are all of WanVAE's keywords."""
    how = replace(how, blocks=None, context=1)
    return _vae(json.dumps(sizes), json.dumps(asdict(loss)), bucket, samples, how)


@lru_cache(maxsize=256)
def _vae(sizes: str, loss: str, bucket: Bucket, samples: int, how: How) -> Footprint:
    with FakeTensorMode():
        network, weights = WanVAE(**json.loads(sizes)), VaeLoss(**json.loads(loss))
        network.checkpoint_activations(how.recompute != "none")
        judges = judges_of(weights)
        return measure(
            network,
            lambda: vae_loss(network, weights, judges, bucket, samples),
            how.bfloat16,
            [one for judge in judges.values() for one in judge.parameters()],
        )


def judges_of(loss: VaeLoss) -> dict[str, nn.Module]:
    """The networks of a VAE's loss, of whatever weights: perceptual and adversary."""
    found: dict[str, nn.Module] = {}
    if loss.perceptual:
        if loss.backbone == PACKAGED:
            network = EfficientNetDistance(EfficientNetLite0())
        else:  # which of the two the file tells; the other takes more
            network = LPIPS("alex" if "alex" in loss.backbone else "vgg")
        found["perceptual"] = network.requires_grad_(False)
    if loss.gan:
        found["adversary"] = PatchDiscriminator(loss.gan_width)
    return found


def judges_bytes(loss: VaeLoss) -> int:
    """Their weights, and the adversary's moments."""
    with torch.device("meta"):
        judges = judges_of(loss)
    copies = {"perceptual": 1, "adversary": 3}
    return sum(
        4 * copies[name] * sum(one.numel() for one in judge.parameters())
        for name, judge in judges.items()
    )


def vae_loss(
    network: WanVAE, loss: VaeLoss, judges: dict[str, nn.Module], bucket: Bucket, samples: int
) -> Tensor:
    """What `training.vae_module` computes, of pixels that say nothing."""
    shape = (samples, 3, bucket.frames, bucket.height, bucket.width)
    video = pixels(torch.zeros(shape, dtype=torch.uint8))
    posterior = wide(network.encode(video))
    noise = torch.zeros_like(posterior.mean)
    rebuilt = network.decode(posterior.mean + posterior.std * noise, clamp=False)
    total = loss.l1 * l1(video, rebuilt) + loss.kl * kl(posterior)
    if loss.l2:
        total = total + loss.l2 * l2(video, rebuilt)
    return judged(loss, judges, video, rebuilt, total, network.decoder.head[-1].weight).mean()


def judged(
    loss: VaeLoss,
    judges: dict[str, nn.Module],
    video: Tensor,
    rebuilt: Tensor,
    total: Tensor,
    last: Tensor,
) -> Tensor:
    """The loss [B] with what its networks add to it; the adversary has learned by then.

    Args:
        total: without them.
        last: weights of the VAE's last layer, for an adaptive weight.
    """
    if "perceptual" in judges:
        seen = slice(loss.perceptual_frames or None)
        total = total + judges["perceptual"](video[:, :, seen], rebuilt[:, :, seen])
    if "adversary" in judges:
        adversary = judges["adversary"]
        adversary.requires_grad_(False)
        fooled = hinge_generator(adversary(rebuilt))
        adversary.requires_grad_(True)
        if loss.gan_adaptive:
            fooled = adaptive_weight(total.mean(), fooled.mean(), last) * fooled
        real, fake = adversary(video), adversary(rebuilt.detach())
        hinge_discriminator(real, fake).mean().backward()
        total = total + fooled
    return total


def encoding(sizes: dict[str, Any], bucket: Bucket, samples: int, little: int = 0) -> int:
    """Bytes that it takes to encode a batch of pixels, in float32, at most at one time.

    From two short clips: what a layer keeps of the past, or all frames, grows with the length.

    Args:
        little: a bound below this is enough, and quicker: eight maps of the whole clip.
    """
    pixels = samples * bucket.frames * bucket.height * bucket.width
    bound = pixels * 4 * (3 + 8 * sizes["width"])
    if bound < little:
        return bound
    lengths = STEADY if bucket.frames > STEADY[1] else (bucket.frames,)
    found = [_encoding(json.dumps(sizes), replace(bucket, frames=one), samples) for one in lengths]
    if len(found) == 1:
        return found[0]
    slope = (found[1] - found[0]) / (lengths[1] - lengths[0])
    return int(found[1] + slope * (bucket.frames - lengths[1]))


@lru_cache(maxsize=128)
def _encoding(sizes: str, bucket: Bucket, samples: int) -> int:
    with FakeTensorMode():
        vae = WanVAE(**json.loads(sizes)).requires_grad_(False)
        ledger = Ledger([*vae.parameters(), *vae.buffers()])
        with ledger, torch.no_grad():
            shape = (samples, 3, bucket.frames, bucket.height, bucket.width)
            batch = Batch(bucket, [], [], video=torch.zeros(shape, dtype=torch.uint8))
            DiTModule.posterior(SimpleNamespace(vae=vae), batch)
        return ledger.peak()


def sampling(dit: dict[str, Any], vae: dict[str, Any], bucket: Bucket, bfloat16: bool) -> int:
    """Bytes that a sample video takes, with guidance, beside the weights: about a fifth too many.

    Of the DiT twelve maps of its width and two of its feed-forward layer's, as `eval.memory` has
    it; of the VAE, in float32 (`decoding`).
    """
    tokens = 2 * bucket.tokens * (12 * dit["width"] + 2 * dit["ffn_width"])
    return max(tokens * (2 if bfloat16 else 4), decoding(vae, bucket))


def decoding(sizes: dict[str, Any], bucket: Bucket) -> int:
    """Bytes that it takes to decode a sample video as a stream, in float32, about.

    Six and a half maps of four frames at full size and twice the VAE's width.
    """
    frames = min(bucket.frames, 4)
    return int(6.5 * 4 * frames * 2 * sizes["width"] * bucket.width * bucket.height)
