"""Steer a model's samples towards a reward: particles are weighed by it and resampled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from ..guidance import Observation
from ..guidance.losses import Loss
from ..sampling import check_finite, crowd
from ..sampling import steer as steer_particles
from .request import Request, Steering
from .samples import Samples

if TYPE_CHECKING:
    from .model import Model

ImageReward = Callable[[Tensor], Tensor]
"""``reward(images [N, C, H, W]) -> [N]``, of decoded samples."""


def steer_model(
    model: Model,
    reward: ImageReward,
    request: Request,
    how: Steering,
    watch: Callable[[int, int], None] | None = None,
) -> Samples:
    """Return the best particle of each seed, with the whole population.

    Args:
        model: whose samples are steered.
        reward: of decoded samples.
        request: the run of one particle a seed, with a solver that draws noise.
        how: how particles are weighed and resampled.
        watch: called after each step with the steps done and the steps in all.

    Raises:
        ValueError: a solver that draws no noise, or what the model's ``sample`` refuses.
    """
    grid, count = request.levels, max(1, how.particles)
    request.guidance.check_samples(len(request.seeds))
    guided = model.bind(_crowded(request, count))

    def of_samples(x: Tensor) -> Tensor:
        check_finite(x)
        return reward(model.to_images(x))

    rewarded = _Watched(of_samples, grid.steps, watch)
    found = steer_particles(
        guided,
        grid=grid,
        solver=request.solver,
        seeds=request.seeds,
        reward=rewarded,
        shape=model.shape,
        device=model.device,
        particles=how.particles,
        strength=how.strength,
        potential=how.potential,
        every=how.every,
        threshold=how.threshold,
    )
    check_finite(found.best)
    model.warn_of_divergence(found.best)
    each = [sum(found.evaluations[i : i + count]) for i in range(0, len(found.evaluations), count)]
    settings = model.settings(
        request, dtype=found.best.dtype, lacking=("the reward it was steered by",)
    )
    return Samples(
        x=found.best,
        images=model.to_images(found.best),
        settings=settings,
        evaluations=tuple(each),
        population=found,
    )


def _crowded(request: Request, count: int) -> Request:
    """Return the run of ``count`` particles of each sample."""
    losses = request.losses
    return replace(
        request,
        names=request.names and tuple(n for n in request.names for _ in range(count)),
        guidance=request.guidance.repeated(count),
        seeds=tuple(crowd(request.seeds, count)),
        losses=losses and {name: _repeated(loss, count) for name, loss in losses.items()},
    )


def _repeated(loss: Loss, count: int) -> Loss:
    """Let every particle of a sample have that sample's observation."""
    if isinstance(loss, Observation) and isinstance(loss.y, Tensor) and len(loss.y) > 1:
        return replace(loss, y=loss.y.repeat_interleave(count, 0))
    return loss


class _Watched:
    """A reward that reports progress: it is evaluated once a step."""

    def __init__(
        self, reward: ImageReward, steps: int, watch: Callable[[int, int], None] | None
    ) -> None:
        self.reward, self.steps, self.watch, self.done = reward, steps, watch, 0

    def __call__(self, x: Tensor) -> Tensor:
        values = self.reward(x)
        self.done += 1
        if self.watch:
            self.watch(self.done, self.steps)
        return values
