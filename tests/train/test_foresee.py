"""What a recipe needs at its end is refused at its beginning: nothing is trained, nothing is
written.
"""

import pytest

from guidestar.train import dry_run, run
from guidestar.train.recipe import schema as recipes
from helpers.recipes import use_six_pictures

TEXT = """
name = "small"
[data]
kind = "fashion-mnist"
[model]
widths = [8]
head = 8
snapshots = [0.5]
train = { steps = 4, batch = 2 }
[classifier]
widths = [8]
train = { steps = 2, batch = 2 }
[preview]
every = 2
seeds = 1
steps = 2
guidance = ["cfg(2)"]
[export]
guidance = "cfg(2)"
steps = 2
"""


@pytest.fixture
def little(monkeypatch):
    use_six_pictures(monkeypatch)


def read(tmp_path, *edits):
    text = TEXT
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "r.toml").write_text(text)
    return recipes.read_recipe(tmp_path / "r.toml")


EXPORT, PREVIEW = 'guidance = "cfg(2)"\nsteps = 2', 'guidance = ["cfg(2)"]'
AT_READING = {
    "an export that does not parse": (EXPORT, 'guidance = "cfg(2"', r"export: "),
    "an unknown term": (EXPORT, 'guidance = "cgf(2)"', r"export: .*cgf"),
    "an unknown solver": (EXPORT, 'solver = "euler2"', r"export: unknown solver 'euler2'"),
    "an unknown grid": (EXPORT, 'grid = "cubic"', r"export: unknown grid 'cubic'"),
    "too many steps": (
        EXPORT,
        "steps = 10001",
        r"export: steps must be a whole number from 1 to 10000|export.steps: ",
    ),
    "a preview that does not parse": (PREVIEW, 'guidance = ["cfg(2)", "cfg(x"]', r"preview: "),
}


@pytest.mark.parametrize("name", AT_READING)
def test_what_no_model_could_have_is_refused_as_the_recipe_is_read(tmp_path, name):
    old, new, message = AT_READING[name]
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path, (old, new))
    assert "\n" not in str(caught.value)


BEFORE_TRAINING = {
    "an export of a net that is not there": (
        EXPORT,
        'guidance = "autoguidance(2)"',
        r"export.guidance 'autoguidance\(2\)' with dpmpp-2m on log_snr: .*weak",
    ),
    "a snapshot that is not kept": (
        EXPORT,
        "guidance = \"autoguidance(2, net='step-3')\"",
        r"export.guidance .*step-3",
    ),
    "a solver that refuses": (
        EXPORT,
        'guidance = "cfgpp(0.6)"\nsolver = "heun"',
        r"export.guidance 'cfgpp\(0.6\)' with heun",
    ),
    "a preview of a net that is not there": (
        PREVIEW,
        'guidance = ["cfg(2)", "autoguidance(2)"]',
        r"preview.guidance 'autoguidance\(2\)', of networks in training: .*weak",
    ),
    "a preview of a classifier": (
        PREVIEW,
        'guidance = ["classifier(2)"]',
        r"preview.guidance 'classifier\(2\)'",
    ),
    "a preview of a loss": (PREVIEW, 'guidance = ["dps(1)"]', r"preview.guidance 'dps\(1\)'.*loss"),
}


@pytest.mark.parametrize("name", BEFORE_TRAINING)
@pytest.mark.parametrize("dry", [False, True])
def test_what_this_model_cannot_have_is_refused_before_training(tmp_path, little, name, dry):
    old, new, message = BEFORE_TRAINING[name]
    recipe = read(tmp_path, (old, new))
    with pytest.raises(ValueError, match=message) as caught:
        dry_run.dry_run(recipe) if dry else run.train(
            recipe, tmp_path / "out", lambda *_: pytest.fail("it trained")
        )
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").rglob("*.pt"))


@pytest.mark.parametrize(
    "edits",
    [
        [(EXPORT, "guidance = \"autoguidance(2, net='step-2')\"")],
        [(EXPORT, 'guidance = "cfg(2) + classifier(1)"')],
        [(EXPORT, 'guidance = "cond + dps(1)"')],  # the loss is given when it is sampled
        [(PREVIEW, 'guidance = ["uncond", "cfg(2) | rescale(0.7)"]')],
    ],
    ids=str,
)
def test_what_the_model_can_have_is_trained(tmp_path, little, edits):
    assert run.train(read(tmp_path, *edits), tmp_path / "out", only=None)


def test_a_part_alone_is_not_refused_for_what_others_will_be(tmp_path, little):
    recipe = read(tmp_path, (EXPORT, 'guidance = "autoguidance(2)"'))
    run.train(recipe, tmp_path / "out", only=["classifier"])


@pytest.mark.parametrize("blocked", ["small", "previews"])
def test_a_folder_that_cannot_be_written_to_at_the_end_is_refused_at_the_beginning(
    tmp_path, little, blocked
):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / blocked).write_text("in the way")
    with pytest.raises(OSError, match=rf"^cannot write to the folder [^\n]*{blocked}"):
        run.train(read(tmp_path), tmp_path / "out", lambda *_: pytest.fail("it trained"))
    assert (tmp_path / "out" / blocked).read_text() == "in the way"


def test_trying_the_folders_leaves_nothing(tmp_path, little):
    from guidestar.train.build.trial import check_out

    check_out(read(tmp_path), tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["parts", "snapshots"]
