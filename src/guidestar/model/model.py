"""A trained model with everything needed to sample from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ..core.denoiser import Condition, Denoiser
from ..core.levels import GRIDS, Grid, Level, Schedule
from ..core.passes import Net
from ..core.rng import Draw, checked_seeds
from ..diffusers.guidance_file import Defaults
from ..guidance import Guidance, Guided, Observation, Plan, losses_of, parse
from ..guidance.losses import Loss
from ..guidance.term import Direction, as_guidance
from ..sampling import (
    Potential,
    Solver,
    State,
    get_solver,
    grid_of,
    trajectory,
    warn_of_divergence,
)
from .binding import names_of, net_of, scale_of, with_scale
from .fitted import FITTED, fitted_grid, ratios_of
from .manifest import Card
from .protocols import (
    ClassEncoder,
    Classifier,
    Decoder,
    Encoder,
    IndexEncoder,
    Judge,
    LatentDecoder,
    TextEncoder,
    TextJudge,
)
from .request import CUSTOM, Names, Request, Steering
from .samples import Carried, Samples, Settings, check_settings, settings_of
from .steering import Reward, steer
from .walking import drive_alone, find_blame, finish, starting_samples

Watch = Callable[[int, int], None]


@dataclass(kw_only=True, repr=False)
class Model:
    """A denoiser with its schedule, condition encoder, decoder, further networks and card.

    Several threads may sample from one model at the same time.

    Args:
        name: its name, or its folder.
        denoiser: the network that is guided.
        schedule: its noise levels.
        shape: of one sample.
        encoder: turns names into conditions: ``encode(names)``, ``null(batch)``, ``index(name)``,
            ``classes``; None for an unconditional model.
        decode: turns samples into images; by default they are images already.
        nets: further denoisers by name, each with its encoder (``weak``: for autoguidance).
        classifiers: by the name that ``classifier(…, net=name)`` has.
        judge: a classifier that guides nothing and only measures.
        defaults: ``guidance``, ``steps``, ``solver`` and ``grid`` as its card recommends.
        card: the values of its ``guidestar.json``.
    """

    name: str
    denoiser: Denoiser
    schedule: Schedule
    shape: tuple[int, ...]
    encoder: Encoder | None = None
    decode: Decoder = lambda x: x.clamp(-1, 1)
    nets: dict[str, tuple[Denoiser, Encoder | None]] = field(default_factory=dict)
    classifiers: dict[str, Classifier] = field(default_factory=dict)
    judge: Judge | TextJudge | None = None
    defaults: Defaults = field(default_factory=Defaults)
    card: Card = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, if it has any."""
        encoder = self.encoder
        return tuple(encoder.classes) if isinstance(encoder, ClassEncoder) else ()

    @property
    def told_by_text(self) -> bool:
        """Whether its condition is a prompt."""
        return isinstance(self.encoder, TextEncoder)

    @property
    def latent(self) -> bool:
        """Whether it works on latents, which `decode` turns into images."""
        return isinstance(self.decode, LatentDecoder)

    @property
    def device(self) -> torch.device:
        """Where the main network is."""
        parameters = (
            self.denoiser.parameters() if isinstance(self.denoiser, nn.Module) else iter(())
        )
        return next((p.device for p in parameters), torch.device("cpu"))

    def to(self, device: torch.device | str) -> Model:
        """Move every network to ``device``."""
        parts = [
            self.denoiser,
            self.encoder,
            self.judge,
            *self.classifiers.values(),
            *(m for pair in self.nets.values() for m in pair),
        ]
        for part in parts:
            if isinstance(part, nn.Module):
                part.to(device)
        return self

    def to_images(self, x: Tensor) -> Tensor:
        """Decode samples ``[B, *S]`` into images.

        Raises:
            FloatingPointError: the decoder returned values that are not finite.
        """
        images = self.decode(x)
        if not bool(images.isfinite().all()) and bool(x.isfinite().all()):
            raise FloatingPointError(
                f"the decoder of {self.name!r} returned values that are not finite from finite "
                "samples; load it in float32"
            )
        return images

    def grid(self, steps: int | None = None, grid: str | Grid | None = None) -> Grid:
        """Make a grid of levels; both default to the card's.

        A grid that was fitted to the model (``guidestar grid``) is the default for its step count;
        by the name "fitted" it is interpolated for others.

        Raises:
            ValueError: unknown grid, or steps out of range.
        """
        if isinstance(grid, Grid):
            return grid
        count: int = steps if steps is not None else self.defaults.get("steps", 20)
        name = self.grid_name(steps, grid)
        if name == FITTED:
            return fitted_grid(self, count)
        if name not in GRIDS:
            raise ValueError(f"unknown grid {name!r}; the grids are {', '.join((*GRIDS, FITTED))}")
        if not 1 <= count <= 10_000:
            raise ValueError(f"steps must be from 1 to 10000, not {count}")
        return GRIDS[name](self.schedule, count)

    def grid_name(self, steps: int | None = None, grid: str | None = None) -> str:
        """Return the name of the grid of so many steps: as given, fitted, or the card's."""
        count = steps if steps is not None else self.defaults.get("steps", 20)
        if grid is None and count in ratios_of(self.card):
            return FITTED
        return grid or self.defaults.get("grid", "log_snr")

    def expression(
        self, guidance: str | Guidance | Direction | None, *, conditional: bool = True
    ) -> Guidance:
        """Read an expression; by default the card's, and no guidance at all where there is no
        condition.
        """
        if guidance is None:
            guidance = (
                self.defaults.get("guidance", "cond")
                if conditional and self.encoder is not None
                else "uncond"
            )
        return parse(guidance) if isinstance(guidance, str) else as_guidance(guidance)

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
        used = {"main", *(name for term in expression.terms for name in term.traits.nets)}
        everyone = {"main": (self.denoiser, self.encoder), **self.nets}
        nets = {
            name: net_of(self, denoiser, encoder, cond, negative)
            if name in used
            else Net(denoiser=denoiser)
            for name, (denoiser, encoder) in everyone.items()
        }
        nets["main"] = with_scale(self, nets["main"], scale_of(self, scale))
        named = None if isinstance(cond, Condition) else cond
        indexed = IndexEncoder if self.classifiers else ClassEncoder
        index = self.encoder.index if isinstance(self.encoder, indexed) else None
        target = (
            torch.tensor([index(n) for n in named])
            if named is not None and index is not None and "" not in named
            else None
        )
        return Guided(
            expression,
            nets,
            classifiers=self._guides(),
            target=target,
            index=index,
            prompts=[str(c) for c in named] if named is not None and self.told_by_text else None,
            losses=losses,
            seeds=seeds,
            max_rows=max_rows,
            checkpoint=checkpoint,
            check=check,
        )

    def _guides(self) -> dict[str, object]:
        """Return the classifiers as a run uses them: a CLIP of clean pictures sees latents through
        the decoder.
        """
        vae = self.decode.vae if isinstance(self.decode, LatentDecoder) else None
        if vae is None:
            return dict(self.classifiers)
        from ..diffusers.read.vae import ThroughDecoder

        guides: dict[str, Any] = dict(self.classifiers)
        return {
            name: ThroughDecoder(vae, c) if hasattr(c, "embed_text") and not c.noise_aware else c
            for name, c in guides.items()
        }

    def plan(
        self,
        guidance: str | Guidance | Direction | None = None,
        *,
        cond: Names | None = 0,
        negative: str | int | None = None,
        scale: float | Sequence[float] | None = None,
        steps: int | None = None,
        solver: str | Solver | None = None,
        grid: str | None = None,
    ) -> Plan:
        """Return the passes that a run would evaluate, without running anything (so no losses are
        needed); arguments as in `sample`.

        It is of as many samples as there are conditions, or scales in the expression's lists.
        """
        cond = "anything" if cond == 0 and self.told_by_text else cond
        count = 1 if cond is None or isinstance(cond, str | int) else max(1, len(cond))
        names = self.names(cond if self.encoder is not None else None, count)
        unseen = {
            name: Observation("identity", 0.0)
            for name in losses_of(self.expression(guidance, conditional=names is not None))
        }
        guided = self.guided(guidance, cond=names, negative=negative, scale=scale, losses=unseen)
        asked, solver = solver, self.solver(solver)
        levels = self.grid(steps, grid or grid_of(asked))
        solver.check(guided, levels)
        return guided.plan(
            levels, batch=count if count > 1 else None, evaluations=solver.evaluations
        )

    def solver(self, solver: str | Solver | None = None) -> Solver:
        """Return a solver by its name; by default the card's."""
        return get_solver(solver if solver is not None else self.defaults.get("solver", "dpmpp-2m"))

    def trajectory(
        self,
        cond: Names | None = None,
        *,
        guidance: str | Guidance | Direction | None = None,
        seeds: Sequence[int] = (0,),
        negative: str | int | None = None,
        scale: float | Sequence[float] | None = None,
        steps: int | None = None,
        solver: str | Solver | None = None,
        grid: str | Grid | None = None,
        start: Tensor | None = None,
        start_rho: float | None = None,
        losses: Mapping[str, Loss] | None = None,
        max_rows: int | None = None,
        checkpoint: bool = False,
        explain: bool = False,
        check: bool = False,
    ) -> Iterator[State]:
        """Yield the state after each step (previews, progress, cancelling); arguments as in
        `sample`.
        """
        request = self.request(
            cond,
            guidance=guidance,
            seeds=seeds,
            negative=negative,
            scale=scale,
            steps=steps,
            solver=solver,
            grid=grid,
            start=start,
            start_rho=start_rho,
            losses=losses,
            max_rows=max_rows,
            checkpoint=checkpoint,
        )
        return self.states(request, explain=explain, check=check)

    def request(
        self,
        cond: Names | None = None,
        *,
        guidance: str | Guidance | Direction | None = None,
        seeds: Sequence[int] = (0,),
        negative: str | int | None = None,
        scale: float | Sequence[float] | None = None,
        steps: int | None = None,
        solver: str | Solver | None = None,
        grid: str | Grid | None = None,
        start: Tensor | None = None,
        start_rho: float | None = None,
        losses: Mapping[str, Loss] | None = None,
        max_rows: int | None = None,
        checkpoint: bool = False,
    ) -> Request:
        """Resolve the arguments of `sample` into a `Request`, without running anything.

        `run` gives its samples, `states` its steps.

        Raises:
            ValueError: as `sample`.
        """
        checked = tuple(checked_seeds(seeds))
        names = self.names(cond, len(checked))
        grid = grid or grid_of(solver)
        levels = self.grid(steps, grid)
        return Request(
            names=names,
            guidance=self.expression(guidance, conditional=names is not None),
            seeds=checked,
            solver=self.solver(solver),
            levels=levels if start_rho is None else levels.from_rho(start_rho),
            grid=CUSTOM if isinstance(grid, Grid) else self.grid_name(steps, grid),
            negative=negative,
            scale=scale_of(self, scale, len(checked)),
            start_rho=start_rho,
            start=None if start is None else _checked_start(start, len(checked), self.shape),
            losses=losses,
            max_rows=max_rows,
            checkpoint=checkpoint,
        )

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
        try:
            for state in self._states(request, explain=explain, check=check):
                if state.step.index == state.step.grid.steps - 1:
                    self.warn_of_divergence(state.x, state.step.s)
                yield state
        except FloatingPointError as error:
            if check:
                raise
            blamed = drive_alone(find_blame(self, request))
            raise FloatingPointError(blamed or str(error)) from error

    def warn_of_divergence(self, x: Tensor, level: Level | None = None) -> None:
        """Warn where samples ``[B, *S]`` have left every plausible range; waits for the device.

        The size of data is 1, or the card's ``data_scale``.
        """
        scale = self.card.get("data_scale", 1.0)
        warn_of_divergence(x, level, scale=float(scale), stacklevel=4)

    def _states(self, request: Request, *, explain: bool, check: bool) -> Iterator[State]:
        return trajectory(
            self.bind(request, check=check),
            starting_samples(self, request),
            grid=request.levels,
            solver=request.solver,
            draw=Draw(request.seeds),
            explain=explain,
        )

    def sample(
        self,
        cond: Names | None = None,
        *,
        guidance: str | Guidance | Direction | None = None,
        seeds: Sequence[int] = (0,),
        negative: str | int | None = None,
        scale: float | Sequence[float] | None = None,
        steps: int | None = None,
        solver: str | Solver | None = None,
        grid: str | Grid | None = None,
        start: Tensor | None = None,
        start_rho: float | None = None,
        losses: Mapping[str, Loss] | None = None,
        max_rows: int | None = None,
        checkpoint: bool = False,
        watch: Watch | None = None,
    ) -> Samples:
        """Sample one image a seed.

        Args:
            cond: class names or indices (or prompts): one, or one a seed; None for none at all.
            guidance: an expression, as text or made in Python; the card's by default.
            seeds: one integer a sample; sample k depends on its own seed alone.
            negative: what cfg moves away from, in place of the null.
            scale: of a distilled student that takes it as an input: one number, or one a seed; by
                default the card's.
            steps: solver steps; by default the card's.
            solver: a solver or its name, with settings (``"unipc(order=3)"``) or as other projects
                call it (``"DPM++ 2M Karras"``); by default the card's.
            grid: noise levels or the name of a grid; by default the one that the solver's name
                asks for, or the card's.
            start: data ``[B, *S]`` to start from (SDEdit), noised to the first level of noise ratio
                at most ``start_rho``.
            losses: what dps, tfg and their kin lower, by name ("loss" unless they name another):
                any differentiable ``loss(x0 [B, *S]) -> [B]``, or an `Observation`.
            max_rows: the most rows of one network call (bounds memory).
            checkpoint: where the network is differentiated, keep only the inputs of its blocks and
                compute the rest again (bounds memory further).
            watch: called after each step with the steps done and the steps in all.

        Raises:
            ValueError: unknown names, an expression that does not parse, numbers out of range.
            FloatingPointError: samples are not finite; names the term and its step, or the network
                and its pass.
        """
        request = self.request(
            cond,
            guidance=guidance,
            seeds=seeds,
            negative=negative,
            scale=scale,
            steps=steps,
            solver=solver,
            grid=grid,
            start=start,
            start_rho=start_rho,
            losses=losses,
            max_rows=max_rows,
            checkpoint=checkpoint,
        )
        return self.run(request, watch=watch)

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
        reward: Reward,
        cond: Names | None = None,
        *,
        particles: int = 8,
        strength: float = 1.0,
        potential: Potential = "difference",
        every: int | None = None,
        threshold: float = 0.5,
        guidance: str | Guidance | Direction | None = None,
        seeds: Sequence[int] = (0,),
        negative: str | int | None = None,
        scale: float | Sequence[float] | None = None,
        steps: int | None = None,
        solver: str | Solver = "ddpm",
        grid: str | Grid | None = None,
        losses: Mapping[str, Loss] | None = None,
        max_rows: int | None = None,
        watch: Watch | None = None,
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
            guidance: as in `sample`.
            seeds: as in `sample`.
            negative: as in `sample`.
            scale: as in `sample`.
            steps: as in `sample`.
            solver: one that draws noise.
            grid: as in `sample`.
            losses: as in `sample`.
            max_rows: as in `sample`.
            watch: as in `sample`.

        Raises:
            ValueError: as in `sample`; a solver that draws no noise; a reward that is not one
                number an image.
        """
        request = self.request(
            cond,
            guidance=guidance,
            seeds=seeds,
            negative=negative,
            scale=scale,
            steps=steps,
            solver=solver,
            grid=grid,
            losses=losses,
            max_rows=max_rows,
        )
        how = Steering(
            particles=particles,
            strength=strength,
            potential=potential,
            every=every,
            threshold=threshold,
        )
        return steer(self, reward, request, how, watch)

    def again(self, settings: Carried, watch: Watch | None = None) -> Samples:
        """Repeat the run that a picture carries.

        Raises:
            ValueError: the settings are not a run's, or it depended on what they lack: an image to
                start from, a loss, a reward, a function.
        """
        check_settings(settings)
        request = self.request(
            settings["cond"],
            guidance=settings["guidance"],
            seeds=settings["seeds"],
            negative=settings["negative"],
            scale=settings.get("scale"),
            steps=settings["steps"],
            solver=settings["solver"],
            grid=settings["grid"],
            max_rows=settings["max_rows"],
        )
        return self.run(request, watch=watch)

    def need_judge(self) -> Judge:
        """Return the judge.

        Raises:
            ValueError: the model has none.
        """
        if self.judge is None or isinstance(self.judge, TextJudge):
            raise ValueError(
                f"the model {self.name!r} has no judge, so it cannot be measured; train one "
                "([judge] in the recipe)"
            )
        return self.judge

    def need_classes(self) -> ClassEncoder:
        """Return the encoder of classes.

        Raises:
            ValueError: the model takes no classes.
        """
        if not isinstance(self.encoder, ClassEncoder):
            raise ValueError(f"the model {self.name!r} takes no classes; choose a model of classes")
        return self.encoder

    def __repr__(self) -> str:
        """Describe the model in at most ten lines."""
        named = ", ".join(self.classes[:4]) + (", …" if len(self.classes) > 4 else "")
        takes = (
            "a prompt"
            if self.told_by_text
            else f"{len(self.classes)} classes ({named})"
            if self.classes
            else "a condition"
            if self.encoder
            else "nothing"
        )
        lines = [
            f"Model {self.name!r}: {self.card.get('summary', '')}".rstrip(": "),
            f"  network      {type(_unwrap(self.denoiser)).__name__}, "
            f"{_count(self.denoiser):,} parameters, on {self.device}",
            f"  schedule     {type(self.schedule).__name__}",
            f"  samples      {list(self.shape)}{', latents of a VAE' if self.latent else ''}",
            f"  condition    {takes}",
            f"  nets         {', '.join(self.nets) or 'none'}",
            "  classifiers  "
            f"{', '.join(self.classifiers) or 'none'}{'; a judge' if self.judge else ''}",
            f"  defaults     {', '.join(f'{k}={v}' for k, v in self.defaults.items()) or 'none'}",
        ]
        return "\n".join(lines)

    def __deepcopy__(self, memo: dict[int, object]) -> Model:
        return Model(**{f.name: deepcopy(getattr(self, f.name), memo) for f in fields(self)})

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Model holds functions that cannot be pickled; pass its name or folder on instead, "
            "and call guidestar.load there"
        )


def _unwrap(denoiser: object) -> object:
    """Return the network within its wrappers."""
    while isinstance(net := getattr(denoiser, "net", None), nn.Module):
        denoiser = net
    return denoiser


def _count(denoiser: object) -> int:
    return sum(p.numel() for p in denoiser.parameters()) if isinstance(denoiser, nn.Module) else 0


def _checked_start(start: Tensor, count: int, shape: tuple[int, ...]) -> Tensor:
    if tuple(start.shape) != (count, *shape):
        raise ValueError(
            f"start must have the shape {(count, *shape)}, one for each seed, not "
            f"{tuple(start.shape)}"
        )
    return start
