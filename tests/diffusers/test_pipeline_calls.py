"""One call of a pipeline's network, row by row, with arguments written by hand: what each part is
told, what other rows than the pipeline's are told, and what a family's pipelines are asked.
"""

from types import SimpleNamespace

import pytest
import torch

import guidestar
from guidestar.core.denoiser import Condition
from guidestar.core.levels import Level
from guidestar.core.prediction import Prediction
from guidestar.diffusers.guide.call import Call, CallDenoiser, first, grouped, over
from guidestar.diffusers.guide.classes import MARK
from guidestar.diffusers.guide.families import (
    FAMILIES,
    family_of,
    how_to_ask,
    negative_rows,
    networks,
)
from guidestar.diffusers.guide.kinds import REFUSED, check_kind, warn_of_numbers
from guidestar.diffusers.guide.levels import Output
from guidestar.diffusers.guide.prompts import check_prompt, encode, moved_from
from guidestar.diffusers.guide.run import _channels
from guidestar.diffusers.guide.walk import _prompts
from guidestar.guidance import parse
from helpers.pipelines import stable_diffusion

UNET, FLUX = FAMILIES["UNet2DConditionModel"], FAMILIES["FluxTransformer2DModel"]


def rows(*shape):
    """Return a tensor whose numbers say where they stand: row·1000 + place in the row."""
    count = torch.Size(shape[1:]).numel()
    inside = torch.arange(count, dtype=torch.float64).reshape(shape[1:])
    return torch.arange(shape[0]).view(-1, *[1] * (len(shape) - 1)) * 1000 + inside


def call(parts=("uncond", "cond"), *, settings=False, **more):
    """A U-Net's call of two samples: the negative rows first."""
    count = 2 * len(parts)
    arguments = {
        "sample": rows(count, 4, 2, 2),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": rows(count, 3, 5),
        "return_dict": False,
        **({"added_cond_kwargs": {"time_ids": rows(count, 6) + 0.5}} if settings else {}),
        **more,
    }
    given = {"family": UNET, "arguments": arguments, "parts": parts, "channels": 4}
    return Call(**given, learned_variance=False)


def test_each_part_has_its_own_rows():
    c = call()
    assert (c.rows, c.batch) == (4, 2) and torch.equal(c.x, rows(4, 4, 2, 2)[2:])
    assert torch.equal(c.condition("uncond")["encoder_hidden_states"], rows(4, 3, 5)[:2])
    assert torch.equal(c.condition("cond")["encoder_hidden_states"], rows(4, 3, 5)[2:])
    assert set(c.condition("cond")) == {"encoder_hidden_states"} and not c.has_settings
    three = call(("cond", "image", "uncond"))
    assert three.batch == 2 and torch.equal(three.x, rows(6, 4, 2, 2)[:2])
    assert torch.equal(three.condition("image")["encoder_hidden_states"], rows(6, 3, 5)[2:4])
    odd = call(encoder_hidden_states=rows(5, 3, 5), sample=rows(5, 4, 2, 2))
    with pytest.raises(ValueError, match=r"handed its network 5 rows, .*of uncond and cond$"):
        _ = odd.batch


def test_other_inputs_of_a_row_follow_it_by_number():
    c = call(settings=True)
    assert c.has_settings
    assert c.condition("uncond")["rows"].tolist() == [0, 1]
    assert c.condition("cond")["rows"].tolist() == [2, 3]
    masked = call(sample=rows(4, 9, 2, 2))  # a mask and a picture behind the latents
    assert masked.has_settings and torch.equal(masked.x, rows(4, 9, 2, 2)[2:, :4])
    assert not call(timestep=torch.full((4,), 500)).has_settings
    shared = call(cross_attention_kwargs={"ip_adapter_masks": rows(4, 1)})
    assert not shared.has_settings  # of no row, whatever their number
    assert call(cross_attention_kwargs={"other": [rows(4, 1)]}).has_settings
    assert not call(cross_attention_kwargs={"other": [rows(3, 1), torch.tensor(1.0)]}).has_settings


