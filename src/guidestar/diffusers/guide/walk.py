"""What is wanted of a guided run, and its walk through the timesteps."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...core.denoiser import Condition
from ...core.levels import Grid, Level, Step
from ...core.passes import Net, Pass, Slot
from ...guidance import Guidance, Guided
from ..objects import Arguments, DiffusersNetwork, Pipeline, RunNetwork
from .beside import check_classifiers, check_nets
from .call import Call
from .families import how_to_ask
from .finite import FiniteWatch
from .levels import Timetable
from .pipeline_seeds import generators, seed_of
from .prompts import check_prompt, encode, label, moved_from


@dataclass(frozen=True, kw_only=True, eq=False)
class Wanted:
    """The arguments of `guidestar.guide`, described there."""

    guidance: Guidance
    nets: Mapping[str, DiffusersNetwork] = field(default_factory=dict)
    classifiers: Mapping[str, object] = field(default_factory=dict)
    target: int | Sequence[int] | Tensor | None = None
    seeds: Sequence[int] | None = None
    max_rows: int | None = None
    check: bool = False


_Call = Any
"""The rows of a step, of which these read the names of a `Call`: its own, or those learnt."""


class _Nets(Mapping[str, Net]):
    """The networks by name, bound to the pipeline's present call."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names, self.now = tuple(names), dict[str, Net]()

    def __getitem__(self, name: str) -> Net:
        return self.now[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class Walk(ABC):  # noqa: B024  (what runs and their streams share)
    """A walk through the timesteps of one run, which binds the guidance to what each call holds.

    Args:
        pipe: the pipeline.
        wanted: the guidance, and what it needs.
        arguments: of the pipeline's call.
        run: calls a network as it is when it is not guided.
    """

    def __init__(
        self, pipe: Pipeline, wanted: Wanted, arguments: Arguments, run: RunNetwork
    ) -> None:
        self.pipe, self.wanted, self.arguments, self.run = pipe, wanted, arguments, run
        self.table: Timetable | None = None
        self.guided: Guided | None = None
        self.nets = _Nets(["main", *wanted.nets])
        self.streams = [g.get_state() for g in generators(pipe, arguments)]
        self.encoded: dict[object, Condition] = {}
        self.foreseen: tuple[int, tuple[str, ...]] | None = None
        self.pending: tuple[int, Call, Tensor] | None = None
        self.watch = FiniteWatch(type(pipe).__name__, self._name_culprits)
        self._restart(0)

    def _restart(self, place: int) -> None:
        """Begin a walk through the timesteps: nothing is remembered."""
        self.begin, self.last, self.step, self.state, self.after = place, place - 1, -1, None, None

    def _read_table(self) -> Timetable:
        assert self.table is not None  # read at the first call
        return self.table

    def _read_sum(self) -> Guided:
        assert self.guided is not None  # made at the first call
        return self.guided

    def _name_culprits(self, step: Step) -> list[str]:
        """Return the terms and posts that act at a step."""
        return list(
            dict.fromkeys(
                name for name, _ in self._list_passes([step]) if not name.startswith("the base")
            )
        )

    def _step(self, place: int, table: Timetable) -> Step:
        """Return the present step; all calls within one step of the scheduler have its index."""
        return next(self._steps([(place, table.level(place))], table))

    def _steps(self, levels: Iterable[tuple[int, Level]], table: Timetable) -> Iterator[Step]:
        starts = table.levels[self.begin : -1 : table.order]
        grid = Grid(levels=(*starts, table.levels[-1]), schedule=table.schedule)
        for place, level in levels:
            index = (place - self.begin) // table.order
            yield Step(level, grid[min(index + 1, grid.steps)], index, grid)

    def _ahead(self, call: _Call, place: int) -> Iterator[Step]:
        """Return the coming steps, at the first call of this part of the run with such rows."""
        table = self._read_table()
        if self.foreseen != (self.begin, call.parts):
            self.foreseen = self.begin, call.parts
            count = getattr(
                self.pipe, "_num_timesteps", None
            )  # a run may end before its table does
            stop = len(table.times) if count is None else min(len(table.times), self.begin + count)
            yield from self._steps(((k, table.levels[k]) for k in range(place + 1, stop)), table)

    def _encode(self, call: _Call, names: tuple[str | int, ...]) -> Condition:
        key = names, call.parts
        if key not in self.encoded:
            self._check_prompts(call, names)
            skips = self.arguments.get("clip_skip") is not None
            away = (call.has_settings or skips) and names[0] in moved_from(self.wanted.guidance)
            # Diffusers' pipelines skip layers for the requested condition alone.
            arguments = {k: v for k, v in self.arguments.items() if not (away and k == "clip_skip")}
            self.encoded[key] = call.encoded(
                encode(self.pipe, call.family, list(names), arguments), len(names), away=away
            )
        return self.encoded[key]

    def _check_prompts(self, call: _Call, names: Iterable[str | int]) -> None:
        for name in names:
            check_prompt(self.pipe, call.family, name, () if call.has_settings else call.prompts)

    def _make(self, call: _Call) -> Guided:
        w, batch = self.wanted, call.batch
        labels = (
            call.condition("cond").get("class_labels") if "class_labels" in call.prompts else None
        )
        target = (
            w.target
            if w.target is not None
            else labels
            if labels is not None and not labels.is_floating_point()
            else None
        )
        target = (
            None
            if target is None
            else torch.as_tensor(target).reshape(-1)
            if not isinstance(target, Tensor)
            else target
        )
        try:
            return Guided(
                w.guidance,
                self.nets,
                classifiers=w.classifiers,
                target=target,
                index=lambda name: label(self.pipe, name),
                prompts=_prompts(self.arguments, batch),
                seeds=w.seeds
                if w.seeds is not None
                else [seed_of(self.streams, k) for k in range(batch)],
                max_rows=w.max_rows,
                check=w.check,
            )
        except ValueError as error:
            if call.prompts:
                raise
            raise ValueError(
                f"{type(self.pipe).__name__} takes no condition: {str(error).partition(', but')[0]}"
            ) from None

    def _list_passes(self, steps: Iterable[Step]) -> dict[tuple[str, Pass], None]:
        """Return the passes of these steps with the names of those that use them.

        Those are the terms whose weight is not 0, the posts and the base.
        """
        guided = self._read_sum()
        passes: dict[tuple[str, Pass], None] = {}
        for step in steps:
            acting = [t for t in guided.terms if bool((torch.as_tensor(t.weight(step)) != 0).any())]
            passes.update(
                {(x.name, p): None for x in (*acting, *guided.posts) for p in x.passes(step)}
            )
        base = guided.base
        name = base.cond.value if isinstance(base.cond, Slot) else base.cond
        return passes | {(f"the base {name!r}", base): None}

    def _check(self, call: _Call, steps: Sequence[Step]) -> None:
        """Refuse, by name, terms whose rows or prompts the pipeline does not give.

        It may hand over no such rows, or be unable to encode the prompt.
        """
        passes = self._list_passes(steps)
        self._check_prompts(
            call,
            (key for _, p in passes for key in (p.cond, p.against) if isinstance(key, str | int)),
        )
        if "uncond" in call.parts and call.prompts:
            return
        missing = (Slot.NULL, Slot.NEGATIVE) if call.prompts else (Slot.COND,)
        users = list(
            dict.fromkeys(name for name, p in passes if p.cond in missing or p.against in missing)
        )
        if not users:
            return
        who = f"{' and '.join(users)} {'needs' if len(users) == 1 else 'need'}"
        if not call.prompts:
            raise ValueError(
                f"{type(self.pipe).__name__} takes no condition, but {who} the conditional "
                "pass; start the expression with 'uncond'"
            )
        how = how_to_ask(self.pipe, call.family, self.arguments)
        distilled = (
            call.arguments.get("guidance") is not None
            or call.arguments.get("timestep_cond") is not None
        )
        why = (
            "; its network is distilled for guidance, and has no other unconditional pass: or "
            "use a term that needs none, as pag(3)"
            if distilled
            else ""
        )
        raise ValueError(f"{who} the negative pass, but {how}{why}")

    def _check_beside(self, main: DiffusersNetwork, call: _Call) -> None:
        """Refuse further networks and classifiers that are not where the pipeline runs."""
        check_nets(self.wanted.nets, main, call.whole.device)
        check_classifiers(self.wanted.classifiers, call.whole.device)


def _prompts(arguments: Arguments, batch: int) -> list[str] | None:
    """Return the caption of each sample."""
    given = arguments.get("prompt")
    if given is None:
        return None
    captions = [given] if isinstance(given, str) else list(given)
    return (
        [c for c in captions for _ in range(batch // len(captions))]
        if batch % len(captions) == 0
        else None
    )
