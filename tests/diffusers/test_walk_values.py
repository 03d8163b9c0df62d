"""A walk through a pipeline's timesteps, part by part: levels, prompts, targets, and refusals."""

import hashlib
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from guidestar.core.denoiser import Condition
from guidestar.core.levels import VP, Level
from guidestar.diffusers.guide import classes, pipeline_seeds
from guidestar.diffusers.guide import run as runs
from guidestar.diffusers.guide import walk as walks
from guidestar.diffusers.guide.finite import FiniteWatch
from guidestar.diffusers.guide.levels import Output, Timetable, _unit
from guidestar.diffusers.guide.walk import Walk, Wanted
from guidestar.diffusers.read import scheduler as read
from guidestar.guidance import parse

TIMES = torch.tensor([900.0, 700.0, 500.0, 300.0, 100.0])
LEVELS = tuple(
    Level(math.sqrt(1 - r), math.sqrt(r), t)
    for r, t in ((0.9, 900.0), (0.7, 700.0), (0.5, 500.0), (0.3, 300.0), (0.1, 100.0), (0.0, 0.0))
)


def table(order=1, **more):
    config = SimpleNamespace(num_train_timesteps=1000)
    scheduler: Any = SimpleNamespace(timesteps=TIMES, order=order, config=config, **more)
    return Timetable(
        scheduler=scheduler, times=tuple(TIMES.tolist()), levels=LEVELS, schedule=VP.linear(),
        output=Output(kind="eps"), source=TIMES,
    )  # fmt: skip


def walk(expression="cfg(2)", arguments=None, pipe=None, **wanted):
    pipe = pipe or SimpleNamespace()
    pipe._execution_device = torch.device("cpu")
    made = Walk(pipe, Wanted(guidance=parse(expression), **wanted), arguments or {}, print)
    made.table = table()
    return made


def call(parts=("uncond", "cond"), batch=2, prompts=("encoder_hidden_states",), **conditions):
    kept = {n: torch.zeros(batch, 1) for n in prompts}
    return SimpleNamespace(
        parts=parts, batch=batch, prompts=kept, has_settings=False, arguments={},
        family=SimpleNamespace(encodes=("encoder_hidden_states",)), whole=torch.zeros(batch, 4),
        condition=lambda part: Condition({**kept, **conditions}),
        encoded=lambda tensors, count, away: (tensors, count, away),
    )  # fmt: skip


def test_steps_are_those_of_the_table():
    made = walk()
    step = made._step(1, table())
    assert (step.index, step.t, step.s) == (1, LEVELS[1], LEVELS[2])
    assert [step.grid[k] for k in range(6)] == list(LEVELS)
    assert made._step(4, table()).s == LEVELS[5]
    made._restart(2)
    assert (made.begin, made.last, made.step, made.state, made.after) == (2, 1, -1, None, None)
    step = made._step(3, table())
    assert (step.index, step.s, step.grid.steps) == (1, LEVELS[4], 3)
    made._restart(0)
    two = table(order=2)
    assert [made._step(k, two).index for k in range(5)] == [0, 0, 1, 1, 2]
    assert made._step(1, two).t == LEVELS[1] and made._step(1, two).s == LEVELS[2]
    assert made._step(0, two).grid.steps == 3


def test_what_lies_ahead_is_looked_at_once():
    made = walk()
    ahead = list(made._ahead(call(), 1))
    assert [s.t for s in ahead] == list(LEVELS[2:5])
    assert list(made._ahead(call(), 2)) == []
    assert [s.t for s in made._ahead(call(("cond",)), 3)] == [LEVELS[4]]
    shorter = walk(pipe=SimpleNamespace(_num_timesteps=3))
    assert [s.t for s in shorter._ahead(call(), 0)] == list(LEVELS[1:3])
    shorter._restart(1)
    assert [s.t for s in shorter._ahead(call(), 1)] == list(LEVELS[2:4])
    longer = walk(pipe=SimpleNamespace(_num_timesteps=30))
    assert [s.t for s in longer._ahead(call(), 0)] == list(LEVELS[1:5])


def test_the_place_of_a_timestep():
    found = table()
    assert [found.place(t, -1) for t in TIMES] == [0, 1, 2, 3, 4]
    assert found.place(TIMES[3].clone(), -1) == 3
    assert found.place(TIMES[2:3].clone().expand(4), -1) == 2
    assert found.place(0.5, -1) == 2 and found.place(torch.tensor(0.3), 0) == 3
    assert found.place(torch.tensor(700.0).bfloat16(), 0) == 1
    assert found.current
    twice = Timetable(**{**vars(found), "times": (500.0, 500.0, 100.0), "source": None})
    assert [twice.place(500.0, last) for last in (-1, 0, 1)] == [0, 1, 0]
    twice.scheduler.step_index = 1  # type: ignore[attr-defined]
    assert twice.place(500.0, -1) == 1
    twice.scheduler.step_index = 2  # type: ignore[attr-defined]
    assert twice.place(500.0, -1) == 0
    twice.scheduler.step_index = None  # type: ignore[attr-defined]
    twice.scheduler.begin_index = 1  # type: ignore[attr-defined]
    assert twice.place(500.0, -1) == 1


