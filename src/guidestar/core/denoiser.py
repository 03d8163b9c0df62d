"""Denoisers: ``denoiser(x_t, level, cond) -> x0``, and the conditions that they get.

`Network` makes a denoiser of a network that predicts eps, x0, v or a flow velocity, or that is
preconditioned as in EDM. Any other callable of that signature is a denoiser already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .hooks import replaced
from .levels import Level, Value, divide, expand, inverse_or_zero, log, sqrt
from .prediction import Prediction

OutputKind = Literal["eps", "x0", "v", "velocity", "edm"]


class Condition(Mapping[str, Tensor]):
    """The condition of a network: a frozen mapping of names to tensors ``[B, …]``.

    Names are the network's keyword arguments. All conditions of one model have the same names and
    shapes, so that passes can be joined: an encoder pads to a fixed length and gives the mask.

    Raises:
        TypeError: no mapping, or a value that is no tensor.
        ValueError: a tensor without a first dimension, or first dimensions that differ.
    """

    def __init__(self, tensors: Mapping[str, Tensor] | None = None, **more: Tensor) -> None:
        if tensors is not None and not isinstance(tensors, Mapping):
            raise TypeError(
                "a condition has tensors by name, as in Condition(label=tensor), not a "
                f"{type(tensors).__name__} without a name"
            )
        self._tensors = {**(tensors or {}), **more}
        for name, value in self._tensors.items():
            _check_tensor(name, value)
        sizes = {t.shape[0] for t in self._tensors.values()}
        if len(sizes) > 1:
            raise ValueError(
                "the tensors of a condition must agree in their first dimension, not "
                f"{sorted(sizes)}"
            )

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    @property
    def batch(self) -> int:
        """Number of samples; 0 for the empty condition, which serves any number."""
        return next((t.shape[0] for t in self._tensors.values()), 0)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of one sample's tensor, by name."""
        return {name: tuple(t.shape[1:]) for name, t in self._tensors.items()}

    def take(self, rows: Tensor) -> Condition:
        """Select samples (``rows``: int64 indices)."""
        return Condition({name: t[rows.to(t.device)] for name, t in self._tensors.items()})

    def repeat(self, batch: int) -> Condition:
        """Repeat a condition of one sample for ``batch`` samples.

        Raises:
            ValueError: it has another number of samples.
        """
        if self.batch in (0, batch):
            return self
        if self.batch != 1:
            raise ValueError(
                f"a condition of {self.batch} samples cannot serve {batch} samples; give 1 or "
                f"{batch}"
            )
        return Condition({name: t.expand(batch, *t.shape[1:]) for name, t in self._tensors.items()})

    def to(self, device: torch.device | str) -> Condition:
        """Move every tensor to ``device``."""
        return Condition({name: t.to(device) for name, t in self._tensors.items()})

    @staticmethod
    def join(parts: list[Condition]) -> Condition:
        """Concatenate conditions along the batch.

        Raises:
            ValueError: their names or shapes differ.
        """
        first = parts[0]
        for other in parts[1:]:
            if (a := first.shapes) != (b := other.shapes):
                raise ValueError(
                    f"conditions of one model must have the same names and shapes, not {a} and {b}"
                )
        if len(parts) == 1:
            return first
        return Condition({name: torch.cat([c[name] for c in parts]) for name in first})


def _check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name!r} of a condition must be a tensor [B, …], not {type(value).__name__}; write "
            "torch.as_tensor(…)"
        )
    if not value.ndim:
        raise ValueError(
            f"{name!r} of a condition must be a tensor [B, …] with one row a sample, not a single "
            "number; write it as [number]"
        )


class Denoiser(Protocol):
    """Anything that estimates clean data: a network, or a function.

    It returns x0 ``[B, *S]``, or a whole `Prediction` if it has more (a learned variance). An
    attribute ``cpu_rows`` is the largest number of rows of a call that suits it on a CPU.
    """

    def __call__(self, x_t: Tensor, level: Level, cond: Condition) -> Tensor | Prediction:
        """Estimate x0 from ``x_t [B, *S]`` at ``level``, under ``cond``."""
        ...


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


@contextmanager
def checkpointed(denoiser: Denoiser) -> Iterator[None]:
    """Let the blocks of a network keep only their inputs for a gradient.

    The rest is computed again. Blocks are the members of the network's outermost
    `torch.nn.ModuleList` and `Sequential` containers.

    Raises:
        ValueError: it is no module, or has no blocks.
    """
    blocks = _blocks(denoiser) if isinstance(denoiser, nn.Module) else []
    if not blocks:
        raise ValueError(
            "there is nothing to checkpoint: the network is no torch module, or has no blocks "
            "(ModuleList, Sequential); leave checkpoint out"
        )
    with ExitStack() as stack:
        for block in blocks:
            recompute = lambda forward: partial(checkpoint, forward, use_reentrant=False)
            stack.enter_context(replaced(block, recompute))
        yield


def _blocks(module: nn.Module) -> list[nn.Module]:
    inner = list(module.children())
    if isinstance(module, nn.ModuleList | nn.Sequential):
        return inner
    return list(dict.fromkeys(b for child in inner for b in _blocks(child)))


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
        parameters = net.parameters() if isinstance(net, nn.Module) else iter(())
        self.dtype = dtype or next((p.dtype for p in parameters if p.is_floating_point()), None)

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
