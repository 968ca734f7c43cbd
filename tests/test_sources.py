"""Whatever `source=` names is found under the same names, and comes as a local file."""

import hashlib
import logging
import os
from pathlib import Path

import pytest

from curation import sources
from curation.video import VideoError
from recipes.load import UsageError
from tests.finding import ALL, content, find, names, put, stocked, texts


@pytest.fixture
def folder(tmp_path) -> Path:
    return stocked(tmp_path / "raw (1) 原始")


def test_a_folder_gives_every_file_but_sidecars_and_hidden_ones_sorted_by_name(folder):
    found = find(folder)
    assert names(found) == ALL
    assert [texts(one) for one in found] == [[], ["a bee", "一只蜜蜂"], [], [], [], ["一只猫"]]
    assert found[1].bytes == 3
    assert found[1].mtime_ns == (folder / "b.mp4").stat().st_mtime_ns
    assert found[1].uri == str(folder / "b.mp4")


def test_a_local_file_is_used_where_it_lies(folder):
    with sources.local(find(folder)[1]) as path:
        assert path == folder / "b.mp4"
    assert path.exists()


def test_relative_names_do_not_depend_on_where_the_folder_lies(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert names(find(folder.name)) == names(find(folder)) == names(find(f"{folder}/"))
    assert all(Path(one.uri).is_absolute() for one in find(folder.name))


@pytest.mark.parametrize("file", ["b.mp4", "a b (c) [d].mov", "not-a-video.bin"])
def test_a_single_file_is_a_source_even_with_glob_characters_in_its_name(folder, file):
    assert names(find(folder / file)) == [file]


def test_a_single_file_brings_its_captions(folder):
    assert texts(find(folder / "子 目录" / "猫.webm")[0]) == ["一只猫"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.mp4", ["b.mp4", "empty.mp4"]),
        ("**/*.webm", ["子 目录/猫.webm"]),
        ("**/*", ALL),
        ("**", ALL),
        ("*", ALL),
        ("子*/photo.*", ["子 目录/photo.JPG"]),
        ("?.mp4", ["b.mp4"]),
        ("[ab].mp4", ["b.mp4"]),
        ("a b (c) [[]d].*", ["a b (c) [d].mov"]),
    ],
)
def test_a_pattern_gives_what_it_matches_under_the_folders_names(folder, pattern, expected):
    assert names(find(folder / pattern)) == expected


def test_a_pattern_keeps_captions_though_it_does_not_match_them(folder):
    assert texts(find(folder / "b*.mp4")[0]) == ["a bee", "一只蜜蜂"]


def test_a_folder_whose_name_looks_like_a_pattern_is_taken_as_it_stands(tmp_path):
    put(tmp_path / "clips [4K]" / "x.mp4")
    put(tmp_path / "clips 4" / "y.mp4")
    assert names(find(tmp_path / "clips [4K]")) == ["x.mp4"]
    assert names(find(tmp_path / "clips [4K]" / "*.mp4")) == ["x.mp4"]


def test_quotes_that_no_shell_removed_are_removed(folder):
    assert names(find(f"'{folder}/*.mp4'")) == ["b.mp4", "empty.mp4"]


def test_a_list_file_names_paths_patterns_and_urls(folder, tmp_path):
    put(tmp_path / "elsewhere" / "far.mp4", b"far")
    lines = [
        "# comment",
        "",
        "b.mp4",
        "b.mp4",
        "子 目录/*.webm",
        (tmp_path / "elsewhere" / "far.mp4").as_uri(),
        str(folder / "a b (c) [d].mov"),
        "gone.mp4",
    ]
    found = find(put(folder / "list.txt", "\ufeff" + "\r\n".join(lines)))
    far = str(tmp_path / "elsewhere" / "far.mp4").lstrip("/")
    assert sorted(names(found)) == sorted(
        ["a b (c) [d].mov", "b.mp4", "gone.mp4", "子 目录/猫.webm", far]
    )
    by_name = {one.name: one for one in found}
    assert content(by_name[far]) == b"far"
    assert texts(by_name["b.mp4"]) == ["a bee", "一只蜜蜂"]
    with pytest.raises(VideoError, match="no such file"):
        content(by_name["gone.mp4"])


def test_a_link_to_nowhere_costs_one_row(tmp_path):
    put(tmp_path / "good.mp4")
    (tmp_path / "bad.mp4").symlink_to(tmp_path / "gone.mp4")
    bad, _ = find(tmp_path)
    assert (bad.name, bad.bytes) == ("bad.mp4", 0)
    with pytest.raises(VideoError):
        content(bad)


def test_linked_folders_are_followed_once_and_loops_end(tmp_path):
    put(tmp_path / "root" / "z" / "x.mp4")
    put(tmp_path / "outside" / "y.mp4")
    for link, target in (("a", "root/z"), ("loop", "root"), ("z/up", "root"), ("out", "outside")):
        (tmp_path / "root" / link).symlink_to(tmp_path / target)
    expected = ["out/y.mp4", "z/x.mp4"]
    assert names(find(tmp_path / "root")) == expected
    assert names(find(tmp_path / "root" / "**" / "*.mp4")) == expected


