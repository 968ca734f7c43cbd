"""The caption step: which clips it describes, what the model is shown, and where its words land."""

import json

import cv2
import numpy as np
import pytest

from curation import captioner, captioning, engine, run, sources, synthetic, video
from curation.catalog import Catalog
from recipes.load import UsageError, load, main
from recipes.schema import Curation, Synthetic
from tests import tiny_vlm, zoo
from tests.running import alone, curated

cv2.setNumThreads(1)
PROMPT = "describe a circle"
SHAPES = {"red": "a red circle .", "blue": "a blue circle ."}


def clip(number: int, start: int, end: int, fps: float = 25, size=(320, 180), crop=None) -> dict:
    """A row of `captioning.WANTED`, as far as `seen` and `write` look at it."""
    x, y, w, h = crop or (0, 0, *size)
    return {
        "clip_id": f"clip-{number}",
        "start_frame": start,
        "end_frame": end,
        "start_s": start / fps,
        "end_s": end / fps,
        "width": size[0],
        **{"crop_x": x, "crop_y": y, "crop_w": w, "crop_h": h, "text_area": None},
    }


def walk(path):
    return video.frames(path, video.probe(path))


def shown(path, clips, fps=5.0, most=129) -> dict[str, tuple[np.ndarray, float]]:
    found = captioning.seen(walk(path), tuple(clips), fps, most)
    return {one["clip_id"]: (frames, rate) for one, frames, rate in found if one is not None}


@pytest.fixture(scope="module")
def pattern(tmp_path_factory):
    """50 frames, 25 a second, each unlike the others; and all of them decoded."""
    path = tmp_path_factory.mktemp("pattern") / "x.mp4"
    zoo.ffmpeg(*zoo.moving(seconds=2), *zoo.X264, path)
    return path, [frame.picture.detail(frame.raw) for frame in walk(path)]


def test_each_of_overlapping_clips_is_shown_its_own_frames(pattern):
    path, frames = pattern
    clips = [clip(0, 0, 30), clip(1, 10, 50), clip(2, 10, 30), clip(3, 49, 50)]
    found = shown(path, clips)
    for one in clips:
        indices = range(one["start_frame"], one["end_frame"], 5)  # 25 a second, 5 are wanted
        pictures, rate = found[one["clip_id"]]
        assert rate == pytest.approx(5)
        assert np.array_equal(pictures, [frames[i] for i in indices])
    assert found.keys() == {one["clip_id"] for one in clips}


def test_no_more_frames_are_held_than_the_model_sees(pattern):
    path, frames = pattern
    pictures, rate = shown(path, [clip(0, 0, 50)], fps=25, most=8)["clip-0"]
    assert len(pictures) == 8
    assert np.array_equal(pictures[-1], frames[49])
    assert rate == pytest.approx(7 / (49 / 25))


def test_black_borders_are_not_shown(pattern):
    path, frames = pattern
    pictures, _ = shown(path, [clip(0, 0, 5, crop=(0, 20, 320, 140))])["clip-0"]
    assert np.array_equal(pictures[0], frames[0][20:160])


def test_an_image_is_shown_once(tmp_path):
    zoo.picture(tmp_path / "x.png")
    row = clip(0, 0, 1, size=(320, 240)) | {"end_s": 0.0}
    pictures, _ = shown(tmp_path / "x.png", [row])["clip-0"]
    assert pictures.shape == (1, 240, 320, 3)


def test_the_walk_ends_with_the_last_clip_and_gives_signs_of_life_before(pattern):
    frames = walk(pattern[0])
    signs = [one for one, _, _ in captioning.seen(frames, (clip(0, 40, 45),), 3, 129)]
    assert [sign is None for sign in signs] == [True, True, False]
    assert next(frames).index == 45


def test_lines_that_stand_through_the_clip_are_quoted_once():
    plain = np.full((5, 120, 320, 3), 30, np.uint8)
    for frame, word in zip(plain, ("EXIT", "EXIT", "GATE", "GATE", "GATE"), strict=True):
        cv2.putText(frame, word, (90, 75), cv2.FONT_HERSHEY_SIMPLEX, 1, (240, 240, 240), 2)
    assert captioning.lines(plain) == ["EXIT", "GATE"]
    assert captioning.lines(plain[:1]) == ["EXIT"]


@pytest.mark.parametrize(
    ("keys", "asked"),
    [
        ({}, ["en"]),
        ({"write": "zh"}, ["zh"]),
        ({"write": "both"}, ["en", "zh"]),
        ({"write": "both", "prompt": "Say it."}, ["en"]),  # one instruction, one answer
    ],
)
def test_the_model_is_asked_once_a_language(keys, asked):
    options = load(Curation, [f"captions.{key}={value}" for key, value in keys.items()]).captions
    assert captioning.languages(options) == asked


@pytest.mark.parametrize("key", ["fps=0", "frames=0", "tokens=-1"])
def test_a_number_out_of_range_is_one_line(key):
    with pytest.raises(UsageError, match=rf"captions\.{key}"):
        captioning.check(load(Curation, [f"captions.{key}"]).captions)


