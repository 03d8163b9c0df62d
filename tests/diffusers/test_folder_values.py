"""How parts of folders are called and described, value by value: networks, Flux's packs, VAEs,
shifts of a flow, pipelines (`diffusers/read/network.py`, `flux.py`, `vae.py`, `pipeline.py`,
`towers.py`).
"""

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from guidestar.core.levels import VE, VP, Flow, Level
from guidestar.diffusers.read import flux, towers, vae
from guidestar.diffusers.read import network as networks
from guidestar.diffusers.read import pipeline as pipelines
from guidestar.diffusers.read.network import Adapter, denoiser
from guidestar.diffusers.read.pipeline import READABLE, Readable, shift_of
from guidestar.diffusers.read.scheduler import Process
from guidestar.networks.low_resolution import LOW

F64 = torch.float64


class Recorded(nn.Module):
    """A network that answers with its input, and keeps how it was called."""

    def __init__(self, **config):
        super().__init__()
        self.config, self.calls = config, []

    def forward(self, sample, timestep, **more):
        self.calls.append((sample, timestep, more))
        return (sample,)


def named(name, **config) -> Any:
    return type(name, (Recorded,), {})(**config)


def process(**more: Any) -> Process:
    return Process(**{"schedule": VP.linear(), "predicts": "eps", **more})


# --- networks ---


@pytest.mark.parametrize(
    ("inputs", "outputs", "beside", "learned"),
    [(4, 4, 0, False), (4, 8, 0, True), (4, None, 0, False), (None, 8, 0, False),
     (None, None, 0, False), (6, 3, 3, False), (6, 6, 3, True), (1, 2, 0, True)],
)  # fmt: skip
def test_a_variance_is_learned_where_channels_are_twice_as_many(inputs, outputs, beside, learned):
    given = named("UNet2DModel", in_channels=inputs, out_channels=outputs)
    assert networks._learned_variance(given, beside) is learned
    assert denoiser(given, process(), beside).learned_variance is learned


def test_other_numbers_of_channels_are_refused():
    for inputs, outputs, beside in ((4, 6, 0), (4, 2, 0), (6, 8, 3)):
        given = named("UNet2DModel", in_channels=inputs, out_channels=outputs)
        line = f"takes {inputs - beside} channels and returns {outputs}; supported are as many"
        with pytest.raises(ValueError, match=line):
            networks._learned_variance(given, beside)
    assert networks._channels(nn.Linear(1, 1)) == (None, None)
    assert networks._channels(named("A", in_channels=3, out_channels=0)) == (3, 3)
    assert networks._channels(named("A", in_channels=3, out_channels=5)) == (3, 5)


def test_shapes_of_networks_of_pictures():
    given = lambda name, **config: networks._shape(named(name, **config))
    assert given("UNet2DModel", in_channels=3, sample_size=8) == (3, 8, 8)
    assert given("UNet2DModel", in_channels=3, sample_size=(8, 6)) == (3, 8, 6)
    assert given("UNet1DModel", in_channels=3, sample_size=8) is None
    assert given("UNet2DModel", sample_size=8) is None
    assert given("UNet2DModel", in_channels=3) is None
    both = named("UNet2DModel", in_channels=6, sample_size=8)
    assert networks._shape(both, 3) == (3, 8, 8)
    assert networks._shape(nn.Linear(1, 1)) is None  # type: ignore[arg-type]


def test_a_network_is_called_at_the_time_of_its_training():
    for name, scale, factor in (("UNet2DModel", 1000.0, 1000.0), ("UNet2DModel", 1.0, 1.0),
                                ("FluxTransformer2DModel", 1000.0, 1.0)):  # fmt: skip
        made = denoiser(named(name), process(time_scale=scale))
        assert float(made.time(torch.tensor(0.25))) == 0.25 * factor
    made = denoiser(named("UNet2DModel"), process(predicts="v", sigma_data=0.7))
    assert (made.predicts, made.sigma_data, made.learned_variance) == ("v", 0.7, False)
    own = named("Own", in_channels=4, out_channels=8)
    own.made_by = "m:f"
    made = denoiser(own, process(predicts="edm", sigma_data=0.7, time_scale=3.0))
    assert made.net is own and (made.predicts, made.sigma_data) == ("edm", 0.7)
    assert float(made.time(torch.tensor(2.0))) == 6.0 and not made.learned_variance
    with pytest.raises(ValueError, match="Linear is not a denoising network"):
        denoiser(nn.Linear(1, 1), process())


