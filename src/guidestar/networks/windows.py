"""Samples longer or wider than a network was trained for, by overlapping windows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..core.denoiser import Condition, Denoiser
from ..core.levels import Level
from ..core.prediction import Prediction


class Windowed(nn.Module):
    """A denoiser of long samples, made of one of short ones.

    The sample is cut into windows that overlap, each is estimated by itself under the sample's
    condition, and estimates are blended where windows overlap:

        x0 = Σ_k w_k D(x_t in window k) / Σ_k w_k

    A window's weight rises linearly over the overlap, ``w = 1/(m + 1), 2/(m + 1), …, 1``, and falls
    at its end as it rose. Windows begin ``size − overlap`` apart; the last one ends with the
    sample. Perturbed passes (``pag`` and its kind) are refused, as layers know windows alone.

    Args:
        denoiser: estimates windows.
        size: of a window along ``dim``, as trained.
        overlap: of neighbours, from 0 to ``size − 1``.
        dim: the dimension of a sample that is longer: 0 of a motion ``[T, C]``, −1 for wide
            pictures ``[C, H, W]``.

    Raises:
        ValueError: the overlap is not below the size; in a call, samples shorter than a window.

    References:
        MultiDiffusion: Fusing Diffusion Paths for Controlled Image Generation, equation 5,
        https://arxiv.org/abs/2302.08113
    """

    def __init__(self, denoiser: Denoiser, *, size: int, overlap: int, dim: int = -1) -> None:
        super().__init__()
        if size < 1 or not 0 <= overlap < size:
            raise ValueError(
                f"windows of {size} should overlap by 0 to {size - 1}, not {overlap}"
                if size > 0
                else f"the size of a window must be at least 1, not {size}"
            )
        self.inner, self.size, self.overlap, self.dim = denoiser, size, overlap, dim

    @property
    def cpu_rows(self) -> int | None:
        """The most windows of a call on a CPU: the denoiser's own number of rows."""
        return getattr(self.inner, "cpu_rows", None)

    def starts(self, length: int) -> list[int]:
        """Return where the windows of a sample begin.

        Raises:
            ValueError: it is shorter than a window.
        """
        if length < self.size:
            raise ValueError(
                f"samples of {length} along dimension {self.dim} are shorter than a window of "
                f"{self.size}; sample with the model itself"
            )
        last = length - self.size
        return [*range(0, last, self.size - self.overlap), last]

    def weight(self) -> Tensor:
        """Return the weight of each place of a window: ``[size]``, float64."""
        rise = torch.arange(1, self.size + 1, dtype=torch.float64)
        return torch.minimum(rise, rise.flip(0)).clamp_max(self.overlap + 1) / (self.overlap + 1)

    def forward(self, x_t: Tensor, level: Level, cond: Condition) -> Tensor:
        """Estimate x0 ``[B, *S]``."""
        dim = self.dim + 1 if self.dim >= 0 else x_t.ndim + self.dim
        starts = self.starts(x_t.shape[dim])
        windows = torch.cat([x_t.narrow(dim, s, self.size) for s in starts])
        found = self._estimate(windows, len(starts), level, cond).split(len(x_t))
        shape = [self.size if d == dim else 1 for d in range(x_t.ndim)]
        weight = self.weight().to(x_t).reshape(shape)
        made, total = torch.zeros_like(x_t), torch.zeros_like(x_t)
        for start, estimate in zip(starts, found, strict=True):
            made.narrow(dim, start, self.size).add_(weight * estimate)
            total.narrow(dim, start, self.size).add_(weight)
        return made / total

    def _estimate(self, windows: Tensor, count: int, level: Level, cond: Condition) -> Tensor:
        """Estimate windows ``[count · B, *S]``, which come window by window."""
        batch = len(windows) // count
        rows = torch.arange(batch).repeat(count)
        whole = cond.repeat(batch)
        most = self.cpu_rows if windows.device.type == "cpu" else None
        made = []
        for part in torch.arange(len(windows)).split(most or len(windows)):
            own = rows[part]
            given = whole.take(own) if whole.batch else whole
            found = self.inner(windows[part[0] : part[-1] + 1], level.take(own), given)
            made.append(found.x0 if isinstance(found, Prediction) else found)
        return torch.cat(made)
