"""Vision-language models made on the spot: sixteen words, a chat template, a network."""

from pathlib import Path

import numpy as np

from curation import captioner

SPECIAL = ["<unk>", "<pad>", "<s>", "<end>", "<vision>", "<endvision>", "<image>", "<video>"]
WORDS = ["a", "red", "blue", "circle", "describe", "user", "assistant", "."]
TEMPLATE = (
    "{% for m in messages %}<s> {{ m.role }} {% for p in m.content %}"
    "{% if p.type == 'text' %}{{ p.text }}"
    "{% else %}<vision> <{{ p.type }}> <endvision>{% endif %}"
    "{% endfor %}<end>{% endfor %}{% if add_generation_prompt %}<s> assistant {% endif %}"
)
TEXT = {
    "vocab_size": len(SPECIAL + WORDS),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "pad_token_id": 1,
}


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(SPECIAL + WORDS)}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "<end>"}
    extra = {"image_token": "<image>", "video_token": "<video>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=plain,
        **names,
        bos_token="<s>",
        extra_special_tokens={**extra, "vision_start": "<vision>", "vision_end": "<endvision>"},
    )


def video_model(folder: Path) -> str:
    """A Qwen2-VL that takes images and video."""
    import transformers as t

    size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28}
    processor = t.Qwen2VLProcessor(
        t.Qwen2VLImageProcessor(size=size),
        tokenizer(),
        t.Qwen2VLVideoProcessor(size=size, cap_pixels_per_frame=False),
        chat_template=TEMPLATE,
    )
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    config = t.Qwen2VLConfig(
        text_config={**TEXT, "rope_parameters": rope},
        vision_config={"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2},
        vision_start_token_id=4,
        vision_end_token_id=5,
        image_token_id=6,
        video_token_id=7,
    )
    return saved(t.Qwen2VLForConditionalGeneration, config, processor, folder)


def image_model(folder: Path) -> str:
    """A LLaVA, which takes images only."""
    import transformers as t

    size = {"height": 28, "width": 28}
    vision = t.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=size)
    processor = t.LlavaProcessor(
        vision,
        tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    config = t.LlavaConfig(
        text_config=t.LlamaConfig(**TEXT),
        vision_config=t.CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
        ),
        image_token_id=6,
        vision_feature_select_strategy="full",
    )
    return saved(t.LlavaForConditionalGeneration, config, processor, folder)


def saved(kind, config, processor, folder: Path) -> str:
    import torch

    torch.manual_seed(0)
    net = kind(config)
    net.generation_config.eos_token_id, net.generation_config.pad_token_id = 3, 1
    # as published checkpoints do; greedy decoding must not trip over them
    net.generation_config.do_sample, net.generation_config.temperature = True, 0.7
    net.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def colour(red: bool, k: int) -> np.ndarray:
    """k plain frames."""
    frames = np.zeros((k, 32, 40, 3), np.uint8)
    frames[..., 0 if red else 2] = 220
    return frames


def teach(
    loaded,
    frames: list[np.ndarray],
    texts: list[str],
    steps: int = 25,
    prompt: str = "describe a circle",
) -> None:
    """Trains the model to say these texts of these frames, as `captioner.inputs` gives them."""
    import torch

    optimizer = torch.optim.Adam(loaded.model.parameters(), 1e-2)
    for _ in range(steps):
        for one, text in zip(frames, texts, strict=True):
            batch = dict(captioner.inputs(one, loaded, prompt))
            answer = loaded.processor.tokenizer(
                text + " <end>", add_special_tokens=False, return_tensors="pt"
            ).input_ids.to(loaded.device)
            asked = batch["input_ids"].shape[1]
            batch["input_ids"] = torch.cat([batch["input_ids"], answer], 1)
            batch["attention_mask"] = torch.ones_like(batch["input_ids"])
            if (types := batch.get("mm_token_type_ids")) is not None:
                batch["mm_token_type_ids"] = torch.cat([types, torch.zeros_like(answer)], 1)
            labels = batch["input_ids"].clone()
            labels[:, :asked] = -100
            loaded.model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
