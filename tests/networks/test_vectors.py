"""The encoder of vectors, by its formula, and what of it goes into a file of weights."""

import math

import pytest
import torch
from torch.nn import functional as F

from guidestar.networks.condition_encoders import VectorEncoder
from guidestar.networks.conditions import check_condition_name


@torch.no_grad()
def test_vectors_are_embedded_in_the_units_of_the_data():
    torch.manual_seed(0)
    encoder = VectorEncoder(3, 5, mean=[1.0, -2.0, 0.5], std=[2.0, 0.25, 4.0])
    encoder.unknown.copy_(torch.arange(5.0))
    y = torch.tensor([[1.0, 2.0, 3.0], [0.0, -2.0, 0.5]])
    scaled = (y - torch.tensor([1.0, -2.0, 0.5])) / torch.tensor([2.0, 0.25, 4.0])
    inner = F.silu(scaled @ encoder.first.weight.T + encoder.first.bias)
    wanted = inner @ encoder.second.weight.T + encoder.second.bias
    rows = torch.cat([encoder.rows(y.tolist()), encoder.null_row()[None]])
    rows = torch.cat([rows, torch.tensor([[1.0, float("nan"), 2.0]])])  # one missing is all missing
    found = encoder(rows)["class_labels"]
    torch.testing.assert_close(found[:2], wanted)
    assert found[2:].tolist() == [[0, 1, 2, 3, 4]] * 2
    plain = VectorEncoder(2, 3)
    inner = F.silu(y[:, :2] @ plain.first.weight.T + plain.first.bias)
    torch.testing.assert_close(
        plain(y[:, :2])["class_labels"], inner @ plain.second.weight.T + plain.second.bias
    )


def test_rows_are_float32():
    encoder = VectorEncoder(2, 3)
    for values in (torch.tensor([[1.0, 2.0]], dtype=torch.float64), [[1, 2]]):
        assert encoder.rows(values).dtype == torch.float32
        assert encoder.rows(values).tolist() == [[1.0, 2.0]]


def test_the_units_of_the_data_are_settings_and_no_weights():
    encoder = VectorEncoder(2, 3, mean=[1.0, 2.0], std=[3.0, 4.0])
    assert set(encoder.state_dict()) == {
        *("first.weight", "first.bias", "second.weight", "second.bias", "unknown")
    }
    assert encoder.config["mean"] == [1.0, 2.0] and encoder.config["std"] == [3.0, 4.0]


def test_numbers_are_read_as_people_write_them():
    encoder = VectorEncoder(2, 3)
    assert encoder.parse("1.5, -2") == [1.5, -2.0]
    assert all(math.isnan(v) for v in encoder.parse(""))  # nothing is known
    for odd in ("1", "1,2,3", "a,b", "1,"):
        with pytest.raises(ValueError, match="2"):
            encoder.parse(odd)


@pytest.mark.parametrize("name", ["a.b", "a=b", "a;b", "keys", "forward", "", "a/b"])
def test_names_that_no_condition_can_have(name):
    with pytest.raises(ValueError, match="condition"):
        check_condition_name(name)
    assert check_condition_name("label_1") == "label_1"
