"""A small model that has everything a request may ask for, and requests of every kind."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import guidestar as gs
from helpers.toys import WORDS, Critic, Judge, Spy, condition

SHAPE = (2, 4, 3)
CLASSES = ("cat", "dog", "blurry")
_PATIENCE = 60


class Words:
    """An encoder of the toy's three words, with one part that can be kept alone."""

    classes = CLASSES

    def index(self, name: Any) -> int:
        if name not in CLASSES and name not in range(len(CLASSES)):
            raise ValueError(f"unknown class {name!r}; the classes are {', '.join(CLASSES)}")
        return CLASSES.index(name) if isinstance(name, str) else name

    def encode(self, names: Any) -> gs.Condition:
        return condition(*(WORDS[CLASSES[self.index(n)]] if n != "" else 0.0 for n in names))

    def null(self, batch: int) -> gs.Condition:
        return condition(*[0.0] * batch)

    def only(self, name: Any, part: str) -> Any:
        return "" if part == "c" else name


class Slow(Spy):
    """A network that takes its time."""

    def __call__(self, *inputs: Any) -> Any:
        time.sleep(0.05)
        return super().__call__(*inputs)


@dataclass
class Weak:
    """A worse network: half as sure."""

    spy: Spy

    def __call__(self, x: Tensor, level: Any, cond: Any) -> Tensor:
        return self.spy(0.8 * x, level, cond) / 2


def toy_model(spy: Spy | None = None, shape: tuple[int, ...] = SHAPE, **more: Any) -> gs.Model:
    """Return a model of the toy network, whose requests can name any method."""
    spy = spy or Spy()
    return gs.Model(
        name="toy",
        denoiser=spy,
        schedule=gs.VP.linear(),
        shape=shape,
        encoder=Words(),
        nets={"weak": (Weak(Spy()), Words())},
        classifiers={"classifier": Judge(), "discriminator": Critic()},
        defaults={"guidance": "cfg(2)", "steps": 4, "solver": "ddim", "grid": "log_snr"},
        **more,
    )


def near(x0: Tensor) -> Tensor:
    """A loss that a user may write."""
    return (x0 - 0.3).square().flatten(1).sum(1)


EXPRESSIONS = (
    "cond",
    "uncond",
    "cfg(3)",
    "cfg(2) + apg(1.5, momentum=0.5)",
    "cfg(2) | rescale(0.5) | clip_x0(1)",
    "cfgpp(0.7)",
    "cfg_zero(3, zero=1)",
    "adaptive(3, gamma=0.95)",
    "cond + pag(2)",
    "cfg(2) + seg(1.5) + slg(1)",
    "cond + sag(0.5, layer='map')",
    "cond + nag(2)",
    "cond + autoguidance(2)",
    "cond + icg(2, among=3)",
    "cond + tsg(2)",
    "cfg(2) | cads(0.3)",
    "cond + classifier(1.5)",
    "cond + discriminator(0.5)",
    "uncond + AND(2, 'cat') + AND(1, 'dog')",
    "cond + dps(0.2)",
    "cond + mpgd(0.1)",
    "cond + lgd(0.1)",
    "cond + tfg(0.02)",
    "cfg(3, interval=[0.2, 5], schedule=cosine)",
)
"""One of every kind: shared, perturbed and differentiated passes, rounds, states, posts."""

SOLVERS = ("ddim", "ddpm", "dpmpp-2m", "sde-dpmpp-2m", "heun")


def equal(found: gs.Samples, wanted: gs.Samples, bound: float = 1e-5) -> None:
    """Refuse samples that differ, and evaluations and settings that do."""
    torch.testing.assert_close(found.x, wanted.x, rtol=bound, atol=bound)
    torch.testing.assert_close(found.images, wanted.images, rtol=bound, atol=bound)
    assert found.evaluations == wanted.evaluations
    assert found.settings == wanted.settings


@contextmanager
def held(engine: Any):
    """Hold an engine's thread at its next step, so that what is submitted meanwhile is together."""
    gate = threading.Event()
    inside = threading.Event()

    def wait(x0):
        inside.set()
        assert gate.wait(_PATIENCE)
        return near(x0)

    ticket = engine.submit(
        engine.model.request("cat", guidance="cond + dps(0.1)", steps=1, losses={"loss": wait})
    )
    assert inside.wait(_PATIENCE)
    try:
        yield ticket
    finally:
        gate.set()
