"""The parts of a learnt run by themselves: coefficients, rows, and what the scheduler is given."""

from inspect import signature
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from guidestar.core.denoiser import Condition
from guidestar.core.levels import Level
from guidestar.core.prediction import Prediction
from guidestar.diffusers.guide import probe
from guidestar.diffusers.guide.calls import NetCall, Template, find_input
from guidestar.diffusers.guide.learnt import LearntRun, _as_the_network, _schedulers
from guidestar.diffusers.guide.levels import Output
from guidestar.diffusers.guide.part_denoiser import PartDenoiser
from guidestar.diffusers.guide.probe import Combination, Layout, Place, learn
from guidestar.diffusers.guide.traced import Tape
from guidestar.diffusers.guide.walk import Wanted
from guidestar.guidance import parse

P00, P01, P02, P10 = (Place(call=c, block=b) for c, b in ((0, 0), (0, 1), (0, 2), (1, 0)))
WEIGHTS = torch.tensor([1.0, 2.0])[:, None, None, None]


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def made_of(make, *rows, sample=None, shape=(4, 3, 5), arguments=None, answers=None):
    """Return what a step makes of calls of so many rows."""
    tape, calls, promised = Tape("Mine"), [], []
    for k, n in enumerate(rows):
        values = draw(n, *shape, seed=k)
        template, found = Template.of((values,), n, False)
        answer, leaves = template.promised(tape)
        promised.append(answer[0])
        given = arguments or {"sample": values}
        kept = found if answers else None
        net: Any = lambda **kw: (kw["sample"] * 10,)
        calls.append(NetCall(net=net, arguments=given, template=template, leaves=leaves,
                             answers=kept))  # fmt: skip
    with torch.no_grad():
        wanted = make(*promised)
    sample = draw(2, *wanted.shape[1:], seed=9) if sample is None else sample
    return Combination(name="Mine", tape=tape, calls=calls, wanted=wanted, sample=sample)


def guided(scale):
    def make(out):
        uncond, cond = out.chunk(2)
        return uncond + scale * (cond - uncond)

    return make


def test_every_block_has_its_coefficient():
    def three(out):
        cond, image, uncond = out.chunk(3)
        return uncond + 2 * (image - uncond) + 5 * (cond - image)

    layout = learn(made_of(three, 6), ("cond", "image", "uncond"))
    assert layout.parts == {"cond": P00, "image": P01, "uncond": P02}
    assert list(layout.places()) == [P00, P01, P02]
    assert list(layout.coefficients.values()) == pytest.approx([5, -3, -1], abs=1e-3)
    assert layout.scale == pytest.approx(5, abs=1e-3) and layout.flat == 1
    one = learn(made_of(lambda out: out, 2))
    assert one.coefficients == {P00: 1.0} and one.scale == 1
    two = learn(made_of(lambda cond, uncond: 4 * cond - 3 * uncond, 2, 2))
    assert list(two.coefficients.values()) == pytest.approx([4, -3], abs=1e-3)


def test_a_sample_of_the_scheduler_may_be_several_rows():
    def frames(out):
        return guided(3)(out).flatten(0, 1)

    found = learn(made_of(frames, 4, sample=draw(8, 3, 5)))
    assert (found.batch, found.flat) == (2, 4)
    assert found.parts == {"cond": P01, "uncond": P00}


def test_more_than_six_blocks_are_no_guidance():
    mean = lambda n: lambda out: out.unflatten(0, (n, 1)).mean(0)
    with pytest.raises(ValueError, match=r"mixes its network's answers by 0\.167"):
        learn(made_of(mean(6), 6, sample=draw(1, 4, 3, 5)))
    with pytest.raises(ValueError, match=r"rows that are not those of its samples \(\[7\] for 1\)"):
        learn(made_of(mean(7), 7, sample=draw(1, 4, 3, 5)))


def test_calls_of_one_step_answer_in_one_shape():
    tape, calls, promised = Tape("Mine"), [], []
    for n, shape in ((2, (4, 3, 5)), (2, (4, 2, 6))):
        values = draw(n, *shape)
        template, _ = Template.of((values,), n, False)
        answer, leaves = template.promised(tape)
        promised.append(answer[0])
        calls.append(NetCall(net=None, arguments={"x": values}, template=template, leaves=leaves))
    with torch.no_grad():
        wanted = promised[0] * 2 - promised[1][..., :1, :5]
    with pytest.raises(ValueError, match="answers in other shapes in the calls of one step"):
        learn(Combination(name="M", tape=tape, calls=calls, wanted=wanted, sample=draw(2, 4, 3, 5)))


