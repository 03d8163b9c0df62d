"""Diffusers' own pipeline tests, guided (`diffusers_suite`): where DIFFUSERS_CHECKOUT names a clone
of its repository.
"""

import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import diffusers_suite
import guidestar
from diffusers_suite import FAMILIES, compare, expression

CHECKOUT = os.environ.get("DIFFUSERS_CHECKOUT")


@pytest.mark.skipif(
    CHECKOUT is None, reason="DIFFUSERS_CHECKOUT names no clone of Diffusers' repository"
)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_passes_plain_passes_guided(family):
    found = compare(Path(str(CHECKOUT)), family)
    assert not found.broken and (found.passed or found.refused or found.plain)


def test_what_a_pipelines_arguments_ask_for():
    net = SimpleNamespace(config=SimpleNamespace(time_cond_proj_dim=None))
    scheduler = SimpleNamespace(config={"prediction_type": "epsilon"})
    pipe = SimpleNamespace(
        unet=net, scheduler=scheduler, config=SimpleNamespace(boundary_ratio=0.75)
    )
    ask = lambda **arguments: expression(pipe, arguments)
    assert (
        ask(guidance_scale=6.0) == "cfg(6.0)"
        and ask(guidance_scale=1.0) == "cond"
        and ask() == "uncond"
    )
    assert ask(class_labels=[1]) == "cond" and ask(max_guidance_scale=3.0) == "cfg(3.0)"
    assert ask(prior_guidance_scale=4.0, decoder_guidance_scale=4.0) == "cfg(4.0)"
    assert ask(guidance_scale=6.0, guidance_rescale=0.7) == "cfg(6.0) | rescale(0.7, space='eps')"
    assert ask(guidance_scale=6.0, image_guidance_scale=1.5) == "pix2pix(1.5, 6.0)"
    assert (
        ask(guidance_scale=6.0, guidance_scale_2=2.0)
        == "cfg(6.0, interval=(3.0, inf)) + cfg(2.0, interval=(0, 2.999997))"
    )
    assert (
        ask(true_cfg_scale=2.0, negative_prompt="mud", guidance_scale=3.5) == "cfg(2.0)"
        and ask(true_cfg_scale=2.0) == "cond"
    )
    named = lambda name, **arguments: expression(type(name, (SimpleNamespace,), {})(), arguments)
    assert named("ZImagePipeline", guidance_scale=5.0) == "cfg(6.0)"
    assert named("ZImagePipeline", guidance_scale=0.0) == "cond"
    assert named("FluxFillPipeline", guidance_scale=5.0) == "cond"
    renormed = "cfg(2.0) | rescale(1, space='velocity', along='last')"
    told = {"true_cfg_scale": 2.0, "negative_prompt": "mud"}
    assert named("QwenImagePipeline", **told) == renormed
    taken = {"max_sequence_length": 8, "guidance_scale": 4.0}
    klein = {**taken, "negative_prompt_embeds": None, "prompt": "a cat"}
    assert named("Flux2KleinPipeline", **klein) == "cfg(4.0)"  # it takes embeddings alone
    assert named("Flux2KleinKVPipeline", max_sequence_length=8, prompt="a cat") == "cond"
    assert named("Flux2Pipeline", **taken, prompt="a cat") == "cond"
    distilled = SimpleNamespace(config=SimpleNamespace(is_distilled=True))
    assert expression(distilled, klein) == "cond"
    net.config.time_cond_proj_dim = 8
    assert ask(guidance_scale=6.0) == "cond"


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        ({"guidance_scale": 4.0}, "cfg(4.0)"),
        ({"guidance_scale": 4.0, "use_original_formulation": True}, "cfg(5.0)"),
        ({"guidance_scale": 1.0}, "cond"),
    ],
)
def test_a_guider_has_the_scale_in_the_place_of_an_argument(settings, asked):
    """HunyuanVideo 1.5's and Motif's pipelines take a guider, and no scale."""
    from diffusers.guiders import AdaptiveProjectedGuidance, ClassifierFreeGuidance

    for guider in (ClassifierFreeGuidance, AdaptiveProjectedGuidance):
        assert expression(SimpleNamespace(guider=guider(**settings)), {"prompt": "a"}) == asked