def test_any_rows_can_be_told_to_the_network():
    c = call(settings=True, sample=rows(4, 5, 2, 2), flag=3, mid=[rows(4, 2), rows(7, 2)])
    x = -rows(3, 4, 2, 2)
    told = c.inputs(
        x,
        torch.tensor([7.0, 8.0, 9.0], dtype=torch.float64),
        Condition(encoder_hidden_states=rows(3, 3, 5) + 0.25, rows=torch.tensor([3, 0, 3])),
    )
    assert torch.equal(told["sample"][:, :4], x)
    assert torch.equal(told["sample"][:, 4:], rows(4, 5, 2, 2)[[3, 0, 3], 4:])
    assert torch.equal(told["encoder_hidden_states"], rows(3, 3, 5) + 0.25)
    assert torch.equal(told["added_cond_kwargs"]["time_ids"], (rows(4, 6) + 0.5)[[3, 0, 3]])
    assert torch.equal(told["mid"][0], rows(4, 2)[[3, 0, 3]]) and len(told["mid"][1]) == 7
    assert told["timestep"].tolist() == [7, 8, 9] and told["timestep"].dtype == torch.float32
    assert told["flag"] == 3 and told["return_dict"] is False and "rows" not in told


def test_all_rows_in_their_order_are_told_as_they_are():
    ids = rows(4, 6)
    c = call(added_cond_kwargs={"time_ids": ids})
    every = Condition(encoder_hidden_states=rows(4, 3, 5), rows=torch.arange(4))
    told = c.inputs(rows(4, 4, 2, 2), None, every)
    assert told["added_cond_kwargs"]["time_ids"] is ids and told["timestep"] == 500
    without = c.inputs(rows(4, 4, 2, 2), None, Condition(encoder_hidden_states=rows(4, 3, 5)))
    assert without["added_cond_kwargs"]["time_ids"] is ids
    turned = c.inputs(rows(4, 4, 2, 2), None, Condition(every, rows=torch.tensor([1, 0, 2, 3])))
    assert torch.equal(turned["added_cond_kwargs"]["time_ids"], ids[[1, 0, 2, 3]])


def test_a_time_for_each_row_is_repeated_for_other_numbers_of_rows():
    c = call(timestep=torch.full((4,), 500))
    told = c.inputs(rows(3, 4, 2, 2), None, Condition(encoder_hidden_states=rows(3, 3, 5)))
    assert told["timestep"].tolist() == [500] * 3
    half = call(timestep=torch.full((4,), 0.5, dtype=torch.float64))
    times = torch.tensor([0.25], dtype=torch.float64)
    told = half.inputs(rows(1, 4, 2, 2), times, Condition(encoder_hidden_states=rows(1, 3, 5)))
    assert told["timestep"].dtype == torch.float64 and told["timestep"].tolist() == [0.25]


def test_a_second_text_is_told_beside_the_first():
    c = call(settings=True)
    cond = Condition(
        encoder_hidden_states=rows(1, 3, 5),
        rows=torch.tensor([2]),
        against_encoder_hidden_states=-rows(1, 3, 5),
        against_rows=torch.tensor([0]),
    )
    told = c.inputs(rows(1, 4, 2, 2), None, cond)
    assert torch.equal(told["against_encoder_hidden_states"], -rows(1, 3, 5))
    assert "against_rows" not in told and "rows" not in told


def test_prompts_that_were_encoded_elsewhere():
    elsewhere = {"encoder_hidden_states": rows(1, 3, 5).float()}
    plain = call().encoded(elsewhere, 1)
    assert plain["encoder_hidden_states"].dtype == torch.float64 and set(plain) == set(elsewhere)
    assert len(plain["encoder_hidden_states"]) == 1
    told = call(settings=True).encoded(elsewhere, 1)
    assert told["rows"].tolist() == [2, 3] and len(told["encoder_hidden_states"]) == 2
    away = call(settings=True).encoded(elsewhere, 1, away=True)
    assert away["rows"].tolist() == [0, 1]
    alone = call(("cond",), settings=True).encoded(elsewhere, 1, away=True)
    assert alone["rows"].tolist() == [0, 1]  # there are no negative rows
    many = {"encoder_hidden_states": rows(3, 3, 5)}
    assert len(call().encoded(many, 3)["encoder_hidden_states"]) == 3
    with pytest.raises(ValueError, match="several conditions to draw from"):
        call(settings=True).encoded(many, 3)
    with pytest.raises(ValueError, match=r"takes encoder_hidden_states, and they give other$"):
        call().encoded({"other": rows(1, 3, 5)}, 1)
    labels = call(("cond",), class_labels=torch.tensor([4, 5], dtype=torch.int32))
    given = {**elsewhere, "class_labels": torch.tensor([7])}
    assert labels.encoded(given, 1)["class_labels"].dtype == torch.int64  # as it was encoded


