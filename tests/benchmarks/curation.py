"""What curation costs, over bare decoding of the same files by ffmpeg.

    python tests/benchmarks/curation.py                 fetches its clips with apt-get source
    python tests/benchmarks/curation.py clips=FOLDER    where both clips already lie
    python tests/benchmarks/curation.py only=speed turns=5 out=FILE

Four copies each of the Sintel trailer (720p, 24 fps) and of a motorway (540p, 60 fps), from
Debian's source package libopenshot. Every measure is taken side by side, in turns, in one run; the
median of the ratios is what counts. Prints one table and writes JSON.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import imageio_ffmpeg

# a script's own folder leads the path, and here it has a curation.py
sys.path[:] = [one for one in sys.path if Path(one).resolve() != Path(__file__).resolve().parent]

ROOT = Path(__file__).resolve().parents[2]
FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
CLIPS = ("sintel_trailer-720p.mp4", "test_video.mp4")
COPIES = 4
TURNS = 3
LIGHT = ["skip=text_area,nsfw"]
ANALYSE = ["steps=basic,visual,motion"]

DETECT = """
import sys
from scenedetect import AdaptiveDetector, detect
for path in sys.argv[1:]:
    detect(path, AdaptiveDetector())
"""


def fetch(folder: Path) -> None:
    """The two clips out of the source package; needs apt with a deb-src line."""
    subprocess.run(
        ["apt-get", "source", "-qq", "--download-only", "libopenshot"], cwd=folder, check=True
    )
    with tarfile.open(next(folder.glob("libopenshot*.orig.tar.*"))) as tar:
        for member in tar:
            if Path(member.name).name in CLIPS:
                member.name = Path(member.name).name
                tar.extract(member, folder, filter="data")


def timed(command: list) -> float:
    """Wall seconds of a command that must succeed."""
    began = time.monotonic()
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command}\n{done.stdout}{done.stderr}")
    return time.monotonic() - began


def curated(source: Path, out: Path, *keys: str) -> float:
    shutil.rmtree(out, ignore_errors=True)
    return again(source, out, *keys)


def again(source: Path, out: Path, *keys: str) -> float:
    return timed([sys.executable, "curation/run.py", f"source={source}", f"out={out}", *keys])


def decoded(files: list[Path]) -> float:
    return sum(timed([FFMPEG, "-v", "error", "-i", f, "-an", "-f", "null", "-"]) for f in files)


def speed(work: Path, source: Path, turns: int) -> dict:
    """Wall time of the run over bare decoding; start-up shown apart."""
    files = sorted(source.iterdir())
    still = work / "still"
    still.mkdir()
    timed([FFMPEG, "-v", "error", "-i", files[0], "-frames:v", "1", still / "one.png"])
    rows = defaultdict(list)
    for _ in range(turns):
        rows["ffmpeg"].append(decoded(files))
        rows["start light"].append(curated(still, work / "out", *ANALYSE, *LIGHT))
        rows["light"].append(curated(source, work / "out", *ANALYSE, *LIGHT))
        rows["start all"].append(curated(still, work / "out", *ANALYSE))
        rows["all"].append(curated(source, work / "out", *ANALYSE))
        rows["pyscenedetect"].append(timed([sys.executable, "-c", DETECT, *files]))

    def ratio(name: str, start: str) -> float:
        turn = zip(rows[name], rows[start], rows["ffmpeg"], strict=True)
        return statistics.median((ours - begun) / bare for ours, begun, bare in turn)

    rows["none"] = [0.0] * turns
    return {
        "ffmpeg -f null, s": statistics.median(rows["ffmpeg"]),
        "start-up, s": statistics.median(rows["start light"]),
        "start-up with OCR and NSFW, s": statistics.median(rows["start all"]),
        "split + motion + classical, × ffmpeg (≤ 2.5)": ratio("light", "start light"),
        "the same, start-up included": ratio("light", "none"),
        "with OCR and NSFW, × ffmpeg (≤ 5)": ratio("all", "start all"),
        "the same with OCR and NSFW, start-up included": ratio("all", "none"),
        "PySceneDetect adaptive alone, × ffmpeg": ratio("pyscenedetect", "none"),
    }


def shares(source: Path) -> dict:
    """How one core's time is divided, in this process: decoding, splitting, and each scorer."""
    from curation import analyse, split, video
    from curation.scorer import Clip
    from recipes.schema import Curation

    analyse.prepare()
    spent = defaultdict(float)
    config = Curation()
    scorers = analyse.chosen(config)

    def walk(path):
        probe = video.probe(path)
        frames = video.frames(path, probe)

        def clocked():
            while True:
                began = time.perf_counter()
                frame = next(frames, None)
                spent["decode and scale"] += time.perf_counter() - began
                if frame is None:
                    return
                yield frame

        return split.clips(clocked(), probe, config.split)

    def scored(clip: Clip) -> None:
        for one in scorers:
            began = time.perf_counter()
            if not (one.video_only and clip.is_image):
                clip.scores.update(one.score(clip))
            spent[one.name] += time.perf_counter() - began

    for warm in (True, False):  # the first turn loads the models
        spent.clear()
        for name in CLIPS:
            items = walk(next(p for p in sorted(source.iterdir()) if p.name.endswith(name)))
            began, other = time.perf_counter(), 0.0
            for item in items:
                if item is not None:
                    before = time.perf_counter()
                    scored(item[1])
                    other += time.perf_counter() - before
                    if warm:
                        break
            spent["whole"] += time.perf_counter() - began
            spent["scores"] += other
    whole = spent.pop("whole")
    spent["split"] = whole - spent.pop("scores") - spent["decode and scale"]
    return {name: value / whole for name, value in sorted(spent.items(), key=lambda i: -i[1])}


