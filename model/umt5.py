"""umT5-XXL, the text encoder of the public Wan weights, through transformers' UMT5EncoderModel.

Its weights come under two namings: transformers' (diffusers' `text_encoder/`, `google/umt5-xxl`)
and the official `models_t5_umt5-xxl-enc-bf16.pth` (Wan 2.1 `wan/modules/t5.py`). The table of both
stands here once. Model: Chung et al., UniMax, 2023 (arXiv 2304.09151); T5's encoder with a relative
position bias of its own in every layer, RMS norm, gated GELU, attention logits not scaled.

B batch, N tokens, D width (XXL: 4096).
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from model.pretrained import (
    depth,
    fill,
    inverse,
    locate,
    open_model,
    placed,
    read_config,
    renaming,
)
from model.prompt import TextFeatures, checked, padded, report_cut
from model.tensors import CheckpointError, some

LENGTH = 512  # tokens that the DiT takes, `</s>` included
FILE = "models_t5_umt5-xxl-enc-bf16.pth"
TOKENIZER = "google/umt5-xxl"  # the tokenizer's folder beside the official file

# official → transformers
TOP = {"token_embedding.weight": "shared.weight", "norm.weight": "encoder.final_layer_norm.weight"}
BLOCK = {
    "norm1.weight": "layer.0.layer_norm.weight",
    "attn.q.weight": "layer.0.SelfAttention.q.weight",
    "attn.k.weight": "layer.0.SelfAttention.k.weight",
    "attn.v.weight": "layer.0.SelfAttention.v.weight",
    "attn.o.weight": "layer.0.SelfAttention.o.weight",
    "pos_embedding.embedding.weight": "layer.0.SelfAttention.relative_attention_bias.weight",
    "norm2.weight": "layer.1.layer_norm.weight",
    "ffn.gate.0.weight": "layer.1.DenseReluDense.wi_0.weight",
    "ffn.fc1.weight": "layer.1.DenseReluDense.wi_1.weight",
    "ffn.fc2.weight": "layer.1.DenseReluDense.wo.weight",
}
STEMS = ("blocks.", "encoder.block.")
TIED = "encoder.embed_tokens.weight"  # transformers' second name for shared.weight

to_transformers = renaming(TOP, BLOCK, STEMS)
to_official = renaming(inverse(TOP), inverse(BLOCK), (STEMS[1], STEMS[0]))


def own_names(names: Iterable[str]) -> dict[str, str]:
    """An encoder's names in either naming → transformers' names.

    A whole umT5's decoder and head, and transformers' second name for the embedding, are left out.

    Raises:
        CheckpointError: names that are in neither naming.
    """
    names = set(names)
    found = {name: to_transformers(name) or name for name in names if name != TIED}
    if TIED in names and "shared.weight" not in names:
        found[TIED] = "shared.weight"
    unknown = [name for name, own in found.items() if not to_official(own)]
    for name in unknown:
        del found[name]
    strange = sorted(one for one in unknown if not one.startswith(("decoder.", "lm_head.")))
    if strange or not found:
        raise CheckpointError(f"not umT5's encoder, whose names aren't {some(strange)}")
    return found


class UMT5Encoder:
    """Prompts → umT5's last hidden state, zero beyond each prompt's tokens.

    Attributes:
        model: transformers' UMT5EncoderModel, frozen.
        tokenizer: transformers'; ends every prompt with `</s>`, the empty one too.
    """

    def __init__(self, model, tokenizer):
        config = model.config
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer
        self.width, self.length = config.d_model, LENGTH
        is_xxl = (config.d_model, config.num_layers) == (4096, 24)
        self.name = "umt5-xxl" if is_xxl else f"umt5-{config.num_layers}x{config.d_model}"

    def to(self, *args, **kwargs) -> "UMT5Encoder":
        """Moves the weights, as `nn.Module.to` does."""
        self.model.to(*args, **kwargs)
        return self

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        """Features [B, 512, D] on the weights' device, in their dtype.

        A prompt of more than 512 tokens keeps its first 511 and `</s>`, as in the public pipeline;
        that is logged.

        Raises:
            TypeError: not a sequence of str. ValueError: no prompt at all, or the tokenizer is
                another model's.
        """
        texts = checked(prompts)
        counts = [len(ids) for ids in self.tokenizer(texts, verbose=False).input_ids]
        rows = self.tokenizer(texts, truncation=True, max_length=self.length).input_ids
        cut = tuple(count > len(row) for count, row in zip(counts, rows, strict=True))
        for text, count, is_cut in zip(texts, counts, cut, strict=True):
            if is_cut:
                report_cut(text, count, self.length)
        table = self.model.shared.weight
        if max(map(max, rows)) >= table.shape[0]:
            raise ValueError(
                f"the tokenizer gives token {max(map(max, rows))}, the weights know "
                f"{table.shape[0]}: give the tokenizer that belongs to them"
            )
        # only as long as the longest of these prompts: with the mask the rest changes nothing
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=table.device)
        lengths = torch.tensor([len(row) for row in rows], device=table.device)
        mask = torch.arange(longest, device=table.device) < lengths[:, None]
        hidden = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return TextFeatures(padded(hidden, lengths, self.length), lengths, cut)


def load_umt5(
    spec: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    tokenizer: str | Path | None = None,
) -> UMT5Encoder:
    """umT5 and its tokenizer; arguments and errors as `model.text.load_text_encoder`'s."""
    root = locate(spec, _wanted, f"{FILE} (with {TOKENIZER}/ beside it) or text_encoder/")
    place = _weights(root)
    words = _tokenizer(root, tokenizer)  # before the weights, which take longer
    return UMT5Encoder(_model(place, device, dtype), words)


