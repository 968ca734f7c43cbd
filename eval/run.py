"""Compares checkpoints: prompts through each, measures, and a report that says which is better.

    python eval/run.py checkpoints=[runs/tiny/a,runs/tiny/b]
    python eval/run.py checkpoints=[a,b] suite=VBench_full_info.json backbones.raft=C_T_V1
    python eval/run.py checkpoints=[a,b] suite=VBench_full_info.json vbench.python=vbench/bin/python
    python eval/run.py videos=[ours,theirs] suite=prompts.txt seeds=1
    python eval/run.py checkpoints=[a,b] suite=vbench2_i2v_full_info.json images=crop/16-9
    python eval/run.py self_test=true                   what the measures themselves are worth

What is sampled and measured once is kept, so the same command again does nothing, and a third
checkpoint costs only the third. `--help` lists every key.
"""

import sys
import time
from pathlib import Path

from recipes.evaluation import Evaluation
from recipes.keys import UsageError
from recipes.load import main


def evaluate(config: Evaluation) -> None:
    """The command."""
    from rich.console import Console
    from rich.progress import Progress

    from eval import board, contenders, memory, page, report, selftest
    from eval.measures.catalog import Catalog
    from eval.sample import chosen
    from eval.scoring import Known, packaged, score
    from eval.suite import read_suite
    from eval.vbench_package import Package, dimensions

    if not config.checkpoints and not config.videos and not config.self_test:
        raise UsageError("nothing to do: checkpoints=[a,b], videos=[a,b] or self_test=true")
    if config.seeds < 1 or (config.prompts is not None and config.prompts < 1):
        raise UsageError(f"seeds={config.seeds}, prompts={config.prompts}: at least 1")
    if config.resamples < 100:
        raise UsageError(f"resamples={config.resamples}: at least 100")
    began, out = time.monotonic(), Path(config.out).expanduser()
    try:
        out.mkdir(parents=True, exist_ok=True)
        known = Known(out / "scores.jsonl")
    except OSError as error:
        raise UsageError(f"out={config.out}: can't be written ({error.strerror})") from error
    device = str(chosen(config.device))
    measures = Catalog(config.backbones, device).measures(config.measures)
    package = Package(config.vbench.python, device) if config.vbench.python else None
    elsewhere = dimensions(config.vbench.dimensions, measures) if package else []
    suite = read_suite(config.suite, config.prompts, config.images)
    compared = [contenders.sampled(config, suite, one) for one in config.checkpoints]
    compared += [contenders.found(suite, one, config.seeds) for one in config.videos]
    err = Console(stderr=True)
    with Progress(console=err, transient=True, disable=not err.is_terminal) as bar:
        count = sum(len(one.videos) for one in compared)
        task = bar.add_task("measuring", total=count)
        tables = score(
            compared, suite, measures, config.seeds, known, lambda done: bar.advance(task, done)
        )
    tested = selftest.run(measures, out) if config.self_test else selftest.known(measures, out)
    if package:
        measures += packaged(package, elsewhere, compared, suite, known, tables, out / "vbench")
    found = report.report(config, suite, measures, compared, tables, tested, out)
    found["took_s"] = round(time.monotonic() - began, 1)
    with memory.told(config.out):
        report.write(found, out)
        report.write_vbenchs(compared, tables, out)
        board.write(found, compared, out)
        (out / "report.html").write_text(page.page(found, compared), "utf-8")
    for line in report.closing(found, out):
        print(line)


if __name__ == "__main__":
    sys.exit(main(Evaluation, evaluate))
