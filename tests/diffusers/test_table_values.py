"""Tables of single pipelines' schedulers, and tapes of their arithmetic, value by value
(`diffusers/guide/levels.py`, `diffusers/guide/traced.py`).
"""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from guidestar.core.levels import VE, VP, Flow
from guidestar.diffusers.guide import levels as tables
from guidestar.diffusers.guide.levels import Output, read_timetable
from guidestar.diffusers.guide.traced import Tape, Traced, ValueReadError


class Config(SimpleNamespace):
    def __contains__(self, name):
        return hasattr(self, name)


def scheduler(name: str, times, config=None, **more) -> Any:
    kind = type(name, (SimpleNamespace,), {})
    return kind(config=Config(**(config or {})), timesteps=torch.tensor(times), **more)


def rows(table):
    return [tuple(float(v) for v in level) for level in table.levels]


def close(table, wanted):
    assert len(table.levels) == len(wanted)
    for found, row in zip(rows(table), wanted, strict=True):
        assert found == pytest.approx(row, rel=1e-6, abs=1e-7)


BETAS = torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64)
BARS = torch.cumprod(1 - BETAS, 0)  # 0.9, 0.72, 0.432


def test_the_second_calls_of_halfway_steps_are_at_geometric_means():
    given = scheduler(
        "KDPM2DiscreteScheduler", [2.0, 1.5, 1.5, 0.5], alphas_cumprod=BARS,
        sigmas=torch.tensor([9.0, 4.0, 4.0, 1.0, 0.0]),
    )  # fmt: skip
    table = tables._halfway(given)
    unit = lambda rho, t: (1 / math.sqrt(1 + rho**2), rho / math.sqrt(1 + rho**2), t)
    close(table, [unit(9, 2.0), unit(6, 1.5), unit(4, 1.5), unit(2, 0.5), unit(0, 0.0)])
    assert table.times == (2.0, 1.5, 1.5, 0.5) and table.reads_t
    assert table.output == Output(kind="eps") and table.schedule == VP(tuple(BARS.tolist()))


def test_angles_are_levels():
    given = scheduler("SCMScheduler", [math.pi / 2, 0.5, 0.0])
    table = read_timetable(given)
    close(table, [(0, 1, math.pi / 2), (math.cos(0.5), math.sin(0.5), 0.5), (1, 0, 0)])
    assert table.output == Output(kind="v") and not table.reads_t
    bars = table.schedule.alphas_cumprod  # type: ignore[attr-defined]
    assert len(bars) == 1000
    assert bars[0] == pytest.approx(math.cos(math.pi / 2002) ** 2)
    assert bars[-1] == pytest.approx(math.cos(math.pi / 2 * 1000 / 1001) ** 2, rel=1e-6)


def test_a_cosine_of_a_share_of_time():
    bar = lambda t, device: torch.cos(t * 0.5) ** 2
    given = scheduler("DDPMWuerstchenScheduler", [1.0, 0.5, 0.25], _alpha_cumprod=bar)
    table = read_timetable(given)
    row = lambda t: (math.cos(t / 2), math.sin(t / 2), t)
    close(table, [row(1.0), row(0.5), row(0.25), (1.0, 0.0, 0.0)])
    assert table.output == Output(kind="eps") and not table.reads_t
    share = lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    bars = table.schedule.alphas_cumprod  # type: ignore[attr-defined]
    assert len(bars) == 1000
    assert bars[0] == pytest.approx(share(1 / 1001))
    assert bars[499] == pytest.approx(share(500 / 1001))
    assert bars[-1] == pytest.approx(share(1000 / 1001), rel=1e-6)


def test_flows_of_any_noise_ratio_are_read_as_samples_with_noise():
    name = "FlowMatchEulerDiscreteScheduler"
    table = read_timetable(scheduler(name, [3.0, 2.0], sigmas=torch.tensor([8.0, 0.5, 0.25, 0.0])))
    close(table, [(1, 8, 8), (1, 0.5, 0.5), (1, 0.25, 0.25), (1, 0, 0)])
    assert table.schedule == VE(t_min=0.25, t_max=8.0)
    assert table.output == Output(kind="eps") and not table.reads_t
    # A sigma of 1, and what lies above it by a rounding, is a share.
    for top in (1.0, 1 + 5e-7):
        table = read_timetable(scheduler(name, [3.0], sigmas=torch.tensor([top, 0.0])))
        assert table.schedule == Flow() and table.reads_t
        assert table.output == Output(kind="velocity")
        close(table, [(1 - top, top, top), (1, 0, 0)])
    table = read_timetable(scheduler(name, [3.0], sigmas=torch.tensor([1.25, 0.0])))
    assert table.schedule == VE(t_min=1.25, t_max=1.25)


def test_flows_that_name_what_their_network_predicts():
    given = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    sigmas = torch.tensor([1.0, 0.5, 0.0])
    table = read_timetable(scheduler("UniPCMultistepScheduler", [9.0, 5.0], given, sigmas=sigmas))
    close(table, [(0, 1, 1), (0.5, 0.5, 0.5), (1, 0, 0)])
    assert table.schedule == Flow() and table.output == Output(kind="velocity")
    given = {"prediction_type": "epsilon", "use_flow_sigmas": False}
    table = read_timetable(
        scheduler("UniPCMultistepScheduler", [2.0], given, sigmas=torch.tensor([0.75, 0.0]),
                  alphas_cumprod=BARS)
    )  # fmt: skip
    close(table, [(0.8, 0.6, 2.0), (1, 0, 0)])


