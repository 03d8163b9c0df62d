"""A pipeline's own numbers: which have no effect beside ours and are warned of, and how the
negative pass is asked for.
"""

import warnings

import pytest
import torch
from PIL import Image

import guidestar
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxControlPipeline,
    LatentConsistencyModelPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
    UniPCMultistepScheduler,
    WanPipeline,
)
from helpers import pipeline_folders as made
from helpers.pipeline_families import family, ready, sdxl, wan
from helpers.pipelines import close, drawn, quiet, seeded, stable_diffusion, vae

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def two_stages(ratio=0.8):
    """Wan 2.2: one network for much noise and one for little."""
    f = wan()
    second = wan().pipe.transformer
    with torch.no_grad():
        for p in second.parameters():
            p.mul_(0.9)
    flow = {"use_flow_sigmas": True, "num_train_timesteps": 1000, "flow_shift": 3.0}
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", **flow)
    parts = {"tokenizer": None, "text_encoder": None, "vae": None}
    f.pipe = quiet(
        WanPipeline(
            **parts,
            transformer=f.pipe.transformer,
            transformer_2=second,
            scheduler=scheduler,
            boundary_ratio=ratio,
        )
    )
    f.more = {"num_inference_steps": 5}
    return f


def test_two_scales_of_two_networks():
    """The line that is proposed has the effect of the pipeline's own two numbers."""
    f = two_stages()
    own, one = f.draw(guidance_scale_2=2.0), f.draw()
    times = f.pipe.scheduler.timesteps
    assert bool((times >= 800).any()) and bool((times < 800).any())
    line = (
        r"^guidance_scale_2=2 has no effect while guidestar guides WanPipeline; write a scale "
        r"for each of its networks, "
        r"cfg\(4, interval=\(4, inf\)\) \+ cfg\(2, interval=\(0, 4\)\)$"
    )
    with guidestar.guided(f.pipe, "cfg(4)"), pytest.warns(UserWarning, match=line):
        assert close(f.draw(guidance_scale_2=2.0), one)
    with guidestar.guided(f.pipe, "cfg(4, interval=(4, inf)) + cfg(2, interval=(0, 4))"):
        assert close(f.draw(guidance_scale_2=2.0), own) and close(f.draw(), own)
    with guidestar.guided(f.pipe, "cfg(4)"):  # the same number is no second one
        assert close(f.draw(guidance_scale_2=4.0), one)
    assert not close(own, one, 1e-3)


def test_rescale_of_the_pipelines_own_is_warned_of():
    pipe = stable_diffusion()
    own = drawn(pipe, guidance_rescale=0.7)
    line = (
        r"^guidance_rescale=0\.7 has no effect while guidestar guides "
        r"StableDiffusionPipeline; write \| rescale\(0\.7, space='eps'\) in the expression$"
    )
    with guidestar.guided(pipe, "cfg(5)"), pytest.warns(UserWarning, match=line):
        assert not close(drawn(pipe, guidance_rescale=0.7), own, 1e-3)
    with guidestar.guided(pipe, "cfg(5) | rescale(0.7, space='eps')"):
        assert close(drawn(pipe, guidance_rescale=0.7), own)


PICTURE = Image.frombytes("RGB", (8, 8), bytes(range(192)))


def edit(kind=StableDiffusionInstructPix2PixPipeline):
    pipe = stable_diffusion(kind, inputs=8)
    return (
        pipe,
        lambda **more: (
            pipe(
                image=PICTURE,
                prompt="cat",
                num_inference_steps=2,
                output_type="latent",
                generator=seeded(1),
                **more,
            ).images
        ),
    )


def test_the_images_scale_of_an_edit():
    pipe, draw = edit()
    line = (
        r"^image_guidance_scale=1\.5 has no effect .*; write pix2pix\(1\.5, 5\) in the expression$"
    )
    with guidestar.guided(pipe, "cfg(5)"), pytest.warns(UserWarning, match=line):
        draw(guidance_scale=5.0, image_guidance_scale=1.5)
    with guidestar.guided(pipe, "cfg(5)"):
        draw(guidance_scale=5.0)  # a default is no wish
    with guidestar.guided(pipe, "pix2pix(1.5, 5)"):
        draw(guidance_scale=5.0, image_guidance_scale=1.5)


def test_scales_from_frame_to_frame():
    f = family("svd")
    with (
        guidestar.guided(f.pipe, "cfg(4)"),
        pytest.warns(
            UserWarning,
            match=r"^min_guidance_scale=2 has no effect .*write cfg\(4, "
            r"frames=\[0.3333333333333333, 1\]\)$",
        ),
    ):
        f.draw(min_guidance_scale=2.0)


def test_a_scale_of_pag_that_falls():
    pipe = stable_diffusion(StableDiffusionPAGPipeline)
    with (
        guidestar.guided(pipe, "cfg(5) + pag(2)"),
        pytest.warns(
            UserWarning,
            match=r"^pag_adaptive_scale=0\.1 has no effect .*pag\(3, interval=\(lo, hi\)\)$",
        ),
    ):
        drawn(pipe, pag_scale=0.0, pag_adaptive_scale=0.1)


