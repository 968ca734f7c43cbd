"""Latents are encoded once, read like video, and belong to one VAE."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch

from model.byte_encoder import ByteEncoder
from model.checkpoint import save
from model.vae import WanVAE
from recipes.load import UsageError, load
from recipes.training import Latents
from tests import numbered
from training import cache, decode
from training.batch import Bucket
from training.data import ShardData
from training.encoding import Encoding
from training.features import Features
from training.latents import latents
from training.reader import BrokenDataError

SMALL = {"width": 4, "latent_channels": 4, "multipliers": (1, 1, 1, 2), "blocks": 1}


def drawn(seed: int = 0, **sizes) -> WanVAE:
    torch.manual_seed(seed)
    return WanVAE(**SMALL | sizes).eval()


@pytest.fixture(scope="module")
def vae() -> WanVAE:
    return drawn()


@pytest.fixture(scope="module")
def profile(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("curated") / "tiny"
    clips = [numbered.clip(14, start=k) for k in range(5)]
    numbered.curated(folder, [*clips, numbered.image(50)], "train", sampling_weight=0.5)
    numbered.curated(folder, [numbered.clip(9, start=200)], "val")
    return folder


def config(profile: Path, *arguments: str) -> Latents:
    given = ["buckets.sizes=64x64", "buckets.frames=1,9", "buckets.tokens=192", "data.workers=0"]
    return load(Latents, [*given, f"data.shards={profile}", "cache.samples=4", *arguments])


@pytest.fixture(scope="module")
def cached(profile, vae, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("latents") / "tiny"
    Encoding(config(profile), vae, out).run()
    return out


def trained_on(cached: Path, *arguments: str) -> ShardData:
    given = ["buckets.frames=1,9", "data.image_share=0.2", *arguments]
    return ShardData(numbered.config(f"data.latents={cached}", *given), "dit")


def test_a_cached_posterior_is_the_vae_s_own(profile, cached, vae):
    data, plain = trained_on(cached), ShardData(config(profile), "dit")
    keys = data.index.keys.to_pylist()
    assert keys == [f"{k:03d}-train" for k in range(6)]
    for number, key in enumerate(keys):
        bucket = Bucket(64, 64, 1 if key.startswith("005") else 9)
        taste = decode.Taste()
        found = decode.decode(data.index.row(number), bucket, taste, 0)
        video = decode.decode(plain.index.row(number), bucket, taste, decode.HELD_OUT).video
        with torch.no_grad():
            own = vae.encode(video[None].float() / 127.5 - 1)
        for name in ("mean", "logvar"):
            a, b = getattr(found, name), getattr(own, name)[0]
            assert a.shape == b.shape == (4, 1 + (bucket.frames - 1) // 4, 8, 8)
            assert (a - b).abs().max() <= 2e-3 * b.abs().max()  # float16
        assert key in found.prompt
        assert found.scores == {"flow_mean": 0.25}
        assert found.tier == "optimal"


def test_batches_hold_posteriors_instead_of_pixels(cached):
    data = trained_on(cached)
    for _, step in zip(range(4), data.train_dataloader(), strict=False):
        for batch in step.batches:
            latent = 1 + (batch.bucket.frames - 1) // 4
            assert batch.video is None
            assert batch.mean.shape == batch.logvar.shape == (len(batch), 4, latent, 8, 8)
            assert batch.mean.dtype == torch.float32
    (held_out,) = data.val_dataloader()
    assert held_out.keys == ["000-val"]


def test_of_a_longer_clip_the_first_latents_are_those_of_the_shorter(cached, vae, profile):
    """The VAE is causal, so growth needs no encoding anew, nor do single frames."""
    shorter = trained_on(cached, "buckets.frames=5")
    found = decode.decode(shorter.index.row(0), Bucket(64, 64, 5), decode.Taste(), 0)
    plain = ShardData(config(profile), "dit")
    video = decode.decode(plain.index.row(0), Bucket(64, 64, 9), decode.Taste(), decode.HELD_OUT)
    with torch.no_grad():
        own = vae.encode(video.video[None, :, :5].float() / 127.5 - 1)
    assert found.mean.shape == own.mean[0].shape
    assert (found.mean - own.mean[0]).abs().max() <= 2e-3 * own.mean.abs().max()
    images = trained_on(cached, "buckets.frames=1", "data.frames_as_images=true")
    assert len(images.phases[0].images) == 1  # there is one image, so no frame stands in


def test_features_of_all_captions_are_cached_with_the_latents(profile, vae, tmp_path):
    text = ByteEncoder(width=8, length=64).eval()
    Encoding(config(profile), vae, tmp_path, text).run()
    data = trained_on(tmp_path)
    assert data.has_text
    whole = {"en": set(), "zh": set()}
    for taste in (decode.Taste(captions=one) for one in whole):
        for number in range(len(data.index)):
            found = decode.decode(data.index.row(number), Bucket(64, 64, 1), taste, 0)
            with torch.no_grad():
                own = text.encode([found.prompt])
            torch.testing.assert_close(found.text, own.features[0, : own.lengths[0]])
            whole[taste.captions].add(found.prompt)
    assert not whole["en"] & whole["zh"]
    for _, step in zip(range(3), data.train_dataloader(), strict=False):
        for batch in step.batches:
            with torch.no_grad():
                own = text.encode(batch.prompts)
            torch.testing.assert_close(batch.text, own.features[:, : own.lengths.max()])
    data.check(vae, text)
    with pytest.raises(UsageError, match="another text encoder than text_encoder="):
        data.check(vae, ByteEncoder(width=8, length=64, seed=1))
    index = (tmp_path / "train" / "00000.parquet").stat().st_mtime_ns
    Encoding(config(profile), vae, tmp_path, text).run()
    assert (tmp_path / "train" / "00000.parquet").stat().st_mtime_ns == index
    Encoding(config(profile), vae, tmp_path).run()  # without text it is another cache
    assert not trained_on(tmp_path).has_text


def test_the_manifest_and_the_index_say_what_is_there(cached, vae):
    said = json.loads((cached / "train" / "manifest.json").read_text())
    assert said["format"] == cache.FORMAT
    assert said["vae"] == {"sha256": cache.fingerprint(vae), "config": vae.config}
    assert (said["dtype"], said["fps"], said["samples"]) == ("float16", 16.0, 6)
    assert [entry["shard"] for entry in said["shards"]] == ["00000.tar", "00001.tar"]
    rows = pq.read_table(cached / "train" / "00000.parquet").to_pylist()
    assert {row["media"] for row in rows} == {"safetensors"}
    assert {row["sampling_weight"] for row in rows} == {0.5}
    assert {(row["width"], row["height"], row["frames"]) for row in rows} == {(64, 64, 9)}


def test_a_vae_is_known_by_what_encodes_and_not_by_its_file(vae, tmp_path):
    same = drawn()
    assert cache.fingerprint(same) == cache.fingerprint(vae)
    with torch.no_grad():
        next(same.decoder.parameters()).add_(1)
        same.conv2.weight.add_(1)
    same.latent_mean.add_(1)
    assert cache.fingerprint(same) == cache.fingerprint(vae)
    with torch.no_grad():
        same.conv1.bias.view(-1)[0] += 1e-3
    assert cache.fingerprint(same) != cache.fingerprint(vae)
    assert cache.fingerprint(drawn(1)) != cache.fingerprint(vae)


def test_latents_of_another_vae_are_refused(cached, vae, profile, tmp_path):
    trained_on(cached).check(vae)
    with pytest.raises(UsageError, match=r"encoded by another VAE.*training/latents.py"):
        trained_on(cached).check(drawn(1))
    data = trained_on(cached)
    other = SimpleNamespace(vae=drawn(1), features=Features(ByteEncoder(width=8, length=64)))
    data.trainer = SimpleNamespace(lightning_module=other)
    with pytest.raises(UsageError, match="encoded by another VAE"):
        data.setup("fit")
    with pytest.raises(UsageError, match="shards of video, not of latents"):
        cache.check(str(profile), vae)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "manifest.json").write_text("{")
    with pytest.raises(UsageError, match="can't be read"):
        cache.check(str(tmp_path), vae)


def test_a_vae_and_a_model_with_an_image_branch_want_pixels(cached):
    branch = ["objective.masks.first=1", "image_encoder=clip"]
    for arguments, kind in (([], "vae"), (branch, "dit"), (["image_encoder=clip"], "dit")):
        with pytest.raises(UsageError, match="trained on pixels"):
            ShardData(numbered.config(f"data.latents={cached}", *arguments), kind)


def test_several_windows_of_a_clip_share_its_weight(profile, vae, tmp_path):
    Encoding(config(profile, "cache.windows=3"), vae, tmp_path).run()
    data = trained_on(tmp_path)
    keys = data.index.keys.to_pylist()
    assert keys[:4] == ["000-train-w0", "000-train-w1", "000-train-w2", "001-train-w0"]
    assert keys[-1] == "005-train"  # the image
    assert data.index.weight[:3].tolist() == pytest.approx([0.5 / 3] * 3)
    means = [decode.decode(data.index.row(k), Bucket(64, 64, 9), decode.Taste(), 0) for k in (0, 2)]
    assert (means[0].mean - means[1].mean).abs().max() > 0
    # of 6 possible windows, the second, the fourth and the last
    pieces = Encoding(config(profile, "cache.windows=3"), vae, tmp_path).shards["train"][0].pieces
    firsts = [
        numbered.numbers(
            decode.decode(one.row, one.bucket, decode.Taste(), decode.HELD_OUT, one.place).video
        )[0]
        for one in pieces[:3]
    ]
    assert firsts == [1, 3, 5]


def test_what_is_there_is_not_encoded_again(profile, vae, cached, tmp_path):
    out = tmp_path / "tiny"
    shutil.copytree(cached, out)
    before = {path.name: path.stat().st_mtime_ns for path in (out / "train").glob("*.tar")}
    (out / "train" / "00001.tar").unlink()
    (out / "train" / "manifest.json").unlink()
    with pytest.raises(UsageError, match="no finished shards"):
        trained_on(out)
    Encoding(config(profile), vae, out).run()
    after = {path.name: path.stat().st_mtime_ns for path in (out / "train").glob("*.tar")}
    assert after["00000.tar"] == before["00000.tar"]
    for path in sorted(cached.rglob("*.*")):
        assert path.read_bytes() == (out / path.relative_to(cached)).read_bytes(), path.name


def test_killed_in_the_midst_of_a_shard_nothing_half_is_left(profile, vae, tmp_path, monkeypatch):
    whole, calls = cache._packed, []

    def dies(*arguments):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(cache, "_packed", dies)
    with pytest.raises(KeyboardInterrupt):
        Encoding(config(profile), vae, tmp_path).run()
    names = sorted(path.name for path in (tmp_path / "train").iterdir())
    assert names == ["00000.parquet", "00000.tar"]
    Encoding(config(profile), vae, tmp_path).run()
    assert len(trained_on(tmp_path).index) == 6
    assert len(calls) == 6 + 3  # the two of the second shard, and the held-out clip


def test_another_vae_encodes_everything_anew(profile, vae, cached, tmp_path):
    shutil.copytree(cached, tmp_path / "tiny")
    Encoding(config(profile), drawn(1), tmp_path / "tiny").run()
    trained_on(tmp_path / "tiny").check(drawn(1))
    with pytest.raises(UsageError, match="another VAE"):
        trained_on(tmp_path / "tiny").check(vae)


def test_processes_share_the_shards_and_the_last_one_finishes(profile, vae, cached, tmp_path):
    first = Encoding(config(profile), vae, tmp_path, rank=0, world=2).run()
    assert not (tmp_path / "train" / "manifest.json").exists()
    assert sum(shard.finished() for some in first.shards.values() for shard in some) == 2
    Encoding(config(profile), vae, tmp_path, rank=1, world=2).run()
    for path in sorted(cached.rglob("*.*")):
        assert path.read_bytes() == (tmp_path / path.relative_to(cached)).read_bytes(), path.name


def test_a_clip_that_cannot_be_read_has_its_row_and_too_many_stop_the_command(
    profile, vae, tmp_path
):
    shutil.copytree(profile, tmp_path / "raw")
    tar = tmp_path / "raw" / "train" / "00000.tar"
    data = bytearray(tar.read_bytes())
    data[data.index(b"mdat") + 40] ^= 255
    tar.write_bytes(data)
    done = Encoding(config(tmp_path / "raw"), vae, tmp_path / "out").run()
    assert done.tally.broken == 1
    said = json.loads((tmp_path / "out" / "train" / "manifest.json").read_text())
    assert said["samples"] == 5
    assert [one["key"] for one in said["left_out"]] == ["000-train"]
    assert len(trained_on(tmp_path / "out").index) == 5
    clips = numbered.curated(tmp_path / "many", [numbered.clip(9)] * 24, samples=24)
    tar = clips / "train" / "00000.tar"
    tar.write_bytes(tar.read_bytes().replace(b"mdat", b"mbad"))
    with pytest.raises(BrokenDataError, match="can't be read"):
        Encoding(config(clips), vae, tmp_path / "none").run()
    assert not (tmp_path / "none" / "train" / "manifest.json").exists()


@pytest.mark.parametrize("key", ["a/b c.d", "影" * 9, "x" * 200, "-dash"])
def test_a_stranger_s_key_becomes_one_of_ours(key):
    found = cache.safe(key)
    assert cache.KEY.fullmatch(found)
    assert found != cache.safe(key + "!")
    assert cache.safe("plain-key_1") == "plain-key_1"


def test_the_command_encodes_what_a_recipe_says(profile, vae, tmp_path, capsys):
    save(vae, tmp_path / "vae")
    given = [f"vae={tmp_path / 'vae'}", f"runs={tmp_path}", "compute.device=cpu"]
    with pytest.raises(UsageError, match=r"text_encoder=.*cache.text=false"):
        latents(config(profile, *given))
    asked = config(profile, *given, "model=tiny", "text_encoder=bytes")
    latents(asked)
    out = tmp_path / "latents" / "own"
    trained_on(out).check(vae)
    text = capsys.readouterr().out
    assert "6 clips in 2 of 2 shards" in text
    assert f"data.latents={out}" in text
    latents(asked)  # does nothing


def test_a_plan_shows_what_would_be_encoded_and_writes_nothing(profile, vae, tmp_path, capsys):
    save(vae, tmp_path / "vae")
    given = [f"vae={tmp_path / 'vae'}", f"cache.out={tmp_path / 'out'}", "compute.device=cpu"]
    given += ["text_encoder=bytes", "model=tiny"]
    latents(config(profile, *given, "plan=true"))
    text = capsys.readouterr().out
    assert "64x64x9" in text
    assert "0 of 6 samples are dropped" in text
    assert "0 clips in 0 of 2 shards, 0.0 MB; 6 clips to encode" in text
    assert "took" not in text
    assert not (tmp_path / "out").exists()
    latents(config(profile, *given))
    text = capsys.readouterr().out
    assert text.index("0 of 6 samples are dropped") < text.index("train/00000.tar, 1 of 3")
    (tmp_path / "out" / "train" / "00001.tar").unlink()
    latents(config(profile, *given, "plan=true"))
    assert "4 clips in 1 of 2 shards" in (text := capsys.readouterr().out)
    assert "2 clips to encode" in text


@pytest.mark.parametrize("given", ["name=x", "resume=never", "compute.devices=2"])
def test_keys_that_do_nothing_here_are_refused_with_what_does(profile, given):
    with pytest.raises(UsageError, match=f"{given.partition('=')[0]}: .*(cache.out|folder|torch)"):
        latents(config(profile, given))


def test_latents_that_are_not_there_name_the_command_that_writes_them(tmp_path, profile):
    line = (
        rf"no finished shards there; `python training/latents.py recipe=tiny cache.out={tmp_path}"
    )
    with pytest.raises(UsageError, match=line) as refused:
        trained_on(tmp_path, "recipe=tiny")
    assert "curation" not in str(refused.value)


def test_latents_of_another_frame_rate_are_refused(cached):
    with pytest.raises(UsageError, match=r"encoded at 16 frames a second, not at buckets.fps=8;"):
        trained_on(cached, "buckets.fps=8")


def test_weights_of_several_sources_are_in_the_latents(profile, vae, tmp_path):
    both = config(profile, f"data.shards={profile},{profile}", "data.weights=1,3")
    Encoding(both, vae, tmp_path).run()
    with pytest.raises(
        UsageError, match=r"data.weights=1,3: .* encoded with its weights; data.wei"
    ):
        trained_on(tmp_path, "data.weights=1,3")
    index = trained_on(tmp_path, "data.weights=").index
    found = {(index.row(k).key[0], float(index.weight[k])) for k in range(len(index))}
    assert found == {("0", 0.5), ("1", 1.5)}


def test_mixed_clips_are_encoded_where_they_are_drawn_and_trained_on_there(profile, vae, tmp_path):
    mixed = ["buckets.mixed=frames", "buckets.frames=1,5,9"]
    plain = ShardData(config(profile, *mixed), "dit")
    Encoding(config(profile, *mixed), vae, tmp_path).run()
    for given in (mixed, mixed[1:]):
        found = trained_on(tmp_path, *given)
        assert found.assignment.number.tolist() == plain.assignment.number.tolist()
        assert len({*found.assignment.number.tolist()}) == 3


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["trains=vae"], "trains a vae"),
        ([], "vae="),
        (["vae=nowhere/at/all"], "nowhere"),
    ],
)
def test_a_mistake_is_told(profile, arguments, line):
    with pytest.raises(UsageError, match=line):
        latents(config(profile, "compute.device=cpu", *arguments))


def test_what_cannot_be_encoded_is_told(profile, vae, cached, tmp_path):
    still = drawn(taps=1, temporal=(False, False, False))
    for given, who, line in (
        ([], still, "compresses by"),
        (["cache.windows=0"], vae, "at least 1"),
        ([f"data.latents={cached}"], vae, "from video"),
    ):
        with pytest.raises(UsageError, match=line):
            Encoding(config(profile, *given), who, tmp_path)
