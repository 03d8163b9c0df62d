"""Our guidance in the ``guider`` slot of Diffusers' modular pipelines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from diffusers.guiders.guider_utils import BaseGuidance, GuiderOutput
from torch import Tensor, nn

from ..core.denoiser import Condition
from ..core.evaluation import drive
from ..core.hooks import CALL, Forward, replaced
from ..core.levels import Grid, Level, Step
from ..core.passes import COND, NULL, Net, Pass, Slot
from ..core.prediction import Prediction, Space
from ..core.rounds import Evaluated, Group, Round
from ..guidance import Direction, Guidance, Guided, parse
from ..guidance.bases.loss_term import Steered
from ..guidance.serialize import literal
from ..guidance.term import as_guidance
from ..networks.network import Network
from .guidance_file import guidance_of
from .objects import Answer
from .read.scheduler import process_of

if TYPE_CHECKING:
    from diffusers.modular_pipelines.modular_pipeline import BlockState

_INPUTS = ("hidden_states", "sample", "x")


class Guider(BaseGuidance):
    """An expression as a guider of a modular pipeline.

    ``pipe.update_components(guider=Guider("cfg(7.5) + pag(3)", scheduler=pipe.scheduler))``

    The pipeline runs its network once for each pass that the expression needs at a step (one, two,
    or more where layers are perturbed), and the guider combines the answers as `Guided` would: with
    the network's recorded input, at the level that the scheduler's table gives for the timestep.
    Where the weights are 0 (outside an interval), the passes are not run.

    What the protocol cannot give, and so is refused by name: gradients (classifier, clip), other
    networks (autoguidance), prompts beyond the pipeline's own and its negative one (AND, NOT,
    perp_neg, nag, cfg(negative=…), pix2pix), changed conditions or times (cads, icg, tsg), passes
    that depend on others' answers (sag), the level a step leads to and split predictions (cfgpp,
    classifier(form="mean")). ``uncond`` and ``neg`` are both the pipeline's negative prompt.
    Adaptive guidance acts, but saves no passes: samples cannot be left out of one. With packed
    latents (Flux, Qwen), terms that need the picture's rows and columns (fdg) get tokens.

    Args:
        guidance: an expression, or a path to a ``guidance.toml``.
        scheduler: the pipeline's, or its settings with ``_class_name``.
        enabled: False: the conditional prediction as it is.

    Raises:
        ValueError: a term that the protocol cannot serve, or a scheduler without a table of levels
            that is known.
        ExpressionError: the expression does not parse.
    """

    _input_predictions = ["pred_cond", "pred_uncond"]

    def __init__(
        self, guidance: str | Guidance = "cfg(7.5)", scheduler: object = None, enabled: bool = True
    ) -> None:
        super().__init__(0.0, 1.0, enabled)
        settings = _settings(scheduler)
        given = guidance_of(guidance)
        _refuse(as_guidance(parse(given) if isinstance(given, str) else given))
        text = str(given)
        self.register_to_config(guidance=text, scheduler=settings, enabled=enabled)
        self.process, self._guidance = process_of(settings), as_guidance(parse(text))
        space = self.process.predicts
        if space == "edm":
            raise ValueError(
                "a guider cannot serve an EDM scheduler, whose pipelines scale what the network "
                "says afterwards"
            )
        self._space: Space = space
        one = Condition(of=torch.zeros(1))
        self._guided = Guided(self._guidance, {"main": Net(denoiser=_nothing, cond=one, null=one)})
        self._now: list[Pass] = []
        self._outputs: dict[Pass, Tensor] = {}
        self._x: Tensor | None = None
        self._stack, self._gstate = ExitStack(), ()
        self._check_passes()

    # --- the protocol of Diffusers' guiders ---

    @property
    def num_conditions(self) -> int:
        """How many passes the step at hand takes; before the first, how many there are at most."""
        return len(self._now) or len(self._every())

    @property
    def is_conditional(self) -> bool:
        """Whether the pass at hand is of the condition."""
        return self._now[self._count_prepared - 1].cond is Slot.COND if self._now else True

    def prepare_inputs(self, data: dict[str, Any]) -> list[BlockState]:
        """Return the network's inputs for each pass of this step."""
        self._plan([v[0] if isinstance(v, tuple) else v for v in data.values()])
        return [
            self._prepare_batch(data, int(p.cond is not Slot.COND), name)
            for p, name in zip(self._now, self._names(), strict=True)
        ]

    def prepare_inputs_from_block_state(
        self, data: BlockState, input_fields: dict[str, str | tuple[str, str]]
    ) -> list[BlockState]:
        """Return the network's inputs for each pass of this step, from a block's state."""
        self._plan(
            [getattr(data, f if isinstance(f, str) else f[0], None) for f in input_fields.values()]
        )
        return [
            self._prepare_batch_from_block_state(
                input_fields, data, int(p.cond is not Slot.COND), name
            )
            for p, name in zip(self._now, self._names(), strict=True)
        ]

    def prepare_models(self, denoiser: nn.Module) -> None:
        """Perturb the network for the present pass, and record its input."""
        self._count_prepared += 1
        perturb = self._now[self._count_prepared - 1].perturb
        if perturb is not None:
            self._stack.enter_context(perturb(denoiser))
        self._stack.enter_context(replaced(denoiser, self._record_inputs, CALL))

    def cleanup_models(self, denoiser: nn.Module) -> None:
        """Take the changes back."""
        self._stack.close()

    def forward(self, **predictions: Tensor) -> GuiderOutput:
        """Combine the predictions of all passes, by name."""
        raw = predictions["pred_cond"]
        pred = (
            self._combine([predictions[name] for name in self._names()]).to(raw.dtype)
            if self._enabled
            else raw
        )
        if self._index + 1 == self._num_inference_steps:
            self._now = []  # the next run begins by asking how many passes there are at most
        return GuiderOutput(pred=pred, pred_cond=raw, pred_uncond=predictions.get("pred_uncond"))

    # --- how it is answered ---

    def _record_inputs(self, original: Forward) -> Forward:
        def call(*args: object, **kwargs: object) -> Answer:
            inputs = (*args[:1], *(kwargs.get(k) for k in _INPUTS))
            self._x = next((v for v in inputs if isinstance(v, Tensor)), None)
            return original(*args, **kwargs)

        return call

    def _names(self) -> list[str]:
        known = {COND: "pred_cond", NULL: "pred_uncond"}
        return [known.get(p, f"pred_{i}") for i, p in enumerate(self._now)]

    def _level(self) -> Level:
        t = float(torch.as_tensor(self._timestep).flatten()[0])
        return self.process.schedule(t / self.process.time_scale)

    def _here(self) -> Step:
        level, count = self._level(), int(self._num_inference_steps or 1)
        return Step(
            level,
            level,
            self._index,
            Grid(levels=(level,) * (count + 1), schedule=self.process.schedule),
        )

    @property
    def _index(self) -> int:
        return int(self._step or 0)

    def _every(self) -> list[Pass]:
        """Return every pass that the expression may need."""
        if not self._enabled:
            return [COND]
        middle = self.process.schedule(self.process.schedule.time(0.5))
        step = Step(middle, middle, 0, Grid(levels=(middle,) * 2, schedule=self.process.schedule))
        wanted = [
            self._guided.base,
            *(p for term in (*self._guided.terms, *self._guided.posts) for p in term.passes(step)),
        ]
        return list(dict.fromkeys([COND, *(self._guided.sum.canonical(p, step) for p in wanted)]))

    def _plan(self, inputs: Sequence[object]) -> None:
        """Choose the passes of this step; the first of the inputs has one row a sample."""
        self._stack.close()  # of a run that an exception ended
        batch = next((len(v) for v in inputs if isinstance(v, Tensor) and v.ndim), 1)
        passes = self._guided.plan_step(self._here(), batch).passes if self._enabled else {}
        self._now = list(
            dict.fromkeys(
                [
                    COND,
                    *sorted(
                        (p for p in passes if isinstance(p, Pass)),
                        key=lambda p: (p.perturb is not None, p != NULL),
                    ),
                ]
            )
        )

    def _check_passes(self) -> None:
        for p in self._every():
            if (
                p.net != "main"
                or not isinstance(p.cond, Slot)
                or p.point
                or p.edit
                or p.against is not None
            ):
                raise ValueError(
                    f"{self._guidance}: the pass '{p}' is not one that a modular pipeline can "
                    f"evaluate; {_INSTEAD}"
                )

    def _combine(self, outputs: Sequence[Tensor]) -> Tensor:
        if self._x is None:
            raise ValueError(
                "the guider has not got the network's input; the pipeline must call "
                "prepare_models before its network"
            )
        index = self._index
        self._outputs = {p: out.float() for p, out in zip(self._now, outputs, strict=True)}
        # Of inpainting networks' input, the latents come first.
        x = self._x.float()[:, : outputs[0].shape[1]]
        request = self._guided.ask(x, self._here(), self._gstate if index else None)
        (guided,) = drive(request, evaluator=self._answer)
        prediction, self._gstate = guided.prediction, guided.state
        plain, space = self._outputs[COND], self._space
        before = Prediction.from_x0(x, self._level(), self._x0(x, self._level(), plain))
        # Added as a change of the network's output, which so stays bit-equal without a change.
        return plain + (prediction.view(space) - before.view(space))

    def _x0(self, x: Tensor, level: Level, out: Tensor) -> Tensor:
        return Network(lambda x, t: out, predicts=self.process.predicts)(x, level, Condition())

    def _answer(self, *rounds: Round) -> list[dict[Pass, Evaluated]]:
        """Return the outputs of the pipeline's network as predictions of passes."""
        return [
            {p: Evaluated(rows, self._predict(r.group, p, rows)) for p, rows in r.passes.items()}
            for r in rounds
        ]

    def _predict(self, group: Group, p: Pass, rows: Tensor | None) -> Prediction:
        part, absolute = group if rows is None else group.take(rows), group.absolute(rows)
        x, level = part.x_t, part.step.t
        out = self._outputs[p] if absolute is None else self._outputs[p][absolute.to(x.device)]
        return Prediction.from_x0(x, level, self._x0(x, level, out))


