"""What a folder says is held against its networks; nothing that it names leads out of it, or runs
unasked.
"""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import save_file

import guidestar as gs
from guidestar.diffusers.read.encoders import read_condition
from guidestar.diffusers.read.safetensors_io import encoder_settings, read_module, read_tensors
from guidestar.diffusers.read.towers import fitting, read_tokenizer
from guidestar.model.folder import WeightsError
from guidestar.model.folder_reading import _classifiers
from guidestar.model.shipped import SHIPPED


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(SHIPPED / "fashion-mnist", tmp_path / "mine")
    return tmp_path / "mine"


def rewrite(file, **changes):
    told = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in {**told, **changes}.items() if v is not ...}))


@pytest.mark.parametrize("shape", [[3, 28, 28], [1, 32, 32], [1, 28], [28, 28, 1]])
def test_the_shape_is_held_against_the_network(shape, folder):
    rewrite(folder / "guidestar.json", shape=shape)
    said = (
        f"{folder / 'guidestar.json'}: shape is {shape}, but the network in {folder} is of "
        "samples [1, 28, 28]; correct the shape"
    )
    with pytest.raises(WeightsError, match=f"^{re.escape(said)}$"):
        gs.load(folder)


def test_a_shape_that_nothing_tells(folder):
    rewrite(folder / "guidestar.json", shape=...)
    assert gs.load(folder).shape == (1, 28, 28)
    rewrite(folder / "unet" / "config.json", sample_size=None)
    with pytest.raises(
        WeightsError, match="shape is missing, and the network's settings leave it open"
    ):
        gs.load(folder)


OUT = ["../elsewhere", "/etc", "a/b", "..", ".", "", "a\\b", "C:x", "a\0b", "a\nb", 5, None]


@pytest.mark.parametrize("name", OUT, ids=repr)
@pytest.mark.parametrize("key", ["nets", "classifiers", "averages"])
def test_names_in_guidestar_json_stay_in_the_folder(key, name, folder):
    rewrite(folder / "guidestar.json", **{key: [name]})
    with pytest.raises(
        WeightsError, match=f"^[^\n]*guidestar.json: {key} must be names of folders [^\n]*$"
    ):
        gs.load(folder)


@pytest.mark.parametrize("name", OUT, ids=repr)
def test_names_of_conditions_stay_in_the_folder(name, tmp_path):
    shutil.copytree(SHIPPED / "fashion-mnist" / "condition", tmp_path / "elsewhere")
    (tmp_path / "condition").mkdir()
    (tmp_path / "condition" / "config.json").write_text(
        json.dumps({"_class_name": "Conditions", "names": [name]})
    )
    with pytest.raises(
        ValueError,
        match=r"^[^\n]*condition/config.json: names must be a list of the names of folders "
        r"beside it, no paths, not [^\n]*$",
    ):
        read_condition(tmp_path / "condition")


@pytest.mark.parametrize("name", [*OUT, "elsewhere.bin"], ids=repr)
def test_shards_stay_in_the_folder(name, tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(
        ValueError,
        match=r"^[^\n]*weight_map should map the name of each tensor to a file of safetensors "
        r"beside it$",
    ):
        read_tensors(index)


@pytest.mark.parametrize("part", ["unet", "weak/unet", "condition", "classifier", "judge"])
def test_code_that_any_part_names_is_not_run_unasked(part, folder):
    (folder / part / "config.json").write_text(json.dumps({"callable": "os:getcwd", "config": {}}))
    with pytest.raises(
        WeightsError,
        match=r"is made by the code 'os:getcwd', which is only run where you trust it: load\(…, "
        r"trust=True\), --trust$",
    ):
        gs.load(folder)


def test_code_that_encoders_of_transformers_name_is_left_out(tmp_path):
    told = {
        "a": 1,
        "auto_map": {"AutoModel": "x.Y"},
        "text_config": {"_attn_implementation": "owner/kernel", "b": 2, "auto_map": {}},
        "attn_implementation": "owner/kernel",
    }
    (tmp_path / "config.json").write_text(json.dumps(told))
    assert encoder_settings(tmp_path / "config.json") == {"a": 1, "text_config": {"b": 2}}


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        (
            "temperatures",
            [[2, 1], [1, 1]],
            "temperatures must be pairs [rho, T] of positive numbers, rho rising, not [[2, 1], "
            "[1, 1]]",
        ),
        (
            "temperatures",
            [[1, 0]],
            "temperatures must be pairs [rho, T] of positive numbers, rho rising, not [[1, 0]]",
        ),
        ("temperature", 0, "temperature must be a number above 0, not 0"),
        ("rho_max", -1, "rho_max must be a number from 0, or null, not -1"),
        ("noise_aware", 1, "noise_aware must be true or false, not 1"),
        (
            "classes",
            [],
            "classes must hold at least one name, or outputs be the number of a regressor's "
            "numbers",
        ),
        ("classes", ..., "classes is missing; it must be a list of values, each a text"),
        ("dropout", 1, "dropout must be a number from 0 to 0.999, not 1"),
    ],
)
def test_settings_of_a_classifier(key, value, says, folder):
    file = folder / "classifier" / "config.json"
    rewrite(file, **{key: value})
    with pytest.raises(ValueError, match=f"^{re.escape(f'{file}: {says}')}$"):
        read_module(file.parent, known=_classifiers())


def test_numbers_of_a_regressor_go_together(folder):
    file = folder / "classifier" / "config.json"
    rewrite(file, outputs=3, centre=[0.0, 1.0])
    with pytest.raises(ValueError, match=r"centre must hold 3 numbers, as outputs says, not 2$"):
        read_module(file.parent, known=_classifiers())


def test_a_tokenizer_suits_its_text_encoder():
    class Text:
        class config:
            max_position_embeddings, vocab_size = 24, 4000

    folder = SHIPPED / "emoji" / "tokenizer"
    tokenizer = read_tokenizer(folder)
    length, last = tokenizer.model_max_length, max(tokenizer.get_vocab().values())
    Text.config.max_position_embeddings, Text.config.vocab_size = length, last + 1
    assert fitting(tokenizer, Text, folder) is tokenizer
    Text.config.vocab_size = last
    with pytest.raises(
        ValueError,
        match=f"it has a token of the number {last}, and the text encoder only {last} tokens",
    ):
        fitting(tokenizer, Text, folder)
    Text.config.max_position_embeddings = length - 1
    with pytest.raises(
        ValueError,
        match=f"model_max_length must be a whole number up to the text encoder's {length - 1} "
        f"positions, not {length}",
    ):
        fitting(tokenizer, Text, folder)
