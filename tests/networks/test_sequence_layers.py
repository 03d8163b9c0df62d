"""Perturbed layers of the sequence network, each against the network written out in plain torch."""

import pytest
import torch
from torch.nn import functional as F

from guidestar import Condition, Flow, Guided, Network, uniform
from guidestar.diffusers.read.network import Adapter
from guidestar.networks.sequence import SequenceTransformer

WIDTH, HEADS, MASK = 16, 2, torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
STEP = uniform(Flow(), 10).step(4)


def draw(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def net():
    torch.manual_seed(0)
    made = (
        SequenceTransformer(
            channels=3, length=8, width=WIDTH, depth=3, heads=HEADS, patch=2, cross_attention_dim=5
        )
        .double()
        .eval()
        .requires_grad_(False)
    )
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn_like(p) * 0.3)
    return made


def condition(seed):
    return Condition(
        class_labels=draw(2, WIDTH, seed=seed),
        encoder_hidden_states=draw(2, 4, 5, seed=seed + 20),
        encoder_attention_mask=MASK,
    )


def heads(t):
    return t.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def attention(q, k, v, mask=None):
    scores = q @ k.mT / (WIDTH / HEADS) ** 0.5
    return (
        scores if mask is None else scores.masked_fill(mask[:, None, None] == 0, -torch.inf)
    ).softmax(-1) @ v


def written(net, x, cond, *, own=attention, against=None, mix=None, skip=(), changed=(1,)):
    """The estimate of x0 (of a velocity), with what one block does in the place of its
    attention.
    """
    t = torch.full((2,), float(STEP.t.t), dtype=torch.float64)
    emb = net.time(net.frequencies(t).to(x.dtype)) + cond["class_labels"]
    h = net.inward(x.reshape(2, 4, 6)) + net.position
    norm = lambda v: F.layer_norm(v, (WIDTH,))
    for i, block in enumerate(net.blocks):
        if i in skip:
            continue
        s1, c1, g1, s2, c2, g2 = (v[:, None] for v in block.modulation(F.silu(emb)).chunk(6, -1))
        a = block.attention
        seen = norm(h) * (1 + c1) + s1
        k, v = a.key_value(seen).chunk(2, -1)
        h = h + g1 * a.out(
            (own if i in changed else attention)(heads(a.query(seen)), heads(k), heads(v))
            .transpose(1, 2)
            .flatten(2)
        )
        c = block.cross
        looks = []
        for told in (cond, against) if against is not None else (cond,):
            k, v = c.key_value(told["encoder_hidden_states"]).chunk(2, -1)
            looks.append(
                attention(heads(c.query(h)), heads(k), heads(v), told["encoder_attention_mask"])
            )
        h = h + c.out((mix(*looks) if mix else looks[0]).transpose(1, 2).flatten(2))
        h = h + g2 * block.mlp(norm(h) * (1 + c2) + s2)
    shift, scale = net.modulation(F.silu(emb)).chunk(2, -1)
    velocity = net.outward(norm(h) * (1 + scale[:, None]) + shift[:, None]).reshape(x.shape)
    return x - STEP.t.sigma * velocity


def run(net, expression, max_rows=None, **more):
    x = draw(2, 8, 3, seed=5)
    denoiser = Network(Adapter(net), predicts="velocity")
    guided = Guided(
        expression, denoiser, cond=condition(1), null=condition(2), max_rows=max_rows, **more
    )
    with torch.no_grad():
        return x, guided(x, STEP)[0].x0


def mean(q, k, v):
    return attention(q.mean(2, keepdim=True).expand_as(q), k, v)


def smooth(q, k, v):
    """Queries blurred along the tokens, mirrored at the ends, by a Gaussian of deviation 0.5 cut
    off at two tokens.
    """
    kernel = torch.exp(-0.5 * (torch.arange(-2, 3, dtype=torch.float64) / 0.5) ** 2)
    padded = torch.cat([q[:, :, [2, 1]], q, q[:, :, [-2, -3]]], 2)
    return attention(
        sum(w * padded[:, :, i : i + q.shape[2]] for i, w in enumerate(kernel / kernel.sum())), k, v
    )


@pytest.mark.parametrize("max_rows", [None, 1, 3])
@pytest.mark.parametrize(
    ("term", "own"),
    [("pag(2)", lambda q, k, v: v), ("seg(2)", mean), ("seg(2, sigma=0.5)", smooth)],
)
def test_attention(net, term, own, max_rows):
    x, out = run(net, f"cfg(3) + {term}", max_rows)
    c, u = (written(net, x, condition(k)) for k in (1, 2))
    p = written(net, x, condition(1), own=own)
    assert (p - c).abs().max() > 1e-3
    torch.testing.assert_close(out, u + 3 * (c - u) + 2 * (c - p), atol=1e-9, rtol=1e-9)


def test_blocks_and_names(net):
    x, out = run(net, "slg(2) + slg(1, layers='blocks.0') + pag(1, layers='blocks.2.attention')")
    c, first, middle = (written(net, x, condition(1), skip=skip) for skip in ((), (0,), (1,)))
    last = written(net, x, condition(1), own=lambda q, k, v: v, changed=(2,))
    torch.testing.assert_close(
        out, c + 2 * (c - middle) + (c - first) + (c - last), atol=1e-9, rtol=1e-9
    )
    with pytest.raises(
        ValueError,
        match=r"SequenceTransformer has no block that can be skipped 'blocks.3'; there are "
        r"blocks.0, blocks.1, blocks.2",
    ):
        run(net, "slg(2, layers='blocks.3')")


def test_a_text_against(net):
    x, out = run(net, "nag(5, tau=1.5, alpha=0.5)")

    def mix(good, bad):
        moved = 5 * good - 4 * bad
        size = lambda z: z.abs().sum((1, 3), keepdim=True)
        moved = moved * (1.5 * size(good) / size(moved)).clamp_max(1)
        return (moved + good) / 2

    expected = written(net, x, condition(1), against=condition(2), mix=mix)
    assert (expected - written(net, x, condition(1))).abs().max() > 1e-2
    torch.testing.assert_close(out, expected, atol=1e-9, rtol=1e-9)


def test_nothing_is_left_behind(net):
    before = [
        (name, "forward" in vars(m), hasattr(m, "processor")) for name, m in net.named_modules()
    ]
    x, _ = run(net, "cfg(3) + pag(2) + slg(1)")
    torch.testing.assert_close(
        run(net, "cond")[1], written(net, x, condition(1)), atol=1e-12, rtol=1e-12
    )
    assert [
        (name, "forward" in vars(m), hasattr(m, "processor")) for name, m in net.named_modules()
    ] == before


def test_where_a_sequence_is_looked_at_is_not_where_it_would_be_blurred(net):
    with pytest.raises(
        ValueError,
        match="sag blurs the dimensions after the channels, but the samples of this network have "
        "their channels last",
    ):
        run(net, "sag(1)")
