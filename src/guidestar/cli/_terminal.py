"""Print progress, tables, notes and errors in a terminal."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import typer

WatchBar = Callable[[int, int | None], None]
"""Shows how many of how many steps are done."""


@contextmanager
def show_progress(label: str) -> Iterator[WatchBar]:
    """Show a progress bar on stderr within the block; yields ``watch(done, total)``."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Print rows under their heads, in columns."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        typer.echo(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def warn(line: str) -> None:
    """Print a note on stderr."""
    typer.echo(f"guidestar: note: {printable(line)}", err=True)


@contextmanager
def naming_recipe(file: str | Path) -> Iterator[None]:
    """Put the name of a recipe before errors of its values, which begin with their key.

    Such errors arise where a value is used: it does not go with the data, or the teacher.
    """
    try:
        yield
    except ValueError as error:
        if not _KEY.match(str(error)):
            raise
        raise ValueError(f"{file}: {error}") from error


_KEY = re.compile(r"[a-z]\w*(\.\w+)+: ")


def fail(message: str, code: int) -> NoReturn:
    """Print what was wrong on stderr, and stop with an exit code."""
    typer.echo(f"guidestar: {printable(message)}", err=True)
    sys.exit(code)


def printable(text: str) -> str:
    """Show bytes that are not UTF-8, which Python keeps as half characters, as ``\\xff``."""
    text = re.sub("[\udc80-\udcff]", lambda half: f"\\x{ord(half[0]) - 0xDC00:02x}", text)
    text = re.sub("[\ud800-\udfff]", "?", text)
    return re.sub(r"\\udc([89a-f][0-9a-f])", r"\\x\1", text)  # as repr writes them