def test_a_level_between_two_entries():
    assert table().level(1) == LEVELS[1] and table().order == 1
    more = {"sigmas_interpol": torch.tensor([9.0, 0.75, 3.0]), "step_index": 1}
    second = table(state_in_first_order=False, **more)
    assert second.level(1) == pytest.approx((0.8, 0.6, 700.0))
    assert table(state_in_first_order=True, **more).level(1) == LEVELS[1]
    assert _unit(0.75, 4.0) == pytest.approx((0.8, 0.6, 4.0))

    class KAncestral(SimpleNamespace):
        pass

    kind = KAncestral(**vars(second.scheduler))
    other = Timetable(**{**vars(second), "scheduler": kind})
    assert other.level(1) == pytest.approx((1 / math.sqrt(82), 9 / math.sqrt(82), 700.0))


@pytest.mark.parametrize(
    ("settings", "skip", "name", "told", "away"),
    [
        (False, None, "bad", {"a": 1}, False),
        (True, None, "bad", {"a": 1}, True),
        (True, None, "good", {"a": 1}, False),
        (False, 2, "bad", {"a": 1}, True),
        (False, 2, "good", {"a": 1, "clip_skip": 2}, False),
    ],
)
def test_what_a_prompt_is_encoded_with(monkeypatch, settings, skip, name, told, away):
    asked = []
    monkeypatch.setattr(
        walks, "encode", lambda pipe, family, names, told: asked.append(told) or names
    )
    monkeypatch.setattr(walks, "check_prompt", lambda *given: None)
    arguments = {"a": 1} | ({"clip_skip": skip} if skip else {})
    made: Any = walk("AND(2, 'good') + cfg(2, negative='bad')", arguments)
    here = call()
    here.has_settings = settings
    for _ in range(2):
        assert made._encode(here, (name, name)) == ([name, name], 2, away)
    assert asked == [told]  # once


def test_targets_and_seeds_of_a_run(monkeypatch):
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(walks, "Guided", lambda guidance, nets, **given: made.append(given))
    monkeypatch.setattr(walks, "seed_of", lambda streams, k: 100 + k)
    labels, floats = torch.tensor([3, 4]), torch.tensor([3.0, 4.0])
    named = call(prompts=("class_labels",), class_labels=labels)
    for given, here, target in [
        ({}, call(), None),
        ({}, named, [3, 4]),
        ({}, call(prompts=("class_labels",), class_labels=floats), None),
        ({"target": 0}, named, [0]),
        ({"target": [1, 2]}, call(), [1, 2]),
        ({"target": torch.tensor([[5, 6]])}, call(), [[5, 6]]),
    ]:
        walk(**given)._make(here)
        found = made[-1]["target"]
        assert (None if found is None else found.tolist()) == target
    assert made[-1]["seeds"] == [100, 101]
    walk(seeds=[7, 8], max_rows=3, check=True, classifiers={"c": 1})._make(call())
    last = made[-1]
    assert (last["seeds"], last["max_rows"], last["check"], last["classifiers"]) == (
        [7, 8], 3, True, {"c": 1},
    )  # fmt: skip


def test_networks_beside_the_pipelines_are_like_it():
    main, half, away = nn.Linear(1, 1), nn.Linear(1, 1).half(), nn.Linear(1, 1, device="meta")
    walk(nets={"weak": nn.Linear(1, 1)})._check_beside(main, call())  # type: ignore[arg-type]
    for net, text in [
        (half, r"'weak' is in float16, but the pipeline's is in float32; .* net.to\(torch.float32"),
        (away, "'weak' is on meta, but the pipeline runs on cpu; move it there"),
    ]:
        with pytest.raises(ValueError, match=text):
            walk(nets={"weak": net})._check_beside(main, call())  # type: ignore[arg-type]


def watched(*values, guided=1.0, answered=True, kind="Mine", blame=("cfg",)):
    watch = FiniteWatch(kind, lambda step: list(blame))
    made = walk()
    for k, value in enumerate(values):
        watch.record(
            made._step(k, table()), torch.full((2,), value), torch.tensor(answered),
            torch.full((2,), guided),
        )  # fmt: skip
    return watch


