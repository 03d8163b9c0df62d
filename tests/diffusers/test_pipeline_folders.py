"""Pipelines of Diffusers read as models: the same prompt gives the pipeline's own predictions,
latents and pictures.
"""

import json
import math
import shutil

import pytest
import torch

import diffusers
import guidestar as gs
from guidestar import Condition, Draw, Flow, Grid, Guided
from guidestar.model.folder import WeightsError
from helpers import pipeline_folders as made

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
PROMPTS = ["a red cat", "Dog On a bag"]
STEPS, SCALE = 4, 3.0


def close(a, b, tolerance=1e-5):
    assert a.shape == b.shape
    assert float((a - b).abs().max()) <= tolerance * float(b.abs().max())


def watched(net, calls):
    """Keep what a network is told and what it answers."""

    def keep(_, args, kwargs, out):
        calls.append((args, kwargs, out[0] if isinstance(out, tuple) else out.sample))

    return net.register_forward_hook(keep, with_kwargs=True)


@torch.no_grad()
def theirs(pipe, start, **more):
    """The pipeline's own latents and picture in [−1, 1], and its network's calls."""
    calls = []
    hook = watched(getattr(pipe, "unet", None) or pipe.transformer, calls)
    pipe.set_progress_bar_config(disable=True)
    latents = pipe(
        PROMPTS, num_inference_steps=STEPS, latents=start, output_type="latent", **more
    ).images
    hook.remove()
    return latents, calls


def grid_of(model, scheduler):
    if isinstance(model.schedule, Flow):
        return Grid(
            levels=tuple(model.schedule(s) for s in scheduler.sigmas.tolist()),
            schedule=model.schedule,
        )
    return Grid(
        levels=(*(model.schedule(float(t)) for t in scheduler.timesteps), model.schedule.clean),
        schedule=model.schedule,
    )


