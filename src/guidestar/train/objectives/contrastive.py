"""Contrastive training: CLIP, clean or noise-aware."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ...core.levels import Level, Schedule, expand
from ...core.rng import Draw
from .classification import shifted
from .objective import Objective


@dataclass(frozen=True, kw_only=True)
class Contrastive(Objective):
    """Match each picture of a batch with its caption, and each caption with its picture.

    With unit embeddings ``f_i`` of pictures and ``g_j`` of captions and
    ``z_ij = e^{scale}⟨f_i, g_j⟩``:

        loss_i = −½ Σ_j p_ij (log softmax_j z_ij + log softmax_j z_ji)

    where ``p_ij`` is shared evenly among captions that are the same. Embeddings are compared within
    what one process holds of a batch.

    Args:
        shift: pictures are shifted by up to so many pixels.
        schedule: of a noise-aware CLIP, whose input is ``x_t``; None for a clean one.
        levels: draws one level for each sample of a noise-aware CLIP.

    References:
        Learning Transferable Visual Models From Natural Language Supervision, figure 3,
        https://arxiv.org/abs/2103.00020
    """

    shift: int = 0
    schedule: Schedule | None = None
    levels: Callable[[Schedule, Draw], Level] | None = None

    def __call__(self, net, x0: Tensor, target: Tensor, draw: Draw) -> Tensor:
        """Return the loss ``[B]`` of the CLIP ``net`` on captions' tokens ``target [B, 2, L]``."""
        x, level = self._noised(shifted(x0, self.shift, draw), draw)
        z = (
            net.log_scale.float().clamp_max(4.6052).exp()
            * net.embed_image(x, level)
            @ net.embed_tokens(target).T
        )
        same = (target[:, None, 0] == target[None, :, 0]).all(-1).to(z)
        p = same / same.sum(1, keepdim=True)
        return -0.5 * (p * (z.log_softmax(1) + z.T.log_softmax(1))).sum(1)

    def _noised(self, x0: Tensor, draw: Draw) -> tuple[Tensor, Level | None]:
        if self.schedule is None or self.levels is None:
            return x0, None
        level = self.levels(self.schedule, draw)
        noise = draw.normal_like("noise", x0)
        return expand(level.alpha, x0) * x0 + expand(level.sigma, x0) * noise, level
