"""The report says what the catalog holds, stays small, and is harmless to open."""

import dataclasses
import json
import re
import time
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from curation import report, scorer, selection
from curation.catalog import Catalog
from recipes.schema import Curation, Select
from tests import rows
from tests.running import ROOT

HOSTILE = "<img src=x onerror=alert(1)>.mp4"
CLIP = {"clip_id", "name", "start_s", "end_s", "width", "height", "kept", "reason"}
VOID = {"meta", "br", "img", "link", "hr", "input"}
VALUES = [("0", 0.05), ("1", 0.1), ("2", 0.2), ("3", 0.3), ("4", 0.4), ("5", 0.45), ("6", 0.9)]


@pytest.fixture(autouse=True)
def made_up_scorers(monkeypatch):
    monkeypatch.setattr(scorer, "REGISTRY", rows.registry())


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


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(catalog, configuration, report.json, report.html) of that catalog."""
    folder = tmp_path_factory.mktemp("made")
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


def test_the_totals_are_those_of_the_catalog(made):
    catalog, _, facts, _ = made
    (videos,) = catalog.query(
        "SELECT count(*) n, count_if(status = 'error') b, sum(duration_s) s FROM videos"
    )
    (clips,) = catalog.query("SELECT count(*) n, sum(end_s - start_s) s FROM clips")
    (kept,) = catalog.query(
        "SELECT count(*) n, sum(end_s - start_s) s FROM clips WHERE clip_id IN "
        "(SELECT clip_id FROM decisions WHERE kept AND profile = '480p')"
    )
    assert facts["totals"] == {
        "files": videos["n"],
        "broken": videos["b"],
        "images": 1,
        "without_clips": 0,
        "video_s": videos["s"],
        "clips": clips["n"],
        "clip_s": clips["s"],
        "kept": kept["n"],
        "kept_s": kept["s"],
    }
    assert (videos["n"], videos["b"], clips["n"]) == (11, 3, 15)
    assert 0 < kept["n"] < clips["n"]


def test_the_funnel_drops_what_the_decisions_say(made):
    catalog, config, facts, _ = made
    reasons = catalog.query(
        "SELECT reason, count(*) n FROM decisions WHERE profile = '480p' AND NOT kept GROUP BY ALL"
    )
    dropped = {row["criterion"]: row["dropped"] for row in facts["funnel"] if row["dropped"]}
    assert dropped == {row["reason"]: row["n"] for row in reasons}
    assert {"min_sharpness", "max_text_area", "min_short_side", "tiers"} <= dropped.keys()
    left = facts["totals"]["clips"]
    for row in facts["funnel"]:
        left -= row["dropped"]
        assert row["left"] == left
        assert row["limit"] == getattr(config.select, row["criterion"])
    assert left == facts["totals"]["kept"]


def test_criteria_of_one_step_stand_together(made):
    catalog, _, _, _ = made
    every = {
        f.name: 0.5
        for f in dataclasses.fields(Select)
        if re.sub("^(min|max)_", "", f.name) in {*sum(map(str.split, rows.DOUBLES.values()), [])}
    }
    config = options(catalog.folder, **every, cluster_quota=1, min_duration_s=1.0)
    with catalog.reading() as con:
        funnel = report.funnel(con, selection.select(catalog, config))
    steps = [row["step"] for row in funnel]
    assert list(dict.fromkeys(steps)) == ["basic", "visual", "motion", "duplicates", "captions"]
    assert steps == sorted(steps, key=list(dict.fromkeys(steps)).index)


def test_every_numeric_column_with_data_has_a_histogram_that_counts_all_its_clips(made):
    catalog, _, facts, _ = made
    for step, names in rows.DOUBLES.items():
        for name in names.split():
            (there,) = catalog.query(f"SELECT count({name}) n FROM {step}")
            score = facts["scores"][name]
            assert score["step"] == step
            assert sum(score["counts"]) == score["clips"] == there["n"]
            assert len(score["edges"]) == len(score["counts"]) + 1 == len(score["kept"]) + 1
            assert all(k <= n for k, n in zip(score["kept"], score["counts"], strict=True))
    # from the clips' shape: an image has no duration, but a size
    assert sum(facts["scores"]["duration_s"]["counts"]) == 14
    assert sum(facts["scores"]["short_side"]["counts"]) == 15
    assert (
        facts["scores"]["short_side"]["quantiles"] | {"0": 360, "100": 720}
        == (facts["scores"]["short_side"]["quantiles"])
    )


def test_the_kept_bars_count_the_kept_clips(made):
    _, _, facts, _ = made
    assert sum(facts["scores"]["sharpness"]["kept"]) == facts["totals"]["kept"]


@pytest.mark.parametrize(
    ("name", "step", "side"),
    [("sharpness", "basic", "min"), ("text_area", "basic", "max")],
)
def test_the_clips_beside_a_threshold_are_the_nearest_on_their_side(made, name, step, side):
    catalog, config, facts, _ = made
    at = getattr(config.select, f"{side}_{name}")
    values = [row["v"] for row in catalog.query(f"SELECT {name} AS v FROM {step} ORDER BY v")]
    passes = [v for v in values if (v >= at if side == "min" else v <= at)]
    fails = [v for v in values if not (v >= at if side == "min" else v <= at)]
    assert at in passes  # one that equals it, which passes
    nearest = {
        "inside": sorted(sorted(passes, key=lambda v: abs(v - at))[: report.NEAR]),
        "outside": sorted(sorted(fails, key=lambda v: abs(v - at))[: report.NEAR]),
    }
    border = facts["scores"][name]["borders"][side]
    assert {k: [row["value"] for row in some] for k, some in border.items()} == nearest
    ids = {row["clip_id"] for some in border.values() for row in some}
    truth = {
        row["clip_id"]: row
        for row in catalog.query(
            f"SELECT clip_id, {name} AS v, kept FROM {step} JOIN decisions d "
            "USING (clip_id) WHERE profile = '480p'"
        )
    }
    for some in border.values():
        for row in some:
            assert (row["value"], row["kept"]) == (
                truth[row["clip_id"]]["v"],
                truth[row["clip_id"]]["kept"],
            )
    assert len(ids) == len(nearest["inside"]) + len(nearest["outside"])


def test_the_examples_are_the_ends_and_the_middle_and_none_stands_twice(made):
    catalog, _, facts, _ = made
    values = [r["v"] for r in catalog.query("SELECT sharpness AS v FROM basic ORDER BY v")]
    found = facts["scores"]["sharpness"]["examples"]
    assert [row["value"] for row in found["low"]] == values[: report.ENDS]
    assert [row["value"] for row in found["high"]] == values[-report.ENDS :]
    assert [row["value"] for row in found["middle"]] == values[6:9]
    ids = [row["clip_id"] for place in found.values() for row in place]
    assert len(ids) == len(set(ids)) == 3 * report.ENDS


def test_a_histogram_shows_the_bulk_and_its_threshold_and_counts_what_lies_beyond():
    value = np.append(np.linspace(0, 0.02, 5000), [0.9, 1.0])
    found = report.histogram(value, value < 0.01, [0.03], "0–1")
    assert 0.03 < found["edges"][-1] < 0.05
    assert found["above"] == 2
    assert found["below"] == 0
    assert sum(found["counts"]) == 5002
    assert found["counts"][-1] == 2
    assert 0.03 in found["edges"]


@pytest.mark.parametrize(
    ("value", "limits"),
    [([0.0], []), ([5.0, 5.0], []), ([-3.0, 2.0], [1.0]), ([1e-9], [0.5]), ([1.0], [1.0]),
     ([1e6, 2e6], [-1.0]), ([0.0, 0.0], [0.0])],
)  # fmt: skip
def test_a_histogram_holds_every_value_and_threshold_on_its_axis(value, limits):
    found = report.histogram(np.array(value), np.ones(len(value), bool), limits, "")
    assert sum(found["counts"]) == sum(found["kept"]) == len(value)
    assert (found["below"], found["above"]) == (0, 0)
    assert all(found["edges"][0] <= at <= found["edges"][-1] for at in (*value, *limits))
    assert np.all(np.diff(found["edges"]) > 0)
    assert 10 <= len(found["counts"]) <= 80


def test_tiers_buckets_captions_and_sizes_are_those_of_the_catalog(made):
    catalog, config, facts, _ = made
    tiers = catalog.query("SELECT tier, count(*) n FROM motion GROUP BY ALL")
    assert {r["tier"]: r["clips"] for r in facts["tiers"]} == {r["tier"]: r["n"] for r in tiers}
    assert {r["tier"]: r["weight"] for r in facts["tiers"]} == {"optimal": 1.0, "low": 0.0}
    assert sum(row["clips"] for row in facts["buckets"]) == facts["totals"]["kept"]
    assert [(r["language"], r["captions"]) for r in facts["captions"]["kinds"]] == [
        ("en", 15),
        ("zh", 14),
    ]
    for one in facts["captions"]["examples"]:
        assert [text["language"] for text in one["texts"]] == ["en", "zh"]
    assert sum(row["files"] for row in facts["sizes"]["shown"]) == 8


def test_errors_are_counted_by_kind(made):
    _, _, facts, html = made
    assert [(kind["files"], kind["names"]) for kind in facts["errors"]] == [
        (2, ["a.mp4", "b.mp4"]),
        (1, [f"b/{HOSTILE}"]),
    ]
    assert "cannot be opened" in Page(html).text


def test_duplicates_name_the_pair_and_what_became_of_it(made):
    catalog, _, facts, html = made
    (pair,) = catalog.query("SELECT * FROM duplicates")
    (shown,) = facts["duplicates"]["alike"]
    assert (facts["duplicates"]["pairs"], facts["duplicates"]["near"]) == (1, 0)
    assert (shown["clip"]["clip_id"], shown["of"]["clip_id"]) == (
        pair["clip_id"],
        pair["duplicate_of"],
    )
    assert "1 pair of clips" in Page(html).text


def test_names_and_captions_from_files_are_text_on_a_page_that_fetches_nothing(made):
    _, _, _, html = made
    page = harmless(html)
    assert f"b/{HOSTILE}" in page.text
    assert "</p><script>alert(2)</script>" in page.text
    assert "<img" not in html
    assert "<script" not in html


def test_every_criterion_of_a_score_leads_to_its_histogram(made):
    _, _, facts, html = made
    links = {attrs.get("href") for _, attrs in harmless(html).elements}
    assert {f"#s-{name}" for name in facts["scores"]} <= links
    assert {"#s-short_side", "#tiers", "#duplicates", "#captions"} <= links


def test_the_page_says_for_each_clip_at_a_threshold_whether_it_is_in(made):
    _, _, facts, html = made
    text = " ".join(Page(html).text.split())
    assert "just outside: below 0.3, falls by min_sharpness" in text
    assert "just inside: 0.0004 or less, passes max_text_area" in text
    figures = re.findall(r'<figure class="(\w+)".*?</figure>', html, flags=re.DOTALL)
    assert {"kept", "dropped"} == set(figures)


def test_only_broken_files_still_make_a_report(tmp_path):
    with Catalog(tmp_path) as catalog:
        catalog.write(broken("a.mp4", "the file is empty (0 bytes)"))
        facts, html = reported(catalog, options(tmp_path, min_sharpness=0.5))
    assert facts["totals"]["files"] == facts["totals"]["broken"] == 1
    assert facts["totals"]["clips"] == 0
    assert facts["scores"] == {}
    assert facts["run"]["end"] is None
    assert "the file is empty" in harmless(html).text


def test_a_name_with_half_a_character_does_not_cost_the_report(tmp_path):
    path = tmp_path / "report.html"
    report._put(path, "caf\udce9.mp4")
    assert path.read_text("utf-8") == "caf?.mp4"


def test_writing_it_twice_gives_the_same_bytes(made):
    catalog, config, _, _ = made
    first = {path: path.read_bytes() for path in catalog.folder.glob("report.*")}
    reported(catalog, config)
    assert {path: path.read_bytes() for path in catalog.folder.glob("report.*")} == first
    assert len(first) == 2
    assert not list(catalog.folder.glob(".report*"))


def test_another_threshold_gives_another_report(made, tmp_path):
    catalog, config, before, _ = made
    other = options(tmp_path, min_sharpness=0.1)
    with catalog.reading() as con:
        facts = report.collect(con, other, selection.select(catalog, other))
    selection.select(catalog, config)  # as it was
    assert facts["totals"]["kept"] > before["totals"]["kept"]
    assert facts["scores"]["sharpness"]["borders"]["min"]["inside"][0]["value"] == 0.1


def test_times_have_no_fractions_of_a_second(made):
    _, _, facts, html = made
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", facts["run"]["end"])
    assert not re.search(r"\d\d:\d\d:\d\d\.\d", html)


def patterns(value, path: str = "") -> set[str]:
    """Every path to a value in report.json; `<…>` for keys that are names of something."""
    if re.fullmatch(r"run\.configuration|funnel\[\]\.limit", path):
        return {path}
    if isinstance(value, list):
        if not value or not isinstance(value[0], dict | list):
            return {path}
        return set().union(*(patterns(one, f"{path}[]") for one in value))
    if not isinstance(value, dict):
        return {path}
    if value.keys() >= CLIP:  # a clip is described once
        rest = {k: v for k, v in value.items() if k not in CLIP | {"value"}}
        return {path} | set().union(set(), *(patterns(v, f"{path}.{k}") for k, v in rest.items()))
    names = {"scores": "<score>", "run.versions": "<package>"}
    found: set[str] = set()
    for key, one in value.items():
        name = names.get(path, key)
        if path.endswith((".limits", ".borders")):
            name = "<side>"
        if path.endswith(".quantiles"):
            name = "<percent>"
        found |= patterns(one, f"{path}.{name}".removeprefix("."))
    return found


def test_the_keys_of_report_json_are_those_that_data_readme_explains(made):
    _, _, facts, _ = made
    section = (ROOT / "data/README.md").read_text("utf-8").partition("\n## The report\n")[2]
    section = section.partition("\n## ")[0]
    told = set()
    for line in re.findall(r"^\| (`.*?) \|", section, flags=re.MULTILINE):
        base = ""
        for name in re.findall(r"`(.+?)`", line):
            base = name.rpartition(".")[0] if not name.startswith(".") else base
            told.add(f"{base}{name}" if name.startswith(".") else name)
    assert CLIP | {"value"} <= set(re.findall(r"`(\w+)`", section))
    empty = {"shards[].split", "shards[].shards", "shards[].samples", "shards[].bytes"}
    written = patterns(facts) - {"shards", "duplicates.inside", "duplicates.outside"} | empty
    pair = {
        f"duplicates.{k}[].{v}" for k in ("inside", "outside") for v in ("similarity", "clip", "of")
    }
    written = {
        re.sub(r"duplicates\.(alike|inside|outside)", "duplicates.<kind>", w)
        for w in written | pair
    }
    assert told == written


def test_twenty_thousand_clips_make_a_small_page_in_seconds(tmp_path):
    with Catalog(tmp_path) as catalog:
        catalog.write(rows.batch("v", 1))
        with catalog.transaction() as con:
            con.register("pictures", _pictures(64))
            _many(con, 20_000)
        config = options(tmp_path, min_sharpness=0.3, max_text_area=0.9, max_noise=0.8)
        found = selection.select(catalog, config)
        began = time.process_time()
        html, plain = report.write(catalog, config, found)
        took = time.process_time() - began
    facts = json.loads(plain.read_text("utf-8"))
    assert facts["totals"]["clips"] == 20_001
    assert facts["duplicates"]["pairs"] == 3000
    assert html.stat().st_size < 3e6
    assert plain.stat().st_size < 1e6
    assert sum(kind["files"] for kind in facts["errors"]) == 500
    assert len(facts["errors"]) <= report.KINDS + 1
    harmless(html.read_text("utf-8"))
    assert took < 60  # cores are shared: alone it takes some two


def _pictures(many: int):
    import pyarrow as pa

    jpegs = [
        picture(seed, 160, 284) for seed in range(many)
    ]  # upright, noisy: the largest there are
    return pa.table({"n": list(range(many)), "jpeg": pa.array(jpegs, pa.binary())})


def _many(con, clips: int) -> None:
    """Rows of many clips, five a file, with every score spread out."""
    con.execute(
        f"""CREATE TEMP TABLE made AS SELECT 'w' || i // 5 AS video_id, i,
        'w' || i // 5 || '-' || lpad((i % 5)::VARCHAR, 8, '0') AS clip_id FROM range({clips}) t(i);
        INSERT INTO videos BY NAME SELECT DISTINCT video_id, '/w/' || video_id AS uri,
            'folder/' || video_id || '.mp4' AS name, 1 AS bytes, false AS is_image, 'ok' AS status,
            640 + 16 * (hash(video_id) % 90)::INT AS width, 720 AS height FROM made;
        INSERT INTO videos BY NAME SELECT 'x' || i AS video_id, 'x' || i AS uri, 'x' || i AS name,
            'error' AS status, repeat(chr(97 + i // 10), 900) AS error FROM range(500) t(i);
        INSERT INTO clips BY NAME SELECT * REPLACE (m.clip_id AS clip_id, m.video_id AS video_id)
            FROM (SELECT * FROM clips LIMIT 1) c, (SELECT clip_id, video_id FROM made) m;
        INSERT INTO captions BY NAME SELECT clip_id, 'sidecar' AS source, 'en' AS language,
            repeat('long ', 1000) AS text FROM made;
        INSERT INTO thumbnails BY NAME SELECT clip_id, jpeg FROM made JOIN pictures ON n = i % 64;
        INSERT INTO duplicates BY NAME SELECT a.clip_id, b.clip_id AS duplicate_of, 'made-up' AS model,
            0.9 + 0.1 * (a.i % 100) / 100 AS similarity FROM made a JOIN made b ON b.i = a.i + 1
            WHERE a.i < 6000"""
    )
    for step, names in rows.DOUBLES.items():
        values = ", ".join(
            f"(hash(clip_id || '{n}') % 10000) / 10000.0 AS {n}" for n in names.split()
        )
        tier = ", 'optimal' AS tier" if step == "motion" else ""
        con.execute(f"INSERT INTO {step} BY NAME SELECT clip_id, {values}{tier} FROM made")