@pytest.mark.parametrize(
    ("name", "scale", "asked"),
    [
        ("Kandinsky3Pipeline", 1.0, "cond"),
        ("Kandinsky3Pipeline", 1.5, "cfg(2.5)"),
        ("CosmosTextToWorldPipeline", 1.0, "cond"),
        ("CosmosTextToWorldPipeline", 7.0, "cfg(8.0)"),
        ("ZImagePipeline", 1.0, "cfg(2.0)"),
        ("ZImagePipeline", 0.0, "cond"),
    ],
)
def test_a_scale_that_counts_from_0_may_begin_at_1(name, scale, asked):
    """Kandinsky 3 and Cosmos write c + s(c − u), and make a negative pass for s > 1 alone."""
    import diffusers

    kind = getattr(diffusers, name)
    assert expression(kind.__new__(kind), {"guidance_scale": scale}) == asked
    own = type("Derived", (kind,), {})
    assert expression(own.__new__(own), {"guidance_scale": scale}) == asked


def test_a_test_that_fails_guided_alone_is_reported(tmp_path, monkeypatch):
    outcome = lambda kind, guided=1, why="": {"outcome": kind, "guided": guided, "why": why}
    plain = {
        "a": outcome("passed"),
        "b": outcome("passed"),
        "c": outcome("passed"),
        "d": outcome("failed"),
        "e": outcome("skipped"),
        "f": outcome("passed", 0),
    }
    guided = {
        **plain,
        "b": outcome("failed", why="off by 2"),
        "c": outcome("skipped", why="refused: no"),
        "f": outcome("passed", 0),
    }
    monkeypatch.setattr(
        diffusers_suite, "_run", lambda checkout, family, options, how: guided if how else plain
    )
    found = compare(tmp_path, "x")
    assert (found.passed, found.untouched, found.broken, found.refused) == (
        ["a"],
        ["f"],
        {"b": "off by 2"},
        {"c": "refused: no"},
    )
    assert list(found.plain) == ["d"] and found.skipped == ["e"]


def test_a_pipeline_is_guided_by_what_its_call_asks_for(monkeypatch):
    """And gets its own guidance back."""
    from helpers.pipelines import REQUEST, close, seeded, stable_diffusion

    pipe = stable_diffusion()
    kind, own = type(pipe), pipe(**REQUEST, generator=seeded(3, 4)).images
    asked = []
    monkeypatch.setattr(
        diffusers_suite,
        "expression",
        lambda pipe, arguments: asked.append(arguments["guidance_scale"]) or "cfg(5)",
    )
    monkeypatch.setattr(kind, "__call__", diffusers_suite._guided(kind.__call__))
    assert close(
        pipe(**{**REQUEST, "guidance_scale": 2.0}, generator=seeded(3, 4)).images, own
    ) and asked == [2.0]
    assert type(pipe) is kind


@pytest.mark.parametrize("layers", [["mid"], ["up", "down"]])
def test_a_pipelines_own_perturbed_pass_is_ours(monkeypatch, layers):
    """It would come on top, so it is in the expression, with the layers that the pipeline has."""
    from diffusers import StableDiffusionPAGPipeline
    from helpers.pipelines import REQUEST, close, seeded, stable_diffusion

    pipe, asked = stable_diffusion(StableDiffusionPAGPipeline), []
    pipe.set_pag_applied_layers(layers)
    kind, told = type(pipe), {**REQUEST, "pag_scale": 2.0}
    draw = lambda **more: pipe(**told | more, generator=seeded(3, 4)).images
    own, without = draw(), draw(pag_scale=0.0)
    processors = pipe.unet.attn_processors
    plain, monkeypatched = diffusers_suite.expression, diffusers_suite._guided(kind.__call__)
    write = lambda *given: asked.append(plain(*given)) or asked[-1]
    monkeypatch.setattr(diffusers_suite, "expression", write)
    monkeypatch.setattr(kind, "__call__", monkeypatched)
    assert close(draw(), own) and not close(own, without)
    assert all(place in asked[0] for place in layers) and "cfg" in asked[0]
    assert pipe.unet.attn_processors == processors
    assert close(draw(pag_scale=0.0), without) and "pag" not in asked[1]


