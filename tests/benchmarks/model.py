"""All figures of the model, beside diffusers' in one run; on a GPU also how near the chip it comes.

    python tests/benchmarks/model.py                             about half an hour on two cores
    python tests/benchmarks/model.py turns=9 out=FILE
    python tests/benchmarks/model.py checkpoint=runs/tiny/…      the sampler's caches too

The rows are those of vae.py and dit.py beside this file, which run alone as well; the caches are
`eval/accelerate.py`'s.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

# a script's own folder leads the path, and here it has a curation.py
HERE, ROOT = Path(__file__).resolve().parent, Path(__file__).resolve().parents[2]
sys.path[:] = [str(ROOT), *(one for one in sys.path if Path(one).resolve() != HERE)]

from tests.benchmarks import dit, vae  # noqa: E402


def main() -> None:
    keys = dict(argument.split("=", 1) for argument in sys.argv[1:])
    if wrong := set(keys) - {"turns", "out", "checkpoint", "threads"}:
        sys.exit(f"unknown: {', '.join(sorted(wrong))}; there is turns, out, checkpoint, threads")
    torch.set_num_threads(int(keys.get("threads", os.cpu_count() or 1)))
    turns = int(keys.get("turns", 5))
    found = vae.figures(vae.ROWS, turns) | dit.figures(dit.ROWS, turns)
    out = Path(keys.get("out", "benchmark-model.json"))
    out.write_text(json.dumps(found, indent=1))
    if "checkpoint" in keys:  # on a random model the caches' PSNR would mean nothing
        command = [sys.executable, "eval/accelerate.py", f"checkpoint={keys['checkpoint']}"]
        subprocess.run(
            [*command, f"out={out.with_suffix('.caches').absolute()}"], cwd=ROOT, check=True
        )


if __name__ == "__main__":
    main()
