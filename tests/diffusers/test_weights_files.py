"""Which of a folder's files of weights is read: for networks, VAEs, text encoders and CLIPs."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPTextModelWithProjection, CLIPVisionConfig

from diffusers import UNet2DModel
from guidestar.diffusers.read.clip import read_clip, read_tower
from guidestar.diffusers.read.encoders import read_text_encoder
from guidestar.diffusers.read.safetensors_io import read_module
from guidestar.diffusers.read.text_models import read_text_model
from guidestar.diffusers.read.vae import read_decoder
from guidestar.io.files import make_folder
from helpers.pipeline_folders import clip_text, clip_tokenizer, t5_text, vae


def unet():
    return UNet2DModel(
        block_out_channels=(8,),
        norm_num_groups=2,
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        sample_size=8,
    )


def clip():
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    vision = CLIPVisionConfig(**sizes, image_size=8, patch_size=4, projection_dim=12)
    text = clip_text(CLIPTextModelWithProjection)
    return CLIPModel(
        CLIPConfig(
            text_config=text.config.to_dict(), vision_config=vision.to_dict(), projection_dim=12
        )
    )


def tower():
    from transformers import CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(clip().config.vision_config)


def read_whole_text(home):
    clip_tokenizer().save_pretrained(home.parent / "tokenizer")
    return read_text_encoder(home.parent).text


def read_whole_clip(home):
    clip_tokenizer().save_pretrained(home)
    (home / "preprocessor_config.json").write_text('{"image_mean": [0.5], "image_std": [0.5]}')
    return read_clip(home)


def read_image_tower(home):
    (home / "preprocessor_config.json").write_text('{"image_mean": [0.5], "image_std": [0.5]}')
    return read_tower(home).tower


NET, TEXT = "diffusion_pytorch_model", "model"
PARTS = {
    "network": (unet, read_module, NET, "conv_in.weight"),
    "vae": (vae, lambda home: read_decoder(home).vae, NET, "encoder.conv_in.weight"),
    "clip's text": (clip_text, read_whole_text, TEXT, "embeddings.position_embedding.weight"),
    "pipeline's clip": (
        clip_text,
        lambda home: read_text_model(home, "CLIPText"),
        TEXT,
        "embeddings.position_embedding.weight",
    ),
    "pipeline's t5": (
        t5_text,
        lambda home: read_text_model(home, "T5"),
        TEXT,
        "encoder.final_layer_norm.weight",
    ),
    "whole clip": (clip, read_whole_clip, TEXT, "visual_projection.weight"),
    "image tower": (tower, read_image_tower, TEXT, "visual_projection.weight"),
}


@pytest.fixture(params=PARTS)
def part(request, tmp_path):
    make, read, stem, name = PARTS[request.param]
    home = make_folder(tmp_path / "text_encoder") or tmp_path / "text_encoder"

    def save(value, **how):
        """Save the part with one of its tensors filled with a value."""
        module = make()
        with torch.no_grad():
            next(p for n, p in module.named_parameters() if n.endswith(name)).fill_(value)
        module.save_pretrained(home, **how)

    def value():
        """The value that is read."""
        found = {n: p for n, p in read(home).named_parameters() if n.endswith(name)}
        (tensor,) = found.values()
        assert bool((tensor == tensor.flatten()[0]).all())
        return float(tensor.flatten()[0])

    return save, value, home, stem


SMALL = {"max_shard_size": "1KB"}


def test_shards_that_were_written_after_a_whole_file_are_read(part):
    save, value, home, stem = part
    save(1.0)
    save(2.0, **SMALL)
    assert (home / f"{stem}.safetensors").is_file() and len(list(home.glob("*-of-*"))) > 1
    assert value() == 2.0


def test_a_whole_file_that_was_written_after_shards_is_read(part):
    save, value, home, stem = part
    save(1.0, **SMALL)
    save(2.0)
    assert (home / f"{stem}.safetensors.index.json").is_file() and not list(home.glob("*-of-*"))
    assert value() == 2.0


@pytest.mark.parametrize("how", [{}, SMALL])
@pytest.mark.parametrize("variant", ["fp16", "bf16", "non_ema"])
def test_one_variant_alone_is_read(part, variant, how):
    save, value, home, stem = part
    save(2.0, variant=variant, **how)
    assert not (home / f"{stem}.safetensors").is_file()
    assert value() == 2.0
    save(3.0)
    assert value() == 3.0


@pytest.fixture
def shards(tmp_path):
    unet().save_pretrained(tmp_path, **SMALL)
    index = tmp_path / f"{NET}.safetensors.index.json"
    return tmp_path, index, json.loads(index.read_text())["weight_map"]


def refused(home, line):
    with pytest.raises(ValueError, match=line) as caught:
        read_module(home)
    assert "\n" not in str(caught.value) and str(home) in str(caught.value)


def test_what_cannot_be_chosen_is_named(tmp_path):
    unet().save_pretrained(tmp_path, variant="bf16")
    unet().save_pretrained(tmp_path, variant="non_ema")
    refused(
        tmp_path,
        "holds the variants bf16, non_ema of its weights and none without; keep one of them$",
    )
    unet().save_pretrained(tmp_path, variant="fp16")
    assert read_module(tmp_path) is not None


def test_shards_without_their_index(shards):
    home, index, _ = shards
    index.unlink()
    refused(
        home, rf"holds shards of weights without their index; copy {NET}\.safetensors\.index\.json"
    )


def test_a_shard_that_is_missing(shards):
    home, _, homes = shards
    (home / homes["conv_in.weight"]).unlink()
    refused(home, f"{homes['conv_in.weight']}: there is no such file$")


def test_a_tensor_that_is_in_another_shard_than_the_index_says(shards):
    """Each is read from where it should be, though an old one of its name lies in another shard."""
    home, _, homes = shards
    right, other = (
        homes["conv_in.weight"],
        next(s for s in sorted(set(homes.values()), reverse=True) if s != homes["conv_in.weight"]),
    )
    tensors, wanted = load_file(home / other), load_file(home / right)["conv_in.weight"]
    save_file({**tensors, "conv_in.weight": torch.zeros_like(wanted)}, home / other)
    assert torch.equal(read_module(home).conv_in.weight, wanted) and bool(wanted.any())
    kept = {k: v for k, v in load_file(home / right).items() if k != "conv_in.weight"}
    save_file(kept or {"x": torch.zeros(1)}, home / right)
    refused(
        home,
        f"{right}: the tensor 'conv_in.weight' is missing, which {NET}.safetensors.index.json "
        "says is there",
    )


def test_shards_of_an_older_save_are_left_alone(shards):
    home, _, _ = shards
    wanted = read_module(home).conv_in.weight
    save_file(
        {"conv_in.weight": torch.zeros_like(wanted)}, home / f"{NET}-00001-of-00099.safetensors"
    )
    assert torch.equal(read_module(home).conv_in.weight, wanted)


@pytest.mark.parametrize(
    "name", ["../elsewhere.safetensors", "/etc/passwd", "sub/x.safetensors", "", "..", "x.bin", 3]
)
def test_an_index_that_leads_elsewhere(shards, name):
    home, index, homes = shards
    index.write_text(json.dumps({"weight_map": {**homes, "conv_in.weight": name}}))
    refused(
        home, "weight_map should map the name of each tensor to a file of safetensors beside it$"
    )


def test_a_clip_without_the_settings_of_its_pixels(tmp_path):
    clip().save_pretrained(tmp_path)
    clip_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"preprocessor_config\.json: there is no such file$"
    ) as caught:
        read_clip(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
