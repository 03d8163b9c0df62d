"""What people do with a pipeline besides guiding it, in pipelines whose layout is learnt."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import guidestar
from helpers.zoo.base import distance
from helpers.zoo.table import entries

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

FAMILIES = {
    "QwenImagePipeline": 2,  # packed, two calls
    "ZImagePipeline": 2,  # lists
    "SkyReelsV2Pipeline": 1,  # a video, two calls
    "CogVideoXPipeline": 1,  # a video, halves of one call
    "SanaPipeline": 2,  # halves of one call
    "Lumina2Pipeline": 1,  # two calls, rescaled
    "MotifVideoPipeline": 1,  # with a guider of Diffusers
}
"""Pipelines, and how many pictures of each prompt they make of embeddings without guidestar."""
FAMILY = pytest.mark.parametrize("name", FAMILIES)


def twice(value: Any) -> Any:
    """Give a second prompt, which is another one: embeddings turned, masks as they are."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return torch.cat([value, value.flip(-1)])
    if isinstance(value, torch.Tensor):
        return torch.cat([value, value])
    return [*value, *(t.flip(-1) for t in value)] if isinstance(value, list) else value


def entry_of(name: str, change: Any = lambda given: given) -> Any:
    found = entries()[name]
    return replace(found, ask=lambda: change(found.ask()))


@FAMILY
def test_two_prompts_and_two_of_each(name):
    """Samples of seeds of their own."""
    each = FAMILIES[name]

    def change(given):
        generators = [torch.Generator().manual_seed(k) for k in range(2 * each)]
        more = {"num_images_per_prompt": each} if each > 1 else {}
        return {k: twice(v) for k, v in given.items()} | more | {"generator": generators}

    entry = entry_of(name, change)
    own = entry.run(entry.make())
    assert len(own[0]) == 2 * each
    assert all(distance([own[0][:1]], [own[0][k : k + 1]]) > 1e-2 for k in range(1, 2 * each))
    assert distance(entry.run(entry.make(), entry.guidance), own) < 1e-5
    assert distance(entry.run(entry.make(), "cond"), own) > 1e-4


@FAMILY
def test_the_last_guidance_counts_and_none_leaves_nothing(name):
    entry = entry_of(name)
    pipe = entry.make()
    own = entry.run(pipe)
    guidestar.guide(pipe, "cond")
    guidestar.guide(pipe, entry.guidance)
    assert distance(entry.run(pipe), own) < 1e-5
    guidestar.guide(pipe, None)
    assert distance(entry.run(pipe), own) == 0
    guidestar.guide(pipe, None)  # of a plain one, nothing changes
    assert distance(entry.run(pipe), own) == 0


def cast(value: Any) -> Any:
    real = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.bfloat16() if real else value


@FAMILY
def test_a_pipeline_in_bfloat16(name):
    """Both round: they differ by no more than either differs from float32."""

    def low(given):
        listed = lambda v: [cast(t) for t in v] if isinstance(v, list) else cast(v)
        return {k: listed(v) for k, v in given.items()}

    exact = entry_of(name)
    wanted = exact.run(exact.make())
    entry = entry_of(name, low)
    pipe = entry.make().to(torch.bfloat16)
    own, guided = entry.run(pipe), entry.run(pipe, entry.guidance)
    assert distance(guided, wanted) < max(2 * distance(own, wanted), 1e-2)


@pytest.mark.parametrize("scale", [20.0, 60.0])
@pytest.mark.parametrize("name", ["Lumina2Pipeline", "QwenImagePipeline"])
def test_a_rescaled_guidance_of_a_high_scale(name, scale):
    entry = replace(entries()[name], scale=dict.fromkeys(entries()[name].scale, scale))
    pipe = entry.make()
    own = entry.run(pipe)
    guided = entry.run(pipe, f"cfg({scale}) | rescale(1, space='velocity', along='last')")
    assert distance(guided, own) < 1e-4


@pytest.mark.parametrize("scale", [1.5, 5.0, 9.0])
@pytest.mark.parametrize("name", ["Lumina2Pipeline", "QwenImagePipeline"])
def test_a_rescaled_guidance_of_any_scale_in_bfloat16(name, scale):
    """The step that a layout is learnt by is so short that the rescaling leaves it."""
    tensors = lambda v: [cast(t) for t in v] if isinstance(v, list) else cast(v)
    entry = entry_of(name, lambda given: {k: tensors(v) for k, v in given.items()})
    entry = replace(entry, scale=dict.fromkeys(entry.scale, scale))
    pipe = entry.make().to(torch.bfloat16)
    own = entry.run(pipe)
    guided = entry.run(pipe, f"cfg({scale}) | rescale(1, space='velocity', along='last')")
    assert distance(guided, own) < 0.05
    assert distance(entry.run(pipe, "cond"), own) > distance(guided, own)


@pytest.mark.parametrize(
    "name",
    ["QwenImageImg2ImgPipeline", "ZImageImg2ImgPipeline", "ChromaImg2ImgPipeline"],
)
def test_from_a_picture_that_is_kept_in_part(name):
    """Of five steps, the last three."""
    entry = replace(entry_of(name, lambda given: given | {"strength": 0.6}), steps=5)
    pipe, calls = entry.make(), []
    handle = pipe.transformer.register_forward_hook(lambda *_: calls.append(1))
    own = entry.run(pipe)
    made = len(calls)
    guided = entry.run(pipe, entry.guidance)
    handle.remove()
    assert distance(guided, own) < 1e-5 and len(calls) == 2 * made
    assert distance(entry.run(pipe, "cond"), own) > 1e-4


@pytest.mark.parametrize("name", ["QwenImagePipeline", "SkyReelsV2Pipeline"])
def test_a_lora_that_is_loaded_after_it_was_guided(name):
    peft = pytest.importorskip("peft")
    entry = entry_of(name)
    pipe = entry.make()
    before = entry.run(pipe)
    guidestar.guide(pipe, entry.guidance)
    targets = ["to_q", "to_v"]
    pipe.transformer.add_adapter(peft.LoraConfig(r=2, target_modules=targets))
    generator = torch.Generator().manual_seed(0)
    for part, weight in pipe.transformer.named_parameters():
        if "lora" in part:
            weight.data = torch.randn(weight.shape, generator=generator) * 0.3
    guided = entry.run(pipe)
    guidestar.guide(pipe, None)
    own = entry.run(pipe)
    assert distance(guided, own) < 1e-5 and distance(own, before) > 1e-4
    pipe.transformer.disable_adapters()
    assert distance(entry.run(pipe), before) == 0
