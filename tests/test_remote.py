"""What lies on a server or in a store is found and fetched like what lies on the disk."""

import functools
import http.server
import threading
from pathlib import Path

import pytest

from curation import sources
from curation.video import VideoError
from recipes.load import UsageError
from tests.finding import ALL, SAMPLES, content, find, names, put, stocked, tar, texts


@pytest.fixture
def folder(tmp_path) -> Path:
    return stocked(tmp_path / "raw (1) 原始")


@pytest.mark.parametrize(
    "source",
    ["", "nosuch://x/y", "memory://missing", "memory://missing/*.mp4", "http://127.0.0.1:9/x.mp4"],
)
def test_a_remote_source_that_is_not_there_is_one_line(source):
    with pytest.raises(UsageError) as error:
        find(source)
    assert "\n" not in str(error.value)


@pytest.fixture
def memory(folder):
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.put(f"{folder}/", "/bucket/raw", recursive=True)
    yield "memory://bucket/raw"
    fs.rm("/bucket", recursive=True)


def test_a_remote_folder_equals_the_local_one(folder, memory, tmp_path):
    here, there = find(folder), find(memory)
    assert names(there) == names(here)
    assert [texts(one) for one in there] == [texts(one) for one in here]
    assert [one.bytes for one in there] == [one.bytes for one in here]
    for near, far in zip(here, there, strict=True):
        assert content(far, folder=tmp_path) == content(near)


def test_a_remote_pattern_and_a_remote_file_keep_their_captions(memory):
    (one,) = find(f"{memory}/**/*.webm")
    assert (one.name, texts(one)) == ("子 目录/猫.webm", ["一只猫"])
    (one,) = find(f"{memory}/b.mp4")
    assert (one.name, texts(one)) == ("b.mp4", ["a bee", "一只蜜蜂"])


def test_a_remote_name_with_glob_characters_is_taken_as_it_stands(memory):
    assert names(find(f"{memory}/a b (c) [d].mov")) == ["a b (c) [d].mov"]


def test_a_fetched_file_is_removed_after_even_after_an_error(memory, tmp_path):
    one = find(f"{memory}/b.mp4")[0]
    spool = tmp_path / "spool"
    spool.mkdir()
    with sources.local(one, spool) as path:
        assert path.parent == spool
        assert path.suffix == ".mp4"
        assert path.read_bytes() == b"bee"
    assert list(spool.iterdir()) == []
    with pytest.raises(IndexError), sources.local(one, spool) as path:
        path.parents[99]  # whatever a decoder may raise
    assert list(spool.iterdir()) == []
    with pytest.raises(VideoError, match="limit"), sources.local(one, spool, max_bytes=2):
        pass
    assert list(spool.iterdir()) == []


def test_a_remote_file_that_vanished_is_one_line(memory):
    import fsspec

    one = find(f"{memory}/b.mp4")[0]
    fsspec.filesystem("memory").rm("/bucket/raw/b.mp4")
    with pytest.raises(VideoError, match="cannot be fetched") as error:
        content(one)
    assert "\n" not in str(error.value)


def test_a_file_url_is_a_local_path(folder):
    found = find(folder.as_uri())
    assert found == find(folder)


@pytest.fixture
def web(folder):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_web_servers_folder_file_and_pattern_are_sources(folder, web, tmp_path):
    found = find(f"{web}/")
    assert names(found) == ALL
    assert [texts(one) for one in found] == [texts(one) for one in find(folder)]
    assert [one.bytes for one in found] == [one.bytes for one in find(folder)]
    assert all(one.mtime_ns for one in found)
    for one in found:
        assert content(one, folder=tmp_path) == (folder / one.name).read_bytes()
    assert names(find(f"{web}/b.mp4")) == ["b.mp4"]
    assert names(find(f"{web}/*.mp4")) == ["b.mp4", "empty.mp4"]


def test_a_list_of_urls_costs_one_row_for_each_that_fails(web, tmp_path):
    found = find(put(tmp_path / "urls.txt", f"{web}/b.mp4?x=1\n{web}/gone.mp4\n"))
    host = web.partition("://")[2]
    assert names(found) == [f"{host}/b.mp4", f"{host}/gone.mp4"]
    assert content(found[0]) == b"bee"
    with pytest.raises(VideoError):
        content(found[1])


def test_a_remote_tars_members_are_sources(tmp_path, memory):
    import fsspec

    fsspec.filesystem("memory").put(str(tar(tmp_path / "a.tar", SAMPLES)), "/bucket/tars/a.tar")
    found = find("memory://bucket/tars")
    assert names(found)[0] == "a.tar/000001.mp4"
    assert texts(found[0]) == ["first"]
    assert content(found[0]) == SAMPLES["000001.mp4"]
