"""Train a little network in a child process that is killed (SIGKILL) where the caller says. Started
by test_killed.py.

Reads lines of JSON {"path", "kill": {"event": n} | {"step": n} | {"full": n} | null} from standard
input (full: from the n-th event of a save on, the disk is); answers each with a line {"killed":
bool, "events": [...], "sha": …, "failed": …}. Each run is a fork of this process, so torch is
imported once.
"""

import hashlib
import json
import os
import signal
import stat
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from guidestar.data.source import Column, InMemory
from guidestar.train.loop.fit import fit
from guidestar.train.loop.trainer import Trainer
from guidestar.train.objectives.objective import Objective, TrainSettings

SAVE = 2  # the save during which events are counted: the first that has a former one to keep
STEPS = 4


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class Loss(Objective):
    def __init__(self, step):
        self.step = step

    def __call__(self, net, x0, target, draw):
        if draw.step == self.step:
            die()
        return F.cross_entropy(
            net(x0 + 0.1 * draw.normal_like("noise", x0)), target, reduction="none"
        )


def trainer(kill):
    torch.manual_seed(0)
    # One parameter: each tensor of a checkpoint is some writes, and each of them is a place to be
    # killed at.
    module = nn.Sequential(nn.Tanh(), nn.Dropout(0.3), nn.Linear(3, 2, bias=False))
    x = torch.randn(25, 3, generator=torch.Generator().manual_seed(1))
    source = InMemory(
        x=x,
        targets={"y": torch.arange(25) % 2},
        columns={"y": Column(kind="class", classes=("a", "b"))},
    )
    settings = TrainSettings(steps=STEPS, batch=4, warmup=3, power=(0.1,), weight_decay=0.01)
    return Trainer(
        module,
        Loss((kill or {}).get("step")),
        source,
        settings,
        prepare=lambda targets: targets["y"],
    )


class Events:
    """Count what happens to files during one save, and die at the n-th thing: before it, or (a
    write) half through.
    """

    def __init__(self, kill):
        self.kill, self.full, self.saves, self.seen = (
            (kill or {}).get("event"),
            (kill or {}).get("full"),
            0,
            [],
        )

    def happen(self, name):
        if self.saves != SAVE:
            return False
        self.seen.append(name)
        if self.full is not None and len(self.seen) > self.full:
            raise OSError(28, "No space left on device")
        return len(self.seen) - 1 == self.kill

    def watch(self):
        for name in ("fsync", "replace", "link"):
            setattr(os, name, self.before(name, getattr(os, name)))
        save = torch.save

        def counted(state, file):
            self.saves += (
                self.saves < SAVE or self.full is None
            )  # on a full disk the next save fails likewise
            save(state, Written(self, file))

        torch.save = counted

    def before(self, name, function):
        def call(*arguments, **more):
            folder = name == "fsync" and stat.S_ISDIR(os.fstat(arguments[0]).st_mode)
            if self.happen(f"{name} of the folder" if folder else name):
                die()
            return function(*arguments, **more)

        return call


class Written:
    def __init__(self, events, file):
        self.events, self.file = events, file

    def write(self, data):
        if self.events.happen("write"):
            self.file.write(bytes(data)[: len(data) // 2])
            self.file.flush()
            die()
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


def sha(trainer):
    digest = hashlib.sha256()
    state = [
        trainer.module.state_dict(),
        *(a.weights() for a in trainer.averages.values()),
        *trainer.optimiser.state_dict()["state"].values(),
    ]
    for tensors in state:
        for name in sorted(tensors):
            digest.update(
                name.encode() + torch.as_tensor(tensors[name]).contiguous().numpy().tobytes()
            )
    return digest.hexdigest()


def run(path, kill, pipe):
    events, subject = Events(kill), trainer(kill)
    events.watch()
    failed = ""
    try:
        list(fit(subject, Path(path), every=0.0, keep=2))
    except OSError as error:
        failed = str(error)
    os.write(
        pipe, json.dumps({"events": events.seen, "sha": sha(subject), "failed": failed}).encode()
    )


def main():
    torch.set_num_threads(1)
    trainer(None)  # so that accelerate is imported once, too
    for line in sys.stdin:
        wanted = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            run(wanted["path"], wanted["kill"], writing)
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            said = pipe.read()
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        if not killed and status:
            said = json.dumps({"failed": status})
        print(json.dumps({"killed": killed, **json.loads(said or "{}")}), flush=True)


if __name__ == "__main__":
    main()
