"""A training that several processes run together; writes its losses. Started by
test_distributed.py, with accelerate.
"""

import json
import sys
from pathlib import Path

import torch
from torch import nn

from guidestar.core.levels import VP
from guidestar.core.rng import Draw
from guidestar.data.source import Column, InMemory
from guidestar.io.distributed import leave
from guidestar.networks.condition_encoders import ClassEncoder
from guidestar.networks.conditional import ConditionalModel
from guidestar.networks.conditions import Conditions
from guidestar.networks.network import Network
from guidestar.train.loop.ema import EMA
from guidestar.train.loop.fit import fit
from guidestar.train.loop.trainer import Trainer
from guidestar.train.objectives.denoising import Conditional, Denoising, LogitNormal
from guidestar.train.objectives.objective import TrainSettings

STEPS = 100


class Net(nn.Module):
    """A small network without dropout."""

    def __init__(self):
        super().__init__()
        self.inward, self.inner, self.out = nn.Linear(9, 24), nn.Linear(24, 24), nn.Linear(24, 8)

    def forward(self, x, t, class_labels):
        h = torch.tanh(self.inward(torch.cat([x, (t / 1000)[:, None].to(x)], 1)) + class_labels)
        return self.out(torch.tanh(self.inner(h)))


def data():
    draw = Draw(list(range(50)))
    label = torch.arange(50) % 3
    x = draw.normal("x", (8,)) * 0.3 + label[:, None] - 1
    return InMemory(
        x=x,
        targets={"label": label},
        columns={"label": Column(kind="class", classes=("a", "b", "c"))},
    )


def trainer(precision: str, accumulate: int = 1, **more) -> Trainer:
    torch.manual_seed(0)
    encoder = Conditions({"label": ClassEncoder(("a", "b", "c"), 24)})
    module = ConditionalModel(Network(Net(), predicts="v"), encoder)
    denoising = Denoising(schedule=VP.linear(), levels=LogitNormal())
    # 9 a batch: neither the batch is a multiple of two processes, nor the 50 samples one of the
    # batch.
    settings = TrainSettings(
        steps=STEPS,
        batch=9,
        accumulate=accumulate,
        rate=3e-3,
        warmup=10,
        precision=precision,
        **more,
    )
    return Trainer(
        module,
        Conditional(denoising=denoising, dropout={"label": 0.2}),
        data(),
        settings,
        prepare=encoder.rows,
    )


def losses(precision: str, accumulate: int = 1) -> list[float]:
    return [p.loss for p in fit(trainer(precision, accumulate))]


def shard(subject: Trainer) -> Trainer:
    """Spread a trainer's network over the processes, as accelerate does for FSDP on GPUs (it does
    not on CPUs).
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (subject.accelerator.num_processes,))
    fully_shard(subject.module.denoiser.net, mesh=mesh)
    subject._lossy = subject._lossy.module if hasattr(subject._lossy, "reducer") else subject._lossy
    fully_shard(subject._lossy, mesh=mesh)
    subject.optimiser = torch.optim.AdamW(
        subject.module.parameters(),
        subject.settings.rate,
        betas=(0.9, 0.99),
        weight_decay=0.0,
        foreach=True,
    )
    subject.averages = {
        name: EMA(subject.module, average.profile) for name, average in subject.averages.items()
    }
    return subject


def sharded(place: Path) -> list[float]:
    """Train spread over the processes, stopping half-way and going on from the checkpoint."""
    first, found = shard(trainer("float64")), []
    steps = fit(first, place, every=1e9)
    for progress in steps:
        found.append(progress.loss)
        if progress.step == STEPS // 2:
            break
    first.save(place)
    first.accelerator.wait_for_everyone()
    return found + [p.loss for p in fit(shard(trainer("float64")), place, every=1e9)]


def main(out: Path) -> None:
    from accelerate import PartialState

    runs = {
        "float32": losses("float32"),
        "float64": losses("float64"),
        "accumulated": losses("float64", 2),
    }
    if PartialState().num_processes > 1:
        runs["sharded"] = sharded(out.with_name("sharded.pt"))
    if PartialState().is_main_process:
        out.write_text(json.dumps({"processes": PartialState().num_processes, **runs}))
    leave()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
