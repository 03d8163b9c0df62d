"""Single values of the core: frames on a line, shares of time, rows and tokens that are joined."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

import guidestar as gs
from guidestar.core.forms import CHANNELS_LAST, PLAIN, SampleForm, form_of, spread_evenly
from guidestar.core.forms import weigh_frames as weigh
from guidestar.core.levels import Level
from guidestar.core.passes import Inputs
from guidestar.core.perturbation import Attention, joined
from guidestar.core.prediction import Prediction, Root, Unguided
from guidestar.core.rng import Draw
from guidestar.core.rounds import Group, union


@pytest.mark.parametrize(
    ("values", "count", "wanted"),
    [
        ([1, 3, 0], 5, [1, 2, 3, 1.5, 0]),
        ([1, 3, 0], 3, [1, 3, 0]),
        ([1, 3, 0], 2, [1, 0]),
        ([1, 3, 0], 1, [1]),
        ([4], 3, [4, 4, 4]),
        ([4], 1, [4]),
        ([0, 6], 4, [0, 2, 4, 6]),
    ],
)
def test_numbers_on_the_line_at_equal_distances(values, count, wanted):
    found = spread_evenly(torch.tensor(values, dtype=torch.float64), count)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(wanted, abs=1e-12)


def test_each_frame_is_multiplied_by_its_weight():
    x = torch.arange(1.0, 25).reshape(2, 2, 3, 2, 1)  # b, C, F, H, W
    weights = torch.tensor([1.0, 3.0], dtype=torch.float64)
    wanted = x * torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1)
    found = weigh(x, weights, PLAIN)
    assert torch.equal(found, wanted) and found.dtype == torch.float32
    last = SampleForm(open=lambda x: x.movedim(-1, 1), close=lambda x: 2 * x.movedim(1, -1))
    assert torch.equal(weigh(x.movedim(1, -1), weights, last), 2 * wanted.movedim(1, -1))
    for shape in ((2, 3, 4, 4), (1, 2, 3, 4, 5, 6)):
        with pytest.raises(ValueError, match=f"samples here are {re.escape(str(list(shape)))}"):
            weigh(torch.zeros(shape), weights, PLAIN)


def test_the_form_of_a_denoiser_is_its_own_or_that_of_its_network():
    class Has:
        def __init__(self, form: Any = None, net: Any = None):
            self.form, self.net = form, net

    own = SampleForm()
    assert form_of(Has(own, Has(CHANNELS_LAST))) is own
    assert form_of(Has(net=Has(CHANNELS_LAST))) is CHANNELS_LAST
    assert form_of(Has()) is form_of(Has("x")) is form_of(object()) is PLAIN
    x = torch.zeros(2, 5, 7)
    assert CHANNELS_LAST.open(x).shape == CHANNELS_LAST.close(x).shape == (2, 7, 5)
    video = torch.zeros(2, 3, 4, 5)
    assert CHANNELS_LAST.open(video).shape == (2, 5, 3, 4)
    assert CHANNELS_LAST.close(video).shape == (2, 4, 5, 3)


def test_the_share_of_time_that_a_step_covers():
    step = gs.uniform(gs.VP.linear(), 4).step(1)
    t, s, data = Level(0.6, 0.8, 0.5), Level(0.9, 0.3, 0.2), Level(1.0, 0.0, 0.0)
    between = step._replace(t=t, s=s)  # τ is 0.8/1.4 and 0.3/1.2
    assert float(between.interval) == pytest.approx(1 - 0.25 / (0.8 / 1.4))
    assert float(step._replace(t=t, s=data).interval) == 1
    assert float(step._replace(t=t, s=t).interval) == pytest.approx(0)
    assert float(step._replace(t=data, s=data).interval) == 1
    assert [gs.uniform(gs.VP.linear(), 4).step(i).tau for i in range(4)] == [1, 0.75, 0.5, 0.25]


def test_parts_of_a_batch_before_its_terms():
    part = Unguided(
        x0=torch.tensor([[1.0], [2.0]]), eps=torch.tensor([[3.0], [4.0]]),
        terms=(torch.tensor([1.0, 0.0], dtype=torch.float64), 1.0),
    )  # fmt: skip
    taken = part.take(torch.tensor([1, 1, 0]))
    assert taken.x0.flatten().tolist() == [2, 2, 1] and taken.eps.flatten().tolist() == [4, 4, 3]
    assert taken.terms[0].tolist() == [0, 0, 1] and taken.terms[1] == 1.0
    other = Unguided(x0=torch.tensor([[5.0]]), eps=torch.tensor([[6.0]]), terms=(0.0, 0.5))
    whole = Unguided.join([part, other, part])
    assert whole.x0.flatten().tolist() == [1, 2, 5, 1, 2]
    assert whole.eps.flatten().tolist() == [3, 4, 6, 3, 4]
    assert [t.tolist() for t in whole.terms] == [[1, 0, 0, 1, 0], [1, 1, 0.5, 1, 1]]
    assert all(isinstance(t, torch.Tensor) and t.dtype == torch.float64 for t in whole.terms)


def test_selections_of_rows_are_joined():
    a, b = torch.tensor([3, 1]), torch.tensor([0, 1])
    assert union([None, a], 5) is None and union([a, None], 5) is None
    assert union([a], 5) is a
    found = union([a, b], 5)
    assert found is not None and found.tolist() == [0, 1, 3]
    assert union([a, b], 3) is None and union([a], 2) is None


def test_the_rows_of_a_group_in_the_whole_run():
    def group(rows: Any, batch: int, size: int) -> Group:
        step = gs.uniform(gs.VP.linear(), 4).step(1)
        return Group(x_t=torch.zeros(size, 2), step=step, rows=rows, batch=batch)

    values = torch.arange(8.0).reshape(4, 2)
    some = group(torch.tensor([3, 0, 3]), 4, 3)
    assert some.own_rows(values).tolist() == [[6, 7], [0, 1], [6, 7]]
    assert group(None, 4, 4).own_rows(values) is values
    assert some.own_rows(values[2:3]).tolist() == [[4, 5]] * 3
    one = group(torch.tensor([0]), 1, 1)
    assert one.own_rows(values[1:2]).tolist() == [[2, 3]]
    for wrong in (2, 3, 5):
        with pytest.raises(ValueError, match=f"{wrong} values were given for 4 samples; give one"):
            some.own_rows(torch.zeros(wrong))
    whole, rows = group(None, 4, 4), torch.tensor([2, 1])
    assert whole.absolute(rows) is rows and some.absolute(None) is some.rows
    found = some.absolute(torch.tensor([1, 0]))
    assert found is not None and found.tolist() == [0, 3]
    taken = some.take(torch.tensor([1, 2]))
    assert taken.rows is not None and taken.rows.tolist() == [0, 3] and len(taken.x_t) == 2
    each = torch.tensor([0.6, 0.8, 1.0], dtype=torch.float64)
    level = Level(each, 1 - each, each)
    uneven = replace(some, step=some.step._replace(t=level, s=level)).take(torch.tensor([2, 0]))
    assert uneven.step.t.alpha.tolist() == uneven.step.s.alpha.tolist() == [1.0, 0.6]


def attention(image: slice) -> Attention:
    query = torch.zeros(1, 2, 5, 3)
    return Attention(
        query=query, key=query, value=query, image=image,
        with_query=lambda q: q + 7, find_grid=lambda: (4, 6),
    )  # fmt: skip


def test_the_pictures_tokens_are_replaced_among_those_of_the_text():
    whole = torch.arange(30.0).reshape(1, 2, 5, 3)
    image = -torch.ones(1, 2, 3, 3)
    for start, stop in ((0, 3), (1, 4), (2, 5)):
        found = attention(slice(start, stop)).replace(whole, image)
        wanted = whole.clone()
        wanted[:, :, start:stop] = -1
        assert torch.equal(found, wanted)
        assert found.transpose(1, 2).is_contiguous()  # the heads of a token are side by side
    alone = torch.ones(1, 2, 5, 3)
    assert attention(slice(0, 5)).replace(whole, alone) is alone
    assert attention(slice(0, 5)).grid == (4, 6)
    assert attention(slice(0, 5)).compute().unique().tolist() == [7]


def test_parts_are_joined_by_rows_or_tokens_with_heads_side_by_side():
    a, b = torch.arange(12.0).reshape(1, 2, 3, 2), -torch.arange(12.0).reshape(1, 2, 3, 2)
    assert torch.equal(joined([a, b], 0), torch.cat([a, b], 0))
    assert torch.equal(joined([a, b], 1), torch.cat([a, b], 2))
    for found in (joined([a, b], 1), joined([a], 0)):
        assert found.transpose(1, 2).is_contiguous()
    assert torch.equal(joined([a], 1), a)


def test_the_inputs_of_some_samples():
    step = gs.uniform(gs.VP.linear(), 4).step(1)
    cond = gs.Condition(c=torch.tensor([[1.0], [2.0], [3.0]]))
    rows = torch.tensor([2, 0])
    times = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    found = Inputs(cond=cond, t=times, step=step, streams=Draw([7, 8, 9])).take(rows)
    assert found.cond["c"].flatten().tolist() == [3, 1]
    assert found.t.tolist() == [0.3, 0.1]  # type: ignore[union-attr]
    assert list(found.draw.seeds) == [9, 7]
    plain = Inputs(cond=cond, t=0.25, step=step).take(rows)
    assert plain.t == 0.25 and plain.streams is None
    with pytest.raises(ValueError, match="give Guided one seed for each sample, seeds="):
        _ = plain.draw


def test_some_samples_of_a_prediction_are_rows_of_its_leaf():
    leaf, level = torch.zeros(5, 1), Level(0.8, 0.6, 0.5)
    whole = Prediction(
        x_t=torch.arange(3.0)[:, None], level=level, x0=torch.arange(3.0)[:, None] + 10,
        eps=torch.arange(3.0)[:, None] + 20, log_var=torch.arange(3.0)[:, None] + 30,
        observed=torch.arange(3.0)[:, None] + 40, root=Root(leaf, torch.tensor([4, 0, 2]), "main"),
    )  # fmt: skip
    rows = torch.tensor([2, 1])
    found = whole.take(rows)
    for name, base in (("x_t", 0), ("x0", 10), ("eps", 20), ("log_var", 30), ("observed", 40)):
        assert getattr(found, name).flatten().tolist() == [base + 2, base + 1]
    assert found.root is not None and found.root.rows is not None
    assert found.root.rows.tolist() == [2, 0] and found.root.leaf is leaf
    first = replace(whole, root=Root(leaf, None, "main"), log_var=None, observed=None).take(rows)
    assert first.root is not None and first.root.rows is not None
    assert first.root.rows.tolist() == [2, 1]
    assert first.log_var is None and first.observed is None and first.unguided is None
    assert replace(whole, root=None).take(rows).root is None
