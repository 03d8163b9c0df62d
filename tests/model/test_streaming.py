"""Pictures are written as they are made, in constant memory, and a run that was stopped goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import guidestar as gs
from guidestar.cli import main
from guidestar.io.images import read_settings
from guidestar.model.streaming import Batches, again_to_folder, sample_to_folder


class Labels:
    """An encoder of three classes."""

    classes = ("a", "b", "c")

    def index(self, name):
        return self.classes.index(name) if isinstance(name, str) else name

    def encode(self, names):
        return gs.Condition(label=torch.tensor([self.index(n) for n in names], dtype=torch.float32))

    def null(self, batch):
        return gs.Condition(label=torch.full((batch,), -1.0))


def net(x, t, label):
    return torch.tanh(x + 0.1 * label[:, None, None, None])


@pytest.fixture
def model():
    return gs.Model(
        name="toy",
        denoiser=gs.Network(net, predicts="x0"),
        schedule=gs.VP.linear(),
        shape=(1, 4, 4),
        encoder=Labels(),
    )


def job(model, count, *, guidance="cfg(2)", losses=lambda numbers: None, **run):
    return Batches(
        model=model,
        request=model.request(
            ["abc"[k % 3] for k in range(count)],
            guidance=guidance,
            **{"steps": 3, **run},
            seeds=range(100, 100 + count),
        ),
        numbers=range(count),
        losses=losses,
        batch=4,
    )


def test_pictures_are_those_of_their_batch(model, tmp_path):
    done = sample_to_folder(job(model, 10), tmp_path)
    assert [p.name for p in done.paths] == [
        f"{k:04d}-{'abc'[k % 3]}-seed{100 + k}.png" for k in range(10)
    ]
    assert done.kept == 0 and done.evaluations == 6 and done.guidance == "cfg(2)"
    for start in (0, 4, 8):
        rows = range(start, min(start + 4, 10))
        wanted = model.sample(
            ["abc"[k % 3] for k in rows], guidance="cfg(2)", steps=3, seeds=[100 + k for k in rows]
        )
        for image, k in zip(wanted.pil(), rows, strict=True):
            assert image.tobytes() == Image.open(done.paths[k]).tobytes()


def test_what_a_picture_carries_does_not_grow_with_their_number(model, tmp_path):
    few = sample_to_folder(job(model, 8), tmp_path / "few").paths[4]
    many = sample_to_folder(job(model, 64), tmp_path / "many").paths[4]
    assert few.read_bytes() == many.read_bytes()
    carried = read_settings(many)
    assert (
        carried["seeds"] == [104, 105, 106, 107]
        and carried["index"] == 0
        and carried["number"] == 4
    )


def test_memory_does_not_grow_with_their_number(model, tmp_path):
    alive = []
    sample = type(model).run

    def watched(self, *args, **kwargs):
        made = sample(self, *args, **kwargs)
        alive.append(__import__("weakref").ref(made.x))
        assert sum(ref() is not None for ref in alive) <= 2
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(model), "run", watched)
        sample_to_folder(job(model, 200), tmp_path)
    assert len(alive) == 50


def test_a_run_goes_on_where_it_was(model, tmp_path):
    whole = sample_to_folder(job(model, 12), tmp_path / "whole").paths
    part = sample_to_folder(job(model, 12), tmp_path / "part").paths
    for path in part[5:9]:
        path.unlink()
    before = {p: p.stat().st_mtime_ns for p in part[:4] + part[9:]}
    done = sample_to_folder(job(model, 12), tmp_path / "part")
    assert done.kept == 4  # the batch that lacks nothing; the two others are made again
    assert [p.read_bytes() for p in done.paths] == [p.read_bytes() for p in whole]
    assert part[0].stat().st_mtime_ns == before[part[0]]


@pytest.mark.parametrize(
    "change", [{"guidance": "cfg(3)"}, {"steps": 4}, {"solver": "ddim"}, {"negative": "a"}]
)
def test_pictures_of_other_settings_are_not_written_over(model, tmp_path, change):
    named = next(iter(change))
    first = sample_to_folder(job(model, 4), tmp_path).paths[0]
    content = first.read_bytes()
    other = job(model, 4, **change)
    with pytest.raises(
        ValueError,
        match=rf"was made with other settings \({named}\); name another folder with --out, or "
        "remove it",
    ):
        sample_to_folder(other, tmp_path)
    assert first.read_bytes() == content


def test_what_depends_on_a_loss_is_made_again(model, tmp_path):
    given = []

    def losses(numbers):
        given.append(list(numbers))
        return {"loss": lambda x0: (x0**2).flatten(1).sum(1)}

    lossy = job(model, 6, guidance="cond + dps(1)", losses=losses)
    sample_to_folder(lossy, tmp_path)
    assert sample_to_folder(lossy, tmp_path).kept == 0
    assert [0, 1, 2, 3] in given and [4, 5] in given


def test_a_scale_for_each_picture_is_one_batch(model, tmp_path):
    scales = job(model, 6, guidance="cfg([1, 2, 3, 4, 5, 6])")
    assert list(scales.parts()) == [slice(0, 6)]
    assert len(sample_to_folder(scales, tmp_path).paths) == 6


def test_progress_is_of_the_whole(model, tmp_path):
    told = []
    sample_to_folder(job(model, 8), tmp_path, lambda done, total: told.append((done, total)))
    assert told == [(k, 6) for k in range(1, 7)]


def files(folder):
    return {p.name: Image.open(p).tobytes() for p in sorted(folder.glob("0*.png"))}


@pytest.mark.slow
def test_a_killed_command_goes_on(tmp_path, capsys):
    command = ["sample", "fashion-mnist", "--cond", "all", "--num", "1", "--steps", "3"]
    command += ["--guidance", "cond", "--batch", "2", "--out"]

    def run(folder):
        with pytest.raises(SystemExit) as stop:
            main([*command, str(tmp_path / folder)])
        assert not stop.value.code
        return capsys.readouterr().out

    run("whole")
    running = subprocess.Popen(
        [sys.executable, "-m", "guidestar", *command, tmp_path / "cut"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for _ in range(6000):
        if len(list((tmp_path / "cut").glob("0*.png"))) >= 4 or running.poll() is not None:
            break
        time.sleep(0.02)
    os.kill(running.pid, signal.SIGKILL) if running.poll() is None else None
    running.wait()
    assert "were there already" in run("cut")
    assert (
        files(tmp_path / "cut") == files(tmp_path / "whole")
        and len(files(tmp_path / "whole")) == 10
    )


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main([*map(str, arguments)])
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.strip().count("\n") == 0
    return said


def forged(path, **settings):
    from guidestar.io.images import save_png

    run = {
        "model": "fashion-mnist",
        "cond": ["bag"],
        "negative": None,
        "guidance": "cfg(2)",
        "seeds": [0],
        "steps": 2,
    }
    run |= {"solver": "ddim", "grid": "log_snr", "max_rows": None}
    save_png(Image.new("L", (4, 4)), path, run | settings)
    return path


def test_a_picture_does_not_send_anyone_to_the_hub(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("guidestar.model.locating.fetch", lambda name: pytest.fail("fetched"))
    said = refused(
        capsys,
        "sample",
        "--like",
        forged(tmp_path / "x.png", model="owner/name"),
        "--out",
        tmp_path / "o",
    )
    assert "names the model 'owner/name', which is not here" in said


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lacking", 5),
        ("seeds", "0"),
        ("seeds", [0.5]),
        ("cond", {"a": 1}),
        ("steps", "2"),
        ("steps", True),
        ("guidance", 3),
        ("solver", None),
        ("grid", []),
        ("max_rows", -1),
        ("negative", [1]),
        ("started", 1),
        ("seeds", []),
    ],
)
def test_settings_of_odd_types_are_one_line(capsys, tmp_path, key, value):
    said = refused(
        capsys,
        "sample",
        "--like",
        forged(tmp_path / "x.png", **{key: value}),
        "--out",
        tmp_path / "o",
    )
    assert f"{key} cannot be" in said


@pytest.mark.parametrize("text", ["[1, 2]", "nonsense", "[" * 100_000, "7"])
def test_settings_that_are_no_object_are_one_line(capsys, tmp_path, text):
    from PIL import PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_text("guidestar", text)
    Image.new("L", (4, 4)).save(tmp_path / "x.png", pnginfo=info)
    assert "holds settings that are no" in refused(
        capsys, "sample", "--like", tmp_path / "x.png", "--out", tmp_path
    )


def test_like_takes_no_number_and_no_seed(capsys, tmp_path):
    picture = forged(tmp_path / "x.png")
    assert "leave --num out" in refused(
        capsys, "sample", "--like", picture, "--num", 3, "--out", tmp_path
    )
    assert "leave --seed out" in refused(
        capsys, "sample", "--like", picture, "--seed", 0, "--out", tmp_path
    )


CHEAP = {
    "sample": ["fashion-mnist", "--cond", "bag", "--out", "{out}"],
    "plan": ["fashion-mnist"],
    "evaluate": ["fashion-mnist", "--out", "{out}/x.json"],
}


@pytest.mark.parametrize("command", CHEAP)
@pytest.mark.parametrize(
    "wrong",
    [
        ("--guidance", "cgf(3)", "did you mean 'cfg'"),
        ("--solver", "euler2", "unknown solver"),
        ("--levels", "even", "unknown grid"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_loaded(
    capsys, tmp_path, monkeypatch, command, wrong
):
    monkeypatch.setattr("guidestar.model.locating.find_folder", lambda name: pytest.fail("loaded"))
    option, value, says = wrong
    options = [o.format(out=tmp_path) for o in CHEAP[command]]
    options += ["--guidance", "cond"] if command == "evaluate" and option != "--guidance" else []
    with pytest.raises(SystemExit) as caught:
        main([command, *options, option, value])
    assert caught.value.code == 2 and says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "says"),
    [("strip.bmp", "a strip is a .png"), ("file/strip.png", "cannot write to the folder")],
)
def test_a_strip_that_cannot_be_written_is_refused_first(capsys, tmp_path, monkeypatch, name, says):
    monkeypatch.setattr("guidestar.model.locating.find_folder", lambda name: pytest.fail("loaded"))
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as caught:
        main(["strip", "fashion-mnist", "bag", "--out", str(tmp_path / name)])
    assert caught.value.code in (1, 2) and says in capsys.readouterr().err


def test_numbers_of_saved_pictures_name_them(model, tmp_path):
    samples = model.sample(["a", "b"], seeds=[7, 8], steps=2, guidance="cond")
    paths = samples.save(tmp_path, numbers=[3, 5])
    assert [p.name for p in paths] == ["0003-a-seed7.png", "0005-b-seed8.png"]
    assert [read_settings(p)["number"] for p in paths] == [3, 5] and read_settings(paths[0])[
        "stride"
    ] == 2
    assert json.loads(json.dumps(read_settings(paths[1])))["index"] == 1
    assert Path(paths[0]).is_file()


def trained() -> gs.Model:
    """A model of the toy network and some weights in each of its parts."""

    class Weighted(torch.nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.full((3,), value))
            self.register_buffer("kept", torch.tensor(value))

        def forward(self, x, t, label):
            return net(x, t, label) * self.weight[0]

    return gs.Model(
        name="toy",
        denoiser=gs.Network(Weighted(1.0), predicts="x0"),
        schedule=gs.VP.linear(),
        shape=(1, 4, 4),
        encoder=Labels(),
        nets={"weak": (gs.Network(Weighted(0.5), predicts="x0"), None)},
        classifiers={"classifier": Weighted(0.25)},  # type: ignore[dict-item]
        card={"grids": {"3": [2.0, 1.0, 0.5]}},
    )


def test_pictures_that_name_no_weights_are_not_taken_either(tmp_path):
    model = trained()
    model.run(job(model, 4).request).save(tmp_path)
    with pytest.raises(ValueError, match=r"was made with other settings \(weights\); name another"):
        sample_to_folder(job(model, 4), tmp_path)


def change_one(tensor):
    with torch.no_grad():
        tensor.view(-1)[-1] += 1e-6


@pytest.mark.parametrize(
    "change",
    [
        lambda m: change_one(m.denoiser.net.weight),
        lambda m: change_one(m.denoiser.net.kept),
        lambda m: change_one(m.nets["weak"][0].net.weight),
        lambda m: change_one(m.classifiers["classifier"].weight),
        lambda m: m.card.update(grids={"3": [2.0, 1.0, 0.6]}),
        lambda m: setattr(m, "schedule", gs.VP.cosine()),
        lambda m: m.denoiser.net.to(torch.bfloat16),
    ],
)
def test_pictures_of_other_weights_are_not_taken_for_ones_own(tmp_path, change):
    """A stopped run is not finished by a model that was trained further since."""
    model = trained()
    first = sample_to_folder(job(model, 4, grid="log_snr"), tmp_path).paths
    assert sample_to_folder(job(trained(), 8, grid="log_snr"), tmp_path).kept == 4
    content = first[0].read_bytes()
    change(model)
    with pytest.raises(ValueError, match="was made with other weights of the model; name another"):
        sample_to_folder(job(model, 4, grid="log_snr"), tmp_path)
    assert first[0].read_bytes() == content


def test_a_repeated_run_carries_the_weights_it_was_made_with(tmp_path):
    model = trained()
    file = sample_to_folder(job(model, 4), tmp_path / "one").paths[2]
    settings = read_settings(file)
    assert len(settings["weights"]) == 32
    samples = again_to_folder(model, settings, tmp_path / "two")
    assert read_settings(tmp_path / "two" / file.name) == settings
    change_one(model.denoiser.net.weight)  # type: ignore[union-attr]
    other = again_to_folder(model, settings, tmp_path / "three").settings
    assert samples.settings.weights == settings["weights"] != other.weights
