"""What a pipeline's folder says of its pictures' size, its flow's shift and its text encoders."""

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from guidestar.core.levels import VP, Flow
from guidestar.diffusers.read import pipeline


def write(folder, name, content):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize(("widths", "factor"), [(None, 1), ([8], 1), ([8, 8], 2), ([8] * 4, 8)])
def test_pixels_of_a_latent(tmp_path, widths, factor):
    if widths is not None:
        write(tmp_path, "vae/config.json", {"block_out_channels": widths})
    assert pipeline._factor(tmp_path) == factor


def shape(monkeypatch, folder, size, own=(4, 8, 6), patch=2):
    net = SimpleNamespace(config=SimpleNamespace(in_channels=64))
    monkeypatch.setattr(pipeline, "_network", lambda parts: net)
    parts: Any = SimpleNamespace(shape=own)
    return pipeline._shape(folder, parts, SimpleNamespace(patch=patch), size)  # type: ignore[arg-type]


def test_the_shape_of_latents(monkeypatch, tmp_path):
    write(tmp_path, "vae/config.json", {"block_out_channels": [8] * 4})
    assert shape(monkeypatch, tmp_path, None) == (4, 8, 6)
    side = pipeline.FLUX_SIZE
    assert shape(monkeypatch, tmp_path, None, None) == (16, side, side)
    assert shape(monkeypatch, tmp_path, (64, 32)) == (4, 8, 4)
    assert shape(monkeypatch, tmp_path, [64, 32]) == (4, 8, 4)  # type: ignore[arg-type]
    assert shape(monkeypatch, tmp_path, (16, 16)) == (4, 2, 2)
    assert shape(monkeypatch, tmp_path, (8, 24), patch=1) == (4, 1, 3)
    for odd in (64, (64,), (64, 32, 3), (64.0, 32), "ab"):
        with pytest.raises(ValueError, match=r"size must be height and width in pixels, e\.g\. "):
            shape(monkeypatch, tmp_path, odd)  # type: ignore[arg-type]
    for odd in ((8, 16), (16, 8), (0, 16), (16, -16)):
        line = f"must be multiples of 16 pixels, not {odd[0]}×{odd[1]}"
        with pytest.raises(ValueError, match=line):
            shape(monkeypatch, tmp_path, odd)


SHIFTS = {"base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256,
          "max_image_seq_len": 4096}  # fmt: skip


def test_the_shift_of_a_flow_by_the_pictures_size(tmp_path):
    flow = Flow(shift=3.0)
    read = lambda schedule=flow, patch=2: pipeline._shift(schedule, tmp_path, (4, 64, 32), patch)
    assert read() is flow
    kind = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    write(tmp_path, "scheduler/scheduler_config.json", kind)
    assert read() is flow
    write(tmp_path, "scheduler/scheduler_config.json",
          {**kind, **SHIFTS, "use_dynamic_shifting": False})  # fmt: skip
    assert read() is flow
    about = {**kind, **SHIFTS, "use_dynamic_shifting": True, "time_shift_type": "exponential"}
    write(tmp_path, "scheduler/scheduler_config.json", about)
    # 32 · 16 tokens, on the line from 0.5 at 256 to 1.15 at 4096
    mu = 0.5 + (512 - 256) * (1.15 - 0.5) / (4096 - 256)
    assert read().shift == pytest.approx(math.exp(mu))  # type: ignore[attr-defined]
    mu = 0.5 + (2048 - 256) * (1.15 - 0.5) / (4096 - 256)
    assert read(patch=1).shift == pytest.approx(math.exp(mu))  # type: ignore[attr-defined]
    vp = VP.linear()
    assert read(vp) is vp
    write(tmp_path, "scheduler/scheduler_config.json", {**about, "time_shift_type": "linear"})
    assert read(patch=1).shift == pytest.approx(mu)  # type: ignore[attr-defined]


@pytest.fixture
def texts(monkeypatch):
    made: list[Any] = []
    for name in ("SDXLText", "SD3Text", "FluxText"):
        monkeypatch.setattr(
            pipeline, name, lambda *a, name=name, **k: made.append((name, a, k)) or name
        )
    monkeypatch.setattr(pipeline, "read_clip_text", lambda folder, part, dtype: f"clip{part}")
    monkeypatch.setattr(
        pipeline, "read_t5_text", lambda folder, part, length, dtype: f"t5{part} {length}"
    )
    return made


def encoder(folder, name, net=None, **index):
    write(folder, "model_index.json", {"_class_name": name, **index})
    write(folder, "vae/config.json", {"block_out_channels": [8, 8]})
    parts: Any = SimpleNamespace(shape=(4, 8, 6))
    return pipeline._encoder(folder, net, parts, torch.float32)  # type: ignore[arg-type]


def test_the_texts_of_each_family(texts, tmp_path):
    assert encoder(tmp_path, "StableDiffusionXLPipeline") == "SDXLText"
    assert texts.pop() == ("SDXLText", ("clip", "clip_2"), {"size": (16, 12), "zeros": True})
    encoder(tmp_path, "StableDiffusionXLPipeline", force_zeros_for_empty_prompt=False)
    assert texts.pop()[2]["zeros"] is False
    net = SimpleNamespace(config=SimpleNamespace(joint_attention_dim=32, guidance_embeds=True))
    assert encoder(tmp_path, "StableDiffusion3Pipeline", net) == "SD3Text"
    assert texts.pop() == ("SD3Text", ("clip", "clip_2", None), {"width": 32})
    (tmp_path / "text_encoder_3").mkdir()
    encoder(tmp_path, "StableDiffusion3Pipeline", net)
    assert texts.pop()[1] == ("clip", "clip_2", "t5_3 256")
    assert encoder(tmp_path, "FluxPipeline", net) == "FluxText"
    name, args, more = texts.pop()
    assert args[:2] == ("clip", "t5_2 512") and 3.5 in (*args, *more.values())
    net.config.guidance_embeds = False
    encoder(tmp_path, "FluxPipeline", net)
    name, args, more = texts.pop()
    assert 3.5 not in (*args, *more.values()) and name == "FluxText"
