"""Guided Stable Diffusion pipelines, against the pipeline's own guidance and against loops written
out in plain torch.
"""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from diffusers.utils import is_torchsde_available
from PIL import Image

import guidestar
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepInverseScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSDEScheduler,
    DPMSolverSinglestepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    SASolverScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPAGPipeline,
    TCDScheduler,
    UniPCMultistepScheduler,
)
from guidestar import Post, cond
from helpers.pipelines import (
    REQUEST,
    SCHEDULE,
    STEPS,
    close,
    drawn,
    in_double,
    seeded,
    stable_diffusion,
    text_unet,
    told,
    walked,
)

# Diffusers turns tensors into arrays in a way that NumPy 2 deprecates, and says which of its parts
# are old.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

SCHEDULERS = {
    "ddim": lambda **k: in_double(
        DDIMScheduler(**SCHEDULE, clip_sample=False, steps_offset=1, **k)
    ),
    "ddim-zero-snr": lambda **k: in_double(
        DDIMScheduler(
            **SCHEDULE,
            clip_sample=False,
            rescale_betas_zero_snr=True,
            prediction_type="v_prediction",
            timestep_spacing="trailing",
            **k,
        )
    ),
    "euler": lambda **k: EulerDiscreteScheduler(**SCHEDULE, **k),
    "euler-karras": lambda **k: EulerDiscreteScheduler(**SCHEDULE, use_karras_sigmas=True, **k),
    "euler-v": lambda **k: EulerDiscreteScheduler(
        **SCHEDULE, prediction_type="v_prediction", timestep_spacing="leading", **k
    ),
    "dpm++": lambda **k: DPMSolverMultistepScheduler(**SCHEDULE, **k),
    "dpm++-karras": lambda **k: DPMSolverMultistepScheduler(
        **SCHEDULE, use_karras_sigmas=True, **k
    ),
    "unipc": lambda **k: UniPCMultistepScheduler(**SCHEDULE, **k),
    "heun": lambda **k: HeunDiscreteScheduler(**SCHEDULE, **k),
}
ZERO_SNR = {
    "rescale_betas_zero_snr": True,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
}
"""With Diffusers' own betas, whose table then ends in 2⁻²⁴, above its neighbour."""
MORE = {
    "ancestral": lambda: EulerAncestralDiscreteScheduler(**SCHEDULE),
    "ddim-inverted": lambda: in_double(DDIMInverseScheduler(**SCHEDULE, clip_sample=False)),
    "ddpm": lambda: in_double(DDPMScheduler(**SCHEDULE, clip_sample=False)),
    "deis": lambda: DEISMultistepScheduler(**SCHEDULE),
    "dpm-single": lambda: DPMSolverSinglestepScheduler(**SCHEDULE),
    "edm": EDMEulerScheduler,
    "dpm++-inverted": lambda: DPMSolverMultistepInverseScheduler(**SCHEDULE),
    "flow": lambda: UniPCMultistepScheduler(
        **SCHEDULE, use_flow_sigmas=True, prediction_type="flow_prediction"
    ),
    "kdpm2": lambda: KDPM2DiscreteScheduler(**SCHEDULE),
    "kdpm2-a": lambda: KDPM2AncestralDiscreteScheduler(**SCHEDULE),
    "lcm": lambda: LCMScheduler(**SCHEDULE),
    "lms": lambda: LMSDiscreteScheduler(**SCHEDULE),
    "pndm": lambda: in_double(PNDMScheduler(**SCHEDULE, skip_prk_steps=True)),
    "sa": lambda: SASolverScheduler(**SCHEDULE),
    **(
        {"sde": lambda: DPMSolverSDEScheduler(**SCHEDULE, noise_sampler_seed=0)}
        if is_torchsde_available()
        else {}
    ),
    "tcd": lambda: in_double(TCDScheduler(**SCHEDULE)),
    **{
        f"{name}-zero-snr": partial(kind, **ZERO_SNR)
        for name, kind in (
            ("euler", EulerDiscreteScheduler),
            ("dpm++", DPMSolverMultistepScheduler),
            ("unipc", UniPCMultistepScheduler),
        )
    },
}


@pytest.mark.parametrize("name", [*SCHEDULERS, *MORE])
def test_cfg_is_the_pipelines_own(name):
    pipe = stable_diffusion(scheduler={**SCHEDULERS, **MORE}[name]())
    own = drawn(pipe)
    with guidestar.guided(pipe, "cfg(5)"):
        assert close(drawn(pipe, guidance_scale=2.0), own)
        assert close(drawn(pipe, guidance_scale=9.0), own)
    assert torch.equal(drawn(pipe), own)


def per_sample(x):
    return x.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)