@pytest.mark.parametrize("place", [0, 1, 2])
def test_any_tensor_that_is_returned_must_be_finite(place):
    made = [torch.ones(2), torch.ones(2).numpy(), torch.ones(2)]
    watched(1.0).end(tuple(made))
    watched(1.0).end(SimpleNamespace(images=made[0], other=made[1]))
    watched(1.0).end((*made, "text", torch.ones(2, dtype=torch.int64)))
    watched(1.0).end(5)
    made[place][1] = torch.nan
    for result in (tuple(made), SimpleNamespace(**{f"a{k}": m for k, m in enumerate(made)})):
        with pytest.raises(FloatingPointError, match="Mine returns numbers that are not finite"):
            watched(1.0).end(result)


def test_what_is_not_finite_is_named_with_its_step():
    for given, text in [
        ({"values": (1.0, math.nan)}, "Mine: its latents are not finite at step 2 of 5, before"),
        ({"values": (1.0,), "answered": False}, "its network answers with .* at step 1 of 5"),
        ({"values": (1.0,), "guided": math.inf}, "cfg makes numbers .* at step 1 of 5, though"),
        ({"values": (1.0, math.nan), "guided": 2e4}, "cfg reached 2e[+]04, and at step 2 of 5"),
        ({"values": (1.0, math.nan), "guided": 1e4}, "cfg reached 1e[+]04, and at step 2 of 5"),
        ({"values": (1.0, math.nan), "guided": 9e3}, "Mine: its latents are not finite at step 2"),
    ]:
        values = given.pop("values")
        with pytest.raises(FloatingPointError, match=text):
            watched(*values, **given)  # type: ignore[arg-type]
    with pytest.raises(FloatingPointError, match="the guidance makes numbers"):
        watched(1.0, guided=math.inf, blame=())
    with pytest.raises(FloatingPointError, match=r"a and b makes? numbers"):
        watched(1.0, guided=math.inf, blame=("a", "b"))


def test_tables_of_noise():
    names = ("linear", "scaled_linear", "sigmoid")
    found = {
        n: read._betas({"beta_schedule": n, "num_train_timesteps": 3, "beta_start": 0.04,
                        "beta_end": 0.16}).tolist() for n in names}  # fmt: skip
    assert found["linear"] == pytest.approx([0.04, 0.10, 0.16])
    assert found["scaled_linear"] == pytest.approx([0.04, 0.09, 0.16])
    low = 1 / (1 + math.exp(6))
    assert found["sigmoid"] == pytest.approx([0.04 + 0.12 * low, 0.10, 0.16 - 0.12 * low])
    given = {"trained_betas": [0.1, 0.2], "beta_schedule": "x", "num_train_timesteps": 2}
    assert read._betas(given).tolist() == [0.1, 0.2]
    bar = lambda t: math.cos((t / 2 + 0.008) / 1.008 * math.pi / 2) ** 2
    cosine = {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 2}
    assert read._betas(cosine).tolist() == pytest.approx([1 - bar(1) / bar(0), 0.999])
    with pytest.raises(ValueError, match="the beta_schedule 'x' is not supported; these are: lin"):
        read._betas({"beta_schedule": "x", "num_train_timesteps": 2})


def test_a_second_call_of_a_step_is_awaited(monkeypatch):
    """A network that is called twice a step: first, second, and what else there may be."""
    made: Any = object.__new__(runs.Run)
    made.pipe, made.arguments, made.pending = SimpleNamespace(), {}, None
    asked: list[str] = []
    call = SimpleNamespace(family=SimpleNamespace(calls=2))
    note = lambda name: lambda *given: asked.append(name) or name
    place = [0]
    for name in ("_first", "_second", "_guide"):
        monkeypatch.setattr(runs.Run, name, note(name), raising=False)
    monkeypatch.setattr(runs.Run, "_read", lambda self, *given: call)
    monkeypatch.setattr(runs.Run, "_place", lambda self, call: place[0])
    monkeypatch.setattr(runs.Run, "_make_answer", lambda self, net, call, made: f"answer {made}")
    negative = [True]
    monkeypatch.setattr(runs, "negative_rows", lambda *given: negative[0])
    assert made.answer("net", (), {}) == "_first"
    made.pending = (0, call, None)
    assert made.answer("net", (), {}) == "_second"
    place[0] = 1
    line = "was expected to call its network for the negative prompt at the same timestep, and did"
    with pytest.raises(RuntimeError, match=line):
        made.answer("net", (), {})
    with pytest.raises(RuntimeError, match=line):
        made.check_ended(None)
    made.pending = None
    negative[0] = False
    assert made.answer("net", (), {}) == "answer _guide"
    negative[0], call.family.calls = True, 1
    assert made.answer("net", (), {}) == "answer _guide"
    ended: list[Any] = []
    made.watch = SimpleNamespace(end=ended.append)
    made.check_ended("result")
    assert ended == ["result"]


