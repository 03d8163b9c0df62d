"""Where a run stands at each call of its network, what it remembers, and what it is told of its
pipeline's arguments.
"""

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from PIL import Image
from test_guider import modular, sampled

import guidestar
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInstructPix2PixPipeline
from guidestar import Post, cond, uncond
from guidestar.diffusers import Guider
from guidestar.diffusers.guide.walk import _prompts
from helpers import pipeline_folders as made
from helpers.pipeline_families import MAKE, family
from helpers.pipelines import STEPS, close, drawn, quiet, seeded, stable_diffusion

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@dataclass(frozen=True)
class Record(Post):
    """Writes down the step, and the clean estimate, at each evaluation."""

    seen: list

    name = "record"

    def apply(self, prediction, live, *predictions):
        self.seen.append((live.step, prediction.x0.clone()))
        return prediction


@pytest.mark.parametrize("name", MAKE)
def test_steps_are_counted_from_the_first_to_the_last(name):
    """In pipelines that call their network once a step or twice, with schedulers of either
    order.
    """
    f, seen = family(name), []
    with guidestar.guided(f.pipe, (uncond if name == "ddpm" else cond) | Record(seen)):
        f.draw(num_inference_steps=4)
    wanted = [0, 0, 1, 1, 2, 2, 3] if name == "sd3-heun" else [0, 1, 2, 3]
    assert [step.index for step, _ in seen] == wanted
    assert {step.grid.steps for step, _ in seen} == {4}
    ratios = [
        float(step.t.rho) for step, _ in seen
    ]  # Heun's second call is at the level that its step leads to
    assert all(a >= b for a, b in pairwise(ratios)) and len(set(ratios)) == 4


def momentum(scale, beta, pairs):
    """x0 of APG (η = 1, no threshold) from the clean estimates of each step: c + (s − 1)·m, m = (c
    − u) + β·m before.
    """
    m, found = 0.0, []
    for c, u in pairs:
        m = (c - u) + beta * m
        found.append(c + (scale - 1) * m)
    return found


@pytest.mark.parametrize("name", ["flux", "wan", "sd3"])
def test_momentum_goes_on_from_step_to_step_and_starts_anew_with_each_run(name):
    f, runs = family(name), []
    for _ in range(2):
        seen, parts = [], ([], [])
        with guidestar.guided(
            f.pipe,
            guidestar.apg(3, momentum=-0.5, eta=1.0, radius=None) | Both(parts) | Record(seen),
        ):
            f.draw(num_inference_steps=4)
        runs.append([x0 for _, x0 in seen])
        wanted = momentum(3, -0.5, list(zip(*parts, strict=True)))
        assert len(wanted) == 4
        assert all(close(x0, w, 1e-9) for x0, w in zip(runs[-1], wanted, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@dataclass(frozen=True)
class Both(Post):
    """Writes down the clean estimates of both passes."""

    seen: tuple

    name = "both"

    def passes(self, step):
        return (guidestar.core.passes.COND, guidestar.core.passes.NULL)

    def apply(self, prediction, live, *predictions):
        for kept, found in zip(self.seen, predictions, strict=True):
            kept.append(found.x0.clone())
        return prediction


@pytest.mark.parametrize(("strength", "steps"), [(0.5, 2), (0.8, 3), (1.0, 4)])
def test_a_run_from_a_picture_counts_from_its_own_first_step(strength, steps):
    pipe, seen = stable_diffusion(StableDiffusionImg2ImgPipeline), []
    picture = Image.frombytes("RGB", (16, 16), bytes(range(256)) * 3)
    with guidestar.guided(pipe, cond | Record(seen)):
        drawn(pipe, image=picture, strength=strength)
    bars = [
        float(pipe.scheduler.alphas_cumprod[t]) for t in pipe.scheduler.timesteps[STEPS - steps :]
    ]
    assert [step.index for step, _ in seen] == list(range(steps)) and {
        step.grid.steps for step, _ in seen
    } == {steps}
    assert [float(step.t.rho) for step, _ in seen] == pytest.approx(
        [(1 / a - 1) ** 0.5 for a in bars], rel=1e-9
    )


def test_each_image_has_the_caption_of_its_prompt():
    assert _prompts({"prompt": ["cat", "a dog"]}, 4) == ["cat", "cat", "a dog", "a dog"]
    assert _prompts({"prompt": "cat"}, 3) == ["cat", "cat", "cat"] and _prompts(
        {"prompt": ["cat"]}, 1
    ) == ["cat"]
    assert (
        _prompts({"prompt": ["cat", "a dog"]}, 3) is None
        and _prompts({"prompt": None}, 2) is None
        and _prompts({}, 2) is None
    )


def test_prompts_within_the_expression_skip_the_layers_that_the_pipeline_skips():
    """It skips none for its negative prompt."""
    pipe = quiet(made.sdxl())
    ask = {
        "num_inference_steps": 2,
        "output_type": "latent",
        "guidance_scale": 5.0,
        "height": 8,
        "width": 8,
    }
    draw = lambda prompt, **more: pipe(prompt, generator=seeded(1), **ask, **more).images
    for skip in (1, None):
        own = draw("cat", negative_prompt="mud", clip_skip=skip)
        with guidestar.guided(pipe, "cfg(5, negative='mud')"):
            assert close(draw("cat", clip_skip=skip), own, 1e-5)
        with guidestar.guided(pipe, "AND(5, 'cat')"):
            assert close(draw("bag", negative_prompt="mud", clip_skip=skip), own, 1e-5)
    assert not close(own, draw("cat", negative_prompt="mud", clip_skip=1), 1e-3)


@pytest.mark.parametrize("name", [n for n in MAKE if n not in ("ddpm", "sd3-heun")])
def test_a_scale_of_exactly_one_makes_no_negative_pass(name):
    f = family(name)
    more = {f.scale: 1.0, **({"min_guidance_scale": 1.0} if name == "svd" else {})}
    own = f.draw(**more)
    with guidestar.guided(f.pipe, "cond"):
        assert close(f.draw(**more), own)
    with (
        guidestar.guided(f.pipe, "cfg(3)"),
        pytest.raises(ValueError, match=r"^cfg needs the negative pass"),
    ):
        f.draw(**more)


def test_an_images_scale_of_exactly_one_makes_the_negative_pass():
    pipe = stable_diffusion(StableDiffusionInstructPix2PixPipeline, inputs=8)
    picture = Image.frombytes("RGB", (8, 8), bytes(range(192)))
    draw = lambda **more: (
        pipe(
            image=picture,
            prompt="cat",
            num_inference_steps=2,
            output_type="latent",
            generator=seeded(1),
            **more,
        ).images
    )
    own = draw(guidance_scale=5.0, image_guidance_scale=1.0)
    with guidestar.guided(pipe, "pix2pix(1, 5)"):
        assert close(draw(guidance_scale=5.0, image_guidance_scale=1.0), own, 1e-9)


def test_a_guider_remembers_nothing_from_run_to_run():
    pipe = modular("sdxl")
    guider = Guider("apg(3, momentum=-0.5)", scheduler=pipe.scheduler)
    with torch.no_grad():
        first, second = sampled(pipe, guider), sampled(pipe, guider)
        fresh = sampled(pipe, Guider("apg(3, momentum=-0.5)", scheduler=pipe.scheduler))
        without = sampled(pipe, Guider("apg(3, momentum=0)", scheduler=pipe.scheduler))
    assert (
        torch.equal(first, second) and torch.equal(first, fresh) and not close(first, without, 1e-3)
    )
