"""Terms, posts and expressions: ``guided = post( base + Σ weightᵢ(step) · directionᵢ )``.

A `Direction` is a term of that sum, a `Post` acts on its result, and a `Guidance` is the whole
expression, without a network. `Guided` binds it to networks and runs it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import ClassVar, Literal

from torch import Tensor

from ..core.levels import Step, Value
from ..core.passes import Pass, Slot
from ..core.prediction import Prediction
from ..core.rounds import Group
from ..core.slopes import Slope
from .context import Context, Live, SumEngine, TermState
from .foreign import checking_arguments
from .reuse import check_reuse
from .serialize import written
from .traits import Traits
from .weights import (
    Scale,
    WeightSchedule,
    checked_frames,
    checked_interval,
    checked_scale,
    checked_schedule,
    weigh,
)

Carry = Literal["x0", "eps", "velocity"]
Pushed = tuple[Tensor, TermState]
"""The push of x0 ``[b, *S]`` for a weight of 1, and the new state of the term."""

Rounds = Generator[tuple[Pass, ...], tuple[Prediction, ...], Pushed]
"""Yields further passes, receives their predictions, and returns the push."""


class _Sum:
    """``+`` and ``|`` of the expression language."""

    def __add__(self, other: Direction | Guidance) -> Guidance:
        return as_guidance(self).plus(as_guidance(other))

    def __or__(self, post: Post) -> Guidance:
        return as_guidance(self).then(post)


@dataclass(frozen=True)
class Direction(_Sum, ABC):
    """A term: a push of the clean estimate, times a weight.

    Args:
        scale: the strength as in its paper, one number or one for each sample;
            ``weight = scale − neutral``.
        interval: noise ratios ``(lo, hi]`` where it acts; everywhere by default.
        schedule: changes the weight along the run: linear, cosine, clamp, or any function
            ``(weight, step) -> weight``.
        frames: changes the weight along the frames of a video: its factors at equal distances from
            the first frame to the last, with those between two on the line through them. For
            scales from a to s frame by frame: ``frames=[(a − neutral)/(s − neutral), 1]``.
        every: the push is evaluated at every k-th step at which the term acts, from the first on,
            and carried over in between; cfg then costs 1 + 1/k passes a step.
        reuse: the same by a rule, for each sample: it is evaluated again once the change since the
            last evaluation, at the rate measured between the last two (relative to the push, for
            each unit of half the log-SNR), passes this. Waits once a step for the device.
        carry: the space in which a carried push stays as it is: x0, eps or velocity. eps changes
            least at middle and low noise, but is 0 at pure noise; velocity is near the best at all.
        extrapolate: whether a carried push lies on the line through the last two, in the log-SNR.

    Raises:
        ValueError: an argument of another kind or range.
    """

    scale: Scale
    _: KW_ONLY
    interval: tuple[float, float] | None = None
    schedule: WeightSchedule | None = None
    frames: Sequence[float] | None = None
    every: int = 1
    reuse: float | None = None
    carry: Carry = "velocity"
    extrapolate: bool = False

    name: ClassVar[str]
    neutral: ClassVar[float] = 0.0
    per_sample: ClassVar[tuple[str, ...]] = ("scale",)
    """Arguments that may be a list of one number for each sample."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        checking_arguments(cls)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", checked_scale(self.name, self.scale))
        object.__setattr__(self, "interval", checked_interval(self.name, self.interval))
        checked_schedule(self.name, self.schedule)
        object.__setattr__(self, "frames", checked_frames(self.name, self.frames))
        check_reuse(self)

    @property
    def traits(self) -> Traits:
        """Its properties that solvers, plans and pipelines depend on."""
        return Traits()

    def weight(
        self, step: Step, rows: Tensor | None = None, state: TermState | None = None
    ) -> Value:
        """Return the weight at ``step``. No pass of the term has samples of weight 0.

        Args:
            step: of these samples.
            rows: which samples of the run these are (None: all).
            state: the term's state of these samples; None for a plan. A term that reads it here
                waits for the device.
        """
        scale, neutral = self.scale, self.neutral
        if isinstance(scale, Sequence):
            weight: Scale = tuple(s - neutral for s in scale)
        else:
            weight = scale - neutral
        return weigh(weight, self.schedule, self.interval, step, rows)

    def may_stop(self, step: Step) -> bool:
        """Return whether its state may have made weights 0 by ``step``; plans then give a range."""
        return False

    @property
    def lists(self) -> dict[str, tuple[float, ...]]:
        """Its arguments that are a list of one number for each sample."""
        values = {name: getattr(self, name) for name in self.per_sample}
        return {name: value for name, value in values.items() if isinstance(value, tuple)}

    @abstractmethod
    def passes(self, step: Step) -> tuple[Pass, ...]:
        """Return the passes that it needs at ``step``, beside the base."""

    def slope(self, group: Group) -> Slope | None:
        """Return the gradient at x_t that it needs, if any (`Live.requested_slope`).

        Args:
            group: the samples whose weight is not 0.
        """
        return None

    @abstractmethod
    def push(self, live: Live, *predictions: Prediction) -> Pushed | Rounds:
        """Return the push of x0 ``[b, *S]`` for a weight of 1, and the new state.

        A term whose further passes depend on these predictions is a generator instead: it yields
        those passes, receives their predictions, and returns the same (`Traits.later`).

        Args:
            live: the samples whose weight is not 0.
            predictions: of ``passes(step)``, in their order.
        """

    def start(self, x_t: Tensor) -> TermState:
        """Return the state before the first step."""
        return {}

    def bind(self, context: Context) -> Direction:
        """Return this term with its classifier, loss or target of the run.

        Raises:
            ValueError: the run lacks something that the term needs.
        """
        return self

    def around(self, engine: SumEngine, key: int) -> SumEngine:
        """Return the engine of a sum with this term at index ``key``: ``engine``, or a wrapper."""
        return engine

    def __str__(self) -> str:
        return written(self)


