"""The identity of data, which a resumed training compares with that of its start."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypedDict, cast

from torch import Tensor

from .latents import Latents, Unencoded
from .motions import Motions
from .paths import Paths
from .pictures import Pictures
from .reduced import Reduced
from .shards import Shards
from .source import Column, Held, InMemory, Source, Subset
from .tensors import Standardised

HASHED = 256 * 2**20
"""Bytes of one tensor that are hashed; of a larger one, only some numbers of each row are."""
LEAST_HASHED = 64
"""Least numbers of each row that are hashed, evenly spaced, so that each row counts."""


class DataIdentity(TypedDict):
    """The identity of data, in JSON values."""

    columns: dict[str, list[object]]
    """By name: the kind, and the classes in order or the width."""
    size: int | None
    """Number of samples; None for a stream."""
    digest: str
    """Of the samples, their classes, numbers and captions."""


def identify(source: Source) -> DataIdentity:
    """Return the identity of ``source``, equal where the data are.

    It depends on the samples and their columns, not on the place of the files or the time they were
    written. For shards, which are not read to their end, it depends on the names and sizes of the
    files.
    """
    digest = hashlib.blake2b(digest_size=16)
    for piece in _pieces(source):
        digest.update(len(piece).to_bytes(8, "little"))
        digest.update(piece)
    columns = {name: _column(column) for name, column in source.columns.items()}
    return {"columns": columns, "size": source.size, "digest": digest.hexdigest()}


def _column(column: Column) -> list[object]:
    width = column.width
    known = {"class": list(column.classes), "vector": width, "length": width, "text": None}
    return [column.kind, known[column.kind]]


def compare(before: DataIdentity, now: DataIdentity) -> tuple[str, bool] | None:
    """Compare two identities.

    Returns:
        None where they are equal. Else what differs, in one line, and whether a training may go on
        with the new data: true where only samples were added, removed or changed; false where
        classes or columns were, as the network's indices would have another meaning.
    """
    if before == now:
        return None
    return _compare_columns(before["columns"], now["columns"]) or (
        _compare_samples(before, now),
        True,
    )


def _compare_columns(
    before: Mapping[str, list[object]], now: Mapping[str, list[object]]
) -> tuple[str, bool] | None:
    for name in {**before, **now}:
        if name not in now:
            return f"the column {name!r} is gone", False
        if name not in before:
            return f"the column {name!r} is new", False
        (kind, old), (other, new) = before[name], now[name]
        if kind != other:
            return f"the column {name!r} was a {kind} and is a {other}", False
        if old == new:
            continue
        if isinstance(old, list):
            return (
                f"the classes of {name!r} {_compare_classes(old, cast('list[object]', new))}",
                False,
            )
        return f"the column {name!r} had {old} numbers and has {new}", False
    return None


def _compare_classes(before: list[object], now: list[object]) -> str:
    gone = [c for c in before if c not in now]
    new = [c for c in now if c not in before]
    words = [f"lack {', '.join(map(repr, gone[:3]))}"] if gone else []
    words += [f"have {', '.join(map(repr, new[:3]))}"] if new else []
    if not words:
        return "are in another order"
    return f"now {' and '.join(words)}"


def _compare_samples(before: DataIdentity, now: DataIdentity) -> str:
    if before["size"] != now["size"]:
        return f"there were {before['size']} samples and are {now['size']}"
    return "the samples, or the values of their columns, have changed"


def _pieces(source: Source) -> Iterator[bytes]:
    """Yield the bytes that the digest is computed from."""
    if isinstance(source, Subset):
        yield ",".join(map(str, source.kept)).encode()
        yield from _pieces(source.source)
    elif isinstance(source, Standardised):
        yield from _pieces(source.source)
    elif isinstance(source, Reduced):
        yield f"reduced to {source.side}".encode()
        yield from _pieces(source.source)
    elif isinstance(source, Latents | Unencoded):  # whose autoencoder is an origin of its own
        yield from _pieces(source.pictures)
    elif isinstance(source, Paths):
        yield from _tensor(source.states)
        yield from _pieces(source.source)
    elif isinstance(source, Pictures):
        yield from (*_tensor(source.pixels), *_held(source.targets))
    elif isinstance(source, Motions):
        yield repr(source.counts).encode()
        yield from (*_tensor(source.numbers), *_held(source.targets))
    elif isinstance(source, InMemory):
        yield from (*_tensor(source.x), *_held(source.targets))
    elif isinstance(source, Shards):
        yield from (_file(name) for name in source.files)
    else:
        yield f"{type(source).__name__} {source.size} {source.shape}".encode()


def _file(name: str) -> bytes:
    size = os.path.getsize(name) if os.path.isfile(name) else -1  # an address has no size here
    return f"{Path(name).name} {size}".encode()


def _tensor(x: Tensor) -> Iterator[bytes]:
    yield f"{x.dtype} {tuple(x.shape)}".encode()
    rows = x.detach().reshape(len(x), -1)
    width = max(1, rows.shape[1])
    every = -(-rows.numel() * x.element_size() // HASHED)
    every = max(1, min(every, width // LEAST_HASHED))
    for part in rows.split(max(1, 2**24 // (width * x.element_size()))):
        yield part[:, ::every].cpu().contiguous().numpy().tobytes()


def _held(targets: Held) -> Iterator[bytes]:
    for name in sorted(targets):
        yield name.encode()
        values = targets[name]
        if isinstance(values, Tensor):
            yield from _tensor(values)
        else:
            yield repr(values).encode()