def idle(work: Path, source: Path) -> dict:
    """A second run over a finished catalog, beyond what `--show` takes to start."""
    out, rows = work / "idle", []
    keys = ["profile=tiny", "select.require_caption=false", *LIGHT]
    curated(source, out, *keys)
    for _ in range(TURNS):
        start = timed([sys.executable, "-c", "import curation.run"])
        rows.append(again(source, out, *keys) - start)
    return {"second run beyond start-up, s (< 2)": statistics.median(rows)}


def peak_memory(work: Path, source: Path) -> dict:
    """Largest process of a run over 10 and over 200 clips of the same film."""
    film = next(p for p in sorted(source.iterdir()) if p.name.endswith(CLIPS[1]))
    peaks = {}
    for clips in (10, 200):
        folder = work / f"memory-{clips}"
        folder.mkdir()
        for i in range(clips // 5):
            timed(
                [FFMPEG, "-v", "error", "-i", film, "-t", "10", "-c", "copy", folder / f"{i}.mp4"]
            )
        command = [sys.executable, "curation/run.py", f"source={folder}", f"out={work / 'm'}"]
        keys = [*ANALYSE, *LIGHT, "split.window_s=2"]
        shutil.rmtree(work / "m", ignore_errors=True)
        process = subprocess.Popen([*command, *keys], cwd=ROOT, stdout=subprocess.DEVNULL)
        peaks[clips] = _watched(process)
    return {
        "peak memory over 10 clips, MB": peaks[10] / 1e6,
        "peak memory over 200 clips, MB": peaks[200] / 1e6,
        "growth (≤ 1.10)": peaks[200] / peaks[10],
    }


def _watched(process: subprocess.Popen) -> int:
    """Peak of the summed resident memory of a process and its children, in bytes."""
    import psutil

    peak, root = 0, psutil.Process(process.pid)
    while process.poll() is None:
        total = 0
        for one in [root, *root.children(recursive=True)]:
            try:
                total += one.memory_info().rss
            except psutil.Error:
                continue
        peak = max(peak, total)
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"the run ended with status {process.returncode}")
    return peak


def main() -> None:
    keys = dict(argument.split("=", 1) for argument in sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        clips = Path(keys["clips"]) if "clips" in keys else work
        if "clips" not in keys:
            fetch(work)
        source = work / "source"
        source.mkdir()
        for name in CLIPS:
            for copy in range(COPIES):
                shutil.copy(next(clips.rglob(name)), source / f"{copy}-{name}")
        parts = keys.get("only", "speed,shares,idle,memory").split(",")
        figures: dict[str, dict] = {}
        if "speed" in parts:
            figures["speed"] = speed(work, source, int(keys.get("turns", TURNS)))
        if "shares" in parts:
            figures["share of one core's time"] = shares(source)
        if "idle" in parts:
            figures["idle"] = idle(work, source)
        if "memory" in parts:
            figures["memory"] = peak_memory(work, source)
    for title, rows in figures.items():
        print(f"\n{title}")
        for name, value in rows.items():
            print(f"  {name:<52} {value:8.3f}")
    Path(keys.get("out", "benchmark-curation.json")).write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