def test_how_conditions_reach_a_network():
    x, t = torch.ones(1, 1, 2, 2), torch.tensor([3.0])
    net = named("UNet2DConditionModel")
    Adapter(net)(x, t, encoder_hidden_states=t, text_embeds=x, time_ids=t)
    sample, time, more = net.calls[0]
    assert sample is x and time is t
    assert more == {"encoder_hidden_states": t, "added_cond_kwargs": {"text_embeds": x,
                                                                      "time_ids": t}}  # fmt: skip
    Adapter(net)(x, t, **{LOW: 2 * x}, class_labels=t)
    sample, _, more = net.calls[1]
    assert sample[0, :, 0, 0].tolist() == [1, 2] and more == {"class_labels": t}
    for kind, config, added in (
        ("PixArtTransformer2DModel", {}, {"resolution": None, "aspect_ratio": None}),
        ("PixArtTransformer2DModel", {"use_additional_conditions": True}, {"resolution": x}),
        ("Other", {}, {"resolution": x}),
    ):
        net = named(kind, **config)
        Adapter(net)(x, t, resolution=x)
        assert net.calls[0][2] == {"added_cond_kwargs": added}
    net = named("Other")
    Adapter(net)(x, t)
    assert net.calls[0][2] == {}


# --- Flux ---


def test_flux_takes_packs_with_their_places():
    x = torch.arange(2 * 2 * 4 * 6.0).view(2, 2, 4, 6)
    tokens = flux.pack(x)
    assert tokens.shape == (2, 6, 8)
    for k, (i, j) in enumerate((i, j) for i in range(2) for j in range(3)):
        wanted = x[1, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].reshape(-1)
        assert torch.equal(tokens[1, k], wanted)
    assert torch.equal(flux.unpack(tokens, 4, 6), x)
    found = flux.places(4, 6, x)
    assert found.tolist() == [[0, i, j] for i in range(2) for j in range(3)]
    assert found.dtype == x.dtype
    for shape, text in (((1, 1, 3, 4), "3×4"), ((1, 1, 4, 5), "4×5")):
        with pytest.raises(ValueError, match=f"their sides must be even, not {text}"):
            flux.pack(torch.zeros(shape))


def test_flux_is_called_with_its_text_at_no_place():
    class FluxTransformer2DModel(nn.Module):
        def forward(self, tokens, timestep, **more):
            calls.append((tokens, timestep, more))
            return SimpleNamespace(sample=2 * tokens)

    calls: list[Any] = []
    x, t, text = torch.randn(1, 1, 4, 2), torch.tensor([0.5]), torch.zeros(1, 7, 5)
    out = Adapter(FluxTransformer2DModel())(x, t, encoder_hidden_states=text)
    assert torch.equal(out, 2 * x)
    tokens, time, more = calls[0]
    assert tokens.shape == (1, 2, 4) and time is t
    assert more["encoder_hidden_states"] is text
    assert more["img_ids"].tolist() == [[0, 0, 0], [0, 1, 0]]
    assert more["txt_ids"].tolist() == [[0, 0, 0]] * 7 and more["txt_ids"].dtype == x.dtype


# --- VAEs ---


class AutoencoderKL(nn.Module):
    """Halves pictures into latents, and doubles them again."""

    def __init__(self, kind="posterior", dtype=torch.float32, **config):
        super().__init__()
        self.w = nn.Parameter(torch.ones((), dtype=dtype))
        self.config: Any = type("Config", (dict,), {"__getattr__": dict.__getitem__})(
            {"scaling_factor": 0.5, **config}
        )
        self.kind, self.types = kind, []

    @property
    def dtype(self):
        return self.w.dtype

    def decode(self, z, return_dict=True):
        self.types.append(z.dtype)
        return (2 * z,) if not return_dict else SimpleNamespace(sample=2 * z)

    def encode(self, x):
        self.types.append(x.dtype)
        if self.kind == "posterior":
            return SimpleNamespace(latent_dist=SimpleNamespace(mean=x / 2, mode=print))
        return SimpleNamespace(**{self.kind: x / 2})


