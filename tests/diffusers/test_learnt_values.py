"""What is learnt of a pipeline's step, on small maps that are written out: its blocks of rows,
their coefficients, places in the timetable, and rows that are read one by one.
"""

import dataclasses
import inspect
import math
from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from diffusers import DDIMScheduler, EulerDiscreteScheduler
from guidestar.core.denoiser import Condition
from guidestar.core.levels import Level
from guidestar.diffusers.guide import learnt, probe
from guidestar.diffusers.guide.calls import NetCall, Template
from guidestar.diffusers.guide.learnt import LearntRun, _Stream
from guidestar.diffusers.guide.levels import Output
from guidestar.diffusers.guide.part_denoiser import PartDenoiser
from guidestar.diffusers.guide.probe import Combination, Layout, Place, learn
from guidestar.diffusers.guide.step_rows import StepRows
from guidestar.diffusers.guide.traced import Tape
from guidestar.diffusers.guide.walk import Wanted
from guidestar.guidance import parse

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
SHAPE = (3, 4)


def combined(made, *rows, samples=2, shape=SHAPE, out=None, dtype=torch.float32, **more):
    """What a pipeline makes of calls of so many rows: ``made(answer, ...)``."""
    tape, calls, answers = Tape("Pipe"), [], []
    for n in rows:
        arguments = {"sample": torch.zeros(n, *shape, dtype=dtype), **more}
        template, _ = Template.of(torch.zeros(n, *(out or shape), dtype=dtype), n, False)
        answer, leaves = template.promised(tape)
        calls.append(NetCall(net="net", arguments=arguments, template=template, leaves=leaves))
        answers.append(answer)
    sample = torch.zeros(samples, *shape)
    return Combination(name="Pipe", tape=tape, calls=calls, wanted=made(*answers), sample=sample)


def cfg(a):
    u, c = a.chunk(2)
    return u + 3 * (c - u)


def at(call, block):
    return Place(call=call, block=block)


def test_the_negatives_rows_may_be_first_or_last_or_in_another_call():
    first = learn(combined(cfg, 4))
    assert first.parts == {"cond": at(0, 1), "uncond": at(0, 0)} and first.batch == 2
    assert list(first.coefficients.values()) == pytest.approx([-2.0, 3.0], abs=1e-4)
    assert list(first.places()) == [at(0, 0), at(0, 1)]
    assert first.scale == pytest.approx(3.0, abs=1e-4) and first.flat == 1
    last = learn(combined(lambda a: a[:2] + 0.5 * (a[:2] - a[2:]), 4))
    assert last.parts == {"cond": at(0, 0), "uncond": at(0, 1)}
    assert last.scale == pytest.approx(1.5, abs=1e-4)
    two = learn(combined(lambda c, u: u + 3 * (c - u), 2, 2))
    assert two.parts == {"cond": at(0, 0), "uncond": at(1, 0)} and two.batch == 2


@pytest.mark.parametrize("batch", [1, 2])
def test_a_pipeline_without_guidance_has_one_part(batch):
    found = learn(combined(lambda a: 1 * a, batch, samples=batch))
    assert found.parts == {"cond": at(0, 0)} and found.batch == batch
    assert found.coefficients == {at(0, 0): 1.0}


def test_frames_are_rows_of_a_sample():
    spread = lambda a: cfg(a).repeat_interleave(3, 0)
    found = learn(combined(spread, 4, samples=6))
    assert (found.batch, found.flat) == (2, 3) and found.parts["cond"] == at(0, 1)


def test_three_parts_are_named_in_the_order_that_is_known():
    def pix2pix(a):
        c, i, u = a.chunk(3)
        return u + 5 * (c - i) + 2 * (i - u)

    known = ("cond", "image", "uncond")
    found = learn(combined(pix2pix, 6), known)
    assert found.parts == dict(zip(known, (at(0, 0), at(0, 1), at(0, 2)), strict=True))
    assert list(found.coefficients.values()) == pytest.approx([5.0, -3.0, -1.0], abs=1e-3)
    with pytest.raises(ValueError, match="Pipe mixes 3 answers of its network, and which is"):
        learn(combined(pix2pix, 6))
    with pytest.raises(ValueError, match="mixes 3 answers"):
        learn(combined(pix2pix, 6), known[:2])