# --- end to end


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two videos without captions, curated; and a model taught what they show."""
    import torch

    folder = tmp_path_factory.mktemp("world")
    (folder / "raw").mkdir()
    pictures = {}
    for index in range(48):
        scene = synthetic.shapes(index, Synthetic(size=96, frames=16))
        (one,) = scene.attributes["objects"]
        if one["shape"] == "circle" and one["color"] in SHAPES and one["color"] not in pictures:
            path = folder / "raw" / f"{one['color']}.mp4"
            synthetic.encode(scene.frames, path)
            rows = (clip(0, 0, 16, 16, (96, 96)),)
            pictures[one["color"]] = shown(path, rows, fps=3)["clip-0"][0]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = tiny_vlm.video_model(folder / "model")
    taught = captioner.load(model)
    tiny_vlm.teach(taught, list(pictures.values()), [SHAPES[name] for name in pictures])
    taught.model.save_pretrained(model)
    torch.set_num_threads(threads)
    captioner.load.cache_clear()
    assert curated(*arguments(folder, "steps=basic,select")) == 0
    return folder, model


def configured(folder, *keys: str) -> Curation:
    return load(Curation, arguments(folder, *keys))


def arguments(folder, *keys: str) -> list[str]:
    return [
        f"source={folder / 'raw'}",
        f"out={folder / 'out'}",
        "profile=tiny",
        "scorers=full",
        "select.require_caption=true",
        "skip=text_area,nsfw,aesthetic,quality,meaning",
        f"captions.prompt={PROMPT}",
        "captions.tokens=8",
        "workers=1",
        *keys,
    ]


def decided(folder) -> dict[str, tuple]:
    with Catalog(folder / "out") as catalog:
        rows = catalog.query(
            "SELECT v.name, d.kept, d.reason, p.source, p.model, p.language, p.text "
            "FROM decisions d JOIN clips c USING (clip_id) JOIN videos v USING (video_id) "
            "LEFT JOIN captions p USING (clip_id)"
        )
    return {row.pop("name"): tuple(row.values()) for row in rows}


def test_clips_that_lack_only_a_caption_get_one_and_are_kept_and_described_once(world, monkeypatch):
    folder, model = world
    monkeypatch.setattr(engine, "run", alone)
    lacking = (False, "require_caption", None, None, None, None)
    assert decided(folder) == {f"{name}.mp4": lacking for name in SHAPES}
    # no captioner is no fault
    assert run.curate(configured(folder, "steps=select,caption")) == 0
    assert decided(folder) == {f"{name}.mp4": lacking for name in SHAPES}
    config = configured(folder, "steps=select,caption", f"captions.model={model}")
    assert run.curate(config) == 0
    expected = {
        f"{name}.mp4": (True, None, "model", model, "en", text) for name, text in SHAPES.items()
    }
    assert decided(folder) == expected
    # now every clip is described: not even a worker is started
    given = []
    monkeypatch.setattr(engine, "run", lambda _, jobs, **more: given.extend(jobs) or [])
    assert run.curate(config) == 0
    assert given == []
    assert decided(folder) == expected
    # another model's words do not count
    with Catalog(folder / "out") as catalog:
        other = configured(folder, "captions.model=someone/else")
        assert captioning.describe(catalog, other) is False
    assert [len(job.clips) for job in given] == [1, 1]
    captioner.load.cache_clear()


def test_a_clip_of_which_the_model_says_nothing_has_no_caption(world, tmp_path):
    folder, _ = world
    model = tiny_vlm.video_model(tmp_path / "mute")
    path = folder / "raw" / "red.mp4"
    row = clip(0, 0, 16, 16, (96, 96))
    pictures = shown(path, [row], fps=3)["clip-0"][0]
    mute = captioner.load(model)
    tiny_vlm.teach(mute, [pictures], [""], steps=8)
    source = sources.find(configured(folder))[1]
    assert source.name == "red.mp4"
    job = captioning.Job(source, (row,), configured(folder, f"captions.model={model}"))
    assert [rows for rows in captioning.write(job) if rows is not None] == [[]]
    captioner.load.cache_clear()


def test_text_in_the_picture_reaches_the_instruction(tmp_path, monkeypatch):
    raw = tmp_path / "raw"
    raw.mkdir()
    frames = np.full((8, 176, 320, 3), 30, np.uint8)
    for frame in frames:
        cv2.putText(frame, "EXIT", (120, 95), cv2.FONT_HERSHEY_SIMPLEX, 1, (240, 240, 240), 2)
    synthetic.encode(frames, raw / "x.mp4")
    model = tiny_vlm.video_model(tmp_path / "model")
    config = configured(tmp_path, f"captions.model={model}")
    asked = []
    real = captioner.caption

    def spy(frames, model, prompt, *rest):
        asked.append(prompt)
        return real(frames, model, prompt, *rest)

    monkeypatch.setattr(captioner, "caption", spy)
    for share in (0.1, None):
        row = clip(0, 0, 8, 16, (320, 176)) | {"text_area": share}
        list(captioning.write(captioning.Job(sources.find(config)[0], (row,), config)))
    with_text, without = asked
    assert with_text.startswith(PROMPT)
    assert "“EXIT”" in with_text
    assert without == PROMPT
    captioner.load.cache_clear()


def refused(folder, model, capsys) -> str:
    """The one line of a run with a captioner that is not there."""
    keys = arguments(folder, "steps=select,caption", f"captions.model={model}")
    assert main(Curation, run.curate, keys) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"captions.model={model}: " in line
    assert "safetensors" in line
    return line


def test_a_missing_model_ends_the_run_with_one_line_and_exit_status_2(world, tmp_path, capsys):
    assert "no such folder" in refused(world[0], tmp_path / "gone", capsys)


@pytest.mark.slow
def test_a_model_that_only_the_worker_can_refuse_does_so_too(world, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_vl"}))
    assert "cannot be loaded" in refused(world[0], tmp_path, capsys)


def test_light_scorers_use_no_captioner_and_say_so(world, capsys):
    folder, model = world
    with Catalog(folder / "out") as catalog:
        config = configured(folder, "scorers=light", f"captions.model={model}")
        assert captioning.describe(catalog, config) is False
    assert "belongs to scorers=full" in capsys.readouterr().err
