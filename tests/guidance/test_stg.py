"""The guidances that LTX's users know, against their formulas in plain torch."""

import pytest
import torch
from torch.nn import functional as F

from guidestar import modality, parse, stg
from guidestar.core.perturbation import Rows, layers_of
from helpers.scenes import PLACES, scenes
from helpers.toys import COND, NEGATIVE, col, toy
from helpers.zoo.base import draw
from helpers.zoo.more import ltx2
from helpers.zoo.videos import ltx


def unattended(scene, c=COND):
    """The toy whose layer returns the values: its condition moves by half the mean square."""
    h = (scene.x / (scene.a**2 + scene.s**2).sqrt()).flatten(1)[..., None]
    plain = F.scaled_dot_product_attention(3 * h, h, 2 * h)
    return toy(scene.x, scene.step.t, c + (2 * h - plain).square().mean((1, 2)) / 2)


@pytest.mark.parametrize("place", PLACES)
def test_stg_everywhere(place):
    for scene in scenes(place):
        p = unattended(scene)
        scene.check("stg(1)", scene.c + (scene.c - p))
        scene.check("cfg(3) + stg(2)", scene.n + 3 * (scene.c - scene.n) + 2 * (scene.c - p))
        n = unattended(scene, NEGATIVE)
        scene.check("stg(2, of='neg')", scene.c + 2 * (scene.n - n))


@pytest.mark.parametrize("place", PLACES)
def test_modality_everywhere(place):
    """Without the exchange, the toy's condition is lower by a quarter. A scale of 1 is none."""
    for scene in scenes(place):
        p = scene.d(COND - 0.25)
        scene.check("modality(3)", scene.c + 2 * (scene.c - p))
        scene.check("modality(1)", scene.c)
        scales = col(torch.tensor([2.0, 0, -1]), scene.x)
        scene.check("modality([3, 1, 0])", scene.c + scales * (scene.c - p))
        n = scene.d(NEGATIVE - 0.25)
        scene.check("modality(3, of='neg')", scene.c + 2 * (scene.n - n))


def test_arguments():
    assert str(parse("stg(1, blocks=[3, 5])")) == "stg(1, blocks=[3, 5])"
    assert stg(1, blocks=3).change() == stg(1, blocks=[3]).change()
    for wrong, line in (
        ({"blocks": [-1]}, "counted from 0, but one is -1"),
        ({"blocks": 2, "layers": "a"}, "give blocks or layers, not both"),
        ({"blocks": "x"}, "blocks must be a whole number or a list of whole numbers, not 'x'"),
        ({"blocks": [1.5]}, "blocks must be"),
    ):
        with pytest.raises(ValueError, match=f"stg: .*{line}"):
            stg(1, **wrong)


def names(term, net):
    """The layers that a term's perturbation changes in a network."""
    found = []

    class Layers(type(layers_of(net))):
        def attending(self, names, attend, rows=None):
            found.extend(self.find("attention", names))
            return super().attending(names, attend, rows)

    layers = layers_of(net)
    layers.__class__ = Layers
    holder = type("Holder", (), {"layers": lambda self: layers})()
    with term.change()(holder):
        pass
    return found


def test_blocks_are_those_of_the_network():
    """All self-attention of a block, of video and sound; by default LTX's own, or the middle."""
    two = ltx2()["transformer"]
    both = lambda k: [f"transformer_blocks.{k}.attn1", f"transformer_blocks.{k}.audio_attn1"]
    assert names(stg(1, blocks=0), two) == both(0)
    assert names(stg(1), two) == both(len(two.transformer_blocks) // 2)
    deep = ltx(num_layers=20)
    assert names(stg(1), deep) == ["transformer_blocks.19.attn1"]
    assert names(stg(1, blocks=[3, 7]), deep) == [f"transformer_blocks.{k}.attn1" for k in (3, 7)]
    assert names(stg(1), ltx(num_layers=3)) == ["transformer_blocks.1.attn1"]
    with pytest.raises(ValueError, match="no self-attention in block 20; its blocks are 0 to 19"):
        names(stg(1, blocks=20), deep)


def test_only_video_with_sound_has_an_exchange():
    layers = layers_of(ltx(num_layers=1))
    with (
        pytest.raises(ValueError, match="has no layer of attention between video and sound"),
        modality(3).change()(type("Holder", (), {"layers": lambda self: layers})()),
    ):
        pass


def test_silence_is_of_its_rows():
    layers = layers_of(ltx2()["transformer"])
    name = "transformer_blocks.0.audio_to_video_attn"
    assert layers.find("exchange") == tuple(
        f"transformer_blocks.{k}.{kind}_attn"
        for k in range(len(layers.net.transformer_blocks))
        for kind in ("audio_to_video", "video_to_audio")
    )
    module = layers.net.get_submodule(name)
    width = module.to_q.in_features, module.to_k.in_features
    video, sound = draw(3, 4, width[0]), draw(3, 2, width[1])
    plain = module(video, sound)
    with layers.silencing([name], Rows(1, 2, 3)):
        quiet = module(video, sound)
    assert torch.equal(quiet[0], plain[0]) and torch.equal(quiet[2], plain[2])
    assert float(quiet[1].abs().max()) == 0 < float(plain[1].abs().max())
    with layers.silencing([name]):
        assert float(module(video, sound).abs().max()) == 0
    assert torch.equal(module(video, sound), plain)
