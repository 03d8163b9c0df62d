"""The base of classifier-free methods: a contrast of the condition with a negative one."""

from __future__ import annotations

from abc import ABC

from ...core.arguments import check_arguments
from ...core.denoiser import Condition
from ...core.levels import Step
from ...core.passes import COND, NEGATIVE, Pass
from ..term import Context, Contrast, Direction


class Conditioned(Contrast, ABC):
    """A term ``n + s(c − n)``: towards the condition c, away from a negative n.

    A method declares ``negative`` among its arguments. Its scale is s.
    """

    negative: str | int | Condition | None
    neutral = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_arguments(self, self.name, "negative")

    def bind(self, context: Context) -> Direction:
        return needs_condition(self, context)

    def good(self, step: Step) -> Pass:
        return COND

    def bad(self, step: Step) -> Pass:
        return NEGATIVE if self.negative is None else Pass(cond=self.negative)


def needs_condition(term: Direction, context: Context) -> Direction:
    """Return the term; refuse a run without a condition.

    Raises:
        ValueError: the run has no condition.
    """
    if not context.conditional:
        raise ValueError(
            f"{term.name} contrasts the model with and without its condition, but no condition "
            "was given; give cond="
        )
    return term