def test_nothing_that_reaches_the_scheduler_is_no_guidance():
    with pytest.raises(ValueError, match="an affine map of whole rows, off by inf"):
        learn(made_of(lambda out: out * 0, 2))


def test_a_push_is_at_right_angles_within_the_last_dimension():
    t = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]])
    assert probe._turned(t).tolist() == [[-2, 1, -4, 3, 0]]
    assert probe._turned(torch.tensor([[[1.0], [2.0]]])).tolist() == [[[-2], [1]]]


def test_how_far_to_push_is_by_the_precision():
    c = made_of(guided(3), 4)
    assert probe._steps_of(c) == ((0.01, 0.001), 0.05)
    half = made_of(lambda out: guided(3)(out).bfloat16(), 4)
    assert probe._steps_of(half) == ((0.2, 0.05, 0.02), 0.3)
    found = learn(made_of(lambda out: guided(3)(out.half()), 4))
    assert found.scale == pytest.approx(3, abs=0.1)


def test_blocks_are_named_by_their_coefficients():
    named = lambda found, *order: probe._named("M", found, order)
    assert named({P00: 2.0, P01: -1.0}) == {"cond": P00, "uncond": P01}
    assert named({P00: -1.0, P10: 2.0}) == {"cond": P10, "uncond": P00}
    assert named({P00: 0.95, P01: 0.04}) == {"cond": P00, "uncond": P01}
    assert named({P00: 0.04, P01: 3.0, P02: -2.0}) == {"cond": P01, "uncond": P02}
    assert named({P00: 0.05, P01: 1.0, P02: 0.0}) == {"cond": P01}
    mixed = {P00: 3.0, P01: -1.0, P02: -1.0}
    assert named(mixed, "a", "b", "c") == {"a": P00, "b": P01, "c": P02}
    with pytest.raises(ValueError, match="mixes 3 answers"):
        named(mixed, "a", "b")
    with pytest.raises(ValueError, match=r"mixes its network's answers by 0.949, 0.051; give"):
        named({P00: 0.949, P01: 0.051})


def test_a_variance_beside_the_mean_is_left_out():
    both = guided(2)
    c = made_of(both, 4, sample=draw(2, 2, 3, 5))
    made = draw(2, 4, 3, 5)
    assert torch.equal(c.mean(made), made[:, :2])
    same = made_of(both, 4, sample=draw(2, 4, 3, 5))
    assert torch.equal(same.mean(made), made)
    other = made_of(both, 4, sample=draw(2, 2, 15))
    assert torch.equal(other.mean(made), made)
    three = Combination(name="M", tape=c.tape, calls=c.calls, wanted=c.wanted, sample=c.sample,
                        channels=3)  # fmt: skip
    assert torch.equal(three.mean(made), made[:, :3])


LEVEL = Level(alpha=0.8, sigma=0.6, t=0.5)


def denoiser(c, layout, *, ran=None, **more):
    def run(net, arguments):
        ran.append(arguments) if ran is not None else None
        return net(**arguments)

    given = {"net": None, "run": run, "c": c, "layout": layout, "output": Output(kind="x0")}
    given |= {"z": c.sample, "kept": {}, "again": False, **more}
    return PartDenoiser(**given)


def rows(*chosen, width=1):
    return Condition({"rows": torch.tensor(chosen)[:, None].expand(-1, width)})


def weighed(out):
    return guided(3)(out) * WEIGHTS.to(out.dtype)


def test_any_rows_are_read_as_those_of_their_samples():
    x = draw(4, 4, 3, 5, seed=3)
    c = made_of(weighed, 4, arguments={"sample": x, "timestep": torch.tensor(7.0)})
    layout = learn(c)
    assert layout.parts == {"cond": P01, "uncond": P00}
    for chosen in ([0, 1], [2, 3], [3], [1, 0], [2, 3, 0, 1], [3, 3, 2], [0, 1, 2]):
        ran: list[Any] = []
        part = denoiser(c, layout, ran=ran)
        index = torch.tensor(chosen)
        found = part(c.sample[index % 2].double(), LEVEL, rows(*chosen))
        weights = WEIGHTS[index % 2]
        torch.testing.assert_close(found, (10 * x[index] * weights).double())
        assert isinstance(found, torch.Tensor) and found.dtype == torch.float64
        assert len(ran) == 1 and bool(part.finite)
    torch.testing.assert_close(ran[0]["sample"], x[:3])


