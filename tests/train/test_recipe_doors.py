"""What a recipe may name: no code without trust, no path for a name, no number without end."""

import tomllib

import pytest

from guidestar import cli
from guidestar.io.files import check_name
from guidestar.model.model import Model
from guidestar.networks.condition_encoders import ClassEncoder
from guidestar.networks.conditions import Conditions
from guidestar.train.recipe import schema as recipes
from guidestar.train.recipe.propose import quoted

PLAIN = """
name = "plain"
[data]
kind = "fashion-mnist"
[model]
widths = [8, 8]
head = 8
train = { steps = 4, batch = 2 }
"""


def written(tmp_path, text):
    (tmp_path / "r.toml").write_text(text)
    return tmp_path / "r.toml"


def command(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main([str(a) for a in arguments])
    return stop.value.code, capsys.readouterr().err


MODEL = 'network = "code_of_others:make"\nconfig = {{ command = "touch {ran}" }}'
WEAK = '[weak]\nnetwork = "code_of_others:make"\ntrain = {{ steps = 1 }}'


@pytest.mark.parametrize("where", ["model", "weak"])
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_code_that_a_recipe_names_is_run_only_where_it_is_trusted(
    tmp_path, monkeypatch, capsys, where, dry
):
    ran = tmp_path / "ran"
    (tmp_path / "code_of_others.py").write_text(
        f"open({str(ran)!r}, 'w').close()\ndef make(**_):\n    return 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    text = (
        PLAIN.replace("widths = [8, 8]\nhead = 8", 'network = "code_of_others:make"')
        if where == "model"
        else PLAIN + WEAK.format()
    )
    code, err = command(capsys, "train", written(tmp_path, text), "--out", tmp_path / "out", *dry)
    assert (
        code == 2
        and err.count("\n") == 1
        and f"{where}.network is made by the code 'code_of_others:make'" in err
        and "--trust" in err
    )
    assert not ran.exists() and not (tmp_path / "out").exists()
    assert recipes.read_recipe(tmp_path / "r.toml", trust=True).code() == {
        f"{where}.network": "code_of_others:make"
    }


def test_code_of_the_standard_library_is_code(tmp_path):
    for network in ("os:system", "os:", ":system", "builtins:exec"):
        with pytest.raises(ValueError, match="is only run where you trust it"):
            recipes.read_recipe(
                written(
                    tmp_path, PLAIN.replace("widths = [8, 8]\nhead = 8", f'network = "{network}"')
                )
            )


BAD_NAMES = {
    "": "empty",
    ".": "starts with",
    "..": "starts with",
    "../x": "paths",
    "/etc": "paths",
    "a/b": "paths",
    "a\\b": "paths",
    "C:": "paths",
    "c:x": "paths",
    "a\0b": "paths",
    "a\nb": "paths",
    "-rf": "starts with",
    "a.": "ends in",
    "a ": "ends in",
    "NUL": "device",
    "com1.txt": "device",
    "x" * 101: "longer than 100 bytes",
    "é" * 51: "longer than 100 bytes",
    "parts": "taken",
    "Parts": "taken",
}


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda n: repr(n[:8]))
def test_a_name_that_is_a_path_or_taken_is_refused(name):
    with pytest.raises(ValueError, match=BAD_NAMES[name]) as caught:
        check_name(name, "the recipe's name", taken={"parts"})
    assert "\n" not in str(caught.value) and "the recipe's name" in str(caught.value)


@pytest.mark.parametrize("name", ["a", "fashion-mnist", "v1.2", "été", "x" * 100, "console", "a b"])
def test_a_plain_name_is_returned(name):
    assert check_name(name, "a net") == name


@pytest.mark.parametrize("name", [None, 3, ["a"], {"a": 1}])
def test_a_name_is_a_text(name):
    with pytest.raises(ValueError, match="no text"):
        check_name(name, "a net")


@pytest.mark.parametrize(
    "name",
    ["..", ".", "", "parts", "snapshots", "previews", "tensorboard", "tokenizers", "x" * 101],
)
def test_a_recipe_is_not_named_after_a_path_or_what_training_writes(tmp_path, name):
    with pytest.raises(ValueError, match=r"r\.toml: name: ") as caught:
        recipes.read_recipe(written(tmp_path, PLAIN.replace('"plain"', f'"{name}"')))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["..", "a/b", "a.b", "a=b", "a;b", "keys", "pop", "", "training"])
def test_a_condition_is_not_named_after_a_path_or_a_word_of_torch(name):
    with pytest.raises(ValueError, match=r"condition"):
        Conditions({name: ClassEncoder(("a", "b"), 4)})


@pytest.mark.parametrize("name", ["..", "/tmp/x", "unet", "scheduler", "averages", "condition"])
@pytest.mark.parametrize("which", ["nets", "classifiers"])
def test_no_network_of_a_model_is_saved_over_another_or_outside(tmp_path, name, which):
    from diffusers import UNet2DModel
    from guidestar.core.levels import VP
    from guidestar.model.folder_writing import save, write_average
    from guidestar.networks.network import Network

    net = Network(
        UNet2DModel(
            sample_size=8,
            block_out_channels=(8,),
            down_block_types=("DownBlock2D",),
            up_block_types=("UpBlock2D",),
            norm_num_groups=4,
        ),
        predicts="eps",
    )
    config = {"scheduler": {"_class_name": "DDPMScheduler", "num_train_timesteps": 1000}}
    further = {name: (net, None)} if which == "nets" else {name: net.net}
    model = Model(
        name="m",
        denoiser=net,
        schedule=VP.linear(),
        shape=(3, 8, 8),
        card=config,
        **{which: further},
    )
    with pytest.raises(ValueError, match="network or classifier"):
        save(model, tmp_path / "in" / "m")
    assert not (tmp_path / "in").exists()
    with pytest.raises(ValueError, match="average"):
        write_average(None, tmp_path, "../x")


@pytest.mark.parametrize("text", ["a", 'a"b', "a\\b", "line\nbreak", "\x7f\x00\t", "é ✓", "[x]\n#"])
def test_what_a_proposal_writes_is_read_back(text):
    assert tomllib.loads(f"x = {quoted(text)}\n[y.{quoted(text)}]\nz = 1") == {
        "x": text,
        "y": {text: {"z": 1}},
    }
