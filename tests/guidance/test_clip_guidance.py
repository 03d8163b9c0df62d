"""CLIP guidance against its formula, written in plain torch."""

from __future__ import annotations

import pytest
import torch

from guidestar import Guided, Net, clip, parse
from helpers.toys import (
    COND,
    UNCOND,
    WORDS,
    Seer,
    Spy,
    col,
    condition,
    encode,
    log_prob_gradient,
    mixed_step,
    noise,
    steps,
    toy,
)

PLACES = ("vp", "ve", "flow", "mixed")
ASKED = ["cat", "dog", "blurry"]


def world(guidance, *, seers=None, prompts=ASKED, **more):
    net = Net(denoiser=Spy(), cond=condition(COND), null=condition(UNCOND), encode=encode)
    seers = {"clip": Seer(), "clean_clip": Seer(noise_aware=False)} if seers is None else seers
    return Guided(guidance, {"main": net}, classifiers=seers, prompts=prompts, **more)


def numbers(captions):
    return torch.tensor([10 * WORDS[c] for c in captions], dtype=torch.float64)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("text", "asked"),
    [(None, ASKED), ("dog", ["dog"] * 3), (["dog", "cat", "blurry"], ["dog", "cat", "blurry"])],
)
def test_score_form_of_each_samples_caption(place, text, asked):
    x, step = noise(3, 4, 2), steps(place)[0]
    out, _ = world(parse("uncond") + clip(3.0, text))(x, step)
    gradient = log_prob_gradient(x, step.t, numbers(asked))
    expected = (
        toy(x, step.t, UNCOND) + 3.0 * col(step.t.sigma, x) ** 2 / col(step.t.alpha, x) * gradient
    )
    torch.testing.assert_close(out.x0, expected, rtol=1e-10, atol=1e-10)


def test_scales_are_per_sample_and_a_sleeping_sample_sees_no_clip():
    x, step = noise(3, 4, 2), steps("flow")[0]
    out, _ = world(clip([2.0, 0.0, -1.0]))(x, step)
    weights = torch.tensor([2.0, 0.0, -1.0], dtype=torch.float64)[:, None, None]
    push = (
        col(step.t.sigma, x) ** 2
        / col(step.t.alpha, x)
        * log_prob_gradient(x, step.t, numbers(ASKED))
    )
    torch.testing.assert_close(
        out.x0, toy(x, step.t, COND) + weights * push, rtol=1e-10, atol=1e-10
    )


def test_a_caption_of_nothing_is_embedded_as_nothing():
    class Cosine(Seer):
        def embed_text(self, captions):
            return torch.ones(len(captions), 1, dtype=torch.float64)

        def log_prob(self, x, level, target):
            return x.flatten(1).sum(1) * target[:, 0]

    x, step = noise(3, 4), steps("vp")[0]
    out, _ = world(clip(2.0), seers={"clip": Cosine()}, prompts=["cat", "", "dog"])(x, step)
    push = (out.x0 - toy(x, step.t, COND)) / (2.0 * step.t.sigma**2 / step.t.alpha)
    torch.testing.assert_close(
        push,
        torch.tensor([[1.0], [0.0], [1.0]], dtype=torch.float64).expand(3, 4),
        rtol=1e-9,
        atol=1e-9,
    )


@pytest.mark.parametrize("through", ["cond", "uncond"])
def test_a_clean_clip_looks_at_the_clean_estimate(through):
    """By finite differences of ``fit(D(x))`` at the clean level."""
    x, step = noise(3, 4), mixed_step("flow", [2.0, 1.0, 0.5], [1.0, 0.5, 0.2])
    out, _ = world(parse(f"uncond + clip(1.5, through='{through}')"))(x, step)
    c, y, h = {"cond": COND, "uncond": UNCOND}[through], numbers(ASKED), 1e-6
    clean = step.grid.schedule.clean

    def fit(at):
        d = toy(at, step.t, c)
        n = (col(clean.alpha, d) ** 2 + col(clean.sigma, d) ** 2).sqrt()
        return (-(2 + col(y, d)) * (d / n - col(y, d) / 10) ** 2 / 2).flatten(1).sum(1)

    gradient = torch.stack(
        [(fit(x + h * e) - fit(x - h * e)) / (2 * h) for e in torch.eye(4, dtype=torch.float64)],
        dim=1,
    )
    expected = (
        toy(x, step.t, UNCOND) + 1.5 * col(step.t.sigma, x) ** 2 / col(step.t.alpha, x) * gradient
    )
    torch.testing.assert_close(out.x0, expected, rtol=1e-7, atol=1e-7)


def test_a_fit_of_ones_own():
    x, step = noise(2, 4), steps("ve")[0]
    mine = clip(
        2.0,
        torch.tensor([[3.0]], dtype=torch.float64),
        fit=lambda x, level, e: (x * e).flatten(1).sum(1),
    )
    out, _ = world(parse("uncond") + mine, seers={}, prompts=None)(x, step)
    torch.testing.assert_close(
        out.x0, toy(x, step.t, UNCOND) + 2.0 * step.t.sigma**2 * 3.0, rtol=1e-10, atol=1e-10
    )


def test_it_is_trusted_up_to_a_noise_ratio():
    x, (step, _) = noise(3, 4), steps("flow")
    rho = step.t.rho
    asleep, _ = world(clip(2.0), seers={"clip": Seer(rho_max=rho * 0.99)})(x, step)
    awake, _ = world(clip(2.0), seers={"clip": Seer(rho_max=rho)})(x, step)
    assert torch.equal(asleep.x0, toy(x, step.t, COND)) and not torch.allclose(awake.x0, asleep.x0)


@pytest.mark.parametrize(
    ("guidance", "more", "said"),
    [
        (clip(1.0), {"seers": {}}, "no CLIP 'clip'"),
        (clip(1.0), {"prompts": None}, "no prompt was requested"),
        (clip(1.0, net="clean_clip"), {}, "was trained without noise"),
        (clip(1.0, "cat", net="other"), {}, "no CLIP 'other' .*clean_clip"),
        (clip(1.0, "cat", fit=lambda x, level, e: x), {}, "gets embeddings"),
        (clip(1.0), {"seers": {"clip": Seer(rho_max=0.0)}}, "of no use"),
    ],
)
def test_what_cannot_be_is_refused_by_name(guidance, more, said):
    with pytest.raises(ValueError, match=said):
        world(guidance, **more)


def test_it_is_read_and_written():
    assert (
        str(parse("uncond + clip(3, 'a red apple') + clip(1, through='uncond')"))
        == "uncond + clip(3, text='a red apple') + clip(1, through='uncond')"
    )
