"""A run: the folder of one training, opened, found again, finished.

    runs/<recipe>/<time>/
        config.yaml        every key, as of the last start
        environment.json   every start: time, command, versions, commit, machine
        checkpoints/       step=NNNNNNNN/ (training/snapshot.py writes them)
        done.json          written last: the training is finished

A run without done.json is unfinished, and the same command goes on with it; one in which nothing
was saved is begun anew, with any configuration. One process at a time holds a run (`.lock`).
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
import yaml
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from model.layout import Checkpoint, best, checkpoints
from recipes.keys import UsageError
from recipes.load import to_yaml
from recipes.training import Fit
from training.differences import differences
from training.environment import command, environment, now
from training.lock import Lock
from training.notes import as_json, read, rewrite

# Of a run that is begun anew: what stays, and how the names begin of what is removed
KEPT = (".lock", "config.yaml", "environment.json")
LEFT = ("checkpoints", "vae", "text_encoder", "samples", "events.", ".")
TOLD = "WAN_RECIPES_RUN"  # rank 0 tells the processes that Lightning starts from it


class Run:
    """The folder of one training.

    Args:
        lock: held while it is trained; None: by another process of the same training, or not at all
            since it is done.
    """

    def __init__(self, folder: Path, config: Fit, lock: Lock | None = None) -> None:
        self.folder = folder
        self.config = config
        self._lock = lock

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Lets another process have it."""
        if self._lock:
            self._lock.release()

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def done(self) -> bool:
        return (self.folder / "done.json").is_file()

    @property
    def command(self) -> str:
        """What to type to go on with it."""
        return command("resume=never")

    def checkpoints(self) -> list[Checkpoint]:
        """The whole ones, in the order of their steps."""
        return checkpoints(self.folder)

    def newest(self) -> Checkpoint | None:
        found = self.checkpoints()
        return found[-1] if found else None

    def resume_path(self) -> Path | None:
        """What Lightning resumes from, a file or, of sharded weights, a folder; None: nothing yet.

        The newest whole checkpoint, not the best.
        """
        newest = self.newest()
        return newest.path / "trainer.ckpt" if newest else None

    def best(self) -> Path | None:
        """The checkpoint folder to use: the best validated, else the newest.

        Of a VAE with an adversary it is the newest: the validation loss leaves the adversary out,
        and is best before that begins.
        """
        newest = self.newest()
        if newest and self.config.trains == "vae" and self.config.loss.gan:
            return newest.path
        return best(self.folder) if newest else None

    def finish(self, module: LightningModule | None = None) -> None:
        """Marks it as done; called once all that belongs to it is written.

        Args:
            module: what was trained; None: a chain. Its network's config becomes that of every
                checkpoint that was not validated: a VAE's latents are measured in validations, or
                when the training is over.
        """
        if not rank():
            for one in self.checkpoints() if module else ():
                if one.validation is None:
                    config = {"class": one.meta["class"], **module.network.config}
                    rewrite(one.path / "config.json", as_json(config))
            newest = self.newest()
            content = {
                "step": newest.step if newest else 0,
                "best": self.best().name if newest else None,
                "finished": now(),
            }
            rewrite(self.folder / "done.json", as_json(content))
        self.close()


# --- opening ------------------------------------------------------------------------------------


def open_run(config: Fit) -> Run:
    """The run to train: the newest unfinished one of the recipe, or a new one.

    With `name` it is that one, finished or not. Of several processes rank 0 decides and holds the
    lock; the others learn of it through torch.distributed, where it is up, else from the process
    that started them.

    Raises:
        UsageError: another process trains it, it was saved with another configuration, it is there
            already under resume=never, or it can't be written.
    """
    spread = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    told: list[Any] = [None, None]
    run = None
    if not rank():
        try:
            run = _opened(config)
            told = [str(run.folder), None]
            os.environ[TOLD] = told[0]
        except UsageError as error:
            told = [None, str(error)]
            if not spread:
                raise
    if spread:
        dist.broadcast_object_list(told, src=0)
    elif rank():
        told = [os.environ.get(TOLD), f"rank {rank()}: start torch.distributed before the run"]
    if told[0] is None:
        raise UsageError(told[1])
    return run or Run(Path(told[0]), config)


