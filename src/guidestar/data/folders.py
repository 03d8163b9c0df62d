"""Folders of pictures, and parquet files of them, read by Hugging Face's datasets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from ..files import Damaged
from ._core import Column
from .pictures import Look, Pictures, Say, all_grey, decoded

Kind = Literal["class", "vector", "text"]


def image_folder(
    folder: Path | str,
    look: Look,
    *,
    columns: Mapping[str, Kind] | None = None,
    classes: Sequence[str] = (),
    max_bad: int = 0,
    cache: Path | None = None,
    say: Say | None = None,
) -> Pictures:
    """Read a folder of pictures: a sub-folder for each class, or ``metadata.jsonl``/``.csv`` with a row for each.

    Args:
        folder: as Hugging Face's ``imagefolder`` wants it.
        look: how they are made alike.
        columns: what each further column is; by default text is a caption, and numbers a vector; the
            sub-folders' names are the column "label".
        classes: names of the classes in the order of their indices; by default those found, sorted.
        max_bad: how many unreadable pictures to skip before giving up.
        cache: folder to keep the decoded pictures in, for those that do not fit into memory.
        say: told of each picture that was skipped.

    Raises:
        FileNotFoundError: there is no such folder, or no picture in it.
        Damaged: pictures cannot be read, more than ``max_bad`` of them.
        ValueError: pictures are missing, or a column is not what it should be.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder of images")
    _check_folder(folder)
    table = _load("imagefolder", folder)
    if "image" not in table.column_names or not len(table):
        raise FileNotFoundError(f"{folder}: holds no images")
    return _from_table(table, folder, "image", look, columns=columns, classes=classes, max_bad=max_bad, cache=cache, say=say)


def parquet(
    path: Path | str,
    look: Look,
    *,
    image: str = "image",
    columns: Mapping[str, Kind] | None = None,
    classes: Sequence[str] = (),
    max_bad: int = 0,
    cache: Path | None = None,
    say: Say | None = None,
) -> Pictures:
    """Read a parquet file, or a folder of them, with a column of encoded pictures; arguments as `image_folder`.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: there is no such column, or as `image_folder`.
    """
    path = Path(path)
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"{path}: there is no parquet file")
    table = _load("parquet", files)
    if image not in table.column_names:
        raise ValueError(f"{path}: there is no column {image!r}; the columns are {', '.join(table.column_names)}")
    return _from_table(table, path, image, look, columns=columns, classes=classes, max_bad=max_bad, cache=cache, say=say)


def _load(builder: str, what: Path | list[Path]) -> Any:
    import datasets

    datasets.disable_progress_bars()
    # All files are one split: else a class that is called "train" or "test" would be taken for one, and the others left out.
    where = {"data_dir": str(what), "data_files": {"train": "**"}} if isinstance(what, Path) else {"data_files": [str(f) for f in what]}
    try:
        return datasets.load_dataset(builder, split="train", **where)  # type: ignore[arg-type]
    except Exception as error:
        # Whatever the reader trips over, it is the data that are not as it expects.
        cause = error.__cause__ or error
        raise Damaged(f"{what if isinstance(what, Path) else what[0]}: not readable as {builder} ({' '.join(str(cause).split())[:300]})") from error


def _check_folder(folder: Path) -> None:
    """Refuse what would be found out late: class folders without pictures, metadata that name missing pictures."""
    from PIL import Image

    known = set(Image.registered_extensions())
    pictures = [f for f in folder.rglob("*") if f.suffix.lower() in known and f.is_file()]
    if not pictures:
        raise FileNotFoundError(f"{folder}: holds no images")
    metadata = next((folder / n for n in ("metadata.jsonl", "metadata.csv", "metadata.parquet") if (folder / n).is_file()), None)
    if metadata is None:
        empty = sorted(d.name for d in folder.iterdir() if d.is_dir() and not any(d in p.parents for p in pictures))
        if empty:
            raise ValueError(f"{folder}: the class folder {empty[0]!r} holds no images; fill or remove it")
        depths = {len(p.relative_to(folder).parts): p.relative_to(folder).as_posix() for p in sorted(pictures)}
        if len(depths) > 1:  # the reader would leave all labels out, and say nothing
            one, other = depths[min(depths)], depths[max(depths)]
            raise ValueError(f"{folder}: {one!r} and {other!r} lie at different depths, so that folders cannot be classes; move one of them")
        return
    named = _named(metadata)
    missing = [n for n in named if not (folder / n).is_file()]
    if missing:
        raise ValueError(f"{metadata}: names images that are not there: {missing[0]!r}{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}")
    unnamed = sorted({p.relative_to(folder).as_posix() for p in pictures} - set(named))
    if unnamed:
        raise ValueError(f"{metadata}: says nothing about {unnamed[0]!r}{f' and {len(unnamed) - 1} more images' if len(unnamed) > 1 else ''}; add or remove them")


def _named(metadata: Path) -> list[str]:
    if metadata.suffix == ".parquet":
        import pyarrow.parquet

        return [str(n) for n in pyarrow.parquet.read_table(metadata, columns=["file_name"])["file_name"].to_pylist()]
    names = []
    for number, row in enumerate(_rows(metadata), 1):
        if "file_name" not in row:
            raise ValueError(f"{metadata}: row {number} has no file_name")
        names.append(str(row["file_name"]))
    return names


