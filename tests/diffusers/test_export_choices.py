"""Which pipeline of Diffusers a model can be, and what its index says, condition by condition."""

import json
from types import SimpleNamespace

import pytest

from guidestar.diffusers import export, write
from guidestar.diffusers.export import (
    describe_pipeline,
    pipeline_of,
    scheduler_settings,
    write_index,
)
from guidestar.diffusers.read.text_encoder import TextEncoder
from guidestar.networks import clip as clips

FLOW = "FlowMatchEulerDiscreteScheduler"
EDM = "EDMEulerScheduler"
PLAIN = {"layer": "last", "output": "states", "mask": False}


class Model(SimpleNamespace):
    """A model whose denoiser is its network."""


def net(kind, **config):
    return type(kind, (), {"config": config, "learned_variance": False})()


def vae(**config):
    return SimpleNamespace(vae=type("AutoencoderKL", (), {"config": config})())


def model(kind, *, config=None, decode=None, encoder=None, card=None, **more):
    made = net(kind, **(config or {}))
    made.config = type("Config", (dict,), {"__getattr__": dict.get})(made.config)
    vars(made).update(more)
    given = {"denoiser": made, "decode": decode or SimpleNamespace(), "encoder": encoder}
    return Model(**given, card=card or {}, classes=("a", "b"))


@pytest.fixture(autouse=True)
def its_own_network(monkeypatch):
    monkeypatch.setattr(export, "network_of", lambda denoiser: denoiser)


class Text(TextEncoder):
    """A text encoder of which its settings alone are read."""

    def __init__(self, **settings):
        vars(self)["_settings"] = {**PLAIN, **settings}

    settings = property(lambda self: vars(self)["_settings"])


TEXT = Text()
CASES = [
    ("UNet2DModel", {}, "DDPMScheduler", "DDIMPipeline", "num_inference_steps=50"),
    ("UNet2DModel", {}, "DDIMScheduler", "DDIMPipeline", "num_inference_steps=50"),
    ("UNet2DModel", {}, FLOW, "DDPMPipeline", "num_inference_steps=50"),
    ("UNet2DModel", {}, EDM, None, "its pipelines do not step as EDMEulerScheduler needs"),
    (
        "UNet2DModel",
        {"learned_variance": True},
        FLOW,
        None,
        "an unconditional UNet2DModel of this kind has none",
    ),
    ("UNet2DModel", {"card": {"scale": 1}}, FLOW, None, "an unconditional UNet2DModel of this"),
    ("UNet2DModel", {"decode": vae()}, FLOW, None, "unconditional latents have none"),
    ("UNet2DModel", {"encoder": TEXT}, FLOW, None, "its network takes embeddings, class_labels"),
    (
        "UNet2DConditionModel",
        {"encoder": TEXT, "decode": vae()},
        "DDPMScheduler",
        "StableDiffusionPipeline",
        'pipe("a prompt", guidance_scale=3.0)',
    ),
    (
        "UNet2DConditionModel",
        {"encoder": TEXT, "decode": vae()},
        FLOW,
        None,
        f"StableDiffusionPipeline does not step as {FLOW} needs",
    ),
    ("UNet2DConditionModel", {"encoder": TEXT}, "DDPMScheduler", None, "it has no VAE, which"),
    (
        "UNet2DConditionModel",
        {"encoder": TEXT, "decode": vae(shift_factor=0.1)},
        "DDPMScheduler",
        None,
        "its VAE shifts the latents",
    ),
    (
        "UNet2DConditionModel",
        {"encoder": TEXT, "decode": vae(latents_mean=[0.1])},
        "DDPMScheduler",
        None,
        "its VAE shifts the latents",
    ),
    *(
        (
            "UNet2DConditionModel",
            {"encoder": encoder, "decode": vae()},
            "DDPMScheduler",
            None,
            "its condition is not the states of CLIP's last layer",
        )
        for encoder in (
            SimpleNamespace(),
            Text(layer="penultimate"),
            Text(output="pooled"),
            Text(mask=True),
        )
    ),
    *(
        (
            "UNet2DConditionModel",
            {"encoder": TEXT, "decode": vae(), "config": {key: "x"}},
            "DDPMScheduler",
            None,
            f"its network is conditioned on {key}",
        )
        for key in (
            "class_embed_type",
            "addition_embed_type",
            "encoder_hid_dim_type",
            "time_cond_proj_dim",
        )
    ),
    (
        "DiTTransformer2DModel",
        {"encoder": TEXT, "decode": vae(), "config": {"num_embeds_ada_norm": 1000}},
        "DDIMScheduler",
        "DiTPipeline",
        "pipe([207], guidance_scale=4.0)",
    ),
    (
        "DiTTransformer2DModel",
        {"encoder": TEXT, "decode": vae(), "config": {"num_embeds_ada_norm": 10}},
        "DDIMScheduler",
        None,
        "DiTPipeline's null is class 1000, this network's 10",
    ),
    (
        "DiTTransformer2DModel",
        {"encoder": TEXT, "decode": vae(), "config": {"num_embeds_ada_norm": 1000}},
        FLOW,
        None,
        f"it is a {FLOW}",
    ),
    (
        "DiTTransformer2DModel",
        {"encoder": TEXT, "config": {"num_embeds_ada_norm": 1000}},
        "DDIMScheduler",
        None,
        "DiTPipeline wants a VAE that does not shift",
    ),
    (
        "DiTTransformer2DModel",
        {
            "encoder": TEXT,
            "decode": vae(shift_factor=0.1),
            "config": {"num_embeds_ada_norm": 1000},
        },
        "DDIMScheduler",
        None,
        "DiTPipeline wants a VAE that does not shift",
    ),
    ("PixArtTransformer2DModel", {"encoder": TEXT}, FLOW, None, "PixArt's pipelines want T5"),
    ("Own", {"encoder": TEXT}, FLOW, None, "its network, Own, is none of Diffusers'; it is used"),
]


