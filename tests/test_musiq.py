"""MUSIQ and VBench's imaging_quality: pyiqa's figures, PyTorch's own encoder, facts restated."""

import hashlib

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from eval.measures import musiq
from eval.measures.encoders import BackboneError, weights_sha256
from eval.measures.measure import Video


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Numbers that are the same everywhere: waves, scaled so that nothing dies or explodes."""
    made = {}
    for k, (name, shape) in enumerate(sorted(shapes.items())):
        count = torch.Size(shape).numel()
        wave = torch.sin(torch.arange(count, dtype=torch.float64) * (1 + k / 7) + k)
        if ("norm" in name or "gn" in name) and name.endswith("weight"):
            wave = 1 + 0.3 * wave
        elif not name.endswith(("emb", "cls")):
            wave = wave * (0.3 if len(shape) < 2 else (4 * shape[0] / count) ** 0.5)
        made[name] = wave.reshape(shape).float()
    return made


def picture(height: int, width: int) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    planes = [(x * (3 + c) + y * (5 - c) + x * y // (7 + c)) % 256 for c in range(3)]
    return torch.stack(planes)[None].float() / 255


@pytest.fixture(scope="module")
def network() -> musiq.Musiq:
    network = musiq.Musiq().eval().requires_grad_(False)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    network.load_state_dict(weights(shapes))
    return network


@pytest.fixture(scope="module")
def file(network, tmp_path_factory) -> str:
    """As a training on several cards stores it."""
    path = tmp_path_factory.mktemp("musiq") / "musiq.pth"
    torch.save({f"module.{name}": value for name, value in network.state_dict().items()}, path)
    return str(path)


def test_parameters_are_named_and_shaped_as_pyiqas(network):
    state = network.state_dict()
    lines = sorted(f"{name} {list(value.shape)}" for name, value in state.items())
    # of the same lines of pyiqa.archs.musiq_arch.MUSIQ(num_class=1)
    digest = "c71a0567b8f6bfe7eb1a22f5e0b9d77f05263ccb829e5a7e08e84b40d54e2c81"
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == digest
    assert len(lines) == 248
    # the paper's 27 million
    assert sum(value.numel() for value in state.values()) == 27_125_825


# what pyiqa's network says of these pictures with these weights
FIGURES = {
    (295, 512): -0.3013025224208832,
    (100, 130): -0.2626628875732422,
    (31, 17): -0.24734807014465332,
}


@pytest.mark.parametrize("size", FIGURES, ids=str)
def test_scores_are_pyiqas(network, size):
    assert network(picture(*size)).item() == pytest.approx(FIGURES[size], abs=3e-6)


def test_a_nearly_even_picture_tells_what_keeps_deviations_from_zero(network):
    """pyiqa's too: all the small constants show here, and in FIGURES hardly."""
    even = 0.5 + 1e-4 * (picture(31, 17) - 0.5)
    assert network(even).item() == pytest.approx(-0.24550600349903107, abs=1e-5)


def test_pictures_of_a_batch_do_not_see_each_other(network):
    one = picture(100, 130)
    both = network(torch.cat([one.flip(-1), one]))
    # again pyiqa's, of the picture mirrored
    assert both.tolist() == pytest.approx([-0.2558184564113617, FIGURES[100, 130]], abs=3e-6)


def test_the_encoder_is_pytorchs_and_masked_filling_has_no_influence(network):
    """Against nn.TransformerEncoderLayer, whose sequence is filled up with junk, and masked."""
    torch.manual_seed(0)
    x, places = torch.randn(2, 30, 384), torch.randint(0, 100, (30,))
    sizes = torch.arange(30) // 10
    encoder = network.transformer_encoder
    state = encoder.state_dict()
    seen = x + state["posembed_input.position_emb"][0, places]
    seen = seen + state["scaleembed_input.scale_emb"][sizes]
    cls = state["cls"].expand(2, 1, 384)
    seen = torch.cat([cls, seen, 10 * torch.randn(2, 7, 384)], dim=1)
    masked = torch.zeros(2, 38, dtype=torch.bool)
    masked[:, 31:] = True
    like = {"dropout": 0.0, "activation": "gelu", "layer_norm_eps": 1e-6, "norm_first": True}
    for k in range(14):
        layer = nn.TransformerEncoderLayer(384, 6, 1152, **like, batch_first=True).eval()
        own = {
            name.split(".", 2)[2]: value
            for name, value in state.items()
            if name.startswith(f"transformer.encoderblock_{k}.")
        }
        three = [f"attention.{name}" for name in ("query", "key", "value")]
        theirs = {
            "self_attn.in_proj_weight": torch.cat([own[f"{one}.weight"] for one in three]),
            "self_attn.in_proj_bias": torch.cat([own[f"{one}.bias"] for one in three]),
        }
        names = {"attention.out": "self_attn.out_proj", "mlp.fc1": "linear1", "mlp.fc2": "linear2"}
        names |= {"norm1": "norm1", "norm2": "norm2"}
        for mine, name in names.items():
            theirs |= {f"{name}.{what}": own[f"{mine}.{what}"] for what in ("weight", "bias")}
        layer.load_state_dict(theirs)
        seen = layer(seen, src_key_padding_mask=masked)
    wanted = F.layer_norm(
        seen[:, 0], (384,), state["encoder_norm.weight"], state["encoder_norm.bias"], 1e-6
    )
    assert (encoder(x, places, sizes) - wanted).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("size", "counts"),
    [
        # patches of 32 × 32 at long sides of 224 and 384, and at the picture's own size
        ((295, 512), (5 * 7, 7 * 12, 10 * 16)),  # 129 × 224, 221 × 384
        ((512, 288), (7 * 4, 12 * 7, 16 * 9)),  # 224 × 126, 384 × 216
        ((384, 384), (7 * 7, 12 * 12, 12 * 12)),
        ((20, 10), (7 * 4, 12 * 6, 1)),  # 224 × 112, 384 × 192
    ],
    ids=str,
)
def test_a_picture_is_cut_at_three_sizes(size, counts):
    patches, places, sizes = musiq.cut(torch.rand(2, 3, *size))
    assert patches.shape == (2, sum(counts), 3, 32, 32)
    assert tuple(torch.bincount(sizes)) == counts
    assert len(places) == sum(counts)


