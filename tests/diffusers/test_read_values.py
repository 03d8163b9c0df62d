"""What conditions a folder's encoders make, value by value, with towers that can be reckoned."""

import json
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from torch import nn

from guidestar.diffusers.read import hub, safetensors_io, weights_files
from guidestar.diffusers.read.encoders import ClassLabels
from guidestar.diffusers.read.settings import PIXELS, check_network
from guidestar.diffusers.read.text import FluxText, PixArtText, SD3Text, SDXLText
from guidestar.diffusers.read.text_encoder import TextEncoder, checked_prompt
from guidestar.diffusers.read.text_models import ClipText, T5Text, _rename
from guidestar.diffusers.write import write_condition
from guidestar.networks.condition_encoders import ClassEncoder
from guidestar.networks.conditions import Conditions


class Words:
    """A tokenizer that gives each prompt its length as every token."""

    model_max_length = 5
    eos_token_id = 9

    def __init__(self):
        self.calls: list[Any] = []

    def __call__(self, prompts, **settings):
        self.calls.append((list(prompts), settings))
        length = settings.get("max_length", self.model_max_length)
        rows = [[min(len(p), 3)] * length for p in prompts]
        mask = [[1] * 2 + [0] * (length - 2) for _ in prompts]
        return SimpleNamespace(input_ids=torch.tensor(rows), attention_mask=torch.tensor(mask))

    def save_pretrained(self, folder):
        folder.mkdir(parents=True, exist_ok=True)


class Tower(nn.Module):
    """Gives states of so many numbers: the token, times the layer; pooled, ``pool`` times it."""

    def __init__(self, width: int, pool: float, projected: bool = False):
        super().__init__()
        self.w = nn.Parameter(torch.ones(()))
        self.width, self.pool, self.projected = width, pool, projected
        self.config = SimpleNamespace(hidden_size=width)
        self.masks: list[Any] = []

    def forward(self, rows, attention_mask=None, output_hidden_states=False):
        self.masks.append(attention_mask)
        states = [rows[..., None].float().expand(-1, -1, self.width) * k for k in (1, 10, 100)]
        pooled = rows[:, :1].float().expand(-1, 4) * self.pool
        name = "text_embeds" if self.projected else "pooler_output"

        class Out(SimpleNamespace):
            def __getitem__(self, k):
                return states[-1]

        return Out(**{name: pooled}, hidden_states=states, last_hidden_state=states[-1])


def clip(width, pool, projected=False):
    return ClipText(Tower(width, pool, projected), Words())  # type: ignore[arg-type]


def t5(width, length):
    return T5Text(Tower(width, 0.0), Words(), length)  # type: ignore[arg-type]


def test_clips_states_are_those_before_the_last_layer():
    text: Any = clip(2, 7.0)
    states, pooled = text(["ab", "abc"])
    assert states.shape == (2, 5, 2) and states[:, 0, 0].tolist() == [20, 30]
    assert pooled[:, 0].tolist() == [14, 21]
    assert text(["a"], 3)[0].shape == (1, 3, 2)
    settings = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    assert text.tokenizer.calls[0] == (["ab", "abc"], {**settings, "max_length": 5})
    assert clip(2, 7.0, True)(["a"])[1][0, 0] == 7


def test_t5_attends_by_its_mask_only_where_told():
    text: Any = t5(3, 6)
    states, mask = text(["ab"])
    assert states.shape == (1, 6, 3) and states[0, 0, 0] == 200
    assert mask.tolist() == [[1, 1, 0, 0, 0, 0]] and text.text.masks == [None]
    text(["ab"], masked=True)
    assert torch.equal(text.text.masks[1], mask)


def test_sdxls_condition():
    text = SDXLText(clip(2, 1.0), clip(3, 7.0, True), size=(48, 64))
    cond = text.encode(["ab", ""])
    assert cond["encoder_hidden_states"].shape == (2, 5, 5)
    assert cond["encoder_hidden_states"][:, 0, 0].tolist() == [20, 0]
    assert cond["text_embeds"][:, 0].tolist() == [14, 0]
    assert cond["time_ids"].tolist() == [[48, 64, 0, 0, 48, 64]] * 2
    assert cond["time_ids"].dtype == torch.float32
    kept = SDXLText(clip(2, 1.0), clip(3, 7.0, True), size=(48, 64), zeros=False)
    kept.first.tokenizer.calls.clear()  # type: ignore[attr-defined]
    null = kept.null(3)
    assert len(null["text_embeds"]) == 3 and kept.length is None
    assert kept.tokenizer is kept.first.tokenizer


def test_sd3s_condition():
    text = SD3Text(clip(2, 1.0), clip(3, 7.0), t5(8, 4), width=8)
    cond = text.encode(["ab"])
    states = cond["encoder_hidden_states"]
    assert states.shape == (1, 9, 8)
    assert states[0, 0].tolist() == [20.0] * 5 + [0.0] * 3
    assert states[0, 5:].eq(200).all()
    assert cond["pooled_projections"][0].tolist() == [2.0] * 4 + [14.0] * 4
    assert text.length == 4
    assert text.third is not None and text.tokenizer is text.third.tokenizer
    bare = SD3Text(clip(2, 1.0), clip(3, 7.0), None, width=8, third_length=6)
    states = bare.encode(["ab"])["encoder_hidden_states"]
    assert states.shape == (1, 11, 8) and states[0, 5:].eq(0).all()
    assert bare.length is None and bare.tokenizer is bare.first.tokenizer


