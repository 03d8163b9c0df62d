"""What is made of a guided pipeline: copies, pickles, other pipelines, folders; and runs in threads
that share a network.
"""

import copy
import pickle
import threading

import pytest
import torch

import guidestar
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForText2Image,
    DDIMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)
from guidestar.diffusers.guide.classes import MARK
from helpers.pipelines import SCHEDULE, close, drawn, in_double, quiet, stable_diffusion

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda pipe: pickle.loads(pickle.dumps(pipe)),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("expression", ["cfg(2)", "apg(3, momentum=-0.5) + pag(2) | rescale(0.7)"])
def test_copies_are_guided_as_well(how, expression):
    pipe = stable_diffusion()
    own = drawn(pipe)
    made = COPIES[how](guidestar.guide(pipe, expression))
    wanted = drawn(pipe)
    assert torch.equal(drawn(made), wanted) and not close(wanted, own, 1e-3)
    assert type(made).__name__ == "StableDiffusionPipeline" and isinstance(
        made, StableDiffusionPipeline
    )
    # They are guided apart from each other.
    guidestar.guide(made, None)
    assert torch.equal(drawn(made), own) and torch.equal(drawn(pipe), wanted)
    assert type(made) is StableDiffusionPipeline and type(made.unet) is type(pipe.unet)


def test_a_plain_pipeline_is_copied_as_ever():
    pipe = guidestar.guide(guidestar.guide(stable_diffusion(), "cfg(2)"), None)
    assert type(copy.copy(pipe)) is type(copy.deepcopy(pipe)) is StableDiffusionPipeline


MAKE = {
    "AutoPipeline": AutoPipelineForImage2Image.from_pipe,
    "the same AutoPipeline": AutoPipelineForText2Image.from_pipe,
    "from_pipe": lambda pipe: StableDiffusionImg2ImgPipeline.from_pipe(
        pipe, torch_dtype=torch.float64
    ),
    "the class's own from_pipe": lambda pipe: type(pipe).from_pipe(pipe, torch_dtype=torch.float64),
    "components": lambda pipe: StableDiffusionImg2ImgPipeline(
        **pipe.components, requires_safety_checker=False
    ),
}


@pytest.mark.parametrize("how", MAKE)
def test_other_pipelines_made_of_it_are_not_guided_and_a_warning_says_so(how):
    pipe = guidestar.guide(stable_diffusion(), "cfg(2)")
    line = (
        "^this StableDiffusionPipeline is guided by guidestar, but a pipeline made of its "
        "components is not: guide that too"
    )
    with pytest.warns(UserWarning, match=line) as said:
        MAKE[how](pipe)
    assert len([w for w in said if "guided by guidestar" in str(w.message)]) == 1


def test_what_diffusers_does_with_the_components_itself_says_nothing():
    pipe = guidestar.guide(stable_diffusion(), "cfg(2)")
    pipe.to("cpu")
    pipe.set_attention_slice("auto")
    pipe.remove_all_hooks()
    assert set(pipe.config) and repr(pipe)


def test_a_folder_is_not_guided_and_a_warning_says_so(tmp_path):
    pipe = guidestar.guide(stable_diffusion(), "cfg(2)")
    with pytest.warns(
        UserWarning,
        match="is guided by guidestar, but its folder is not: guide the pipeline that is read "
        "from it too",
    ):
        pipe.save_pretrained(tmp_path)
    assert not hasattr(type(StableDiffusionPipeline.from_pretrained(tmp_path)), MARK)


def test_two_runs_in_two_threads_share_a_network():
    """One with pag, one without, and one that is not guided: each is what it is alone."""
    first = stable_diffusion()
    scheduler = lambda: in_double(
        DDIMScheduler(**SCHEDULE, clip_sample=False, steps_offset=1, set_alpha_to_one=False)
    )
    parts = {**first.components, "requires_safety_checker": False}
    # Each has a tokenizer of its own: transformers' are not safe between threads.
    own = lambda: {"scheduler": scheduler(), "tokenizer": copy.deepcopy(first.tokenizer)}
    pipes = [quiet(StableDiffusionPipeline(**{**parts, **own()})) for _ in range(3)]
    for pipe, expression in zip(pipes, ("cfg(2)", "apg(4, momentum=-0.5)", None), strict=True):
        guidestar.guide(pipe, expression)
    alone = [drawn(pipe) for pipe in pipes]
    kind, found = type(first.unet), [[], [], []]
    start = threading.Barrier(3)

    def work(k):
        start.wait()
        found[k] += [drawn(pipes[k]) for _ in range(4)]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not close(alone[0], alone[1], 1e-3) and not close(alone[0], alone[2], 1e-3)
    for wanted, together in zip(alone, found, strict=True):
        assert len(together) == 4 and all(torch.equal(x, wanted) for x in together)
    assert type(first.unet) is kind


def test_a_guided_pipeline_within_another_is_its_own():
    """As a pipeline that is made of two: while the inner one runs, the network answers that."""
    inner = guidestar.guide(stable_diffusion(), "cfg(2)")
    wanted, found = drawn(inner), []
    outer = stable_diffusion(more={})
    outer.unet = inner.unet
    own = drawn(outer, guidance_scale=3.0)

    def callback(pipe, i, t, kept):
        if not found:
            found.append(drawn(inner))
        return kept

    with guidestar.guided(outer, "cfg(3)"):
        assert close(drawn(outer, callback_on_step_end=callback), own, 1e-9)
    assert torch.equal(found[0], wanted) and type(inner.unet).__name__ == "UNet2DConditionModel"
    assert not hasattr(type(inner.unet), MARK)