def test_two_calls_are_merged_into_one():
    ids = rows(5, 3)
    mine = {
        "hidden_states": rows(2, 6, 4),
        "timestep": torch.full((2,), 0.5),
        "encoder_hidden_states": rows(2, 3, 5),
        "pooled_projections": rows(2, 7),
        "img_ids": ids,
        "guidance": torch.tensor(3.5),
    }
    theirs = {k: v if k in ("img_ids", "guidance", "timestep") else -v for k, v in mine.items()}
    given = {"family": FLUX, "channels": 4, "learned_variance": False}
    one = Call(**given, arguments=mine, parts=("cond",))
    both = one.merged(Call(**given, arguments=theirs, parts=("uncond",)))
    assert both.parts == ("cond", "uncond") and both.rows == 4
    for name in ("hidden_states", "encoder_hidden_states", "pooled_projections"):
        assert torch.equal(both.arguments[name], torch.cat([mine[name], -mine[name]]))
    assert both.arguments["img_ids"] is ids and both.arguments["guidance"] == 3.5
    assert both.arguments["timestep"].tolist() == [0.5] * 4
    single = {**mine, "timestep": torch.tensor(0.5)}
    other = Call(**given, arguments={**theirs, "timestep": torch.tensor(0.5)}, parts=("uncond",))
    assert (
        Call(**given, arguments=single, parts=("cond",)).merged(other).arguments["timestep"] == 0.5
    )
    longer = {**theirs, "encoder_hidden_states": rows(2, 4, 5)}
    with pytest.raises(ValueError, match=r"other shapes \(encoder_hidden_states\); give both"):
        one.merged(Call(**given, arguments=longer, parts=("uncond",)))
    fewer = {k: v for k, v in theirs.items() if k != "guidance"}
    with pytest.raises(ValueError, match=r"other shapes \(arguments\)"):
        one.merged(Call(**given, arguments=fewer, parts=("uncond",)))


def test_each_rows_pictures_stay_together():
    """Wan's first and last frame: two pictures a row."""
    name = "encoder_hidden_states_image"
    found = grouped({name: rows(4, 3), "a": 1}, 2)
    assert found["a"] == 1 and torch.equal(found[name], rows(4, 3).reshape(2, 2, 3))
    for pictures, count in ((rows(2, 3), 2), (rows(3, 3), 2), (None, 2)):
        assert grouped({name: pictures}, count)[name] is pictures
    c = call(**grouped({name: rows(8, 3, 2)}, 4))
    told = c.inputs(
        rows(2, 4, 2, 2),
        None,
        Condition(encoder_hidden_states=rows(2, 3, 5), rows=torch.tensor([3, 1])),
    )
    assert torch.equal(told[name], rows(8, 3, 2)[[6, 7, 2, 3]])
    flat = call(**{name: rows(4, 3, 2)})
    told = flat.inputs(
        rows(1, 4, 2, 2),
        None,
        Condition(encoder_hidden_states=rows(1, 3, 5), rows=torch.tensor([3])),
    )
    assert torch.equal(told[name], rows(4, 3, 2)[[3]])


def test_nested_arguments_are_named_by_their_innermost_name():
    seen = []
    one = torch.ones(1)
    made = over({"a": one, "b": {"c": [one, 3, (one,)]}, "d": "x"}, lambda n, t: seen.append(n))
    assert seen == ["a", "c.0", "c.2.0"]
    assert made == {"a": None, "b": {"c": [None, 3, (None,)]}, "d": "x"}


LEVEL = Level(0.8, 0.6, 500.0)


def denoiser(c, **more):
    def run(net, inputs):
        ran.append(inputs)
        return (net(inputs["sample"]),)

    ran = []
    given = {"net": lambda x: 2 * x, "run": run, "call": c, "output": Output(kind="eps")}
    made = CallDenoiser(**{**given, "level": LEVEL, "reads_t": True, **more})
    return made, ran


def test_the_network_is_a_denoiser_of_any_rows():
    c = call()
    made, ran = denoiser(c)
    x = rows(3, 4, 2, 2) / 1000
    cond = Condition(encoder_hidden_states=rows(3, 3, 5))
    found = made(x, LEVEL, cond)
    torch.testing.assert_close(found, (x - 0.6 * 2 * x) / 0.8)
    assert torch.equal(ran[0]["sample"], x) and ran[0]["timestep"] == 500 and bool(made.finite)
    made(x, LEVEL._replace(t=torch.tensor([500.0, 250.0, 100.0], dtype=torch.float64)), cond)
    assert ran[1]["timestep"].tolist() == [500, 250, 100]
    told = call(timestep=torch.full((4,), 0.5))  # of a thousandth: 500 is told as 0.5
    made, ran = denoiser(told)
    made(x, LEVEL._replace(t=torch.tensor([500.0, 250.0, 100.0], dtype=torch.float64)), cond)
    torch.testing.assert_close(ran[0]["timestep"], torch.tensor([0.5, 0.25, 0.1]))
    made(x / 0, LEVEL, cond)
    assert not bool(made.finite)
    made(x, LEVEL, cond)
    assert not bool(made.finite)  # for good


