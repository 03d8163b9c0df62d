"""Time guidestar's training against a plain loop in the manner of Diffusers' unconditional script,
in turn.

    python benchmarks/training.py --rounds 5            (what docs/train.md quotes; `make bench`
    runs it too)

Same network (a U-Net of 1.8 million parameters), same pictures (Fashion-MNIST as PNG files in class
folders), batch 64, float32, AdamW, clipped gradients, averaged weights. The plain loop is what
Diffusers' examples/unconditional_image_generation does: `datasets` reads and decodes the pictures,
a DataLoader batches them, DDPMScheduler adds the noise, EMAModel averages. guidestar trains in the
same float32, and once more in bfloat16, as `guidestar recipe` proposes. Prints images a second and
the ratios; a round is `--steps` steps of each.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from datasets import load_dataset
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.nn import functional as F

from diffusers import DDPMScheduler
from guidestar.data import fashion_mnist
from guidestar.networks.from_config import unet
from guidestar.train.build.data import sources
from guidestar.train.recipe.schema import Data, NetworkPart, Recipe, Training
from guidestar.train.run import train_part

BATCH, WIDTHS = 64, (32, 64, 96)


def plain(folder: Path):
    """Yield after each step of the plain loop."""
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    model = unet(size=28, channels=1, widths=WIDTHS, layers=1, groups=8, head=32)
    table = torch.nn.Embedding(11, 4 * WIDTHS[0])
    module = torch.nn.ModuleDict({"unet": model, "table": table})
    average = EMAModel(
        module.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75
    )
    scheduler = DDPMScheduler(
        num_train_timesteps=1000, beta_schedule="linear", prediction_type="v_prediction"
    )
    optimiser = torch.optim.AdamW(
        module.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
    )
    data = load_dataset(
        "imagefolder", data_dir=str(folder), split="train", cache_dir=str(folder.parent / "cache")
    )

    def transform(examples):
        arrays = [
            np.asarray(image.convert("L"), dtype=np.float32) / 127.5 - 1
            for image in examples["image"]
        ]
        return {"input": [torch.from_numpy(a)[None] for a in arrays], "label": examples["label"]}

    data.set_transform(transform)
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH, shuffle=True, num_workers=0)
    rates = get_scheduler(
        "cosine", optimizer=optimiser, num_warmup_steps=500, num_training_steps=10_000
    )
    module, optimiser, loader, rates = accelerator.prepare(module, optimiser, loader, rates)
    done = 0
    while True:
        for batch in loader:
            clean = batch["input"]
            if len(clean) < BATCH:
                continue
            labels = torch.where(torch.rand(BATCH) < 0.1, 10, batch["label"])
            noise = torch.randn_like(clean)
            times = torch.randint(0, 1000, (BATCH,)).long()
            noisy = scheduler.add_noise(clean, noise, times)
            out = module["unet"](noisy, times, class_labels=module["table"](labels)).sample
            loss = F.mse_loss(out.float(), scheduler.get_velocity(clean, noise, times).float())
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(module.parameters(), 1.0)
            optimiser.step()
            rates.step()
            optimiser.zero_grad()
            average.step(module.parameters())
            loss.detach().item()
            done += 1
            yield done


def ours(folder: Path, out: Path, steps: int, precision: str):
    """Yield after each step of guidestar's training."""
    training = Training(steps=steps, batch=BATCH, rate=1e-4, precision=precision)
    recipe = Recipe(
        name="bench",
        data=Data(kind="images", path=str(folder), size=28),
        model=NetworkPart(widths=WIDTHS, train=training),
    )
    return train_part(recipe, "model", out, sources(recipe)[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "pictures"
        fashion_mnist.write_folders(folder, each=200)
        total = (arguments.rounds + 1) * arguments.steps + 1
        loops = {
            "plain": plain(folder),
            **{p: ours(folder, Path(place) / p, total, p) for p in ("float32", "bfloat16")},
        }
        seconds = {name: [] for name in loops}
        for _ in range(arguments.rounds + 1):  # the first round warms up
            for name, loop in loops.items():
                start = time.perf_counter()
                list(islice(loop, arguments.steps))
                seconds[name].append(time.perf_counter() - start)
        speed = {
            name: BATCH * arguments.steps / statistics.median(s[1:]) for name, s in seconds.items()
        }
        print(
            f"torch {torch.__version__}, {torch.get_num_threads()} threads, {arguments.rounds} "
            f"rounds of {arguments.steps} steps in turn, medians"
        )
        print(f"plain loop (float32) {speed['plain']:.0f} images/s")
        for precision in ("float32", "bfloat16"):
            print(
                f"guidestar in {precision} {speed[precision]:.0f} images/s, ratio "
                f"{speed[precision] / speed['plain']:.2f}"
            )


if __name__ == "__main__":
    main()
