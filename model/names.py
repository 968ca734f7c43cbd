"""What a tensor is called: official Wan names ↔ diffusers' names, for the VAE and every DiT.

Ours are the official ones. A network's names are one table, official module → diffusers module,
made from its number of layers (DiT) or of levels and blocks (VAE); read backwards it is the other
direction, so the two can't disagree. A tensor is called `<module>.<leaf>`, the leaf (weight, bias,
gamma) being the same on both sides; a bare parameter such as `modulation` is in the table itself.

Names: Wan 2.1's checkpoints, and diffusers' WanTransformer3DModel and AutoencoderKLWan.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

KINDS = ("dit", "vae")
COMFY = "model.diffusion_model."  # ComfyUI's exports put it before every official name

# --- DiT: what lies outside the blocks, within a block, within either attention -----------------

OUTSIDE = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "img_emb.emb_pos": "condition_embedder.image_embedder.pos_embed",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "head.modulation": "scale_shift_table",
    "head.head": "proj_out",
}
BLOCK = {
    "modulation": "scale_shift_table",
    "norm1": "norm1",
    # diffusers numbers the norms in the order of use: Wan's norm3 stands before cross-attention and
    # is the only one with weights.
    "norm3": "norm2",
    "norm2": "norm3",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}
ATTENTION = {
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "o": "to_out.0",
    "norm_q": "norm_q",
    "norm_k": "norm_k",
    "k_img": "add_k_proj",
    "v_img": "add_v_proj",
    "norm_k_img": "norm_added_k",
}

# --- VAE: within a residual block, the middle's attention, a change of size ---------------------

RESIDUAL = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}
MIDDLE = {"norm": "norm", "to_qkv": "to_qkv", "proj": "proj"}
RESIZE = {"resample.1": "resample.1", "time_conv": "time_conv"}


def within(official: str, diffusers: str, parts: dict[str, str]) -> dict[str, str]:
    """The parts of a module under its two names."""
    return {f"{official}.{mine}": f"{diffusers}.{theirs}" for mine, theirs in parts.items()}


def dit_modules(layers: int) -> dict[str, str]:
    """Official module → diffusers module of a DiT with so many blocks, with or without images."""
    table = dict(OUTSIDE)
    for i in range(layers):
        table |= within(f"blocks.{i}", f"blocks.{i}", BLOCK)
        table |= within(f"blocks.{i}.self_attn", f"blocks.{i}.attn1", ATTENTION)
        table |= within(f"blocks.{i}.cross_attn", f"blocks.{i}.attn2", ATTENTION)
    return table


def vae_modules(levels: int, blocks: int) -> dict[str, str]:
    """Official module → diffusers module of a VAE.

    Args:
        levels: how many widths, i.e. one more than it halves the frame.
        blocks: residual blocks a level in the encoder; the decoder has one more.
    """
    table = {"conv1": "quant_conv", "conv2": "post_quant_conv"}
    for half in ("encoder", "decoder"):
        table |= {
            f"{half}.conv1": f"{half}.conv_in",
            f"{half}.head.0": f"{half}.norm_out",
            f"{half}.head.2": f"{half}.conv_out",
        }
        table |= within(f"{half}.middle.0", f"{half}.mid_block.resnets.0", RESIDUAL)
        table |= within(f"{half}.middle.1", f"{half}.mid_block.attentions.0", MIDDLE)
        table |= within(f"{half}.middle.2", f"{half}.mid_block.resnets.1", RESIDUAL)
    # Both sides count the encoder's blocks and its changes of size in one row; the decoder's stand
    # in one row in Wan and by level in diffusers.
    for level in range(levels):
        first = level * (blocks + 1)
        for i in range(first, first + blocks):
            table |= within(f"encoder.downsamples.{i}", f"encoder.down_blocks.{i}", RESIDUAL)
        i = first + blocks
        table |= within(f"encoder.downsamples.{i}", f"encoder.down_blocks.{i}", RESIZE)
        first, above = level * (blocks + 2), f"decoder.up_blocks.{level}"
        for i in range(blocks + 1):
            table |= within(f"decoder.upsamples.{first + i}", f"{above}.resnets.{i}", RESIDUAL)
        i = first + blocks + 1
        table |= within(f"decoder.upsamples.{i}", f"{above}.upsamplers.0", RESIZE)
    return table


# --- which network a file holds, and in whose names ---------------------------------------------


@dataclass(frozen=True)
class Names:
    """The names of one network.

    Attributes:
        kind: `dit` or `vae`.
        format: whose names the file has, `official` or `diffusers`.
        modules: official module → diffusers module.
        prefix: what stands before every name in the file.
    """

    kind: str
    format: str
    modules: dict[str, str]
    prefix: str = ""

    @cached_property
    def backwards(self) -> dict[str, str]:
        return {theirs: mine for mine, theirs in self.modules.items()}

    def official(self, name: str) -> str | None:
        """The official name of a tensor of this file; None: the file's layout has no such name."""
        table = self.modules if self.format == "official" else self.backwards
        if not name.startswith(self.prefix) or not (parts := split(bare(name, self), table)):
            return None
        module, leaf = parts
        return (module if self.format == "official" else table[module]) + leaf

    def diffusers(self, name: str) -> str:
        """diffusers' name of a tensor whose official name is given.

        Raises:
            KeyError: no tensor of this network is called so.
        """
        if parts := split(name, self.modules):
            return self.modules[parts[0]] + parts[1]
        raise KeyError(name)


