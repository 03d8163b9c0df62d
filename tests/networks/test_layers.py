"""Perturbed layers of real networks, each against the same layer written out in plain torch."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import pytest
import torch
from diffusers.models.attention_processor import (
    AttnProcessor,
    PAGIdentitySelfAttnProcessor2_0,
    SlicedAttnProcessor,
)
from torch import nn
from torch.nn import functional as F

from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from guidestar import Draw, Level, Network, Prediction
from guidestar.core.passes import COND, NULL, Net, NoisyPoint, Pass, Slot
from guidestar.core.perturbation import Rows, layers_of
from guidestar.guidance.methods.nag import ContrastedAttention
from guidestar.guidance.methods.pag import IdentityAttention
from guidestar.guidance.methods.sag import AttentionMap
from guidestar.guidance.methods.seg import BlurredQueries
from guidestar.guidance.methods.slg import SkippedBlocks
from helpers.families import LEVEL, MAKE, WORDS, Family, counting, dit, family
from helpers.toys import evaluated

JOINT = (SD3Transformer2DModel, FluxTransformer2DModel)
FAMILIES, TEXT = sorted(MAKE), ("text", "pixart")
CHANGES = {
    "identity": IdentityAttention(),
    "mean": BlurredQueries(),
    "blur": BlurredQueries(sigma=0.8),
    "skip": SkippedBlocks(),
}
USUAL = {
    "unet": ("mid_block.attentions.0",),
    "lean": ("mid_block.attentions.0",),
    "text": ("mid_block.attentions.0.transformer_blocks.0.attn1",),
    "dit": ("transformer_blocks.1.attn1",),
    "pixart": ("transformer_blocks.1.attn1",),
    "sd3": ("transformer_blocks.1.attn", "transformer_blocks.1.attn2"),
    "flux": ("single_transformer_blocks.0.attn",),
}


@torch.no_grad()
def ask(f: Family, perturb=None):
    with perturb(f.denoiser) if perturb else nullcontext():
        out = f.denoiser(f.x(), LEVEL, f.given())
    return out.x0 if isinstance(out, Prediction) else out


@contextmanager
def overheard(module):
    """Collect what a layer is told (by name) and what it answers."""
    calls = []
    names = ("hidden_states", "encoder_hidden_states", "attention_mask")
    handle = module.register_forward_hook(
        lambda m, args, kwargs, out: calls.append(
            ({**dict(zip(names, args, strict=False)), **kwargs}, out)
        ),
        with_kwargs=True,
    )
    yield calls
    handle.remove()


def traces(net):
    """What a perturbation could leave behind."""
    return [
        (
            name,
            dict(vars(m)).get("forward"),
            getattr(m, "processor", None),
            len(m._forward_pre_hooks),
            len(m._forward_hooks),
        )
        for name, m in net.named_modules()
    ]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_perturbed_pass_differs_and_leaves_no_trace(name, change):
    f = family(name)
    before, clean = traces(f.net), ask(f)
    assert torch.equal(ask(f), clean)
    perturbed = ask(f, CHANGES[change])
    assert perturbed.isfinite().all() and (perturbed - clean).abs().max() > 1e-4
    assert torch.equal(ask(f), clean) and traces(f.net) == before


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_is_left_behind_by_an_exception(name):
    f = family(name)
    before, clean = traces(f.net), ask(f)

    def broken(a):
        raise KeyError("broken")

    layers = layers_of(f.denoiser)
    with pytest.raises(KeyError, match="broken"), torch.no_grad(), layers.attending((), broken):
        f.denoiser(f.x(), LEVEL, f.given())
    for change in CHANGES.values():
        with pytest.raises(ZeroDivisionError), change(f.denoiser):
            assert traces(f.net) != before
            raise ZeroDivisionError
    assert torch.equal(ask(f), clean) and traces(f.net) == before


@pytest.mark.parametrize("max_rows", [None, 4])
@pytest.mark.parametrize("name", FAMILIES)
def test_one_call_holds_plain_and_perturbed_rows(name, max_rows):
    """Each as in a call of its own; samples are left out, and a call may end within a pass."""
    f = family(name)
    before, clean = traces(f.net), ask(f)
    x, kept = f.x(), torch.tensor([1])
    passes = {
        COND: None,
        **{
            Pass(perturb=change): None if key in ("mean", "skip") else kept
            for key, change in CHANGES.items()
        },
    }
    with counting(f.net) as rows, torch.no_grad():
        answers = evaluated(
            passes, x, LEVEL, {"main": Net(denoiser=f.denoiser, cond=f.given())}, max_rows=max_rows
        )
    assert rows == ([11] if max_rows is None else [4, 4, 3])
    for p, selected in passes.items():
        alone = ask(f, p.perturb)
        torch.testing.assert_close(
            answers[p].prediction.x0,
            alone if selected is None else alone[selected],
            atol=2e-5,
            rtol=2e-5,
        )
    for change in CHANGES.values():
        assert (ask(f, change) - clean).abs().max() > 1e-4
    assert torch.equal(ask(f), clean) and traces(f.net) == before


@pytest.mark.parametrize("name", FAMILIES)
def test_a_look_and_a_change_share_a_call(name):
    f, x = family(name), family(name).x()
    with torch.no_grad():
        nets = {"main": Net(denoiser=f.denoiser, cond=f.given())}
        look = Pass(perturb=AttentionMap())
        alone, together = (
            evaluated(dict.fromkeys(passes), x, LEVEL, nets)[look].prediction
            for passes in ([look], [Pass(perturb=IdentityAttention()), look, COND])
        )
    torch.testing.assert_close(together.observed, alone.observed, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together.x0, ask(f), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("max_rows", [None, 3])
def test_what_was_seen_belongs_to_its_rows(max_rows):
    """Two passes are looked at, each in some samples, one of which has no noise: there nothing is
    seen.
    """
    f, x = family("unet"), family("unet").x()
    levels = Level(*(torch.full((len(x),), v, dtype=torch.float64) for v in LEVEL))
    clean = Level(
        *(
            v.index_fill(0, torch.tensor([1]), now)
            for v, now in zip(levels, (1.0, 0.0, 0.0), strict=True)
        )
    )
    nets = {"main": Net(denoiser=f.denoiser)}
    moved = Pass(
        cond=Slot.NULL,
        perturb=AttentionMap(),
        point=NoisyPoint(x[1:] / 2, levels.take(torch.arange(2))),
    )
    looks, rows = (
        Pass(cond=Slot.NULL, perturb=AttentionMap()),
        {"first": torch.tensor([0, 1]), "second": torch.tensor([1, 2])},
    )
    with torch.no_grad():
        ask_of = lambda passes, level: evaluated(passes, x, level, nets, max_rows=max_rows)
        together = ask_of({NULL: None, looks: rows["first"], moved: rows["second"]}, clean)
        alone, elsewhere = (
            ask_of({looks: None}, levels)[looks].prediction.observed,
            ask_of({moved: rows["second"]}, levels)[moved].prediction.observed,
        )
    torch.testing.assert_close(
        together[looks].prediction.observed[0], alone[0], atol=1e-5, rtol=1e-5
    )
    assert (
        not together[looks].prediction.observed[1].any()
        and len(together[looks].prediction.observed) == 2
    )
    torch.testing.assert_close(together[moved].prediction.observed, elsewhere, atol=1e-5, rtol=1e-5)
    assert (elsewhere - alone[1:]).abs().max() > 1e-3


@pytest.mark.parametrize("change", ["identity", "skip"])
def test_rows_that_are_not_those_of_the_call_are_refused(change):
    """A network that makes several rows of one cannot be perturbed in some of them."""
    f = family("dit")
    before = traces(f.net)
    with (
        pytest.raises(
            ValueError,
            match=r"perturbed in some rows of a call got 3 rows, but the call has 4; "
            r".*max_rows=1",
        ),
        CHANGES[change](f.denoiser, Rows(1, 2, 4)),
    ):
        ask(f)
    assert traces(f.net) == before


def test_perturbations_may_be_nested():
    f = family("text")
    before, mean = traces(f.net), ask(f, BlurredQueries())
    with BlurredQueries()(f.denoiser):
        ask(f, IdentityAttention())
        torch.testing.assert_close(ask(f), mean)
    assert traces(f.net) == before


@pytest.mark.parametrize("name", FAMILIES)
def test_usual_layers(name):
    layers = layers_of(family(name).denoiser)
    assert layers.find("attention") == USUAL[name]
    assert layers.find("block") == (
        USUAL[name] if name in ("unet", "lean") else (USUAL[name][0].rpartition(".")[0],)
    )


# --- names ---


def test_unknown_layers_are_refused_and_the_known_ones_listed():
    f = family("dit")
    with pytest.raises(
        ValueError,
        match=r"DiTTransformer2DModel has no layer of self-attention 'blocks.1'; there are "
        r"transformer_blocks.0.attn1, transformer_blocks.1.attn1, ",
    ):
        ask(f, IdentityAttention(layers=("blocks.1",)))
    with pytest.raises(
        ValueError,
        match=r"has no block that can be skipped 'transformer_blocks'; there are "
        r"transformer_blocks.0, transformer_blocks.1, transformer_blocks.2$",
    ):
        ask(f, SkippedBlocks(layers=("transformer_blocks",)))
    with pytest.raises(
        ValueError,
        match=r"has no layer of attention to text that can be contrasted at all; there are none",
    ):
        ask(f, ContrastedAttention(scale=2.0, tau=2.5, alpha=0.5))


@pytest.mark.parametrize("name", ["text", "pixart"])
def test_a_layer_named_twice_is_changed_once(name):
    f, text = family(name), USUAL[name][0].replace("attn1", "attn2")
    cond = type(f.given())({**f.given(), **{f"against_{k}": t for k, t in f.given(12).items()}})
    f.cond = lambda seed: cond
    once, twice = (
        ask(f, ContrastedAttention(layers=n, scale=5.0, tau=2.5, alpha=0.5))
        for n in ((text,), (text, text))
    )
    assert torch.equal(once, twice)


def test_names_are_exact():
    f = Family(dit(12).eval().requires_grad_(False), family("dit").cond)
    one = ask(f, SkippedBlocks(layers=("transformer_blocks.1",)))
    assert torch.equal(one, without(f, "transformer_blocks.1"))
    assert not torch.equal(
        one, ask(f, SkippedBlocks(layers=("transformer_blocks.1", "transformer_blocks.10")))
    )


def test_networks_without_known_layers_are_refused():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(2, 2)])

    for denoiser, name in ((Network(Bare()), "Bare"), (lambda x, level, cond: x, "function")):
        with pytest.raises(ValueError, match=f"the layers of {name} are not known"):
            layers_of(denoiser)
    from diffusers import UNet1DModel

    with pytest.raises(
        ValueError, match="the layers of UNet1DModel are not known; those of UNet2DModel, "
    ):
        layers_of(Network(UNet1DModel(block_out_channels=(8, 8, 16))))


def test_compiled_networks_are_refused():
    with pytest.raises(ValueError, match="a compiled Network cannot be perturbed"):
        layers_of(torch.compile(family("unet").denoiser))
    for part, said in (
        ("", "a compiled UNet2DModel"),
        ("mid_block", "a UNet2DModel with compiled blocks"),
    ):
        f = family("unet")
        f.net.get_submodule(part).compile()
        with pytest.raises(ValueError, match=f"{said} cannot be perturbed"):
            layers_of(f.denoiser)


def test_a_bare_network_is_found_in_its_wrappers():
    f = family("unet")
    assert layers_of(Network(f.net)).net is layers_of(f.denoiser).net is f.net


# --- processors ---


@pytest.mark.parametrize("processor", [SlicedAttnProcessor(1), AttnProcessor()])
@pytest.mark.parametrize("change", ["identity", "mean", "blur"])
def test_attention_that_saves_memory_is_perturbed_all_the_same(processor, change):
    f = family("text")
    expected, clean = ask(f, CHANGES[change]), ask(f)
    f.net.set_attn_processor(processor)
    torch.testing.assert_close(ask(f, CHANGES[change]), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ask(f), clean, atol=1e-5, rtol=1e-5)
    assert all(p is processor for p in f.net.attn_processors.values())


def test_a_processor_of_another_kind_is_refused_by_name():
    class Foreign:
        def __call__(
            self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None
        ):
            return hidden_states

    f = family("unet")
    f.net.mid_block.attentions[0].processor = Foreign()
    before = traces(f.net)
    with pytest.raises(
        ValueError,
        match=r"attention of 'mid_block.attentions.0' cannot be perturbed under its processor, "
        r"Foreign",
    ):
        ask(f, IdentityAttention())
    assert traces(f.net) == before


# --- skipped blocks ---


def without(f, *names):
    """The network with blocks replaced by modules that return what they are given."""

    class Nothing(nn.Module):
        def __init__(self, both, block):
            super().__init__()
            self.both, self.norm1 = (
                both,
                getattr(block, "norm1", None),
            )  # DiT takes its time embedding from there

        def forward(self, hidden_states, *args, encoder_hidden_states=None, **kwargs):
            return (encoder_hidden_states, hidden_states) if self.both else hidden_states

    kept = {n: f.net.get_submodule(n) for n in names}
    for n in names:
        f.net.set_submodule(n, Nothing(isinstance(f.net, JOINT), kept[n]))
    try:
        return ask(f)
    finally:
        for n, module in kept.items():
            f.net.set_submodule(n, module)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_skipped_block_returns_what_it_is_given(name):
    f = family(name)
    for block in (
        layers_of(f.denoiser).find("block", ()),
        tuple(layers_of(f.denoiser)._all("block")),
    ):
        assert torch.equal(ask(f, SkippedBlocks(layers=block)), without(f, *block))


@torch.no_grad()
def test_sd3_skips_as_diffusers_does():
    f = family("sd3")
    with SkippedBlocks(layers=("transformer_blocks.0", "transformer_blocks.2"))(f.denoiser):
        ours = f.net(f.x(), timestep=torch.full((3,), 400.0), **f.given()).sample
    assert torch.equal(
        ours, f.net(f.x(), timestep=torch.full((3,), 400.0), skip_layers=[0, 2], **f.given()).sample
    )


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("sd3", "transformer_blocks.0"),
        ("flux", "transformer_blocks.0"),
        ("flux", "single_transformer_blocks.0"),
    ],
)
def test_a_skipped_joint_block_hands_its_text_on(name, block):
    f = family(name)
    with overheard(f.net.get_submodule(block)) as calls:
        ask(f, SkippedBlocks(layers=(block,)))
    ((told, (text, image)),) = calls
    assert (
        text is told["encoder_hidden_states"]
        and image is told["hidden_states"]
        and text.shape[1] == WORDS
    )


# --- attention in plain torch ---


def heads(t, layer):
    return t.unflatten(-1, (layer.heads, -1)).transpose(1, 2)


def tokens_of(layer, told):
    """The tokens of a layer of a U-Net of pictures, normalised; of another layer as it is told
    them.
    """
    h = told["hidden_states"]
    return layer.group_norm(h).flatten(2).mT if h.ndim == 4 else h


def qkv(layer, told):
    h = tokens_of(layer, told)
    q, k, v = (heads(m(h), layer) for m in (layer.to_q, layer.to_k, layer.to_v))
    q, k = (layer.norm_q(q), layer.norm_k(k)) if layer.norm_q is not None else (q, k)
    if (text := told.get("encoder_hidden_states")) is None:
        return q, k, v
    tq, tk, tv = (
        heads(m(text), layer) for m in (layer.add_q_proj, layer.add_k_proj, layer.add_v_proj)
    )
    return (
        torch.cat([q, layer.norm_added_q(tq)], 2),
        torch.cat([k, layer.norm_added_k(tk)], 2),
        torch.cat([v, tv], 2),
    )


def attention_map(q, k):
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)


def answer(layer, told, mixed):
    """What a layer makes of its heads' mixed values."""
    h, out = told["hidden_states"], mixed.transpose(1, 2).flatten(2)
    if h.ndim == 4:
        return (layer.to_out[0](out).mT.reshape(h.shape) + h) / layer.rescale_output_factor
    image = layer.to_out[0](out[:, : h.shape[1]])
    return (
        image
        if told.get("encoder_hidden_states") is None
        else (image, layer.to_add_out(out[:, h.shape[1] :]))
    )


