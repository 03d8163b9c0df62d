"""Reconstruction: the objective of an autoencoder."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from ...core.rng import Draw
from .objective import Objective


@dataclass(frozen=True, kw_only=True)
class Reconstruction(Objective):
    """Absolute errors of a picture and of its halves, quarters, …, and a small divergence.

    With ``x̂`` the decoded picture, ``P_k`` the mean over squares of ``2^k`` pixels and a posterior
    ``N(μ, diag s²)`` of the latents ``z``:

        loss = Σ_k mean|P_k x̂ − P_k x| + kl · mean ½(μ² + s² − 1 − ln s²),   k = 0 … scales

    Where ``kl`` is 0, or the autoencoder has no posterior, ``x̂`` is decoded from ``μ``; else from a
    ``z`` that is drawn from the posterior (the draw's "posterior").

    Args:
        scales: how often pictures are halved; their side must allow it.
        kl: weight of the divergence, a mean over all numbers of the latents.

    References:
        High-Resolution Image Synthesis with Latent Diffusion Models, section 3.1,
        https://arxiv.org/abs/2112.10752
        Auto-Encoding Variational Bayes, appendix B, https://arxiv.org/abs/1312.6114
    """

    scales: int = 2
    kl: float = 0.0

    def __call__(self, net, x0: Tensor, target: object, draw: Draw) -> Tensor:
        """Return the loss ``[B]`` of the autoencoder ``net`` on pictures ``x0 [B, C, H, W]``."""
        z, divergence = self._encoded(net, x0, draw)
        made = net.decode(z, return_dict=False)[0].to(x0.dtype)
        loss = pyramid_error(made, x0, self.scales)
        return loss if divergence is None else loss + self.kl * divergence

    def _encoded(self, net, x0: Tensor, draw: Draw) -> tuple[Tensor, Tensor | None]:
        found = net.encode(x0)
        if not hasattr(found, "latent_dist"):
            return (found.latents if hasattr(found, "latents") else found.latent), None
        mean, log_var = found.latent_dist.mean, found.latent_dist.logvar
        if not self.kl:
            return mean, None
        noise = draw.normal_like("posterior", mean.float())
        z = mean + (0.5 * log_var).exp() * noise.to(mean)
        terms = mean.float().square() + log_var.float().exp() - 1 - log_var.float()
        return z, 0.5 * terms.flatten(1).mean(1)


def pyramid_error(made: Tensor, real: Tensor, scales: int) -> Tensor:
    """Return ``Σ_k mean|P_k made − P_k real|`` of each picture ``[B]``, ``k = 0 … scales``, where
    ``P_k`` is the mean over squares of ``2^k`` pixels.
    """
    loss = _error(made, real)
    for k in range(1, scales + 1):
        loss = loss + _error(F.avg_pool2d(made, 2**k), F.avg_pool2d(real, 2**k))
    return loss


def _error(made: Tensor, real: Tensor) -> Tensor:
    return (made - real).abs().flatten(1).mean(1)
