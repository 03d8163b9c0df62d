"""Which network learns most from captions in the same time? PixArt's transformer against a U-Net,
on emoji.

    python benchmarks/networks.py --data emoji/train --minutes 12        (after: guidestar data
    emoji --out emoji)

Every candidate (`CANDIDATES`) learns for the same time from the same pictures, with the text
encoder of the shipped model: its speed is measured first, and the learning rate falls to 0 at its
last step. The measuring CLIP of the shipped model then looks for 200 captions in a sample of each.
Figures are kept in `benchmarks/results/networks.json`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

import guidestar
from guidestar.apps.measure_text import Ruler, draw_samples, embed_images, read_captioned
from guidestar.io.images import write_text
from guidestar.train.build.data import sources
from guidestar.train.preview import live_model
from guidestar.train.recipe.schema import NetworkPart, Recipe, Training, read_recipe
from guidestar.train.run import train_part
from guidestar.train.snapshots import averaged

HOME = Path(__file__).parent
SHIPPED = Path(guidestar.__file__).parent / "assets/emoji"
PILOT = 12


def candidates() -> dict[str, NetworkPart]:
    """Return the network of each recipe."""
    return {
        name: read_recipe(HOME.parent / f"recipes/{name}.toml").model
        for name in ("emoji-pixels", "emoji-unet")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--prompts", type=int, default=200)
    arguments = parser.parse_args()
    full = read_captioned(arguments.data, 32)
    ruler = Ruler.of(guidestar.load("emoji").judge, full.labels, full.x)
    found: dict[str, Any] = {"minutes": arguments.minutes, "threads": torch.get_num_threads()}
    for name, network in candidates().items():
        with tempfile.TemporaryDirectory() as place:
            found[name] = judged(
                trained(network, arguments, Path(place)), ruler, full.take(arguments.prompts)
            )
        write_text(json.dumps(found, indent=1) + "\n", HOME / "results/networks.json")
        print(name, found[name], flush=True)


def recipe(network: NetworkPart, data: Path, steps: int) -> Recipe:
    """Return the shipped model's recipe with another network and length, and with the
    shipped text encoder.
    """
    base = read_recipe(HOME.parent / "recipes/emoji-pixels.toml")
    training = Training(
        steps=steps,
        batch=64,
        rate=1e-3,
        warmup=min(100, steps // 4),
        decay=0.99,
        precision="bfloat16",
    )
    text = (base.conditions or {})["text"].model_copy(update={"encoder": str(SHIPPED)})
    changes = {
        "data": base.data.model_copy(update={"path": str(data), "test": None}),
        "conditions": {"text": text},
        "model": network.model_copy(update={"train": training}),
        "preview": base.preview.model_copy(update={"every": 0}),
        **dict.fromkeys(("clip", "noisy_clip", "measuring_clip")),
    }
    return Recipe.model_validate(base.model_copy(update=changes).model_dump())


def trained(network: NetworkPart, arguments: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Train for the given minutes; return the model, and what it took."""
    pilot = recipe(network, arguments.data, PILOT)
    source = sources(pilot)[0]
    seconds = list(timed(train_part(pilot, "model", place / "pilot", source)))
    steps = max(PILOT, round(60 * arguments.minutes / sorted(seconds)[PILOT // 2]))
    spec, start = recipe(network, arguments.data, steps), time.perf_counter()
    for _ in train_part(spec, "model", place / "run", source):
        pass
    took, module = time.perf_counter() - start, averaged(spec, "model", place / "run", source)
    parameters = sum(p.numel() for p in module.denoiser.parameters())
    return {
        "model": live_model(spec, module, (3, 32, 32), lambda x: x.clamp(-1, 1)),
        "steps": steps,
        "seconds": round(took),
        "parameters": parameters,
    }


def timed(steps: Iterator[Any]) -> Iterator[float]:
    """Yield the seconds of each step."""
    last = time.perf_counter()
    for _ in islice(steps, PILOT):
        yield (now := time.perf_counter()) - last
        last = now


def judged(run: dict[str, Any], ruler: Ruler, prompts: Any) -> dict[str, Any]:
    model, figures = run.pop("model"), {}
    for guidance in ("cfg(1)", "cfg(3)"):
        x, _, seconds = draw_samples(model, guidance, prompts.prompts, 0, 64, None, steps=20)
        figures[guidance] = {
            "sampling": round(seconds, 1),
            **ruler.scores(embed_images(ruler.clip, x), prompts.labels),
        }
    return {**run, **figures}


if __name__ == "__main__":
    main()
