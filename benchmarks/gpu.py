"""One table of what holds on a GPU, in under 10 minutes.

    make gpu
    python benchmarks/gpu.py --only steps --only precision
    python benchmarks/gpu.py --device cpu --small        (the same checks at tiny sizes, on the CPU)

* devices: a guided run gives on the device what it gives on the CPU
* precision: one guided estimate in bfloat16 and float16 against float32
* compiled: the same samples with a compiled network, with and without CUDA graphs, and its time
  (of tiny sizes without code generation, which takes minutes)
* steps: nothing in a step waits for the device (torch's profiler)
* pipelines: guided SDXL-, SD3- and Wan-shaped pipelines against their own guidance

All networks have random weights. Without a GPU it says so and exits with 1; it exits with 2 where a
check fails. A bound is the largest difference, relative to the largest number.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from newer_pipelines import draw, network, pipeline
from pipelines import SCALE, sd3, sdxl

import diffusers
import guidestar
from guidestar import VP, Condition, Draw, Grid, Guided, Level, get_solver, log_snr
from guidestar.sampling import noise, trajectory

EXPRESSION = "cfg(3) + apg(2)"
WAITS = (
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
    "cudaEventSynchronize",
    "Memcpy DtoH",
)
"""What a wait for the device looks like in a profile."""


@dataclass(frozen=True)
class Check:
    """One line of the table: a figure, and the most that it may be (None: it is only shown)."""

    name: str
    value: float
    bound: float | None = None

    @property
    def holds(self) -> bool:
        return self.bound is None or self.value <= self.bound


@dataclass(frozen=True)
class Sizes:
    """How much is run."""

    channels: int = 128
    side: int = 64
    batch: int = 8
    steps: int = 20
    rounds: int = 7
    latents: int = 64
    images: int = 4
    backend: str = "inductor"


SMALL = Sizes(
    channels=8, side=8, batch=2, steps=3, rounds=1, latents=8, images=1, backend="aot_eager"
)


class Network(torch.nn.Module):
    """A small U-Net of Diffusers with random weights, as a denoiser that predicts ε."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = diffusers.UNet2DModel(
            sample_size=sizes.side,
            block_out_channels=(sizes.channels, 2 * sizes.channels),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            num_class_embeds=11,
        ).eval()

    def forward(self, x: torch.Tensor, level: Level, cond: Condition) -> torch.Tensor:
        kind = self.net.dtype
        x_t = (x / level.norm).to(kind)
        time = torch.full((len(x),), float(level.t), device=x.device)
        return (x - level.sigma * self.net(x_t, time, cond["label"]).sample.to(x.dtype)) / max(
            level.alpha, 1e-3
        )


def bound(
    sizes: Sizes, device: str, net: torch.nn.Module | None = None
) -> tuple[Guided, Grid, Any]:
    """Return a guidance on a device, its grid, and the noise that a run starts from."""
    net = (net or Network(sizes)).to(device)
    label = torch.arange(sizes.batch) % 10
    guided = Guided(
        EXPRESSION,
        net,
        cond=Condition(label=label.to(device)),
        null=Condition(label=torch.full_like(label, 10).to(device)),
    )
    grid = log_snr(VP.linear(), sizes.steps)
    start = noise((3, sizes.side, sizes.side), grid[0], Draw(range(sizes.batch)), device=device)
    return guided, grid, start


def run(guided: Guided, grid: Grid, start: torch.Tensor) -> torch.Tensor:
    """Walk the whole grid."""
    draw = Draw(range(len(start)))
    states = trajectory(guided, start, grid=grid, solver=get_solver("dpmpp-2m"), draw=draw)
    return [state.x for state in states][-1]


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the largest difference, relative to the largest number of ``b``."""
    a, b = a.double().cpu(), b.double().cpu()
    return float((a - b).abs().max() / b.abs().max())


def seconds(function: Callable[[], object], device: str, rounds: int) -> float:
    """Return the median time of a function, once untimed before."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else (lambda: None)
    function()
    times = []
    for _ in range(rounds):
        wait()
        begun = time.perf_counter()
        function()
        wait()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def devices(sizes: Sizes, device: str) -> Iterator[Check]:
    """Compare a run on the device with the same on the CPU, in float32 without TF32."""
    few = Sizes(**{**vars(sizes), "steps": min(sizes.steps, 5), "batch": 2})
    there, here = run(*bound(few, device)), run(*bound(few, "cpu"))
    yield Check(
        f"devices: {few.steps} steps on {device} against the CPU, float32", apart(there, here), 2e-3
    )


def precision(sizes: Sizes, device: str) -> Iterator[Check]:
    """Compare one guided estimate of a network in half precision with that in float32."""
    guided, grid, x = bound(sizes, device)
    wanted = guided(x, grid.step(0))[0].x0
    for kind, most in ((torch.bfloat16, 5e-2), (torch.float16, 1e-2)):
        half, *_ = bound(sizes, device, Network(sizes).to(kind))
        found = half(x, grid.step(0))[0].x0
        yield Check(f"precision: {str(kind)[6:]} against float32", apart(found, wanted), most)


