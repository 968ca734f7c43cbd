"""Captions from a vision-language model: any image- or video-text-to-text checkpoint.

A LLaVA-style captioner looks at 3 frames a second, 129 at most, and describes ten dimensions
(Wan report, section "Dense video caption"). The checkpoint comes through transformers: its
processor, its chat template, its safetensors; none is bundled (`scorers=full`,
`captions.model=<folder or hub name>`). One that knows only images is shown a few frames in order.
"""

import functools
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curation.captions import clean
from recipes.load import UsageError

FPS = 3.0  # Wan report: video at 3 frames a second …
FRAMES = 129  # … up to so many
STILLS = 8  # frames shown to a model that has no video input
DETECTED = 400  # characters of detected text that go into the prompt

PROMPTS = {
    "en": (
        "Describe this {what} in one dense paragraph of plain English, as a caption from which "
        "someone could film it again. Say, as far as it can be seen: what happens and how it "
        "moves; the camera's angle; the camera's motion; the objects and their looks; their "
        "colours; how many there are; any written text, quoted exactly; the scene and its "
        "surroundings; the visual style; and the event as a whole, in order of time. State only "
        "what is visible. Begin with the subject, without an introduction."
    ),
    "zh": (
        "请用一段连贯、详尽的中文描述这{what}，使人仅凭文字就能重新拍出它。凡能看到的，都要写明："
        "动作及其过程；镜头角度；镜头运动；物体及其外观；颜色；数量；画面中的文字（用引号原样写出）；"
        "场景与环境；视觉风格；以及按时间顺序发生的事件。只写看得见的内容，直接从主体写起，不要开场白。"
    ),
}
WHAT = {"en": ("video", "image"), "zh": ("段视频", "张图片")}
READ = {
    "en": "A text detector read this in it, perhaps with errors: “{text}”.",
    "zh": "文字识别在画面中读到（可能有误）：“{text}”。",
}
PLACE = "put config.json, *.safetensors and the processor's files in a folder and name that"
SENTENCE_END = re.compile(r"""[.!?]["'”’)]*(?=\s|$)|[。！？…]["'”’』」)）]*""")


@dataclass(frozen=True)
class Loaded:
    """A captioning model and what prepares its input."""

    model: object  # transformers.PreTrainedModel, in evaluation mode
    processor: object  # transformers.ProcessorMixin
    device: str
    sees_video: bool


def instruction(
    language: str = "en", detected: str = "", image: bool = False, own: str | None = None
) -> str:
    """What the model is asked.

    Args:
        language: of the caption, "en" or "zh".
        detected: text that OCR read in the frames; "" if there is none.
        image: the clip is a single frame.
        own: a person's own instruction, instead of the built-in one.
    """
    text = own or PROMPTS[language].format(what=WHAT[language][image])
    # what a frame says must not become a special token of the chat template
    read = clean(re.sub(r"[<>|\[\]{}]", " ", detected))[:DETECTED].strip()
    return f"{text}\n{READ[language].format(text=read)}" if read else text


def sample(times: np.ndarray, fps: float = FPS, frames: int = FRAMES) -> tuple[np.ndarray, float]:
    """Which of a clip's frames the model sees.

    Args:
        times: float [n], seconds, ascending.
        fps: frames a second; fewer where the clip would give more than `frames`.
        frames: at most so many.

    Returns:
        int64 [k] indices into `times`, ascending, and the rate they come at, frames a second.
    """
    times = np.asarray(times, np.float64)
    span = float(times[-1] - times[0])
    wished = int(span * fps + 1e-6) + 1
    count = min(wished, frames, len(times))
    if count == 1:
        return np.zeros(1, np.int64), fps
    # a clip that is short enough keeps the rate; else the frames are spread over its whole span
    step = 1 / fps if count == wished else span / (count - 1)
    wanted = times[0] + step * np.arange(count)
    right = np.clip(np.searchsorted(times, wanted), 1, len(times) - 1)
    nearer_left = wanted - times[right - 1] < times[right] - wanted
    found = np.unique(right - nearer_left)
    return found, (len(found) - 1) / max(float(times[found[-1]] - times[found[0]]), 1e-6)


def place(model: str) -> str:
    """Where the model is: its folder, or its name on the hub. Loads nothing.

    Raises:
        UsageError: a folder that is not there or holds no model; the line says where to put it.
    """
    where = f"captions.model={model}"
    folder = Path(model).expanduser()
    if folder.exists() and not (folder / "config.json").is_file():
        raise UsageError(f"{where}: the folder has no config.json; {PLACE}")
    if not folder.exists() and not re.fullmatch(r"[\w.-]+(?:/[\w.-]+)?", model):
        raise UsageError(f"{where}: no such folder; {PLACE}")
    return str(folder) if folder.exists() else model


