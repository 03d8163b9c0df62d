"""Folders of ours that Diffusers loads without us: its own sampling is ours."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPTextModelWithProjection

import diffusers
import guidestar as gs
from guidestar import VE, VP, Flow, Grid, Model
from guidestar.diffusers import guidance_file as recipe
from guidestar.diffusers.export import pipeline_of
from guidestar.diffusers.read.network import denoiser
from guidestar.diffusers.read.scheduler import Process
from guidestar.diffusers.read.text_encoder import TextEncoder
from guidestar.diffusers.read.vae import Decoder
from guidestar.model.card import card_text
from guidestar.model.folder_writing import save
from guidestar.networks.condition_encoders import ClassEncoder, LabelEncoder
from helpers import pipeline_folders as made
from train.test_export import trained

STEPS = 4
DDPM = {"_class_name": "DDPMScheduler", "clip_sample": False, "prediction_type": "v_prediction"}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 2.0}
EDM = {"_class_name": "EDMEulerScheduler"}


def unet(channels=1, **more):
    torch.manual_seed(0)
    blocks = {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 8,
    }
    sizes = {
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 8,
    }
    return made.spread(
        diffusers.UNet2DModel(
            in_channels=channels, out_channels=channels, **blocks, **sizes, **more
        )
    )


def model(net, scheduler, *, shape=(1, 8, 8), encoder=None, vae=None, **more):
    kinds = {
        "DDPMScheduler": (VP.linear(), "v", 1.0),
        "FlowMatchEulerDiscreteScheduler": (Flow(shift=2.0), "velocity", 1000.0),
        "EDMEulerScheduler": (VE(), "edm", 1.0),
    }
    schedule, predicts, scale = kinds[scheduler["_class_name"]]
    process = Process(schedule=schedule, predicts=predicts, time_scale=scale)
    decode = {"decode": Decoder(vae)} if vae else {}
    return Model(
        name="it",
        denoiser=denoiser(net, process),
        schedule=schedule,
        shape=shape,
        encoder=encoder,
        defaults={"guidance": "cfg(2)", "steps": 3},
        card={"scheduler": scheduler},
        **decode,
        **more,
    )


def text(kind=None):
    return TextEncoder(made.clip_text(*([kind] if kind else [])), made.clip_tokenizer())


def dit(classes=1000):
    torch.manual_seed(2)
    sizes = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 1,
        "sample_size": 8,
        "patch_size": 2,
        "norm_num_groups": 1,
    }
    net = made.spread(
        diffusers.DiTTransformer2DModel(
            in_channels=4, out_channels=4, num_embeds_ada_norm=classes, **sizes
        )
    )
    return net, LabelEncoder([f"c{i}" for i in range(classes)])


def latent(net, encoder, **more):
    return model(net, DDPM, shape=(4, 8, 8), encoder=encoder, vae=made.vae(), **more)


MODELS = {
    "table": lambda: model(unet(), DDPM),
    "flow": lambda: model(unet(), FLOW),
    "text": lambda: latent(made.unet(8), text()),
    "projected": lambda: latent(made.unet(8), text(CLIPTextModelWithProjection)),
    "classes": lambda: latent(*dit()),
}

# What another machine would run: Diffusers alone.
LOADED = """
import sys, torch, warnings
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
warnings.simplefilter("error")
warnings.filterwarnings("ignore", category=DeprecationWarning)
root, out = sys.argv[1], {}
for name in sys.argv[2:]:
    pipe = DiffusionPipeline.from_pretrained(f"{root}/{name}")
    pipe.set_progress_bar_config(disable=True)
    run = {"num_inference_steps": 4, "generator": torch.manual_seed(0), "output_type": "pt"}
    if name in ("table", "flow"):
        out[name] = pipe(batch_size=2, **run).images
    elif name == "classes":
        out[name] = pipe([7, 30], guidance_scale=3.0, **run).images
    else:
        out[name] = pipe(["a red cat", "bag"], guidance_scale=3.0, **run).images
    out[name] = torch.as_tensor(out[name]).contiguous()
    out[name + "/kind"] = torch.tensor([ord(c) for c in type(pipe).__name__])
