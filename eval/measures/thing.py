"""The one thing that stands out of a grey ground: where it is in every frame, its color and form.

Found by its chroma, since the grounds it is looked for on are pale or grey however strong their
texture is. Then what is behind it is taken from the frames in which it is elsewhere, and the share
that it covers of each pixel is unmixed and gathered along its way: nine frames show its outline
better than one.

T frames, H height, W width, 3 = RGB (0–255); lengths are pixels; x runs right, y down.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from eval.measures.outline import REACH, SIDE, STEP

FRAMES, SHORT = 17, 96  # more frames and pixels than these show nothing more
# what is left of RGB without its grey, as two orthonormal axes
CHROMA = np.array([[1, -1, 0], [1, 1, -2]], np.float32) / np.sqrt([[2], [6]], dtype=np.float32)
FAINT = 25.0  # of 0–255: less chroma than this above the ground is no color
CROWDED = 0.45  # of the thing's chroma: a fifth of the frame may have that much, and no more of it
PRESENT = 0.75  # share of the frames in which it must be found
RADII = (0.05, 0.27)  # of the short side; 0.09 to 0.18 are rendered
OTHERS = 0.3  # of its area: where another region in most frames has more, it is not the one thing


@dataclass(frozen=True)
class Thing:
    """What stands out."""

    times: np.ndarray  # int [N]: the frames it was found in
    centres: np.ndarray  # float [N, 2] (x, y): its middle there
    radius: float  # of the circle of equal area
    color: np.ndarray  # RGB [3] in its middle
    ground: np.ndarray  # RGB [3] around it
    patch: np.ndarray  # float [SIDE, SIDE]: the share it covers, see eval.measures.outline


def find(frames: np.ndarray) -> Thing | None:
    """Looks for the thing in uint8 [T, H, W, 3]; None where no one thing stands out."""
    times = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), FRAMES)).round().astype(int))
    video, scale = shrunk(frames[times])
    seen = _seen(video)
    if seen is None:
        return None
    masks, centres, radius, present = seen
    video, masks, centres, times = video[present], masks[present], centres[present], times[present]
    free = ~_grown(masks, 0.7 * radius + min(video.shape[1:3]) / 64)
    behind = _behind(video, free, radius)
    color, ground = _middle(video, centres, radius), behind[masks.any(0)].mean(0)
    if np.linalg.norm(CHROMA @ (color - ground)) < FAINT:
        return None  # a ring, or what else is not where its middle is
    cover = _cover(video, behind, free, color, ground, radius)
    centres, radius = _refined(cover, centres, radius)
    patch = _patch(cover, centres, radius)
    # a pixel's middle is a whole number in both sizes
    return Thing(times, (centres + 0.5) * scale - 0.5, radius * scale, color, ground, patch)


def shrunk(frames: np.ndarray) -> tuple[np.ndarray, float]:
    """float32 [T, h, w, 3] of at most about SHORT pixels, and how much larger the video is."""
    height, width = frames.shape[1:3]
    scale = min(height, width) / SHORT
    if scale <= 4 / 3:
        return frames.astype(np.float32), 1.0
    size = (round(width / scale), round(height / scale))
    small = [cv2.resize(one, size, interpolation=cv2.INTER_AREA) for one in frames]
    return np.float32(small), scale


def chroma(video: np.ndarray) -> np.ndarray:
    """float32 [T, H, W, 2]: chroma above that of the ground, a plane over the frame."""
    height, width = video.shape[1:3]
    tint = video @ CHROMA.T
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    plane = np.stack([np.ones_like(x), x, y], axis=-1).reshape(-1, 3)
    still = np.median(tint, axis=0).reshape(-1, 2)
    level = np.broadcast_to(np.median(still, axis=0), still.shape)
    for _ in range(3):
        # without what is far from it: a thing in a corner must not tip the plane
        off = np.linalg.norm(still - level, axis=1)
        near = off <= max(3 * np.median(off), 4)
        level = plane @ np.linalg.lstsq(plane[near], still[near], rcond=None)[0]
    return tint - level.reshape(height, width, 2)


def _seen(video: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, np.ndarray] | None:
    """Masks [T, H, W] and centres [T, 2] of the thing, its radius, and the frames it is in [T]."""
    short = min(video.shape[1:3])
    tint = np.stack([cv2.GaussianBlur(one, (0, 0), short / 64) for one in chroma(video)])
    far = np.linalg.norm(tint, axis=-1)
    floor, crowd, peak = np.percentile(far, [50, 80, 99])
    if peak < FAINT or crowd > CROWDED * peak:
        return None
    # the chroma of each frame's largest region; the middle one of the frames
    vivid = [_largest(one) for one in far > peak / 2]
    looks = [one[mask].mean(0) for one, mask in zip(tint, vivid, strict=True) if mask.any()]
    look = np.median(looks, axis=0)
    # its outline runs where there is as much of it as of the ground
    alike = np.linalg.norm(tint - look, axis=-1) < 0.5 * np.linalg.norm(look)
    masks = np.stack([_largest(one) for one in alike])
    areas = masks.sum((1, 2))
    area = max(float(np.median(areas)), 1.0)
    present = (areas > area / 2) & (areas < area * 2)
    radius = float(np.sqrt(area / np.pi))
    if not RADII[0] * short < radius < RADII[1] * short or present.mean() < PRESENT:
        return None
    elsewhere = (far > max(peak / 3, 3 * floor)) & ~_grown(masks, 0.5 * radius + short / 64)
    others = np.array([_largest(one).sum() for one in elsewhere])
    if np.median((others / np.maximum(areas, 1))[present]) > OTHERS:
        return None
    y, x = np.indices(video.shape[1:3])
    centres = np.stack([(masks * x).sum((1, 2)), (masks * y).sum((1, 2))], axis=1)
    return masks, centres / np.maximum(areas, 1)[:, None], radius, present


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected region [H, W] of a mask, empty if there is none."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    if count < 2:
        return np.zeros(mask.shape, bool)
    return labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())


def _grown(masks: np.ndarray, by: float) -> np.ndarray:
    side = 2 * max(1, round(by)) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    return np.stack([cv2.dilate(mask.astype(np.uint8), kernel) > 0 for mask in masks])


def _behind(video: np.ndarray, free: np.ndarray, radius: float) -> np.ndarray:
    """The ground [H, W, 3] from the frames in which it is free; elsewhere from what is near."""
    times = free.sum(0)[..., None]
    mean = (video * free[..., None]).sum(0) / np.maximum(times, 1)
    known = (times > 0).astype(np.float32)
    weight = cv2.GaussianBlur(known, (0, 0), radius)[..., None]
    near = cv2.GaussianBlur(mean * known, (0, 0), radius) / np.maximum(weight, 1e-6)
    return np.where(known > 0, mean, near).astype(np.float32)


def _middle(video, centres, radius) -> np.ndarray:
    """RGB in the thing's middle, the median over pixels and frames; within any of its shapes."""
    y, x = np.indices(video.shape[1:3])
    pixels = [
        one[np.hypot(x - cx, y - cy) <= max(1.0, 0.5 * radius)]
        for one, (cx, cy) in zip(video, centres, strict=True)
    ]
    return np.median(np.concatenate(pixels), axis=0)