def test_schedulers_without_a_table_that_is_known():
    with pytest.raises(ValueError, match="the scheduler Other has no table of noise levels that"):
        read_timetable(scheduler("Other", [1.0]))
    kind = type("Derived", (type("SCMScheduler", (SimpleNamespace,), {}),), {})
    table = read_timetable(kind(timesteps=torch.tensor([0.0])))  # type: ignore[arg-type]
    assert table.levels[0] == (1.0, 0.0, 0.0)
    given = scheduler("DDIMScheduler", [1], {"prediction_type": "other"}, alphas_cumprod=BARS)
    with pytest.raises(
        ValueError, match="the scheduler's prediction_type 'other' is not supported"
    ):
        read_timetable(given)
    rising = scheduler("DDIMScheduler", [1], alphas_cumprod=BARS.flip(0))
    with pytest.raises(ValueError, match="the scheduler DDIMScheduler: "):
        read_timetable(rising)


def test_what_a_table_by_time_takes_of_the_scheduler():
    table = read_timetable(scheduler("DDIMScheduler", [2, 1], alphas_cumprod=BARS))
    row = lambda k: (math.sqrt(BARS[k]), math.sqrt(1 - BARS[k]), float(k))
    close(table, [row(2), row(1), (1, 0, 0)])
    assert table.order == 1 and table.schedule == VP(tuple(BARS.tolist()))
    snr = {"rescale_betas_zero_snr": True}
    table = read_timetable(scheduler("DDIMScheduler", [2, 1], snr, alphas_cumprod=BARS))
    assert table.schedule == VP((*BARS[:2].tolist(), 0.0))
    given = scheduler("DDIMInverseScheduler", [0, 1, 2], {"num_train_timesteps": 3},
                      alphas_cumprod=BARS, num_inference_steps=3)  # fmt: skip
    at = lambda k, t: (math.sqrt(BARS[k]), math.sqrt(1 - BARS[k]), float(t))
    close(read_timetable(given), [at(0, 0), at(0, 1), at(1, 2), at(2, 2)])
    given.num_inference_steps, given.config.num_train_timesteps = 1, 2  # a stride of 2
    close(read_timetable(given), [at(0, 0), at(0, 1), at(0, 2), at(2, 2)])
    given.timesteps, given.num_inference_steps = torch.tensor([7, 0]), 2
    close(read_timetable(given), [at(2, 7), at(0, 0), at(0, 0)])


# --- tapes ---


def taped(*shape):
    tape = Tape("Pipe")
    return tape, tape.stand_in(torch.empty(shape, device="meta"), torch.device("cpu"))


def test_a_tape_is_run_with_any_answers():
    tape, answer = taped(4, 3)
    bad, good = answer.chunk(2)
    made: Any = (bad + 2 * (good - bad)).to(torch.float64).clone()
    assert isinstance(made, Traced) and made.shape == (2, 3) and made.dtype == torch.float64
    assert made.device == torch.device("cpu") and made.tape is tape
    for k in range(2):
        value = torch.arange(12.0).view(4, 3) * (k + 1)
        wanted = (value[:2] + 2 * (value[2:] - value[:2])).double()
        torch.testing.assert_close(tape.run({answer: value}, made), wanted, rtol=0, atol=0)
    assert made.meta.device.type == "meta" and repr(made) == "Traced((2, 3), torch.float64)"


def test_only_what_is_needed_is_run_unless_something_writes():
    tape, answer = taped(2)
    kept: Any = answer * 3
    other: Any = answer / 0
    wanted: Any = kept + 1
    assert [o.results[0] for o in tape._list_needed(wanted)] == [kept, wanted]
    assert tape._list_needed(answer) == []
    value = torch.tensor([1.0, 2.0])
    assert tape.run({answer: value}, wanted).tolist() == [4.0, 7.0]
    assert tape.run({answer: value}, answer) is value
    other.add_(1)
    assert len(tape._list_needed(wanted)) == len(tape.operations) == 4
    kept.mul_(2)
    assert tape.run({answer: value}, kept).tolist() == [6.0, 12.0]


def test_numbers_written_into_an_answer_are_its_own():
    tape, answer = taped(2)
    assert answer.add_(torch.tensor([1.0, 2.0])) is answer
    assert tape.run({answer: torch.tensor([10.0, 20.0])}, answer).tolist() == [11.0, 22.0]


def test_an_answer_may_be_moved_and_joined_with_tensors():
    tape, answer = taped(1, 2)
    moved: Any = answer.to("cpu", torch.float16)
    assert moved.device == torch.device("cpu") and moved.dtype == torch.float16
    joined: Any = torch.cat([torch.ones(1, 2), answer])
    assert joined.shape == (2, 2)
    value = torch.tensor([[5.0, 6.0]])
    assert tape.run({answer: value}, joined).tolist() == [[1, 1], [5, 6]]
    assert tape.run({answer: value}, moved).dtype == torch.float16
    like: Any = torch.zeros_like(answer, device="cpu")
    assert like.device == torch.device("cpu")
    assert tape.run({answer: value}, like).tolist() == [[0, 0]]


def test_a_pipeline_may_not_read_numbers_it_does_not_have():
    _, answer = taped(2)
    for read in (lambda: answer.sum().item(), lambda: bool(answer.sum() > 0),
                 lambda: torch.equal(answer, answer), answer.nonzero):  # fmt: skip
        with pytest.raises(ValueReadError, match="Pipe reads the numbers of its network's"):
            read()
    with pytest.raises(ValueReadError, match="Pipe writes its network's answers into a tensor"):
        torch.zeros(2).copy_(answer)
    later, second = taped(2)
    with pytest.raises(ValueReadError, match="Pipe keeps its network's answers from one step"):
        torch.add(second, answer)
    with pytest.raises(ValueReadError, match="Pipe keeps its network's answers from one step"):
        later.run({second: torch.zeros(2)}, answer)
