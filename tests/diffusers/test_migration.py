"""What docs/diffusers.md says equals others' guidance, against their own code or their formula
written out.
"""

from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
    MagnitudeAwareGuidance,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
    SmoothedEnergyGuidance,
    TangentialClassifierFreeGuidance,
)

from guidestar import VP, Condition, Flow, Guided, Prediction, uniform

SHAPE = (2, 4, 3, 3)
GRIDS = {"eps": uniform(VP.linear(), 10), "velocity": uniform(Flow(), 10)}
C, U, P = (
    torch.randn(SHAPE, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
    for k in range(3)
)
X = torch.randn(SHAPE, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


@dataclass
class Fixed:
    """A network that says C for the prompt, U without it, and P when a layer is changed."""

    space: str
    changed: slice | None = None

    def layers(self):
        return self

    def find(self, kind, names=()):
        return tuple(names) or ("layer",)

    @contextmanager
    def attending(self, names, attend, rows=None):
        self.changed = rows.slice if rows else slice(None)
        yield
        self.changed = None

    def skipping(self, names, rows=None):
        return self.attending(names, None, rows)

    def __call__(self, x, level, cond):
        rows = cond["row"]
        said = C[rows]
        if self.changed is not None:
            said[self.changed] = P[rows[self.changed]]
        out = torch.where(cond["asked"].bool().reshape(-1, 1, 1, 1), said, U[rows])
        a, s = level.alpha, level.sigma
        return (x - s * out) / (a if self.space == "eps" else a + s)


def ours(expression, space, index=4):
    row = torch.arange(2)
    conditions = {
        name: Condition(row=row, asked=torch.full((2,), value))
        for name, value in (("cond", 1), ("null", 0))
    }
    prediction: Prediction = Guided(expression, Fixed(space), **conditions)(
        X, GRIDS[space].step(index)
    )[0]
    return prediction.view(space)


def theirs(guider, *predictions, index=4):
    guider.set_state(step=index, num_inference_steps=10, timestep=torch.tensor(500))
    return guider.forward(*predictions).pred


ALL = {
    "perturbed_guidance_start": 0.0,
    "perturbed_guidance_stop": 1.0,
    "perturbed_guidance_layers": 0,
}
SKIP = {
    "skip_layer_guidance_start": 0.0,
    "skip_layer_guidance_stop": 1.0,
    "skip_layer_guidance_layers": 0,
}
GUIDERS = {
    "cfg(5)": lambda k: ClassifierFreeGuidance(5.0),
    "cfg(6)": lambda k: ClassifierFreeGuidance(5.0, use_original_formulation=True),
    "cfg(5) | rescale(0.7, space='{k}')": lambda k: ClassifierFreeGuidance(
        5.0, guidance_rescale=0.7
    ),
    "mambo(9, space='{k}')": lambda k: MagnitudeAwareGuidance(9.0, alpha=8.0),
    "mambo(10, space='{k}')": lambda k: MagnitudeAwareGuidance(
        9.0, alpha=8.0, use_original_formulation=True
    ),
}
OFF_BY_ONE = {
    ("cfg(5) + pag(3)", "pag(2)"): lambda s: PerturbedAttentionGuidance(s, 3.0, **ALL),
    ("cfg(5) + slg(3)", "slg(2)"): lambda s: SkipLayerGuidance(s, 3.0, **SKIP),
    ("cfg(5) + seg(3)", "seg(2)"): lambda s: SmoothedEnergyGuidance(s, 3.0, seg_guidance_layers=0),
}


def close(a, b, tolerance=1e-9):
    return float((a - b).abs().max()) <= tolerance * float(b.abs().max())


@pytest.mark.parametrize("space", ["eps", "velocity"])
@pytest.mark.parametrize("expression", GUIDERS)
def test_guiders_of_two_predictions(expression, space):
    guider = GUIDERS[expression](space)
    flat, shaped = (C.flatten(2), U.flatten(2)), (C, U)
    wanted = theirs(guider, *(flat if "mambo" in expression else shaped)).reshape(
        SHAPE
    )  # Mambo's takes no more than matrices
    assert close(ours(expression.format(k=space), space), wanted)


@pytest.mark.parametrize("space", ["eps", "velocity"])
@pytest.mark.parametrize("pair", OFF_BY_ONE)
def test_guiders_of_a_changed_network_lose_one_where_cfg_is_off(pair, space):
    on, off = pair
    assert close(ours(on, space), theirs(OFF_BY_ONE[pair](5.0), C, U, P))
    assert close(ours(off, space), theirs(OFF_BY_ONE[pair](1.0), C, None, P))


def test_guiders_that_are_ours_in_one_space_alone():
    assert close(
        ours("tcfg(5)", "eps"), theirs(TangentialClassifierFreeGuidance(5.0), C, U), 1e-5
    )  # theirs computes in float32
    assert close(
        ours("cfg_zero(5, zero=2)", "velocity"),
        theirs(ClassifierFreeZeroStarGuidance(5.0, zero_init_steps=2), C, U),
        1e-6,
    )  # theirs adds 1e-8
    still = ours("cfg_zero(5, zero=2)", "velocity", index=1)
    assert torch.equal(
        still, theirs(ClassifierFreeZeroStarGuidance(5.0, zero_init_steps=2), C, U, index=1)
    )
    # Theirs projects what the network predicts, ours x0; where nothing is taken away both are cfg.
    plain = AdaptiveProjectedGuidance(5.0, eta=1.0, adaptive_projected_guidance_rescale=0.0)
    assert close(ours("apg(5, eta=1, momentum=0)", "eps"), theirs(plain, C, U))
    taken = AdaptiveProjectedGuidance(5.0, eta=0.0, adaptive_projected_guidance_rescale=0.0)
    assert not close(ours("apg(5, momentum=0)", "eps"), theirs(taken, C, U), 1e-3)


def comfy_apg(c, u, scale, eta, threshold):
    """ComfyUI's node on clean estimates, and its cfg after it."""
    g = c - u
    g = g * (threshold / g.flatten(1).norm(dim=1)).clamp_max(1).reshape(-1, 1, 1, 1)
    along = (
        (g * c).flatten(1).sum(1).reshape(-1, 1, 1, 1)
        / c.flatten(1).square().sum(1).reshape(-1, 1, 1, 1)
        * c
    )
    moved = u + (g - along + eta * along) + (c - u) / scale
    return u + scale * (moved - u)


def test_comfyuis_nodes():
    level = GRIDS["eps"].step(4).t
    c, u, p = ((X - level.sigma * e) / level.alpha for e in (C, U, P))
    as_x0 = lambda expression: (X - level.sigma * ours(expression, "eps")) / level.alpha
    assert close(as_x0("apg(6, eta=0.3, momentum=0, radius=2.5)"), comfy_apg(c, u, 5.0, 0.3, 2.5))
    assert close(as_x0("cfg(5) + pag(3)"), u + 5 * (c - u) + 3 * (c - p))
    # RescaleCFG goes to v, in x0 + σε: v = (x/(σ²+1) − x0) √(σ²+1)/σ with the noise ratio σ.
    rho, x = level.sigma / level.alpha, X / level.alpha
    to_v = lambda d: (x - d * (rho**2 + 1)) / (rho * (rho**2 + 1) ** 0.5)
    v = to_v(u + 5 * (c - u))
    ratio = (to_v(c).flatten(1).std(1) / v.flatten(1).std(1)).reshape(-1, 1, 1, 1)
    wanted = 0.7 * v * ratio + 0.3 * v
    assert close(to_v(as_x0("cfg(5) | rescale(0.7)")), wanted)
