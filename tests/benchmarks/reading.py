"""Which reader walks a file best: every frame, in order, as BGR with a short side of 180 pixels.

    python tests/benchmarks/reading.py video=FILE        any video; the default is a bundled clip

Each reader gets one thread; the last rows ask whether two processes with a thread each beat one
process with two. Readers take turns; the medians count. `out=` names the JSON.
"""

import json
import multiprocessing
import statistics
import subprocess
import sys
import time
from pathlib import Path

import imageio_ffmpeg

# a script's own folder leads the path, and here it has a curation.py
sys.path[:] = [one for one in sys.path if Path(one).resolve() != Path(__file__).resolve().parent]

ROOT = Path(__file__).resolve().parents[2]
TURNS = 3


def ours(path: str) -> int:
    """PyAV, scaled by swscale before conversion: what curation does."""
    from curation import video

    return sum(1 for _ in video.frames(path, video.probe(path)))


def pyav_full(path: str) -> int:
    """PyAV to full-size BGR, then scaled."""
    import av
    import cv2

    with av.open(path) as container:
        container.streams.video[0].thread_count = 1
        return sum(
            1
            for frame in container.decode(video=0)
            if cv2.resize(frame.to_ndarray(format="bgr24"), (320, 180)) is not None
        )


def opencv(path: str) -> int:
    import cv2

    cv2.setNumThreads(1)
    reader, n = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1]), 0
    while (found := reader.read())[0]:
        cv2.resize(found[1], (320, 180), interpolation=cv2.INTER_AREA)
        n += 1
    return n


def decord(path: str) -> int:
    """decord, scaling by itself."""
    import decord

    reader = decord.VideoReader(path, width=320, height=180, num_threads=1)
    return sum(1 for i in range(len(reader)) if reader[i].asnumpy() is not None)


def ffmpeg_pipe(path: str, threads: int = 1) -> int:
    """The ffmpeg program, scaled frames through a pipe."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-threads", str(threads), "-i", path]
    command += [
        "-an",
        "-vf",
        "scale=320:180:flags=area",
        "-pix_fmt",
        "bgr24",
        "-f",
        "rawvideo",
        "-",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=1 << 22)
    n = 0
    while process.stdout.read(320 * 180 * 3):
        n += 1
    process.wait()
    return n


def ffmpeg_null(path: str, threads: int = 1) -> int:
    """Bare decoding."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-threads", str(threads), "-i", path]
    subprocess.run([*command, "-an", "-f", "null", "-"], check=True)
    return 0


READERS = (ours, pyav_full, opencv, decord, ffmpeg_pipe, ffmpeg_null)


def main() -> None:
    keys = dict(argument.split("=", 1) for argument in sys.argv[1:])
    path = keys.get("video", str(ROOT / "data/samples/sintel-attack.mp4"))
    frames = ours(path)
    seconds: dict[str, list[float]] = {}

    def clocked(name: str, function, *arguments) -> None:
        began = time.perf_counter()
        function(*arguments)
        seconds.setdefault(name, []).append(time.perf_counter() - began)

    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(ours, [path] * 4)  # imports done
        for _ in range(TURNS):
            for reader in READERS:
                clocked(reader.__name__, reader, path)
            clocked(
                "two files, ffmpeg with two threads, in turn",
                lambda: [ffmpeg_null(path, 2) for _ in "ab"],
            )
            clocked("two files, two processes of ours", pool.map, ours, [path] * 2)
    figures = {}
    for name, times in seconds.items():
        count = 2 * frames if name.startswith("two") else frames
        figures[name] = {
            "frames_per_s": count / statistics.median(times),
            "ms_per_frame": 1000 * statistics.median(times) / count,
        }
        print(f"{name:<48}{figures[name]['frames_per_s']:8.0f} frames/s")
    Path(keys.get("out", "benchmark-reading.json")).write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
