"""Encodes clips and captions once: shards in, latent shards out, read by `data.latents`.

    python training/latents.py recipe=480p              into runs/latents/480p
    python training/latents.py recipe=480p plan=true    what it would encode, and what is there
    python training/latents.py recipe=480p data.shards=PATH vae=Wan2.1_VAE.pth cache.windows=2
    python training/fit.py recipe=480p data.latents=runs/latents/480p

Of an image-to-video recipe's videos it also encodes what `cache.masks` masks give, drawn as
`objective.masks` says, so that a step encodes nothing.

Killed at any moment, the same command goes on with the next shard. Several processes share the work
(`torchrun --nproc-per-node=8 training/latents.py …`), each with shards of its own. Training with
another VAE or text encoder than encoded them is refused. `--help` lists every key.
"""

import os
import sys
from pathlib import Path

from recipes.load import UsageError, main
from recipes.training import Latents

ELSEWHERE = {  # keys of training/fit.py, and what does here what they do there
    "name": "cache.out=PATH names the folder",
    "resume": "what is there is kept; delete the folder to encode anew",
    "compute.devices": "torchrun --nproc-per-node=8 training/latents.py … shares the work",
    "compute.nodes": "torchrun --nnodes=2 … training/latents.py … shares the work",
}


def latents(config: Latents) -> None:
    """The command."""
    for key, instead in ELSEWHERE.items():
        if key in config.command_line:
            raise UsageError(f"{key}: a key of training/fit.py alone; {instead}")
    # these take seconds to import, and --help should not
    import torch

    from model.checkpoint import load_vae
    from model.tensors import CheckpointError
    from training import console, parts
    from training.encoding import Encoding, ranks
    from training.parallel import device

    if config.trains != "dit":
        raise UsageError(f"recipe={config.recipe}: trains a {config.trains}; latents are a DiT's")
    where = device(config)
    if where == "cuda":
        where = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        vae = load_vae(parts.needed("vae", config), device=where, dtype=torch.float32)
        text = None
        if config.cache.text:
            if not config.text_encoder:
                raise UsageError("text_encoder=: reads the captions; cache.text=false leaves them")
            text = parts.text_encoder(config).to(where)
    except CheckpointError as error:
        raise UsageError(str(error)) from error
    name = Path(config.recipe).stem if config.recipe else "own"
    out = Path(config.cache.out or f"{config.runs}/latents/{name}").expanduser()
    encoding = Encoding(config, vae, out, text, *ranks())
    console.show(encoding.data.table())
    if not config.plan:
        encoding.run()
    console.show(encoding.table())


if __name__ == "__main__":
    sys.exit(main(Latents, latents))
