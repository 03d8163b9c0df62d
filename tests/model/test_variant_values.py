"""Which files of a student become a variant of its teacher, file by file."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from guidestar.model import variants


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        file = folder / name.replace("__", "/").replace("_DOT_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def weights(file: Path, **tensors: torch.Tensor) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: t.clone() for name, t in tensors.items()}, file)
    return file


A, B = torch.zeros(2), torch.ones(2)


def test_weights_are_compared_by_their_numbers(tmp_path):
    one = weights(tmp_path / "1" / "w.safetensors", a=A, b=B)
    other = weights(tmp_path / "2" / "w.safetensors", b=B, a=A)
    assert variants._alike(one, other)
    changed = [{"a": A}, {"a": A, "c": B}, {"a": A, "b": A}, {"a": A, "b": B.half()}, {"a": A[:1]}]
    for k, tensors in enumerate(changed):
        assert not variants._alike(one, weights(tmp_path / f"o{k}" / "w.safetensors", **tensors))


@pytest.mark.parametrize(
    ("name", "one", "other", "alike"),
    [
        ("tokenizer.json", {"a": 1, "padding": 2}, {"a": 1, "truncation": 3}, True),
        ("tokenizer.json", {"a": 1}, {"a": 2}, False),
        ("tokenizer.json", {"a": 1}, {"a": 1, "b": 2}, False),
        ("config.json", {"a": 1, "padding": 2}, {"a": 1, "truncation": 3}, False),
        ("config.json", {"a": 1}, {"a": 1}, True),
    ],
)
def test_settings_are_compared_byte_by_byte_but_for_a_tokenizers_last_call(
    tmp_path, name, one, other, alike
):
    files = [tmp_path / part / name for part in "12"]
    for file, content in zip(files, (one, other), strict=True):
        file.parent.mkdir()
        file.write_text(json.dumps(content))
    assert variants._alike(*files) is alike


def test_folders_are_alike_if_all_their_files_are(tmp_path):
    one = write(tmp_path / "1", a="x", b__c="y")
    assert variants._same(one, write(tmp_path / "2", a="x", b__c="y"), frozenset())
    assert not variants._same(one, write(tmp_path / "3", a="x"), frozenset())
    assert not variants._same(one, write(tmp_path / "4", a="x", b__c="z"), frozenset())
    assert variants._same(one, tmp_path / "4", frozenset({"c"}))
    assert not variants._same(one, write(tmp_path / "5", a="z", b__c="y"), frozenset({"c"}))
    assert variants._same(tmp_path / "none", tmp_path / "neither", frozenset())
    assert variants._skipped("tokenizer") == {"tokenizer_config.json"}
    assert variants._skipped("text_encoder") == frozenset()


CARD = json.dumps({"summary": "s", "classifiers": ["helper"], "clips": {"seeing": {}}})
PARTS = {
    "guidestar_DOT_json": CARD,
    "unet__w": "u",
    "transformer__w": "t",
    "network__w": "n",
    "condition__c": "c",
    "condition__unet": "kept, as it is within",
    "tokenizer__tokenizer_config_DOT_json": "1",
    "judge__w": "j",
    "classifier__w": "k",
    "scheduler__s": "s",
    "vae__w": "v",
    "helper__w": "h",
    "seeing__w": "h",
    "weak__w": "w",
    "model_index_DOT_json": "{}",
    "_DOT_gitattributes": "",
}


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("low_rank", [True, False])
def test_a_variant_has_what_its_model_lacks(tmp_path, alike, low_rank):
    model = write(tmp_path / "m", **PARTS, tokenizer__more="")
    student = write(tmp_path / "s", **PARTS, tokenizer__more="")
    write(student, tokenizer__tokenizer_config_DOT_json="2")
    if not alike:
        write(student, condition__c="other")
    if low_rank:
        write(student, difference_DOT_safetensors="d")
    write(model, variants__few__old="was there")
    target = variants.keep_variant(model, student, "few")
    assert target == model / "variants" / "few"
    wanted = {"guidestar.json", "weak"}
    wanted |= set() if alike else {"condition", "tokenizer"}
    wanted |= {"difference.safetensors"} if low_rank else {"unet", "transformer", "network"}
    assert {p.name for p in target.iterdir()} == wanted
    if not alike:
        assert (target / "condition" / "unet").is_file()
        assert (target / "condition" / "c").read_text() == "other"
    assert variants.variants_of(model) == {"few": "s"}
    assert variants.variant_folder(model, "few") == target


def test_variants_that_are_not_there(tmp_path):
    bare = write(tmp_path / "m", guidestar_DOT_json="{}")
    with pytest.raises(variants.UnknownVariantError, match="m has no variant 'x'; it has no vari"):
        variants.variant_folder(bare, "x")
    write(bare, variants__b__guidestar_DOT_json="{}", variants__a__guidestar_DOT_json="{}")
    write(bare, variants__c__unet="no card")
    assert list(variants.variants_of(bare).items()) == [("a", ""), ("b", "")]
    with pytest.raises(variants.UnknownVariantError, match=r"variant 'c'; its variants are a, b$"):
        variants.variant_folder(bare, "c")
    variants.check_variant(bare, "x")
    with pytest.raises(ValueError, match="the name of a variant"):
        variants.check_variant(bare, "a/b")
    with pytest.raises(ValueError, match=r"is no model of guidestar's own \(guidestar.json is mis"):
        variants.check_variant(tmp_path, "x")