def test_an_answer_is_written_for_each_part():
    made, _ = denoiser(call())
    x0, x = rows(2, 4, 2, 2) / 1000, rows(2, 4, 2, 2) / 500
    eps = (x - 0.8 * x0) / 0.6
    torch.testing.assert_close(made.written(Prediction(x_t=x, level=LEVEL, x0=x0, eps=eps)), eps)
    more = call()
    learned = Call(
        family=UNET, arguments=more.arguments, parts=more.parts, channels=4, learned_variance=True
    )
    made, _ = denoiser(learned, net=lambda x: torch.cat([2 * x, 5 + 0 * x], 1))
    cond = Condition(encoder_hidden_states=rows(2, 3, 5))
    found = made(x, LEVEL, cond)
    torch.testing.assert_close(found.x0, (x - 0.6 * 2 * x) / 0.8)
    assert torch.equal(found.log_var, torch.full_like(x, 5.0))
    plain = Prediction(x_t=x, level=LEVEL, x0=x0, eps=eps)
    written = made.written(plain)
    torch.testing.assert_close(written, torch.cat([eps, torch.zeros_like(eps)], 1))
    torch.testing.assert_close(made.written(found)[:, 4:], torch.full_like(x, 5.0))


def test_the_tensor_of_an_answer():
    t = torch.ones(1)
    assert first((t, 2)) is t and first(SimpleNamespace(sample=t)) is t


# --- what a pipeline is ---


@pytest.mark.parametrize(
    ("inputs", "outputs", "latent", "plain", "wanted"),
    [
        (4, 4, None, True, (4, False)),
        (4, None, 4, True, (4, False)),
        (3, 6, None, True, (3, True)),
        (3, 6, None, False, (3, True)),
        (9, 4, 4, True, (4, False)),  # inpainting
        (9, 8, 4, True, (4, True)),  # inpainting, with a variance
        (9, 8, 4, False, (8, False)),
        (9, 8, None, True, (8, False)),
        (8, 8, 4, True, (8, False)),
    ],
)
def test_channels_of_the_sample_and_whether_a_variance_is_predicted(
    inputs, outputs, latent, plain, wanted
):
    net = SimpleNamespace(config=SimpleNamespace(in_channels=inputs, out_channels=outputs))
    vae = latent and SimpleNamespace(config=SimpleNamespace(latent_channels=latent))
    for name in ("vae", "movq"):
        assert _channels(SimpleNamespace(**{name: vae}), net, plain) == wanted


@pytest.mark.parametrize(
    ("prompt", "batch", "wanted"),
    [
        (None, 2, None),
        ("a", 2, ["a", "a"]),
        (["a", "b"], 2, ["a", "b"]),
        (["a", "b"], 6, ["a", "a", "a", "b", "b", "b"]),
        (("a", "b"), 3, None),
    ],
)
def test_each_image_of_a_prompt_has_its_caption(prompt, batch, wanted):
    assert _prompts({"prompt": prompt}, batch) == wanted
    assert _prompts({}, batch) is None


class Plain:
    """A pipeline without properties of its own."""

    def __init__(self, **parts):
        self.components = parts
        vars(self).update(parts)


class Switched(Plain):
    do_classifier_free_guidance = property(lambda self: self.on)


def net(name):
    return type(name, (torch.nn.Module,), {})()


def test_networks_are_found_by_their_class():
    unet, other = net("UNet2DConditionModel"), net("Other")
    assert networks(Plain(unet=unet)) == {"unet": unet}
    flux = net("FluxTransformer2DModel")
    both = Plain(transformer=flux, transformer_2=net("WanTransformer3DModel"), unet=None)
    assert list(networks(both)) == ["transformer", "transformer_2"]
    wrapped = torch.nn.Module()
    wrapped._orig_mod = unet
    assert networks(Plain(unet=wrapped)) == {"unet": wrapped}
    with pytest.raises(ValueError, match=r"found unet \(Other\); known are UNet2DModel, "):
        networks(Plain(unet=other, vae=None))
    with pytest.raises(ValueError, match=r"found transformer \(Flux.*, transformer_2 \(Other\)"):
        networks(Plain(transformer=flux, transformer_2=other))
    with pytest.raises(ValueError, match="found nothing; known are"):
        networks(Plain())


