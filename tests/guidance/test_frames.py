"""Weights along the frames of a video, and samples that lie in another order, in plain torch."""

import pytest
import torch
from test_fdg import expected

from guidestar import (
    VP,
    Condition,
    Guided,
    Model,
    Network,
    apg,
    cfg,
    fdg,
    parse,
    sag,
    uniform,
)
from guidestar.core.forms import CHANNELS_LAST, PLAIN, SampleForm, form_of
from helpers.scenes import scenes
from helpers.toys import UNCOND, toy

VIDEO = (3, 2, 4, 3, 5)


def test_each_frame_has_its_own_scale():
    scene = scenes("vp", VIDEO)[0]
    scales = torch.tensor([1.0, 2.5, 0.0, 4.0], dtype=torch.float64).reshape(4, 1, 1)
    factors = (scales.flatten() - 1) / 3
    wanted = scene.n + scales * (scene.c - scene.n)
    scene.check(cfg(4, frames=factors), wanted)
    scene.check(f"cfg(4, frames={factors.tolist()})", wanted)


@pytest.mark.parametrize(
    ("frames", "weights"),
    [
        ([0, 1], [0, 1 / 3, 2 / 3, 1]),
        ([0.5], [0.5] * 4),
        ([0, 3, 0], [0, 2, 2, 0]),
        ([1, 2, 3, 4], [1, 2, 3, 4]),
        ([0, 1, 2, 3, 4, 5, 6], [0, 2, 4, 6]),
    ],
)
def test_frames_between_two_are_on_the_line(frames, weights):
    scene = scenes("vp", VIDEO)[0]
    along = torch.tensor(weights, dtype=torch.float64).reshape(4, 1, 1)
    scene.check(cfg(3, frames=frames), scene.c + 2 * along * (scene.c - scene.n))


def test_with_scales_by_sample_and_an_interval():
    scene = scenes("mixed", VIDEO)[0]
    along = torch.tensor([0, 1 / 3, 2 / 3, 1], dtype=torch.float64).reshape(4, 1, 1)
    own = torch.tensor([1.0, -1, 3]).reshape(3, 1, 1, 1, 1) * along
    scene.check("cfg([2, 0, 4], frames=[0, 1])", scene.c + own * (scene.c - scene.n))
    scene.check("cfg(3, frames=[0, 1], interval=(0, 1e-9))", scene.c)


def test_one_frame_has_the_first_factor():
    scene = scenes("vp", (3, 2, 1, 3, 5))[0]
    scene.check("cfg(3, frames=[0.25, 1])", scene.c + 0.5 * (scene.c - scene.n))


def test_what_is_no_video_or_no_list_is_refused():
    scene = scenes("vp", (3, 2, 4, 3))[0]
    with pytest.raises(
        ValueError, match=r"frames of a video \[B, C, F, H, W\], but .*\[3, 2, 4, 3"
    ):
        scene.run("cfg(3, frames=[0, 1])")
    for wrong in ((), [float("nan")], 3.0, "ab", [[1.0]]):
        with pytest.raises(ValueError, match="cfg: frames must be a list of finite numbers"):
            cfg(3, frames=wrong)
    assert str(parse("cfg(3, frames=[0, 1])")) == "cfg(3, frames=[0, 1])"


# --- samples in another order ---


