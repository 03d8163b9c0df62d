"""Loading Diffusers folders: what is read equals the original network, its scheduler and its
sampling loop.
"""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import diffusers
from diffusers import (
    DDIMScheduler,
    DiTTransformer2DModel,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DConditionModel,
    UNet2DModel,
)
from guidestar import VE, VP, Condition, Draw, Flow, Grid, Guided, leading, sample
from guidestar.core.levels import Level
from guidestar.core.prediction import Prediction
from guidestar.diffusers.guide.levels import read_timetable
from guidestar.diffusers.read.network import Process, denoiser, read_parts, read_scheduler
from guidestar.diffusers.read.safetensors_io import read_network
from guidestar.diffusers.read.scheduler import KINDS
from guidestar.networks.condition_encoders import ClassEncoder

# Diffusers 0.42's own Euler and Heun schedulers, with numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BLOCKS = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 8,
}
NAMES = ("tench, tinca tinca", "Cock", "hen")
BATCH = 3
WIDTH = 32
SEEDS = [4, 5, 6]


def unet(**more):
    torch.manual_seed(0)
    blocks = {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 8,
    }
    return UNet2DModel(in_channels=2, out_channels=2, **blocks, **BLOCKS, **more).eval()


def conditional_unet(**more):
    torch.manual_seed(1)
    blocks = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 2,
    }
    return UNet2DConditionModel(
        in_channels=2, out_channels=2, cross_attention_dim=8, **blocks, **BLOCKS, **more
    ).eval()


def dit(**more):
    torch.manual_seed(2)
    sizes = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 1,
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 2,
    }
    return DiTTransformer2DModel(
        out_channels=4, num_embeds_ada_norm=len(NAMES), **sizes, **more
    ).eval()


def save_labels(folder):
    (folder / "model_index.json").write_text(
        json.dumps({"id2label": {str(i): n for i, n in enumerate(NAMES)}})
    )


def make_plain(folder):
    net = unet()
    net.save_pretrained(folder / "unet")
    return net, None, None


def make_labels(folder):
    net = unet(num_class_embeds=len(NAMES) + 1)
    net.save_pretrained(folder / "unet")
    save_labels(folder)
    return (
        net,
        {"class_labels": torch.tensor([2, 0, 1])},
        {"class_labels": torch.full((BATCH,), len(NAMES))},
    )


def make_identity(folder):
    net = unet(class_embed_type="identity")
    net.save_pretrained(folder / "unet")
    torch.manual_seed(3)
    encoder = ClassEncoder(["tench", "cock", "hen"], WIDTH)
    encoder.save_pretrained(folder / "condition")
    rows = encoder.table.weight.detach()
    return net, {"class_labels": rows[[2, 0, 1]]}, {"class_labels": rows[[3, 3, 3]]}


def make_dit(folder):
    net = dit()
    net.save_pretrained(folder / "transformer")
    save_labels(folder)
    return (
        net,
        {"class_labels": torch.tensor([2, 0, 1])},
        {"class_labels": torch.full((BATCH,), len(NAMES))},
    )


def save_clip(folder):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    vocab = {
        t: i
        for i, t in enumerate(
            [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
        )
    }
    torch.manual_seed(4)
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": len(vocab),
    }
    ends = {
        "bos_token_id": vocab["<|startoftext|>"],
        "eos_token_id": vocab["<|endoftext|>"],
        "pad_token_id": vocab["<|endoftext|>"],
    }
    text = CLIPTextModel(CLIPTextConfig(**sizes, **ends)).eval()
    text.save_pretrained(folder / "text_encoder")
    CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77).save_pretrained(folder / "tokenizer")
    return text, vocab


@torch.no_grad()
def encode_by_hand(text, vocab, prompts):
    """Start, letters (the last of each word marked), end, and the padding, which is the end
    again.
    """
    rows = []
    for prompt in prompts:
        ids = [
            vocab[c + ("</w>" if i == len(word) - 1 else "")]
            for word in prompt.split()
            for i, c in enumerate(word)
        ]
        ids = [vocab["<|startoftext|>"], *ids][:76]
        rows.append(ids + [vocab["<|endoftext|>"]] * (77 - len(ids)))
    return text(torch.tensor(rows)).last_hidden_state


