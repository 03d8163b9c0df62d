"""Differences of low rank: what an adapted network computes, what is written, and what is read."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from guidestar.networks.low_rank import (
    adapt,
    add_difference,
    difference,
    digest,
    merge,
    write_difference,
)


class Small(nn.Module):
    """A convolution and a linear layer of known weights."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.out = nn.Conv2d(2, 6, 3, padding=1), nn.Linear(6, 5)

    def forward(self, x):
        return self.out(self.conv(x).mean((2, 3)))


def learned(rank):
    """Return the base, and an adapted copy whose factors and biases are no longer zero."""
    base, net = Small().double(), Small().double()
    adapt(net, rank)
    torch.manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn_like(p))
    return base, net


def test_an_adapted_network_starts_as_the_network_to_the_bit():
    base, net, x = Small(), Small(), torch.randn(3, 2, 4, 4)
    adapt(net, 2)
    assert torch.equal(net(x), base(x))


def test_matrices_stand_still_and_their_factors_learn():
    net = Small()
    adapt(net, 2)
    trained = {n for n, p in net.named_parameters() if p.requires_grad}
    parts = [f"{n}.parametrizations.weight.0.{f}" for n in ("conv", "out") for f in ("up", "down")]
    assert trained == {*parts, "conv.bias", "out.bias"}
    sizes = {n: list(p.shape) for n, p in net.named_parameters() if "parametrizations" in n}
    assert sizes["conv.parametrizations.weight.0.down"] == [2, 18]  # 2 × 3 × 3 numbers
    assert sizes["out.parametrizations.weight.0.up"] == [5, 2]


def test_weights_are_the_sum_with_the_product_of_the_factors():
    base, net = learned(2)
    found, x = difference(net, base), torch.randn(3, 2, 4, 4, dtype=torch.float64)
    conv = base.conv.weight + (found["conv.weight.up"] @ found["conv.weight.down"]).view(6, 2, 3, 3)
    out = base.out.weight + found["out.weight.up"] @ found["out.weight.down"]
    h = F.conv2d(x, conv, base.conv.bias + found["conv.bias"], padding=1).mean((2, 3))
    expected = h @ out.T + base.out.bias + found["out.bias"]
    torch.testing.assert_close(net(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 2, 50])
def test_a_read_difference_gives_the_merged_network(tmp_path, rank):
    base, net = learned(rank)
    write_difference(difference(net, base), base, tmp_path / "d.safetensors", torch.float64)
    merge(net)
    with safe_open(tmp_path / "d.safetensors", framework="pt") as file:
        about = file.metadata()
    fresh = Small().double()
    add_difference(fresh, load_file(tmp_path / "d.safetensors"), about)
    merged = dict(net.named_parameters())
    assert merged.keys() == dict(base.named_parameters()).keys()
    for name, found in fresh.named_parameters():
        torch.testing.assert_close(merged[name], found, rtol=1e-12, atol=1e-12, msg=name)


def test_a_rank_that_saves_nothing_keeps_the_whole_difference():
    base, net = learned(5)  # 5 (6 + 18) numbers of factors for 6 × 18, and 5 (5 + 6) for 5 × 6
    found = difference(net, base)
    assert {*found} == {"conv.weight", "conv.bias", "out.weight", "out.bias"}
    assert torch.equal(found["out.weight"], net.out.weight - base.out.weight)


def test_what_did_not_change_is_not_written():
    base, net = learned(2)
    with torch.no_grad():
        net.out.bias.copy_(base.out.bias)
    assert "out.bias" not in difference(net, base)


def test_factors_that_are_as_many_numbers_as_the_matrix_are_not_worth_it():
    net = nn.ModuleDict({"even": nn.Linear(6, 3), "more": nn.Linear(7, 3)})
    adapt(net, 2)  # 2 (3 + 6) numbers for 3 × 6, and 2 (3 + 7) for 3 × 7
    assert [parametrize.is_parametrized(m) for m in net.values()] == [False, True]


def test_a_digest_is_of_names_and_half_numbers():
    def of(**numbers):
        net = nn.Module()
        for name, number in numbers.items():
            net.register_buffer(name, torch.tensor(number))
        return digest(net)

    assert of(a=1.0, b=2.0) == of(b=2.0, a=1.0) == of(a=1.0, b=2.0 + 1e-5) != of(a=2.0, b=1.0)
    assert of(a=1.0) != of(b=1.0) and of(a=7) != of(a=8) and len(of(a=7)) == 32


def test_a_rank_of_nothing_is_refused():
    with pytest.raises(ValueError, match="must be at least 1, not 0"):
        adapt(Small(), 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, a: a.update(base="0"), "the difference to other weights"),
        (lambda t, a: t.update({"odd": torch.zeros(3)}), "the network has no weight 'odd'"),
        (lambda t, a: t.pop("out.weight.down"), "the factors of 'out.weight' do not go together"),
        (lambda t, a: t.pop("out.weight.up"), "the factors of 'out.weight' do not go together"),
        (
            lambda t, a: t.update({"out.bias": torch.zeros(4)}),
            r"the difference of 'out.bias' is of \[4\], and the weight of \[5\]",
        ),
        (
            lambda t, a: t.update(
                {"out.weight.up": torch.zeros(6, 2), "out.weight.down": torch.zeros(2, 5)}
            ),
            r"the difference of 'out.weight' is of \[6, 5\], and the weight of \[5, 6\]",
        ),
        (
            lambda t, a: t.update({"out.bias": torch.zeros(5, 2)}),
            r"the difference of 'out.bias' is of \[5, 2\], and the weight of \[5\]",
        ),
    ],
)
def test_a_difference_that_does_not_fit_changes_nothing(tmp_path, change, message):
    base, net = learned(2)
    write_difference(difference(net, base), base, tmp_path / "d.safetensors", torch.float64)
    with safe_open(tmp_path / "d.safetensors", framework="pt") as file:
        about = dict(file.metadata())
    tensors, fresh = load_file(tmp_path / "d.safetensors"), Small().double()
    change(tensors, about)
    with pytest.raises(ValueError, match=message):
        add_difference(fresh, tensors, about)
    assert all(
        torch.equal(p, q) for p, q in zip(fresh.parameters(), base.parameters(), strict=True)
    )