class Contrast(Direction):
    """A term of two passes: the push is ``shape(good, bad)``, by default ``good − bad`` in x0.

    A plain difference is linear, so it is the same in every space.
    """

    @abstractmethod
    def good(self, step: Step) -> Pass:
        """Return the pass to move towards."""

    @abstractmethod
    def bad(self, step: Step) -> Pass:
        """Return the pass to move away from."""

    def passes(self, step: Step) -> tuple[Pass, ...]:
        return self.good(step), self.bad(step)

    def push(self, live: Live, *predictions: Prediction) -> Pushed:
        good, bad = predictions
        return self.shape(good, bad, live)

    def shape(self, good: Prediction, bad: Prediction, live: Live) -> Pushed:
        """Return the push of x0 ``[b, *S]`` and the new state."""
        return good.x0 - bad.x0, live.state


@dataclass(frozen=True)
class Post(ABC):
    """A step after the sum, which keeps (x0, eps) linked. Posts run from left to right."""

    name: ClassVar[str]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        checking_arguments(cls)

    def passes(self, step: Step) -> tuple[Pass, ...]:
        """Return the passes that it needs at ``step``."""
        return ()

    def instead(self, p: Pass, step: Step) -> Pass:
        """Return the pass that is evaluated in the place of ``p``, for all terms."""
        return p

    @abstractmethod
    def apply(self, prediction: Prediction, live: Live, *predictions: Prediction) -> Prediction:
        """Return the changed prediction.

        Args:
            prediction: the sum, as the posts before left it.
            live: all samples of the group.
            predictions: of ``passes(step)``, in their order.
        """

    def __str__(self) -> str:
        return written(self)


@dataclass(frozen=True, kw_only=True)
class Guidance(_Sum):
    """A whole expression: ``[base +] term {+ term} {| post}``, without a network.

    Args:
        base: the pass that the terms are added to; by default the one that a term requires, else
            the conditional pass, or the unconditional one of a run without a condition.
        terms: they commute.
        posts: they run from left to right, and do not commute.
    """

    base: Slot | None = None
    terms: tuple[Direction, ...] = ()
    posts: tuple[Post, ...] = ()

    def plus(self, other: Guidance) -> Guidance:
        """Add the terms of ``other``.

        Raises:
            ValueError: a base that does not come first, or terms after a post.
        """
        if other.base is not None:
            base = other.base.value
            raise ValueError(f"the base {base!r} must come first in the sum, and only once")
        if self.posts:
            raise ValueError("terms must come before '|': posts act on the whole sum")
        return Guidance(base=self.base, terms=self.terms + other.terms, posts=other.posts)

    def then(self, post: object) -> Guidance:
        """Add a post.

        Raises:
            TypeError: it is no post.
        """
        if not isinstance(post, Post):
            raise TypeError(f"after '|' there must be a post (rescale, threshold, …), not {post}")
        return replace(self, posts=(*self.posts, post))

    def resolve_base(self, conditional: bool) -> Slot:
        """Return the base: as written, as a term requires, or by default.

        Args:
            conditional: whether the run has a condition.

        Raises:
            ValueError: two requirements differ; the terms are named.
        """
        needs = {slot: term for term in self.terms if (slot := term.traits.requires) is not None}
        if len(needs) > 1:
            both = " and ".join(f"{t.name} needs the base '{s.value}'" for s, t in needs.items())
            raise ValueError(f"{both}; use one of them")
        for slot, term in needs.items():
            if self.base is not None and self.base is not slot:
                raise ValueError(
                    f"{term.name} needs the base '{slot.value}', not '{self.base.value}'"
                )
            return slot
        return self.base or (Slot.COND if conditional else Slot.NULL)

    def check_samples(self, count: int) -> None:
        """Refuse lists of scales for another number of samples than ``count``.

        Raises:
            ValueError: a list has more or fewer numbers; the term is named.
        """
        for term in self.terms:
            for scales in term.lists.values():
                if len(scales) != count:
                    raise ValueError(
                        f"{term.name} has {len(scales)} scales for {count} samples; give one "
                        "number, or one for each sample"
                    )

    def repeated(self, count: int) -> Guidance:
        """Return this guidance for ``count`` copies of each sample, one after the other.

        Lists of scales are repeated likewise.
        """

        def repeat(term: Direction) -> Direction:
            lists = {k: [s for s in v for _ in range(count)] for k, v in term.lists.items()}
            return replace(term, **lists)

        return replace(self, terms=tuple(map(repeat, self.terms)))

    def __str__(self) -> str:
        base = [self.base.value] if self.base else [] if self.terms else ["cond"]
        return " | ".join([" + ".join([*base, *map(str, self.terms)]), *map(str, self.posts)])


def as_guidance(value: object) -> Guidance:
    """Return an expression of one term, or an expression as it is.

    Raises:
        TypeError: anything else.
    """
    if isinstance(value, Direction):
        return Guidance(terms=(value,))
    if isinstance(value, Guidance):
        return value
    if isinstance(value, Post):
        raise TypeError(f"{value} is a post: write it after '|'")
    raise TypeError(f"expected a guidance, not {value!r}")


cond, uncond, neg = (Guidance(base=slot) for slot in Slot)
