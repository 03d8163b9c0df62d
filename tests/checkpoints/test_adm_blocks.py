"""ADM's blocks against their formulas in plain torch, at sizes of a few numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from guidestar.checkpoints import adm_blocks as blocks


def weighted(module: Any) -> Any:
    torch.manual_seed(0)
    for p in module.parameters():
        nn.init.normal_(p)
    return module.double()


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_times_as_waves():
    found = blocks.frequencies(torch.tensor([2.0, 0.0]), 4)
    wanted = [math.cos(2), math.cos(0.02), math.sin(2), math.sin(0.02)]
    torch.testing.assert_close(found, torch.tensor([wanted, [1.0, 1, 0, 0]]))
    assert blocks.frequencies(torch.tensor([2]), 5)[0].tolist() == pytest.approx([*wanted, 0.0])
    half = 10000 ** (-1 / 3)
    assert blocks.frequencies(torch.tensor([1.0]), 6)[0, :3].tolist() == pytest.approx(
        [math.cos(1), math.cos(half), math.cos(half**2)]
    )


def test_queries_keys_and_values_lie_in_two_orders():
    qkv = torch.arange(24).reshape(1, 12, 2)  # channel c at token t is 2c + t
    at = lambda *channels: [[2 * c + t for c in channels] for t in (0, 1)]
    q, k, v = blocks._heads(qkv, 2, True)
    assert q[0].tolist() == [at(0, 1), at(2, 3)] and k[0].tolist() == [at(4, 5), at(6, 7)]
    assert v[0].tolist() == [at(8, 9), at(10, 11)]
    q, k, v = blocks._heads(qkv, 2, False)
    assert q[0].tolist() == [at(0, 1), at(6, 7)] and k[0].tolist() == [at(2, 3), at(8, 9)]
    assert v[0].tolist() == [at(4, 5), at(10, 11)]


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v


def test_attention_among_pixels_is_added_to_them():
    layer = weighted(blocks.SelfAttention(4, heads=9, head=2, new_order=True, groups=2))
    assert layer.heads == 2
    assert blocks.SelfAttention(4, heads=4, head=None, new_order=True, groups=2).heads == 4
    with pytest.raises(ValueError, match="a width of 4 has no heads of 3"):
        blocks.SelfAttention(4, heads=1, head=3, new_order=True, groups=2)
    x = noise(2, 4, 2, 3)
    flat = F.group_norm(x.reshape(2, 4, 6), 2, layer.norm.weight, layer.norm.bias)
    qkv = torch.einsum("oi,bit->bot", layer.qkv.weight[..., 0], flat) + layer.qkv.bias[:, None]
    q, k, v = qkv.reshape(2, 3, 2, 2, 6).transpose(-1, -2).unbind(1)
    out = attend(q, k, v).transpose(-1, -2).reshape(2, 4, 6)
    weight, bias = layer.proj_out.weight[..., 0], layer.proj_out.bias[:, None]
    wanted = x + (torch.einsum("oi,bit->bot", weight, out) + bias).reshape(x.shape)
    torch.testing.assert_close(layer(x), wanted)


def test_pooling_asks_by_the_mean_of_the_pixels():
    pool = weighted(blocks.AttentionPool(2, 4, 2, 3))
    assert pool.heads == 2 and pool.positional_embedding.shape == (4, 5)
    x = noise(2, 4, 2, 2)
    rows = torch.cat([x.mean((2, 3))[:, :, None], x.reshape(2, 4, 4)], 2)
    rows = rows + pool.positional_embedding
    qkv = torch.einsum("oi,bit->bot", pool.qkv_proj.weight[..., 0], rows)
    qkv = qkv + pool.qkv_proj.bias[:, None]
    q, k, v = qkv.reshape(2, 3, 2, 2, 5).transpose(-1, -2).unbind(1)
    out = attend(q, k, v)[:, :, 0].reshape(2, 4)  # at the mean's token, head by head
    wanted = out @ pool.c_proj.weight[..., 0].T + pool.c_proj.bias
    torch.testing.assert_close(pool(x), wanted)


@pytest.mark.parametrize("resize", [None, "up", "down"])
@pytest.mark.parametrize("scale_shift", [True, False])
@pytest.mark.parametrize("outputs", [4, 6])
def test_a_residual_block(scale_shift, resize, outputs):
    block = weighted(
        blocks.Residual(4, outputs, 5, scale_shift=scale_shift, resize=resize, groups=2)
    )
    x, emb = noise(2, 4, 4, 4), noise(2, 5)
    sized = {
        None: lambda v: v,
        "up": lambda v: v.repeat_interleave(2, 2).repeat_interleave(2, 3),
        "down": lambda v: v.reshape(*v.shape[:2], 2, 2, 2, 2).mean((3, 5)),
    }[resize]
    first, second = block.in_layers, block.out_layers
    h = sized(F.silu(F.group_norm(x, 2, first[0].weight, first[0].bias)))
    h = F.conv2d(h, first[2].weight, first[2].bias, padding=1)
    shifts = F.silu(emb) @ block.emb_layers[1].weight.T + block.emb_layers[1].bias
    shifts = shifts[:, :, None, None]
    normed = lambda v: F.group_norm(v, 2, second[0].weight, second[0].bias)
    if scale_shift:
        h = normed(h) * (1 + shifts[:, :outputs]) + shifts[:, outputs:]
    else:
        h = normed(h + shifts)
    h = F.conv2d(F.silu(h), second[3].weight, second[3].bias, padding=1)
    skip = sized(x)
    if outputs != 4:
        skip = F.conv2d(skip, block.skip_connection.weight, block.skip_connection.bias)
    torch.testing.assert_close(block(x, emb), skip + h)
    both = nn.Sequential(block, nn.Tanh())
    torch.testing.assert_close(blocks.run(both, x, emb), (skip + h).tanh())


def test_sides_are_halved_and_doubled():
    x = noise(1, 2, 4, 6)
    down, up = weighted(blocks.ADMDownsample(2)), weighted(blocks.ADMUpsample(2))
    wanted = F.conv2d(x, down.op.weight, down.op.bias, stride=2, padding=1)
    torch.testing.assert_close(down(x), wanted)
    assert down(x).shape == (1, 2, 2, 3)
    large = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    wanted = F.conv2d(large, up.conv.weight, up.conv.bias, padding=1)
    torch.testing.assert_close(up(x), wanted)


def test_a_changed_attention_knows_the_picture():
    layer = weighted(blocks.SelfAttention(4, heads=2, head=None, new_order=False, groups=1))
    x, seen = noise(3, 4, 2, 3), []

    def change(attention: Any) -> Tensor:
        seen.append(attention)
        torch.testing.assert_close(
            attention.compute(), attend(attention.query, attention.key, attention.value)
        )
        return attention.value

    found = layer.attended(x, [(change, None)])
    (attention,) = seen
    assert attention.grid == (2, 3) and attention.image == slice(0, 6)
    assert attention.query.shape == (3, 2, 6, 2)
    value = attention.value.transpose(-1, -2).reshape(3, 4, 6)
    torch.testing.assert_close(found, x + layer.proj_out(value).reshape(x.shape))