def test_latents_are_scaled_as_a_vae_says():
    x = torch.tensor([0.1, -0.2]).view(1, 2, 1, 1)
    plain: Any = AutoencoderKL()
    assert vae.decoded(plain, x).flatten().tolist() == pytest.approx([0.4, -0.8])
    assert vae.encoded(plain, 4 * x).flatten().tolist() == pytest.approx([0.1, -0.2])
    spread: Any = AutoencoderKL(latents_mean=[0.5, 1.0], latents_std=[2.0, 4.0], shift_factor=0.25)
    wanted = [2 * (0.1 * 2 / 0.5 + 0.75), 2 * (-0.2 * 4 / 0.5 + 1.25)]
    assert vae.decoded(spread, x).flatten().tolist() == pytest.approx(wanted)
    back = vae.encoded(spread, vae.decoded(spread, x))
    assert back.flatten().tolist() == pytest.approx([0.1, -0.2])
    for kind in ("latents", "latent"):
        assert torch.equal(vae.encoded(AutoencoderKL(kind), 4 * x), vae.encoded(plain, 4 * x))  # type: ignore[arg-type]


def test_pictures_are_reconstructed_within_their_range():
    x = torch.tensor([0.3, -2.0, 5.0], dtype=F64).view(1, 3, 1, 1)
    made: Any = AutoencoderKL()
    found = vae.reconstructed(made, x)
    assert found.dtype == F64
    assert found.flatten().tolist() == pytest.approx([0.3, -1.0, 1.0])
    decoder = vae.Decoder(made)
    assert decoder(x).flatten().tolist() == pytest.approx([1.0, -1.0, 1.0])
    assert decoder(x / 10).flatten().tolist() == pytest.approx([0.12, -0.8, 1.0])
    assert decoder.differentiably(x).flatten().tolist() == pytest.approx([1.2, -8.0, 20.0])
    assert decoder.encode(x).flatten().tolist() == pytest.approx([0.075, -0.5, 1.25])
    assert all(found.dtype == F64 for found in (decoder(x), decoder.differentiably(x)))
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(decoder.differentiably(leaf).sum(), leaf)
    assert slope.flatten().tolist() == [4.0] * 3


@pytest.mark.parametrize("upcast", [True, False])
def test_a_vae_that_overflows_is_run_in_float32(upcast):
    made: Any = AutoencoderKL(dtype=torch.float16, force_upcast=upcast)
    x = torch.zeros(1, 1, 1, 1)
    vae.decoded(made, x)
    vae.encoded(made, x)
    assert made.types == [torch.float32 if upcast else torch.float16] * 2
    assert made.dtype == torch.float16
    full: Any = AutoencoderKL(force_upcast=True)
    vae.decoded(full, x)
    assert full.types == [torch.float32]


def test_a_classifier_gets_pictures_through_a_vae():
    class Inner:
        rho_max, classes = 3.0, ("a",)

        def log_prob(self, images, level, target):
            return images.flatten(1).sum(1) * target + level.sigma

    made = vae.ThroughDecoder(AutoencoderKL(), Inner())  # type: ignore[arg-type]
    assert made.rho_max is None and made.classes == ("a",)
    x = torch.tensor([[[[0.1]]], [[[0.2]]]], requires_grad=True)
    found = made.log_prob(x, Level(1.0, 0.5, 0.0), torch.tensor([1, 2]))
    assert found.tolist() == pytest.approx([0.4 + 0.5, 1.6 + 0.5])
    (slope,) = torch.autograd.grad(found.sum(), x)
    assert slope.flatten().tolist() == pytest.approx([4.0, 8.0])


