"""Other backbones than VBench's, loaded: small random networks, saved as transformers saves them,
against the network itself on pictures that are prepared here."""

import string

import numpy as np
import pytest
import torch
import transformers as tf
from torch.nn import functional as F
from torchvision.transforms import v2

from eval.measures import action, captions, detection, likeness
from eval.measures.encoders import BATCH, BackboneError, weights_sha256
from eval.measures.measure import Video

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 2}
PIECES = ["!", *string.ascii_lowercase, *(f"{one}</w>" for one in string.ascii_lowercase)]
PIECES += ["<|startoftext|>", "<|endoftext|>"]
TEXT = SMALL | {"vocab_size": len(PIECES), "max_position_embeddings": 16, "pad_token_id": 0}
TEXT |= {"bos_token_id": len(PIECES) - 2, "eos_token_id": len(PIECES) - 1}
LABELS = dict(enumerate(["clapping", "riding a bike", "tai chi"]))


def spelling() -> tf.CLIPTokenizer:
    vocab = {one: k for k, one in enumerate(PIECES)}
    return tf.CLIPTokenizer(vocab=vocab, merges=[], pad_token="!")


def save(folder, network, processor, spread: float = 0.3):
    torch.manual_seed(0)
    with torch.no_grad():
        for one in network.parameters():
            if one.ndim > 1:
                one.normal_(0, spread)
    for one in (network, processor):
        one.save_pretrained(folder)
    return network.eval()


def frames_of(count: int) -> np.ndarray:
    return np.random.RandomState(1).randint(0, 256, (count, 40, 56, 3), np.uint8)


def prepared(frames: np.ndarray, mean, std) -> torch.Tensor:
    """[T, 3, 32, 32]: the middle of pictures scaled to 32 pixels."""
    pictures = torch.from_numpy(frames).permute(0, 3, 1, 2)
    pictures = v2.functional.center_crop(v2.functional.resize(pictures, 32, antialias=True), 32)
    return v2.functional.normalize(pictures / 255, list(mean), list(std))


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MIDDLE = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
MIDDLE |= {"image_mean": list(MEAN), "image_std": list(STD)}


@torch.no_grad()
def test_owlv2s_boxes_lie_in_the_picture_that_it_pads_to_a_square(tmp_path):
    config = tf.Owlv2Config(
        text_config=TEXT,
        vision_config=SMALL | {"image_size": 64, "patch_size": 16},
        projection_dim=32,
    )
    images = tf.Owlv2ImageProcessor(size={"height": 64, "width": 64})
    processor = tf.Owlv2Processor(images, spelling())
    network = save(tmp_path, tf.Owlv2ForObjectDetection(config), processor, 0.05)
    detector = detection.load_owlv2(str(tmp_path))
    assert detector.sha256 == weights_sha256(network)
    frame, names = frames_of(1)[0], ["cat", "dog"]
    square = F.pad(torch.from_numpy(frame).permute(2, 0, 1)[None] / 255, (0, 0, 0, 16))
    square = F.interpolate(square, (64, 64), mode="bilinear")
    tokens = [processor.tokenizer.encode(f"a photo of a {name}")[:16] for name in names]
    tokens = [one + [0] * (16 - len(one)) for one in tokens]
    seen = network(
        pixel_values=v2.functional.normalize(square, images.image_mean, images.image_std),
        input_ids=torch.tensor(tokens),
        attention_mask=(torch.tensor(tokens) > 0).long(),
    )
    centre, size = seen.pred_boxes[0].split(2, dim=-1)
    wanted = torch.cat([centre - size / 2, centre + size / 2], -1) * max(frame.shape)
    boxes, places, scores = detector.detect(frame, names)
    torch.testing.assert_close(boxes, wanted, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(scores, seen.logits[0].sigmoid().amax(-1), atol=1e-4, rtol=1e-4)
    assert (places == seen.logits[0].argmax(-1)).all()
    assert boxes.std(0).min() > 5


@torch.no_grad()
def test_videomae_sees_frames_in_their_order(tmp_path):
    config = tf.VideoMAEConfig(
        **SMALL, image_size=32, num_frames=4, id2label=LABELS, label2id={}, num_labels=3
    )
    network = tf.VideoMAEForVideoClassification(config)
    save(tmp_path, network, tf.VideoMAEImageProcessor(**MIDDLE))
    classifier = action.load_videomae(str(tmp_path))
    assert (classifier.labels, classifier.frames) == (tuple(LABELS.values()), 4)
    assert classifier.sha256 == weights_sha256(network)
    frames = frames_of(4)
    wanted = network(prepared(frames, MEAN, STD)[None]).logits[0]
    torch.testing.assert_close(classifier.classify(frames), wanted, atol=1e-3, rtol=1e-3)
    assert (classifier.classify(frames[::-1].copy()) - wanted).abs().max() > 0.01
    tf.VideoMAEForPreTraining(config).save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=r"no VideoMAE \(it lacks classifier"):
        action.load_videomae(str(tmp_path))
    plain = tf.VideoMAEConfig(**SMALL, image_size=32, num_frames=4)
    tf.VideoMAEForVideoClassification(plain).save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="names none"):
        action.load_videomae(str(tmp_path))


