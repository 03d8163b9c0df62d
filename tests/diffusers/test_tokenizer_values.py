"""How tokenizers of a folder are opened and tried, by values by hand."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from guidestar.diffusers.read import text_models, towers


class Tokenizer:
    """Notes what it is asked."""

    asked: list[Any] = []
    model_max_length: Any = 2
    mask: Any = torch.ones(2, 8, dtype=torch.long)
    eos_token_id: Any = 7

    @classmethod
    def from_pretrained(cls, folder, **more):
        cls.asked[:] = [(folder, more)]
        return cls()

    def __call__(self, texts, **more):
        self.asked.append((texts, more))
        return SimpleNamespace(input_ids=["first", "second"], attention_mask=self.mask)

    def decode(self, row):
        self.asked.append(row)


def opened(folder, **more: Any):
    kind: Any = type("Own", (Tokenizer,), more)
    return towers.open_tokenizer(kind, folder, "no tokenizer")


def test_a_tokenizer_is_read_from_its_folder_alone_and_tried(tmp_path):
    found = opened(tmp_path)
    assert isinstance(found, Tokenizer)
    assert Tokenizer.asked == [
        (str(tmp_path), {"local_files_only": True}),
        (["", "a b"], {"padding": "max_length", "max_length": 8, "truncation": True,
                       "return_tensors": "pt"}),
        "second",
    ]  # fmt: skip


@pytest.mark.parametrize("length", [1, 0, True, "9", None])
def test_lengths_that_a_tokenizer_cannot_have(tmp_path, length):
    with pytest.raises(ValueError, match=r"no tokenizer.*must be a whole number from 2, not "):
        opened(tmp_path, model_max_length=length)
    assert opened(tmp_path, model_max_length=2.0) is not None


def test_a_tokenizer_without_an_end_or_a_mask_is_refused(tmp_path):
    for more in ({"eos_token_id": None}, {"mask": None}):
        with pytest.raises(ValueError, match="no tokenizer"):
            opened(tmp_path, **more)


def test_a_damaged_file_of_a_tokenizer_is_named(tmp_path):
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(ValueError, match=r"vocab\.json"):
        opened(tmp_path)


@pytest.mark.parametrize(("file", "hint"), [("tokenizer.json", False), ("spiece.model", True)])
def test_t5s_tokenizer_may_need_more(monkeypatch, tmp_path, file, hint):
    def fails(*given):
        raise ValueError("it fails")

    monkeypatch.setattr(text_models, "open_tokenizer", fails)
    with pytest.raises(ValueError, match=r"holds no tokenizer \(tokenizer.json or spiece.model\)"):
        text_models._t5_tokenizer(tmp_path)
    (tmp_path / file).write_text("{}")
    with pytest.raises(ValueError, match="it fails") as caught:
        text_models._t5_tokenizer(tmp_path)
    assert str(caught.value).endswith("pip install sentencepiece protobuf") is hint


def test_t5s_tokenizer_is_found_in_a_fresh_process(monkeypatch, tmp_path):
    """transformers loads its classes as they are asked for."""
    import transformers

    monkeypatch.delattr(transformers, "T5TokenizerFast", raising=False)
    asked: list[Any] = []
    monkeypatch.setattr(text_models, "open_tokenizer", lambda *given: asked.append(given))
    (tmp_path / "tokenizer.json").write_text("{}")
    text_models._t5_tokenizer(tmp_path)
    assert asked == [(transformers.T5TokenizerFast, tmp_path, "not readable as T5's tokenizer")]


def test_prompts_within_an_expression_are_encoded_one_each():
    """With the call's own settings, and None for what a pipeline's method asks for besides."""
    from guidestar.diffusers.guide import prompts

    asked: list[Any] = []

    class Pipe:
        _execution_device = "device"

        def encode_prompt(
            self, prompt, device, num_images_per_prompt=9, num_videos_per_prompt=9,
            do_classifier_free_guidance=True, needed=0, clip_skip=None,
        ):  # fmt: skip
            asked.append((prompt, device, num_images_per_prompt, num_videos_per_prompt,
                          do_classifier_free_guidance, needed, clip_skip))  # fmt: skip
            return torch.tensor([[1.0]]), None

    family: Any = SimpleNamespace(encodes=("encoder_hidden_states", "other"))
    pipe: Any = Pipe()
    given = {"clip_skip": 2, "max_sequence_length": 5, "guidance_scale": 3}
    found = prompts.encode(pipe, family, ["a", 3], given)
    assert asked == [(["a", "3"], "device", 1, 1, False, 0, 2)]
    assert found["encoder_hidden_states"].tolist() == [[1.0]]


def test_variants_are_told_by_the_names_of_files():
    from guidestar.diffusers.read import hub

    for file, variant in {
        "unet/diffusion_pytorch_model.safetensors": "",
        "unet/diffusion_pytorch_model.fp16.safetensors": "fp16",
        "diffusion_pytorch_model.bf16.safetensors": "bf16",
        "text_encoder/model.fp16-00001-of-00002.safetensors": "fp16",
        "text_encoder/model-00001-of-00002.non_ema.safetensors": "non_ema",
        "vae/diffusion_pytorch_model.safetensors.index.json": "",
        "vae/diffusion_pytorch_model.safetensors.index.fp16.json": "fp16",
        "vae/config.json": "",
    }.items():
        assert hub._variant(file) == variant
        assert bool(hub._parts(file)) is (file != "vae/config.json")


def test_the_settings_of_a_guidance_file_are_those_that_it_has(tmp_path):
    from guidestar.diffusers import guidance_file

    assert guidance_file.settings(tmp_path) == {}
    file = tmp_path / "guidance.toml"
    file.write_text('guidance = "cfg(3)"\n')
    assert guidance_file.settings(tmp_path) == {"guidance": "cfg(3)"}
    file.write_text('guidance = "cfg(3)"\nsteps = 1\nsolver = "ddim"\ngrid = "karras"\n')
    assert guidance_file.settings(tmp_path) == {
        "guidance": "cfg(3)", "steps": 1, "solver": "ddim", "grid": "karras"
    }  # fmt: skip
