"""A small catalog with everything that a report shows, and a reader of its page."""

import json
import re
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from curation import report, scorer, selection
from curation.catalog import Catalog
from recipes.schema import Curation, Select
from tests import rows

HOSTILE = "<img src=x onerror=alert(1)>.mp4"
VOID = {"meta", "br", "img", "link", "hr", "input"}
VALUES = [("0", 0.05), ("1", 0.1), ("2", 0.2), ("3", 0.3), ("4", 0.4), ("5", 0.45), ("6", 0.9)]


def broken(name: str, error: str) -> dict[str, list[dict]]:
    video = {"video_id": name, "uri": f"/videos/{name}", "name": name, "bytes": 0, "mtime_ns": 7}
    return {"videos": [video | {"is_image": False, "status": "error", "error": error}]}


def picture(seed: int, width: int = 160, height: int = 90) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (height // 4, width // 4, 3), np.uint8)
    return cv2.imencode(".jpg", cv2.resize(noise, (width, height)))[1].tobytes()


def options(folder, **select) -> Curation:
    return Curation(out=str(folder), profile="480p", select=Select(**select))


def reported(catalog: Catalog, config: Curation) -> tuple[dict, str]:
    html, plain = report.write(catalog, config, selection.select(catalog, config))
    return json.loads(plain.read_text("utf-8")), html.read_text("utf-8")


def fill(catalog: Catalog) -> None:
    """Seven videos of two clips, two copies, an image, a hostile name, broken files, a run."""
    run = catalog.start_run({}, {"python": "3"})
    for name, value in VALUES:
        one = rows.batch(f"v{name}", 2, sharpness=value, text_area=value / 1000)
        one["motion"][1]["tier"] = "low"
        one["videos"][0] |= {"width": 1280, "height": 720, "codec": "h264", "fps": 25.0}
        one["videos"][0] |= {"duration_s": 8.0}
        one["captions"] += [row | {"language": "zh", "text": "一个<b>"} for row in one["captions"]]
        for i, row in enumerate(one["thumbnails"]):
            row["jpeg"] = picture(i)
        if name == "6":
            one["embeddings"][1]["vector"] = one["embeddings"][0]["vector"]
        if name == "3":
            one["videos"][0]["name"] = HOSTILE
            one["captions"][0]["text"] = "</p><script>alert(2)</script>"
        catalog.write(one)
    still = rows.batch("still", 1)
    still["videos"][0]["is_image"] = True
    still["clips"][0] |= {"start_s": 0.0, "end_s": 0.0, "crop_w": 640, "crop_h": 360}
    still["motion"] = []
    catalog.write(still)
    catalog.write(broken("a.mp4", "a.mp4: cannot be opened at byte 17"))
    catalog.write(broken("b.mp4", "b.mp4: cannot be opened at byte 4"))
    catalog.write(broken(f"b/{HOSTILE}", "the file is empty (0 bytes)"))
    catalog.finish_run(run, "done")


@contextmanager
def made(folder: Path):
    """(catalog, configuration, report.json, report.html) of that catalog."""
    with pytest.MonkeyPatch.context() as patch, Catalog(folder) as catalog:
        patch.setattr(scorer, "REGISTRY", rows.registry())
        fill(catalog)
        config = options(
            folder, min_sharpness=0.3, max_text_area=0.0004, min_short_side=400, min_duration_s=1
        )
        yield catalog, config, *reported(catalog, config)


class Page(HTMLParser):
    """Elements in order, every attribute, the text; fails where tags are not nested."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> at line {self.getpos()[0]} crosses another"

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data


def harmless(html: str) -> Page:
    """The page, after a look for anything that is run or fetched."""
    page = Page(html)
    assert not {tag for tag, _ in page.elements} & {"script", "img", "iframe", "object", "link"}
    ids = {attrs["id"] for _, attrs in page.elements if "id" in attrs}
    for tag, attrs in page.elements:
        assert not [name for name in attrs if name.startswith("on") or name == "src"], (tag, attrs)
        if "href" in attrs:
            assert attrs["href"].removeprefix("#") in ids, attrs
        assert "url(" not in attrs.get("style", "")
    (style,) = re.findall(r"<style>(.*?)</style>", html, flags=re.DOTALL)
    assert "@import" not in style
    assert all(u.startswith("data:image/jpeg;base64,") for u in re.findall(r"url\((.*?)\)", style))
    return page
