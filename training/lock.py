"""A run folder's lock file, so that two processes never train in one run."""

import fcntl
import os
import socket
import weakref
from datetime import UTC, datetime
from pathlib import Path

from recipes.keys import UsageError


class Lock:
    """Held from `take` to `release` or the end of the process.

    The kernel drops it with the process, so what a kill -9 leaves behind is no obstacle. The file
    says who holds it.

    Args:
        path: the file; its folder is there.
    """

    _all: "weakref.WeakSet[Lock]" = weakref.WeakSet()

    def __init__(self, path: Path) -> None:
        self.path = path
        self._close: weakref.finalize | None = None
        Lock._all.add(self)

    @property
    def taken(self) -> bool:
        return self._close is not None and self._close.alive

    def take(self) -> None:
        """Takes it, if it is not ours already.

        Raises:
            UsageError: another process has it, or the folder can't be written.
        """
        if self.taken:
            return
        try:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UsageError(
                f"{self.path.parent}: can't be written ({error.strerror}); choose another runs="
            ) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = os.pread(file, 200, 0).decode(errors="replace").strip()
            os.close(file)
            raise UsageError(
                f"{self.path.parent}: trained by another process ({who}); wait for it, or begin "
                "another run with resume=never"
            ) from None
        except OSError as error:  # some network file systems have no locks
            os.close(file)
            raise UsageError(f"{self.path}: can't be locked ({error.strerror})") from None
        os.ftruncate(file, 0)
        who = f"{os.getpid()} on {socket.gethostname()}, since {datetime.now(UTC):%F %T} UTC"
        os.pwrite(file, f"process {who}\n".encode(), 0)
        self._close = weakref.finalize(self, os.close, file)

    def release(self) -> None:
        if self.taken:
            self._close()

    @staticmethod
    def _forget() -> None:
        """In a forked loader process: it must not keep the lock when the run itself is killed."""
        for lock in list(Lock._all):
            lock.release()


os.register_at_fork(after_in_child=Lock._forget)