def close(a, b):
    for x, y in zip(a, b, strict=True) if isinstance(a, tuple) else [(a, b)]:
        torch.testing.assert_close(x, y, atol=2e-6, rtol=2e-5)


PLAIN = [n for n in FAMILIES if n != "flux"]


@pytest.mark.parametrize("name", PLAIN)
def test_identity_attention_in_plain_torch(name):
    f = family(name)
    for layer_name in USUAL[name]:
        layer = f.net.get_submodule(layer_name)
        with overheard(layer) as calls, torch.no_grad():
            ask(f, IdentityAttention())
            ((told, out),) = calls
            q, k, v = qkv(layer, told)
            image = tokens_of(layer, told).shape[1]
            mixed = torch.cat([v[:, :, :image], (attention_map(q, k) @ v)[:, :, image:]], 2)
            close(out, answer(layer, told, mixed))


@pytest.mark.parametrize("name", PLAIN)
def test_the_mean_query_in_plain_torch(name):
    f = family(name)
    for layer_name in USUAL[name]:
        layer = f.net.get_submodule(layer_name)
        with overheard(layer) as calls, torch.no_grad():
            ask(f, BlurredQueries())
            ((told, out),) = calls
            q, k, v = qkv(layer, told)
            image = tokens_of(layer, told).shape[1]
            q = torch.cat(
                [q[:, :, :image].mean(2, keepdim=True).expand(-1, -1, image, -1), q[:, :, image:]],
                2,
            )
            close(out, answer(layer, told, attention_map(q, k) @ v))
            assert not torch.allclose(out[0], layer(**told)[0])


