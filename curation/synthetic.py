"""Rendered, captioned raw video without limit: moving shapes and written text.

    python curation/run.py source=synthetic:shapes synthetic.count=480 profile=tiny out=DIR

renders under DIR/synthetic/ and curates it as an ordinary folder. A video depends only on its
index and the configuration: the same seed gives the same bytes. Rendered text follows the Wan
report's synthesis of images with Chinese characters for text generation (section 3.1.3, visual
text). Captions are true by construction, which no other source can promise, so a small model that
is trained on these videos can be graded exactly.

Shapes: T frames, H = W = `synthetic.size`, 3 = RGB.
"""

import dataclasses
import difflib
import hashlib
import itertools
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np

from curation import drawing
from recipes.load import UsageError
from recipes.schema import Curation, Synthetic

VERSION = 1  # of the pixels: a change renders anew, into another folder
FPS = 16

COLORS = {
    "red": ("红色", (219, 36, 36)),
    "green": ("绿色", (30, 160, 64)),
    "blue": ("蓝色", (36, 76, 219)),
    "yellow": ("黄色", (242, 205, 30)),
}
SHAPES = {"circle": "圆形", "square": "正方形", "triangle": "三角形"}
DIRECTIONS = {
    "left": ("向左", (-1, 0)),
    "right": ("向右", (1, 0)),
    "up": ("向上", (0, -1)),
    "down": ("向下", (0, 1)),
}
COMBINATIONS = tuple("-".join(names) for names in itertools.product(COLORS, SHAPES, DIRECTIONS))

WORDS = (  # one a space
    "open exit summer winter river mountain coffee garden music night market school station "
    "library dragon ocean welcome silver moon bright forest bridge window letter island paper "
    "street bakery cinema planet energy future golden harbor rabbit morning sugar tea video "
    "camera orchid temple journey thunder wisdom yellow zebra quick"
)
PHRASES = (
    "你好 世界 春天 夏日 秋风 冬雪 山水 花园 音乐 早晨 夜市 学校 车站 图书馆 咖啡 茶馆 书店 电影院 "
    "长城 江南 平安 快乐 新年 欢迎光临 出口 入口 北京 上海 海洋 森林 月亮 太阳 星空 桥梁 窗户 信件 "
    "报纸 街道 面包房 未来 黄金 港口 兔子 老虎 智慧 旅行 雷雨 视频"
)
# The first level of GB 2312: the 3,755 most frequent simplified characters.
CHARACTERS = bytes(
    byte for row in range(0xB0, 0xD8) for cell in range(0xA1, 0xFF) for byte in (row, cell)
).decode("gb2312", errors="ignore")


@dataclass(frozen=True)
class Scene:
    """One rendered video."""

    frames: np.ndarray  # uint8 [T, H, W, 3], RGB, 16 frames a second
    captions: dict[str, str]  # "en" and "zh"
    attributes: dict  # what was drawn; positions and lengths in pixels


def shapes(index: int, config: Synthetic) -> Scene:
    """Moving shapes: video `index` of the endless sequence that `config` describes.

    Every run of as many videos as there are combinations shows each of them once as its first
    object. Objects move straight, at a constant speed, stay inside the frame and never touch.
    """
    allowed = combinations(config.exclude)
    lap, place = divmod(index, len(allowed))
    order = np.random.RandomState([config.seed, lap]).permutation(len(allowed))
    random = _random(config, index)
    names = [allowed[order[place]].split("-")]
    for _ in range(random.randint(1, config.objects + 1) - 1):
        # no two alike in color and shape, or a caption could not tell them apart
        rest = [c.split("-") for c in allowed]
        rest = [c for c in rest if all(c[:2] != other[:2] for other in names)]
        if rest:
            names.append(rest[random.randint(len(rest))])

    size, frames = config.size, config.frames
    ground_name, ground = drawing.ground(random, size, [COLORS[color][1] for color, _, _ in names])
    radii, tilts, paths = _paths(random, names, size, frames)
    video = np.repeat(np.rint(ground).astype(np.uint8)[None], frames, axis=0)
    for (color, shape, _), radius, tilt, path in zip(names, radii, tilts, paths, strict=True):
        reach = int(radius * 1.6) + 2
        for frame, (x, y) in zip(video, path, strict=True):
            left, top = max(0, int(x) - reach), max(0, int(y) - reach)
            box = frame[top : int(y) + reach + 1, left : int(x) + reach + 1]
            rows, columns = np.ogrid[: box.shape[0], : box.shape[1]]
            cover = drawing.coverage(shape, radius, tilt, columns + left - x, rows + top - y)[
                ..., None
            ]
            cover = cover.astype(np.float32)
            box[:] = np.rint(box * (1 - cover) + np.float32(COLORS[color][1]) * cover)
    attributes = [
        {
            "color": color,
            "shape": shape,
            "direction": direction,
            "radius": round(float(radius), 2),  # of the circle of equal area
            "start": [round(float(v), 2) for v in path[0]],
            "end": [round(float(v), 2) for v in path[-1]],
        }
        for (color, shape, direction), radius, path in zip(names, radii, paths, strict=True)
    ]
    moving = frames > 1  # an image shows no direction
    english = [f"a {c} {s}" + f" moving {d}" * moving for c, s, d in names]
    chinese = [
        f"一个{COLORS[c][0]}的{SHAPES[s]}" + f"{DIRECTIONS[d][0]}移动" * moving for c, s, d in names
    ]
    captions = {
        "en": " and ".join([", ".join(english[:-1]), english[-1]] if english[1:] else english),
        "zh": "，".join(chinese),
    }
    return Scene(video, captions, {"objects": attributes, "ground": ground_name})