def test_what_the_network_answered_already_is_not_asked_again():
    x = draw(4, 4, 3, 5, seed=3)
    prompts = draw(4, 6, 2, seed=4)
    c = made_of(weighed, 4, arguments={"sample": x, "encoder_hidden_states": prompts}, answers=True)
    layout = learn(c)
    kept = draw(4, 4, 3, 5, seed=0)  # what `made_of` answers
    same = Condition({"encoder_hidden_states": prompts[2:], **rows(2, 3)})
    other = Condition({"encoder_hidden_states": prompts[2:] + 1, **rows(2, 3)})
    for cond, more, asked in [
        (same, {}, 0),
        (other, {}, 1),
        (same, {"perturbed": True}, 1),
        (same, {"net": c.calls[0].net}, 1),
    ]:
        ran: list[Any] = []
        with torch.no_grad():
            net = lambda **kw: (kw["sample"] * 10,)
            object.__setattr__(c.calls[0], "net", net)
            found = denoiser(c, layout, ran=ran, **more)(c.sample, LEVEL, cond)
        answer = kept[2:] if not asked else 10 * x[2:]
        torch.testing.assert_close(found, answer * WEIGHTS)
        assert len(ran) == asked
        if asked:
            assert torch.equal(ran[0]["encoder_hidden_states"], cond["encoder_hidden_states"])


def test_a_second_stream_of_a_step_reads_what_the_first_asked():
    x = draw(4, 4, 3, 5, seed=3)
    c = made_of(weighed, 4, arguments={"sample": x})
    kept: dict[Any, Any] = {}
    ran: list[Any] = []
    first = denoiser(c, learn(c), ran=ran, kept=kept)
    wanted: Any = first(c.sample, LEVEL, rows(0, 1))
    second = denoiser(c, learn(c), ran=ran, kept=kept, again=True)
    found: Any = second(c.sample, LEVEL, rows(0, 1))
    assert torch.equal(found, wanted) and len(ran) == 1
    second(c.sample, LEVEL, rows(2, 3))
    assert len(ran) == 2
    third = denoiser(c, learn(c), ran=ran, kept=kept)
    third(c.sample, LEVEL, rows(0, 1))
    assert len(ran) == 3


def test_an_infinite_answer_is_noted():
    x = draw(4, 4, 3, 5, seed=3)
    x[3, 0, 0, 0] = torch.inf
    c = made_of(weighed, 4, arguments={"sample": x})
    part = denoiser(c, learn(c))
    part(c.sample, LEVEL, rows(0, 1))
    assert bool(part.finite)
    part(c.sample, LEVEL, rows(2, 3))
    part(c.sample, LEVEL, rows(0, 1))
    assert not bool(part.finite)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_the_gradient_runs_through_the_networks_input_beside_what_else_it_holds(dim):
    z = draw(2, 4, 3, 5, seed=9)
    shape = [2, 4, 3, 5]
    shape[dim] = 2
    x = torch.cat([torch.cat([z, draw(*shape, seed=k)], dim) for k in (5, 6)])
    c = made_of(guided(3), 4, sample=z, arguments={"sample": x})
    part = denoiser(c, learn(made_of(guided(3), 4, sample=z)))
    new = draw(2, 4, 3, 5, seed=7).double().requires_grad_()
    found = part._input(c.calls[0], torch.tensor([3, 0]), new)
    own = new.float().detach()
    wanted = torch.cat([own, x[[3, 0]].narrow(dim, own.shape[dim], 2)], dim)
    torch.testing.assert_close(part._input(c.calls[0], torch.tensor([3, 0]), new[[0, 1]]), wanted)
    found.sum().backward()
    assert new.grad is not None and new.grad.eq(1).all()


