"""Constructor keywords of the public models, and of small ones that a CPU trains.

The small DiTs have head dim 128 like all Wan models, so that attention, rotary positions and
checkpoint formats are those of the large ones; they read a byte encoder of width 64. The small VAEs
have the published shape, fewer channels, and fewer blocks.
"""

from typing import Any

WIDE = {"width": 5120, "ffn_width": 13824, "num_heads": 40, "num_layers": 40}
SMALL = {"width": 256, "ffn_width": 1024, "num_heads": 2, "num_layers": 4, "text_width": 64}
IMAGE = {"in_channels": 36, "image_width": 1280}  # 16 latent + 4 mask + 16 condition; CLIP ViT-H/14
BOTH_ENDS = IMAGE | {"image_positions": 514}  # 2 · 257 tokens

PRESETS: dict[str, dict[str, Any]] = {
    "1.3b": {"width": 1536, "ffn_width": 8960, "num_heads": 12, "num_layers": 30},
    "14b": WIDE,
    "i2v-14b": WIDE | IMAGE,
    "flf2v-14b": WIDE | BOTH_ENDS,
    # 63 bytes of text: one moving shape in English or Chinese; with 512 tokens, nearly all of them
    # padding, text would cost more than a small video
    "tiny": SMALL | {"text_length": 64},
    "i2v-tiny": SMALL | IMAGE,
    "flf2v-tiny": SMALL | BOTH_ENDS,
}

VAES: dict[str, dict[str, Any]] = {
    "full": {},
    "small": {"width": 32},
    "micro": {"width": 16, "blocks": 1},
}
