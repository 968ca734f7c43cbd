"""What training saves is what sampling, export and the next training open."""

import json

import pytest
import torch
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh

from model.bundle import load_bundle
from model.byte_encoder import ByteEncoder, save_byte_encoder
from model.checkpoint import load_dit, load_vae, save
from recipes.export import Export
from recipes.load import load
from tests import tiny_training, tiny_wan
from tests.tiny_training import Module, config, train
from training import snapshot
from training.export import export
from training.runs import newest, open_run

pytestmark = tiny_training.QUIET
TRAINED_ON = {"width": 48, "height": 32, "frames": 5, "fps": 8.0, "shift": 2.0}


class Wan(Module):
    """A network of Wan's whose weights only shrink."""

    def training_step(self, batch, index: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(sum(one.square().sum() for one in self.network.parameters()))
        optimizer.step()
        self.ema.follow(self.network)
        self.step += 1

    def validation_step(self, x: torch.Tensor, index: int) -> None:
        self.found = -float(self.step)
        if self.kind == "vae":
            self.network.config["latent_std"] = [float(self.step)] * 16


def trained(folder, variant: str, kind: str, recipe: str, **saver) -> Wan:
    given = config(folder, f"recipe={recipe}")
    module = Wan(given, tiny_wan.ours(variant).requires_grad_(True))
    module.kind = kind
    folder = train(given, 4, module=module, **saver)[1].folder
    if kind == "dit":
        save(tiny_wan.ours("wan", seed=7), folder / "vae")
        save_byte_encoder(ByteEncoder(width=24), folder / "text_encoder")
    if kind == "vae":
        module.network.config |= {"latent_mean": [0.5] * 16, "latent_std": [4.0] * 16}
    with open_run(given) as run:
        run.finish(module)
    return module


def test_a_run_of_a_dit_is_sampled_and_exported(tmp_path):
    parts = {"vae": "vae", "text_encoder": "text_encoder"}
    module = trained(tmp_path, "t2v", "dit", "tiny", parts=parts, trained_on=TRAINED_ON)
    run = newest(tmp_path, "tiny")
    assert (run / "done.json").is_file()
    best = module.ema.network.state_dict()
    bundle = load_bundle(str(run / "checkpoints/step=00000004"))
    assert tiny_wan.same_tensors(bundle.dit.state_dict(), best)
    whole = load_bundle(str(run))
    assert whole.card.layout.step == 3  # the last one that was validated
    assert tiny_wan.same_tensors(whole.vae.state_dict(), tiny_wan.ours("wan", 7).state_dict())
    assert (whole.defaults.width, whole.defaults.shift, whole.text.name) == (48, 2.0, "bytes")
    target = tmp_path / "official"
    export(load(Export, [f"source={run}", f"target={target}", "to=official"]))
    assert tiny_wan.same_tensors(load_dit(target).state_dict(), whole.dit.state_dict())
    assert tiny_wan.same_tensors(load_vae(target).state_dict(), whole.vae.state_dict())


def test_a_run_of_a_vae_is_opened_with_the_statistics_of_its_latents(tmp_path):
    trained(tmp_path, "wan", "vae", "tiny-vae")
    run = newest(tmp_path, "tiny-vae")
    vae = load_vae(run)
    assert vae.config["latent_std"] == [3.0] * 16  # of the step that was validated last
    meta = json.loads((vae.origin.path.parent / "meta.json").read_text())
    assert (meta["class"], vae.origin.path.name) == ("WanVAE", "ema.safetensors")


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    """One process that shards over itself."""
    store = tmp_path_factory.mktemp("ranks") / "store"
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.fixture
def sharded(mesh) -> torch.nn.Module:
    """Of two types, since the file orders by them."""
    network = torch.nn.ParameterDict()
    for i, dtype in enumerate((torch.bfloat16, torch.float32, torch.bfloat16)):
        place = [Replicate() if i == 2 else Shard(0)]
        tensor = distribute_tensor(torch.randn(4, 2).to(dtype), mesh, place)
        network[str(i)] = torch.nn.Parameter(tensor)
    return network


def test_sharded_weights_are_gathered_one_at_a_time(sharded, tmp_path, monkeypatch):
    from safetensors.torch import load_file

    held = []
    gather = DTensor.full_tensor

    def counted(tensor: DTensor) -> torch.Tensor:
        held.append(tensor.dtype)
        return gather(tensor)

    monkeypatch.setattr(DTensor, "full_tensor", counted)
    snapshot.weights(sharded, tmp_path / "model.safetensors")
    order = [torch.float32, torch.bfloat16, torch.bfloat16]
    assert held == order
    found = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(found[name], gather(one)) for name, one in sharded.items())
    held.clear()
    snapshot.weights(sharded, None)  # another rank: the same tensors in the same order, no file
    assert held == order
    assert [one.name for one in tmp_path.iterdir()] == ["model.safetensors"]


def test_where_the_disk_fails_the_other_ranks_still_get_all_they_wait_for(
    sharded, tmp_path, monkeypatch
):
    held = []
    gather = DTensor.full_tensor
    monkeypatch.setattr(
        DTensor, "full_tensor", lambda tensor: held.append(tensor.dtype) or gather(tensor)
    )
    with pytest.raises(OSError):
        snapshot.weights(sharded, tmp_path / "no folder" / "model.safetensors")
    assert held == [torch.float32, torch.bfloat16, torch.bfloat16]
