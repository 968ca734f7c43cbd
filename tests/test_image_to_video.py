"""VBench-I2V: its formula and its rule restated, and camera moves planted into real stills."""

import cv2
import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import ViTConfig, ViTModel

from eval.measures import image_to_video
from eval.measures.encoders import ClipModel, load_dino, prepare_clip
from eval.measures.measure import Video
from tests.planted import decode, noise, package_video, seconds

SIZE = 320, 180  # of the planted films
OPPOSITE = {"pan_left": "pan_right", "tilt_up": "tilt_down", "zoom_in": "zoom_out"}
OPPOSITE |= {there: back for back, there in OPPOSITE.items()}


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return decode(package_video("bikes.mp4"), 0, 6, long_side=480)[0]


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return decode(package_video("bigbuckbunny.mp4"), 9, 10, long_side=640)[0][0]


# --- the picture ---------------------------------------------------------------------------------


def vbenchs_conformity(picture: torch.Tensor, features: torch.Tensor) -> float:
    alike = [max(0.0, F.cosine_similarity(picture, one, dim=0).item()) for one in features]
    row = [
        max(0.0, F.cosine_similarity(features[t - 1], features[t], dim=0).item())
        for t in range(1, len(features))
    ]
    return 0.4 * np.max(alike) + 0.3 * np.mean(row) + 0.3 * np.min(row)


def test_conformity_is_vbenchs_formula():
    found = []
    for seed in range(8):
        draw = torch.Generator().manual_seed(seed)
        picture = torch.randn(5, generator=draw)
        features = torch.randn(9, 5, generator=draw) + (seed % 3)  # some in a row all alike
        mine = image_to_video.conformity(
            F.normalize(picture, dim=-1), F.normalize(features, dim=-1)
        )
        assert mine == pytest.approx(vbenchs_conformity(picture, features), abs=1e-6)
        found.append(mine)
    assert np.std(found) > 0.05
    assert np.isnan(image_to_video.conformity(torch.ones(4), torch.ones(1, 4)))


def middle(pictures: torch.Tensor) -> torch.Tensor:
    height, width = pictures.shape[-2:]
    top, left = round((height - 224) / 2), round((width - 224) / 2)
    return pictures[..., top : top + 224, left : left + 224]


