"""A module changed for one thread: nesting, other modules, and what is left afterwards."""

import threading

import pytest
import torch
from torch import nn

from guidestar.core import hooks
from guidestar.core.hooks import CALL, is_compiled, replaced, replacement, unchanged


class Plus(nn.Module):
    """Adds a number, so that what ran, and in which order, can be read from the answer."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x):
        return x + self.by


def times(factor):
    """Change a forward: its answer times ``factor``."""
    return lambda original: lambda x: factor * original(x)


ONE = torch.tensor(1.0)


def test_changes_nest_and_the_second_is_around_the_first():
    net = Plus(2.0)
    with replaced(net, times(10)):
        assert net(ONE) == 30
        with replaced(net, lambda original: lambda x: original(x) + 5):
            assert net(ONE) == 35
            with replaced(net, times(2)):
                assert net(ONE) == 70
            assert net(ONE) == 35
        assert net(ONE) == 30
    assert net(ONE) == 3 and "forward" not in vars(net)


def test_changes_end_in_any_order():
    net = Plus(2.0)
    first, second = replaced(net, times(10)), replaced(net, times(3))
    first.__enter__()
    second.__enter__()
    assert net(ONE) == 90
    first.__exit__(None, None, None)
    # The second was made around the first, and keeps it; nothing else is left of that.
    assert net(ONE) == 90 and "forward" in vars(net)
    second.__exit__(None, None, None)
    assert net(ONE) == 3 and "forward" not in vars(net) and replacement(net) is None
    assert not hooks._CHANGES.get()  # nothing is kept of what has ended


def test_other_modules_and_other_places_are_as_they_were():
    net, other = Plus(2.0), Plus(3.0)
    with replaced(net, times(10)), replaced(other, times(100)):
        assert net(ONE) == 30 and other(ONE) == 400
        with unchanged(net):
            assert net(ONE) == 3 and other(ONE) == 400
        assert net(ONE) == 30
        assert replacement(net, CALL) is None and replacement(net) is not None
        with unchanged(net, CALL):
            assert net(ONE) == 30
    assert net(ONE) == 3 and other(ONE) == 4


def test_the_whole_call_is_changed_around_its_hooks():
    net = Plus(2.0)
    net.register_forward_hook(lambda module, args, out: out + 1000)
    with replaced(net, times(10)):
        assert net(ONE) == 1030  # within
    with replaced(net, times(10), CALL):
        assert net(ONE) == 10030  # around
        assert not is_compiled(net)
    assert net(ONE) == 1003 and CALL not in vars(net)


def test_what_stood_there_stands_there_again():
    net = Plus(2.0)
    own = lambda x: x - 50
    net.forward = own
    with replaced(net, times(10)):
        assert net(ONE) == -490
        with replaced(net, times(2)):
            assert net(ONE) == -980
        assert net(ONE) == -490
    assert vars(net)["forward"] is own and net(ONE) == -49


def test_compiled_modules_are_known_while_they_are_changed():
    net = Plus(2.0)
    assert not is_compiled(net) and not is_compiled(object())
    compiled = lambda x: x + 7
    net._compiled_call_impl = compiled
    assert is_compiled(net)
    with replaced(net, times(10), CALL):
        assert is_compiled(net) and net(ONE) == 80
    assert net._compiled_call_impl is compiled


def test_another_thread_has_its_own_changes():
    net, found = Plus(2.0), {}
    inside, checked = threading.Event(), threading.Event()

    def run():
        found["plain"] = float(net(ONE))
        with replaced(net, times(5)):
            found["own"] = float(net(ONE))
            inside.set()
            checked.wait(10)
            found["still"] = float(net(ONE))

    with replaced(net, times(10)):
        thread = threading.Thread(target=run)
        thread.start()
        assert inside.wait(10)
        assert net(ONE) == 30
    # The first user is gone, the second is not: the dispatcher stays for it.
    assert net(ONE) == 3 and "forward" in vars(net)
    checked.set()
    thread.join(10)
    assert found == {"plain": 3.0, "own": 15.0, "still": 15.0} and "forward" not in vars(net)


def test_a_change_ends_with_an_exception():
    net = Plus(2.0)
    with pytest.raises(KeyError), replaced(net, times(10)):
        raise KeyError
    assert net(ONE) == 3 and "forward" not in vars(net)


def test_a_change_has_the_signature_of_what_it_changes():
    net = Plus(2.0)
    with replaced(net, times(10)):
        assert net.forward.__name__ == "forward" and net.forward.__wrapped__.__self__ is net
