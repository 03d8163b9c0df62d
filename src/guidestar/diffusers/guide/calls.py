"""One call of a network of any family: its arguments by row, and its answer in rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as trees

from ...core.perturbation import AGAINST
from .traced import Tape, Traced

AnswerRows = Sequence[Tensor]
"""An answer: each of its tensors, with the samples as rows."""

INPUTS = ("hidden_states", "sample", "x", "x_t", "latents")
SHARED = frozenset(
    (
        *("img_ids", "txt_ids", "image_rotary_emb", "rotary_emb", "freqs_cis", "ip_adapter_masks"),
        "rope_interpolation_scale",
    )
)
"""Arguments that have no rows, whatever their shape."""
_SEVERAL = ("encoder_hidden_states", "image_embeds", "down_block", "mid_block", "controlnet")
"""How arguments begin of which each row of the network may have several: one for each frame."""
_TENSOR = object()
PROMPTS = frozenset(
    (
        *("encoder_hidden_states", "pooled_projections", "encoder_hidden_states_2"),
        *("encoder_hidden_states_t5", "encoder_hidden_states_llama3", "pooled_embeds"),
        *("text_embeds", "image_embeds", "clip_text_pooled", "clip_text", "txt"),
    )
)
"""Arguments of real numbers that are the request."""


def find_input(arguments: Mapping[str, Any]) -> str:
    """Return the name of a network's argument that is the noisy sample."""
    return next((name for name in INPUTS if name in arguments), next(iter(arguments)))


@dataclass(frozen=True, eq=False)
class Template:
    """The form of a network's answer to arguments of certain shapes.

    Args:
        tensors: each tensor of the answer, without numbers.
        others: what else it has, in its places.
        spec: how they are put together.
        listed: whether each tensor is one row.
    """

    tensors: Sequence[Tensor]
    others: Sequence[Any]
    spec: Any
    listed: bool
    devices: Sequence[torch.device]

    @classmethod
    def of(cls, answer: Any, rows: int, listed: bool) -> tuple[Template, AnswerRows]:
        """Return the form of an answer, and its rows."""
        leaves, spec = trees.tree_flatten(answer)
        tensors = [x for x in leaves if _has_rows(x, rows, listed)]
        others = [_TENSOR if _has_rows(x, rows, listed) else x for x in leaves]
        metas = [x.to("meta") for x in tensors]
        made = cls(metas, others, spec, listed, [x.device for x in tensors])
        return made, ([torch.stack(tensors)] if listed else tensors)

    @cached_property
    def row_forms(self) -> list[Tensor]:
        """The answer's tensors in rows, without numbers."""
        tensors = list(self.tensors)
        return [torch.stack(tensors)] if self.listed else tensors

    def promised(self, tape: Tape) -> tuple[Any, list[Traced]]:
        """Return an answer without numbers, and its stand-ins."""
        leaves = [
            tape.stand_in(t, device) for t, device in zip(self.tensors, self.devices, strict=True)
        ]
        rest = iter(leaves)
        whole = [next(rest) if x is _TENSOR else x for x in self.others]
        return trees.tree_unflatten(whole, self.spec), leaves


def _has_rows(x: Any, rows: int, listed: bool) -> bool:
    real = isinstance(x, Tensor) and x.is_floating_point()
    return real and (listed or (x.ndim > 0 and len(x) == rows))


def rows_of_answer(answer: Any, rows: int, listed: bool) -> AnswerRows:
    """Return the rows of an answer, as `Template.of` does."""
    tensors = [x for x in trees.tree_leaves(answer) if _has_rows(x, rows, listed)]
    return [torch.stack(tensors)] if listed else tensors


_UNKNOWN = Template((), (), trees.tree_flatten(())[1], False, ())
"""The form of an answer before the network was called."""


@dataclass(frozen=True, kw_only=True, eq=False)
class NetCall:
    """A call of a network by its pipeline.

    Args:
        net: the network.
        arguments: by name.
        template: the form of its answer.
        leaves: the stand-ins that the pipeline was given.
        answers: what the network answers, where it was called already.
    """

    net: Any
    arguments: Mapping[str, Any]
    template: Template = field(repr=False, default=_UNKNOWN)
    leaves: Sequence[Traced] = ()
    answers: AnswerRows | None = None

    @property
    def x(self) -> Any:
        """The network's noisy input: a tensor, or a list with one for each row."""
        return self.arguments[find_input(self.arguments)]

    @property
    def rows(self) -> int:
        """How many rows the pipeline hands over."""
        return len(self.x)

    @property
    def listed(self) -> bool:
        """Whether the network takes and gives a list, with one tensor for each row."""
        return isinstance(self.x, list | tuple)

    @property
    def row_forms(self) -> list[Tensor]:
        """The answer's tensors in rows, without numbers."""
        return self.template.row_forms

    @property
    def devices(self) -> Sequence[torch.device]:
        """Where each of them is."""
        return self.template.devices[: len(self.row_forms)]

    def leaves_of(self, answer: AnswerRows) -> dict[Traced, Tensor]:
        """Return an answer by the stand-ins."""
        values = list(answer[0].unbind(0)) if self.template.listed else answer
        return dict(zip(self.leaves, values, strict=True))

    def prompts(self) -> dict[str, Tensor]:
        """Return the request's tensors."""
        return {
            name: t
            for name, t in self.arguments.items()
            if name in PROMPTS
            and isinstance(t, Tensor)
            and t.is_floating_point()
            and len(t) == self.rows
        }

    def inputs(
        self, rows: Tensor, prompts: Mapping[str, Tensor], x: Tensor | None = None
    ) -> dict[str, Any]:
        """Return the arguments for some rows.

        Args:
            rows: which, as often as they are listed.
            prompts: what takes the place of the request's tensors, one row each.
            x: what takes the place of the noisy input.
        """
        index = rows.tolist()
        whole = index == list(range(self.rows))
        made = {}
        for name, value in self.arguments.items():
            if name in prompts:
                made[name] = prompts[name]
            elif x is not None and name == find_input(self.arguments):
                made[name] = x
            else:
                made[name] = value if whole or name in SHARED else self._take(name, value, index)
        return made | {k: t for k, t in prompts.items() if k.startswith(AGAINST) and k not in made}

    def _take(self, name: str, value: Any, index: list[int]) -> Any:
        n = self.rows
        if isinstance(value, Tensor):
            return _rows_of(name, value, index, n)
        if isinstance(value, dict):
            return {k: v if k in SHARED else self._take(k, v, index) for k, v in value.items()}
        if type(value) not in (list, tuple):
            return value
        inner = [v for v in value if isinstance(v, Tensor)]
        by_row = len(value) == n and not (inner and all(len(v) == n and v.ndim > 2 for v in inner))
        if isinstance(value, list) and by_row:
            return [value[i] for i in index]
        return type(value)(self._take(name, v, index) for v in value)


def _rows_of(name: str, value: Tensor, index: list[int], n: int) -> Tensor:
    """Return some rows of a tensor; text and pictures may have several for each of the network's
    (one for each frame).
    """
    if not value.ndim:
        return value
    where = torch.tensor(index, device=value.device)
    if len(value) == n:
        return value[where]
    several = name.startswith(_SEVERAL) and len(value) % n == 0
    return value.unflatten(0, (n, -1))[where].flatten(0, 1) if several else value


def signature(net: Any, arguments: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what the form of an answer depends on."""
    leaves, spec = trees.tree_flatten(dict(arguments))
    shapes = tuple(
        (tuple(x.shape), x.dtype, x.device) if isinstance(x, Tensor) else type(x) for x in leaves
    )
    return id(net), str(spec), shapes
