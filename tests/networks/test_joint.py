"""Contrasts in joint attention (NAG in SD3 and Flux) against both networks written out in plain
torch, in float64.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
from torch.nn import functional as F

from diffusers import FluxTransformer2DModel
from guidestar.core.perturbation import layers_of
from guidestar.guidance.methods.nag import ContrastedAttention
from helpers.families import BATCH, draw, family
from networks.test_layers import traces

WORDS = 5
NAMES = {
    "sd3": [f"transformer_blocks.{k}.attn" for k in range(3)],
    "flux": [
        "transformer_blocks.0.attn",
        "transformer_blocks.1.attn",
        "single_transformer_blocks.0.attn",
        "single_transformer_blocks.1.attn",
    ],
}
STRENGTHS = [(5.0, 2.5, 0.25), (30.0, 1.1, 1.0), (-2.0, 2.5, 0.5)]


@dataclass
class Joint:
    """A network of random weights, and what it is told in one call."""

    name: str
    net: Any
    told: dict[str, Any]

    @torch.no_grad()
    def ask(self, change=None, against=None, **more):
        with change(self.net) if change else nullcontext():
            return self.net(
                **{
                    **self.told,
                    **({} if against is None else {"against_encoder_hidden_states": against}),
                    **more,
                }
            ).sample

    def contrasted(self, against, layers=(), scale=5.0, tau=2.5, alpha=0.25):
        return self.ask(
            ContrastedAttention(layers=tuple(layers), scale=scale, tau=tau, alpha=alpha),
            against,
            against_pooled_projections=draw(BATCH, 8, seed=77).double(),
        )


def text(seed: int, words: int = WORDS):
    return draw(BATCH, words, 8, seed=seed).double()


def joint(name: str) -> Joint:
    net = family(name).net if name == "sd3" else two_of_each()
    net.double()
    generator = torch.Generator().manual_seed(3)
    for p in net.parameters():
        p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.3)
    told = {
        "timestep": torch.tensor([400.0, 100.0, 900.0]),
        "encoder_hidden_states": text(11),
        "pooled_projections": draw(BATCH, 8, seed=61).double(),
    }
    if name == "sd3":
        return Joint(name, net, {**told, "hidden_states": draw(BATCH, 2, 8, 8).double()})
    ids = torch.tensor([[0.0, row, column] for row in range(2) for column in range(3)])
    places = {"img_ids": ids, "txt_ids": torch.arange(float(WORDS))[:, None].expand(-1, 3)}
    return Joint(
        name,
        net,
        {
            **told,
            **places,
            "hidden_states": draw(BATCH, 6, 8).double(),
            "timestep": told["timestep"] / 1000,
        },
    )


def two_of_each():
    sizes = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "patch_size": 1,
        "in_channels": 8,
        "joint_attention_dim": 8,
        "pooled_projection_dim": 8,
    }
    return (
        FluxTransformer2DModel(**sizes, axes_dims_rope=(2, 2, 4), num_layers=2, num_single_layers=2)
        .eval()
        .requires_grad_(False)
    )


# --- both networks in plain torch ---


def rms(x, norm):
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * norm.weight


def parts(linear, time, n):
    return [p[:, None] for p in linear(F.silu(time)).chunk(n, 1)]


def normal(x, shift, scale):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def split(x):
    return x.unflatten(-1, (2, 8)).transpose(1, 2)


def projected(x, a):
    return rms(split(a.to_q(x)), a.norm_q), rms(split(a.to_k(x)), a.norm_k), split(a.to_v(x))


def projected_text(t, a):
    return (
        rms(split(a.add_q_proj(t)), a.norm_added_q),
        rms(split(a.add_k_proj(t)), a.norm_added_k),
        split(a.add_v_proj(t)),
    )


def rotated(x, ids):
    """Turn each pair of numbers by its place times 10000^(−2j/axis)."""
    angles = torch.cat(
        [
            ids[:, i, None].double() * 10000.0 ** -(torch.arange(0, d, 2).double() / d)
            for i, d in enumerate((2, 2, 4))
        ],
        1,
    )
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def attended(q, k, v):
    return ((q @ k.mT / 8**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)


def nag(good, bad, scale, tau, alpha):
    moved = scale * good - (scale - 1) * bad
    ratio = moved.abs().sum(-1, keepdim=True) / good.abs().sum(-1, keepdim=True)
    return alpha * moved * ratio.clamp_max(tau) / ratio + (1 - alpha) * good, ratio


class Written:
    """A network of two texts, the second of which is contrasted with in the layers that are
    named.
    """

    def __init__(self, j: Joint, against, layers=(), strength=(5.0, 2.5, 0.25)):
        self.net, self.told, self.layers, self.strength, self.ratios = (
            j.net,
            j.told,
            layers or NAMES[j.name],
            strength,
            [],
        )
        self.flux = j.name == "flux"
        self.time = j.net.time_text_embed(
            j.told["timestep"] * (1000 if self.flux else 1), j.told["pooled_projections"]
        )
        self.texts = [j.net.context_embedder(t) for t in (j.told["encoder_hidden_states"], against)]

    def mixed(self, name, good, bad):
        if name not in self.layers:
            return good
        made, ratio = nag(good, bad, *self.strength)
        self.ratios.append(ratio)
        return made

    @torch.no_grad()
    def run(self):
        return self.run_flux() if self.flux else self.run_sd3()

    def run_sd3(self):
        h = self.net.pos_embed(self.told["hidden_states"])
        for i, block in enumerate(self.net.transformer_blocks):
            h, self.texts = self.sd3_block(f"transformer_blocks.{i}.attn", block, h, self.texts)
        scale, shift = parts(self.net.norm_out.linear, self.time, 2)
        h = (
            self.net.proj_out(normal(h, shift, scale)).unflatten(1, (4, 4)).unflatten(-1, (2, 2, 2))
        )  # [B, rows, columns, 2, 2, C]
        return h.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    def sd3_block(self, name, block, h, texts):
        a, n = block.attn, h.shape[1]
        shift, scale, gate, shift2, scale2, gate2, *dual = parts(
            block.norm1.linear, self.time, 9 if block.attn2 is not None else 6
        )
        x = projected(normal(h, shift, scale), a)
        told = parts(block.norm1_context.linear, self.time, 2 if block.context_pre_only else 6)
        first = (told[1], told[0]) if block.context_pre_only else told[:2]
        z = [
            attended(
                *(
                    torch.cat(both, 2)
                    for both in zip(x, projected_text(normal(t, *first), a), strict=True)
                )
            )
            for t in texts
        ]
        made = h + gate * a.to_out[0](self.mixed(name, z[0][:, :n], z[1][:, :n]))
        if dual:
            made = made + dual[2] * block.attn2.to_out[0](
                attended(*projected(normal(h, dual[0], dual[1]), block.attn2))
            )
        made = made + gate2 * block.ff(normal(made, shift2, scale2))
        return made, [] if block.context_pre_only else [
            self.text_after(block, t, z[k][:, n:], told) for k, t in enumerate(texts)
        ]

    def text_after(self, block, t, z, told):
        _, _, gate, shift, scale, gate2 = told
        t = t + gate * block.attn.to_add_out(z)
        return t + gate2 * block.ff_context(normal(t, shift, scale))

    def run_flux(self):
        h, self.ids = (
            self.net.x_embedder(self.told["hidden_states"]),
            torch.cat([self.told["txt_ids"], self.told["img_ids"]]),
        )
        for i, block in enumerate(self.net.transformer_blocks):
            h = self.flux_block(f"transformer_blocks.{i}.attn", block, h)
        for i, block in enumerate(self.net.single_transformer_blocks):
            h = self.single_block(f"single_transformer_blocks.{i}.attn", block, h)
        scale, shift = parts(self.net.norm_out.linear, self.time, 2)
        return self.net.proj_out(normal(h, shift, scale))

    def turned(self, q, k, v):
        return attended(rotated(q, self.ids), rotated(k, self.ids), v)

    def flux_block(self, name, block, h):
        a = block.attn
        shift, scale, gate, shift2, scale2, gate2 = parts(block.norm1.linear, self.time, 6)
        told = parts(block.norm1_context.linear, self.time, 6)
        x = projected(normal(h, shift, scale), a)
        z = [
            self.turned(
                *(
                    torch.cat(both, 2)
                    for both in zip(projected_text(normal(t, *told[:2]), a), x, strict=True)
                )
            )
            for t in self.texts
        ]
        h = h + gate * a.to_out[0](self.mixed(name, z[0][:, WORDS:], z[1][:, WORDS:]))
        self.texts = [
            self.text_after(block, t, z[k][:, :WORDS], told) for k, t in enumerate(self.texts)
        ]
        return h + gate2 * block.ff(normal(h, shift2, scale2))

    def single_block(self, name, block, h):
        shift, scale, gate = parts(block.norm.linear, self.time, 3)
        streams = [normal(torch.cat([t, h], 1), shift, scale) for t in self.texts]
        z = [self.turned(*projected(s, block.attn)) for s in streams]
        image = self.mixed(name, z[0][:, WORDS:], z[1][:, WORDS:])

        def after(given, z, s):
            return given + gate * block.proj_out(
                torch.cat([z, F.gelu(block.proj_mlp(s), approximate="tanh")], 2)
            )

        self.texts = [
            after(t, z[k][:, :WORDS], streams[k][:, :WORDS]) for k, t in enumerate(self.texts)
        ]
        return after(h, image, streams[0][:, WORDS:])


def close(a, b, tolerance=1e-6):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance * float(b.abs().max()))


def chosen():
    return [
        (name, layers)
        for name, names in NAMES.items()
        for layers in ((), *((n,) for n in names), (names[-1], names[0]))
    ]


@pytest.mark.parametrize(("name", "layers"), chosen())
def test_a_contrast_in_plain_torch(name, layers):
    j, largest = joint(name), {}
    for strength in STRENGTHS:
        written = Written(j, text(12), layers, strength)
        expected = written.run()
        close(j.contrasted(text(12), layers, *strength), expected)
        largest[strength] = max(float(ratio.max()) for ratio in written.ratios)
        assert (expected - j.ask()).abs().max() > 1e-3 * expected.abs().max()
    assert largest[STRENGTHS[1]] > STRENGTHS[1][1]  # there tau bounds what is moved


@pytest.mark.parametrize("words", [1, 3, 9])
def test_a_text_of_another_length_in_sd3(words):
    j = joint("sd3")
    close(j.contrasted(text(12, words)), Written(j, text(12, words)).run())


# --- laws ---


@pytest.mark.parametrize("name", NAMES)
def test_what_changes_nothing(name):
    j = joint(name)
    clean = j.ask()
    close(j.contrasted(text(12), scale=1.0), clean, 1e-12)
    close(j.contrasted(text(12), alpha=0.0), clean, 1e-12)
    close(j.contrasted(j.told["encoder_hidden_states"]), clean, 1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_behind(name):
    j = joint(name)
    before, clean = traces(j.net), j.ask()
    j.contrasted(text(12))
    assert torch.equal(j.ask(), clean) and traces(j.net) == before

    def broken(good, bad):
        raise KeyError("broken")

    with layers_of(j.net).contrasting((), broken):
        for _ in range(2):
            with pytest.raises(KeyError, match="broken"):
                j.ask(against=text(12))
    assert torch.equal(j.ask(), clean) and traces(j.net) == before


@pytest.mark.parametrize("name", NAMES)
def test_each_call_starts_with_its_own_text(name):
    j = joint(name)
    both = [j.contrasted(text(k)) for k in (12, 13)]
    with ContrastedAttention(scale=5.0, tau=2.5, alpha=0.25)(j.net):
        assert all(
            torch.equal(j.ask(against=text(k)), made)
            for k, made in zip((12, 13), both, strict=True)
        )
    assert not torch.equal(*both)


def texts_after(j, run):
    """The text and the picture that each block hands on."""
    made, blocks = (
        [],
        [m for n, m in j.net.named_modules() if n.count(".") == 1 and hasattr(m, "attn")],
    )
    handles = [b.register_forward_hook(lambda m, args, out: made.append(out)) for b in blocks]
    run()
    for handle in handles:
        handle.remove()
    return made


@pytest.mark.parametrize("name", NAMES)
def test_the_text_is_changed_by_the_picture_alone(name):
    j = joint(name)
    for k, layer in enumerate(NAMES[name][:-1]):
        clean, changed = (
            texts_after(j, j.ask),
            texts_after(j, lambda: j.contrasted(text(12), (layer,))),
        )
        assert len(clean) == len(changed) == len(NAMES[name])
        assert all(
            torch.equal(a, b)
            for before in range(k)
            for a, b in zip(clean[before], changed[before], strict=True)
        )
        close(changed[k][0], clean[k][0], 1e-12)
        assert not torch.allclose(changed[k][1], clean[k][1])
        if clean[k + 1][0] is not None:
            assert not torch.allclose(changed[k + 1][0], clean[k + 1][0])


@pytest.mark.parametrize("name", NAMES)
def test_blocks_after_the_last_contrast_work_once(name):
    j, calls = joint(name), []
    for layer in NAMES[name]:
        j.net.get_submodule(layer).register_forward_hook(
            lambda *_, layer=layer: calls.append(layer)
        )
    j.contrasted(text(12), NAMES[name][1::-1])
    assert [calls.count(layer) for layer in NAMES[name]] == [2, 2] + [1] * (len(NAMES[name]) - 2)


# --- names, and what is refused ---


@pytest.mark.parametrize("name", NAMES)
def test_names_of_joint_attention(name):
    layers = layers_of(joint(name).net)
    assert layers.find("cross") == tuple(NAMES[name])
    with pytest.raises(
        ValueError,
        match=r"Transformer2DModel has no layer of attention to text that can be contrasted "
        rf"'attn'; there are {', '.join(NAMES[name])}$",
    ):
        layers.find("cross", ["attn"])


def test_a_text_of_another_length_is_refused_in_flux():
    with pytest.raises(
        ValueError,
        match=r"^the text to contrast with has 4 tokens and the prompt 5; FluxTransformer2DModel "
        r"has places for as many: encode both to one length$",
    ):
        joint("flux").contrasted(text(12, 4))


@pytest.mark.parametrize("name", NAMES)
def test_no_text_is_refused(name):
    with pytest.raises(
        ValueError,
        match=r"Transformer2DModel got no text to contrast with \(encoder_hidden_states\); give",
    ):
        joint(name).contrasted(None)


def test_a_foreign_processor_is_refused_where_it_is_named():
    class Foreign:
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
            return hidden_states, encoder_hidden_states

    j = joint("sd3")
    j.net.transformer_blocks[1].attn.processor = Foreign()
    with pytest.raises(
        ValueError,
        match=r"attention of 'transformer_blocks.1.attn' cannot be perturbed under its "
        r"processor, Foreign",
    ):
        j.contrasted(text(12))
    close(j.contrasted(text(12), ["transformer_blocks.2.attn"], alpha=0.0), j.ask(), 1e-12)


def test_attention_to_pictures_stays_as_it_is():
    """An IP-Adapter calls the attention twice in a layer; the second sees no text."""
    j = joint("flux")
    torch.manual_seed(0)
    j.net.transformer_blocks[0].attn.set_processor(
        FluxIPAdapterAttnProcessor(16, 8, scale=1.0).double()
    )
    told = {"joint_attention_kwargs": {"ip_hidden_states": [draw(BATCH, 4, 8, seed=5).double()]}}
    clean, own = j.ask(**told), j.told["encoder_hidden_states"]
    j.told |= told
    close(j.contrasted(own), clean, 1e-12)
    assert not torch.allclose(j.contrasted(text(12)), clean)
