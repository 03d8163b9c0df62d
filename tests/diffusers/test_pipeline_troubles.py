"""What goes wrong in a run, or changes within it: it works, or one line says what to do."""

import inspect
from dataclasses import replace

import pytest
import torch
from diffusers.callbacks import SDCFGCutoffCallback
from torch import nn

import diffusers
import guidestar
from helpers.zoo.base import distance
from helpers.zoo.table import entries

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

FAMILIES = {
    "StableDiffusionPipeline": "unet",  # halves of one call
    "QwenImagePipeline": "transformer",  # packed, two calls
    "ZImagePipeline": "transformer",  # lists
    "WanPipeline": "transformer",  # a video, two calls
    "CogVideoXPipeline": "transformer",  # a video, halves of one call
}
FAMILY = pytest.mark.parametrize("name", FAMILIES)


def entry(name, **told):
    found = entries()[name]
    return replace(found, ask=lambda: found.ask() | told, steps=4)


def draw(name, guidance=None, pipe=None, **told):
    made = entry(name, **told)
    return made.run(pipe or made.make(), guidance)


def one_line(caught):
    return "\n" not in str(caught.value)


# --- no negative pass ---


@FAMILY
def test_scale_one_makes_no_negative_pass(name):
    """Z-Image's scales count from 0."""
    scale = next(iter(entries()[name].scale))
    alone = {scale: 0.0 if name == "ZImagePipeline" else 1.0}
    with pytest.raises(ValueError, match=rf"^cfg needs the negative pass, but {name} was") as no:
        draw(name, "cfg(3)", **alone)
    assert one_line(no) and scale in str(no.value)
    own = draw(name, **alone)
    assert distance(draw(name, "cond", **alone), own) < 1e-5
    assert distance(draw(name, "cond + pag(2)", **alone), own) > 1e-4


def test_a_true_scale_without_a_negative_prompt():
    told = {k: None for k in entries()["QwenImagePipeline"].ask() if k.startswith("negative")}
    line = r"^cfg needs the negative pass, but QwenImagePipeline was called without a negative"
    with pytest.raises(ValueError, match=line) as no:
        draw("QwenImagePipeline", "cfg(3)", **told)
    assert one_line(no)


# --- compiled networks ---


def backend(graph, inputs):
    return graph.forward


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("how", ["wrapped", "in place", "blocks"])
@FAMILY
def test_a_compiled_network_is_not_perturbed(name, how, when):
    """The line comes before the first step, though the term acts in none of them."""
    pipe, place = entry(name).make(), FAMILIES[name]
    net, term = getattr(pipe, place), "cond + pag(2, interval=(0, 1e-6))"
    if when == "after":
        guidestar.guide(pipe, term)
    if how == "wrapped":
        setattr(pipe, place, torch.compile(net, backend=backend))
    elif how == "in place":
        net.compile(backend=backend)
    else:
        next(m for m in net.modules() if isinstance(m, nn.Linear)).compile(backend=backend)
    said = f"a compiled {type(net).__name__} cannot" if how != "blocks" else "with compiled blocks"
    with pytest.raises(ValueError, match=said) as no:
        draw(name, pipe=pipe) if when == "after" else guidestar.guide(pipe, term)
    assert one_line(no)


# --- classifiers that are elsewhere ---


