"""Every class of pipelines that takes a guidance scale, with two schedulers, against its own
guidance.
"""

import pytest

from guidestar.diffusers.guide.kinds import KNOWN_PIPELINES, REFUSED
from helpers.zoo.base import distance
from helpers.zoo.table import DOCUMENT, MARK, entries, list_classes, table
from helpers.zoo.untested import UNTESTED

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Initializing zero-element tensors"),
]
ENTRIES = entries()


@pytest.mark.slow
def test_every_class_has_a_row():
    """A class that a release adds is named here: give it an entry in helpers/zoo."""
    rows = set(ENTRIES) | set(UNTESTED) | set(REFUSED)
    assert set(list_classes()) - rows == set()
    assert rows - set(list_classes()) == set()
    assert not set(UNTESTED) & (set(ENTRIES) | set(REFUSED)) and not set(KNOWN_PIPELINES) & set(
        REFUSED
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ENTRIES)
def test_its_own_guidance_is_ours(name):
    entry = ENTRIES[name]
    if entry.needs:
        pytest.importorskip(entry.needs)
    pipe = entry.make()
    for k in range(len(entry.schedulers)):
        if k:
            pipe.scheduler = entry.scheduler(k)
        own = entry.run(pipe)
        assert distance(entry.run(pipe, entry.guidance or "cond"), own) < entry.tolerance
        if entry.guidance and not k:
            assert distance(entry.run(pipe, "cond"), own) > 1e-4


@pytest.mark.slow
def test_the_document_has_the_table():
    written = DOCUMENT.read_text().split(MARK)[1].strip()
    assert written == table(), "run python tests/helpers/zoo/table.py"
