"""Tensors in files: ours and others' are read both ways, and a broken file is told in a line."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file

from model.tensors import DTYPES, CheckpointError, entry, open_weights
from model.writer import fresh, write_pickle, write_weights


def drawn(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Random bits, so that a cast on the way would show."""
    count = torch.tensor(shape).prod().item() if shape else 1
    bits = torch.randint(0, 256, (int(count) * dtype.itemsize,), dtype=torch.uint8)
    if dtype == torch.bool:
        bits = bits % 2
    return bits.view(dtype).reshape(shape)


def some_tensors() -> dict[str, torch.Tensor]:
    """Every dtype, a scalar, an empty tensor, and a name that isn't ASCII."""
    torch.manual_seed(0)
    tensors = {label: drawn(dtype, 3, 5) for label, dtype in DTYPES.items()}
    return tensors | {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "名": torch.ones(2)}


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bit for bit, so that NaN equals NaN."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return torch.equal(*(one.contiguous().reshape(-1).view(torch.uint8) for one in (a, b)))


def entries(tensors: dict[str, torch.Tensor]) -> dict:
    return {name: entry(one) for name, one in tensors.items()}


def refused(path: Path) -> str:
    """The one line that opening it ends in."""
    with pytest.raises(CheckpointError) as caught:
        open_weights(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text or str(path.parent) in text
    return text


def test_what_safetensors_wrote_is_read_bit_for_bit(tmp_path):
    tensors = some_tensors()
    save_file(tensors, tmp_path / "a.safetensors", metadata={"note": "ü"})
    weights = open_weights(tmp_path / "a.safetensors")
    assert weights.metadata == {"note": "ü"}
    assert weights.entries.keys() == tensors.keys()
    assert all(same(weights.read(name), one) for name, one in tensors.items())


def test_a_written_file_has_the_bytes_that_safetensors_gives_it(tmp_path):
    save_file(some_tensors(), tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    copied = open_weights(tmp_path / "theirs.safetensors").entries
    write_weights(tmp_path, "ours", copied)
    ours, theirs = (tmp_path / f"{name}.safetensors" for name in ("ours", "theirs"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_what_is_written_in_any_order_safetensors_reads(tmp_path):
    tensors = dict(reversed(some_tensors().items()))
    write_weights(tmp_path, "a", entries(tensors), {"note": "x"})
    found = load_file(tmp_path / "a.safetensors")
    assert all(same(found[name], one) for name, one in tensors.items())


def test_a_tensor_larger_than_the_buffer_is_copied_and_cast_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("model.tensors.CHUNK", 64)
    torch.manual_seed(0)
    tensors = {"a": torch.randn(5, 77), "n": torch.arange(100)}
    save_file(tensors, tmp_path / "a.safetensors")
    source = open_weights(tmp_path / "a.safetensors").entries
    assert len(list(source["a"].chunks())) == 25
    write_weights(tmp_path, "b", {name: one.to(torch.bfloat16) for name, one in source.items()})
    found = load_file(tmp_path / "b.safetensors")
    assert same(found["a"], tensors["a"].bfloat16())
    assert same(found["n"], tensors["n"])


@pytest.mark.parametrize("most", ["30KB", "200KB", "10GB"])
def test_shards_are_named_and_cut_as_diffusers_does_it(tmp_path, most):
    torch.manual_seed(0)
    model = AutoencoderKLWan(base_dim=4, z_dim=4, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    model.save_pretrained(tmp_path / "theirs", max_shard_size=most)
    ours = tmp_path / "ours"
    ours.mkdir()
    size = int(most[:-2]) * {"KB": 10**3, "GB": 10**9}[most[-2:]]
    stem = "diffusion_pytorch_model"
    write_weights(ours, stem, entries(model.state_dict()), shard_bytes=size)
    theirs = {path.name for path in (tmp_path / "theirs").iterdir()} - {"config.json"}
    assert {path.name for path in ours.iterdir()} == theirs
    assert len(theirs) > 2 or most == "10GB"
    for name in theirs:
        if name.endswith(".json"):
            found = [
                json.loads((folder / name).read_text()) for folder in (ours, ours.parent / "theirs")
            ]
            assert found[0]["weight_map"] == found[1]["weight_map"]
            assert found[0]["metadata"]["total_size"] == found[1]["metadata"]["total_size"]
        else:
            mine, other = load_file(ours / name), load_file(tmp_path / "theirs" / name)
            assert all(same(mine[one], value) for one, value in other.items())
            assert mine.keys() == other.keys()


@pytest.fixture
def sharded(tmp_path):
    """Five tensors in three shards, and their index."""
    torch.manual_seed(0)
    tensors = {f"t{i}": torch.randn(10) for i in range(5)}
    write_weights(tmp_path, "m", entries(tensors), shard_bytes=80)
    return tmp_path, tensors


@pytest.mark.parametrize(
    "name",
    ["m.safetensors.index.json", "m-00001-of-00003.safetensors", "m-00003-of-00003.safetensors"],
)
@pytest.mark.parametrize("indexed", [True, False])
def test_index_and_shard_alike_open_the_whole_set(sharded, name, indexed):
    folder, tensors = sharded
    if not indexed:
        if name.endswith("json"):
            return
        (folder / "m.safetensors.index.json").unlink()
    weights = open_weights(folder / name)
    assert len(weights.files) == 3
    assert all(same(weights.read(one), value) for one, value in tensors.items())
    assert weights.entries.keys() == tensors.keys()


def test_a_missing_shard_is_named(sharded):
    folder, _ = sharded
    (folder / "m-00002-of-00003.safetensors").unlink()
    for name in ("m.safetensors.index.json", "m-00001-of-00003.safetensors"):
        assert "m-00002-of-00003.safetensors" in refused(folder / name)
    (folder / "m.safetensors.index.json").unlink()
    assert "m-00002-of-00003.safetensors" in refused(folder / "m-00001-of-00003.safetensors")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda index: index["weight_map"].pop("t3"), "t3"),
        (lambda index: index["weight_map"].update(t9="m-00001-of-00003.safetensors"), "t9"),
        (lambda index: index["weight_map"].update(t0="../m-00001-of-00003.safetensors"), "beside"),
        (lambda index: index["weight_map"].update(t0=7), "weight_map"),
        (lambda index: index.pop("weight_map"), "weight_map"),
    ],
)
def test_an_index_that_lies_or_points_elsewhere_is_refused(sharded, change, said):
    folder, _ = sharded
    path = folder / "m.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    assert said in refused(path)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-1],  # cut short
        lambda data: data[: len(data) // 2],
        lambda data: data[:5],
        lambda data: b"",
        lambda data: data + b"\0",  # something behind
        lambda data: b"\xff" * 8 + data[8:],  # a header longer than the file
        lambda data: data[:8] + b"[" + data[9:],
        lambda data: data.replace(b"[0,60]", b"[8,68]"),  # tensors that overlap
        lambda data: b"<html>not found</html>",
    ],
)
def test_a_broken_file_is_one_line_that_names_it(tmp_path, spoil):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(3, 5), "b": torch.ones(2)}, path)
    sound = path.read_bytes()
    assert spoil(sound) != sound
    path.write_bytes(spoil(sound))
    refused(path)


