"""Tars read in pieces say the same as tarfile, and what is no tar says so."""

import random
import tarfile

import pytest

from recipes.load import UsageError
from tests import numbered
from training import tars
from training.tars import Row, TarError

NAMES = [
    "a.mp4",
    "folder/b.json",
    "folder.with.dots/c.cls.txt",
    "ü-影" * 30 + ".mp4",
    "deep/" * 40 + "d.mp4",
    f"{'l' * 200}.json",
]


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_that_tarfile_finds(tmp_path, kind):
    names = NAMES[:3] if kind == tarfile.USTAR_FORMAT else NAMES
    draw = random.Random(2)
    content = {name: draw.randbytes(draw.choice([0, 1, 511, 512, 513, 3000])) for name in names}
    place = numbered.tar(tmp_path / "a.tar", content, kind)
    data = place.read_bytes()
    found = {f"{m.key}.{m.suffix}": data[m.offset : m.offset + m.size] for m in tars.members(data)}
    assert found == content
    with tarfile.open(place) as file:
        starts = [member.offset for member in file.getmembers()]
    assert [member.start for member in tars.members(data)] == starts
    # from any header on, the rest is the same
    for at in starts:
        rest = list(tars.members(data[at:], at))
        assert [one.offset for one in rest] == [
            one.offset for one in tars.members(data) if one.start >= at
        ]


@pytest.mark.parametrize(
    ("name", "key", "suffix"),
    [
        ("a.mp4", "a", "mp4"),
        ("a/b.c/d.cls.TXT", "a/b.c/d", "cls.txt"),
        ("./0001.json", "./0001", "json"),
        ("none", "", ""),
        (".hidden", "", ""),
        ("a/.mp4", "", ""),
    ],
)
def test_a_key_ends_at_the_first_dot_of_the_file_name(name, key, suffix):
    assert tars.named(name) == (key, suffix)


def test_samples_are_neighbours_of_the_same_key(tmp_path):
    content = {"a.json": "{}", "a.mp4": b"1", "b.mp4": b"22", "readme": b"", "c.txt": "x"}
    place = numbered.tar(tmp_path / "a.tar", content)
    found = [[member.suffix for member in some] for some in tars.scan(str(place))]
    assert found == [["json", "mp4"], ["mp4"], ["txt"]]


def row(place, start: int, stop: int, name: str = "a", beside=None) -> Row:
    return Row(name, name, str(place), start, stop, "mp4", 0, beside)


def test_a_sample_is_found_in_a_range_that_holds_others_too(tmp_path):
    content = {"a.json": "{}", "a.mp4": b"1", "b.json": "[]", "b.mp4": b"22" * 999}
    place = numbered.tar(tmp_path / "a.tar", content)
    size = place.stat().st_size
    assert tars.sample(row(place, 0, size)) == {"json": b"{}", "mp4": b"1"}
    assert tars.sample(row(place, 1024, size)) == {"mp4": b"1"}
    assert tars.sample(row(place, 2 * 1024, size, "b"))["mp4"] == b"22" * 999


def test_a_member_that_the_range_cuts_off_is_not_handed_out(tmp_path):
    place = numbered.tar(tmp_path / "a.tar", {"a.json": "{}", "a.mp4": b"1" * 2000})
    assert tars.sample(row(place, 0, 1024 + 512 + 1000)) == {"json": b"{}"}


def test_what_lies_in_a_tar_beside_it_is_read_too(tmp_path):
    one = numbered.tar(tmp_path / "video" / "0.tar", {"a.mp4": b"1"})
    two = numbered.tar(tmp_path / "metas" / "0.tar", {"z.json": "[]", "a.json": "{}"})
    beside = (str(two), 1024, two.stat().st_size)
    found = tars.sample(row(one, 0, one.stat().st_size, beside=beside))
    assert found == {"mp4": b"1", "json": b"{}"}


def test_a_wrong_place_is_told_from_a_wrong_sample(tmp_path):
    place = numbered.tar(tmp_path / "a.tar", {"a.json": '{"a": 1}' * 99, "a.mp4": b"x" * 2000})
    size = place.stat().st_size
    with pytest.raises(TarError, match="no tar header at byte"):
        tars.sample(row(place, 100, size))
    with pytest.raises(TarError, match="another sample"):
        tars.sample(row(place, 0, size, "b"))
    with pytest.raises(TarError, match="shorter than its index"):
        tars.sample(row(place, 0, size + 1))
    with pytest.raises(TarError, match="bytes"):
        tars.sample(row(place, 0, 1 << 40))
    with pytest.raises(FileNotFoundError):
        tars.sample(row(tmp_path / "gone.tar", 0, 512))


def test_what_is_no_tar_says_so_and_an_empty_one_is_empty(tmp_path):
    place = tmp_path / "a.tar"
    for content in (b"", b"no tar at all" * 99):
        place.write_bytes(content)
        with pytest.raises(TarError, match="no whole tar"):
            list(tars.scan(str(place)))
    place.write_bytes(b"\0" * 2048)
    assert list(tars.scan(str(place))) == []


def test_urls_are_read_by_ranges():
    import fsspec

    store = fsspec.filesystem("memory")
    store.pipe_file("/tars/a.tar", bytes(range(256)) * 8)
    place = "memory://tars/a.tar"
    assert tars.read(place, 3, 7) == bytes([3, 4, 5, 6])
    assert tars.read(place) == bytes(range(256)) * 8
    with pytest.raises(TarError, match="shorter"):
        tars.read(place, 2000, 2050)
    with pytest.raises(UsageError, match="nosuch"):
        tars.read("nosuch://a/b.tar", 0, 5)


def test_json_that_is_no_object_is_refused():
    assert tars.parsed(b'{"a": 1}') == {"a": 1}
    for wrong in (b"[1]", b"", b"{", b"\xff"):
        with pytest.raises(TarError):
            tars.parsed(wrong)


def test_open_files_are_few_and_those_of_another_process_are_not_used(tmp_path):
    places = [numbered.tar(tmp_path / f"{k}.tar", {"a.mp4": b"1"}) for k in range(3)]
    for place in places * 2:
        tars.read(str(place), 0, 512)
    info = tars._opened.cache_info()
    assert info.maxsize == tars.OPEN_FILES
    handle = tars._handle(str(places[0]), 1)
    assert handle != tars._handle(str(places[0]), 2)
