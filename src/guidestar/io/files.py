"""Write files whole or not at all, check their names, and make folders."""

from __future__ import annotations

import os
import re
import reprlib
import shutil
import tempfile
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path


class Damaged(ValueError):
    """A file is truncated, corrupt or of another format.

    The command line exits with 1: whoever named the file made no mistake.
    """


_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")
LONGEST_NAME = 100
"""Most bytes of a file's or folder's name: file systems take 255, and suffixes are added."""


def check_name(name: object, what: str, *, taken: Container[str] = ()) -> str:
    """Check that a name may become a file or folder on any system, and return it.

    Args:
        name: the name, as it was read.
        what: what has this name, for the message.
        taken: names that are not free there, in lower case.

    Raises:
        ValueError: the name is no text, empty, "." or "..", a path, too long, or taken.
    """
    why = _unfit(name, taken)
    if why:
        raise ValueError(
            f"{what} becomes a folder's name and cannot be {reprlib.repr(name)} ({why}); use "
            "letters, digits, '-', '_' and '.'"
        )
    return str(name)


def _unfit(name: object, taken: Container[str]) -> str | None:
    """Return why a name cannot be a file's; None where it can."""
    if not isinstance(name, str):
        return "it is no text"
    size = len(name.encode(errors="replace"))
    faults = {
        "it is empty": not name.strip(),
        f"it is longer than {LONGEST_NAME} bytes": size > LONGEST_NAME,
        "it holds a sign of paths": re.search(r'[/\\:*?"<>|\x00-\x1f\x7f\ud800-\udfff]', name),
        "it starts with '.' or '-'": name.startswith((".", "-", " ")),
        "it ends in '.' or a space": name.endswith((".", " ")),
        "a device has this name on Windows": _DEVICES.fullmatch(name),
        "it is taken": name.lower() in taken,
    }
    return next((why for why, so in faults.items() if so), None)


@contextmanager
def whole_or_not(path: Path) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; then flush it to disk and rename it to ``path``.

    If the block fails, the file at ``path`` stays as it was, and nothing is left beside it.

    Raises:
        OSError: the file cannot be written; the message names it.
    """
    beside = path.with_name(f"{path.name}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        _flush(beside)
        os.replace(beside, path)
        _flush(path.parent)  # the new name itself
    except OSError as error:
        if str(error).startswith("cannot write"):
            raise
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            shutil.rmtree(beside) if beside.is_dir() else beside.unlink()


_SYSTEM = re.compile(r"\(os error \d+\)|\[Errno \d+\]|inline_container|PytorchStreamWriter")


@contextmanager
def name_write_errors(path: Path) -> Iterator[None]:
    """Turn a library's error in writing a file into an `OSError` that names the file.

    Other errors pass as they are.

    Raises:
        OSError: ``path`` cannot be written.
    """
    try:
        yield
    except Exception as error:
        cause = _of_system(error)
        if cause is None and not _SYSTEM.search(str(error)):  # of code in other languages
            raise
        if str(cause).startswith("cannot write"):
            raise
        why = cause.strerror if cause and cause.strerror else " ".join(str(cause or error).split())
        raise OSError(f"cannot write {path}: {why}") from error


def _of_system(error: BaseException | None) -> OSError | None:
    """Return the system's error behind another error; torch raises others in its place."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def keep_former(path: Path, keep: int) -> None:
    """Keep ``keep − 1`` former versions of ``path``, which itself stays in place.

    They are called ``name.1.suffix`` (the newest), ``name.2.suffix``, ….
    """
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
            spare.unlink()


def make_folder(folder: Path) -> Path:
    """Make ``folder`` where it is missing, check that it can be written to, and return it.

    Raises:
        OSError: it cannot be written to; the message names it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(f"cannot write to the folder {folder}: {error.strerror or error}") from error
    return folder
