"""ICG against its formula, with conditions drawn among several, and as noise."""

import pytest
import torch

from guidestar import Condition, Draw, Guided, Net, icg, parse, sample, uniform
from guidestar.core.levels import Flow
from helpers.scenes import SEEDS, scenes
from helpers.toys import WORDS, Spy, col, condition, encode, noise, toy
from helpers.toys import net as toy_net

AMONG = {"cat": 0.4, "dog": -0.9, "blurry": 1.7}


def drawn(scene, numbers, seeds=SEEDS):
    shares = Draw(seeds).at(scene.step.index).uniform("icg").tolist()
    return torch.tensor([numbers[int(u * len(numbers))] for u in shares], dtype=torch.float64)


def expected(scene, s, told):
    bad = scene.d(told)
    return bad + s * (scene.c - bad)


def test_formula(scene):
    scene.check(
        "icg(4, among=['cat', 'dog', 'blurry'])",
        expected(scene, 4, drawn(scene, list(AMONG.values()))),
    )
    scene.check("icg(4, 10)", expected(scene, 4, drawn(scene, [k / 10 for k in range(10)])))
    scene.check(icg(0, among=condition(0.2, 0.9)), expected(scene, 0, drawn(scene, [0.2, 0.9])))
    each = col(torch.tensor([3.0, 1, -2]), scene.x)
    scene.check(
        "icg([3, 1, -2], ['cat', 'dog'])",
        expected(scene, each, drawn(scene, [WORDS["cat"], WORDS["dog"]])),
    )


def test_every_condition_is_drawn_alike_and_anew_each_step():
    counts, runs = torch.zeros(4), set()
    for index in range(25):
        scene = scenes("flow", (64, 2))[0]
        scene.step = scene.step._replace(index=index)
        spy = Spy()
        Guided("icg(2, among=4)", {"main": toy_net(spy)}, seeds=range(64))(noise(64, 2), scene.step)
        told = torch.tensor([c for call in spy.calls for c in call][64:])
        counts += torch.stack([(told == k / 10).sum() for k in range(4)])
        runs.add(tuple(told.tolist()))
    assert len(runs) == 25
    assert counts.sum() == 1600 and (counts - 400).abs().max() < 80  # four and a half deviations


def test_by_default_noise_like_the_samples_own_condition():
    y, told = noise(3, 2, 5, seed=4) * 3 + 2, []

    def network(x, level, cond):
        told.append(cond)
        return x + cond["y"].flatten(1).sum(1)[:, None]

    cond = Condition(y=y, mask=torch.ones(3, 2, dtype=torch.bool))
    scene = scenes("flow", (3, 4))[0]
    out, _ = Guided("icg(3)", network, cond=cond, seeds=SEEDS)(scene.x, scene.step)
    n = Draw(SEEDS).at(scene.step.index).normal("icg/y", (2, 5)).double()
    fake = torch.stack([one.mean() + one.std() * z for one, z in zip(y, n, strict=True)])
    torch.testing.assert_close(torch.cat([c["y"] for c in told]), torch.cat([y, fake]))
    assert all(c["mask"].all() for c in told)
    c, u = (scene.x + v.flatten(1).sum(1)[:, None] for v in (y, fake))
    torch.testing.assert_close(out.x0, u + 3 * (c - u))


def test_a_sample_draws_the_same_in_any_batch_and_chunk():
    scene = scenes("flow")[0]
    calls = []
    for options in ({}, {"max_rows": 1}, {"max_rows": 3}):
        spy = Spy()
        Guided("icg([3, 1, 2], among=10)", {"main": toy_net(spy)}, seeds=SEEDS, **options)(
            scene.x, scene.step
        )
        calls.append(sorted(v for call in spy.calls for v in call))
    assert calls[0] == calls[1] == calls[2]
    spy = Spy()
    Guided("icg(2, among=10)", {"main": toy_net(spy)}, seeds=SEEDS[2:])(scene.x[2:], scene.step)
    assert spy.calls[0][1] == round(float(drawn(scene, [k / 10 for k in range(10)])[2]), 3)


def test_it_needs_no_null():
    lone = Net(denoiser=Spy(), cond=condition(1.0), encode=encode)
    assert (
        sample(
            Guided("icg(2, among=3)", {"main": lone}, seeds=[1]),
            grid=uniform(Flow(), 4),
            solver="ddim",
            seeds=[1],
            shape=(2,),
        )
        .isfinite()
        .all()
    )


def test_two_steps():
    first, second = scenes("mixed")
    _, state = first.run("icg(4, among=10)")
    torch.testing.assert_close(
        second.run("icg(4, among=10)", state)[0].x0,
        expected(second, 4, drawn(second, [k / 10 for k in range(10)])),
    )
    assert not any(state)


def test_what_makes_no_sense_is_refused():
    for text in ("icg(3, among=[])", "icg(3, among=0)"):
        with pytest.raises(ValueError, match="something to draw from"):
            parse(text)
    scene = scenes("flow", (3, 4))[0]
    with pytest.raises(ValueError, match="need an encoder"):
        Guided("icg(3, among=['cat'])", toy, cond=condition(1.0))
    with pytest.raises(ValueError, match="no condition was given"):
        Guided("icg(3)", toy)
    with pytest.raises(ValueError, match="has no real numbers"):
        Guided("icg(3)", toy, cond=Condition(c=torch.tensor([1])), seeds=SEEDS)(scene.x, scene.step)
    with pytest.raises(
        ValueError, match=r"icg: the condition \(c\) has one number a sample.*among="
    ):
        Guided("icg(3)", toy, cond=condition(1.0), seeds=SEEDS)(scene.x, scene.step)
    with pytest.raises(ValueError, match="seeds="):
        Guided("icg(3)", toy, cond=condition(1.0))(scene.x, scene.step)
