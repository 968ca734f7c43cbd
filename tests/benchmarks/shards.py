"""What writing shards costs, over bare ffmpeg transcodes of the same seconds, settings and threads.

    python tests/benchmarks/shards.py                 the bundled samples
    python tests/benchmarks/shards.py clips=FOLDER    every video of a folder
    python tests/benchmarks/shards.py crf=23 preset=medium window_s=5 turns=5 out=FILE

Each file is windowed end to end, so that both sides encode every frame once; on one and the same
core each, as the run has a process a core (ffmpeg would decode on another than it encodes on); in
turns, in one run; the median of the ratios counts. CPU time is shown beside wall time, since it
holds on a busy machine too. Bare ffmpeg is taken twice: the whole file in one process, which yields
no clips but is the floor, and one process a clip, as scripts do it. Prints a table, writes JSON.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import imageio_ffmpeg

# a script's own folder leads the path, and here it has a curation.py
sys.path[:] = [one for one in sys.path if Path(one).resolve() != Path(__file__).resolve().parent]

from curation import shards, video  # noqa: E402
from recipes.schema import Shards  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
SUFFIXES = {".mp4", ".mkv", ".mov", ".avi", ".webm"}


def windows(path: Path, window_s: float) -> list[shards.Sample]:
    """A file end to end in clips, as the catalog would have them."""
    probe = video.probe(path)
    times = [frame.time_s for frame in video.frames(path, probe)]
    times.append(times[-1] + 1 / probe.fps)
    step = max(1, round(window_s * probe.fps))
    return [
        shards.Sample(
            clip_id=f"{path.stem.replace('.', '-')}-{start:08d}-{end:08d}",
            source_path=path,
            name=path.name,
            start_s=times[start],
            end_s=times[end],
            start_frame=start,
            end_frame=end,
            captions=({"text": "a clip", "language": "en", "source": "none", "model": None},),
        )
        for start in range(0, len(times) - 1, step)
        for end in [min(start + step, len(times) - 1)]
    ]


def ours(samples: list[shards.Sample], settings: Shards, folder: Path) -> int:
    jobs = shards.plan(samples, folder, settings)
    for job in jobs:
        list(shards.write_shard(job))
    manifest = shards.finish(folder, jobs)
    if manifest["left_out"]:
        raise SystemExit(f"left out: {manifest['left_out']}")
    return sum(row["bytes"] for row in shards.index(folder))


def transcode(path: Path, out: Path, settings: Shards, *where: str) -> int:
    command = [FFMPEG, "-v", "error", "-y", "-threads", "1", *where, "-i", path, "-an"]
    command += ["-c:v", "libx264", "-crf", settings.crf, "-preset", settings.preset]
    command += ["-x264-params", "cpu-independent=1"]  # what the same bytes everywhere cost
    command += ["-pix_fmt", "yuv420p", "-threads", "1", "-movflags", "+faststart", out]
    subprocess.run([str(part) for part in command], check=True)
    return out.stat().st_size


def cpu_s() -> float:
    """CPU seconds of this process and its children so far."""
    both = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in both)


def timed(work: Callable[[], int]) -> tuple[float, float, int]:
    """Wall seconds, CPU seconds, bytes written."""
    wall, cpu = time.perf_counter(), cpu_s()
    size = work()
    return time.perf_counter() - wall, cpu_s() - cpu, size


def measure(files: list[Path], settings: Shards, window_s: float, turns: int) -> dict:
    samples = [sample for path in files for sample in windows(path, window_s)]
    took: dict[str, list[tuple[float, float, int]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        clips = [
            (s, ("-ss", f"{s.start_s:.6f}", "-t", f"{s.end_s - s.start_s:.6f}")) for s in samples
        ]
        sides = {
            "ours": lambda turn: ours(samples, settings, out / f"{turn}"),
            "ffmpeg, whole files": lambda turn: sum(
                transcode(path, out / "x.mp4", settings) for path in files
            ),
            "ffmpeg, one a clip": lambda turn: sum(
                transcode(s.source_path, out / "x.mp4", settings, *where) for s, where in clips
            ),
        }
        for turn in range(turns):
            for name, side in sides.items():
                took.setdefault(name, []).append(timed(lambda side=side, turn=turn: side(turn)))
    frames = sum(sample.frames for sample in samples)
    table = {"clips": len(samples), "frames": frames, "turns": turns, "rows": {}}
    for name, turns_of in took.items():
        ratios = {
            kind: statistics.median(
                mine[at] / bare[at]
                for mine, bare in zip(turns_of, took["ffmpeg, whole files"], strict=True)
            )
            for at, kind in enumerate(("wall", "cpu", "bytes"))
        }
        wall = statistics.median(one[0] for one in turns_of)
        table["rows"][name] = {"wall_s": wall, "frames_per_s": frames / wall, **ratios}
    per_clip = [
        [m[at] / b[at] for m, b in zip(took["ours"], took["ffmpeg, one a clip"], strict=True)]
        for at in (0, 1)
    ]
    table["ours over one a clip"] = dict(
        zip(("wall", "cpu"), map(statistics.median, per_clip), strict=True)
    )
    return table


def main() -> None:
    keys = dict(argument.split("=", 1) for argument in sys.argv[1:])
    folder = Path(keys.get("clips", ROOT / "data" / "samples"))
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise SystemExit(f"clips={folder}: no video there")
    if hasattr(os, "sched_setaffinity"):  # children inherit it
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    settings = Shards(crf=int(keys.get("crf", 18)), preset=keys.get("preset", Shards().preset))
    window_s, turns = float(keys.get("window_s", 5)), int(keys.get("turns", 3))
    table = measure(files, settings, window_s, turns)
    print(f"{len(files)} files, {table['clips']} clips, {table['frames']} frames; × whole files:")
    for name, row in table["rows"].items():
        cells = f"{row['wall_s']:8.2f} s {row['frames_per_s']:7.1f} frames/s"
        over = "  ".join(f"{kind} {row[kind]:.2f}" for kind in ("wall", "cpu", "bytes"))
        print(f"  {name:<22}{cells}  {over}")
    print("  target: ours ≤ 1.2 × whole files")
    table["settings"] = {"crf": settings.crf, "preset": settings.preset, "window_s": window_s}
    Path(keys.get("out", "benchmark-shards.json")).write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
