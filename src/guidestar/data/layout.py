"""Find the pictures (or other files) of a folder, and their classes, captions and further columns.

A folder has one of three layouts: a sub-folder for each class, a table with a row for each picture
(``metadata.jsonl``, ``.csv`` or ``.parquet``), or a caption beside each (``1.txt`` beside
``1.png``). Files that other programs leave in folders are passed over.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..io.documents import read_text
from .splits import TABLE_FILES, check_splits

Cell = object
"""A value of a table's cell: a text, a number, a list, or None."""

PASSED_OVER = {"__MACOSX", "Thumbs.db", "desktop.ini", "@eaDir", "$RECYCLE.BIN"}


@dataclass(frozen=True, kw_only=True)
class FolderLayout:
    """The pictures of a folder, in a fixed order, and their columns.

    Args:
        files: paths of the pictures.
        columns: values by column, one for each picture.
        labels: the class of each picture by its folder; None where folders are no classes.
    """

    files: list[Path]
    columns: dict[str, list[Cell]]
    labels: list[str] | None


def read_layout(
    folder: Path,
    *,
    text: Sequence[str] = (),
    classes: Sequence[str] = (),
    suffix: str | None = None,
) -> FolderLayout:
    """Read the layout of a folder of pictures, or of other files.

    Args:
        folder: the folder.
        text: columns of a table that hold captions: their numbers stay text.
        classes: names of folders that are classes, also where they are called like splits.
        suffix: of the files, as ".bvh"; None for pictures.

    Raises:
        FileNotFoundError: there are no pictures.
        ValueError: the layout is ambiguous, or its table does not fit its pictures.
    """
    files = find_pictures(folder) if suffix is None else _find_suffix(folder, suffix)
    tables, what = _find_tables(folder), "images" if suffix is None else f"{suffix} files"
    if not files:
        raise FileNotFoundError(f"{folder}: holds no {what}; check data.path")
    _check_names(folder, files)
    table = next((folder / name for name in TABLE_FILES if (folder / name).is_file()), None)
    if table is not None:
        return _by_table(folder, table, files, text, what)
    check_splits(folder, files, classes)
    if tables:
        raise ValueError(
            f"{folder}: the table {tables[0].relative_to(folder).as_posix()!r} lies in a folder "
            f'below; give that folder (path = "{tables[0].parent}"), or move the table up'
        )
    _check_depths(folder, files, what)
    captions = _captions(folder, files, what)
    labels = [file.parent.name for file in files]
    return FolderLayout(
        files=files,
        columns={"text": list(captions)} if captions else {},
        labels=labels if len({file.parent for file in files}) > 1 else None,
    )


def find_pictures(folder: Path) -> list[Path]:
    """Return the pictures below a folder, in a fixed order.

    Links are followed; broken ones are returned too, as pictures that cannot be read.
    """
    from PIL import Image

    known = set(Image.registered_extensions())
    return sorted(file for file in find_files(folder) if file.suffix.lower() in known)


