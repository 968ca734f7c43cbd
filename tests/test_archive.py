"""The members of a tar are sources, damaged and hostile tars included."""

import gzip
import tarfile

import pytest

from curation.video import VideoError
from tests.finding import SAMPLES, content, find, names, put, tar, texts


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
