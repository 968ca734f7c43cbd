"""Training the VAE: what it begins with, what it lowers, and that it goes on where it stopped."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from model.inflation import inflate
from model.vae import WanVAE
from recipes.training import Fit, Optimizer, VaeLoss, Validate
from tests.drawn import draw
from training.batch import Batch, Bucket, Step
from training.module import Measured
from training.vae_module import VAEModule

SIDE = 16
PLAIN = {"perceptual": 0.0}


def clips(seed: int, count: int, frames: int, side: int = SIDE) -> Tensor:
    """uint8 [count, 3, frames, side, side]: soft blobs of colour that drift."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 3, 4, 4, generator=generator)
    still = torch.nn.functional.interpolate(small, (side, side), mode="bicubic").clamp(0, 1)
    video = torch.stack([still.roll(2 * t, -1) for t in range(frames)], dim=2)
    return (255 * video).round().to(torch.uint8)


def batch(seed: int, count: int = 2, frames: int = 5, side: int = SIDE, number: int = 0) -> Batch:
    keys = [f"{seed}-{i}" for i in range(count)]
    video = clips(seed, count, frames, side)
    return Batch(Bucket(side, side, frames), keys, [""] * count, video, number=number)


def step(number: int, **shape) -> Step:
    batches = [batch(2 * number + i, number=i, **shape) for i in (0, 1)]
    tokens, samples = sum(one.tokens for one in batches), sum(len(one) for one in batches)
    return Step(number, batches, tokens, samples, {"next": number + 1})


class Clips(LightningDataModule):
    """Steps first … steps − 1, or again and again the first; and what is held out, or not."""

    broken = 0

    def __init__(self, steps: int, first: int = 0, again: bool = False) -> None:
        super().__init__()
        self.numbers = range(first, steps)
        self.again = again

    def train_dataloader(self) -> DataLoader:
        return DataLoader([step(0 if self.again else i) for i in self.numbers], batch_size=None)

    def val_dataloader(self) -> DataLoader:
        first = 0 if self.again else 1000
        return DataLoader([batch(first + i) for i in range(2)], batch_size=None)


def config(steps: int = 4, rate: float = 2e-3, **loss) -> Fit:
    return Fit(
        trains="vae",
        loss=VaeLoss(**PLAIN | {"gan_width": 8} | loss),
        optimizer=Optimizer(steps=steps, lr=rate, warmup=0, ema=0.9),
        validate=Validate(every=steps),
    )


def vae(**sizes) -> WanVAE:
    torch.manual_seed(0)
    still = {"latent_mean": [0.0] * 4, "latent_std": [1.0] * 4}
    return WanVAE(**{"width": 4, "latent_channels": 4, "blocks": 1} | still | sizes)


