"""Set-up of all tests."""

import pytest

from helpers import required
from helpers.scenes import PLACES, Scene, scenes

required.install()


@pytest.fixture(params=PLACES)
def scene(request) -> Scene:
    return scenes(request.param)[0]
