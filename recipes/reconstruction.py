"""The keys of `python eval/reconstruct.py`: which VAEs, on which clips."""

from dataclasses import dataclass

from recipes.schema import key, section


@dataclass
class PerceptualBackbone:
    """A network that one of the measures looks through; without it that measure is not made."""

    lpips: str | None = key(
        None,
        "LPIPS weights: torchvision's alexnet-owt-7be5be79.pth or vgg16-397923af.pth, or "
        "owner/name on the hub; effnet-lite0 needs no file: a perceptual distance, but not LPIPS",
    )


@dataclass
class ReconstructionBackbones(PerceptualBackbone):
    """Networks that two of the measures look through; without its own a measure is not made."""

    i3d: str | None = key(
        None, "rFVD: i3d_torchscript.pt, as StyleGAN-V has it; it is code, so only from a good hand"
    )


@dataclass
class Reconstruction:
    """`python eval/reconstruct.py`: what a VAE loses of clips, in numbers; several are compared."""

    vae: list[str] = key(
        [],
        "runs, or weights in any format (a file, a folder, owner/name on the hub); all others are "
        "compared with the first",
    )
    clips: str | None = key(
        None,
        "shards (a folder with manifest.json; of a profile's folder its val is taken), or a folder "
        "of videos",
    )
    frames: int = key(17, "the first so many of each clip, of the form 4k+1; shorter ones are told")
    size: str | None = key(
        None, "width x height to scale to; null: the clip's own, cut to what the VAEs take"
    )
    most: int = key(64, "clips")
    backbones: ReconstructionBackbones = section(ReconstructionBackbones)
    batch: int = key(1, "clips of one size at once")
    device: str = key("auto", "what computes", choices=("auto", "cuda", "cpu"))
    resamples: int = key(10_000, "draws of the bootstrap")
    out: str = key("runs/reconstruction", "the folder of reconstruction.json and the worst clips")