def test_an_answer_that_is_not_used_is_no_part():
    place = [at(0, k) for k in range(3)]
    name = lambda *k: probe._named("Pipe", dict(zip(place, k, strict=False)), ())
    assert name(-2.0, 0.05, 3.0) == {"cond": place[2], "uncond": place[0]}
    with pytest.raises(ValueError, match="mixes 3 answers"):
        name(-2.0, 0.051, 2.949)
    assert name(0.0, 1.0) == {"cond": place[1], "uncond": place[0]}  # of two, both count
    assert name(1.0) == {"cond": place[0]}
    assert name(0.05, 0.95) == {"cond": place[1], "uncond": place[0]}
    for weak in ((0.06, 0.94), (0.5, 0.5)):
        with pytest.raises(ValueError, match="; give a guidance scale above 1, so that it is"):
            name(*weak)
    with pytest.raises(ValueError, match=r"Pipe mixes its network's answers by 0.06, 0.94; give"):
        name(0.06, 0.94)


def test_three_channels_may_be_guided_alone():
    def dit(a):
        guided = cfg(a[:, :3])
        return torch.cat([guided, a[2:, 3:]], 1)

    shape = (4, 2, 2)
    found = learn(combined(dit, 4, shape=shape))
    assert found.parts == {"cond": at(0, 1), "uncond": at(0, 0)}
    assert found.scale == pytest.approx(3.0, abs=1e-3)
    # Neither a text of three dimensions nor a picture of three channels is tried so.
    for other in ((4, 2), (3, 2, 2)):
        bad = lambda a: torch.cat([cfg(a[:, :2]), a[2:, 2:]], 1)
        with pytest.raises(ValueError, match="does not hand its scheduler a guidance"):
            learn(combined(bad, 4, shape=other))


def test_the_variance_beside_a_mean_is_left_out():
    c = combined(cfg, 4, shape=(2, 4, 4), out=(4, 4, 4))
    made = torch.randn(2, 4, 4, 4)
    assert torch.equal(c.mean(made), made[:, :2])
    assert c.mean(made[:, :3]).shape[1] == 3 and c.mean(made[:, :2, 0]).ndim == 3
    three = combined(cfg, 4, shape=(4, 4, 4))
    assert torch.equal(dataclasses.replace(three, channels=3).mean(made), made[:, :3])


def test_what_is_no_affine_map_of_whole_rows_is_refused():
    def mixed(a):  # the first of three features from one block, the rest from the other
        return torch.cat([a[:2, :1], a[2:, 1:]], 1)

    c = combined(mixed, 4)
    found, off = probe._coefficients(c, 2, 0.01)
    held = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0)).double()
    turned = torch.stack([-held[..., 1::2], held[..., ::2]], -1).flatten(-2)
    share = float(turned[:, :1].square().sum() / turned.square().sum())
    assert list(found.values()) == pytest.approx([share, 1 - share], abs=1e-3)
    assert off == pytest.approx(math.sqrt(share * (1 - share)), abs=1e-3)
    with pytest.raises(ValueError, match=r"\(an affine map of whole rows, off by 0\.\d+\), so it"):
        learn(c)

    def strong(a):
        return torch.cat([a[:2, :1] + 4 * (a[2:, :1] - a[:2, :1]), a[:2, 1:]], 1)

    found, off = probe._coefficients(combined(strong, 4), 2, 0.01)
    assert list(found.values()) == pytest.approx([1 - 4 * share, 4 * share], abs=2e-3)
    rest = 4 * math.sqrt(share * (1 - share))
    worst = rest / min(max(1, 4 * share), max(1, abs(1 - 4 * share)))
    assert off == pytest.approx(worst, rel=1e-2)


def test_the_exactness_that_is_asked_for_depends_on_the_precision():
    assert probe._steps_of(combined(cfg, 4)) == ((0.01, 0.001), 0.05)
    assert probe._steps_of(combined(cfg, 4, dtype=torch.bfloat16)) == ((0.2, 0.05, 0.02), 0.3)
    assert probe._steps_of(combined(lambda a: cfg(a).half(), 4)) == ((0.2, 0.05, 0.02), 0.3)
    assert probe._steps_of(combined(lambda a: cfg(a).double(), 4)) == ((0.01, 0.001), 0.05)