def _cover(video, behind, free, color, ground, radius) -> np.ndarray:
    """float [T, H, W]: the share of each pixel that the thing covers.

    Fisher's linear discriminant: along the difference of the colors, where the ground varies least.
    """
    rest = (video - behind)[free]
    texture = (behind - cv2.GaussianBlur(behind, (0, 0), radius)).reshape(-1, 3)
    # what lies behind is known but for what changes, and at its outline from beside it
    spread = rest.T @ rest / max(len(rest), 1) + 0.25 * texture.T @ texture / len(texture)
    weights = np.linalg.solve(spread + 4 * np.eye(3), color - ground).astype(np.float32)
    # where the ground's own tone is near the thing's, little must not become much
    least = 0.3 * float((color - ground) @ weights)
    whole = np.maximum((color - behind) @ weights, least).astype(np.float32)
    return ((video - behind) @ weights) / whole


def _refined(cover, centres, radius) -> tuple[np.ndarray, float]:
    """Centres of mass of what is covered, and the radius of its area."""
    y, x = np.indices(cover.shape[1:])
    for _ in range(3):
        moved, areas = [], []
        for one, (cx, cy) in zip(cover, centres, strict=True):
            mass = one * (np.hypot(x - cx, y - cy) <= 1.9 * radius)
            area = max(float(mass.sum()), 1.0)
            shift = np.array([(mass * (x - cx)).sum(), (mass * (y - cy)).sum()]) / area
            # a step is never farther than the window can see
            moved.append(np.array([cx, cy]) + shift.clip(-radius / 2, radius / 2))
            areas.append(area)
        centres, radius = np.array(moved), float(np.sqrt(np.median(areas) / np.pi))
    return centres, radius


def _patch(cover, centres, radius) -> np.ndarray:
    """The mean of what is covered along the way; beyond the frame's edge nothing is known."""
    total, seen = np.zeros((SIDE, SIDE)), np.zeros((SIDE, SIDE))
    step = STEP * radius
    for one, (cx, cy) in zip(cover, centres, strict=True):
        warp = np.array([[step, 0, cx - REACH * radius], [0, step, cy - REACH * radius]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        inside = np.ones(one.shape, np.float32)
        total += cv2.warpAffine(one, warp, (SIDE, SIDE), flags=flags)
        seen += cv2.warpAffine(inside, warp, (SIDE, SIDE), flags=flags)
    return np.where(seen > 0.5, total / np.maximum(seen, 0.5), 0)
