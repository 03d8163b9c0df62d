"""The transformer of motions against its definition in plain torch, and lengths as conditions."""

import inspect
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from guidestar import Condition, Flow, Guided, Network, uniform
from guidestar.core.perturbation import layers_of
from guidestar.diffusers.read.network import Adapter
from guidestar.networks.condition_encoders import ClassEncoder, VectorEncoder
from guidestar.networks.conditions import Conditions
from guidestar.networks.lengths import LengthEncoder
from guidestar.networks.motion import MotionTransformer, sines

B, T, C, WIDTH, HEADS, TEXT = 3, 10, 7, 16, 4, 5


def network(**changes):
    torch.manual_seed(0)
    sizes = {"channels": C, "length": T, "width": WIDTH, "depth": 2, "heads": HEADS}
    return MotionTransformer(**{**sizes, **changes}).eval()


def by_hand(net, x, t, *, label=None, text=None, mask=None, changed=lambda q: q):
    """The encoder written out, token by token, with a softmax over the frames that count."""
    heads = WIDTH // HEADS

    def place(p):
        out = torch.zeros(WIDTH)
        for k in range(WIDTH // 2):
            angle = p / 10_000 ** (2 * k / WIDTH)
            out[2 * k], out[2 * k + 1] = math.sin(angle), math.cos(angle)
        return out

    rows = []
    for b in range(len(x)):
        z = net.time[2](F.silu(net.time[0](place(float(t[b])))))
        z = z if label is None else z + label[b]
        z = z if text is None else z + F.linear(text[b, 0], net.text.weight, net.text.bias)
        tokens = torch.stack([z, *net.inward(x[b])])
        tokens = tokens + torch.stack([place(k) for k in range(T + 1)])
        kept = [True, *(mask[b].bool().tolist() if mask is not None else [True] * T)]
        for number, block in enumerate(net.blocks):
            a = block.attention
            q, (k, v) = a.query(tokens), a.key_value(tokens).chunk(2, -1)
            q = changed(q) if number == 1 else q
            mixed = []
            for h in range(HEADS):
                part = slice(h * heads, (h + 1) * heads)
                scores = q[:, part] @ k[:, part].T / math.sqrt(heads)
                scores[:, [not keep for keep in kept]] = -math.inf
                mixed.append(scores.softmax(-1) @ v[:, part])
            tokens = block.norm1(tokens + a.out(torch.cat(mixed, -1)))
            inner = block.linear2(F.gelu(block.linear1(tokens)))
            tokens = block.norm2(tokens + inner)
        rows.append(net.outward(tokens[1:]))
    return torch.stack(rows)


@torch.no_grad()
def test_the_network_is_its_definition():
    x, t = torch.randn(B, T, C), torch.tensor([0.0, 7.5, 999.0])
    label, text = torch.randn(B, WIDTH), torch.randn(B, 1, TEXT)
    mask = (torch.arange(T) < torch.tensor([10, 6, 1])[:, None]).float()
    net = network(text_width=TEXT)
    close = lambda a, b: torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)
    close(net(x, t), by_hand(net, x, t))
    found = net(x, t, class_labels=label, encoder_hidden_states=text, frame_mask=mask)
    close(found, by_hand(net, x, t, label=label, text=text, mask=mask))
    assert not torch.allclose(net(x, t), net(x, t, frame_mask=mask))
    close(
        sines(torch.tensor([2.0]), 4)[0],
        torch.tensor([2.0, 2.0, 0.02, 0.02]).sin() * torch.tensor([1.0, 0, 1, 0])
        + torch.tensor([2.0, 2.0, 0.02, 0.02]).cos() * torch.tensor([0.0, 1, 0, 1]),
    )


@torch.no_grad()
def test_padding_changes_no_frame_of_the_motion():
    net, x, t = network(), torch.randn(1, T, C), torch.tensor([3.0])
    mask = (torch.arange(T) < 6).float()[None]
    other = torch.where(mask[..., None].bool(), x, torch.randn_like(x))
    one, two = net(x, t, frame_mask=mask), net(other, t, frame_mask=mask)
    torch.testing.assert_close(one[:, :6], two[:, :6])
    assert not torch.allclose(one[:, 6:], two[:, 6:])


@torch.no_grad()
def test_a_block_is_torchs_encoder_layer():
    net = network(inner=24)
    block, layer = (
        net.blocks[0],
        nn.TransformerEncoderLayer(WIDTH, HEADS, 24, activation="gelu", batch_first=True),
    )
    own = {k: v for k, v in block.state_dict().items() if not k.startswith("attention.")}
    a = block.attention
    own["self_attn.in_proj_weight"] = torch.cat([a.query.weight, a.key_value.weight])
    own["self_attn.in_proj_bias"] = torch.cat([a.query.bias, a.key_value.bias])
    own |= {"self_attn.out_proj.weight": a.out.weight, "self_attn.out_proj.bias": a.out.bias}
    layer.load_state_dict(own)
    x = torch.randn(B, T, WIDTH)
    torch.testing.assert_close(block(x), layer.eval()(x), atol=1e-5, rtol=1e-4)


def test_sizes_that_do_not_fit():
    with pytest.raises(
        ValueError, match=r"the width 18 must be even and a multiple of heads \(4\)"
    ):
        network(width=18)
    assert network().config["inner"] is None and network().blocks[0].linear1.out_features == 32
    defaults = inspect.signature(MotionTransformer.__init__).parameters
    assert {n: defaults[n].default for n in ("width", "depth", "heads", "dropout")} == {
        **{"width": 512, "depth": 8},
        **{"heads": 4, "dropout": 0.1},
    }


