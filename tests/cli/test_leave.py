"""How a command that several processes run together ends."""

import sys

import pytest
from torch import distributed

from guidestar import cli


@pytest.fixture
def together(tmp_path):
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
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
