"""The decoder of an autoencoder, trained further by itself."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image

import diffusers
import guidestar as gs
from guidestar.networks.caption_tokens import make_tokenizer
from guidestar.networks.clip import make_clip
from guidestar.train import dry_run, run
from guidestar.train.build.data import sources
from guidestar.train.export import assemble
from guidestar.train.objectives.decoding import Decoding
from guidestar.train.recipe import schema as recipes
from helpers.recipes import LATENTS_OF_PHOTOS

RECIPE = (
    LATENTS_OF_PHOTOS
    + """[autoencoder]
widths = [8, 8]
groups = 4
latent_channels = 2
scales = 1
train = {{ steps = 2, batch = 4, warmup = 1, decay = 0.5, rate = 0.01 }}
[decoder]
scales = 1
features = 0.5
noise = 0.1
train = {{ steps = 3, batch = 4, warmup = 1, decay = 0.5, rate = 0.01 }}
[clip]
width = 16
layers = 1
heads = 2
patch = 8
text_width = 16
text_layers = 1
text_heads = 2
embed = 8
vocabulary = 520
train = {{ steps = 2, batch = 4, warmup = 1, decay = 0.5 }}
[conditions.text]
encoder = "clip"
[model]
network = "unet"
widths = [8, 8]
groups = 4
head = 8
train = {{ steps = 2, batch = 4, warmup = 1, decay = 0.5 }}
"""
)


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    """Nine pictures, each with a caption."""
    root = tmp_path_factory.mktemp("captioned")
    rows = []
    for i in range(9):
        torch.manual_seed(i)
        small = (torch.rand(4, 4, 3) * 255).byte().numpy()
        Image.fromarray(small).resize((16, 16)).save(root / f"{i}.png")
        rows.append({"file_name": f"{i}.png", "text": f"a picture of number {i}"})
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


def recipe(tmp_path, data, *changes):
    text = RECIPE.format(data=data)
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "r.toml").write_text(text)
    return recipes.read_recipe(tmp_path / "r.toml")


def tiny_clip():
    torch.manual_seed(1)
    tokenizer = make_tokenizer(["a cat", "a dog"], vocabulary=520, length=8)
    sizes = {"width": 16, "layers": 1, "heads": 2, "text_width": 16, "text_layers": 1}
    return make_clip(tokenizer, size=16, patch=8, text_heads=2, embed=8, **sizes).eval()


@pytest.mark.parametrize(("features", "noise"), [(0.0, 0.0), (0.7, 0.0), (0.0, 0.6)])
def test_the_loss_is_the_formula_in_the_latents_own_units(features, noise):
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=[8],
        norm_num_groups=4,
        latent_channels=2,
        latents_mean=[0.5, -1.0],
        latents_std=[2.0, 0.5],
        scaling_factor=0.3,
    )
    clip, x = tiny_clip(), torch.rand(3, 3, 16, 16) * 2 - 1
    objective = Decoding(scales=2, features=features, noise=noise, clip=clip if features else None)
    draw, unit = gs.Draw([0, 1, 2]), torch.tensor([2.0, 0.5]).view(-1, 1, 1) / 0.3
    spread = draw.uniform("spread").float().view(-1, 1, 1, 1) * noise
    with torch.no_grad():
        found = objective(vae, x, {}, draw)
        z = vae.quant_conv(vae.encoder(x))[:, :2]
        z = z + unit * spread * draw.normal("noise", (2, 16, 16))
        made = vae.decoder(vae.post_quant_conv(z))
        one, other = (torch.nn.functional.normalize(clip.embed_image(v), dim=1) for v in (made, x))
    for k in range(3):
        wanted = (made[k] - x[k]).abs().mean()
        for side in (2, 4):
            cut = (made[k] - x[k]).view(3, 16 // side, side, 16 // side, side)
            wanted = wanted + cut.mean((2, 4)).abs().mean()
        wanted = wanted + features * (1 - (one[k] * other[k]).sum())
        torch.testing.assert_close(found[k], wanted)


def test_only_the_decoder_learns_and_the_model_decodes_by_it(tmp_path, captioned):
    spec, out = recipe(tmp_path, captioned), tmp_path / "out"
    assert spec.parts() == ["autoencoder", "clip", "model", "decoder"]
    assert any(line.startswith("decoder: ") for line in dry_run.dry_run(spec)[0])
    assert run.train(spec, out)
    before = (out / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()
    model = assemble(spec, out)
    first = diffusers.AutoencoderKL.from_pretrained(out / "vae").state_dict()
    ships = diffusers.AutoencoderKL.from_pretrained(out / "tiny" / "vae").state_dict()
    for name, tensor in first.items():
        learns = name.startswith(("decoder.", "post_quant_conv."))
        half = tensor.half().float()  # as models are kept
        assert torch.equal(ships[name], half) != learns or not tensor.ndim, name
    assert (out / "vae" / "diffusion_pytorch_model.safetensors").read_bytes() == before
    # What the folder holds is what decodes, and what the card measures.
    again, x = gs.load(out / "tiny"), torch.randn(1, 2, 8, 8)
    vae = diffusers.AutoencoderKL.from_pretrained(out / "tiny" / "vae")
    mean, std = (
        torch.tensor(vae.config[k]).view(-1, 1, 1) for k in ("latents_mean", "latents_std")
    )
    with torch.no_grad():
        made = vae.decode(x * std + mean).sample.clamp(-1, 1)
    torch.testing.assert_close(again.decode(x), made)
    about = model.card["decoder"]
    held = sources(spec, out=out)[1]
    real = torch.cat([held.source.pictures.batch([k], gs.Draw([0]))[0] for k in held.kept])
    trained = run.averaged(spec, "decoder", out, sources(spec, out=out)[0])
    with torch.no_grad():
        z = trained.encode(real).latent_dist.mean
        error = (trained.decode(z).sample.clamp(-1, 1) - real).square().mean((1, 2, 3))
    assert about["psnr"] == pytest.approx(float((10 * (4 / error).log10()).mean()), abs=2e-3)
    assert about["psnr"] != model.card["autoencoder"]["psnr"]
    card = (out / "tiny" / "README.md").read_text()
    assert f"trained further by itself: PSNR {about['psnr']:.2f} dB" in card


def test_it_resumes_to_the_bit_and_not_with_another_clip(tmp_path, captioned):
    spec, out = recipe(tmp_path, captioned), tmp_path / "out"
    run.train(spec, out, only=["autoencoder", "clip"])
    shutil.copytree(out, tmp_path / "parted")
    run.train(spec, out, only=["decoder"])
    source = sources(spec, out=out)[0]
    steps = run.train_part(spec, "decoder", tmp_path / "parted", source)
    next(steps)
    steps.close()
    shutil.copytree(tmp_path / "parted", tmp_path / "other")
    run.train(spec, tmp_path / "parted", only=["decoder"])
    one, other = (
        torch.load(w / "parts" / "decoder.pt", weights_only=True)["module"]
        for w in (out, tmp_path / "parted")
    )
    assert all(torch.equal(one[k], other[k]) for k in one)
    file = tmp_path / "other" / "parts" / "clip.pt"
    state = torch.load(file, weights_only=True)
    average = next(iter(state["averages"].values()))
    key = next(k for k, v in average["weights"].items() if v.is_floating_point())
    average["weights"][key] += 0.1
    torch.save(state, file)
    with pytest.raises(ValueError, match=r"trained with other settings \(clip \(its weights\)"):
        run.train(spec, tmp_path / "other", only=["decoder"])


def test_what_cannot_be_is_one_line(tmp_path, captioned):
    def refused(*changes):
        with pytest.raises(ValueError) as found:
            recipe(tmp_path, captioned, *changes)
        assert "\n" not in str(found.value)
        return str(found.value)

    text = RECIPE.format(data=captioned)
    part = lambda name, end: text[text.index(f"[{name}]") : text.index(f"[{end}]")]
    assert "works on pixels; name an autoencoder" in refused(
        ('vae = "autoencoder"\n', ""), (part("autoencoder", "decoder"), "")
    )
    assert "decoder.features: embeddings are those of the recipe's own clip" in refused(
        (part("clip", "conditions.text"), ""), ('[conditions.text]\nencoder = "clip"\n', "")
    )
    assert "decoder.scales: pictures of 16 cannot be halved 5 times" in refused(
        ("[decoder]\nscales = 1", "[decoder]\nscales = 5")
    )
    spec = recipe(tmp_path, captioned)
    with pytest.raises(ValueError, match="holds no trained autoencoder yet"):
        run.train(spec, tmp_path / "out", only=["decoder"])
