"""Find the pictures of a folder, and what its layout and its files say of each.

A folder says it in one of three ways: a sub-folder for each class, a table with a row for each
picture (``metadata.jsonl``, ``.csv`` or ``.parquet``), or a caption beside each (``1.txt`` beside
``1.png``). What other programs leave in folders is passed over.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..io.documents import read_text
from .splits import TABLE_FILES, check_splits

PASSED_OVER = {"__MACOSX", "Thumbs.db", "desktop.ini", "@eaDir", "$RECYCLE.BIN"}


@dataclass(frozen=True, kw_only=True)
class Found:
    """The pictures of a folder, in a fixed order, and what is known of each.

    Args:
        files: paths of the pictures.
        columns: values by column, one for each picture.
        labels: the class of each picture by its folder; None where folders are no classes.
    """

    files: list[Path]
    columns: dict[str, list[Any]]
    labels: list[str] | None


def find(folder: Path, *, text: Sequence[str] = (), classes: Sequence[str] = ()) -> Found:
    """Read the layout of a folder of pictures.

    Args:
        folder: the folder.
        text: columns of a table that hold captions, whatever they look like: numbers stay text.
        classes: names of folders that are classes, whatever they are called.

    Raises:
        FileNotFoundError: there are no pictures.
        ValueError: the layout is no clear one, or its table does not fit its pictures.
    """
    files, tables = find_pictures(folder), _find_tables(folder)
    if not files:
        raise FileNotFoundError(f"{folder}: holds no images")
    _check_names(folder, files)
    table = next((folder / name for name in TABLE_FILES if (folder / name).is_file()), None)
    if table is not None:
        return _by_table(folder, table, files, text)
    check_splits(folder, files, classes)
    if tables:
        raise ValueError(
            f"{folder}: the table {tables[0].relative_to(folder).as_posix()!r} lies in a folder "
            f'below; give that folder (path = "{tables[0].parent}"), or move the table up'
        )
    _check_depths(folder, files)
    captions = _captions(folder, files)
    labels = [file.parent.name for file in files]
    return Found(
        files=files,
        columns={"text": captions} if captions else {},
        labels=labels if len({file.parent for file in files}) > 1 else None,
    )


def find_pictures(folder: Path) -> list[Path]:
    """Return the pictures below a folder, in a fixed order; links are followed, and those
    that lead nowhere are returned, as pictures that cannot be read.
    """
    from PIL import Image

    known = set(Image.registered_extensions())
    return sorted(file for file in find_files(folder) if file.suffix.lower() in known)


def find_files(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, without those of other programs.

    Left out are hidden files and folders (``.git``, ``.ipynb_checkpoints``, ``._1.png``) and those
    of operating systems (``__MACOSX``, ``Thumbs.db``). Links to folders are followed, each real
    folder once along a path, so that links in a circle end.
    """
    yield from _walk(folder, frozenset({os.path.realpath(folder)}))


def _walk(folder: Path, above: frozenset[str]) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda e: e.name)
    except OSError as error:
        raise ValueError(f"{folder}: cannot be read ({error.strerror})") from error
    for path in (folder / entry.name for entry in entries):
        if path.name.startswith(".") or path.name in PASSED_OVER:
            continue
        if path.is_dir():
            real = os.path.realpath(path)
            if real not in above:
                yield from _walk(path, above | {real})
        elif path.is_file() or path.is_symlink():
            yield path


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


def _check_depths(folder: Path, files: Sequence[Path]) -> None:
    """Refuse class folders without pictures, and pictures at several depths."""
    filled = {parent for file in files for parent in file.parents}
    for path in sorted(folder.iterdir()):
        ours = not path.name.startswith(".") and path.name not in PASSED_OVER
        if ours and path.is_symlink() and not path.exists() and path not in files:
            raise ValueError(f"{folder}: the link {path.name!r} leads nowhere; mend or remove it")
        if ours and path.is_dir() and path not in filled:
            raise ValueError(
                f"{folder}: the class folder {path.name!r} holds no images; fill or remove it"
            )
    depths = {len(p.relative_to(folder).parts): p.relative_to(folder).as_posix() for p in files}
    if len(depths) > 1:
        one, other = depths[min(depths)], depths[max(depths)]
        raise ValueError(
            f"{folder}: {one!r} and {other!r} lie at different depths, so that folders cannot be "
            "classes; move one of them"
        )