def test_a_stage_of_a_guided_pipeline_is_not_guided_again(monkeypatch):
    """Stable Cascade's combined pipeline calls two others, whose classes are guided too."""
    import diffusers
    from helpers.zoo.table import entries

    entry = entries()["StableCascadeCombinedPipeline"]
    pipe = entry.make()
    own = entry.run(pipe)
    for stage in ("Combined", "Prior", "Decoder"):
        kind = getattr(diffusers, f"StableCascade{stage}Pipeline")
        monkeypatch.setattr(kind, "__call__", diffusers_suite._guided(kind.__call__))
    monkeypatch.setattr(diffusers_suite, "_count", [0])
    (found,) = entry.run(pipe)
    assert diffusers_suite._count == [1]
    torch.testing.assert_close(found, own[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("line", "outcome"),
    [
        ("the transformer has a cache (enable_cache), which", pytest.skip.Exception),
        (
            "P mixes 3 answers of its network, and which is which is not known",
            pytest.skip.Exception,
        ),
        ("the samples are not finite", ValueError),
    ],
)
def test_some_lines_refuse_in_the_call_and_other_errors_are_faults(monkeypatch, line, outcome):
    from helpers.pipelines import REQUEST, stable_diffusion

    def fail(self, *args, **kwargs):
        raise ValueError(line)

    pipe = stable_diffusion()
    kind = type(pipe)
    monkeypatch.setattr(
        guidestar, "guide", lambda pipe, guidance: type("K", (), {"__call__": fail})()
    )
    monkeypatch.setattr(kind, "__call__", diffusers_suite._guided(kind.__call__))
    with pytest.raises(outcome, match=re.escape(line)):
        pipe(**REQUEST)


def test_a_family_without_tests_fails_and_the_next_is_run(monkeypatch, capsys):
    results = {"y": {"a": {"outcome": "passed", "guided": 1, "why": ""}}}
    monkeypatch.setattr(
        diffusers_suite, "_run", lambda checkout, family, options, how: results.get(family)
    )
    assert diffusers_suite.main(["folder", "x", "y"]) == 1
    assert capsys.readouterr().out.splitlines()[1:] == [
        "x | no test of x was run",
        "y | 1 | 0 | 0 | 0 | 0 | 0",
    ]
    assert diffusers_suite.main(["folder", "y"]) == 0


def test_stand_ins_are_as_those_of_the_hub_where_pipelines_rely_on_it(tmp_path):
    """Lumina takes the mean over a text's tokens, and HiDream's test is for a Llama 16 wide."""
    from transformers import AutoConfig, AutoTokenizer

    found = diffusers_suite._stand_ins(tmp_path)
    gemma = AutoTokenizer.from_pretrained(found["hf-internal-testing/dummy-gemma"])
    llama = AutoConfig.from_pretrained(found["hf-internal-testing/tiny-random-LlamaForCausalLM"])
    assert gemma("").attention_mask == [1] and llama.hidden_size == 16


def test_tests_of_deprecated_pipelines_and_of_texts_run(monkeypatch):
    from diffusers.pipelines import pipeline_utils
    from diffusers.pipelines.omnigen import pipeline_omnigen
    from diffusers.pipelines.stable_cascade import StableCascadePriorPipeline

    own = pipeline_utils.DeprecatedPipelineMixin
    monkeypatch.setattr(pipeline_utils, "DeprecatedPipelineMixin", own)
    assert issubclass(StableCascadePriorPipeline, own)
    diffusers_suite._let_run()
    assert not issubclass(StableCascadePriorPipeline, pipeline_utils.DeprecatedPipelineMixin)
    assert issubclass(pipeline_utils.DeprecatedPipelineMixin, own)
    assert hasattr(pipeline_omnigen, "OmniGenMultiModalProcessor")
