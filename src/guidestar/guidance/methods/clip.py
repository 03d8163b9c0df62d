"""CLIP guidance: the gradient of how well a picture fits a caption pushes it towards that
caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ...core.levels import expand
from ...core.prediction import Prediction
from ..bases.log_prob_term import Climbing, LogProb
from ..bases.loss_term import scoring
from ..expression import register
from ..term import Context, Direction, Live, Pushed


@register
@dataclass(frozen=True)
class Clip(Climbing):
    """CLIP guidance, classifier guidance by an image–text classifier.

    ``D̂ = D + s (σ²/α) ∇_{x_t} e^{scale}⟨f(x_t, level), g(caption)⟩``, with unit embeddings f of
    pictures and g of captions, and CLIP's own logit scale.

    Args:
        scale: s. Usual: 3 with a noise-aware CLIP.
        text: a caption, or a list of one for each sample; by default the requested prompt of each.
            Also embeddings ``[1, D]`` or ``[B, D]``.
        net: which of the model's CLIPs: by default "clip", which sees noise, and with ``through``
            "clean_clip".
        fit: any differentiable ``fit(x, level, embedding) -> [B]`` in place of ``net``; with it,
            text is embeddings.
        through: None to look at x_t (a noise-aware CLIP); "cond" or "uncond" to look at the clean
            estimate of that pass, differentiating through the network.

    1 evaluation and 1 gradient of CLIP's image tower a step. Where a noise-aware CLIP says up to
    which noise ratio it is to be trusted (``rho_max``), that is the default interval. The push is 0
    at alpha = 0, and for a sample whose caption is "".

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
                    "clip: a fit of your own is told embeddings; give text= as a tensor [1, D] "
                    "or [B, D]"
                )
            return self
        name = self.net or ("clean_clip" if self.through else "clip")
        clip = self._find(name, context)
        embedded = (
            self.text if isinstance(self.text, Tensor) else _embedded(clip, self._captions(context))
        )
        return replace(
            self, net=name, fit=clip.log_prob, text=embedded, interval=self.trusted(clip, name)
        )

    def _find(self, name: str, context: Context) -> Any:
        clip = context.classifiers.get(name)
        if clip is None or not hasattr(clip, "embed_text"):
            known = (
                ", ".join(n for n, c in context.classifiers.items() if hasattr(c, "embed_text"))
                or "none"
            )
            raise ValueError(
                f"clip: there is no CLIP {name!r} (there is {known}); give fit=, or a model that "
                "carries one"
            )
        if not self.through and not getattr(clip, "noise_aware", True):
            raise ValueError(
                f"clip: {name!r} has never seen noise; look at a clean estimate, through='cond' "
                "or through='uncond'"
            )
        return clip

    def _captions(self, context: Context) -> Sequence[str]:
        if self.text is None and context.prompts is None:
            raise ValueError(
                "clip: no prompt was requested; write the caption, clip(3, 'a red apple'), or "
                "give cond="
            )
        captions: Any = context.prompts if self.text is None else self.text
        return [captions] if isinstance(captions, str) else captions

    def push(self, live: Live, *predictions: Prediction) -> Pushed:
        target = live.mine(self.text).to(live.x_t.device, non_blocking=True)  # type: ignore[arg-type]
        gradient = self.uphill(live, self.fit, target, predictions)  # type: ignore[arg-type]
        return expand(scoring(live.step.t), gradient) * gradient, live.state


def _embedded(clip: Any, captions: Sequence[str]) -> Tensor:
    """Embed captions once each; "" asks for nothing, and is embedded as nothing."""
    once = list(dict.fromkeys(captions))
    with torch.inference_mode(False), torch.no_grad():
        found = dict(zip(once, clip.embed_text(once), strict=True))
    return torch.stack([found[c] if c else torch.zeros_like(found[c]) for c in captions])
