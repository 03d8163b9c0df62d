"""Frames, grids and sounds of the samples that pipelines step, in plain torch."""

import warnings
from dataclasses import replace

import pytest
import torch

import guidestar
from guidestar import Post, cond, uncond
from guidestar.guidance.term import as_guidance
from helpers.zoo.base import distance
from helpers.zoo.table import entries

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def entry(name, **told):
    found = entries()[name]
    return replace(found, ask=lambda: found.ask() | told)


def draw(name, guidance=None, **told):
    made = entry(name, **told)
    return made.run(made.make(), guidance)


# --- scales by frame ---

RAMP = {"num_frames": 4, "min_guidance_scale": 1.5, "max_guidance_scale": 4.0}


@pytest.mark.parametrize(
    "frames", ["[0.5 / 3, 1]", "one for each"], ids=["a ramp", "a scale for each frame"]
)
def test_stable_videos_ramp(frames):
    name = "StableVideoDiffusionPipeline"
    own = draw(name, **RAMP)
    each = (torch.linspace(1.5, 4.0, 4) - 1) / 3
    term = guidestar.cfg(4, frames=each if frames == "one for each" else [0.5 / 3, 1])
    # The pipeline rounds its ramp to float32, and its noise ratios of up to 700 magnify that.
    assert distance(draw(name, term, **RAMP), own) < 1e-4
    assert distance(draw(name, "cfg(4)", **RAMP), own) > 0.1


def test_a_ramp_that_is_lost_is_warned_of():
    name = "StableVideoDiffusionPipeline"
    made = entry(name, num_frames=2, min_guidance_scale=1.0)
    pipe = guidestar.guide(made.make(), "cfg(3)")
    asked = made.ask() | {"max_guidance_scale": 3.0, "num_inference_steps": 1}
    with torch.no_grad(), pytest.warns(UserWarning, match=r"write cfg\(3, frames=\[0, 1\]\)"):
        pipe(**asked, output_type="latent")
    guidestar.guide(pipe, "cfg(3, frames=[0, 1])")
    with torch.no_grad(), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        pipe(**asked, output_type="latent")
    assert not any("min_guidance_scale" in str(w.message) for w in told)


# --- clean estimates in the order of channels, frames, height and width ---


class Record(Post):
    """Writes down the clean estimate at a step, the samples, their form and their level."""

    name = "record"

    def __init__(self, kept, index=0):
        object.__setattr__(self, "kept", kept)
        object.__setattr__(self, "index", index)

    def apply(self, prediction, live):
        if not self.kept and live.step.index == self.index:
            self.kept += [prediction.x0.clone(), live.form, live.x_t.clone(), live.step.t]
        return prediction


def first(name, guidance, **told):
    """The first clean estimate of a run, and the form of its samples."""
    kept, made = [], entry(name, **told)
    made.run(made.make(), guidance | Record(kept))
    return kept[:2]


def by_pipeline(pipe, x):
    """As the pipeline's own function unpacks pictures of 32 × 64."""
    parts = (32, 64) if "Krea" in type(pipe).__name__ else (32, 64, pipe.vae_scale_factor)
    opened = pipe._unpack_latents(x, *parts)
    return opened.squeeze(2) if opened.ndim == 5 else opened


SIDE = {"height": 32, "width": 64}
OPENED = {
    "QwenImagePipeline": (SIDE, by_pipeline),
    "ChromaPipeline": (SIDE, by_pipeline),
    "Krea2Pipeline": (SIDE, by_pipeline),
    "CogVideoXPipeline": ({}, lambda pipe, x: x.permute(0, 2, 1, 3, 4)),
    "Kandinsky5T2VPipeline": ({}, lambda pipe, x: x.permute(0, 4, 1, 2, 3)),
    "AllegroPipeline": ({}, lambda pipe, x: x),
    "LTXConditionPipeline": ({}, lambda pipe, x: pipe._unpack_latents(x, 2, 4, 4)),
    "WanPipeline": ({}, lambda pipe, x: x),
}
"""Sizes that are asked for, and the samples ``[B, C, *S]`` of what the scheduler steps."""


def smoothed(x):
    """One level of the pyramid down and up again, along the last two dimensions."""
    for axis in (-2, -1):
        x = x.movedim(axis, -1)
        size = x.shape[-1]
        half = (size + 1) // 2
        flat = x.reshape(-1, 1, size)
        flat = resized(blurred(flat), half)
        flat = blurred(resized(flat, size))
        x = flat.reshape(x.shape).movedim(-1, axis)
    return x


