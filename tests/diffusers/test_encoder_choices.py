"""Which encoder a folder's conditions get, and how it is read (`diffusers/read/encoders.py`)."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from diffusers import DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from guidestar.diffusers.read import encoders
from guidestar.diffusers.read.encoders import ClassLabels, read_encoder
from helpers.noting import noted


def network(kind: type, **config: Any) -> Any:
    made = object.__new__(kind)
    object.__setattr__(made, "_internal_dict", config)
    return made


def test_classes_of_a_transformer(tmp_path):
    net = network(DiTTransformer2DModel, num_embeds_ada_norm=3)
    found: Any = read_encoder(tmp_path, net)
    assert (found.classes, found.null_index) == (("0", "1", "2"), 3)
    labels = {"0": "a", "1": "b", "2": "c"}
    (tmp_path / "model_index.json").write_text(json.dumps({"id2label": labels}))
    found = read_encoder(str(tmp_path), net)
    assert (found.classes, found.null_index) == (("a", "b", "c"), 3)


def test_classes_of_a_unet(tmp_path):
    net = lambda **more: network(
        UNet2DModel, **{"num_class_embeds": 3, "class_embed_type": None, **more}
    )
    found: Any = read_encoder(tmp_path, net())
    assert (found.classes, found.null_index) == (("0", "1", "2"), None)
    found = read_encoder(tmp_path, net(id2label={"0": "a", "1": "b"}))
    assert (found.classes, found.null_index) == (("a", "b"), 2)
    found = read_encoder(tmp_path, net(id2label={"0": "a", "1": "b", "2": "c"}))
    assert (found.classes, found.null_index) == (("a", "b", "c"), None)
    assert read_encoder(tmp_path, net(num_class_embeds=None)) is None
    assert read_encoder(tmp_path, net(class_embed_type="timestep")) is None


@pytest.mark.parametrize(
    ("made", "plain"),
    [
        (("text", "tokenizer"), True), (("text",), False), (("tokenizer",), False),
        (("text", "tokenizer", "second"), False), (("other", "tokenizer"), False),
    ],
)  # fmt: skip
def test_one_clip_makes_the_conditions_of_prompts(monkeypatch, tmp_path, made, plain):
    (tmp_path / "text_encoder").mkdir()
    if "tokenizer" in made:
        (tmp_path / "tokenizer").mkdir()
    if "second" in made:
        (tmp_path / "text_encoder_2").mkdir()
    if {"text", "other"} & set(made):
        name = "CLIPTextModel" if "text" in made else "T5EncoderModel"
        about = json.dumps({"architectures": [name]})
        (tmp_path / "text_encoder" / "config.json").write_text(about)
    read = noted(monkeypatch, encoders, "read_text_encoder", "clip")
    found = read_encoder(tmp_path, network(UNet2DConditionModel), dtype=torch.float16)
    assert found == ("clip" if plain else None)
    assert read == ([((tmp_path, torch.float16), {})] if plain else [])
    assert read_encoder(tmp_path, network(UNet2DModel, num_class_embeds=None)) is None


def test_a_folder_of_our_own_comes_first(monkeypatch, tmp_path):
    read = noted(monkeypatch, encoders, "read_condition", "own")
    net = network(DiTTransformer2DModel, num_embeds_ada_norm=3)
    (tmp_path / "condition").mkdir()
    assert isinstance(read_encoder(tmp_path, net), ClassLabels)
    (tmp_path / "condition" / "config.json").write_text("{}")
    assert read_encoder(tmp_path, net, dtype=torch.float16) == "own"
    assert read == [((tmp_path / "condition",), {"dtype": torch.float16})]


@pytest.mark.parametrize("inside", [False, True])
def test_a_text_encoder_of_our_own_has_its_clip_inside_or_above(monkeypatch, tmp_path, inside):
    folder = tmp_path / "condition"
    folder.mkdir()
    if inside:
        (folder / "text_encoder").mkdir()
    about = {"_class_name": "TextEncoder", "layer": "penultimate", "mask": True}
    (folder / "config.json").write_text(json.dumps(about))
    clip = SimpleNamespace(text="text", tokenizer="tokenizer")
    read = noted(monkeypatch, encoders, "read_text_encoder", clip)
    made = noted(monkeypatch, encoders, "TextEncoder", "made")
    assert encoders.read_condition(folder, dtype=torch.float16) == "made"
    assert read == [((folder if inside else tmp_path, torch.float16), {})]
    assert made == [(("text", "tokenizer"), {"layer": "penultimate", "mask": True})]


def test_our_own_encoders_are_read_by_their_class(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "LengthEncoder",
                                                      "frames": 4, "least": 1}))  # fmt: skip
    read = noted(monkeypatch, encoders, "read_module", "module")
    assert encoders.read_condition(tmp_path, dtype=torch.float16) == "module"
    ((args, more),) = read
    assert args == (tmp_path,) and more["dtype"] == torch.float16
    assert {n: c.__name__ for n, c in more["known"].items()} == {
        n: n for n in ("ClassEncoder", "LabelEncoder", "VectorEncoder", "LengthEncoder",
                       "LowResolution")
    }  # fmt: skip


@pytest.mark.parametrize("name", ["CLIPTextModel", "CLIPTextModelWithProjection"])
def test_clip_is_read_with_its_tokenizer(monkeypatch, tmp_path, name):
    (tmp_path / "text_encoder").mkdir()
    file = tmp_path / "text_encoder" / "config.json"
    file.write_text(json.dumps({"architectures": [name]}))
    built = noted(monkeypatch, encoders, "build_tower", "tower")
    reads = noted(monkeypatch, encoders, "read_tokenizer", "tokens")
    fits = noted(monkeypatch, encoders, "fitting", "fitted")
    made = noted(monkeypatch, encoders, "TextEncoder", "made")
    renames = noted(monkeypatch, encoders, "renamed", "renamed")
    assert encoders.read_text_encoder(tmp_path, torch.float16) == "made"
    ((args, more),) = built
    assert args == (file, {"architectures": [name]}, name, torch.float16)
    assert more["names"]("text", {"a": 1}) == "renamed" and renames == [(({"a": 1}, "text"), {})]
    home = tmp_path / "tokenizer"
    assert reads == [((home,), {})] and fits == [(("tokens", "tower", home), {})]
    assert made == [(("tower", "fitted"), {})]


def test_which_networks_take_the_mask_of_padding():
    for name, masked in (("PixArtTransformer2DModel", True), ("UNet2DModel", False)):
        assert encoders.is_masked(type(name, (), {})()) is masked
