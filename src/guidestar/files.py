"""Files that are whole or absent."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path


class Damaged(ValueError):
    """A file is truncated, corrupt or of another format: no mistake of whoever named it (the command line's exit code is 1)."""


@contextmanager
def whole_or_not(path: Path) -> Iterator[Path]:
    """Give a path beside ``path`` to write to; then flush it to disk and rename it to ``path``.

    If anything fails, what stood at ``path`` still stands there and nothing is left beside it.

    Raises:
        OSError: it cannot be written (named).
    """
    beside = path.with_name(f"{path.name}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        _flush(beside)
        os.replace(beside, path)
        _flush(path.parent)  # the new name itself
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def keep_former(path: Path, keep: int) -> None:
    """Keep ``keep − 1`` former versions of ``path`` as name.1.suffix (the last), name.2.suffix, …; ``path`` stays in place."""
    if keep < 2 or not path.exists():
        return
    names = [path.with_name(f"{path.stem}.{i}{path.suffix}") for i in range(1, keep)]
    for newer, older in reversed(list(pairwise(names))):
        if newer.exists():
            os.replace(newer, older)
    spare = path.with_name(f"{path.name}.keeping")
    spare.unlink(missing_ok=True)
    try:
        try:
            os.link(path, spare)
        except OSError:  # a file system without links
            shutil.copyfile(path, spare)
        os.replace(spare, names[0])
    finally:
        with suppress(OSError):
            spare.unlink(missing_ok=True)


def make_folder(folder: Path) -> Path:
    """Make ``folder`` if need be, try to write there (better now than after an hour), and return it.

    Raises:
        OSError: it cannot be written to (named).
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(f"cannot write to the folder {folder}: {error.strerror or error}") from error
    return folder
