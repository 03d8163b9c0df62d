"""Answers of a network that are not known yet, and what a pipeline makes of them.

A pipeline combines its network's answers before its scheduler takes a step: it cuts them into rows,
subtracts, scales, turns signs, packs. A `Traced` tensor goes through that code in the place of an
answer. It has a shape and a type but no numbers, and each operation on it is written on its `Tape`.
The tape is then run as often as needed, with any answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

_LOOKS = ("_local_scalar_dense", "is_nonzero", "equal", "item", "nonzero")


class ValueReadError(ValueError):
    """A pipeline needed the numbers of an answer before its scheduler's step."""


@dataclass(frozen=True, eq=False)
class _Operation:
    func: Any
    args: Any
    kwargs: Any
    results: tuple[Any, ...]


@dataclass(eq=False)
class Tape:
    """The operations of one step of a pipeline on its network's answers, in their order.

    Args:
        name: the pipeline's class, for messages.
    """

    name: str
    operations: list[_Operation] = field(default_factory=list)
    _needed: dict[tuple[int, int], list[_Operation]] = field(default_factory=dict, init=False)

    def stand_in(self, meta: Tensor, device: torch.device) -> Traced:
        """Return a tensor without numbers, of the sizes and type of ``meta``."""
        return Traced(meta, device, self)

    def record(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """Write down one operation, and return stand-ins of its results.

        Raises:
            ValueReadError: it reads numbers, or writes them into a tensor of the pipeline's own.
        """
        name = func.overloadpacket.__name__
        if name in _LOOKS:
            raise ValueReadError(
                f"{self.name} reads the numbers of its network's answers before its "
                "scheduler's step, so it cannot be guided with these settings"
            )
        flat = _leaves((*args, *kwargs.values()))
        if func._schema.is_mutable and not isinstance(flat[0], Traced):
            raise ValueReadError(
                f"{self.name} writes its network's answers into a tensor of its own, so it cannot "
                "be guided with these settings"
            )
        if any(t.tape is not self for t in flat if isinstance(t, Traced)):
            raise ValueReadError(
                f"{self.name} keeps its network's answers from one step to the next, so it cannot "
                "be guided with these settings"
            )
        device = kwargs.get("device") or next(t.device for t in flat if isinstance(t, Traced))
        metas = {id(t): _as_meta(t) for t in flat if isinstance(t, Tensor)}
        plain, named = _replaced(args, kwargs, lambda a: metas.get(id(a), a))
        if named.get("device") is not None:
            named["device"] = torch.device("meta")
        made = func(*plain, **named)
        owners = {id(m): t for t in flat if isinstance(t, Traced) for m in (metas[id(t)],)}

        def wrap(m: Any) -> Any:
            if not isinstance(m, Tensor):
                return m
            return owners[id(m)] if id(m) in owners else Traced(m, torch.device(device), self)

        results = _map(wrap, made)
        self.operations.append(_Operation(func, args, kwargs, tuple(_leaves((results,)))))
        return results

    def run(self, leaves: Mapping[Traced, Tensor], wanted: Traced) -> Tensor:
        """Return what ``wanted`` is where the answers are ``leaves``."""
        known: dict[int, Tensor] = {id(k): v for k, v in leaves.items()}
        if wanted.tape is not self:
            raise ValueReadError(
                f"{self.name} keeps its network's answers from one step to the next, so it cannot "
                "be guided with these settings"
            )
        fill = lambda a: known[id(a)] if isinstance(a, Traced) else a
        for operation in self._list_needed(wanted):
            args, kwargs = _replaced(operation.args, operation.kwargs, fill)
            made = _leaves((operation.func(*args, **kwargs),))
            for stand_in, value in zip(operation.results, made, strict=True):
                if isinstance(stand_in, Traced):
                    known[id(stand_in)] = value
        return known[id(wanted)]

    def _list_needed(self, wanted: Traced) -> list[_Operation]:
        """Return the operations that ``wanted`` depends on; all up to it where some write."""
        key = (id(wanted), len(self.operations))
        if key not in self._needed:
            self._needed[key] = self._find_needed(wanted)
        return self._needed[key]

    def _find_needed(self, wanted: Traced) -> list[_Operation]:
        if any(o.func._schema.is_mutable for o in self.operations):
            return self.operations
        needed, kept = {id(wanted)}, []
        for o in reversed(self.operations):
            if any(id(r) in needed for r in o.results):
                kept.append(o)
                inputs = _leaves((*o.args, *o.kwargs.values()))
                needed |= {id(a) for a in inputs if isinstance(a, Traced)}
        return kept[::-1]


class Traced(Tensor):
    """A tensor without numbers, whose operations are written on a tape."""

    tape: Tape
    meta: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore

    @staticmethod
    def __new__(cls, meta: Tensor, device: torch.device, tape: Tape) -> Traced:
        """Make one of the sizes and type of ``meta``."""
        made = Tensor._make_wrapper_subclass(
            cls,
            meta.shape,
            strides=meta.stride(),
            storage_offset=meta.storage_offset(),
            dtype=meta.dtype,
            device=device,
        )
        made.meta, made.tape = meta, tape
        return made

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self, **_: Any) -> str:
        return f"Traced({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Record an operation on the tape of its first stand-in."""
        kwargs = kwargs or {}
        leaves = _leaves((*args, *kwargs.values()))
        tape = next(t.tape for t in leaves if isinstance(t, Traced))
        return tape.record(func, args, kwargs)


def _leaves(values: Iterable[Any]) -> list[Any]:
    """Return what is in arguments or results of an operation, whose only containers are lists and
    tuples.
    """
    found: list[Any] = []
    for value in values:
        if isinstance(value, list | tuple):
            found += _leaves(value)
        else:
            found.append(value)
    return found


def _map(change: Callable[[Any], Any], value: Any) -> Any:
    """Change all that is in an argument or a result."""
    if isinstance(value, list | tuple):
        made = [_map(change, v) for v in value]
        return made if isinstance(value, list) else tuple(made)
    return change(value)


def _replaced(
    args: Sequence[Any], kwargs: Mapping[str, Any], change: Callable[[Any], Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Change all that is in the arguments of an operation."""
    return [_map(change, a) for a in args], {k: _map(change, v) for k, v in kwargs.items()}


def _as_meta(t: Tensor) -> Tensor:
    if isinstance(t, Traced):
        return t.meta
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")
