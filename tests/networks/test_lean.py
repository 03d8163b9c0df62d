"""A lean network is the original one, with and without gradients."""

import copy

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn
from torch.nn import functional as F

from diffusers import UNet2DModel
from guidestar.networks.cpu_fastpath import lean, plain_attention


def network(**more):
    torch.manual_seed(0)
    widths = {
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "attention_head_dim": 8,
    }
    blocks = {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    return (
        UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            class_embed_type="identity",
            **{**widths, **blocks, **more},
        )
        .double()
        .eval()
    )


def inputs():
    return (
        torch.randn(3, 1, 8, 8, dtype=torch.float64),
        torch.tensor([3.0, 500.0, 998.0]),
        {"class_labels": torch.randn(3, 32, dtype=torch.float64)},
    )


def test_gives_the_same_numbers_and_leaves_its_input_alone():
    net = network()
    x, t, more = inputs()
    fast, kept = lean(copy.deepcopy(net)), x.clone()
    with torch.no_grad():
        torch.testing.assert_close(
            fast(x, t, **more).sample, net(x, t, **more).sample, atol=1e-13, rtol=0
        )
    assert x.equal(kept)


def test_the_short_way_is_taken_only_without_gradients(monkeypatch):
    calls = []
    original = ResnetBlock2D.forward
    monkeypatch.setattr(
        ResnetBlock2D, "forward", lambda self, *a, **k: calls.append(1) or original(self, *a, **k)
    )
    fast, (x, t, more) = lean(network()), inputs()
    with torch.no_grad():
        fast(x, t, **more)
    assert not calls
    fast(x, t, **more)
    assert calls


def test_gradients_are_those_of_the_original():
    net, (x, t, more) = network(), inputs()
    grads = []
    for n in (net, lean(copy.deepcopy(net))):
        leaf = x.clone().requires_grad_()
        grads.append(torch.autograd.grad(n(leaf, t, **more).sample.square().sum(), leaf)[0])
    torch.testing.assert_close(grads[0], grads[1], atol=1e-12, rtol=0)


def test_other_blocks_stay_as_they_are():
    net = lean(network(resnet_time_scale_shift="scale_shift"))
    assert all("forward" not in vars(m) for m in net.modules() if isinstance(m, ResnetBlock2D))


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (1, 3, 1, 1), (2, 3, 7, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_upsampling_is_that_of_repeated_pixels(shape, bias):
    torch.manual_seed(0)
    block = lean(
        nn.Sequential(Upsample2D(3, use_conv=True, out_channels=4, bias=bias).double().eval())
    )[0]
    x = torch.randn(shape, dtype=torch.float64)
    repeated = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    expected = F.conv2d(repeated, block.conv.weight, block.conv.bias, padding=1)
    with torch.no_grad():
        torch.testing.assert_close(block(x), expected, atol=1e-13, rtol=0)


def test_upsampling_follows_its_weights_and_the_asked_size(monkeypatch):
    block = lean(nn.Sequential(Upsample2D(3, use_conv=True).double().eval()))[0]
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        first = block(x)
        block.conv.weight.mul_(2), block.conv.bias.mul_(2)
        torch.testing.assert_close(block(x), 2 * first, atol=1e-13, rtol=0)
        assert block(x, output_size=(7, 7)).shape[2:] == (7, 7)
    calls = []
    original = Upsample2D.forward
    monkeypatch.setattr(
        Upsample2D, "forward", lambda self, *a, **k: calls.append(1) or original(self, *a, **k)
    )
    with torch.no_grad():
        block(x)
    assert not calls
    block(x)
    assert calls


def test_upsampling_of_other_kinds_stays_as_it_is():
    others = [
        Upsample2D(3, use_conv=False),
        Upsample2D(3, use_conv=True, norm_type="ln_norm"),
        Upsample2D(3, use_conv_transpose=True),
        Upsample2D(3, use_conv=True, kernel_size=5, padding=2),
    ]
    assert not any("forward" in vars(m) for m in lean(nn.ModuleList(others)))


def test_plain_attention_gives_the_same_numbers():
    net = network()
    x, t, more = inputs()
    plain = copy.deepcopy(net)
    plain_attention(plain)
    assert {type(m.processor) for m in plain.modules() if hasattr(m, "processor")} == {
        AttnProcessor
    }
    torch.testing.assert_close(
        plain(x, t, **more).sample, net(x, t, **more).sample, atol=1e-7, rtol=0
    )  # its softmax is float32's
