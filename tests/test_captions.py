"""Captions reach the clips that they belong to, whoever wrote them."""

import json
from pathlib import Path

import pytest

from curation import captions
from curation.captions import Caption
from recipes.load import UsageError


def put(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def beside(folder: Path, **files) -> tuple[list[Caption], list[str]]:
    """The captions of `猫 (1).mp4` with these sidecars, and the warnings."""
    warnings: list[str] = []
    for suffix, data in files.items():
        put(folder / f"猫 (1).{suffix}", data)
    return captions.sidecars(folder / "猫 (1).mp4", warnings), warnings


def spoken(found: list[Caption]) -> list[tuple[str, str]]:
    return [(one.language, one.text) for one in found]


# --- text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  a\tred \x00\x07 circle\u3000moving\n left ", "a red circle moving left"),
        ("cafe\u0301", "caf\u00e9"),
        ("\ufeffa\u200b dog", "a dog"),
        ("a\u2028b", "a b"),
        ("lone \ud800 half", "lone half"),
        ("safe \u202egnp.exe", "safe gnp.exe"),
        ("👩\u200d🚀 lands", "👩\u200d🚀 lands"),
        (" \t\n", ""),
    ],
)
def test_text_is_one_clean_line(text, expected):
    assert captions.clean(text) == expected
    captions.clean(text).encode()


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("a red circle moving left", "en"),
        ("一个红色的圆形向左移动", "zh"),
        ("一只 Golden Retriever 在草地上跑", "zh"),
        ("the words “欢迎光临” on a white ground", "en"),
        ("白底上写着“Hello big world”几个字", "zh"),
        ("“欢迎光临”", "zh"),
        ("1234", "en"),
        ("un chien court", "en"),  # only these two are told apart
    ],
)
def test_the_language_is_told_from_the_text(text, language):
    assert captions.language_of(text) == language


# --- sidecars


def test_a_text_file_holds_one_caption_a_line(tmp_path):
    found, warnings = beside(tmp_path, txt="\ufeffa cat\r\n\r\n 一只猫 \na cat\n")
    assert spoken(found) == [("en", "a cat"), ("zh", "一只猫")]
    assert {one.source for one in found} == {"sidecar"}
    assert warnings == []


def test_a_suffix_names_the_language_and_english_comes_first(tmp_path):
    files = {"zh-CN.txt": "猫", "fr.TXT": "un chat", "en.txt": "a cat", "txt": "plain", "zh": "x"}
    found, _ = beside(tmp_path, **files)
    assert spoken(found) == [("en", "plain"), ("en", "a cat"), ("fr", "un chat"), ("zh", "猫")]


@pytest.mark.parametrize(
    "content",
    [
        {"captions": [{"text": "a cat", "language": "en"}, {"text": "一只猫", "language": "zh"}]},
        {"captions": ["a cat", "一只猫"], "caption": "a cat"},
        {"caption": ["a cat", "一只猫"]},
        ["a cat", "一只猫"],
        [{"caption": "a cat"}, {"text": "一只猫"}],
    ],
)
def test_json_comes_in_the_forms_that_people_have(tmp_path, content):
    found, warnings = beside(tmp_path, json=json.dumps(content))
    assert spoken(found) == [("en", "a cat"), ("zh", "一只猫")]
    assert warnings == []


def test_video2datasets_record_is_a_caption(tmp_path):
    record = {
        "url": "x",
        "caption": "a cat",
        "key": "0",
        "status": "success",
        "error_message": None,
    }
    assert spoken(beside(tmp_path, json=json.dumps(record))[0]) == [("en", "a cat")]


def test_metadata_without_captions_is_no_caption_and_no_fault(tmp_path):
    assert beside(tmp_path, json='{"width": 3, "caption": null}') == ([], [])
    assert beside(tmp_path, json="", txt="\n\n") == ([], [])


def test_a_sidecar_of_the_whole_file_name_belongs_to_that_file_alone(tmp_path):
    put(tmp_path / "x.mp4.txt", "the film")
    put(tmp_path / "x.jpg.json", '{"caption": "the poster"}')
    put(tmp_path / "x.txt", "both")
    film, poster = (captions.sidecars(tmp_path / f"x.{end}") for end in ("mp4", "jpg"))
    assert [one.text for one in film] == ["both", "the film"]
    assert [one.text for one in poster] == ["both", "the poster"]
    assert captions.sidecars(tmp_path / "x y.mp4") == []


