"""Measures of motions and captions in one space: R-precision and the matching score."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

POOL = 32
"""Captions and motions that are compared with each other, as in HumanML3D's evaluation."""


def r_precision(
    texts: Tensor, motions: Tensor, *, size: int = POOL, top: int = 3
) -> tuple[float, ...]:
    """Return R-precision at 1, 2, … ``top``: how often a caption's own motion is among the k
    nearest of a pool.

    Pools are ``size`` pairs in their order; what is left over counts nothing. Nearness is by the
    Euclidean distance; of motions that are as near, the earlier one comes first.

    Args:
        texts: embeddings of captions ``[N, D]``.
        motions: embeddings of their motions ``[N, D]``.
        size: pairs of a pool.
        top: the largest k.

    Raises:
        ValueError: there are fewer pairs than one pool has.

    References:
        Generating Diverse and Natural 3D Human Motions from Text, section 5,
        https://doi.org/10.1109/CVPR52688.2022.00509
    """
    hits = torch.zeros(top, dtype=torch.float64)
    pools = _pools(texts, motions, size)
    for apart in pools:
        order = apart.argsort(stable=True)
        own = order == torch.arange(size)[:, None]
        place = own.double().argmax(1)
        hits += torch.stack([(place < k).double().sum() for k in range(1, top + 1)])
    return tuple((hits / (size * len(pools))).tolist())


def matching_score(texts: Tensor, motions: Tensor, *, size: int = POOL) -> float:
    """Return the mean Euclidean distance of captions to their motions (MM-Dist), over whole pools.

    Arguments, errors and reference as of `r_precision`.
    """
    pools = _pools(texts, motions, size)
    return float(torch.stack([apart.diagonal().mean() for apart in pools]).mean())


def _pools(texts: Tensor, motions: Tensor, size: int) -> list[Tensor]:
    """Return the distances ``[size, size]`` from captions to motions of each pool."""
    if len(texts) < size:
        raise ValueError(f"a pool has {size} pairs, and there are {len(texts)}; give more")
    whole = len(texts) // size * size
    pairs = zip(texts[:whole].split(size), motions[:whole].split(size), strict=True)
    return [(t.double()[:, None] - m.double()[None]).norm(dim=2) for t, m in pairs]


def distinct_pools(captions: Sequence[str], size: int = POOL) -> list[int]:
    """Return indices of captions, ``size`` after ``size``, of which none holds a caption twice.

    Where data have few captions, a pool in their order would call a motion wrong that has the very
    same caption. Those of the captions that fill no pool are left out.
    """
    waiting: dict[str, list[int]] = {}
    for k, caption in enumerate(captions):
        waiting.setdefault(caption, []).append(k)
    found: list[int] = []
    while True:
        most = sorted((c for c in waiting if waiting[c]), key=lambda c: -len(waiting[c]))[:size]
        if len(most) < size:
            return found
        found += [waiting[c].pop(0) for c in most]