def _weights(root: Path) -> Path:
    """The file, or the folder of transformers' layout, that holds the weights."""
    if root.is_file():
        return root
    # an official folder's own config.json is the DiT's
    official = sorted(root.glob("models_t5_*.pth"))
    for place in (root / "text_encoder", *official, root):
        if place.is_file():
            return place
        kind = read_config(place).get("model_type")
        if kind not in (None, "umt5"):
            raise CheckpointError(f"{place}: a model of type {kind}; Wan's text encoder is umt5")
        if kind:
            return place
    raise CheckpointError(
        f"{root}: no text encoder there: put {FILE}, text_encoder/ with config.json, or a "
        "ByteEncoder's folder there"
    )


def _tokenizer(root: Path, spec: str | Path | None):
    """The tokenizer in the folder named, or in those where one lies beside the weights."""
    beside = root if root.is_dir() else root.parent
    places = [beside / "tokenizer", beside / TOKENIZER, beside, beside.parent / "tokenizer"]
    if spec is not None:
        named = locate(spec, _wanted_tokenizer, "tokenizer.json")
        places = [named / "tokenizer", named / TOKENIZER, named]
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    for place in places:
        if (place / "tokenizer.json").is_file():
            # not AutoTokenizer, which since transformers 5 rebuilds a T5Tokenizer without the
            # file's byte fallback and normaliser: a rare character would become <unk>
            return PreTrainedTokenizerFast(tokenizer_file=str(place / "tokenizer.json"))
        if (place / "spiece.model").is_file():
            return AutoTokenizer.from_pretrained(str(place))
    looked = ", ".join(str(place) for place in places)
    raise CheckpointError(f"umT5's tokenizer.json is missing; put it in one of {looked}")


def _model(place: Path, device: str | torch.device, dtype: torch.dtype | None):
    """transformers' model, each tensor read, cast and moved on its own."""
    from transformers import UMT5Config, UMT5EncoderModel

    weights = open_model(place)
    try:
        names = own_names(weights.entries)
        shapes = {own: weights.entries[name].shape for name, own in names.items()}
        config = UMT5Config.from_pretrained(place) if place.is_dir() else sizes(shapes)
    except CheckpointError as error:
        raise CheckpointError(f"{place}: {error}") from None
    # transformers keeps `wo` in float32 beside float16 too: its output overflows
    tensors = {
        own: placed(weights.read(name), device, dtype, wide=".wo." in own)
        for name, own in names.items()
    }
    if "shared.weight" in tensors:
        tensors[TIED] = tensors["shared.weight"]
    with torch.device("meta"):
        model = UMT5EncoderModel(config)
    fill(model, tensors, place)
    model.tie_weights()
    return model


def sizes(shapes: Mapping[str, tuple[int, ...]]):
    """umT5's config from the shapes of its tensors, under transformers' names.

    Raises:
        CheckpointError: one that tells a size is missing.
    """
    from transformers import UMT5Config

    first = f"{STEMS[1]}0.layer."
    try:
        vocabulary, width = shapes["shared.weight"]
        buckets, heads = shapes[f"{first}0.SelfAttention.relative_attention_bias.weight"]
        return UMT5Config(
            vocab_size=vocabulary,
            d_model=width,
            d_kv=shapes[f"{first}0.SelfAttention.q.weight"][0] // heads,
            d_ff=shapes[f"{first}1.DenseReluDense.wi_0.weight"][0],
            num_layers=depth(shapes, STEMS[1]),
            num_heads=heads,
            relative_attention_num_buckets=buckets,
        )
    except KeyError as error:
        raise CheckpointError(f"not umT5's encoder: {error.args[0]} is missing") from None


def _wanted(files: list[str]) -> list[str]:
    """Of a repository's files, those of the text encoder and tokenizer."""
    if "text_encoder/config.json" in files:
        return [one for one in files if one.startswith(("text_encoder/", "tokenizer/"))]
    if FILE in files:
        return [one for one in files if one == FILE or one.startswith(f"{TOKENIZER}/")]
    return [one for one in files if "/" not in one]


def _wanted_tokenizer(files: list[str]) -> list[str]:
    return [one for one in files if one.endswith(("tokenizer.json", "spiece.model"))]