GRIDS = {"unet": (4, 6), "text": (4, 6), "dit": (4, 4), "pixart": (4, 4), "sd3": (4, 4)}


@pytest.mark.parametrize("sigma", [0.4, 0.9])
@pytest.mark.parametrize("name", GRIDS)
def test_blurred_queries_in_plain_torch(name, sigma):
    f, radius = family(name), {0.4: 2, 0.9: 3}[sigma]
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1.0) / sigma) ** 2)
    kernel = (kernel[:, None] * kernel / kernel.sum() ** 2)[None, None]
    layer = f.net.get_submodule(USUAL[name][0])
    with overheard(layer) as calls, torch.no_grad():
        ask(f, BlurredQueries(sigma=sigma))
        ((told, out),) = calls
        q, k, v = qkv(layer, told)
        image = tokens_of(layer, told).shape[1]
        planes = q[:, :, :image].mT.reshape(-1, 1, *GRIDS[name])
        blurred = (
            F.conv2d(F.pad(planes, [radius] * 4, mode="reflect"), kernel)
            .reshape(*q.shape[:2], -1, image)
            .mT
        )
        close(
            out, answer(layer, told, attention_map(torch.cat([blurred, q[:, :, image:]], 2), k) @ v)
        )


def test_a_wide_blur_is_nearly_the_mean_and_a_narrow_one_nothing():
    f = family("unet")
    clean, mean = ask(f), ask(f, BlurredQueries())
    assert (ask(f, BlurredQueries(sigma=1e-3)) - clean).abs().max() < 1e-5
    assert (ask(f, BlurredQueries(sigma=1e9)) - mean).abs().max() < 0.05 * (
        mean - clean
    ).abs().max()


