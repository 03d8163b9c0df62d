"""Check that a denoiser is wrapped rightly, from data that it was trained on.

A wrong wrapper (times reversed, eps taken for x0) often still gives plausible pictures. It shows in
the error of the clean estimate at each noise level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.denoiser import Condition, Denoiser
from ..core.levels import Level, Schedule
from ..core.prediction import Prediction
from ..core.rng import Draw
from .model import Model
from .readings import OTHER_RANGES, Affine, other_times, output_readings

_LOWEST, _HIGHEST = 0.05, 20.0
_RISEN = 1.2  # how far above the linear estimate's an error may lie, if measured on many numbers
_BETTER = 0.85  # a reading of the output that lowers the error to this share is believed
_MOST = 128


@dataclass(frozen=True, kw_only=True)
class Row:
    """Mean square errors of estimates of the data at one level.

    Args:
        rho: the noise ratio.
        error: of the denoiser under the condition.
        null: of the denoiser under the null, if there is one.
        mean: of the data's mean, a number for each place: their variance v.
        noisy: of ``x_t/α``: ρ².
        linear: of the best multiple ``m + v/(v + ρ²) (x_t/α − m)``: ``v ρ²/(v + ρ²)``.
        gain: the slope of the estimate on the data; close to 1 at little noise.
    """

    rho: float
    error: float
    null: float | None
    mean: float
    noisy: float
    linear: float
    gain: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result of `check`: errors by level, and suspected faults in words.

    Args:
        rows: one a level, from much noise to little.
        findings: suspected faults; empty where there are none.
        samples: how many data it is of.
    """

    rows: tuple[Row, ...]
    findings: tuple[str, ...]
    samples: int

    @property
    def ok(self) -> bool:
        """Whether no fault is suspected."""
        return not self.findings

    def __str__(self) -> str:
        head = (
            f"{'rho':>7} {'error':>9} {'null':>9} {'linear':>9} {'mean':>9} {'x_t/alpha':>9} "
            f"{'gain':>6}"
        )
        lines = [f"Mean square error of the clean estimate ({self.samples} samples)", head]
        for r in self.rows:
            null = f"{r.null:9.4f}" if r.null is not None else f"{'-':>9}"
            lines.append(
                f"{r.rho:7.3f} {r.error:9.4f} {null} {r.linear:9.4f} {r.mean:9.4f} "
                f"{r.noisy:9.4f} {r.gain:6.2f}"
            )
        findings = [f"- {finding}" for finding in self.findings] or ["Nothing looks wrong."]
        return "\n".join([*lines, "", *findings])


def check(
    denoiser: Denoiser | Model,
    data: Tensor,
    *,
    schedule: Schedule | None = None,
    cond: Condition | Sequence[str | int] | str | int | None = None,
    null: Condition | None = None,
    levels: int = 8,
    seed: int = 0,
) -> Report:
    """Check that a denoiser is wrapped rightly, from data that it was trained on (or similar).

    At each level data are noised and estimated; a right denoiser's estimate is never worse than the
    best linear one. Where it is worse, other readings of its output and time are tried (eps, x0, v
    or velocity taken for one another, the opposite sign, times reversed or in another unit, data in
    another range), and the reading under which the error falls is named. Conditions are compared
    with the null and with each other.

    Args:
        denoiser: a `Denoiser`, or a `Model`, which brings its schedule, names and null.
        data: ``[N, *S]``; of more than 128 the first. 32 or more make it certain.
        schedule: its noise levels.
        cond: the condition of each (or of all): a `Condition`, or names of a `Model`.
        null: the null condition, ``[1 or N]``.
        levels: how many noise ratios, evenly in log, within [0.05, 20] and the schedule's range.
        seed: of the noise.

    Up to 11 evaluations of all data a level.

    Raises:
        ValueError: no schedule, fewer than two data, data that are not finite.

    Example:
        >>> import torch, guidestar as gs
        >>> right = lambda x, level, cond: x * level.alpha / (level.alpha**2 + level.sigma**2)
        >>> gs.check(right, torch.randn(64, 16), schedule=gs.Flow()).ok
        True
    """
    schedule = schedule or getattr(denoiser, "schedule", None)
    if not isinstance(schedule, Schedule):
        raise ValueError(
            "check() needs the schedule of the denoiser's levels; give schedule=VP.linear(), "
            "Flow() or VE()"
        )
    if len(data) < 2 or not bool(data.isfinite().all()):
        raise ValueError(
            f"check() needs at least two data [N, *S], all finite; got {list(data.shape)}"
        )
    given, null = _conditions(denoiser, cond, null, len(data))
    net = denoiser.denoiser if isinstance(denoiser, Model) else denoiser
    count = min(len(data), _MOST)
    rows = torch.arange(count)
    many = _Trial(
        net, schedule, data[:count].detach(), given.repeat(len(data)).take(rows), levels, seed
    )
    bare = null.repeat(len(data)).take(rows) if null is not None else None
    with torch.no_grad():
        return many.report(bare)