def test_only_known_vaes_are_read():
    class AutoencoderOther(nn.Module):
        pass

    with pytest.raises(ValueError, match="how the latents of AutoencoderOther are packed and norm"):
        vae.Decoder(AutoencoderOther())  # type: ignore[arg-type]
    inner = SimpleNamespace(_orig_mod=AutoencoderKL())
    vae.check_known(inner)
    derived = type("Derived", (AutoencoderKL,), {})
    vae.check_known(derived())


# --- pipelines ---


def test_pipelines_that_are_read():
    rows = {n: (r.guidance, r.prompts, r.patch) for n, r in READABLE.items()}
    assert rows == {
        "StableDiffusionPipeline": ("cfg(7.5)", True, 1),
        "StableDiffusionXLPipeline": ("cfg(5)", True, 1),
        "StableDiffusion3Pipeline": ("cfg(7)", True, 2),
        "FluxPipeline": ("cond", True, 2),
        "PixArtAlphaPipeline": ("cfg(4.5)", True, 2),
        "PixArtSigmaPipeline": ("cfg(4.5)", True, 2),
        "DiTPipeline": ("cfg(4)", False, 1),
        "DDPMPipeline": ("uncond", False, 1),
        "DDIMPipeline": ("uncond", False, 1),
    }


def index(folder, **about):
    (folder / "model_index.json").write_text(json.dumps(about))


def test_the_family_that_an_index_names(tmp_path):
    assert pipelines.readable_of(tmp_path) is None
    index(tmp_path)
    assert pipelines.readable_of(tmp_path) is None
    index(tmp_path, _class_name="FluxPipeline", force_zeros_for_empty_prompt=True)
    assert pipelines.readable_of(tmp_path) is READABLE["FluxPipeline"]
    index(tmp_path, _class_name="OtherPipeline")
    with pytest.raises(
        ValueError, match=r"an? '?OtherPipeline'? is not read as a model; these are"
    ):
        pipelines.readable_of(tmp_path)
    index(tmp_path, force_zeros_for_empty_prompt="x")
    with pytest.raises(ValueError, match="force_zeros_for_empty_prompt"):
        pipelines.readable_of(tmp_path)


def test_how_many_pixels_make_a_latent(tmp_path):
    assert pipelines._factor(tmp_path) == 1
    (tmp_path / "vae").mkdir()
    for widths, factor in (([8], 1), ([8, 8], 2), ([1, 2, 3, 4], 8)):
        (tmp_path / "vae" / "config.json").write_text(json.dumps({"block_out_channels": widths}))
        assert pipelines._factor(tmp_path) == factor
    (tmp_path / "vae" / "config.json").write_text("{}")
    assert pipelines._factor(tmp_path) == 1
    for widths in ([0], [65_537], [], [1] * 17):
        (tmp_path / "vae" / "config.json").write_text(json.dumps({"block_out_channels": widths}))
        with pytest.raises(ValueError, match="block_out_channels"):
            pipelines._factor(tmp_path)


def parts(net, shape=None, encoder=None, schedule=None) -> Any:
    adapter = Adapter(net)
    made = SimpleNamespace(net=adapter)
    return SimpleNamespace(denoiser=made, shape=shape, encoder=encoder, schedule=schedule)


def flux_net(**config):
    net = named("FluxTransformer2DModel")
    net.config = SimpleNamespace(in_channels=64, **config)
    return net


def test_the_shape_of_a_size_in_pixels(tmp_path):
    (tmp_path / "vae").mkdir()
    text = json.dumps({"block_out_channels": [1, 1, 1, 1]})
    (tmp_path / "vae" / "config.json").write_text(text)
    family = Readable(guidance="cond", patch=2)
    made = lambda size, shape=None: pipelines._shape(
        tmp_path, parts(flux_net(), shape), family, size
    )
    assert made(None) == (16, 128, 128) and made(None, (4, 32, 16)) == (4, 32, 16)
    assert made((64, 32)) == (16, 8, 4) and made((16, 48), (4, 9, 9)) == (4, 2, 6)
    for size in ((64, 24), (8, 64), (0, 16), (-16, 16)):
        line = f"height and width must be multiples of 16 pixels, not {size[0]}×{size[1]}"
        with pytest.raises(ValueError, match=line):
            made(size)
    for odd in (64, (64,), (64, 64, 64), (64.0, 64), "64"):
        with pytest.raises(ValueError, match="size must be height and width in pixels"):
            made(odd)


