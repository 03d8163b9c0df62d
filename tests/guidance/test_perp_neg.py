"""Perp-Neg against its formula, written out sample by sample."""

import pytest
import torch

from guidestar import Guided, parse, perp_neg
from helpers.scenes import scenes, total
from helpers.toys import COND, UNCOND, WORDS, Spy, col, condition, net


def across(a, b):
    return a - total(a * b) / total(b * b) * b


def expected(scene, s, *negatives):
    p = scene.c - scene.u
    return scene.u + s * (p + sum(w * across(n - scene.u, p) for n, w in negatives))


def test_formula(scene):
    blurry, dog = scene.d(WORDS["blurry"]), scene.d(WORDS["dog"])
    scene.check("perp_neg(7.5)", expected(scene, 7.5, (scene.n, -1)))
    scene.check("perp_neg(7.5, 'blurry')", expected(scene, 7.5, (blurry, -1)))
    scene.check(
        "perp_neg(7.5, ['blurry', 'dog'], weights=[-1.5, -0.5])",
        expected(scene, 7.5, (blurry, -1.5), (dog, -0.5)),
    )
    scene.check(
        "perp_neg(7.5, ['blurry', 'dog'], -2)", expected(scene, 7.5, (blurry, -2), (dog, -2))
    )
    scene.check(perp_neg(3, condition(0.25)), expected(scene, 3, (scene.d(0.25), -1)))
    scene.check(
        "perp_neg([3, 0, -2], 'dog')",
        expected(scene, col(torch.tensor([3.0, 0, -2]), scene.x), (dog, -1)),
    )


def test_without_a_negative_it_is_cfg(scene):
    scene.check("perp_neg(4)", scene.u + 4 * (scene.c - scene.u), negative=None)


def test_what_a_negative_shares_with_the_condition_is_left(scene):
    """A negative along the condition takes nothing away; so does the condition itself."""
    scene.check(perp_neg(4, condition(COND)), scene.u + 4 * (scene.c - scene.u))
    p = scene.c - scene.u
    away = scene.run("perp_neg(1, 'dog')")[0].x0 - scene.c
    torch.testing.assert_close(total(away * p), torch.zeros_like(total(p)), rtol=0, atol=1e-10)


def test_the_projection_is_the_same_in_eps(scene):
    """Differences of ε are those of x0 times a number, and so are their projections."""
    p, n = (scene.eps(d) - scene.eps(scene.u) for d in (scene.c, scene.n))
    torch.testing.assert_close(
        scene.run("perp_neg(5)")[0].eps,
        scene.eps(scene.u) + 5 * (p - across(n, p)),
        rtol=1e-9,
        atol=1e-9,
    )


def test_a_sample_does_not_see_its_neighbours():
    """The projection that others take over the whole batch differs."""
    scene = scenes("flow")[0]
    p, n = scene.c - scene.u, scene.n - scene.u
    whole = n - (n * p).sum() / (p * p).sum() * p
    assert (scene.run("perp_neg(5)")[0].x0 - (scene.u + 5 * (p - whole))).abs().max() > 1e-3


def test_passes_and_base():
    spy, scene = Spy(), scenes("flow")[0]
    guided = Guided("perp_neg(5, ['dog', 'cat'])", {"main": net(spy)})
    guided(scene.x, scene.step)
    assert guided.base.cond.value == "uncond" and spy.calls == [
        [UNCOND] * 3 + [COND] * 3 + [WORDS["dog"]] * 3 + [WORDS["cat"]] * 3
    ]


def test_two_steps():
    first, second = scenes("mixed")
    _, state = first.run("perp_neg(4)")
    assert torch.equal(
        second.run("perp_neg(4)", state)[0].x0, second.run("perp_neg(4)")[0].x0
    ) and not any(state)


def test_what_makes_no_sense_is_refused():
    for text, said in (
        ("perp_neg(3, ['dog', 'cat'], weights=[-1])", "there are 1 weights for 2 negatives"),
        ("cond + perp_neg(3)", "perp_neg needs the base 'uncond'"),
    ):
        with pytest.raises(ValueError, match=said):
            Guided(parse(text), {"main": net(Spy())})
    with pytest.raises(ValueError, match="weights must be finite"):
        perp_neg(3, weights=float("nan"))
    with pytest.raises(ValueError, match="no condition was given"):
        Guided("perp_neg(3)", Spy())