FAMILIES = {
    "sd": (made.sd, {}),
    "sdxl": (made.sdxl, {}),
    "sdxl-empty": (lambda: made.sdxl(zeros=False), {}),
    "sd3": (made.sd3, {}),
    "sd3-without-t5": (lambda: made.sd3(third=False), {}),
    "sd3-dynamic": (
        lambda: made.sd3(use_dynamic_shifting=True, base_image_seq_len=4, max_image_seq_len=64),
        {},
    ),
    "pixart-alpha": (made.pixart, {"use_resolution_binning": False}),
    "pixart-sigma": (lambda: made.pixart(sigma=True), {"use_resolution_binning": False}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_text_pipelines(family, tmp_path):
    build, more = FAMILIES[family]
    pipe = build()
    pipe.save_pretrained(tmp_path)
    model = gs.load(tmp_path)
    assert model.shape == (4, 8, 8) and model.takes_prompts and model.latent
    pipe.scheduler.set_timesteps(STEPS, **({"mu": 0.9} if "dynamic" in family else {}))
    # We start at the standard deviation of the first level, pipelines at 1 whatever that is.
    start = (
        Draw([3, 4]).at(-1).normal("start", model.shape) * grid_of(model, pipe.scheduler)[0].sigma
    )
    latents, calls = theirs(pipe, start, guidance_scale=SCALE, **more)
    grid = grid_of(model, pipe.scheduler)
    # What the network said in the middle of the pipeline's run, of the null and the prompt:
    # [negative, positive] rows.
    args, kwargs, out = calls[2]
    x = (args[0] if args else kwargs["hidden_states"])[:2]
    seen = []
    hook = watched(model.denoiser.net.net, seen)
    guided = model.guided(f"cfg({SCALE})", cond=PROMPTS)
    with torch.no_grad():
        guided(x, grid.step(2))
    hook.remove()
    rows = torch.cat([o for _, _, o in seen])
    assert sum(len(o) for _, _, o in seen) == 4
    close(rows[:2], out[2:])  # ours: the condition first
    close(rows[2:], out[:2])
    samples = model.sample(
        PROMPTS, guidance=f"cfg({SCALE})", seeds=[3, 4], grid=grid, solver="ddim"
    )
    close(samples.x, latents)
    with torch.no_grad():
        picture = pipe.vae.decode(latents / 0.6 + (pipe.vae.config.shift_factor or 0)).sample.clamp(
            -1, 1
        )
    close(samples.images, picture, 2e-5)


@pytest.mark.parametrize(("distilled", "dynamic"), [(True, True), (False, True), (True, False)])
def test_flux(distilled, dynamic, tmp_path):
    """Packed latents, a guidance-distilled input, true_cfg, and levels that depend on the size."""
    pipe = made.flux(distilled, dynamic)
    pipe.save_pretrained(tmp_path)
    assert gs.load(tmp_path).shape == (4, 128, 128)
    model = gs.load(tmp_path, size=(16, 24))
    assert model.shape == (4, 8, 12)
    noise = Draw([3, 4]).at(-1).normal("start", model.shape)
    start = diffusers.FluxPipeline._pack_latents(noise, 2, 4, 8, 12)
    size = {"height": 16, "width": 24, "max_sequence_length": 512}
    if distilled:
        model.encoder.distilled = 2.5
    for scale, guidance in ((1.0, "cond"), (SCALE, f"cfg({SCALE})")):
        latents, calls = theirs(
            pipe, start, true_cfg_scale=scale, negative_prompt=["", ""], guidance_scale=2.5, **size
        )
        assert len(calls) == STEPS * (1 if scale == 1 else 2)
        wanted = diffusers.FluxPipeline._unpack_latents(latents, 16, 24, 2)
        samples = model.sample(
            PROMPTS,
            guidance=guidance,
            seeds=[3, 4],
            grid=grid_of(model, pipe.scheduler),
            solver="ddim",
        )
        close(samples.x, wanted)
        # The pipeline's spacing is our default one: evenly in time, bent by the shift of this size.
        if dynamic:
            mu = 0.5 + (24 - 256) * (1.15 - 0.5) / (4096 - 256)
            assert model.schedule == Flow(shift=pytest.approx(math.exp(mu), rel=1e-12))
        close(
            model.sample(PROMPTS, guidance=guidance, seeds=[3, 4], steps=STEPS, solver="ddim").x,
            wanted,
        )
        with torch.no_grad():
            close(samples.images, pipe.vae.decode(wanted / 0.6 + 0.2).sample.clamp(-1, 1), 2e-5)
    assert (
        "guidance" in model.encoder.encode(["a"])
        if distilled
        else "guidance" not in model.encoder.encode(["a"])
    )
    told = calls[0][1]
    assert (told["guidance"] is not None) == distilled and model.defaults == {
        "guidance": "cond",
        "grid": "uniform",
    }


@torch.no_grad()
def test_dit(tmp_path):
    pipe = made.dit()
    pipe.save_pretrained(tmp_path)
    # Published folders name their classes here; save_pretrained forgets them.
    spoil(
        tmp_path / "model_index.json",
        id2label={str(i): f"thing {i}, word {i}" for i in range(1000)},
    )
    model = gs.load(tmp_path)
    assert model.encoder.index("word 7") == 7 and model.defaults["guidance"] == "cfg(4)"
    pipe.set_progress_bar_config(disable=True)
    start = torch.randn(2, 4, 8, 8, generator=torch.manual_seed(5))
    images = pipe(
        [7, 30],
        guidance_scale=SCALE,
        num_inference_steps=STEPS,
        generator=torch.manual_seed(5),
        output_type="pt",
    ).images
    guided = model.guided(f"cfg({SCALE})", cond=["thing 7", "30"])
    x = start
    grid = grid_of(model, pipe.scheduler)
    for i in range(grid.steps):
        step = grid.step(i)
        prediction, _ = guided(x, step)
        x = step.s.alpha * prediction.x0 + step.s.sigma * prediction.eps
    close(model.decode(x) / 2 + 0.5, images, 2e-5)


def test_the_first_folders_of_dit_and_pixart_name_another_class(tmp_path):
    for build, norm in ((made.dit, "ada_norm_zero"), (made.pixart, "ada_norm_single")):
        folder = tmp_path / norm
        build().save_pretrained(folder)
        expected = gs.load(folder)
        file = folder / "transformer" / "config.json"
        config = json.loads(file.read_text())
        file.write_text(
            json.dumps(
                {
                    **config,
                    "_class_name": "Transformer2DModel",
                    "norm_type": norm,
                    "double_self_attention": False,
                }
            )
        )
        x, level = torch.randn(1, 4, 8, 8), expected.schedule(500.0)
        for cond in (expected.encoder.encode(["7" if norm.endswith("zero") else "a cat"]),):
            with torch.no_grad():
                assert torch.equal(
                    gs.load(folder).denoiser(x, level, cond).x0,
                    expected.denoiser(x, level, cond).x0,
                )


def test_pixart_that_is_told_the_size(tmp_path):
    """Networks for 1024 pixels are told height, width and their ratio, in numbers of pixels."""
    pipe = made.pixart(sizes=True)
    pipe.save_pretrained(tmp_path)
    model = gs.load(tmp_path, size=(16, 24))
    cond, x = model.encoder.encode(PROMPTS), torch.randn(2, 4, 8, 12)
    assert (
        cond["resolution"].tolist() == [[16.0, 24.0]] * 2
        and cond["aspect_ratio"].tolist() == [[pytest.approx(16 / 24)]] * 2
    )
    with torch.no_grad():
        states, mask, *_ = pipe.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
        added = {
            "resolution": torch.tensor([[16.0, 24.0]] * 2),
            "aspect_ratio": torch.tensor([[16 / 24]] * 2),
        }
        out = pipe.transformer(
            x,
            states,
            timestep=torch.tensor([40, 40]),
            encoder_attention_mask=mask,
            added_cond_kwargs=added,
        ).sample
        level = model.schedule(40.0)
        close(model.denoiser(x, level, cond).x0, (x - level.sigma * out[:, :4]) / level.alpha, 1e-6)


def test_sdxl_is_told_the_size_and_its_empty_prompt_is_zeros(tmp_path):
    made.sdxl().save_pretrained(tmp_path)
    model = gs.load(tmp_path, size=(32, 16))
    assert model.shape == (4, 16, 8)
    both = model.encoder.encode(["", "a"])
    assert both["time_ids"].tolist() == [[32, 16, 0, 0, 32, 16]] * 2
    null = model.encoder.null(2)
    for key in ("encoder_hidden_states", "text_embeds"):
        assert not null[key].any() and not both[key][0].any() and both[key][1].any()


@pytest.mark.parametrize("build", [made.sdxl, made.sd3, made.flux, made.pixart])
def test_our_guidance_runs_on_them(build, tmp_path):
    """Terms beyond cfg: of layers, of thresholds, of gradients through the VAE."""
    build().save_pretrained(tmp_path)
    model = gs.load(tmp_path, **({"size": (16, 16)} if build is made.flux else {}))
    run = {"seeds": [1], "steps": 2, "solver": "dpmpp-2m"}
    plain = model.sample(PROMPTS[:1], guidance="cfg(2)", **run).x
    for guidance in (
        "cfg(2) + pag(2)",
        "cfg(2) | rescale(0.7)",
        "apg(2)",
        "cfg(2, negative='blue')",
        "cfg(1) + slg(2)",
    ):
        assert not torch.equal(model.sample(PROMPTS[:1], guidance=guidance, **run).x, plain), (
            guidance
        )
    vae = model.decode.vae
    bright = lambda x, level, target: -(vae.decode(x / 0.6).sample - 1).square().mean((1, 2, 3))
    steered = model.sample(
        PROMPTS[:1], guidance=gs.cond + gs.classifier(50.0, log_prob=bright, through="cond"), **run
    )
    assert steered.x.isfinite().all() and not torch.equal(
        steered.x, model.sample(PROMPTS[:1], guidance="cond", **run).x
    )
    with pytest.warns(UserWarning, match="the prompt is longer than the"):
        model.encoder.encode(["abc " * 200])
    with pytest.raises(ValueError, match="control character"):
        model.encoder.encode(["a\x00b"])


def test_other_precisions(tmp_path):
    made.sd3().save_pretrained(tmp_path)
    model = gs.load(tmp_path, dtype=torch.bfloat16)
    assert (
        {p.dtype for p in model.denoiser.parameters()}
        == {p.dtype for p in model.encoder.parameters()}
        == {torch.bfloat16}
    )
    assert model.decode.vae.dtype == torch.float32
    samples = model.sample(PROMPTS, seeds=[3, 4], steps=2)
    assert samples.x.dtype == torch.float32 and samples.x.isfinite().all()


def test_text_encoders_in_shards(tmp_path):
    pipe = made.sd3()
    pipe.save_pretrained(tmp_path)
    expected = gs.load(tmp_path).encoder.encode(["a"])
    shutil.rmtree(tmp_path / "text_encoder_3")
    pipe.text_encoder_3.save_pretrained(tmp_path / "text_encoder_3", max_shard_size="5KB")
    assert len(list((tmp_path / "text_encoder_3").glob("*.safetensors"))) > 1
    found = gs.load(tmp_path).encoder.encode(["a"])
    assert all(torch.equal(found[k], expected[k]) for k in expected)


def test_vae_with_a_mean_and_a_spread_of_each_channel(tmp_path):
    pipe = made.sdxl()
    pipe.vae.register_to_config(
        latents_mean=[0.1, -0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 0.5, 3.0]
    )
    pipe.save_pretrained(tmp_path)
    x = torch.randn(1, 4, 8, 8)
    mean, std = (
        torch.tensor(v).view(1, 4, 1, 1) for v in ([0.1, -0.2, 0.3, 0.4], [1.0, 2.0, 0.5, 3.0])
    )
    with torch.no_grad():
        close(
            gs.load(tmp_path).decode(x),
            pipe.vae.decode(x * std / 0.6 + mean).sample.clamp(-1, 1),
            1e-6,
        )


def spoil(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda f: spoil(f / "model_index.json", _class_name="KandinskyPipeline"),
            WeightsError,
            "a KandinskyPipeline is not read as a model; these are: StableDiffusionPipeline, "
            "StableDiffusionXL",
        ),
        (
            lambda f: spoil(f / "text_encoder_2/config.json", architectures=["BertModel"]),
            WeightsError,
            r"text_encoder_2/config.json: the text encoder 'BertModel' is not one that this "
            r"pipeline has; expected CLIPText…",
        ),
        (
            lambda f: spoil(f / "text_encoder_2/config.json", hidden_size="wide"),
            WeightsError,
            "CLIPTextModelWithProjection refuses these settings",
        ),
        (
            lambda f: (f / "text_encoder_2/model.safetensors").write_bytes(b"x"),
            WeightsError,
            "text_encoder_2/model.safetensors: truncated or corrupt",
        ),
        (
            lambda f: shutil.rmtree(f / "tokenizer_2"),
            WeightsError,
            "tokenizer_2: holds no tokenizer",
        ),
        (
            lambda f: shutil.rmtree(f / "text_encoder"),
            WeightsError,
            "text_encoder/config.json: there is no such file",
        ),
    ],
)
def test_what_is_refused(change, error, message, tmp_path):
    made.sdxl().save_pretrained(tmp_path)
    change(tmp_path)
    with pytest.raises(error, match=message) as caught:
        gs.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_consistency_models_are_refused(tmp_path):
    pipe = made.sd()
    pipe.unet = made.unet(8, time_cond_proj_dim=4)
    pipe.save_pretrained(tmp_path)
    with pytest.raises(
        WeightsError,
        match=r"takes a guidance scale \(a consistency model, time_cond_proj_dim\), "
        r"which is not supported$",
    ):
        gs.load(tmp_path)


