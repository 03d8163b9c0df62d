"""Autoguidance against its formula, with the model that ships, and where Diffusers' guider does
something else.
"""

import pytest
import torch

from guidestar import Guided, Net, load, parse, uniform
from helpers.scenes import scenes, weak
from helpers.toys import COND, SCHEDULES, UNCOND, Spy, col, condition, net, noise


def expected(scene, s, c=COND):
    good, bad = scene.d(c), weak(scene.x, scene.step.t, col(c, scene.x))
    return bad + s * (good - bad)


def test_formula(scene):
    scene.check("autoguidance(2.5)", expected(scene, 2.5))
    scene.check("autoguidance(0)", weak(scene.x, scene.step.t, COND))
    scene.check(
        "autoguidance([2, 1, -1])", expected(scene, col(torch.tensor([2.0, 1, -1]), scene.x))
    )
    scene.check("uncond + autoguidance(2, of='uncond')", expected(scene, 2, UNCOND))
    scene.check("cfg(3) + autoguidance(2)", expected(scene, 2) + 2 * (scene.c - scene.n))


def test_both_networks_are_told_the_condition():
    scene, main, small = scenes("flow")[0], Spy(), Spy(weak)
    own = condition(0.1, 0.2, 0.3)
    nets = {"main": net(main, own), "small": net(small, own)}
    with pytest.raises(ValueError, match=r"there is no network 'weak' \(there is main, small\)"):
        Guided("autoguidance(2)", nets)
    Guided("autoguidance([2, 1, 3], net='small')", nets)(scene.x, scene.step)
    assert main.calls == [[0.1, 0.2, 0.3]] and small.calls == [[0.1, 0.3]]


def test_an_unconditional_model_is_guided_too(scene):
    nets = {"main": Net(denoiser=Spy()), "weak": Net(denoiser=Spy(weak))}
    out, _ = Guided("autoguidance(2)", nets)(scene.x, scene.step)
    torch.testing.assert_close(out.x0, expected(scene, 2, UNCOND))


def test_two_steps():
    first, second = scenes("mixed")
    _, state = first.run("autoguidance(2)")
    torch.testing.assert_close(second.run("autoguidance(2)", state)[0].x0, expected(second, 2))
    assert not any(state)


def test_the_passes_are_shared_with_cfg():
    guided = Guided("cfg(3) + autoguidance(2)", {"main": net(Spy()), "weak": net(Spy(weak))})
    assert guided.plan(uniform(SCHEDULES["vp"], 4)).nfe == 12


def test_the_model_that_ships_carries_its_weak_network():
    model = load("fashion-mnist")
    guided, x = (
        model.guided("autoguidance(2)", cond=["bag", "coat"]),
        noise(2, *model.shape, dtype=torch.float32),
    )
    step = model.grid(5).step(3)
    out, _ = guided(x * step.t.norm, step)
    with torch.no_grad():
        told = guided.nets["main"].cond
        good, (denoiser, encoder) = (
            model.denoiser(x * step.t.norm, step.t, told),
            model.nets["weak"],
        )
        bad = denoiser(x * step.t.norm, step.t, encoder.encode(["bag", "coat"]))
    torch.testing.assert_close(out.x0, 2 * good - bad, rtol=1e-4, atol=1e-4)
    assert (good - bad).abs().mean() > 1e-3


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="of must be 'cond' or 'uncond'"):
        parse("autoguidance(2, of='neg')")


def test_diffusers_guider_takes_the_same_network_without_the_condition():
    """Its formula is the same; what it calls bad is the negative prompt through a network with
    layers dropped.
    """
    guiders = pytest.importorskip("diffusers.guiders")
    scene = scenes("flow")[0]
    guider = guiders.AutoGuidance(guidance_scale=2.5, auto_guidance_layers=0, dropout=0.5)
    guider.set_state(step=3, num_inference_steps=10, timestep=torch.tensor(0))
    bad = weak(scene.x, scene.step.t, COND)
    torch.testing.assert_close(
        guider.forward(scene.c, bad).pred, scene.run("autoguidance(2.5)")[0].x0
    )
    batches = guider.prepare_inputs({"told": ("the condition", "the negative")})
    assert [b.told for b in batches] == ["the condition", "the negative"]
