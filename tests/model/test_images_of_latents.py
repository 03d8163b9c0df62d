"""A model of latents takes pictures: to start from, and as observations through its decoder."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import guidestar as gs
from diffusers import AutoencoderKL
from guidestar.diffusers.read.vae import Decoder

MEAN, STD, FACTOR = (0.3, -0.2), (0.7, 1.3), 0.5


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return (
        AutoencoderKL(
            block_out_channels=(8, 8),
            norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=2,
            latents_mean=MEAN,
            latents_std=STD,
            scaling_factor=FACTOR,
        )
        .eval()
        .requires_grad_(False)
    )


def gaussian(x: Tensor, level: gs.Level, cond: object) -> Tensor:
    """Return the clean estimate of normal latents of variance 1."""
    a, s = (torch.as_tensor(v).reshape(-1, 1, 1, 1) for v in (level.alpha, level.sigma))
    return a * x / (a**2 + s**2)


@pytest.fixture
def model(vae):
    return gs.Model(
        name="latents",
        denoiser=gaussian,
        schedule=gs.Flow(),
        shape=(2, 4, 4),
        decode=Decoder(vae),
    )


def spread(values):
    return torch.tensor(values)[:, None, None]


def plain_decode(vae, z):
    return vae.decode(z * spread(STD) / FACTOR + spread(MEAN)).sample


def test_images_become_latents_by_the_encoder_s_mean(model, vae):
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    wanted = (vae.encode(images).latent_dist.mean - spread(MEAN)) / spread(STD) * FACTOR
    assert model.image_shape == (3, 8, 8) == model.need_image_shape()
    torch.testing.assert_close(model.from_images(images), wanted)


def test_images_of_pixels_are_the_samples_themselves(model):
    pixels = gs.load("fashion-mnist")
    x = torch.zeros(2, 1, 28, 28)
    assert pixels.from_images(x) is x and pixels.image_shape == (1, 28, 28)
    blur = gs.Blur()
    assert pixels.on_images(blur) is blur
    with pytest.raises(ValueError, match=r"\[2, 3, 28, 28\].*are \[B, 1, 28, 28\]"):
        pixels.from_images(torch.zeros(2, 3, 28, 28))
    with pytest.raises(ValueError, match=r"\[1, 2, 4, 4\].*'latents' are \[B, 3, 8, 8\]"):
        model.from_images(torch.zeros(1, 2, 4, 4))  # latents already


def test_an_operator_of_images_sees_latents_through_the_decoder(model, vae):
    z = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(2)).requires_grad_()
    halved = gs.Downsample(factor=2)
    wanted = halved(plain_decode(vae, z))
    found = model.on_images(halved)(z)
    torch.testing.assert_close(found, wanted)
    direction = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    (expected,) = torch.autograd.grad((wanted * direction).sum(), z)
    (reached,) = torch.autograd.grad((found * direction).sum(), z)
    torch.testing.assert_close(reached, expected)


def test_an_observation_of_latents_is_the_distance_of_decoded_pictures(model, vae):
    z = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(4))
    y = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    shown = plain_decode(vae, z)
    plain = gs.Observation(model.on_images("identity"), y)
    torch.testing.assert_close(plain(z), (y - shown).flatten(1).norm(dim=1))
    mask = torch.zeros(1, 8, 8)
    mask[..., 3:] = 1
    masked = gs.Observation(model.on_images(gs.Inpaint(mask=mask)), y)
    torch.testing.assert_close(masked(z), ((y - shown) * mask).flatten(1).norm(dim=1))
    assert not masked.linear and gs.Observation(gs.Inpaint(mask=mask), y).linear


@pytest.mark.parametrize("method", ["pigdm", "mmps"])
def test_methods_of_linear_operators_refuse_a_decoder(model, method):
    y = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match=rf"{method}: .*linear.*decoder of latents none is"):
        model.sample(
            guidance=f"uncond + {method}(1)",
            losses={"loss": gs.Observation(model.on_images("identity"), y)},
            steps=2,
        )


def test_a_sample_is_drawn_towards_what_was_observed(model, vae):
    goal = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(6))
    y = plain_decode(vae, goal)
    observed = {"loss": gs.Observation(model.on_images("identity"), y)}
    distance = lambda images: float((images - y.clamp(-1, 1)).norm())
    free = distance(model.sample(guidance="uncond", steps=12, seeds=[3]).images)
    drawn = model.sample(guidance="uncond + dps(4)", losses=observed, steps=12, seeds=[3])
    assert distance(drawn.images) < 0.5 * free
