"""TSG against its formula: the network is told another time, and nothing else changes."""

import pytest
import torch

from guidestar import Draw, Guided, Network, parse
from helpers.scenes import SEEDS, scenes
from helpers.toys import COND, UNCOND, Spy, col, condition, net, noise, steps, toy


def timed(x, level, c):
    """The toy network, with an answer that depends on the time it is told too."""
    return toy(x, level, c) * (1 + 0.5 * torch.sin(7 * col(level.t, x)))


def moved(scene, noise=0.1, power=1.0):
    low, high = scene.step.grid.schedule.t_min, scene.step.grid.schedule.t_max
    t = torch.as_tensor(scene.step.t.t, dtype=torch.float64).expand(3)
    n = Draw(SEEDS).at(scene.step.index).gaussian("tsg")
    return (t + noise * (high - low) * ((t - low) / (high - low)) ** power * n).clamp(low, high)


def expected(scene, s, c=COND, **options):
    good = timed(scene.x, scene.step.t, c)
    bad = timed(scene.x, scene.step.t._replace(t=moved(scene, **options)), c)
    return bad + s * (good - bad)


def check(scene, text, x0):
    out, _ = scene.run(text, spy=Spy(timed))
    torch.testing.assert_close(out.x0, x0, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(out.eps, scene.eps(x0), rtol=1e-9, atol=1e-9)


def test_formula(scene):
    check(scene, "tsg(3)", expected(scene, 3))
    check(scene, "tsg(0, noise=0.02, power=0)", expected(scene, 0, noise=0.02, power=0))
    check(scene, "tsg(2, 0.3, 2)", expected(scene, 2, noise=0.3, power=2))
    check(scene, "tsg([3, 1, -2])", expected(scene, col(torch.tensor([3.0, 1, -2]), scene.x)))
    check(scene, "uncond + tsg(2, of='uncond')", expected(scene, 2, UNCOND))


def test_the_time_stays_within_the_schedule():
    for scene in scenes("flow"):
        check(scene, "tsg(3, noise=50)", expected(scene, 3, noise=50))
        assert moved(scene, noise=50).min() >= 0 and moved(scene, noise=50).max() <= 1


def test_only_the_time_changes(scene):
    """The input is the same, and so is what the output means: alpha and sigma are the true ones."""
    spy = Spy(timed)
    scene.run("tsg(3)", spy=spy)
    (x,), (level,) = spy.inputs, spy.levels
    assert torch.equal(x[3:], x[:3]) and spy.calls == [[COND] * 6]
    for name in ("alpha", "sigma"):
        value = torch.as_tensor(getattr(level, name)).expand(6)
        assert torch.equal(value[3:], value[:3])
    torch.testing.assert_close(level.t[3:], moved(scene))
    assert torch.equal(level.t[:3], torch.as_tensor(scene.step.t.t, dtype=torch.float64).expand(3))


@pytest.mark.parametrize("max_rows", [1, 2, 4])
def test_a_sample_draws_the_same_in_any_batch_and_chunk(max_rows):
    scene = scenes("mixed")[0]
    guided = Guided("tsg([3, 1, 2])", {"main": net(Spy(timed))}, seeds=SEEDS, max_rows=max_rows)
    torch.testing.assert_close(
        guided(scene.x, scene.step)[0].x0, expected(scene, col(torch.tensor([3.0, 1, 2]), scene.x))
    )
    one = scene.step.take(torch.tensor([2]))
    torch.testing.assert_close(
        Guided("tsg(2)", {"main": net(Spy(timed))}, seeds=SEEDS[2:])(scene.x[2:], one)[0].x0,
        expected(scene, 2)[2:],
    )


def test_an_unconditional_model_is_guided_too(scene):
    out, _ = Guided("tsg(2)", lambda x, level, cond: timed(x, level, UNCOND), seeds=SEEDS)(
        scene.x, scene.step
    )
    torch.testing.assert_close(out.x0, expected(scene, 2, UNCOND))


def test_a_network_of_any_prediction_but_edm():
    x, told = noise(3, 4), []

    def network(x, t, c):
        told.append(t)
        return 0.3 * x * t[:, None]

    step = steps("vp")[0]
    for predicts in ("eps", "x0", "v", "velocity"):
        told.clear()
        denoiser = Network(network, predicts=predicts)
        out, _ = Guided("tsg(2)", denoiser, cond=condition(COND), seeds=SEEDS)(x, step)
        (t,) = told
        assert (
            torch.equal(t[:3], torch.full((3,), step.t.t, dtype=t.dtype)) and (t[3:] != t[:3]).all()
        )
        good, bad = (
            denoiser(x, step.t._replace(t=v), condition(*[COND] * 3)) for v in (step.t.t, t[3:])
        )
        torch.testing.assert_close(out.x0, 2 * good - bad)
    with pytest.raises(ValueError, match=r"'main' computes its time from the noise ratio \(edm\)"):
        Guided("tsg(2)", Network(network, predicts="edm"), cond=condition(COND), seeds=SEEDS)(
            x, step
        )


def test_two_steps():
    first, second = scenes("mixed")
    _, state = first.run("tsg(4)", spy=Spy(timed))
    torch.testing.assert_close(
        second.run("tsg(4)", state, spy=Spy(timed))[0].x0, expected(second, 4)
    )
    assert not any(state)


def test_what_makes_no_sense_is_refused():
    for text, said in (
        ("tsg(2, noise=0)", "a positive noise"),
        ("tsg(2, power=-1)", "a power of 0 or more"),
        ("tsg(2, of='neg')", "of must be 'cond' or 'uncond'"),
    ):
        with pytest.raises(ValueError, match=said):
            parse(text)
    with pytest.raises(ValueError, match="seeds="):
        Guided("tsg(3)", {"main": net(Spy(timed))})(noise(3, 4), steps("vp")[0])
