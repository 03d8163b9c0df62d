"""Observations that do not fit are refused, and what a mask hides counts for nothing."""

import pytest
import torch

from guidestar import (
    DDPM,
    VP,
    Blur,
    Colour,
    Downsample,
    Flow,
    Guided,
    Identity,
    Inpaint,
    Observation,
    RePaint,
    TimeTravel,
    classifier,
    clip,
    discriminator,
    load,
    mmps,
    parse,
    pigdm,
    sample,
    steer,
    uniform,
)
from guidestar.apps.observe import read_operator

GRID = uniform(VP.linear(), 3)
MASK = torch.cat([torch.ones(4, 2), torch.zeros(4, 2)], 1)


def network(x, level, cond):
    return 0.7 * x


def guided(expression, loss, count=2, **more):
    return Guided(expression, network, losses={"loss": loss}, seeds=list(range(count)), **more)


def x(count=2):
    return torch.randn(
        count, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )


@pytest.mark.parametrize("shape", [(2, 4, 4), (2, 1, 4, 1), (2, 1, 2, 2)])
@pytest.mark.parametrize("name", ["dps(1)", "pigdm(1)", "mpgd(1)"])
def test_an_observation_of_another_shape_is_refused(name, shape):
    with pytest.raises(
        ValueError,
        match=r"observation: y is .*, but the operator makes \(2, 1, 4, 4\) of the samples$",
    ):
        guided(f"uncond + {name}", Observation(Identity(), torch.zeros(shape), noise=0.1))(
            x(), GRID.step(0)
        )


def test_an_observation_is_a_tensor_or_a_number():
    with pytest.raises(
        ValueError, match=r"y must be a tensor \[B, \*O\], or one number, not list$"
    ):
        Observation("identity", [1.0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"the noise must be finite and 0 or more, not inf$"):
        Observation("identity", 0.0, noise=float("inf"))


@pytest.mark.parametrize("name", ["dps(1)", "mpgd(1)", "pigdm(1, iterations=1)", "tfg(1)"])
def test_what_a_mask_hides_counts_for_nothing(name):
    """y inside the mask alone says all: ``m x`` and x give the same, where x is anything
    outside.
    """
    y = x()
    one, other = (
        guided(f"uncond + {name}", Observation(Inpaint(mask=MASK), v, noise=0.1))(
            0.3 * x(), GRID.step(0)
        )[0]
        for v in (y, y * MASK)
    )
    torch.testing.assert_close(one.x0, other.x0, atol=0, rtol=0)
    assert not torch.allclose(one.x0, 0.7 * 0.3 * x())
    constant = Observation(Inpaint(mask=MASK), 0.5)
    expected = torch.linalg.vector_norm((MASK * (0.5 - x())).flatten(1), dim=1)
    torch.testing.assert_close(constant(x()), expected)


def test_a_mask_for_each_sample_is_refused():
    with pytest.raises(
        ValueError,
        match=r"inpaint: there must be one mask for all samples, not \(2, 1, 4, 4\) for \(2, 1, "
        r"4, 4\)$",
    ):
        Inpaint(mask=torch.ones(2, 1, 4, 4))(x())
    assert Inpaint(mask=MASK[None, None])(x()).equal(x() * MASK)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Blur(deviation=float("inf")), "deviation must be above 0"),
        (lambda: Colour(matrix=()), "the matrix must have rows of one length"),
        (lambda: Colour(matrix=((1.0, 2.0), (1.0,))), "the matrix must have rows of one length"),
        (lambda: pigdm(1, iterations=0), "pigdm: there must be at least one iteration, not 0"),
        (lambda: mmps(1, iterations=-1), "mmps: there must be at least one iteration, not -1"),
        (lambda: parse("uncond + tfg(1, smoothing=-1)"), "smoothing 0 or more"),
        (
            lambda: TimeTravel(solver=TimeTravel()),
            "time travel around time travel repeats the same steps",
        ),
        (lambda: TimeTravel(times=1.5), "times must be a whole number, not 1.5"),  # type: ignore[arg-type]
        (lambda: read_operator("paint(mask=3)", (1, 4, 4)), "unknown operator 'paint'"),
        (
            lambda: read_operator("gray(matrix=())", (3, 4, 4)),
            "the matrix must have rows of one length",
        ),
        (lambda: read_operator("gray(noise=1e400)", (3, 4, 4)), "noise must be a finite number"),
        (lambda: read_operator("blur(deviation=1e400)", (1, 4, 4)), "deviation"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("known", "mask"), [((4, 1, 4, 4), (4, 4)), ((1, 4, 4), (4, 4)), ((2, 1, 4, 4), (3, 4))]
)
def test_known_pixels_that_do_not_fit_are_refused(known, mask):
    solver = RePaint(known=torch.zeros(known), mask=torch.ones(mask))
    with pytest.raises(
        ValueError, match=r"^repaint: known .* and mask .* do not fit the samples \(2, 1, 4, 4\)$"
    ):
        sample(Guided("uncond", network), grid=GRID, solver=solver, seeds=[0, 1], shape=(1, 4, 4))


