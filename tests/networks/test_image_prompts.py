"""Layers whose processor lets the picture attend to image prompts as well (IP-Adapters of SD3 and
Flux), in plain torch and float64.

Diffusers takes the mean square of its norms in float32, whatever it is given.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor

from guidestar.core.perturbation import Attention, Rows
from guidestar.guidance.methods.pag import IdentityAttention
from guidestar.guidance.methods.sag import AttentionMap
from guidestar.guidance.methods.seg import BlurredQueries
from guidestar.networks.perturbable.rows import by_rows
from helpers.families import BATCH, draw
from networks.test_joint import (
    attended,
    close,
    joint,
    projected,
    projected_text,
    rms,
    rotated,
    split,
    text,
)
from networks.test_layers import overheard

LAYER, SCALE = "transformer_blocks.0.attn", 0.7
GRIDS = {"sd3": (4, 4), "flux": (2, 3)}
WATCHES = {"identity": IdentityAttention(layers=(LAYER,)), "mean": BlurredQueries(layers=(LAYER,))}


def shown(name: str):
    """A network that is told an image prompt."""
    j, images = joint(name), draw(BATCH, 3, 6, seed=5).double()
    kinds = {
        "sd3": lambda: SD3IPAdapterJointAttnProcessor2_0(
            hidden_size=16, ip_hidden_states_dim=6, head_dim=8, timesteps_emb_dim=5, scale=SCALE
        ),
        "flux": lambda: FluxIPAdapterAttnProcessor(16, 6, num_tokens=(3,), scale=[SCALE]),
    }
    processor = kinds[name]().double().requires_grad_(False)
    generator = torch.Generator().manual_seed(6)
    for p in processor.parameters():
        p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.5)
    j.net.get_submodule(LAYER).set_processor(processor)
    more = (
        {"ip_hidden_states": images, "temb": draw(BATCH, 5, seed=4).double()}
        if name == "sd3"
        else {"ip_hidden_states": [images]}
    )
    j.told["joint_attention_kwargs"] = more
    return j


def joint_qkv(j, layer, told):
    """Queries, keys and values of picture and text, and where the picture is among them."""
    both = [
        projected(told["hidden_states"], layer),
        projected_text(told["encoder_hidden_states"], layer),
    ]
    tokens = told["hidden_states"].shape[1]
    if j.name == "sd3":
        return [torch.cat(x, 2) for x in zip(*both, strict=True)], slice(0, tokens)
    ids = torch.cat([j.told["txt_ids"], j.told["img_ids"]])
    q, k, v = (torch.cat(x, 2) for x in zip(*both[::-1], strict=True))
    return [rotated(q, ids), rotated(k, ids), v], slice(-tokens, None)


def image_prompt(j, layer, told):
    """What the picture gets from the image prompt."""
    p, (q, _, v) = layer.processor, projected(told["hidden_states"], layer)
    if j.name == "flux":
        images = told["ip_hidden_states"][0]
        return SCALE * attended(q, split(p.to_k_ip[0](images)), split(p.to_v_ip[0](images)))
    images, plain = (
        p.norm_ip(told["ip_hidden_states"], temb=told["temb"]),
        split(layer.to_q(told["hidden_states"])),
    )
    k = torch.cat(
        [
            rms(split(layer.to_k(told["hidden_states"])), p.norm_k),
            rms(split(p.to_k_ip(images)), p.norm_ip_k),
        ],
        2,
    )
    return SCALE * attended(rms(plain, p.norm_q), k, torch.cat([v, split(p.to_v_ip(images))], 2))


def written(j, layer, told, change):
    """What the layer answers, with ``change`` in its joint attention alone."""
    (q, k, v), image = joint_qkv(j, layer, told)
    if change == "mean":
        q = q.clone()
        q[:, :, image] = q[:, :, image].mean(2, keepdim=True)
    mixed = attended(q, k, v)
    if change == "identity":
        mixed[:, image] = v[:, :, image].transpose(1, 2).flatten(2)
    picture, more = mixed[:, image], image_prompt(j, layer, told)
    words = mixed[:, image.stop :] if j.name == "sd3" else mixed[:, : image.start]
    out = layer.to_add_out(words)
    return (
        (layer.to_out[0](picture + more), out)
        if j.name == "sd3"
        else (layer.to_out[0](picture), out, more)
    )


@pytest.mark.parametrize("rows", [None, Rows(1, 2, 3)])
@pytest.mark.parametrize("change", WATCHES)
@pytest.mark.parametrize("name", GRIDS)
def test_only_the_joint_attention_is_perturbed(name, change, rows):
    j = shown(name)
    layer = j.net.get_submodule(LAYER)
    with overheard(layer) as calls, torch.no_grad():
        j.ask(lambda net: WATCHES[change](net, rows))
        ((told, answers),) = calls
        clean, changed = (written(j, layer, told, c) for c in (None, change))
    mine = slice(None) if rows is None else rows.slice
    for out, plain, other in zip(answers, clean, changed, strict=True):
        wanted = plain.clone()
        wanted[mine] = other[mine]
        close(out, wanted)
    assert (clean[0] - changed[0]).abs().max() > 1e-2


@pytest.mark.parametrize("name", GRIDS)
def test_a_look_sees_the_joint_attention_alone(name):
    j = shown(name)
    layer = j.net.get_submodule(LAYER)
    with overheard(layer) as calls, torch.no_grad(), AttentionMap(layer=LAYER)(j.net) as seen:
        j.ask()
    ((told, _),) = calls
    with torch.no_grad():
        (q, k, _), image = joint_qkv(j, layer, told)
    received = (q[:, :, image] @ k[:, :, image].mT / 8**0.5).softmax(-1).mean(1).sum(1)
    assert len(seen) == 1
    close(seen[0], received.unflatten(1, GRIDS[name]))


@pytest.mark.parametrize("name", GRIDS)
def test_what_the_prompt_is_contrasted_with_leaves_image_prompts_alone(name):
    """With its own text it is the network as it is; with another not."""
    j = shown(name)
    clean, own = j.ask(), j.told["encoder_hidden_states"]
    close(j.contrasted(own), clean)
    assert not torch.allclose(j.contrasted(text(12)), clean)


@pytest.mark.parametrize("rows", [None, Rows(1, 2, 3)])
def test_a_changed_answer_lies_in_memory_as_attentions_own_does(rows):
    """The heads of a token side by side, so that they can be viewed as one width, however the parts
    lie.
    """
    q, own = draw(3, 2, 6, 8), draw(3, 2, 4, 8, seed=1)
    a = Attention(
        query=q, key=q, value=q, image=slice(2, 6), with_query=lambda q: q, find_grid=tuple
    )
    replaced = a.replace(q, own)
    assert torch.equal(
        replaced.transpose(1, 2).view(3, 6, 16),
        torch.cat([q[:, :, :2], own], 2).transpose(1, 2).flatten(2),
    )
    made = by_rows(
        [(lambda part: -part.query, rows)],
        q,
        lambda part, attend: attend(replace(a, query=q[part])).contiguous(),
    )
    wanted = q.clone()
    wanted[slice(None) if rows is None else rows.slice] *= -1
    assert torch.equal(made.transpose(1, 2).view(3, 6, 16), wanted.transpose(1, 2).flatten(2))
