"""One call of a pipeline's network: its inputs by row, and the network as a denoiser of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...core.denoiser import Condition
from ...core.levels import Level
from ...core.perturbation import AGAINST
from ...core.prediction import Prediction
from ..objects import Answer, Arguments, DiffusersNetwork, RunNetwork
from .families import Family
from .levels import Output

_ROWS, _TIME, _PICTURES = "rows", "timestep", "encoder_hidden_states_image"
Change = Callable[[str, Tensor], object]


def over(arguments: Arguments, change: Change) -> dict[str, Any]:
    """Return nested arguments with each tensor changed, given its innermost name."""
    return {name: _over(value, name, change) for name, value in arguments.items()}


def _over(value: object, name: str, change: Change) -> object:
    if isinstance(value, Tensor):
        return change(name, value)
    if isinstance(value, dict):
        return over(value, change)
    if type(value) is list:
        return [_over(v, f"{name}.{i}", change) for i, v in enumerate(value)]
    if type(value) is tuple:
        return tuple(_over(v, f"{name}.{i}", change) for i, v in enumerate(value))
    return value


def grouped(arguments: Arguments, rows: int) -> Arguments:
    """Return arguments with each row's pictures together (Wan's first and last frame)."""
    pictures = arguments.get(_PICTURES)
    if isinstance(pictures, Tensor) and len(pictures) != rows and len(pictures) % rows == 0:
        return {**arguments, _PICTURES: pictures.unflatten(0, (rows, -1))}
    return arguments


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """The inputs of a network in one call (or in two that belong together).

    Args:
        family: of the network.
        arguments: by name, as the pipeline gave them.
        parts: whose rows these are, in their order.
        channels: how many of the channels are the noisy sample.
        learned_variance: the output has twice as many.
    """

    family: Family
    arguments: Arguments
    parts: tuple[str, ...]
    channels: int
    learned_variance: bool

    @property
    def whole(self) -> Tensor:
        """The input of the network."""
        return self.arguments[self.family.x]

    @property
    def rows(self) -> int:
        """How many rows the pipeline hands over."""
        return len(self.whole)

    @property
    def batch(self) -> int:
        """How many samples there are.

        Raises:
            ValueError: the rows cannot be those of these parts.
        """
        if self.rows % len(self.parts):
            raise ValueError(
                f"the pipeline handed its network {self.rows} rows, which are not those of "
                f"{' and '.join(self.parts)}"
            )
        return self.rows // len(self.parts)

    @cached_property
    def grid(self) -> tuple[int, ...]:
        """The sizes that unpacking needs."""
        return self.family.grid(self.arguments)

    @property
    def x(self) -> Tensor:
        """The noisy samples ``[B, C, *S]``."""
        start = self.parts.index("cond") * self.batch
        x = self.whole[start : start + self.batch].narrow(self.family.channel, 0, self.channels)
        return self.family.unpack(x, self.grid)

    def per_row(self, name: str, t: Tensor) -> bool:
        """Tell whether a tensor has one row for each row of the batch."""
        head = name.split(".", maxsplit=1)[0]
        return head not in (*self.family.shared, _TIME) and t.ndim > 0 and len(t) == self.rows

    @cached_property
    def prompts(self) -> dict[str, Tensor]:
        """The tensors of the prompts, one row a sample."""
        found: dict[str, Tensor] = {}
        self._visit(
            lambda name, t: (
                found.update({name: t})
                if name in self.family.prompts and self.per_row(name, t)
                else None
            )
        )
        return found

    @cached_property
    def has_settings(self) -> bool:
        """Whether rows have inputs beside the prompt: sizes, a ControlNet's residuals, a mask."""
        found: list[str] = []
        known = (*self.family.prompts, self.family.x)
        self._visit(
            lambda name, t: (
                found.append(name) if name not in known and self.per_row(name, t) else None
            )
        )
        return bool(found) or self.whole.shape[self.family.channel] > self.channels

    def _visit(self, visit: Change) -> None:
        over(self.arguments, visit)

    def condition(self, part: str) -> Condition:
        """Return the condition of one part, for all samples."""
        start = self.parts.index(part) * self.batch
        prompts = {name: t[start : start + self.batch] for name, t in self.prompts.items()}
        return Condition(
            {
                **prompts,
                **({_ROWS: torch.arange(start, start + self.batch)} if self.has_settings else {}),
            }
        )

    def encoded(
        self, tensors: Mapping[str, Tensor], names: int, *, away: bool = False
    ) -> Condition:
        """Return the condition of prompts that were encoded elsewhere.

        Each row's other inputs (an image prompt, a ControlNet's residuals, sizes) are those of the
        pipeline's own prompt, or of its negative prompt where there are such rows.

        Args:
            tensors: the prompts, as the network takes them.
            names: how many they are.
            away: they stand in the place of the negative prompt.

        Raises:
            ValueError: they do not fit the network's inputs.
        """
        if set(tensors) != set(self.prompts):
            raise ValueError(
                "prompts within an expression are not supported here: the network takes "
                f"{', '.join(self.prompts)}, and they give {', '.join(tensors)}"
            )
        inputs = {
            k: t.to(
                self.prompts[k].device, self.prompts[k].dtype if t.is_floating_point() else t.dtype
            )
            for k, t in tensors.items()
        }
        if not self.has_settings:
            return Condition(inputs)
        if names > 1:
            raise ValueError(
                "several conditions to draw from (among=) are not supported where a pipeline "
                "passes its network more of each sample than the prompt"
            )
        rows = self.condition("uncond" if away and "uncond" in self.parts else "cond")[_ROWS]
        return Condition(
            {**{k: t.expand(self.batch, *t.shape[1:]) for k, t in inputs.items()}, _ROWS: rows}
        )

    def merged(self, other: Call) -> Call:
        """Return this call and another one, of other rows of the same step, as one."""
        theirs: list[Tensor] = []
        other._visit(lambda name, t: theirs.append(t))
        own: list[tuple[str, Tensor]] = []
        self._visit(lambda name, t: own.append((name, t)))
        if len(own) != len(theirs) or any(
            a.shape[1:] != b.shape[1:] for (_, a), b in zip(own, theirs, strict=False)
        ):
            odd = next(
                (
                    name
                    for (name, a), b in zip(own, theirs, strict=False)
                    if a.shape[1:] != b.shape[1:]
                ),
                "arguments",
            )
            raise ValueError(
                "the prompt and the negative prompt reach the network in other shapes "
                f"({odd}); give both of one length"
            )
        rest = iter(theirs)

        def join(name: str, t: Tensor) -> Tensor:
            after = next(rest)
            return (
                torch.cat([t, after])
                if self.per_row(name, t) or (name == _TIME and t.ndim and len(t) == self.rows)
                else t
            )

        arguments = over(self.arguments, join)
        return replace(self, arguments=arguments, parts=self.parts + other.parts)

    def inputs(self, x: Tensor, times: Tensor | None, cond: Condition) -> Arguments:
        """Return the arguments for other rows than the pipeline's.

        Args:
            x: their samples ``[n, C, *S]``.
            times: other timesteps than the pipeline's, ``[n]``.
            cond: their conditions.
        """
        rows = cond.get(_ROWS)
        index = None if rows is None or rows.equal(torch.arange(self.rows)) else rows

        def change(name: str, t: Tensor) -> Tensor:
            if t is self.whole:
                return self._input(x, index)
            if name == _TIME:
                return self._times(t, times, len(x))
            if name in cond and name in self.prompts:
                return cond[name]
            return t if not self.per_row(name, t) else t if index is None else t[index.to(t.device)]

        against = {
            k: v for k, v in cond.items() if k.startswith(AGAINST) and k != f"{AGAINST}{_ROWS}"
        }
        made = over(self.arguments, change)
        if isinstance(pictures := made.get(_PICTURES), Tensor) and pictures.ndim > 3:
            made[_PICTURES] = pictures.flatten(0, 1)
        return {**made, **against}

    def _input(self, x: Tensor, index: Tensor | None) -> Tensor:
        packed = self.family.pack(x.to(self.whole.dtype), self.grid)
        dim, more = self.family.channel, self.whole.shape[self.family.channel] - self.channels
        if not more:
            return packed
        rest = self.whole.narrow(dim, self.channels, more)
        return torch.cat([packed, rest if index is None else rest[index.to(rest.device)]], dim)

    def _times(self, given: Tensor, times: Tensor | None, n: int) -> Tensor:
        if times is not None:
            return times.to(given.device, torch.promote_types(given.dtype, torch.float32))
        return given[:1].expand(n, *given.shape[1:]) if given.ndim else given


