"""Measure a text model: does an independent CLIP find the prompt in the picture, and do pictures
resemble real ones?
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..evaluate import fit_gaussian, gaussian_distance
from ..evaluate.retrieval import merged, ranks
from ..guidance import Guidance
from ..io import distributed as processes
from ..model.model import Model
from ..model.protocols import TextJudge
from .rows import row_of, watch_part

_REAL, SHUFFLED = "real", "real, captions shuffled"


@dataclass(frozen=True, kw_only=True)
class Captioned:
    """Pictures with captions, to measure against.

    Args:
        x: ``[N, 3, H, W]`` in [−1, 1].
        prompts: the first caption of each, which is sampled for it.
        labels: the shortest caption of each, which names it.
    """

    x: Tensor
    prompts: tuple[str, ...]
    labels: tuple[str, ...]

    def take(self, count: int) -> Captioned:
        """Select up to ``count``, evenly spread."""
        rows = torch.linspace(0, len(self.x) - 1, min(count, len(self.x))).round().long()
        return Captioned(
            x=self.x[rows],
            prompts=tuple(self.prompts[r] for r in rows),
            labels=tuple(self.labels[r] for r in rows),
        )


def read_captioned(folder: Path, size: int) -> Captioned:
    """Read an image folder with captions.

    Raises:
        ValueError, FileNotFoundError: it is not one.
    """
    from ..core.rng import Draw
    from ..data.folders import image_folder
    from ..data.pictures import PictureFormat
    from ..train.build.captions import text_column

    source = image_folder(folder, PictureFormat(size=size, channels=3))
    held = source.targets[text_column(source)]
    captions = [(c,) if isinstance(c, str) else c for c in held]
    rows = list(range(len(captions)))
    return Captioned(
        x=source.batch(rows, Draw(rows))[0],
        prompts=tuple(str(s[0]) for s in captions),
        labels=tuple(min(map(str, s), key=len) for s in captions),
    )


@dataclass(frozen=True, kw_only=True)
class Ruler:
    """What samples are measured by: an independent CLIP, all captions in its space, and real
    pictures.

    Captions whose cosine is above 0.95 count as one.

    Args:
        clip: that guides nothing.
        groups: of each caption.
        captions: the captions' indices by name.
        texts: embeddings of the groups' first captions ``[G, D]``.
        real: embeddings of real pictures ``[N, D]``, if there are any to compare with.
    """

    clip: TextJudge
    captions: dict[str, int]
    groups: Tensor
    texts: Tensor
    real: Tensor | None = None

    @staticmethod
    def of(clip: TextJudge, known: Sequence[str], real: Tensor | None = None) -> Ruler:
        """Make one of all captions and of real pictures."""
        names = list(dict.fromkeys(known))
        texts = clip.embed_captions(names).cpu()
        first, groups = merged(texts).unique(return_inverse=True)
        return Ruler(
            clip=clip,
            captions={n: i for i, n in enumerate(names)},
            groups=groups,
            texts=texts[first],
            real=None if real is None else embed_images(clip, real),
        )

    def scores(self, embedded: Tensor, labels: Sequence[str]) -> dict[str, float]:
        """Measure images by their embeddings ``[B, D]`` against the captions they should show."""
        right = self.groups[torch.tensor([self.captions[name] for name in labels])]
        place = ranks(embedded, self.texts, right)
        found = {
            "top 1": float((place < 1).double().mean()),
            "top 5": float((place < 5).double().mean()),
            "score": float((embedded * self.texts[right]).sum(1).mean()),
        }
        if self.real is not None:
            found |= {
                "frechet": gaussian_distance(*fit_gaussian(embedded), *fit_gaussian(self.real)),
                "nearest": float((embedded @ self.real.T).amax(1).mean()),
            }
        return {name: round(value, 4) for name, value in found.items()}


@torch.inference_mode()
def embed_images(clip: TextJudge, x: Tensor) -> Tensor:
    """Return a CLIP's unit embeddings of images, ``[B, D]``, on the CPU."""
    return torch.cat([clip.embed_image(part).cpu() for part in x.split(256)])


