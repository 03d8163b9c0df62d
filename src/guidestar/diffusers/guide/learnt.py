"""A run of a pipeline whose layout is learnt from the run itself.

Its network's calls are answered by stand-ins (`traced`), and its scheduler's step is given the
guided prediction. In between, the pipeline's own code says which answers are the prompt's and which
the negative's (`probe`), and how an answer becomes what the scheduler takes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as trees

from ...core.denoiser import Condition
from ...core.forms import PLAIN, SampleForm
from ...core.levels import Level, Step, expand
from ...core.passes import Net
from ...core.prediction import Prediction
from ..objects import Answer, Arguments, Network, Pipeline, RunNetwork, Scheduler
from ..read.scheduler import KINDS
from .call import bound
from .calls import AnswerRows, NetCall, Template, signature
from .classes import become, derived
from .families import Family, order_of
from .levels import Output, read_timetable
from .packing import FRAMES_FIRST, Packings
from .probe import Combination, Layout, learn
from .run import Walk, Wanted
from .traced import Tape, Traced

_ROWS = "rows"
_FAMILY = Family(encodes=())


class LearntRun:
    """Answer each call of a pipeline's networks, and guide what its schedulers get.

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
        self.name = type(pipe).__name__
        self.tape, self.calls, self.stepped = Tape(self.name), list[NetCall](), False
        self.templates: dict[object, Template] = {}
        self.streams: list[_Stream] = []
        self.present = 0
        self.asked: dict[str, dict[object, AnswerRows]] = {}
        self.packings = Packings(pipe)
        self.start = _Stream(self)

    def answer(self, net: Network, args: tuple[object, ...], kwargs: Arguments) -> Answer:
        """Answer one call of ``net`` by stand-ins."""
        if self.stepped:
            self._begin_step()
        arguments = bound(net, args, kwargs)
        if any(isinstance(t, Traced) for t in trees.tree_leaves(dict(arguments))):
            raise ValueError(
                f"{self.name} gives its network an answer that it has not stepped with, so it "
                "cannot be guided"
            )
        key, answers = signature(net, arguments), None
        call = NetCall(net=net, arguments=arguments)
        if key not in self.templates:
            with torch.no_grad():
                answer = self.run(net, arguments)
            self.templates[key], answers = Template.of(answer, call.rows, call.listed)
        answer, leaves = self.templates[key].promised(self.tape)
        self.calls.append(
            replace(call, template=self.templates[key], leaves=leaves, answers=answers)
        )
        return answer

    def _begin_step(self) -> None:
        self.tape, self.calls = Tape(self.name), []
        self.stepped, self.present = False, 0
        self.asked: dict[str, dict[object, AnswerRows]] = {}

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Guide the steps of the pipeline's schedulers, and of their copies, within this
        context.
        """
        with ExitStack() as stack:
            for scheduler in _schedulers(self.pipe):
                plain = type(scheduler)
                become(scheduler, derived(plain, None, step=self._make_step(plain)))
                stack.callback(become, scheduler, plain)
            stack.enter_context(_plain_guider(self.pipe))
            stack.enter_context(self.packings.noted())
            yield

    def _make_step(self, plain: type) -> Callable[..., Any]:
        names = inspect.signature(plain.step)

        @wraps(plain.step)  # pipelines read from its signature what it takes
        def step(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
            given = names.bind(scheduler, *args, **kwargs)
            made = given.arguments["model_output"]
            if isinstance(made, Traced) and not self._only_converts(names, given.arguments):
                guided = self._guide(scheduler, given.arguments)
                for name, value in given.arguments.items():
                    given.arguments[name] = guided if value is made else value
            return plain.step(*given.args, **given.kwargs)

        return step

    def _only_converts(self, names: inspect.Signature, given: Mapping[str, Any]) -> bool:
        """Tell whether a step is given the rows of all parts, to make clean estimates of them
        (Cosmos 1).
        """
        both = sum(call.rows for call in self.calls)
        takes_clean = "pred_original_sample" in names.parameters
        return takes_clean and "pred_original_sample" not in given and len(given["sample"]) == both

    def _guide(self, scheduler: Any, given: Mapping[str, Any]) -> Tensor:
        """Return the guided prediction in the place of what a scheduler is given."""
        sample, made = given["sample"], given["model_output"]
        if any(isinstance(t, Traced) and t is not made for t in given.values()):
            raise ValueError(
                f"{self.name} gives its scheduler another of its network's answers than the "
                "prediction, so it cannot be guided"
            )
        if self.present == len(self.streams):
            new = self.start if not self.streams else _Stream(self, self.start)
            self.streams.append(new)
        stream, self.present, self.stepped = self.streams[self.present], self.present + 1, True
        combination = Combination(
            name=self.name, tape=self.tape, calls=tuple(self.calls), wanted=made, sample=sample
        )
        clean = given.get("pred_original_sample") is made
        return stream.guide(scheduler, given["timestep"], combination, clean).to(made.dtype)

    def check_ended(self, result: Answer) -> None:
        """Refuse a run that did not step with all that its network answered, or whose numbers are
        not finite.

        Raises:
            ValueError: the network's answers reached no scheduler.
            FloatingPointError: numbers are not finite.
        """
        if (self.calls and not self.stepped) or not self.streams:
            raise ValueError(
                f"{self.name} took no step of its scheduler with what its network answered, so it "
                "was not guided"
            )
        for stream in self.streams:
            stream.watch.end(result)


class _Stream(Walk):
    """What one scheduler of a run is given: a picture, or the sound of a video.

    Args:
        owner: the run.
        before: another stream of the same run, whose random numbers it shares.
    """

    def __init__(self, owner: LearntRun, before: _Stream | None = None) -> None:
        super().__init__(owner.pipe, owner.wanted, owner.arguments, owner.run)
        self.layouts: dict[object, Layout] = {}
        self.owner = owner
        self.streams = before.streams if before else self.streams

    def guide(self, scheduler: Any, time: Any, c: Combination, clean: bool = False) -> Tensor:
        """Return the guided prediction of one step.

        Args:
            scheduler: that takes the step.
            time: its timestep.
            c: what the pipeline makes of its network's answers.
            clean: whether that is the clean estimate itself.
        """
        key = tuple(id(call.template) for call in c.calls)
        if key not in self.layouts:
            self.layouts[key] = learn(c, order_of(self.pipe))
        layout = self.layouts[key]
        place = self._find_place(scheduler, time)
        table = self._read_table()
        output = Output(kind="x0") if clean else table.output
        step = self._step(place, table)
        x = _as_the_network(scheduler, c.sample, step.t, layout)
        call = _Rows(c, layout, self.arguments)
        denoisers = self._bind_nets(c, layout, x, step, output, call)
        self._check(call, [step, *self._ahead(call, place)])
        if step.index != self.step:
            self.step, self.state, self.after = step.index, self.after, None
        dtype = torch.float32 if x.device.type == "mps" else torch.float64
        prediction, state = self._read_sum()(x.to(dtype), step, self.state)
        self.after = state if self.after is None else self.after
        out = output.of(prediction)
        if prediction.log_var is not None:
            out = torch.cat([out, prediction.log_var], 1)
        self.watch.record(
            step,
            x,
            torch.stack([d.finite for d in denoisers]).all(),
            out,
        )
        return out.reshape(c.wanted.shape)

    def _find_place(self, scheduler: Any, time: Any) -> int:
        if self.table is None or not self.table.current or self.table.scheduler is not scheduler:
            self.table, place = read_timetable(scheduler), -1
            self._restart(0)
            place = self.table.place(time, -1)
            self._restart(place)
        index = getattr(scheduler, "step_index", None)
        place = self.table.place(time, self.last) if index is None else index
        if place < self.last:
            self._restart(place)
        self.last = place
        return place

    def _bind_nets(
        self, c: Combination, layout: Layout, x: Tensor, step: Step, output: Output, call: _Rows
    ) -> list[PartDenoiser]:
        nets = {"main": None, **self.wanted.nets}
        form = FRAMES_FIRST if layout.flat > 1 else self.owner.packings.form(x)
        denoisers = {
            name: PartDenoiser(
                net=net,
                run=self.run,
                c=c,
                layout=layout,
                output=output,
                z=x,
                kept=self.owner.asked.setdefault(name, {}),
                again=self.owner.present > 1,
                form=form,
            )
            for name, net in nets.items()
        }
        null = "uncond" in layout.parts
        own = {
            "cond": call.condition("cond"),
            "null": call.condition("uncond") if null else None,
            "encode": lambda names: self._encode(call, tuple(names)),
            "part": call.condition if "image" in layout.parts else None,
        }
        self.nets.now = {name: Net(denoiser=d, **own) for name, d in denoisers.items()}
        if self.guided is None:
            self._check_beside(c.calls[layout.parts["cond"].call].net, call)
            self.guided = self._make(call)
        for denoiser in denoisers.values():
            denoiser.perturbed = any(p.perturb for _, p in self._list_passes([step]))
            denoiser.moves = any(t.traits.later for t in self.guided.terms)
        return list(denoisers.values())


@dataclass(eq=False)
class _Rows:
    """A step's rows, as `Run` reads a call of a network."""

    c: Combination
    layout: Layout
    arguments: Arguments
    family: Family = _FAMILY
    has_settings: bool = True

    @property
    def parts(self) -> tuple[str, ...]:
        """Whose rows there are."""
        return tuple(self.layout.parts)

    @property
    def batch(self) -> int:
        """How many samples."""
        return self.layout.batch

    @property
    def whole(self) -> Tensor:
        """What the scheduler steps with."""
        return self.c.sample

    @property
    def prompts(self) -> dict[str, Tensor]:
        """The request's tensors, and the rows."""
        return dict(self.condition("cond"))

    def encoded(
        self, tensors: Mapping[str, Tensor], names: int, *, away: bool = False
    ) -> Condition:
        """Refuse prompts in the expression: which of the network's arguments they are is not
        known.
        """
        raise ValueError("prompts within an expression are not supported here")

    def condition(self, part: str) -> Condition:
        """Return the condition of one part, for all samples."""
        place, batch = self.layout.parts[part], self.layout.batch
        rows = torch.arange(place.block * batch, (place.block + 1) * batch)
        call = self.c.calls[place.call]
        prompts = {name: t[rows.to(t.device)] for name, t in call.prompts().items()}
        # The rows of different calls have another width, so that they stay in calls of their own.
        return Condition({**prompts, _ROWS: rows[:, None].expand(-1, place.call + 1)})


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
        where = cond[_ROWS]
        call, rows = self.c.calls[where.shape[1] - 1], where[:, 0]
        grad = torch.is_grad_enabled()
        # Hooks may move weights while the network runs (offloading), which inference mode would
        # spoil.
        with torch.inference_mode(False), torch.set_grad_enabled(grad):
            prompts = {
                k: t.clone() if t.is_inference() else t for k, t in cond.items() if k != _ROWS
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
            back = Template.of(answer, len(rows), call.listed)[1]
            return [t[order.argsort().to(t.device)] for t in back]
        x = None if x_t is None else self._input(call, rows, x_t)
        answer = self.run(net, call.inputs(rows, prompts, x))
        return Template.of(answer, len(rows), call.listed)[1]

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


@contextmanager
def _plain_guider(pipe: Pipeline) -> Iterator[None]:
    """Let a pipeline that has a guider of Diffusers make both passes and their plain combination,
    from which the layout is learnt.
    """
    own = getattr(pipe, "guider", None)
    if own is None:
        yield
        return
    from diffusers.guiders.classifier_free_guidance import ClassifierFreeGuidance

    pipe.guider = ClassifierFreeGuidance(guidance_scale=2.0)
    try:
        yield
    finally:
        pipe.guider = own


def _schedulers(pipe: Pipeline) -> list[Scheduler]:
    """Return the schedulers of a pipeline, those of pipelines within it too."""
    parts = {**getattr(pipe, "components", {}), "scheduler": getattr(pipe, "scheduler", None)}
    found = {id(p): p for n, p in parts.items() if "scheduler" in n and hasattr(p, "step")}
    for part in vars(pipe).values():
        if hasattr(part, "components") and hasattr(part, "scheduler"):
            found |= {id(s): s for s in _schedulers(part)}
    return list(found.values())


def _as_the_network(scheduler: Any, sample: Tensor, level: Level, layout: Layout) -> Tensor:
    """Return the scheduler's samples at the level of its table, one row a sample."""
    kinds = (KINDS[b.__name__] for b in type(scheduler).__mro__ if b.__name__ in KINDS)
    x = sample
    if next(kinds, None) in ("scaled", "halfway", "edm"):
        x = x * expand(level.alpha, x)
    return x.unflatten(0, (layout.batch, layout.flat)) if layout.flat > 1 else x
