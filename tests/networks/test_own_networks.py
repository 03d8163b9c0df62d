"""Our own networks against their formulas in plain torch, from their weights by name."""

import math
from typing import Any

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn
from torch.nn import functional as F

from guidestar.core.levels import Level
from guidestar.networks.calibrated_heads import temperature_at
from guidestar.networks.classifier import Classifier
from guidestar.networks.cpu_fastpath import lean
from guidestar.networks.from_config import from_diffusers
from guidestar.networks.sequence import SequenceTransformer
from guidestar.networks.sequence_classifier import SequenceClassifier

F64 = torch.float64
CLASSES = ("a", "b", "c")


def near(found, expected):
    """Equal, but for Diffusers' frequencies, which are in float32."""
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def filled(net: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Give every weight a value of its own, and return the network with its weights by name."""
    generator = torch.Generator().manual_seed(1)
    for p in net.parameters():
        p.data = 0.4 * torch.randn(p.shape, generator=generator)
    net.double().eval()
    return net, {name: p.detach() for name, p in net.named_parameters()}


def test_lists_of_a_config_are_the_tuples_that_a_class_of_diffusers_takes():
    kinds = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
    made = from_diffusers(
        "UNet2DModel", {"block_out_channels": [8], "norm_num_groups": 4, "sample_size": 4, **kinds}
    )
    found = made.config
    assert found["block_out_channels"] == (8,) and found["down_block_types"] == ("DownBlock2D",)
    assert found["norm_num_groups"] == 4 and found["sample_size"] == 4


def frequencies(t, width):
    """``[cos(t ω_k), sin(t ω_k)]`` with ``ω_k = 10000^{−k/(width/2)}``."""
    half = width // 2
    omega = torch.exp(-math.log(10_000) * torch.arange(half, dtype=F64) / half)
    angles = t.double()[:, None] * omega
    return torch.cat([angles.cos(), angles.sin()], -1)


def mlp(w, name, x):
    hidden = F.silu(F.linear(x, w[f"{name}.linear_1.weight"], w[f"{name}.linear_1.bias"]))
    return F.linear(hidden, w[f"{name}.linear_2.weight"], w[f"{name}.linear_2.bias"])


def linear(w, name, x):
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def norm(w, name, x, groups):
    return F.group_norm(x, groups, w[f"{name}.weight"], w[f"{name}.bias"])


def residual(w, x, emb, strides, groups):
    """The features of a residual network whose blocks have these strides."""
    conv = F.conv2d if x.ndim == 4 else F.conv1d
    convolved = lambda name, x, **more: conv(x, w[f"{name}.weight"], w[f"{name}.bias"], **more)
    h = convolved("stem", x, padding=1)
    for k, stride in enumerate(strides):
        at = f"blocks.{k}"
        inner = convolved(f"{at}.conv1", F.silu(norm(w, f"{at}.norm1", h, groups)), padding=1,
                          stride=stride)  # fmt: skip
        inner = norm(w, f"{at}.norm2", inner, groups)
        if emb is not None:
            told = linear(w, f"{at}.time", F.silu(emb))
            scale, shift = told.reshape(*told.shape, *[1] * (x.ndim - 2)).chunk(2, 1)
            inner = inner * (1 + scale) + shift
        inner = convolved(f"{at}.conv2", F.silu(inner), padding=1)
        h = convolved(f"{at}.skip", h, stride=stride) + inner
    return F.silu(norm(w, "norm", h, groups)).flatten(2).mean(2)


LEVEL = Level(0.8, 0.6, torch.tensor([3.0, 400.0], dtype=F64))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", ["pictures", "sequences", "vectors"])
def test_a_classifier_is_its_formula(kind, layers):
    shape, make = {
        "pictures": ((2, 6, 5), Classifier),
        "sequences": ((7, 2), SequenceClassifier),
        "vectors": ((2,), SequenceClassifier),
    }[kind]
    net, w = filled(make(CLASSES, channels=2, widths=(4, 6, 8), layers=layers, groups=2))
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(2), dtype=F64)
    channels_first = x if kind == "pictures" else x.reshape(2, -1, 2).movedim(1, 2)
    strides = [s if j == 0 else 1 for s in (1, 2, 2) for j in range(layers)]
    emb = mlp(w, "time", frequencies(LEVEL.t, 4))
    expected = linear(w, "head", residual(w, channels_first, emb, strides, 2))
    near(net(x, LEVEL), expected)  # 0.8² + 0.6² = 1
    near(net(x[1:], Level(0.8, 0.6, 400.0)), expected[1:])  # one time for all samples
    assert net.head.weight.shape == (3, 8) and len(net.blocks) == 3 * layers
    assert net.blocks[0].conv1.weight.shape[:2] == (4, 4)


def test_a_classifier_of_clean_pictures_knows_no_time():
    net, w = filled(Classifier(CLASSES, channels=1, widths=(4, 6), groups=2, noise_aware=False,
                               temperature=2.0))  # fmt: skip
    x = torch.randn(2, 1, 6, 6, dtype=F64)
    expected = linear(w, "head", residual(w, x, None, [1, 2], 2)) / 2
    torch.testing.assert_close(net(x), expected)
    assert not any("time" in name for name in w)


@pytest.mark.parametrize("make", [Classifier, SequenceClassifier])
def test_a_classifier_leaves_features_out_in_training_alone(make):
    net = make(CLASSES, widths=(4,), groups=2, dropout=0.7, outputs=None)
    assert net.drop.p == 0.7 and make(CLASSES, widths=(4,), groups=2).drop.p == 0.0
    assert make((), widths=(4,), groups=2, outputs=3).head.out_features == 6
    with pytest.raises(ValueError, match="a noise-aware classifier needs the noise level; give"):
        net(torch.zeros(1, 1, 4, 4))


@pytest.mark.parametrize(
    ("rho", "expected"),
    [(0.001, 1.0), (0.1, 1.0), (1.0, 3.0), (10**0.5, 2.5), (10**-0.5, 2.0), (10.0, 2.0), (1e9, 2.0),
     (0.0, 1.0), (math.inf, 2.0)],
)  # fmt: skip
def test_temperatures_between_their_levels(rho, expected):
    """Linear in the logarithm of ρ, constant outside."""
    table = [(0.1, 1.0), (1.0, 3.0), (10.0, 2.0)]
    found = temperature_at(rho, table)
    assert isinstance(found, float) and found == pytest.approx(expected)
    rows = temperature_at(torch.tensor([rho, 1.0], dtype=F64), table)
    assert rows.tolist() == pytest.approx([expected, 3.0])  # type: ignore[union-attr]
    assert temperature_at(rho, [(2.0, 1.5)]) == 1.5
    assert temperature_at(torch.tensor([rho, 1.0]), [(2.0, 1.5)]).tolist() == [1.5, 1.5]  # type: ignore[union-attr]


# Sequences


def attend(w, name, x, context, mask, heads):
    q = linear(w, f"{name}.query", x)
    key, value = linear(w, f"{name}.key_value", context).chunk(2, -1)
    size = q.shape[-1] // heads
    parts = []
    for k in range(heads):
        mine = slice(k * size, (k + 1) * size)
        scores = q[..., mine] @ key[..., mine].mT / math.sqrt(size)
        if mask is not None:
            scores = scores.masked_fill(mask[:, None] == 0, -math.inf)
        parts.append(scores.softmax(-1) @ value[..., mine])
    return linear(w, f"{name}.out", torch.cat(parts, -1))


def normal(x, shift, scale):
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    return x * (1 + scale[:, None]) + shift[:, None]


def transformed(w, x, t, *, width, heads, depth, patch=1, told=None, words=None, mask=None):
    emb = mlp(w, "time", frequencies(t, width))
    emb = emb if told is None else emb + told
    tokens = x.reshape(len(x), -1, patch * x.shape[-1])
    h = linear(w, "inward", tokens) + w["position"]
    for k in range(depth):
        at = f"blocks.{k}"
        parts = linear(w, f"{at}.modulation", F.silu(emb)).chunk(6, -1)
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        seen = normal(h, shift1, scale1)
        h = h + gate1[:, None] * attend(w, f"{at}.attention", seen, seen, None, heads)
        if words is not None:
            h = h + attend(w, f"{at}.cross", h, words, mask, heads)
        inner = F.gelu(linear(w, f"{at}.mlp.0", normal(h, shift2, scale2)), approximate="tanh")
        h = h + gate2[:, None] * linear(w, f"{at}.mlp.2", inner)
    shift, scale = linear(w, "modulation", F.silu(emb)).chunk(2, -1)
    return linear(w, "outward", normal(h, shift, scale)).reshape(x.shape)


@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize(("shape", "patch"), [((6, 3), 1), ((6, 3), 2), ((3,), 1)])
def test_a_transformer_of_sequences_is_its_formula(shape, patch, words):
    length = shape[0] if len(shape) == 2 else None
    more = {"cross_attention_dim": 5} if words else {}
    net, w = filled(SequenceTransformer(3, length, width=8, depth=2, heads=2, patch=patch, **more))
    generator = torch.Generator().manual_seed(3)
    x, told = (torch.randn(2, *s, generator=generator, dtype=F64) for s in (shape, (8,)))
    t = torch.tensor([2.0, 700.0], dtype=F64)
    given = {}
    if words:
        given["words"] = torch.randn(2, 4, 5, generator=generator, dtype=F64)
        given["mask"] = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    found = net(x, t, told, given.get("words"), given.get("mask"))
    about = {"width": 8, "heads": 2, "depth": 2, "patch": patch}
    near(found, transformed(w, x, t, told=told, **about, **given))
    if words:
        told_all = transformed(w, x, t, told=told, **about, words=given["words"])
        near(net(x, t, told, given["words"]), told_all)
    near(net(x, t), transformed(w, x, t, **about))
    assert net.condition_width == 8 and w["position"].shape == ((length or 1) // patch, 8)


def test_a_fresh_transformer_passes_its_tokens_on():
    """What is zero, so that each block is the identity and the output 0; and the places."""
    net: Any = SequenceTransformer(3, 64, width=32, depth=2, heads=2, cross_attention_dim=5)
    zero = {name for name, p in net.named_parameters() if not p.any()}
    outer = {f"{part}.{kind}" for part in ("modulation", "outward") for kind in ("weight", "bias")}
    inner = {
        f"blocks.{k}.{part}.{kind}"
        for k in range(2) for part in ("modulation", "cross.out") for kind in ("weight", "bias")
    }  # fmt: skip
    assert zero == outer | inner
    assert float(net.position.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert net.blocks[0].cross.is_cross_attention and not net.blocks[0].attention.is_cross_attention
    short: Any = SequenceTransformer(3, width=8, heads=2)
    assert short.blocks[0].cross is None
    for length, patch, width, heads in ((7, 2, 8, 2), (8, 2, 9, 2)):
        with pytest.raises(ValueError, match="must be a multiple of patch"):
            SequenceTransformer(3, length, width=width, heads=heads, patch=patch)


# Diffusers' blocks without wasted work


def block(**more):
    given = {"in_channels": 8, "temb_channels": 4, "groups": 4, "non_linearity": "silu", **more}
    return ResnetBlock2D(**given)


@pytest.mark.parametrize(
    ("more", "changed"),
    [
        ({}, True),
        ({"out_channels": 4}, True),
        ({"up": True}, False),
        ({"down": True}, False),
        ({"time_embedding_norm": "scale_shift"}, False),
        ({"skip_time_act": True}, False),
        ({"output_scale_factor": 2.0}, False),
        ({"non_linearity": "gelu"}, False),
        ({"temb_channels": None}, False),
    ],
    ids=str,
)
def test_which_residual_blocks_work_in_place(more, changed):
    whole: Any = lean(nn.Sequential(block(**more).double().eval()))
    assert ("forward" in vars(whole[0])) is changed
    if not changed:
        return
    plain = block(**more).double().eval()
    plain.load_state_dict(whole[0].state_dict())
    x, told = torch.randn(2, 8, 4, 4, dtype=F64), torch.randn(2, 4, dtype=F64)
    kept = told.clone()
    with torch.no_grad():
        torch.testing.assert_close(whole[0](x, told), plain(x, told), atol=1e-13, rtol=0)
    assert told.equal(kept)
    assert whole[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


def doubled(**changes):
    made = Upsample2D(3, use_conv=True)
    for key, value in changes.items():
        setattr(made, key, value)
    return made


@pytest.mark.parametrize(
    ("made", "changed"),
    [
        (doubled(), True),
        (doubled(use_conv=False), False),
        (doubled(use_conv_transpose=True), False),
        (doubled(interpolate=False), False),
        (doubled(norm=nn.Identity()), False),
        (doubled(conv=nn.Identity()), False),
        *(
            (doubled(conv=nn.Conv2d(3, 3, kernel, stride, padding, dilation, groups)), False)
            for kernel, stride, padding, dilation, groups in (
                (1, 1, 1, 1, 1), (3, 2, 1, 1, 1), (3, 1, 0, 1, 1), (3, 1, 1, 2, 1), (3, 1, 1, 1, 3),
            )
        ),
    ],
)  # fmt: skip
def test_which_upsampling_adds_its_weights_first(made, changed):
    assert ("forward" in vars(lean(nn.ModuleList([made]))[0])) is changed


@pytest.mark.parametrize("memory", [torch.channels_last, torch.contiguous_format])
def test_upsampled_pictures_lie_in_memory_as_they_came(memory):
    made: Any = lean(nn.Sequential(doubled().eval()))[0]
    x = torch.randn(2, 3, 4, 6).contiguous(memory_format=memory)
    with torch.no_grad():
        assert made(x).is_contiguous(memory_format=memory)
        assert made(x, (8, 12)).shape == (2, 3, 8, 12)


def test_upsampling_elsewhere_than_on_a_cpu_is_the_networks_own():
    """Of the meta device, which has no numbers, the shape is that of the original."""
    from diffusers.models.upsampling import Upsample2D

    from guidestar.networks.cpu_fastpath import lean

    net = lean(torch.nn.Sequential(Upsample2D(4, use_conv=True, out_channels=6))).to("meta").eval()
    with torch.no_grad():
        out = net(torch.zeros(2, 4, 3, 5, device="meta"))
    assert out.shape == (2, 6, 6, 10) and out.device.type == "meta"