@torch.no_grad()
def test_xclips_likeness_is_its_logit_without_the_scale(tmp_path):
    sizes = {"mit_hidden_size": 32, "mit_intermediate_size": 64, "mit_num_attention_heads": 2}
    vision = SMALL | sizes | {"image_size": 32, "patch_size": 16, "num_frames": 8}
    config = tf.XCLIPConfig(
        text_config=TEXT, vision_config=vision, projection_dim=32, prompt_num_attention_heads=2
    )
    processor = tf.XCLIPProcessor(tf.VideoMAEImageProcessor(**MIDDLE), spelling())
    network = save(tmp_path, tf.XCLIPModel(config), processor)
    xclip = likeness.load_xclip(str(tmp_path))
    assert (xclip.frames, xclip.sha256) == (8, weights_sha256(network))
    frames, words = frames_of(24), ["a cat", "a dog runs fast", "zoom in " * 9]
    tokens = [processor.tokenizer(one).input_ids for one in words]
    tokens[2] = [*tokens[2][:15], tokens[2][-1]]  # it takes 16
    pictures = prepared(frames[1::3], MEAN, STD)[None]
    wanted = [
        float(network(torch.tensor([one]), pictures).logits_per_video / network.logit_scale.exp())
        for one in tokens
    ]
    assert np.ptp(wanted) > 0.01
    overall = likeness.overall_consistency_xclip(xclip)
    style = likeness.temporal_style_xclip(xclip)
    for text, value in zip(words, wanted, strict=True):
        assert overall(Video(frames, 8, text)) == pytest.approx(value, abs=1e-4)
        assert style(Video(frames, 8, text)) == pytest.approx(value, abs=1e-4)
        video = Video(frames, 8, "a cat", {"temporal_style": text})
        assert style(video) == pytest.approx(value, abs=1e-4)
        assert overall(video) == pytest.approx(wanted[0], abs=1e-4)
    assert np.isnan(overall(Video(frames, 8)))


@torch.no_grad()
def test_blip_describes_each_frame_as_if_it_were_alone(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnop", "[DEC]"]
    text = SMALL | {"encoder_hidden_size": 32, "vocab_size": len(words), "sep_token_id": 3}
    text |= {"bos_token_id": len(words) - 1, "pad_token_id": 0, "max_position_embeddings": 32}
    vision = SMALL | {"image_size": 32, "patch_size": 16}
    network = tf.BlipForConditionalGeneration(tf.BlipConfig(text_config=text, vision_config=vision))
    images = tf.BlipImageProcessor(size={"height": 32, "width": 32})
    tokenizer = tf.BertTokenizer(vocab={one: k for k, one in enumerate(words)})
    save(tmp_path, network, tf.BlipProcessor(images, tokenizer))
    captioner = captions.load_blip(str(tmp_path))
    assert captioner.sha256 == weights_sha256(network)
    frames = (frames_of(BATCH + 1) * np.linspace(0, 1, BATCH + 1)[:, None, None, None]).astype("u1")
    pictures = torch.from_numpy(frames).permute(0, 3, 1, 2)
    pictures = v2.functional.resize(pictures, [32, 32], v2.InterpolationMode.BICUBIC)
    pictures = v2.functional.normalize(pictures / 255, images.image_mean, images.image_std)
    wanted = []
    for one in pictures[::4]:
        tokens = network.generate(one[None], num_beams=3, min_length=10, max_length=30)[0]
        wanted.append(" ".join(words[k] for k in tokens.tolist() if 4 < k < len(words) - 1))
    assert captioner.describe(frames)[::4] == wanted
    assert len(set(wanted)) > 2


def test_backbones_that_are_not_there_are_named(tmp_path):
    loaders = {
        "OWLv2": detection.load_owlv2,
        "VideoMAE": action.load_videomae,
        "X-CLIP": likeness.load_xclip,
        "BLIP": captions.load_blip,
    }
    for name, load in loaders.items():
        with pytest.raises(BackboneError, match=f"nothing: no {name}") as caught:
            load(str(tmp_path / "nothing"))
        assert "\n" not in str(caught.value)
