"""Every class of pipelines that takes a guidance scale, with two schedulers, against its own
guidance.
"""

import pytest

from guidestar import guide
from guidestar.diffusers.guide.kinds import KNOWN_PIPELINES, REFUSED
from helpers.zoo.base import distance
from helpers.zoo.schedulers import ALONE
from helpers.zoo.table import DOCUMENT, MARK, entries, find_classes, list_classes, table
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


def test_a_class_that_a_release_adds_is_found(tmp_path):
    """By place, by keyword alone, with a guider; not what has no call, and what is deprecated."""
    classes = {
        "new/pipeline_new.py": "class NewPipeline:\n def __call__(self, guidance_scale=5): ...\n"
        "class NewerPipeline(NewPipeline):\n def __call__(self, *, true_cfg_scale=5): ...\n"
        "class NewPipelineOutput:\n guidance_scale: float = 1\n",
        "held/pipeline_held.py": "class HeldPipeline:\n def __init__(self, guider): ...\n"
        " def __call__(self, prompt): ...\n",
        "plain/pipeline_plain.py": "class PlainPipeline:\n def __call__(self, guidance=1): ...\n",
        "new/helpers.py": "class OtherPipeline:\n def __call__(self, guidance_scale): ...\n",
        "deprecated/old/pipeline_old.py": "class OldPipeline:\n"
        " def __call__(self, guidance_scale): ...\n",
    }
    for name, text in classes.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = {"NewPipeline": "new", "NewerPipeline": "new", "HeldPipeline": "held"}
    assert find_classes(tmp_path) == found


def test_a_second_scheduler_or_a_reason():
    alone = {name for name, entry in ENTRIES.items() if len(entry.schedulers) == 1}
    assert alone == set(ALONE)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("OnnxStableDiffusionPipeline", "ONNX Runtime"),
        ("OnnxStableDiffusionInpaintPipeline", "ONNX Runtime"),
        ("LEditsPPPipelineStableDiffusion", "no sum of passes"),
        ("LEditsPPPipelineStableDiffusionXL", "no sum of passes"),
    ],
)
def test_what_is_refused_by_name(name, line):
    """Before anything is looked at: an object of a class of that name suffices."""
    kind = type(name, (), {"__call__": lambda self: None, "__module__": "diffusers.pipelines.x"})
    with pytest.raises(ValueError, match=f"{name} cannot be guided: .*{line}"):
        guide(kind(), "cfg(3)")


@pytest.mark.slow
@pytest.mark.parametrize("name", ENTRIES)
def test_its_own_guidance_is_ours(name):
    entry = ENTRIES[name]
    if entry.needs:
        pytest.importorskip(entry.needs)
    pipe = entry.make()
    for k in range(len(entry.schedulers)):
        if k:
            entry.use_scheduler(pipe, k)
        own = entry.run(pipe)
        assert distance(entry.run(pipe, entry.guidance or "cond"), own) < entry.tolerance
        if entry.guidance:
            assert distance(entry.run(pipe, "cond"), own) > 1e-4


@pytest.mark.slow
def test_the_document_has_the_table():
    written = DOCUMENT.read_text().split(MARK)[1].strip()
    assert written == table(), "run python tests/helpers/zoo/table.py"