def measure_text(
    model: Model,
    guidances: Sequence[str],
    *,
    count: int,
    seed: int = 0,
    steps: int | None = None,
    solver: str | None = None,
    grid: str | None = None,
    data: Path | None = None,
    batch: int = 64,
    watch: Callable[[int, int], None] | None = None,
) -> Iterator[dict[str, object]]:
    """Yield a row of figures for real pictures, one for shuffled captions, then one for each
    guidance.

    ``top 1`` and ``top 5``: how often the right caption is among the first of all; ``score``: mean
    cosine of picture and right caption; ``frechet``: of the CLIP's embeddings, to real pictures;
    ``nearest``: mean cosine to the nearest training picture; NFE a sample and seconds.

    Args:
        model: a text model with a measuring CLIP.
        guidances: expressions.
        count: prompts, evenly spread over the pictures of ``data``, each with its own seed.
        seed: of the first sample.
        steps, solver, grid: as in `Model.sample`.
        data: folder of captioned pictures whose prompts are sampled; by default what the model was
            trained on. All captions of both are compared.
        batch: samples at a time.
        watch: called with the samples done and in all.

    Raises:
        ValueError: the model has no measuring CLIP, or its card does not name its training data.
    """
    if not isinstance(model.judge, TextJudge):
        raise ValueError(
            f"the model {model.name!r} has no CLIP to measure with; train one ([judge] in its "
            "recipe)"
        )
    guided = [model.expression(g) for g in guidances]
    train = _training(model, data)
    wanted = (read_captioned(data, model.need_image_shape()[-1]) if data else train).take(count)
    ruler = Ruler.of(model.judge, [*train.labels, *wanted.labels], train.x)
    real = embed_images(model.judge, wanted.x)
    turned = [*wanted.labels[len(wanted.labels) // 2 :], *wanted.labels[: len(wanted.labels) // 2]]
    captions = {"captions": len(ruler.texts)}
    yield row_of(_REAL, {**captions, **ruler.scores(real, wanted.labels)})
    yield row_of(SHUFFLED, {**captions, **ruler.scores(real, turned)})
    for done, guidance in enumerate(guided):
        step = watch_part(watch, done, len(wanted.x), len(guided))
        images, nfe, seconds = draw_samples(
            model,
            guidance,
            wanted.prompts,
            seed,
            batch,
            step,
            steps=steps,
            solver=solver,
            grid=grid,
        )
        found = ruler.scores(embed_images(model.judge, images), wanted.labels)
        yield row_of(guidance, {**captions, **found}, nfe=nfe, seconds=seconds)


def _training(model: Model, data: Path | None) -> Captioned:
    path = dict(model.card.get("recipe", {}).get("data", {})).get("path")
    beside = None if data is None else data.parent / "train"
    folder = beside if beside is not None and beside.is_dir() else Path(path) if path else data
    if folder is None or not folder.is_dir():
        raise ValueError(
            f"the pictures that {model.name!r} was trained on are not at {folder}; name a folder "
            "of captioned pictures with --data"
        )
    return read_captioned(folder, model.need_image_shape()[-1])


def draw_samples(
    model: Model,
    guidance: Guidance,
    prompts: Sequence[str],
    seed: int,
    batch: int,
    watch: Callable[[int], None] | None,
    *,
    steps: int | None,
    solver: str | None,
    grid: str | None,
) -> tuple[Tensor, float, float]:
    """Draw a sample of each prompt, shared out between processes; return them, NFE a sample and
    this process's seconds.
    """
    rows, drawn, nfe, seconds = processes.own_indices(len(prompts)), [], 0.0, 0.0
    for part in torch.tensor(rows).split(batch):
        start = time.perf_counter()
        samples = model.sample(
            [prompts[int(i)] for i in part],
            guidance=guidance,
            seeds=[seed + int(i) for i in part],
            steps=steps,
            solver=solver,
            grid=grid,
        )
        seconds += time.perf_counter() - start
        drawn += zip(part.tolist(), samples.images, strict=True)
        nfe += samples.nfe * len(part) / len(rows)
        if watch:
            watch(int(part[-1]) + 1)
    return torch.stack([x for _, x in processes.gather(drawn)]), nfe, seconds


def read_prompts(file: Path) -> list[str]:
    """Read a prompt a line; lines that are empty or start with '#' are left out.

    Raises:
        ValueError: a line cannot be a prompt (its number is given), or there is none.
    """
    from ..diffusers.read.text_encoder import checked_prompt

    prompts = []
    for number, line in enumerate(_lines(file), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            prompts.append(checked_prompt(line.strip()))
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: {error}") from error
    if not prompts:
        raise ValueError(f"{file}: holds no prompts")
    return prompts


def _lines(file: Path) -> list[str]:
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror or error}") from error
    lines = []
    for number, line in enumerate(raw.split(b"\n"), 1):
        try:
            lines.append(line.decode("utf-8").rstrip("\r"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}, line {number}: is not UTF-8") from error
    return lines


__all__ = [
    "Captioned",
    "Ruler",
    "draw_samples",
    "embed_images",
    "measure_text",
    "read_captioned",
    "read_prompts",
]
