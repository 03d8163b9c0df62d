"""What caches of a network's own deep features cost, against plain cfg of as many multiply-adds.

    python benchmarks/feature_caches.py --model fashion-mnist --samples 96
    python benchmarks/feature_caches.py --model emoji --samples 48

A cache takes a run of neighbouring blocks, the *region*. At every k-th step it is computed; in
between, three kinds of cache:

- ``features``: the region's last output is that of the step before (DeepCache, 2312.00858);
- ``change``: what the region adds to its input is that of the step before (Δ-DiT, 2406.01125);
- ``null``: the region is computed for the conditional pass; the null pass gets the same output and
  the difference of the two at the last step where both were computed (FasterCache, 2410.19355).

All with plain ``cfg``, dpmpp-2m and the same seeds. For each: multiply-adds (torch's counter, by
those of the first row), the quality of each sample less that of the first row's (as in
`reuse.py`), mean and standard error, and how far the samples are from the first row's. Figures are
kept in `benchmarks/results/feature-caches-MODEL.json`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from reuse import compare, draw, names_of, quality
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from guidestar import Model, load
from guidestar.apps.measure import references
from guidestar.core.hooks import Forward, replaced
from guidestar.io.images import write_text

RESULTS = Path(__file__).parent / "results"
BATCH = 16
"""Samples of a run: both passes of a step are then one call of the network (32 rows)."""
STEPS = 20
ENOUGH = 480
"""Samples from which on a Fréchet distance is given; of fewer it means nothing."""
Kind = Literal["features", "change", "null"]
DEEP: dict[str, dict[str, tuple[str, ...]]] = {
    "fashion-mnist": {
        "7 px": ("down_blocks.2", "mid_block", "up_blocks.0"),
        "14 px": ("down_blocks.1", "down_blocks.2", "mid_block", "up_blocks.0", "up_blocks.1"),
    },
    "emoji": {
        "blocks 1–4": tuple(f"transformer_blocks.{i}" for i in range(1, 5)),
        "blocks 2–3": tuple(f"transformer_blocks.{i}" for i in range(2, 4)),
    },
}
"""The regions by name, in the order in which their modules are called."""


@dataclass(frozen=True, kw_only=True)
class Cache:
    """One way to reuse a region.

    Args:
        kind: what is reused.
        region: the modules' names, in the order of their calls.
        every: the region is computed at every such call of the network.
    """

    kind: Kind
    region: tuple[str, ...]
    every: int

    @contextmanager
    def on(self, net: nn.Module) -> Iterator[None]:
        """Reuse the region for one run, whose calls all have the same rows, conditional first."""
        calls, kept = 0, dict[str, Tensor]()

        def count(plain: Forward) -> Forward:
            def forward(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                out = plain(*args, **kwargs)
                calls += 1
                return out

            return forward

        def change(at: int) -> Any:
            first, last = at == 0, at == len(self.region) - 1

            def around(plain: Forward) -> Forward:
                def forward(*args: Any, **kwargs: Any) -> Any:
                    entering = args[0] if args else kwargs["hidden_states"]
                    if first:
                        kept["in"] = entering
                    if calls % self.every == 0:
                        out = plain(*args, **kwargs)
                        if last:
                            kept["out"] = self.reusable(out, kept["in"])
                        return out
                    if self.kind == "null":
                        out = plain(*map(halved, args), **{k: halved(v) for k, v in kwargs.items()})
                        return torch.cat([out, out + kept["out"]]) if last else out
                    if last:
                        return kept["out"] + kept["in"] if self.kind == "change" else kept["out"]
                    return skipped(net.get_submodule(self.region[at]), entering)

                return forward

            return around

        with ExitStack() as stack:
            stack.enter_context(replaced(net, count))
            for at, name in enumerate(self.region):
                stack.enter_context(replaced(net.get_submodule(name), change(at)))
            yield

    def reusable(self, out: Tensor, entering: Tensor) -> Tensor:
        """Return what is kept of a region that was computed."""
        if self.kind == "features":
            return out
        if self.kind == "change":
            return out - entering
        conditional, null = out.chunk(2)
        return null - conditional


def halved(value: Any) -> Any:
    """Return the conditional rows of an argument: those of 2 × `BATCH`."""
    if isinstance(value, tuple):
        return tuple(map(halved, value))
    whole = isinstance(value, Tensor) and value.ndim > 0 and len(value) == 2 * BATCH
    return value[:BATCH] if whole else value


def skipped(module: nn.Module, entering: Tensor) -> Any:
    """Return what stands for the output of a module inside a region that is not computed."""
    if "Down" not in type(module).__name__:
        return entering
    halves = getattr(module, "downsamplers", None) is not None
    return entering, (entering,) * (len(module.get_submodule("resnets")._modules) + halves)


def network(model: Model) -> nn.Module:
    """Return the network of Diffusers inside a model's denoiser."""
    found: Any = model.denoiser
    while not hasattr(found, "config"):
        found = found.net
    return found


