"""The trainer: the state of a training, which a checkpoint holds, and its step."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...core.rng import Draw
from ...data.identity import identify
from ...data.source import Source, Targets
from ..objectives.objective import NotFinite, Objective, TrainSettings, profiles
from .checkpoints import (
    CheckpointState,
    TrainingOrigin,
    check_same,
    read_checkpoint,
    write_checkpoint,
)
from .ema import EMA
from .sharded import full_tensor, load_module, load_optimiser, module_state, optimiser_state
from .signals import Stop

if TYPE_CHECKING:
    from accelerate import Accelerator


class Lossy(nn.Module):
    """A network with its objective, as one module, so that processes share its gradients."""

    def __init__(self, module: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.module, self.objective = module, objective

    def forward(self, x0: Tensor, target: object, draw: Draw) -> Tensor:
        """Return the loss ``[B]``."""
        return self.objective(self.module, x0, target, draw)


def order(position: int, count: int, size: int, seed: int) -> Tensor:
    """Return the data indices of positions ``position … position + count − 1`` of an endless
    stream.

    Each pass over the data is another permutation, and a batch may end in the next pass: the stream
    depends on the seed and the position alone.
    """
    passes = range(position // size, (position + count - 1) // size + 1)
    perms = [
        torch.randperm(size, generator=torch.Generator().manual_seed(seed * 1_000_003 + p))
        for p in passes
    ]
    start = position - passes[0] * size
    return torch.cat(perms)[start : start + count]


class Trainer:
    """The state of a training, and its step.

    Batch k is the same samples with the same noise for any number of processes, and every loss
    counts ``1/batch``.

    Args:
        module: the network.
        objective: the loss of each sample.
        data: clean samples and their columns.
        settings: how long and how fast.
        made_from: all else that shapes the weights (the network, the objective), as plain numbers
            and texts by name: a checkpoint made from anything else is refused.
        prepare: turns the targets of a batch into the objective's target.
        accelerator: device and processes; by default those of ``accelerate launch``.
        accept_data: go on from a checkpoint though samples were added, removed or changed since.
    """

    def __init__(
        self,
        module: nn.Module,
        objective: Objective,
        data: Source,
        settings: TrainSettings,
        made_from: Mapping[str, object] | None = None,
        *,
        prepare: Callable[[Targets], object] = lambda targets: targets,
        accelerator: Accelerator | None = None,
        accept_data: bool = False,
    ) -> None:
        from accelerate import Accelerator

        self.accelerator = accelerator or Accelerator(cpu=not torch.cuda.is_available())
        self.module, self.data, self.settings, self.prepare = module, data, settings, prepare
        self.made_from, self.done, self.seconds, self.norm, self.loss = (
            dict(made_from or {}),
            0,
            0.0,
            0.0,
            0.0,
        )
        self.due = False
        self.identity, self.accept_data = identify(data), accept_data
        self.dtype = torch.float64 if settings.precision == "float64" else torch.float32
        # Not Diffusers' own method, which warns of layers that it keeps in float32: there are none.
        nn.Module.to(module, self.dtype)
        if torch.cuda.is_available():  # on the CPU it is no faster, and in bfloat16 slower
            from ...networks.cpu_fastpath import lay_out

            lay_out(module, torch.channels_last)
        trained = [p for p in module.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            trained,
            settings.rate,
            betas=(0.9, 0.99),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        if settings.batch < self._world * settings.accumulate:
            raise ValueError(
                f"a batch of {settings.batch} is too small for {self._world} processes that take "
                f"{settings.accumulate} parts each; raise batch, or lower accumulate"
            )
        lossy = Lossy(module, objective)
        if settings.compile:
            module.compile()
        self._lossy, self.optimiser = self.accelerator.prepare(lossy, self.optimiser)
        self.averages = {p.name: EMA(module, p) for p in profiles(settings)}

    @property
    def _world(self) -> int:
        return self.accelerator.num_processes

    @property
    def ema(self) -> EMA:
        """The averaged weights that are used unless others are named."""
        return next(iter(self.averages.values()))

    def rate(self) -> float:
        """Return this step's learning rate: linear warm-up, then a cosine to 0."""
        s = self.settings
        ahead = (self.done - s.warmup) / max(1, s.steps - s.warmup)
        return s.rate * min(
            (self.done + 1) / max(1, s.warmup), 0.5 + 0.5 * math.cos(math.pi * max(0.0, ahead))
        )

    def _parts(self) -> Iterator[tuple[Tensor, object, Draw]]:
        """Yield this process's share of the batch, in ``accumulate`` parts."""
        s, first, rank = (
            self.settings,
            self.done * self.settings.batch,
            self.accelerator.process_index,
        )
        rows = (
            torch.arange(first, first + s.batch)
            if self.data.size is None
            else order(first, s.batch, self.data.size, s.seed)
        )
        for share in torch.arange(rank, s.batch, self._world).tensor_split(s.accumulate):
            draw = Draw([s.seed * 1_000_003 + first + i for i in share.tolist()], self.done)
            x, targets = self.data.batch(rows[share].tolist(), draw)
            yield (
                x.to(self.accelerator.device, self.dtype),
                _move(self.prepare(targets), self.accelerator.device),
                draw,
            )

    def step(self, stop: Stop | None = None) -> float:
        """Train on one batch and return its mean loss.

        Raises:
            NotFinite: the loss or the gradient is not finite; no weight was changed.
        """
        s, a = self.settings, self.accelerator
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate()
        torch.manual_seed(
            (s.seed * 1_000_003 + self.done) * 1024 + a.process_index
        )  # for dropout layers alone
        total = torch.zeros((), device=a.device, dtype=torch.float64)
        for i, (x, target, draw) in enumerate(self._parts()):
            with (
                a.no_sync(self._lossy) if i < s.accumulate - 1 else nullcontext(),
                torch.autocast(a.device.type, torch.bfloat16, enabled=s.precision == "bfloat16"),
            ):
                losses = self._lossy(x, target, draw)
                a.backward(losses.sum() * (self._world / s.batch))
            total += losses.detach().sum()
        norm = a.clip_grad_norm_(self._lossy.parameters(), s.clip)
        # Processes must agree on the loss, on a request to stop, and on saving.
        wishes = torch.tensor(
            [float(stop is not None and stop.requested), float(self.due and a.is_main_process)],
            device=a.device,
            dtype=total.dtype,
        )
        shared = a.reduce(torch.cat([total[None] / s.batch, wishes]))
        assert isinstance(shared, Tensor) and isinstance(norm, Tensor)
        loss, requested, due, self.norm = torch.cat(
            [shared, torch.as_tensor(full_tensor(norm)).double().view(1).to(a.device)]
        ).tolist()
        # Such a step would spoil all weights, and the next checkpoint.
        if not (math.isfinite(loss) and math.isfinite(self.norm)):
            self.optimiser.zero_grad(set_to_none=True)
            what = (
                f"the gradient's norm became {self.norm:g}"
                if math.isfinite(loss)
                else f"the loss became {loss:g}"
            )
            raise NotFinite(f"{what} at step {self.done}")
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        for average in self.averages.values():
            average.update(self.module)
        self.done += 1
        # A running mean of about the last 100 steps, for the card.
        self.loss += (loss - self.loss) * max(0.01, 1 / self.done)
        self.due = due > 0
        if stop is not None:
            stop.agreed = requested > 0
        return loss

    def save(self, path: Path, *, keep: int = 1) -> None:
        """Write a checkpoint, whole or not at all; ``keep − 1`` former ones stay beside it.

        Raises:
            OSError: it cannot be written; the former checkpoint is intact.
        """
        # Every process calls this: of a sharded network each has its part.
        state: CheckpointState = {
            "module": module_state(self.module),
            "averages": {name: average.state_dict() for name, average in self.averages.items()},
            "optimiser": optimiser_state(self.optimiser),
            "done": self.done,
            "seconds": self.seconds,
            "loss": self.loss,
            "settings": asdict(self.settings),
            "made_from": self.made_from,
            "data": self.identity,
            "where": self._where(),
        }
        if self.accelerator.is_main_process:
            write_checkpoint(state, path, keep)

    def _where(self) -> dict[str, object]:
        """Return what the last bits of the weights depend on."""
        device = self.accelerator.device
        # The kernels, and so the last bits, depend on it.
        cpu = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
        machine = cpu if device.type == "cpu" else torch.cuda.get_device_name(device)
        return {
            "machine": machine,
            "threads": torch.get_num_threads(),
            "processes": self._world,
            "device": device.type,
            "torch": str(torch.__version__),
        }

    def load(self, path: Path) -> None:
        """Load a checkpoint.

        Raises:
            Damaged: the file is damaged.
            ValueError: it was written with other settings or data; the message names them.
        """
        state = read_checkpoint(path)
        now: TrainingOrigin = {
            "settings": asdict(self.settings),
            "made_from": self.made_from,
            "data": self.identity,
            "where": self._where(),
        }
        check_same(path, state, now, accept_data=self.accept_data)
        try:
            load_module(self.module, state["module"])
            for name, average in self.averages.items():
                average.load_state_dict(state["averages"][name])
            load_optimiser(self.optimiser, state["optimiser"])
        except (RuntimeError, KeyError, ValueError) as error:
            raise ValueError(
                f"{path} holds the weights of another network; give another --out, or the recipe "
                "it was started with"
            ) from error
        self.done, self.seconds, self.loss = state["done"], state["seconds"], state["loss"]


def _move(target: object, device: torch.device) -> object:
    if isinstance(target, Mapping):
        return {name: _move(t, device) for name, t in target.items()}
    return target.to(device) if isinstance(target, Tensor) else target
