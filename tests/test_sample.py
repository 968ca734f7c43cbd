"""`python eval/sample.py`: videos with all that they came from, once, and mistakes in one line."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from curation.video import clip_frames, probe
from eval import sample as command
from eval.inputs import video
from eval.video_out import pixels, write_video
from model.bundle import load_bundle
from model.sampler import Settings, decode, sample
from recipes.load import main
from recipes.sample import SOLVERS, STOCHASTIC, TASKS, Sample
from tests import pipelines
from tests.running import ROOT

TINY = "checkpoint=random:tiny"
SMALL = ("size=32x32", "frames=5", "steps=1")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The networks are so small that threads only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


loaded = cache(load_bundle)  # a random bundle is the same one each time (tests/test_bundle.py)


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Runs the command as `main` does, in an empty folder; gives status, output and error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "load_bundle", lambda about, *rest: loaded(about.layout.path))

    def of(*keys: object) -> tuple[int, str, str]:
        status = main(Sample, command.sample, [str(key) for key in keys])
        return (status, *capsys.readouterr())

    return of


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "猫 1.png"
    array = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
    Image.fromarray(array).save(path)
    return path


@pytest.fixture(scope="module")
def movie(tmp_path_factory) -> Path:
    """A bundled clip's first 12 frames."""
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    frames = clip_frames(ROOT / "data/samples/sintel-alley.mp4", list(range(12)))
    write_video(path, [np.ascontiguousarray(frames[:, :96, :160])])
    return path


def beside(path: Path) -> dict:
    return json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


def mistake(run, *keys: object) -> str:
    """The one line that a mistake ends in."""
    status, out, err = run(*keys)
    assert status == 2
    assert out == ""
    assert err.count("\n") == 1
    assert list(Path().rglob("*.mp4")) == []
    return err


