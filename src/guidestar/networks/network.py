"""Denoisers made of networks that predict eps, x0, v or a flow velocity, or of EDM's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..core.denoiser import Condition
from ..core.levels import Level, Value, divide, expand, inverse_or_zero, log, sqrt
from ..core.prediction import Prediction

OutputKind = Literal["eps", "x0", "v", "velocity", "edm"]


def _refuse_pure_noise(predicts: str, a: Value) -> None:
    if bool((torch.as_tensor(a) == 0).any()):
        raise ValueError(
            f"a network that predicts {predicts} has no clean estimate at pure noise (alpha = 0); "
            "start the grid below it, or use a network that predicts v, x0 or velocity"
        )


def _from_eps(x: Tensor, out: Tensor, a: Value, s: Value) -> Tensor:
    _refuse_pure_noise("eps", a)
    return expand(inverse_or_zero(a), x) * x - expand(divide(s, a), x) * out


def _from_v(x: Tensor, out: Tensor, a: Value, s: Value) -> Tensor:
    n = a * a + s * s
    return expand(divide(a, n), x) * x - expand(divide(s, n), x) * out


def _from_velocity(x: Tensor, out: Tensor, a: Value, s: Value) -> Tensor:
    return expand(divide(1.0, a + s), x) * x - expand(divide(s, a + s), x) * out


TO_X0: dict[str, Callable[[Tensor, Tensor, Value, Value], Tensor]] = {
    "x0": lambda x, out, a, s: out,
    "eps": _from_eps,
    "v": _from_v,
    "velocity": _from_velocity,
}


class Network(nn.Module):
    """A denoiser made of a network ``net(x, t, **cond)``.

    Args:
        net: returns a tensor, or an object or tuple that holds one (``.sample`` or ``[0]``).
        predicts: the meaning of its output. With ``x_t = αx0 + σε``:
            eps: ``x0 = (x_t − σ·out)/α``; v: ``x0 = (αx_t − σ·out)/(α² + σ²)``;
            velocity (``ε − x0``): ``x0 = (x_t − σ·out)/(α + σ)``;
            edm: ``x0 = c_skip·x + c_out·net(c_in·x, ln(ρ)/4)`` with ``x = x_t/α``.
        learned_variance: the output has 2C channels, the second half a variance (Improved DDPM).
        sigma_data: standard deviation of the data, for edm.
        time: maps ``level.t`` to the time that the network gets (e.g. ``lambda t: 1000 * t``).
        dtype: the dtype in which the network computes; by default that of its parameters. All else
            is in the dtype of ``x_t``. Times are in float32 at least, as bfloat16 has one value for
            steps 998 and 1000.

    Raises:
        ValueError: an unknown ``predicts``, or a learned variance of an edm network; in a call,
            pure noise where the network has no estimate, or an output of another shape.

    References:
        EDM preconditioning: equation 7 and table 1 of https://arxiv.org/abs/2206.00364
        v-prediction: appendix D of https://arxiv.org/abs/2202.00512
    """

    cpu_rows: int | None = 32
    """The most rows of a call on a CPU. With more, the shipped networks outgrow its caches."""

    def __init__(
        self,
        net: Callable[..., Any],
        *,
        predicts: OutputKind = "eps",
        learned_variance: bool = False,
        sigma_data: float = 0.5,
        time: Callable[[Value], Value] = lambda t: t,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if predicts not in (*TO_X0, "edm"):
            known = ", ".join((*TO_X0, "edm"))
            raise ValueError(f"predicts must be one of {known}, not {predicts!r}")
        if learned_variance and predicts == "edm":
            raise ValueError(
                "an edm network predicts no variance; learned_variance goes with eps, x0, v or "
                "velocity"
            )
        self.net, self.predicts, self.learned_variance = net, predicts, learned_variance
        self.sigma_data, self.time = sigma_data, time
        self._dtype = dtype

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype that the network computes in: the one that was given, or that of its weights
        now; None of a function without weights.
        """
        if self._dtype is not None or not isinstance(self.net, nn.Module):
            return self._dtype
        return next((p.dtype for p in self.net.parameters() if p.is_floating_point()), None)

    @property
    def takes_interval(self) -> bool:
        """Whether the network can take a step whole, as it gets the interval of the step."""
        net = self.net
        while net is not None and not getattr(net, "takes_interval", False):
            net = getattr(net, "net", None)
        return net is not None

    @property
    def reads_t(self) -> bool:
        """Whether the network gets ``level.t``; an edm network gets the noise ratio instead."""
        return self.predicts != "edm"

    def forward(self, x_t: Tensor, level: Level, cond: Condition) -> Tensor | Prediction:
        """Estimate x0 ``[B, *S]``."""
        if self.predicts == "edm":
            return self._edm(x_t, level, cond)
        out = self._call(x_t, self.time(level.t), cond)
        if not self.learned_variance:
            return TO_X0[self.predicts](x_t, out, level.alpha, level.sigma)
        mean, log_var = out.chunk(2, dim=1)
        x0 = TO_X0[self.predicts](x_t, mean, level.alpha, level.sigma)
        return replace(Prediction.from_x0(x_t, level, x0), log_var=log_var)

    def _edm(self, x_t: Tensor, level: Level, cond: Condition) -> Tensor:
        _refuse_pure_noise("edm", level.alpha)
        rho, d = level.rho, self.sigma_data
        total = rho**2 + d**2
        x = x_t * expand(inverse_or_zero(level.alpha), x_t)
        out = self._call(x * expand(1 / sqrt(total), x), log(rho) / 4, cond)
        return expand(d**2 / total, x) * x + expand(rho * d / sqrt(total), x) * out

    def _call(self, x: Tensor, t: Value, cond: Condition) -> Tensor:
        dtype = self.dtype or x.dtype
        precise = torch.promote_types(dtype, torch.float32)
        if isinstance(t, Tensor):
            times = t.to(x.device, precise)
        else:
            times = torch.full((len(x),), t, device=x.device, dtype=precise)
        own = {k: v.to(dtype) if v.is_floating_point() else v for k, v in cond.items()}
        out = self.net(x.to(dtype), times, **own)
        if not isinstance(out, Tensor):
            out = out.sample if hasattr(out, "sample") else out[0]
        self._check_channels(x, out)
        return out.to(x.dtype)

    def _check_channels(self, x: Tensor, out: Tensor) -> None:
        batch, channels, *rest = x.shape
        double = out.shape == (batch, 2 * channels, *rest)
        if not (double if self.learned_variance else out.shape == x.shape):
            hint = "; a network of 2C channels needs learned_variance=True" if double else ""
            raise ValueError(
                f"the network returned {tuple(out.shape)} for an input of {tuple(x.shape)}{hint}"
            )