def test_sizes_and_tokenizers_that_are_refused(tmp_path):
    made.flux().save_pretrained(tmp_path / "flux")
    with pytest.raises(
        WeightsError, match="height and width must be multiples of 4 pixels, not 18×16"
    ):
        gs.load(tmp_path / "flux", size=(18, 16))
    (tmp_path / "flux" / "tokenizer_2" / "tokenizer.json").write_text("{")
    with pytest.raises(WeightsError, match=r"tokenizer_2/tokenizer\.json: not readable as JSON"):
        gs.load(tmp_path / "flux")
    shutil.rmtree(tmp_path / "flux" / "tokenizer_2")
    with pytest.raises(
        WeightsError, match=r"tokenizer_2: holds no tokenizer \(tokenizer.json or spiece.model\)"
    ):
        gs.load(tmp_path / "flux")
    made.dit().save_pretrained(tmp_path / "dit")
    with pytest.raises(WeightsError, match="size= is for pipelines that take a prompt"):
        gs.load(tmp_path / "dit", size=(16, 16))
    for more in ({"size": (16, 16)}, {"dtype": "bfloat16"}, {"dtype": "int8"}):
        with pytest.raises(
            ValueError, match=r"^fashion-mnist is a model of .* leave size= and dtype= out"
        ):
            gs.load("fashion-mnist", **more)


def test_guided_takes_conditions_of_ones_own(tmp_path):
    """The network as it is, with pooled and packed inputs, under `Guided`."""
    pipe = made.flux(distilled=False)
    pipe.save_pretrained(tmp_path)
    model = gs.load(tmp_path, size=(16, 16))
    cond = Condition(
        encoder_hidden_states=torch.randn(1, 5, 20), pooled_projections=torch.randn(1, 8)
    )
    guided = Guided("cond", model.denoiser, cond=cond)
    x, step = torch.randn(1, 4, 8, 8), model.grid(2).step(0)
    with torch.no_grad():
        packed = diffusers.FluxPipeline._pack_latents(x, 1, 4, 8, 8)
        ids = diffusers.FluxPipeline._prepare_latent_image_ids(1, 4, 4, "cpu", torch.float32)
        out = pipe.transformer(
            packed, timestep=torch.tensor([1.0]), img_ids=ids, txt_ids=torch.zeros(5, 3), **cond
        ).sample
        velocity = diffusers.FluxPipeline._unpack_latents(out, 16, 16, 2)
        close(guided(x, step)[0].x0, x - velocity, 1e-6)
