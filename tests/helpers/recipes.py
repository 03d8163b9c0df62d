"""Tiny data that recipes of tests are trained on, and what their tables of data have in common."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from guidestar.data import fashion_mnist

LATENTS_OF_PHOTOS = """
name = "tiny"
[data]
path = "{data}"
size = 16
channels = 3
holdout = 0.25
vae = "autoencoder"
"""
"""The head of a recipe whose model learns latents of pictures, by an autoencoder of its own."""


def write_photos(root: Path, draw: Callable[[], np.ndarray]) -> Path:
    """Write twelve pictures of 16 pixels a side in two classes, cat and dog.

    Args:
        root: the folder.
        draw: draws the pixels of a picture by torch's generator, which has a seed of its own.
    """
    for k, name in enumerate(("cat", "dog")):
        (root / name).mkdir()
        for i in range(6):
            torch.manual_seed(10 * k + i)
            Image.fromarray(draw()).resize((16, 16)).save(root / name / f"{i}.png")
    return root


def use_six_pictures(monkeypatch, side: int = 28) -> None:
    """Let six random pictures stand for Fashion-MNIST."""
    x = torch.rand(6, 1, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    monkeypatch.setattr(fashion_mnist, "load_split", lambda split, folder: (x, torch.arange(6)))