def test_an_edit_has_three_parts():
    kind = type("StableDiffusionInstructPix2PixPipeline", (Plain,), {})
    unet = net("UNet2DConditionModel")
    assert family_of(kind(unet=unet), unet).parts == ("cond", "image", "uncond")
    assert family_of(Plain(unet=unet), unet) is UNET


BOTH = {"negative_prompt_embeds": 1, "negative_pooled_prompt_embeds": 1}


@pytest.mark.parametrize(
    ("family", "pipe", "arguments", "wanted"),
    [
        ("UNet2DModel", Plain(), {"guidance_scale": 5.0}, False),  # it has one part
        ("UNet2DConditionModel", Plain(), {"guidance_scale": 5.0}, True),
        ("UNet2DConditionModel", Plain(), {"guidance_scale": 1.0}, False),
        ("UNet2DConditionModel", Plain(), {"guidance_scale": 1.01}, True),
        ("UNet2DConditionModel", Plain(), {"guidance_scale": None}, False),
        ("UNet2DConditionModel", Plain(), {}, False),
        (
            "UNet2DConditionModel",
            Plain(),
            {"guidance_scale": 5.0, "image_guidance_scale": 1.0},
            True,
        ),
        (
            "UNet2DConditionModel",
            Plain(),
            {"guidance_scale": 5.0, "image_guidance_scale": 0.9},
            False,
        ),
        ("UNet2DConditionModel", Switched(on=True), {"guidance_scale": 0.0}, True),
        ("UNet2DConditionModel", Switched(on=False), {"guidance_scale": 5.0}, False),
        ("FluxTransformer2DModel", Switched(on=True), {"guidance_scale": 5.0}, False),
        ("FluxTransformer2DModel", Plain(), {"true_cfg_scale": 2.0}, False),
        (
            "FluxTransformer2DModel",
            Plain(),
            {"true_cfg_scale": 2.0, "negative_prompt": "a"},
            True,
        ),
        (
            "FluxTransformer2DModel",
            Plain(),
            {"true_cfg_scale": 1.0, "negative_prompt": "a"},
            False,
        ),
        ("FluxTransformer2DModel", Plain(), {"true_cfg_scale": 2.0, **BOTH}, True),
        (
            "FluxTransformer2DModel",
            Plain(),
            {"true_cfg_scale": 2.0, "negative_prompt_embeds": 1},
            False,
        ),
    ],
)
def test_whether_there_are_negative_rows(family, pipe, arguments, wanted):
    assert negative_rows(pipe, FAMILIES[family], arguments) is wanted


@pytest.mark.parametrize(
    ("family", "pipe", "arguments", "words"),
    [
        (
            "UNet2DConditionModel",
            Plain(unet=SimpleNamespace(config=SimpleNamespace(time_cond_proj_dim=256))),
            {"guidance_scale": 5.0},
            "makes none at any guidance_scale, which it passes to its network",
        ),
        (
            "FluxTransformer2DModel",
            Plain(),
            {"guidance_scale": 5.0},
            "makes none at any guidance_scale, which it passes to its network",
        ),
        (
            "FluxTransformer2DModel",
            Plain(),
            {"true_cfg_scale": 1.0},
            "give negative_prompt= and true_cfg_scale=2",
        ),
        (
            "UNet2DConditionModel",
            Plain(guidance_scale=0.5),
            {"guidance_scale": 5.0},
            r"ended it during the run \(a callback set its guidance_scale to 0.5\)",
        ),
        (
            "UNet2DConditionModel",
            Plain(guidance_scale=1),
            {"guidance_scale": 1.0},
            "was called with guidance_scale=1, at which it makes none; give any guidance_scale",
        ),
        (
            "UNet2DConditionModel",
            Plain(guidance_scale=2.0),
            {"guidance_scale": 1.0, "image_guidance_scale": 0.5},
            "was called with image_guidance_scale=0.5, at which it makes none; give any image_g",
        ),
        (
            "UNet2DConditionModel",
            Plain(),
            {"guidance_scale": 1.0, "image_guidance_scale": 1.0},
            "was called with guidance_scale=1, at which it makes none",
        ),
        (
            "UNetSpatioTemporalConditionModel",
            Plain(),
            {"max_guidance_scale": 1.0},
            "was called with max_guidance_scale=1, at which it makes none",
        ),
        ("UNet2DModel", Plain(), {}, "makes none: it has no condition to leave out"),
    ],
)
def test_what_makes_negative_rows(family, pipe, arguments, words):
    with pytest.raises(ValueError, match=f"^Plain {words}|^Plain was .*{words}"):
        raise ValueError(how_to_ask(pipe, FAMILIES[family], arguments))