def text(index: int, config: Synthetic) -> Scene:
    """Written text: English or Chinese, on plain or textured ground, still or drifting.

    With `language=both` the two take turns.
    """
    random = _random(config, index)
    size, frames = config.size, config.frames
    language = ("en", "zh")[index % 2] if config.language == "both" else config.language
    lines = _words(random, language, size)
    ink, paper = drawing.inks(random)
    kind = "plain" if random.rand() < 0.5 else random.choice(drawing.GROUNDS[2:])
    tone = np.array(drawing.INKS[paper][1], float)
    shade = 18 if tone.mean() < 128 else -18
    weight = drawing.texture(random, kind, size)
    ground = (tone + shade * weight[..., None]).astype(np.float32)

    direction = ("still", *DIRECTIONS)[random.randint(len(DIRECTIONS) + 1)]
    if frames == 1:
        direction = "still"
    _, (dx, dy) = DIRECTIONS.get(direction, ("", (0, 0)))
    room = np.array([0.6 if dx else 0.86, 0.6 if dy else 0.86]) * size
    mask = drawing.written(lines, random.uniform(0.14, 0.3) * size, room)
    height, width = mask.shape
    free = (size - np.array([width, height])) / 2
    start, end = drawing.line(random, free - 0.04 * size, (dx, dy), size, frames)

    color = np.array(drawing.INKS[ink][1], np.float32)
    video = np.repeat(np.rint(ground).astype(np.uint8)[None], frames, axis=0)
    for frame, (x, y) in zip(video, np.linspace(start, end, frames) + free, strict=True):
        left, top = int(x), int(y)
        shift = np.array([[1, 0, x - left], [0, 1, y - top]])
        cover = cv2.warpAffine(mask, shift, (width, height))[..., None]
        box = np.s_[top : top + height, left : left + width]
        frame[box] = np.rint(ground[box] * (1 - cover) + color * cover)

    written = (" " if language == "en" else "").join(lines)
    thing = "word" if language == "en" else "Chinese character"
    many = "s" if len(written.split() if language == "en" else written) > 1 else ""
    look = "plain" if kind == "plain" else "textured"
    moving = direction != "still"
    captions = {
        "en": f'the {thing}{many} "{written}" in {ink} on a {look} {paper} ground'
        + f", moving {direction}" * moving,
        "zh": f"{'' if look == 'plain' else '带纹理的'}{drawing.INKS[paper][0]}"
        f"{'的纯色' if look == 'plain' else ''}背景上写着"
        f"{drawing.INKS[ink][0]}的{'英文' if language == 'en' else '汉字'}“{written}”"
        + (f"，文字{DIRECTIONS[direction][0]}移动" if moving else ""),
    }
    attributes = {"text": written, "lines": lines, "language": language, "ink": ink}
    return Scene(
        video, captions, attributes | {"paper": paper, "ground": kind, "motion": direction}
    )


KINDS: dict[str, Callable[[int, Synthetic], Scene]] = {"shapes": shapes, "text": text}


def combinations(exclude: list[str]) -> list[str]:
    """The color-shape-direction combinations that are not held out.

    Raises:
        UsageError: an unknown combination, or none left.
    """
    for name in exclude:
        if name not in COMBINATIONS:
            near = difflib.get_close_matches(name, COMBINATIONS, n=1, cutoff=0)
            raise UsageError(
                f"synthetic.exclude: no combination {name!r} (color-shape-direction); "
                f"did you mean {near[0]}?"
            )
    left = [name for name in COMBINATIONS if name not in exclude]
    if not left:
        raise UsageError("synthetic.exclude: all 48 combinations are held out; leave at least one")
    return left


def folder(config: Curation) -> Path:
    """Renders what `source=synthetic:<kind>` asks for and gives the folder, an ordinary source.

    The folder's name carries a hash of the configuration, so another one renders beside it and the
    same one finds its videos again.

    Raises:
        UsageError: an unknown kind, or a key out of range.
    """
    kind = config.source.partition(":")[2]
    given = dataclasses.asdict(config.synthetic) | {"version": VERSION}
    digest = hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:12]
    path = Path(config.out) / "synthetic" / f"{kind}-{digest}"
    render(kind, config.synthetic, path, config.workers)
    return path


