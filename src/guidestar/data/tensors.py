"""Tensors to train on (vectors, sequences, …), from safetensors or NumPy files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..core.rng import Draw
from ..io.files import Damaged
from .source import Column, ColumnKind, Derived, InMemory, Targets


def tensors(
    path: Path | str,
    *,
    columns: Mapping[str, ColumnKind] | None = None,
    classes: Sequence[str] = (),
    x: str = "x",
) -> InMemory:
    """Read samples ``[N, *S]`` and their columns.

    Args:
        path: a .safetensors file with a tensor "x" and one for each column, a folder with ``x.npy``
            and one file for each column, or a .npy file of samples alone.
        columns: the kind of each column; by default whole numbers are classes, others vectors.
        classes: names of the classes; by default the file's metadata "classes" (JSON: names, or
            names by column), else 0, 1, ….
        x: name of the samples' tensor.

    Raises:
        FileNotFoundError: there is no such file.
        Damaged: the file cannot be read.
        ValueError: it holds no samples, or samples or columns of another kind or shape.
    """
    path = Path(path)
    found, metadata = _read(path)
    if x not in found:
        raise ValueError(
            f"{path}: holds no samples {x!r}, but {', '.join(sorted(found)) or 'nothing'}; name "
            "the "
            f"tensor of the samples {x!r}"
        )
    samples = found.pop(x)
    _check_samples(path, samples)
    strange = [n for n in columns or {} if n not in found]
    if strange:
        raise ValueError(
            f"{path}: there is no column {strange[0]!r}; the columns are "
            f"{', '.join(sorted(found)) or 'none'}; correct data.columns"
        )
    described = {
        n: _describe(
            path, n, found[n], len(samples), (columns or {}).get(n), _names(n, classes, metadata)
        )
        for n in (columns or sorted(found))
    }
    targets = {
        n: found[n].long() if c.kind == "class" else found[n].float().reshape(len(samples), c.width)
        for n, c in described.items()
    }
    return InMemory(x=samples.float(), targets=targets, columns=described)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file or folder; check data.path")
    if path.suffix == ".safetensors":
        return read_tensor_file(path)
    files = sorted(path.glob("*.npy")) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(
            f"{path}: holds no .npy files; expected x.npy, and one for each column"
        )
    return {"x" if path.is_file() else f.stem: _read_npy(f) for f in files}, {}


def read_tensor_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a file, and its metadata.

    Raises:
        Damaged: it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise Damaged(
            f"{path}: truncated or corrupt, not readable as safetensors "
            f"({' '.join(str(error).split())}); write it again"
        ) from error


def _read_npy(path: Path) -> Tensor:
    import numpy as np

    try:
        array = np.load(path, allow_pickle=False)
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    except Exception as error:
        # The reader raises many kinds of exceptions, all of them for the file's fault.
        raise Damaged(
            f"{path}: not readable as a NumPy array of numbers ({' '.join(str(error).split())}); "
            "write it again with numpy.save"
        ) from error


def _check_samples(path: Path, x: Tensor) -> None:
    if x.ndim < 2 or not x.numel() or not x.is_floating_point():
        raise ValueError(
            f"{path}: samples must be floating point, [N, D], [N, T, C] or of more dimensions, not "
            f"{list(x.shape)} of {x.dtype}; convert or reshape them"
        )
    bad = (~x.float().flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"{path}: {len(bad)} of {len(x)} samples are not finite in float32, first that of row "
            f"{bad[0]}; correct or remove them"
        )


def _names(column: str, classes: Sequence[str], metadata: Mapping[str, str]) -> tuple[str, ...]:
    if classes:
        return tuple(classes)
    try:
        known = json.loads(metadata.get("classes", "[]"))
    except (ValueError, RecursionError):
        return ()
    names = known.get(column, []) if isinstance(known, dict) else known
    return tuple(str(n) for n in names) if isinstance(names, list) else ()


def _describe(
    path: Path,
    name: str,
    values: Tensor,
    count: int,
    stated: ColumnKind | None,
    names: tuple[str, ...],
) -> Column:
    if len(values) != count:
        raise ValueError(
            f"{path}: there are {count} samples, but {len(values)} values of {name!r}; give one "
            "for "
            "each sample"
        )
    whole = not values.is_floating_point() and values.dtype != torch.bool
    kind = stated or ("class" if whole and values.ndim == 1 else "vector")
    if (
        kind == "text"
        or (kind == "class" and not (whole and values.ndim == 1))
        or (kind == "vector" and values.ndim > 2)
        or values.is_complex()
    ):
        raise ValueError(
            f"{path}: the column {name!r} is not a {kind}: it holds {list(values.shape)} of "
            f"{values.dtype}; give another kind in data.columns, or leave it out"
        )
    if kind == "vector":
        if not bool(values.float().isfinite().all()):
            raise ValueError(
                f"{path}: the column {name!r} holds values that are not finite; correct or remove "
                "them"
            )
        return Column(kind="vector", width=1 if values.ndim == 1 else values.shape[1])
    low, high = int(values.min()), int(values.max())
    names = names or tuple(str(i) for i in range(high + 1))
    if low < 0 or high >= len(names):
        raise ValueError(
            f"{path}: the classes of {name!r} run from {low} to {high}, but there are "
            f"{len(names)} names; classes must be 0 to {len(names) - 1}"
        )
    return Column(kind="class", classes=names)


@dataclass(frozen=True, kw_only=True, eq=False)
class Standardiser:
    """Bring data to zero mean and unit variance by channel (the last dimension), and back.

    Args:
        mean: of each channel, ``[C]``.
        std: standard deviation of each channel, ``[C]``.
    """

    mean: Tensor
    std: Tensor

    @staticmethod
    def of(x: Tensor) -> Standardiser:
        """Measure ``x [N, …, C]``; a constant channel keeps its unit (std 1)."""
        flat = x.double().flatten(0, -2)
        std = flat.std(0, correction=0)
        return Standardiser(
            mean=flat.mean(0).float(), std=torch.where(std > 0, std, torch.ones_like(std)).float()
        )

    def apply(self, x: Tensor) -> Tensor:
        """Return ``(x − mean)/std``."""
        return (x - self.mean.to(x)) / self.std.to(x)

    def undo(self, x: Tensor) -> Tensor:
        """Return ``x·std + mean``."""
        return x * self.std.to(x) + self.mean.to(x)


@dataclass(frozen=True, kw_only=True, eq=False)
class Standardised(Derived):
    """Another source, standardised.

    Args:
        source: the other source.
        scale: mean and standard deviation by channel.
    """

    scale: Standardiser

    def batch(self, rows: Sequence[int], draw: Draw) -> tuple[Tensor, Targets]:
        """Return the standardised samples at ``rows``."""
        x, targets = self.source.batch(rows, draw)
        return self.scale.apply(x), targets
