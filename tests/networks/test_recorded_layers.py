"""The layers of networks that a record describes, against edits of the network by hand."""

from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from torch.nn import functional as F

from guidestar.core.perturbation import Rows, layers_of
from helpers.zoo.table import entries

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:In CPU autocast:UserWarning"),
]


@dataclass(frozen=True)
class Case:
    """A layer of self-attention, where its picture is, and a block with what it returns."""

    pipe: str
    layer: str
    where: slice
    block: str
    returns: tuple[str, ...] = ("hidden_states",)


BOTH = ("hidden_states", "encoder_hidden_states")
TURNED = BOTH[::-1]
ALL, AFTER = slice(None), slice(5, None)  # after five words
CASES = [
    Case("WanPipeline", "blocks.0.attn1", ALL, "blocks.0"),
    Case("SkyReelsV2Pipeline", "blocks.0.attn1", ALL, "blocks.0"),
    Case("LTXPipeline", "transformer_blocks.0.attn1", ALL, "transformer_blocks.0"),
    Case(
        "LTX2Pipeline",
        "transformer_blocks.0.audio_attn1",
        ALL,
        "transformer_blocks.0",
        ("hidden_states", "audio_hidden_states"),
    ),
    Case(
        "HunyuanVideoPipeline",
        "transformer_blocks.0.attn",
        slice(None, -5),
        "transformer_blocks.0",
        BOTH,
    ),
    Case(
        "HunyuanVideoPipeline",
        "single_transformer_blocks.0.attn",
        slice(None, -5),
        "single_transformer_blocks.0",
        BOTH,
    ),
    Case("CogVideoXPipeline", "transformer_blocks.0.attn1", AFTER, "transformer_blocks.0", BOTH),
    Case("QwenImagePipeline", "transformer_blocks.0.attn", AFTER, "transformer_blocks.0", TURNED),
    Case(
        "QwenImageEditPipeline", "transformer_blocks.0.attn", AFTER, "transformer_blocks.0", TURNED
    ),
    Case("ZImagePipeline", "layers.0.attention", slice(None, 64), "layers.0", ("x",)),
    Case("Flux2KleinPipeline", "transformer_blocks.0.attn", AFTER, "transformer_blocks.0", TURNED),
    Case(
        "Flux2KleinPipeline",
        "single_transformer_blocks.0.attn",
        AFTER,
        "single_transformer_blocks.0",
    ),
    Case("ChromaPipeline", "transformer_blocks.0.attn", AFTER, "transformer_blocks.0", TURNED),
    Case(
        "ChromaPipeline", "single_transformer_blocks.0.attn", AFTER, "single_transformer_blocks.0"
    ),
    Case("Lumina2Pipeline", "layers.0.attn", AFTER, "layers.0"),
    Case(
        "AuraFlowPipeline",
        "joint_transformer_blocks.0.attn",
        slice(13, None),  # 8 registers and 5 words
        "joint_transformer_blocks.0",
        TURNED,
    ),
    Case(
        "StableAudioPipeline", "transformer_blocks.0.attn1", slice(1, None), "transformer_blocks.0"
    ),
    Case(
        "StableVideoDiffusionPipeline",
        "mid_block.attentions.0.transformer_blocks.0.attn1",
        ALL,
        "mid_block.attentions.0.transformer_blocks.0",
    ),
    Case(
        "StableVideoDiffusionPipeline",
        "mid_block.attentions.0.temporal_transformer_blocks.0.attn1",
        ALL,
        "mid_block.attentions.0.temporal_transformer_blocks.0",
    ),
    Case("MochiPipeline", "", ALL, "transformer_blocks.0", BOTH),
    Case("SanaPipeline", "", ALL, "transformer_blocks.0"),
]
LAYERED = [c for c in CASES if c.layer]
name_of = lambda c: f"{c.pipe}-{c.block}"


class Stopped(Exception):
    """The network was called, and its arguments are known."""


def asked(name):
    """Return a pipeline's network and the arguments of its first call."""
    entry = entries()[name]
    pipe = entry.make()
    net = getattr(pipe, "transformer", None) or pipe.unet
    found = {}

    def keep(_, args, kwargs):
        found.update(args=args, kwargs=kwargs)
        raise Stopped

    handle = net.register_forward_pre_hook(keep, with_kwargs=True)
    with pytest.raises(Stopped):
        entry.run(pipe)
    handle.remove()
    return net, found["args"], found["kwargs"]


def answer(net, args, kwargs):
    with torch.no_grad():
        out = net(*args, **kwargs)
    out = out.sample if hasattr(out, "sample") else out[0]
    return torch.stack(out) if isinstance(out, list) else out


