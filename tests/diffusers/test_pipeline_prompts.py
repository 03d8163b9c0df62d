"""Prompts written in an expression, in pipelines that tell their network more of each row than the
prompt.
"""

import re

import pytest
import torch

import guidestar
from guidestar.diffusers.guide.families import FAMILIES
from guidestar.diffusers.guide.prompts import check_prompt
from helpers import pipeline_folders as made
from helpers.pipeline_families import family, pooled, words
from helpers.pipelines import close, controlled, drawn, image_prompted, quiet, stable_diffusion

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
MUD, RAIN = {"negative_prompt": ["mud", "mud"]}, {"negative_prompt": ["rain", "rain"]}


def with_image():
    pipe = stable_diffusion()
    return pipe, image_prompted(pipe)


def with_controlnet(guess):
    pipe, more = controlled()
    return pipe, {**more, "guess_mode": guess}


MORE = {
    "image prompt": with_image,
    "controlnet": lambda: with_controlnet(False),
    "controlnet guesses": lambda: with_controlnet(True),
}


@pytest.mark.parametrize("name", MORE)
@pytest.mark.parametrize(
    "expression",
    ["cfg(5, negative='mud')", "perp_neg(5, negative=['mud', 'mud'])", "AND(5) + NOT(2, 'mud')"],
)
def test_what_is_moved_away_from_has_the_settings_of_the_negative_prompt(name, expression):
    """Where it is the pipeline's own negative prompt, nothing is left of what sets the two apart:
    all of these are cfg(5).
    """
    pipe, more = MORE[name]()
    own = drawn(pipe, **MUD, **more)
    with guidestar.guided(pipe, expression):
        assert close(drawn(pipe, **MUD, **more), own, 1e-9)


@pytest.mark.parametrize("name", ["image prompt", "controlnet guesses"])
def test_another_negative_prompt_is_as_if_the_pipeline_were_given_it(name):
    pipe, more = MORE[name]()
    own = drawn(pipe, **MUD, **more)
    assert not close(drawn(pipe, **RAIN, **more), own, 1e-3)
    with guidestar.guided(pipe, "cfg(5, negative='mud')"):
        assert close(drawn(pipe, **RAIN, **more), own, 1e-9)


def test_what_is_asked_for_has_the_settings_of_the_prompt():
    pipe, image = with_image()
    own = drawn(pipe, prompt=["fox", "fox"], **image)
    with guidestar.guided(pipe, "AND(5, 'fox')"):
        assert close(drawn(pipe, **image), own, 1e-9)


def test_without_negative_rows_a_negative_prompt_has_the_settings_of_the_prompt():
    pipe, image = with_image()
    shown = image["ip_adapter_image_embeds"][0][1:]
    own = drawn(pipe, **MUD, ip_adapter_image_embeds=[shown.expand(2, 1, 6)])
    with guidestar.guided(pipe, "cfg(5, negative='mud')"):
        assert close(drawn(pipe, guidance_scale=1.0, ip_adapter_image_embeds=[shown]), own, 1e-9)


def test_a_prompt_that_is_asked_for_and_moved_away_from_has_no_settings():
    pipe, image = with_image()
    line = (
        r"^the expression moves towards 'mud' and away from it, and .* word one of them otherwise$"
    )
    with (
        guidestar.guided(pipe, "AND(3) + AND(2, 'mud') + NOT(1, 'mud')"),
        pytest.raises(ValueError, match=line),
    ):
        drawn(pipe, **image)
    with guidestar.guided(stable_diffusion(), "AND(5) + AND(2, 'mud') + NOT(2, 'mud')") as plain:
        ours = drawn(plain)
    assert close(ours, drawn(stable_diffusion()), 1e-9)


