"""What an image-to-video model is told, encoded once: the same as from pixels under its mask."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from model.checkpoint import save
from model.condition import condition
from model.vae import WanVAE
from recipes.load import UsageError, load, main
from recipes.training import MASKS, Fit, Latents
from tests import numbered, small_fit
from tests.drawn import draw
from tests.rendered_shards import rendered
from tests.small_fit import shrink, train
from training import decode, flops, workload
from training.batch import Bucket, pixels
from training.cache import Piece
from training.data import ShardData
from training.dit_module import DiTModule
from training.encoding import Encoding
from training.latents import latents
from training.machine import Machine
from training.preflight import planned
from training.reader import BrokenDataError
from training.tars import Row

NINE, FIVE = Bucket(64, 64, 9), Bucket(64, 64, 5)
SHARES = {"first": 0.4, "both": 0.2, "random": 0.4}
DRAWN = [f"objective.masks.{name}={share}" for name, share in SHARES.items()]
NONE = [f"objective.masks.{name}=0" for name in MASKS]
# statistics that tell normalised latents from others
SIZES = {"width": 4, "latent_channels": 4, "multipliers": (1, 1, 1, 2), "blocks": 1}
SIZES |= {"latent_mean": [1.0, -2.0, 0.5, 3.0], "latent_std": [0.5, 2.0, 3.0, 0.2]}
KEYS = ["buckets.sizes=64x64", "buckets.frames=1,9", "buckets.tokens=192", "data.workers=0"]


@pytest.fixture(scope="module")
def vae() -> WanVAE:
    return draw(WanVAE(**SIZES)).requires_grad_(False)


@pytest.fixture(scope="module")
def profile(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("curated") / "tiny"
    clips = [numbered.clip(14, start=7 * k) for k in range(6)]
    numbered.curated(folder, [*clips, numbered.image(50)], "train")
    numbered.curated(folder, [numbered.clip(9, start=200)], "val")
    return folder


def config(profile: Path, *arguments: str) -> Latents:
    return load(Latents, [*KEYS, f"data.shards={profile}", *DRAWN, *arguments])


@pytest.fixture(scope="module")
def cached(profile, vae, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("latents") / "tiny"
    Encoding(config(profile), vae, out).run()
    return out


def trained_on(cached: Path, *arguments: str) -> ShardData:
    return ShardData(load(Fit, [*KEYS, f"data.latents={cached}", *DRAWN, *arguments]), "dit")


def stored(row: Row) -> dict[str, torch.Tensor]:
    return decode.cached(decode.tars.sample(row)["safetensors"])


def frames_given(one: torch.Tensor) -> torch.Tensor:
    """Which frames a condition's mask channels give, [T] bool, one latent after another."""
    channels = one[:4, :, 0, 0]
    assert (one[:4] == channels[:, :, None, None]).all()
    assert channels[0, 0] == channels[1, 0] == channels[2, 0] == channels[3, 0]
    later = [bool(channels[k, at]) for at in range(1, channels.shape[1]) for k in range(4)]
    return torch.tensor([bool(channels[0, 0]), *later])


def clips(profile: Path, data: ShardData) -> dict[str, torch.Tensor]:
    """The cached clips' pixels [1, 3, 9, H, W]."""
    plain, taste = ShardData(config(profile), "dit").index, decode.Taste()
    rows = [plain.row(number) for number in range(len(plain))]
    videos = {
        row.key: decode.decode(row, NINE, taste, decode.HELD_OUT).video
        for row in rows
        if row.media == "mp4"
    }
    assert videos.keys() < set(data.index.keys.to_pylist())
    return {key: pixels(video[None]) for key, video in videos.items()}


