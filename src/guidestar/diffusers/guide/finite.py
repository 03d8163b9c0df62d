"""Check that the numbers of a guided run are finite, without waiting for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...core.levels import Step

HUGE = 1e4
"""Guided predictions of this size have left any plausible range."""


class CallNumbers(NamedTuple):
    """``[input finite, answers finite, guided finite, largest of guided]`` of one call."""

    step: Step
    numbers: Tensor


class FiniteWatch:
    """Record each call's numbers, and end a run in which one is not finite.

    On a CPU that happens at once, elsewhere after the last step.

    Args:
        kind: the pipeline's class, for the message.
        blame: names the terms that made numbers of a step that are not finite.
    """

    def __init__(self, kind: str, blame: Callable[[Step], Sequence[str]]) -> None:
        self.kind, self.blame, self.calls = kind, blame, list[CallNumbers]()

    def record(self, step: Step, x: Tensor, answers: Tensor, guided: Tensor) -> None:
        """Record one call.

        Args:
            step: of the call.
            x: what the network was given.
            answers: whether all that it answered was finite, one boolean.
            guided: what the pipeline is given.

        Raises:
            FloatingPointError: on a CPU, something is not finite.
        """
        with torch.no_grad():
            flags = (x.isfinite().all(), answers, guided.isfinite().all(), guided.abs().amax())
            kind = torch.float32 if guided.device.type == "mps" else torch.float64
            self.calls.append(
                CallNumbers(step, torch.stack([f.to(guided.device, kind) for f in flags]))
            )
        if guided.device.type == "cpu":
            self._check(self.calls[-1:])

    def end(self, result: object) -> None:
        """Check the calls of a whole run, and what the pipeline returns.

        Raises:
            FloatingPointError: something is not finite.
        """
        if self.calls and self.calls[0].numbers.device.type != "cpu":
            numbers = torch.stack([s.numbers for s in self.calls]).cpu()
            self._check([CallNumbers(s.step, n) for s, n in zip(self.calls, numbers, strict=True)])
        if not all(bool(torch.as_tensor(made).isfinite().all()) for made in _floats(result)):
            raise FloatingPointError(
                f"{self.kind} returns numbers that are not finite, though all guided predictions "
                "were; "
                "a VAE may overflow in float16: decode in float32 (pipe.vae.to(torch.float32))"
            )

    def _check(self, calls: Sequence[CallNumbers]) -> None:
        for step, numbers in calls:
            given, answered, guided, _ = numbers.tolist()
            if not (given and answered and guided):
                raise FloatingPointError(self._line(step, bool(given), bool(answered)))

    def _line(self, step: Step, given: bool, answered: bool) -> str:
        here = f"step {step.index + 1} of {step.grid.steps}"
        before = [s for s in self.calls if s.step.index < step.index]
        if (not given or not answered) and before and not float(before[-1].numbers[3]) < HUGE:
            return (
                f"{self.kind}: {self._who(before[-1].step)} reached "
                f"{float(before[-1].numbers[3]):.1g}, and at {here} numbers are not finite any "
                "more; lower the scale"
            )
        if not given:
            return (
                f"{self.kind}: its latents are not finite at {here}, before guidance; "
                "the pipeline itself made them so (its VAE, its scheduler, latents=)"
            )
        if not answered:
            return (
                f"{self.kind}: its network answers with numbers that are not finite at "
                f"{here}; where it runs in float16, take bfloat16 or float32"
            )
        return (
            f"{self.kind}: {self._who(step)} makes numbers that are not finite at {here}, "
            "though the network's are; lower the scale"
        )

    def _who(self, step: Step) -> str:
        return " and ".join(self.blame(step)) or "the guidance"


def _floats(result: object) -> Iterator[object]:
    """Return the tensors and arrays of real numbers in what a pipeline returns."""
    for made in (
        result
        if isinstance(result, tuple)
        else vars(result).values()
        if hasattr(result, "__dict__")
        else ()
    ):
        if (isinstance(made, Tensor) and made.is_floating_point()) or getattr(
            getattr(made, "dtype", None), "kind", ""
        ) == "f":
            yield made
