"""Weights along the frames of a video, and samples that lie in another order, in plain torch."""

import pytest
import torch
from test_fdg import expected

from guidestar import Condition, Guided, apg, cfg, fdg, parse
from guidestar.core.forms import CHANNELS_LAST, PLAIN, SampleForm, form_of
from helpers.scenes import scenes

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