def test_what_an_expression_moves_away_from():
    assert moved_from(parse("cfg(3, negative='dull') + NOT(2, 'a dog') + AND(3, 'a cat')")) == {
        "dull",
        "a dog",
    }
    assert moved_from(parse("cfg(3) + AND(3, 'a cat')")) == frozenset()
    with pytest.raises(ValueError, match="moves towards 'a cat' and away from it"):
        moved_from(parse("NOT(2, 'a cat') + AND(3, 'a cat')"))


# --- how latents are packed ---


def test_frames_and_channels_change_places():
    family = FAMILIES["UNetSpatioTemporalConditionModel"]
    x = rows(2, 3, 5, 4, 4)
    for change in (family.unpack, family.pack):
        found = change(x, ())
        assert found.shape == (2, 5, 3, 4, 4)
        assert found[1, 4, 2, 3, 1] == x[1, 2, 4, 3, 1]


@pytest.mark.parametrize("batched", [True, False])
def test_fluxs_grid_is_in_its_ids(batched):
    """Row and column of each token are its second and third id; a token is 2 × 2 latents."""
    ids = torch.tensor([[0.0, r, c] for r in range(3) for c in range(5)])
    assert FLUX.grid({"img_ids": ids[None] if batched else ids}) == (6, 10)
    tokens = rows(2, 15, 8)
    x = FLUX.unpack(tokens, (6, 10))
    assert x.shape == (2, 2, 6, 10) and torch.equal(FLUX.pack(x, (6, 10)), tokens)
    # channel, then row and column within the token
    assert x[1, 1, 2 * 2 + 1, 2 * 3 + 0] == tokens[1, 2 * 5 + 3, 1 * 4 + 1 * 2 + 0]


def test_ltxs_tokens_are_frames_rows_and_columns():
    family = FAMILIES["LTXVideoTransformer3DModel"]
    assert family.grid({"num_frames": 2, "height": 3, "width": 4}) == (2, 3, 4)
    tokens = rows(2, 24, 5)
    x = family.unpack(tokens, (2, 3, 4))
    assert x.shape == (2, 5, 2, 3, 4) and x[1, 3, 1, 2, 0] == tokens[1, 12 + 8 + 0, 3]
    assert torch.equal(family.pack(x, (2, 3, 4)), tokens)


# --- numbers of a pipeline's own ---

RATIO = "9"  # of the share 0.9 where the networks change: 0.9/(1 − 0.9)


@pytest.mark.parametrize(
    ("expression", "given", "words"),
    [
        (
            "cfg(3)",
            {"guidance_scale_2": 4.0, "guidance_scale": 3.0},
            f"guidance_scale_2=4 has no effect .* cfg(3, interval=({RATIO}, inf)) + "
            f"cfg(4, interval=(0, {RATIO}))",
        ),
        ("cfg(3)", {"guidance_scale_2": 3.0, "guidance_scale": 3.0}, None),
        ("cfg(3)", {"guidance_scale_2": None, "guidance_scale": 3.0}, None),
        (
            "cfg(3, interval=(0, 2)) + pag(1)",
            {"guidance_scale_2": 4.0, "guidance_scale": 3.0},
            None,
        ),
        (
            "cfg(3)",
            {"guidance_rescale": 0.7},
            "guidance_rescale=0.7 has no effect .* | rescale(0.7, space='v') in the expression",
        ),
        ("cfg(3) | rescale(0.5)", {"guidance_rescale": 0.7}, None),
        ("cfg(3)", {"guidance_rescale": 0.0}, None),
        (
            "cfg(3)",
            {"image_guidance_scale": 1.5, "guidance_scale": 7.0},
            "image_guidance_scale=1.5 has no effect .* write pix2pix(1.5, 7) in the expression",
        ),
        ("pix2pix(1.5, 7)", {"image_guidance_scale": 1.5, "guidance_scale": 7.0}, None),
        ("cfg(3)", {"image_guidance_scale": None, "guidance_scale": 7.0}, None),
        (
            "cfg(3)",
            {"min_guidance_scale": 1.0, "max_guidance_scale": 3.0},
            "min_guidance_scale=1 has no effect .* write cfg(3, frames=[0, 1])",
        ),
        (
            "cfg(3, frames=[0, 1])",
            {"min_guidance_scale": 1.0, "max_guidance_scale": 3.0},
            None,
        ),
        ("cfg(3)", {"min_guidance_scale": 3.0, "max_guidance_scale": 3.0}, None),
        (
            "cfg(3)",
            {"pag_adaptive_scale": 0.1},
            "pag_adaptive_scale=0.1 has no effect .* pag(3, interval=(lo, hi))",
        ),
        ("cfg(3)", {"pag_adaptive_scale": 0.0}, None),
        ("cfg(3)", {}, None),
    ],
)
def test_a_number_of_no_effect_is_warned_of_with_what_to_write(expression, given, words, recwarn):
    scheduler = SimpleNamespace(config=SimpleNamespace(prediction_type="v_prediction"))
    pipe = Plain(config=SimpleNamespace(boundary_ratio=None), scheduler=scheduler)
    warn_of_numbers(pipe, given, given, parse(expression))
    said = [str(w.message) for w in recwarn]
    assert len(said) == (words is not None)
    if words is not None:
        first, last = words.split(" .* ")
        assert said[0].startswith(f"{first} while guidestar guides Plain; ")
        assert said[0].endswith(last)


