"""The columns of a table of pictures: what each holds, and its values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .source import Column, ColumnKind

if TYPE_CHECKING:
    import datasets


def describe_columns(
    table: datasets.Dataset,
    path: Path,
    stated: Mapping[str, ColumnKind] | None,
    skip: set[str],
    classes: Sequence[str],
) -> dict[str, Column]:
    """Return what each column holds: as stated, or as its type suggests.

    Args:
        table: the columns.
        path: the data, for messages.
        stated: kinds of columns; by default all columns, of the kinds of their values.
        skip: columns that are left out.
        classes: names of the classes, in order.

    Raises:
        ValueError: a stated column is missing, or holds values of another kind.
    """
    names = [n for n in table.column_names if n not in skip]
    strange = [n for n in stated or {} if n not in names]
    if strange:
        raise ValueError(
            f"{path}: there is no column {strange[0]!r}; the columns are "
            f"{', '.join(names) or 'none'}; correct data.columns"
        )
    # One list of names cannot name the words of two columns.
    several = list((stated or {}).values()).count("class") > 1
    return {
        n: _describe(table, n, (stated or {}).get(n), path, classes, several)
        for n in (stated or names)
    }


def _describe(
    table: datasets.Dataset,
    name: str,
    stated: ColumnKind | None,
    path: Path,
    classes: Sequence[str],
    several: bool,
) -> Column:
    first = next((value for value in table[name] if value is not None), None)
    kind = stated or _kind(table, name, first)
    if not _FITS[kind](first):
        raise ValueError(
            f"{path}: the column {name!r} is not a {kind}: its first value is "
            f'{str(first)[:60]!r}; give its kind, data.columns = {{ {name} = "…" }}, or leave '
            "it out"
        )
    if kind == "class":
        return _describe_classes(table, name, path, classes, several)
    if kind == "text":
        return Column(kind="text")
    return Column(kind="vector", width=len(first) if isinstance(first, list) else 1)


def _kind(table: datasets.Dataset, name: str, first: object) -> ColumnKind:
    """Return the kind that a column's type and first value suggest."""
    import datasets

    if isinstance(table.features[name], datasets.ClassLabel):
        return "class"
    return "text" if _is_text(first) else "vector"


def _is_text(first: object) -> bool:
    """Return whether a value is a caption, or a list of several."""
    if isinstance(first, list):
        return bool(first) and all(isinstance(v, str) for v in first)
    return isinstance(first, str)


def _is_vector(first: object) -> bool:
    if isinstance(first, list):
        return all(isinstance(v, int | float) for v in first)
    return isinstance(first, int | float) and not isinstance(first, bool)


_FITS: Mapping[ColumnKind, Callable[[object], bool]] = {
    "class": lambda first: isinstance(first, int | str),
    "text": _is_text,
    "vector": _is_vector,
}


def _describe_classes(
    table: datasets.Dataset, name: str, path: Path, classes: Sequence[str], several: bool
) -> Column:
    import datasets

    feature = table.features[name]
    values = (
        feature.names
        if isinstance(feature, datasets.ClassLabel)
        else sorted(set(table[name]) - {None})
    )
    if isinstance(values[0], str):
        classes = () if several else classes
        unknown = [v for v in values if classes and v not in classes]
        if unknown:
            raise ValueError(
                f"{path}: {name!r} holds the class {unknown[0]!r}, which is not one of "
                f"{', '.join(classes)}; add it to data.classes, or correct the data"
            )
        return Column(kind="class", classes=tuple(classes) or tuple(values))
    low, high = int(values[0]), int(values[-1])
    count = len(classes) or high + 1
    if low < 0 or high >= count:
        raise ValueError(
            f"{path}: the classes of {name!r} run from {low} to {high}, but there are {count} "
            f"names; classes must be 0 to {count - 1}"
        )
    return Column(kind="class", classes=tuple(classes) or tuple(str(i) for i in range(count)))


def column_values(
    table: datasets.Dataset, name: str, column: Column, kept: Sequence[int], path: Path
) -> Tensor | list[str | tuple[str, ...]]:
    """Return the values of a column at the rows ``kept``: indices, numbers or captions.

    Raises:
        ValueError: a value is missing, not finite, or of another length; the row is named.
    """
    every = table[name]
    values = [every[i] for i in kept]
    pairs = list(zip(kept, values, strict=True))
    for row, value in pairs:
        if value is None or (column.kind == "text" and value == []):
            raise ValueError(f"{path}: row {row} has no {name!r}; give a value, or remove the row")
        if isinstance(value, list) and None in value:
            raise ValueError(f"{path}: row {row} of {name!r} holds a null; give a value there")
    if column.kind == "text":
        return [tuple(map(str, v)) if isinstance(v, list) else str(v) for v in values]
    if column.kind == "class":
        own = getattr(table.features[name], "names", None)  # its indices are by these
        words = [own[v] if own else v for v in values]
        return torch.tensor(
            [column.classes.index(v) if isinstance(v, str) else int(v) for v in words]
        )
    odd = next((i for i, v in pairs if isinstance(v, list) and len(v) != column.width), None)
    if odd is not None:
        raise ValueError(f"{path}: row {odd} of {name!r} must hold {column.width} numbers")
    numbers = torch.tensor(values, dtype=torch.float32).reshape(len(values), column.width)
    strange = (~numbers.isfinite().all(1)).nonzero().flatten().tolist()
    if strange:
        raise ValueError(
            f"{path}: row {kept[strange[0]]} of {name!r} holds numbers that are not finite; "
            "correct or remove them"
        )
    return numbers
