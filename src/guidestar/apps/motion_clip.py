"""A small CLIP of motions and captions, which measures and guides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core.levels import Level
from ..data.motions import Motions
from ..data.source import captions_in, split_captions
from ..evaluate.motion_text import distinct_pools, matching_score, r_precision
from ..networks.caption_tokens import make_tokenizer
from ..networks.clip import CLIP
from ..networks.sequence_classifier import SequenceClassifier

if TYPE_CHECKING:
    from ..train.recipe.parts import Training


class MotionTower(nn.Module):
    """CLIP's tower of motions ``[B, T, C]``, standardised and padded with zeros: a residual network
    over the frames.

    Args:
        channels: C.
        embed: length of the embeddings.
        widths: of the network's levels.
        dropout: in training.
    """

    noise_aware = False

    def __init__(
        self,
        channels: int,
        embed: int,
        widths: Sequence[int] = (64, 128),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.net = SequenceClassifier(
            classes=[str(k) for k in range(embed)],
            channels=channels,
            widths=list(widths),
            noise_aware=False,
            dropout=dropout,
        )

    def forward(self, x: Tensor, level: Level | None = None) -> Tensor:
        """Return embeddings ``[B, D]``, not normalised."""
        return self.net(x)


def make_motion_clip(captions: Sequence[str], channels: int, embed: int = 64) -> CLIP:
    """Return a fresh CLIP of motions: a small text tower of transformers beside a `MotionTower`.

    Args:
        captions: of which its tokens are learned.
        channels: numbers of a frame.
        embed: length of the embeddings.
    """
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    tokenizer = make_tokenizer(captions, vocabulary=768, length=24)
    marks = {k: getattr(tokenizer, k) for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=24,
        projection_dim=embed,
        **marks,
    )
    setattr(config, "use_attention_mask", True)  # noqa: B010
    text = CLIPTextModelWithProjection(config)
    return CLIP(text, tokenizer, MotionTower(channels, embed))  # type: ignore[arg-type]


def train_motion_clip(
    source: Motions, file: Path, training: Training, column: str = "text"
) -> CLIP:
    """Train a CLIP of the motions and captions of a source by contrast (`Contrastive`).

    Args:
        source: other motions than the model learns from, so that it judges independently.
        file: the checkpoint, from which a stopped training goes on.
        training: how long and how fast.
        column: of captions.
    """
    from ..train.loop.fit import fit
    from ..train.loop.trainer import Trainer
    from ..train.objectives.contrastive import Contrastive
    from ..train.objectives.objective import TrainSettings

    captions = sorted({c for each in source.captions(column, range(source.size)) for c in each})
    torch.manual_seed(0)
    clip = make_motion_clip(captions, source.shape[1])
    settings = TrainSettings(**training.model_dump(), seed=0)
    trainer = Trainer(
        clip,
        Contrastive(),
        source,
        settings,
        {"captions": captions, "shape": list(source.shape)},
        prepare=lambda targets: clip.tokens(captions_in(targets, column)),
    )
    for _ in fit(trainer, file):
        pass
    clip.load_state_dict(trainer.ema.weights(), strict=False)
    return clip.requires_grad_(False).eval()


@dataclass(frozen=True, kw_only=True)
class TextScores:
    """How motions fit their captions; names and definitions of MDM's evaluation.

    Args:
        top: R-precision at 1, 2 and 3, in pools of 32 different captions.
        matching: distance of a caption's embedding to its motion's, both of unit length.
        of: number of motions that were compared.
    """

    top: tuple[float, ...]
    matching: float
    of: int


@torch.no_grad()
def score_texts(
    clip: CLIP, data: Motions, numbers: Sequence[Tensor], captions: Sequence[str]
) -> TextScores:
    """Measure motions by their captions.

    Args:
        clip: of motions.
        data: those that it was trained on, whose units and length it takes.
        numbers: of each motion ``[T_k, C]``, in their units.
        captions: of each motion.

    Raises:
        ValueError: there are fewer than 32 different captions.
    """
    chosen = distinct_pools(captions)
    rows = [data.scale.apply(numbers[k][: data.frames]).float() for k in chosen]
    if not rows:
        raise ValueError("R-precision needs at least 32 different captions; give more motions")
    x = torch.stack([F.pad(r, (0, 0, 0, data.frames - len(r))) for r in rows])
    texts = clip.embed_captions([captions[k] for k in chosen])
    motions = torch.cat([clip.embed_image(part) for part in x.split(64)])
    return TextScores(
        top=r_precision(texts, motions), matching=matching_score(texts, motions), of=len(rows)
    )


def first_captions(source: Motions, column: str = "text") -> list[str]:
    """Return the first caption of each motion."""
    return [c[0] for c in split_captions(source.targets, column, range(source.size))]
