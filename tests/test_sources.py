"""Whatever `source=` names is found under the same names, and comes as a local file."""

import functools
import gzip
import hashlib
import http.server
import io
import logging
import os
import tarfile
import threading
from pathlib import Path

import pytest

from curation import sources
from curation.sources import Source
from curation.video import VideoError
from recipes.load import UsageError
from recipes.schema import Captions, Curation


def find(source, out="nowhere-out", **captions) -> list[Source]:
    return sources.find(Curation(source=str(source), out=str(out), captions=Captions(**captions)))


def names(found: list[Source]) -> list[str]:
    return [one.name for one in found]


def texts(one: Source) -> list[str]:
    return [caption.text for caption in one.captions]


def content(one: Source, **more) -> bytes:
    with sources.local(one, **more) as path:
        return path.read_bytes()


def put(path: Path, data: bytes | str = b"") -> Path:
    """A file; its own path is its content unless told otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = data.encode() if isinstance(data, str) else data
    path.write_bytes(data or str(path).encode())
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "raw (1) 原始"
    put(root / "b.mp4", b"bee")
    put(root / "b.txt", "a bee\n一只蜜蜂\n")
    put(root / "a b (c) [d].mov", b"spaces")
    put(root / "子 目录" / "猫.webm", b"cat")
    put(root / "子 目录" / "猫.zh.txt", "一只猫")
    put(root / "子 目录" / "photo.JPG", b"photo")
    put(root / "not-a-video.bin", b"junk")
    put(root / "empty.mp4").write_bytes(b"")
    for plain in ("notes.md", "table.csv", "b.srt", ".hidden.mp4", "README", ".cache/x.mp4"):
        put(root / plain, b"plain")
    return root


ALL = [
    "a b (c) [d].mov",
    "b.mp4",
    "empty.mp4",
    "not-a-video.bin",
    "子 目录/photo.JPG",
    "子 目录/猫.webm",
]


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


@pytest.mark.parametrize(
    "source",
    ["", "nosuch://x/y", "memory://missing", "memory://missing/*.mp4", "http://127.0.0.1:9/x.mp4"],
)
def test_a_remote_source_that_is_not_there_is_one_line(source):
    with pytest.raises(UsageError) as error:
        find(source)
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


# --- remote


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


# --- tars


def tar(path: Path, members: dict[str, bytes | tarfile.TarInfo], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as out:
        for name, data in members.items():
            if isinstance(data, tarfile.TarInfo):
                out.addfile(data)
            else:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                out.addfile(member, io.BytesIO(data))
    return path


SAMPLES = {
    "000001.mp4": b"one" * 500,
    "000001.txt": b"first",
    "000001.json": b'{"caption": "first", "url": "x", "status": "success"}',
    "d/000002.cam.mp4": b"two",
    "d/000002.json": '{"captions": ["second", "第二个"]}'.encode(),
    "图.png": b"picture",
}


@pytest.mark.parametrize(
    ("file", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tgz", "w:gz")]
)
def test_a_tars_members_are_sources_with_their_samples_captions(tmp_path, file, mode):
    path = tar(tmp_path / "in" / file, SAMPLES, mode)
    spool = tmp_path / "spool"
    spool.mkdir()
    for source in (path, path.parent, path.parent / "*"):
        found = find(source)
        assert names(found) == [f"{file}/000001.mp4", f"{file}/d/000002.cam.mp4", f"{file}/图.png"]
        assert [texts(one) for one in found] == [["first"], ["second", "第二个"], []]
    assert found[0].uri == f"{path}!000001.mp4"
    assert found[0].bytes == 1500
    for one, name in zip(found, ("000001.mp4", "d/000002.cam.mp4", "图.png"), strict=True):
        assert content(one, folder=spool) == SAMPLES[name]
    assert list(spool.iterdir()) == []


def test_a_tar_of_a_folder_names_its_members_plainly(tmp_path):
    members = {"./d/跑 (1).mp4": b"run", "./d/跑 (1).txt": b"a man runs", "./d/._x.mp4": b"mac"}
    (one,) = find(tar(tmp_path / "a.tar", members))
    assert (one.name, texts(one)) == ("a.tar/d/跑 (1).mp4", ["a man runs"])
    assert content(one) == b"run"


def test_many_members_are_all_found(tmp_path):
    members = {f"{i:04d}.jpg": b"%d" % i for i in range(700)}
    found = find(tar(tmp_path / "many.tar", members))
    assert len(found) == 700
    assert content(found[699]) == b"699"


def test_a_remote_tars_members_are_sources(tmp_path, memory):
    import fsspec

    fsspec.filesystem("memory").put(str(tar(tmp_path / "a.tar", SAMPLES)), "/bucket/tars/a.tar")
    found = find("memory://bucket/tars")
    assert names(found)[0] == "a.tar/000001.mp4"
    assert texts(found[0]) == ["first"]
    assert content(found[0]) == SAMPLES["000001.mp4"]


def test_members_that_lead_outside_and_links_are_refused_each_with_its_row(tmp_path):
    secret = put(tmp_path / "secret.mp4", b"secret")
    members: dict = {"good.mp4": b"good", "../../out.mp4": b"out", str(secret): b"abs"}
    for kind, name in ((tarfile.SYMTYPE, "soft.mp4"), (tarfile.LNKTYPE, "hard.mp4")):
        members[name] = tarfile.TarInfo(name)
        members[name].type, members[name].linkname = kind, str(secret)
    members["device.mp4"] = tarfile.TarInfo("device.mp4")
    members["device.mp4"].type = tarfile.CHRTYPE
    found = find(tar(tmp_path / "in" / "a.tar", members))
    assert len(found) == 6
    good = [one for one in found if one.name == "a.tar/good.mp4"]
    assert content(good[0]) == b"good"
    before = sorted(tmp_path.rglob("*"))
    for one in found:
        if one not in good:
            with pytest.raises(VideoError, match="refused"):
                content(one)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("damage", "kept"),
    [
        (lambda data: b"", []),
        (lambda data: b"no tar at all" * 100, []),
        (lambda data: data[:1200], ["a.tar/0.mp4"]),  # in the first member's bytes
        (lambda data: data[: 2 * 2048 + 200], ["a.tar/0.mp4", "a.tar/1.mp4"]),  # in a header
        (lambda data: data[:2048] + b"\xff" * 512 + data[2560:], ["a.tar/0.mp4"]),
    ],
)
def test_a_damaged_tar_keeps_what_stands_before_the_damage_and_has_a_row(tmp_path, damage, kept):
    path = tar(tmp_path / "a.tar", {f"{i}.mp4": bytes([65 + i]) * 1500 for i in range(4)})
    path.write_bytes(damage(path.read_bytes()))
    found = find(path)
    assert names(found) == ["a.tar", *kept]
    with pytest.raises(VideoError, match="tar"):
        content(found[0])
    if len(kept) == 2:
        assert content(found[1]) == b"A" * 1500


def test_a_member_cut_short_is_an_error_and_not_a_short_file(tmp_path):
    path = tar(tmp_path / "a.tar", {"0.mp4": b"A" * 3000})
    found = find(path)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(VideoError, match="ends"):
        content(found[0])


def test_a_damaged_gzip_is_one_row(tmp_path):
    path = put(tmp_path / "a.tar.gz", gzip.compress(b"x" * 10000)[:20])
    (one,) = find(path)
    with pytest.raises(VideoError, match="not a readable tar"):
        content(one)


# --- datasets


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    import datasets

    cache = str(tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", Path(cache))
    datasets.disable_progress_bars()
    sources.hub.load.cache_clear()
    yield datasets
    sources.hub.load.cache_clear()


def records(datasets):
    features = datasets.Features(
        {
            "id": datasets.Value("int64"),
            "clip": datasets.Video(decode=False),
            "caption": datasets.Value("string"),
            "both": datasets.List(datasets.Value("string")),
        }
    )
    rows = {
        "id": [0, 1, 2],
        "clip": [
            {"bytes": b"zero", "path": "猫 (1).mp4"},
            {"bytes": b"one", "path": None},
            {"bytes": b"", "path": "x/two.mp4"},
        ],
        "caption": ["a cat", "一只狗", None],
        "both": [["a cat", "一只猫"], [], []],
    }
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.mark.parametrize("kind", ["parquet", "folder", "disk"])
def test_a_datasets_videos_are_sources_with_their_captions(dataset, tmp_path, kind):
    where = tmp_path / "数据 set"
    if kind == "disk":
        records(dataset).save_to_disk(where)
    else:
        where.mkdir()
        records(dataset).to_parquet(where / "train.parquet")
        where = where / "train.parquet" if kind == "parquet" else where
    found = find(f"datasets:{where}")
    # saving to disk, `datasets` keeps a path's last part alone
    two = "two.mp4" if kind == "disk" else "x/two.mp4"
    assert names(found) == ["train/00000001", two, "猫 (1).mp4"]
    assert [texts(one) for one in found] == [["一只狗"], [], ["a cat"]]
    assert [one.bytes for one in found] == [3, 0, 4]
    assert [content(one) for one in found] == [b"one", b"", b"zero"]
    assert [c.language for c in found[0].captions] == ["zh"]


def test_a_datasets_caption_column_may_hold_lists_and_splits_are_named(dataset, tmp_path):
    splits = dataset.DatasetDict({"val": records(dataset), "test": records(dataset)})
    splits.save_to_disk(tmp_path / "ds")
    with pytest.raises(UsageError, match="val, test"):
        find(f"datasets:{tmp_path / 'ds'}")
    found = find(f"datasets:{tmp_path / 'ds'}:test", column="both")
    assert names(found)[0] == "test/00000001"
    assert texts(found[2]) == ["a cat", "一只猫"]


# `datasets` leaves metadata.csv to be closed by the garbage collector
@pytest.mark.filterwarnings("ignore:.*metadata.csv:pytest.PytestUnraisableExceptionWarning")
def test_a_folder_of_images_through_datasets_names_files_that_stay_where_they_are(
    dataset, tmp_path
):
    put(tmp_path / "im" / "train" / "a.png", b"png")
    put(tmp_path / "im" / "train" / "metadata.csv", "file_name,caption\na.png,a dot\n")
    (one,) = find(f"datasets:{tmp_path / 'im'}")
    assert (one.name, texts(one)) == ("train/a.png", ["a dot"])
    assert one.uri == str(tmp_path / "im" / "train" / "a.png")
    assert content(one) == b"png"


def test_a_dataset_without_videos_or_that_is_missing_is_one_line(dataset, tmp_path):
    dataset.Dataset.from_dict({"text": ["x"]}).save_to_disk(tmp_path / "ds")
    with pytest.raises(UsageError, match=r"no column of type Video or Image among text"):
        find(f"datasets:{tmp_path / 'ds'}")
    with pytest.raises(UsageError, match="cannot be loaded") as error:
        find(f"datasets:{tmp_path / 'missing'}")
    assert "\n" not in str(error.value)


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
