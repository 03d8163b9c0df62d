"""The flags of guided-diffusion's published models, as its README gives them."""

from dataclasses import asdict

import pytest
import torch

from guidestar.checkpoints import dit
from guidestar.checkpoints.adm import PUBLISHED
from guidestar.checkpoints.state_dicts import read_state_dict
from helpers.noting import noted

COMMON = {
    "channel_mult": None,
    "attention_resolutions": (32, 16, 8),
    "num_heads_upsample": None,
    "learn_sigma": True,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
    "channels": 3,
    "groups": 32,
}
WIDE = {
    **COMMON,
    "num_channels": 256,
    "num_res_blocks": 2,
    "num_heads": 4,
    "num_head_channels": 64,
    "classes": 1000,
    "use_new_attention_order": False,
}
SMALLEST = {"num_channels": 192, "num_res_blocks": 3, "use_new_attention_order": True}
# image_size, what else the network's flags change, classifier_depth, classifier_scale, schedule
FLAGS = {
    "64x64": (64, SMALLEST, 4, 1.0, "cosine"),
    "128x128": (128, {"num_head_channels": None}, 2, 0.5, "linear"),
    "256x256": (256, {}, 2, 1.0, "linear"),
    "256x256_uncond": (256, {"classes": None}, 2, 10.0, "linear"),
    "512x512": (512, {}, 2, 4.0, "linear"),
    "lsun": (256, {"classes": None}, None, 0.0, "linear"),
}


def test_there_are_these():
    assert set(PUBLISHED) == set(FLAGS)


@pytest.mark.parametrize("name", FLAGS)
def test_flags_of_the_published_models(name):
    size, changed, depth, scale, schedule = FLAGS[name]
    about = PUBLISHED[name]
    assert asdict(about.network) == {**WIDE, **changed, "image_size": size}
    assert (about.scale, about.noise_schedule) == (scale, schedule)
    if depth is None:
        assert about.classifier is None
    else:
        assert asdict(about.classifier) == {
            "image_size": size,
            "width": 128,
            "depth": depth,
            "channel_mult": None,
            "attention_resolutions": (32, 16, 8),
            "num_head_channels": 64,
            "use_scale_shift_norm": True,
            "resblock_updown": True,
            "pool": "attention",
            "classes": 1000,
            "channels": 3,
            "groups": 32,
        }


def test_files_of_others_are_read_on_the_cpu_and_without_running_code(monkeypatch, tmp_path):
    tensors = {"a": torch.ones(1)}
    file = tmp_path / "m.pt"
    file.touch()
    for found in (tensors, {"ema": tensors, "model": {"b": torch.ones(1)}}):
        loaded = noted(monkeypatch, torch, "load", found)
        assert read_state_dict(file) == tensors
        assert loaded == [((file,), {"map_location": "cpu", "weights_only": True})]
    for odd in ([1], {"a": 1}, {1: torch.ones(1)}, {"ema": {"a": 1}}):
        noted(monkeypatch, torch, "load", odd)
        with pytest.raises(ValueError, match=r"m\.pt: holds no state dict \(tensors by name\)"):
            read_state_dict(file)
    with pytest.raises(ValueError, match=r"no\.pt: there is no such file"):
        read_state_dict(tmp_path / "no.pt")


def test_tensors_of_dit_by_diffusers_names():
    """Every block has a copy of the embeddings; queries, keys and values lie apart."""
    kinds = ("weight", "bias")
    given = {"y_embedder.embedding_table.weight": torch.tensor([9.0])}
    outside = {
        "x_embedder.proj": "pos_embed.proj",
        "final_layer.adaLN_modulation.1": "proj_out_1",
        "final_layer.linear": "proj_out_2",
    }
    shared = {f"t_embedder.mlp.{2 * k}": f"timestep_embedder.linear_{k + 1}" for k in (0, 1)}
    inside = {"adaLN_modulation.1": "norm1.linear", "attn.proj": "attn1.to_out.0",
              "mlp.fc1": "ff.net.0.proj", "mlp.fc2": "ff.net.2"}  # fmt: skip
    blocks = {f"blocks.{i}.{name}": i for i in (0, 1) for name in (*inside, "attn.qkv")}
    for n, name in enumerate((*outside, *shared, *blocks)):
        given |= {f"{name}.{kind}": torch.arange(6.0) + 10 * n + 0.5 * k
                  for k, kind in enumerate(kinds)}  # fmt: skip
    expected: dict[str, torch.Tensor] = {}
    for kind in kinds:
        expected |= {f"{new}.{kind}": given[f"{old}.{kind}"] for old, new in outside.items()}
        for i in (0, 1):
            at = f"transformer_blocks.{i}"
            expected |= {
                f"{at}.norm1.emb.{new}.{kind}": given[f"{old}.{kind}"]
                for old, new in shared.items()
            }
            expected |= {
                f"{at}.{new}.{kind}": given[f"blocks.{i}.{old}.{kind}"]
                for old, new in inside.items()
            }
            joined = given[f"blocks.{i}.attn.qkv.{kind}"]
            for k, part in enumerate("qkv"):
                expected[f"{at}.attn1.to_{part}.{kind}"] = joined[2 * k : 2 * k + 2]
    for i in (0, 1):
        table = f"transformer_blocks.{i}.norm1.emb.class_embedder.embedding_table.weight"
        expected[table] = given["y_embedder.embedding_table.weight"]
    found = dit._rename(given, 2)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