FLUX = [
    "transformer_blocks.0.attn",
    "single_transformer_blocks.0.attn",
    "single_transformer_blocks.1.attn",
]


@pytest.mark.parametrize("layer_name", FLUX)
def test_flux_has_its_picture_after_the_text(layer_name):
    f = family("flux")
    layer = f.net.get_submodule(layer_name)
    double = layer_name.startswith("transformer")
    with overheard(layer) as calls, torch.no_grad():
        ask(f, IdentityAttention(layers=(layer_name,)))
        ((told, out),) = calls
        clean = layer(**told)
        h = told["hidden_states"]
        assert (
            torch.equal(out[1], clean[1])
            if double
            else torch.equal(out[:, :WORDS], clean[:, :WORDS])
        )
        close(
            *(
                (out[0], layer.to_out[0](layer.to_v(h)))
                if double
                else (out[:, WORDS:], layer.to_v(h)[:, WORDS:])
            )
        )


@pytest.mark.parametrize("change", ["identity", "mean", "blur"])
def test_the_text_of_a_joint_block_attends_as_ever(change):
    f = family("sd3")
    layer = f.net.get_submodule("transformer_blocks.1.attn")
    with overheard(layer) as calls, torch.no_grad():
        ask(f, CHANGES[change])
        ((told, out),) = calls
        clean = layer(**told)
    assert torch.allclose(out[1], clean[1], atol=1e-7) and not torch.allclose(out[0], clean[0])