class Steps(Callback):
    """What each step was; the third one is saved."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: list[Measured] = []

    def on_train_batch_end(self, trainer: Trainer, module: VAEModule, *_) -> None:
        self.seen.append(module.last)
        if module.step == 3:
            trainer.save_checkpoint(self.path)


def trainer(folder: Path, steps: int, *callbacks: Callback) -> Trainer:
    return Trainer(
        callbacks=list(callbacks),
        default_root_dir=folder,
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        limit_train_batches=steps,
        val_check_interval=steps,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@pytest.fixture
def fit(tmp_path):
    """Trains a module for so many steps; what each step was."""

    def train(module: VAEModule, steps: int, first: int = 0, path: Path | None = None, **how):
        steps_of = Steps(tmp_path / "step=3.ckpt")
        one = trainer(tmp_path, steps, steps_of)
        one.fit(module, datamodule=Clips(steps, first, **how), ckpt_path=path, weights_only=True)
        return steps_of.seen

    return train


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # Lightning's own
@pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning")
class TestFits:
    def test_it_learns_to_rebuild_what_it_is_shown(self, fit):
        module = VAEModule(vae(), config(20, rate=5e-3))
        seen = fit(module, 20, again=True)
        assert seen[-1].parts["l1"] < 0.88 * seen[0].parts["l1"]
        found = module.validation
        assert found["l1"] < 0.95 * seen[0].parts["l1"]  # the averaged weights lag behind
        assert found["loss"] == pytest.approx(3 * found["l1"] + 3e-6 * found["kl"], rel=1e-5)
        assert found["psnr/16x16x5"] == pytest.approx(found["psnr"])
        frames = (found["psnr/frame 0"] + 4 * found["psnr/later frames"]) / 5
        assert frames >= found["psnr"] - 1e-6  # PSNR is convex in the error

    def test_the_loss_does_not_leap_where_the_adversary_sets_in(self, fit):
        """Its gradient is there, its value isn't."""
        plain = fit(VAEModule(vae(), config()), 4)
        hard = {"gan": 10.0, "gan_start": 2}
        module = VAEModule(vae(), config(**hard))
        before = [one.clone() for one in module.adversary.network.parameters()]
        against = fit(module, 4)
        assert [one.loss for one in against[:3]] == [one.loss for one in plain[:3]]
        assert "adversarial" not in against[1].parts
        assert against[2].gradient > 2 * plain[2].gradient
        assert against[3].loss != plain[3].loss
        assert against[3].loss == pytest.approx(
            3 * against[3].parts["l1"] + 3e-6 * against[3].parts["kl"], rel=1e-4
        )
        changed = zip(before, module.adversary.network.parameters(), strict=True)
        assert any(not torch.equal(a, b) for a, b in changed)

    def test_stopped_and_resumed_it_learns_the_same_to_the_last_bit(self, fit, tmp_path):
        loss = {"gan": 0.5, "gan_adaptive": True}
        whole = VAEModule(vae(), config(6, **loss))
        expected = fit(whole, 6)
        second = VAEModule(draw(vae(), seed=9), config(6, **loss))
        found = fit(second, 6, first=3, path=tmp_path / "step=3.ckpt")
        assert second.step == 6
        assert [one.loss for one in found] == [one.loss for one in expected[3:]]
        for name in ("network", "ema"):
            pairs = zip(
                getattr(whole, name).state_dict().values(),
                getattr(second, name).state_dict().values(),
                strict=True,
            )
            assert all(torch.equal(a, b) for a, b in pairs)

    def test_its_latents_are_described_under_the_weights_that_are_validated(self, fit):
        module = VAEModule(vae(), config())
        fit(module, 4)
        network = module.ema.network
        with torch.no_grad():
            latents = [
                network.encode(batch(1000 + i).video / 127.5 - 1).mean.transpose(0, 1).flatten(1)
                for i in range(2)
            ]
        expected = torch.cat(latents, dim=1).mean(1).tolist()
        assert network.config["latent_mean"] == pytest.approx(expected, abs=1e-5)
        assert module.network.config["latent_mean"] == network.config["latent_mean"]
        torch.testing.assert_close(
            module.network.latent_std.flatten().tolist(), network.config["latent_std"]
        )
        assert min(network.config["latent_std"]) > 0.1

    def test_they_are_described_where_no_validation_came_to_it(self, tmp_path):
        module = VAEModule(vae(), config())
        module.trainer = trainer(tmp_path, 1)
        module.trainer.datamodule = Clips(1)
        module.finish(module.trainer.datamodule)
        without = module.network.config["latent_mean"]
        module.on_validation_epoch_start()
        for i, one in enumerate(Clips(1).val_dataloader()):
            module.validation_step(one, i)
        module.on_validation_epoch_end()
        assert min(map(abs, without)) > 0
        assert module.network.config["latent_mean"] == pytest.approx(without, abs=1e-6)

    def test_a_step_that_is_skipped_teaches_the_adversary_nothing(self, fit):
        module = VAEModule(vae(), config(gan=1.0))
        module.guard.admits = lambda *_: False
        before = [one.clone() for one in module.adversary.network.parameters()]
        fit(module, 2)
        after = list(module.adversary.network.parameters())
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

    def test_images_and_clips_are_trained_together_by_their_tokens(self, fit):
        module = VAEModule(vae(), config())
        mixed = step(0)
        mixed.batches[0] = batch(5, count=3, frames=1, number=0)
        mixed.tokens = sum(one.tokens for one in mixed.batches)
        module.trainer = trainer(Path("."), 1)
        losses = [
            module.losses(one, module.generator(0, one.number)).total.mean()
            for one in mixed.batches
        ]
        expected = sum(
            float(loss.detach()) * one.tokens / mixed.tokens
            for loss, one in zip(losses, mixed.batches, strict=True)
        )
        module.optimizers = lambda: torch.optim.SGD(module.network.parameters(), 0.1)
        module.manual_backward = lambda loss: loss.backward()
        module.training_step(mixed, 0)
        assert module.last.loss == pytest.approx(expected, rel=1e-5)


