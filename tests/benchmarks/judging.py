"""How often the judge of rendered prompts is right: on true renderings, and after planted damage.

    python tests/benchmarks/judging.py
    python tests/benchmarks/judging.py videos=96 size=256 frames=81

480 renderings of 9×64×64 take some minutes on one core. Below the damages stand videos without a
thing, where only silence is right. The last columns are the PSNR after the damage and the time
that one judgement takes the processor. More keys: seed=77 out=FILE (benchmark-judging.json).
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

# a script's own folder leads the path, and here it has a curation.py
HERE, ROOT = Path(__file__).resolve().parent, Path(__file__).resolve().parents[2]
sys.path[:] = [str(ROOT), *(one for one in sys.path if Path(one).resolve() != HERE)]

import cv2  # noqa: E402
import numpy as np  # noqa: E402

from curation import drawing, synthetic  # noqa: E402
from eval.measures.rendered import judge  # noqa: E402
from recipes.schema import Synthetic  # noqa: E402
from tests.damage import DAMAGES, Damage, blotches, noise, whole  # noqa: E402

ASPECTS = ("color", "shape", "direction")
KEYS = {"videos": 480, "size": 64, "frames": 9, "seed": 77}


def measured(damage: Damage, scenes: list[synthetic.Scene]) -> dict[str, float]:
    """Shares of all scenes, dB, milliseconds a video, and the median margin of the shape."""
    right = dict.fromkeys((*ASPECTS, "all", "none"), 0)
    error, seconds, margins = 0.0, 0.0, []
    for scene in scenes:
        frames = damage(scene.frames)
        error += float(np.mean((frames.astype(np.float32) - scene.frames) ** 2))
        began = time.process_time()
        seen = judge(frames)
        seconds += time.process_time() - began
        truth = scene.attributes["objects"][0]
        verdicts = [getattr(seen, aspect) == truth[aspect] for aspect in ASPECTS]
        for name, verdict in zip(right, (*verdicts, all(verdicts), not seen.thing), strict=True):
            right[name] += verdict
        margins.append(seen.shape_margin)
    count = len(scenes)
    row = {name: number / count for name, number in right.items()}
    decibels = 10 * np.log10(255**2 * count / error) if error else None
    return row | {
        "psnr_db": decibels and float(decibels),
        "shape_margin": float(np.median(margins)),
        "ms": 1000 * seconds / count,
    }


def things_none(size: int, frames: int, count: int) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Kinds of video without a thing."""
    random = np.random.RandomState(0)
    colors = [rgb for _, rgb in synthetic.COLORS.values()]
    tones = [drawing.ground(random, size, colors)[1] for _ in range(count)]
    still = [np.repeat(whole(tone)[None], frames, axis=0) for tone in tones]
    shape = (frames, size, size, 3)
    yield "grounds", still
    yield "grounds with noise of 5 %", [noise(one) for one in still]
    yield "grounds with blotches of 10 %", [blotches(one, 0.1) for one in still]
    yield "noise", [random.randint(0, 256, shape).astype(np.uint8) for _ in still]
    for cells in (3, 8, 16):
        videos = []
        for _ in still:
            coarse = random.uniform(0, 255, (cells, cells, 3 * frames))
            video = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
            videos.append(whole(video.reshape(size, size, frames, 3).transpose(2, 0, 1, 3)))
        yield f"colored clouds of {cells}x{cells}, other ones in every frame", videos
        yield f"colored clouds of {cells}x{cells}", [np.repeat(x[:1], frames, 0) for x in videos]
    config = Synthetic(size=size, frames=frames)
    yield "written text", [synthetic.text(index, config).frames for index in range(count)]


def main() -> None:
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    out = Path(given.pop("out", "benchmark-judging.json"))
    if wrong := set(given) - set(KEYS):
        sys.exit(f"unknown: {', '.join(sorted(wrong))}; there is {', '.join(KEYS)}, out")
    keys = KEYS | {name: int(value) for name, value in given.items()}
    config = Synthetic(size=keys["size"], frames=keys["frames"], seed=keys["seed"])
    scenes = [synthetic.shapes(index, config) for index in range(keys["videos"])]
    judge(scenes[0].frames)  # draws its outlines once

    print(f"{len(scenes)} renderings of {config.frames}×{config.size}×{config.size}\n")
    print(f"{'share that is right':<28}{'color':>8}{'shape':>8}{'way':>8}{'all':>8}", end="")
    print(f"{'none':>8}{'margin':>8}{'PSNR':>8}{'ms':>7}")
    found = {}
    for name, damage in DAMAGES.items():
        if name.startswith("linear") and (config.size, config.frames) != (64, 9):
            continue  # is fitted to renderings of that size
        found[name] = row = measured(damage, scenes)
        shares = "".join(f"{row[one]:>8.1%}" for one in (*ASPECTS, "all", "none"))
        decibels = f"{row['psnr_db']:.1f}" if row["psnr_db"] else "–"
        print(f"{name:<28}{shares}{row['shape_margin']:>8.2f}{decibels:>8}{row['ms']:>7.1f}")

    print(f"\n{'of videos without a thing':<52}{'something':>12}{'all three':>12}")
    nothing = {}
    for name, videos in things_none(config.size, config.frames, max(1, len(scenes) // 4)):
        seen = [[getattr(judge(one), aspect) for aspect in ASPECTS] for one in videos]
        nothing[name] = {
            "something": float(np.mean([any(one) for one in seen])),
            "all three": float(np.mean([all(one) for one in seen])),
        }
        shares = "".join(f"{share:>12.1%}" for share in nothing[name].values())
        print(f"{name:<52}{shares}")
    out.write_text(json.dumps({**keys, "damages": found, "without": nothing}, indent=1))


if __name__ == "__main__":
    main()
