"""Which rows of a call the layers of ADM change."""

from typing import Any

import torch
from torch import nn

from guidestar.checkpoints.adm_blocks import SelfAttention
from guidestar.checkpoints.adm_layers import ADMLayers, _change_input, _skip
from guidestar.core.perturbation import Rows

MIDDLE = Rows(start=1, stop=2, of=3)


def test_a_skipped_layer_returns_its_input_in_its_rows():
    x = torch.tensor([[1.0], [2.0], [3.0]])
    forward: Any = lambda v: v * 10
    skipped: Any = _skip(MIDDLE, forward)
    assert skipped(x).flatten().tolist() == [10, 2, 30]
    whole: Any = _skip(None, forward)
    assert whole(x) is x


def test_tokens_are_changed_before_a_layer_in_its_rows():
    x = torch.arange(3.0 * 2 * 2).reshape(3, 2, 2)
    forward: Any = lambda v: v * 10
    changed: Any = _change_input(lambda tokens: tokens + 1, MIDDLE, forward)
    wanted = x.clone()
    wanted[1] += 1
    assert torch.equal(changed(x), wanted * 10)
    whole: Any = _change_input(lambda tokens: tokens + 1, None, forward)
    assert torch.equal(whole(x), (x + 1) * 10)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = SelfAttention(8, heads=2, head=None, new_order=False, groups=4)
        self.middle_block = nn.Sequential(layer)


def test_changes_of_other_rows_are_kept():
    net: Any = Net()
    layer, told = net.middle_block[0], []
    layer.attended = lambda x, changes=(): told.append(list(changes)) or x
    layers = ADMLayers(net)
    first, second = Rows(start=0, stop=1, of=2), Rows(start=1, stop=2, of=2)
    f: Any = lambda a: a
    g: Any = lambda a: a
    x = torch.zeros(2, 8, 2, 2)
    with layers.attending((), f, first), layers.attending((), g, second):
        net.middle_block(x)
    assert told == [[(f, first), (g, second)]]
    with layers.attending((), f, first), layers.attending((), g, None):
        net.middle_block(x)
    assert told[1] == [(g, None)]


def test_layers_are_entered_with_their_tokens_changed():
    net: Any = Net()
    x = torch.randn(2, 8, 2, 3, generator=torch.Generator().manual_seed(0))
    plain = net.middle_block(x + 1)
    with ADMLayers(net).entering((), lambda tokens: tokens + 1):
        assert torch.equal(net.middle_block(x), plain)
    assert not torch.equal(net.middle_block(x), plain)
    assert ADMLayers(net).find("block") == ("middle_block.0",)


def test_layers_that_attend_to_pictures_alone():
    layers = ADMLayers(Net())  # type: ignore[arg-type]
    assert layers.list_names("self") == ("middle_block.0",)
    assert layers.list_names("cross") == () == layers.list_names("exchange")