def blurred(x):
    mode = "reflect" if x.shape[-1] > 2 else "replicate"
    kernel = torch.tensor([[[1.0, 4, 6, 4, 1]]], dtype=x.dtype) / 16
    return torch.nn.functional.conv1d(torch.nn.functional.pad(x, (2, 2), mode=mode), kernel)


def resized(x, size):
    return torch.nn.functional.interpolate(x, size=size, mode="linear", align_corners=False)


@pytest.mark.parametrize("name", OPENED)
def test_bands_are_those_of_each_picture(name):
    """fdg: c + 2(d − smooth(d)) + 0.8 smooth(d), with d = c − u, of each frame by itself."""
    told, opened = OPENED[name]
    pipe = entry(name).make()
    c, u, made = (
        opened(pipe, first(name, g, **told)[0])
        for g in (cond, uncond, as_guidance(guidestar.fdg(3, gains=[1, 0.4])))
    )
    low = smoothed(c - u)
    wanted = c + 2 * (c - u - low) + 0.8 * low
    size, plain = float((c - u).abs().max()), c + 2 * (c - u)
    assert float((made - wanted).abs().max()) < 1e-5 * size
    assert float((made - plain).abs().max()) > 0.1 * size


@pytest.mark.parametrize("name", OPENED)
def test_forms_are_inverse_and_have_their_channels(name):
    told, opened = OPENED[name]
    pipe = entry(name).make()
    x, form = first(name, cond, **told)
    assert torch.equal(form.open(x).flatten(-2).squeeze(2), opened(pipe, x).flatten(-2))
    assert torch.equal(form.close(form.open(x)), x)


def test_samples_that_are_given_packed_are_not_known():
    """The pipeline does not pack them itself; what needs no grid works."""
    made = entry("QwenImagePipeline", latents=torch.randn(1, 4, 16))
    assert made.run(made.make(), "cfg(3) + pag(1)")
    with pytest.raises(ValueError, match=r"samples of QwenImagePipeline are .*latents="):
        made.run(made.make(), "fdg(3)")


# --- samples blurred ---


def gaussian(x):
    """Blurred by a standard deviation of 1, mirrored, along the last two dimensions."""
    weights = torch.softmax(-(torch.arange(-1.0, 2.0, dtype=x.dtype) ** 2) / 2, 0)
    for axis in (-2, -1):
        flat = x.movedim(axis, -1)
        padded = torch.cat([flat[..., 1:2], flat, flat[..., -2:-1]], -1)
        size = flat.shape[-1]
        x = sum(w * padded[..., k : k + size] for k, w in enumerate(weights)).movedim(-1, axis)
    return x


def second(name, guidance, latents=None, **told):
    """The clean estimate at the second step, after a first one of the prompt alone."""
    kept = []

    def put(pipe, i, t, given):
        return {"latents": latents.to(given["latents"].dtype)} if latents is not None else {}

    made = entry(name, callback_on_step_end=put, **told)
    made.run(made.make(), as_guidance(guidance) | Record(kept, 1))
    return kept


@pytest.mark.parametrize("name", ["SanaPipeline", "QwenImagePipeline", "WanPipeline"])
def test_each_picture_is_blurred_and_looked_at_again(name):
    """sag: c + s (blur(u) − D_u(x̃)), with x̃ = x + α (blur(u) − u), in the second step alone."""
    told = OPENED.get(name, ({},))[0]
    level = second(name, cond, **told)[3]
    low = f"interval=(0, {1.01 * level.rho})"
    c, u, sagged = (
        second(name, guidestar.parse(g), **told)
        for g in (
            "cond",
            f"cond + cfg(0, {low})",
            f"cond + sag(0.75, masked=False, radius=1, {low})",
        )
    )
    assert torch.equal(c[2], u[2]) and torch.equal(c[2], sagged[2])
    form = c[1]
    blurred = form.close(gaussian(form.open(u[0])))
    moved = c[2] + level.alpha * (blurred - u[0])
    again = second(name, uncond, moved, **told)[0]
    wanted = c[0] + 0.75 * (blurred - again)
    size = float((sagged[0] - c[0]).abs().max())
    assert size > 1e-2 and float((sagged[0] - wanted).abs().max()) < 1e-4 * size
