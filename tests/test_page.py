"""The report's page stays small, is harmless to open and says what a person asks."""

import json
import re
import time

import pyarrow as pa
import pytest

from curation import report, scorer, selection
from curation.catalog import Catalog
from tests import reporting, rows
from tests.reporting import HOSTILE, Page, broken, harmless, options, picture, reported


@pytest.fixture(autouse=True)
def made_up_scorers(monkeypatch):
    monkeypatch.setattr(scorer, "REGISTRY", rows.registry())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with reporting.made(tmp_path_factory.mktemp("made")) as found:
        yield found


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
    _, _, _, html = made
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


def test_times_have_no_fractions_of_a_second(made):
    _, _, facts, html = made
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", facts["run"]["end"])
    assert not re.search(r"\d\d:\d\d:\d\d\.\d", html)


def test_five_thousand_clips_make_a_small_page_in_seconds(tmp_path):
    with Catalog(tmp_path) as catalog:
        catalog.write(rows.batch("v", 1))
        selection.select(catalog, options(tmp_path))  # finds duplicates; then come made-up ones
        with catalog.transaction() as con:
            con.register("pictures", _pictures(64))
            _many(con, 5_000)
        config = options(tmp_path, min_sharpness=0.3, max_text_area=0.9, max_noise=0.8)
        found = selection.select(catalog, config)
        began = time.process_time()
        html, plain = report.write(catalog, config, found)
        took = time.process_time() - began
    facts = json.loads(plain.read_text("utf-8"))
    assert facts["totals"]["clips"] == 5_001
    assert facts["duplicates"]["pairs"] == 2000
    assert html.stat().st_size < 3e6
    assert plain.stat().st_size < 1e6
    assert sum(kind["files"] for kind in facts["errors"]) == 500
    assert len(facts["errors"]) <= report.KINDS + 1
    harmless(html.read_text("utf-8"))
    assert took < 60  # cores are shared: alone it takes half of one


def _pictures(many: int):
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
            'error' AS status, repeat(chr((97 + i // 10)::INT), 900) AS error FROM range(500) t(i);
        INSERT INTO clips BY NAME SELECT * REPLACE (m.clip_id AS clip_id, m.video_id AS video_id)
            FROM (SELECT * FROM clips LIMIT 1) c, (SELECT clip_id, video_id FROM made) m;
        INSERT INTO captions BY NAME SELECT clip_id, 'sidecar' AS source, 'en' AS language,
            repeat('long ', 1000) AS text FROM made;
        INSERT INTO thumbnails BY NAME SELECT clip_id, jpeg FROM made JOIN pictures ON n = i % 64;
        INSERT INTO duplicates BY NAME SELECT a.clip_id, b.clip_id AS duplicate_of,
            'made-up' AS model,
            0.9 + 0.1 * (a.i % 100) / 100 AS similarity FROM made a
            JOIN made b ON b.i = a.i + 1 WHERE a.i < 4000"""
    )
    for step, names in rows.DOUBLES.items():
        values = ", ".join(
            f"(hash(clip_id || '{n}') % 10000) / 10000.0 AS {n}" for n in names.split()
        )
        tier = ", 'optimal' AS tier" if step == "motion" else ""
        con.execute(f"INSERT INTO {step} BY NAME SELECT clip_id, {values}{tier} FROM made")
