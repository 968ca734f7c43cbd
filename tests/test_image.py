"""CLIP's image tower from every form of its weights: the last but one block, as Wan reads it."""

import json

import pytest
import torch
from torch.nn.functional import interpolate

from model.image import FILE, MEAN, STD, ImageEncoder, load_image_encoder, own_names
from model.tensors import CheckpointError

WIDTH, LAYERS, HEADS, PATCH, SIDE = 32, 3, 2, 14, 56  # 17 tokens
TOKENS = (SIDE // PATCH) ** 2 + 1


@pytest.fixture(scope="module")
def clip():
    """open_clip's own tower, every weight and norm re-drawn."""
    from open_clip.transformer import VisionTransformer

    tower = VisionTransformer(SIDE, PATCH, WIDTH, LAYERS, HEADS, mlp_ratio=4.0, output_dim=24)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in tower.named_parameters():
            drawn = torch.randn(value.shape, generator=generator)
            scale = 0.2 if value.dim() == 2 and "embedding" not in name else 0.5
            value.copy_(scale * drawn + (1 if "ln_" in name and "weight" in name else 0))
    return tower.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 40, 72, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def pixels(images):
    return prepared(images)


def prepared(images: torch.Tensor, side: int = SIDE) -> torch.Tensor:
    """What `CLIPModel.visual` of `wan/modules/clip.py` does before its tower."""
    from torchvision.transforms import Normalize

    square = interpolate(images, size=(side, side), mode="bicubic", align_corners=False)
    return Normalize(MEAN, STD)(square * 0.5 + 0.5)


def official(clip) -> dict:
    """The tower's tensors as Wan names and shapes them, beside some of the text tower's."""
    old = clip.state_dict()
    new = {
        "visual.cls_embedding": old["class_embedding"].view(1, 1, WIDTH),
        "visual.pos_embedding": old["positional_embedding"].view(1, TOKENS, WIDTH),
        "visual.patch_embedding.weight": old["conv1.weight"],
        "visual.head": old["proj"],
        "textual.token_embedding.weight": torch.ones(5, 4),
        "log_scale": torch.tensor(2.6),
    }
    modules = {"ln_pre": "pre_norm", "ln_post": "post_norm"}
    for i in range(LAYERS):
        for theirs, ours in {
            "ln_1": "norm1",
            "ln_2": "norm2",
            "attn.out_proj": "attn.proj",
            "mlp.c_fc": "mlp.0",
            "mlp.c_proj": "mlp.2",
        }.items():
            modules[f"transformer.resblocks.{i}.{theirs}"] = f"transformer.{i}.{ours}"
    for leaf in ("weight", "bias"):
        for theirs, ours in modules.items():
            new[f"visual.{ours}.{leaf}"] = old[f"{theirs}.{leaf}"]
        for i in range(LAYERS):
            name = f"transformer.resblocks.{i}.attn.in_proj_{leaf}"
            new[f"visual.transformer.{i}.attn.to_qkv.{leaf}"] = old[name]
    return new


def transformers_tower(clip, activation: str = "gelu"):
    """The same weights in transformers' CLIPVisionModel."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        image_size=SIDE,
        patch_size=PATCH,
        hidden_act=activation,
    )
    net = CLIPVisionModel(config).eval().requires_grad_(False)
    old, new = clip.state_dict(), net.state_dict()
    new["embeddings.class_embedding"] = old["class_embedding"]
    new["embeddings.position_embedding.weight"] = old["positional_embedding"]
    new["embeddings.patch_embedding.weight"] = old["conv1.weight"]
    for leaf in ("weight", "bias"):
        new[f"pre_layrnorm.{leaf}"] = old[f"ln_pre.{leaf}"]
        new[f"post_layernorm.{leaf}"] = old[f"ln_post.{leaf}"]
        for i in range(LAYERS):
            theirs, ours = f"encoder.layers.{i}.", f"transformer.resblocks.{i}."
            qkv = old[f"{ours}attn.in_proj_{leaf}"].chunk(3)
            for letter, value in zip("qkv", qkv, strict=True):
                new[f"{theirs}self_attn.{letter}_proj.{leaf}"] = value
            for a, b in {
                "self_attn.out_proj": "attn.out_proj",
                "layer_norm1": "ln_1",
                "layer_norm2": "ln_2",
                "mlp.fc1": "mlp.c_fc",
                "mlp.fc2": "mlp.c_proj",
            }.items():
                new[f"{theirs}{a}.{leaf}"] = old[f"{ours}{b}.{leaf}"]
    net.load_state_dict(new)
    return net


def by_open_clip(clip, pixels: torch.Tensor) -> torch.Tensor:
    """open_clip's own last but one block, class token first, no norm."""
    made = clip.forward_intermediates(
        pixels, indices=[LAYERS - 2], output_fmt="NLC", output_extra_tokens=True
    )
    return torch.cat([made["image_intermediates_prefix"][0], made["image_intermediates"][0]], 1)


def by_transformers(net, pixels: torch.Tensor) -> torch.Tensor:
    """As diffusers' WanImageToVideoPipeline.encode_image reads it."""
    return net(pixels, output_hidden_states=True).hidden_states[-2]


@pytest.fixture
def form(request, clip, tmp_path):
    """A folder or file of the tower in one of the forms that people have it in."""
    from safetensors.torch import save_file

    tower = {f"visual.{name}": value for name, value in clip.state_dict().items()}
    if request.param == "official folder":
        torch.save(official(clip), tmp_path / FILE)
        # of the DiT, as in the public folders
        (tmp_path / "config.json").write_text('{"_class_name": "WanModel", "model_type": "i2v"}')
        return tmp_path
    if request.param == "diffusers pipeline":
        transformers_tower(clip).save_pretrained(tmp_path / "image_encoder")
        return tmp_path
    if request.param == "transformers file with its projection":
        named = transformers_tower(clip).state_dict()
        named = {f"vision_model.{name}": value for name, value in named.items()}
        named["visual_projection.weight"] = torch.ones(24, WIDTH)
        named["vision_model.embeddings.position_ids"] = torch.arange(TOKENS)[None]
        save_file(named, tmp_path / "clip_vision_h.safetensors")
        return tmp_path / "clip_vision_h.safetensors"
    if request.param == "open_clip folder":
        sizes = {"image_size": SIDE, "layers": LAYERS, "width": WIDTH}
        sizes |= {"head_width": WIDTH // HEADS, "patch_size": PATCH}
        config = {"model_cfg": {"embed_dim": 24, "vision_cfg": sizes, "text_cfg": {}}}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
        save_file(
            {**tower, "logit_scale": torch.tensor(1.0), "text.proj.weight": torch.ones(2)},
            tmp_path / "open_clip_model.safetensors",
        )
        return tmp_path
    torch.save(tower, tmp_path / "open_clip_pytorch_model.bin")
    return tmp_path / "open_clip_pytorch_model.bin"


FORMS = [
    *("official folder", "diffusers pipeline", "transformers file with its projection"),
    *("open_clip folder", "open_clip file"),
]


@pytest.mark.parametrize("form", FORMS, indirect=True)
def test_every_form_gives_open_clips_and_transformers_last_but_one_block(
    form, clip, images, pixels
):
    told = (form / "image_encoder").exists() or (form / "open_clip_config.json").exists()
    encoder = load_image_encoder(form, **({} if told else {"num_heads": HEADS}))
    made = encoder.encode(images)
    assert made.shape == (2, TOKENS, WIDTH)
    torch.testing.assert_close(made, by_open_clip(clip, pixels), rtol=1e-5, atol=1e-5)
    expected = by_transformers(transformers_tower(clip), pixels)
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)
    assert not any(value.requires_grad for value in encoder.parameters())
    # neither another block nor the final norm
    whole = transformers_tower(clip)(pixels, output_hidden_states=True)
    assert (made - whole.hidden_states[-1]).abs().max() > 0.1
    assert (made - clip.ln_post(made)).abs().max() > 0.1


def test_the_full_size_is_open_clips_xlm_roberta_vit_h_14():
    import open_clip
    from open_clip.transformer import VisionTransformer

    sizes = open_clip.get_model_config("xlm-roberta-large-ViT-H-14")
    vision = sizes["vision_cfg"]
    with torch.device("meta"):
        ours = ImageEncoder()
        theirs = VisionTransformer(
            vision["image_size"],
            vision["patch_size"],
            vision["width"],
            vision["layers"],
            vision["width"] // vision["head_width"],
            mlp_ratio=4.0,
            output_dim=sizes["embed_dim"],
        )
    assert (ours.num_tokens, ours.width) == (257, 1280)
    assert ours.transformer[0].attn.num_heads == theirs.transformer.resblocks[0].attn.num_heads
    # its GELU is the exact one
    assert not sizes.get("quick_gelu")
    assert ours.config["activation"] == "gelu"
    tensors = theirs.state_dict()
    names = own_names(tensors)
    assert {own: tensors[name].numel() for name, own in names.items()} == {
        name: value.numel() for name, value in ours.state_dict().items()
    }
    assert sum(value.numel() for value in ours.parameters()) == 630_766_080


def test_quick_gelu_is_told_by_a_config_and_makes_a_difference(clip, pixels, images, tmp_path):
    net = transformers_tower(clip, "quick_gelu")
    net.save_pretrained(tmp_path)
    encoder = load_image_encoder(tmp_path)
    expected = by_transformers(net, pixels)
    torch.testing.assert_close(encoder.encode(images), expected, rtol=1e-5, atol=1e-5)
    other = load_image_encoder(tmp_path, activation="gelu").encode(images)
    assert (other - expected).abs().max() > 1e-3


def test_two_images_are_two_runs_of_tokens_first_then_last(images, tmp_path):
    encoder = ImageEncoder(WIDTH, LAYERS, HEADS, image_size=SIDE)
    made = encoder.encode(images, last=images.flip(0))
    assert made.shape == (2, 2 * TOKENS, WIDTH)
    torch.testing.assert_close(made[:, :TOKENS], encoder.encode(images))
    torch.testing.assert_close(made[:, TOKENS:], encoder.encode(images.flip(0)))
    # of another size than the first
    assert encoder.encode(images, last=images[..., :30]).shape == made.shape


def test_an_images_features_do_not_depend_on_its_neighbours(images):
    encoder = ImageEncoder(WIDTH, LAYERS, HEADS, image_size=SIDE)
    together = encoder.encode(images)
    torch.testing.assert_close(encoder.encode(images[1:])[0], together[1], rtol=1e-5, atol=1e-5)


def test_the_full_picture_is_seen_at_224_whatever_its_size():
    torch.manual_seed(0)
    encoder = ImageEncoder(width=16, num_layers=2, num_heads=2)
    for height, width in ((224, 224), (480, 832), (90, 60)):
        image = torch.rand(1, 3, height, width) * 2 - 1
        made = encoder.encode(image)
        assert made.shape == (1, 257, 16)
        expected = encoder(prepared(image, 224))
        torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)


