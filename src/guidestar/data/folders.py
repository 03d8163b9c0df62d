"""Folders of pictures, and parquet files of them, read by Hugging Face's datasets."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..io.files import Damaged
from .layout import find, find_files
from .pictures import PictureFormat, Pictures, Say, all_grey, decode_all
from .source import Column, ColumnKind
from .splits import check_split_files


def image_folder(
    folder: Path | str,
    look: PictureFormat,
    *,
    columns: Mapping[str, ColumnKind] | None = None,
    classes: Sequence[str] = (),
    max_bad: int = 0,
    cache: Path | None = None,
    say: Say | None = None,
) -> Pictures:
    """Read a folder of pictures: a sub-folder for each class, a table with a row for each, or
    captions beside them.

    Args:
        folder: as Hugging Face's ``imagefolder`` wants it (``cat/1.png``; ``metadata.jsonl``,
            ``.csv`` or ``.parquet`` with a ``file_name``), or with a caption beside each picture
            (``1.txt`` beside ``1.png``), which is the column "text".
        look: how they are made alike.
        columns: what each further column is; by default text is a caption, and numbers a vector;
            the sub-folders' names are the column "label".
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
    table = _as_table(folder, columns or {}, classes)
    return _from_table(
        table,
        folder,
        "image",
        look,
        columns=columns,
        classes=classes,
        max_bad=max_bad,
        cache=cache,
        say=say,
    )


def _as_table(folder: Path, columns: Mapping[str, ColumnKind], classes: Sequence[str]) -> Any:
    """Return the pictures of a folder as a table of paths, with what is known of each."""
    import datasets

    text = [name for name, kind in columns.items() if kind == "text"]
    found = find(folder, text=text, classes=classes)
    pictures = [{"bytes": None, "path": str(file)} for file in found.files]
    try:
        table = datasets.Dataset.from_dict(found.columns) if found.columns else None
    except Exception as error:
        # Whatever Arrow trips over, it is the values that are not of one kind.
        raise ValueError(
            f"{folder}: a column holds values of several kinds "
            f"({' '.join(str(error).split())[:200]})"
        ) from error
    images = datasets.Dataset.from_dict(
        {"image": pictures}, features=datasets.Features({"image": datasets.Image(decode=False)})
    )
    table = datasets.concatenate_datasets([images, table], axis=1) if table is not None else images
    if found.labels is None:
        return table
    names = sorted(set(found.labels))
    labels = datasets.Dataset.from_dict(
        {"label": [names.index(label) for label in found.labels]},
        features=datasets.Features({"label": datasets.ClassLabel(names=names)}),
    )
    return datasets.concatenate_datasets([table, labels], axis=1)


def parquet(
    path: Path | str,
    look: PictureFormat,
    *,
    image: str = "image",
    columns: Mapping[str, ColumnKind] | None = None,
    classes: Sequence[str] = (),
    max_bad: int = 0,
    cache: Path | None = None,
    say: Say | None = None,
) -> Pictures:
    """Read a parquet file, or a folder of them, with a column of encoded pictures; arguments as
    `image_folder`.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: there is no such column, or as `image_folder`.
    """
    path = Path(path)
    table = _load(find_data_files(path, ".parquet"))
    if image not in table.column_names:
        raise ValueError(
            f"{path}: there is no column {image!r}; the columns are {', '.join(table.column_names)}"
        )
    return _from_table(
        table,
        path,
        image,
        look,
        columns=columns,
        classes=classes,
        max_bad=max_bad,
        cache=cache,
        say=say,
    )


def _load(files: Sequence[Path]) -> Any:
    import datasets

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(
            "parquet", split="train", data_files=[escape_pattern(f) for f in files]
        )
    except Exception as error:
        # Whatever the reader trips over, it is the data that are not as it expects.
        cause = error.__cause__ or error
        raise Damaged(
            f"{files[0]}: not readable as parquet ({' '.join(str(cause).split())[:300]})"
        ) from error


def escape_pattern(file: Path) -> str:
    """Write a path so that the reader takes none of its signs for a pattern."""
    return re.sub(r"([*?[])", r"[\1]", str(file))


def find_data_files(path: Path, suffix: str) -> list[Path]:
    """Return a file, the files of a folder, or those of a pattern (``data/train*.parquet``).

    Raises:
        FileNotFoundError: there are none.
        ValueError: they are of several splits.
    """
    if path.is_file():
        return [path]
    if path.is_dir():
        files = sorted(f for f in find_files(path) if f.suffix == suffix)
        check_split_files(path, files)
    else:
        files = (
            sorted(f for f in path.parent.glob(path.name) if f.is_file())
            if path.parent.is_dir()
            else []
        )
    if not files:
        raise FileNotFoundError(f"{path}: there is no {suffix} file")
    return files


