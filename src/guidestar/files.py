"""Files that are whole or absent."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


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
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


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
