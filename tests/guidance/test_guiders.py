"""Diffusers' guiders: where they are right the same is meant here, and where they are not a test
shows the difference.

Those of one formula (CFG-Zero*, TCFG, FDG, MAMBO-G, autoguidance, APG) are in the tests of their
methods; here are plain guidance and those that change a network, on real networks with Diffusers'
own hooks.
"""

import pytest
import torch
from diffusers.hooks import LayerSkipConfig
from diffusers.hooks.smoothed_energy_guidance_utils import _gaussian_blur_2d

from guidestar import VP, Guided, Prediction, uniform
from guidestar.guidance.methods.pag import IdentityAttention
from helpers.families import family
from helpers.scenes import scenes

guiders = pytest.importorskip("diffusers.guiders")

NOW = {"step": 3, "num_inference_steps": 10, "timestep": torch.tensor(0)}
WHOLE = {
    "perturbed_guidance_start": 0.0,
    "perturbed_guidance_stop": 1.0,
    "perturbed_guidance_layers": [1],
}


def answer(f, x, level, cond):
    with torch.no_grad():
        out = f.denoiser(x, level, cond)
    return out if isinstance(out, Prediction) else Prediction.from_x0(x, level, out)


class Theirs:
    """A guider on a network: its passes are run as its pipelines run them."""

    def __init__(self, guider, f):
        self.guider, self.f = guider, f
        guider.set_state(**NOW)

    def passes(self, x, level, cond, null):
        """What it calls the condition's, the null's and the changed prediction, in eps."""
        batches, found = self.guider.prepare_inputs({"told": (cond, null)}), {}
        for batch in batches:
            self.guider.prepare_models(self.f.net)
            try:
                found[batch.__guidance_identifier__] = answer(self.f, x, level, batch.told).eps
            finally:
                self.guider.cleanup_models(self.f.net)
        return found


def at(name):
    f = family(name)
    cond = f.given()
    return f, f.x(), uniform(VP.linear(), 10).step(4), cond, type(cond)(f.cond(12))


def test_cfg_agrees_in_every_space():
    guider = guiders.ClassifierFreeGuidance(guidance_scale=4.0)
    guider.set_state(**NOW)
    for scene in scenes("flow") + scenes("vp"):
        out = scene.run("cfg(4)")[0]
        for view in (lambda d, e: d, lambda d, e: e, lambda d, e: e - d):
            theirs = guider.forward(*(view(d, scene.eps(d)) for d in (scene.c, scene.n))).pred
            torch.testing.assert_close(view(out.x0, out.eps), theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["dit", "pixart"])
def test_pag_with_cfg_agrees(name):
    f, x, step, cond, null = at(name)
    theirs = Theirs(
        guiders.PerturbedAttentionGuidance(
            guidance_scale=4.0, perturbed_guidance_scale=3.0, **WHOLE
        ),
        f,
    )
    found = theirs.passes(x, step.t, cond, null)
    assert set(found) == {"pred_cond", "pred_uncond", "pred_cond_skip"} and not torch.allclose(
        found["pred_cond"], found["pred_cond_skip"], atol=1e-3
    )
    ours = Guided("cfg(4) + pag(3)", f.denoiser, cond=cond, null=null)(x, step)[0]
    torch.testing.assert_close(ours.eps, theirs.guider.forward(**found).pred, atol=1e-4, rtol=1e-4)


def test_pag_alone_is_theirs_no_more_than_cfg_with_the_negative_prompt():
    f, x, step, cond, null = at("dit")
    theirs = Theirs(
        guiders.PerturbedAttentionGuidance(
            guidance_scale=1.0, perturbed_guidance_scale=3.0, **WHOLE
        ),
        f,
    )
    found = theirs.passes(x, step.t, cond, null)
    c, u = (answer(f, x, step.t, told).eps for told in (cond, null))
    # The pass that should be perturbed is the plain one of the negative prompt, and s weighs s − 1.
    torch.testing.assert_close(found["pred_cond_skip"], u)
    torch.testing.assert_close(theirs.guider.forward(**found).pred, u + 3 * (c - u))
    with IdentityAttention()(f.denoiser):
        p = answer(f, x, step.t, cond).eps
    ours = Guided("pag(3)", f.denoiser, cond=cond, null=null)(x, step)[0]
    torch.testing.assert_close(ours.eps, c + 3 * (c - p), atol=1e-4, rtol=1e-4)
    assert (p - u).abs().max() > 1e-2


def test_seg_is_theirs_a_pass_that_nothing_changed():
    f, x, step, cond, null = at("dit")
    how = {
        "seg_guidance_scale": 3.0,
        "seg_guidance_layers": [1],
        "seg_guidance_start": 0.0,
        "seg_guidance_stop": 1.0,
    }
    found = Theirs(guiders.SmoothedEnergyGuidance(guidance_scale=4.0, **how), f).passes(
        x, step.t, cond, null
    )
    assert torch.equal(found["pred_cond"], found["pred_cond_seg"])
    c, u = (answer(f, x, step.t, told).eps for told in (cond, null))
    ours = Guided("cfg(4) + seg(3)", f.denoiser, cond=cond, null=null)(x, step)[0]
    assert (ours.eps - (u + 4 * (c - u))).abs().max() > 1e-3


def test_the_mean_query_is_theirs_for_every_sigma_but_the_infinite_one():
    query = torch.randn(2, 16, 3, generator=torch.Generator().manual_seed(0))
    mean = query.mean(1, keepdim=True).expand_as(query)
    finite, infinite = (_gaussian_blur_2d(query.clone(), 5, sigma, 9999.9) for sigma in (0.8, 1e6))
    torch.testing.assert_close(finite, mean)
    assert (infinite - mean).abs().max() > 0.1


def test_slg_fails_theirs_on_joint_blocks():
    f, x, step, cond, null = at("sd3")
    how = {
        "skip_layer_guidance_start": 0.0,
        "skip_layer_guidance_stop": 1.0,
        "skip_layer_config": LayerSkipConfig(indices=[1]),
    }
    with pytest.raises(RuntimeError):  # it hands the two streams back in the wrong order
        Theirs(
            guiders.SkipLayerGuidance(guidance_scale=4.0, skip_layer_guidance_scale=2.8, **how), f
        ).passes(x, step.t, cond, null)
    f, x, step, cond, null = at("sd3")
    c, block = answer(f, x, step.t, cond), f.net.transformer_blocks[1]
    given = block.forward
    block.forward = lambda hidden_states, encoder_hidden_states, **_: (
        encoder_hidden_states,
        hidden_states,
    )
    skipped = answer(f, x, step.t, cond)
    block.forward = given
    ours = Guided("slg(2.8)", f.denoiser, cond=cond)(x, step)[0]
    torch.testing.assert_close(ours.x0, c.x0 + 2.8 * (c.x0 - skipped.x0), atol=1e-4, rtol=1e-4)
    assert (c.x0 - skipped.x0).abs().max() > 1e-3
