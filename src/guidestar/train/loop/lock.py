"""The lock of a training's folder, which names its holder and ends with its process."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BEAT = 20.0
"""Seconds between the holder's updates of the file."""
_HELD: dict[Path, int] = {}  # by which thread of this process


class Locked(RuntimeError):
    """Another training runs in this folder."""


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold ``out/.lock`` while the block runs; the same thread may hold it several times.

    The operating system frees the lock when its process ends. For holders on other machines, which
    its locks may not reach, a lock counts as long as the file is updated.

    Raises:
        Locked: another training holds it; the message names its process and machine.
        OSError: the file cannot be written.
    """
    key, thread = out.resolve(), threading.get_ident()
    if _HELD.get(key) == thread:
        yield
        return
    path = out / ".lock"
    try:
        handle = _take(path)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error
    over = threading.Event()
    try:
        _HELD[key] = thread
        threading.Thread(target=_beat, args=(path, over), daemon=True).start()
        yield
    finally:
        over.set()
        _HELD.pop(key, None)
        with suppress(OSError):
            path.unlink()
        os.close(handle)


def _take(path: Path) -> int:
    """Open the lock's file, lock it, and write its holder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            free, holder = _lock(handle), _read(handle)
            if not free or _lives(holder, handle):
                raise Locked(_refusal(path, holder))
            if _is(handle, path):
                who = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.ctime()}
                os.ftruncate(handle, 0)
                os.pwrite(handle, json.dumps(who).encode(), 0)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its holder removed it meanwhile: there may be a new one


def _lock(handle: int) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows: the updates alone
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(handle: int) -> dict[str, object]:
    with suppress(ValueError):
        found = json.loads(os.pread(handle, 10_000, 0))
        return found if isinstance(found, dict) else {}
    return {}


def _lives(holder: dict[str, object], handle: int) -> bool:
    """Return whether a holder on another machine has updated the file lately."""
    lately = time.time() - os.fstat(handle).st_mtime < 6 * BEAT
    return lately and holder.get("host", socket.gethostname()) != socket.gethostname()


def _is(handle: int, path: Path) -> bool:
    with suppress(OSError):
        return os.path.samestat(os.fstat(handle), path.stat())
    return False


def _refusal(path: Path, holder: dict[str, object]) -> str:
    who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
    return (
        f"{path.parent}: another training runs here ({who}, since "
        f"{holder.get('since', '?')}); give another --out, or wait for its end (where that "
        f"process is gone, remove {path})"
    )


def _beat(path: Path, over: threading.Event) -> None:
    while not over.wait(BEAT):
        with suppress(OSError):
            os.utime(path)