def make_text(folder):
    net = conditional_unet()
    net.save_pretrained(folder / "unet")
    text, vocab = save_clip(folder)
    return (
        net,
        {"encoder_hidden_states": encode_by_hand(text, vocab, ["hen", "tench", "cock"])},
        {"encoder_hidden_states": encode_by_hand(text, vocab, [""] * 3)},
    )


FAMILIES = {
    "plain": make_plain,
    "labels": make_labels,
    "identity": make_identity,
    "dit": make_dit,
    "text": make_text,
}
REQUEST = ["hen", "tench", "cock"]


def ddim(kind, **more):
    return DDIMScheduler(prediction_type=kind, clip_sample=False, steps_offset=0, **more)


def euler(kind, **more):
    return EulerDiscreteScheduler(
        prediction_type=kind,
        timestep_spacing="leading",
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        **more,
    )


def noise(channels=2):
    return torch.randn(BATCH, channels, 8, 8, generator=torch.Generator().manual_seed(9))


def bars(start=1e-4, end=0.02, scaled=False):
    power = 0.5 if scaled else 1.0
    return (
        1 - torch.linspace(start**power, end**power, 1000, dtype=torch.float64) ** (1 / power)
    ).cumprod(0)


def clean(kind, x, out, alpha, sigma):
    """The clean estimate written out, with alpha and sigma as [B, 1, 1, 1]."""
    if kind == "epsilon":
        return (x - sigma * out) / alpha
    if kind == "v_prediction":
        return alpha * x - sigma * out
    return out if kind == "sample" else x - sigma * out


def close(a, b, tolerance=1e-5):
    return float((a - b).abs().max()) <= tolerance * float(b.abs().max())


