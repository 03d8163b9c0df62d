"""How a command that several processes run together ends."""

import sys

import pytest
from torch import distributed
from torch.distributed.distributed_c10d import HashStore

from guidestar import cli


@pytest.fixture
def together():
    distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    if distributed.is_initialized():
        distributed.destroy_process_group()


@pytest.mark.parametrize("own_process", [True, False])
def test_a_command_leaves_the_other_processes_where_its_process_ends(
    together, monkeypatch, own_process
):
    monkeypatch.setattr(cli, "keep_pages", lambda: None)  # it starts the process anew
    monkeypatch.setattr(sys, "argv", ["guidestar", "methods"])
    with pytest.raises(SystemExit) as ended:
        cli.main(None if own_process else ["methods"])
    assert not ended.value.code
    assert distributed.is_initialized() is not own_process