def test_a_cached_condition_is_that_of_the_pixels_under_its_mask(profile, cached, vae):
    data = trained_on(cached)
    videos, masks = clips(profile, data), Counter()
    for number in range(len(data.index)):
        row = data.index.row(number)
        found = stored(row)
        if row.key not in videos:
            assert set(found) == {"mean", "logvar"}  # the image
            continue
        assert set(found) == {"mean", "logvar", *(f"condition.{k}" for k in range(4))}
        for k in range(4):
            one = found[f"condition.{k}"]
            assert one.dtype == torch.float16
            given = frames_given(one)
            wanted = condition(vae, videos[row.key], given)[0]
            assert one.shape == wanted.shape == (8, 3, 8, 8)
            got = vae.normalize(one[None, 4:].float())[0]
            ulps = 2**-11 * one[4:].abs().amax((1, 2, 3)) / vae.latent_std.flatten()
            assert ((got - wanted[4:]).abs().amax((1, 2, 3)) <= 2 * ulps).all()
            masks[tuple(given.tolist())] += 1
    assert len(masks) > 3


def test_masks_come_as_often_as_their_shares_ask_and_are_each_clip_s_own(profile, vae, tmp_path):
    def drawn(*arguments: str) -> list[tuple[bool, ...]]:
        encoding = Encoding(config(profile, *arguments), vae, tmp_path)
        pieces = [
            Piece(encoding.shards["train"][0].pieces[0].row, NINE, f"{k}") for k in range(500)
        ]
        return [encoding._mask(piece, k) for piece in pieces for k in range(4)]

    masks = drawn()
    kinds = Counter(mask if sum(mask[1:-1]) == 0 else "random" for mask in masks)
    ends = (True, *[False] * 7, True)
    assert kinds[ends] / len(masks) == pytest.approx(SHARES["both"], abs=0.04)
    assert kinds["random"] / len(masks) == pytest.approx(SHARES["random"], abs=0.08)
    same = sum(a == b for a, b in zip(masks[::4], masks[1::4], strict=True)) / 500
    assert same < 0.5  # 0.4² + 0.2² and a little, were they independent
    assert drawn() == masks
    assert drawn("seed=1") != masks


def test_encoded_again_they_are_the_same_to_the_byte(profile, vae, cached, tmp_path):
    torch.rand(7)  # the global generator has no say
    Encoding(config(profile), vae, tmp_path, rank=0, world=2).run()
    Encoding(config(profile), vae, tmp_path, rank=1, world=2).run()
    files = sorted(cached.rglob("*.*"))
    assert len(files) == 6
    for path in files:
        assert path.read_bytes() == (tmp_path / path.relative_to(cached)).read_bytes(), path.name


@pytest.mark.parametrize(
    ("arguments", "again"),
    [
        (["cache.masks=3"], True),
        (["objective.masks.continuation=0.1"], True),
        (["objective.masks.both=0"], True),
        (["seed=1"], True),
        ([f"objective.masks.{name}={2 * share}" for name, share in SHARES.items()], False),
        (NONE, True),
    ],
)
def test_other_masks_are_encoded_anew(profile, vae, cached, arguments, again):
    asked = Encoding(config(profile, *arguments), vae, cached).shards
    shards = [shard for some in asked.values() for shard in some]
    assert [shard.finished() for shard in shards] == [not again] * len(shards)


def test_the_manifest_says_how_they_were_drawn(cached):
    for split in ("train", "val"):
        said = json.loads((cached / split / "manifest.json").read_text())
        assert said["masks"] == {"count": 4, "seed": 0, "shares": SHARES}


def test_a_text_to_video_cache_holds_none_and_does_not_depend_on_their_number(
    profile, vae, tmp_path
):
    for count in (1, 4):
        asked = config(profile, *NONE, f"cache.masks={count}")
        Encoding(asked, vae, tmp_path / str(count)).run()
    files = list((tmp_path / "1").rglob("*.*"))
    assert len(files) == 6
    for path in files:
        other = tmp_path / "4" / path.relative_to(tmp_path / "1")
        assert path.read_bytes() == other.read_bytes()
    data = ShardData(load(Fit, [*KEYS, f"data.latents={tmp_path / '4'}"]), "dit")
    for number in range(len(data.index)):
        assert set(stored(data.index.row(number))) == {"mean", "logvar"}
    said = json.loads((tmp_path / "4" / "train" / "manifest.json").read_text())
    names = {"format", "vae", "dtype", "fps", "samples", "bytes", "left_out", "shards"}
    assert set(said) == names


