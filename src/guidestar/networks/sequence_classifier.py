"""Classifiers and regressors of sequences and vectors, noise-aware or clean."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ..core.levels import Value
from .residual import _Residual


class SequenceClassifier(_Residual, ModelMixin, ConfigMixin):
    """A small residual network over sequences ``[B, T, C]`` or vectors ``[B, C]``.

    Arguments as `Classifier`; ``channels`` is C.
    """

    @register_to_config
    def __init__(
        self,
        classes: Sequence[str],
        channels: int = 1,
        widths: Sequence[int] = (32, 64),
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
        self._build(nn.Conv1d)

    def features(self, x: Tensor, time: Value = 0.0) -> Tensor:
        """Return the penultimate features ``[B, widths[-1]]``."""
        return self._features(x.reshape(len(x), -1, x.shape[-1]).transpose(1, 2), time)