def test_the_runs_own_output_is_no_source(tmp_path):
    put(tmp_path / "data" / "x.mp4")
    put(tmp_path / "data" / "curated" / "shards" / "00000.tar")
    put(tmp_path / "data" / "curated" / "y.mp4")
    for source in ("data", "data/**/*", "data/*"):
        assert names(find(tmp_path / source, out=tmp_path / "data" / "curated")) == ["x.mp4"]
    put(tmp_path / "data" / "curated" / "catalog.duckdb")
    for source in ("data", "data/**/*"):  # another run's output
        assert names(find(tmp_path / source, out=tmp_path / "out")) == ["x.mp4"]
    assert len(find(tmp_path / "data" / "curated")) == 2  # unless it is what was asked for


def test_names_that_are_not_utf8_are_found_and_opened(tmp_path):
    raw = os.fsencode(tmp_path) + b"/caf\xe9 \xff.mp4"
    with open(raw, "wb") as file:
        file.write(b"latin")
    (one,) = find(tmp_path)
    assert one.name == "caf\\xe9 \\xff.mp4"
    assert one.uri.encode().startswith(b"file://")
    assert content(one) == b"latin"
    assert sources.identify(raw.decode("utf-8", "surrogateescape"), one.name)[0]


def test_names_are_the_same_on_a_disk_that_decomposes_accents(tmp_path):
    put(tmp_path / "cafe\u0301.mp4")
    assert names(find(tmp_path)) == ["caf\u00e9.mp4"]


def test_names_are_unique(tmp_path):
    put(tmp_path / "cafe\u0301.mp4")
    put(tmp_path / "caf\u00e9.mp4")
    assert names(find(tmp_path)) == ["caf\u00e9.mp4", "caf\u00e9.mp4 (2)"]


def test_pipes_are_passed_over(tmp_path):
    put(tmp_path / "x.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    assert names(find(tmp_path)) == ["x.mp4"]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("missing", "no such file or folder"),
        ("missing.mp4", "no such file or folder"),
        ("empty", "no video or image"),
        ("only-plain", "no video or image"),
        ("*.nothing", "matches no video or image"),
        ("missing/**/*.mp4", "matches no video or image"),
        ("empty.txt", "no video or image"),
        ("notes.md", "neither video nor image"),
        ("pipe", "not a plain file"),
        ("nowhere.mp4", "leads nowhere"),
        ("binary.txt", "not a list of files"),
    ],
)
def test_a_source_that_is_not_there_is_one_line(tmp_path, source, reason):
    (tmp_path / "empty").mkdir()
    put(tmp_path / "only-plain" / "x.txt")
    put(tmp_path / "empty.txt", "# nothing\n")
    put(tmp_path / "notes.md")
    put(tmp_path / "binary.txt", b"\0\1\2")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "nowhere.mp4").symlink_to(tmp_path / "gone")
    with pytest.raises(UsageError, match=reason) as error:
        find(tmp_path / source)
    assert "\n" not in str(error.value)


def test_an_unreadable_folder_costs_a_warning_and_an_unreadable_source_the_run(
    folder, monkeypatch, caplog
):
    # tests may run as root, whom no permission stops: the refusal is planted
    real = os.scandir
    refused = {str(folder / "子 目录")}

    def scandir(path):
        if str(path) in refused:
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with caplog.at_level(logging.WARNING):
        assert names(find(folder)) == ALL[:4]
    assert "Permission denied" in caplog.text
    refused.add(str(folder))
    with pytest.raises(UsageError, match="Permission denied"):
        find(folder)


# --- CSV


def test_a_csv_gives_captions_by_relative_name_and_by_unique_file_name(folder, tmp_path):
    rows = ["path,caption", "b.mp4,from the table", "./子 目录/photo.JPG,照片", "/old/猫.webm,旧"]
    table = put(tmp_path / "c.csv", "\ufeff" + "\n".join(rows))
    found = find(folder, csv=str(table))
    by_name = {one.name: texts(one) for one in found}
    assert by_name["b.mp4"] == ["a bee", "一只蜜蜂", "from the table"]
    assert by_name["子 目录/photo.JPG"] == ["照片"]
    assert by_name["子 目录/猫.webm"] == ["一只猫", "旧"]


def test_a_file_name_that_stands_twice_is_not_guessed(tmp_path, caplog):
    put(tmp_path / "raw" / "a" / "x.mp4")
    put(tmp_path / "raw" / "b" / "x.mp4")
    table = put(tmp_path / "c.csv", "video;caption\nx.mp4;which?\nb/x.mp4;this\n")
    with caplog.at_level(logging.WARNING):
        found = find(tmp_path / "raw", csv=str(table))
    assert [texts(one) for one in found] == [[], ["this"]]
    assert "1 of 2 names" in caplog.text


def test_a_broken_sidecar_costs_a_warning_and_not_the_file(tmp_path):
    put(tmp_path / "x.mp4")
    put(tmp_path / "x.json", '{"caption": ')
    put(tmp_path / "x.txt", b"\xff\xfe\x00")
    put(tmp_path / "x.en.txt", "still here")
    (one,) = find(tmp_path)
    assert texts(one) == ["still here"]
    assert len(one.warnings) == 2
    assert not any("\n" in line for line in one.warnings)


# --- ids


def test_an_id_is_made_of_the_name_and_the_contents_hash(tmp_path):
    data = os.urandom(3_000_000)
    path = put(tmp_path / "x.mp4", data)
    content_hash = hashlib.sha256(data).hexdigest()
    expected = hashlib.sha256(f"子/x.mp4\0{content_hash}".encode()).hexdigest()[:16]
    assert sources.identify(path, "子/x.mp4") == (expected, content_hash)
    assert sources.identify(path, "y.mp4")[0] != expected
