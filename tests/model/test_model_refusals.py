"""What models, their parts and their folders refuse, and by which words."""

import json
import pickle
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from guidestar.model import binding, cascade, folder, folder_reading, variants
from guidestar.model.cascade import Cascade
from guidestar.model.cascade_stages import StageSettings
from guidestar.model.fitted import fitted_grid
from guidestar.networks import guidance_scale
from guidestar.networks.guidance_scale import GuidanceScale, ScaledNetwork
from guidestar.networks.low_resolution import LowResolution
from guidestar.networks.perturbable import text_attention
from helpers.served import toy_model


def large(size=4, to=8):
    model = toy_model(shape=(1, to, to))
    model.encoder = LowResolution(channels=1, size=size, to=to, width=3)  # type: ignore[assignment]
    return model


def test_what_a_model_is_not():
    model = toy_model(shape=(2, 3))
    model.judge = None
    with pytest.raises(ValueError, match="'toy' has no judge, so it cannot be measured; train one"):
        model.need_judge()
    with pytest.raises(
        ValueError, match=r"does not make pictures, but samples of \[2, 3\]; choose"
    ):
        model.need_image_shape()
    pictures = toy_model(shape=(1, 4, 4))
    wrong = r"the images are \[2, 1, 4, 5\], but those of 'toy' are \[B, 1, 4, 4\]"
    with pytest.raises(ValueError, match=wrong):
        pictures.from_images(torch.zeros(2, 1, 4, 5))
    assert pictures.from_images(torch.ones(2, 1, 4, 4)).shape == (2, 1, 4, 4)
    with pytest.raises(TypeError, match="holds functions that cannot be pickled; pass its name or"):
        pickle.dumps(model)
    model.encoder = None
    with pytest.raises(
        ValueError, match="the model 'toy' takes no classes; choose a model of clas"
    ):
        model.need_classes()
    with pytest.raises(ValueError, match="no grid was fitted to 'toy'; guidestar grid FOLDER --st"):
        fitted_grid(model, 7)


def test_what_a_model_is_told():
    model: Any = SimpleNamespace(name="m", encoder="e", takes_prompts=True)
    with pytest.raises(ValueError, match=r"takes text prompts, not class names; .* in place of 3"):
        binding.names_of(model, ["a", 3], 2)
    plain = toy_model()
    for scale, hint in ((2.5, r"cfg\(2.5\)"), ([1, 2], r"cfg\(2\)")):
        with pytest.raises(ValueError, match=f"takes no scale as an input; .* e.g. {hint}"):
            binding.scale_of(plain, scale)  # type: ignore[arg-type]
    assert binding.scale_of(plain, None) is None
    with pytest.raises(ValueError, match="3 conditions were given for 2 samples; give 1, or one f"):
        binding.names_of(plain, ["cat"] * 3, 2)


def student(low=1.0, high=4.0, default=2.0):
    model = toy_model()
    model.denoiser = SimpleNamespace(scale=GuidanceScale(4, low, high, default))  # type: ignore[assignment]
    return model


def test_scales_of_students():
    of = lambda scale, count=None: binding.scale_of(student(), scale, count)
    assert of(None) == (2.0,) and of(None, 3) == (2.0,) * 3 and of(1, 2) == (1.0, 1.0)
    assert of([1, 4]) == (1.0, 4.0) and of([1, 4], 2) == (1.0, 4.0) and of([3], 2) == (3.0, 3.0)
    for bad in (0.99, 4.01, [2, 5]):
        with pytest.raises(ValueError, match="was trained for scales from 1 to 4, not for "):
            of(bad)
    with pytest.raises(ValueError, match="2 scales were given for 3 samples; give one, or one for"):
        of([1, 2], 3)
    for default in (0.9, 4.1):
        with pytest.raises(ValueError, match=r"must be in the range of the training, \[1, 4\], no"):
            GuidanceScale(4, 1.0, 4.0, default)
    assert GuidanceScale(4, 1.0, 4.0, 4.0).default == 4.0


def test_a_network_without_a_time_embedding_takes_no_scale(monkeypatch):
    monkeypatch.setattr(guidance_scale, "time_embeddings", lambda net: {})
    monkeypatch.setattr(guidance_scale, "embedding_width", lambda net: 8)
    with pytest.raises(ValueError, match=r"Linear has no time embedding of width 4; embed"):
        ScaledNetwork(nn.Linear(1, 1), GuidanceScale(4, 1.0, 4.0, 2.0))


def test_networks_that_take_pictures_with_their_text():
    net: Any = nn.Module()
    net.encoder_hid_proj, net.config = nn.Identity(), SimpleNamespace(encoder_hid_dim_type="ip")
    with pytest.raises(
        ValueError, match=r"takes pictures with its text \(an IP-Adapter's\) cannot"
    ):
        text_attention.refuse_image_prompts(net)
    net.config.encoder_hid_dim_type = "text_proj"
    text_attention.refuse_image_prompts(net)
    net.encoder_hid_proj, net.config.encoder_hid_dim_type = None, "ip"
    text_attention.refuse_image_prompts(net)


# Cascades


def test_stages_that_do_not_fit():
    base = toy_model(shape=(1, 4, 4))
    made = Cascade(name="c", stages={"base": base, "large": large()})
    assert made.base is base and made.shape == (1, 8, 8)
    for wrong in (toy_model(shape=(1, 3, 3)), toy_model(shape=(3, 4, 4))):
        with pytest.raises(
            ValueError, match=r"'large' enlarges pictures of \[1, 4, 4\], but 'base'"
        ):
            Cascade(name="c", stages={"base": wrong, "large": large()})
    with pytest.raises(ValueError, match="the stage 'base' has 1 seeds for 2 samples"):
        made.sample(seeds=[1, 2], stages={"base": StageSettings(seeds=(5,))})


@pytest.mark.parametrize(
    "about",
    [{}, {"format": 2, "stages": ["a"]}, {"format": 1}, {"format": 1, "stages": []},
     {"format": 1, "stages": "a"}],
    ids=str,
)  # fmt: skip
def test_a_cascades_index(tmp_path, about):
    (tmp_path / cascade.NAME).write_text(json.dumps(about))
    line = re.escape('must hold "format": 1 and "stages", a list of folders beside it')
    with pytest.raises(folder.WeightsError, match=line):
        cascade.load_cascade(tmp_path)


def test_a_cascades_stage_outside_its_folder(tmp_path):
    (tmp_path / cascade.NAME).write_text(json.dumps({"format": 1, "stages": ["../a"]}))
    with pytest.raises(folder.WeightsError, match=r"cascade.json: a stage"):
        cascade.load_cascade(tmp_path)


# Folders


def test_what_a_folder_is_not(tmp_path):
    line = r"is no model of guidestar's own \(guidestar.json is missing\), so it keeps no variants"
    with pytest.raises(ValueError, match=line):
        variants.check_variant(tmp_path, "fast")
    with pytest.raises(ValueError, match="clips are for a model that takes text prompts, and this"):
        folder_reading._read_clips(tmp_path, {"clips": {"clip": {}}}, None)
    assert folder_reading._read_clips(tmp_path, {}, None) == {}
    assert folder_reading._read_clips(tmp_path, {"clips": {}}, None) == {}
