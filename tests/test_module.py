"""What both networks' training shares: steps of several batches, plateaus, and steps not taken."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from recipes.training import Fit
from tests.rendered_shards import rendered
from tests.small_fit import QUIET, shrink, train
from tests.test_board import curve, events, recipe
from tests.tiny_fit import Rows, Toy, batch, fit
from training import module as module_of_training
from training.batch import Bucket, Step
from training.data import ShardData
from training.module import Sample
from training.vae_module import VAEModule

pytestmark = QUIET


# --- one step of several batches ------------------------------------------------------------------


def stepped(config: Fit, *batches: Rows) -> Toy:
    """A module after one step, its gradient still there."""
    module = Toy(config)
    module.trainer = Trainer(accelerator="cpu", devices=1, logger=False, barebones=True)
    module.optimizers = lambda: torch.optim.SGD(module.network.parameters(), 0.0)
    module.manual_backward = lambda loss: loss.backward()
    tokens, samples = sum(one.tokens for one in batches), sum(len(one) for one in batches)
    module.training_step(Step(0, list(batches), tokens, samples, {}), 0)
    return module


def part(number: int, rows: slice, bucket: Bucket) -> Rows:
    whole = batch(number, bucket)
    names = ("keys", "prompts", "tiers", "scores", "video")
    return Rows(bucket, **{name: getattr(whole, name)[rows] for name in names}, number=number)


def test_batches_of_unequal_tokens_add_up_to_the_gradient_of_the_whole():
    """Of one bucket: as if all samples had been in one batch."""
    config, bucket = recipe(), Bucket(64, 64, 9)
    config.optimizer.clip = 0.0
    one, other = part(0, slice(0, 5), bucket), part(0, slice(5, 6), bucket)
    apart = stepped(config, one, other)
    whole = stepped(config, part(0, slice(0, 6), bucket))
    for mine, theirs in zip(apart.parameters(), whole.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad)
    assert apart.last.parts["l1"] == pytest.approx(whole.last.parts["l1"], rel=0.01)
    assert apart.last.gradient == pytest.approx(whole.last.gradient)


def test_a_batch_weighs_by_its_tokens_and_not_by_its_samples():
    config = recipe()
    config.optimizer.clip = 0.0
    long, short = part(0, slice(0, 2), Bucket(64, 64, 9)), part(1, slice(0, 2), Bucket(64, 64, 1))
    both, first, second = (stepped(config, *some) for some in ((long, short), (long,), (short,)))
    grads = [next(one.network.parameters()).grad for one in (both, first, second)]
    torch.testing.assert_close(grads[0], 0.75 * grads[1] + 0.25 * grads[2])  # 3 latent frames, 1


# --- plateaus, and clips that grow longer ---------------------------------------------------------


class Leaping(Toy):
    """From step 120 on the loss is ten times as large, as of clips that are longer."""

    def losses(self, batch, generator):
        found = super().losses(batch, generator)
        found.total = found.total * (10 if self.step >= 120 else 1)
        return found


@pytest.mark.parametrize(("growth", "refused"), [({"0": 9, "120": 17}, 0), ({"0": 9}, 5)])
def test_longer_clips_are_no_leap_of_the_loss(growth, refused):
    config = recipe(steps=125, every=125)
    config.optimizer.lr, config.buckets.growth = 0.0, growth
    module = fit(config, [], module=Leaping(config))
    assert module.guard.skipped == refused


def test_a_resumed_run_takes_longer_clips_for_no_leap_either(tmp_path):
    class Save(Callback):
        def on_train_batch_end(self, trainer, module, *_):
            if module.step == 120:
                trainer.save_checkpoint(tmp_path / "120.ckpt")

    config = recipe(steps=123, every=123)
    config.optimizer.lr, config.buckets.growth = 0.0, {"0": 9, "120": 17}
    whole = fit(config, [Save()], module=Leaping(config))
    again = fit(config, [], tmp_path / "120.ckpt", module=Leaping(config))
    assert again.guard.state_dict() == whole.guard.state_dict()
    assert (again.guard.skipped, again.guard.seen) == (0, 3)


@pytest.mark.parametrize(
    ("growth", "rate"),
    [({}, 0.5**5), ({"0": 9, "7": 17}, 0.5**2), ({"0": 9, "3": 13, "6": 17}, 0.5**3)],
)
def test_plateaus_lower_the_rate_once_training_has_come_to_the_longest_clips(growth, rate):
    """Validated at 2, 4, … 12, always alike; the first one that counts is the best."""
    config = recipe(steps=12, every=2)
    config.optimizer.lr, config.optimizer.patience, config.buckets.growth = 1e-30, 1, growth
    module = fit(config, [])
    assert module.rate.scale == rate
    assert module.last.rate > 0


# --- steps that are not taken ---------------------------------------------------------------------


def test_of_several_ranks_the_sample_without_a_loss_is_named_first(monkeypatch):
    one = Toy(recipe())
    seen = [[("c", 2.0), ("d", float("nan"))], [("a", 1.0), ("b", 3.0), ("c", 2.0)]]
    ranks = [[Sample(key, None, {}, loss) for key, loss in some] for some in seen]

    def gather(found, mine):
        found[:] = [mine, [(loss, key) for key, loss in seen[0]]]

    monkeypatch.setattr(module_of_training.dist, "all_gather_object", gather)
    monkeypatch.setattr(Toy, "trainer", SimpleNamespace(world_size=2))
    assert one.suspects(ranks[1]) == ["d", "b", "c", "a"]
    monkeypatch.setattr(Toy, "trainer", SimpleNamespace(world_size=1))
    assert one.suspects(ranks[1]) == ["b", "c", "a"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return rendered(tmp_path_factory.mktemp("shards"), count=6)


@pytest.mark.parametrize("after", [0, 3])
def test_a_run_that_diverges_names_what_it_read_and_where_to_go_on(
    after, shards, tmp_path, monkeypatch, capsys
):
    shrink(monkeypatch)
    losses, read = VAEModule.losses, []

    def planted(self, batch, generator):
        found = losses(self, batch, generator)
        if self.step >= after:
            found.total = found.total * torch.tensor([1.0] * (len(batch) - 1) + [float("nan")])
            read[:] = batch.keys
        return found

    monkeypatch.setattr(VAEModule, "losses", planted)
    keys = {"optimizer__steps": 9, "optimizer__give_up": 3, "save__every": 2 if after else 0}
    keys |= {"validate__every": 8, "buckets__tokens": 64}
    assert train("tiny-vae-image", shards, tmp_path, name="a", **keys) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    said = "3 steps in a row were skipped (loss nan, gradient nan); the last one read "
    assert f"{said}{read[-1]}" in line
    assert "; to go on: python " in line
    if after:  # step 4 left the weights of step 3
        home = tmp_path / "tiny-vae-image" / "a" / "checkpoints"
        assert f"the last good checkpoint is {home / 'step=00000004'};" in line
        assert (home / "step=00000004" / "meta.json").is_file()
    else:
        assert "none was saved yet" in line


def test_what_can_not_be_read_is_told_at_the_end_and_in_tensorboard(
    shards, tmp_path, monkeypatch, capsys
):
    shrink(monkeypatch)
    monkeypatch.setattr(ShardData, "broken", 7)
    assert train("tiny-vae-image", shards, tmp_path, name="a") == 0
    assert "7 samples could not be read" in capsys.readouterr().out
    assert curve(events(tmp_path / "tiny-vae-image" / "a"), "data/broken") == {2: 7.0}
    monkeypatch.setattr(ShardData, "broken", 0)
    assert train("tiny-vae-image", shards, tmp_path, name="b") == 0
    assert "could not be read" not in capsys.readouterr().out


def test_what_is_broken_is_summed_over_the_ranks_and_over_the_starts():
    trainer = SimpleNamespace(datamodule=SimpleNamespace(broken=3))
    first, second = Toy(recipe()), Toy(recipe())
    for module in (first, second):
        module.trainer = trainer
        module.summed = lambda value: 2 * value  # two ranks
        module._device = torch.device("cpu")
    first.on_train_batch_start(None, 0)
    assert first.broken == 6
    saved: dict = {}
    first.on_save_checkpoint(saved)
    second.on_load_checkpoint(saved)
    second.on_train_batch_start(None, 0)
    assert second.broken == 12