class Turned:
    """A scene's network for samples whose dimensions are in another order."""

    def __init__(self, scene, form):
        self.scene, self.form = scene, form

    def __call__(self, x, level, cond):
        kinds = (self.scene.c, self.scene.n)
        rows = cond["row"].long().tolist()
        return self.form.close(torch.stack([kinds[r % 2][r // 2] for r in rows]))


FRAMES_FIRST = SampleForm(open=lambda x: x.transpose(1, 2), close=lambda x: x.transpose(1, 2))
PACKED = SampleForm(
    open=lambda x: x.mT.reshape(len(x), 2, 4, 3, 5), close=lambda x: x.flatten(2).mT
)


@pytest.mark.parametrize("form", [PLAIN, FRAMES_FIRST, CHANNELS_LAST, PACKED])
@pytest.mark.parametrize("expression", ["fdg(3, [1, 0.4])", "cfg(3, frames=[0, 1])"])
def test_a_term_finds_frames_and_pictures(form, expression):
    scene = scenes("vp", VIDEO)[0]
    conditions = {
        "cond": Condition(row=torch.tensor([0, 2, 4])),
        "null": Condition(row=torch.tensor([1, 3, 5])),
    }
    guided = Guided(expression, Turned(scene, form), **conditions)
    made = form.open(guided(form.close(scene.x), scene.step)[0].x0)
    along = torch.tensor([0, 1 / 3, 2 / 3, 1], dtype=torch.float64).reshape(4, 1, 1)
    wanted = (
        expected(scene, 3, (1, 0.4), scene.n)
        if "fdg" in expression
        else scene.c + 2 * along * (scene.c - scene.n)
    )
    torch.testing.assert_close(made, wanted, atol=1e-9, rtol=1e-9)


def test_a_form_is_the_networks_or_the_denoisers():
    class Holder:
        def __init__(self, **parts):
            vars(self).update(parts)

    assert form_of(Holder()) is PLAIN and form_of(Holder(form=None)) is PLAIN
    assert form_of(Holder(form=PACKED, net=Holder(form=CHANNELS_LAST))) is PACKED
    assert form_of(Holder(net=Holder(form=CHANNELS_LAST))) is CHANNELS_LAST
    from guidestar.networks.sequence import SequenceTransformer

    assert form_of(SequenceTransformer(2, 4, width=8, depth=1, heads=1)) is CHANNELS_LAST


def test_other_terms_have_frames_too():
    scene = scenes("vp", VIDEO)[0]
    plain = scene.run(apg(3, momentum=0))[0].x0 - scene.c
    along = torch.tensor([0, 1 / 3, 2 / 3, 1], dtype=torch.float64).reshape(4, 1, 1)
    scene.check(apg(3, momentum=0, frames=[0, 1]), scene.c + along * plain)
    both = expected(scene, 3, (1, 4 / 9), scene.n) - scene.c
    scene.check(fdg(3, frames=[0, 1]), scene.c + along * both)


# --- blurs, intervals and previews of videos ---


def smooth_picture(x):
    """Blur ``[..., H, W]`` by a Gaussian of 1 over 3 places, mirrored: each frame by itself."""
    g = torch.softmax(-(torch.arange(-1.0, 2.0, dtype=x.dtype) ** 2) / 2, 0)
    for axis in (-2, -1):
        flat = x.movedim(axis, -1)
        padded = torch.cat([flat[..., 1:2], flat, flat[..., -2:-1]], -1)
        size = flat.shape[-1]
        x = sum(w * padded[..., k : k + size] for k, w in enumerate(g)).movedim(-1, axis)
    return x


@pytest.mark.parametrize("place", ["vp", "ve", "flow", "mixed"])
def test_sag_blurs_each_frame_by_itself(place):
    """c + s (b − D_u(αb + σε_u)), with b = blur(D_u) along height and width."""
    scene = scenes(place, VIDEO)[0]
    blurred = smooth_picture(scene.u)
    again = toy(scene.a * blurred + scene.s * scene.eps(scene.u), scene.step.t, UNCOND)
    push = blurred - again
    assert push.abs().max() > 1e-2
    own = torch.tensor([0.75, 0, -1]).reshape(3, 1, 1, 1, 1)
    blur = {"masked": False, "radius": 1}
    scene.check(sag(0.75, **blur), scene.c + 0.75 * push, negative=None)
    scene.check(sag([0.75, 0, -1], **blur), scene.c + own * push, negative=None)
    along = torch.tensor([1, 2 / 3, 1 / 3, 0], dtype=torch.float64).reshape(4, 1, 1)
    scene.check(sag(2, frames=[1, 0], **blur), scene.c + 2 * along * push, negative=None)


@pytest.mark.parametrize("expression", ["cfg(3, {})", "fdg(3, gains=[1, 0.4], {})"])
def test_an_interval_of_videos_is_of_each_sample(expression):
    """Of three videos at three levels, those whose noise ratio lies in it are guided."""
    scene = scenes("mixed", VIDEO)[0]
    ratios = (scene.s / scene.a)[:, 0, 0, 0, 0]
    low, middle, high = sorted(ratios.tolist())
    assert low < middle < high
    full = (
        expected(scene, 3, (1, 0.4), scene.n)
        if "fdg" in expression
        else scene.n + 3 * (scene.c - scene.n)
    )
    for lo, hi in ((0.99 * middle, float("inf")), (0, 1.01 * low), (low * 1.01, middle * 1.01)):
        within = ((ratios > lo) & (ratios <= hi)).reshape(3, 1, 1, 1, 1)
        assert 0 < int(within.sum()) < 3
        wanted = torch.where(within, full, scene.c)
        scene.check(expression.format(f"interval=({lo}, {hi})"), wanted)


class Classes:
    """An encoder of numbers; none is −1."""

    classes = ("0", "1", "2")

    def index(self, name):
        return int(name)

    def encode(self, names):
        return Condition(label=torch.tensor([float(n) for n in names]))

    def null(self, batch):
        return Condition(label=torch.full((batch,), -1.0))


@pytest.mark.parametrize("expression", ["cfg(3, frames=[0, 1])", "fdg(3, gains=[1, 0.4])"])
def test_previews_of_videos_are_their_guided_estimates(expression):
    """After each step of DDIM: ``x ← α_s x̂0 + σ_s ε̂`` with the estimate of that step."""
    scale = lambda label: 0.1 * label[:, None, None, None, None]
    net = lambda x, t, label: torch.tanh(x + scale(label))
    model = Model(
        name="videos",
        denoiser=Network(net, predicts="x0"),
        schedule=VP.linear(),
        shape=VIDEO[1:],
        encoder=Classes(),
    )
    grid = uniform(VP.linear(), 3)
    states = list(
        model.trajectory(
            [0, 1, 2], guidance=expression, steps=3, grid="uniform", solver="ddim", seeds=[4, 5, 6]
        )
    )
    assert len(states) == 3
    along = torch.tensor([0, 1 / 3, 2 / 3, 1]).reshape(4, 1, 1)
    x = None
    for index, state in enumerate(states):
        step = grid.step(index)
        if x is not None:
            c, u = torch.tanh(x + scale(torch.arange(3.0))), torch.tanh(x - 0.1)
            push = (
                2 * along * (c - u)
                if "frames" in expression
                else expected(Pair(c, u), 3, (1, 0.4), u) - c
            )
            wanted = c + push
            torch.testing.assert_close(state.prediction.x0, wanted, atol=1e-5, rtol=1e-5)
            eps = (x - float(step.t.alpha) * wanted) / float(step.t.sigma)
            moved = float(step.s.alpha) * wanted + float(step.s.sigma) * eps
            torch.testing.assert_close(state.x, moved, atol=1e-5, rtol=1e-5)
        assert state.prediction.x0.shape == state.x.shape == VIDEO
        x = state.x


class Pair:
    """What `expected` reads of a scene."""

    def __init__(self, c, u):
        self.c, self.u = c, u