def _conditions(
    denoiser: Denoiser | Model,
    cond: Condition | Sequence[str | int] | str | int | None,
    null: Condition | None,
    count: int,
) -> tuple[Condition, Condition | None]:
    model = denoiser if isinstance(denoiser, Model) else None
    encoder = model.encoder if model is not None else None
    if null is None and encoder is not None:
        null = encoder.null(count)
    if cond is None:
        return (null if null is not None else Condition()), None
    if isinstance(cond, Condition):
        return cond, null
    if model is None or encoder is None:
        raise ValueError(
            "conditions by name need a Model with an encoder; give a Condition(name=tensor) instead"
        )
    return encoder.encode(list(model.names(cond, count) or ())), null


class _Trial:
    """One set of data, noised in one way, estimated under one hypothesis after another."""

    def __init__(
        self, net: Denoiser, schedule: Schedule, x: Tensor, cond: Condition, levels: int, seed: int
    ) -> None:
        self.net, self.schedule, self.x, self.cond = net, schedule, x, cond
        low, high = schedule.rho_range
        low, high = max(low, _LOWEST), min(high, _HIGHEST)
        rhos = [high * (low / high) ** (i / max(1, levels - 1)) for i in range(levels)]
        # As times of the schedule, so that a network that gets a wrong time does not also get a
        # rounded one.
        self.levels = [schedule.at_rho(r) for r in rhos]
        self.risen = _RISEN + 3 * math.sqrt(2 / x.numel())
        draw = Draw([seed * _MOST + i for i in range(len(x))])
        self.noises = [draw.at(i).normal_like("check", x) for i in range(levels)]

    def noised(self, x: Tensor) -> list[Tensor]:
        pairs = zip(self.levels, self.noises, strict=True)
        return [float(level.alpha) * x + float(level.sigma) * z for level, z in pairs]

    def estimates(
        self, x: Tensor, cond: Condition, clock: Callable[[Level], float] | None = None
    ) -> list[Tensor]:
        """Return the clean estimate at each level."""
        found = []
        for level, x_t in zip(self.levels, self.noised(x), strict=True):
            timed = level if clock is None else level._replace(t=clock(level))
            out = self.net(x_t, timed, cond)
            found.append(out.x0 if isinstance(out, Prediction) else out)
        return found

    def linear(self, x: Tensor) -> list[float]:
        v = _variance(x)
        return [v * r * r / (v + r * r) for r in (float(level.rho) for level in self.levels)]

    def shares(self, x: Tensor, estimates: Sequence[Tensor]) -> list[float]:
        """Return the error at each level, as a share of the linear estimate's."""
        pairs = zip(estimates, self.linear(x), strict=True)
        return [_share(float((e - x).double().square().mean()), best) for e, best in pairs]

    def believed(self, shares: Sequence[float]) -> float:
        """Return the geometric mean of a reading that is right at every level; of any other,
        infinity.
        """
        return _score(shares) if max(shares) <= self.risen else math.inf

    def report(self, null: Condition | None) -> Report:
        plain = self.estimates(self.x, self.cond)
        bare = self.estimates(self.x, null) if null is not None else None
        shares = self.shares(self.x, plain)
        findings = self._wrapped(plain, shares)
        if bare and not findings:  # conditions mean nothing where the wrapper is wrong
            findings = self._conditioned(plain, bare)
        return Report(
            rows=tuple(self._rows(plain, bare)), findings=tuple(findings), samples=len(self.x)
        )

    def _rows(self, plain: Sequence[Tensor], bare: Sequence[Tensor] | None) -> Iterator[Row]:
        x, v = self.x, _variance(self.x)
        centred = (x - x.mean(0)).double()
        for i, (level, linear) in enumerate(zip(self.levels, self.linear(x), strict=True)):
            rho, e = float(level.rho), plain[i].double()
            gain = float(
                (centred * (e - e.mean(0))).sum() / centred.square().sum().clamp_min(1e-30)
            )
            null = float((bare[i] - x).double().square().mean()) if bare else None
            error = float((plain[i] - x).double().square().mean())
            yield Row(
                rho=rho, error=error, null=null, mean=v, noisy=rho * rho, linear=linear, gain=gain
            )

    def _wrapped(self, plain: Sequence[Tensor], shares: Sequence[float]) -> list[str]:
        """Describe faults of the output or the time, and where the error is too large."""
        bad = [
            float(level.rho)
            for level, share in zip(self.levels, shares, strict=True)
            if not share <= self.risen
        ]
        best, fault = _score(shares), ""
        limit = _BETTER * best
        for score, what in (*self._read(plain), *(self._ranged() if bad else ())):
            if score < min(limit, best):
                best, fault = score, what
        if fault:
            return [f"{fault} (the error falls to {best / _score(shares):.2g} of what it is)"]
        falls = self._not_rising(plain)
        if bad:
            at = ", ".join(f"{r:.3g}" for r in bad[:4])
            hint = "is it trained, on these data, with this schedule (and sigma_data)?"
            return [
                f"at noise ratio {at} its estimate is worse than a multiple of x_t; {hint}",
                *falls,
            ]
        return falls

    def _read(self, plain: Sequence[Tensor]) -> Iterator[tuple[float, str]]:
        noised, readings = self.noised(self.x), list(output_readings(self.net))

        def read(estimates: Sequence[Tensor], mend: Callable[[Level], Affine]) -> float:
            parts = zip((mend(level) for level in self.levels), noised, estimates, strict=True)
            return self.believed(self.shares(self.x, [p * x_t + q * e for (p, q), x_t, e in parts]))

        for what, mend in readings:
            yield read(plain, mend), what
        if getattr(self.net, "reads_t", True):
            for when, clock in other_times(self.schedule).items():
                estimates = self.estimates(self.x, self.cond, clock)
                yield self.believed(self.shares(self.x, estimates)), when
                for what, mend in readings:
                    yield (
                        read(estimates, mend) * 1.02,
                        f"{when}; and {what}",
                    )  # one fault is likelier than two

    def _ranged(self) -> Iterator[tuple[float, str]]:
        for what, change in OTHER_RANGES.items():
            x = change(self.x)
            yield self.believed(self.shares(x, self.estimates(x, self.cond))), what

    def _not_rising(self, plain: Sequence[Tensor]) -> list[str]:
        errors = [float((e - self.x).double().square().mean()) for e in plain]
        for i in range(len(errors) - 1):
            if errors[i + 1] > 1.2 * errors[i]:
                more, less = (float(self.levels[j].rho) for j in (i, i + 1))
                return [
                    f"its error rises as noise falls, from noise ratio {more:.3g} to {less:.3g}: "
                    "is its time right there?"
                ]
        return []

    def _conditioned(self, plain: Sequence[Tensor], bare: Sequence[Tensor]) -> list[str]:
        """Compare the condition with the null, and with another sample's."""
        moved = [
            _share(float((a - b).double().square().mean()), float(b.double().var()))
            for a, b in zip(plain, bare, strict=True)
        ]
        if max(moved) < 1e-8:
            return [
                "the condition is ignored: under the null it gives the same; is it passed on to "
                "the network?"
            ]
        own, none = (sum(self.shares(self.x, e)) for e in (plain, bare))
        found = []
        if none < 0.98 * own:
            found.append(
                "the null is better than the condition: are the two swapped, or the conditions "
                "those of other data?"
            )
        turned = self.cond.take((torch.arange(len(self.x)) + len(self.x) // 2) % len(self.x))
        if all(torch.equal(a, b) for a, b in zip(self.cond.values(), turned.values(), strict=True)):
            return found
        others = sum(self.shares(self.x, self.estimates(self.x, turned)))
        if others < 0.98 * own:
            found.append(
                "other samples' conditions fit better than their own: are they in the order of "
                "the data?"
            )
        return found


def _variance(x: Tensor) -> float:
    """Return the mean variance around each place's mean, as of an unknown mean."""
    return float(x.double().var(0).mean())


def _share(error: float, of: float) -> float:
    return error / max(of, 1e-30) if math.isfinite(error) else math.inf


def _score(shares: Sequence[float]) -> float:
    """Return the geometric mean of shares."""
    return math.exp(sum(math.log(min(max(s, 1e-6), 1e12)) for s in shares) / len(shares))


__all__ = ["Report", "Row", "check"]
