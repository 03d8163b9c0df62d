"""InstructPix2Pix's dual guidance against its formula, with parts of a condition as tensors and as
an encoder's.
"""

import pytest
import torch

from guidestar import Condition, Guided, Net, linear, pix2pix, uniform
from guidestar.core.passes import Part
from guidestar.networks.condition_encoders import ClassEncoder, VectorEncoder
from guidestar.networks.conditions import Conditions
from helpers.scenes import SEEDS, scenes
from helpers.toys import SCHEDULES, Spy, col, noise, toy

OWN = {"image": [0.4, 0.5, 0.6], "text": [1.0, -0.8, 0.3]}


def answer(x, level, cond):
    """The toy network, told the sum of an image and a text."""
    return toy(x, level, cond["image"] + 2 * cond["text"])


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def run(guidance, scene, state=None, cond=None, **more):
    cond = cond or Condition(image=numbers(*OWN["image"]), text=numbers(*OWN["text"]))
    null = Condition(image=numbers(-0.1), text=numbers(0.2))
    return Guided(guidance, answer, cond=cond, null=null, **more)(scene.x, scene.step, state)


def parts(scene):
    image, text = numbers(*OWN["image"]), numbers(*OWN["text"])
    return (
        toy(scene.x, scene.step.t, c)
        for c in (image + 2 * text, image + 2 * 0.2, numbers(-0.1, -0.1, -0.1) + 2 * 0.2)
    )


def expected(scene, image, text):
    both, alone, none = parts(scene)
    return none + image * (alone - none) + text * (both - alone)


