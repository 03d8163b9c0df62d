"""Where a picture's tokens are and what grid they form, by sizes written out."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from guidestar.core.perturbation import Rows
from guidestar.networks.perturbable import layers, records, self_attention
from guidestar.networks.perturbable.records import RECORDS, Blocks, Record


def net(**config: Any) -> Any:
    made: Any = nn.Module()
    made.config = SimpleNamespace(**config)
    return made


def hidden(*shape: int, **more: Any) -> Any:
    return {"hidden_states": torch.zeros(*shape), **more}


@pytest.mark.parametrize(
    ("sizes", "patch", "over"),
    [
        ((8, 6), 2, (4, 3)),
        ((5, 8, 6), 2, (2, 4, 3)),
        ((5, 8, 6), (1, 4, 3), (5, 2, 2)),
        ((5, 8, 6), (2, 2), (5, 4, 3)),
        ((9,), 2, (4,)),
    ],
)
def test_patches_in_each_direction(sizes, patch, over):
    assert records._over(sizes, patch) == over


def test_grids_of_each_form_of_input():
    assert records._patched(net(patch_size=2), hidden(1, 4, 6, 10)) == (3, 5)
    film = net(patch_size=2, patch_size_t=3)
    assert records._patched_film(film, hidden(1, 4, 9, 6, 10)) == (3, 3, 5)
    assert records._frames_first(film, hidden(1, 9, 4, 6, 10)) == (3, 3, 5)
    for config in ({"patch_size": 2}, {"patch_size": 2, "patch_size_t": None}):
        assert records._frames_first(net(**config), hidden(1, 9, 4, 6, 10)) == (9, 3, 5)
    named = {"num_frames": 2, "height": 3, "width": 5}
    assert records._named_sizes(net(), named) == (2, 3, 5)  # type: ignore[arg-type]
    assert records._sound(net(), hidden(1, 4, 7)) == (7,)


@pytest.mark.parametrize("batched", [False, True])
def test_packed_tokens_know_their_rows(batched):
    ids = torch.cartesian_prod(torch.zeros(1), torch.arange(3.0), torch.arange(5.0))
    ids = ids.expand(2, -1, -1) if batched else ids
    assert records._by_ids(net(), hidden(2, 15, 4, img_ids=ids)) == (3, 5)
    tall = torch.cartesian_prod(torch.zeros(1), torch.arange(5.0), torch.arange(2.0))
    tall = tall.expand(2, -1, -1) if batched else tall
    flux: Any = object.__new__(self_attention.FluxTransformer2DModel)
    nn.Module.__init__(flux)
    inputs = hidden(2, 15, 4, img_ids=ids)
    assert self_attention.find_grid(flux, inputs, inputs["hidden_states"], 15) == (3, 5)
    assert self_attention.find_image(flux, inputs, inputs["hidden_states"], 22) == slice(7, 22)
    inputs = hidden(2, 10, 4, img_ids=tall)
    assert self_attention.find_grid(flux, inputs, inputs["hidden_states"], 10) == (5, 2)
    assert records._by_ids(net(), inputs) == (5, 2)


class Masked(nn.Module):
    """Attention of one head to itself, with a mask."""

    def forward(self, hidden_states, mask, *, named):
        q = hidden_states[:, None]
        given = {"attn_mask": mask} if named else {}
        rest = () if named else (mask,)
        return nn.functional.scaled_dot_product_attention(q, q, q, *rest, **given)[:, 0]


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("sizes", [(2, 1, 2, 2), (1, 1, 2, 2), (2, 2)])
def test_a_mask_is_cut_by_rows_where_it_has_one_a_row(sizes, named):
    """One row is doubled and one plain, each under its own mask; two tokens and two rows, so that
    a mask of no rows is as long as the call.
    """
    x, net = torch.randn(2, 2, 3), nn.Sequential(Masked())
    mask = torch.randn(*sizes)
    double = lambda a: 2 * a.compute()
    with self_attention.attending(net, "0", {}, double, Rows(1, 2, 2)):
        found = net[0](x, mask, named=named)
    scores = x @ x.mT / 3**0.5 + (mask[:, 0] if mask.ndim == 4 else mask)
    wanted = scores.softmax(-1) @ x
    torch.testing.assert_close(found, wanted * torch.tensor([1.0, 2.0])[:, None, None])


def test_packed_tokens_with_shapes():
    shapes = lambda *s: records._by_shapes(net(), {"img_shapes": s})  # type: ignore[arg-type]
    assert shapes([(1, 3, 5)]) == shapes((1, 3, 5)) == (3, 5)
    assert shapes([(2, 3, 5), (1, 7, 7)]) == (2, 3, 5)


def test_pictures_in_a_list():
    x = [torch.zeros(4, 1, 6, 10), torch.zeros(4, 1, 8, 8)]
    grid = lambda **more: records._of_list(net(), {"x": x, **more})  # type: ignore[arg-type]
    assert grid() == (3, 5) and grid(patch_size=1) == (6, 10)
    film = [torch.zeros(4, 4, 6, 10)]
    more: Any = {"x": film, "f_patch_size": 2}
    assert records._of_list(net(), more) == (2, 3, 5)
    assert records._of_list(net(), {"x": film}) == (4, 3, 5)  # type: ignore[arg-type]
    several: Any = {"x": [[x[0], x[1]]]}
    with pytest.raises(ValueError, match="with pictures beside its own are not known"):
        records._of_list(net(), several)


def test_pictures_after_texts_of_one_length():
    mask = torch.tensor([[1, 1, 0], [1, 1, 0]])
    given = lambda mask: hidden(2, 4, 6, 10, encoder_attention_mask=mask)
    assert records._after_text(net(patch_size=2), given(mask)) == (3, 5)
    for other in (torch.tensor([[1, 1, 0], [1, 1, 1]]), torch.tensor([[1, 1, 1], [1, 0, 0]])):
        with pytest.raises(ValueError, match="the prompts of a call have one length"):
            records._after_text(net(patch_size=2), given(other))


@pytest.mark.parametrize(
    ("tokens", "grid"), [(48, (6, 8)), (12, (3, 4)), (6, (2, 3)), (4, (2, 2)), (1, (1, 1))]
)
def test_a_frame_shrinks_by_one_factor(tokens, grid):
    assert records._spatial({"sample": torch.zeros(1, 4, 6, 8)}, tokens) == grid


@pytest.mark.parametrize(
    ("size", "tokens", "grid"),
    [
        ((6, 8), 48, (6, 8)),
        ((6, 8), 12, (3, 4)),
        ((7, 9), 20, (4, 5)),  # rounded up
        ((7, 9), 12, (3, 4)),  # rounded down
        ((9, 7), 12, (4, 3)),
        ((5, 3), 2, (2, 1)),
        ((3, 5), 1, (1, 1)),
        ((2, 5), 1, (1, 1)),
        ((2, 11), 5, (1, 5)),  # by the shorter side, rounded down
    ],
)
def test_a_unets_grid_is_rounded_up_or_down(size, tokens, grid):
    inputs: Any = {"sample": torch.zeros(1, 4, *size)}
    flat = torch.zeros(1, tokens, 8)
    assert self_attention.find_grid(nn.Module(), inputs, flat, tokens) == grid
    square = torch.zeros(1, 8, 2, 7)
    assert self_attention.find_grid(nn.Module(), inputs, square, 14) == (2, 7)
    assert self_attention.find_image(nn.Module(), inputs, square, 14) == slice(0, 14)
    assert self_attention.find_image(nn.Module(), inputs, torch.zeros(1, 9, 8), 14) == slice(0, 9)


class Block(nn.Module):
    def __init__(self, *names: str):
        super().__init__()
        for name in names:
            setattr(self, name, nn.Identity())


class Net(nn.Module):
    """Two blocks of one kind and one of another."""

    def __init__(self, **config: Any):
        super().__init__()
        self.config = SimpleNamespace(patch_size=2, **config)
        self.joint = nn.ModuleList([Block("attn", "cross"), Block("attn", "attn2")])
        self.single = nn.ModuleList([Block("attn")])


BLOCKS = (
    Blocks(at="joint", attention=("attn",), cross=("cross", "attn2"), place="first"),
    Blocks(at="single", attention=("attn",), place="last", skips=False, line=("sound",)),
)
RECORD = Record(blocks=BLOCKS, grid=records._patched)


def test_layers_by_name():
    made = Net()
    attention = ["joint.0.attn", "joint.1.attn", "single.0.attn"]
    assert RECORD.list_layers(made, "attention") == attention
    assert RECORD.list_layers(made, "cross") == ["joint.0.cross", "joint.1.attn2"]
    assert RECORD.list_layers(made, "block") == ["joint.0", "joint.1"]
    pictures = Net(image_dim=8)
    assert RECORD.list_layers(pictures, "cross") == ["joint.0.cross"]
    assert RECORD.list_layers(Net(image_dim=None), "cross")[-1] == "joint.1.attn2"
    assert records._has(made, "joint.0.attn") and not records._has(made, "joint.0.none")
    assert RECORD.blocks_of(made, "joint.1.attn") is BLOCKS[0]
    assert RECORD.blocks_of(made, "single.0") is BLOCKS[1]
    assert [n for n in ("joint.0", "joint.1.attn", "single.0", "joint.10") if
            RECORD.usual(made, n)] == ["joint.1.attn"]  # fmt: skip
    middle = Record(blocks=BLOCKS, grid=records._patched, middle="single")
    assert middle.usual(made, "single.0.attn") and not middle.usual(made, "joint.1")


def test_the_pictures_tokens():
    made, inputs = Net(), hidden(1, 4, 6, 10)
    assert RECORD.image(made, "joint.0.attn", inputs, 20) == slice(0, 15)
    assert RECORD.image(made, "single.0.attn", inputs, 20) == slice(5, 20)
    whole = Record(blocks=(Blocks(at="joint"),), grid=records._patched)
    assert whole.image(made, "joint.0", inputs, 20) == slice(0, 20)
    assert RECORD.count(made, inputs) == 15
    packed = hidden(1, 18, 4, img_ids=torch.zeros(18, 3))
    assert RECORD.count(made, packed) == 18
    assert RECORD.count(made, hidden(1, 18, 4, img_shapes=[(1, 3, 5)])) == 18
    assert RECORD.count(made, hidden(1, 4, 6, 10, img_shapes=None)) == 15
    assert RECORD.count(made, hidden(1, 4, 6, 10, img_ids=torch.zeros(1, 3))) == 15


def test_the_grid_in_one_layer():
    made, inputs = Net(), hidden(1, 4, 6, 10)
    assert RECORD.find_grid(made, "joint.0.attn", inputs, 15) == (3, 5)
    assert RECORD.find_grid(made, "single.0.sound", inputs, 7) == (7,)
    with pytest.raises(ValueError, match=r"'joint.0.attn' of Net has 14 tokens of pictures"):
        RECORD.find_grid(made, "joint.0.attn", inputs, 14)
    frames = Record(blocks=BLOCKS, grid=records._patched, frames=True)
    assert frames.find_grid(made, "joint.0.attn", inputs, 60) == (6, 10)


def test_rows_of_frames():
    frames = Record(blocks=BLOCKS, grid=records._patched, frames=True)
    rows = Rows(1, 2, 3)
    assert RECORD.spread(rows, 12) is rows
    assert frames.spread(rows, 12) == Rows(4, 8, 12)
    assert frames.spread(rows, 13) is rows
    assert frames.spread_all([(print, None), (print, rows)], 6) == [  # type: ignore[list-item]
        (print, None),
        (print, Rows(2, 4, 6)),
    ]


class Joint(nn.Module):
    def forward(self, hidden_states, encoder_hidden_states=None):
        return hidden_states, encoder_hidden_states


def test_a_picture_is_changed_beside_its_text():
    made = Net()
    subject = layers.RecordedLayers(made, RECORD)
    change = lambda tokens: tokens * 10
    tokens = torch.arange(40.0).reshape(2, 20, 1)
    inputs = hidden(2, 4, 6, 10)

    def run(name, rows=None, record=RECORD, given=inputs):
        own = layers.RecordedLayers(made, record)
        return own._change_picture(name, given, change, rows, Joint().forward)(tokens)[0]  # type: ignore[index]

    found = run("joint.0")
    assert torch.equal(found[:, :15], tokens[:, :15] * 10)
    assert torch.equal(found[:, 15:], tokens[:, 15:])
    found = run("single.0", Rows(1, 2, 2))
    assert torch.equal(found[0], tokens[0])
    assert torch.equal(found[1, 5:], tokens[1, 5:] * 10) and torch.equal(
        found[1, :5], tokens[1, :5]
    )
    both = Record(
        blocks=(Blocks(at="joint", returns=("encoder_hidden_states", "hidden_states")),),
        grid=records._patched,
    )
    assert torch.equal(run("joint.0", record=both), tokens * 10)
    frames = Record(blocks=(Blocks(at="joint"),), grid=records._patched, frames=True)
    seen: list[torch.Tensor] = []
    own = layers.RecordedLayers(made, frames)
    given = {"sample": torch.zeros(1, 4, 6, 10)}
    note = lambda t: seen.append(t) or t
    own._change_picture("joint.0", given, note, None, Joint().forward)(tokens)
    assert seen[0].shape == (1, 40, 1) and torch.equal(seen[0].flatten(), tokens.flatten())
    assert subject.net is made


# Which blocks a family has: their list; layers of attention, to itself and to text; what a block
# returns, as Diffusers' own forward does; and where the picture's tokens are among those that
# attend to each other.
VIDEO, TEXT = "hidden_states", "encoder_hidden_states"
WAN = [("blocks", "attn1", "attn2", VIDEO, "all")]
BOTH, TURNED = f"{VIDEO} {TEXT}", f"{TEXT} {VIDEO}"
DOUBLE, SINGLE = "transformer_blocks", "single_transformer_blocks"
PACKED = [(DOUBLE, "attn", "", TURNED, "last"), (SINGLE, "attn", "", VIDEO, "last")]
FAMILIES = {
    "WanTransformer3DModel": WAN,
    "WanVACETransformer3DModel": WAN,
    "WanAnimateTransformer3DModel": WAN,
    "SkyReelsV2Transformer3DModel": WAN,
    "ChronoEditTransformer3DModel": WAN,
    "LTXVideoTransformer3DModel": [(DOUBLE, "attn1", "attn2", VIDEO, "all")],
    "LTX2VideoTransformer3DModel": [
        (DOUBLE, "attn1 audio_attn1", "", f"{VIDEO} audio_hidden_states", "all")
    ],
    "HunyuanVideoTransformer3DModel": [
        (DOUBLE, "attn", "", BOTH, "first"), (SINGLE, "attn", "", BOTH, "first")
    ],
    "CogVideoXTransformer3DModel": [(DOUBLE, "attn1", "", BOTH, "last")],
    "MochiTransformer3DModel": [(DOUBLE, "", "", BOTH, "all")],
    "QwenImageTransformer2DModel": [(DOUBLE, "attn", "", TURNED, "last")],
    "ZImageTransformer2DModel": [("layers", "attention", "", "x", "first")],
    "Flux2Transformer2DModel": PACKED,
    "ChromaTransformer2DModel": PACKED,
    "SanaTransformer2DModel": [(DOUBLE, "", "", VIDEO, "all")],
    "SanaVideoTransformer3DModel": [(DOUBLE, "", "", VIDEO, "all")],
    "Lumina2Transformer2DModel": [("layers", "attn", "", VIDEO, "last")],
    "AuraFlowTransformer2DModel": [
        ("joint_transformer_blocks", "attn", "", TURNED, "last"), PACKED[1]
    ],
    "StableAudioDiTModel": [(DOUBLE, "attn1", "", VIDEO, "last")],
    "UNetSpatioTemporalConditionModel": [
        (r".+\.transformer_blocks", "attn1", "", VIDEO, "all"),
        (r".+\.temporal_transformer_blocks", "attn1", "", VIDEO, "all"),
    ],
}  # fmt: skip


def test_blocks_of_each_family():
    assert {*RECORDS} == {*FAMILIES}
    for name, record in RECORDS.items():
        found = [
            (b.at, " ".join(b.attention), " ".join(b.cross), " ".join(b.returns), b.place)
            for b in record.blocks
        ]
        assert found == FAMILIES[name], name
        assert all(b.skips for b in record.blocks)


def test_what_single_families_have_beside():
    of = lambda what: {n: what(r) for n, r in RECORDS.items() if what(r)}
    assert of(lambda r: r.guided_block) == {
        "LTXVideoTransformer3DModel": 19, "LTX2VideoTransformer3DModel": 29,
    }  # fmt: skip
    assert of(lambda r: r.middle) == {"UNetSpatioTemporalConditionModel": "mid_block."}
    assert of(lambda r: r.frames) == {"UNetSpatioTemporalConditionModel": True}
    wan = {n for n, blocks in FAMILIES.items() if blocks is WAN}
    assert of(lambda r: r.text) == dict.fromkeys(wan, "condition_embedder.text_embedder")
    assert of(lambda r: [line for b in r.blocks for line in b.line]) == {
        "LTX2VideoTransformer3DModel": ["audio_attn1"],
        "UNetSpatioTemporalConditionModel": ["attn1"],
    }
    assert of(lambda r: [e for b in r.blocks for e in b.exchange]) == {
        "LTX2VideoTransformer3DModel": ["audio_to_video_attn", "video_to_audio_attn"],
    }
    assert RECORDS["UNetSpatioTemporalConditionModel"].blocks[0].line == ()
