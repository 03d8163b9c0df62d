"""A network's call and the form of its answer, value by value (`diffusers/guide/calls.py`)."""

from typing import Any

import pytest
import torch

from guidestar.core.perturbation import AGAINST
from guidestar.diffusers.guide.calls import (
    INPUTS,
    NetCall,
    Template,
    _rows_of,
    find_input,
    signature,
)
from guidestar.diffusers.guide.traced import Tape


def test_what_of_an_answer_has_rows():
    rows, flag, number = torch.ones(2, 3), torch.ones(2, dtype=torch.int64), torch.ones(())
    other = torch.ones(4, 3)
    answer = {"a": rows, "b": (flag, number, other, "text", 5), "c": rows.double()}
    template, found = Template.of(answer, 2, False)
    assert [t is w for t, w in zip(found, (rows, answer["c"]), strict=True)] == [True, True]
    assert [t.device.type for t in template.tensors] == ["meta", "meta"]
    assert [(t.shape, t.dtype) for t in template.tensors] == [
        ((2, 3), torch.float32), ((2, 3), torch.float64)
    ]  # fmt: skip
    assert list(template.devices) == [torch.device("cpu")] * 2 and not template.listed
    made, leaves = template.promised(Tape("Pipe"))
    assert made["a"] is leaves[0] and made["c"] is leaves[1] and len(leaves) == 2
    assert made["b"][0] is flag and made["b"][1] is number and made["b"][2] is other
    assert made["b"][3:] == ("text", 5)
    assert [(leaf.shape, leaf.dtype) for leaf in leaves] == [
        ((2, 3), torch.float32), ((2, 3), torch.float64)
    ]  # fmt: skip
    four, found = Template.of((rows, other), 4, False)
    assert found[0] is other and len(four.tensors) == 1


def test_a_listed_answer_has_one_tensor_for_each_row():
    answer = [torch.ones(3), 2 * torch.ones(3)]
    template, found = Template.of(answer, 2, True)
    assert len(found) == 1 and found[0].tolist() == [[1, 1, 1], [2, 2, 2]]
    assert [t.shape for t in template.tensors] == [(3,), (3,)] and template.listed
    _, leaves = template.promised(Tape("Pipe"))
    call = NetCall(net=None, arguments={"x": answer}, template=template, leaves=leaves)
    assert call.listed and call.rows == 2 and call.x is answer
    assert [t.shape for t in call.row_forms] == [(2, 3)] and len(call.devices) == 1
    given = call.leaves_of([torch.tensor([[5.0] * 3, [6.0] * 3])])
    assert [given[leaf].tolist() for leaf in leaves] == [[5] * 3, [6] * 3]


def call(**arguments: Any) -> NetCall:
    given = {"hidden_states": torch.arange(6.0).view(3, 2), **arguments}
    return NetCall(net=None, arguments=given)


def test_the_noisy_input_by_its_name():
    for name in INPUTS:
        assert find_input({"other": 1, name: 2}) == name
    assert find_input({"first": 1, "second": 2}) == "first"
    assert find_input({"x": 1, "hidden_states": 2}) == "hidden_states"
    one = call()
    assert one.rows == 3 and not one.listed and one.x is one.arguments["hidden_states"]
    answer, leaves = Template.of((torch.ones(3, 1), torch.ones(3, 2)), 3, False)
    _, leaves = answer.promised(Tape("Pipe"))
    two = NetCall(net=None, arguments=one.arguments, template=answer, leaves=leaves)
    values = [torch.zeros(3, 1), torch.ones(3, 2)]
    assert [two.leaves_of(values)[leaf] is v for leaf, v in zip(leaves, values, strict=True)] == [
        True, True
    ]  # fmt: skip
    assert [t.shape for t in two.row_forms] == [(3, 1), (3, 2)] and len(two.devices) == 2


def test_the_request_of_a_call():
    text, mask = torch.ones(3, 4), torch.ones(3, 4, dtype=torch.int64)
    given = call(encoder_hidden_states=text, text_embeds=mask, pooled_projections=text[:2],
                 image_embeds=[text], other=text)  # fmt: skip
    assert given.prompts() == {"encoder_hidden_states": text}


def test_arguments_for_some_rows():
    column = torch.tensor([10.0, 20.0, 30.0])
    text = torch.arange(6.0).view(6, 1)
    given = call(
        timestep=column, scalar=torch.tensor(7.0), two=torch.ones(2), rotary_emb=column,
        names=["a", "b", "c"], pair=("a", "b", "c"), few=["a", "b"], number=5,
        inner={"k": column, "freqs_cis": column, "d": [column, column]},
        encoder_hidden_states=text, other=text, wide=[column[:, None, None]] * 3,
    )  # fmt: skip
    found = given.inputs(torch.tensor([2, 0, 2]), {})
    assert found["hidden_states"].tolist() == [[4, 5], [0, 1], [4, 5]]
    assert found["timestep"].tolist() == [30, 10, 30] and float(found["scalar"]) == 7
    assert found["two"] is given.arguments["two"] and found["rotary_emb"] is column
    assert found["names"] == ["c", "a", "c"] and found["pair"] == ("a", "b", "c")
    assert found["few"] == ["a", "b"] and found["number"] == 5
    assert found["inner"]["k"].tolist() == [30, 10, 30] and found["inner"]["freqs_cis"] is column
    assert [t.tolist() for t in found["inner"]["d"]] == [[30, 10, 30]] * 2
    assert found["encoder_hidden_states"].flatten().tolist() == [4, 5, 0, 1, 4, 5]
    assert found["other"] is text  # only texts and pictures have several rows
    assert len(found["wide"]) == 3 and found["wide"][0].flatten().tolist() == [30, 10, 30]
    whole = given.inputs(torch.tensor([0, 1, 2]), {})
    assert all(whole[k] is v for k, v in given.arguments.items())
    assert given.inputs(torch.tensor([0, 1]), {})["timestep"].tolist() == [10, 20]
    mine, noise = torch.zeros(1, 4), torch.zeros(1, 2)
    against, more = f"{AGAINST}text", {"unknown": mine}
    found = given.inputs(
        torch.tensor([1]), {"encoder_hidden_states": mine, against: mine, **more}, noise
    )
    assert found["encoder_hidden_states"] is mine and found["hidden_states"] is noise
    assert found[against] is mine and "unknown" not in found
    assert found["timestep"].tolist() == [20]


def test_rows_of_tensors_with_several_for_each():
    six = torch.arange(6.0)
    assert _rows_of("image_embeds", six, [1], 3).tolist() == [2, 3]
    assert _rows_of("other", six, [1], 3) is six
    assert _rows_of("image_embeds", six, [1], 4) is six
    assert _rows_of("other", six, [5, 0], 6).tolist() == [5, 0]
    assert _rows_of("mid_block_residual", six, [0, 0], 2).tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"x": torch.ones(2)}, {"x": torch.zeros(2)}, True),
        ({"x": torch.ones(2)}, {"x": torch.ones(3)}, False),
        ({"x": torch.ones(2)}, {"x": torch.ones(2).double()}, False),
        ({"x": torch.ones(2)}, {"x": torch.ones(2, device="meta")}, False),
        ({"x": 1}, {"x": 2}, True),
        ({"x": 1}, {"x": 2.0}, False),
        ({"x": 1}, {"y": 1}, False),
        ({"x": [1]}, {"x": [1, 2]}, False),
    ],
)
def test_what_the_form_of_an_answer_depends_on(one, other, same):
    assert (signature("net", one) == signature("net", other)) is same
    assert signature(one, one) != signature(other, one)
