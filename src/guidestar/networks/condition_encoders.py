"""Encoders of one condition each: class indices, real vectors, captions (`conditions` joins them).

Each kind is a module with

    rows(values) -> Tensor [B, …]     the condition of each sample, as numbers
    null_row() -> Tensor […]          the numbers of the null condition
    forward(rows) -> Condition        the network's inputs
    parse(name) -> value              the value of a text

Training drops a condition by putting the null row in its place, and sampling without a condition
does the same: the null is part of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.denoiser import Condition


def find_class(name: str | int, classes: Sequence[str]) -> int:
    """Find a class by name or index.

    Raises:
        ValueError: there is no such class.
    """
    lowered = [c.lower() for c in classes]
    if isinstance(name, str) and name.lower() in lowered:
        return lowered.index(name.lower())
    if str(name).isdecimal() and int(name) < len(classes):
        return int(name)
    listed = ", ".join(f"{i} {c}" for i, c in enumerate(classes[:12]))
    raise ValueError(
        f"unknown class {name!r}; the classes are {listed}{', …' if len(classes) > 12 else ''}"
    )


class _Alone:
    """Mixin of a single kind of condition that is a model's encoder by itself."""

    if TYPE_CHECKING:
        parameters: Callable[[], Iterable[Tensor]]
        buffers: Callable[[], Iterable[Tensor]]

        def __call__(self, rows: Tensor) -> Condition: ...
        def rows(self, values: Sequence[Any]) -> Tensor: ...
        def null_row(self) -> Tensor: ...
        def parse(self, name: str | int) -> object: ...

    def _device(self) -> torch.device:
        return next((t.device for t in (*self.parameters(), *self.buffers())), torch.device("cpu"))

    def encode(self, names: Sequence[str | int]) -> Condition:
        """Encode names, one for each sample."""
        return self(self.rows([self.parse(n) for n in names]).to(self._device()))

    def null(self, batch: int) -> Condition:
        """Return the null condition for ``batch`` samples."""
        return self(self.null_row().to(self._device()).expand(batch, *self.null_row().shape))


class _Classes:
    """Mixin of conditions of classes, which have ``classes``."""

    if TYPE_CHECKING:
        classes: tuple[str, ...]

    @property
    def null_index(self) -> int:
        """Index of "no condition"."""
        return len(self.classes)

    def index(self, name: str | int) -> int:
        """Find a class by name or index ("" is the null).

        Raises:
            ValueError: there is no such class.
        """
        return self.null_index if name == "" else find_class(name, self.classes)

    parse = index

    def rows(self, values: Tensor | Sequence[int]) -> Tensor:
        """Return class indices as ``[B]``, int64."""
        return torch.as_tensor(values).long()

    def null_row(self) -> Tensor:
        """Return the index after the last class."""
        return torch.tensor(self.null_index)


class ClassEncoder(_Classes, _Alone, ModelMixin, ConfigMixin):
    """Turn class indices into a condition; the row after the last class is the null.

    Args:
        classes: names of the classes, in the order of their indices.
        width: length of the embedding (the U-Net's time embedding: four times its first width).
    """

    @register_to_config
    def __init__(self, classes: Sequence[str], width: int) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.table = nn.Embedding(len(classes) + 1, width)

    def forward(self, labels: Tensor) -> Condition:
        """Embed labels ``[B]`` (int64; `null_index` for none)."""
        return Condition(class_labels=self.table(labels))


class LabelEncoder(_Classes, _Alone, ModelMixin, ConfigMixin):
    """Pass class indices to a network that has the embedding table (DiT).

    The null is the index after the last class, or the one that is given.

    Args:
        classes: names of the classes, in the order of their indices.
        null: index of "no condition", of a network with more labels than there are classes.
    """

    @register_to_config
    def __init__(self, classes: Sequence[str], null: int | None = None) -> None:
        super().__init__()
        self.classes, self.null_label = tuple(classes), null

    @property
    def null_index(self) -> int:
        """Index of "no condition"."""
        return len(self.classes) if self.null_label is None else self.null_label

    def forward(self, labels: Tensor) -> Condition:
        """Pass labels ``[B]`` on."""
        return Condition(class_labels=labels)


class VectorEncoder(_Alone, ModelMixin, ConfigMixin):
    """Embed real vectors ``[B, D]``; a row of NaN is the null, and has a learned embedding.

    ``W₂ silu(W₁ (y − mean)/std + b₁) + b₂``.

    Args:
        size: D.
        width: of the embedding.
        mean: of the data, by dimension.
        std: its standard deviation, by dimension.
    """

    @register_to_config
    def __init__(
        self,
        size: int,
        width: int,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.size = size
        self.first, self.second = nn.Linear(size, width), nn.Linear(width, width)
        self.unknown = nn.Parameter(torch.zeros(width))
        self.register_buffer("centre", torch.tensor(mean or [0.0] * size), persistent=False)
        self.register_buffer("spread", torch.tensor(std or [1.0] * size), persistent=False)

    def rows(self, values: Tensor | Sequence[Sequence[float]]) -> Tensor:
        """Return vectors as ``[B, D]``, float32."""
        return torch.as_tensor(values, dtype=torch.float32)

    def null_row(self) -> Tensor:
        """Return NaN in every dimension."""
        return torch.full((self.size,), float("nan"))

    def forward(self, rows: Tensor) -> Condition:
        """Embed vectors ``[B, D]``."""
        missing = rows.isnan().any(-1, keepdim=True)
        y = (rows.nan_to_num().to(self.first.weight.dtype) - self.centre) / self.spread
        return Condition(
            class_labels=torch.where(missing, self.unknown, self.second(F.silu(self.first(y))))
        )

    def parse(self, name: str | float) -> list[float]:
        """Read numbers separated by commas ("" is the null).

        Raises:
            ValueError: they are not numbers, or not as many as there should be.
        """
        if name == "":
            return self.null_row().tolist()
        try:
            values = [float(part) for part in str(name).split(",")]
        except ValueError:
            values = []
        if len(values) != self.size or not all(abs(v) < float("inf") for v in values):
            raise ValueError(
                f"the condition {name!r} should be {self.size} "
                f"number{'s, separated by commas' if self.size > 1 else ''}"
            )
        return values

    index = parse