def find_files(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, without those of other programs.

    Left out are hidden files and folders (``.git``, ``.ipynb_checkpoints``, ``._1.png``) and those
    of operating systems (``__MACOSX``, ``Thumbs.db``). Links to folders are followed, each real
    folder once along a path, so that circular links end.
    """
    yield from _walk(folder, frozenset({os.path.realpath(folder)}))


def _walk(folder: Path, above: frozenset[str]) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda e: e.name)
    except OSError as error:
        raise ValueError(
            f"{folder}: cannot be read ({error.strerror}); check its permissions"
        ) from error
    for path in (folder / entry.name for entry in entries):
        if path.name.startswith(".") or path.name in PASSED_OVER:
            continue
        if path.is_dir():
            real = os.path.realpath(path)
            if real not in above:
                yield from _walk(path, above | {real})
        elif path.is_file() or path.is_symlink():
            yield path


def _find_suffix(folder: Path, suffix: str) -> list[Path]:
    return sorted(file for file in find_files(folder) if file.suffix.lower() == suffix)


def _find_tables(folder: Path) -> list[Path]:
    return [file for file in find_files(folder) if file.name in TABLE_FILES]


def _check_names(folder: Path, files: Sequence[Path]) -> None:
    for file in files:
        try:
            str(file).encode()
        except UnicodeEncodeError:
            name = ascii(file.relative_to(folder).as_posix())
            raise ValueError(
                f"{ascii(str(folder))[1:-1]}: the name {name} is not UTF-8; rename it"
            ) from None


def _check_depths(folder: Path, files: Sequence[Path], what: str) -> None:
    """Refuse class folders without pictures, and pictures at several depths."""
    filled = {parent for file in files for parent in file.parents}
    for path in sorted(folder.iterdir()):
        ours = not path.name.startswith(".") and path.name not in PASSED_OVER
        if ours and path.is_symlink() and not path.exists() and path not in files:
            raise ValueError(f"{folder}: the link {path.name!r} leads nowhere; repair or remove it")
        if ours and path.is_dir() and path not in filled:
            raise ValueError(
                f"{folder}: the class folder {path.name!r} holds no {what}; fill or remove it"
            )
    depths = {len(p.relative_to(folder).parts): p.relative_to(folder).as_posix() for p in files}
    if len(depths) > 1:
        one, other = depths[min(depths)], depths[max(depths)]
        raise ValueError(
            f"{folder}: {one!r} and {other!r} lie at different depths, so that folders cannot be "
            "classes; move one of them"
        )


def _captions(folder: Path, files: Sequence[Path], what: str) -> list[str | None] | None:
    """Read the captions beside the pictures (an empty one is None); None where there are none."""
    beside = [file.with_suffix(".txt") for file in files]
    there = [file.is_file() for file in beside]
    if not any(there):
        return None
    if not all(there):
        without = files[there.index(False)].relative_to(folder).as_posix()
        raise ValueError(
            f"{folder}: {sum(there)} of {len(files)} {what} have a caption beside them (.txt), "
            f"but {without!r} has none; add the others, or move the captions away"
        )
    return [read_text(file).strip() or None for file in beside]


def _by_table(
    folder: Path, table: Path, files: Sequence[Path], text: Sequence[str], what: str
) -> FolderLayout:
    rows = list(_rows(table))
    names = [_file_name(table, number, row) for number, row in enumerate(rows, 1)]
    twice = [name for name, count in Counter(names).items() if count > 1]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(
            f"{table}: names {what} that are missing: {missing[0]!r}{more}; add them, or remove "
            "their "
            "rows"
        )
    if twice:
        raise ValueError(
            f"{table}: names {twice[0]!r} twice; keep one row (a list is several captions)"
        )
    known = {_plain(p.relative_to(folder).as_posix()) for p in files}
    unnamed = sorted(known - set(names))
    if unnamed:
        more = f" and {len(unnamed) - 1} more {what}" if len(unnamed) > 1 else ""
        raise ValueError(
            f"{table}: has no row for {unnamed[0]!r}{more}; add rows, or remove the {what}"
        )
    if any("image" in row for row in rows):
        raise ValueError(f'{table}: a column cannot be called "image", the picture; rename it')
    columns: dict[str, list[Cell]] = {
        name: [row.get(name) for row in rows]
        for name in dict.fromkeys(key for row in rows for key in row)
        if name != "file_name"
    }
    if table.suffix == ".csv":
        columns = {n: v if n in text else _numbers(v) for n, v in columns.items()}
    return FolderLayout(files=[folder / name for name in names], columns=columns, labels=None)


def _file_name(table: Path, number: int, row: Mapping[str, Cell]) -> str:
    name = row.get("file_name")
    if not isinstance(name, str):
        raise ValueError(
            f"{table}: row {number} has no file_name; give the picture's path in the folder"
        )
    return _plain(name)


def _plain(name: str) -> str:
    """Return a file's name in one spelling: ``./a\\b.png`` is ``a/b.png``."""
    return PurePosixPath(name.replace("\\", "/")).as_posix()


def _numbers(values: list[Cell]) -> list[Cell]:
    """Turn a column of a CSV file into numbers, where all its texts are numbers."""
    for kind in (int, float):
        with suppress(ValueError):
            return [None if v is None else kind(str(v)) for v in values]
    return values


def _rows(table: Path) -> Iterator[Mapping[str, Cell]]:
    if table.suffix == ".parquet":
        yield from _parquet(table)
    elif table.suffix == ".csv":
        yield from _csv(table)
    else:
        # Not splitlines, which also ends lines at U+2028 and others that a text may hold.
        for number, line in enumerate(read_text(table).split("\n"), 1):
            if line.strip():
                yield _json(table, number, line)


def _json(table: Path, number: int, line: str) -> Mapping[str, Cell]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{table}: line {number} is not JSON ({error}); correct it") from error
    if not isinstance(row, dict):
        raise ValueError(f'{table}: line {number} must be an object, {{"file_name": …, …}}')
    return row


def _parquet(table: Path) -> list[Mapping[str, Cell]]:
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(table).to_pylist()
    except Exception as error:
        # The reader raises many kinds of exceptions, all of them for the file's fault.
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{table}: not readable as parquet ({reason}); write it again") from error


def _csv(table: Path) -> Iterator[Mapping[str, Cell]]:
    """Yield the rows of a table with commas, semicolons or tabs; an empty cell is None."""
    text = read_text(table).lstrip()
    mark = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark)
    header = [name.strip() for name in next(reader, [])]
    if "file_name" not in header:
        raise ValueError(
            f"{table}: has no column file_name, but {', '.join(header) or 'none'}; add it, with "
            "the "
            "path of each picture"
        )
    try:
        for number, cells in enumerate(filter(None, reader), 1):  # an empty line has no cells
            if len(cells) > len(header):
                raise ValueError(
                    f"{table}: row {number} has {len(cells)} cells for {len(header)} columns; "
                    'put text with a separator in it between quotes ("…")'
                )
            filled = [*cells, *[""] * (len(header) - len(cells))]
            yield {n: cell or None for n, cell in zip(header, filled, strict=True)}
    except csv.Error as error:
        raise ValueError(
            f"{table}: cannot be read as a table ({error}); save it as CSV again"
        ) from error