def test_answers_that_move_nothing_or_have_other_shapes_are_refused():
    nothing = combined(lambda a: a[:2] * 0, 4)
    assert probe._coefficients(nothing, 2, 0.01) == ({at(0, 0): 0.0, at(0, 1): 0.0}, math.inf)
    c, other = combined(cfg, 4), combined(cfg, 4, shape=(3, 3, 6))
    both = dataclasses.replace(c, calls=[*c.calls, *other.calls])
    with pytest.raises(ValueError, match="answers in other shapes in the calls of one step"):
        probe._coefficients(both, 2, 0.01)


def test_rows_that_are_not_those_of_the_samples_are_refused():
    seven = combined(lambda a: a[:1] * 1, 7, samples=1)
    with pytest.raises(ValueError, match=r"rows that are not those of its samples \(\[7\] for 1\)"):
        learn(seven)
    six = learn(combined(lambda a: a[:1] + 2 * (a[:1] - a[5:]), 6, samples=1))
    assert six.batch == 1 and six.parts == {"cond": at(0, 0), "uncond": at(0, 5)}


def test_a_push_is_at_right_angles_to_the_answer():
    assert probe._turned(torch.tensor([[1.0, 2.0, 3.0, 4.0]])).tolist() == [[-2.0, 1.0, -4.0, 3.0]]
    assert probe._turned(torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [[-2.0, 1.0, 0.0]]
    column = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]])
    assert probe._turned(column).tolist() == [[[-2.0], [1.0]], [[-4.0], [3.0]]]


# Places in the timetable.


def stream(scheduler, arguments=None):
    pipe = SimpleNamespace(scheduler=scheduler, components=OrderedDict(scheduler=scheduler))
    pipe._execution_device = torch.device("cpu")
    owner = LearntRun(pipe, Wanted(guidance=parse("cfg(2)")), arguments or {}, print)  # type: ignore[arg-type]
    return _Stream(owner)


def test_the_place_of_a_step_by_its_time():
    scheduler = DDIMScheduler(num_train_timesteps=1000)
    scheduler.set_timesteps(5)
    times = scheduler.timesteps
    subject = stream(scheduler)
    for k in range(5):
        assert subject._find_place(scheduler, times[k]) == k
        assert (subject.last, subject.begin) == (k, 0)
    subject.state, subject.after = "kept", "kept"  # type: ignore[assignment]
    assert subject._find_place(scheduler, times[4]) == 4 and subject.state == "kept"
    assert subject._find_place(scheduler, times[2]) == 2  # the run has begun anew
    assert (subject.begin, subject.last, subject.state, subject.after) == (2, 2, None, None)
    late = stream(scheduler)
    assert late._find_place(scheduler, int(times[3])) == 3  # a picture that was noised
    assert (late.begin, late.last, late.step) == (3, 3, -1)


def test_the_table_is_read_again_where_the_scheduler_or_its_times_changed():
    one, two = DDIMScheduler(), DDIMScheduler()
    one.set_timesteps(5)
    two.set_timesteps(4)
    subject = stream(one)
    subject._find_place(one, one.timesteps[1])
    table = subject.table
    subject._find_place(one, one.timesteps[2])
    assert subject.table is table and subject.begin == 1
    subject.state = "kept"  # type: ignore[assignment]
    assert subject._find_place(two, two.timesteps[3]) == 3
    assert subject.table is not table and subject.table.scheduler is two  # type: ignore[union-attr]
    assert (subject.begin, subject.last, subject.state) == (3, 3, None)
    two.set_timesteps(10)
    assert subject._find_place(two, two.timesteps[6]) == 6 and subject.begin == 6
    assert len(subject.table.times) == 10  # type: ignore[union-attr]


def test_a_scheduler_that_counts_its_steps_says_the_place():
    scheduler = EulerDiscreteScheduler()
    scheduler.set_timesteps(5)
    subject = stream(scheduler)
    assert subject._find_place(scheduler, scheduler.timesteps[0]) == 0
    scheduler._step_index = 2
    assert subject._find_place(scheduler, scheduler.timesteps[0]) == 2
    assert (subject.begin, subject.last) == (0, 2)
    scheduler._step_index = 0
    assert subject._find_place(scheduler, scheduler.timesteps[0]) == 0 and subject.begin == 0


