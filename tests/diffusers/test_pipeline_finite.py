"""Guided pipelines whose numbers are not finite say which term, at which step, or that it was not
the guidance.
"""

import pytest
import torch

import guidestar
from diffusers import EulerDiscreteScheduler
from guidestar.core.levels import VP
from guidestar.diffusers.guide.finite import FiniteWatch
from guidestar.sampling.grids import uniform
from helpers.pipeline_families import family
from helpers.pipelines import SCHEDULE, drawn, stable_diffusion

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def refused(pipe, line, **more):
    with pytest.raises(FloatingPointError, match=line) as caught:
        drawn(pipe, **more)
    assert "\n" not in str(caught.value)


def test_a_scale_that_overflows_is_named():
    pipe = stable_diffusion()
    for net in (pipe.unet, pipe.text_encoder):
        net.float()
    try:
        line = (
            "^StableDiffusionPipeline: cfg makes numbers that are not finite at step 1 of 4, "
            "though the network's are; lower the scale$"
        )
        refused(guidestar.guide(pipe, "cfg(1e60)"), line, latents=torch.ones(2, 4, 8, 8))
        refused(
            guidestar.guide(pipe, "cond + cfg(1e60, interval=(0, 1))"),
            "cfg makes .* at step [34] of 4",
            latents=torch.ones(2, 4, 8, 8),
        )
    finally:
        pipe.text_encoder.double()  # which all pipelines of the tests share


def test_what_a_huge_scale_leads_to_is_not_the_networks_fault():
    pipe = stable_diffusion(scheduler=EulerDiscreteScheduler(**SCHEDULE))
    line = (
        r"^StableDiffusionPipeline: cfg reached \de\+\d+, and at step [2-4] of 4 numbers are "
        r"not finite any more; lower the scale$"
    )
    refused(guidestar.guide(pipe, "cfg(1e200)"), line)


def test_a_network_that_overflows_is_named():
    pipe = stable_diffusion()
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(float("inf"))
    line = (
        "its network answers with numbers that are not finite at step 1 of 4; where it runs "
        "in float16"
    )
    refused(guidestar.guide(pipe, "cfg(3)"), line)


def test_latents_that_are_not_finite_are_named():
    x = torch.ones(2, 4, 8, 8, dtype=torch.float64)
    x[1, 0, 0, 0] = float("nan")
    refused(
        guidestar.guide(stable_diffusion(), "cfg(3)"),
        "its latents are not finite at step 1 of 4, before guidance",
        latents=x,
    )


@pytest.mark.parametrize("kind", ["pt", "np"])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_vae_that_overflows_is_named(kind):
    pipe = stable_diffusion()
    with torch.no_grad():
        pipe.vae.decoder.conv_out.bias.fill_(float("nan"))
    line = (
        "^StableDiffusionPipeline returns numbers that are not finite, though all guided "
        "predictions were; a VAE may overflow"
    )
    refused(guidestar.guide(pipe, "cfg(3)"), line, output_type=kind)
    with pytest.raises(FloatingPointError, match=line):
        drawn_tuple = pipe(prompt="cat", num_inference_steps=2, output_type=kind, return_dict=False)
        assert drawn_tuple is None


def test_of_two_calls_the_second_is_looked_at():
    f = family("flux")
    with (
        guidestar.guided(f.pipe, "cfg(1e300)"),
        pytest.raises(FloatingPointError, match=r"^FluxPipeline: cfg (makes|reached)"),
    ):
        f.draw(num_inference_steps=5)


def test_elsewhere_than_on_a_cpu_a_run_is_looked_at_once_at_its_end(monkeypatch):
    """The device waits for nothing before."""
    grid = uniform(VP.linear(), 3)
    watch = FiniteWatch("Pipe", lambda step: [f"term {step.index}"])
    x = torch.ones(2, 3)
    kept = torch.device("meta")
    monkeypatch.setattr(torch.Tensor, "device", property(lambda self: kept), raising=False)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *a, **k: self.float())
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: self)
    for k in range(3):
        watch.record(grid.step(k), x, torch.tensor(True), x / (0 if k == 1 else 1))
    with pytest.raises(
        FloatingPointError, match=r"^Pipe: term 1 makes numbers that are not finite at step 2 of 3"
    ):
        watch.end(())