def test_networks_that_take_a_scale_with_their_time(tmp_path):
    pipelines._refuse_embedded_guidance(tmp_path, named("A"))
    pipelines._refuse_embedded_guidance(tmp_path, named("A", time_cond_proj_dim=None))
    with pytest.raises(ValueError, match=r"time_cond_proj_dim.*, which is not supported"):
        pipelines._refuse_embedded_guidance(tmp_path, named("A", time_cond_proj_dim=0))


@pytest.mark.parametrize("name", ["StableDiffusionXLPipeline", "StableDiffusion3Pipeline",
                                  "FluxPipeline", "PixArtAlphaPipeline", "PixArtSigmaPipeline",
                                  "StableDiffusionPipeline"])  # fmt: skip
@pytest.mark.parametrize("more", [False, True])
def test_what_makes_a_pipelines_conditions(monkeypatch, tmp_path, name, more):
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"block_out_channels": [1, 1, 1]}))
    index(tmp_path, _class_name=name, **({"force_zeros_for_empty_prompt": False} if more else {}))
    for reader in ("read_clip_text", "read_t5_text"):
        monkeypatch.setattr(pipelines, reader, lambda *given, reader=reader: (reader, *given))
    for text in ("SDXLText", "SD3Text", "FluxText", "PixArtText"):
        monkeypatch.setattr(
            pipelines, text, lambda *given, text=text, **named: (text, *given, named)
        )
    if more:
        (tmp_path / "text_encoder_3").mkdir()
    net = named("N")
    net.config = SimpleNamespace(joint_attention_dim=11, guidance_embeds=more)
    net.use_additional_conditions = more
    kept = object()
    given = parts(net, (4, 8, 6), kept if more else None)
    dtype = torch.float16
    clip = lambda part: ("read_clip_text", tmp_path, part, dtype)
    t5 = lambda part, length: ("read_t5_text", tmp_path, part, length, dtype)
    size = (32, 24)
    found = lambda: pipelines._encoder(tmp_path, net, given, dtype)
    wanted: Any = {
        "StableDiffusionXLPipeline": (
            "SDXLText", clip(""), clip("_2"), {"size": size, "zeros": not more}),
        "StableDiffusion3Pipeline": (
            "SD3Text", clip(""), clip("_2"), t5("_3", 256) if more else None, {"width": 11}),
        "FluxPipeline": (
            "FluxText", clip(""), t5("_2", 512), {"distilled": 3.5 if more else None}),
        "PixArtAlphaPipeline": ("PixArtText", t5("", 120), {"size": size if more else None}),
        "PixArtSigmaPipeline": ("PixArtText", t5("", 300), {"size": size if more else None}),
    }  # fmt: skip
    if name in wanted:
        assert found() == wanted[name]
    elif more:
        assert found() is None
    else:
        with pytest.raises(ValueError, match="holds no text encoder that is read; a StableDiff"):
            found()


