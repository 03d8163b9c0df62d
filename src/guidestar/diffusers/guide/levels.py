"""The levels of a pipeline's run, read from its scheduler's own table at each of its timesteps.

A level describes x as the *network* takes it. Schedulers on sigmas (Euler, Heun, …) hold
``x_0 + σε`` and hand the network ``(x_0 + σε)/√(σ² + 1)``: that is the level ``α = 1/√(σ² + 1)``,
which has the same noise ratio, so nothing needs to be scaled back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...core.levels import VE, VP, Flow, Level, Schedule, expand, inverse_or_zero
from ...core.prediction import Prediction
from ...networks.network import TO_X0, OutputKind
from ..objects import Scheduler
from ..read.scheduler import KINDS, PREDICTS, GridKind


@dataclass(frozen=True, kw_only=True)
class Output:
    """What a network's output means, and how to write another prediction as such an output.

    Args:
        kind: eps, v, x0, velocity, or edm: ``x0 = d² α x + k d σ out`` where x has the level
            ``α = 1/√(ρ² + d²)``, ``σ = ρα``.
        d: standard deviation of the data, for edm.
        sign: k, for edm: 1 (epsilon) or −1 (v_prediction); else −1 where the output is the negative
            of its kind (a velocity towards the data).
    """

    kind: OutputKind
    d: float = 0.5
    sign: float = 1.0

    def to_x0(self, x: Tensor, out: Tensor, level: Level) -> Tensor:
        """Return the clean estimate that ``out`` means."""
        if self.kind == "edm":
            return (
                expand(self.d**2 * level.alpha, x) * x
                + expand(self.sign * self.d * level.sigma, x) * out
            )
        out = -out if self.sign < 0 else out
        return TO_X0[self.kind](x, out, level.alpha, level.sigma)

    def of(self, prediction: Prediction) -> Tensor:
        """Return the output that means ``prediction``."""
        if self.kind != "edm":
            made = prediction.view(self.kind)
            return -made if self.sign < 0 else made
        x, level = prediction.x_t, prediction.level
        rest = prediction.x0 - expand(self.d**2 * level.alpha, x) * x
        return rest * expand(inverse_or_zero(self.sign * self.d * level.sigma), x)


@dataclass(frozen=True, kw_only=True)
class Timetable:
    """The timesteps of a run, and the level at each.

    Args:
        scheduler: it was read from.
        times: the scheduler's timesteps, one for each call of the network.
        levels: of x as the network takes it at each of them, and at last where the run ends.
        schedule: of the training.
        output: what the network's output means.
        reads_t: whether the network takes a time of the schedule (and not a function of the noise
            ratio).
    """

    scheduler: Scheduler
    times: tuple[float, ...]
    levels: tuple[Level, ...]
    schedule: Schedule
    output: Output
    reads_t: bool = True
    source: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def order(self) -> int:
        """How many calls of the network make one step."""
        return int(getattr(self.scheduler, "order", 1))

    @property
    def current(self) -> bool:
        """Whether the scheduler still has the timesteps that were read."""
        return self.scheduler.timesteps is self.source

    def level(self, place: int) -> Level:
        """Return the level at the place-th timestep."""
        s = self.scheduler
        if not hasattr(s, "sigmas_interpol") or s.state_in_first_order:
            return self.levels[place]
        # A step of these has its second call between two entries of the table.
        between = float(s.sigmas_interpol[s.step_index - ("Ancestral" in type(s).__name__)])
        return _unit(between, self.times[place])

    def place(self, time: Tensor | float, last: int) -> int:
        """Find the place of the network's timestep.

        Args:
            time: the timestep as the network gets it: perhaps divided (1000 is 1), rounded or
                repeated.
            last: the place of the call before, −1 at first.
        """
        if (exact := self._find_in_table(time)) is not None:
            return exact
        value = float(torch.as_tensor(time).flatten().max())
        rounding = (
            torch.finfo(time.dtype).eps
            if isinstance(time, Tensor) and time.is_floating_point()
            else 1e-9
        )
        # A time of 1 may be the first one divided or the last one as it is.
        distances = [min(abs(t / scale - value) for scale in self._scales) for t in self.times]
        near = [
            i for i, d in enumerate(distances) if d <= min(distances) + 2 * rounding * abs(value)
        ]
        hint = getattr(self.scheduler, "step_index", None)
        hint = getattr(self.scheduler, "begin_index", None) if hint is None else hint
        return hint if hint in near else next((i for i in near if i > last), near[0])

    @property
    def _scales(self) -> tuple[float, ...]:
        return 1.0, float(self.scheduler.config.num_train_timesteps)

    def _find_in_table(self, time: object) -> int | None:
        """Return the place of a timestep that is a view of the table: nothing is read, so nothing
        waits for the device.
        """
        times = self.source
        if (
            times is None
            or not isinstance(time, Tensor)
            or time.dtype != times.dtype
            or not time.numel()
        ):
            return None
        if time.untyped_storage().data_ptr() != times.untyped_storage().data_ptr() or (
            time.ndim and time.numel() > 1 and any(time.stride())
        ):
            return None
        place = (time.storage_offset() - times.storage_offset()) // max(1, times.stride(0))
        return place if 0 <= place < len(self.times) else None


def read_timetable(scheduler: Scheduler) -> Timetable:
    """Read the table of a scheduler whose timesteps have been set.

    Raises:
        ValueError: a scheduler of a kind that has no table of levels known here.
    """
    names = [base.__name__ for base in type(scheduler).__mro__]
    name = next((n for n in names if n in KINDS or n in _OF_PIPELINES), None)
    if name is None:
        raise ValueError(
            f"the scheduler {type(scheduler).__name__} has no table of noise levels that "
            f"guidestar knows; these have: {', '.join(sorted((*KINDS, *_OF_PIPELINES)))}"
        )
    return (_OF_PIPELINES.get(name) or _READERS[KINDS[name]])(scheduler)


def _make_timetable(
    scheduler: Scheduler,
    levels: Sequence[Level],
    schedule: Schedule,
    output: Output,
    reads_t: bool = True,
) -> Timetable:
    times = tuple(float(t) for t in scheduler.timesteps.tolist())
    return Timetable(
        scheduler=scheduler,
        times=times,
        levels=tuple(levels),
        schedule=schedule,
        output=output,
        reads_t=reads_t,
        source=scheduler.timesteps,
    )


def _output(scheduler: Scheduler) -> Output:
    kind = getattr(scheduler.config, "prediction_type", "epsilon")
    if kind not in PREDICTS:
        raise ValueError(
            f"the scheduler's prediction_type {kind!r} is not supported; these are: "
            f"{', '.join(PREDICTS)}"
        )
    return Output(kind=PREDICTS[kind])


def _unit(rho: float, t: float) -> Level:
    """Return the level of noise ratio ``rho`` with α² + σ² = 1."""
    return Level(1 / math.sqrt(1 + rho * rho), rho / math.sqrt(1 + rho * rho), t)


def _table(scheduler: Scheduler) -> VP:
    bars = [float(a) for a in scheduler.alphas_cumprod.tolist()]
    if getattr(scheduler.config, "rescale_betas_zero_snr", False):
        bars[-1] = 0.0  # Diffusers writes 2⁻²⁴, which may lie above its neighbour
    try:
        return VP(tuple(bars))
    except ValueError as error:
        raise ValueError(f"the scheduler {type(scheduler).__name__}: {error}") from None


def _by_time(scheduler: Scheduler) -> Timetable:
    schedule, times = _table(scheduler), scheduler.timesteps.tolist()
    levels = [_of_table(float(scheduler.alphas_cumprod[int(t)]), t) for t in times]
    return _make_timetable(scheduler, [*levels, schedule.clean], schedule, _output(scheduler))


def _of_table(bar: float, t: float) -> Level:
    return Level(math.sqrt(bar), math.sqrt(1 - bar), float(t))


def _read_inverted(scheduler: Scheduler) -> Timetable:
    """Read a table that is walked upwards: x has the level of the step before the time that the
    network gets.
    """
    schedule, times = _table(scheduler), scheduler.timesteps.tolist()
    stride, bars = (
        scheduler.config.num_train_timesteps // scheduler.num_inference_steps,
        scheduler.alphas_cumprod,
    )
    # The first is taken as the table's first: where σ is 0, no clean estimate determines ε.
    levels = [_of_table(float(bars[int(min(max(t - stride, 0), len(bars) - 1))]), t) for t in times]
    return _make_timetable(
        scheduler,
        [*levels, _of_table(float(bars[int(times[-1])]), times[-1])],
        schedule,
        _output(scheduler),
    )


def _on_sigmas(scheduler: Scheduler) -> Timetable:
    if getattr(scheduler.config, "use_flow_sigmas", False):
        return _flow(scheduler)
    return _on_ratios(scheduler)


def _on_ratios(scheduler: Scheduler) -> Timetable:
    """Read sigmas that are noise ratios."""
    reads_t = getattr(scheduler.config, "timestep_type", "discrete") == "discrete"
    times = [float(t) for t in scheduler.timesteps.tolist()]
    levels = [
        _unit(float(s), t) for s, t in zip(scheduler.sigmas.tolist(), [*times, 0.0], strict=False)
    ]
    return _make_timetable(scheduler, levels, _table(scheduler), _output(scheduler), reads_t)


def _halfway(scheduler: Scheduler) -> Timetable:
    """Read noise ratios of which each second call is at the geometric mean of two."""
    table, sigmas = _on_ratios(scheduler), [float(s) for s in scheduler.sigmas.tolist()]
    between = {
        k: _unit(math.sqrt(sigmas[k - 1] * sigmas[k]), table.times[k])
        for k in range(1, len(table.times), 2)
    }
    return replace(
        table, levels=tuple(between.get(k, level) for k, level in enumerate(table.levels))
    )


def _edm(scheduler: Scheduler) -> Timetable:
    d = float(scheduler.config.sigma_data)
    sign = -1.0 if scheduler.config.prediction_type == "v_prediction" else 1.0
    times = [float(t) for t in scheduler.timesteps.tolist()]
    scales = [1 / math.sqrt(float(s) ** 2 + d * d) for s in scheduler.sigmas.tolist()]
    levels = [
        Level(a, float(s) * a, t)
        for s, a, t in zip(scheduler.sigmas.tolist(), scales, [*times, 0.0], strict=False)
    ]
    schedule = VE(t_min=float(scheduler.config.sigma_min), t_max=float(scheduler.config.sigma_max))
    return _make_timetable(scheduler, levels, schedule, Output(kind="edm", d=d, sign=sign), False)


def _flow(scheduler: Scheduler) -> Timetable:
    if getattr(scheduler.config, "invert_sigmas", False):
        levels = [Level(float(s), 1 - float(s), 1 - float(s)) for s in scheduler.sigmas.tolist()]
        output = Output(kind="velocity", sign=-1.0)
        return _make_timetable(scheduler, levels, Flow(), output, reads_t=False)
    sigmas = [float(s) for s in scheduler.sigmas.tolist()]
    if max(sigmas) > 1 + 1e-6:  # Cosmos 2 steps in samples x0 + σε of any σ
        schedule = VE(t_min=min(s for s in sigmas if s > 0), t_max=max(sigmas))
        plain = [Level(1.0, s, s) for s in sigmas]
        return _make_timetable(scheduler, plain, schedule, Output(kind="eps"), reads_t=False)
    levels = [Level(1 - s, s, s) for s in sigmas]
    output = (
        _output(scheduler) if "prediction_type" in scheduler.config else Output(kind="velocity")
    )
    return _make_timetable(scheduler, levels, Flow(), output)


def _cosine(scheduler: Scheduler) -> Timetable:
    """Read the cosine of a share of time (Würstchen)."""
    bar = lambda t: float(scheduler._alpha_cumprod(torch.tensor([float(t)]), torch.device("cpu")))
    share = lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    schedule = VP(tuple(share((k + 1) / 1001) for k in range(1000)))
    times = scheduler.timesteps.tolist()
    levels = [_of_table(bar(t), t) for t in times]
    return _make_timetable(
        scheduler, [*levels, schedule.clean], schedule, Output(kind="eps"), reads_t=False
    )


def _angles(scheduler: Scheduler) -> Timetable:
    """Read angles: α is their cosine, σ their sine (TrigFlow)."""
    times = [float(t) for t in scheduler.timesteps.tolist()]
    levels = [Level(math.cos(t), math.sin(t), t) for t in times]
    bars = tuple(math.cos(math.pi / 2 * (k + 1) / 1001) ** 2 for k in range(1000))
    return _make_timetable(scheduler, levels, VP(bars), Output(kind="v"), reads_t=False)


_OF_PIPELINES: dict[str, Callable[[Scheduler], Timetable]] = {
    "DDPMWuerstchenScheduler": _cosine,
    "SCMScheduler": _angles,
    "FlowMapEulerDiscreteScheduler": _flow,
    "HeliosScheduler": _flow,
    "LTXEulerAncestralRFScheduler": _flow,
}
"""Schedulers of single pipelines, whose folders are not read as models."""
_READERS: dict[GridKind, Callable[[Scheduler], Timetable]] = {
    "by time": _by_time,
    "inverted": _read_inverted,
    "on ratios": _on_sigmas,
    "scaled": _on_ratios,
    "halfway": _halfway,
    "edm": _edm,
    "flow": _flow,
}