def test_grids_that_do_not_divide():
    for size in ((9, 5), (7, 12), (5, 5)):
        f = family("text")
        f.size = size
        grids = []
        with (
            torch.no_grad(),
            layers_of(f.denoiser).attending(
                (), lambda a: grids.append((a.grid, a.query.shape[2])) or a.compute()
            ),
        ):
            f.denoiser(f.x(), LEVEL, f.given())
        assert grids == [
            (((size[0] + 1) // 2, (size[1] + 1) // 2), ((size[0] + 1) // 2) * ((size[1] + 1) // 2))
        ]


def test_the_grid_of_flux():
    f, grids = family("flux"), []
    with (
        torch.no_grad(),
        layers_of(f.denoiser).attending(FLUX, lambda a: grids.append(a.grid) or a.compute()),
    ):
        f.denoiser(f.x(), LEVEL, f.given())
    assert grids == [(4, 6)] * 3


# --- looking, and contrasting ---


@pytest.mark.parametrize("name", ["unet", "text", "dit", "sd3"])
def test_a_look_changes_nothing_and_sees_what_receives_attention(name):
    f = family(name)
    layer, clean = f.net.get_submodule(USUAL[name][0]), ask(f)
    with overheard(layer) as calls, torch.no_grad():
        with AttentionMap()(f.denoiser) as seen:
            assert torch.equal(ask(f), clean)
        ((told, _),) = calls
        image = tokens_of(layer, told).shape[1]
        q, k = (t[:, :, :image] for t in qkv(layer, told)[:2])
        torch.testing.assert_close(
            seen[0], attention_map(q, k).mean(1).sum(1).reshape(3, *GRIDS[name])
        )
        torch.testing.assert_close(seen[0].mean((1, 2)), torch.ones(3))


@pytest.mark.parametrize(
    ("scale", "tau", "alpha"), [(5.0, 2.5, 0.25), (30.0, 1.1, 1.0), (-2.0, 2.5, 0.5)]
)
@pytest.mark.parametrize("name", TEXT)
def test_contrasted_attention_in_plain_torch(name, scale, tau, alpha):
    f = family(name)
    cond, other = f.given(), f.given(12)
    change = ContrastedAttention(
        layers=(layer_name := USUAL[name][0].replace("attn1", "attn2"),),
        scale=scale,
        tau=tau,
        alpha=alpha,
    )
    layer = f.net.get_submodule(layer_name)
    with overheard(layer) as calls, torch.no_grad(), change(f.denoiser):
        f.denoiser(
            f.x(), LEVEL, type(cond)({**cond, **{f"against_{k}": t for k, t in other.items()}})
        )
        ((told, out),) = calls

        def mixed(given):
            text, mask = given["encoder_hidden_states"], given.get("encoder_attention_mask")
            text = f.net.caption_projection(text) if name == "pixart" else text
            scores = (
                heads(layer.to_q(told["hidden_states"]), layer)
                @ heads(layer.to_k(text), layer).mT
                / 8**0.5
            )
            scores = scores if mask is None else scores.masked_fill(mask[:, None, None] == 0, -1e9)
            return (scores.softmax(-1) @ heads(layer.to_v(text), layer)).transpose(1, 2).flatten(2)

        good, bad = mixed(cond), mixed(other)
        moved = scale * good - (scale - 1) * bad
        ratio = moved.abs().sum(-1, keepdim=True) / good.abs().sum(-1, keepdim=True)
        assert (ratio > tau).any()
        close(
            out, layer.to_out[0](alpha * moved * ratio.clamp_max(tau) / ratio + (1 - alpha) * good)
        )


@pytest.mark.parametrize("name", ["unet", "lean", "dit"])
def test_contrasts_are_refused_where_no_layer_attends_to_text(name):
    with pytest.raises(
        ValueError, match="has no layer of attention to text that can be contrasted at all"
    ):
        layers_of(family(name).denoiser).find("cross")


# --- parity ---


@pytest.mark.parametrize(
    "layer_name",
    [
        "mid_block.attentions.0.transformer_blocks.0.attn1",
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1",
    ],
)
def test_identity_attention_is_that_of_diffusers(layer_name):
    """Their processor takes a batch of clean samples and the same once more, to be perturbed."""
    f = family("text")
    ours, clean = ask(f, IdentityAttention(layers=(layer_name,))), ask(f)
    f.net.get_submodule(layer_name).processor = PAGIdentitySelfAttnProcessor2_0()
    cond = f.given()
    with torch.no_grad():
        both = f.denoiser(torch.cat([f.x()] * 2), LEVEL, type(cond).join([cond, cond]))
    close(both[:3], clean)
    close(both[3:], ours)


@dataclass(frozen=True)
class Shuffled:
    """Token perturbation (2506.10036): the picture's tokens are permuted before a block, for each
    sample on its own.
    """

    def __call__(self, denoiser, rows=None, inputs=None):
        def shuffled(tokens):
            order = inputs.draw.normal("tokens", tokens.shape[1:2]).argsort(1)
            return torch.stack([own[places] for own, places in zip(tokens, order, strict=True)])

        return layers_of(denoiser).entering((), shuffled, rows)


@pytest.mark.parametrize("max_rows", [None, 2])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_tokens_of_a_block_are_permuted_for_each_sample(name, max_rows):
    f = family(name)
    x, before, streams = f.x(), traces(f.net), Draw(range(3))
    assert len(x) == 3
    blocks = [f.net.get_submodule(n) for n in layers_of(f.denoiser).find("block")]

    def permute(module, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        flat = hidden.flatten(2).mT if hidden.ndim == 4 else hidden
        order = streams.normal("tokens", flat.shape[1:2]).argsort(1)
        moved = flat.gather(1, order[..., None].expand_as(flat))
        moved = moved.mT.reshape(hidden.shape) if hidden.ndim == 4 else moved
        return ((moved, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": moved})

    nets, changed = {"main": Net(denoiser=f.denoiser, cond=f.given())}, Pass(perturb=Shuffled())
    with torch.no_grad():
        handles = [b.register_forward_pre_hook(permute, with_kwargs=True) for b in blocks]
        wanted = ask(f)
        for handle in handles:
            handle.remove()
        found = evaluated(
            {COND: None, changed: torch.tensor([0, 2])},
            x,
            LEVEL,
            nets,
            streams=streams,
            max_rows=max_rows,
        )
    torch.testing.assert_close(found[changed].prediction.x0, wanted[[0, 2]], atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(found[COND].prediction.x0, ask(f), atol=2e-5, rtol=2e-5)
    assert (wanted - ask(f)).abs().max() > 1e-4 and traces(f.net) == before