def test_patches_are_the_picture_in_the_middle_of_zeros():
    shown = torch.rand(1, 3, 70, 45)
    patches, _, sizes = musiq.cut(shown)
    own = patches[0, sizes == 2]  # 3 rows of 2
    whole = torch.cat([torch.cat([*own[2 * r : 2 * r + 2]], dim=-1) for r in range(3)], dim=-2)
    # of 26 rows that are lacking 13 lie above, of 19 columns 9 lie left
    assert torch.equal(whole, F.pad(shown[0], (9, 10, 13, 13)))


def test_other_sizes_are_bicubic():
    shown = torch.rand(1, 3, 40, 64)
    patches, _, sizes = musiq.cut(shown)
    wanted = F.interpolate(shown, size=(240, 384), mode="bicubic")[0]
    first = patches[0, sizes == 1][0]
    assert torch.allclose(first[:, 8:], wanted[:, :24, :32], atol=1e-6)  # 8 of 16 rows above
    assert not first[:, :8].any()


@pytest.mark.parametrize("count", [1, 3, 7, 10, 16, 31, 60])
def test_places_are_the_papers_hash(count):
    # patch i of n lies at ⌊i · 10 / n⌋ of the grid
    assert musiq.hashed(count).tolist() == [i * 10 // count for i in range(count)]


def test_places_run_along_rows():
    _, places, sizes = musiq.cut(torch.rand(1, 3, 64, 96))  # 2 rows of 3
    assert places[sizes == 2].tolist() == [0, 3, 6, 50, 53, 56]


def test_frames_are_prepared_as_vbench_does():
    large = torch.randint(0, 256, (2, 3, 480, 832)).float()
    # int(512 / 832 · 480), without antialiasing
    wanted = F.interpolate(large, size=(295, 512), mode="bilinear", align_corners=False) / 255
    assert torch.allclose(musiq.prepared(large), wanted, atol=1e-5)
    assert musiq.prepared(large.mT).shape == (2, 3, 512, 295)
    small = large[..., :300, :512]
    assert torch.equal(musiq.prepared(small), small / 255)


def test_imaging_quality_is_a_hundredth_of_the_mean_over_frames():
    frames = np.zeros((11, 16, 16, 3), np.uint8)
    frames[:, :, :, 0] = 20 * np.arange(11)[:, None, None]
    measure = musiq.imaging_quality(lambda x: 255 * x[:, 0].mean((1, 2)) ** 2, "sha")
    opinions = [255 * (20 * t / 255) ** 2 for t in range(11)]
    assert measure(Video(frames, 8)) == pytest.approx(sum(opinions) / 11 / 100, abs=1e-6)
    assert measure.backbone == ("MUSIQ SPAQ", "sha")
    assert measure.name == "imaging_quality"


def test_weights_are_read_from_a_file(network, file):
    score, sha256 = musiq.load_musiq(file)
    assert score(picture(31, 17)).item() == pytest.approx(FIGURES[31, 17], abs=3e-6)
    assert sha256 == weights_sha256(network)


def test_weights_that_are_not_there_or_another_networks_are_named(tmp_path):
    with pytest.raises(BackboneError, match=r"nothing\.pth: no MUSIQ"):
        musiq.load_musiq(str(tmp_path / "nothing.pth"))
    (tmp_path / "junk.pth").write_bytes(b"<html>not found</html>")
    # AVA's, whose head has ten outputs
    torch.save({"head.0.weight": torch.zeros(10, 384)}, tmp_path / "ava.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("junk", "ava", "list"):
        with pytest.raises(BackboneError, match=f"{name}.pth: no MUSIQ") as caught:
            musiq.load_musiq(str(tmp_path / f"{name}.pth"))
        assert "\n" not in str(caught.value)
