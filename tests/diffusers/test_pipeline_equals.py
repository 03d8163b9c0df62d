"""Further numbers of pipelines' own guidance, and what they are as expressions of ours."""

from dataclasses import replace

import pytest

from helpers.zoo.base import distance
from helpers.zoo.more import ltx2
from helpers.zoo.table import entries

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def run(name, guidance=None, steps=4, **more):
    entry = entries()[name]
    told = entry.ask
    if name == "LTX2Pipeline":  # whose layers can be perturbed by its own code too
        entry = replace(entry, parts=lambda: ltx2(perturbed_attn=True))
    entry = replace(entry, ask=lambda: told() | more, steps=steps)
    return entry.run(entry.make(), guidance)


BLOCK = "transformer_blocks.0"
STG = f"pag(1.5, layers=('{BLOCK}.attn1', '{BLOCK}.audio_attn1'))"


@pytest.mark.parametrize(
    ("name", "theirs", "ours"),
    [
        (
            "LTX2Pipeline",
            {
                "stg_scale": 1.5,
                "audio_stg_scale": 1.5,
                "spatio_temporal_guidance_blocks": [0],
            },
            f"cfg(3) + {STG}",
        ),
        (
            "LTX2Pipeline",
            {
                "stg_scale": 1.5,
                "audio_stg_scale": 1.5,
                "spatio_temporal_guidance_blocks": [0],
            },
            "cfg(3) + stg(1.5, blocks=[0])",
        ),
        (
            "LTX2Pipeline",
            {"modality_scale": 2.5, "audio_modality_scale": 2.5},
            "cfg(3) + modality(2.5)",
        ),
        (  # all that it has, as it is by default but for the block
            "LTX2Pipeline",
            {
                "stg_scale": 1.0,
                "audio_stg_scale": 1.0,
                "spatio_temporal_guidance_blocks": [0],
                "modality_scale": 3.0,
                "audio_modality_scale": 3.0,
                "guidance_rescale": 0.7,
                "audio_guidance_rescale": 0.7,
            },
            "cfg(3) + stg(1, blocks=0) + modality(3) | rescale(0.7, space='x0')",
        ),
        (
            "LTX2Pipeline",
            {"guidance_rescale": 0.7, "audio_guidance_rescale": 0.7},
            "cfg(3) | rescale(0.7, space='x0')",
        ),
        # From the share c of the clean picture on it is not guided: where σ/α < (1 − c)/c.
        ("ZImagePipeline", {"cfg_truncation": 0.4}, "cfg(4, interval=(1.5, inf))"),
    ],
)
def test_their_numbers_are_an_expression(name, theirs, ours):
    own = run(name, **theirs)
    assert distance(run(name, ours), own) < 1e-5
    assert distance(run(name), own) > 1e-4  # they do something


@pytest.mark.parametrize("most", [1.0, 0.9])
def test_z_images_normalisation_is_a_largest_norm(most):
    """Its own code looks at the norm, so it is left out where ours stands."""
    name = "ZImagePipeline"
    own = run(name, cfg_normalization=most)
    ours = f"cfg(4) | rescale(1, space='velocity', along='norm', most={most})"
    assert distance(run(name, ours), own) < 1e-5
    assert distance(run(name), own) > 1e-4
    with pytest.raises(ValueError, match="reads the numbers of its network's answers"):
        run(name, ours, cfg_normalization=most)


LAST = "rescale(1, space='velocity', along='last')"


@pytest.mark.parametrize(
    ("name", "scale", "ours"),
    [
        ("QwenImagePipeline", "true_cfg_scale", f"cfg(4.5) | {LAST}"),
        ("ChromaPipeline", "guidance_scale", "cfg(4.5)"),
        ("HiDreamImagePipeline", "guidance_scale", "cfg(4.5)"),
        ("Flux2KleinPipeline", "guidance_scale", "cfg(4.5)"),
    ],
)
def test_their_scale_is_ours_whatever_theirs_is(name, scale, ours):
    """Qwen-Image's with its rescaling of tokens, HiDream's with its sign turned."""
    own = run(name, steps=2, **{scale: 4.5})
    assert distance(run(name, ours, steps=2, **{scale: 2.0}), own) < 1e-5
    assert distance(run(name, steps=2, **{scale: 2.0}), own) > 1e-4


def test_lumina2s_truncation_is_an_interval():
    """Of four steps the first two are guided; their noise ratios are at least 1."""
    plain = {"cfg_normalization": False}
    own = run("Lumina2Pipeline", **plain, cfg_trunc_ratio=0.5)
    entry = entries()["Lumina2Pipeline"]
    scheduler = entry.make().scheduler
    scheduler.set_timesteps(4)
    ratios = [float(s / (1 - s)) if s < 1 else float("inf") for s in scheduler.sigmas[:4]]
    between = (ratios[1] + ratios[2]) / 2
    ours = run("Lumina2Pipeline", f"cfg(3, interval=({between}, inf))", **plain)
    assert distance(ours, own) < 1e-5
    assert distance(run("Lumina2Pipeline", **plain), own) > 1e-4


@pytest.mark.parametrize(("name", "block"), [("WanPipeline", "blocks.0"), ("LTXPipeline", BLOCK)])
def test_a_skipped_block_is_pushed_away_from(name, block):
    """c + p(c − c₋), with the block left out of c₋, written into the network."""
    entry = entries()[name]
    pipe = entry.make()
    net, p = pipe.transformer, 2.0
    module, plain = net.get_submodule(block), net.forward

    def forward(*args, **kwargs):
        c = plain(*args, **kwargs)[0]
        module.forward = lambda hidden_states, *_, **__: hidden_states
        without = plain(*args, **kwargs)[0]
        del module.forward
        return (c + p * (c - without),)

    guided = entry.run(pipe, f"cond + slg({p}, layers='{block}')")
    alone = replace(entry, scale={"guidance_scale": 1.0})
    assert distance(alone.run(pipe), guided) > 1e-3
    net.forward = forward
    assert distance(guided, alone.run(pipe)) < 1e-5


@pytest.mark.parametrize(
    ("name", "block"), [("WanPipeline", "blocks.0"), ("ChromaPipeline", BLOCK)]
)
def test_a_block_skipped_in_the_negative_pass_alone(name, block):
    """u₋ + s(c − u₋), as nodes for Wan have it: the block is left out of each second call."""
    entry = entries()[name]
    pipe = entry.make()
    guided = entry.run(pipe, f"cfg(3) + slg(2, of='neg', layers='{block}')")
    net, calls = pipe.transformer, []
    module, plain = net.get_submodule(block), net.forward

    def skip(hidden_states, encoder_hidden_states=None, *_, **__):
        return hidden_states if name == "WanPipeline" else (encoder_hidden_states, hidden_states)

    def forward(*args, **kwargs):
        calls.append(len(calls) % 2)
        if not calls[-1]:
            return plain(*args, **kwargs)
        module.forward = skip
        out = plain(*args, **kwargs)
        del module.forward
        return out

    without = entry.run(entry.make())
    net.forward = forward
    own = entry.run(pipe)
    assert sum(calls) * 2 == len(calls) > 0
    assert distance(own, without) > 1e-3
    assert distance(guided, own) < 1e-5