@dataclass(eq=False)
class CallDenoiser:
    """The network of a call as a denoiser (`guidestar.Denoiser`) of any of its rows.

    Args:
        net: the network.
        run: calls it, as it is when it is not guided.
        call: the pipeline's inputs to it.
        output: what its answer means.
        level: of the call.
        reads_t: whether it can take another time.
        cpu_rows: the most rows of a call on a CPU.
    """

    net: DiffusersNetwork
    run: RunNetwork
    call: Call
    output: Output
    level: Level
    reads_t: bool
    answer: Answer = None
    cpu_rows: int = 32

    def __post_init__(self) -> None:
        self.finite = torch.ones((), dtype=torch.bool, device=self.call.whole.device)
        """Whether all that it answered was finite."""

    def __call__(self, x_t: Tensor, level: Level, cond: Condition) -> Tensor | Prediction:
        """Estimate x0 ``[n, C, *S]``."""
        grad = torch.is_grad_enabled()
        # Hooks may move weights while the network runs (offloading), which inference mode would
        # spoil.
        with torch.inference_mode(False), torch.set_grad_enabled(grad):
            usable = x_t.clone() if x_t.is_inference() else x_t
            cond = Condition({k: t.clone() if t.is_inference() else t for k, t in cond.items()})
            self.answer = self.run(
                self.net, self.call.inputs(usable, self._scale_times(level), cond)
            )
            self.finite = self.finite & first(self.answer).isfinite().all().to(self.finite.device)
        out = self.call.family.unpack(first(self.answer), self.call.grid).to(x_t.dtype)
        if not self.call.learned_variance:
            return self.output.to_x0(x_t, out, level)
        mean, share = out.split(self.call.channels, 1)
        prediction = Prediction.from_x0(x_t, level, self.output.to_x0(x_t, mean, level))
        return replace(prediction, log_var=share)

    def _scale_times(self, level: Level) -> Tensor | None:
        """Return the rows' times in the network's units, where they differ from the pipeline's."""
        if not isinstance(level.t, Tensor):
            return None
        inputs = torch.as_tensor(self.call.arguments[_TIME], dtype=torch.float64).max().cpu()
        return level.t * (inputs / self.level.t) if self.level.t else level.t

    def written(self, prediction: Prediction) -> Tensor:
        """Return a prediction as the network's output, the same for each part."""
        out = self.output.of(prediction)
        if self.call.learned_variance:
            share = torch.zeros_like(out) if prediction.log_var is None else prediction.log_var
            out = torch.cat([out, share], 1)
        given = self.call.whole if self.answer is None else first(self.answer)
        return self.call.family.pack(out, self.call.grid).to(given.dtype)


def first(answer: Answer) -> Tensor:
    """Return the tensor of a network's answer."""
    return answer.sample if hasattr(answer, "sample") else answer[0]


def bound(net: DiffusersNetwork, args: tuple[object, ...], kwargs: Arguments) -> Arguments:
    """Return a network's arguments by name."""
    signature = inspect.signature(getattr(net, "_orig_mod", net).forward)
    # Pipelines change their dicts between two calls, so these are copied.
    return over(signature.bind(*args, **kwargs).arguments, lambda _, t: t)
