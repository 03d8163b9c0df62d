"""Retrieval: does a picture fit its own caption better than all the others?"""

from __future__ import annotations

import torch
from torch import Tensor


def ranks(queries: Tensor, keys: Tensor, right: Tensor) -> Tensor:
    """Return how many ``keys [n, D]`` fit each query ``[B, D]`` better than its own, the one at
    ``right [B]``: 0 is first.

    Keys that fit exactly as well count half, so that a CLIP that tells nothing apart has no luck.
    """
    scores = queries @ keys.T
    own = scores.gather(1, right[:, None])
    return (scores > own).double().sum(1) + ((scores == own).double().sum(1) - 1) / 2


def retrieval(images: Tensor, texts: Tensor) -> dict[str, float]:
    """Return R@1 and R@5 of pairs of unit embeddings ``[n, D]``, from images to texts and back: the
    share of right ones among the first 1 or 5.
    """
    right = torch.arange(len(images), device=images.device)
    found = {}
    for name, queries, keys in (("image to text", images, texts), ("text to image", texts, images)):
        place = ranks(queries, keys, right)
        found |= {f"{name} R@{k}": float((place < k).double().mean()) for k in (1, 5)}
    return found


def merged(texts: Tensor, limit: float = 0.95) -> Tensor:
    """Return a group for each unit embedding ``[n, D]``: captions whose cosine is above ``limit``
    are one.

    Groups are the connected components; each is named by its first member.
    """
    group = torch.arange(len(texts))
    near = texts @ texts.T > limit
    while True:
        least = torch.where(near, group[None, :], len(texts)).amin(1)
        if torch.equal(least, group):
            return group
        group = least
