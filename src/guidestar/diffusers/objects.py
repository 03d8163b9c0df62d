"""Objects of Diffusers and transformers, as type checkers know them; it imports none of these.

Their parts and settings are attributes that depend on the class, so reading one gives a value of
any type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from ..core.denoiser import Denoiser
from ..core.levels import Level

if TYPE_CHECKING:
    from diffusers.models.modeling_utils import ModelMixin
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Pipeline = DiffusionPipeline
    DiffusersNetwork = ModelMixin
    Tower = PreTrainedModel
    Tokenizer = PreTrainedTokenizerBase
else:
    Pipeline = DiffusersNetwork = Tower = Tokenizer = object

Config = Mapping[str, Any]
"""The settings in a file; those that are used are checked where the file is read."""

Arguments = Mapping[str, Any]
"""The arguments of a call, by name."""

Answer = Any
"""A network's or a pipeline's answer: a tuple, or an object with the tensor ``sample``."""

RunNetwork = Callable[[DiffusersNetwork, Arguments], Answer]
"""Calls a network as it is when it is not guided."""


class SchedulerConfig(Protocol):
    """The ``config`` of an object: its settings are keys and attributes."""

    def __getattr__(self, name: str, /) -> Any: ...

    def __contains__(self, name: object, /) -> bool: ...


class Scheduler(Protocol):
    """A scheduler whose timesteps have been set; which table it has depends on its kind."""

    config: SchedulerConfig
    timesteps: Tensor
    sigmas: Tensor
    alphas_cumprod: Tensor
    num_inference_steps: int

    def __getattr__(self, name: str, /) -> Any: ...


class SavedModel(Protocol):
    """The parts of a `guidestar.Model` that are written to a folder."""

    @property
    def denoiser(self) -> Denoiser:
        """The network that is guided."""
        ...

    @property
    def encoder(self) -> object | None:
        """What makes its conditions."""
        ...

    @property
    def decode(self) -> object:
        """What turns its samples into data."""
        ...

    @property
    def card(self) -> Config:
        """What else is known of it."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, if it has any."""
        ...


class LatentClassifierModule(Protocol):
    """A classifier that may guide a pipeline."""

    def log_prob(self, x: Tensor, level: Level, target: Tensor, /) -> Tensor:
        """Return ``log p(target | x)``, ``[B]``, of latents (or pictures) ``[B, C, *S]``."""
        ...
