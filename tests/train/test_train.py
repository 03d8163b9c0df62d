"""The loop resumes, averages, saves, reports and refuses as it says."""

import math
import os
import re
import signal
import sys
import threading
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from guidestar.data.source import Column, InMemory
from guidestar.io.files import make_folder, whole_or_not
from guidestar.train.loop.fit import fit
from guidestar.train.loop.signals import Stop, defer_interrupt, stop_on_signals
from guidestar.train.loop.trainer import Trainer, order
from guidestar.train.objectives.objective import NotFinite, Objective, Progress, TrainSettings
from guidestar.train.progress import Figures, Smoothed, progress_report

# --- the stream of data, the averaged weights ---


def test_each_pass_is_a_permutation_and_the_remainder_is_carried():
    size, batch = 10, 4
    stream = torch.cat([order(i * batch, batch, size, 3) for i in range(15)])
    passes = stream.reshape(6, size)
    assert all(sorted(p.tolist()) == list(range(size)) for p in passes)
    assert len({tuple(p.tolist()) for p in passes}) == 6
    assert torch.equal(
        stream[17:40], order(17, 23, size, 3)
    )  # by position alone, over three passes
    assert not torch.equal(order(0, size, size, 3), order(0, size, size, 4))


def test_a_batch_larger_than_the_data_goes_on_into_further_passes():
    rows = order(0, 7, 3, 0)
    assert sorted(rows[:3].tolist()) == sorted(rows[3:6].tolist()) == [0, 1, 2]


# --- the loop ---


