"""How a small random pipeline is made, and compared with its own guidance."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image
from torch import Tensor, nn

import diffusers
import guidestar
from helpers.pipelines import quiet

WORDS, SCALE = 5, 3.0
FLOW = {
    "FlowMatchEulerDiscreteScheduler": {},
    "UniPCMultistepScheduler": {"prediction_type": "flow_prediction", "use_flow_sigmas": True},
}
SHIFTED = {
    "FlowMatchEulerDiscreteScheduler": {"shift": 3.0},
    "UniPCMultistepScheduler": {
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": 3.0,
    },
}
TABLE = {"DDIMScheduler": {"clip_sample": False}, "EulerDiscreteScheduler": {}}
STOCHASTIC = {"DDPMScheduler": {"clip_sample": False}, "DDIMScheduler": {"clip_sample": False}}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def picture(size: int = 32, seed: int = 0) -> Image.Image:
    pixels = torch.randint(256, (size * size * 3,), generator=torch.Generator().manual_seed(seed))
    return Image.frombytes("RGB", (size, size), bytes(pixels.tolist()))


def mask(size: int = 32) -> Image.Image:
    return Image.new("L", (size, size), 255)


def embeds(width: int = 8, words: int = WORDS, masks: str = "", kind: Any = None) -> dict[str, Any]:
    """Return the embeddings of a prompt and of a negative prompt, and their masks by name."""
    told = {
        "prompt_embeds": draw(1, words, width, seed=1),
        "negative_prompt_embeds": draw(1, words, width, seed=2),
    }
    if masks:
        whole = torch.ones(1, words, dtype=kind or torch.long)
        told |= {masks: whole, f"negative_{masks}": whole}
    return told


def pooled(width: int = 8, name: str = "pooled_prompt_embeds") -> dict[str, Tensor]:
    return {name: draw(1, width, seed=3), f"negative_{name}": draw(1, width, seed=4)}


class Words(nn.Linear):
    """What stands for a text encoder where embeddings are given and only its type is read."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self) -> None:
        super().__init__(1, 1)


class Plain:
    """What stands for a processor that embeddings leave without work."""

    def __init__(self, **parts: Any) -> None:
        vars(self).update(parts)


def spoken(text: str, *shape: int) -> Tensor:
    """Return the embedding of a prompt, which its words alone determine."""
    return draw(*shape, seed=1 + sum(text.encode()))


def tiny(kind: str, seed: int = 0, **config: Any) -> Any:
    """Make a network or VAE of random weights."""
    torch.manual_seed(seed)
    net = getattr(diffusers, kind)(**config).eval()
    return drawn(net, seed)


def drawn(net: nn.Module, seed: int = 0) -> Any:
    """Draw all weights: some networks start with zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
    return net.requires_grad_(requires_grad=False)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A class of pipelines: how it is made, asked, and compared.

    Args:
        name: of the class.
        parts: makes its components; those that are left out are None.
        ask: makes the arguments of its call.
        schedulers: the default one and another, with their settings.
        scale: the argument that is its guidance scale, and its value.
        guidance: what its guidance is as an expression of ours; None where it makes no negative
            pass.
        output: the output type that shows its samples.
        steps: how many.
        tolerance: relative to the largest number.
        instead: what takes the place of the pipeline's methods that need a text encoder, and of
            sizes in its module that are too large for a test.
        needs: a package that it cannot be made without.
    """

    name: str
    parts: Callable[[], dict[str, Any]]
    ask: Callable[[], dict[str, Any]]
    schedulers: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: FLOW)
    scale: Mapping[str, float] = field(default_factory=lambda: {"guidance_scale": SCALE})
    guidance: Any = f"cfg({SCALE})"
    output: str = "latent"
    steps: int = 2
    tolerance: float = 1e-5
    instead: Mapping[str, Any] = field(default_factory=dict)
    needs: str = ""

    def make(self) -> Any:
        """Return the pipeline with its default scheduler."""
        kind = getattr(diffusers, self.name)
        told = inspect.signature(kind.__init__).parameters
        given = self.parts()
        names = [n for n, p in told.items() if n != "self" and p.default is p.empty]
        scheduler = {} if "scheduler" in given else {"scheduler": self.scheduler(0)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipe = quiet(kind(**{**dict.fromkeys(names), **scheduler, **given}))
        for name, value in self.instead.items():
            if hasattr(pipe, name):
                setattr(pipe, name, value)
        return pipe

    def _smaller(self) -> Any:
        """Give the pipeline's module other sizes, within a context."""
        inside = vars(sys.modules[getattr(diffusers, self.name).__module__])
        return patch.dict(inside, {k: v for k, v in self.instead.items() if k in inside})

    def scheduler(self, index: int) -> Any:
        """Return one of its schedulers."""
        name, config = list(self.schedulers.items())[index]
        return getattr(diffusers, name)(**config)

    def use_scheduler(self, pipe: Any, index: int) -> None:
        """Give the pipeline, and the one that it decodes with, one of its schedulers."""
        for part in (pipe, getattr(pipe, "decoder_pipe", None)):
            if part is not None:
                part.scheduler = self.scheduler(index)

    def run(self, pipe: Any, guidance: Any = None) -> list[Tensor]:
        """Return what the pipeline draws, under its own guidance or ours."""
        torch.manual_seed(0)
        told = inspect.signature(getattr(diffusers, self.name).__call__).parameters
        asked = {
            "generator": torch.Generator().manual_seed(0),
            "num_inference_steps": self.steps,
            "output_type": self.output,
        }
        usual = {k: v for k, v in asked.items() if k in told}
        asked = {**usual, **self.scale, **self.ask()}
        with warnings.catch_warnings(), torch.no_grad(), self._smaller():
            warnings.simplefilter("ignore")
            if guidance is None:
                return tensors(pipe(**asked))
            with guidestar.guided(pipe, guidance):
                return tensors(pipe(**asked))


def tensors(result: Any) -> list[Tensor]:
    """Return the tensors and arrays of what a pipeline returns."""
    if isinstance(result, Tensor):
        return [result.double()]
    if isinstance(result, Image.Image):
        raise TypeError("pictures are rounded; ask for tensors")
    if hasattr(result, "dtype"):
        return [torch.as_tensor(result).double()]
    values = result.values() if hasattr(result, "values") else result
    if not isinstance(values, list | tuple) and not hasattr(result, "values"):
        return []
    return [t for v in values if v is not None and not isinstance(v, bool) for t in tensors(v)]


def distance(a: list[Tensor], b: list[Tensor]) -> float:
    """Return the largest difference, relative to the largest number."""
    assert len(a) == len(b) > 0
    assert all(t.isfinite().all() for t in (*a, *b))
    return max(
        float((x - y).abs().max() / y.abs().max().clamp(min=1e-6))
        for x, y in zip(a, b, strict=True)
    )


ENTRIES: dict[str, Entry] = {}


def add(
    names: str, parts: Callable[[], dict[str, Any]], ask: Callable[[], dict[str, Any]], **more: Any
) -> None:
    """Enter classes of pipelines that are made and asked alike."""
    for name in names.split():
        ENTRIES[name] = Entry(name=name, parts=parts, ask=ask, **more)