def test_training_takes_every_condition_of_a_clip_and_validation_the_first(cached):
    data = trained_on(cached)
    row, taste = data.index.row(0), decode.Taste(conditions=True)
    own = [stored(row)[f"condition.{k}"].float() for k in range(4)]

    def taken(epoch: int) -> set[int]:
        found = decode.decode(row, NINE, taste, epoch).condition
        return {k for k, one in enumerate(own) if torch.equal(one, found)}

    assert all(taken(epoch) for epoch in range(60))
    assert {k for epoch in range(60) for k in taken(epoch)} == set(range(4))
    for number in range(6):
        other = data.index.row(number)
        first = stored(other)["condition.0"].float()
        assert torch.equal(decode.decode(other, NINE, taste, decode.HELD_OUT).condition, first)
    assert decode.decode(row, NINE, decode.Taste(), 0).condition is None  # text-to-video


def test_of_a_longer_clip_the_condition_is_that_of_the_shorter(profile, cached, vae):
    data, seen = trained_on(cached, "buckets.frames=5"), 0
    videos, taste = clips(profile, data), decode.Taste(conditions=True)
    for number in range(len(videos)):
        row = data.index.row(number)
        for epoch in range(4):
            one = decode.decode(row, FIVE, taste, epoch).condition
            given = frames_given(one)
            wanted = condition(vae, videos[row.key][:, :, :5], given)[0]
            got = vae.normalize(one[None, 4:])[0]
            assert got.shape == wanted[4:].shape
            assert (got - wanted[4:]).abs().max() <= 4e-3 * wanted[4:].abs().max()
            seen += int(given.sum())
    assert seen


def test_cut_short_a_condition_that_gives_all_or_nothing_is_passed_over_for_another():
    def told(*frames: int) -> torch.Tensor:
        mask = torch.zeros(13)
        mask[list(frames)] = 1
        channels = torch.cat([mask[:1].repeat(4), mask[1:]]).view(-1, 4).T
        return torch.cat([channels[..., None, None].expand(-1, -1, 2, 2), torch.zeros(4, 4, 2, 2)])

    most, some, last = told(*range(9)), told(0, 7), told(12)
    found = {"mean": torch.zeros(4, 4, 2, 2)}
    found |= {f"condition.{k}": one for k, one in enumerate((most, some, last))}
    whole = Bucket(16, 16, 13)

    def taken(bucket: Bucket, found: dict[str, torch.Tensor] = found) -> list[torch.Tensor]:
        return [decode.condition(found, bucket, which) for which in (0.0, 0.4, 0.99)]

    for got, wanted in zip(taken(whole), (most, some, last), strict=True):
        assert torch.equal(got, wanted)
    assert all(torch.equal(one, some[:, :2]) for one in taken(Bucket(16, 16, 5)))
    alone = {"mean": found["mean"], "condition.0": most}
    assert all(torch.equal(one, most[:, :2]) for one in taken(Bucket(16, 16, 5), alone))


def test_batches_hold_a_condition_for_every_clip_and_none_for_images(cached):
    data, seen = trained_on(cached, "data.image_share=0.3"), set()
    for _, step in zip(range(12), data.train_dataloader(), strict=False):
        assert not step.broken
        for batch in step.batches:
            seen.add(batch.bucket.frames)
            if batch.bucket.is_image:
                assert batch.condition is None
                continue
            assert batch.condition.shape == (len(batch), 8, *batch.mean.shape[2:])
            moved = batch.to("meta")
            assert moved.condition.device == moved.mean.device == torch.device("meta")
    assert seen == {1, 9}
    (held_out,) = data.val_dataloader()
    assert held_out.condition.shape == (1, 8, 3, 8, 8)


