"""How a pipeline's answers are read and pushed (`diffusers/guide/probe.py`), by values by hand."""

import dataclasses
from typing import Any

import pytest
import torch

from guidestar.diffusers.guide import probe
from guidestar.diffusers.guide.calls import NetCall, Template
from guidestar.diffusers.guide.probe import Combination, Layout, Place
from guidestar.diffusers.guide.traced import Tape


def combined(made: Any, *forms: tuple[int, ...], samples: int = 2) -> Combination:
    """Return what a pipeline makes of calls that answer in these shapes."""
    tape, calls, answers = Tape("Pipe"), [], []
    for form in forms:
        template, _ = Template.of(torch.zeros(form), form[0], False)
        answer, leaves = template.promised(tape)
        arguments = {"sample": torch.zeros(form)}
        calls.append(NetCall(net="net", arguments=arguments, template=template, leaves=leaves))
        answers.append(answer)
    sample = torch.zeros(samples, *forms[0][1:])
    return Combination(name="Pipe", tape=tape, calls=calls, wanted=made(*answers), sample=sample)


USUAL, FIRST = (True, -1, None), (False, -1, None)
THIRD, CHANNELS = (True, 2, None), (True, -1, 3)


@pytest.mark.parametrize(
    ("forms", "readings"),
    [
        ([(4, 3, 4)], [USUAL]),
        ([(4, 3, 4, 4)], [USUAL]),  # three channels
        ([(4, 4, 4, 4)], [USUAL, CHANNELS]),
        ([(2, 4, 4, 4)], [USUAL, CHANNELS]),
        ([(1, 4, 4, 4)], [USUAL]),  # one row
        ([(1, 4, 4, 4)] * 2, [USUAL, CHANNELS]),  # of two calls
        ([(4, 3, 2, 4, 4)], [USUAL, THIRD]),
        ([(4, 4, 2, 4, 4)], [USUAL, THIRD, CHANNELS]),
        ([(1, 5, 4), (1, 6, 4)], [USUAL, FIRST]),
    ],
)
def test_the_ways_to_read_answers(forms, readings):
    c = combined(lambda first, *_: 1 * first, *forms)
    found = [(r.at_end, r.along, r.channels) for r in probe._list_readings(c)]
    assert found == readings


@pytest.mark.parametrize(
    ("form", "at_end", "wanted"),
    [
        ((4,), True, [1.0, 2.0, 3.0, 4.0]),
        ((3,), True, [2.0, 3.0, 4.0]),
        ((3,), False, [1.0, 2.0, 3.0]),
        ((1,), True, [4.0]),
        ((6,), True, [0.0, 0.0, 1.0, 2.0, 3.0, 4.0]),
        ((6,), False, [1.0, 2.0, 3.0, 4.0, 0.0, 0.0]),
    ],
)
def test_rows_are_given_another_length(form, at_end, wanted):
    rows = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    assert probe._fit(rows, form, at_end).tolist() == [wanted]
    tall = probe._fit(rows[:, :, None], (*form, 1), at_end)
    assert tall[0, :, 0].tolist() == wanted
    wide = probe._fit(rows[:, None], (1, *form), at_end)
    assert wide[0, 0].tolist() == wanted


def test_answers_are_pushed_along_any_dimension():
    t = torch.arange(1.0, 9.0).view(1, 2, 2, 2)  # [[1 2, 3 4], [5 6, 7 8]]
    assert probe._turned(t).flatten().tolist() == [-2, 1, -4, 3, -6, 5, -8, 7]
    assert probe._turned(t, 2).flatten().tolist() == [-3, -4, 1, 2, -7, -8, 5, 6]
    assert probe._turned(t, 1).flatten().tolist() == [-5, -6, -7, -8, 1, 2, 3, 4]
    assert torch.equal(probe._turned(t, 4), probe._turned(t))  # it has no such dimension
    assert torch.equal(probe._turned(t, 3), probe._turned(t))


def test_the_longest_answer_is_drawn():
    """Others may be shorter in one dimension, of as many answers of the same kinds."""
    short, long = (1, 5, 4), (1, 6, 4)
    c = combined(lambda a, b: 1 * a, short, long)
    assert probe._longest_form(c) == [(torch.Size([6, 4]), torch.float32)]
    c = combined(lambda a, b: 1 * a, long, short)
    assert probe._longest_form(c) == [(torch.Size([6, 4]), torch.float32)]
    for other in ((1, 5, 3), (1, 5), (1, 2, 5, 4)):
        c = combined(lambda a, b: 1 * a, long, other)
        with pytest.raises(ValueError, match="Pipe's network answers in other shapes in the calls"):
            probe._longest_form(c)


def test_the_same_answer_everywhere():
    """A pipeline of 3·c − 2·u, of two calls, one longer by a token at either end."""
    places = Place(call=0, block=0), Place(call=1, block=0)
    rows = [torch.tensor([[[1.0], [2.0]]])]
    for at_end in (True, False):
        cut = (lambda t: t[:, 1:]) if at_end else (lambda t: t[:, :-1])
        c = combined(lambda a, b, cut=cut: 3 * cut(a) - 2 * b, (1, 3, 1), (1, 2, 1))
        layout = Layout(batch=1, parts={}, coefficients=dict.fromkeys(places, 0.0), at_end=at_end)
        assert c.everywhere(layout, rows).flatten().tolist() == [1.0, 2.0]
        other = dataclasses.replace(layout, at_end=not at_end)
        assert c.everywhere(other, rows).flatten().tolist() != [1.0, 2.0]


def test_two_parts_that_both_add_are_told_apart_by_the_larger():
    layout = Layout(
        batch=1, parts={"cond": Place(call=0, block=1), "uncond": Place(call=0, block=0)},
        coefficients={Place(call=0, block=0): -1.5, Place(call=0, block=1): 2.5},
    )  # fmt: skip
    assert layout.scale == 2.5 and list(layout.places()) == list(layout.coefficients)
    assert (layout.flat, layout.at_end) == (1, True)