def x0(answer):
    return answer.x0 if isinstance(answer, Prediction) else answer


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow"])
@pytest.mark.parametrize("family", FAMILIES)
def test_denoiser_is_the_formula_on_the_original_network(family, kind, tmp_path):
    net, cond, _ = FAMILIES[family](tmp_path)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0) if kind == "flow" else ddim(kind)
    scheduler.save_pretrained(tmp_path / "scheduler")
    parts = read_parts(tmp_path)
    assert parts.shape == (2, 8, 8)
    x, t = noise(), torch.tensor([3, 400, 900])
    if kind == "flow":
        sigma = t.double() / 1000
        alpha, level = 1 - sigma, parts.schedule(t.double() / 1000)
    else:
        bar = bars()[t]
        alpha, sigma, level = bar.sqrt(), (1 - bar).sqrt(), parts.schedule(t.double())
    with torch.no_grad():
        out = net(x, timestep=t, **(cond or {})).sample
        answer = parts.denoiser(x, level, parts.encoder.encode(REQUEST) if cond else Condition())
    alpha, sigma = (v.float()[:, None, None, None] for v in (alpha, sigma))
    assert close(x0(answer), clean(kind, x, out[:, :2], alpha, sigma), 1e-6)
    if family == "dit":
        assert close(answer.log_var, out[:, 2:], 1e-6)
    assert not any(p.requires_grad for p in parts.denoiser.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_network_is_the_original(family, tmp_path):
    net, cond, _ = FAMILIES[family](tmp_path)
    again = read_network(tmp_path)
    inner = read_network(tmp_path / ("transformer" if family == "dit" else "unet"))
    for t in (torch.tensor([0, 7, 999]), torch.tensor([1.5, 20.25, 998.75])):
        with torch.no_grad():
            expected = net(noise(), timestep=t, **(cond or {})).sample
            for network in (again, inner):
                assert torch.equal(network(noise(), timestep=t, **(cond or {})).sample, expected)
    assert type(again) is type(net)
    assert not again.training


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_times_stay_exact_in_any_dtype(dtype, tmp_path):
    net, cond, _ = make_labels(tmp_path)
    ddim("sample").save_pretrained(tmp_path / "scheduler")
    parts = read_parts(tmp_path, dtype=dtype)
    with torch.no_grad():
        answer = parts.denoiser(noise(), parts.schedule(999.0), Condition(cond))
        out = net.to(dtype)(noise().to(dtype), torch.full((BATCH,), 999), **cond).sample
    assert answer.dtype == torch.float32
    assert torch.equal(answer, out.float())


def test_mixed_precision_of_conditions(tmp_path):
    net, cond, _ = make_text(tmp_path)
    ddim("sample").save_pretrained(tmp_path / "scheduler")
    parts = read_parts(tmp_path, dtype=torch.bfloat16)
    with torch.no_grad():
        answer = parts.denoiser(noise(), parts.schedule(999.0), Condition(cond))
        out = net.to(torch.bfloat16)(
            noise().bfloat16(), 999, cond["encoder_hidden_states"].bfloat16()
        ).sample
    assert torch.equal(answer, out.float())


def test_encoder_of_text(tmp_path):
    from transformers import CLIPTextModel

    make_text(tmp_path)
    ddim("epsilon").save_pretrained(tmp_path / "scheduler")
    encoder = read_parts(tmp_path).encoder
    original = CLIPTextModel.from_pretrained(
        tmp_path / "text_encoder", local_files_only=True
    ).eval()
    long = "abc " * 40
    tokens = encoder.tokenizer(
        ["a red apple", "", long],
        padding="max_length",
        max_length=77,
        truncation=True,
        return_tensors="pt",
    )
    with pytest.warns(UserWarning, match=r"longer than the 77 tokens .* cut after '.*abc abc'"):
        states = encoder.encode(["a red apple", "", long])["encoder_hidden_states"]
    with torch.no_grad():
        assert torch.equal(states, original(tokens.input_ids).last_hidden_state)
    assert states.shape == (3, 77, 8)
    assert torch.equal(
        encoder.null(2)["encoder_hidden_states"][1],
        encoder.encode([""])["encoder_hidden_states"][0],
    )


def test_text_encoder_with_older_names(tmp_path):
    make_text(tmp_path)
    ddim("epsilon").save_pretrained(tmp_path / "scheduler")
    expected = read_parts(tmp_path).encoder.encode(["hen"])["encoder_hidden_states"]
    file = tmp_path / "text_encoder" / "model.safetensors"
    older = {"text_model." + name: tensor for name, tensor in load_file(file).items()}
    save_file({**older, "text_model.embeddings.position_ids": torch.arange(77)[None]}, file)
    assert torch.equal(
        read_parts(tmp_path).encoder.encode(["hen"])["encoder_hidden_states"], expected
    )


def test_class_labels(tmp_path):
    make_dit(tmp_path)
    ddim("epsilon").save_pretrained(tmp_path / "scheduler")
    encoder = read_parts(tmp_path).encoder
    assert encoder.classes == NAMES
    assert [encoder.index(n) for n in ("Tinca Tinca", "tench", NAMES[0], "cock", 2, "2", "")] == [
        0,
        0,
        0,
        1,
        2,
        2,
        3,
    ]
    assert encoder.null(2)["class_labels"].tolist() == [3, 3]
    for wrong in ("dog", 3, "3", -1, "tin"):
        with pytest.raises(
            ValueError,
            match=r"unknown class .*; the 3 classes are 0 tench, tinca tinca, 1 Cock, 2 hen",
        ):
            encoder.index(wrong)


def test_a_table_without_a_null_has_none(tmp_path):
    unet(num_class_embeds=12).save_pretrained(tmp_path / "unet")
    ddim("epsilon").save_pretrained(tmp_path / "scheduler")
    parts = read_parts(tmp_path)
    assert parts.encoder.classes == tuple(map(str, range(12)))
    assert parts.encoder.null(2) is None
    with pytest.raises(ValueError, match=r"unknown class ''; the 12 classes are .*, 9 9, …"):
        parts.encoder.index("")
    guided = Guided(
        "cfg(2)", parts.denoiser, cond=parts.encoder.encode(["1"]), null=parts.encoder.null(1)
    )
    with pytest.raises(ValueError, match="the model has no null condition"):
        sample(guided, grid=leading(parts.schedule, 2), solver="ddim", seeds=[0], shape=parts.shape)


def test_the_users_own_conditions(tmp_path):
    """SDXL's U-Net takes two of its conditions in a dictionary; without a known encoder there is
    none.
    """
    net = conditional_unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=8 + 6 * 4,
    )
    net.save_pretrained(tmp_path / "unet")
    ddim("sample").save_pretrained(tmp_path / "scheduler")
    parts = read_parts(tmp_path)
    states, pooled, ids = torch.randn(BATCH, 5, 8), torch.randn(BATCH, 8), torch.randn(BATCH, 6)
    with torch.no_grad():
        expected = net(
            noise(), 40, states, added_cond_kwargs={"text_embeds": pooled, "time_ids": ids}
        ).sample
        answer = parts.denoiser(
            noise(),
            parts.schedule(40.0),
            Condition(encoder_hidden_states=states, text_embeds=pooled, time_ids=ids),
        )
    assert parts.encoder is None
    assert torch.equal(answer, expected)
    with pytest.raises(TypeError, match="encoder_hiden_states"):
        parts.denoiser(noise(), parts.schedule(40.0), Condition(encoder_hiden_states=states))