def sample(
    model: Model, cache: Cache | None, scale: float, steps: int, names: list[str], first: int
) -> Tensor:
    """Draw one sample a name, in runs of `BATCH`."""
    drawn = []
    for start in range(0, len(names), BATCH):
        with cache.on(network(model)) if cache else ExitStack():
            part = names[start : start + BATCH]
            drawn.append(draw(model, f"cfg({scale:g})", steps, part, first + start, BATCH)[0])
    return torch.cat(drawn)


def count(model: Model, cache: Cache | None, steps: int, scale: float) -> int:
    """Count the network's floating-point operations in one run."""
    known = list(model.classes or model.card["captions"])
    with FlopCounterMode(display=False) as counter:
        sample(model, cache, scale, steps, known[:1] * BATCH, 0)
    return sum(counter.get_flop_counts()["Network"].values())


def share(model: Model, cache: Cache | None, steps: int, scale: float) -> float:
    """Return a run's operations by those of `STEPS` plain steps."""
    if cache is None:
        return steps / STEPS
    computed = len(range(0, steps, cache.every))
    whole = count(model, None, 1, scale)
    reused = (count(model, cache, cache.every, scale) / whole - 1) / (cache.every - 1)
    return (computed + (steps - computed) * reused) / STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", choices=sorted(DEEP), default="fashion-mnist")
    parser.add_argument("--scale", type=float, default=2.0)
    parser.add_argument("--samples", type=int, default=96, help=f"a multiple of {BATCH}")
    parser.add_argument("--seed", type=int, default=20_000, help="of the first sample")
    parser.add_argument("--every", type=int, action="append", help="2 and 3 by default")
    parser.add_argument("--only", default="", help="caches whose name has this, as '14 px'")
    parser.add_argument("--fewer", type=int, action="append", help="steps of plain cfg")
    arguments = parser.parse_args()
    if arguments.samples % BATCH:
        parser.error(f"--samples {arguments.samples} is no multiple of {BATCH}")
    model = load(arguments.model)
    names = names_of(model, arguments.samples)
    many = model.classes and arguments.samples >= ENOUGH
    reference = references(model)[0] if many else None
    runs: list[tuple[str, Cache | None, int]] = [("", None, STEPS)]
    runs += [("", None, n) for n in arguments.fewer or (14, 10)]
    for every in arguments.every or (2, 3):
        for where, region in DEEP[arguments.model].items():
            kinds: tuple[Kind, ...] = ("features" if model.classes else "change", "null")
            for kind in kinds:
                cache = Cache(kind=kind, region=region, every=every)
                if arguments.only in (name := f"{kind}, {where}, every={every}"):
                    runs.append((name, cache, STEPS))
    rows: list[dict[str, Any]] = []
    first = None
    for name, cache, steps in runs:
        with torch.inference_mode():
            images = sample(model, cache, arguments.scale, steps, names, arguments.seed)
            part = share(model, cache, steps, arguments.scale)
            each, figures = quality(model, images, names, reference)
        first = first or (images, each)
        rows.append(
            {
                "cache": name,
                "steps": steps,
                "share": round(part, 4),
                **compare(images, each, first),
                **figures,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
        kept = {k: getattr(arguments, k) for k in ("samples", "seed", "scale")} | {"rows": rows}
        file = RESULTS / f"feature-caches-{arguments.model}.json"
        write_text(json.dumps(kept, indent=1) + "\n", file)


if __name__ == "__main__":
    main()