@functools.cache
def load(model: str) -> Loaded:
    """The model, once in a process, on the GPU if there is one.

    Args:
        model: a folder, or a name on the hub.

    Raises:
        UsageError: it is not there, or is no captioner; the line says where to put it.
    """
    name = place(model)
    import torch
    import transformers

    where = f"captions.model={model}"
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
    cuda = torch.cuda.is_available()
    try:
        processor = transformers.AutoProcessor.from_pretrained(name, trust_remote_code=False)
        net = transformers.AutoModelForImageTextToText.from_pretrained(
            name,
            dtype="auto" if cuda else torch.float32,  # half precision is slow on a CPU
            use_safetensors=True,  # never a pickle
            trust_remote_code=False,
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = " ".join(str(error).split()).partition(". ")[0][:200]
        raise UsageError(f"{where}: cannot be loaded: {reason}; {PLACE}") from None
    if not getattr(processor, "chat_template", None):
        raise UsageError(f"{where}: has no chat template, so it can't be asked for a caption")
    device = "cuda" if cuda else "cpu"
    video = getattr(processor, "video_processor", None) is not None
    return Loaded(net.to(device).eval(), processor, device, video)


def inputs(frames: np.ndarray, loaded: Loaded, prompt: str, fps: float = FPS) -> dict:
    """What the model is given, on its device.

    Args:
        frames: uint8 [k, H, W, 3], RGB, in order of time; one is an image.
        prompt: the instruction.
        fps: the frames' rate.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames must be uint8 [k, H, W, 3], got {frames.dtype} {frames.shape}")
    frames = np.ascontiguousarray(frames)
    k, height, width, _ = frames.shape
    if loaded.sees_video and k > 1:
        parts = [{"type": "video"}]
        media = {
            "videos": [frames],
            "videos_kwargs": {
                "do_sample_frames": False,
                "input_data_format": "channels_last",
                "video_metadata": [
                    {
                        "total_num_frames": k,
                        "fps": float(fps),
                        "width": width,
                        "height": height,
                        "duration": k / fps,
                        "frames_indices": list(range(k)),
                    }
                ],
            },
        }
    else:
        from PIL import Image

        chosen = np.unique(np.linspace(0, k - 1, min(k, STILLS)).round().astype(int))
        parts = [{"type": "image"} for _ in chosen]
        media = {"images": [Image.fromarray(frames[i]) for i in chosen]}
    processor = loaded.processor
    text = processor.apply_chat_template(
        [{"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}],
        add_generation_prompt=True,
        tokenize=False,
    )
    # some templates write the tokenizer's first token themselves
    first = getattr(processor.tokenizer, "bos_token", None)
    special = not (first and text.startswith(first))
    kwargs = {"add_special_tokens": special}
    batch = processor(text=[text], return_tensors="pt", text_kwargs=kwargs, **media)
    return batch.to(loaded.device, dtype=loaded.model.dtype)


def caption(
    frames: np.ndarray, model: str, prompt: str, tokens: int = 256, fps: float = FPS
) -> str:
    """A caption of one clip, the same one every time (greedy decoding).

    Args:
        frames: uint8 [k, H, W, 3], RGB, in order of time; one is an image.
        model: a folder, or a name on the hub.
        prompt: from `instruction`.
        tokens: at most so many new ones; a text cut off there ends at its last whole sentence.
        fps: the frames' rate.

    Returns:
        One line of text; "" if the model said nothing.

    Raises:
        UsageError: the model is not there.
    """
    import torch

    loaded = load(model)
    batch = inputs(frames, loaded, prompt, fps)
    with torch.inference_mode():
        out = loaded.model.generate(
            **batch,
            max_new_tokens=tokens,
            do_sample=False,
            # a checkpoint's own sampling settings would only be warned about
            temperature=None,
            top_p=None,
            top_k=None,
        )
    new = out[0, batch["input_ids"].shape[1] :]
    text = loaded.processor.tokenizer.decode(new, skip_special_tokens=True)
    return trimmed(text, cut=len(new) >= tokens)


def trimmed(text: str, cut: bool) -> str:
    """The caption in what a model wrote: without its thoughts, one line, whole sentences.

    Args:
        cut: the model was stopped at its limit of tokens.
    """
    text = clean(text.rpartition("</think>")[2])
    if cut and (ends := list(SENTENCE_END.finditer(text))):
        text = text[: ends[-1].end()]
    return text