# --- whole runs ---


def both(net, x, t, *, cond, null, scale):
    """Diffusers' way: one concatenated batch, and the null pushed towards the condition."""
    if cond is None:
        return net(x, timestep=t).sample[:, :2]
    joined = {k: torch.cat([null[k], cond[k]]) for k in cond}
    without, with_it = (
        net(torch.cat([x, x]), timestep=t.expand(2 * len(x)), **joined).sample[:, :2].chunk(2)
    )
    return without + scale * (with_it - without)


@torch.no_grad()
def run_by_hand(net, scheduler, x, steps, **guidance):
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(both(net, scaled, t, **guidance), t, x).prev_sample
    return x


def run(parts, grid, scale):
    if parts.encoder is None:
        guided = Guided("uncond", parts.denoiser)
    else:
        guided = Guided(
            f"cfg({scale})",
            parts.denoiser,
            cond=parts.encoder.encode(REQUEST),
            null=parts.encoder.null(BATCH),
        )
    return sample(guided, grid=grid, solver="ddim", seeds=SEEDS, shape=parts.shape)


RUNS = {
    "ddim-eps": ddim("epsilon"),
    "ddim-v-zero-snr": ddim(
        "v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    ),
    "euler-eps": euler("epsilon"),
    "euler-v": euler("v_prediction"),
    "flow": FlowMatchEulerDiscreteScheduler(shift=3.0),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("family", FAMILIES)
def test_guided_run_equals_diffusers_loop(family, name, tmp_path):
    scheduler, steps, scale = RUNS[name], 5, 2.5
    net, cond, null = FAMILIES[family](tmp_path)
    scheduler.save_pretrained(tmp_path / "scheduler")
    parts = read_parts(tmp_path)
    scheduler.set_timesteps(steps)
    if name == "flow":
        grid = Grid(
            levels=tuple(parts.schedule(s) for s in scheduler.sigmas.tolist()),
            schedule=parts.schedule,
        )
    else:
        grid = Grid(
            levels=(*(parts.schedule(float(t)) for t in scheduler.timesteps), parts.schedule.clean),
            schedule=parts.schedule,
        )
    start = Draw(SEEDS).at(-1).normal("start", parts.shape) * grid[0].sigma
    start = start / grid[0].alpha if name.startswith("euler") else start
    assert close(
        run(parts, grid, scale),
        run_by_hand(net, scheduler, start, steps, cond=cond, null=null, scale=scale),
    )


def test_edm_network(tmp_path):
    """c_skip, c_in, c_out and c_noise of table 1 of Karras et al., written out."""
    net = unet()
    net.save_pretrained(tmp_path)
    diffusers.EDMEulerScheduler(sigma_data=0.7, sigma_min=0.01, sigma_max=50.0).save_pretrained(
        tmp_path / "scheduler"
    )
    parts = read_parts(tmp_path)
    rho, d, x = 2.5, 0.7, 3 * noise()
    total = rho**2 + d**2
    with torch.no_grad():
        out = net(x / total**0.5, torch.full((BATCH,), rho).log() / 4).sample
        assert close(
            parts.denoiser(x, parts.schedule(rho), Condition()),
            d**2 / total * x + rho * d / total**0.5 * out,
            1e-6,
        )
    assert parts.predicts == "edm"
    assert parts.schedule == VE(t_min=0.01, t_max=50.0)


# --- schedulers ---


def spell(folder, **config):
    (folder / "scheduler_config.json").write_text(json.dumps(config))
    return read_scheduler(folder)


TABLES = [name for name, kind in KINDS.items() if kind not in ("edm", "flow")]
COSINE = "UnCLIPScheduler"


@pytest.mark.parametrize("name", [n for n in TABLES if n != COSINE])
def test_every_scheduler_of_betas(name, tmp_path):
    more = {"snr_shift_scale": 1.0} if name.startswith("CogVideoX") else {}
    told = spell(
        tmp_path,
        _class_name=name,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        num_train_timesteps=1000,
        prediction_type="v_prediction",
        **more,
    )
    assert isinstance(told.schedule, VP)
    assert told.predicts == "v"
    assert torch.tensor(told.schedule.alphas_cumprod, dtype=torch.float64).allclose(
        bars(0.00085, 0.012, scaled=True), rtol=1e-12
    )


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 300},
        {"beta_schedule": "sigmoid"},
        {"trained_betas": [0.1, 0.2, 0.3, 0.2]},
        {"rescale_betas_zero_snr": True},
    ],
)
def test_tables_are_those_of_diffusers(config, tmp_path):
    scheduler = diffusers.DDPMScheduler(**config)
    scheduler.save_pretrained(tmp_path)
    told = read_scheduler(tmp_path)
    level = told.schedule(told.schedule.t_max)
    assert told.predicts == "eps"
    assert torch.tensor(told.schedule.alphas_cumprod).allclose(
        scheduler.alphas_cumprod, rtol=2e-5, atol=1e-8
    )
    assert (level.alpha == 0) == bool(config.get("rescale_betas_zero_snr"))


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
@pytest.mark.parametrize("name", KINDS)
def test_what_is_loaded_can_be_guided_and_the_other_way_round(name, tmp_path):
    """Of each scheduler that is known: the levels at its timesteps are those of the process that it
    tells.
    """
    kind = getattr(diffusers, name)
    if "torchsde" in getattr(kind, "_backends", ()):
        pytest.skip(f"{name} needs torchsde")
    scheduler = kind()
    scheduler.save_pretrained(tmp_path)
    if name == "CosineDPMSolverMultistepScheduler":
        with pytest.raises(ValueError, match="which only its pipeline does: guide that"):
            read_scheduler(tmp_path)
        return
    process = read_scheduler(tmp_path)
    scheduler.set_timesteps(7)
    table = read_timetable(scheduler)
    assert len(table.times) >= 7 and len(table.levels) >= len(table.times)
    for t, level in zip(table.times, table.levels, strict=False):
        if KINDS[name] in ("by time", "on ratios", "scaled") and t == round(t):
            assert float(level.rho) == pytest.approx(float(process.schedule(t).rho), rel=1e-3), t
        if KINDS[name] == "flow":
            assert float(level.sigma) == pytest.approx(t / 1000, rel=1e-5)
        if KINDS[name] == "inverted":
            told = process.schedule(float(max(0, t - 1000 // 7)))
            assert float(level.rho) == pytest.approx(float(told.rho), rel=1e-3)
        if KINDS[name] == "edm":
            assert float(level.rho) == pytest.approx(math.exp(4 * t), rel=1e-4)


@pytest.mark.parametrize(
    "name", ["DDPMScheduler", "HeunDiscreteScheduler", "CogVideoXDDIMScheduler", "UnCLIPScheduler"]
)
def test_missing_keys_are_the_defaults_of_the_class(name, tmp_path):
    expected = getattr(diffusers, name)()
    table = torch.tensor(spell(tmp_path, _class_name=name).schedule.alphas_cumprod)
    assert table.allclose(expected.alphas_cumprod.float(), rtol=2e-5)


def test_flows(tmp_path):
    for name in (n for n, kind in KINDS.items() if kind == "flow"):
        assert spell(tmp_path, _class_name=name, shift=3.0) == Process(
            schedule=Flow(shift=3.0), predicts="velocity", time_scale=1000.0
        )
    flow = spell(
        tmp_path,
        _class_name="UniPCMultistepScheduler",
        use_flow_sigmas=True,
        flow_shift=2,
        prediction_type="flow_prediction",
    )
    assert flow == Process(schedule=Flow(shift=2.0), predicts="velocity", time_scale=1000.0)
    for name in ("EDMDPMSolverMultistepScheduler", "EDMEulerScheduler"):
        assert spell(tmp_path, _class_name=name).schedule == VE()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"_class_name": "VQDiffusionScheduler"},
            r"'VQDiffusionScheduler' is not supported; these are: CogVideoXDDIMScheduler, "
            r".*UniPCMultistepScheduler$",
        ),
        ({}, "None is not supported"),
        (
            {"_class_name": "DDPMScheduler", "beta_schedule": "laplace"},
            r"'laplace' is not supported; these are: linear, scaled_linear",
        ),
        (
            {"_class_name": "DDPMScheduler", "prediction_type": "noise"},
            r"'noise' is not supported; these are: epsilon, v_prediction",
        ),
        ({"_class_name": "DDPMScheduler", "beta_end": "large"}, "scheduler_config.json: "),
        (
            {"_class_name": "DDPMScheduler", "trained_betas": [0.5, 1.5]},
            "trained_betas must be a list of 1 to 1,000,000 values, each a number from 0 to 1, "
            "or null, not",
        ),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "flow_prediction"},
            "needs use_flow_sigmas",
        ),
        (
            {"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"},
            "'continuous' is not supported",
        ),
        (
            {"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"},
            "of an EDM scheduler is not supported",
        ),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True},
            "invert_sigmas",
        ),
    ],
)
def test_schedulers_that_are_refused(config, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        spell(tmp_path, **config)
    refused(caught, tmp_path / "scheduler_config.json")


# --- files ---


def refused(caught, file):
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def folder(tmp_path):
    make_dit(tmp_path)
    ddim("epsilon").save_pretrained(tmp_path / "scheduler")
    return tmp_path


def rewrite(file, change):
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
FIRST = "pos_embed.proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.update({FIRST: torch.zeros(3, 3)}),
            rf"'{FIRST}' has the shape \(3, 3\), but the network expects \(16, 2, 2, 2\)",
        ),
        (lambda t: t.pop(FIRST), rf"'{FIRST}' is missing"),
        (lambda t: t.update(extra=torch.zeros(1)), "'extra' is unexpected"),
        (lambda t: t.update({FIRST: t[FIRST].to(torch.int8)}), rf"'{FIRST}' holds torch.int8"),
    ],
)
def test_wrong_tensors(change, message, folder):
    rewrite(folder / WEIGHTS, change)
    with pytest.raises(ValueError, match=message) as caught:
        read_parts(folder)
    refused(caught, folder / WEIGHTS)


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_truncated_weights(keep, folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:keep])
    with pytest.raises(ValueError, match="truncated or corrupt") as caught:
        read_parts(folder)
    refused(caught, folder / WEIGHTS)


