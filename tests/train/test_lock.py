"""One training a folder at a time; a disk that fills up is named; a terminal that closes saves."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch

from guidestar import cli
from guidestar.io.files import name_write_errors
from guidestar.train import run
from guidestar.train.loop.lock import BEAT, Locked, locked
from guidestar.train.loop.signals import Stop, stop_on_signals
from guidestar.train.recipe import schema as recipes
from helpers.recipes import use_six_pictures

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and limits")

TEXT = """
name = "small"
[data]
kind = "fashion-mnist"
[model]
widths = [8]
head = 8
snapshots = [0.5]
train = { steps = 4, batch = 2 }
[preview]
every = 2
seeds = 1
steps = 1
guidance = ["cfg(2)"]
[export]
steps = 2
"""


@pytest.fixture
def small(tmp_path, monkeypatch):
    use_six_pictures(monkeypatch)
    (tmp_path / "r.toml").write_text(TEXT)
    return recipes.read_recipe(tmp_path / "r.toml")


HOLD = """
import sys, time
from pathlib import Path
from guidestar.train.loop.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "held\n"
    yield child
    child.kill()
    child.wait()
    child.stdout.close()


def test_a_second_training_in_a_folder_is_refused_until_the_first_is_gone(tmp_path, small, holder):
    seen = []
    with pytest.raises(
        Locked,
        match=rf"another training runs here \(process {holder.pid} on {socket.gethostname()}, "
        r"since .*give another --out",
    ) as caught:
        run.train(small, tmp_path / "out", lambda *_: seen.append(1))
    assert "\n" not in str(caught.value) and not seen and not (tmp_path / "out" / "parts").exists()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "out" / ".lock").exists()  # of a process that is gone: taken over
    run.train(small, tmp_path / "out", lambda *_: seen.append(1))
    assert len(seen) == 4 and not (tmp_path / "out" / ".lock").exists()


def test_the_command_refuses_too_and_in_one_line(tmp_path, small, holder, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", str(tmp_path / "r.toml"), "--out", str(tmp_path / "out")])
    err = capsys.readouterr().err
    assert stop.value.code == 1 and err.count("\n") == 1 and "another training runs here" in err


def test_the_lock_is_released_when_a_training_fails(tmp_path, small):
    with pytest.raises(RuntimeError, match="trouble"):
        run.train(
            small, tmp_path / "out", lambda *_: (_ for _ in ()).throw(RuntimeError("trouble"))
        )
    assert not (tmp_path / "out" / ".lock").exists()
    run.train(small, tmp_path / "out")


def test_one_thread_holds_it_again_and_another_does_not(tmp_path):
    refused = []

    def other():
        try:
            with locked(tmp_path):
                pass
        except Locked as error:
            refused.append(str(error))

    with locked(tmp_path):
        with locked(tmp_path):
            assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
        assert (tmp_path / ".lock").exists()
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(refused) == 1 and not (tmp_path / ".lock").exists()


@pytest.mark.parametrize(("age", "free"), [(0.0, False), (5 * BEAT, False), (7 * BEAT, True)])
def test_a_lock_of_another_machine_counts_while_it_gives_signs_of_life(tmp_path, age, free):
    path = tmp_path / ".lock"
    path.write_text(json.dumps({"pid": 1, "host": "elsewhere", "since": "noon"}))
    os.utime(path, (time.time() - age,) * 2)
    if free:
        with locked(tmp_path):
            assert json.loads(path.read_text())["host"] == socket.gethostname()
        return
    with pytest.raises(Locked, match=r"process 1 on elsewhere, since noon"), locked(tmp_path):
        pass
    assert json.loads(path.read_text())["host"] == "elsewhere"


@pytest.mark.parametrize("content", ["", "{", "[]", "\0" * 50])
def test_a_damaged_lock_of_nobody_is_taken_over(tmp_path, content):
    (tmp_path / ".lock").write_text(content)
    with locked(tmp_path):
        pass


def test_a_sign_of_life_is_given(tmp_path, monkeypatch):
    monkeypatch.setattr("guidestar.train.loop.lock.BEAT", 0.01)
    with locked(tmp_path):
        os.utime(tmp_path / ".lock", (1, 1))
        until = time.monotonic() + 5
        while (tmp_path / ".lock").stat().st_mtime < 2 and time.monotonic() < until:
            time.sleep(0.01)
        assert (tmp_path / ".lock").stat().st_mtime > 2


def test_a_terminal_that_closes_asks_to_stop_unless_that_is_ignored():
    former = signal.getsignal(signal.SIGHUP)
    try:
        with stop_on_signals(Stop()) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop.requested and signal.getsignal(signal.SIGHUP) is former
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        with stop_on_signals(Stop()) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.requested and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, former)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "cannot write f: No space left on device",
        ),
        (
            Exception("No space left on device (os error 28)"),
            r"cannot write f: No space left on device \(os error 28\)",
        ),
        (RuntimeError("[Errno 28] No space\nleft"), r"cannot write f: \[Errno 28\] No space left"),
        (OSError("cannot write g: full"), "^cannot write g: full$"),
    ],
)
def test_whatever_a_library_raises_of_a_full_disk_names_the_file(error, said):
    with pytest.raises(OSError, match=said), name_write_errors("f"):
        raise error
    with pytest.raises(ValueError, match=r"^other$"), name_write_errors("f"):
        raise ValueError("other")


def limited(recipe, out, size, capsys):
    """Train by the command while no file may be larger than ``size``; return its code and what it
    said.
    """
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size is None else size, hard))
    try:
        with pytest.raises(SystemExit) as stop:
            cli.main(["train", str(recipe), "--out", str(out)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    return stop.value.code, capsys.readouterr().err


def finishes(recipe, out, capsys):
    """Train by the command until it succeeds, with ever larger files allowed; return what was said
    each time.
    """
    said = []
    for size in (2**10, 2**14, 2**16, 2**18, 2**20, None):
        code, err = limited(recipe, out, size, capsys)
        if not code:
            break
        said.append((code, err))
    return said


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning", "default:cannot write.*curves"
)
def test_a_file_that_cannot_grow_is_named_at_every_place_and_nothing_is_lost(
    tmp_path, small, capsys
):
    cli_out = tmp_path / "out"
    said = finishes(tmp_path / "r.toml", cli_out, capsys)
    named = set()
    for code, err in said:
        last = err.strip().splitlines()[-1]
        assert (
            code == 1
            and "Traceback" not in err
            and last.startswith("guidestar: cannot write ")
            and "File too large" in last
        ), err
        named.add(last.split(": File too large")[0].rpartition("/")[2])
        assert any(word in last for word in ("intact", "no checkpoint had been written yet")), last
    assert named == {"model-000002.safetensors", "model.pt"}
    whole = cli_out / "small"
    shutil.rmtree(whole)  # and of what comes after training
    code, err = limited(tmp_path / "r.toml", cli_out, 2**11, capsys)
    last = err.strip().splitlines()[-1]
    assert code == 1 and "diffusion_pytorch_model.safetensors: File too large" in last, err
    assert last.endswith("are intact, and the same command finishes the model")
    assert limited(tmp_path / "r.toml", cli_out, None, capsys)[0] == 0
    run.train(small, tmp_path / "whole")
    one, two = (
        torch.load(p / "parts" / "model.pt", weights_only=True)
        for p in (cli_out, tmp_path / "whole")
    )
    assert all(torch.equal(one["module"][k], two["module"][k]) for k in two["module"])
    assert not list(cli_out.rglob("*.writing")) and (whole / "guidestar.json").exists()