def test_a_step_of_all_parts_only_converts():
    scheduler = DDIMScheduler()
    owner = stream(scheduler).owner
    owner.calls = list(combined(cfg, 4).calls)

    def takes(model_output, timestep, sample, pred_original_sample=None): ...

    def plain(model_output, timestep, sample): ...

    given = {"sample": torch.zeros(4, 3)}
    clean, bare = inspect.signature(takes), inspect.signature(plain)
    assert owner._only_converts(clean, given)
    assert not owner._only_converts(bare, given)
    assert not owner._only_converts(clean, {"sample": torch.zeros(2, 3)})
    assert not owner._only_converts(clean, {**given, "pred_original_sample": 1})


def test_an_answer_that_reaches_no_scheduler():
    subject = stream(DDIMScheduler())
    owner, ended = subject.owner, []
    with pytest.raises(ValueError, match="took no step of its scheduler with what its network"):
        owner.check_ended(None)
    subject.watch.end = ended.append  # type: ignore[method-assign]
    owner.streams = [subject]
    owner.check_ended("result")  # type: ignore[arg-type]
    assert ended == ["result"]
    owner.calls = list(combined(cfg, 4).calls)
    with pytest.raises(ValueError, match="took no step"):
        owner.check_ended(None)
    owner.stepped = True
    owner.check_ended("result")  # type: ignore[arg-type]


# Rows.

PROMPTS = torch.tensor([[[0.1]], [[0.2]], [[0.3]], [[0.4]]])
"""Of the negatives' two rows and the prompts' two."""


def answer(net, arguments):
    """``x·10 + prompt``, one each row."""
    noted.append((net, arguments))
    return 10 * arguments["sample"] + arguments["encoder_hidden_states"]


noted: list[Any] = []


def part(z=None, net=None, run=answer, given=None, answers=None, **more):
    noted.clear()
    z = torch.arange(24.0).reshape(2, *SHAPE) if z is None else z
    c = combined(cfg, 4, encoder_hidden_states=PROMPTS)
    arguments = {**c.calls[0].arguments, "sample": torch.cat([z, z]) if given is None else given}
    call = NetCall(net="net", arguments=arguments, template=c.calls[0].template,
                   leaves=c.calls[0].leaves, answers=answers)  # fmt: skip
    c = Combination(name="Pipe", tape=c.tape, calls=[call], wanted=c.wanted, sample=z)
    layout = Layout(batch=2, parts={"cond": at(0, 1), "uncond": at(0, 0)},
                    coefficients={at(0, 0): -2.0, at(0, 1): 3.0})  # fmt: skip
    return PartDenoiser(net=net, run=run, c=c, layout=layout, output=Output(kind="x0"), z=z,
                        kept={}, again=False, **more)  # fmt: skip


def rows_of(subject):
    return StepRows(subject.c, subject.layout, {"a": 1})


def test_the_rows_of_a_part():
    rows = rows_of(part())
    assert rows.parts == ("cond", "uncond") and rows.batch == 2 and rows.whole is rows.c.sample
    cond, null = rows.condition("cond"), rows.condition("uncond")
    assert cond["rows"].tolist() == [[2], [3]] and null["rows"].tolist() == [[0], [1]]
    assert torch.equal(cond["encoder_hidden_states"], PROMPTS[2:])
    assert torch.equal(rows.prompts["encoder_hidden_states"], PROMPTS[2:])
    with pytest.raises(ValueError, match="prompts within an expression are not supported here"):
        rows.encoded({}, 1)
    second = Layout(batch=2, parts={"cond": at(1, 0)}, coefficients={})
    c = combined(lambda a, b: a, 2, 2)
    assert StepRows(c, second, {}).condition("cond")["rows"].tolist() == [[0, 0], [1, 1]]


LEVEL = Level(0.6, 0.8, 500.0)