def test_corrupt_weights(folder):
    (folder / WEIGHTS).write_bytes(b"\xff" * 4096)
    with pytest.raises(ValueError, match="truncated or corrupt"):
        read_parts(folder)


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.pt", "x.pth", "x.ckpt"])
def test_pickles_are_never_read(name, folder):
    (folder / WEIGHTS).rename(folder / "transformer" / name)
    with pytest.raises(
        ValueError,
        match=r"not read; (save them again with save_pretrained\(…, "
        r"safe_serialization=True\)|write them anew with: python -c )",
    ) as caught:
        read_parts(folder)
    refused(caught, folder / "transformer" / name)


def test_no_weights(folder):
    (folder / WEIGHTS).unlink()
    with pytest.raises(
        ValueError, match=r"holds no weights; expected diffusion_pytorch_model.safetensors"
    ):
        read_parts(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not readable as JSON"),
        ("[]", "should hold a JSON object, not a list"),
        ("{}", "None"),
        ('{"_class_name": ["x"]}', "is not a network of this Diffusers version"),
        (
            '{"_class_name": "NoSuchModel"}',
            "'NoSuchModel' .* is not a network of this Diffusers version",
        ),
        ('{"_class_name": "DDIMScheduler"}', "'DDIMScheduler' .* is not a network"),
        (
            '{"_class_name": "UNet2DModel", "block_out_channels": "wide"}',
            "UNet2DModel refuses these settings",
        ),
    ],
)
def test_wrong_settings(text, message, folder):
    (folder / "transformer" / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_parts(folder)
    refused(caught, folder / "transformer" / "config.json")


def test_networks_that_do_not_denoise(tmp_path):
    diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).save_pretrained(tmp_path)
    ddim("epsilon").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="AutoencoderKL is not a denoising network") as caught:
        read_parts(tmp_path)
    refused(caught, tmp_path / "config.json")
    net = conditional_unet()
    net.register_to_config(out_channels=3)
    with pytest.raises(ValueError, match="takes 2 channels and returns 3"):
        denoiser(net, read_scheduler(tmp_path))


