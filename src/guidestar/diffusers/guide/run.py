"""One run of a guided pipeline: from its first call of the network to the last."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...core.denoiser import Condition
from ...core.levels import Grid, Level, Step
from ...core.passes import Net, Pass, Slot
from ...guidance import Guidance, Guided
from ..objects import Answer, Arguments, Network, Pipeline, RunNetwork
from .beside import check_classifiers, check_nets
from .call import Call, CallDenoiser, bound, grouped
from .families import (
    check_prompt,
    encode,
    family_of,
    how_to_ask,
    label,
    moved_from,
    negative_rows,
)
from .finite import FiniteWatch
from .levels import Timetable, read_timetable
from .pipeline_seeds import generators, seed_of


@dataclass(frozen=True, kw_only=True, eq=False)
class Wanted:
    """The arguments of `guidestar.guide`, described there."""

    guidance: Guidance
    nets: Mapping[str, Network] = field(default_factory=dict)
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
            # Diffusers' pipelines skip layers for what is asked for alone.
            told = {k: v for k, v in self.arguments.items() if not (away and k == "clip_skip")}
            self.encoded[key] = call.encoded(
                encode(self.pipe, call.family, list(names), told), len(names), away=away
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

    def _check_beside(self, main: Network, call: _Call) -> None:
        """Refuse further networks and classifiers that are not where the pipeline runs."""
        check_nets(self.wanted.nets, main, call.whole.device)
        check_classifiers(self.wanted.classifiers, call.whole.device)


class Run(Walk):
    """Answer each call of a pipeline's network with the guided prediction; arguments as `Walk`."""

    def answer(self, net: Network, args: tuple[object, ...], kwargs: Arguments) -> Answer:
        """Answer one call of ``net``."""
        call = self._read(net, args, kwargs)
        place = self._place(call)
        if self.pending is not None and self.pending[0] == place:
            return self._second(net, call, place)
        if self.pending is not None:
            raise RuntimeError(
                f"{type(self.pipe).__name__} was expected to call its network for the negative "
                "prompt at the same timestep, and did not"
            )
        if call.family.calls == 2 and negative_rows(self.pipe, call.family, self.arguments):
            return self._first(call, place)
        return self._make_answer(net, call, self._guide(net, call, place))

    def stepping(self) -> AbstractContextManager[None]:
        """Leave the scheduler's steps as they are."""
        return nullcontext()

    def check_ended(self, result: Answer) -> None:
        """Refuse a run whose last call for the prompt was not followed by one for the negative, or
        whose numbers are not finite.

        Raises:
            RuntimeError: it was not.
            FloatingPointError: they are not.
        """
        if self.pending is not None:
            raise RuntimeError(
                f"{type(self.pipe).__name__} was expected to call its network for the negative "
                "prompt at the same timestep, and did not"
            )
        self.watch.end(result)

    def _first(self, call: Call, place: int) -> Answer:
        """Answer the prompt's call by a tensor that the negative prompt's call fills."""
        shape = [*call.whole.shape]
        shape[call.family.channel] = call.channels
        promised = call.whole.new_full(shape, torch.nan)
        self.pending = place, call, promised
        return _like_answer(None, call, promised)

    def _second(self, net: Network, call: Call, place: int) -> Answer:
        assert self.pending is not None  # the call for the prompt came first
        _, before, promised = self.pending
        self.pending = None
        out = self._guide(net, before.merged(call), place)
        promised.copy_(out)
        return self._make_answer(net, call, out.to(promised.dtype))

    def _make_answer(self, net: Network, call: Call, out: Tensor) -> Answer:
        denoiser = self.nets.now["main"].denoiser
        assert isinstance(denoiser, CallDenoiser)  # as _bind made it
        return _like_answer(denoiser.answer, call, torch.cat([out] * len(call.parts)))

    def _read(self, net: Network, args: tuple[object, ...], kwargs: Arguments) -> Call:
        arguments = dict(bound(net, args, kwargs))
        if arguments.get("skip_layers") is not None:
            raise ValueError(
                f"{type(self.pipe).__name__} asks for skip_guidance_layers of its own; leave "
                "that out, and write slg(2.8, interval=…) in the expression"
            )
        arguments["timestep"] = torch.as_tensor(arguments["timestep"])
        family = family_of(self.pipe, net)
        two = family.calls == 2
        parts = (
            ("uncond" if two and self.pending else "cond",)
            if two or not negative_rows(self.pipe, family, self.arguments)
            else family.parts
        )
        channels, learned = _channels(self.pipe, net, family.channel == 1)
        return Call(
            family=family,
            arguments=grouped(arguments, len(arguments[family.x])),
            parts=parts,
            channels=channels,
            learned_variance=learned,
        )

    def _place(self, call: Call) -> int:
        if (
            self.table is None
            or not self.table.current
            or self.table.scheduler is not self.pipe.scheduler
        ):
            self.table = read_timetable(self.pipe.scheduler)
            self._restart(0)
            self._restart(self.table.place(call.arguments["timestep"], -1))
        place = self.table.place(call.arguments["timestep"], self.last)
        if place < self.last:
            self._restart(place)
        self.last = place
        return place

    def _guide(self, net: Network, call: Call, place: int) -> Tensor:
        table = self._read_table()
        step = self._step(place, table)
        denoiser = self._bind(net, call, step)
        self._check(call, [step, *self._ahead(call, place)])
        if step.index != self.step:
            self.step, self.state, self.after = step.index, self.after, None
        dtype = torch.float32 if call.x.device.type == "mps" else torch.float64
        prediction, state = self._read_sum()(call.x.to(dtype), step, self.state)
        self.after = state if self.after is None else self.after
        out = denoiser.written(prediction)
        self.watch.record(
            step, call.x, torch.stack([d.finite for d in self._denoisers()]).all(), out
        )
        return out

    def _denoisers(self) -> list[CallDenoiser]:
        return [
            net.denoiser for net in self.nets.now.values() if isinstance(net.denoiser, CallDenoiser)
        ]

    def _bind(self, net: Network, call: Call, step: Step) -> CallDenoiser:
        """Bind the networks to this call, and make the guided sum at the first."""
        table = self._read_table()
        conditional = bool(call.prompts)
        has_null = "uncond" in call.parts or not conditional
        own = {
            "cond": call.condition("cond") if conditional else None,
            "null": call.condition("uncond" if "uncond" in call.parts else "cond")
            if has_null
            else None,
            "encode": lambda names: self._encode(call, tuple(names)),
            "part": call.condition if "image" in call.parts else None,
        }
        everyone = {"main": net, **self.wanted.nets}
        denoisers = {
            name: CallDenoiser(
                net=n,
                run=self.run,
                call=call,
                output=table.output,
                level=step.t,
                reads_t=table.reads_t,
            )
            for name, n in everyone.items()
        }
        self.nets.now = {name: Net(denoiser=d, **own) for name, d in denoisers.items()}
        if self.guided is None:
            self._check_beside(net, call)
            self.guided = self._make(call)
        return denoisers["main"]


def _channels(pipe: Pipeline, net: Network, plain: bool) -> tuple[int, bool]:
    """Return how many channels the sample has, and whether the network predicts its variance
    too.
    """
    inputs = net.config.in_channels
    outputs = net.config.out_channels or inputs
    vae = getattr(pipe, "vae", None) or getattr(pipe, "movq", None)
    latent = getattr(getattr(vae, "config", None), "latent_channels", None) if plain else None
    learned = outputs == 2 * inputs or (
        inputs > outputs and latent is not None and outputs == 2 * latent
    )
    return (outputs // 2 if learned else outputs), learned


def _like_answer(answer: Answer, call: Call, out: Tensor) -> Answer:
    """Return an output in the form in which the network gives it."""
    if isinstance(answer, tuple) or (answer is None and call.arguments.get("return_dict") is False):
        return (out, *(answer or ())[1:])
    if answer is not None:
        return type(answer)(sample=out)
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    return Transformer2DModelOutput(sample=out)


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
