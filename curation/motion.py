"""Step 3, motion: how fast a clip moves, what of it is the camera's, and which tier it falls into.

Speeds are in short sides a second, of the picture without its black borders, so that they depend
neither on frame size nor on frame rate. All scorers read `clip.gray` and `clip.times` alone.
"""

from itertools import pairwise

import cv2
import numpy as np

from curation import flow
from curation.scorer import Clip, Column, scorer

STRIDE_S = 1 / 6  # between the pairs of frames whose flow is measured
GAP_S = 1 / 12  # within a pair: a shift of 30 pixels, all that DIS follows, is 2 short sides/s
STILL = 0.01  # short sides/s: less than this is not told from noise

SHAKE = 0.006  # short sides: where shake is 0.5
SHAKE_FPS = 30.0
SHAKE_S = 0.2  # seconds, the smoothing of the camera's path
UNSURE_S = 0.006  # seconds: in flight, the camera's path is known to what it flies in this time
MOVES_BY = 0.4, 0.7  # 1 less the texture that stands over that which follows the camera
FOLLOWS = 0.45, 0.65  # share of the texture that follows the camera, roughly

SAME = 1.0  # grey levels: no cell of a repeated frame changes more
LOUD = 3.0  # grey levels: more than a codec makes of a standstill
DIP = 0.3  # of its neighbours' change

FLICKER = 0.02  # of the light: where flicker is 0.5
LIGHT_S = 0.2  # seconds: light that comes back sooner flickers
LIGHT_CELL = 16  # pixels at half size: about 50 places, each lit alike
DARK = 16.0  # grey levels, keeps the logarithm from the noise of the shadows
USUAL = 2 / 3  # quantile over time: a third of the clip must tremble or flicker as much

# Rules of the tiers.
SUBJECT_STILL = 0.03  # short sides/s: what moves most needs half a minute to cross the picture
CAMERA_STILL = 0.015  # short sides/s: the whole picture needs a minute
SUBJECT_SLOW = 0.1  # short sides/s: a head that speaks; faster motion is worth learning from
SHAKY = 0.55  # the path deviates by 0.7 % of the short side, 8 pixels at 1080p; a calm hand by 0.5
CHAOS = 0.55  # more than half of the change is no motion that can be followed
CLEAN = 0.4  # a walk through clutter; beyond it subjects hide one another
BLUR = 8.0  # short sides/s: through the picture in three frames
CAMERA = 0.8  # of the motion's energy
DEPTH = 1.5  # of the mean speed: near things pass a moving camera so much faster than far ones


def picture(clip: Clip) -> np.ndarray:
    """The clip's grey frames without their black borders, uint8 [n, h, w]."""
    box = clip.scores.get("border_box")
    if box is None or len(box) != 4:
        return clip.gray
    h, w = clip.gray.shape[1:]
    x0, x1 = (round(v * w / clip.width) for v in (box[0], box[0] + box[2]))
    y0, y1 = (round(v * h / clip.height) for v in (box[1], box[1] + box[3]))
    cut = clip.gray[:, max(y0, 0) : y1, max(x0, 0) : x1]
    return cut if min(cut.shape[1:]) >= flow.CELL else clip.gray


def spaced(times: np.ndarray) -> list[tuple[int, int]]:
    """Which frames are compared: every STRIDE_S a pair of about GAP_S, at least one pair."""
    found = []
    last = len(times) - 1
    for start in np.arange(times[0], times[-1], STRIDE_S):
        i = min(int(np.searchsorted(times, start - 1e-6)), last - 1)
        after = int(np.searchsorted(times, times[i] + GAP_S))
        near = [j for j in (after - 1, after) if i < j <= last] or [i + 1]
        j = min(near, key=lambda j: abs(times[j] - times[i] - GAP_S))
        if (i, j) not in found[-1:]:
            found.append((i, j))
    return found