def test_folders_that_hold_too_little(folder, tmp_path):
    with pytest.raises(ValueError, match="there is no such folder"):
        read_parts(tmp_path / "nowhere")
    shutil.rmtree(folder / "scheduler")
    with pytest.raises(ValueError, match=r"there is no scheduler/scheduler_config\.json"):
        read_scheduler(folder)
    with pytest.raises(
        ValueError, match="to say how the network was trained; add it, or give process="
    ):
        read_parts(folder)
    told = Process(schedule=VP.cosine(), predicts="v")
    assert read_parts(folder, process=told).schedule == VP.cosine()
    shutil.rmtree(folder / "transformer")
    with pytest.raises(ValueError, match="holds no denoising network"):
        read_parts(folder)


def test_variants_and_shards(folder):
    expected = load_file(folder / WEIGHTS)
    file, home = folder / WEIGHTS, folder / "transformer"
    save_file(
        {name: t.half() for name, t in expected.items()},
        home / "diffusion_pytorch_model.fp16.safetensors",
    )
    assert torch.equal(read_network(folder).state_dict()[FIRST], expected[FIRST])
    file.unlink()
    half = read_network(folder).state_dict()
    assert all(
        half[name].dtype == torch.float32 and torch.equal(half[name], t.half().float())
        for name, t in expected.items()
    )
    shutil.rmtree(home)
    dit().save_pretrained(home, max_shard_size="10KB")
    shards = sorted(home.glob("*.safetensors"))
    assert len(shards) > 1
    assert all(
        torch.equal(t, expected[name]) for name, t in read_network(folder).state_dict().items()
    )
    index = home / "diffusion_pytorch_model.safetensors.index.json"
    shards[0].unlink()
    with pytest.raises(ValueError, match="there is no such file") as caught:
        read_network(folder)
    refused(caught, shards[0])
    index.write_text(json.dumps({"weight_map": {FIRST: "../elsewhere.safetensors"}}))
    with pytest.raises(ValueError, match="weight_map should map"):
        read_network(folder)