def test_the_video_vae_begins_where_the_image_vae_stopped():
    """On still video, in every frame, by the module's own validation."""
    flat = draw(vae(taps=1, temporal=[False] * 3))
    still = batch(3, frames=1)
    moving = batch(3, frames=5)
    moving.video = still.video.expand(-1, -1, 5, -1, -1)
    found = []
    for network, one in ((flat, still), (inflate(flat), moving)):
        module = VAEModule(network, config())
        module.on_validation_epoch_start()
        with torch.no_grad():
            found.append(module.measure(one, 0))
    for name in ("psnr", "ssim", "l1", "kl", "loss"):
        torch.testing.assert_close(found[1][name], found[0][name], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(found[1]["psnr/frame 0"], found[0]["psnr"], atol=1e-3, rtol=0)


def test_the_adaptive_weight_is_the_ratio_of_the_slopes_at_the_last_layer():
    module = VAEModule(vae(), config(gan=0.5, gan_adaptive=True))
    one = batch(0)
    found = module.losses(one, module.generator(0, 0))
    last = module.network.decoder.head[-1].weight
    module.adversary, judge = None, module.adversary
    plain = module.losses(one, module.generator(0, 0)).total.mean()
    (reconstruction,) = torch.autograd.grad(plain, last)
    (both,) = torch.autograd.grad(found.total.mean(), last)
    against = both - reconstruction
    assert float(against.norm()) == pytest.approx(0.5 * float(reconstruction.norm()), rel=1e-3)
    assert float(found.parts["gan_weight"]) != 0.5
    assert any(one.grad is not None for one in judge.network.parameters())


def test_a_pixel_beyond_the_range_finds_back():
    network = vae()
    with torch.no_grad():
        network.decoder.head[-1].bias.fill_(3.0)  # all white, whatever it is shown
    module = VAEModule(network, config())
    module.losses(batch(0), module.generator(0, 0)).total.mean().backward()
    assert (network.decoder.head[-1].bias.grad > 0.9).all()  # 3 · 1, shared by three channels


def test_the_perceptual_distance_is_weighed_and_named():
    module = VAEModule(vae(), config(perceptual=2.0))
    one = batch(0, side=32)
    found = module.losses(one, module.generator(0, 0))
    total = 3 * found.parts["l1"] + 3e-6 * found.parts["kl"] + 2 * found.parts["perceptual"]
    torch.testing.assert_close(found.total.mean(), total)
    module.on_validation_epoch_start()
    with torch.no_grad():
        assert module.measure(one, 0)["effnet-lite0"].shape == (2,)


def test_recomputed_activations_give_the_same_gradient():
    found = []
    for how in ("none", "full"):
        given = config(gan=0.5, gan_adaptive=True)
        given.compute.recompute = how
        module = VAEModule(vae(), given)
        module.losses(batch(0), module.generator(0, 0)).total.mean().backward()
        found.append([one.grad for one in module.network.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_neither_the_adversary_nor_the_distance_is_trained_or_averaged():
    module = VAEModule(vae(), config(perceptual=1.0, gan=1.0))
    names = {name.split(".")[0] for name, _ in module.named_parameters()}
    assert names == {"network", "ema"}