def test_numbers_of_no_effect_are_not_warned_of_where_they_change_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        drawn(guidestar.guide(stable_diffusion(), "cfg(5)"), guidance_rescale=0.0)


# --- the negative pass ---


def needs(draw, line):
    with pytest.raises(ValueError, match=line) as caught:
        draw()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("xl", [False, True])
def test_an_edit_whose_image_scale_asks_for_none(xl):
    if xl:
        parts = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
        pipe = quiet(
            StableDiffusionXLInstructPix2PixPipeline(
                vae=vae(),
                unet=sdxl_edits(),
                scheduler=DDIMScheduler(),
                add_watermarker=False,
                **parts,
            )
        )
        words = {k: v[:1] for k, v in sdxl().ask(1, 0).items()}
        draw = lambda **more: (
            pipe(
                image=PICTURE,
                **words,
                height=8,
                width=8,
                num_inference_steps=2,
                output_type="latent",
                **more,
            ).images
        )
    else:
        pipe, draw = edit()
    own = draw(guidance_scale=5.0, image_guidance_scale=0.5) if not xl else None
    line = (
        f"^cfg needs the negative pass, but {type(pipe).__name__} was called with "
        "image_guidance_scale=0.5, at which it makes none; give any image_guidance_scale of at "
        "least 1"
    )
    with guidestar.guided(pipe, "cfg(3)"), pytest.warns(UserWarning, match="image_guidance_scale"):
        needs(lambda: draw(guidance_scale=5.0, image_guidance_scale=0.5), line)
    if own is not None:
        with (
            guidestar.guided(pipe, "cond"),
            pytest.warns(UserWarning, match="image_guidance_scale"),
        ):
            assert close(draw(guidance_scale=5.0, image_guidance_scale=0.5), own)


def sdxl_edits():
    from helpers.pipelines import text_unet

    return text_unet(
        inputs=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=8 + 24,
    )


def test_a_network_that_is_told_the_scale():
    pipe = stable_diffusion(time_cond_proj_dim=4)
    needs(
        lambda: drawn(guidestar.guide(pipe, "cfg(3)")),
        r"^cfg needs the negative pass, but StableDiffusionPipeline makes none at any "
        r"guidance_scale, which it passes to its network",
    )
    own = drawn(guidestar.guide(pipe, None))
    assert close(drawn(guidestar.guide(pipe, "cond")), own, 1e-9)
    assert not close(drawn(pipe, guidance_scale=9.0), own, 1e-6)  # and it is told it still


def test_consistency_models_make_no_negative_pass():
    pipe = stable_diffusion(LatentConsistencyModelPipeline, time_cond_proj_dim=4)
    ask = lambda: pipe(
        "cat", num_inference_steps=2, original_inference_steps=10, guidance_scale=8.5
    )
    from diffusers import LCMScheduler

    pipe.scheduler = LCMScheduler()
    guidestar.guide(pipe, "cfg(3)")
    needs(
        ask,
        "^cfg needs the negative pass, but LatentConsistencyModelPipeline makes none at any "
        "guidance_scale",
    )


def test_a_flux_without_a_true_scale():
    from diffusers import FluxTransformer2DModel

    f = family("flux")
    text = {
        "joint_attention_dim": 8,
        "pooled_projection_dim": 8,
        "axes_dims_rope": (2, 2, 4),
        "guidance_embeds": True,
        "num_layers": 1,
        "num_single_layers": 1,
    }
    net = ready(
        FluxTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            patch_size=1,
            in_channels=32,
            out_channels=16,
            **text,
        ),
        5,
    )
    parts = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    pipe = quiet(
        FluxControlPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(),
            vae=made.vae(shift_factor=0.2).double(),
            transformer=net,
            **parts,
        )
    )
    told = {k: v for k, v in f.ask(1, 0).items() if not k.startswith("negative")} | {
        "num_inference_steps": 2,
        "output_type": "latent",
        "guidance_scale": 30.0,
    }
    guidestar.guide(pipe, "cfg(3)")
    needs(
        lambda: pipe(**told, control_image=PICTURE),
        r"FluxControlPipeline makes none at any guidance_scale, which it passes to its network; "
        r"its "
        r"network is distilled",
    )


def test_flux_with_half_of_its_negative_makes_no_negative_pass():
    f = family("flux")
    ask = {"negative_pooled_prompt_embeds": None, "num_inference_steps": 2}
    f.pipe.check_inputs = lambda *_, **__: None
    own = f.draw(**ask)
    with guidestar.guided(f.pipe, "cond"):
        assert close(f.draw(**ask), own)
    with guidestar.guided(f.pipe, "cfg(3)"):
        needs(
            lambda: f.draw(**ask),
            "FluxPipeline was called without a negative prompt and a true_cfg_scale above 1",
        )


def test_the_negative_pass_of_a_plain_pipeline():
    pipe = guidestar.guide(stable_diffusion(scheduler=DDIMScheduler()), "cfg(3)")
    needs(
        lambda: drawn(pipe, guidance_scale=1.0),
        r"give any guidance_scale above 1 \(both halves get the guided result, so the pipeline's "
        r"own number changes nothing\)$",
    )
