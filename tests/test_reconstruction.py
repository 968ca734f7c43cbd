"""What a VAE loses: numbers against their formulas, planted faults, and the command itself."""

import json
import warnings

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from curation.video import clip_frames
from eval import clips, reconstruction
from eval import reconstruct as command
from eval.fvd import frechet, load_i3d
from eval.measures.encoders import BackboneError
from eval.reconstruction import Table, by_frame, load_perceptual, measured, take
from eval.stats import Draws
from eval.video_out import write_video
from model.bundle import drawn
from model.checkpoint import save
from model.distance import ssim
from model.vae import WanVAE
from recipes.load import main
from recipes.reconstruction import Reconstruction
from tests.rendered_shards import rendered

SIZES = {"width": 8, "blocks": 1}
CLIPS = [f"clip {k}" for k in range(40)]


def tiny(seed: int = 0) -> WanVAE:
    return drawn(WanVAE, seed, **SIZES)


def noisy(frames: int = 9, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, 3, frames, 32, 40, generator=generator) * 2 - 1


# --- rFVD ----------------------------------------------------------------------------------------


def roots(one: np.ndarray, two: np.ndarray) -> float:
    """The formula with a matrix root, as it is published."""
    covariances = [np.cov(some, rowvar=False, bias=True) for some in (one, two)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    apart = np.square(one.mean(0) - two.mean(0)).sum()
    return float(apart + np.trace(covariances[0] + covariances[1] - 2 * root))


def test_frechet_is_the_published_formula_with_its_matrix_root():
    random = np.random.default_rng(0)
    one = random.normal(size=(50, 6)) @ random.normal(size=(6, 6))
    two = random.normal(size=(70, 6)) @ random.normal(size=(6, 6)) + 1
    assert frechet(one, two) == pytest.approx(roots(one, two), rel=1e-9)


def test_frechet_nears_the_closed_form_of_two_gaussians():
    random = np.random.default_rng(1)
    spread = np.array([[0.5, 1.0, 2.0], [1.5, 1.0, 0.2]])
    one, two = (random.normal(size=(200_000, 3)) * some for some in spread)
    two += (0.0, 1.0, 2.0)
    wanted = 5.0 + np.square(spread[0] - spread[1]).sum()  # of diagonal covariances
    assert frechet(one, two) == pytest.approx(wanted, rel=0.02)


def test_frechet_is_exact_where_there_are_fewer_videos_than_features():
    random = np.random.default_rng(2)
    one = random.normal(size=(5, 40))
    away = random.normal(size=40)
    assert frechet(one, one) == pytest.approx(0, abs=1e-9)
    assert frechet(one, one + away) == pytest.approx(np.square(away).sum())
    # twice as far from its mean: each of its deviations is apart by itself
    mean = one.mean(0)
    wanted = np.square(one - mean).sum() / len(one)
    assert frechet(one, mean + 2 * (one - mean)) == pytest.approx(wanted)
    with pytest.raises(ValueError):
        frechet(one, one[:, :3])


class Told(nn.Module):
    """What it was called with, as features; like an I3D it takes no short video."""

    def forward(
        self,
        x: torch.Tensor,
        rescale: bool = False,
        resize: bool = False,
        return_features: bool = False,
    ) -> torch.Tensor:
        if x.shape[2] < 5:
            raise ValueError("too few frames")
        flags = torch.tensor([float(rescale), float(resize), float(return_features)])
        means = x.mean(dim=[2, 3, 4])
        return torch.cat([means, flags.expand(len(x), 3)], dim=1)


@pytest.fixture(scope="module")
def scripted(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("i3d") / "i3d_torchscript.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.save(torch.jit.script(Told()), path)
    return str(path)


def test_the_i3d_is_told_what_stylegan_v_tells_it(scripted):
    video = torch.stack([torch.full((3, 5, 16, 16), one) for one in (-1.0, 0.0, 1.0)])
    found = load_i3d(scripted)(video)
    wanted = [[value] * 3 + [1.0] * 3 for value in (0.0, 127.5, 255.0)]
    assert found.tolist() == wanted


def test_an_i3d_that_is_none_is_refused_in_one_line(scripted, tmp_path):
    (tmp_path / "text.pt").write_text("no TorchScript")
    for path in (tmp_path / "none.pt", tmp_path / "text.pt"):
        with pytest.raises(BackboneError, match=rf"{path.name}: no I3D") as refused:
            load_i3d(str(path))
        assert "\n" not in str(refused.value)
    with pytest.raises(
        BackboneError, match=r"takes no video of 2×16×16: .*too few frames"
    ) as refused:
        load_i3d(scripted)(torch.zeros(1, 3, 2, 16, 16))
    assert "\n" not in str(refused.value)


# --- measures ------------------------------------------------------------------------------------


def decibels(one: torch.Tensor, two: torch.Tensor) -> float:
    difference = one.double().numpy() - two.double().numpy()
    return float(10 * np.log10(4 / np.square(difference).mean()))


def test_psnr_is_of_the_frames_that_its_name_says():
    clips = noisy()
    scale = 0.02 * torch.arange(1, 10)[None, None, :, None, None]  # each frame has its own loss
    rebuilt = (clips + scale * noisy(seed=1)).clamp(-1, 1)
    found = measured(clips, rebuilt, None)
    groups = {
        "psnr": range(9),
        "psnr_first": [0],
        "psnr_rest": range(1, 9),
        "psnr_phase_0": [1, 5],
        "psnr_phase_1": [2, 6],
        "psnr_phase_2": [3, 7],
        "psnr_phase_3": [4, 8],
    }
    for name, group in groups.items():
        wanted = [decibels(*(x[k][:, list(group)] for x in (clips, rebuilt))) for k in range(2)]
        assert found[name] == pytest.approx(wanted), name
    wanted = [
        np.mean([decibels(clips[k, :, t], rebuilt[k, :, t]) for t in range(9)]) for k in range(2)
    ]
    assert found["psnr_frames"] == pytest.approx(wanted)
    assert (found["psnr_frames"] > found["psnr"]).all()
    assert found["ssim"] == pytest.approx(ssim(clips, rebuilt).numpy())
    assert set(found) == {*groups, "psnr_frames", "ssim"}


def test_a_loss_in_one_phase_shows_there_and_nowhere_else():
    clips = noisy()
    rebuilt = clips.clone()
    rebuilt[:, :, 3::4] *= 0.9
    found = measured(clips, rebuilt, None)
    hurt = {name for name, one in found.items() if (one < reconstruction.CEILING).all()}
    assert hurt == {"psnr", "psnr_frames", "psnr_rest", "psnr_phase_2", "ssim"}


def test_a_single_frame_has_neither_others_nor_phases():
    clips = noisy(frames=1)
    assert set(measured(clips, clips, None)) == {"psnr", "psnr_frames", "ssim", "psnr_first"}


def test_a_distance_frame_by_frame_is_that_of_the_video_in_the_mean(monkeypatch):
    monkeypatch.setattr(reconstruction, "CHUNK", 4)
    perceptual = load_perceptual("effnet-lite0")
    one = noisy(5)
    two = (one + 0.3 * noisy(5, seed=2)).clamp(-1, 1)
    found = perceptual(one, two)
    assert found.shape == (2, 5)
    assert found.mean(1).numpy() == pytest.approx(perceptual.distance(one, two).numpy(), rel=1e-5)
    assert by_frame(ssim, one, two)[1, 3] == ssim(one[1:, :, 3:4], two[1:, :, 3:4])


def test_streaming_that_differs_from_one_shot_is_told(monkeypatch):
    vae, clips = tiny(), noisy()
    names, draws = CLIPS[:2], Draws(CLIPS[:2])
    table = Table("a", "a", "")
    take(table, vae, clips, None, None)
    assert reconstruction.summary(table, names, draws)["streaming"]["equals_whole"]
    whole = vae.decode_stream

    def drifting(latents):
        yield from (frames + 2e-4 * (k > 0) for k, frames in enumerate(whole(latents)))

    monkeypatch.setattr(vae, "decode_stream", drifting)
    table = Table("b", "b", "")
    take(table, vae, clips, None, None)
    found = reconstruction.summary(table, names, draws)["streaming"]
    assert not found["equals_whole"]
    assert found["apart"] == pytest.approx(2e-4, rel=0.01)


# --- statistics ----------------------------------------------------------------------------------


def table(name: str, psnr: np.ndarray, lpips: np.ndarray) -> Table:
    values = {"psnr": list(psnr), "lpips": list(lpips)}
    return Table(name, name, "", values=values, apart=[0.0] * len(psnr))


def test_a_better_vae_is_found_where_pairs_show_it_and_intervals_alone_do_not():
    random = np.random.default_rng(3)
    hard, far = random.normal(30, 5, 40), random.normal(0.2, 0.05, 40)
    first = table("first", hard, far)
    second = table("second", hard + random.normal(0.3, 0.2, 40), far + 0.01)
    draws = Draws(CLIPS)
    found = reconstruction.compared(first, second, CLIPS, draws)
    assert (found["better"], found["worse"]) == (["psnr"], ["lpips"])
    psnr = found["measures"]["psnr"]
    assert psnr["low"] < 0.3 < psnr["high"]
    assert found["measures"]["lpips"]["delta"] == pytest.approx(-0.01)  # lower is better
    means = [reconstruction.summary(one, CLIPS, draws)["means"]["psnr"] for one in (first, second)]
    assert means[0]["high"] > means[1]["mean"]
    half = 2.02 * hard.std(ddof=1) / np.sqrt(40)  # Student's
    assert means[0]["high"] - means[0]["mean"] == pytest.approx(half, rel=0.15)


def test_the_worst_are_a_twentieth_and_one_at_least():
    values = np.arange(40.0)[::-1]
    found = reconstruction.summary(table("a", values, values), CLIPS, Draws(CLIPS))["worst"]
    assert found == {"psnr": 0.5, "clips": ["clip 39", "clip 38"]}
    assert len(table("a", values[:3], values[:3]).worst()) == 1


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Shards, two VAEs, and a folder of videos: of an odd size, too short, and broken."""
    folder = tmp_path_factory.mktemp("reconstruction")
    rendered(folder / "shards", count=7, held_out=5)
    for k in range(2):
        save(tiny(k), folder / f"vae-{k}")
    movies = folder / "movies" / "inner"
    movies.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name, count in (("a", 9), ("b", 12), ("short", 8)):
        pixels = random.integers(0, 256, (count, 36, 44, 3), dtype=np.uint8)
        write_video(movies / f"{name}.mp4", [pixels], 16)
    (movies / "broken.mp4").write_bytes(b"no video")
    return folder


def run(place, *keys: str, vae: str | None = None, clips: str = "shards") -> int:
    vae = vae or str(place / "vae-0")
    return main(
        Reconstruction,
        command.reconstruct,
        [f"vae={vae}", f"clips={place / clips}", "device=cpu", f"out={place / 'out'}", *keys],
    )


def found(place) -> dict:
    return json.loads((place / "out" / "reconstruction.json").read_text("utf-8"))


def test_two_vaes_are_measured_on_held_out_clips_and_compared(place, scripted, capsys):
    both = f"[{place / 'vae-0'},{place / 'vae-1'}]"
    keys = ("frames=9", "batch=2", f"backbones.i3d={scripted}", "backbones.lpips=effnet-lite0")
    assert run(place, *keys, vae=both) == 0
    told, numbers = capsys.readouterr().out, found(place)
    assert numbers["clips"]["count"] == 5  # of val
    # one number again, from the clip's file
    clip, vae = numbers["clips"]["names"][3], tiny(1)
    (row,) = [one for one in clips.found(str(place / "shards")) if one.name == clip]
    with row.file() as path:
        pixels = torch.from_numpy(clip_frames(path)[:9].copy()).permute(3, 0, 1, 2)[None]
    video = pixels.float() / 127.5 - 1
    with torch.no_grad():
        rebuilt = vae.decode(vae.encode(video).mean)
    assert numbers["by_clip"]["psnr"][1][3] == pytest.approx(decibels(video, rebuilt), abs=1e-3)
    first, second = numbers["vaes"]
    assert (first["name"], second["name"]) == ("vae-0", "vae-1")
    assert first["sha256"] != second["sha256"]
    assert (first["compression"], first["latent_channels"]) == ([4, 8, 8], 16)
    assert "4×8×8, 16 channels" in told
    assert first["rfvd"] > 0
    assert first["streaming"]["equals_whole"]
    (compared,) = numbers["comparisons"]
    gain = np.subtract(*numbers["by_clip"]["psnr"][::-1]).mean()
    assert compared["measures"]["psnr"]["delta"] == pytest.approx(gain)
    assert f"vae-1 against vae-0: {compared['verdict']}" in told
    assert "yes: < 1e-04" in told
    assert "not measured" not in told
    worst = int(np.argmin(numbers["by_clip"]["psnr"][0]))
    assert first["worst"]["clips"] == [numbers["clips"]["names"][worst]]
    (movie,) = (place / "out" / "worst" / "vae-0").glob("*.mp4")
    assert clip_frames(movie).shape == (9, 64, 128, 3)


def test_clips_that_are_short_or_broken_are_counted_and_named(place, capsys):
    assert run(place, "frames=9", clips="movies") == 0
    told, numbers = capsys.readouterr().out, found(place)
    clips = numbers["clips"]
    assert (clips["names"], clips["short"]) == (["inner/a.mp4", "inner/b.mp4"], ["inner/short.mp4"])
    assert len(clips["broken"]) == 1
    assert clips["broken"][0].startswith("inner/broken.mp4: ")
    assert "1 short, 1 broken left out: inner/short.mp4" in told
    for missing in ("LPIPS is not measured: it wants backbones.lpips=", "backbones.i3d="):
        assert missing in told
    (movie,) = (place / "out" / "worst" / "vae-0").glob("*.mp4")
    assert clip_frames(movie).shape == (9, 32, 80, 3)  # cut to multiples of 8, twice as wide


def test_the_middle_is_kept_and_most_is_heeded(place):
    source = command.Source.of(
        Reconstruction(clips=str(place / "movies"), frames=9), [(4, 8, 8), (1, 8, 8)]
    )
    (only,) = source.batches(batch=4, most=1)
    pixels = torch.from_numpy(clip_frames(place / "movies/inner/a.mp4")[:, 2:34, 2:42].copy())
    assert torch.equal(only[0], pixels.permute(3, 0, 1, 2).float() / 127.5 - 1)
    scaled = command.Source.of(
        Reconstruction(clips=str(place / "movies"), frames=9, size="24x16"), [(4, 8, 8)]
    )
    (both,) = scaled.batches(batch=4, most=9)
    assert both.shape == (2, 3, 9, 16, 24)


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (("frames=10",), "frames=10: must be 4k+1, such as 9"),
        (("frames=13",), "of 5 none is left: 5 are shorter than frames=13"),
        (("frames=9", "size=60x64"), "width must be a multiple of 8"),
        (("frames=9", "batch=0"), "batch=0: at least 1"),
        (("frames=9", "backbones.lpips=none.pth"), "backbones.lpips=none.pth: "),
        (("frames=9", "backbones.i3d=none.pt"), "backbones.i3d=none.pt: no I3D"),
        (("frames=9", "clips=nowhere"), "clips=nowhere: no such folder"),
        (("frames=9", "vae=nowhere.pth"), "vae=nowhere.pth: "),
    ],
)
def test_a_mistake_is_told_in_one_line(place, capsys, keys, line):
    assert run(place, *keys) == 2
    told = capsys.readouterr().err
    assert line in told
    assert told.count("\n") == 1