@pytest.mark.parametrize(
    ("file", "data", "reason"),
    [
        ("json", b'{"caption": ', "not valid JSON"),
        ("json", b"[" * 100_000, "not valid JSON|nested too deeply"),
        ("json", b'{"captions": 5}', "5 is not a caption"),
        ("json", b'{"captions": [{"text": "x", "start_s": "soon"}]}', "not a number of seconds"),
        ("json", b'{"captions": [{"text": "x", "end_s": NaN}]}', "not a number of seconds"),
        ("json", b'{"text": "x", "start_s": 1' + b"0" * 400 + b"}", "not a number of seconds"),
        ("json", b'{"caption": "x", "language": 7}', "not a string"),
        ("json", '{"caption": "中文"}'.encode("gb18030"), "not UTF-8"),
        ("txt", "猫".encode("utf-16"), "not UTF-8"),
        ("txt", b"x" * (captions.MAX_BYTES + 1), "no caption"),
    ],
)
def test_a_broken_sidecar_is_one_line_and_the_others_are_read(tmp_path, file, data, reason):
    found, warnings = beside(tmp_path, **{file: data, "en.txt": "a cat"})
    assert spoken(found) == [("en", "a cat")]
    (line,) = warnings
    assert any(part in line for part in reason.split("|"))
    assert line.startswith(f"猫 (1).{file}")
    assert "\n" not in line


# --- clips


def test_a_caption_belongs_to_the_clips_that_it_covers_by_half():
    whole = Caption("whole", "en", "sidecar")
    first = Caption("first", "en", "sidecar", start_s=0, end_s=4)
    late = Caption("late", "zh", "sidecar", start_s=6)
    found = {
        span: [one.text for one in captions.for_clip([late, whole, first], *span)]
        for span in ((0, 4), (2, 6), (2.1, 6.1), (5, 7), (4.9, 6.9), (8, 10), (0, 0), (7, 7))
    }
    assert found == {
        (0, 4): ["whole", "first"],
        (2, 6): ["whole", "first"],
        (2.1, 6.1): ["whole"],
        (5, 7): ["late", "whole"],
        (4.9, 6.9): ["whole"],
        (8, 10): ["late", "whole"],
        (0, 0): ["whole", "first"],
        (7, 7): ["late", "whole"],
    }


def test_a_clips_captions_have_no_span_and_no_repetition():
    twice = [Caption("x", "en", "sidecar", start_s=a, end_s=a + 5) for a in (0, 1)]
    assert captions.for_clip(twice, 1, 4) == [Caption("x", "en", "sidecar")]


# --- CSV


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_csv_may_have_a_mark_chinese_quotes_spans_and_any_separator(tmp_path, separator):
    rows = [
        ["caption", "Video", "start_s", "language"],
        ['"一只猫, 和; ""狗"""', "子/猫 (1).mp4", "1.5", ""],
        ["un chat", "子\\猫 (1).mp4", "", "fr"],
        ["", "b.mp4", "", ""],
        ["short", "c.mp4"],
    ]
    text = "\ufeff" + "\r\n".join(separator.join(row) for row in rows)
    table = captions.table(put(tmp_path / "c.csv", text), "caption")
    assert table == {
        "子/猫 (1).mp4": [
            Caption('一只猫, 和; "狗"', "zh", "csv", start_s=1.5),
            Caption("un chat", "fr", "csv"),
        ],
        "c.mp4": [Caption("short", "en", "csv")],
    }


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "cannot be read"),
        (b"", "no column of path"),
        (b"path,text\na.mp4,x\n", "no column 'caption' among path, text"),
        (b"clip,caption\na.mp4,x\n", "no column of path"),
        ("path,caption\na.mp4,中文\n".encode("gb18030"), "not UTF-8"),
        (b"path,caption,start_s\na.mp4,x,soon\n", "row 2"),
    ],
)
def test_a_broken_csv_is_one_line(tmp_path, data, reason):
    if data is not None:
        put(tmp_path / "c.csv", data)
    with pytest.raises(UsageError, match=reason) as error:
        captions.table(tmp_path / "c.csv", "caption")
    assert "\n" not in str(error.value)
