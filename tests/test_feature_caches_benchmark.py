"""The caches of `benchmarks/feature_caches.py`, against their formulas written out."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
ROWS = 16  # of each pass


@pytest.fixture
def caches(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("feature_caches")
    for name in ("feature_caches", "reuse"):
        sys.modules.pop(name, None)


class Block(nn.Module):
    """h → a h² + b; it counts the rows it computes."""

    def __init__(self, a, b):
        super().__init__()
        self.a, self.b, self.rows = a, b, 0

    def forward(self, h):
        self.rows += len(h)
        return self.a * h * h + self.b


def blocks():
    return nn.Sequential(Block(2.0, 1.0), Block(0.5, -1.0), Block(-0.3, 0.2), Block(1.0, 3.0))


def first(x):
    return 2 * x * x + 1


def region(h):
    h = 0.5 * h * h - 1
    return -0.3 * h * h + 0.2


def last(h):
    return h * h + 3


def inputs():
    draw = torch.Generator().manual_seed(3)
    return [torch.rand(2 * ROWS, 5, generator=draw, dtype=torch.float64) for _ in range(4)]


def expected(kind, x, at):
    """Return the output for input ``x``, where the region was computed for input ``at``."""
    h, h_at = first(x), first(at)
    if kind == "features":
        return last(region(h_at))
    if kind == "change":
        return last(h + region(h_at) - h_at)
    cond = region(h[:ROWS])
    null = cond + region(h_at[ROWS:]) - region(h_at[:ROWS])
    return last(torch.cat([cond, null]))


@pytest.mark.parametrize(
    ("kind", "rows"), [("features", 4 * ROWS), ("change", 4 * ROWS), ("null", 6 * ROWS)]
)
def test_every_second_call_reuses_the_region(caches, kind, rows):
    net, x = blocks(), inputs()
    with caches.Cache(kind=kind, region=("1", "2"), every=2).on(net):
        found = [net(v) for v in x]
    for i, source in enumerate((0, 0, 2, 2)):
        wanted = last(region(first(x[i]))) if i == source else expected(kind, x[i], x[source])
        torch.testing.assert_close(found[i], wanted, rtol=1e-12, atol=1e-12)
    assert [net[i].rows for i in range(4)] == [8 * ROWS, rows, rows, 8 * ROWS]


def test_every_third_call_computes_it_anew(caches):
    net, x = blocks(), inputs()
    with caches.Cache(kind="change", region=("1", "2"), every=3).on(net):
        found = [net(v) for v in x]
    torch.testing.assert_close(found[2], expected("change", x[2], x[0]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[3], last(region(first(x[3]))), rtol=1e-12, atol=1e-12)


def test_the_network_is_plain_afterwards_and_runs_begin_anew(caches):
    net, x = blocks(), inputs()
    cache = caches.Cache(kind="features", region=("1", "2"), every=2)
    for v in x[:2]:
        with cache.on(net):
            found = net(v)
        assert torch.equal(found, last(region(first(v))))
    assert torch.equal(net(x[2]), last(region(first(x[2]))))


def test_what_stands_for_a_skipped_block_has_the_skips_that_it_would_have(caches):
    from diffusers.models.unets.unet_2d_blocks import DownBlock2D, UNetMidBlock2D

    h, temb = torch.randn(2, 8, 4, 4), torch.randn(2, 16)
    for down in (True, False):
        block = DownBlock2D(8, 8, 16, num_layers=3, resnet_groups=4, add_downsample=down)
        assert len(caches.skipped(block, h)[1]) == len(block(h, temb)[1]) == 3 + down
    assert caches.skipped(UNetMidBlock2D(8, 16, resnet_groups=4, attention_head_dim=8), h) is h


def test_regions_are_modules_of_the_shipped_networks(caches):
    from guidestar import load

    for name, regions in caches.DEEP.items():
        net = caches.network(load(name))
        for region_ in regions.values():
            for module in region_:
                net.get_submodule(module)