def test_a_tower_of_ours_is_loaded_with_its_config_and_dtype(images, tmp_path):
    from safetensors.torch import save_file

    encoder = ImageEncoder(WIDTH, LAYERS, HEADS, mlp_width=40, image_size=SIDE)
    save_file(encoder.state_dict(), tmp_path / "model.safetensors")
    config = {"class": "ImageEncoder", **encoder.config}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_image_encoder(tmp_path)
    assert loaded.config == encoder.config
    assert torch.equal(loaded.encode(images), encoder.encode(images))
    half = load_image_encoder(tmp_path, dtype=torch.bfloat16).encode(images)
    assert half.dtype == torch.bfloat16
    error = (half.float() - encoder.encode(images)).norm() / encoder.encode(images).norm()
    assert error < 0.02


def test_wrong_images_are_refused(images):
    encoder = ImageEncoder(WIDTH, LAYERS, HEADS, image_size=SIDE)
    for wrong in (images[0], images[:, :1], (images * 127).to(torch.uint8)):
        with pytest.raises(ValueError, match=r"give \[B, 3, H, W\] in -1..1"):
            encoder.encode(wrong)


def test_missing_weights_say_in_one_line_where_they_belong(tmp_path):
    for spec, said in {
        "Wan-AI/Wan2.1-I2V-14B-480P": "Hugging Face hub did not give it",
        tmp_path / "nothing": "no such file or folder",
        tmp_path: "no image encoder there",
    }.items():
        with pytest.raises(CheckpointError, match=said) as caught:
            load_image_encoder(spec)
        assert "\n" not in str(caught.value)
        assert FILE in str(caught.value)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("a tensor is missing", r"missing: transformer.1.mlp.2.bias"),
        ("one too many", r"unexpected: transformer.1.gamma"),
        ("heads unknown", r"num_heads="),
        ("another model", r"no class token"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(clip, tmp_path, fault, said):
    tensors = official(clip)
    if fault == "a tensor is missing":
        del tensors["visual.transformer.1.mlp.2.bias"]
    elif fault == "one too many":
        tensors["visual.transformer.1.gamma"] = torch.ones(1)
    elif fault == "another model":
        tensors = {"layer1.conv.weight": torch.ones(1)}
    torch.save(tensors, tmp_path / FILE)
    with pytest.raises(CheckpointError, match=said) as caught:
        load_image_encoder(tmp_path, **({} if fault == "heads unknown" else {"num_heads": HEADS}))
    assert str(tmp_path) in str(caught.value)


def test_a_config_that_promises_more_blocks_than_the_file_holds_is_refused(clip, tmp_path):
    transformers_tower(clip).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 4}))
    with pytest.raises(CheckpointError, match=r"missing: transformer.3"):
        load_image_encoder(tmp_path)
