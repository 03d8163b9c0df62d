"""Latents through a VAE, for a classifier of a pipeline's pictures and as a model's decoder:
scaled, shifted and in the precision that the VAE asks for.
"""

import copy
import re

import pytest
import torch

import guidestar
from diffusers import AsymmetricAutoencoderKL, AutoencoderTiny, VQModel
from guidestar.diffusers.read.vae import Decoder, decoded, encoded, read_decoder
from helpers.pipeline_families import family
from helpers.pipelines import close, drawn, stable_diffusion, told, vae, walked

MEAN, STD = [0.1, -0.2, 0.3, 0.4], [1.0, 2.0, 0.5, 3.0]
THROUGH = {"target": 5, "through_vae": True}


def latents(dtype=torch.float64):
    return torch.randn(
        2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).to(dtype)


class Bright:
    """A classifier of pictures: how near they are to 5; it keeps what it saw."""

    def __init__(self):
        self.seen = []

    def log_prob(self, x, level, target):
        self.seen.append(x.detach())
        return -((x.double() - 5) ** 2).flatten(1).sum(1)


def pushed(pipe, picture, scale):
    """The clean estimate of ``cond + classifier(scale, through='cond')`` where ``picture(latents)``
    is what is looked at, written out.
    """
    embeds = told(pipe)[2:]

    def guide(i, c, u, x, alpha, sigma):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            x0 = (
                leaf
                - sigma
                * pipe.unet(leaf, pipe.scheduler.timesteps[i], encoder_hidden_states=embeds).sample
            ) / alpha
            (gradient,) = torch.autograd.grad(-((picture(x0).double() - 5) ** 2).sum(), leaf)
        return c + scale * sigma**2 / alpha * gradient

    return guide


def test_a_classifiers_pictures_have_the_vaes_mean_and_spread_of_each_channel():
    pipe, x = stable_diffusion(), latents()
    pipe.vae.register_to_config(latents_mean=MEAN, latents_std=STD, shift_factor=0.25)
    with guidestar.guided(
        pipe,
        "cond + classifier(0.01, through='cond')",
        classifiers={"classifier": Bright()},
        **THROUGH,
    ):
        ours = drawn(pipe, latents=x)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 4, 1, 1) for v in (MEAN, STD))
    wanted = walked(
        pipe, pushed(pipe, lambda x0: pipe.vae.decode(x0 * std / 0.6 + mean + 0.25).sample, 0.01), x
    )
    assert close(ours, wanted, 1e-9) and not close(
        ours, drawn(pipe, latents=x, guidance_scale=1.0), 1e-2
    )


def bits(net):
    return {name: t.clone() for name, t in net.state_dict().items()}


def same(net, before):
    return all(
        t.dtype == before[name].dtype and torch.equal(t, before[name])
        for name, t in net.state_dict().items()
    )


def test_a_vae_that_overflows_in_half_precision_decodes_in_float32_and_is_in_half_afterwards():
    pipe, x, judge = stable_diffusion(), latents(), Bright()
    pipe.vae.half()
    single, before = copy.deepcopy(pipe.vae).float(), bits(pipe.vae)
    with guidestar.guided(
        pipe, "cond + classifier(0.1, through='cond')", classifiers={"classifier": judge}, **THROUGH
    ):
        ours = drawn(pipe, latents=x)
    assert {seen.dtype for seen in judge.seen} == {torch.float32} and same(pipe.vae, before)
    wanted = walked(pipe, pushed(pipe, lambda x0: single.decode((x0 / 0.6).float()).sample, 0.1), x)
    assert close(ours, wanted, 1e-5) and not close(
        ours, drawn(pipe, latents=x, guidance_scale=1.0), 1e-2
    )


def test_a_vae_that_overflows_in_half_precision_says_nothing_at_every_step(caplog):
    pipe = stable_diffusion()
    pipe.vae.half()
    with guidestar.guided(
        pipe,
        "cond + classifier(0.1, through='cond')",
        classifiers={"classifier": Bright()},
        **THROUGH,
    ):
        drawn(pipe, latents=latents())
    assert not [r for r in caplog.records if "float32" in r.getMessage()]


