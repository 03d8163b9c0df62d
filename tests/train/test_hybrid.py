"""The hybrid objective, written out from its formulas, and the DiT that it trains."""

from __future__ import annotations

import math

import numpy
import pytest
import torch
from PIL import Image
from torch import nn

import guidestar as gs
from diffusers import DiTPipeline, DiTTransformer2DModel
from guidestar.core.denoiser import Condition
from guidestar.core.levels import VP
from guidestar.networks.network import Network
from guidestar.train import run
from guidestar.train.export import assemble
from guidestar.train.objectives.denoising import Denoising
from guidestar.train.objectives.hybrid import Hybrid
from guidestar.train.objectives.level_distributions import UniformTime
from guidestar.train.objectives.weighting import Uniform
from guidestar.train.recipe import schema as recipes
from helpers.recipes import LATENTS_OF_PHOTOS

COUNT = 6
SCHEDULE = VP.linear(COUNT, 0.02, 0.4)
HYBRID = Hybrid(
    simple=Denoising(
        schedule=SCHEDULE, levels=UniformTime(discrete=True), weighting=Uniform(space="eps")
    )
)


class Two(nn.Module):
    """Twice the channels: a mean and a share of the variance."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(2, 4, 3, padding=1)

    def forward(self, x, t, **cond):
        return torch.tanh(self.layer(x) + 0.1 * t.view(-1, 1, 1, 1).to(x))


def phi(z):
    return 0.5 * (1 + math.erf(z / math.sqrt(2)))


@torch.no_grad()
def written_out(net, x0, draw, t):
    """The loss of one sample [C, H, W] at the time t, number by number (DDPM's notation)."""
    betas = numpy.linspace(0.02, 0.4, COUNT)
    bars = numpy.cumprod(1 - betas)
    noise = draw.normal("noise", tuple(x0.shape))[0]
    x_t = math.sqrt(bars[t]) * x0 + math.sqrt(1 - bars[t]) * noise
    eps, v = net(x_t[None].float(), torch.tensor([float(t)]))[0].double().chunk(2)
    simple = (eps - noise).square().mean()
    before = bars[t - 1] if t else 1.0
    tilde = [(1 - bars[i - 1]) / (1 - bars[i]) * betas[i] for i in range(1, COUNT)]
    tilde = [tilde[0], *tilde]  # that of the first step is 0, and is clipped to the second's
    total = 0.0
    for c, i, j in numpy.ndindex(*x0.shape):
        x, noisy = float(x0[c, i, j]), float(x_t[c, i, j])
        guess = (noisy - math.sqrt(1 - bars[t]) * float(eps[c, i, j].detach())) / math.sqrt(bars[t])

        def mean(clean, noisy=noisy):
            return (
                math.sqrt(before) * betas[t] / (1 - bars[t]) * clean
                + math.sqrt(1 - betas[t]) * (1 - before) / (1 - bars[t]) * noisy
            )

        share = (float(v[c, i, j].detach()) + 1) / 2
        log_var = share * math.log(betas[t]) + (1 - share) * math.log(tilde[t])
        if t:
            total += 0.5 * (
                log_var
                - math.log(tilde[t])
                - 1
                + math.exp(math.log(tilde[t]) - log_var)
                + (mean(x) - mean(guess)) ** 2 * math.exp(-log_var)
            )
        else:
            width = math.exp(0.5 * log_var)
            above = phi((x + 1 / 255 - mean(guess)) / width)
            below = phi((x - 1 / 255 - mean(guess)) / width)
            mass = above if x < -0.999 else 1 - below if x > 0.999 else above - below
            total -= math.log(max(mass, 1e-12))
    return float(simple + 0.001 * COUNT * total / x0.numel() / math.log(2))


def test_the_loss_is_the_formula_at_every_time():
    torch.manual_seed(0)
    net, seen = Two(), set()
    x0 = torch.rand(24, 2, 3, 2) * 2 - 1
    x0[:, 0, 0, 0], x0[:, 1, 0, 0] = -1.0, 1.0  # bins that are open to a side
    draw = gs.Draw(list(range(24)), 3)
    found = HYBRID(Network(net, learned_variance=True), x0, Condition(), draw)
    for k in range(24):
        alone = gs.Draw([k], 3)
        t = int(alone.uniform("level") * COUNT)
        seen.add(t)
        assert float(found[k].detach()) == pytest.approx(
            written_out(net, x0[k], alone, t), rel=2e-4
        )
    assert seen == set(range(COUNT))


def test_the_bound_trains_the_variance_alone():
    torch.manual_seed(0)
    x0, draw = torch.rand(12, 2, 3, 2) * 2 - 1, gs.Draw(list(range(12)), 1)
    gradients = []
    for objective in (HYBRID, HYBRID.simple):
        torch.manual_seed(1)
        net = Two()
        objective(Network(net, learned_variance=True), x0, Condition(), draw).sum().backward()
        gradients.append(net.layer.weight.grad)
    one, other = gradients
    torch.testing.assert_close(one[:2], other[:2])  # the mean's: as without the bound
    assert float(other[2:].abs().max()) == 0 and float(one[2:].abs().min()) > 0


def test_a_network_without_a_variance_is_refused():
    net = Network(nn.Conv2d(2, 2, 1))
    net.net.forward = lambda x, t: x
    with pytest.raises(ValueError, match="must return twice as many channels"):
        HYBRID(net, torch.zeros(1, 2, 3, 2), Condition(), gs.Draw([0]))


RECIPE = (
    LATENTS_OF_PHOTOS
    + """[conditions.label]
dropout = 0.1
[schedule]
kind = "vp"
[levels]
kind = "uniform"
[objective]
predicts = "eps"
variance = "learned"
[autoencoder]
widths = [8, 8]
groups = 4
latent_channels = 4
kl = 1e-4
spread = "scalar"
train = {{ steps = 3, batch = 4, warmup = 1, decay = 0.5 }}
[model]
network = "DiTTransformer2DModel"
train = {{ steps = 3, batch = 4, warmup = 1, decay = 0.5 }}
[model.config]
num_layers = 1
num_attention_heads = 2
attention_head_dim = 8
patch_size = 2
num_embeds_ada_norm = 1000
[export]
guidance = "cfg(2)"
solver = "ddim"
grid = "uniform"
steps = 4
"""
)


def test_a_dit_is_trained_with_its_variance_and_loads_as_a_pipeline(tmp_path):
    for k, name in enumerate(("cat", "dog")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(6):
            torch.manual_seed(10 * k + i)
            small = (torch.rand(4, 4, 3) * 255).byte().numpy()
            file = tmp_path / "photos" / name / f"{i}.png"
            Image.fromarray(small).resize((16, 16)).save(file)
    (tmp_path / "r.toml").write_text(RECIPE.format(data=tmp_path / "photos"))
    spec = recipes.read_recipe(tmp_path / "r.toml")
    source = run.sources(spec)[0]
    fresh = run.build_part(spec, "model", source).module
    assert fresh.denoiser.learned_variance and fresh.encoder.parts["label"].null_index == 1000
    net = fresh.denoiser.net.net
    with torch.no_grad():  # adaLN-Zero: nothing comes out, whatever goes in
        out = net(torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.tensor([0, 1000])).sample
    assert out.shape == (2, 8, 8, 8) and float(out.abs().max()) == 0
    assert run.train(spec, tmp_path / "out")
    assemble(spec, tmp_path / "out")
    folder = tmp_path / "out" / "tiny"
    DiTTransformer2DModel.from_pretrained(folder, subfolder="transformer")
    pipe = DiTPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.labels == {"cat": 0, "dog": 1}
    model = gs.load(folder)
    assert model.encoder.null(1)["class_labels"].tolist() == [1000]
    # The pipeline guides three channels; so do we where that is asked for, and decode alike.
    seen = []
    decode = pipe.vae.decode
    pipe.vae.decode = lambda z: seen.append(z) or decode(z)
    theirs = pipe([1], guidance_scale=3.0, num_inference_steps=2, output_type="np")
    assert theirs.images.shape == (1, 16, 16, 3)
    x = seen[0] * pipe.vae.config.scaling_factor
    torch.testing.assert_close(
        model.to_images(x), decode(seen[0]).sample.clamp(-1, 1), atol=1e-5, rtol=0
    )
    samples = model.sample(
        ["dog"], guidance="cfg(3, channels=3)", solver="ddpm", steps=3, seeds=[0]
    )
    assert samples.images.isfinite().all()


def test_what_cannot_be_is_one_line(tmp_path):
    text = RECIPE.format(data=tmp_path)

    def refused(*change):
        (tmp_path / "r.toml").write_text(text.replace(*change))
        with pytest.raises(ValueError) as found:
            recipes.read_recipe(tmp_path / "r.toml")
        assert "\n" not in str(found.value)
        return str(found.value)

    assert "a sum over the times of a table" in refused('kind = "uniform"', 'kind = "logit-normal"')
    head, _, tail = text.partition("[model]")
    end = tail[tail.index("[export]") :]
    unet = '[model]\nnetwork = "unet"\nwidths = [8]\nhead = 8\ntrain = { steps = 1 }\n'
    assert "learned by a network of Diffusers" in refused(text, head + unet + end)
