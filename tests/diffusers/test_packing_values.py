"""How samples of pipelines are packed, and what lies beside a pipeline, value by value
(`diffusers/guide/packing.py`, `beside.py`, `classes.py`).
"""

import copyreg
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from guidestar.core.forms import CHANNELS_LAST, PLAIN
from guidestar.diffusers.guide import beside, classes, pipelines
from guidestar.diffusers.guide.packing import FRAMES_FIRST, Packings
from guidestar.diffusers.guide.traced import Tape


def kind(name, **more) -> Any:
    return type(name, (SimpleNamespace,), more)()


class Packing(SimpleNamespace):
    """Packs pictures by 2×2, and videos with their frames first."""

    @staticmethod
    def _pack_latents(latents, batch_size, num_channels_latents, height, width):
        x = latents.view(batch_size, num_channels_latents, height // 2, 2, width // 2, 2)
        return x.permute(0, 2, 4, 1, 3, 5).reshape(batch_size, -1, num_channels_latents * 4)

    @staticmethod
    def _pack_video_latents(latents, num_channels_latents=None):
        return latents.flatten(3).flatten(1, 2)

    @staticmethod
    def _pack_doubled_latents(latents):
        return torch.cat([latents, latents], 1)

    @staticmethod
    def _pack_text(text):
        return text

    @staticmethod
    def _pack_latents_of(names, latents=None):
        return names


def test_orders_that_are_known_by_name():
    x = torch.zeros(2, 3, 4)
    for name, form in (("CogVideoXPipeline", FRAMES_FIRST), ("AnyFlowPipeline", FRAMES_FIRST),
                       ("Kandinsky5T2V", CHANNELS_LAST), ("LongCatAudioPipe", CHANNELS_LAST),
                       ("StableAudioPipeline", PLAIN)):  # fmt: skip
        assert Packings(kind(name)).form(x) is form
    other = Packings(kind("Other"))
    assert other.order is None and other.form(torch.zeros(2, 3, 4, 5)) is PLAIN
    for form in (other.form(x).open, other.form(x).close):
        with pytest.raises(ValueError, match=r"the samples of Other are \[2, 3, 4\] here, and"):
            form(x)
    y = torch.arange(24.0).view(1, 2, 3, 4)
    assert torch.equal(FRAMES_FIRST.open(y), y.transpose(1, 2))
    assert torch.equal(FRAMES_FIRST.close(y), y.transpose(1, 2))


def test_what_a_pipeline_packs_is_unpacked():
    pipe: Any = Packing()
    made = Packings(pipe)
    x = torch.randn(2, 3, 4, 6)
    with made.noted():
        tokens = pipe._pack_latents(x, 2, 3, 4, 6)
    assert not vars(pipe) and list(made.found) == [(6, 12)]
    assert torch.equal(tokens, Packing._pack_latents(x, 2, 3, 4, 6))
    form = made.form(tokens)
    assert torch.equal(form.open(tokens), x) and torch.equal(form.close(x), tokens)
    wide = torch.randn(2, 3, 6, 4)
    with made.noted():
        pipe._pack_latents(wide, 2, 3, 6, 4)
    with pytest.raises(ValueError, match="which of them are channels"):
        made.form(tokens).open(tokens)  # two shapes are packed alike
    assert list(made.found[(6, 12)]) == [(3, 4, 6), (3, 6, 4)]
    by_name = Packings(pipe)
    with by_name.noted():
        pipe._pack_latents(width=6, height=4, num_channels_latents=3, batch_size=2, latents=x)
    assert torch.equal(by_name.form(tokens).open(tokens), x)


def test_frames_that_come_first_are_put_behind_the_channels():
    pipe: Any = Packing()
    for channels, swapped in ((3, True), (2, False), (None, False)):
        made = Packings(pipe)
        x = torch.randn(1, 2, 3, 4, 5)  # frames, or channels, first
        with made.noted():
            tokens = pipe._pack_video_latents(x, channels)
        form = made.form(tokens)
        wanted = x.transpose(1, 2) if swapped else x
        assert torch.equal(form.open(tokens), wanted)
        assert torch.equal(form.close(wanted), tokens)


def test_only_orders_are_noted():
    pipe: Any = Packing()
    kept = lambda latents: latents
    pipe._pack_latents = kept
    made = Packings(pipe)
    with made.noted():
        assert pipe._pack_doubled_latents(torch.ones(1, 2, 3)).shape == (1, 4, 3)
        assert pipe._pack_text("text") == "text"
        assert pipe._pack_latents_of("names", torch.ones(1, 2, 3)) == "names"
        assert "_pack_text" not in vars(pipe)
        answer = Tape("Pipe").stand_in(torch.empty(1, 2, 3, device="meta"), torch.device("cpu"))
        pipe._pack_latents(answer)
        assert made.found == {}
        pipe._pack_latents(torch.ones(1, 2, 3))
        assert list(made.found) == [(2, 3)]
    assert vars(pipe) == {"_pack_latents": kept}
    with pytest.raises(RuntimeError, match="x"), made.noted():
        raise RuntimeError("x")
    assert vars(pipe) == {"_pack_latents": kept}


# --- beside a pipeline ---


def test_devices_that_are_one():
    device = torch.device
    for a, b, same in (
        ("cpu", "cpu", True), ("cuda:0", "cuda", True), ("cuda", "cuda:1", True),
        ("cuda:0", "cuda:1", False), ("cuda:1", "cuda:1", True), ("cpu", "cuda", False),
    ):  # fmt: skip
        assert beside._same(device(a), device(b)) is same


def test_what_is_away_and_stays_there():
    cpu, away = torch.device("cpu"), nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1, device="meta"))
    assert beside._find_away(away, cpu) == torch.device("meta")
    assert beside._find_away(away[0], cpu) is None
    for hook in ("_hf_hook", "_diffusers_hook"):
        moved = nn.Sequential(nn.Linear(1, 1, device="meta"))
        setattr(moved[0], hook, object())
        assert beside._find_away(moved, cpu) is None
    inner, other = nn.Linear(1, 1), nn.Linear(2, 2)
    scored = SimpleNamespace(log_prob=1, net=inner)
    held = SimpleNamespace(a=scored, b=SimpleNamespace(net=other), c=other)
    assert list(beside._modules_of(held)) == [inner, other]
    assert list(beside._modules_of(print)) == [] and list(beside._modules_of(inner)) == [inner]
    beside.check_classifiers({"c": held, "f": print}, cpu)
    scored.net = away
    with pytest.raises(ValueError, match="the classifier 'c' is on meta, but the pipeline runs on"):
        beside.check_classifiers({"c": held}, cpu)


