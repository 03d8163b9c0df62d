"""A run of a pipeline whose layout is learnt from the run itself.

Its network's calls are answered by stand-ins (`traced`), and its scheduler's step is given the
guided prediction. In between, the pipeline's own code says which answers are the prompt's and which
the negative's (`probe`), and how an answer becomes what the scheduler takes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as trees

from ...core.levels import Level, Step, expand
from ...core.passes import Net
from ..objects import Answer, Arguments, DiffusersNetwork, Pipeline, RunNetwork, Scheduler
from ..read.scheduler import KINDS
from .call import bound
from .calls import AnswerRows, NetCall, Template, signature
from .classes import become, derived
from .families import order_of
from .levels import Output, read_timetable
from .packing import FRAMES_FIRST, Packings
from .part_denoiser import PartDenoiser
from .probe import Combination, Layout, learn
from .step_rows import StepRows
from .traced import Tape, Traced
from .walk import Walk, Wanted


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
        self.answer_rows: dict[str, dict[object, AnswerRows]] = {}
        self.packings = Packings(pipe)
        self.start = _Stream(self)

    def answer(self, net: DiffusersNetwork, args: tuple[object, ...], kwargs: Arguments) -> Answer:
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
        self.answer_rows: dict[str, dict[object, AnswerRows]] = {}

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
        call = StepRows(c, layout, self.arguments)
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
        self, c: Combination, layout: Layout, x: Tensor, step: Step, output: Output, call: StepRows
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
                kept=self.owner.answer_rows.setdefault(name, {}),
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