def test_the_seeds_of_samples_are_those_of_their_generators():
    one, two = torch.tensor([1, 2]).byte(), torch.tensor([3, 4]).byte()

    def digest(data, more):
        made = hashlib.blake2b(bytes(data) + more, digest_size=7).digest()
        return int.from_bytes(made, "big")

    assert pipeline_seeds.seed_of([one, two], 1) == digest([3, 4], b"0")
    assert pipeline_seeds.seed_of([one], 1) == digest([1, 2], b"1")
    assert pipeline_seeds.seed_of([one], 0) == digest([1, 2], b"0")
    pipe: Any = SimpleNamespace(_execution_device=torch.device("cpu"))
    a, b = torch.Generator(), torch.Generator()
    for given, wanted in (([a, b], [a, b]), ((a,), [a]), (a, [a])):
        assert pipeline_seeds.generators(pipe, {"generator": given}) == wanted
    for nothing in ({}, {"generator": None}):
        assert pipeline_seeds.generators(pipe, nothing) == [torch.default_generator]


def test_a_derived_class_differs_in_its_calls_alone():
    class Plain:
        """Documented."""

        def __call__(self):
            return "plain"

        def step(self):
            return 1

    found = classes.derived(Plain, None, step=lambda self: 2)
    assert found()() == "plain" and found().step() == 2 and issubclass(found, Plain)
    assert (found.__name__, found.__qualname__, found.__doc__, found.__module__) == (
        Plain.__name__, Plain.__qualname__, "Documented.", Plain.__module__
    )  # fmt: skip
    called = classes.derived(Plain, lambda self: "other")
    assert called()() == "other" and called().step() == 1


@pytest.mark.parametrize("settings", [True, False])
def test_prompts_are_checked_with_what_may_stand_in_their_place(monkeypatch, settings):
    """A condition of the same tensors; none where the network takes further settings."""
    asked: list[Any] = []
    monkeypatch.setattr(walks, "check_prompt", lambda *given: asked.append(given))
    made, own = walk(), call()
    own.has_settings = settings
    made._check_prompts(own, ["a", 3])
    told = [(*given[:3], list(given[3])) for given in asked]
    tensors = [] if settings else ["encoder_hidden_states"]
    assert told == [(made.pipe, own.family, name, tensors) for name in ("a", 3)]


@pytest.mark.parametrize(
    ("calls", "negative", "pending", "parts"),
    [(1, True, None, ("uncond", "cond")), (1, False, None, ("cond",)),
     (2, True, None, ("cond",)), (2, True, "first", ("uncond",))],
)  # fmt: skip
@pytest.mark.parametrize("channel", [1, 2])
def test_what_is_read_of_a_networks_call(monkeypatch, calls, negative, pending, parts, channel):
    family: Any = SimpleNamespace(
        calls=calls, channel=channel, x="sample", parts=("uncond", "cond")
    )
    given = {"sample": torch.zeros(4, 3), "timestep": 7, "skip_layers": None}
    monkeypatch.setattr(runs, "bound", lambda *given_: given)
    monkeypatch.setattr(runs, "family_of", lambda pipe, net: family)
    monkeypatch.setattr(runs, "negative_rows", lambda pipe, own, arguments: negative)
    asked: list[Any] = []
    monkeypatch.setattr(runs, "_channels", lambda *more: asked.append(more) or (3, True))
    monkeypatch.setattr(runs, "grouped", lambda arguments, rows: (arguments, rows))
    monkeypatch.setattr(runs, "Call", SimpleNamespace)
    subject: Any = object.__new__(runs.Run)
    subject.pipe, subject.pending, subject.arguments = "pipe", pending, {}
    found = subject._read("net", (), {})
    assert asked == [("pipe", "net", channel == 1)]
    arguments, rows = found.arguments
    assert rows == 4 and arguments["timestep"].tolist() == 7 and given["timestep"] == 7
    assert (found.family, found.parts) == (family, parts)
    assert (found.channels, found.learned_variance) == (3, True)
    given["skip_layers"] = [1]
    with pytest.raises(ValueError, match=r"skips layers itself \(skip_guidance_layers\); leave"):
        subject._read("net", (), {})


def test_a_derived_class_equals_the_one_it_passes_for():
    """Pipelines ask ``type(self.scheduler) != FlowMatchEulerDiscreteScheduler``."""

    class Plain:
        pass

    class Other:
        pass

    found, another = classes.derived(Plain, None), classes.derived(Plain, None)
    again = classes.derived(found, None)
    for kind in (found, another, again):
        assert kind == Plain and Plain == kind and kind in {Plain} and kind in (Other, Plain)
        assert kind != Other and Other != kind and kind not in {Other} and kind is not Plain
    assert found == another and not found != Plain  # noqa: SIM202