@pytest.mark.parametrize("chosen", [[2, 3], [0, 1], [3], [2], [3, 2], [2, 3, 0, 1], [3, 3, 0]])
def test_any_rows_are_asked_and_read_one_by_one(chosen):
    subject = part()
    z, index = subject.z, torch.tensor(chosen)
    cond = Condition(rows=index[:, None], encoder_hidden_states=PROMPTS[index])
    found = subject(z[index % 2].double(), LEVEL, cond)
    wanted = 10 * z[index % 2] + PROMPTS[index]
    assert torch.allclose(found, wanted.double(), atol=1e-4) and found.dtype == torch.float64  # type: ignore[union-attr]
    assert [net for net, _ in noted] == ["net"] and bool(subject.finite)
    given = noted[0][1]["encoder_hidden_states"]
    # All rows of a call are handed over in the pipeline's order.
    assert torch.equal(given, PROMPTS if len(chosen) == 4 else PROMPTS[index])


def test_what_the_network_answered_already_is_taken():
    answers = [torch.arange(48.0).reshape(4, *SHAPE)]
    rows = torch.tensor([2, 3])
    ask = lambda subject, prompts, x=None: subject._ask(subject.c.calls[0], rows, prompts, x)[0]
    same = {"encoder_hidden_states": PROMPTS[2:]}
    assert torch.equal(ask(part(answers=answers), same), answers[0][2:]) and not noted
    fresh = 10 * part().z + PROMPTS[2:]
    assert torch.allclose(ask(part(answers=answers, perturbed=True), same), fresh)
    assert torch.allclose(ask(part(), same), fresh)
    other = {"encoder_hidden_states": PROMPTS[:2]}
    found = ask(part(answers=answers), other)
    assert torch.allclose(found, 10 * part().z + PROMPTS[:2])
    ask(part(answers=answers, net="other"), same)
    assert noted[0][0] == "other"
    unknown = {**same, "text_embeds": PROMPTS[2:]}
    assert len(noted) == 1 and ask(part(answers=answers), unknown).shape[0] == 2 and noted
    leaf = torch.ones(2, *SHAPE)
    x = part(answers=answers)
    found = ask(x, same, leaf)
    assert torch.allclose(found, 10 * leaf + PROMPTS[2:])


def test_a_second_stream_takes_what_the_first_was_answered():
    subject = part()
    cond = Condition(rows=torch.tensor([[2], [3]]), encoder_hidden_states=PROMPTS[2:])
    z = subject.z.double()
    first = subject(z, LEVEL, cond)
    assert list(subject.kept) == [(0, 1, (2, 3))]
    for again, count in ((True, 0), (False, 1)):
        kept = subject.kept if again else dict(subject.kept)
        other = part()
        other.kept, other.again = kept, again
        assert torch.equal(other(z, LEVEL, cond), first)  # type: ignore[arg-type]
        assert len(noted) == count
    other = part()
    other.kept, other.again = subject.kept, True
    leaf = z.clone().requires_grad_()
    with torch.enable_grad():
        found = other(leaf, LEVEL, cond)
        assert torch.autograd.grad(found.sum(), leaf)[0].unique().tolist() == [10.0]  # type: ignore[union-attr]
    bad = part(run=lambda net, given: given["sample"] / 0)
    bad(z, LEVEL, cond)
    assert not bool(bad.finite)


def guided_step(expression="cfg(2)", run=answer):
    """A step of a stream whose network is ``run``, at the second of five times."""
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(5)
    subject = part(run=run)
    made = stream(scheduler)
    made.wanted = made.owner.wanted = Wanted(guidance=parse(expression))
    made.run = run
    return made, scheduler, subject.c


def test_a_step_is_guided_whatever_the_pipelines_own_scale_is():
    made, scheduler, c = guided_step()
    recorded: list[Any] = []
    made.watch.record = lambda *given: recorded.append(given)  # type: ignore[method-assign]
    out = made.guide(scheduler, scheduler.timesteps[1], c)
    z = c.sample
    u, p = 10 * z + PROMPTS[:2], 10 * z + PROMPTS[2:]
    assert torch.allclose(out, (u + 2 * (p - u)).double(), atol=1e-3)
    ((step, x, finite, written),) = recorded
    assert (step.index, made.last, made.begin) == (0, 1, 1) and torch.equal(x, z)
    assert bool(finite) and torch.allclose(written, out)
    assert list(made.layouts.values())[0].parts["cond"] == at(0, 1)  # noqa: RUF015
    # The clean estimate itself is guided where the scheduler is given that.
    made, scheduler, c = guided_step()
    assert torch.allclose(made.guide(scheduler, scheduler.timesteps[1], c, True), out, atol=1e-3)
    made, scheduler, c = guided_step("cond")
    assert torch.allclose(made.guide(scheduler, scheduler.timesteps[1], c), p.double(), atol=1e-3)