def test_fluxs_condition():
    text = FluxText(clip(2, 7.0), t5(3, 6))
    cond = text.encode(["ab", "a"])
    assert set(cond) == {"encoder_hidden_states", "pooled_projections"}
    assert cond["encoder_hidden_states"][:, 0, 0].tolist() == [200, 100]
    assert cond["pooled_projections"][:, 0].tolist() == [14, 7]
    assert text.length == 6 and text.tokenizer is text.second.tokenizer
    text.distilled = 3.5
    assert text.encode(["ab", "a"])["guidance"].tolist() == [3.5, 3.5]


def test_pixarts_condition():
    text: Any = PixArtText(t5(3, 6), size=(32, 64))
    cond = text.encode([" AB ", "a"])
    assert text.only.tokenizer.calls[-1][0] == ["ab", "a"]
    assert cond["encoder_attention_mask"].tolist() == [[1, 1, 0, 0, 0, 0]] * 2
    assert text.only.text.masks[-1] is not None
    assert cond["resolution"].tolist() == [[32, 64]] * 2
    assert cond["aspect_ratio"].tolist() == [[0.5]] * 2
    assert set(PixArtText(t5(3, 6)).encode(["a"])) == {
        "encoder_hidden_states", "encoder_attention_mask",
    }  # fmt: skip
    assert text.length == 6 and text.tokenizer is text.only.tokenizer


def test_a_prompts_characters_and_length():
    assert checked_prompt("a\tb\nc\rd") == "a\tb\nc\rd" and checked_prompt(7) == "7"
    assert checked_prompt("x" * 10_000) == "x" * 10_000
    with pytest.raises(ValueError, match="at most 10,000 characters, not 10,001"):
        checked_prompt("x" * 10_001)
    with pytest.raises(ValueError, match="holds the control character '\\\\x07'; take it out"):
        checked_prompt("a\x07b")


def test_classes_by_name_synonym_and_number():
    labels = ClassLabels(classes=("Tench, Tinca", "cat", "1"), null_index=3)
    found = [
        labels.index(n) for n in ("tench", "TINCA", " tench, tinca ", "cat", "1", 1, 0, "2", "")
    ]
    assert found == [0, 0, 0, 1, 2, 2, 0, 2, 3]
    for name in ("dog", 3, -1, "²"):
        with pytest.raises(ValueError, match=r"unknown class .*; the 3 classes are 0 Tench"):
            labels.index(name)
    assert labels.encode(["cat", ""])["class_labels"].tolist() == [1, 3]
    null = labels.null(2)
    assert null is not None and null["class_labels"].tolist() == [3, 3]
    assert ClassLabels(classes=("a",)).null(1) is None
    with pytest.raises(ValueError, match="unknown class ''"):
        ClassLabels(classes=("a",)).index("")
    many = ClassLabels(classes=tuple("abcdefghijk"))
    with pytest.raises(ValueError, match=r"classes are 0 a, .*9 j, …$"):
        many.index("x")
    with pytest.raises(ValueError, match=r"9 j$"):
        ClassLabels(classes=tuple("abcdefghij")).index("x")


