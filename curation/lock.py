"""A folder's lock file, so that two runs on one catalog are told apart."""

import fcntl
import os
import weakref
from datetime import UTC, datetime
from pathlib import Path

from recipes.load import UsageError


class Lock:
    """Held from `take` to `release` or the end of the process.

    The kernel drops it with the process, so what a kill -9 leaves behind is no obstacle. The file
    says who holds it.
    """

    _all: "weakref.WeakSet[Lock]" = weakref.WeakSet()

    def __init__(self, path: Path) -> None:
        self.path = path
        self._close = None
        Lock._all.add(self)

    @property
    def taken(self) -> bool:
        return self._close is not None and self._close.alive

    def take(self) -> None:
        """Takes it, if it is not ours already.

        Raises:
            UsageError: another run has it, or the folder can't be written.
        """
        if self.taken:
            return
        folder = self.path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            why = "not a folder" if isinstance(error, FileExistsError) else error.strerror
            raise UsageError(f"{folder}: can't be written ({why}); choose another out=") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = os.pread(file, 200, 0).decode(errors="replace").strip()
            os.close(file)
            raise UsageError(
                f"{folder}: another run writes there ({who}); wait for it, or choose another out="
            ) from None
        except OSError as error:
            os.close(file)
            raise UsageError(f"{self.path}: can't be locked ({error.strerror})") from None
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()}, since {datetime.now(UTC):%F %T} UTC\n".encode(), 0)
        self._close = weakref.finalize(self, os.close, file)

    def release(self) -> None:
        if self.taken:
            self._close()

    @staticmethod
    def _forget() -> None:
        """In a forked worker: it must not keep the lock when the run itself is killed."""
        for lock in list(Lock._all):
            lock.release()


os.register_at_fork(after_in_child=Lock._forget)