def test_the_command_makes_a_video_that_opens_in_seconds(tmp_path):
    prompt = "prompt=a cat's red, 红色 circle"
    done = subprocess.run(
        [sys.executable, "eval/sample.py", TINY, prompt, f"out={tmp_path / '圆.mp4'}"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith("Sampled\n videos  1\n each    64x64, 9 frames\n")
    about = probe(tmp_path / "圆.mp4")
    assert (about.width, about.height, about.frames, about.fps) == (64, 64, 9, 16)
    assert clip_frames(tmp_path / "圆.mp4").std() > 10
    told = beside(tmp_path / "圆.mp4")
    assert told["command"].startswith("python eval/sample.py checkpoint=random:tiny ")
    assert told["commit"] is None or len(told["commit"].rstrip("+")) == 40


def test_the_video_is_the_samplers_frames_encoded(run, tmp_path):
    assert run(TINY, "prompt=a cat", "seed=3", "out=a.mp4", "size=64x32", "crf=9")[0] == 0
    bundle = loaded("random:tiny")
    latents = sample(bundle, ["a cat"], [3], Settings.of(bundle.card, width=64, height=32))
    frames = [pixels(piece[0]) for piece in decode(bundle, latents)]
    write_video(tmp_path / "b.mp4", [np.concatenate(frames)], 16, crf=9)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_all_that_a_video_came_from_lies_beside_it(run, tmp_path):
    assert run(TINY, "prompt=红 a", *SMALL, "seed=4", "out=a.mp4", "guidance=2")[0] == 0
    told = beside(tmp_path / "a.mp4")
    assert (told["file"], told["prompt"], told["seed"]) == ("a.mp4", "红 a", 4)
    wanted = {"width": 32, "height": 32, "frames": 5, "steps": 1, "guidance": 2.0, "shift": 5.0}
    wanted |= {"solver": "unipc", "task": "text-to-video", "negative": "", "fps": 16}
    assert wanted.items() <= told["settings"].items()
    assert told["configuration"]["size"] == "32x32"
    assert told["checkpoint"]["path"] == "random:tiny"
    assert {"torch", "python", "wan-recipes"} <= told["versions"].keys()
    assert min(told["took_s"].values()) > 0
    assert told["dtype"] == "float32"


def test_weights_are_told_by_their_digest(run, tmp_path):
    folder = pipelines.saved(pipelines.text_to_video(tmp_path / "pipe"), tmp_path / "saved")
    keys = ("prompt=a", *SMALL, "out=a.mp4")
    assert run(f"checkpoint={folder}", *keys)[0] == 0
    weights = beside(tmp_path / "a.mp4")["request"]["weights"]
    assert sorted(weights) == ["dit", "text", "vae"]
    assert all(len(one) == 64 for one in weights.values())
    moved = folder.rename(tmp_path / "moved")
    assert "1 done already" in run(f"checkpoint={moved}", *keys)[1]


def test_the_same_command_again_does_nothing_and_another_never_overwrites(run, tmp_path):
    keys = (TINY, "prompt=a", *SMALL, "out=a.mp4")
    assert run(*keys)[0] == 0
    before = (tmp_path / "a.mp4").stat()
    status, out, _ = run(*keys, "batch=2", "device=cpu")  # which change nothing in the video
    assert (status, "0, 1 done already" in out) == (0, True)
    assert (tmp_path / "a.mp4").stat().st_mtime_ns == before.st_mtime_ns
    status, out, err = run(*keys, "seed=1")
    assert (status, err.count("\n")) == (2, 1)
    assert "made from another configuration; overwrite=true replaces it" in err
    assert (tmp_path / "a.mp4").stat().st_mtime_ns == before.st_mtime_ns
    first = (tmp_path / "a.mp4").read_bytes()
    assert run(*keys, "seed=1", "overwrite=true")[0] == 0
    assert (tmp_path / "a.mp4").read_bytes() != first
    assert run(*keys, "overwrite=true")[0] == 0
    assert (tmp_path / "a.mp4").read_bytes() == first
    (tmp_path / "a.json").unlink()
    assert "no JSON beside it says how it was made" in run(*keys)[2]


def test_a_run_that_stopped_goes_on_where_it_was(run, tmp_path, monkeypatch):
    (tmp_path / "p.txt").write_text("a\nb\nc\n")
    keys = (TINY, "prompts=p.txt", *SMALL, "out=many")
    made = command.make

    def dies(group, *rest):
        if group[0].job.config.prompt == "c":
            raise KeyboardInterrupt
        made(group, *rest)

    monkeypatch.setattr(command, "make", dies)
    status, _, err = run(*keys)
    assert (status, "interrupted" in err) == (130, True)
    monkeypatch.setattr(command, "make", made)
    many = tmp_path / "many"
    assert sorted(one.name for one in many.glob("*.mp4")) == ["0000.mp4", "0001.mp4"]
    times = {one: one.stat().st_mtime_ns for one in many.glob("*.mp4")}
    assert "1, 2 done already" in run(*keys)[1]
    assert sorted(one.name for one in many.glob("*.mp4"))[2:] == ["0002.mp4"]
    assert times == {one: one.stat().st_mtime_ns for one in times}


def test_killed_between_its_json_and_itself_a_video_is_made_again(run, tmp_path):
    keys = (TINY, "prompt=a", *SMALL, "out=a.mp4")
    run(*keys)
    (tmp_path / "a.mp4").rename(tmp_path / ".a.mp4.part")
    assert run(*keys)[0] == 0
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.json", "a.mp4"]


def test_batches_change_no_byte_that_shows(run, tmp_path):
    rows = [{"prompt": p, "steps": s} for p, s in (("a", 1), ("b 红", 1), ("c", 2), ("d", 1))]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    keys = (TINY, "prompts=p.jsonl", *SMALL, "crf=1")
    assert run(*keys, "out=one")[0] == 0
    assert run(*keys, "out=three", "batch=3")[0] == 0
    for i in range(4):
        one, three = (clip_frames(tmp_path / out / f"000{i}.mp4") for out in ("one", "three"))
        assert np.abs(one.astype(int) - three).max() <= 4
    assert [beside(tmp_path / f"three/000{i}.mp4")["batch"] for i in range(4)] == [2, 2, 1, 1]


def test_one_frame_is_a_png_of_the_very_pixels(run, tmp_path):
    assert run(TINY, "prompt=a", "task=text-to-image", "size=48x32", "out=pictures")[0] == 0
    bundle = loaded("random:tiny")
    asked = Settings.of(bundle.card, task="text-to-image", width=48, height=32)
    (frames,) = decode(bundle, sample(bundle, ["a"], [0], asked))
    got = np.asarray(Image.open(tmp_path / "pictures/0000.png"))
    assert np.array_equal(got, pixels(frames[0])[0])
    assert run(TINY, "prompt=a", "frames=1", "size=48x32", "out=a.png")[0] == 0
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), got)
    assert "1 frames are written as .png" in mistake(run, TINY, "prompt=a", "frames=1", "out=a.mp4")


def test_a_picture_begins_a_video_and_another_picture_is_another_request(run, picture, tmp_path):
    keys = ("checkpoint=random:i2v-tiny", "prompt=a", *SMALL, "out=a.mp4")
    assert run(*keys, f"image={picture}")[0] == 0
    told = beside(tmp_path / "a.mp4")
    assert told["settings"]["task"] == "image-to-video"
    assert len(told["request"]["inputs"]["image"]) == 64
    other = tmp_path / "other.png"
    Image.new("RGB", (32, 32), "red").save(other)
    assert "another configuration" in run(*keys, f"image={other}")[2]
    both = ("checkpoint=random:flf2v-tiny", "prompt=a", *SMALL, "out=b.mp4")
    assert run(*both, f"image={picture}", f"last_image={other}")[0] == 0
    assert beside(tmp_path / "b.mp4")["settings"]["task"] == "first-last-frame"


