"""Image classifiers: noise-aware ones that guide, and clean ones that judge."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ..core.levels import Value
from .residual import _Residual


class Classifier(_Residual, ModelMixin, ConfigMixin):
    """A small residual network over images ``[B, C, H, W]`` in [−1, 1].

    Args:
        classes: names of the classes.
        channels: colour channels.
        widths: channels of each resolution; the first halves nothing, each further one halves.
        layers: residual blocks at each resolution.
        groups: groups of the group normalisations.
        noise_aware: takes the noise level too; its input is scaled to unit size.
        dropout: before the last layer, in training.
        temperature: divides the logits (1: as trained).
        temperatures: further divide them, by noise ratio: (rho, T), interpolated in ln rho.
        outputs: it is a regressor of so many numbers, in place of classes.
        centre: mean of those numbers, in whose units its head works.
        spread: their standard deviation.
        rho_max: noise ratio above which the classifier was found to know too little to guide.
    """

    @register_to_config
    def __init__(
        self,
        classes: Sequence[str],
        channels: int = 1,
        widths: Sequence[int] = (32, 64, 128),
        layers: int = 1,
        groups: int = 8,
        noise_aware: bool = True,
        dropout: float = 0.0,
        temperature: float = 1.0,
        rho_max: float | None = None,
        temperatures: Sequence[tuple[float, float]] = (),
        outputs: int | None = None,
        centre: Sequence[float] | None = None,
        spread: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self._build(nn.Conv2d)

    def features(self, x: Tensor, time: Value = 0.0) -> Tensor:
        """Return the penultimate features ``[B, widths[-1]]``."""
        return self._features(x, time)