def across(c, d):
    """The part of d at right angles to c."""
    return d - (c * d).flatten(1).sum(1).reshape(-1, 1, 1, 1) / per_sample(c) ** 2 * c


@pytest.mark.parametrize("name", SCHEDULERS)
def test_apg_with_momentum_at_the_schedulers_levels(name):
    pipe = stable_diffusion(scheduler=SCHEDULERS[name]())
    x = torch.cat([torch.randn(1, 4, 8, 8, generator=g, dtype=torch.float64) for g in seeded(3, 4)])
    with guidestar.guided(pipe, "apg(5, momentum=-0.5)"):
        ours = drawn(pipe, latents=x)
    kept = {"now": 0.0, "step": -1}

    def apg(i, c, u, x, alpha, sigma):
        # Heun's second call of a step knows what was remembered before that step.
        step = (i // 2) if name == "heun" else i
        if step != kept["step"]:
            kept.update(step=step, before=kept["now"], first=True)
        moved = c - u - 0.5 * kept["before"]
        if kept["first"]:
            kept.update(now=moved, first=False)
        return c + 4 * across(c, moved)

    assert close(ours, walked(pipe, apg, x), 1e-5)


def test_an_interval_is_of_noise_ratios_and_saves_passes():
    pipe = stable_diffusion(scheduler=SCHEDULERS["euler"]())
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pipe.scheduler.set_timesteps(STEPS)
    low = float(pipe.scheduler.sigmas[2])
    rows = []
    handle = pipe.unet.conv_in.register_forward_hook(lambda m, args, out: rows.append(len(args[0])))
    with guidestar.guided(pipe, f"cfg(5, interval=({low}, inf))"):
        ours = drawn(pipe, latents=x)
    handle.remove()
    assert rows == [4, 4, 2, 2]
    assert close(
        ours, walked(pipe, lambda i, c, u, x, a, s: c + 4 * (c - u) if s > low else c, x), 1e-5
    )


def test_pag_is_the_pag_pipelines():
    pipe = stable_diffusion(StableDiffusionPAGPipeline)
    pipe.set_pag_applied_layers(["mid"])
    theirs = drawn(pipe, pag_scale=3.0)
    plain = stable_diffusion()
    with guidestar.guided(plain, "cfg(5) + pag(3)"):
        assert close(drawn(plain), theirs, 1e-9)
    with guidestar.guided(pipe, "cfg(5) + pag(3)"):
        assert close(drawn(pipe, pag_scale=0.0), theirs, 1e-9)
        with pytest.raises(
            ValueError, match=r"perturbed pass of its own; give pag_scale=0, and write pag\(3\)"
        ):
            drawn(pipe, pag_scale=3.0)


def test_rescale_in_the_networks_own_space_is_guidance_rescale():
    pipe = stable_diffusion()
    theirs = drawn(pipe, guidance_rescale=0.7)
    with guidestar.guided(pipe, "cfg(5) | rescale(0.7, space='eps')"):
        assert close(drawn(pipe), theirs, 1e-9)
        assert close(drawn(pipe, guidance_rescale=0.7), theirs, 1e-9)


def test_autoguidance_with_a_second_network():
    pipe, weak = stable_diffusion(), text_unet(seed=7)
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with guidestar.guided(pipe, "autoguidance(2)", nets={"weak": weak}):
        ours = drawn(pipe, latents=x, guidance_scale=1.0)
    embeds = told(pipe)[2:]

    def contrast(i, c, u, x, alpha, sigma):
        bad = (
            x - sigma * weak(x, pipe.scheduler.timesteps[i], encoder_hidden_states=embeds).sample
        ) / alpha
        return bad + 2 * (c - bad)

    assert close(ours, walked(pipe, contrast, x), 1e-9)


def test_another_negative_prompt_within_the_expression():
    pipe = stable_diffusion()
    own = drawn(pipe, negative_prompt=["mud", "mud"])
    with guidestar.guided(pipe, "cfg(5, negative='mud')"):
        assert close(drawn(pipe, guidance_scale=1.0), own, 1e-9)
        assert close(drawn(pipe, negative_prompt=["rain", "rain"]), own, 1e-9)


@pytest.mark.parametrize(
    "expression", ["apg(5) + pag(2)", "cfg(4) | cads(0.2)", "cfg(4) + sag(0.7) | rescale(0.7)"]
)
def test_a_sample_does_not_depend_on_the_others(expression):
    pipe = stable_diffusion()
    with guidestar.guided(pipe, expression):
        together = drawn(pipe)
        alone = [
            drawn(
                pipe,
                prompt=REQUEST["prompt"][k],
                negative_prompt=REQUEST["negative_prompt"][k],
                generator=seeded(3 + k),
            )
            for k in (0, 1)
        ]
        assert close(together, torch.cat(alone), 1e-9)
        # Nothing is remembered from run to run.
        assert torch.equal(drawn(pipe), together)
    with guidestar.guided(pipe, expression, max_rows=2):
        assert close(drawn(pipe), together, 1e-9)


def test_several_images_a_prompt():
    pipe = stable_diffusion()
    four = lambda: drawn(pipe, num_images_per_prompt=2, generator=seeded(1, 2, 3, 4))
    own = four()
    with guidestar.guided(pipe, "cfg(5)"):
        assert len(own) == 4 and close(four(), own, 1e-9)
    with guidestar.guided(pipe, "cfg([5, 5, 1, 1])"):
        some = four()
    assert close(some[:2], own[:2], 1e-9) and not close(some[2:], own[2:], 1e-2)


def picture(seed):
    return Image.frombytes(
        "RGB",
        (16, 16),
        bytes(
            torch.randint(0, 256, (768,), generator=torch.Generator().manual_seed(seed)).tolist()
        ),
    )


IMAGES = {
    "img2img": (StableDiffusionImg2ImgPipeline, 4, {"image": picture(0), "strength": 0.6}),
    "inpaint": (
        StableDiffusionInpaintPipeline,
        4,
        {"image": picture(0), "mask_image": picture(1).convert("L"), "height": 16, "width": 16},
    ),
    "inpaint-9": (
        StableDiffusionInpaintPipeline,
        9,
        {"image": picture(0), "mask_image": picture(1).convert("L"), "height": 16, "width": 16},
    ),
}


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("scheduler", ["ddim", "euler"])
def test_pictures_that_start_from_pictures(name, scheduler):
    kind, inputs, more = IMAGES[name]
    pipe = stable_diffusion(kind, scheduler=SCHEDULERS[scheduler](), inputs=inputs)
    own = drawn(pipe, **more)
    with guidestar.guided(pipe, "cfg(5)"):
        assert close(drawn(pipe, **more, guidance_scale=2.0), own)
    with guidestar.guided(pipe, "cfg(5, interval=(0, 0.5)) + pag(2)"):
        assert not close(drawn(pipe, **more), own, 1e-2)


def test_pix2pix_is_the_pipelines_own():
    pipe = stable_diffusion(StableDiffusionInstructPix2PixPipeline, inputs=8)
    one = lambda **more: drawn(
        pipe, image=picture(0), prompt="cat", negative_prompt="", generator=seeded(1), **more
    )
    own = one(image_guidance_scale=1.5)
    with guidestar.guided(pipe, "pix2pix(1.5, 5)"):
        assert close(one(guidance_scale=3.0, image_guidance_scale=2.0), own, 1e-9)


@dataclass(frozen=True)
class Record(Post):
    """Writes down the clean estimate and the level at each evaluation."""

    seen: list

    name = "record"

    def apply(self, prediction, live):
        self.seen.append((prediction.x0.clone(), live.step.t))
        return prediction


@pytest.mark.parametrize("name", [*SCHEDULERS, *MORE])
def test_what_a_network_means_is_what_the_scheduler_reads(name):
    pipe, seen, theirs = stable_diffusion(scheduler={**SCHEDULERS, **MORE}[name]()), [], []
    scheduler, step, scale = pipe.scheduler, pipe.scheduler.step, pipe.scheduler.scale_model_input

    def stepped(out, t, x, **more):
        answer = step(out, t, x, **{**more, "return_dict": True})
        if name in ("pndm", "ddpm", "lcm", "tcd", "ddim-inverted"):
            # An inversion is told the time of the step that it goes to.
            a = (
                scheduler.alphas_cumprod[
                    max(0, t - 1000 // STEPS) if name == "ddim-inverted" else t
                ]
                ** 0.5
            )
            theirs.append((x - (1 - a * a) ** 0.5 * out) / a)
        elif hasattr(answer, "pred_original_sample"):
            theirs.append(answer.pred_original_sample)
        else:
            kept = scheduler.model_outputs[-1]  # deis keeps eps, the others x0
            rho = float(scheduler.sigmas[len(theirs)])
            theirs.append(x * (1 + rho**2) ** 0.5 - rho * kept if name == "deis" else kept)
        return (answer.prev_sample,)

    def scaled(x, t):
        theirs.append(scale(torch.ones(2, 4, 1, 1), t))
        return scale(x, t)

    by_scale = name in ("heun", "lms", "kdpm2", "kdpm2-a")
    if by_scale:
        scheduler.scale_model_input = scaled
    else:
        scheduler.step = stepped
    with guidestar.guided(pipe, cond | Record(seen)):
        drawn(pipe)
    assert len(seen) == len(theirs) >= STEPS
    for (x0, level), own in zip(seen, theirs, strict=True):
        ours = torch.full_like(own, level.alpha) if by_scale else x0
        assert close(ours.double(), own.double(), 2e-5)
