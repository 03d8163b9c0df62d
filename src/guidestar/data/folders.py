"""Read folders and parquet files of pictures, by Hugging Face's datasets."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..io.files import Damaged
from .columns import column_values, describe_columns
from .layout import find_files, read_layout
from .pictures import PictureFormat, Pictures, Say, all_grey, decode_all
from .source import ColumnKind, Held
from .splits import check_split_files

if TYPE_CHECKING:
    import datasets


def image_folder(
    folder: Path | str,
    format: PictureFormat,
    *,
    columns: Mapping[str, ColumnKind] | None = None,
    classes: Sequence[str] = (),
    max_bad: int = 0,
    cache: Path | None = None,
    say: Say | None = None,
) -> Pictures:
    """Read a folder of pictures.

    It has a sub-folder for each class, a table with a row for each picture, or a caption beside
    each.

    Args:
        folder: in the layout of Hugging Face's ``imagefolder`` (``cat/1.png``; ``metadata.jsonl``,
            ``.csv`` or ``.parquet`` with a ``file_name``), or with a caption beside each picture
            (``1.txt`` beside ``1.png``), which is the column "text".
        format: the format that all pictures are brought to.
        columns: the kind of each further column; by default text is a caption, and numbers are a
            vector; the sub-folders' names are the column "label".
        classes: names of the classes in the order of their indices; by default those found, sorted.
        max_bad: how many unreadable pictures to skip before giving up.
        cache: folder to keep the decoded pictures in, for those that do not fit into memory.
        say: called with a line about each picture that is skipped.

    Raises:
        FileNotFoundError: there is no such folder, or no picture in it.
        Damaged: more than ``max_bad`` pictures cannot be read.
        ValueError: pictures are missing, or a column holds values of another kind.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder; check data.path")
    table = _as_table(folder, columns or {}, classes)
    return _from_table(
        table,
        folder,
        "image",
        format,
        columns=columns,
        classes=classes,
        max_bad=max_bad,
        cache=cache,
        say=say,
    )


def _as_table(
    folder: Path, columns: Mapping[str, ColumnKind], classes: Sequence[str]
) -> datasets.Dataset:
    """Return the pictures of a folder as a table of their paths and columns."""
    import datasets

    text = [name for name, kind in columns.items() if kind == "text"]
    found = read_layout(folder, text=text, classes=classes)
    pictures = [{"bytes": None, "path": str(file)} for file in found.files]
    images = datasets.Dataset.from_dict(
        {"image": pictures}, features=datasets.Features({"image": datasets.Image(decode=False)})
    )
    labels = {} if found.labels is None else {"label": found.labels}
    table = as_table(folder, found.columns, labels)
    return images if table is None else datasets.concatenate_datasets([images, table], axis=1)


def as_table(
    folder: Path, columns: Mapping[str, Sequence[object]], labels: Mapping[str, Sequence[str]]
) -> datasets.Dataset | None:
    """Return columns as a table; None without any.

    Args:
        folder: where they are from, for the message.
        columns: values by column.
        labels: names of classes by column.

    Raises:
        ValueError: a column holds values of several kinds.
    """
    import datasets

    try:
        tables = [datasets.Dataset.from_dict(dict(columns))] if columns else []
    except Exception as error:
        # Arrow raises many kinds of exceptions, all of them for values of several kinds.
        raise ValueError(
            f"{folder}: a column holds values of several kinds "
            f"({' '.join(str(error).split())[:200]}); make them alike"
        ) from error
    for name, values in labels.items():
        known = sorted(set(values))
        tables.append(
            datasets.Dataset.from_dict(
                {name: [known.index(value) for value in values]},
                features=datasets.Features({name: datasets.ClassLabel(names=known)}),
            )
        )
    return datasets.concatenate_datasets(tables, axis=1) if tables else None


def parquet(
    path: Path | str,
    format: PictureFormat,
    *,
    image: str = "image",
    columns: Mapping[str, ColumnKind] | None = None,
    classes: Sequence[str] = (),
    max_bad: int = 0,
    cache: Path | None = None,
    say: Say | None = None,
) -> Pictures:
    """Read a parquet file, or a folder of them, with a column of encoded pictures.

    Args:
        path: the file, the folder, or a pattern of files.
        format: as in `image_folder`.
        image: the column of the pictures.
        columns: as in `image_folder`.
        classes: as in `image_folder`.
        max_bad: as in `image_folder`.
        cache: as in `image_folder`.
        say: as in `image_folder`.

    Raises:
        FileNotFoundError: there is no such file.
        Damaged: a file, or more than ``max_bad`` pictures, cannot be read.
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
        format,
        columns=columns,
        classes=classes,
        max_bad=max_bad,
        cache=cache,
        say=say,
    )


def _load(files: Sequence[Path]) -> datasets.Dataset:
    import datasets

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(
            "parquet", split="train", data_files=[escape_pattern(f) for f in files]
        )
    except Exception as error:
        # The reader raises many kinds of exceptions, all of them for the files' fault.
        cause = error.__cause__ or error
        raise Damaged(
            f"{files[0]}: not readable as parquet ({' '.join(str(cause).split())[:300]}); "
            "write it again"
        ) from error


def escape_pattern(file: Path) -> str:
    """Return a path in which the reader takes no character for a pattern."""
    return re.sub(r"([*?[])", r"[\1]", str(file))


def find_data_files(path: Path, suffix: str) -> list[Path]:
    """Return a file, the files of a folder, or those of a pattern (``data/train*.parquet``).

    Args:
        path: the file, folder or pattern.
        suffix: of the files in a folder, such as ``.parquet``.

    Raises:
        FileNotFoundError: there are none.
        ValueError: they belong to several splits.
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
        raise FileNotFoundError(f"{path}: there is no {suffix} file; check data.path")
    return files


def _from_table(
    table: datasets.Dataset,
    path: Path,
    image: str,
    format: PictureFormat,
    *,
    columns: Mapping[str, ColumnKind] | None,
    classes: Sequence[str],
    max_bad: int,
    cache: Path | None,
    say: Say | None,
) -> Pictures:
    import datasets

    try:
        raw = table.cast_column(image, datasets.Image(decode=False))
    except Exception as error:
        # Arrow's error, for a type that no picture has.
        kind = getattr(table.features[image], "dtype", type(table.features[image]).__name__)
        raise ValueError(
            f"{path}: the column {image!r} holds no encoded pictures, but {kind}; "
            "name the column of the pictures 'image'"
        ) from error
    described = describe_columns(table, path, columns, {image, "file_name"}, classes)
    pictures = raw[image]
    channels = format.channels or (1 if all_grey(pictures) else 3)
    pixels, kept = decode_all(pictures, format, channels, max_bad, cache, path, say)
    targets: Held = {
        name: column_values(table, name, column, kept, path) for name, column in described.items()
    }
    return Pictures(pixels=pixels, targets=targets, columns=described, format=format)
