"""Set-up of all tests: the shapes in public signatures are checked while they run."""

import pytest
from jaxtyping import install_import_hook

_HOOK = install_import_hook("guidestar.prediction", "beartype.beartype")

import _required  # noqa: E402
from _scenes import PLACES, Scene, scenes  # noqa: E402 (what it imports must be checked too)

_required.install()


@pytest.fixture(params=PLACES)
def scene(request) -> Scene:
    return scenes(request.param)[0]