assert "guidestar" not in sys.modules
save_file(out, f"{root}/out.safetensors")
"""


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    root = tmp_path_factory.mktemp("folders")
    for name, build in MODELS.items():
        save(build(), root / name, dtype=torch.float32)
    found = subprocess.run(
        [sys.executable, "-c", LOADED, str(root), *MODELS],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return root, load_file(root / "out.safetensors")


def steps_of(m, name):
    if name == "flow":
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0)
        scheduler.set_timesteps(STEPS)
        return Grid(
            levels=tuple(m.schedule(s) for s in scheduler.sigmas.tolist()), schedule=m.schedule
        )
    return gs.leading(m.schedule, STEPS, offset=1 if name in ("text", "projected") else 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_the_pipelines_own_sampling_is_ours(name, theirs):
    root, found = theirs
    kind = {"table": "DDIMPipeline", "flow": "DDPMPipeline", "classes": "DiTPipeline"}.get(
        name, "StableDiffusionPipeline"
    )
    assert "".join(map(chr, found[f"{name}/kind"].tolist())) == kind
    m = gs.load(root / name)
    cond = {
        "classes": ["c7", "30"],
        "text": ["a red cat", "bag"],
        "projected": ["a red cat", "bag"],
    }.get(name)
    grid, guided = steps_of(m, name), m.guided("cfg(3)" if cond else "uncond", cond=cond)
    x = torch.randn(2, *m.shape, generator=torch.manual_seed(0))
    for i in range(grid.steps):
        step = grid.step(i)
        prediction, _ = guided(x, step)
        x = step.s.alpha * prediction.x0 + step.s.sigma * prediction.eps
    wanted = found[name]
    assert float((m.decode(x) / 2 + 0.5 - wanted).abs().max()) < 2e-5 and wanted.std() > 0.01


@pytest.mark.slow
def test_the_folder_is_read_by_us_as_before(theirs):
    root, _ = theirs
    for name, build in MODELS.items():
        one, two = build(), gs.load(root / name)
        cond = None if one.encoder is None else "a cat" if one.takes_prompts else "c3"
        assert torch.allclose(
            *(m.sample(cond, guidance="uncond", seeds=[0], steps=2).x for m in (one, two)),
            atol=1e-5,
        ), name
        assert (
            recipe.read_guidance(root / name) == recipe.GuidanceRecipe(guidance="cfg(2)", steps=3)
            and two.defaults["steps"] == 3
        )
        card = card_text("it", two.card)
        assert (
            f"# a {pipeline_of(one, one.card['scheduler']['_class_name'])[0]}" in card
            and "DiffusionPipeline.from_pretrained(folder)" in card
        )
    (root / "table" / "guidance.toml").write_text(
        'guidance = "uncond"\nsteps = 7\nsolver = "ddim"\n'
    )
    assert gs.load(root / "table").defaults == {"guidance": "uncond", "steps": 7, "solver": "ddim"}


def identity():
    torch.manual_seed(3)
    return model(unet(class_embed_type="identity"), DDPM, encoder=ClassEncoder(["a", "b"], 32))


def pixels():
    return model(made.unet(8), DDPM, shape=(4, 8, 8), encoder=text())


def shifting():
    return model(
        made.unet(8), DDPM, shape=(4, 8, 8), encoder=text(), vae=made.vae(shift_factor=0.1)
    )


def shifting_dit(**vae):
    net, encoder = dit()
    return model(net, DDPM, shape=(4, 8, 8), encoder=encoder, vae=made.vae(**vae))


def other_states():
    return latent(
        made.unet(8), TextEncoder(made.clip_text(), made.clip_tokenizer(), layer="penultimate")
    )


def pixart_of_clip():
    torch.manual_seed(2)
    more = {
        "num_layers": 1,
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "cross_attention_dim": 24,
        "caption_channels": 8,
        "norm_num_groups": 1,
    }
    net = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        use_additional_conditions=False,
        **more,
    )
    return model(
        net,
        DDPM,
        shape=(4, 8, 8),
        encoder=TextEncoder(made.clip_text(), made.clip_tokenizer(), mask=True),
    )


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (identity, "its network takes embeddings, class_labels"),
        (lambda: model(unet(), EDM), "its pipelines do not step as EDMEulerScheduler needs"),
        (pixels, "it has no VAE, which that pipeline cannot do without"),
        (shifting, "its VAE shifts the latents"),
        (other_states, "its condition is not the states of CLIP's last layer"),
        (pixart_of_clip, "PixArt's pipelines want T5 and a VAE"),
        (lambda: shifting_dit(shift_factor=0.1), "DiTPipeline wants a VAE that does not shift"),
        (
            lambda: shifting_dit(latents_mean=[0.1] * 4, latents_std=[1.0] * 4),
            "DiTPipeline wants a VAE that does not shift",
        ),
        (lambda: latent(*dit(10)), "DiTPipeline's null is class 1000, this network's 10"),
        (
            lambda: model(unet(4), DDPM, shape=(4, 8, 8), vae=made.vae()),
            "unconditional latents have none",
        ),
    ],
)
def test_models_that_no_pipeline_can_be(build, why, tmp_path):
    m = build()
    (tmp_path / "model_index.json").write_text("{}")  # of an earlier export
    save(m, tmp_path, dtype=torch.float32)
    assert not (tmp_path / "model_index.json").exists() and (tmp_path / "guidance.toml").exists()
    about = json.loads((tmp_path / "guidestar.json").read_text())
    assert why in about["diffusers"]["needs"]
    card = card_text("it", about)
    assert "## In Diffusers\n\nNo pipeline of Diffusers samples it" in card and why in card
    net = m.denoiser.net.net
    part = "unet" if type(net).__name__.startswith("UNet") else "transformer"
    assert f'{type(net).__name__}.from_pretrained(folder, subfolder="{part}")' in card
    again = type(net).from_pretrained(tmp_path, subfolder=part).eval()
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in net.state_dict().items())
    scheduler = getattr(diffusers, m.card["scheduler"]["_class_name"]).from_pretrained(
        tmp_path, subfolder="scheduler"
    )
    assert f"{type(scheduler).__name__}.from_pretrained" in card


def test_a_model_that_was_read_is_not_written(tmp_path):
    made.dit().save_pretrained(tmp_path / "dit")
    with pytest.raises(ValueError, match="was not trained by guidestar, so its scheduler"):
        save(gs.load(tmp_path / "dit"), tmp_path / "copy")


def test_a_training_writes_what_diffusers_samples(tmp_path):
    _, folder = trained(tmp_path, tables="[conditions]")
    pipe, m = diffusers.DiffusionPipeline.from_pretrained(folder), gs.load(folder)
    assert (
        type(pipe) is diffusers.DDIMPipeline and recipe.read_guidance(folder).guidance == "uncond"
    )
    assert (
        "DiffusionPipeline.from_pretrained(folder)  # a DDIMPipeline"
        in (folder / "README.md").read_text()
    )
    pipe.set_progress_bar_config(disable=True)
    images = pipe(
        batch_size=2, num_inference_steps=STEPS, generator=torch.manual_seed(0), output_type="pt"
    ).images
    x, grid, guided = (
        torch.randn(2, 1, 8, 8, generator=torch.manual_seed(0)),
        gs.leading(m.schedule, STEPS),
        m.guided("uncond"),
    )
    for i in range(grid.steps):
        step = grid.step(i)
        with torch.no_grad():
            prediction, _ = guided(x, step)
        x = step.s.alpha * prediction.x0 + step.s.sigma * prediction.eps
    assert float((m.decode(x) / 2 + 0.5 - images).abs().max()) < 2e-5
