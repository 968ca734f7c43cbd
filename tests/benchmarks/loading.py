"""How fast steps are read from shards, over bare decord reading of the same frames.

    python tests/benchmarks/loading.py                    rendered shapes, and the bundled samples
    python tests/benchmarks/loading.py shards=FOLDER sizes=480p tokens=32760
    python tests/benchmarks/loading.py turns=5 clips=200 out=FILE

Ours finds a clip in its tar, compares its checksum, reads its JSON, takes its frames by time
stamps, scales them to the bucket and stacks them into a batch. decord opens the same clips as files
and hands out the same frames as they are stored: neither scaled nor stacked. One thread a process
on both sides, in turns in one run; the median of the ratios counts. One process in which both
run shows CPU time too, since it holds on a busy machine; of two processes, the loader's own are
clocked from their first step on. Prints a table, writes JSON.
"""

import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# a script's own folder leads the path, and here it has a curation.py
sys.path[:] = [one for one in sys.path if Path(one).resolve() != Path(__file__).resolve().parent]

ROOT = Path(__file__).resolve().parents[2]
PROCESSES = 2
Clip = tuple[str, list[int]]  # a file, and which of its frames
# name: how its shards are made, and the buckets that they are read at
CASES = {
    "rendered, 64x64x9": (
        "source=synthetic:shapes synthetic.count=192 synthetic.size=64 synthetic.frames=9",
        ["buckets.sizes=64x64", "buckets.frames=9", "buckets.tokens=1152"],
    ),
    "samples, 480p": ("", ["buckets.sizes=480p", "buckets.frames=17,33,49", "buckets.enlarge=1.5"]),
}


def data(shards: str, settings: list[str], workers: int):
    """What a recipe would train on."""
    # not at the top: decord's processes import this file
    from recipes.load import load
    from recipes.training import Fit
    from training.data import ShardData

    given = [f"data.shards={shards}", f"data.workers={workers}", "data.image_share=0"]
    given.append("data.sampling_weights=false")  # every clip alike
    return ShardData(load(Fit, [*given, *settings]), "dit")


def steps(shards: str, settings: list[str], workers: int, clips: int) -> tuple[float, float, int]:
    """Seconds, CPU seconds of this process, and clips: so many after the first step."""
    walk, seen = iter(data(shards, settings, workers).train_dataloader()), 0
    next(walk)
    began, cpu_began = time.perf_counter(), time.process_time()
    while seen < clips:
        seen += sum(map(len, next(walk).batches))
    return time.perf_counter() - began, time.process_time() - cpu_began, seen


def frames(shards: str, settings: list[str], folder: Path) -> list[Clip]:
    """The same clips as files, and the frames of the middle of each that a bucket takes."""
    import decord

    from training import tars

    known, found = data(shards, settings, 0), []
    for number in known.phases[-1].videos.rows.tolist():
        row = known.index.row(number)
        path = folder / f"{row.name}.mp4"
        path.write_bytes(tars.sample(row)["mp4"])
        reader = decord.VideoReader(str(path), num_threads=1)
        stamps = reader.get_frame_timestamp(list(range(len(reader))))[:, 0]
        bucket = known.buckets[known.assignment.number[number]]
        spare = max(0.0, float(stamps[-1] + stamps[1]) - bucket.frames / known.taste.fps)
        times = [spare / 2 + 1e-3 + k / known.taste.fps for k in range(bucket.frames)]
        found.append((str(path), [max(0, int((stamps <= t).sum()) - 1) for t in times]))
    return found


def bare(clip: Clip) -> int:
    """One clip through decord."""
    import decord

    path, numbers = clip
    return len(decord.VideoReader(path, num_threads=1).get_batch(numbers).asnumpy())


def alone(clips: list[Clip], count: int) -> tuple[float, float]:
    """Seconds and CPU seconds for so many clips in this process."""
    began, cpu_began = time.perf_counter(), time.process_time()
    for k in range(count):
        bare(clips[k % len(clips)])
    return time.perf_counter() - began, time.process_time() - cpu_began


def shared(pool, clips: list[Clip], count: int) -> float:
    """Seconds for so many clips in several processes."""
    began = time.perf_counter()
    pool.map(bare, [clips[k % len(clips)] for k in range(count)], chunksize=max(1, count // 16))
    return time.perf_counter() - began


def measured(shards: str, settings: list[str], count: int, turns: int) -> dict[str, float]:
    """Clips a second of both sides, and the ratios."""
    rates: dict[str, list[float]] = {}

    def add(name: str, value: float) -> None:
        rates.setdefault(name, []).append(value)

    context = multiprocessing.get_context("forkserver")
    with tempfile.TemporaryDirectory() as scratch, context.Pool(PROCESSES) as pool:
        clips = frames(shards, settings, Path(scratch))
        steps(shards, settings, 0, 1)
        shared(pool, clips, 4 * PROCESSES)  # imports done
        for _ in range(turns):
            seconds, cpu_s, seen = steps(shards, settings, 0, count)
            bare_s, bare_cpu_s = alone(clips, count)
            add("one_clips_per_s", seen / seconds)
            add("one_decord_clips_per_s", count / bare_s)
            add("one_ratio", seen / seconds * bare_s / count)
            add("one_cpu_ratio", seen / cpu_s * bare_cpu_s / count)
            seconds, _, seen = steps(shards, settings, PROCESSES, count)
            bare_s = shared(pool, clips, count)
            add("two_clips_per_s", seen / seconds)
            add("two_decord_clips_per_s", count / bare_s)
            add("two_ratio", seen / seconds * bare_s / count)
    return {name: statistics.median(some) for name, some in rates.items()}


def made(arguments: str, folder: Path) -> str:
    """Shards of a case, by the command that a user types."""
    command = [sys.executable, str(ROOT / "curation/run.py"), f"out={folder}", "profile=tiny"]
    subprocess.run([*command, *arguments.split()], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return str(next((folder / "shards").iterdir()))


def main() -> None:
    keys = dict(argument.split("=", 1) for argument in sys.argv[1:])
    turns, count = int(keys.get("turns", 5)), int(keys.get("clips", 0))
    figures = {}
    with tempfile.TemporaryDirectory() as scratch:
        cases = {}
        if "shards" in keys:
            settings = [f"buckets.sizes={keys.get('sizes', '480p')}"]
            settings += [f"buckets.{k}={keys[k]}" for k in ("tokens", "frames") if k in keys]
            cases[keys["shards"]] = (keys["shards"], settings)
        else:
            for number, (name, (arguments, settings)) in enumerate(CASES.items()):
                cases[name] = (made(arguments, Path(scratch) / str(number)), settings)
        for name, (shards, settings) in cases.items():
            many = count or (384 if "64x64" in name else 24)
            figures[name] = row = measured(shards, settings, many, turns)
            for who, what in (("one", "one process"), ("two", f"{PROCESSES} processes")):
                line = f"{name:<20}{what:<14}{row[f'{who}_clips_per_s']:8.1f} clips/s"
                line += f"   decord {row[f'{who}_decord_clips_per_s']:8.1f}"
                line += f"   ratio {row[f'{who}_ratio']:5.2f}"
                print(line + (f"   CPU {row['one_cpu_ratio']:5.2f}" if who == "one" else ""))
    Path(keys.get("out", "benchmark-loading.json")).write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