def test_a_video_is_changed_or_continued(run, movie, tmp_path, monkeypatch):
    given = []

    def spied(bundle, prompts, seeds, settings, inputs, **more):
        given.append((settings, inputs.video))
        return sample(bundle, prompts, seeds, settings, inputs, **more)

    monkeypatch.setattr(command.sampler, "sample", spied)
    keys = ("prompt=a", f"video={movie}", "size=64x32", "steps=2")
    assert run(TINY, *keys, "out=a.mp4", "strength=0.5")[0] == 0
    assert probe(tmp_path / "a.mp4").frames == 9  # of the 12 that there are
    keys = ("checkpoint=random:i2v-tiny", *keys, "task=continuation", "frames=9")
    assert run(*keys, "out=b.mp4", "given=5")[0] == 0
    (changed, its), (continued, begins) = given
    assert (changed.task, changed.strength) == ("video-to-video", 0.5)
    assert torch.equal(its[0], video(str(movie), 64, 32, 16, first=9))
    assert continued.task == "continuation"
    assert torch.equal(begins[0], video(str(movie), 64, 32, 16, last=5))
    assert "given=9: between 1 and" in run(*keys, "out=c.mp4", "given=9")[2]


def test_a_preview_shows_while_it_samples_and_is_gone_at_the_end(run, tmp_path, monkeypatch):
    seen = []
    write = command.write_image

    def watched(path, frame):
        seen.append((path.name, frame.shape))
        write(path, frame)

    monkeypatch.setattr(command, "write_image", watched)
    keys = (TINY, "prompt=a", "size=32x48", "frames=9", "steps=5")
    assert run(*keys, "preview=2", "out=a.mp4")[0] == 0
    assert seen == [(".a.preview.png.part", (48, 32, 3))] * 2
    assert not list(tmp_path.glob("*preview*"))
    assert run(*keys, "out=b.mp4")[0] == 0
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (("prompt=a",), "checkpoint=random:tiny tries the command"),
        ((TINY,), 'give prompt="..." or prompts=FILE'),
        ((TINY, "prompt=a", "size=50x32"), "multiples of 16; the nearest is 48x32"),
        ((TINY, "prompt=a", "size=big"), "wants width x height, such as 832x480"),
        ((TINY, "prompt=a", "frames=8"), "must be 4k+1"),
        ((TINY, "prompt=a", "image=a.png"), "random:tiny is of kind t2v, which does"),
        ((TINY, "prompt=a", "task=video-to-video"), "needs video="),
        ((TINY, "prompt=a", "task=i2v"), "is not one of text-to-video"),
        ((TINY, "prompt=a", "video=none.mp4"), "none.mp4"),
        (("checkpoint=random:i2v-tiny", "prompt=a"), "is of kind i2v, which does image-to-video"),
        (("checkpoint=random:i2v-tiny", "prompt=a", "image=no.png"), "no.png: the image cannot"),
        (("checkpoint=nothing/here/x", "prompt=a"), "no such file or folder; give a run"),
        ((TINY, "prompt=a", "cache.step=0.1", "cache.rescale=x"), "choose one of t2v-1.3b"),
        ((TINY, "prompt=a", "interval=0.9,0.1"), "two rising sigmas"),
        ((TINY, "prompt=a", "tile=33"), "a multiple of 8 pixels, 128 or more"),
        ((TINY, "prompt=a", "crf=0"), "1 to 51"),
    ],
    ids=str,
)
def test_a_mistake_is_told_in_one_line(run, keys, says):
    assert says in mistake(run, *keys)


def test_a_later_picture_that_cannot_be_read_is_told_before_anything_is_sampled(run, picture):
    rows = [{"prompt": "a", "image": str(picture)}, {"prompt": "b", "image": "gone.png"}]
    Path("p.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    line = mistake(run, "checkpoint=random:i2v-tiny", "prompts=p.jsonl", *SMALL)
    assert "gone.png: the image cannot be read: No such file" in line


def test_missing_weights_are_told_with_the_files_that_belong_there(run, tmp_path):
    folder = tmp_path / "Wan2.1-T2V-1.3B"
    folder.mkdir()
    (folder / "Wan2.1_VAE.pth").touch()
    line = mistake(run, f"checkpoint={folder}", "prompt=a")
    assert f"belongs at {folder}/diffusion_pytorch_model*.safetensors" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_told(run):
    assert "sees no CUDA GPU here" in mistake(run, TINY, "prompt=a", "device=cuda")


def test_out_of_memory_is_told_with_what_would_fit(run):
    status, _, err = run(TINY, "prompt=a", "size=16000000x16000000", "frames=1", "out=a.png")
    assert status == 1
    assert err.count("\n") == 1
    assert "out of memory for 16000000x16000000, 1 frames, batch=1 on cpu" in err
    assert "would fit: size=1280x720 frames=1" in err


def test_the_choices_of_a_key_are_what_the_sampler_has():
    from model.sampler import TASKS as DONE
    from model.solver import SOLVERS as SOLVED
    from model.solver import STOCHASTIC as STIRRED

    assert set(TASKS) == set(DONE)
    assert set(SOLVERS) == set(SOLVED)
    assert set(STOCHASTIC) == set(STIRRED)


def test_help_lists_the_keys(capsys):
    assert main(Sample, command.sample, ["--help"]) == 0
    page = " ".join(capsys.readouterr().out.split())
    assert "checkpoint=null" in page
    assert "scaled to cover the size, then cut to the middle" in page
