"""Metrics, and their input: what a judge predicts of samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class JudgeOutput(NamedTuple):
    """What a judge predicts of samples, on the CPU.

    Args:
        features: ``[N, d]``, features of each sample, in the judge's units.
        logits: ``[N, K]``, one for each class.
        wanted: ``[N]`` int64, the class each sample should show.
    """

    features: Tensor
    logits: Tensor
    wanted: Tensor

    @property
    def predicted(self) -> Tensor:
        """The class that the judge predicts of each sample: ``[N]``, int64."""
        return self.logits.argmax(1)


class FeatureClassifier(Protocol):
    """A classifier of clean images with features; it guides nothing and only measures."""

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits ``[N, K]`` of images ``[N, C, H, W]``."""
        ...

    def features(self, images: Tensor) -> Tensor:
        """Return features ``[N, d]`` of images ``[N, C, H, W]``."""
        ...


class Metric(ABC):
    """A measure of samples that arrive in batches: call `update` with each, then `compute`.

    The result depends on all samples together and not on how they were batched.
    """

    @abstractmethod
    def update(self, samples: JudgeOutput) -> None:
        """Add a batch of samples."""

    @abstractmethod
    def compute(self) -> float:
        """Return the measure of all samples so far.

        Raises:
            ValueError: there are too few of them.
        """


@torch.no_grad()
def run_judge(
    judge: FeatureClassifier, images: Tensor, wanted: Tensor | None = None, *, batch: int = 500
) -> JudgeOutput:
    """Return what a judge predicts of images ``[N, C, H, W]``.

    Args:
        judge: a callable that gives logits, with a method ``features``; in evaluation mode.
        images: in the judge's range of values (ours: [−1, 1]).
        wanted: the class each should show, ``[N]``; by default the predicted one, which groups
            unconditional samples (and makes their accuracy 1, whatever they are).
        batch: images at a time.

    Raises:
        ValueError: no images, not one class for each, or the judge is in training mode.
    """
    if getattr(judge, "training", False):
        raise ValueError(
            "the judge is in training mode, where dropout changes its predictions; call "
            "judge.eval() first"
        )
    if len(images) == 0 or (wanted is not None and wanted.shape != images.shape[:1]):
        given = "no" if wanted is None else tuple(wanted.shape)
        raise ValueError(
            "a judge needs images and one wanted class for each, not images "
            f"{tuple(images.shape)} and {given} classes"
        )
    like = next(judge.parameters(), images) if isinstance(judge, torch.nn.Module) else images
    parts = [chunk.to(like.device, like.dtype) for chunk in images.split(batch)]
    features = torch.cat([judge.features(part).cpu() for part in parts])
    logits = torch.cat([judge(part).cpu() for part in parts])
    return JudgeOutput(features, logits, logits.argmax(1) if wanted is None else wanted.cpu())
