"""Video as people look at it: animated GIFs for TensorBoard, H.264 in mp4 for players.

T frames, H height, W width; frames are uint8 [T, H, W, 3], RGB.
"""

import io
import math
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from torch import Tensor

SIDE = 256  # longest side of a GIF, in pixels: some 30 kB a frame
PALETTE = 200_000  # pixels that a GIF's colours are taken from, of all its frames
CRF = 12  # of mp4: about 45 dB, so that faults seen are the model's
GAP = 4  # pixels between two pictures side by side; even, for H.264


def frames(video: Tensor) -> np.ndarray:
    """Of a video [3, T, H, W] in −1..1; numbers that are none are black."""
    video = torch.nan_to_num(video.detach().float(), nan=-1.0)
    scaled = ((video + 1) * 127.5).round().clamp(0, 255)
    return scaled.to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()


def beside(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Two videos of one size, white between them."""
    shape = (*left.shape[:2], GAP, 3)
    return np.concatenate([left, np.full(shape, 255, np.uint8), right], axis=2)


def picture(video: np.ndarray, fps: float) -> bytes:
    """A file that a browser shows: an animated GIF, or a PNG where there is one frame.

    The colours of a GIF are 256 for all frames, so that none flickers. (Of a palette a frame, PIL's
    median cut takes twenty times as long for 0.4 dB; its octree loses 1 dB.)
    """
    video = shrunk(video)
    images = [Image.fromarray(frame) for frame in video]
    file = io.BytesIO()
    if len(images) == 1:
        images[0].save(file, "PNG")
        return file.getvalue()
    stride = math.ceil(math.sqrt(video.size / 3 / PALETTE))
    colours = Image.fromarray(np.concatenate(video[:, ::stride, ::stride])).quantize(256)
    indexed = [one.quantize(palette=colours, dither=Image.Dither.NONE) for one in images]
    # GIF counts hundredths of a second: 16 frames a second are 6, 7, 6, 6, …
    ends = [round(100 * (number + 1) / fps) for number in range(len(video))]
    lasts = [10 * max(end - start, 2) for start, end in zip([0, *ends], ends, strict=False)]
    indexed[0].save(file, "GIF", save_all=True, append_images=indexed[1:], duration=lasts, loop=0)
    return file.getvalue()


def shrunk(video: np.ndarray) -> np.ndarray:
    """At most SIDE pixels a side."""
    height, width = video.shape[1:3]
    scale = SIDE / max(height, width)
    if scale >= 1:
        return video
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    resized = (Image.fromarray(one).resize(size, Image.Resampling.BOX) for one in video)
    return np.stack([np.asarray(one) for one in resized])


def write(path: Path, video: np.ndarray, fps: float) -> Path:
    """As mp4, or PNG where there is one frame; it stands under its name when it is whole.

    Args:
        path: without an ending. Width and height of more than one frame are even.

    Returns:
        The file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path = path.with_name(path.name + (".png" if len(video) == 1 else ".mp4"))
    part = path.with_name(f".{path.name}.part")
    if len(video) == 1:
        Image.fromarray(video[0]).save(part, "PNG")
    else:
        encode(part, video, fps)
    os.replace(part, path)
    return path


def encode(path: Path, video: np.ndarray, fps: float) -> None:
    """H.264; the same frames give the same bytes."""
    # one thread, no dates, and nothing that depends on the processor's vector instructions
    options = {"crf": str(CRF), "preset": "veryfast", "mbtree": "0"}
    options["x264-params"] = "cpu-independent=1"
    flags = {"movflags": "+faststart", "fflags": "+bitexact"}
    with av.open(str(path), "w", format="mp4", options=flags) as file:
        rate = Fraction(fps).limit_denominator(1001)
        stream = file.add_stream("libx264", rate=rate, options=options)
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in video:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