def test_latents_without_conditions_or_under_other_masks_are_refused(
    profile, cached, vae, tmp_path
):
    for arguments in (
        [f"objective.masks.{name}={7 * share}" for name, share in SHARES.items()],
        NONE,
    ):
        trained_on(cached, *arguments)
    with pytest.raises(
        UsageError, match=r"drawn as first 0\.4.*objective.masks says first 1;"
    ) as e:
        trained_on(cached, "objective.masks.both=0", "objective.masks.random=0")
    assert "\n" not in str(e.value)
    Encoding(config(profile, *NONE), vae, tmp_path).run()
    line = (
        r"has no conditions; encode it with `python training/latents.py recipe=tiny-i2v cache.out="
    )
    with pytest.raises(UsageError, match=line) as e:
        trained_on(tmp_path, "recipe=tiny-i2v")
    assert "\n" not in str(e.value)


def test_a_clip_without_conditions_is_broken_and_never_half_a_batch(cached, monkeypatch):
    data, whole = trained_on(cached), decode.cached
    monkeypatch.setattr(
        decode, "cached", lambda media: {k: v for k, v in whole(media).items() if "." not in k}
    )
    with pytest.raises(BrokenDataError, match="has no conditions"):
        list(data.val_dataloader())
    row, taste = data.index.row(0), decode.Taste(conditions=True)
    monkeypatch.setattr(
        decode, "cached", lambda media: whole(media) | {"condition.1": torch.ones(3)}
    )
    with pytest.raises(decode.BrokenError, match=r"conditions of .*\[3\]"):
        decode.decode(row, NINE, taste, 0)


def test_what_cannot_be_encoded_is_told(profile, vae, tmp_path):
    for given, line in (("cache.masks=0", "at least 1"), ("image_encoder=clip", "not cached")):
        with pytest.raises(UsageError, match=line):
            Encoding(config(profile, given), vae, tmp_path)


def test_with_conditions_cached_a_plan_encodes_nothing():
    machine = Machine("CPU", False, 10**12, 1e11, 1e11)
    pixel, latent, still = (
        planned(load(Fit, ["recipe=tiny-i2v", "vae=none/here", *keys]), machine)
        for keys in ([], ["data.latents=x"], ["data.latents=x", *NONE])
    )
    (load_,) = workload.mix(pixel.config)
    each = flops.of_encoding(pixel.networks.vae.config, load_.bucket)
    assert each > 0
    assert pixel.work.still - latent.work.still == pytest.approx(2 * load_.samples * each)
    assert latent.work.still == pytest.approx(still.work.still)
    working = [
        next(moment for moment in one.moments if moment.name == "encoding").kinds.get("working", 0)
        for one in (pixel, latent, still)
    ]
    assert working[0] > working[1] == working[2] == 0


@small_fit.QUIET
def test_the_commands_encode_and_train_image_to_video_without_the_vae(
    tmp_path, monkeypatch, capsys
):
    shrink(monkeypatch)
    shards, runs = rendered(tmp_path / "shards", count=8), tmp_path / "runs"
    save(draw(WanVAE(width=4, blocks=1)), tmp_path / "vae")
    given = {"vae": tmp_path / "vae", "starts_from": "null", "compute__precision": "float32"}
    keys = small_fit.KEYS | {"vae": tmp_path / "vae", "data.shards": shards, "runs": runs}
    arguments = ["recipe=tiny-i2v", *(f"{name}={value}" for name, value in keys.items())]
    assert main(Latents, latents, arguments) == 0
    assert "4 a video: first 0.5, continuation 0.2" in capsys.readouterr().out
    given["data__latents"] = runs / "latents" / "tiny-i2v"

    def encodes(*_: object) -> None:
        raise AssertionError("pixels are encoded")

    monkeypatch.setattr(WanVAE, "encode_stream", encodes)
    seen, losses = [], DiTModule.losses
    monkeypatch.setattr(DiTModule, "losses", lambda *a: seen.append(a[1].condition) or losses(*a))
    assert train("tiny-i2v", shards, runs, name="a", validate__every=2, **given) == 0
    assert [tuple(one.shape) for one in seen] == [(1, 20, 3, 8, 8)] * 2
    last = (runs / "tiny-i2v" / "a" / "validation.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["step"] == 2
    other = given | {"objective__masks__both": 0}
    assert train("tiny-i2v", shards, runs, name="b", **other) == 2
