"""Retrieval: does a picture fit its own caption better than all others?"""

from __future__ import annotations

import torch
from torch import Tensor


def ranks(queries: Tensor, keys: Tensor, right: Tensor) -> Tensor:
    """Return how many keys fit each query better than its own key: ``[B]``, float64; 0 is first.

    Keys that fit exactly as well count half, so a CLIP that gives all the same score gains nothing.

    Args:
        queries: unit embeddings ``[B, D]``.
        keys: unit embeddings ``[n, D]``.
        right: the index of each query's own key, ``[B]``.
    """
    scores = queries @ keys.T
    own = scores.gather(1, right[:, None])
    return (scores > own).double().sum(1) + ((scores == own).double().sum(1) - 1) / 2


def retrieval(images: Tensor, texts: Tensor) -> dict[str, float]:
    """Return R@1 and R@5 of pairs of unit embeddings ``[n, D]``, from images to texts and back.

    R@k is the share of queries whose own key is among the k best.
    """
    right = torch.arange(len(images), device=images.device)
    found = {}
    for name, queries, keys in (("image to text", images, texts), ("text to image", texts, images)):
        place = ranks(queries, keys, right)
        found |= {f"{name} R@{k}": float((place < k).double().mean()) for k in (1, 5)}
    return found


def merged(texts: Tensor, limit: float = 0.95) -> Tensor:
    """Group unit embeddings ``[n, D]`` whose cosine is above ``limit``; return the groups ``[n]``.

    Groups are the connected components; each is named by the index of its first member.
    """
    group = torch.arange(len(texts))
    near = texts @ texts.T > limit
    while True:
        least = torch.where(near, group[None, :], len(texts)).amin(1)
        if torch.equal(least, group):
            return group
        group = least
