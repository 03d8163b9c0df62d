"""Terms and levels in pipelines whose layout is learnt."""

from dataclasses import dataclass, replace

import pytest
import torch

import guidestar
from guidestar import Post, cond
from helpers.zoo.base import distance
from helpers.zoo.more import WAN
from helpers.zoo.table import entries

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@dataclass(frozen=True)
class Record(Post):
    """Writes down the clean estimate at each evaluation."""

    seen: list

    name = "record"

    def apply(self, prediction, live):
        self.seen.append(prediction.x0.clone())
        return prediction


@pytest.mark.parametrize("name", ["ZImagePipeline", "MochiPipeline", "SanaPipeline"])
def test_a_clean_estimate_is_the_schedulers(name):
    """Of a sign that is turned, of a time that runs to the data, and packed in calls of lists."""
    entry, seen, theirs = entries()[name], [], []
    pipe = entry.make()
    scheduler = pipe.scheduler
    step = type(scheduler).step

    def stepped(self, model_output, timestep, sample, **more):
        out, x = model_output, sample
        sigma = float(self.sigmas[self.step_index if self.step_index is not None else 0])
        inverted = self.config.get("invert_sigmas", False)
        # x = (1 − s)x0 + sε: the flow is ε − x0, or its negative at the share s of the data
        theirs.append(x.double() + (1 - sigma if inverted else -sigma) * out.double())
        return step(self, out, timestep, x, **more)

    kind = type("Watched", (type(scheduler),), {"step": stepped})
    object.__setattr__(scheduler, "__class__", kind)
    entry.run(pipe, cond | Record(seen))
    assert len(seen) == len(theirs) == 2
    for ours, own in zip(seen, theirs, strict=True):
        assert float((ours - own).abs().max()) < 1e-5 * float(own.abs().max())


def test_an_interval_saves_passes():
    entry, calls = entries()["ChromaPipeline"], []
    pipe = entry.make()
    handle = pipe.transformer.register_forward_hook(lambda *_: calls.append(1))
    whole = entry.run(pipe, "cfg(3)")
    assert len(calls) == 4
    calls.clear()
    later = entry.run(pipe, "cfg(3, interval=(2, inf))")  # the first step of two
    handle.remove()
    assert len(calls) == 3 and distance(later, whole) > 1e-4


@pytest.mark.parametrize(
    ("name", "expression"),
    [
        ("ZImagePipeline", "apg(4)"),
        ("LTX2Pipeline", "apg(4)"),
        ("QwenImagePipeline", "icg(2)"),
        ("CogVideoXPipeline", "cfg_zero(3)"),
        ("SanaPipeline", "cfg(3) | threshold(0.9)"),
    ],
)
def test_other_terms(name, expression):
    entry = entries()[name]
    pipe = entry.make()
    guided, own = entry.run(pipe, expression), entry.run(pipe)
    assert distance(guided, own) > 1e-3


def test_a_gradient_through_the_network():
    """Of log p = −|x0|², by the scale: it lowers the size of the picture."""

    class Dark:
        def log_prob(self, x, level, target):
            return -(x.double() ** 2).flatten(1).sum(1)

    entry = entries()["SanaPipeline"]
    pipe = entry.make()
    plain, sizes = entry.run(pipe, "cond")[0], []
    for scale in (1e-5, 1e-4):
        term = f"cond + classifier({scale}, target=0, through='cond')"
        guidestar.guide(pipe, term, classifiers={"classifier": Dark()})
        sizes.append(float(entry.run(pipe)[0].norm()))
        guidestar.guide(pipe, None)
    assert sizes[1] < sizes[0] < float(plain.norm())


def test_what_is_not_known_is_refused():
    entry = entries()["ZImagePipeline"]
    pipe = entry.make()
    for expression, line in (
        ("cfg(3, negative='mud')", "prompts within an expression are not supported"),
        ("tsg(2)", "so its time cannot be changed"),
    ):
        with pytest.raises(ValueError, match=line):
            entry.run(pipe, expression)
    four = entries()["LTX2Pipeline"]
    own = four.make()
    with torch.no_grad(), pytest.raises(ValueError, match=r"mixes 3 answers.*stg_scale=0"):
        guidestar.guide(own, "cfg(3)")(**four.ask() | {"stg_scale": 1.0, "guidance_scale": 3.0})


@pytest.mark.parametrize("name", ["WanPipeline", "HunyuanVideoPipeline"])
def test_a_cache_of_the_network_is_refused(name):
    from diffusers import FirstBlockCacheConfig

    entry = entries()[name]
    if name == "WanPipeline":  # a cache takes two blocks
        entry = replace(entry, parts=lambda: WAN(num_layers=2))
    pipe = entry.make()
    plain = entry.run(pipe, "cfg(3)")
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(
        ValueError, match=r"has a cache \(enable_cache\).*pipe\.transformer\.disable"
    ):
        entry.run(pipe, "cfg(3)")
    pipe.transformer.disable_cache()
    assert distance(entry.run(pipe, "cfg(3)"), plain) == 0


def test_no_negative_is_said():
    entry = entries()["QwenImagePipeline"]
    pipe = entry.make()
    alone = {k: v for k, v in entry.ask().items() if "negative" not in k}
    guidestar.guide(pipe, "cfg(3)")
    with (
        torch.no_grad(),
        pytest.raises(ValueError, match=r"cfg needs the negative pass.*negative_"),
    ):
        pipe(**alone, num_inference_steps=2, output_type="latent")