def test_older_attention_names(tmp_path):
    net = unet()
    net.save_pretrained(tmp_path)
    file, names = (
        tmp_path / "diffusion_pytorch_model.safetensors",
        {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."},
    )

    def age(tensors):
        for name in list(tensors):
            old = name
            for new, former in names.items():
                old = old.replace(new, former)
            tensors[old] = tensors.pop(name)

    rewrite(file, age)
    assert any(".query." in name for name in load_file(file))
    assert all(
        torch.equal(t, net.state_dict()[name])
        for name, t in read_network(tmp_path).state_dict().items()
    )


@pytest.mark.parametrize(
    ("spoil", "file", "message"),
    [
        (
            lambda f: (f / "text_encoder/model.safetensors").write_bytes(b"x" * 20),
            "text_encoder/model.safetensors",
            "truncated or corrupt",
        ),
        (
            lambda f: rewrite(
                f / "text_encoder/model.safetensors", lambda t: t.pop("final_layer_norm.bias")
            ),
            "text_encoder/model.safetensors",
            "'final_layer_norm.bias' is missing",
        ),
        (
            lambda f: (f / "text_encoder/model.safetensors").rename(
                f / "text_encoder/pytorch_model.bin"
            ),
            "text_encoder/pytorch_model.bin",
            "are not read; write them anew with: python -c ",
        ),
        (
            lambda f: (f / "tokenizer/tokenizer.json").write_text("{"),
            "tokenizer",
            "tokenizer.json: not readable as JSON",
        ),
        (
            lambda f: spoil_config(f / "text_encoder/config.json", hidden_size="wide"),
            "text_encoder/config.json",
            "CLIPTextModel refuses these settings",
        ),
    ],
)
def test_wrong_text_encoder(spoil, file, message, tmp_path):
    make_text(tmp_path)
    ddim("epsilon").save_pretrained(tmp_path / "scheduler")
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message) as caught:
        read_parts(tmp_path)
    refused(caught, tmp_path / file)


def spoil_config(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_wrong_class_table(tmp_path):
    make_identity(tmp_path)
    ddim("epsilon").save_pretrained(tmp_path / "scheduler")
    file = tmp_path / "condition" / "diffusion_pytorch_model.safetensors"
    rewrite(file, lambda t: t.update({"table.weight": torch.zeros(3, WIDTH)}))
    with pytest.raises(
        ValueError,
        match=r"'table.weight' has the shape \(3, 32\), but the network expects \(4, 32\)",
    ) as caught:
        read_parts(tmp_path)
    refused(caught, file)


def test_levels_of_the_table_are_exact(folder):
    level = read_parts(folder).schedule(500.0)
    assert level == Level(float(bars()[500].sqrt()), float((1 - bars()[500]).sqrt()), 500.0)