def test_the_networks_change_where_the_pipeline_says():
    pipe = Plain(config=SimpleNamespace(boundary_ratio=0.75))
    given = {"guidance_scale_2": 4.0, "guidance_scale": 3.0}
    with pytest.warns(UserWarning, match=r"interval=\(3, inf\)\) \+ cfg\(4, interval=\(0, 3\)\)"):
        warn_of_numbers(pipe, given, given, parse("cfg(3)"))
    plain = SimpleNamespace(config=SimpleNamespace())
    with pytest.warns(UserWarning, match="space='velocity'"):
        warn_of_numbers(
            Plain(scheduler=plain),
            {"guidance_rescale": 0.5},
            {"guidance_rescale": 0.5},
            parse("cfg(3)"),
        )


def test_pipelines_of_other_layouts_are_refused():
    def kind(name, module, base=object):
        call = {"__call__": lambda self: None, "__module__": module}
        return type(name, (base,), call)

    known = kind("StableDiffusionPipeline", "diffusers.pipelines.x")
    check_kind(known())
    check_kind(type("Derived", (known,), {})())
    check_kind(kind("Own", "somewhere")())
    check_kind(kind("Own", "somewhere", kind("OddPipeline", "diffusers.y"))())
    check_kind(kind("OddPipeline", "diffusers.y")())  # which is learnt from its run
    refused = next(iter(REFUSED))
    check_kind(kind(refused, "somewhere")())  # of the same name, and not Diffusers'
    with pytest.raises(ValueError, match=f"{refused} cannot be guided: "):
        check_kind(kind(refused, "diffusers.y")())
    for odd in (
        kind("AceStepPipeline", "diffusers.y"),
        type("Derived", (kind("AceStepPipeline", "diffusers.y", known),), {}),
    ):
        with pytest.raises(ValueError, match=r"^AceStepPipeline cannot be guided: its own"):
            check_kind(odd())


# --- prompts within an expression ---


class Encodes(Plain):
    _execution_device = "here"

    def encode_prompt(
        self,
        prompt,
        needed,
        device=None,
        num_images_per_prompt=4,
        do_classifier_free_guidance=True,
        clip_skip=None,
        max_sequence_length=77,
        other=5,
    ):
        self.told = {k: v for k, v in locals().items() if k != "self"}
        return self.out


def test_prompts_are_encoded_as_the_pipeline_encodes_its_own():
    pipe = Encodes(out=("states", "negative"))
    found = encode(pipe, UNET, ["a", 3], {"clip_skip": 2, "other": 9, "clean_caption": True})
    assert found == {"encoder_hidden_states": "states"}
    assert pipe.told == {
        "prompt": ["a", "3"],
        "needed": None,
        "device": "here",
        "num_images_per_prompt": 1,
        "do_classifier_free_guidance": False,
        "clip_skip": 2,
        "max_sequence_length": 77,
        "other": 5,
    }
    encode(pipe, UNET, ["a"], {"max_sequence_length": 256})
    assert (pipe.told["max_sequence_length"], pipe.told["clip_skip"]) == (256, None)
    pipe.out = ("states", "negative", "pooled", "negative pooled")
    assert encode(pipe, UNET, ["a"], {}) == {
        "encoder_hidden_states": "states",
        "text_embeds": "pooled",
    }
    pipe.out = ("states", None, "pooled", None)
    sd3 = FAMILIES["SD3Transformer2DModel"]
    assert encode(pipe, sd3, ["a"], {}) == {
        "encoder_hidden_states": "states",
        "pooled_projections": "pooled",
    }
    pipe.out = ("states", "pooled", "ids")
    assert encode(pipe, FLUX, ["a"], {}) == {
        "encoder_hidden_states": "states",
        "pooled_projections": "pooled",
    }
    pipe.out = ("states", None)
    pixart = FAMILIES["PixArtTransformer2DModel"]
    assert encode(pipe, pixart, ["a"], {}) == {"encoder_hidden_states": "states"}