def bare(name: str, names: Names) -> str:
    return name[len(names.prefix) :]


def split(name: str, table: dict[str, str]) -> tuple[str, str] | None:
    """A name as module and `.leaf`; a bare parameter as itself and nothing."""
    if name in table:
        return name, ""
    module, _, leaf = name.rpartition(".")
    return (module, f".{leaf}") if module in table else None


def recognise(names: Iterable[str]) -> Names | None:
    """Which network these names belong to and whose they are; None: none that is known here.

    The likeliest wins, so that a file with missing or surplus names is still told for what it is.
    """
    names = list(names)
    prefix = COMFY if names and all(one.startswith(COMFY) for one in names) else ""
    bared = [one.removeprefix(prefix) for one in names]
    levels, blocks = vae_counts(bared)
    tables = {
        "dit": dit_modules(count(bared, r"blocks\.(\d+)\.")),
        "vae": vae_modules(levels, blocks),
    }
    best, votes = None, 0
    for kind, table in tables.items():
        for whose, known in (("official", table), ("diffusers", set(table.values()))):
            found = sum(1 for one in bared if split(one, known))
            if found > votes:
                best, votes = Names(kind, whose, table, prefix), found
    return best if votes * 2 > len(names) else None


def vae_counts(names: list[str]) -> tuple[int, int]:
    """Levels and residual blocks a level, of a VAE under either names; (0, 0): there is none."""
    levels = count(names, r"decoder\.up_blocks\.(\d+)\.")
    if levels:
        blocks = count(names, r"decoder\.up_blocks\.0\.resnets\.(\d+)\.") - 1
    else:
        row = count(names, r"decoder\.upsamples\.(\d+)\.")
        resized = sorted(numbers(names, r"decoder\.upsamples\.(\d+)\.resample\."))
        levels, blocks = len(resized) + 1, (resized[0] if resized else row) - 1
    sane = blocks > 0 and levels * blocks <= len(names)
    return (levels, blocks) if sane else (0, 0)


def numbers(names: list[str], pattern: str) -> set[int]:
    found = re.compile(pattern)
    return {int(match[1]) for name in names if (match := found.match(name))}


def count(names: list[str], pattern: str) -> int:
    """How many, by the highest number that occurs; never more than there are names."""
    return min(max(numbers(names, pattern), default=-1) + 1, len(names))