def test_a_loss_that_is_no_tensor_is_refused():
    with pytest.raises(
        ValueError, match="the loss must return one number for each of 2 samples, not a float"
    ):
        guided("uncond + mpgd(1)", lambda x0: 0.0)(x(), GRID.step(0))


@pytest.mark.parametrize(
    ("reward", "more", "message"),
    [
        (lambda x0: x0.flatten(1).sum(1) / 0, {}, "a reward must be finite"),
        (
            lambda x0: 1.0,
            {},
            "a reward must return one number for each of 4 particles, not a float",
        ),
        (
            lambda x0: x0.flatten(1).sum(1),
            {"strength": float("inf")},
            "the strength must be finite",
        ),
        (lambda x0: x0.flatten(1).sum(1), {"threshold": -1.0}, "the threshold a share"),
        (
            lambda x0: x0.flatten(1).sum(1),
            {"particles": 1.5},
            "particles must be a whole number from 1",
        ),
    ],
)
def test_rewards_that_cannot_weigh_are_refused(reward, more, message):
    with pytest.raises(ValueError, match=message):
        steer(
            Guided("uncond", network),
            grid=GRID,
            solver=DDPM(),
            seeds=[0, 1],
            reward=reward,
            shape=(1, 4, 4),
            **{"particles": 2, **more},
        )


def test_a_plan_counts_every_gradient_of_mmps():
    observed = Observation(Downsample(factor=2), 0.0, noise=0.1)
    plan = guided("uncond + mmps(1, iterations=2)", observed).plan(GRID, batch=2)
    assert [step.gradients for step in plan.steps] == [
        6,
        6,
        6,
    ]  # for each of 2 samples, each iteration and one more


def test_every_particle_has_its_samples_observation():
    """Pulled hard towards its own observation, each sample's best particle is nearest to that."""
    model = load("fashion-mnist")
    y = torch.stack([torch.full((1, 28, 28), -0.9), torch.full((1, 28, 28), 0.9)])
    made = model.steer(
        lambda images: -images.mean((1, 2, 3)).abs(),
        guidance="uncond + mpgd(40)",
        losses={"loss": Observation("identity", y)},
        particles=2,
        seeds=[0, 1],
        steps=3,
    )
    assert float(made.images[0].mean()) < -0.3 and float(made.images[1].mean()) > 0.3


@pytest.mark.parametrize(
    ("term", "made"),
    [
        ("classifier", lambda f: classifier(1.0, log_prob=lambda x, level, target: f(x))),
        ("discriminator", lambda f: discriminator(1.0, log_odds=lambda x, level: f(x))),
        ("clip", lambda f: clip(1.0, torch.ones(1, 2), fit=lambda x, level, text: f(x))),
    ],
)
def test_a_function_that_is_not_of_each_sample_is_refused(term, made):
    """A mean would push each sample by a share that changes with the batch."""
    for function, said in (
        (
            lambda x: -x.square().mean(),
            r"must return one number for each of 4 samples, not a tensor \(\)",
        ),
        (
            lambda x: x.sum(1, keepdim=True),
            r"must return one number for each of 4 samples, not a tensor \(4, 1\)",
        ),
        (lambda x: x.detach().sum(1), "cannot be differentiated in the samples"),
    ):
        with pytest.raises(ValueError, match=f"{term}: .*{said}"):
            Guided(made(function), lambda x, level, cond: x / 2)(
                torch.ones(4, 2), uniform(Flow(), 4).step(1)
            )


@pytest.mark.parametrize("options", [{}, {"max_rows": 2}])
@pytest.mark.parametrize("count", [3, 5])
def test_targets_are_as_many_as_the_samples(options, count):
    term = classifier(
        1.0, log_prob=lambda x, level, target: -((x[:, 0] - target) ** 2), target=list(range(count))
    )
    with pytest.raises(ValueError, match=f"{count} values were given for 4 samples"):
        Guided(term, lambda x, level, cond: x / 2, **options)(
            torch.ones(4, 2), uniform(Flow(), 4).step(1)
        )


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda x: x[:, 0], r"a tensor \(4,\)"),
        (lambda x: x[:, :1], r"a tensor \(4, 1\)"),
        (lambda x: None, "a NoneType"),
    ],
)
def test_a_denoiser_that_returns_another_shape_is_refused(answer, said):
    with pytest.raises(
        ValueError,
        match="a denoiser must return the clean estimate of each sample, a tensor .4, 2. like its "
        f"input, not {said}",
    ):
        Guided("uncond", lambda x, level, cond: answer(x))(
            torch.ones(4, 2), uniform(Flow(), 4).step(1)
        )