def test_a_vae_that_does_not_overflow_stays_in_half_precision():
    pipe, judge = stable_diffusion(), Bright()
    pipe.vae.half().register_to_config(force_upcast=False)
    with guidestar.guided(
        pipe, "cond + classifier(0.1, through='cond')", classifiers={"classifier": judge}, **THROUGH
    ):
        drawn(pipe, latents=latents())
    assert {seen.dtype for seen in judge.seen} == {torch.float16}


def test_a_decoding_that_fails_leaves_the_vae_in_half_precision():
    net = vae().half()
    before = bits(net)
    with pytest.raises(RuntimeError):
        decoded(net, torch.zeros(1, 3, 8, 8))
    assert same(net, before)


def test_a_models_decoder_decodes_in_float32_too():
    net = vae().half()
    single, before, x = copy.deepcopy(net).float(), bits(net), latents(torch.float32)
    images = Decoder(net)(x)
    assert images.dtype == torch.float32 and same(net, before)
    with torch.no_grad():
        assert torch.equal(images, single.decode(x / 0.6).sample.clamp(-1, 1))


OTHERS = {
    "tiny": lambda: AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        num_encoder_blocks=(1,) * 4,
        num_decoder_blocks=(1,) * 4,
    ),
    "asymmetric": lambda: AsymmetricAutoencoderKL(
        down_block_types=("DownEncoderBlock2D",),
        down_block_out_channels=(8,),
        up_block_types=("UpDecoderBlock2D",),
        up_block_out_channels=(8,),
        norm_num_groups=2,
    ),
}


@pytest.mark.parametrize(("name", "factor"), [("tiny", 1.0), ("asymmetric", 0.18215)])
def test_other_vaes_of_the_same_latents(name, factor):
    torch.manual_seed(0)
    net, x = OTHERS[name]().eval(), latents(torch.float32)
    with torch.no_grad():
        assert torch.equal(decoded(net, x), net.decode(x / factor).sample)


def test_vaes_whose_latents_are_treated_otherwise_are_refused(tmp_path):
    line = (
        r"how the latents of AutoencoderKLTemporalDecoder are packed and normalised is not "
        r"known here; VAEs that are: AutoencoderKL, .*; leave through_vae out"
    )
    with pytest.raises(
        ValueError, match=f"^StableVideoDiffusionPipeline: {line}, and classify the latents$"
    ):
        guidestar.guide(
            family("svd").pipe, "classifier(1)", classifiers={"classifier": Bright()}, **THROUGH
        )
    VQModel(block_out_channels=(8,), norm_num_groups=2, num_vq_embeddings=4).save_pretrained(
        tmp_path
    )
    with pytest.raises(
        ValueError,
        match=f"^{re.escape(str(tmp_path))}/config.json: how the latents of VQModel are packed "
        "and normalised is not known here",
    ):
        read_decoder(tmp_path)


@pytest.mark.parametrize("kind", ["kl", "tiny"])
def test_encoding_is_the_inverse_of_decodings_scaling(kind):
    """Of the latents that a VAE encodes pictures into: minus mean and shift, through the spread,
    times the factor.
    """
    torch.manual_seed(2)
    net = (
        vae()
        if kind == "kl"
        else AutoencoderTiny(
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        ).double()
    )
    net.register_to_config(
        latents_mean=MEAN, latents_std=STD, shift_factor=0.25, scaling_factor=0.6
    )
    x = (
        torch.rand(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        * 2
        - 1
    )
    with torch.no_grad():
        raw = net.encode(x).latent_dist.mean if kind == "kl" else net.encode(x).latents
        mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 4, 1, 1) for v in (MEAN, STD))
        made = encoded(net, x)
        torch.testing.assert_close(made, (raw - mean - 0.25) / std * 0.6)
        torch.testing.assert_close(decoded(net, made), net.decode(raw).sample)