def test_numbers_that_are_not_finite_are_recorded():
    made, scheduler, c = guided_step(run=lambda net, given: given["sample"] / 0)
    recorded: list[Any] = []
    made.watch.record = lambda *given: recorded.append(given)  # type: ignore[method-assign]
    made.guide(scheduler, scheduler.timesteps[1], c)
    assert not bool(recorded[0][2])


def test_the_networks_input_is_made_of_the_samples():
    z = torch.arange(24.0).reshape(2, *SHAPE)
    mask = torch.full((4, 2, 4), 7.0)
    beside = torch.cat([torch.cat([z, z]), mask], 1)
    subject = part(given=beside)
    call, rows, new = subject.c.calls[0], torch.tensor([3, 0]), torch.rand(2, *SHAPE)
    found = subject._input(call, rows, new.double())
    assert torch.equal(found, torch.cat([new, mask[:2]], 1)) and found.dtype == beside.dtype
    wide = torch.cat([torch.cat([z, z]), torch.full((4, 3, 1), 5.0)], 2)
    subject = part(given=wide)
    found = subject._input(subject.c.calls[0], rows, new)
    assert torch.equal(found, torch.cat([new, torch.full((2, 3, 1), 5.0)], 2))
    for odd in (beside + 1, torch.cat([z, z]).flatten(1)):
        subject = part(given=odd)
        with pytest.raises(ValueError, match="makes its network's input of its samples in a way"):
            subject._input(subject.c.calls[0], rows, new)


def test_the_samples_as_the_network_takes_them():
    layout = Layout(batch=2, parts={}, coefficients={}, flat=3)
    single = Layout(batch=2, parts={}, coefficients={})
    x = torch.arange(12.0).reshape(6, 2)
    level = Level(0.5, 0.8, 1.0)
    plain, scaled = DDIMScheduler(), EulerDiscreteScheduler()
    assert torch.equal(learnt._as_the_network(plain, x, level, single), x)
    assert torch.equal(learnt._as_the_network(scaled, x, level, single), x * 0.5)
    assert learnt._as_the_network(plain, x, level, layout).shape == (2, 3, 2)


def test_the_schedulers_of_pipelines_within_one():
    one, two = DDIMScheduler(), DDIMScheduler()
    inner = SimpleNamespace(components={"scheduler": two}, scheduler=two)
    outer: Any = SimpleNamespace(
        components={"scheduler": one, "unet": two}, scheduler=one, prior=inner
    )
    assert learnt._schedulers(outer) == [one, two]
    assert learnt._schedulers(SimpleNamespace(scheduler=None)) == []  # type: ignore[arg-type]


def test_whether_samples_are_the_steps_own():
    subject = part()
    z, rows = subject.z, torch.tensor([3, 0])
    assert not subject._is_elsewhere(z + 1, rows)  # no term moves them
    subject.moves = True
    assert not subject._is_elsewhere(z[[1, 0]].double(), rows)
    assert subject._is_elsewhere(z[[0, 1]], rows) and subject._is_elsewhere(z[[1, 0]] + 1, rows)


@pytest.mark.parametrize(
    ("samples", "whole"), [([0, 1], 1), ([0, 1, 0, 1], 2), ([1, 0], 0), ([0], 0), ([0, 1, 1], 1)]
)
def test_whole_batches_are_read_at_once(monkeypatch, samples, whole):
    subject, asked = part(), []
    monkeypatch.setattr(
        PartDenoiser, "_to_scheduler", lambda self, rows: asked.append(rows[0]) or rows[0]
    )
    answer = [torch.arange(float(len(samples)))[:, None]]
    found = subject._read(answer, torch.tensor(samples))
    assert found[:, 0].tolist() == list(range(len(samples)))
    assert len(asked) == whole + len(samples) - 2 * whole