def _captions(folder: Path, files: Sequence[Path]) -> list[str] | None:
    """Read the captions beside the pictures; None where there are none at all."""
    beside = [file.with_suffix(".txt") for file in files]
    there = [file.is_file() for file in beside]
    if not any(there):
        return None
    if not all(there):
        without = files[there.index(False)].relative_to(folder).as_posix()
        raise ValueError(
            f"{folder}: {sum(there)} of {len(files)} images have a caption beside them (.txt), "
            f"but {without!r} has none; add the others, or move the captions away"
        )
    return [read_text(file).strip() or None for file in beside]  # type: ignore[misc]


def _by_table(folder: Path, table: Path, files: Sequence[Path], text: Sequence[str]) -> Found:
    rows = list(_rows(table))
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get("file_name"), str):
            raise ValueError(f"{table}: row {number} has no file_name")
    names = [_plain(row["file_name"]) for row in rows]
    twice = [name for name, count in Counter(names).items() if count > 1]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(f"{table}: names images that are not there: {missing[0]!r}{more}")
    if twice:
        raise ValueError(
            f"{table}: names {twice[0]!r} twice; keep one row (a list is several captions)"
        )
    known = {_plain(p.relative_to(folder).as_posix()) for p in files}
    unnamed = sorted(known - set(names))
    if unnamed:
        more = f" and {len(unnamed) - 1} more images" if len(unnamed) > 1 else ""
        raise ValueError(f"{table}: says nothing about {unnamed[0]!r}{more}; add or remove them")
    if any("image" in row for row in rows):
        raise ValueError(f'{table}: the name "image" is the picture\'s own; rename that column')
    columns = {
        name: [row.get(name) for row in rows]
        for name in dict.fromkeys(key for row in rows for key in row)
        if name != "file_name"
    }
    if table.suffix == ".csv":
        columns = {n: v if n in text else _numbers(v) for n, v in columns.items()}
    return Found(files=[folder / name for name in names], columns=columns, labels=None)


def _plain(name: str) -> str:
    """Write a file's name as this library does: ``./a\\b.png`` is ``a/b.png``."""
    return PurePosixPath(name.replace("\\", "/")).as_posix()


def _numbers(values: list[Any]) -> list[Any]:
    """Turn a column of a CSV file into numbers where all of it is."""
    for kind in (int, float):
        try:
            return [None if v is None else kind(v) for v in values]
        except ValueError:
            continue
    return values


def _rows(table: Path) -> Iterator[Mapping[str, Any]]:
    if table.suffix == ".parquet":
        yield from _parquet(table)
    elif table.suffix == ".csv":
        yield from _csv(table)
    else:
        # Not splitlines: it also ends lines at U+2028 and others, which may stand in a text.
        for number, line in enumerate(read_text(table).split("\n"), 1):
            if line.strip():
                yield _json(table, number, line)


def _json(table: Path, number: int, line: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{table}: line {number} is not JSON ({error})") from error
    if not isinstance(row, dict):
        raise ValueError(f'{table}: line {number} should be {{"file_name": …, …}}')
    return row


def _parquet(table: Path) -> list[Mapping[str, Any]]:
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(table).to_pylist()
    except Exception as error:
        # Whatever the reader trips over, it is the file that is not as it expects.
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{table}: not readable as parquet ({reason})") from error


def _csv(table: Path) -> Iterator[Mapping[str, Any]]:
    """Read a table with commas, semicolons or tabs; an empty cell is None."""
    text = read_text(table).lstrip()
    mark = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark)
    header = [name.strip() for name in next(reader, [])]
    if "file_name" not in header:
        raise ValueError(f"{table}: has no column file_name; it has {', '.join(header) or 'none'}")
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
        raise ValueError(f"{table}: cannot be read as a table ({error})") from error