def test_sizes_of_a_negative_prompt_are_the_pipelines():
    pipe = quiet(made.sdxl())
    sizes = {
        "negative_original_size": (40, 40),
        "negative_target_size": (8, 8),
        "negative_crops_coords_top_left": (3, 5),
    }

    def draw(**more):
        return pipe(
            "cat",
            num_inference_steps=3,
            generator=torch.Generator().manual_seed(1),
            output_type="latent",
            guidance_scale=5.0,
            **more,
        ).images

    own = draw(negative_prompt="mud", **sizes)
    assert not close(draw(negative_prompt="mud"), own, 1e-3)
    with guidestar.guided(pipe, "cfg(5, negative='mud')"):
        assert close(draw(negative_prompt="rain", **sizes), own, 1e-5)


UNENCODED = {
    "pixart": "give a Condition(encoder_hidden_states=…, encoder_attention_mask=…) in its place, "
    "in Python",
    "sd3": "give a Condition(encoder_hidden_states=…, pooled_projections=…) in its place, in "
    "Python",
    "flux": "give a Condition(encoder_hidden_states=…, pooled_projections=…) in its place, in "
    "Python",
    "wan": "give a Condition(encoder_hidden_states=…) in its place, in Python",
    # it is told sizes too, which a Condition cannot say
    "sdxl": "give the pipeline embeddings, prompt_embeds= and negative_prompt_embeds=",
}


@pytest.mark.parametrize("name", UNENCODED)
@pytest.mark.parametrize(
    ("expression", "what"),
    [("cfg(4, negative='mud', interval=(0, 2))", "'mud'"), ("icg(3, among=['a', 'b'])", "'a'")],
)
def test_without_text_encoders_a_prompt_is_refused_before_the_first_step(name, expression, what):
    f, seen = family(name), []
    (getattr(f.pipe, "unet", None) or f.pipe.transformer).register_forward_hook(
        lambda *_: seen.append(1)
    )
    line = (
        rf"^{type(f.pipe).__name__} has no text encoder \(text_encoder, tokenizer.* "
        rf"missing\), so {what} within the expression cannot be encoded; load it with them, or "
    )
    with (
        guidestar.guided(f.pipe, expression),
        pytest.raises(ValueError, match=line + re.escape(UNENCODED[name]) + "$"),
    ):
        f.draw()
    assert not seen


def test_a_prompt_that_no_step_asks_for_needs_no_text_encoder():
    f = family("sd3")
    with guidestar.guided(f.pipe, "cfg(4) + cfg(2, negative='mud', interval=(0, 1e-9))"):
        made_with_it = f.draw()
    assert close(made_with_it, f.draw())


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_without_text_encoders_a_condition_stands_for_a_prompt(name):
    """That of a negative prompt which the pipeline is not given."""
    f = family(name)
    own, other = f.draw(1), {"negative_prompt_embeds": words(1, 7)}
    told = {"encoder_hidden_states": words(1, 100), "pooled_projections": pooled(1, 100)}
    with guidestar.guided(f.pipe, guidestar.cfg(4.0, negative=guidestar.Condition(told))):
        ours = f.draw(1, **other)
    assert close(ours, own) and not close(f.draw(1, **other), own, 1e-3)


def test_a_pipeline_does_without_what_its_encoding_does_not_need():
    """SDXL's refiner has the second text encoder alone, and Stable Diffusion 3 may be without its
    third.
    """
    refiner, sd3 = quiet(made.sdxl()), family("sd3").pipe
    refiner.text_encoder = refiner.tokenizer = None
    check_prompt(refiner, FAMILIES["UNet2DConditionModel"], "mud")
    for part in ("text_encoder", "tokenizer", "text_encoder_2"):
        setattr(sd3, part, refiner.text_encoder_2)
    with pytest.raises(ValueError, match=r"has no text encoder \(tokenizer_2 missing\)"):
        check_prompt(sd3, FAMILIES["SD3Transformer2DModel"], "mud")
    sd3.tokenizer_2 = refiner.tokenizer_2
    check_prompt(sd3, FAMILIES["SD3Transformer2DModel"], "mud")
    refiner.text_encoder_2 = None
    with pytest.raises(
        ValueError, match=r"has no text encoder \(text_encoder, tokenizer, text_encoder_2 missing\)"
    ):
        check_prompt(refiner, FAMILIES["UNet2DConditionModel"], "mud")