def normal(pictures: torch.Tensor) -> torch.Tensor:
    mean, deviation = (
        torch.tensor(one)[:, None, None] for one in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    return (pictures - mean) / deviation


def test_i2v_subject_sees_both_as_vbench_prepares_them(frames, picture, tmp_path):
    """Frames: tensors, short side 256, bicubic, smoothed, overshoot kept. The picture: Pillow's
    bicubic, whole levels."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    network = ViTModel(ViTConfig(**sizes, intermediate_size=64), add_pooling_layer=False).eval()
    network.save_pretrained(tmp_path)
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    height, width = frames.shape[1:3]
    size = 256, int(256 * width / height)
    shown = F.interpolate(pixels, size, mode="bicubic", antialias=True)
    size = int(256 * picture.shape[1] / picture.shape[0]), 256
    small = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
    begun = torch.from_numpy(small.copy()).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        features = network(normal(middle(shown) / 255)).last_hidden_state[:, 0]
        first = network(normal(middle(begun) / 255)).last_hidden_state[0, 0]
    measure = image_to_video.i2v_subject(load_dino(str(tmp_path)))
    found = measure(Video(frames, 25, image=picture))
    assert found == pytest.approx(vbenchs_conformity(first, features), abs=1e-5)
    # its own first frame is more like it
    assert measure(Video(frames, 25, image=frames[0])) > found
    assert np.isnan(measure(Video(frames, 25)))
    assert measure.dimension == measure.name == "i2v_subject"


def test_i2v_background_looks_through_clip(frames, picture):
    torch.manual_seed(0)
    tower = {"image_size": 224, "layers": 2, "width": 64, "head_width": 32, "patch_size": 32}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
    clip = ClipModel(open_clip.CLIP(768, tower, text, quick_gelu=True), "ViT-B-32")

    def seen(some: np.ndarray) -> torch.Tensor:
        pixels = torch.from_numpy(some).permute(0, 3, 1, 2).float()
        with torch.no_grad():
            return clip.network.encode_image(prepare_clip(pixels))

    measure = image_to_video.i2v_background_clip(clip.images)
    wanted = vbenchs_conformity(seen(picture[None])[0], seen(frames))
    assert measure(Video(frames, 25, image=picture)) == pytest.approx(wanted, abs=1e-5)
    assert np.isnan(measure(Video(frames, 25)))
    # no bounds of VBench's for it
    assert (measure.name, measure.dimension) == ("i2v_background_clip", "i2v_background")


# --- the camera ----------------------------------------------------------------------------------

TOP_BOTTOM = {"up_down": "zoom_in", "down_up": "zoom_out"}
LEFT_RIGHT = {"left_right": "zoom_in", "right_left": "zoom_out"}
BOTH = {
    "left_left": "pan_right",
    "right_right": "pan_left",
    "down_down": "tilt_up",
    "up_up": "tilt_down",
    "static_static": "static",
}


def vbenchs_moves(whole: np.ndarray, width: int, height: int) -> set[str]:
    """camera_motion.py, of points that an affine map moves."""

    def ways(x: float, y: float) -> list[str]:
        to = whole @ [x, y, 1]
        right, down = to[0] - x, to[1] - y
        least = 0.005 * min(width, height)
        found = [name for name, far in (("right", right), ("left", -right)) if far > least]
        found += [name for name, far in (("down", down), ("up", -down)) if far > least]
        return found or ["static"]

    x, y = (width - 1) / 2, (height - 1) / 2
    pairs = (
        (ways(x, 0), ways(x, 2 * y), BOTH | TOP_BOTTOM),
        (ways(0, y), ways(2 * x, y), BOTH | LEFT_RIGHT),
    )
    found = set()
    for first, second, names in pairs:
        said = {f"{a}_{b}" for a in first for b in second}
        found |= {move for name, move in names.items() if name in said}
    return found - {"static"} if found != {"static"} else found


def test_moves_are_named_by_vbenchs_rule(monkeypatch):
    video = Video(np.zeros((2, 180, 320, 3), np.uint8), 16)
    draw, met = np.random.default_rng(0), set()
    for k in range(400):
        whole = np.eye(3)
        whole[:2, :2] += draw.normal(0, [0, 0.004, 0.02][k % 3], (2, 2))
        whole[:2, 2] = draw.normal(0, [0.5, 2, 9][k % 5 % 3], 2)
        monkeypatch.setattr(image_to_video, "course", lambda _, whole=whole: whole)
        wanted = vbenchs_moves(whole, 320, 180)
        assert image_to_video.moves(video) == wanted
        met |= {*wanted} or {"none"}
    assert met == {*image_to_video.MOVES, "none"}


def planted(
    still: np.ndarray, move: str, way: float, frames: int = 13, aside: float = 0
) -> np.ndarray:
    """A camera's move over a still, which is larger than what it shows.

    Args:
        way: from first to last: of the height, or what a zoom enlarges by.
        aside: pixels that a trembling hand is off by, on either axis.
    """
    height, width = still.shape[:2]
    fit = 1.5 * max(SIZE[0] / width, SIZE[1] / height)
    draw, found = np.random.default_rng(0), []
    for t in range(frames):
        far = way * t / (frames - 1)
        across, down, larger = {
            "pan_left": (far, 0, 1),
            "pan_right": (-far, 0, 1),
            "tilt_up": (0, far, 1),
            "tilt_down": (0, -far, 1),
            "zoom_in": (0, 0, 1 + far),
            "zoom_out": (0, 0, 1 / (1 + far)),
            "static": (0, 0, 1),
        }[move]
        scale = fit * larger
        off = aside * draw.standard_normal(2) if 0 < t < frames - 1 else (0, 0)
        x = SIZE[0] / 2 - scale * width / 2 + across * SIZE[1] + off[0]
        y = SIZE[1] / 2 - scale * height / 2 + down * SIZE[1] + off[1]
        matrix = np.array([[scale, 0, x], [0, scale, y]])
        found.append(cv2.warpAffine(still, matrix, SIZE, borderMode=cv2.BORDER_REFLECT_101))
    return np.stack(found)


@pytest.fixture(scope="module")
def stills() -> list[np.ndarray]:
    names = (("bikes.mp4", 40), ("carphone_pristine.mp4", 0), ("bigbuckbunny.mp4", 0))
    return [decode(package_video(name), k, k + 1)[0][0] for name, k in names]


def told(frames: np.ndarray, move: str) -> float:
    return image_to_video.CAMERA(Video(frames, 16, asked={"camera_motion": move}))


@pytest.mark.parametrize("way", [0.03, 0.25])
@pytest.mark.parametrize("move", image_to_video.MOVES)
def test_a_planted_move_is_recognised_and_no_other(stills, move, way):
    for still in stills:
        film = planted(still, move, way)
        assert image_to_video.moves(Video(film, 16)) == {move}
        right = {one: told(film, one) for one in image_to_video.MOVES}
        assert right == {one: float(one == move) for one in image_to_video.MOVES}


@pytest.mark.parametrize("move", image_to_video.MOVES)
def test_a_move_is_recognised_through_grain_and_a_trembling_hand(stills, move):
    for still in stills:
        film = noise(planted(still, move, 0.1, aside=0.7), sigma=6)
        assert told(film, move) == 1
        assert told(film, OPPOSITE.get(move, "pan_left")) == 0


@pytest.mark.parametrize("move", image_to_video.MOVES)
def test_a_thing_that_goes_its_own_way_is_not_the_camera(stills, move):
    """A face of a sixth of the picture, across it from right to left."""
    face = cv2.resize(stills[1][20:130, 40:150], (100, 100))
    for still in stills:
        film = planted(still, move, 0.15)
        for t, frame in enumerate(film):
            frame[40:140, 180 - 10 * t : 280 - 10 * t] = face
        assert told(film, move) == 1
        assert told(film, OPPOSITE.get(move, "pan_right")) == 0


@pytest.mark.parametrize("sigma", [2, 6])
def test_errors_of_a_long_film_do_not_add_up(stills, sigma):
    for still in stills:
        film = np.repeat(planted(still, "static", 0, frames=2)[:1], 49, axis=0)
        assert image_to_video.moves(Video(noise(film, sigma), 16)) == {"static"}


def test_a_slanting_move_is_two(stills):
    film = planted(stills[0], "pan_left", 0.1)
    rows = [np.roll(frame, -2 * t, axis=0)[:150] for t, frame in enumerate(film)]
    assert image_to_video.moves(Video(np.stack(rows), 16)) == {"pan_left", "tilt_down"}


def test_backwards_a_real_film_does_the_opposite():
    clips = [one for one in seconds() if one.name.startswith(("bikes", "bigbuckbunny"))]
    met = set()
    for clip in clips:
        forth = image_to_video.moves(Video(clip.frames, clip.fps))
        back = image_to_video.moves(Video(clip.frames[::-1], clip.fps))
        assert back == {OPPOSITE.get(move, move) for move in forth}
        met |= forth
    assert {"pan_left", "pan_right", "tilt_up", "tilt_down", "static"} <= met


def test_what_is_asked_is_a_name_or_vbenchs_words(stills):
    film = planted(stills[0], "tilt_up", 0.1)
    assert image_to_video.CAMERA(Video(film, 16, "a street, camera tilts up")) == 1
    assert image_to_video.CAMERA(Video(film, 16, "a street, camera tilts down")) == 0
    asked = {"camera_motion": "tilt_up"}
    # what is asked goes before what is said
    assert image_to_video.CAMERA(Video(film, 16, "a street, camera tilts down", asked)) == 1
    assert np.isnan(image_to_video.CAMERA(Video(film, 16, "a street")))
    assert np.isnan(image_to_video.CAMERA(Video(film[:1], 16, "", asked)))
    assert image_to_video.CAMERA.dimension == "camera_motion"


def test_a_black_film_is_static():
    film = Video(np.zeros((5, 64, 64, 3), np.uint8), 16)
    assert image_to_video.moves(film) == {"static"}
