"""What runs have recorded of themselves while they trained, beside one another; and how measures
went from checkpoint to checkpoint of one run.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from eval.contenders import Contender
from eval.measures.measure import Measure
from eval.scoring import Table

LEVEL = re.compile(r"timestep/(\d+)/(.+)")


def curves(names: Sequence[str], contenders: Sequence[Contender]) -> dict[str, list[list[float]]]:
    """Held-out loss: name → (step, loss) of each validation."""
    return {
        name: [[row["step"], row["loss"]] for row in run["validation"] if "loss" in row]
        for name, one in zip(names, contenders, strict=True)
        if (run := one.about.get("run"))
    }


def levels(names: Sequence[str], contenders: Sequence[Contender]) -> dict[str, Any]:
    """Held-out loss at fixed noise levels, bucket by bucket, as it stood at each checkpoint's step.

    Returns:
        `steps`: of the validations, by name; `rows`: bucket, timestep (0–1000), and loss by name.
        Empty where no run has recorded any.
    """
    steps, found = {}, {}
    for name, one in zip(names, contenders, strict=True):
        run, step = one.about.get("run"), one.about.get("step")
        rows = (
            [row for row in run["validation"] if step is None or row["step"] <= step] if run else []
        )
        if not rows:
            continue
        steps[name] = rows[-1]["step"]
        for key, loss in rows[-1].items():
            if told := LEVEL.fullmatch(key):
                found.setdefault((told[2], int(told[1])), {})[name] = loss
    if not found:
        return {}
    rows = [
        {"bucket": bucket, "timestep": level, "loss": loss}
        for (bucket, level), loss in sorted(found.items())
    ]
    return {"steps": steps, "rows": rows}


def learning(
    contenders: Sequence[Contender], measures: Sequence[Measure], tables: Sequence[Table]
) -> list[dict[str, Any]]:
    """Of each run with checkpoints of several steps: its measures' means, step by step."""
    runs: dict[str, dict[int, Table]] = {}
    for one, table in zip(contenders, tables, strict=True):
        run, step = one.about.get("run"), one.about.get("step")
        if run and step is not None:
            runs.setdefault(run["folder"], {})[step] = table
    found = []
    for folder, known in runs.items():
        if len(known) < 2:
            continue
        means = {
            one.name: [[step, known[step].scores[one.name].mean] for step in sorted(known)]
            for one in measures
        }
        whole = {n: rows for n, rows in means.items() if np.isfinite([v for _, v in rows]).all()}
        found.append({"run": folder, "measures": whole})
    return found
