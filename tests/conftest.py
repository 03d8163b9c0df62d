"""Set-up of all tests."""

import gc
import os
from pathlib import Path

import pytest

from helpers import required
from helpers.scenes import PLACES, Scene, scenes
from helpers.seconds import Stopwatch, longest_first

required.install()
gc.disable()  # until all modules are imported: nothing of them is garbage, and looking takes long


def pytest_configure(config):
    if folder := os.environ.get("GUIDESTAR_SECONDS"):
        config.pluginmanager.register(Stopwatch(Path(folder)))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    longest_first(items)


def pytest_collection_finish():
    gc.freeze()  # what is imported stays, and is not looked through again
    gc.enable()


@pytest.fixture(params=PLACES)
def scene(request) -> Scene:
    return scenes(request.param)[0]
