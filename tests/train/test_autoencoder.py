"""A recipe's own autoencoder: its objective, its latents' spread, and the model that works on
them.
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image

import diffusers
import guidestar as gs
from guidestar.apps.measure import measure
from guidestar.cli import main
from guidestar.train import dry_run, run
from guidestar.train.build.autoencoders import (
    fresh_autoencoder,
    latent_shape,
    write_autoencoder,
)
from guidestar.train.build.data import sources
from guidestar.train.examine import examine_autoencoder
from guidestar.train.export import assemble
from guidestar.train.objectives.reconstruction import Reconstruction
from guidestar.train.recipe import schema as recipes
from guidestar.train.recipe.parts import AutoencoderPart
from helpers.recipes import LATENTS_OF_PHOTOS, write_photos

KINDS = {
    "AutoencoderKL": "widths = [8, 8]\ngroups = 4\nkl = 1e-3",
    "AutoencoderTiny": 'network = "AutoencoderTiny"\nwidths = [8, 8]',
    "AutoencoderDC": 'network = "AutoencoderDC"\nwidths = [4, 8]',
}
RECIPE = (
    LATENTS_OF_PHOTOS
    + """[autoencoder]
{autoencoder}
latent_channels = 2
scales = 1
train = {{ steps = 4, batch = 4, warmup = 1, decay = 0.5, rate = 0.01 }}
[model]
network = "unet"
widths = [8, 8]
groups = 4
head = 8
train = {{ steps = 3, batch = 4, warmup = 1, decay = 0.5 }}
[judge]
widths = [8, 8]
train = {{ steps = 3, batch = 4, warmup = 1, decay = 0.5 }}
[preview]
every = 2
seeds = 2
steps = 2
"""
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve pictures in two classes."""
    return write_photos(
        tmp_path_factory.mktemp("photos"), lambda: (torch.rand(4, 4, 3) * 255).byte().numpy()
    )


def begin_and_change(other, out, folder):
    """Begin to train a model on the latents of the autoencoder in ``folder``, and change that."""
    steps = run.train_part(other, "model", out, sources(other)[0])
    next(steps)
    steps.close()
    net = diffusers.AutoencoderKL.from_pretrained(folder)
    with torch.no_grad():
        net.quant_conv.weight.mul_(1.1)
    net.save_pretrained(folder)


def recipe(tmp_path, photos, kind="AutoencoderKL", change=("", "")):
    text = RECIPE.format(data=photos, autoencoder=KINDS[kind]).replace(*change)
    (tmp_path / "r.toml").write_text(text)
    return recipes.read_recipe(tmp_path / "r.toml")