def _from_table(
    table: Any,
    path: Path,
    image: str,
    look: PictureFormat,
    *,
    columns: Any,
    classes: Sequence[str],
    max_bad: int,
    cache: Path | None,
    say: Say | None,
) -> Pictures:
    import datasets

    try:
        raw = table.cast_column(image, datasets.Image(decode=False))
    except Exception as error:
        # Arrow's own error, of a type that no picture has.
        kind = getattr(table.features[image], "dtype", type(table.features[image]).__name__)
        raise ValueError(
            f"{path}: the column {image!r} holds no encoded pictures, but {kind}"
        ) from error
    described = describe_columns(table, path, columns, {image, "file_name"}, classes)
    pictures = raw[image]
    channels = look.channels or (1 if all_grey(pictures) else 3)
    pixels, kept = decode_all(pictures, look, channels, max_bad, cache, path, say)
    targets = {name: _values(table, name, column, kept, path) for name, column in described.items()}
    return Pictures(pixels=pixels, targets=targets, columns=described, look=look)


def describe_columns(
    table: Any,
    path: Path,
    stated: Mapping[str, ColumnKind] | None,
    skip: set[str],
    classes: Sequence[str],
) -> dict[str, Column]:
    """Say what each column is: as stated, or as its type suggests.

    Raises:
        ValueError: a stated column is not there, or is not what it is said to be.
    """
    names = [n for n in table.column_names if n not in skip]
    strange = [n for n in stated or {} if n not in names]
    if strange:
        raise ValueError(
            f"{path}: there is no column {strange[0]!r}; the columns are "
            f"{', '.join(names) or 'none'}"
        )
    several = list((stated or {}).values()).count("class") > 1
    return {
        n: _describe(table, n, (stated or {}).get(n), path, classes, several)
        for n in (stated or names)
    }


def _describe(
    table: Any,
    name: str,
    stated: ColumnKind | None,
    path: Path,
    classes: Sequence[str],
    several: bool,
) -> Column:
    import datasets

    feature = table.features[name]
    first: Any = next((value for value in table[name] if value is not None), None)
    listed: list[Any] = first if isinstance(first, list) else []
    text, number, many = (
        isinstance(first, str),
        isinstance(first, int | float) and not isinstance(first, bool),
        isinstance(first, list),
    )
    text = text or (bool(listed) and all(isinstance(v, str) for v in listed))  # several captions
    kind = stated or (
        "class" if isinstance(feature, datasets.ClassLabel) else "text" if text else "vector"
    )
    fits = {
        "class": isinstance(first, int | str),
        "text": text,
        "vector": number or (many and all(isinstance(v, int | float) for v in listed)),
    }
    if not fits[kind]:
        raise ValueError(
            f"{path}: the column {name!r} is not a {kind}: its first value is "
            f'{str(first)[:60]!r}; state what it is, data.columns = {{ {name} = "…" }}, or leave '
            "it out"
        )
    if kind == "class":
        values = (
            feature.names
            if isinstance(feature, datasets.ClassLabel)
            else sorted(set(table[name]) - {None})
        )
        if isinstance(values[0], str):
            classes = () if several else classes  # one list cannot name the words of two columns
            unknown = [v for v in values if classes and v not in classes]
            if unknown:
                raise ValueError(
                    f"{path}: {name!r} holds the class {unknown[0]!r}, which is not among those "
                    f"that are known: {', '.join(classes)}"
                )
            return Column(kind="class", classes=tuple(classes) or tuple(values))
        count = len(classes) or int(values[-1]) + 1
        if values[0] < 0 or values[-1] >= count:  # type: ignore[operator]
            raise ValueError(
                f"{path}: the classes of {name!r} run from {values[0]} to {values[-1]}, but "
                f"there are {count} names"
            )
        return Column(kind="class", classes=tuple(classes) or tuple(str(i) for i in range(count)))
    return Column(kind=kind, width=(len(listed) if many else 1) if kind == "vector" else 0)


def _values(table: Any, name: str, column: Column, kept: Sequence[int], path: Path) -> Any:
    every = table[name]
    values = [every[i] for i in kept]
    empty = next((i for i, v in zip(kept, values, strict=True) if v is None), None)
    if empty is not None:
        raise ValueError(f"{path}: row {empty} has no {name!r}")
    gap = next(
        (i for i, v in zip(kept, values, strict=True) if isinstance(v, list) and None in v), None
    )
    if gap is not None:
        raise ValueError(f"{path}: row {gap} of {name!r} holds a null; give a value there")
    if column.kind == "text":
        wordless = next(
            (i for i, v in zip(kept, values, strict=True) if isinstance(v, list) and not v), None
        )
        if wordless is not None:
            raise ValueError(f"{path}: row {wordless} has no {name!r}")
        return [tuple(map(str, v)) if isinstance(v, list) else str(v) for v in values]
    if column.kind == "class":
        own = getattr(table.features[name], "names", None)  # its indices are by these
        words = [own[v] if own else v for v in values]
        return torch.tensor(
            [column.classes.index(v) if isinstance(v, str) else int(v) for v in words]
        )
    odd = next(
        (
            i
            for i, v in zip(kept, values, strict=True)
            if isinstance(v, list) and len(v) != column.width
        ),
        None,
    )
    if odd is not None:
        raise ValueError(f"{path}: row {odd} of {name!r} should hold {column.width} numbers")
    numbers = torch.tensor(values, dtype=torch.float32).reshape(len(values), column.width)
    strange = (~numbers.isfinite().all(1)).nonzero()[:, 0].tolist()
    if strange:
        raise ValueError(
            f"{path}: row {kept[strange[0]]} of {name!r} holds numbers that are not finite"
        )
    return numbers
