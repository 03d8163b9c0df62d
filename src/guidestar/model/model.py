"""A trained model with everything needed to sample from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Unpack

import torch
from torch import Tensor

from ..core.denoiser import Condition
from ..core.levels import Grid, Level
from ..guidance import Guidance, Guided, Plan, parse
from ..guidance.losses import Loss
from ..guidance.term import Direction, as_guidance
from ..sampling import Potential, Solver, State, get_solver, warn_of_divergence
from .binding import guides_of, index_of, names_of, nets_of, scale_of, target_of
from .blame import blaming
from .fitted import defaults_of, make_grid
from .parts import ModelParts
from .request import Names, Request, RunArguments, SteerArguments, Steering, check_names
from .resolving import plan_run, resolve_request
from .samples import CARRIED, Carried, Samples, Settings, check_settings, settings_of
from .steering import ImageReward, steer_model
from .walking import finish, walk_states

Watch = Callable[[int, int], None]


@dataclass(kw_only=True, repr=False)
class Model(ModelParts):
    """A denoiser with its schedule, condition encoder, decoder, further networks and card.

    Several threads may sample from one model at the same time. `ModelParts` explains its arguments.
    """

    @blaming("grid")
    def grid(self, steps: int | None = None, grid: str | Grid | None = None) -> Grid:
        """Make a grid of levels; both default to the card's.

        A grid that was fitted to the model (``guidestar grid``) is the default for its step count,
        with the guidance and solver that the card has for it; by the name "fitted" it is
        interpolated for others.

        Raises:
            ValueError: unknown grid, or steps out of range.
        """
        return grid if isinstance(grid, Grid) else make_grid(self, steps, grid)

    @blaming("guidance")
    def expression(
        self,
        guidance: str | Guidance | Direction | None,
        *,
        conditional: bool = True,
        steps: int | None = None,
        grid: str | Grid | None = None,
    ) -> Guidance:
        """Read an expression; by default the card's for these steps and this grid, and no guidance
        at all where there is no condition.
        """
        if guidance is None:
            guidance = (
                defaults_of(self, steps, grid).get("guidance", "cond")
                if conditional and self.encoder is not None
                else "uncond"
            )
        return parse(guidance) if isinstance(guidance, str) else as_guidance(guidance)

    @blaming("cond")
    def names(self, cond: Names | None, count: int) -> tuple[str | int, ...] | None:
        """Return the condition of each of ``count`` samples.

        Raises:
            ValueError: an unknown name, or neither one nor ``count`` of them.
        """
        return names_of(self, cond, count)

    def guided(
        self,
        guidance: str | Guidance | Direction | None = None,
        *,
        cond: Sequence[str | int] | Condition | None = None,
        negative: str | int | None = None,
        scale: float | Sequence[float] | None = None,
        seeds: Sequence[int] | None = None,
        losses: Mapping[str, Loss] | None = None,
        max_rows: int | None = None,
        checkpoint: bool = False,
        check: bool = False,
    ) -> Guided:
        """Bind a guidance to this model's networks, for samples of the conditions ``cond`` (by
        name, or encoded).

        ``seeds``, one a sample, are for guidances that draw random numbers; the others as in
        `sample`.
        """
        expression = self.expression(guidance, conditional=cond is not None)
        names = None if cond is None or isinstance(cond, Condition) else cond
        nets = nets_of(self, expression, cond, negative, scale_of(self, scale))
        target = target_of(self, names)
        prompts = [str(c) for c in names] if names is not None and self.takes_prompts else None
        with blaming("guidance"):
            return Guided(
                expression,
                nets,
                classifiers=guides_of(self),
                target=target,
                index=index_of(self),
                prompts=prompts,
                losses=losses,
                seeds=seeds,
                max_rows=max_rows,
                checkpoint=checkpoint,
                check=check,
            )

    def plan(
        self,
        guidance: str | Guidance | Direction | None = None,
        *,
        cond: Names | None = 0,
        negative: str | int | None = None,
        scale: float | Sequence[float] | None = None,
        steps: int | None = None,
        solver: str | Solver | None = None,
        grid: str | Grid | None = None,
    ) -> Plan:
        """Return the passes that a run would evaluate, without running anything (so no losses are
        needed); arguments as in `sample`.

        It is of as many samples as there are conditions, or scales in the expression's lists.
        """
        return plan_run(
            self,
            guidance,
            cond=cond,
            negative=negative,
            scale=scale,
            steps=steps,
            solver=solver,
            grid=grid,
        )

    @blaming("solver")
    def solver(
        self,
        solver: str | Solver | None = None,
        *,
        steps: int | None = None,
        grid: str | Grid | None = None,
    ) -> Solver:
        """Return a solver by its name; by default the card's for these steps and this grid."""
        if solver is None:
            solver = defaults_of(self, steps, grid).get("solver", "dpmpp-2m")
        return get_solver(solver)

    def request(self, cond: Names | None = None, **arguments: Unpack[RunArguments]) -> Request:
        """Resolve the arguments of `sample` into a `Request`, without running anything.

        `run` gives its samples, `states` its steps.

        Raises:
            ValueError: as `sample`.
            TypeError: an unknown argument.
        """
        return resolve_request(self, cond, arguments)

    def trajectory(
        self,
        cond: Names | None = None,
        *,
        explain: bool = False,
        check: bool = False,
        **arguments: Unpack[RunArguments],
    ) -> Iterator[State]:
        """Yield the state after each step (previews, progress, cancelling); arguments as in
        `sample` and `states`.
        """
        return self.states(self.request(cond, **arguments), explain=explain, check=check)

    def bind(self, request: Request, *, check: bool = False) -> Guided:
        """Bind the guidance of a request to this model's networks."""
        return self.guided(
            request.guidance,
            cond=request.names if request.encoded is None else request.encoded,
            negative=request.negative,
            scale=request.scale,
            seeds=request.seeds,
            losses=request.losses,
            max_rows=request.max_rows,
            checkpoint=request.checkpoint,
            check=check,
        )

    def states(
        self, request: Request, *, explain: bool = False, check: bool = False
    ) -> Iterator[State]:
        """Yield the state after each step of a request.

        Args:
            request: of this model.
            explain: also carry each term's push in the states.
            check: refuse outputs that are not finite where they arise (waits for the device).

        Raises:
            FloatingPointError: samples are not finite; names the term and its step, or the network
                and its pass.

        Warns:
            DivergenceWarning: samples have left every plausible range by the last step.
        """
        return walk_states(self, request, explain=explain, check=check)

    def warn_of_divergence(self, x: Tensor, level: Level | None = None) -> None:
        """Warn where samples ``[B, *S]`` have left every plausible range; waits for the device.

        The size of data is 1, or the card's ``data_scale``.
        """
        scale = self.card.get("data_scale", 1.0)
        warn_of_divergence(x, level, scale=float(scale), stacklevel=4)

    def sample(
        self,
        cond: Names | None = None,
        *,
        watch: Watch | None = None,
        **arguments: Unpack[RunArguments],
    ) -> Samples:
        """Sample one image a seed.

        Args:
            cond: class names or indices (or prompts): one, or one a seed; None for none at all.
            watch: called after each step with the steps done and the steps in all.

        Keyword Args:
            guidance: an expression, as text or made in Python; by default the card's, for these
                steps.
            seeds: one integer a sample; sample k depends on its own seed alone.
            negative: what cfg moves away from, in place of the null.
            scale: of a distilled student that takes it as an input: one number, or one a seed; by
                default the card's.
            steps: solver steps; by default the card's.
            solver: a solver or its name, with settings (``"unipc(order=3)"``) or as other projects
                call it (``"DPM++ 2M Karras"``); by default the card's, for these steps.
            grid: noise levels or the name of a grid; by default the one that the solver's name
                asks for, or the card's.
            start: data ``[B, *S]`` to start from (SDEdit), noised to the first level of noise ratio
                at most ``start_rho``.
            losses: minimised by dps, tfg and the like, by name ("loss" unless they name another):
                any differentiable ``loss(x0 [B, *S]) -> [B]``, or an `Observation`.
            max_rows: the most rows of one network call (bounds memory).
            checkpoint: where the network is differentiated, keep only the inputs of its blocks and
                compute the rest again (bounds memory further).

        Raises:
            ValueError: unknown names, an expression that does not parse, numbers out of range.
            FloatingPointError: samples are not finite; names the term and its step, or the network
                and its pass.
        """
        return self.run(self.request(cond, **arguments), watch=watch)

    def run(self, request: Request, *, watch: Watch | None = None) -> Samples:
        """Carry out a request of this model; ``watch`` as in `sample`.

        Raises:
            ValueError: what the guidance, a network or the solver refuses.
            FloatingPointError: samples are not finite.
        """
        state = None
        for state in self.states(request):
            if watch:
                watch(state.step.index + 1, state.step.grid.steps)
        assert state is not None  # a grid has at least one step
        return finish(self, request, state)

    def settings(
        self,
        request: Request,
        *,
        dtype: torch.dtype = torch.float32,
        lacking: Sequence[str] = (),
    ) -> Settings:
        """Return the settings that pictures of a request carry.

        Args:
            request: of this model.
            dtype: of the samples.
            lacking: on what else the samples depend that is not kept.
        """
        return settings_of(request, self.name, self.device, dtype=dtype, lacking=lacking)

    def steer(
        self,
        reward: ImageReward,
        cond: Names | None = None,
        *,
        particles: int = 8,
        strength: float = 1.0,
        potential: Potential = "difference",
        every: int | None = None,
        threshold: float = 0.5,
        watch: Watch | None = None,
        **arguments: Unpack[SteerArguments],
    ) -> Samples:
        """Sample towards a reward, which need not be differentiable: K particles a seed, of which
        the best is returned.

        The particles are weighed by the reward of their clean estimates and resampled on the way
        (`guidestar.steer`); with ``every=0`` it is best-of-K. ``samples.population`` holds all of
        them.

        Args:
            reward: of images, decoded as a sample's are: ``[N, C, H, W] -> [N]``.
            cond: as in `sample`.
            particles: K.
            strength: λ: the population is of the model's distribution times ``exp(λ · reward)``.
            potential: as in `guidestar.steer`.
            every: as in `guidestar.steer`.
            threshold: as in `guidestar.steer`.
            watch: as in `sample`.
            arguments: as in `sample`, but for ``start``, ``start_rho`` and ``checkpoint``; the
                solver must draw noise, and is "ddpm" by default.

        Raises:
            ValueError: as in `sample`; a solver that draws no noise; a reward that is not one
                number an image.
        """
        check_names(arguments, SteerArguments, "a steered run")
        request = self.request(cond, **{"solver": "ddpm", **arguments})
        how = Steering(
            particles=particles,
            strength=strength,
            potential=potential,
            every=every,
            threshold=threshold,
        )
        return steer_model(self, reward, request, how, watch)

    def again(self, settings: Carried | Settings, watch: Watch | None = None) -> Samples:
        """Repeat the run that a picture carries, or that samples have as their ``settings``.

        Raises:
            ValueError: the settings are not a run's, or it depended on what they lack: an image to
                start from, a loss, a reward, a function.
        """
        settings = asdict(settings) if isinstance(settings, Settings) else settings
        check_settings(settings)
        arguments: dict[str, Any] = {name: settings.get(name) for name in CARRIED}
        return self.run(self.request(settings["cond"], **arguments), watch=watch)
