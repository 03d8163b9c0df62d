"""Guidance as a sum: ``guided = post( base + Σ weightᵢ(step) · directionᵢ )``.

A `Direction` is a term of that sum, a `Post` acts on its result, a `Guidance` is the whole
expression, still free of any network. `Guided` (in ``guided.py``) binds it to networks and runs it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import ClassVar

from torch import Tensor

from ..levels import Step, Value
from ..passes import Pass, Slot
from ..prediction import Prediction
from ._live import Context, Live, State
from ._text import written
from .weights import Scale, Schedule, checked_interval, checked_scale, checked_schedule, weigh

Pushed = tuple[Tensor, State]
Rounds = Generator[tuple[Pass, ...], Mapping[Pass, Prediction], Pushed]


class _Sum:
    """``+`` and ``|`` of the expression language."""

    def __add__(self, other: Direction | Guidance) -> Guidance:
        return as_guidance(self).plus(as_guidance(other))

    def __or__(self, post: Post) -> Guidance:
        guidance = as_guidance(self)
        if not isinstance(post, Post):
            raise TypeError(f"what follows '|' must be a post (rescale, threshold, …), not {post}")
        return Guidance(base=guidance.base, terms=guidance.terms, posts=(*guidance.posts, post))


@dataclass(frozen=True)
class Direction(_Sum, ABC):
    """A term: a push of the clean estimate, times a weight.

    Args:
        scale: its strength as its paper gives it, one number or one for each sample;
            ``weight = scale − neutral``.
        interval: noise ratios ``(lo, hi]`` where it acts; everywhere by default.
        schedule: how the weight changes along the run: linear, cosine, clamp, or any callable
            ``(weight, step) -> weight``.
    """

    scale: Scale
    _: KW_ONLY
    interval: tuple[float, float] | None = None
    schedule: Schedule | None = None

    name: ClassVar[str]
    neutral: ClassVar[float] = 0.0
    requires: ClassVar[Slot | None] = None
    later: ClassVar[int] = 0
    per_sample: ClassVar[tuple[str, ...]] = ("scale",)
    """Its arguments that may be a list of one number for each sample."""

    def __post_init__(self) -> None:
        checks = {"scale": checked_scale, "interval": checked_interval, "schedule": checked_schedule}
        for name, check in checks.items():
            object.__setattr__(self, name, check(self.name, getattr(self, name)))

    def weight(self, step: Step, rows: Tensor | None = None) -> Value:
        """Return the weight at ``step``, for the run's samples ``rows`` (None: all)."""
        scale, neutral = self.scale, self.neutral
        value = tuple(s - neutral for s in scale) if isinstance(scale, Sequence) else scale - neutral
        return weigh(value, self.schedule, self.interval, step, rows)

    @property
    def lists(self) -> dict[str, tuple[float, ...]]:
        """Its arguments that are a list of one number for each sample."""
        return {name: getattr(self, name) for name in self.per_sample if isinstance(getattr(self, name), tuple)}

    @abstractmethod
    def passes(self, step: Step) -> tuple[Pass, ...]:
        """Name the passes it needs at ``step``, beside the base."""

    @abstractmethod
    def push(self, live: Live) -> Pushed | Rounds:
        """Return the push of x0 ``[b, *S]`` for a weight of 1, and the new state.

        A direction that needs further passes, at places it knows only now, is a generator instead:
        it yields them, receives their predictions, and returns the same. It says in ``later`` how
        many there will be.
        """

    def start(self, x_t: Tensor) -> State:
        """Return the state before the first step."""
        return {}

    def bind(self, context: Context) -> Direction:
        """Return this term with what it takes from the run.

        Raises:
            ValueError: the run lacks something it needs.
        """
        return self

    def still(self, step: Step) -> bool:
        """Tell whether nothing moves at ``step``: the velocity ``eps − x0`` is 0, and no pass is evaluated."""
        return False

    def awake(self, state: State) -> Tensor | None:
        """Return which samples it still acts on, as booleans ``[B]`` on the CPU; None for all.

        A term that reads its memory here waits for the device, once an evaluation.
        """
        return None

    def may_sleep(self, step: Step) -> bool:
        """Tell whether samples may have left `awake` before ``step``: the plan counts it as in doubt."""
        return False

    @property
    def linked(self) -> bool:
        """Whether eps follows its push; if not, the prediction is split."""
        return True

    @property
    def reads_target(self) -> bool:
        """Whether it depends on the level that the step leads to."""
        return False

    @property
    def differentiates(self) -> Pass | None:
        """The pass whose network it differentiates."""
        return None

    @property
    def needs_grad(self) -> bool:
        """Whether it computes a gradient."""
        return False

    @property
    def gradients(self) -> int:
        """How many gradients it computes a step, for each sample."""
        return int(self.needs_grad)

    @property
    def only_solver(self) -> tuple[str, dict[str, object]] | None:
        """The name of the only solver it works with and how that must be set, if there is one."""
        return None

    def __str__(self) -> str:
        return written(self)


