"""The engine's merged calls in float64, on a real network: nothing but rounding sets them apart.

In float32 the same sample differs by about 1e-5 with the shape of the call that it is in, by
`Model.sample` alone too. A fault of merging (a wrong row, level, scale or random number) would be
as large in float64; what is left there is rounding, which is a billionth of it.
"""

from __future__ import annotations

import pytest
import torch

import guidestar as gs
from guidestar import Condition, Network
from guidestar.serve import Engine
from helpers.families import WORDS, draw, text_unet
from helpers.served import CLASSES, EXPRESSIONS, SOLVERS, held, near
from helpers.toys import Critic, Judge

SHAPE = (2, 8, 8)
LOSSES = {"loss": near}
HEUN_CANNOT = ("cfgpp", "dps", "mpgd", "lgd", "tfg")
PATIENCE = 120


class Captions:
    """An encoder of words as tokens."""

    classes = CLASSES

    def __init__(self, dtype: torch.dtype) -> None:
        self.known = {
            name: draw(WORDS, 8, seed=20 + k).to(dtype) for k, name in enumerate((*CLASSES, ""))
        }

    def index(self, name):
        return CLASSES.index(name)

    def encode(self, names):
        found = [self.known[CLASSES[n] if isinstance(n, int) else n] for n in names]
        return Condition({"encoder_hidden_states": torch.stack(found)})

    def null(self, batch):
        return self.encode([""] * batch)

    def only(self, name, part):
        return ""


def model(dtype: torch.dtype) -> gs.Model:
    """A small U-Net with text, attention, convolutions and norms, and what terms may ask for."""

    def network(seed: int) -> Network:
        made = text_unet()
        torch.manual_seed(seed)
        for p in made.parameters():
            torch.nn.init.normal_(
                p, std=0.3 / max(1.0, p[0].numel() ** 0.5)
            ) if p.ndim > 1 else None
        made = made.to(dtype).eval().requires_grad_(False)
        return Network(made, predicts="v")

    encoder = Captions(dtype)
    return gs.Model(
        name="real",
        denoiser=network(3),
        schedule=gs.VP.linear(),
        shape=SHAPE,
        encoder=encoder,
        nets={"weak": (network(4), encoder)},
        classifiers={"classifier": Judge(), "discriminator": Critic()},
        defaults={"guidance": "cfg(2)", "steps": 4, "solver": "ddim", "grid": "log_snr"},
    )


def requests(dtype: torch.dtype):
    """One of every kind of term, at other steps, of other classes, with every solver in turn."""
    for k, expression in enumerate(EXPRESSIONS):
        text = expression.replace(", layer='map'", "")  # of the toy
        solver = SOLVERS[k % len(SOLVERS)]
        if any(name in text for name in HEUN_CANNOT):
            solver = "ddim"
        seeds = [2 * k, 2 * k + 1][: 1 + k % 2]
        yield {
            "cond": CLASSES[k % 3],
            "guidance": text,
            "solver": solver,
            "steps": 2 + k % 3,
            "seeds": seeds,
            "negative": "blurry" if k % 4 == 1 else None,
            "losses": LOSSES,
            "start": torch.zeros(len(seeds), *SHAPE, dtype=dtype),  # noise of this dtype
        }


def differences(dtype: torch.dtype, max_rows: int) -> dict[str, float]:
    """How far each request's samples are from those that it gives alone, beside their size."""
    reference, asked = model(dtype), list(requests(dtype))
    with Engine(model(dtype), max_rows=max_rows) as engine:
        with held(engine):
            tickets = [engine.submit(engine.model.request(**a)) for a in asked]
        found = [ticket.result(PATIENCE) for ticket in tickets]
        stats = engine.stats
    assert stats.rows > 3 * stats.calls  # they shared calls
    worst = {}
    for a, samples in zip(asked, found, strict=True):
        alone = reference.sample(**a)
        assert samples.x.dtype == alone.x.dtype == dtype
        assert samples.evaluations == alone.evaluations
        gap = (samples.x - alone.x).abs().max() / alone.x.abs().max().clamp(min=1)
        worst[f"{a['guidance']} by {a['solver']}"] = float(gap)
    return worst


@pytest.mark.parametrize("max_rows", [16, 256])
def test_merged_calls_give_what_each_request_gives_alone(max_rows):
    found = differences(torch.float64, max_rows)
    assert {name: gap for name, gap in found.items() if not gap <= 1e-12} == {}


def test_the_bound_of_float32():
    """As `docs/serve.md` states it."""
    found = differences(torch.float32, 256)
    assert {name: gap for name, gap in found.items() if not gap <= 1e-4} == {}
