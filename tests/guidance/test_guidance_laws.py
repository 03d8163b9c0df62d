"""Laws that every method obeys: the tests walk METHODS, so a newcomer is tested before its author
writes a line.

A term is made as ``method(scale)`` and a post as ``method()``; only one that cannot be made so
needs a line in ``MAKE``, and only one that a law cannot hold for needs a line in ``EXCEPT``, with
the reason.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import MISSING, fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import guidestar
from guidestar import (
    METHODS,
    Condition,
    Draw,
    Guided,
    Level,
    Net,
    Observation,
    Post,
    Step,
    clamp,
    cosine,
    linear,
    parse,
    uniform,
)
from guidestar.core.passes import Inputs
from guidestar.guidance import Contrast, Direction
from guidestar.guidance.term import as_guidance
from helpers.toys import (
    COND,
    NEGATIVE,
    SCHEDULES,
    UNCOND,
    Critic,
    Judge,
    Scaled,
    Seer,
    Spy,
    col,
    condition,
    encode,
    log_prob,
    mixed_step,
    net,
    noise,
    steps,
    toy,
)

MAKE: dict[str, Callable[..., Any]] = {
    "clip": lambda scale, **more: METHODS["clip"](scale, "cat", **more),
    "icg": lambda scale, **more: METHODS["icg"](
        scale, 4, **more
    ),  # one number has no deviation that noise could have
    "sag": lambda scale, **more: METHODS["sag"](scale, layer="map", **more),
    "mmps": lambda scale, **more: METHODS["mmps"](scale, "observation", **more),
    "pigdm": lambda scale, **more: METHODS["pigdm"](scale, "observation", **more),
    "pix2pix": lambda scale, **more: METHODS["pix2pix"](
        scale, text=scale, **more
    ),  # which has two scales
}
"""How to make a method that needs more than its scale: name -> (scale, **more) -> term."""

EXCEPT: dict[str, set[str]] = {
    "mmps": {
        "test_equal_passes_do_not_push"
    },  # it compares with an observation, whatever the passes
    "pigdm": {"test_equal_passes_do_not_push"},
    "fdg": {"test_samples_of_any_shape"},  # its bands lie along the positions, so the shape matters
    "sag": {"test_samples_of_any_shape"},  # it blurs over places, so a vector is no picture
}
"""Laws that a method does not obey, by name of the test, with the reason."""

DIRECTIONS = sorted(name for name, method in METHODS.items() if issubclass(method, Direction))
POSTS = sorted(name for name, method in METHODS.items() if issubclass(method, Post))
EVERY = DIRECTIONS + POSTS
SHAPES = {"vector": (24,), "sequence": (4, 6), "image": (2, 3, 4), "video": (2, 3, 2, 2)}
PLACES = ("vp", "ve", "flow", "mixed")
TARGET, SEEDS = torch.tensor([3, 0, 7]), [11, 12, 13]


def term(name: str, scale: Any = 2.0, **more: Any) -> Direction:
    return MAKE.get(name, METHODS[name])(scale, **more)


def every(name: str, scale: Any = 2.0, **more: Any) -> Any:
    """Make a term, or a cfg with a post."""
    return (
        term(name, scale, **more)
        if name in DIRECTIONS
        else METHODS["cfg"](scale, **more) | MAKE.get(name, METHODS[name])()
    )


def neutral(name: str) -> float:
    return METHODS[name].neutral if name in DIRECTIONS else METHODS["cfg"].neutral


def guided(
    guidance: Any,
    *,
    answer: Any = toy,
    judge: Any = log_prob,
    cond: Condition | None = None,
    target: Tensor | None = TARGET,
    spy: Spy | None = None,
    seeds: Any = SEEDS,
    **more: Any,
) -> Guided:
    """Bind to a world that has everything: two networks, a classifier, an encoder of any name."""
    spy = spy or Spy(answer)
    one = {"null": condition(UNCOND), "encode": encode, "part": lambda name: condition(0.3)}
    nets = {
        "main": Net(
            denoiser=spy, cond=cond or condition(COND), negative=condition(NEGATIVE), **one
        ),
        "weak": Net(
            denoiser=lambda x, level, cond: spy(0.9 * x, level, cond),
            cond=cond or condition(COND),
            negative=condition(NEGATIVE),
            **one,
        ),
    }
    judges = {
        "classifier": Judge(answer=judge),
        "clip": Seer(answer=judge),
        "discriminator": Critic(answer=judge),
    }
    losses = {
        "loss": lambda x0: -judge(x0, Level(1.0, 0.0, 0.0), 3.0) / 5,
        "observation": Observation(Scaled(), 0.3, noise=0.5),
    }
    return Guided(
        guidance, nets, classifiers=judges, losses=losses, target=target, seeds=seeds, **more
    )


def close(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def obeying(law: str, names: Sequence[str] = EVERY) -> Sequence[str]:
    """Return the methods that a law is for."""
    return [name for name in names if law not in EXCEPT.get(name, ())]


def is_plain_contrast(name: str) -> bool:
    """Tell whether a method is ``good − bad`` of two passes that are told nothing else: it reads
    the same in every space.
    """
    made, step = term(name), steps("vp")[0]
    if not isinstance(made, Contrast) or not made.traits.linked or made.bad(step).edit:
        return False
    return made.shape.__func__ is Contrast.shape or name == "cfg"


LINKED = [name for name in EVERY if name in POSTS or term(name).traits.linked]
PLAIN = [name for name in DIRECTIONS if is_plain_contrast(name)]


def test_the_laws_of_some_are_for_whom_they_should_be():
    """So that none of them slips out of a law; a newcomer is sorted by what it is."""
    assert {"AND", "NOT", "autoguidance", "cfg", "pag", "seg", "slg", "tpg"} <= set(PLAIN)
    assert {"apg", "cfg", "classifier", "pigdm", "ugd", *PLAIN, *POSTS} <= set(LINKED)


def test_every_exported_method_is_in_the_language():
    exported = [getattr(guidestar.guidance, n) for n in guidestar.guidance.__all__]
    concrete = {
        m
        for m in exported
        if isinstance(m, type) and issubclass(m, Direction | Post) and not inspect.isabstract(m)
    }
    concrete.discard(guidestar.guidance.Conditioned)  # a base without a name of its own
    assert concrete == set(METHODS.values())
    assert all(METHODS[m.name] is m and getattr(guidestar, m.name) is m for m in concrete)


@pytest.mark.parametrize("name", EVERY)
def test_every_method_says_what_it_is(name):
    text = METHODS[name].__doc__
    assert text and text[0].isupper() and "https://" in text and "References:" in text
    listed = re.findall(r"^ {8}(\w+(?:, \w+)*):", text.split("Args:")[1], re.MULTILINE)
    explained = {argument for line in listed for argument in line.split(", ")}
    assert {f.name for f in fields(METHODS[name])} - OF_EVERY_TERM <= explained


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", DIRECTIONS)
def test_weight_zero_is_the_base_in_one_pass(name, place):
    spy, x, step = Spy(), noise(3, 4), steps(place)[0]
    run = guided(term(name, neutral(name)), spy=spy)
    out, _ = run(x, step)
    base = {"cond": COND, "uncond": UNCOND, "neg": NEGATIVE}[run.base.cond.value]
    assert spy.calls == [[base] * 3]
    assert torch.equal(out.x0, toy(x, step.t, base))
    asleep = guided(term(name, 5.0, interval=(1e6, float("inf"))), spy=(other := Spy()))
    assert torch.equal(asleep(x, step)[0].x0, out.x0) and other.rows == 3


def flat_world(x: Tensor, level: Level, c: Any) -> Tensor:
    return toy(x, level, 0.0) / 2


def indifferent(x: Tensor, level: Level, target: Tensor) -> Tensor:
    return (0 * x).flatten(1).sum(1)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", obeying("test_equal_passes_do_not_push"))
def test_equal_passes_do_not_push(name, place):
    x, state = noise(3, 4), None
    for step in steps(place):
        run = guided(every(name, 7.0), answer=flat_world, judge=indifferent)
        run.nets["weak"] = run.nets["main"]
        out, state = run(x, step, state)
        close(out.x0, flat_world(x, step.t, 0.0), 1e-12)
        close(out.eps, (x - col(step.t.alpha, x) * out.x0) / col(step.t.sigma, x), 1e-9)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
@pytest.mark.parametrize("contrast", [False, True])
def test_zero_norms_and_constant_tensors_stay_finite(name, value, contrast):
    def constant(x: Tensor, level: Level, c: Any) -> Tensor:
        return value + 0 * x + (col(c, x) if contrast else 0.0)

    for place in SCHEDULES:
        grid = uniform(SCHEDULES[place], 4)
        for x in (torch.zeros(3, 2, 4), torch.ones(3, 2, 4)):
            state = None
            for index in (0, 1, 3):
                out, state = guided(every(name, 9.0), answer=constant, judge=indifferent)(
                    x, grid.step(index), state
                )
                assert out.x0.isfinite().all() and out.eps.isfinite().all()
                assert all(v.isfinite().all() for own in state for v in own.values())


@pytest.mark.parametrize("name", EVERY)
def test_one_number_a_sample_stays_finite(name):
    x, state = noise(3, 1), None
    for step in steps("flow"):
        out, state = guided(every(name, 4.0))(x, step, state)
        assert out.x0.isfinite().all() and out.eps.isfinite().all()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", EVERY)
def test_a_batch_equals_its_samples_one_by_one(name, place):
    x, own = noise(3, 2, 5), [0.9, -0.4, 0.3]
    together = state = None
    singles: list[Any] = [None] * 3
    for index, step in enumerate(steps(place)):
        here = x * (1 + index)
        together, state = guided(every(name, 4.0), cond=condition(*own))(here, step, state)
        for i in range(3):
            one = step.take(torch.tensor([i]))
            run = guided(
                every(name, 4.0),
                cond=condition(own[i]),
                target=TARGET[i : i + 1],
                seeds=SEEDS[i : i + 1],
            )
            out, singles[i] = run(here[i : i + 1], one, singles[i])
            close(out.x0, together.x0[i : i + 1])
            close(out.eps, together.eps[i : i + 1], 1e-9)
            for single, whole in zip(singles[i], state, strict=True):
                assert single.keys() == whole.keys()
                for key, value in whole.items():
                    close(single[key], value[i : i + 1])


@pytest.mark.parametrize("name", EVERY)
def test_what_is_planned_is_what_is_evaluated(name):
    for scale, options in (
        (3.0, {}),
        ([3.0, neutral(name), 2.0], {}),
        (3.0, {"interval": (0.2, 1.1)}),
        (3.0, {"schedule": linear}),
    ):
        grid, x = uniform(SCHEDULES["vp"], 6), noise(3, 4)
        guidance, state = every(name, scale, **options), None
        plan = guided(guidance).plan(grid, batch=3)
        for index in range(grid.steps):
            spy = Spy()
            _, state = guided(guidance, spy=spy)(x, grid.step(index), state)
            now = plan.steps[index]
            assert now.fewest <= spy.rows <= sum(now.passes.values()), (name, index, str(plan))
            if not any(t.may_stop(grid.step(index)) for t in as_guidance(guidance).terms):
                assert now.fewest == spy.rows == sum(now.passes.values())
        assert plan.nfe == pytest.approx(sum(s.nfe for s in plan.steps))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", PLAIN)
def test_linear_contrasts_agree_in_every_space(name, place):
    made, step = term(name, 3.0), steps(place)[0]
    x = noise(3, 4)
    a, s = col(step.t.alpha, x), col(step.t.sigma, x)
    run = guided(made)

    def answer(p: Any) -> Tensor:
        net = run.nets[p.net]
        c = run.nets["main"].condition(p.cond, 3)
        drawn = Draw(SEEDS).at(step.index)
        inputs = Inputs(cond=c, t=step.t.alpha, step=step, streams=drawn)
        with p.perturb(net.denoiser, None, inputs) if p.perturb else nullcontext():
            return net.denoiser(x, step.t, c)

    out, _ = run(x, step)
    views = {
        "x0": lambda d, eps: d,
        "eps": lambda d, eps: eps,
        "score": lambda d, eps: -eps / s,
        "velocity": lambda d, eps: eps - d,
        "v": lambda d, eps: a * eps - s * d,
    }
    for space, view in views.items():
        base, good, bad = (
            view(e, (x - a * e) / s)
            for e in map(answer, (run.base, made.good(step), made.bad(step)))
        )
        close(out.view(space), base + (3.0 - made.neutral) * (good - bad), 1e-8)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", obeying("test_rescaling_x_alpha_and_sigma_leaves_d", LINKED))
@pytest.mark.parametrize("k", [0.01, 7.0])
def test_rescaling_x_alpha_and_sigma_leaves_d(name, place, k):
    x, state, other = noise(3, 4), None, None
    for step in steps(place):
        divided = step._replace(
            t=Level(step.t.alpha / k, step.t.sigma / k, step.t.t),
            s=Level(step.s.alpha / k, step.s.sigma / k, step.s.t),
        )
        out, state = guided(every(name, 4.0))(x, step, state)
        same, other = guided(every(name, 4.0))(x / k, divided, other)
        close(same.x0, out.x0, 1e-9)
        close(same.eps, out.eps, 1e-8)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_dtype_is_kept(name, dtype):
    for place in ("flow", "mixed"):
        state = exact = None
        for step in steps(place):
            x = noise(3, 4, dtype=dtype)
            out, state = guided(every(name, [3.0, 2.0, neutral(name)]))(x, step, state)
            truth, exact = guided(every(name, [3.0, 2.0, neutral(name)]))(x.double(), step, exact)
            assert out.x0.dtype == out.eps.dtype == dtype
            assert all(v.dtype == dtype for own in state for v in own.values())
            tolerance = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 0.25}[dtype]
            torch.testing.assert_close(out.x0.double(), truth.x0, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", obeying("test_samples_of_any_shape"))
def test_samples_of_any_shape(name):
    results = {}
    for kind, shape in SHAPES.items():
        assert torch.tensor(shape).prod() == 24
        state = None
        for i, step in enumerate(steps("mixed")):
            out, state = guided(every(name, 4.0))(
                noise(3, 24, seed=i).reshape(3, *shape), step, state
            )
            assert out.x0.shape == out.eps.shape == (3, *shape)
        results[kind] = out.x0.reshape(3, 24)
    for result in results.values():
        close(result, results["vector"])


def spellings(name: str) -> list[Any]:
    """Make a term in every way that the arguments all terms share allow."""
    shared = [
        {},
        {"interval": (0.25, float("inf"))},
        {"schedule": linear},
        {"schedule": clamp(0.123456789, cosine), "interval": (0, 5.5)},
    ]
    scales = [3, 0, -2.5, 1e-7, 1e20, 0.1 + 0.2, [1, 2.5, -4], (7,)]
    return [every(name, s, **more) for s in scales for more in shared]


@pytest.mark.parametrize("name", EVERY)
def test_every_method_round_trips_through_its_text(name):
    for made in spellings(name):
        guidance = as_guidance(made)
        assert parse(str(guidance)) == guidance, str(guidance)
        assert str(parse(str(guidance))) == str(guidance) and hash(parse(str(guidance))) == hash(
            guidance
        )
        assert guided(str(guidance)).guidance == guidance


OF_EVERY_TERM = {f.name for f in fields(Direction)} - {"scale"}
SIMPLE = {float: 0.625, int: 2, str: "a \"b\" 'c', é\\n", bool: True}


@pytest.mark.parametrize("name", EVERY)
def test_every_argument_round_trips_through_its_text(name):
    method = METHODS[name]
    first, *others = fields(method)
    for f in others:
        for value in SIMPLE.values():
            if (
                f.name in OF_EVERY_TERM
                or type(value).__name__ not in str(f.type).replace("|", " ").split()
            ):
                continue
            needed = {} if first.default is not MISSING else {first.name: 2.0}
            made = method(**needed, **{f.name: value})
            guidance = as_guidance(made) if isinstance(made, Direction) else term("cfg") | made
            assert parse(str(guidance)) == guidance


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", DIRECTIONS)
def test_a_scale_for_each_sample(name, place):
    scales, x, state, others = [2.0, neutral(name), -1.5], noise(3, 2, 4), None, [None] * 3
    for step in steps(place):
        out, state = guided(term(name, scales))(x, step, state)
        for i, scale in enumerate(scales):
            one, others[i] = guided(term(name, scale))(x, step, others[i])
            close(out.x0[i], one.x0[i])
            close(out.eps[i], one.eps[i], 1e-9)


@pytest.mark.parametrize("max_rows", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("name", EVERY)
def test_chunks_are_exact(name, max_rows):
    x, state, other, spy = noise(4, 2, 4), None, None, Spy()
    world = {
        "cond": condition(0.2, 0.4, 0.6, 0.8),
        "target": torch.tensor([3, 0, 7, 5]),
        "seeds": [*SEEDS, 14],
    }
    levels = [
        mixed_step("flow", [9.0, 1.3, 0.2, 0.4], [5.0, 0.7, 0.1, 0.3]),
        mixed_step("flow", [5.0, 0.7, 0.1, 0.3], [2.0, 0.3, 0.05, 0.2]),
    ]
    for step in levels:
        for scale in (3.0, [3.0, neutral(name), neutral(name), 2.0]):
            one = guided(every(name, scale), **world)(x, step, state, explain=True)
            two = guided(every(name, scale), spy=spy, max_rows=max_rows, **world)(
                x, step, other, explain=True
            )
            (out, state), (part, other), pushes, shares = one, two, one.pushes, two.pushes
            close(part.x0, out.x0)
            close(part.eps, out.eps, 1e-9)
            for a, b in (*zip(state, other, strict=True), (pushes, shares)):
                assert a.keys() == b.keys()
                for key, value in a.items():
                    close(value, b[key])
    assert max(map(len, spy.calls)) <= max_rows


@pytest.mark.parametrize("name", EVERY)
def test_nothing_that_comes_back_is_part_of_a_graph(name):
    x = noise(3, 4)
    out, state = guided(every(name))(x, steps("flow")[0])
    assert not any(
        t.requires_grad
        for t in (x, out.x_t, out.x0, out.eps, *(v for own in state for v in own.values()))
    )


@pytest.mark.parametrize("name", EVERY)
def test_an_instance_is_frozen_and_knows_its_kind(name):
    made = term(name) if name in DIRECTIONS else METHODS[name]()
    with pytest.raises(AttributeError):
        made.scale = 3.0
    assert replace(made) == made and str(made).startswith(f"{name}(")


@pytest.mark.parametrize("name", DIRECTIONS)
def test_terms_commute_and_double(name):
    x, step, made = noise(3, 4), steps("mixed")[0], term(name, 2.0)
    other = METHODS["cfg"](3.0)
    base, once, also, twice = (
        guided(g)(x, step)[0].x0
        for g in (
            made + METHODS["cfg"](1.0),
            made + other,
            other + made,
            made + other + made + other,
        )
    )
    close(once, also)
    assert guided(made + other).base == guided(other + made).base
    start = guided(made.traits.requires.value if made.traits.requires else "cond")(x, step)[0].x0
    close(twice - start, 2 * (once - start))
    assert (base - once).abs().max() > 1e-3


def test_a_step_of_mixed_levels_equals_steps_of_one_level():
    rho_t, rho_s = [9.0, 1.3, 0.2], [5.0, 0.7, 0.1]
    x, step = noise(3, 4), mixed_step("flow", rho_t, rho_s)
    for name in EVERY:
        out, _ = guided(every(name, 4.0, interval=(0.5, 2.0)))(x, step)
        for i, (t, s) in enumerate(zip(rho_t, rho_s, strict=True)):
            one = Step(
                SCHEDULES["flow"].at_rho(t), SCHEDULES["flow"].at_rho(s), step.index, step.grid
            )
            close(guided(every(name, 4.0, interval=(0.5, 2.0)))(x, one)[0].x0[i], out.x0[i])


def test_a_scale_of_exactly_one_asks_for_the_condition_alone_and_passes_keep_their_order():
    """Passes are listed as terms ask for them, each with how many samples need it; with scale 1 the
    null is not among them.
    """
    grid = uniform(SCHEDULES["flow"], 2)
    asked = lambda text: [
        (str(p), n)
        for p, n in Guided(text, {"main": net(Spy(), condition(1.0, 1.0, 1.0))})
        .plan(grid, batch=3)
        .steps[0]
        .passes.items()
    ]
    assert asked("cfg(1)") == [("cond", 3)] and asked("cfg([1, 1, 1])") == [("cond", 3)]
    assert asked("cfg(3)") == [("cond", 3), ("neg", 3)]
    assert asked("cfg([3, 1, 2])") == [("cond", 3), ("neg", 2)]
    assert asked("cfg([3, 1, 2]) + cfg([1, 1, 4], negative='blurry')") == [
        ("cond", 3),
        ("neg", 2),
        ("'blurry'", 1),
    ]
    spy = Spy()
    x, step = noise(3, 4), grid.step(0)
    out, _ = Guided("cfg([3, 1, 2])", {"main": net(spy, condition(1.0, 1.0, 1.0))})(x, step)
    c, u = toy(x, step.t, COND), toy(x, step.t, NEGATIVE)
    assert spy.rows == 5 and torch.equal(out.x0[1], c[1])
    torch.testing.assert_close(
        out.x0, u + torch.tensor([3.0, 1.0, 2.0]).double()[:, None] * (c - u)
    )