def test_networks_are_of_one_type_and_place():
    main, cpu = nn.Linear(1, 1), torch.device("cpu")
    beside.check_nets({"weak": nn.Linear(1, 1)}, main, cpu)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'weak' is in float64, but the pipeline's is in float32"):
        beside.check_nets({"weak": nn.Linear(1, 1).double()}, main, cpu)  # type: ignore[arg-type]


# --- classes ---


class Plain:
    """A pipeline."""

    def __init__(self):
        self.value = 1

    @property
    def components(self):
        return {"a": self.value}

    def save_pretrained(self, folder, **more):
        return folder, more

    def __call__(self):
        return "plain"


def test_a_guided_pipeline_passes_for_its_own():
    made: Any = classes.guided_kind(Plain, lambda self: "guided", "wanted")
    assert classes.plain_kind(made) is Plain and classes.plain_kind(Plain) is Plain
    pipe = classes.become(Plain(), made)
    assert pipe() == "guided" and pipe.value == 1 and made.__name__ == "Plain"
    with pytest.warns(UserWarning, match="is guided by guidestar, but a pipeline made of its"):
        assert pipe.components == {"a": 1}
    with pytest.warns(UserWarning, match="this Plain is guided by guidestar, but its folder is"):
        assert pipe.save_pretrained("f", b=2) == ("f", {"b": 2})
    for protocol in (0, 1, 2, 4):
        again, (plain, wanted, make, rest), state, *_ = pipe.__reduce_ex__(protocol)
        assert (plain, wanted, state, rest) == (Plain, "wanted", {"value": 1}, ())
        assert make is copyreg.__newobj__ and again is pipelines.guided_again  # type: ignore[attr-defined]


def test_a_network_is_answered_within_a_context_alone():
    net, asked = nn.Linear(1, 1), []
    run = lambda *given: asked.append(given) or "answer"
    x = torch.ones(1, 1)
    with classes.answered({"a": net, "b": net}, run):  # type: ignore[dict-item]
        assert net(x, y=2) == "answer"
        plain: Any = classes.as_it_is(net, {"input": x})  # type: ignore[arg-type]
        assert torch.equal(plain, net.weight + net.bias)
    assert len(asked) == 1 and asked[0][0] is net and asked[0][1:] == ((x,), {"y": 2})
    assert torch.equal(net(x), net.weight + net.bias)