def test_a_file_that_shrinks_while_it_is_read_is_told(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(1000)}, path)
    weights = open_weights(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="ended early"):
        weights.read("a")


def test_a_pickle_of_tensors_is_read_in_either_layout(tmp_path):
    torch.manual_seed(0)
    tensors = {"a": torch.randn(3, 4).bfloat16(), "b": torch.randn(6, 5).T}  # one not contiguous
    write_pickle(tmp_path / "new.pth", entries(tensors))
    torch.save(tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("new.pth", "old.pth"):
        weights = open_weights(tmp_path / name)
        assert all(same(weights.read(one), value) for one, value in tensors.items())
        write_weights(tmp_path, "copy", weights.entries)
        assert same(load_file(tmp_path / "copy.safetensors")["b"], tensors["b"])
    plain = torch.load(tmp_path / "new.pth", weights_only=True)
    assert all(same(plain[one], value) for one, value in tensors.items())


class Evil:
    """Unpickled in full, it would write a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (self.path, "run"))


def test_a_pickle_runs_no_code(tmp_path):
    torch.save({"a": torch.ones(2), "b": Evil(tmp_path / "ran")}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth")
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "a.pth", weights_only=False)
    assert (tmp_path / "ran").exists()  # the trap works


@pytest.mark.parametrize("content", [[torch.ones(2)], {"a": 1}, {"a": {"b": torch.ones(1)}}, {}])
def test_a_pickle_of_something_else_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    refused(tmp_path / "a.pth")


def test_a_file_that_is_no_pickle_or_is_not_there_is_refused(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"PK\x03\x04 and no more")
    refused(tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(b"")
    refused(tmp_path / "b.pth")
    assert "no such file" in refused(tmp_path / "c.safetensors")


def test_a_dtype_that_pytorch_lacks_is_copied_but_not_read(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.arange(6, dtype=torch.uint8)}, path)
    data = path.read_bytes().replace(b'"dtype":"U8"', b'"dtype":"F8_E8M0"')
    header = data[8 : 8 + int.from_bytes(data[:8], "little") + 5].rstrip()
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(range(6)))
    weights = open_weights(path)
    with pytest.raises(CheckpointError, match=r"a\.safetensors: a: dtype F8_E8M0"):
        weights.read("a")
    write_weights(tmp_path, "b", weights.entries)
    assert (tmp_path / "b.safetensors").read_bytes()[-6:] == bytes(range(6))


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    with fresh(tmp_path / "deep" / "a") as partial:
        (partial / "x").write_text("1")
        assert not (tmp_path / "deep" / "a").exists()
    assert (tmp_path / "deep" / "a" / "x").read_text() == "1"

    def interrupted():
        with fresh(tmp_path / "b") as partial:
            (partial / "x").write_text("1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]


def test_what_is_there_already_is_never_overwritten(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("1")
    (tmp_path / "file").write_text("1")
    (tmp_path / "empty").mkdir()
    for name in ("full", "file"):
        with pytest.raises(CheckpointError, match="is there already"), fresh(tmp_path / name):
            pass
    with fresh(tmp_path / "empty") as partial:
        (partial / "x").write_text("1")
    assert (tmp_path / "empty" / "x").exists()
    with pytest.raises(CheckpointError, match="can't be written"), fresh(tmp_path / "file" / "a"):
        pass