def smooth(q):
    """Queries of frames blurred by a Gaussian of deviation 0.5 cut off at two frames, mirrored at
    the ends; that of the token before them stays.
    """
    kernel = torch.exp(-0.5 * (torch.arange(-2.0, 3.0) / 0.5) ** 2)
    padded = torch.cat([q[[3, 2]], q[1:], q[[-2, -3]]])
    blurred = sum(w * padded[i : i + len(q) - 1] for i, w in enumerate(kernel / kernel.sum()))
    return torch.cat([q[:1], blurred])


@torch.no_grad()
@pytest.mark.parametrize(
    ("term", "changed"),
    [
        ("seg(2)", lambda q: torch.cat([q[:1], q[1:].mean(0).expand(T, -1)])),
        ("seg(2, sigma=0.5)", smooth),
    ],
)
def test_queries_of_frames_are_blurred(term, changed):
    net, x, label = network(), torch.randn(B, T, C), torch.randn(B, WIDTH)
    step = uniform(Flow(), 10).step(4)
    cond = Condition(class_labels=label)
    guided = Guided(f"cond + {term}", Network(Adapter(net), predicts="x0"), cond=cond)
    t = torch.full((B,), float(step.t.t))
    c, p = (by_hand(net, x, t, label=label, **how) for how in ({}, {"changed": changed}))
    assert (p - c).abs().max() > 1e-4
    torch.testing.assert_close(guided(x, step)[0].x0, c + 2 * (c - p), atol=5e-5, rtol=1e-4)


def test_its_layers_can_be_perturbed():
    found = layers_of(network())
    assert found.find("attention") == ("blocks.1.attention",)
    assert found.find("block") == ("blocks.1",)


def length():
    return LengthEncoder(20, 4)


def test_lengths_are_masks_and_read_as_numbers_of_frames():
    encoder = length()
    assert encoder.encode(["20", 4, ""])["frame_mask"].sum(1).tolist() == [20, 4, 20]
    assert encoder.encode([5])["frame_mask"][0].tolist() == [1.0] * 5 + [0.0] * 15
    assert encoder.null(2)["frame_mask"].shape == (2, 20) and encoder.null(2)["frame_mask"].all()
    for wrong in ("21", "3", "-5", "a", "6.5"):
        with pytest.raises(
            ValueError, match=f"'{wrong}' should be a whole number of frames from 4"
        ):
            encoder.parse(wrong)


def test_a_length_is_written_after_the_only_other_condition():
    both = Conditions({"action": ClassEncoder(("walk", "run"), 8), "length": length()})
    assert both.classes == ("walk", "run")
    assert both.parse("run") == both.parse("action=run") == {"action": 1, "length": 20}
    assert (
        both.parse("run; length=7")
        == both.parse("action=run; length=7")
        == {
            "action": 1,
            "length": 7,
        }
    )
    assert both.parse("; length=7") == both.parse("length=7") == {"action": 2, "length": 7}
    assert both.parse("") == {"action": 2, "length": 20}
    assert both.index("run; length=7") == 1
    assert both.canonical("1; length=7") == "run; length=7" and both.canonical("0") == "walk"
    assert both.canonical("; length=7") == "; length=7" and both.canonical("") == ""
    for wrong, words in (
        ("crawl; length=7", "unknown class 'crawl'"),
        ("run; length=30", "the length '30' should be .* from 4 to 20, the longest"),
        ("run; speed=3", "unknown class 'run; speed=3'"),
    ):
        with pytest.raises(ValueError, match=words):
            both.parse(wrong)
    assert both.encode(["run; length=7"])["frame_mask"].sum() == 7
    three = Conditions(
        {"action": ClassEncoder(("walk",), 8), "pace": VectorEncoder(1, 8), "length": length()}
    )
    assert three.classes == () and three.canonical("action=walk") == "action=walk"
    found = three.parse("action=walk; pace=2; length=9")
    assert found == {"action": 0, "pace": [2.0], "length": 9}
    assert three.parse("action=walk")["length"] == 20
    with pytest.raises(ValueError, match=r"condition 'action=walk; 2' should be written as"):
        three.parse("action=walk; 2")
    assert three.split_length("pace=1; length=9") == ("pace=1", "9")


def test_a_length_alone_is_a_number_or_has_its_name():
    alone = Conditions({"length": length()})
    assert alone.parse("7") == alone.parse("length=7") == {"length": 7}
    assert alone.parse("") == {"length": 20}


def test_a_text_with_a_length_is_a_prompt():
    text = nn.Module()
    text.tokenizer = "tokenizer"  # type: ignore[assignment]
    parts = {"text": text, "length": length()}
    assert Conditions(parts).tokenizer == "tokenizer"
    for others in ({"text": text}, {**parts, "pace": VectorEncoder(1, 8)}, {"length": length()}):
        assert not hasattr(Conditions(others), "tokenizer")
    assert not hasattr(Conditions({"pace": VectorEncoder(1, 8), "length": length()}), "tokenizer")


def test_the_only_part_keeps_its_length():
    both = Conditions({"action": ClassEncoder(("walk", "run"), 8), "length": length()})
    assert both.only("run; length=7", "action") == "action=run"
    assert both.only("run; length=7", "length") == "length=7"