def _rows(metadata: Path) -> Iterator[dict[str, Any]]:
    import csv

    with metadata.open(encoding="utf-8", newline="") as file:
        if metadata.suffix == ".csv":
            yield from csv.DictReader(file)
            return
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise ValueError(f"{metadata}: line {number} is not JSON ({error})") from error


def _from_table(table: Any, path: Path, image: str, look: Look, *, columns: Any, classes: Sequence[str], max_bad: int, cache: Path | None, say: Say | None) -> Pictures:
    import datasets

    raw = table.cast_column(image, datasets.Image(decode=False))
    described = described_columns(table, path, columns, {image, "file_name"}, classes)
    pictures = raw[image]
    channels = look.channels or (1 if all_grey(pictures) else 3)
    pixels, kept = decoded(pictures, look, channels, max_bad, cache, path, say)
    targets = {name: _values(table, name, column, kept, path) for name, column in described.items()}
    return Pictures(pixels=pixels, targets=targets, columns=described, look=look)


def described_columns(table: Any, path: Path, stated: Mapping[str, Kind] | None, skip: set[str], classes: Sequence[str]) -> dict[str, Column]:
    """Say what each column is: as stated, or as its type suggests.

    Raises:
        ValueError: a stated column is not there, or is not what it is said to be.
    """
    names = [n for n in table.column_names if n not in skip]
    strange = [n for n in stated or {} if n not in names]
    if strange:
        raise ValueError(f"{path}: there is no column {strange[0]!r}; the columns are {', '.join(names) or 'none'}")
    several = list((stated or {}).values()).count("class") > 1
    return {n: _describe(table, n, (stated or {}).get(n), path, classes, several) for n in (stated or names)}


def _describe(table: Any, name: str, stated: Kind | None, path: Path, classes: Sequence[str], several: bool) -> Column:
    import datasets

    feature = table.features[name]
    first: Any = table[name][0]
    listed: list[Any] = first if isinstance(first, list) else []
    text, number, many = isinstance(first, str), isinstance(first, int | float) and not isinstance(first, bool), isinstance(first, list)
    text = text or (bool(listed) and all(isinstance(v, str) for v in listed))  # several captions
    kind = stated or ("class" if isinstance(feature, datasets.ClassLabel) else "text" if text else "vector")
    fits = {"class": isinstance(first, int | str), "text": text, "vector": number or (many and all(isinstance(v, int | float) for v in listed))}
    if not fits[kind]:
        raise ValueError(
            f'{path}: the column {name!r} is not a {kind}: its first value is {str(first)[:60]!r}; state what it is, data.columns = {{ {name} = "…" }}, or leave it out'
        )
    if kind == "class":
        values = feature.names if isinstance(feature, datasets.ClassLabel) else sorted(set(table[name]) - {None})
        if isinstance(values[0], str):
            classes = () if several else classes  # one list cannot name the words of two columns
            unknown = [v for v in values if classes and v not in classes]
            if unknown:
                raise ValueError(f"{path}: {name!r} holds the class {unknown[0]!r}, which is not among those that are known: {', '.join(classes)}")
            return Column(kind="class", classes=tuple(classes) or tuple(values))
        count = len(classes) or int(values[-1]) + 1
        if values[0] < 0 or values[-1] >= count:  # type: ignore[operator]
            raise ValueError(f"{path}: the classes of {name!r} run from {values[0]} to {values[-1]}, but there are {count} names")
        return Column(kind="class", classes=tuple(classes) or tuple(str(i) for i in range(count)))
    return Column(kind=kind, width=(len(listed) if many else 1) if kind == "vector" else 0)


def _values(table: Any, name: str, column: Column, kept: Sequence[int], path: Path) -> Any:
    every = table[name]
    values = [every[i] for i in kept]
    empty = next((i for i, v in zip(kept, values, strict=True) if v is None), None)
    if empty is not None:
        raise ValueError(f"{path}: row {empty} has no {name!r}")
    if column.kind == "text":
        wordless = next((i for i, v in zip(kept, values, strict=True) if isinstance(v, list) and not v), None)
        if wordless is not None:
            raise ValueError(f"{path}: row {wordless} has no {name!r}")
        return [tuple(map(str, v)) if isinstance(v, list) else str(v) for v in values]
    if column.kind == "class":
        own = getattr(table.features[name], "names", None)  # its indices are by these
        words = [own[v] if own else v for v in values]
        return torch.tensor([column.classes.index(v) if isinstance(v, str) else int(v) for v in words])
    odd = next((i for i, v in zip(kept, values, strict=True) if isinstance(v, list) and len(v) != column.width), None)
    if odd is not None:
        raise ValueError(f"{path}: row {odd} of {name!r} should hold {column.width} numbers")
    numbers = torch.tensor(values, dtype=torch.float32).reshape(len(values), column.width)
    strange = (~numbers.isfinite().all(1)).nonzero()[:, 0].tolist()
    if strange:
        raise ValueError(f"{path}: row {kept[strange[0]]} of {name!r} holds numbers that are not finite")
    return numbers
