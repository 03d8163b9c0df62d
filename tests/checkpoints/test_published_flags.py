"""The flags of guided-diffusion's published models, as its README gives them."""

from dataclasses import asdict

import pytest
import torch

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