def _nothing(x_t: Tensor, level: Level, cond: Condition) -> Tensor:
    raise AssertionError("the pipeline evaluates its network")


def _settings(scheduler: object) -> dict[str, Any]:
    if isinstance(scheduler, Mapping):
        return dict(scheduler)
    config = getattr(scheduler, "config", None)
    if config is None:
        raise ValueError(
            "a guider needs the pipeline's scheduler, whose table says how noisy a timestep is; "
            "give scheduler=pipe.scheduler"
        )
    return {**dict(config), "_class_name": type(scheduler).__name__}


_INSTEAD = "use guidestar.guide on the whole pipeline, or guidestar.load"


def _refuse(guidance: Guidance) -> None:
    """Refuse terms that the protocol cannot serve."""
    reasons = (
        ("gradients", "a gradient, and the pipeline evaluates its network without"),
        ("later", "a pass at a place that other passes tell"),
        ("reads_target", "the level that a step leads to, which a guider is not given"),
        ("only_solver", "a solver of its own"),
    )
    for term in guidance.terms:
        reason = next((why for name, why in reasons if getattr(term.traits, name)), None)
        reason = reason or (
            None if term.traits.linked else "a split prediction, and a pipeline has one"
        )
        if reason:
            raise ValueError(
                f"{term.name} needs {reason}, so it cannot be in a guider; {_instead(term)}"
            )


def _instead(term: Direction) -> str:
    """Say where a term works that the protocol cannot serve."""
    if not term.traits.linked or term.traits.reads_target or term.traits.only_solver:
        return "load the model with guidestar.load and use a solver of ours"
    if isinstance(term, Steered):
        return (
            "use guidestar.guide on the whole pipeline, the term made in Python with its "
            f"loss, {term.name}({literal(term.scale)}, loss=…), or guidestar.load"
        )
    return _INSTEAD