def part(kind="AutoencoderKL", **more):
    settings = {"network": kind, "widths": (8, 8), "groups": 4, "latent_channels": 2} | more
    return AutoencoderPart(train={"steps": 1}, **settings)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_formula(kind):
    torch.manual_seed(0)
    net = fresh_autoencoder(part(kind), (3, 16, 16))
    x, draw = torch.rand(3, 3, 16, 16) * 2 - 1, gs.Draw([5, 6, 7], 2)
    weight = 0.03 if kind == "AutoencoderKL" else 0.0
    with torch.no_grad():
        found = Reconstruction(scales=2, kl=weight)(net, x, {}, draw)
        if weight:
            moments = net.quant_conv(net.encoder(x))
            mean, log_var = moments[:, :2], moments[:, 2:]
            z = mean + (log_var / 2).exp() * draw.normal("posterior", (2, 8, 8))
            nats = (mean**2 + log_var.exp() - 1 - log_var) / 2
            made = net.decoder(net.post_quant_conv(z))
        else:
            nats = torch.zeros(3, 1)
            made = net.decoder(net.encoder(x))
        for k in range(3):
            error = (made[k] - x[k]).abs().mean()
            for side in (2, 4):
                cut = (made[k] - x[k]).view(3, 16 // side, side, 16 // side, side)
                error = error + cut.mean((2, 4)).abs().mean()
            torch.testing.assert_close(found[k], error + weight * nats[k].mean())


def test_without_a_divergence_the_mean_is_decoded():
    torch.manual_seed(0)
    net = fresh_autoencoder(part(), (3, 16, 16))
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        made = net.decode(net.encode(x).latent_dist.mean).sample
        found = Reconstruction(scales=0)(net, x, {}, gs.Draw([0, 1]))
    torch.testing.assert_close(found, (made - x).abs().mean((1, 2, 3)))


@pytest.mark.parametrize("kind", KINDS)
def test_latents_have_the_shape_that_is_foretold(kind):
    spec = part(kind, widths=(12, 12, 12), latent_channels=3)
    net = fresh_autoencoder(spec, (1, 16, 16))
    with torch.no_grad():
        found = net.encode(torch.zeros(1, 1, 16, 16))
    z = found.latent_dist.mean if kind == "AutoencoderKL" else next(iter(found.values()))
    assert latent_shape(spec, (1, 16, 16)) == tuple(z.shape[1:]) == (3, 4, 4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_trains_its_own_autoencoder_and_a_model_of_its_latents(tmp_path, photos, kind):
    spec, out = recipe(tmp_path, photos, kind), tmp_path / "out"
    assert spec.parts() == ["autoencoder", "model", "judge"]
    lines, shown = dry_run.dry_run(spec)
    assert shown.shape == (4, 3, 16, 16) and "9 samples of [2, 8, 8], 3 held out" in lines[0]
    assert run.train(spec, out)
    model = assemble(spec, out)
    vae = getattr(diffusers, kind).from_pretrained(out / "vae")
    source, aside = sources(spec, out=out)
    # Mean and spread of the latents are in the config as Diffusers has them.
    rows = list(range(source.size))
    kept = [source.kept[r] for r in rows]
    pictures = source.source.pictures.batch(kept, gs.Draw(rows))[0]
    with torch.no_grad():
        found = vae.encode(pictures)
        z = found.latent_dist.mean if kind == "AutoencoderKL" else next(iter(found.values()))
    x = source.batch(rows, gs.Draw(rows))[0]
    if kind == "AutoencoderKL":
        mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3), correction=0)
        torch.testing.assert_close(torch.tensor(vae.config.latents_mean), mean, atol=1e-5, rtol=0)
        torch.testing.assert_close(torch.tensor(vae.config.latents_std), std, atol=1e-5, rtol=0)
        wanted = (z - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    else:
        torch.testing.assert_close(vae.config.scaling_factor, float(z.square().mean().rsqrt()))
        wanted = z * vae.config.scaling_factor
    torch.testing.assert_close(x, wanted, atol=4e-3, rtol=4e-3)  # kept in float16
    # The model's folder holds it, and decodes by it; the card says how well.
    again = gs.load(out / "tiny")
    samples = again.sample(["cat"], seeds=[0], steps=2)
    assert samples.images.shape == (1, 3, 16, 16)
    about = json.loads((out / "tiny" / "guidestar.json").read_text())["autoencoder"]
    real = torch.cat([aside.source.pictures.batch([k], gs.Draw([0]))[0] for k in aside.kept])
    with torch.no_grad():
        found = vae.encode(real)
        z = found.latent_dist.mean if kind == "AutoencoderKL" else next(iter(found.values()))
        error = (vae.decode(z).sample.clamp(-1, 1) - real).square().mean((1, 2, 3))
    assert about["psnr"] == pytest.approx(float((10 * (4 / error).log10()).mean()), abs=2e-3)
    assert about["latents"] == [2, 8, 8] and about["of"] == 3
    card = (out / "tiny" / "README.md").read_text()
    assert "Pictures of 3 × 16 × 16 numbers become latents of 2 × 8 × 8" in card
    names = {f.name for f in (out / "previews").iterdir()}
    assert {"autoencoder-000002.png", "autoencoder-000004.png", "model-000002.png"} <= names
    assert model.latent and again.latent
    # The judge sees pictures, real ones and decoded ones.
    assert again.judge.config["channels"] == 3
    rows = list(measure(again, ["cfg(2)"], seeds=range(4), steps=2))
    held = torch.tensor([aside.source.pictures.targets["label"][k] for k in aside.kept])
    right = (again.judge(real).argmax(1) == held).double().mean()
    floor = json.loads((out / "tiny" / "guidestar.json").read_text())["judge_accuracy"]
    assert floor == pytest.approx(float(right), abs=1e-6) and len(rows) == 2


def test_reconstructions_and_halved_pictures_are_compared_in_a_feature_space(tmp_path, photos):
    run.train(recipe(tmp_path, photos), tmp_path / "out", only=["autoencoder"])
    vae = diffusers.AutoencoderKL.from_pretrained(tmp_path / "out" / "vae")
    held = sources(recipe(tmp_path, photos), out=tmp_path / "out")[1]

    class Edges(torch.nn.Module):  # one feature: for it the distance is (m1 − m2)² + (s1 − s2)²
        def embed_image(self, x):
            return 100 * (x[..., 1:] - x[..., :-1]).square().mean((1, 2, 3))[:, None]

    pictures = held.source.pictures
    found = examine_autoencoder(vae, pictures, Edges())
    real = torch.cat([pictures.batch([k], gs.Draw([0]))[0] for k in range(pictures.size)])
    with torch.no_grad():
        made = vae.decode(vae.encode(real).latent_dist.mean).sample.clamp(-1, 1)
    small = torch.stack(
        [
            torch.nn.functional.interpolate(x[None], (8, 8), mode="bicubic", antialias=True)[0]
            for x in real
        ]
    )
    large = torch.nn.functional.interpolate(small, (16, 16), mode="bicubic").clamp(-1, 1)

    def distance(a, b):
        (m1, s1), (m2, s2) = ((v.mean(), v.std()) for v in (a.double(), b.double()))
        return float((m1 - m2) ** 2 + (s1 - s2) ** 2)

    edges = [Edges().embed_image(x)[:, 0] for x in (real, made, large)]
    assert found["frechet"] == pytest.approx(distance(edges[1], edges[0]), rel=1e-4, abs=2e-5)
    assert found["half"] == pytest.approx(distance(edges[2], edges[0]), rel=1e-4, abs=2e-5)
    assert found["half"] > 0.01 and found["frechet"] != found["half"]
    assert "frechet" not in examine_autoencoder(vae, pictures)


@pytest.mark.slow
def test_it_resumes_to_the_bit(tmp_path, photos):
    spec = recipe(tmp_path, photos)
    run.train(spec, tmp_path / "whole")
    source = sources(spec)[0]
    steps = run.train_part(spec, "autoencoder", tmp_path / "parted", source)
    next(steps)
    steps.close()
    run.train(spec, tmp_path / "parted")
    for name in ("autoencoder", "model"):
        one, other = (
            torch.load(tmp_path / w / "parts" / f"{name}.pt", weights_only=True)["module"]
            for w in ("whole", "parted")
        )
        assert all(torch.equal(one[k], other[k]) for k in one)
    held = (tmp_path / "whole" / "vae" / "config.json").stat().st_mtime_ns
    run.train(spec, tmp_path / "whole")  # nothing is left to do, so nothing is written anew
    assert (tmp_path / "whole" / "vae" / "config.json").stat().st_mtime_ns == held


def test_any_folder_will_do_and_latents_of_another_are_refused(tmp_path, photos):
    spec = recipe(tmp_path, photos)
    run.train(spec, tmp_path / "out", only=["autoencoder"])
    folder = tmp_path / "mine"
    shutil.copytree(tmp_path / "out" / "vae", folder)
    text = (tmp_path / "r.toml").read_text().replace('"autoencoder"', f'"{folder}"')
    (tmp_path / "o.toml").write_text(
        text[: text.index("[autoencoder]")] + text[text.index("[model]") :]
    )
    other = recipes.read_recipe(tmp_path / "o.toml")
    begin_and_change(other, tmp_path / "other", folder)
    with pytest.raises(ValueError, match=r"trained with other settings \(data.vae"):
        run.train(other, tmp_path / "other")


def test_what_cannot_be_is_one_line(tmp_path, photos):
    def refused(change, kind="AutoencoderKL"):
        with pytest.raises(ValueError) as found:
            recipe(tmp_path, photos, kind, change)
        assert "\n" not in str(found.value)
        return str(found.value)

    assert 'its latents, data.vae = "autoencoder"' in refused(('vae = "autoencoder"\n', ""))
    text = RECIPE.format(data=photos, autoencoder=KINDS["AutoencoderKL"])
    whole = text[text.index("[autoencoder]") : text.index("[model]")]
    assert "add a table [autoencoder]" in refused((whole, ""))
    assert "an AutoencoderTiny has one width" in refused(
        ('Tiny"\nwidths = [8, 8]', 'Tiny"\nwidths = [8, 4]'), "AutoencoderTiny"
    )
    assert "kl is of AutoencoderKL" in refused(
        ("widths = [4, 8]", "widths = [4, 8]\nkl = 0.1"), "AutoencoderDC"
    )
    assert "must be a multiple of latent_channels (2), not 5" in refused(
        ("widths = [4, 8]", "widths = [4, 5]"), "AutoencoderDC"
    )
    assert "and 10 after 4 is not" in refused(
        ("widths = [4, 8]", "widths = [4, 10]"), "AutoencoderDC"
    )
    assert 'write spread = "scalar"' in refused(
        ("widths = [4, 8]", 'widths = [4, 8]\nspread = "channel"'), "AutoencoderDC"
    )
    assert "halve pictures 1 times, which a size of 15" in refused(("size = 16", "size = 15"))
    assert "cannot be halved 5 times" in refused(("scales = 1", "scales = 5"))
    assert "latents are encoded once" in refused(("channels = 3", "channels = 3\nflip = true"))
    small = shutil.copytree(photos, tmp_path / "small")
    Image.new("RGB", (12, 20)).save(small / "cat" / "0.png")
    with pytest.raises(ValueError, match=r"it has 12 × 20 pixels, fewer than data.size, 16"):
        run.train(recipe(tmp_path, small), tmp_path / "out")
    spec = recipe(tmp_path, photos)
    with pytest.raises(ValueError, match="holds no trained autoencoder yet"):
        run.train(spec, tmp_path / "out", only=["model"])


def test_bad_pictures_and_latents_are_one_line_of_the_command(tmp_path, photos, capsys):
    def refused(recipe_file, out, code):
        with pytest.raises(SystemExit) as stop:
            main(["train", str(recipe_file), "--out", str(out)])
        lines = capsys.readouterr().err.strip().splitlines()
        assert stop.value.code == code and len(lines) == 1, lines
        return lines[0]

    small = shutil.copytree(photos, tmp_path / "small")
    Image.new("RGB", (12, 20)).save(small / "cat" / "0.png")
    recipe(tmp_path, small)
    line = refused(tmp_path / "r.toml", tmp_path / "out", 1)
    assert "it has 12 × 20 pixels, fewer than data.size, 16" in line, line
    assert not list((tmp_path / "out").rglob("*.pt"))
    # An autoencoder whose latents were learned, and another one in its place.
    spec = recipe(tmp_path, photos)
    run.train(spec, tmp_path / "whole", only=["autoencoder"])
    folder = shutil.copytree(tmp_path / "whole" / "vae", tmp_path / "mine")
    text = (tmp_path / "r.toml").read_text().replace('"autoencoder"', f'"{folder}"')
    text = text[: text.index("[autoencoder]")] + text[text.index("[model]") :]
    (tmp_path / "o.toml").write_text(text)
    other = recipes.read_recipe(tmp_path / "o.toml")
    begin_and_change(other, tmp_path / "other", folder)
    assert "other settings (data.vae" in refused(tmp_path / "o.toml", tmp_path / "other", 2)


def test_latents_without_spread_are_refused(tmp_path, photos, capsys):
    spec = recipe(tmp_path, photos)
    vae = fresh_autoencoder(spec.autoencoder, (3, 16, 16))
    with torch.no_grad():  # the second of two channels says nothing
        vae.quant_conv.weight[1] = 0
        vae.quant_conv.bias[1] = 0.5
    with pytest.raises(ValueError, match=r"no spread in channel 1 \(of 2\)"):
        write_autoencoder(spec, vae, sources(spec)[0], tmp_path / "out")
    assert not (tmp_path / "out" / "vae").exists()
    vae.save_pretrained(tmp_path / "flat")
    text = (tmp_path / "r.toml").read_text()
    text = text[: text.index("[autoencoder]")] + text[text.index("[model]") :]
    (tmp_path / "r.toml").write_text(text.replace('"autoencoder"', f'"{tmp_path / "flat"}"'))
    with pytest.raises(SystemExit) as stop:
        main(["train", str(tmp_path / "r.toml"), "--out", str(tmp_path / "out")])
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(lines) == 1, lines
    assert "no spread in channel 1 (of 2)" in lines[0]


def test_a_clean_clip_sees_latents_through_the_decoder(tmp_path, photos):
    from guidestar.diffusers.read.vae import ThroughDecoder

    run.train(recipe(tmp_path, photos), tmp_path / "out", only=["autoencoder"])
    vae = diffusers.AutoencoderKL.from_pretrained(tmp_path / "out" / "vae")

    class Redness:
        def log_prob(self, x, level, target):
            return (x[:, 0] - x[:, 1]).sum((1, 2)) * target

    z = torch.randn(2, 2, 8, 8, requires_grad=True)
    ThroughDecoder(vae, Redness()).log_prob(z, None, torch.tensor([1.0, 2.0])).sum().backward()
    again = z.detach().requires_grad_()
    mean, std = (
        torch.tensor(v).view(-1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std)
    )
    pictures = vae.decode(again * std + mean).sample
    loss = (pictures[:, 0] - pictures[:, 1]).sum((1, 2)) * torch.tensor([1.0, 2.0])
    loss.sum().backward()
    torch.testing.assert_close(z.grad, again.grad)