class Judge(nn.Module):
    """``log p = −Σ (wx)²``."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.layer.weight, 0.3)

    def log_prob(self, x, level, target):
        return -(self.layer(x.float().flatten(1)[..., None]) ** 2).flatten(1).sum(1)


class Holder:
    """A classifier that is no module, and has one."""

    def __init__(self, judge):
        self.judge = judge

    def log_prob(self, x, level, target):
        return self.judge.log_prob(x, level, target)


def judged(name, judge, **interval):
    term = guidestar.cond + guidestar.classifier(0.05, target=0, **interval)
    made = entry(name)
    with guidestar.guided(made.make(), term, classifiers={"classifier": judge}) as pipe:
        return made.run(pipe)


@pytest.mark.parametrize("held", [False, True])
@FAMILY
def test_a_classifier_on_another_device(name, held):
    away = Judge().to("meta")
    line = (
        r"^the classifier 'classifier' is on meta, but the pipeline runs on cpu; move it there: "
        r"\.to\('cpu'\)$"
    )
    with pytest.raises(ValueError, match=line):
        judged(name, Holder(away) if held else away, interval=(0, 1e-6))


@FAMILY
def test_an_offloaded_classifier_works(name):
    accelerate = pytest.importorskip("accelerate")
    here, judge = judged(name, Judge()), Judge()
    accelerate.cpu_offload(judge, execution_device=torch.device("cpu"))
    assert judge.layer.weight.device.type == "meta"
    assert distance(judged(name, judge), here) == 0


def test_an_answer_on_another_device():
    """Of a function in which no module is found."""
    net = Judge().to("meta")

    def log_prob(x, level, target):
        return net.log_prob(x, level, target).to("meta")

    term = guidestar.cond + guidestar.classifier(1, log_prob=log_prob)
    with pytest.raises(ValueError, match=r"log-probability is on meta, but the samples are on cpu"):
        draw("StableDiffusionPipeline", term)


@FAMILY
def test_an_offloaded_weak_network_works(name):
    accelerate = pytest.importorskip("accelerate")
    made = entry(name)
    weak = getattr(made.make(), FAMILIES[name])
    with torch.no_grad():
        for p in weak.parameters():
            p.mul_(0.9)

    def guided():
        term = "cond + autoguidance(2)"
        with guidestar.guided(made.make(), term, nets={"weak": weak}) as pipe:
            return made.run(pipe)

    here = guided()
    accelerate.cpu_offload(weak, execution_device=torch.device("cpu"))
    assert distance(guided(), here) == 0


# --- callbacks ---


def has_callback(name):
    return "callback_on_step_end" in inspect.signature(getattr(diffusers, name).__call__).parameters


def called_back(change):
    return {
        "callback_on_step_end": change,
        "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
    }


@FAMILY
def test_embeddings_that_change_half_way(name):
    """The steps after it are those of the new prompt, as in the pipeline without us."""

    def turn(pipe, i, t, kept):
        given = kept["prompt_embeds"]
        new = [-e for e in given] if isinstance(given, list) else -given
        return {"prompt_embeds": new} if i == 1 else {}

    assert has_callback(name)
    own = draw(name, **called_back(turn))
    guidance = entries()[name].guidance
    assert distance(draw(name, guidance, **called_back(turn)), own) < 1e-5
    assert distance(draw(name, guidance), own) > 1e-6


def ratios(name):
    """The noise ratios of the steps of a run."""
    pipe, found = entry(name).make(), []

    class Watch(guidestar.Post):
        name = "watch"

        def apply(self, prediction, live):
            found.append(live.step.t.rho)
            return prediction

    draw(name, guidestar.cond | Watch(), pipe=pipe)
    return found


def between(name):
    """A noise ratio between those of the second and the third step."""
    second, third = ratios(name)[1:3]
    assert second > third
    return (second + third) / 2


def end_guidance(pipe, i, t, kept):
    """As Diffusers' callbacks that cut the guidance off."""
    if i == 1:
        pipe._guidance_scale = 0.0
    return {}


CUT = {
    "StableDiffusionPipeline": {
        "callback_on_step_end": SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)
    },
    "ZImagePipeline": called_back(end_guidance),
    "WanPipeline": called_back(end_guidance),
}


@pytest.mark.parametrize("name", CUT)
def test_a_callback_that_ends_the_guidance(name):
    """It is refused where a term still needs the negative pass, and equal where none does."""
    line = rf"cfg needs the negative pass, but {name} ended it during the run.*interval=\(lo, hi\)"
    with pytest.raises(ValueError, match=line) as no:
        draw(name, "cfg(3)", **CUT[name])
    assert one_line(no)
    own, scale = draw(name, **CUT[name]), 4 if name == "ZImagePipeline" else 3
    ours = draw(name, f"cfg({scale}, interval=({between(name)}, inf))", **CUT[name])
    assert distance(ours, own) < 1e-5
    assert distance(draw(name), own) > 1e-6


@pytest.mark.parametrize("name", ["QwenImagePipeline", "FluxPipeline"])
def test_a_callback_that_ends_the_guidance_too_late(name):
    """Where the scale is read before the first step, it changes neither theirs nor ours."""
    own = draw(name)
    assert distance(draw(name, **called_back(end_guidance)), own) == 0
    ours = draw(name, entries()[name].guidance, **called_back(end_guidance))
    assert distance(ours, own) < 1e-5


@pytest.mark.parametrize("name", ["CogVideoXPipeline", "LTX2Pipeline"])
def test_a_callback_that_changes_the_scale_of_passes_that_go_on(name):
    """Both passes are made to the end. Theirs has scale 0 then; ours is that of the expression."""
    own = draw(name)
    assert distance(draw(name, **called_back(end_guidance)), own) > 1e-5
    ours = draw(name, entries()[name].guidance, **called_back(end_guidance))
    assert distance(ours, own) < 1e-5