def render(kind: str, config: Synthetic, folder: Path, workers: int = 0) -> None:
    """Writes `count` videos with their captions; those already there are not rendered again.

    Args:
        kind: `shapes` or `text`.
        folder: gets <index>-<name>.mp4 and .json; a video appears whole or not at all, and after
            its captions.
        workers: threads; 0 means one a core. They do not change the bytes.

    Raises:
        UsageError: an unknown kind, or a key out of range.
    """
    if kind not in KINDS:
        known = " or ".join(f"synthetic:{name}" for name in KINDS)
        raise UsageError(f"source=synthetic:{kind}: no such kind of rendering; choose {known}")
    for key, wrong, want in (
        ("count", config.count < 1, "at least 1"),
        ("size", config.size % 16 or config.size < 64, "a multiple of 16, at least 64"),
        ("frames", config.frames < 1, "at least 1"),
        ("objects", not 1 <= config.objects <= 3, "1 to 3"),
        ("seed", not 0 <= config.seed < 2**32, "0 to 4294967295"),
    ):
        if wrong:
            raise UsageError(f"synthetic.{key}={getattr(config, key)}: must be {want}")
    combinations(config.exclude)
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob("*.part"):
        leftover.unlink()
    finished = {path.name.partition("-")[0] for path in folder.glob("*.mp4")}
    missing = [index for index in range(config.count) if f"{index:06d}" not in finished]
    # threads suffice: x264 and most of numpy run without the interpreter's lock
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        try:
            list(pool.map(lambda index: _one(kind, index, config, folder), missing))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # Ctrl-C must not wait for what has not begun
            raise


def encode(frames: np.ndarray, path: Path) -> None:
    """H.264 in mp4 at 16 frames a second; the same frames give the same bytes.

    Args:
        frames: uint8 [T, H, W, 3], RGB, even sizes.
    """
    # one thread and no dates, versions or tool names: nothing but the frames reaches the file
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as file:
        options = {"crf": "12", "preset": "veryfast"}
        # else x264 takes what is fastest on this CPU; its AVX-512 path even varies from run to run
        options["x264-params"] = "cpu-independent=1"
        stream = file.add_stream("libx264", rate=FPS, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())


def _one(kind: str, index: int, config: Synthetic, folder: Path) -> None:
    scene = KINDS[kind](index, config)
    first = scene.attributes["objects"][0] if kind == "shapes" else None
    label = "-".join([first["color"], first["shape"], first["direction"]]) if first else kind
    path = folder / f"{index:06d}-{label}.mp4"
    languages = ("en", "zh") if config.language == "both" else (config.language,)
    sidecar = {
        "captions": [{"text": scene.captions[name], "language": name} for name in languages],
        "attributes": scene.attributes,
    }
    # the video is renamed last: where it is, its captions are
    for target, write in (
        (path.with_suffix(".json"), lambda part: part.write_text(_json(sidecar), "utf-8")),
        (path, lambda part: encode(scene.frames, part)),
    ):
        part = target.with_name(target.name + ".part")
        write(part)
        part.replace(target)


def _json(value: dict) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"


def _random(config: Synthetic, index: int) -> np.random.RandomState:
    # RandomState's streams are frozen for good; those of numpy's newer Generator may change
    return np.random.RandomState([config.seed, index, VERSION])


def _words(random, language: str, size: int) -> list[str]:
    """What is written, as lines."""
    if language == "en":
        words = random.permutation(WORDS.split())[: random.randint(1, 4)].tolist()
        case = (str.upper, str.lower, str.title)[random.randint(3)]
        line = case(" ".join(words))
        return [line] if len(line) < size // 20 and random.rand() < 0.5 else line.split()
    if random.rand() < 0.5:
        return [str(random.choice(PHRASES.split()))]
    count = random.randint(1, min(4, size // 32) + 1)  # strokes need pixels
    return ["".join(CHARACTERS[i] for i in random.randint(len(CHARACTERS), size=count))]


def _paths(random, names: list, size: int, frames: int) -> tuple[list, list, list]:
    """Radii, tilts and paths [T, 2] (x, y) of objects that keep clear of each other."""
    attempt = 0
    while True:
        shrink = (0.75 if len(names) > 1 else 1) * 0.9 ** (attempt // 20)  # so that it ends
        radii, tilts, paths, reaches = [], [], [], []
        for _, shape, direction in names:
            radius = random.uniform(0.09, 0.18) * size * shrink
            reach = radius * {"circle": 1, "square": 1.254, "triangle": 1.556}[shape]
            step = DIRECTIONS[direction][1]
            start, end = drawing.line(random, size / 2 - reach - 2, step, size, frames)
            radii.append(radius)
            reaches.append(reach)
            tilts.append(random.uniform(-0.26, 0.26))
            paths.append(np.linspace(start, end, frames) + (size - 1) / 2)
        clear = (
            np.hypot(*(paths[i] - paths[j]).T).min() > reaches[i] + reaches[j] + 2
            for i, j in itertools.combinations(range(len(names)), 2)
        )
        if all(clear):
            return radii, tilts, paths
        attempt += 1
