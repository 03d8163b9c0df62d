"""What solvers, plans and pipelines must know of a term."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..core.passes import Pass, Slot


@dataclass(frozen=True, kw_only=True)
class Traits:
    """The properties of a term that solvers, plans and pipelines depend on.

    Args:
        requires: the base that the term must be added to (None: any).
        linked: whether eps follows its push; otherwise the prediction is split.
        reads_target: whether it depends on the level that the step leads to.
        gradients: number of gradients a step, for each sample.
        repeats: evaluations of its loss a step beyond the first, or iterations of a linear solver,
            for each sample; all beside the network.
        differentiates: the pass whose network it differentiates.
        only_solver: the only solver it works with, and the settings that this must have.
        later: number of rounds of passes after the first.
        nets: names of the networks beside the main one that it evaluates; a model encodes the
            condition for these only.
        instead: pairs ``(pass, pass of its own)``: where it acts, its own serves all terms in the
            place of the first, which must give the same prediction, unless that is differentiated.

    Raises:
        ValueError: a pass to differentiate, but no gradients.
    """

    requires: Slot | None = None
    linked: bool = True
    reads_target: bool = False
    gradients: int = 0
    repeats: int = 0
    differentiates: Pass | None = None
    only_solver: tuple[str, Mapping[str, object]] | None = None
    later: int = 0
    nets: tuple[str, ...] = ()
    instead: tuple[tuple[Pass, Pass], ...] = ()

    def __post_init__(self) -> None:
        if self.differentiates is not None and not self.gradients:
            raise ValueError(
                "Traits: a term with differentiates= takes gradients; give their number at each "
                "step too, e.g. gradients=1"
            )