@scorer(
    "motion",
    version="1",
    source="DIS optical flow (Kroeger et al. 2016); planar camera (Bergen et al. 1992)",
    video_only=True,
    flow_mean=Column("short sides/s", "speed, mean over picture and time"),
    flow_peak=Column("short sides/s", "speed, 95th percentile over the picture, then over time"),
    camera_share=Column("0–1", "share of squared speed that one moving camera explains"),
    subject_motion=Column(
        "short sides/s",
        "speed beside the camera's: mean over the twentieth of the picture that has most",
    ),
    incoherence=Column("0–1", "share of the change between frames that no flow explains"),
)
def speed(clip: Clip) -> dict:
    """Flow of the clip, split into the camera's and the rest.

    One plane before one camera is the model, so that depth (a ride through a wood) counts as
    subject motion in part, and a subject that fills most of the picture as the camera. Colour is
    not seen: a red shape on a green ground of the same brightness does not move.
    """
    gray = picture(clip)
    found = flow.flows(gray, clip.times, spaced(clip.times), clip.fps)
    camera = flow.cameras(found)
    # Where nothing can be followed, the picture is taken to go with the camera.
    trust = found.trust * flow.inside(camera, found.size)
    rest = trust * (found.flow - camera)
    unit = 1 / (found.side * found.seconds[:, None])
    speeds = np.hypot(*(rest + camera)) * unit
    rests = np.hypot(*rest) * unit
    most = max(1, rests.shape[1] // 20)
    energy, residual = (speeds**2).mean(), (rests**2).mean()
    return {
        "flow_mean": float(speeds.mean()),
        "flow_peak": float(np.percentile(flow.quantile(speeds, 0.95), 95)),
        "camera_share": float(max(0.0, energy - residual) / (energy + STILL**2)),
        "subject_motion": float(np.partition(rests, -most, axis=1)[:, -most:].mean()),
        "incoherence": float(min(1.0, found.unexplained.mean() / (found.change.mean() + 1.0))),
    }


@scorer(
    "motion",
    version="1",
    source="high-pass of the camera's path, as video stabilisers smooth it (Grundmann et al. 2011)",
    video_only=True,
    shake=Column(
        "0–1", "trembling camera: 0.5 where the path's deviation is 0.6 % of a short side"
    ),
)
def shake(clip: Clip) -> dict:
    """How far the camera's path leaves its own smooth course, a third of the time at least.

    The path adds up shift and turn (at half a short side from the middle) between frames, at most
    SHAKE_FPS a second: a hand trembles at 2 to 10 Hz. Pans, their starts and stops, zooms and
    rides pass the filter; a walk's bounce (below 2 Hz) counts by half and less, and what is faster
    than half the frame rate can't be seen. A large subject that jerks may be taken for the camera.
    """
    step = max(1, int(np.ceil(clip.fps / SHAKE_FPS - 0.1)))
    gray, times = picture(clip)[::step], clip.times[::step]
    if len(gray) < 3:
        return {"shake": 0.0}
    half = halved(gray)
    pairs = [(i, i + 1) for i in range(len(half) - 1)]
    found = flow.flows(half, times, pairs, clip.fps / step, fine=False)
    steps, moving = flow.fitted(found, flow.SIMILAR)
    steps = steps[:, [0, 1, 3]] * [1, 1, 0.5] * _sure(found, moving, clip.fps / step)[:, None]
    steps /= found.side
    path = np.concatenate([np.zeros((1, 3)), np.cumsum(steps, 0)])
    fast = highpass(path, times, SHAKE_S)
    drift = np.linalg.norm(np.gradient(path - fast, axis=0), axis=1)
    drift *= (len(times) - 1) / (times[-1] - times[0])
    rough = np.linalg.norm(fast, axis=1) - UNSURE_S * drift
    rough = max(0.0, float(flow.quantile(rough, USUAL)))
    return {"shake": rough / (rough + SHAKE)}


def _sure(found: flow.Flows, camera: np.ndarray, fps: float) -> np.ndarray:
    """How surely the camera moves, 0–1 [p]: most of the picture follows it, and doesn't stand.

    Judged over a second, for a path that is believed in one frame and not in the next trembles.
    """
    window = min(2 * round(fps / 2) + 1, len(found.trust))
    views = np.stack(
        [
            flow.explained(found, camera),
            flow.explained(found, np.zeros_like(camera)),
            flow.explained(found, camera, sigma=2.0),
        ]
    )
    moves, stands, follows = cv2.blur(views, (window, 1), borderType=cv2.BORDER_REFLECT)
    return _ramp(1 - stands / (moves + 1e-9), MOVES_BY) * _ramp(follows, FOLLOWS)


def _ramp(value: np.ndarray, between: tuple[float, float]) -> np.ndarray:
    return np.clip((value - between[0]) / (between[1] - between[0]), 0, 1)


def highpass(path: np.ndarray, times: np.ndarray, sigma_s: float) -> np.ndarray:
    """What a Gaussian leaves of paths [n, d] when it is taken away twice, evenly in time.

    Twice, because once would keep a path's acceleration. Sines of 0.4/sigma_s Hz pass by 0.92,
    of 0.2/sigma_s by 0.3, of 0.1/sigma_s by 0.03.
    """
    n = len(path)
    # Evenly in time, whatever the frame rate does.
    place = np.interp(np.linspace(times[0], times[-1], n), times, np.arange(n))
    left = np.minimum(place.astype(int), n - 2)
    right = (place - left)[:, None]
    path = path[left] * (1 - right) + path[left + 1] * right
    sigma = sigma_s * (n - 1) / (times[-1] - times[0])
    reach = min(max(1, int(np.ceil(3 * sigma))), 4 * n)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    for _ in range(2):
        # Turned about its ends, a straight path goes on straight.
        padded = np.pad(path, ((reach, reach), (0, 0)), mode="reflect", reflect_type="odd")
        path = path - cv2.sepFilter2D(padded, -1, np.ones(1), kernel / kernel.sum())[reach:-reach]
    return path


@scorer(
    "motion",
    version="1",
    source="own: frames equal to the one before but for the codec, where the clip moves otherwise",
    video_only=True,
    freeze=Column("0–1", "share of repeated frames; 0 where nothing moves at all"),
)
def freeze(clip: Clip) -> dict:
    """Share of frames that repeat the one before.

    A frame repeats if it changes far less than both its neighbours do (a doubled frame, however the
    codec blurs it), or if it belongs to a run without change that movement breaks off or breaks
    into. A standstill that movement runs out into is no freeze, nor is a clip in which nothing
    moves: that is the tier's to tell. Where a subject springs suddenly into an empty, noiseless
    scene, its waiting counts as frozen.
    """
    steps = changes(halved(picture(clip)))
    last = len(steps) - 1
    repeated = np.zeros(len(steps), bool)
    around = np.minimum(steps[:-2], steps[2:])
    repeated[1:-1] = (steps[1:-1] < DIP * around) & (around > LOUD / 2)
    still = np.flatnonzero(np.diff(np.concatenate([[0], steps < SAME, [0]])))
    for start, end in still.reshape(-1, 2):
        for side in (steps[max(0, start - 6) : start], steps[end : end + 6][::-1]):
            # Movement breaks off, though the codec may take a few frames to settle. One loud step
            # alone is its key frame, or a title that appears.
            breaks = (side > LOUD) & (np.append(side[1:], SAME) < DIP * side)
            if (side > LOUD).sum() > 1 and breaks[-4:].any():
                repeated[start:end] = True
    return {"freeze": float(repeated.sum() / (last + 2))}


@scorer(
    "motion",
    version="1",
    source="own: the light's path less its running median",
    video_only=True,
    flicker=Column(
        "0–1", "unsteady light: 0.5 where it deviates by 2 %, over the frame or a tenth"
    ),
)
def flicker(clip: Clip) -> dict:
    """Oscillation of the light, of the whole picture or of the tenth that flickers most.

    The whole's is the median over the cells, which movement of subjects leaves alone; a cell's own
    counts only beyond what movement in it could do. A third of the clip must flicker as much, so
    that a flash is none.
    """
    half = halved(picture(clip))
    if len(half) < 3:
        return {"flicker": 0.0}
    light = np.stack([shrunk(frame, LIGHT_CELL) for frame in half])
    steps = np.diff(np.log(light + DARK), axis=0)
    whole = np.median(steps, axis=1)[:, None]
    moved = np.stack([spread(*pair, LIGHT_CELL) for pair in pairwise(half)])
    moved = moved / (light[1:] + DARK) ** 2
    path = np.concatenate([0 * whole[:1], np.cumsum(whole, axis=0)])
    every = unsteady(np.concatenate([path, np.log(light + DARK) - path], axis=1), clip.fps)
    place = np.sqrt(np.maximum(every[1:] ** 2 - 2 * moved.mean(0), 0))
    rough = float(max(every[0], flow.quantile(place, 0.9)))
    return {"flicker": rough / (rough + FLICKER)}


def unsteady(light: np.ndarray, fps: float) -> np.ndarray:
    """How far paths [n, g] usually are from their own median over LIGHT_S before and after; [g].

    A median goes along with steps and slopes (what passes by, a fade, a cut), not with oscillation.
    """
    reach = max(1, round(LIGHT_S * fps))
    padded = np.pad(light, ((reach, reach), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1, axis=0)
    return flow.quantile(abs(light - flow.quantile(windows, 0.5)).T, USUAL)


@scorer(
    "motion",
    version="1",
    source="Wan (arXiv 2503.20314), motion quality; the report gives no thresholds, these are ours",
    video_only=True,
    tier=Column("name", "optimal, medium, static, camera, low or shaky", type="VARCHAR"),
)
def tier(clip: Clip) -> dict:
    """Which of the Wan report's six tiers the clip's other motion scores put it into."""
    return {"tier": tier_of(clip.scores)}


def tier_of(scores: dict) -> str:
    """The tier of a clip with these scores; the first rule that holds.

    `low` stands for what can't be followed: crowds, occlusion, water, blur, cuts that were missed.
    It finds motion that a flow can't explain, not motion that is dull or ugly.
    """
    subject, mean = scores["subject_motion"], scores["flow_mean"]
    if subject < SUBJECT_STILL and mean < CAMERA_STILL:
        return "static"
    chaos = subject >= SUBJECT_SLOW and scores["incoherence"] >= CHAOS
    if chaos or scores["flow_peak"] >= BLUR:
        return "low"
    if scores["shake"] >= SHAKY:
        return "shaky"
    if scores["camera_share"] >= CAMERA and subject < max(SUBJECT_SLOW, DEPTH * mean):
        return "camera"
    if subject >= SUBJECT_SLOW and scores["incoherence"] < CLEAN:
        return "optimal"
    return "medium"


def halved(gray: np.ndarray) -> np.ndarray:
    """Frames at half their size; uint8 [n, h/2, w/2]."""
    size = [max(1, side // 2) for side in gray.shape[:0:-1]]
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in gray])


def shrunk(frame: np.ndarray, cell: int = 8) -> np.ndarray:
    """Mean over cells of so many pixels either way, float32 [g]."""
    size = [max(1, side // cell) for side in frame.shape[::-1]]
    frame = frame.astype(np.float32)
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA).ravel()


def changes(half: np.ndarray) -> np.ndarray:
    """From frame to frame, the mean change of the cell that changes most; grey levels [n - 1].

    The light's own change, a fade's, is taken out: the later frame is fitted with the earlier one.
    """
    found = []
    for one, other in pairwise(half):
        if abs(cv2.mean(one)[0] - cv2.mean(other)[0]) > SAME / 2:
            (mean, spread), (mean_to, spread_to) = (cv2.meanStdDev(v) for v in (one, other))
            gain = float(spread_to[0, 0] / max(spread[0, 0], 1.0))
            one = np.clip(gain * (one - mean[0, 0]) + mean_to[0, 0], 0, 255).astype(np.uint8)
        found.append(shrunk(cv2.absdiff(one, other)).max())
    return np.array(found)


def spread(one: np.ndarray, other: np.ndarray, cell: int) -> np.ndarray:
    """Variance of the change within each cell, float32 [g]."""
    change = np.subtract(one, other, dtype=np.float32)
    return np.maximum(shrunk(change**2, cell) - shrunk(change, cell) ** 2, 0)