@contextmanager
def forward_of(net, name, change):
    module = net.get_submodule(name)
    plain = module.forward
    module.forward = change(plain)
    try:
        yield
    finally:
        del module.forward


def with_values(where):
    """Let a layer's first attention return the values of some tokens, as each attends to itself."""

    def change(plain):
        def forward(*args, **kwargs):
            real, count = F.scaled_dot_product_attention, []

            def attend(query, key, value, *rest, **more):
                out = real(query, key, value, *rest, **more)
                if not count:
                    out[:, :, where] = value[:, :, where]
                count.append(1)
                return out

            F.scaled_dot_product_attention = attend
            try:
                return plain(*args, **kwargs)
            finally:
                F.scaled_dot_product_attention = real

        return forward

    return change


def returning(names):
    def change(plain):
        import inspect

        signature = inspect.signature(plain)

        def forward(*args, **kwargs):
            given = signature.bind(*args, **kwargs).arguments
            return tuple(given[n] for n in names) if len(names) > 1 else given[names[0]]

        return forward

    return change


def identity(a):
    return a.replace(a.compute(), a.value[:, :, a.image])


@pytest.mark.parametrize("case", LAYERED, ids=name_of)
def test_attention_to_itself(case):
    net, args, kwargs = asked(case.pipe)
    plain = answer(net, args, kwargs)
    with forward_of(net, case.layer, with_values(case.where)):
        wanted = answer(net, args, kwargs)
    layers = layers_of(net)
    with layers.attending((case.layer,), identity):
        found = answer(net, args, kwargs)
    size = plain.abs().max()
    assert (found - wanted).abs().max() < 1e-6 * size < (found - plain).abs().max() * 1e-2
    if len(plain) > 1:
        n = len(plain)
        with layers.attending((case.layer,), identity, Rows(n - 1, n, n)):
            part = answer(net, args, kwargs)
        assert torch.allclose(part[:-1], plain[:-1], atol=1e-6 * float(size))
        assert torch.allclose(part[-1], wanted[-1], atol=1e-6 * float(size))


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_a_block_that_is_skipped(case):
    net, args, kwargs = asked(case.pipe)
    plain = answer(net, args, kwargs)
    with forward_of(net, case.block, returning(case.returns)):
        wanted = answer(net, args, kwargs)
    layers = layers_of(net)
    with layers.skipping((case.block,)):
        found = answer(net, args, kwargs)
    size = plain.abs().max()
    assert torch.equal(found, wanted) and (found - plain).abs().max() > 1e-3 * size
    if len(plain) > 1:
        n = len(plain)
        with layers.skipping((case.block,), Rows(n - 1, n, n)):
            part = answer(net, args, kwargs)
        assert torch.allclose(part[:-1], plain[:-1], atol=1e-6 * float(size))
        assert torch.allclose(part[-1], wanted[-1], atol=1e-6 * float(size))


@pytest.mark.parametrize("name", ["WanPipeline", "SkyReelsV2Pipeline", "LTXPipeline"])
def test_attention_to_another_text(name):
    """Where only that remains, it is the network told the other text."""
    net, args, kwargs = asked(name)
    other = torch.randn(kwargs["encoder_hidden_states"].shape)
    wanted = answer(net, args, {**kwargs, "encoder_hidden_states": other})
    more = {"against_encoder_hidden_states": other}
    mask = kwargs.get("encoder_attention_mask")
    if mask is not None:
        more["against_encoder_attention_mask"] = mask
    with layers_of(net).contrasting((), lambda z, against: against):
        found = answer(net, args, kwargs | more)
    assert torch.allclose(found, wanted, atol=1e-5 * float(wanted.abs().max()))
    assert not torch.allclose(found, answer(net, args, kwargs), rtol=1e-2)


def test_attention_to_text_and_pictures_is_no_attention_to_text():
    net, _, _ = asked("WanImageToVideoPipeline")
    with pytest.raises(ValueError, match="no layer of attention to text that can be contrasted"):
        layers_of(net).find("cross")


def test_what_there_is_not_is_refused():
    net, args, kwargs = asked("MochiPipeline")
    with pytest.raises(ValueError, match="MochiTransformer3DModel has no layer of self-attention"):
        layers_of(net).find("attention")
    net, args, kwargs = asked("Lumina2Pipeline")
    kwargs["encoder_attention_mask"] = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    with (
        pytest.raises(ValueError, match="the prompts of a call have one length"),
        layers_of(net).attending((), identity),
    ):
        answer(
            net,
            args,
            {
                k: torch.cat([v, v])
                if k != "encoder_attention_mask" and isinstance(v, torch.Tensor)
                else v
                for k, v in kwargs.items()
            },
        )
