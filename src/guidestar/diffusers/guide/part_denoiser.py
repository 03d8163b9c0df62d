"""The network of a learnt pipeline's step as a denoiser of any of its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...core.denoiser import Condition
from ...core.forms import PLAIN, SampleForm
from ...core.levels import Level
from ...core.prediction import Prediction
from .calls import AnswerRows, NetCall, rows_of_answer
from .levels import Output
from .probe import Combination, Layout
from .step_rows import ROWS


@dataclass(eq=False)
class PartDenoiser:
    """The network of a step's calls as a denoiser of any of their rows, in the scheduler's space.

    Args:
        net: the network; None for the pipeline's own.
        run: calls it, as it is when it is not guided.
        c: what the pipeline makes of its answers.
        layout: where the parts are.
        output: what the scheduler is given.
        z: the noisy samples.
        kept: what it answered in this step, for a second stream of the same run.
        again: whether this is such a stream.
        form: how the samples lie.
        perturbed: whether a pass of this step changes the network.
        moves: whether a pass may be at other samples than the step's.
    """

    net: Any
    run: Callable[..., Any]
    c: Combination
    layout: Layout
    output: Output
    z: Tensor
    kept: dict[object, AnswerRows]
    again: bool
    form: SampleForm = PLAIN
    perturbed: bool = False
    moves: bool = False
    reads_t: bool = False
    cpu_rows: int = 32
    apart: bool = True

    def __post_init__(self) -> None:
        self.own = self.net is None
        self.done: list[Any] = []
        self.net = self.c.calls[0].net if self.own else self.net
        self.finite = torch.ones((), dtype=torch.bool, device=self.c.sample.device)

    def __call__(self, x_t: Tensor, level: Level, cond: Condition) -> Tensor | Prediction:
        """Estimate x0 ``[n, …]``."""
        where = cond[ROWS]
        call, rows = self.c.calls[where.shape[1] - 1], where[:, 0]
        grad = torch.is_grad_enabled()
        # Hooks may move weights while the network runs (offloading), which inference mode would
        # spoil.
        with torch.inference_mode(False), torch.set_grad_enabled(grad):
            prompts = {
                k: t.clone() if t.is_inference() else t for k, t in cond.items() if k != ROWS
            }
            other = x_t if x_t.requires_grad or self._is_elsewhere(x_t, rows) else None
            key = len(self.done), where.shape[1], tuple(rows.tolist())
            self.done.append(key)
            answer = self.kept.get(key) if self.again and other is None else None
            if answer is None:
                answer = self._ask(call, rows, prompts, other)
                self.kept[key] = answer
            self.finite = self.finite & torch.stack([t.isfinite().all() for t in answer]).all()
            made = self._read(answer, rows % self.layout.batch).to(x_t.dtype)
        mean = self.c.mean(made) if made.shape[1:] != x_t.shape[1:] else made
        x0 = self.output.to_x0(x_t, mean, level)
        if mean is made:
            return x0
        share = made[:, mean.shape[1] :]
        return replace(Prediction.from_x0(x_t, level, x0), log_var=share)

    def _is_elsewhere(self, x_t: Tensor, rows: Tensor) -> bool:
        """Return whether these are other samples than the step's. Waits for the device."""
        if not self.moves:
            return False
        own = self.z[(rows % self.layout.batch).to(self.z.device)]
        return not torch.equal(x_t.to(own.dtype), own)

    def _ask(
        self, call: NetCall, rows: Tensor, prompts: Mapping[str, Tensor], x_t: Tensor | None
    ) -> AnswerRows:
        """Return what the network answers to some rows of a call."""
        if self.own and call.answers is not None and not self.perturbed and x_t is None:
            kept = call.prompts()
            if all(
                k in kept and torch.equal(kept[k][rows.to(t.device)], t) for k, t in prompts.items()
            ):
                return [t[rows.to(t.device)] for t in call.answers]
        net = call.net if self.own else self.net
        order = rows.argsort()
        if not self.perturbed and len(rows) == call.rows and len(rows.unique()) == call.rows:
            # All rows, as the pipeline hands them over.
            prompts = {k: t[order.to(t.device)] for k, t in prompts.items()}
            x = None if x_t is None else self._input(call, rows[order], x_t[order.to(x_t.device)])
            answer = self.run(net, call.inputs(rows[order], prompts, x))
            back = rows_of_answer(answer, len(rows), call.listed)
            return [t[order.argsort().to(t.device)] for t in back]
        x = None if x_t is None else self._input(call, rows, x_t)
        answer = self.run(net, call.inputs(rows, prompts, x))
        return rows_of_answer(answer, len(rows), call.listed)

    def _input(self, call: NetCall, rows: Tensor, x_t: Tensor) -> Tensor:
        """Return the network's noisy input, made of the scheduler's samples, with their graph."""
        given = call.x
        if isinstance(given, Tensor):
            index = rows.to(given.device)
            old = self.z[rows.to(self.z.device) % self.layout.batch].to(given.dtype)
            new, whole = x_t.to(given.dtype), given[index]
            for dim in range(1, given.ndim if given.ndim == new.ndim else 0):
                size = new.shape[dim]
                if new.shape != (*whole.shape[:dim], size, *whole.shape[dim + 1 :]):
                    continue
                for start in dict.fromkeys((0, whole.shape[dim] - size)):
                    held = whole.narrow(dim, start, size)
                    if torch.allclose(held, old, rtol=1e-2, atol=1e-3):
                        behind = start + size
                        rest = whole.narrow(dim, behind, whole.shape[dim] - behind)
                        return torch.cat([whole.narrow(dim, 0, start), new, rest], dim)
        raise ValueError(
            f"{self.c.name} makes its network's input of its samples in a way that is not known "
            "here, so a term that needs the network at other samples (sag), or the gradient "
            "through it, cannot be used"
        )

    def _read(self, answer: AnswerRows, samples: Tensor) -> Tensor:
        """Return what the scheduler would be given for these answers, one row a sample."""
        batch = self.layout.batch
        parts = []
        for start in range(0, len(samples), batch):
            index = samples[start : start + batch]
            if len(index) < batch or not index.equal(torch.arange(batch)):
                parts += [self._read_some(answer, start, index)]
                continue
            rows = [t[start : start + batch] for t in answer]
            parts.append(self._to_scheduler(rows))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _to_scheduler(self, rows: AnswerRows) -> Tensor:
        made = self.c.everywhere(self.layout, rows)
        flat = len(made) // self.layout.batch
        return made if flat == 1 else made.unflatten(0, (self.layout.batch, flat))

    def _read_some(self, answer: AnswerRows, start: int, index: Tensor) -> Tensor:
        """Read answers for some of the samples, perhaps with one of them more than once."""
        made = []
        for k, sample in enumerate(index.tolist()):
            rows = [
                t[start + k : start + k + 1].expand(self.layout.batch, *t.shape[1:]) for t in answer
            ]
            made.append(self._to_scheduler(rows)[sample : sample + 1])
        return torch.cat(made)