def test_a_pipeline_is_put_together(monkeypatch, tmp_path):
    from guidestar.diffusers.read.network import Parts

    net = flux_net()
    net.config = type("Config", (dict,), {"__getattr__": dict.__getitem__})(in_channels=64)
    made: Any = SimpleNamespace(net=Adapter(net))
    flow = Flow()
    whole = Parts(denoiser=made, schedule=flow, shape=None, encoder=None, predicts="velocity",
                  folder=tmp_path)  # fmt: skip
    calls: list[Any] = []
    note = lambda name, answer: lambda *a, **k: calls.append((name, a, k)) or answer
    monkeypatch.setattr(pipelines, "read_parts", note("read", whole))
    monkeypatch.setattr(pipelines, "_encoder", note("encoder", "text"))
    monkeypatch.setattr(pipelines, "_shift", note("shift", "shifted"))
    index(tmp_path, _class_name="FluxPipeline")
    found = pipelines.read_pipeline(str(tmp_path), size=(64, 32), dtype=torch.float16)
    assert (found.encoder, found.schedule, found.shape) == ("text", "shifted", (16, 64, 32))
    assert [name for name, *_ in calls] == ["read", "encoder", "shift"]
    assert calls[0][1:] == ((tmp_path,), {"dtype": torch.float16})
    _, (folder, network, given, dtype), _ = calls[1]
    assert (folder, network, given.shape, dtype) == (tmp_path, net, (16, 64, 32), torch.float16)
    assert calls[2][1] == (flow, tmp_path, (16, 64, 32), 2)
    monkeypatch.setattr(pipelines, "_encoder", note("encoder", None))
    assert pipelines.read_pipeline(tmp_path).encoder is None
    for about in ({"_class_name": "DDPMPipeline"}, {}):
        index(tmp_path, **about)
        assert pipelines.read_pipeline(tmp_path) is whole
        with pytest.raises(ValueError, match="size= is for pipelines that take a prompt"):
            pipelines.read_pipeline(tmp_path, size=(8, 8))


def test_a_shift_is_on_the_line_through_two_sizes(tmp_path):
    about = {"base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256,
             "max_image_seq_len": 4096}  # fmt: skip
    assert shift_of(about, 256) == pytest.approx(0.5)
    assert shift_of(about, 4096) == pytest.approx(1.15)
    assert shift_of(about, 1024) == pytest.approx(0.5 + 0.65 * 768 / 3840)
    (tmp_path / "scheduler").mkdir()
    file = tmp_path / "scheduler" / "scheduler_config.json"
    flow, table = Flow(), VE(t_min=0.1, t_max=9.0)
    given = lambda schedule, patch=2: pipelines._shift(schedule, tmp_path, (16, 64, 32), patch)
    assert given(flow) is flow
    name = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    for more, wanted in (
        ({"use_dynamic_shifting": False}, 0.0),
        ({"use_dynamic_shifting": True}, math.exp(0.5 + 0.65 * (512 - 256) / 3840)),
        ({"use_dynamic_shifting": True, "time_shift_type": "linear"}, 0.5 + 0.65 * 256 / 3840),
    ):
        file.write_text(json.dumps({**name, **about, **more}))
        found: Any = given(flow)
        assert found is flow if not wanted else found.shift == pytest.approx(wanted)
        assert given(table) is table
    found = given(flow, 1)
    assert found.shift == pytest.approx(0.5 + 0.65 * (2048 - 256) / 3840)


# --- towers ---


def test_an_encoder_is_tried_as_it_will_be_called():
    calls: list[Any] = []

    class Tower:
        def __init__(self, **config):
            self.config = SimpleNamespace(**config)

        def __call__(self, *given, **more):
            calls.append((given, more, torch.is_grad_enabled()))

    for most, length in (({}, 4), ({"max_position_embeddings": 3}, 3),
                         ({"max_position_embeddings": 77}, 4)):  # fmt: skip
        calls.clear()
        towers._try_call(Tower(**most))  # type: ignore[arg-type]
        (first, second) = calls
        (ids,), more, grad = second
        assert first[0][0].shape == ids.shape == (1, length) and first[1] == {}
        assert ids.device.type == "meta" and ids.dtype == torch.int64 and not grad
        assert set(more) == {"attention_mask", "output_hidden_states"}
        assert more["attention_mask"].shape == (1, length) and more["output_hidden_states"] is True
    calls.clear()
    towers._try_call(Tower(image_size=6, num_channels=2))  # type: ignore[arg-type]
    ((given, more, _),) = calls
    assert given == () and more["pixel_values"].shape == (1, 2, 6, 6)
    assert more["pixel_values"].device.type == "meta"


def test_the_classes_that_an_encoders_settings_name(tmp_path):
    file = tmp_path / "config.json"
    assert towers.architectures(file, {}) == towers.architectures(file, {"architectures": None})
    assert towers.architectures(file, {"architectures": ["A", "B"]}) == ["A", "B"]
    with pytest.raises(ValueError, match="architectures"):
        towers.architectures(file, {"architectures": "A"})
