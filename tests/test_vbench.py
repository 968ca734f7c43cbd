"""VBench's dimensions to the letter: its formulas restated, on small random backbones."""

import itertools
from dataclasses import fields

import cv2
import numpy as np
import open_clip
import pytest
import torch
from torch.nn import functional as F
from torchvision.models.optical_flow import raft_large
from transformers import ViTConfig, ViTModel

from eval import totals
from eval.measures import consistency, looks, motion
from eval.measures.catalog import LIGHT, Catalog
from eval.measures.encoders import (
    BackboneError,
    ClipModel,
    load_clip,
    load_dino,
    prepare_clip,
    prepare_dino,
)
from eval.measures.measure import Video
from recipes.evaluation import Backbones
from recipes.keys import UsageError
from tests.planted import decode, package_video


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return decode(package_video("bikes.mp4"), 0, 9, long_side=320)[0]


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    network = ViTModel(ViTConfig(**sizes, intermediate_size=64), add_pooling_layer=False)
    with torch.no_grad():
        network.embeddings.position_embeddings.normal_()
    folder = tmp_path_factory.mktemp("dino")
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip() -> ClipModel:
    torch.manual_seed(0)
    tower = {"image_size": 224, "layers": 2, "width": 64, "head_width": 32, "patch_size": 32}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
    network = open_clip.CLIP(768, tower, text, quick_gelu=True)
    return ClipModel(network, "ViT-B-32")


def vbenchs_consistency(features: torch.Tensor) -> float:
    total = 0.0
    for i in range(1, len(features)):
        former, first, now = (features[k : k + 1] for k in (i - 1, 0, i))
        before = max(0.0, F.cosine_similarity(former, now).item())
        total += (before + max(0.0, F.cosine_similarity(first, now).item())) / 2
    return total / (len(features) - 1)


def test_consistency_is_vbenchs_formula():
    for seed in range(5):
        features = torch.randn(12, 6, generator=torch.Generator().manual_seed(seed))
        found = consistency.consistency(F.normalize(features, dim=-1))
        assert found == pytest.approx(vbenchs_consistency(features), abs=1e-6)
    assert np.isnan(consistency.consistency(torch.ones(1, 4)))


def test_subject_consistency_looks_through_dino(frames, dino_folder):
    dino = load_dino(str(dino_folder))
    plain = ViTModel.from_pretrained(dino_folder, add_pooling_layer=False).eval()
    square = frames[:, :, : frames.shape[1]]
    pictures = prepare_dino(torch.from_numpy(square).permute(0, 3, 1, 2).float())
    with torch.no_grad():
        features = plain(pictures).last_hidden_state[:, 0]
    measure = consistency.subject_consistency(dino)
    assert measure(Video(square, 25)) == pytest.approx(vbenchs_consistency(features), abs=1e-5)
    assert measure.backbone == ("DINO", dino.sha256)
    # a wide picture is not cut; DINO's positions for it are not quite those of transformers
    wide = prepare_dino(torch.from_numpy(frames).permute(0, 3, 1, 2).float())
    assert wide.shape[-1] > wide.shape[-2] == 224
    with torch.no_grad():
        theirs = plain(wide, interpolate_pos_encoding=True).last_hidden_state[:, 0]
    difference = (dino(frames) - F.normalize(theirs, dim=-1)).abs().max()
    assert 0 < difference < 0.1


def test_background_consistency_looks_through_clip(frames, clip):
    pictures = prepare_clip(torch.from_numpy(frames).permute(0, 3, 1, 2).float())
    assert pictures.shape[1:] == (3, 224, 224)
    with torch.no_grad():
        features = clip.network.encode_image(pictures)
    found = consistency.background_consistency(clip.images)(Video(frames, 25))
    assert found == pytest.approx(vbenchs_consistency(features), abs=1e-5)


def test_a_frozen_video_is_consistent_and_not_dynamic(frames, clip, dino_folder):
    frozen = Video(np.repeat(frames[:1], 9, axis=0), 25)
    assert consistency.background_consistency(clip.images)(frozen) == pytest.approx(1, abs=1e-5)
    subject = consistency.subject_consistency(load_dino(str(dino_folder)))
    assert subject(frozen) == pytest.approx(1, abs=1e-5)
    moving = lambda a, b: torch.zeros(1, 2, *a.shape[-2:])  # noqa: E731
    assert motion.dynamic_degree(moving, "")(frozen) == 0


def test_aesthetic_quality_is_a_tenth_of_the_head_over_frames(frames, clip, tmp_path):
    head = torch.nn.Linear(768, 1)
    torch.save(head.state_dict(), tmp_path / "head.pth")
    measure = looks.aesthetic_quality(clip, looks.load_head(str(tmp_path / "head.pth")))
    with torch.no_grad():
        pictures = prepare_clip(torch.from_numpy(frames).permute(0, 3, 1, 2).float())
        features = F.normalize(clip.network.encode_image(pictures), dim=-1, p=2)
        wanted = float((head(features).squeeze(-1) / 10).mean())
    assert measure(Video(frames, 25)) == pytest.approx(wanted, abs=1e-5)
    with pytest.raises(BackboneError, match="no aesthetic head"):
        looks.load_head(str(tmp_path / "none.pth"))