def compiled(sizes: Sizes, device: str) -> Iterator[Check]:
    """Compare runs with a compiled network: the samples and the time."""
    eager = bound(sizes, device)
    wanted, usual = run(*eager), seconds(lambda: run(*eager), device, sizes.rounds)
    modes = ("default", "reduce-overhead") if device.startswith("cuda") else ("default",)
    for mode in modes:
        net = Network(sizes)
        how = {"mode": mode} if sizes.backend == "inductor" else {"backend": sizes.backend}
        net.net.forward = torch.compile(net.net.forward, dynamic=False, **how)
        quick = bound(sizes, device, net)
        name = f"compiled ({mode}{', CUDA graphs' if mode != 'default' else ''})"
        yield Check(f"{name}: difference", apart(run(*quick), wanted), 2e-3)
        yield Check(
            f"{name}: time of eager", seconds(lambda q=quick: run(*q), device, sizes.rounds) / usual
        )


def waits(sizes: Sizes, device: str, steps: int) -> int:
    """Count the waits for the device in a run of so many steps."""
    from torch.profiler import ProfilerActivity, profile

    guided, grid, start = bound(Sizes(**{**vars(sizes), "steps": steps}), device)
    run(guided, grid, start)
    kinds = [ProfilerActivity.CPU]
    kinds += [ProfilerActivity.CUDA] if device.startswith("cuda") else []
    with profile(activities=kinds) as recorded:
        run(guided, grid, start)
    return sum(e.count for e in recorded.key_averages() if e.key.startswith(WAITS))


def steps(sizes: Sizes, device: str) -> Iterator[Check]:
    """Count what a further step waits for: what a run waits for at its ends is left out."""
    more, fewer = waits(sizes, device, 6), waits(sizes, device, 3)
    yield Check("steps: waits for the device, each step", (more - fewer) / 3, 0.0)
    yield Check("steps: waits for the device, at the ends of a run", 2 * fewer - more)


def wan(latents: int) -> tuple[Any, dict[str, Any]]:
    """Return a Wan-shaped pipeline, and its inputs."""
    net = network(
        "WanTransformer3DModel",
        patch_size=(1, 2, 2),
        num_attention_heads=6,
        attention_head_dim=64,
        in_channels=16,
        out_channels=16,
        text_dim=256,
        freq_dim=64,
        ffn_dim=1024,
        num_layers=8,
    )
    pipe = pipeline(
        "WanPipeline",
        net,
        diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )
    return pipe, {
        "prompt_embeds": draw(1, 64, 256, seed=1),
        "negative_prompt_embeds": draw(1, 64, 256, seed=2),
        "num_frames": 9,
        "height": 8 * latents,
        "width": 8 * latents,
    }


def image_pipeline(
    make: Callable[..., Any], latents: int, images: int
) -> tuple[Any, dict[str, Any]]:
    """Return one of `pipelines`, and its inputs."""
    pipe, _, inputs, _ = make(latents)
    pipe.set_progress_bar_config(disable=True)
    rows = {name: t.repeat(images, *[1] * (t.ndim - 1)) for name, t in inputs.items()}
    return pipe, {**rows, "height": 8 * latents, "width": 8 * latents}


def pipelines(sizes: Sizes, device: str) -> Iterator[Check]:
    """Compare guided pipelines with their own guidance, at equal passes."""
    made = {
        "SDXL": lambda: image_pipeline(sdxl, sizes.latents, sizes.images),
        "SD3": lambda: image_pipeline(sd3, sizes.latents, sizes.images),
        "Wan": lambda: wan(sizes.latents),
    }
    for name, make in made.items():
        pipe, inputs = make()
        pipe = pipe.to(device)
        on = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}

        def own(pipe: Any = pipe, on: dict[str, Any] = on) -> torch.Tensor:
            return pipe(
                **on,
                num_inference_steps=sizes.steps,
                guidance_scale=SCALE,
                output_type="latent",
                return_dict=False,
                generator=torch.Generator().manual_seed(0),
            )[0]

        def guided(pipe: Any = pipe) -> torch.Tensor:
            with guidestar.guided(pipe, f"cfg({SCALE})"):
                return own()

        difference = apart(guided(), own())
        usual = seconds(own, device, sizes.rounds)
        yield Check(f"pipelines: {name}, difference", difference, 2e-3)
        yield Check(
            f"pipelines: {name}, time of its own", seconds(guided, device, sizes.rounds) / usual
        )


PARTS: dict[str, Callable[[Sizes, str], Iterator[Check]]] = {
    f.__name__: f for f in (devices, precision, steps, pipelines, compiled)
}


def table(checks: list[Check]) -> str:
    """Write the checks as a table."""
    lines = ["| check | figure | at most | |", "| --- | --- | --- | --- |"]
    for c in checks:
        most = "" if c.bound is None else f"{c.bound:g}"
        lines.append(f"| {c.name} | {c.value:.3g} | {most} | {'' if c.holds else 'FAILS'} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes")
    parser.add_argument("--only", action="append", choices=list(PARTS))
    given = parser.parse_args(arguments)
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        print("there is no CUDA device here; --device cpu --small runs the same checks on the CPU")
        return 1
    checks = []
    for name in given.only or PARTS:
        checks += PARTS[name](SMALL if given.small else Sizes(), given.device)
    print(table(checks))
    return 0 if all(c.holds for c in checks) else 2


if __name__ == "__main__":
    sys.exit(main())