class Tiny(nn.Module):
    """A network with dropout, so that the state of every random stream counts."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 2))

    def forward(self, x):
        return self.layers(x)


class Wobbly(Objective):
    """Cross-entropy under noise, with a hook for trouble."""

    def __init__(self, trouble=lambda step: None):
        self.trouble = trouble

    def __call__(self, net, x0, target, draw):
        loss = F.cross_entropy(
            net(x0 + 0.1 * draw.normal_like("noise", x0)), target, reduction="none"
        )
        return loss * (self.trouble(draw.step) or 1.0)


def tiny(trouble=lambda step: None, made_from=None, **settings):
    data = torch.randn(25, 3, generator=torch.Generator().manual_seed(1)), torch.arange(25) % 2
    source = InMemory(
        x=data[0], targets={"y": data[1]}, columns={"y": Column(kind="class", classes=("a", "b"))}
    )
    return Trainer(
        Tiny(),
        Wobbly(trouble),
        source,
        TrainSettings(**{"steps": 12, "batch": 4, "warmup": 3, **settings}),
        made_from,
        prepare=lambda targets: targets["y"],
    )


def all_of(trainer):
    """Every number a training consists of."""
    tensors = {f"w.{k}": v for k, v in trainer.module.state_dict().items()} | {
        f"a.{n}.{k}": v for n, a in trainer.averages.items() for k, v in a.weights().items()
    }
    for i, state in trainer.optimiser.state_dict()["state"].items():
        tensors |= {f"o.{i}.{k}": torch.as_tensor(v) for k, v in state.items()}
    return {
        **{k: v.clone() for k, v in tensors.items()},
        "counts": torch.tensor([trainer.done, trainer.ema.updates]),
        "loss": torch.tensor(trainer.loss),
    }


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert [k for k in one if not torch.equal(one[k], other[k])] == []


def unbroken(**settings):
    trainer = tiny(**settings)
    losses = [p.loss for p in fit(trainer)]
    return all_of(trainer), losses


@pytest.mark.parametrize("stop", [1, 5, 11])
def test_a_resumed_training_equals_an_unbroken_one_bit_for_bit(tmp_path, stop):
    wanted, losses = unbroken(weight_decay=0.01, power=(0.1,))
    path, found = tmp_path / "parts" / "tiny.pt", []
    steps = fit(tiny(weight_decay=0.01, power=(0.1,)), path)
    for progress in steps:
        found.append(progress.loss)
        if progress.step == stop:
            steps.close()
    trainer = tiny(weight_decay=0.01, power=(0.1,))
    found += [p.loss for p in fit(trainer, path)]
    assert found == losses
    assert_same(all_of(trainer), wanted)


def test_training_learns_and_follows_its_learning_rate():
    trainer = tiny(steps=20, warmup=4, rate=0.1)
    rates = []
    for _ in fit(trainer):
        rates.append(trainer.optimiser.param_groups[0]["lr"])
    wanted = [
        0.1 * min((n + 1) / 4, 0.5 + 0.5 * math.cos(math.pi * max(0, (n - 4) / 16)))
        for n in range(20)
    ]
    assert rates == pytest.approx(wanted)


def test_progress_tells_steps_samples_and_seconds():
    trainer = tiny()
    progress = list(fit(trainer))
    assert [p.step for p in progress] == list(range(1, 13)) and [p.samples for p in progress] == [
        4 * n for n in range(1, 13)
    ]
    assert all(p.norm > 0 and p.rate > 0 for p in progress)
    assert all(b.seconds > a.seconds for a, b in pairwise(progress))


def test_a_finished_training_yields_nothing_and_writes_nothing(tmp_path):
    path = tmp_path / "tiny.pt"
    list(fit(tiny(), path))
    written = path.stat().st_mtime_ns
    assert list(fit(tiny(), path)) == [] and path.stat().st_mtime_ns == written


def test_checkpoints_are_written_as_time_passes(tmp_path):
    path, seen = tmp_path / "tiny.pt", []
    for progress in fit(tiny(), path, every=0.0):
        seen.append(torch.load(path, weights_only=True)["done"] if path.exists() else 0)
        assert seen[-1] == progress.step - 1
    assert torch.load(path, weights_only=True)["done"] == 12


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_with_the_last_checkpoint_intact(tmp_path, value):
    path = tmp_path / "tiny.pt"
    with pytest.raises(
        NotFinite,
        match=rf"^the loss became {value} at step 6; the last good checkpoint is intact, "
        rf"{re.escape(str(path))}$",
    ):
        list(fit(tiny(lambda step: value if step == 6 else None), path, every=0.0))
    assert torch.load(path, weights_only=True)["done"] == 6
    trainer = tiny()
    list(fit(trainer, path))
    assert_same(all_of(trainer), unbroken()[0])


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(tmp_path):
    class Sharp(Wobbly):
        def __call__(self, net, x0, target, draw):
            loss = super().__call__(net, x0, target, draw)
            return (
                loss + (loss * 0).sqrt() if draw.step == 6 else loss
            )  # its value is right, its gradient nan

    path, trainer = tmp_path / "tiny.pt", tiny()
    trainer._lossy.objective = Sharp()
    with pytest.raises(
        NotFinite,
        match=r"^the gradient's norm became nan at step 6; the last good checkpoint is intact, ",
    ):
        list(fit(trainer, path, every=0.0))
    assert all(bool(t.isfinite().all()) for t in trainer.module.state_dict().values())
    assert torch.load(path, weights_only=True)["done"] == 6


def test_a_step_that_fails_is_not_saved(tmp_path):
    def trouble(step):
        if step == 6:
            raise MemoryError

    path = tmp_path / "tiny.pt"
    with pytest.raises(MemoryError):
        list(fit(tiny(trouble), path, every=0.0))
    trainer = tiny()
    list(fit(trainer, path))
    assert_same(all_of(trainer), unbroken()[0])


def test_what_happens_after_a_step_belongs_to_it(tmp_path):
    kept, path = [], tmp_path / "tiny.pt"

    def after(trainer):
        if trainer.done == 6 and not kept:
            kept.append("failed")
            raise OSError("no room")
        kept.append(trainer.done)

    with pytest.raises(OSError, match="no room"):
        list(fit(tiny(), path, every=0.0, after=[lambda t: after(t) if t.done == 6 else None]))
    list(fit(tiny(), path, after=[lambda t: after(t) if t.done == 6 else None]))
    assert kept == ["failed", 6]  # the step was done again, and with it what comes after


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_an_interrupt_waits_for_the_end_of_the_step_and_saves(tmp_path):
    def trouble(step):
        if step == 6:
            os.kill(os.getpid(), signal.SIGINT)

    path = tmp_path / "tiny.pt"
    with pytest.raises(KeyboardInterrupt):
        list(fit(tiny(trouble), path))
    assert torch.load(path, weights_only=True)["done"] == 7
    trainer = tiny()
    list(fit(trainer, path))
    assert_same(all_of(trainer), unbroken()[0])


def test_a_second_interrupt_comes_through_at_once():
    before, reached = signal.getsignal(signal.SIGINT), []
    with pytest.raises(KeyboardInterrupt), defer_interrupt():
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("first")
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("second")
    assert reached == ["first"] and signal.getsignal(signal.SIGINT) is before


def signalled(*numbers):
    """Return trouble: these signals come during step 6."""
    return lambda step: [os.kill(os.getpid(), n) for n in numbers] and None if step == 6 else None


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(
    "numbers",
    [
        (signal.SIGTERM,),
        (signal.SIGINT,),
        (signal.SIGINT, signal.SIGTERM),
        (signal.SIGTERM, signal.SIGTERM),
    ],
    ids=str,
)
def test_signals_ask_and_the_training_stops_after_the_step(tmp_path, numbers):
    """A launcher sends SIGTERM to those whom Ctrl-C has reached already: both together ask once."""
    path, before = (
        tmp_path / "tiny.pt",
        [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)],
    )
    with stop_on_signals(Stop()) as stop:
        done = [p.step for p in fit(tiny(signalled(*numbers)), path, stop=stop)]
    assert (
        done == list(range(1, 8))
        and stop.agreed
        and torch.load(path, weights_only=True)["done"] == 7
    )
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    trainer = tiny()
    list(fit(trainer, path))
    assert_same(all_of(trainer), unbroken()[0])


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_second_ctrl_c_stops_within_the_step(tmp_path):
    path = tmp_path / "tiny.pt"
    with pytest.raises(KeyboardInterrupt), stop_on_signals(Stop()) as stop:
        list(fit(tiny(signalled(signal.SIGINT, signal.SIGINT)), path, every=0.0, stop=stop))
    assert (
        torch.load(path, weights_only=True)["done"] == 6
    )  # the step that was broken off is not saved
    trainer = tiny()
    list(fit(trainer, path))
    assert_same(all_of(trainer), unbroken()[0])


def test_training_works_off_the_main_thread():
    trainer = tiny()
    thread = threading.Thread(target=lambda: list(fit(trainer)))
    thread.start()
    thread.join()
    assert trainer.done == 12


# --- checkpoints ---


def partly(path, every=0.0):
    """Leave a checkpoint of step 5 at ``path``."""
    steps = fit(tiny(), path, every=every)
    for progress in steps:
        if progress.step == 5:
            steps.close()
    return path.read_bytes()


def failing_replace(*_):
    raise OSError(28, "No space left on device")


def half_a_save(state, file):
    file.write(b"half")
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("owner", "name", "failure"),
    [
        (os, "replace", failing_replace),
        (torch, "save", half_a_save),
        (os, "fsync", failing_replace),
    ],
)
def test_a_checkpoint_is_whole_or_not_there(tmp_path, monkeypatch, owner, name, failure):
    path = tmp_path / "tiny.pt"
    old, trainer = partly(path), tiny()
    trainer.load(path)
    trainer.step()
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failure)
        with pytest.raises(
            OSError, match=rf"^cannot write {re.escape(str(path))}: No space left on device$"
        ):
            trainer.save(path)
    assert path.read_bytes() == old and os.listdir(tmp_path) == ["tiny.pt"]
    trainer.save(path)
    assert torch.load(path, weights_only=True)["done"] == 6


def test_a_full_disk_says_that_the_last_checkpoint_is_intact(tmp_path, monkeypatch):
    path = tmp_path / "tiny.pt"
    old = partly(path)
    monkeypatch.setattr(torch, "save", half_a_save)
    with pytest.raises(
        OSError,
        match=rf"^cannot write {re.escape(str(path))}: No space left on device; the last good "
        rf"checkpoint is intact, {re.escape(str(path))}$",
    ):
        list(fit(tiny(), path, every=0.0))
    assert path.read_bytes() == old and os.listdir(tmp_path) == ["tiny.pt"]
    path.unlink()
    with pytest.raises(OSError, match=r"; no checkpoint had been written yet$"):
        list(fit(tiny(), path, every=0.0))


def test_former_checkpoints_are_rotated(tmp_path):
    path, trainer = tmp_path / "tiny.pt", tiny()
    for _ in range(5):
        trainer.step()
        trainer.save(path, keep=3)
    assert sorted(os.listdir(tmp_path)) == ["tiny.1.pt", "tiny.2.pt", "tiny.pt"]
    assert [
        torch.load(tmp_path / name, weights_only=True)["done"]
        for name in ("tiny.pt", "tiny.1.pt", "tiny.2.pt")
    ] == [5, 4, 3]


@pytest.mark.parametrize("what", ["machine", "threads", "processes", "device", "torch"])
def test_another_machine_or_number_of_threads_is_warned_of(tmp_path, what, recwarn):
    path = tmp_path / "tiny.pt"
    list(fit(tiny(steps=2), path))
    list(fit(tiny(steps=2), path))
    assert not recwarn.list  # where nothing differs
    state = torch.load(path, weights_only=True)
    state["where"][what] = "another"
    torch.save(state, path)
    with pytest.warns(
        UserWarning,
        match=rf"was written with other {what}; the training goes on, but its last bits",
    ):
        tiny(steps=2).load(path)


def test_what_an_earlier_failure_left_is_not_taken_for_a_checkpoint(tmp_path):
    path = tmp_path / "tiny.pt"
    path.with_name("tiny.pt.writing").write_bytes(b"half")
    trainer = tiny()
    list(fit(trainer, path))
    assert_same(all_of(trainer), unbroken()[0])
    assert os.listdir(tmp_path) == ["tiny.pt"]


def test_other_failures_leave_nothing_beside_either(tmp_path):
    with pytest.raises(RuntimeError, match="trouble"), whole_or_not(tmp_path / "x.pt") as beside:
        beside.write_bytes(b"half")
        raise RuntimeError("trouble")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"steps": 13}, "steps"),
        ({"rate": 0.5, "batch": 5}, "batch, rate"),
        ({"seed": 1}, "seed"),
        ({"made_from": {"model.widths": (32, 64)}}, "model.widths"),
        ({"made_from": {"model.widths": (16, 32), "levels.std": 2.0}}, "levels.std"),
        ({"made_from": None}, "model.widths"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused_by_name(tmp_path, changes, named):
    path, made = tmp_path / "tiny.pt", {"made_from": {"model.widths": (16, 32)}}
    list(fit(tiny(**made), path))
    old = path.read_bytes()
    with pytest.raises(ValueError, match=rf"other settings \({re.escape(named)}\); [^\n]*$"):
        list(fit(tiny(**{**made, **changes}), path))
    assert path.read_bytes() == old


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    path, trainer = tmp_path / "tiny.pt", tiny()
    list(fit(tiny(), path))
    trainer.module.layers[0] = nn.Linear(3, 9)
    with pytest.raises(ValueError, match=r"holds the weights of another network[^\n]*$"):
        trainer.load(path)


@pytest.mark.parametrize(
    "damage", ["empty", "truncated", "text", "words", "another file", "a number"]
)
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    path = tmp_path / "tiny.pt"
    whole = partly(path)
    if damage == "another file":
        torch.save({"weights": torch.zeros(3)}, path)
    elif damage == "a number":
        torch.save(3, path)
    else:
        path.write_bytes(
            {
                "empty": b"",
                "truncated": whole[: len(whole) // 2],
                "text": b"<html>404</html>",
                "words": b"half a checkpoint",
            }[damage]
        )
    with pytest.raises(ValueError, match=r"tiny\.pt is not a checkpoint[^\n]*$"):
        list(fit(tiny(), path))


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(
            OSError, match=rf"^cannot write to the folder {re.escape(str(folder))}: [^\n]+$"
        ):
            make_folder(folder)
    make_folder(tmp_path / "new" / "folder")
    assert os.listdir(tmp_path / "new" / "folder") == []


# --- progress ---


def test_a_smoothed_value_is_a_weighted_mean_without_bias():
    smooth, values = Smoothed(keep=0.5), [4.0, 2.0, 8.0]
    found = [smooth.add(v) for v in values]
    assert found == pytest.approx([4.0, (0.5 * 4 + 2) / 1.5, (0.25 * 4 + 0.5 * 2 + 8) / 1.75])


def step(n, seconds, loss=1.0, batch=64):
    return Progress(step=n, loss=loss, seconds=seconds, samples=batch * n, norm=1.0, rate=1e-3)


def test_figures_go_by_the_steps_of_this_start():
    figures = Figures(steps=400)
    assert figures.add(step(100, 5000.0)) == {
        "loss": "1.0000",
        "speed": "–",
        "left": "–",
    }  # resumed: nothing known of its speed yet
    assert figures.add(step(101, 5000.5))["speed"] == "128"
    assert figures.add(step(102, 5001.0)) == {
        "loss": "1.0000",
        "speed": "128",
        "left": "2:29",
    }  # 298 steps of half a second


def test_reports_to_a_file_are_lines(capsys):
    with progress_report(interval=1e9) as report:
        for n in range(1, 11):
            report("model", step(n, 0.5 * n), 10)
        report("judge", step(1, 0.5), 10)
    assert capsys.readouterr().err.splitlines() == [
        "model 1/10  loss 1.0000  – samples/s  – left",
        "model 10/10  loss 1.0000  128 samples/s  0:00 left",
        "judge 1/10  loss 1.0000  – samples/s  – left",
    ]


def test_reports_to_a_terminal_are_bars(monkeypatch, capsys):
    pytest.importorskip("rich")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    with progress_report() as report:
        for n in range(1, 11):
            report("model", step(n, 0.5 * n), 10)
    assert re.search(
        r"model .* 10/10 loss 1.0000 +128 samples/s +0:00 left",
        re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err),
    )
