"""TCFG against the singular value decomposition it is defined by, and Diffusers' guider."""

import pytest
import torch

from guidestar import Guided, uniform
from helpers.scenes import scenes
from helpers.toys import SCHEDULES, WORDS, Spy, col, net, noise


def damped(c, u):
    """``u' = (u·v₁)v₁`` of each sample, by torch's own decomposition."""
    rows = []
    for one, other in zip(c.flatten(1), u.flatten(1), strict=True):
        v = torch.linalg.svd(torch.stack([one, other]), full_matrices=False).Vh[0]
        rows.append((other @ v) * v)
    return torch.stack(rows).reshape(c.shape)


def expected(scene, s, bad):
    c, u = scene.eps(scene.c), damped(scene.eps(scene.c), scene.eps(bad))
    eps = u + s * (c - u)
    return (scene.x - scene.s * eps) / scene.a, eps


def test_formula(scene):
    scene.check("tcfg(4)", *expected(scene, 4, scene.n))
    scene.check("tcfg(4)", *expected(scene, 4, scene.u), negative=None)
    scene.check("tcfg(0)", *expected(scene, 0, scene.n))
    scene.check("tcfg(3, negative='dog')", *expected(scene, 3, scene.d(WORDS["dog"])))
    scene.check(
        "tcfg([3, 1, -2])", *expected(scene, col(torch.tensor([3.0, 1, -2]), scene.x), scene.n)
    )


def test_two_steps(scene):
    first, second = scenes("mixed")
    _, state = first.run("tcfg(4)")
    out, state = second.run("tcfg(4)", state)
    torch.testing.assert_close(out.x0, expected(second, 4, second.n)[0])
    assert not any(state)


@pytest.mark.parametrize("size", [0.0, 1e-3, 1.0, 1e3])
def test_the_closed_form_is_the_decomposition(size):
    """Whichever of the two is longer, and where one is 0."""
    x, c, u = noise(3, 5), noise(3, 5, seed=1), size * noise(3, 5, seed=2)
    spy = Spy(lambda x, level, told: x - level.sigma * torch.cat([c, u]))
    out, _ = Guided("tcfg(2)", {"main": net(spy)})(x, uniform(SCHEDULES["ve"], 4).step(2))
    prime = damped(c, u)
    torch.testing.assert_close(
        out.eps, prime + 2 * (c - prime), rtol=1e-8, atol=1e-10 * max(1.0, size)
    )


def test_at_pure_noise_it_does_not_push():
    step = uniform(SCHEDULES["flow"], 4).step(0)
    scene = type(scenes("flow")[0])(step, noise(3, 4))
    scene.check("tcfg(4)", scene.c, scene.x)


def test_diffusers_guider_is_right_in_eps_only_and_cannot_say_what_is_conditional():
    guiders = pytest.importorskip("diffusers.guiders")
    scene = scenes("vp")[0]
    guider = guiders.TangentialClassifierFreeGuidance(guidance_scale=4.0)
    guider.set_state(step=3, num_inference_steps=10, timestep=torch.tensor(0))
    out = scene.run("tcfg(4)")[0]
    torch.testing.assert_close(
        out.eps, guider.forward(scene.eps(scene.c), scene.eps(scene.n)).pred, rtol=1e-4, atol=1e-4
    )
    raw = guider.forward(*(scene.eps(d) - d for d in (scene.c, scene.n))).pred  # of a flow network
    assert (out.view("velocity") - raw).norm() > 0.02 * raw.norm()
    with pytest.raises(AttributeError):
        guider.is_conditional