def test_appearance_style_is_clips_logit_over_a_hundred(frames, clip):
    asked = {"appearance_style": "in cyberpunk style"}
    measure = looks.appearance_style(clip)
    with torch.no_grad():
        pictures = prepare_clip(torch.from_numpy(frames).permute(0, 3, 1, 2).float())
        tokens = open_clip.get_tokenizer("ViT-B-32")(["in cyberpunk style"])
        image, text, _ = clip.network(pictures, tokens)
        wanted = float((100 * image @ text.T).mean()) / 100
    found = measure(Video(frames, 25, "bicycles, in cyberpunk style", asked))
    assert found == pytest.approx(wanted, abs=1e-5)
    assert np.isnan(measure(Video(frames, 25, "bicycles")))


def vbenchs_dynamic(frames: np.ndarray, fps: float, flow) -> float:
    """dynamic_degree.py, on a flow that is given."""
    some = list(frames[:: max(1, round(fps / 8))])
    threshold = 6.0 * (min(some[0].shape[:2]) / 256.0)
    wanted, count = round(4 * (len(some) / 16.0)), 0
    for first, second in itertools.pairwise(some):
        flo = flow(first, second)
        away = np.sqrt(flo[..., 0] ** 2 + flo[..., 1] ** 2).flatten()
        cut = int(away.size * 0.05)
        if np.mean(np.abs(np.sort(-away))[:cut]) > threshold:
            count += 1
        if count >= wanted:
            return 1.0
    return 0.0


@pytest.mark.parametrize("speed", [0, 1.5, 3.5, 20])
@pytest.mark.parametrize("fps", [8, 16, 30])
def test_dynamic_degree_is_vbenchs_rule(speed, fps):
    random = np.random.RandomState(0)
    frames = np.zeros((33, 128, 160, 3), np.uint8)
    frames[:, 0, 0, 0] = np.arange(33)  # so that a flow knows its frames

    def drawn(first: int, second: int) -> np.ndarray:
        amount = speed * (second - first) * random.rand(128, 160, 1) * (first % 5 < 2)
        return np.concatenate([amount, -amount / 2], -1)

    known = {}

    def flow(a, b):
        key = int(a[0, 0, 0]), int(b[0, 0, 0])
        return known.setdefault(key, drawn(*key))

    def as_network(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        pair = [one[0].permute(1, 2, 0).numpy().astype(np.uint8) for one in (a, b)]
        return torch.from_numpy(flow(*pair)).permute(2, 0, 1)[None]

    wanted = vbenchs_dynamic(frames, fps, flow)
    assert motion.dynamic_degree(as_network, "")(Video(frames, fps)) == wanted


def test_raft_is_read_from_a_file_and_sees_multiples_of_eight(tmp_path):
    torch.manual_seed(0)
    torch.save(raft_large().state_dict(), tmp_path / "raft.pth")
    flow, sha256 = motion.load_raft(str(tmp_path / "raft.pth"))
    picture = torch.rand(1, 3, 130, 140) * 255
    assert flow(picture, picture).shape == (1, 2, 136, 144)
    assert len(sha256) == 64
    even = motion.padded(picture)
    # the picture lies in the middle, its edges drawn out
    assert (even[..., 3:133, 2:142] == picture).all()
    reference = cv2.copyMakeBorder(
        picture[0].permute(1, 2, 0).numpy(), 3, 3, 2, 2, cv2.BORDER_REPLICATE
    )
    assert (even[0].permute(1, 2, 0).numpy() == reference).all()


def test_backbones_that_are_not_there_are_named(tmp_path):
    with pytest.raises(BackboneError, match="no DINO"):
        load_dino(str(tmp_path / "nothing"))
    with pytest.raises(BackboneError, match="no CLIP ViT-B-32"):
        load_clip("ViT-B-32", str(tmp_path / "nothing.pt"))
    with pytest.raises(BackboneError, match="no RAFT"):
        motion.load_raft(str(tmp_path / "nothing.pth"))


# --- all of them ---------------------------------------------------------------------------------


def test_every_dimension_is_measured_or_refused_by_name():
    catalog = Catalog(Backbones())
    dimensions = set()
    for name, (needs, _) in catalog.deep.items():
        assert set(needs) <= {one.name for one in fields(Backbones)}
        with pytest.raises(UsageError, match=f"measures={name}: wants backbones.{needs[0]}="):
            catalog.measures([name])
        # what is VBench's bears its name; any other names its backbone after it
        known = {*totals.QUALITY, *totals.SEMANTIC, "i2v_subject", "i2v_background"}
        dimension = name if name in known else name.rpartition("_")[0]
        assert dimension in known
        dimensions.add(dimension)
    # the two that are left need no weights
    assert {*totals.QUALITY, *totals.SEMANTIC} - dimensions == {
        "temporal_flickering",
        "motion_smoothness",
    }
    assert LIGHT["temporal_flickering"].dimension == "temporal_flickering"
    assert LIGHT["smoothness_dis"].dimension == "motion_smoothness"
