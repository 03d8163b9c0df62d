"""The names of layers that guidances can perturb, of a pipeline and of its folder."""

import json

import pytest

from guidestar.cli import main
from guidestar.diffusers import list_layers
from helpers.zoo.table import entries

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
WANTED = {
    "transformer": {
        "attention": ("blocks.0.attn1",),
        "cross": ("blocks.0.attn2",),
        "block": ("blocks.0",),
    }
}


@pytest.fixture
def folder(tmp_path):
    net = entries()["WanPipeline"].make().transformer
    net.save_config(tmp_path / "transformer")
    index = {"_class_name": "WanPipeline", "transformer": ["diffusers", type(net).__name__]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    return tmp_path


def test_of_a_pipeline_and_its_folder(folder):
    assert list_layers(entries()["WanPipeline"].make()) == WANTED
    assert list_layers(folder) == WANTED  # without its weights, which are not there


def test_the_command_lists_them(folder, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["layers", str(folder)])
    assert not ended.value.code
    assert capsys.readouterr().out.splitlines() == [
        "transformer, pag, seg, sag:",
        "  blocks.0.attn1",
        "transformer, nag:",
        "  blocks.0.attn2",
        "transformer, slg, tpg:",
        "  blocks.0",
    ]


def test_what_is_no_pipeline_is_refused(tmp_path, capsys):
    with pytest.raises(ValueError, match=r"it has no model_index\.json"):
        list_layers(tmp_path)
    (tmp_path / "model_index.json").write_text('{"transformer": ["diffusers", "Nothing"]}')
    with pytest.raises(SystemExit) as ended:
        main(["layers", str(tmp_path)])
    assert ended.value.code == 2 and "Diffusers has no Nothing" in capsys.readouterr().err
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match="has no network at unet, transformer, transformer_2"):
        list_layers(tmp_path)
