"""MAMBO-G against its formula, in each space, and Diffusers' guider."""

import pytest
import torch

from guidestar import Guided, parse
from helpers.scenes import scenes, total
from helpers.toys import WORDS, Spy, col, net, noise, steps


def views(scene, d):
    eps = scene.eps(d)
    return {"velocity": eps - d, "eps": eps, "v": scene.a * eps - scene.s * d, "x0": d}


def expected(scene, s, a, bad, space="velocity"):
    c, u = views(scene, scene.c)[space], views(scene, bad)[space]
    ratio = (total((c - u) ** 2) / total(u**2)).sqrt()
    return bad + (1 + (s - 1) * torch.exp(-a * ratio)) * (scene.c - bad)


def test_formula(scene):
    scene.check("mambo(10)", expected(scene, 10, 8, scene.n))
    scene.check("mambo(10, damping=0.5)", expected(scene, 10, 0.5, scene.n))
    scene.check("mambo(6, 0.5)", expected(scene, 6, 0.5, scene.u), negative=None)
    scene.check("mambo(6, 0.5, negative='cat')", expected(scene, 6, 0.5, scene.d(WORDS["cat"])))
    scene.check(
        "mambo([6, 1, -2], 0.5)",
        expected(scene, col(torch.tensor([6.0, 1, -2]), scene.x), 0.5, scene.n),
    )
    scene.check("mambo(5, damping=0)", scene.n + 5 * (scene.c - scene.n))


@pytest.mark.parametrize("space", ["velocity", "eps", "v", "x0"])
def test_every_space(scene, space):
    scene.check(f"mambo(6, 0.5, space='{space}')", expected(scene, 6, 0.5, scene.n, space))


def test_two_steps():
    first, second = scenes("mixed")
    _, state = first.run("mambo(6, 0.5)")
    out, state = second.run("mambo(6, 0.5)", state)
    torch.testing.assert_close(out.x0, expected(second, 6, 0.5, second.n))
    assert not any(state)


def test_where_the_null_is_zero_there_is_no_push():
    nothing = Spy(
        lambda x, level, c: torch.where(col(c, x) == 1, torch.ones_like(x), torch.zeros_like(x))
    )
    out, _ = Guided("mambo(9, space='x0')", {"main": net(nothing)})(noise(3, 4), steps("vp")[0])
    torch.testing.assert_close(out.x0, torch.ones_like(out.x0))


def test_what_makes_no_sense_is_refused():
    for text, said in (
        ("mambo(3, damping=-1)", "the damping must be 0 or more"),
        ("mambo(3, space='score')", "the space must be velocity, v, eps or x0"),
    ):
        with pytest.raises(ValueError, match=said):
            parse(text)


def test_diffusers_guider_agrees_in_its_space_and_takes_no_images():
    module = pytest.importorskip("diffusers.guiders.magnitude_aware_guidance")
    scene = scenes("flow", (3, 4, 2))[0]
    out = scene.run("mambo(6, 0.5)")[0].view("velocity")
    theirs = module.mambo_guidance(
        views(scene, scene.c)["velocity"], views(scene, scene.n)["velocity"], 6.0, alpha=0.5
    )
    torch.testing.assert_close(out, theirs)
    image = scenes("flow", (3, 4, 2, 2))[0]
    with pytest.raises(RuntimeError):
        module.mambo_guidance(
            views(image, image.c)["velocity"], views(image, image.n)["velocity"], 6.0
        )
    image.check("mambo(6, 0.5)", expected(image, 6, 0.5, image.n))