@pytest.mark.parametrize(("kind", "given", "scheduler", "pipeline", "words"), CASES)
def test_which_pipeline_a_model_can_be(kind, given, scheduler, pipeline, words):
    one = model(kind, **given)
    name, how = pipeline_of(one, scheduler)
    assert name == pipeline and words in how
    place = "unet" if kind.startswith("UNet") else "transformer"
    if name is None and kind != "Own":
        assert f'{kind}.from_pretrained(folder, subfolder="{place}") and {scheduler}.from' in how
    one.card["scheduler"] = {"_class_name": scheduler}
    entry = {"needs": how} if name is None else {"pipeline": name, "use": how}
    assert describe_pipeline(one) == entry
    offset = {"steps_offset": 1} if pipeline == "StableDiffusionPipeline" else {}
    settings = {"_class_name": scheduler, "a": 1}
    assert scheduler_settings(one, settings) == {**settings, **offset}
    told = {**settings, "steps_offset": 0}
    assert scheduler_settings(one, told) == told


def test_a_card_without_a_scheduler_is_of_a_table():
    assert describe_pipeline(model("UNet2DModel"))["pipeline"] == "DDIMPipeline"


CLIP = {
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
}


@pytest.mark.parametrize(
    ("kind", "given", "scheduler", "wanted"),
    [
        (
            "UNet2DModel",
            {},
            "DDPMScheduler",
            {
                "_class_name": "DDIMPipeline",
                "scheduler": ["diffusers", "DDIMScheduler"],
                "unet": ["diffusers", "UNet2DModel"],
            },
        ),
        (
            "UNet2DModel",
            {},
            FLOW,
            {
                "_class_name": "DDPMPipeline",
                "scheduler": ["diffusers", FLOW],
                "unet": ["diffusers", "UNet2DModel"],
            },
        ),
        (
            "UNet2DConditionModel",
            {"encoder": TEXT, "decode": vae()},
            "DDIMScheduler",
            {
                "_class_name": "StableDiffusionPipeline",
                "scheduler": ["diffusers", "DDIMScheduler"],
                "unet": ["diffusers", "UNet2DConditionModel"],
                "vae": ["diffusers", "AutoencoderKL"],
                **CLIP,
            },
        ),
        (
            "DiTTransformer2DModel",
            {"encoder": TEXT, "decode": vae(), "config": {"num_embeds_ada_norm": 1000}},
            "DDPMScheduler",
            {
                "_class_name": "DiTPipeline",
                "scheduler": ["diffusers", "DDIMScheduler"],
                "transformer": ["diffusers", "DiTTransformer2DModel"],
                "vae": ["diffusers", "AutoencoderKL"],
                "id2label": {"0": "a", "1": "b"},
            },
        ),
    ],
)
def test_the_index_of_a_pipeline(tmp_path, kind, given, scheduler, wanted):
    write_index(model(kind, **given), tmp_path, {"_class_name": scheduler})
    found = json.loads((tmp_path / "model_index.json").read_text())
    assert found.pop("_diffusers_version") and found == wanted
    write_index(model("Own"), tmp_path, {"_class_name": scheduler})
    assert not list(tmp_path.iterdir())  # what another model left is gone
    write_index(model("Own"), tmp_path, {"_class_name": scheduler})


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("clip", [True, False])
def test_a_classifier_is_written_whole_or_as_a_tower(monkeypatch, tmp_path, whole, clip):
    said = []
    for name in ("write_module", "write_clip", "write_tower"):
        monkeypatch.setattr(write, name, lambda *given, name=name: said.append((name, *given)))
    made = SimpleNamespace(vision="v")
    monkeypatch.setattr(write, "CLIP", SimpleNamespace if clip else clips.CLIP)
    write.write_classifier(made, tmp_path, "dtype", whole=whole)
    name = "write_module" if not clip else "write_clip" if whole else "write_tower"
    assert said == [(name, "v" if name == "write_tower" else made, tmp_path, "dtype")]