@pytest.mark.parametrize(
    ("image", "text"), [(1.5, 7.5), (1.0, 7.5), (1.5, 1.0), (0.0, 0.0), (-1.0, 2.0)]
)
def test_formula(scene, image, text):
    out, _ = run(pix2pix(image, text), scene)
    torch.testing.assert_close(out.x0, expected(scene, image, text), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(out.eps, scene.eps(out.x0), rtol=1e-9, atol=1e-9)


def test_as_text_it_keeps_its_defaults(scene):
    torch.testing.assert_close(run("pix2pix(1.5)", scene)[0].x0, expected(scene, 1.5, 7.5))
    torch.testing.assert_close(run("pix2pix(1.5, text=3)", scene)[0].x0, expected(scene, 1.5, 3))


@pytest.mark.parametrize("max_rows", [None, 1, 3])
def test_scales_of_each_sample(scene, max_rows):
    scales = [1.5, 1.0, 1.0], [3.0, 1.0, 4.0]
    each = [col(numbers(*s), scene.x) for s in scales]
    torch.testing.assert_close(
        run(pix2pix(*scales), scene, max_rows=max_rows)[0].x0,
        expected(scene, *each),
        rtol=1e-10,
        atol=1e-10,
    )
    torch.testing.assert_close(
        run(pix2pix(2.0, scales[1]), scene, max_rows=max_rows)[0].x0,
        expected(scene, 2.0, each[1]),
        rtol=1e-10,
        atol=1e-10,
    )
    torch.testing.assert_close(
        run(pix2pix(scales[0], 1.0), scene, max_rows=max_rows)[0].x0,
        expected(scene, each[0], 1.0),
        rtol=1e-10,
        atol=1e-10,
    )


def test_the_other_part_may_be_kept(scene):
    text = toy(scene.x, scene.step.t, numbers(-0.1, -0.1, -0.1) + 2 * numbers(*OWN["text"]))
    both, _, none = parts(scene)
    torch.testing.assert_close(
        run(pix2pix(1.5, 3, keep="text"), scene)[0].x0,
        none + 1.5 * (text - none) + 3 * (both - text),
    )


def test_a_schedule_and_an_interval_act_on_both_parts():
    scene = scenes("flow")[0]
    both, alone, none = parts(scene)
    push = 0.5 * (alone - none) + 6.5 * (both - alone)
    factor = 2 * (1 - (1 - scene.step.index / 10))
    torch.testing.assert_close(
        run(pix2pix(1.5, schedule=linear), scene)[0].x0, both + factor * push
    )
    rho = scene.step.t.rho
    torch.testing.assert_close(run(pix2pix(1.5, interval=(0, rho)), scene)[0].x0, both + push)
    torch.testing.assert_close(run(pix2pix(1.5, interval=(rho, 99)), scene)[0].x0, both)


def test_two_steps():
    first, second = scenes("mixed")
    _, state = run("pix2pix(1.5)", first)
    torch.testing.assert_close(run("pix2pix(1.5)", second, state)[0].x0, expected(second, 1.5, 7.5))
    assert not any(state)


def test_three_passes_and_one_where_both_scales_are_one():
    scene, spy = scenes("flow")[0], Spy()
    net = Net(
        denoiser=lambda x, level, c: spy(x, level, Condition(c=c["image"])),
        cond=Condition(image=numbers(1.0)),
        null=Condition(image=numbers(0.0)),
    )
    Guided(pix2pix([1.5, 1, 1], [7.5, 1, 2]), {"main": net}, seeds=SEEDS)(scene.x, scene.step)
    assert sorted(spy.calls[0]) == [0.0] * 2 + [1.0] * 5
    assert Guided(pix2pix(1.5), {"main": net}).plan(uniform(SCHEDULES["vp"], 4)).nfe == 12
    assert Guided(pix2pix(1, 1), {"main": net}).plan(uniform(SCHEDULES["vp"], 4)).nfe == 4
    assert "image of cond" in str(
        Guided(pix2pix(1.5), {"main": net}).plan(uniform(SCHEDULES["vp"], 4))
    )


def test_what_makes_no_sense_is_refused():
    scene = scenes("flow")[0]
    for guidance, said in (
        (pix2pix(1.5, keep="sketch"), "has no part 'sketch'; it has image, text"),
        ("uncond + pix2pix(1.5, [1, 2])", "2 scales for 3 samples"),
    ):
        with pytest.raises(ValueError, match=said):
            run(guidance, scene)
    with pytest.raises(ValueError, match="2 scales of the image were given, but 3 of the text"):
        pix2pix([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="pix2pix: text: the scale must be a finite number"):
        pix2pix(1.5, float("inf"))


def test_an_encoder_of_several_parts_gives_each_alone():
    torch.manual_seed(0)
    encoder = Conditions({"label": ClassEncoder(("coat", "bag"), 4), "place": VectorEncoder(2, 4)})
    name = "label=bag; place=0.5,2"
    assert (
        encoder.only(name, "label") == "label=bag"
        and encoder.only("place=0.5,2", "label") == "label="
    )
    with pytest.raises(ValueError, match="no part 'text'; the conditions are label, place"):
        encoder.only(name, "text")
    whole, label, none = (encoder.encode([n])["class_labels"] for n in (name, "label=bag", ""))
    assert (whole - label).abs().max() > 1e-3 < (label - none).abs().max()
    net = Net(
        denoiser=Spy(),
        cond=encoder.encode([name]),
        null=encoder.null(1),
        part=lambda part: encoder.encode([encoder.only(name, part)]),
    )
    torch.testing.assert_close(net.condition(Part("label"), 2)["class_labels"], label.expand(2, -1))


def test_a_model_of_two_conditions_is_guided_by_both():
    from guidestar import Flow, Model, Network

    torch.manual_seed(0)
    encoder = Conditions({"label": ClassEncoder(("coat", "bag"), 4), "place": VectorEncoder(2, 4)})
    denoiser = Network(lambda x, t, class_labels: x * 0.1 + class_labels, predicts="x0")
    model = Model(name="two", denoiser=denoiser, schedule=Flow(), shape=(4,), encoder=encoder)
    names = ["label=bag; place=0.5,2", "label=coat; place=1,1"]
    step, x = model.grid(4).step(2), noise(2, 4, dtype=torch.float32)
    out, _ = model.guided("pix2pix(1.5, text=3, keep='label')", cond=names)(x, step)
    with torch.no_grad():
        both, label, none = (
            0.1 * x + encoder.encode(n)["class_labels"]
            for n in (names, ["label=bag", "label=coat"], ["", ""])
        )
    torch.testing.assert_close(out.x0, none + 1.5 * (label - none) + 3 * (both - label))
    assert (
        model.sample(
            names, guidance="pix2pix(1.5, keep='label')", seeds=[0, 1], steps=3, solver="ddim"
        ).nfe
        == 9
    )