def test_classes_are_named_by_the_pipeline():
    dit = FAMILIES["DiTTransformer2DModel"]
    pipe = Plain(labels={"cat": 4, "dog": 7})
    assert encode(pipe, dit, ["dog", 2, "cat"], {})["class_labels"].tolist() == [7, 2, 4]
    for odd in (pipe, Plain()):
        with pytest.raises(ValueError, match=r"Plain has no class 'bird'; pipe.labels lists"):
            encode(odd, dit, ["bird"], {})


def theirs(**parts):
    """A pipeline whose encode_prompt is Diffusers' own."""
    kind = type("Theirs", (Encodes,), {})
    kind.encode_prompt = lambda self: None
    kind.encode_prompt.__module__ = "diffusers.x"
    return kind(**parts)


@pytest.mark.parametrize(
    ("family", "parts", "missing"),
    [
        ("UNet2DConditionModel", {"text_encoder": 1, "tokenizer": 1}, []),
        ("UNet2DConditionModel", {"text_encoder": None, "tokenizer": 1}, ["text_encoder"]),
        ("UNet2DConditionModel", {"text_encoder": 1, "tokenizer": None}, ["tokenizer"]),
        (
            "UNet2DConditionModel",
            {
                "text_encoder": None,
                "tokenizer": None,
                "text_encoder_2": 1,
                "tokenizer_2": None,
            },
            ["tokenizer_2"],
        ),
        (
            "SD3Transformer2DModel",
            {"text_encoder_3": None, "tokenizer_3": None, "text_encoder_2": None},
            ["text_encoder_2"],
        ),
        ("FluxTransformer2DModel", {"text_encoder_3": None}, ["text_encoder_3"]),
        (
            "FluxTransformer2DModel",
            {"text_encoder": None, "tokenizer": 1, "text_encoder_2": 1},
            ["text_encoder"],
        ),
    ],
)
def test_text_encoders_that_are_missing_are_named(family, parts, missing):
    pipe, family = theirs(**parts), FAMILIES[family]
    if not missing:
        check_prompt(pipe, family, "a cat")
    else:
        words = rf"\({', '.join(missing)} missing\), so 'a cat' within .*; load it with them, or "
        with pytest.raises(ValueError, match=rf"{words}give the pipeline embeddings"):
            check_prompt(pipe, family, "a cat")
        with pytest.raises(ValueError, match=rf"{words}give a Condition\(x=…, y=…\) in its place"):
            check_prompt(pipe, family, "a cat", ["x", "y"])
    own = Encodes(**parts)  # encodes in a way of its own
    check_prompt(own, family, "a cat")


def test_pipelines_that_cannot_encode_are_refused():
    with pytest.raises(ValueError, match=r"^prompts within an expression are not supported for Pl"):
        check_prompt(Plain(), FAMILIES["UNet2DModel"], "a")
    with pytest.raises(ValueError, match=r"^Plain takes embeddings, so it cannot encode prompts"):
        check_prompt(Plain(), UNET, "a")
    dit = FAMILIES["DiTTransformer2DModel"]
    check_prompt(Plain(labels={"cat": 4}), dit, "cat")
    with pytest.raises(ValueError, match="has no class 'dog'"):
        check_prompt(Plain(labels={"cat": 4}), dit, "dog")


def test_a_classifier_looks_through_the_pipelines_vae():
    pipe, seen = stable_diffusion(), []

    class Judge:
        classes = ("a", "b")
        rho_max = 3.0

        def log_prob(self, x, level, target):
            seen.append((x, level, target))
            return x.flatten(1).sum(1)

    judge = Judge()
    kept = {"classifier": judge}
    for through in (True, False):
        with guidestar.guided(pipe, "cond", classifiers=kept, through_vae=through):
            (found,) = getattr(type(pipe), MARK)[1].classifiers.values()
        if not through:
            assert found is judge
            continue
        assert found.inner is judge and found.vae is pipe.vae and found.rho_max is None
        assert found.classes == ("a", "b")
        x = torch.zeros(1, pipe.vae.config.latent_channels, 4, 4, dtype=torch.float64)
        found.log_prob(x, "level", "target")
        ((picture, *rest),) = seen
        assert rest == ["level", "target"] and picture.shape[1] == 3 and picture.shape[-1] > 4
    pipe.vae = None
    with pytest.raises(ValueError, match="has no VAE to look through; leave through_vae out"):
        guidestar.guide(pipe, "cond", classifiers=kept, through_vae=True)