class Contrast(Direction):
    """A term of two passes: the push is ``shape(good − bad)``, in x0.

    A linear contrast is the plain difference, which reads the same in every space.
    """

    @abstractmethod
    def good(self, step: Step) -> Pass:
        """Name the pass to move towards."""

    @abstractmethod
    def bad(self, step: Step) -> Pass:
        """Name the pass to move away from."""

    def passes(self, step: Step) -> tuple[Pass, ...]:
        return self.good(step), self.bad(step)

    def push(self, live: Live) -> Pushed:
        return self.shape(live[self.good(live.step)], live[self.bad(live.step)], live)

    def shape(self, good: Prediction, bad: Prediction, live: Live) -> Pushed:
        """Return the push and the new state; by default the difference as it is."""
        return good.x0 - bad.x0, live.state


@dataclass(frozen=True)
class Post(ABC):
    """A step after the sum; it keeps (x0, eps) linked. Posts run from left to right."""

    name: ClassVar[str]

    def passes(self, step: Step) -> tuple[Pass, ...]:
        """Name the passes it needs at ``step``."""
        return ()

    def instead(self, p: Pass, step: Step) -> Pass:
        """Return the pass that is evaluated wherever the sum asks for ``p``."""
        return p

    @abstractmethod
    def apply(self, prediction: Prediction, live: Live) -> Prediction:
        """Return the changed prediction."""

    def __str__(self) -> str:
        return written(self)


@dataclass(frozen=True, kw_only=True)
class Guidance(_Sum):
    """A whole expression: ``[base +] term {+ term} {| post}``, free of any network.

    Args:
        base: what the terms are added to; by default what a term requires, else the conditional
            pass (the unconditional one where no condition is given).
        terms: directions; they commute.
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
            raise ValueError(f"the base {other.base.value!r} must come first in the sum, and only once")
        if self.posts:
            raise ValueError("terms must come before '|': posts act on the whole sum")
        return Guidance(base=self.base, terms=self.terms + other.terms, posts=other.posts)

    def resolve_base(self, conditional: bool) -> Slot:
        """Return the base: as written, as a term requires, or by default.

        Raises:
            ValueError: two requirements differ; both terms are named.
        """
        needs = {term.requires: term for term in self.terms if term.requires is not None}
        if len(needs) > 1:
            raise ValueError(" and ".join(f"{t.name} needs the base '{s.value}'" for s, t in needs.items()) + "; use one of them")
        for slot, term in needs.items():
            if self.base not in (None, slot):
                raise ValueError(f"{term.name} needs the base '{slot.value}', not '{self.base.value}'")  # type: ignore[union-attr]
            return slot
        return self.base or (Slot.COND if conditional else Slot.NULL)

    def check_samples(self, count: int) -> None:
        """Refuse lists of scales that are for another number of samples than ``count``.

        Raises:
            ValueError: a list has more or fewer; the term is named.
        """
        for term in self.terms:
            for scales in term.lists.values():
                if len(scales) != count:
                    raise ValueError(f"{term.name} has {len(scales)} scales for {count} samples; give one number, or one for each sample")

    def repeated(self, count: int) -> Guidance:
        """Return this guidance for ``count`` copies of each sample, one after the other: lists of scales follow."""
        lists = [{name: [s for s in scales for _ in range(count)] for name, scales in term.lists.items()} for term in self.terms]
        return replace(self, terms=tuple(replace(term, **more) for term, more in zip(self.terms, lists, strict=True)))

    def __str__(self) -> str:
        base = [self.base.value] if self.base else [] if self.terms else ["cond"]
        return " | ".join([" + ".join([*base, *map(str, self.terms)]), *map(str, self.posts)])


def as_guidance(value: object) -> Guidance:
    """Make an expression of a direction or an expression."""
    if isinstance(value, Direction):
        return Guidance(terms=(value,))
    if isinstance(value, Guidance):
        return value
    if isinstance(value, Post):
        raise TypeError(f"{value} is a post: write it after '|'")
    raise TypeError(f"expected a guidance, not {value!r}")


cond, uncond, neg = (Guidance(base=slot) for slot in Slot)