def rank() -> int:
    """Which of several processes this is."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    return rank_zero_only.rank or 0


def _opened(config: Fit) -> Run:
    if config.save.keep < 1:
        raise UsageError(f"save.keep={config.save.keep}: at least the last checkpoint is kept")
    home = Path(config.runs).expanduser() / label(config.recipe)
    if config.name:
        if Path(config.name).name != config.name or config.name.startswith("."):
            raise UsageError(f"name={config.name}: a plain name, of a folder in {home}")
        found = home / config.name
        if not (found / "config.yaml").is_file():
            return _begun(home, config.name, config)
        if config.resume == "never":
            raise UsageError(
                f"{found}: is there already; give another name=, or resume=auto to go on with it"
            )
        return _resumed(found, config)
    if config.resume == "auto":
        unfinished = [one for one in _runs(home) if not (one / "done.json").is_file()]
        # a start that was refused stands before no run that can be gone on with
        mine = [one for one in unfinished if _is_mine(one, config)]
        if unfinished:
            return _resumed(max(mine or unfinished, key=_started), config)
    return _begun(home, None, config)


def _begun(home: Path, name: str | None, config: Fit) -> Run:
    """A new folder, locked before it counts as a run."""
    names = iter([name]) if name else _times()
    try:
        home.mkdir(parents=True, exist_ok=True)
        folder = next(home / one for one in names if name or not (home / one).exists())
        folder.mkdir(exist_ok=True)
        strange = [one.name for one in folder.iterdir() if not one.name.startswith(".")]
        if strange:
            raise UsageError(f"{folder}: no run, but not empty ({strange[0]}); give another name=")
        lock = Lock(folder / ".lock")
        lock.take()
        _write(folder, config)
    except OSError as error:
        raise UsageError(
            f"{home}: can't be written ({error.strerror}); choose another runs="
        ) from None
    return Run(folder, config, lock)


def _resumed(folder: Path, config: Fit) -> Run:
    """One that is there already, if it is the same training or nothing of it was saved."""
    if (folder / "done.json").is_file():
        _check(folder, config, "finished")
        return Run(folder, config)
    lock = Lock(folder / ".lock")
    lock.take()
    try:
        tidy(folder / "checkpoints")
        if _saved(folder):
            _check(folder, config, "unfinished")
        else:
            _empty(folder)
        _write(folder, config)
    except BaseException:
        lock.release()
        raise
    return Run(folder, config, lock)


def _is_mine(folder: Path, config: Fit) -> bool:
    """Whether an unfinished run has something to go on with, or began as this one."""
    try:
        return _saved(folder) or not _differ(folder, config)
    except UsageError:  # what can't be read
        return False


def _saved(folder: Path) -> bool:
    """Whether there is anything to go on with: a checkpoint or, of a chain, one of its stages."""
    stages = [folder.parents[1] / label(one) / folder.name for one in _there(folder)["chain"]]
    return any(checkpoints(one) for one in (folder, *stages))


def _empty(folder: Path) -> None:
    """Removes what a run left that saved nothing: parts that may have been why it was refused.

    Raises:
        UsageError: there is more, such as validations: its checkpoints may only be out of sight.
    """
    found = [one for one in folder.iterdir() if one.name not in KEPT]
    strange = [one.name for one in found if one.is_symlink() or not one.name.startswith(LEFT)]
    if strange:
        raise UsageError(
            f"{folder}: unfinished and without a checkpoint, but there is {min(strange)}; move it "
            "away, or give resume=never or another name="
        )
    for one in found:
        shutil.rmtree(one) if one.is_dir() else one.unlink()


def _write(folder: Path, config: Fit) -> None:
    """Makes a run of a folder, or notes in it that it goes on."""
    rewrite(folder / "config.yaml", to_yaml(config))
    (folder / "checkpoints").mkdir(exist_ok=True)
    starts = read(folder / "environment.json").get("starts", [])
    rewrite(folder / "environment.json", as_json({"starts": [*starts, environment()]}))


def _there(folder: Path) -> dict[str, Any]:
    """The configuration of a run."""
    try:
        found = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        return {"chain": [], **found}
    except (OSError, yaml.YAMLError, TypeError) as error:
        raise UsageError(f"{folder}/config.yaml: can't be read ({error})") from None


def _differ(folder: Path, config: Fit) -> list[str]:
    return differences(_there(folder), yaml.safe_load(to_yaml(config)))


def _check(folder: Path, config: Fit, state: str) -> None:
    """That the run there learns what this configuration asks for."""
    differ = _differ(folder, config)
    if differ:
        instead = "another name=" if config.name else "resume=never for a new run"
        raise UsageError(
            f"{folder}: {state}, with another configuration: {'; '.join(differ)}; give the same, "
            f"or {instead}"
        )


def tidy(folder: Path) -> None:
    """Clears away what a killed process left half written, half removed or half replaced."""
    folder.mkdir(exist_ok=True)
    for path in folder.glob(".old-*"):
        place = folder / path.name.removeprefix(".old-")
        if (path / "meta.json").is_file() and not place.exists():
            path.rename(place)
    for begins in (".new-*", ".old-*", ".gone-*"):
        for path in folder.glob(begins):
            shutil.rmtree(path, ignore_errors=True)


# --- finding ------------------------------------------------------------------------------------


def newest(runs: str | Path, recipe: str, name: str | None = None) -> Path:
    """The run of a recipe that was finished last.

    Args:
        name: of a run that comes before all others where it is finished: a chain's own.

    Raises:
        UsageError: there is none; it names the command that makes one.
    """
    home = Path(runs).expanduser() / label(recipe)
    found = [one for one in _runs(home) if (one / "done.json").is_file() and checkpoints(one)]
    if not found:
        raise UsageError(
            f"{home}: no finished run of {recipe}; make one: python training/fit.py recipe={recipe}"
        )
    own = [one for one in found if one.name == name]
    return max(
        own or found, key=lambda one: (read(one / "done.json").get("finished", ""), one.name)
    )


@dataclass(frozen=True)
class Stage:
    """One recipe of a chain."""

    recipe: str
    folder: Path  # its run: named as the chain's own
    done: bool


def stages(chain: Run) -> list[Stage]:
    """The recipes of a chain, in order, and which of them are finished.

    Each is a run of its own, runs/<recipe>/<name of the chain's run>, to be opened with that name.
    """
    home = chain.folder.parents[1]
    folders = {one: home / label(one) / chain.name for one in chain.config.chain}
    return [Stage(one, at, (at / "done.json").is_file()) for one, at in folders.items()]


def label(recipe: str | None) -> str:
    """The folder of a recipe's runs: its name, also where it was given as a path."""
    return Path(recipe).stem if recipe else "custom"


def _runs(home: Path) -> list[Path]:
    return [path.parent for path in sorted(home.glob("*/config.yaml"))]


def _started(folder: Path) -> tuple[str, str]:
    starts = read(folder / "environment.json").get("starts") or [{}]
    return starts[-1].get("time", ""), folder.name


def _times() -> Iterator[str]:
    time = now()[:19].replace(":", "-").replace("T", "_")
    yield time
    for number in range(2, 1000):
        yield f"{time}-{number}"
