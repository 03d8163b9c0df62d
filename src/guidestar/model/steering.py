"""A model's samples towards a reward: particles weighed by it and resampled on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..guidance import Observation
from ..sampling import Solver, check_finite, crowd
from ..sampling import steer as steer_particles
from .samples import Samples, settings_of

Reward = Callable[[Tensor], Tensor]
"""``reward(images [N, C, H, W]) -> [N]``, of decoded samples."""


def steer(
    model: Any,
    reward: Reward,
    run: Mapping[str, Any],
    solver: Solver,
    how: Mapping[str, Any],
    watch: Callable[[int, int], None] | None = None,
) -> Samples:
    """Return the best particle of each seed, with the whole population.

    Args:
        model: a `Model`.
        reward: of decoded samples.
        run: the arguments of the model's ``sample`` that say what is sampled.
        solver: one that draws noise.
        how: the arguments of `guidestar.steer` that say how particles are weighed and resampled.
        watch: called after each step with the steps done and the steps in all.

    Raises:
        ValueError: a solver that draws no noise, or what the model's ``sample`` refuses.
    """
    seeds, grid = [int(s) for s in run["seeds"]], model.grid(run["steps"], run["grid"])
    count, names = max(1, how["particles"]), model.names(run["cond"], len(seeds))
    own = {name: run[name] for name in ("negative", "max_rows")}
    own["losses"] = run["losses"] and {
        name: _repeated(loss, count) for name, loss in run["losses"].items()
    }
    guidance = model.expression(run["guidance"], conditional=names is not None)
    guidance.check_samples(len(seeds))
    guided = model.guided(
        guidance.repeated(count),
        cond=names and [n for n in names for _ in range(count)],
        seeds=crowd(seeds, count),
        **own,
    )

    def of_samples(x: Tensor) -> Tensor:
        check_finite(x)
        return reward(model.to_images(x))

    rewarded = _Watched(of_samples, grid.steps, watch)
    found = steer_particles(
        guided,
        grid=grid,
        solver=solver,
        seeds=seeds,
        reward=rewarded,
        shape=model.shape,
        device=model.device,
        **how,
    )
    check_finite(found.best)
    each = [sum(found.evaluations[i : i + count]) for i in range(0, len(found.evaluations), count)]
    settings = settings_of(
        model,
        run,
        solver,
        steps=grid.steps,
        dtype=found.best.dtype,
        lacking=("the reward it was steered by",),
    )
    return Samples(
        x=found.best,
        images=model.to_images(found.best),
        settings=settings,
        evaluations=tuple(each),
        population=found,
    )


def _repeated(loss: Any, count: int) -> Any:
    """Let every particle of a sample have that sample's observation."""
    y = loss.y if isinstance(loss, Observation) else None
    return (
        replace(loss, y=y.repeat_interleave(count, 0))
        if isinstance(y, Tensor) and len(y) > 1
        else loss
    )


class _Watched:
    """A reward, which is asked once a step, that tells how far the run is."""

    def __init__(
        self, reward: Reward, steps: int, watch: Callable[[int, int], None] | None
    ) -> None:
        self.reward, self.steps, self.watch, self.done = reward, steps, watch, 0

    def __call__(self, x: Tensor) -> Tensor:
        values = self.reward(x)
        self.done += 1
        if self.watch:
            self.watch(self.done, self.steps)
        return values