def test_an_input_that_is_made_otherwise_is_refused():
    z = draw(2, 4, 3, 5, seed=9)
    layout = learn(made_of(guided(3), 4, sample=z))
    for x in (torch.cat([z, z]) * 2, draw(4, 12, 5), list(torch.cat([z, z]))):
        c = made_of(guided(3), 4, sample=z, arguments={"sample": x})
        with pytest.raises(ValueError, match="Mine makes its network's input of its samples in a"):
            denoiser(c, layout)._input(c.calls[0], torch.tensor([0, 1]), z)


def test_a_predicted_variance_is_beside_the_estimate():
    x = draw(4, 4, 3, 5, seed=3)
    c = made_of(guided(3), 4, sample=draw(2, 2, 3, 5), arguments={"sample": x})
    layout = learn(c)
    found = denoiser(c, layout)(c.sample, LEVEL, rows(0, 1))
    assert isinstance(found, Prediction) and found.log_var is not None
    torch.testing.assert_close(found.x0, 10 * x[:2, :2])
    torch.testing.assert_close(found.log_var, 10 * x[:2, 2:])
    torch.testing.assert_close(found.eps, (c.sample - 0.8 * found.x0) / 0.6)


def test_names_of_the_noisy_input():
    assert find_input({"t": 1, "latents": 2, "sample": 3}) == "sample"
    assert find_input({"t": 1, "u": 2}) == "t"


def test_the_schedulers_of_a_pipeline_and_of_those_within_it():
    first, second, third = (SimpleNamespace(step=print) for _ in range(3))
    inner: Any = SimpleNamespace(components={"scheduler": second}, scheduler=second)
    outer: Any = SimpleNamespace(
        components={"scheduler": first, "audio_scheduler": third, "vae": SimpleNamespace(step=1)},
        scheduler=first,
        prior=inner,
    )
    assert _schedulers(outer) == [first, third, second]
    bare: Any = SimpleNamespace(scheduler=first)
    assert _schedulers(bare) == [first]
    assert _schedulers(SimpleNamespace(scheduler=None)) == []  # type: ignore[arg-type]


def test_samples_are_brought_to_the_level_of_the_table():
    class EulerDiscreteScheduler:
        pass

    class Derived(EulerDiscreteScheduler):
        pass

    class DDIMScheduler:
        pass

    x = draw(6, 2, 3)
    one = Layout(batch=6, parts={}, coefficients={})
    torch.testing.assert_close(_as_the_network(Derived(), x, LEVEL, one), 0.8 * x)
    assert torch.equal(_as_the_network(DDIMScheduler(), x, LEVEL, one), x)
    assert torch.equal(_as_the_network(object(), x, LEVEL, one), x)
    film = Layout(batch=2, parts={}, coefficients={}, flat=3)
    assert torch.equal(_as_the_network(object(), x, LEVEL, film), x.reshape(2, 3, 2, 3))


def test_each_step_of_a_learnt_run_begins_anew():
    pipe: Any = SimpleNamespace(_execution_device=torch.device("cpu"))
    run = LearntRun(pipe, Wanted(guidance=parse("cfg(2)")), {}, print)  # type: ignore[arg-type]
    assert (run.stepped, run.present, run.calls, run.streams, run.answer_rows) == (
        False,
        0,
        [],
        [],
        {},
    )
    tape = run.tape
    run.calls, run.stepped, run.present, run.answer_rows = [1], True, 1, {"main": {}}  # type: ignore[assignment]
    run._begin_step()
    assert (run.stepped, run.present, run.calls, run.answer_rows) == (False, 0, [], {})
    assert run.tape is not tape
    with pytest.raises(ValueError, match="took no step of its scheduler with what its network"):
        run.check_ended(())


def test_a_step_that_only_converts_is_left_as_it_is():
    pipe: Any = SimpleNamespace(_execution_device=torch.device("cpu"))
    run = LearntRun(pipe, Wanted(guidance=parse("cfg(2)")), {}, print)  # type: ignore[arg-type]
    run.calls = [SimpleNamespace(rows=3), SimpleNamespace(rows=1)]  # type: ignore[list-item]
    takes = signature(lambda model_output, sample, pred_original_sample=None: None)
    plain = signature(lambda model_output, sample: None)
    both, one = {"sample": torch.zeros(4, 1)}, {"sample": torch.zeros(2, 1)}
    assert run._only_converts(takes, both)
    assert not run._only_converts(takes, one)
    assert not run._only_converts(plain, both)
    assert not run._only_converts(takes, {**both, "pred_original_sample": 1})
