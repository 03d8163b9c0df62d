"""Denoisers of EDM and k-diffusion: modules called as ``D(x, sigma, …)`` that return clean data.

EDM's checkpoints are pickles of code and weights, and are not read here, since reading runs that
code. Load one by its authors' code, where you trust it, and pass the module:

    net = pickle.load(open("edm-cifar10-32x32-cond-vp.pkl", "rb"))["ema"]  # runs their code
    model = edm_model(net)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.denoiser import Condition
from ..core.levels import VE, Level, expand, inverse_or_zero
from ..diffusers.read.encoders import ClassLabels
from ..model.model import Model


class EDMDenoiser(nn.Module):
    """``D(x_t/α, σ/α, **cond)``: a denoiser of data with noise of standard deviation σ/α.

    Args:
        net: called as ``net(x [B, *S], sigma [B], **cond)``; returns x0. EDM's ``EDMPrecond``,
            ``VPPrecond``, ``VEPrecond``, k-diffusion's ``Denoiser`` and ``CompVisDenoiser``, or any
            function of that kind.

    References:
        Elucidating the Design Space of Diffusion-Based Generative Models,
        https://arxiv.org/abs/2206.00364
    """

    reads_t = False

    def __init__(self, net: Callable[..., Tensor]) -> None:
        super().__init__()
        if not callable(net):
            raise ValueError(
                f"a denoiser is called as D(x, sigma, …), which a {type(net).__name__} is not; a "
                ".pkl must be loaded by its authors' code, and the module given"
            )
        self.net = net

    def forward(self, x_t: Tensor, level: Level, cond: Condition) -> Tensor:
        """Estimate x0 ``[B, *S]``."""
        x = x_t * expand(inverse_or_zero(level.alpha), x_t)
        sigma = torch.as_tensor(level.rho, dtype=torch.float32).expand(len(x)).to(x.device)
        return self.net(x, sigma, **cond).to(x_t.dtype)


@dataclass(frozen=True, kw_only=True)
class OneHot:
    """Classes as EDM's networks take them: ``class_labels [B, K]``, a one at the class; all
    zeros is the null.

    Args:
        labels: the classes.
    """

    labels: ClassLabels

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.labels.classes

    def index(self, name: str | int) -> int:
        """Find a class by name or index.

        Raises:
            ValueError: there is no such class.
        """
        return self.labels.index(name)

    def encode(self, names: Sequence[str | int]) -> Condition:
        """Encode class names or indices, one for each sample; "" is the null."""
        rows = torch.zeros(len(names), len(self.classes))
        for row, name in zip(rows, names, strict=True):
            if name != "":
                row[self.index(name)] = 1
        return Condition(class_labels=rows)

    def null(self, batch: int) -> Condition:
        """Return the null condition for ``batch`` samples."""
        return self.encode([""] * batch)


def edm_model(
    net: Any,
    *,
    shape: tuple[int, ...] | None = None,
    classes: Sequence[str] | int | None = None,
    name: str = "edm",
) -> Model:
    """Make a model of a denoiser ``D(x, sigma, class_labels)``.

    It is sampled by Heun's method on Karras' grid of 18 steps by default. Most of EDM's networks
    were trained without the null (label_dropout 0), so cfg is undefined for them; autoguidance is
    not.

    Args:
        net: the module; its attributes img_channels, img_resolution, label_dim, sigma_min and
            sigma_max are used where it has them.
        shape: of one sample, where the module lacks the attributes.
        classes: their names or number, where the module lacks the attribute.
        name: of the model.

    Raises:
        ValueError: the shape is not known, or the names are of another number than the module's
            classes.
    """
    if shape is None:
        if not (hasattr(net, "img_channels") and hasattr(net, "img_resolution")):
            raise ValueError(
                f"a {type(net).__name__} has no attributes img_channels and img_resolution, the "
                "shape "
                "of a sample; give shape="
            )
        shape = (net.img_channels, net.img_resolution, net.img_resolution)
    low, high = (
        float(getattr(net, "sigma_min", 0.0)),
        float(getattr(net, "sigma_max", float("inf"))),
    )
    return Model(
        name=name,
        denoiser=EDMDenoiser(net),
        schedule=VE(t_min=max(0.002, low), t_max=min(80.0, high)),
        shape=shape,
        encoder=_labels(net, classes),
        defaults={"guidance": "cond", "steps": 18, "solver": "heun", "grid": "karras"},
    )


def _labels(net: Any, classes: Sequence[str] | int | None) -> OneHot | None:
    known = int(getattr(net, "label_dim", 0) or 0)
    names = (
        tuple(map(str, range(classes if classes is not None else known)))
        if classes is None or isinstance(classes, int)
        else tuple(classes)
    )
    if known and len(names) != known:
        raise ValueError(
            f"{len(names)} classes were given for a network of {known}; give {known} names"
        )
    return OneHot(labels=ClassLabels(classes=names)) if names else None