def test_what_a_text_encoder_reads():
    rows = torch.tensor([[[4, 9, 9], [1, 1, 0]], [[5, 6, 9], [1, 1, 1]]])
    text: Any = TextEncoder(Tower(2, 1.0), Words())  # type: ignore[arg-type]
    cond = text(rows)
    assert cond["encoder_hidden_states"][:, 0, 0].tolist() == [400, 500] and len(cond) == 1
    assert text.text.masks == [None]
    text = TextEncoder(Tower(2, 1.0), Words(), output="pooled", mask=True)  # type: ignore[arg-type]
    pooled = text(rows)["encoder_hidden_states"]
    assert pooled.shape == (2, 1, 2) and pooled[:, 0, 0].tolist() == [900, 900]
    assert text._end(rows).tolist() == [1, 2]
    text = TextEncoder(Tower(2, 1.0), Words(), layer="penultimate", mask=True)  # type: ignore[arg-type]
    text.text.final_layer_norm = nn.LayerNorm(2, elementwise_affine=False)
    cond = text(rows)
    assert cond["encoder_hidden_states"].eq(0).all()  # the norm of two equal numbers
    assert cond["encoder_attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert text.settings == {"layer": "penultimate", "output": "states", "mask": True}


def test_t5s_table_has_two_names():
    one = torch.ones(1)
    found = _rename("T5EncoderModel", nn.Linear(1, 1), {"shared.weight": one})
    assert found == {"shared.weight": one, "encoder.embed_tokens.weight": one}
    other = {"encoder.embed_tokens.weight": one}
    assert _rename("T5EncoderModel", nn.Linear(1, 1), dict(other)) == other


def test_conditions_are_written_beside_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr("guidestar.diffusers.write.write_pretrained", lambda *given: None)
    text = TextEncoder(Tower(4, 1.0), Words(), output="pooled")  # type: ignore[arg-type]
    label = ClassEncoder(classes=("a", "b"), width=4)
    monkeypatch.setattr(Conditions, "__init__", lambda self, parts: nn.Module.__init__(self))
    both = Conditions({})
    both.parts = {"label": label, "caption": text}  # type: ignore[assignment]
    write_condition(both, tmp_path, torch.float32)
    read = lambda *path: json.loads(tmp_path.joinpath(*path, "config.json").read_text())
    assert read() == {"_class_name": "Conditions", "names": ["label", "caption"]}
    assert read("label")["classes"] == ["a", "b"]
    assert read("caption") == {
        "_class_name": "TextEncoder", "layer": "last", "output": "pooled", "mask": False,
    }  # fmt: skip
    assert (tmp_path / "caption" / "tokenizer").is_dir()


def test_colours_are_three_or_one_for_all():
    mean, std = PIXELS["image_mean"], PIXELS["image_std"]
    assert mean.words == "three values (or one for all), each a number"
    assert std.words == "three values (or one for all), each a number above 0"
    assert [mean.fits(v) for v in ([1], [1, 2], [1, 2, 3], [1] * 4, [])] == [
        True, False, True, False, False,
    ]  # fmt: skip


def test_a_networks_size_is_one_or_two_numbers(tmp_path):
    file = tmp_path / "config.json"
    for good in (None, 1, 65_536, [4, 6]):
        check_network(file, {"sample_size": good, "in_channels": 65_536})
    for bad in (0, 65_537, [4], [4, 6, 8], [0, 4], "4", 1.5):
        with pytest.raises(ValueError, match="sample_size must be a whole number from 1 to 65,536"):
            check_network(file, {"sample_size": bad})
    for key in ("in_channels", "out_channels"):
        with pytest.raises(ValueError, match=f"{key} must be"):
            check_network(file, {key: 0})


def test_only_what_is_read_is_fetched(monkeypatch, tmp_path):
    files = [SimpleNamespace(rfilename=f) for f in ("a.bin", "config.json", "model.safetensors")]
    asked: list[Any] = []

    class Api:
        def model_info(self, name, timeout):
            asked.append((name, timeout))
            return SimpleNamespace(siblings=files)

    def download(name, **more):
        asked.append((name, more))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert hub.fetch("o/n") == tmp_path
    assert asked == [
        ("o/n", 10.0), ("o/n", {"allow_patterns": ["config.json", "model.safetensors"]}),
    ]  # fmt: skip
    files.pop()
    with pytest.raises(ValueError, match=r"pickled weights only \(a.bin\)"):
        hub.fetch("o/n")

    def broken(name, **more):
        raise RuntimeError("x" * 900)

    files.append(SimpleNamespace(rfilename="model.safetensors"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    with pytest.raises(ValueError, match="download from the Hugging Face hub failed") as found:
        hub.fetch("o/n")
    assert len(str(found.value)) < 330


def test_what_was_fetched_before_is_found(monkeypatch, tmp_path):
    held = {"config.json": str(tmp_path / "config.json")}
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda name, file: held.get(file)
    )
    assert hub._find_cached("o/n", OSError("x")) == tmp_path
    held["guidestar.json"] = str(tmp_path / "own" / "guidestar.json")
    assert hub._find_cached("o/n", OSError("x")) == tmp_path / "own"
    held.clear()
    with pytest.raises(
        ValueError, match=r"the Hugging Face hub does not answer \(OSError: x+"
    ) as f:
        hub._find_cached("o/n", OSError("x" * 900))
    assert str(f.value).count("x") < 130
    response: Any = SimpleNamespace(headers={}, request=None, status_code=404)
    private = huggingface_hub.errors.RepositoryNotFoundError("x", response=response)
    with pytest.raises(ValueError, match="there is no such folder, and no such repository on the"):
        hub._find_cached("o/n", private)


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("model.safetensors", ""),
        ("model.fp16.safetensors", "fp16"),
        ("model.safetensors.index.json", ""),
        ("model.safetensors.index.fp16.json", "fp16"),
        ("model.safetensors.fp16.index.json", "fp16"),
        ("model-00001-of-00002.safetensors", None),
        ("model.a.b.safetensors", None),
        ("other.safetensors", None),
        ("model.bin", None),
    ],
)
def test_variants_of_weights(name, variant):
    assert weights_files.variant_of(name, "model") == variant


def test_settings_without_what_fetches_code_or_changes_answers(tmp_path):
    file = tmp_path / "config.json"
    about = {"auto_map": {}, "return_dict": False, "_attn_implementation": "x", "a": 1}
    about |= {"inner": {"output_attentions": True, "b": 2}}
    file.write_text(json.dumps(about))
    assert safetensors_io.encoder_settings(file) == {"a": 1, "inner": {"b": 2}}
