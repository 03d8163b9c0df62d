"""Guidance by perturbed passes against its formulas in plain torch: PAG, SEG, SLG, SAG and NAG.

On a variance-preserving, a variance-exploding and a flow schedule and on a batch of mixed levels
with the toy, whose perturbation is written out here; and on real small networks.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from diffusers.models.attention_processor import PAGCFGIdentitySelfAttnProcessor2_0
from torch.nn import functional as F

from diffusers import UNet2DModel
from guidestar import (
    Flow,
    Guided,
    Net,
    Network,
    Pass,
    Prediction,
    Slot,
    cfg,
    classifier,
    nag,
    pag,
    parse,
    sag,
    sample,
    seg,
    slg,
    uniform,
)
from guidestar.guidance import Direction
from guidestar.guidance.bases.blur import blur
from guidestar.guidance.methods.pag import IdentityAttention
from guidestar.guidance.methods.sag import AttentionMap
from guidestar.guidance.methods.seg import BlurredQueries
from guidestar.guidance.methods.slg import SkippedBlocks
from guidestar.guidance.term import Traits
from helpers.families import counting, family
from helpers.toys import (
    COND,
    NEGATIVE,
    SCHEDULES,
    UNCOND,
    WORDS,
    Judge,
    Spy,
    col,
    condition,
    net,
    noise,
    steps,
    toy,
)

PLACES = ("vp", "ve", "flow", "mixed")


class Scene:
    """Three samples at a step, and what the toy says of them, perturbed and not."""

    def __init__(self, place, shape=(3, 4, 2)):
        self.step, self.x = steps(place)[0], noise(*shape)
        self.a, self.s = (
            col(v, self.x) + 0 * self.x for v in (self.step.t.alpha, self.step.t.sigma)
        )
        self.x = self.x * (self.a**2 + self.s**2).sqrt()
        self.c, self.u, self.n = (self.d(v) for v in (COND, UNCOND, NEGATIVE))
        self.h = (self.x / (self.a**2 + self.s**2).sqrt()).flatten(1)

    def d(self, c):
        return toy(self.x, self.step.t, c)

    def changed(self, attend, c=COND):
        """The toy with its layer changed: the condition moves by half the mean square of the
        change.
        """
        h = self.h[..., None]
        plain = (3 * h @ h.mT).softmax(-1) @ (2 * h)
        return self.d(c + (attend(3 * h, h, 2 * h) - plain).square().mean((1, 2)) / 2)

    def run(self, guidance, spy=None, **nets):
        return Guided(
            guidance,
            {"main": net(spy or Spy(), **nets)},
            classifiers={"classifier": Judge()},
            target=torch.tensor([3, 0, 7]),
        )(self.x, self.step)[0]

    def check(self, guidance, x0, **nets):
        out = self.run(guidance, **nets)
        torch.testing.assert_close(out.x0, x0, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(out.eps, (self.x - self.a * x0) / self.s, rtol=1e-8, atol=1e-8)


@pytest.fixture(params=PLACES)
def scene(request):
    return Scene(request.param)


def identity(q, k, v):
    return v


def mean(q, k, v):
    return (q.mean(1, keepdim=True).expand_as(q) @ k.mT).softmax(-1) @ v


def per_sample(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None, None]


@pytest.mark.parametrize(("name", "attend"), [("pag", identity), ("seg", mean)])
def test_pag_and_seg(scene, name, attend):
    p = scene.changed(attend)
    assert (p - scene.c).abs().max() > 1e-3
    scene.check(f"{name}(3)", scene.c + 3 * (scene.c - p))
    scene.check(f"{name}([1, 0, -2])", scene.c + per_sample(1, 0, -2) * (scene.c - p))
    scene.check(
        f"cfg(4) + {name}(3)", scene.u + 4 * (scene.c - scene.u) + 3 * (scene.c - p), negative=None
    )
    u = scene.changed(attend, UNCOND)
    scene.check(f"uncond + {name}(3, of='uncond')", scene.u + 3 * (scene.u - u))
    scene.check(f"{name}(3, of='neg')", scene.c + 3 * (scene.n - scene.changed(attend, NEGATIVE)))


def test_the_weight_of_pag_is_its_scale_with_cfg_and_without(scene):
    """Elsewhere it is s − 1 where cfg is off; and alone, it becomes cfg with the negative
    prompt.
    """
    alone, plain = scene.run("pag(3)").x0 - scene.c, scene.run("cfg(4)").x0
    torch.testing.assert_close(scene.run("cfg(4) + pag(3)").x0 - plain, alone, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(alone, 3 * (scene.c - scene.changed(identity)), rtol=1e-9, atol=1e-9)
    spy = Spy()
    scene.run("pag(3)", spy)
    torch.testing.assert_close(torch.tensor(spy.calls[0][:3]), torch.full((3,), COND))
    assert [len(c) for c in spy.calls] == [6]


def test_pag_needs_no_condition(scene):
    spy = Spy()
    out, _ = Guided("pag(2)", Spy(), null=condition(UNCOND))(scene.x, scene.step)
    torch.testing.assert_close(out.x0, scene.u + 2 * (scene.u - scene.changed(identity, UNCOND)))
    Guided("pag(2)", spy)(scene.x, scene.step)
    assert spy.rows == 6


def test_slg(scene):
    p = scene.d(COND + 0.5)
    scene.check("slg(2.8)", scene.c + 2.8 * (scene.c - p))
    scene.check(
        "cfg(4) + slg(2.8)", scene.u + 4 * (scene.c - scene.u) + 2.8 * (scene.c - p), negative=None
    )


def test_equal_perturbed_passes_are_one():
    scene, spy = Scene("flow"), Spy()
    names = "layers=['flat']"
    out = scene.run(
        f"cfg(3) + pag(1) + pag([2, 0, 1]) + pag(1, {names}) + seg(1, {names}) + seg(2, "
        "layers='flat') + slg(1)",
        spy,
    )
    # cond and negative, pag by default, pag and seg by name, and slg, all in one call
    assert [len(c) for c in spy.calls] == [18]
    weights = per_sample(3, 1, 2) + 1
    x0 = (
        scene.n
        + 3 * (scene.c - scene.n)
        + weights * (scene.c - scene.changed(identity))
        + 3 * (scene.c - scene.changed(mean))
        + scene.c
        - scene.d(COND + 0.5)
    )
    torch.testing.assert_close(out.x0, x0, rtol=1e-9, atol=1e-9)


def test_perturbations_are_values():
    assert IdentityAttention(layers=("a",)) == IdentityAttention(layers=("a",)) and hash(
        BlurredQueries(sigma=2.0)
    ) == hash(BlurredQueries(sigma=2.0))
    assert (
        len(
            {
                IdentityAttention(),
                SkippedBlocks(),
                BlurredQueries(),
                BlurredQueries(sigma=2.0),
                IdentityAttention(layers=("a",)),
            }
        )
        == 5
    )
    assert pag(3, layers="a") == pag(3, layers=["a"]) == parse("pag(3, layers='a')").terms[0]
    assert (
        str(seg(3, sigma=2, layers=("a", "b"), of="uncond"))
        == "seg(3, layers=['a', 'b'], of='uncond', sigma=2)"
    )


# --- SAG ---


def gaussian(sigma, radius):
    g = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma) ** 2)
    return g / g.sum()


def smooth(x, sigma=1.0, radius=4):
    """Blur pictures ``[B, C, H, W]`` by a convolution, mirrored at the edges."""
    kernel = (gaussian(sigma, radius)[:, None] * gaussian(sigma, radius))[None, None].to(x)
    planes = F.pad(x.flatten(0, 1)[:, None], [radius] * 4, mode="reflect")
    return F.conv2d(planes, kernel).reshape(x.shape)


@pytest.mark.parametrize("place", PLACES)
def test_sag_everywhere(place):
    scene = Scene(place, (3, 2, 6, 5))
    eps = (scene.x - scene.a * scene.u) / scene.s
    elsewhere = scene.a * smooth(scene.u) + scene.s * eps
    again = toy(elsewhere, scene.step.t, UNCOND)
    # In eps, as the paper has it: the passes are at different points.
    eps_again = (elsewhere - scene.a * again) / scene.s
    eps_c = (scene.x - scene.a * scene.c) / scene.s
    guided = eps_c + 0.75 * (eps - eps_again)
    scene.check("sag(0.75, masked=False)", (scene.x - scene.s * guided) / scene.a)
    scene.check(
        "sag([0.75, 0, -1], masked=False)",
        scene.c + per_sample(0.75, 0, -1)[..., None] * (smooth(scene.u) - again),
    )
    wrong = scene.c + 0.75 * (scene.u - again)
    assert (scene.run("sag(0.75, masked=False)").x0 - wrong).abs().max() > 1e-2


def test_sag_leaves_vectors_as_they_are():
    """Nothing is blurred, so the pass at the same place gives the same estimate: no push."""
    scene = Scene("vp", (3, 6))
    scene.check("sag(0.75, masked=False)", scene.c)


@pytest.mark.parametrize("place", PLACES)
def test_sag_where_the_network_looks(place):
    scene = Scene(place, (3, 2, 6, 5))
    h = scene.h.reshape(3, 2, 30).mT
    received = (3 * h @ h.mT / 2**0.5).softmax(-1).sum(1).reshape(3, 1, 6, 5)
    mask = (received > 1).double()
    assert 0.1 < mask.mean() < 0.9
    for options, sigma, radius in (("", 1.0, 4), (", sigma=0.7, radius=2", 0.7, 2)):
        blurred = mask * smooth(scene.u, sigma, radius) + (1 - mask) * scene.u
        eps = (scene.x - scene.a * scene.u) / scene.s
        push = blurred - toy(scene.a * blurred + scene.s * eps, scene.step.t, UNCOND)
        scene.check(f"sag(0.75, layer='map'{options})", scene.c + 0.75 * push)
        scene.check(
            f"cfg(3) + sag(2, layer='map'{options})",
            scene.u + 3 * (scene.c - scene.u) + 2 * push,
            negative=None,
        )


def test_a_look_shares_the_pass_it_looks_at():
    scene, spy = Scene("flow", (3, 2, 6, 5)), Spy()
    guided = Guided(
        "cfg(3) + sag([1, 0, 1], layer='map') + sag(1, layer='map')",
        {"main": net(spy, negative=None)},
    )
    guided(scene.x, scene.step)
    assert [len(c) for c in spy.calls] == [6, 5]
    plan = guided.plan(uniform(SCHEDULES["flow"], 2), batch=3)
    assert sum(plan.steps[0].passes.values()) == 3 + 3 + 2 + 3


def looked_push(scene, sharpness=3):
    """``D̃ − D_u(x̃)``, blurred where a layer of this sharpness looks."""
    h = scene.h.reshape(3, 2, 30).mT
    mask = ((sharpness * h @ h.mT / 2**0.5).softmax(-1).sum(1).reshape(3, 1, 6, 5) > 1).double()
    blurred = mask * smooth(scene.u) + (1 - mask) * scene.u
    eps = (scene.x - scene.a * scene.u) / scene.s
    return blurred - toy(scene.a * blurred + scene.s * eps, scene.step.t, UNCOND)


@pytest.mark.parametrize("scales", [(1, 1), ([1, 0, 1], 1), (1, [1, 0, 1]), ([1, 0, 1], [0, 1, 1])])
def test_looks_at_two_layers_and_the_plain_pass(scales):
    scene, spy = Scene("flow", (3, 2, 6, 5)), Spy()
    said = [f"sag({s}, layer='{layer}')" for s, layer in zip(scales, ("map", "map2"), strict=True)]
    both = scene.run(" + ".join(["cfg(3)", *said]), spy, negative=None).x0
    rows = [per_sample(*([s] * 3 if isinstance(s, int) else s))[..., None] for s in scales]
    assert (looked_push(scene) - looked_push(scene, 6)).abs().max() > 1e-3
    torch.testing.assert_close(
        both,
        scene.u
        + 3 * (scene.c - scene.u)
        + rows[0] * looked_push(scene)
        + rows[1] * looked_push(scene, 6),
    )
    second = 3 if isinstance(scales[1], int) else 2
    assert spy.rows == 3 + 3 + second + sum(3 if isinstance(s, int) else 2 for s in scales)


LOOKED = Pass(cond=Slot.COND, perturb=AttentionMap(layer="map2"))


@dataclass(frozen=True)
class Glance(Direction):
    """Looks at another pass, and pushes nothing."""

    name = "glance"
    traits = Traits(instead=((Pass(), LOOKED),))

    def passes(self, step):
        return (LOOKED,)

    def push(self, live, observed):
        return torch.zeros_like(live.x_t), live.state


def test_the_first_look_at_a_pass_answers_for_it_whatever_else_is_looked_at():
    scene = Scene("flow", (3, 2, 6, 5))
    some = scene.run(
        Glance(1) + cfg(3) + sag(1, layer="map") + sag([1, 0, 1], layer="map2"), negative=None
    ).x0
    torch.testing.assert_close(
        some,
        scene.u
        + 3 * (scene.c - scene.u)
        + looked_push(scene)
        + per_sample(1, 0, 1)[..., None] * looked_push(scene, 6),
    )


def test_a_look_leaves_alone_a_pass_that_is_differentiated():
    scene, spy = Scene("flow", (3, 2, 6, 5)), Spy()
    term = classifier(2, through="uncond")
    both = scene.run(term + sag(1, layer="map"), spy).x0
    assert sorted(len(c) for c in spy.calls) == [3, 3, 6]
    torch.testing.assert_close(
        both - scene.c, scene.run(term).x0 + scene.run("sag(1, layer='map')").x0 - 2 * scene.c
    )


def test_a_look_at_samples_without_noise_sees_nothing():
    x, spy = noise(3, 2, 6, 5), Spy()
    levels = Flow()(torch.tensor([0.5, 0.0, 0.7], dtype=torch.float64))
    step = steps("flow")[0]._replace(t=levels, s=levels)
    guided = Guided("sag(1, layer='map')", {"main": net(spy)})
    out, _ = guided(x, step)
    torch.testing.assert_close(out.x0[1], x[1], rtol=0, atol=1e-12)
    one = guided(x[2:], step.take(torch.tensor([2])))[0]
    torch.testing.assert_close(out.x0[2:], one.x0)
    clean = step._replace(t=step.grid.schedule.clean)
    torch.testing.assert_close(guided(x, clean)[0].x0, x)


@pytest.mark.parametrize("name", ["unet", "text", "dit"])
def test_sag_on_a_network(name):
    f, masks = family(name), []
    x, step = f.x(), uniform(Flow(), 10).step(4)
    layer = f.net.get_submodule(
        {
            "unet": "mid_block.attentions.0",
            "text": "mid_block.attentions.0.transformer_blocks.0.attn1",
            "dit": "transformer_blocks.1.attn1",
        }[name]
    )

    def look(m, args, kwargs):
        h = args[0] if args else kwargs["hidden_states"]
        h, grid = (
            (m.group_norm(h).flatten(2).mT, h.shape[2:])
            if h.ndim == 4
            else (h, (4, h.shape[1] // 4))
        )
        q, k = (w(h).unflatten(-1, (m.heads, -1)).transpose(1, 2) for w in (m.to_q, m.to_k))
        masks.append(
            ((q @ k.mT / 8**0.5).softmax(-1).mean(1).sum(1).reshape(len(h), 1, *grid) > 1).float()
        )

    null = type(f.given())(f.cond(12))
    guided = (
        Guided("sag(0.75)", f.denoiser, cond=f.given(), null=null)
        if len(null)
        else Guided("sag(0.75)", f.denoiser)
    )
    out = guided(x, step)[0].x0
    with torch.no_grad():
        handle = layer.register_forward_pre_hook(look, with_kwargs=True)
        u = answer(f, x, step.t, null)
        handle.remove()
        mask = F.interpolate(masks[0], x.shape[2:])
        assert 0.1 < mask.mean() < 0.9
        blurred = mask * smooth(u) + (1 - mask) * u
        eps = (x - step.t.alpha * u) / step.t.sigma
        push = blurred - answer(f, step.t.alpha * blurred + step.t.sigma * eps, step.t, null)
        torch.testing.assert_close(
            out, answer(f, x, step.t, f.given()) + 0.75 * push, atol=1e-4, rtol=1e-4
        )


def answer(f, x, level, cond):
    out = f.denoiser(x, level, cond)
    return out.x0 if isinstance(out, Prediction) else out


def test_sag_is_refused_by_name_where_there_is_no_map():
    scene = Scene("flow", (3, 2, 8, 8))
    with pytest.raises(ValueError, match="the layers of function are not known"):
        Guided("sag(1)", lambda x, level, cond: x)(scene.x, scene.step)
    plain = Guided("sag(1, masked=False)", lambda x, level, cond: x / 2)(scene.x, scene.step)[0]
    assert plain.x0.isfinite().all()
    blocks = {
        "block_out_channels": (8,),
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
    }
    bare = UNet2DModel(
        **blocks, norm_num_groups=4, in_channels=2, out_channels=2, add_attention=False
    )
    with pytest.raises(
        ValueError, match="UNet2DModel has no layer of self-attention at all; there are none"
    ):
        Guided("sag(1)", Network(bare))(scene.x.float(), scene.step)


def test_what_sag_refuses():
    for wrong, said in (
        ("sag(1, sigma=0)", "sigma must be positive"),
        ("sag(1, radius=-1)", "radius must not be negative"),
        ("seg(1, sigma=-2)", "sigma must be positive"),
    ):
        with pytest.raises(ValueError, match=said):
            parse(wrong)
    for wrong, said in (
        ("nag(2, tau=0)", "tau must be positive"),
        ("pag(2, of='bad')", "of must be 'cond' or 'uncond' or 'neg'"),
        ("pag(2, layers=[1])", "layers must be"),
    ):
        with pytest.raises(ValueError, match=said):
            parse(wrong)


# --- NAG ---


def nagged(scene, scale, tau=2.5, alpha=0.25, against=NEGATIVE):
    good, bad = (torch.tanh(scene.h + v) for v in (COND, against))
    moved = scale * good - (scale - 1) * bad
    ratio = moved.abs() / good.abs()  # the toy's tokens have one number each
    made = alpha * moved * ratio.clamp_max(tau) / ratio + (1 - alpha) * good
    return scene.d(COND + (made - good).mean(1))


def test_nag(scene):
    scene.check("nag(5)", nagged(scene, 5))
    scene.check("nag(5, tau=1.1, alpha=0.5)", nagged(scene, 5, 1.1, 0.5))
    scene.check("nag(5, negative='blurry')", nagged(scene, 5, against=WORDS["blurry"]))
    scene.check("nag(5)", nagged(scene, 5, against=UNCOND), negative=None)
    scene.check("cfg(3) + nag(5)", scene.n + 3 * (scene.c - scene.n) + nagged(scene, 5) - scene.c)


def test_nag_of_a_scale_for_each_sample(scene):
    expected = torch.stack([nagged(scene, 5)[0], scene.c[1], nagged(scene, -2)[2]])
    scene.check("nag([5, 1, -2])", expected)


def test_nag_is_neutral_at_one_and_blends_by_its_schedule(scene):
    spy = Spy()
    assert torch.equal(scene.run("nag(1)", spy).x0, scene.c) and spy.rows == 3
    out = scene.run("nag(5, schedule=linear)")
    weight = 2 * (1 - scene.step.tau)
    torch.testing.assert_close(
        out.x0, scene.c + weight * (nagged(scene, 5) - scene.c), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize(
    "schedule", ["schedule=clamp(0.5)", "schedule=clamp(0.5, cosine), interval=(0, inf)"]
)
def test_nag_at_scale_one_pushes_nothing_whatever_its_schedule(scene, schedule):
    spy = Spy()
    assert torch.equal(scene.run(f"nag(1, {schedule})", spy).x0, scene.c) and spy.rows == 3
    some = scene.run(f"nag([5, 1, 5], {schedule})", spy).x0
    torch.testing.assert_close(some[1], scene.c[1])
    assert Guided(f"nag([5, 1, 5], {schedule})", {"main": net(Spy())}).plan(
        uniform(SCHEDULES["flow"], 2), batch=3
    ).nfe == pytest.approx(2 + 4 / 3)


def test_nag_contrasts_a_condition():
    with pytest.raises(ValueError, match="nag contrasts the model with and without its condition"):
        Guided("nag(5)", Spy(), null=condition(UNCOND))


@pytest.mark.parametrize("max_rows", [None, 1, 2])
@pytest.mark.parametrize("name", ["text", "pixart", "sd3", "flux"])
def test_nag_on_a_network(name, max_rows):
    f = family(name)
    x, step, cond, null = f.x(), uniform(Flow(), 10).step(4), f.given(), type(f.given())(f.cond(12))
    plain, guided, same = (
        Guided(g, f.denoiser, cond=cond, null=null, negative=n, max_rows=max_rows)(x, step)[0].x0
        for g, n in (("cond", null), ("nag(5)", null), ("nag(5)", cond))
    )
    assert (guided - plain).abs().max() > 1e-4
    torch.testing.assert_close(same, plain, atol=1e-5, rtol=1e-5)
    again = Guided("nag([5, 1, 5])", f.denoiser, cond=cond, null=null)(x, step)[0].x0
    torch.testing.assert_close(
        again, torch.stack([guided[0], plain[1], guided[2]]), atol=1e-5, rtol=1e-5
    )
    with pytest.raises(
        ValueError,
        match="DiTTransformer2DModel has no layer of attention to text that can be contrasted",
    ):
        other = family("dit")
        Guided("nag(5)", other.denoiser, cond=other.given(), null=other.given())(other.x(), step)


# --- real networks ---


@pytest.mark.parametrize(
    ("expression", "change"),
    [
        ("pag(3)", IdentityAttention()),
        ("seg(3)", BlurredQueries()),
        ("seg(3, sigma=2)", BlurredQueries(sigma=2.0)),
        ("slg(3)", SkippedBlocks()),
    ],
)
@pytest.mark.parametrize("name", ["unet", "text", "dit", "pixart", "sd3"])
def test_on_networks_of_each_family(name, expression, change):
    f = family(name)
    x, step, cond = f.x(), uniform(Flow(), 10).step(4), f.given()
    with torch.no_grad():
        clean = answer(f, x, step.t, cond)
        with change(f.denoiser):
            perturbed = answer(f, x, step.t, cond)
    with counting(f.net) as rows:
        out = Guided(expression, f.denoiser, cond=cond if len(cond) else None)(x, step)[0].x0
    assert rows == [6] and not torch.allclose(clean, perturbed, atol=1e-4)
    torch.testing.assert_close(out, clean + 3 * (clean - perturbed), atol=1e-5, rtol=1e-5)


def test_infinite_sigma_is_the_mean_query_and_guides():
    """Elsewhere the branch for it is inverted and the extra pass equals c."""
    f = family("text")
    x, step = f.x(), uniform(Flow(), 10).step(4)
    plain, guided, wide = (
        Guided(g, f.denoiser, cond=f.given())(x, step)[0].x0
        for g in ("cond", "seg(3)", seg(3, sigma=1e8))
    )
    assert (guided - plain).abs().max() > 1e-3
    assert (wide - guided).abs().max() < 0.1 * (
        guided - plain
    ).abs().max()  # mirrored, the edges count half


def test_pag_with_cfg_is_that_of_diffusers():
    """Their processor takes the null, the condition, and the condition to be perturbed, in one
    batch; their pipeline adds the three up in eps.
    """
    f = family("text")
    x, step, cond = f.x(), uniform(SCHEDULES["vp"], 10).step(4), f.given()
    null = type(cond)(f.cond(12))
    ours = Guided("cfg(4) + pag(3)", f.denoiser, cond=cond, null=null)(x, step)[0].eps
    f.net.mid_block.attentions[0].transformer_blocks[
        0
    ].attn1.processor = PAGCFGIdentitySelfAttnProcessor2_0()
    with torch.no_grad():
        d = f.denoiser(torch.cat([x] * 3), step.t, type(cond).join([null, cond, cond]))
    u, c, p = ((torch.cat([x] * 3) - step.t.alpha * d) / step.t.sigma).chunk(3)
    torch.testing.assert_close(ours, u + 4 * (c - u) + 3 * (c - p), atol=1e-4, rtol=1e-4)


def test_a_run_with_everything():
    f = family("text")
    guidance = cfg(3) + pag(2) + seg(1, sigma=1.5) + slg(1) + sag(0.5) + nag(3)
    null = type(f.given())(f.cond(12))
    nets = {"main": Net(denoiser=f.denoiser, cond=f.given(), null=null)}
    runs = [
        sample(
            Guided(guidance, nets, max_rows=m),
            grid=uniform(Flow(), 3),
            solver="ddim",
            seeds=[1, 2, 3],
            shape=(2, 8, 12),
        )
        for m in (None, 4)
    ]
    torch.testing.assert_close(*runs, atol=1e-4, rtol=1e-4)


def test_sag_blurs_a_single_point_to_itself():
    """Mirrored at both of its edges, a line of one point is constant; a constant stays itself."""
    x = noise(2, 3, 1, 4)
    torch.testing.assert_close(blur(x, 1.0, 4, range(2, 3)), x, atol=1e-12, rtol=0)
