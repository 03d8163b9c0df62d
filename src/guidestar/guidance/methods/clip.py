"""CLIP guidance: the gradient of the similarity of a picture and a caption pushes the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from ...core.levels import expand
from ...core.prediction import Prediction
from ..bases.log_prob_term import Climbing, LogProb, LogProbModel
from ..bases.loss_term import scoring
from ..expression import register
from ..term import Context, Direction, Live, Pushed


@runtime_checkable
class ClipModel(LogProbModel, Protocol):
    """A CLIP model, whose targets are embeddings."""

    def embed_text(self, captions: Sequence[str], /) -> Tensor:
        """Return embeddings ``[N, D]`` of captions."""
        ...


@register
@dataclass(frozen=True)
class Clip(Climbing):
    """CLIP guidance, classifier guidance by an image–text classifier.

    ``D̂ = D + s (σ²/α) ∇_{x_t} e^{scale}⟨f(x_t, level), g(caption)⟩``, with unit embeddings f of
    pictures and g of captions, and the logit scale of the CLIP model.

    Args:
        scale: s. Usual: 3 with a noise-aware CLIP.
        text: a caption, or a list of one for each sample; by default the requested prompt of each.
            Also embeddings ``[1, D]`` or ``[B, D]``.
        net: name of the model's CLIP: by default the noise-aware "clip", and with ``through``
            "clean_clip".
        fit: any differentiable ``fit(x, level, embedding) -> [B]`` in place of ``net``; ``text``
            is then embeddings.
        through: None for the fit of x_t (a noise-aware CLIP); "cond" or "uncond" for the fit of the
            clean estimate of that pass, differentiated through the network.

    1 evaluation and 1 gradient of CLIP's image tower a step. If a noise-aware CLIP has a calibrated
    limit of the noise ratio (``rho_max``), that is the default interval. The push is 0 at alpha =
    0, and for a sample whose caption is "".

    References:
        GLIDE: Towards Photorealistic Image Generation and Editing with Text-Guided Diffusion
        Models, section 2.4,
        https://arxiv.org/abs/2112.10741
            Alex Nichol, Prafulla Dhariwal, Aditya Ramesh, Pranav Shyam, Pamela Mishkin, Bob McGrew,
            Ilya Sutskever, Mark Chen
    """

    text: str | Sequence[str] | Tensor | None = None
    net: str | None = None
    fit: LogProb | None = None
    through: Literal["cond", "uncond"] | None = None
    name = "clip"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.text, list):
            object.__setattr__(self, "text", tuple(self.text))

    def bind(self, context: Context) -> Direction:
        if self.fit is not None:
            if not isinstance(self.text, Tensor):
                raise ValueError(
                    "clip: your fit= gets embeddings; give text= as a tensor [1, D] or [B, D]"
                )
            return self
        name = self.net or ("clean_clip" if self.through else "clip")
        clip, text = self._find(name, context), self.text
        if not isinstance(text, Tensor):
            text = _embed(clip, self._captions(context))
        interval = self.usable_interval(clip, name)
        return replace(self, net=name, fit=clip.log_prob, text=text, interval=interval)

    def _find(self, name: str, context: Context) -> ClipModel:
        models = {n: c for n, c in context.classifiers.items() if isinstance(c, ClipModel)}
        if name not in models:
            raise ValueError(
                f"clip: there is no CLIP {name!r} (there is {', '.join(models) or 'none'}); give "
                "fit=, or a model that has one"
            )
        if not self.through and not getattr(models[name], "noise_aware", True):
            raise ValueError(
                f"clip: {name!r} was trained without noise; use a clean estimate, through='cond' "
                "or through='uncond'"
            )
        return models[name]

    def _captions(self, context: Context) -> Sequence[str]:
        if self.text is None and context.prompts is None:
            raise ValueError(
                "clip: no prompt was requested; write the caption, clip(3, 'a red apple'), or "
                "give cond="
            )
        captions = context.prompts if self.text is None else self.text
        assert captions is not None and not isinstance(captions, Tensor)
        return [captions] if isinstance(captions, str) else captions

    @property
    def climbed(self) -> tuple[LogProb | None, Tensor | None]:
        assert isinstance(self.text, Tensor)
        return self.fit, self.text

    def push(self, live: Live, *predictions: Prediction) -> Pushed:
        assert isinstance(self.text, Tensor)
        target = live.own_rows(self.text).to(live.x_t.device, non_blocking=True)
        gradient = self.ascend(live, self.fit, target, predictions)
        return expand(scoring(live.step.t), gradient) * gradient, live.state


def _embed(clip: ClipModel, captions: Sequence[str]) -> Tensor:
    """Embed each different caption once; the embedding of "" is 0."""
    once = list(dict.fromkeys(captions))
    with torch.inference_mode(False), torch.no_grad():
        found = dict(zip(once, clip.embed_text(once), strict=True))
    return torch.stack([found[c] if c else torch.zeros_like(found[c]) for c in captions])
