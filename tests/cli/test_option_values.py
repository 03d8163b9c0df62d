"""What the commands make of their options, and hand to the library, by values written out."""

from __future__ import annotations

import json
import logging
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import typer
from PIL import Image

from guidestar.apps import strip as strips
from guidestar.cli import (
    _options,
    _terminal,
    distilling,
    measuring,
    results,
    sampling,
    serving,
    upscaling,
)
from guidestar.cli import strips as strip_command
from guidestar.diffusers import guidance_file
from guidestar.model import folder, loading
from guidestar.model.cascade_stages import StageSettings
from helpers.noting import noted
from helpers.served import toy_model


@contextmanager
def no_bar(label: str):
    yield "watch"


# Options that several commands have


def test_a_file_of_guidance_gives_what_was_left_out(monkeypatch):
    found = SimpleNamespace(guidance="cfg(2)", negative="n", steps=9, solver="heun", grid="karras")
    read = noted(monkeypatch, guidance_file, "read_guidance", found)
    none: Any = dict.fromkeys(("guidance", "negative", "steps", "solver", "grid"))
    assert _options.with_file(None, **{**none, "steps": 3}) == {**none, "steps": 3}
    file = Path("g.toml")
    assert _options.with_file(file, **none) == vars(found)
    own = {"negative": "", "steps": 3, "solver": "ddim", "grid": "uniform"}
    assert _options.with_file(file, **{**none, **own}) == {"guidance": "cfg(2)", **own}
    assert read == [((file,), {})] * 2
    with pytest.raises(ValueError, match="--guidance and --guidance-file each give the guidance"):
        _options.with_file(file, **{**none, "guidance": "cond"})


def test_numbers_separated_by_commas():
    assert _options.parse_scales("1, 2.5,-3") == (1.0, 2.5, -3.0)
    assert strip_command._numbers("0,1.5") == [0.0, 1.5]
    for bad in ("", "1,", "1;2", "x"):
        with pytest.raises(ValueError, match=r"--scale '.*': write a number, or several separated"):
            _options.parse_scales(bad)
        with pytest.raises(ValueError, match="scales are numbers separated by commas, not '"):
            strip_command._numbers(bad)


def test_a_file_that_is_to_be_written(tmp_path):
    _options.ready_file(tmp_path / "a" / "b" / "c.json")
    assert (tmp_path / "a" / "b").is_dir()
    with pytest.raises(OSError, match=r"cannot write .*a: it is a folder; name a file"):
        _options.ready_file(tmp_path / "a")


def test_a_run_is_checked_before_anything_is_loaded():
    assert _options.check_run() is None
    assert str(_options.check_run("cfg(2)", "heun", "fitted")) == "cfg(2)"
    assert _options.check_run(None, "ddim", "karras") is None
    for given, line in (
        (("cgf(2)",), "unknown name 'cgf'"), ((None, "hein"), "hein"),
        ((None, None, "even"), "unknown grid 'even'; the grids are "),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=line):
            _options.check_run(*given)


def test_settings_of_stages():
    texts = ["a:steps=3", "a:augmentation=0.2", "b:guidance=cfg(2, interval=(1, 2))",
             "b:negative=x=y:z", "a:solver=heun"]  # fmt: skip
    assert upscaling.parse_stages(texts) == {
        "a": StageSettings(steps=3, augmentation=0.2, solver="heun"),
        "b": StageSettings(guidance="cfg(2, interval=(1, 2))", negative="x=y:z"),
    }
    assert upscaling.parse_stages(None) == upscaling.parse_stages([]) == {}
    for text, line in (
        ("a", "should be NAME:KEY=VALUE"), ("a:steps", "should be NAME:KEY=VALUE"),
        ("steps=3", "should be NAME:KEY=VALUE"), ("a:stesp=3", "the keys are guidance, steps, sol"),
        ("a:steps=x", "steps must be a number"), ("a:augmentation=x", "augmentation must be a num"),
        ("a:guidance=cgf(2)", "unknown name 'cgf'"), ("a:solver=hein", "hein"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=line):
            upscaling.parse_stages([text])


def test_ranges_of_scales_and_seeds():
    assert measuring._span("3-5") == range(3, 6) and measuring._span("7-7") == range(7, 8)
    for bad in ("5-3", "3", "-3", "3-", "a-b", "1-2-3", "-1-2"):
        with pytest.raises(ValueError, match=r"--seeds must be a first and a last seed, e\.g\. "):
            measuring._span(bad)
    assert distilling._range("1,5") == [1.0, 5.0]


def test_limits_of_a_server():
    assert serving.read_limits([]) == serving.read_limits([])
    found = serving.read_limits(["samples=3", "per-client=5", "seconds=1.5"])
    assert (found.samples, found.per_client, found.seconds) == (3, 5, 1.5)
    for bad in ("samples=0", "samples=1.5", "samples=", "samples", "seconds=inf", "seconds=-1",
                "seconds=nan", "seconds=0"):  # fmt: skip
        with pytest.raises(ValueError, match=r"must be a (int|float) above 0, not '"):
            serving.read_limits([bad])
    with pytest.raises(ValueError, match="unknown limit 'x'; the limits are "):
        serving.read_limits(["x=1"])


def test_models_of_a_server_have_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a/own").mkdir(parents=True)
    here = str(tmp_path.resolve() / "a/own")
    assert serving._folders(["fashion-mnist", "a/own"]) == {
        "fashion-mnist": "fashion-mnist", "own": here,
    }  # fmt: skip
    assert serving._folders(["x=a/own", "y=fashion-mnist", "o/m"]) == {
        "x": here, "y": "fashion-mnist", "m": "o/m",
    }  # fmt: skip
    assert serving._folders(["a/own:4-step", "fashion-mnist:4-step", "o/m:1"]) == {
        "own:4-step": f"{here}:4-step",
        "fashion-mnist:4-step": "fashion-mnist:4-step",
        "m:1": "o/m:1",
    }
    for twice in (["a/own", "own=fashion-mnist"], ["fashion-mnist"] * 2):
        with pytest.raises(ValueError, match=r"two models are called '.*'; write NAME=FOLDER"):
            serving._folders(twice)


@pytest.mark.parametrize(("access", "level"), [(True, logging.INFO), (False, logging.WARNING)])
def test_requests_are_noted_where_that_is_wanted(access, level):
    log = logging.getLogger("guidestar.access")
    before = log.level
    serving._log(access)
    assert log.level == level
    log.setLevel(before)


def test_ray_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RuntimeError, match=r"--ray needs Ray Serve; install it with: pip install "):
        serving._cluster()


# The terminal


def test_tables_have_columns(capsys):
    _terminal.table(("a", "long"), [("bbb", "c"), ("", "dd")])
    assert capsys.readouterr().out == "a    long\nbbb  c\n     dd\n"
    _terminal.warn("x\udcff")
    assert capsys.readouterr().err == "guidestar: note: x\\xff\n"
    with pytest.raises(SystemExit) as stopped:
        _terminal.fail("y", 7)
    assert stopped.value.code == 7 and capsys.readouterr().err == "guidestar: y\n"
    assert _terminal.printable("\ud800a\\udc80") == "?a\\x80"


# Sampling


def test_a_scale_is_one_for_all_or_one_each():
    assert sampling._scales(None, [0, 1]) is None
    assert sampling._scales("2", [0, 5]) == (2.0,)
    assert sampling._scales("1,2,3", [2, 0]) == (3.0, 1.0)
    with pytest.raises(ValueError, match="--scale has 2 numbers for 3 samples; give one, or one e"):
        sampling._scales("1,2", [2])


@pytest.mark.parametrize(
    ("shape", "latent", "pictures"),
    [((1, 4, 4), False, True), ((3, 4, 4), False, True), ((2, 4, 4), False, False),
     ((4, 4, 4), True, True), ((4, 4), False, False), ((3,), False, False)],
)  # fmt: skip
def test_which_samples_are_pictures(shape, latent, pictures):
    model: Any = SimpleNamespace(shape=shape, latent=latent)
    assert sampling._makes_pictures(model) is pictures


def test_conditions_of_all_samples():
    model: Any = SimpleNamespace(name="m", classes=("x", "y"), takes_prompts=False)
    of = lambda cond, num, model=model: sampling._conditions(model, cond, num)
    assert of([], 3) is None and of(["a"], 2) == ["a", "a"] and of(["a", "b"], 1) == ["a", "b"]
    assert of(["a", "all"], 2) == ["a", "a", "x", "x", "y", "y"]
    text: Any = SimpleNamespace(name="m", classes=(), takes_prompts=True)
    assert of(["a b"], 1, text) == ["a b"]
    with pytest.raises(ValueError, match="takes text prompts, so there are no classes for 'all'"):
        of(["a", "all"], 1, text)
    bare: Any = SimpleNamespace(name="m", classes=(), takes_prompts=False)
    assert of(["all"], 1, bare) == ["all"]


def test_the_name_of_the_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    name = sampling._model_name
    assert name("given", None) == name("given", {"model": "other"}) == "given"
    for known in ("fashion-mnist", "here", "here:fast", "fashion-mnist:fast"):
        assert name(None, {"model": known}) == known
    for strange in ("owner/name", "there", "there:fast"):
        with pytest.raises(ValueError, match=f"names the model '{strange}', which is not here; na"):
            name(None, {"model": strange})
    for nothing in (None, {}, {"model": 3}):
        with pytest.raises(ValueError, match="name a model "):
            name(None, nothing)


def test_what_differs_from_the_first_run_is_named(capsys):
    now: Any = SimpleNamespace(threads=2, device="cpu", versions={"torch": "1"})
    results.warn_of_differences({"threads": 2, "device": "cpu"}, now)
    assert not capsys.readouterr().err
    results.warn_of_differences({"threads": 1, "device": "cuda", "versions": {}}, now)
    assert capsys.readouterr().err == (
        "guidestar: note: threads, device, versions differ from the first run's, so the last bits "
        "may too\n"
    )


def samples_of(x, images=None) -> Any:
    settings = SimpleNamespace(guidance="cfg(2)")
    return SimpleNamespace(x=x, images=x if images is None else images, settings=settings, nfe=3.0)


@pytest.mark.parametrize(
    ("shape", "grid", "files", "line"),
    [
        ((2, 1, 4, 4), False, [], "2 images in {out}: cfg(2), NFE 3\n"),
        ((2, 3, 4, 4), True, ["grid.png"], "2 images in {out}: cfg(2), NFE 3\n"),
        ((2, 5, 3), False, ["curves.png", "samples.safetensors"],
         "2 samples of [5, 3] in {out}/samples.safetensors: cfg(2), NFE 3\n"),
        ((2, 2, 4, 4), True, ["curves.png", "samples.safetensors"],
         "2 samples of [2, 4, 4] in {out}/samples.safetensors: cfg(2), NFE 3\n"),
    ],
)  # fmt: skip
def test_what_shows_all_samples(tmp_path, capsys, monkeypatch, shape, grid, files, line):
    from guidestar.io import images

    written = noted(monkeypatch, images, "write_tensors")
    laid = noted(monkeypatch, images, "sheet", "sheet")
    saved = noted(monkeypatch, images, "save_png")
    results.write_results(toy_model(), samples_of(torch.zeros(shape)), tmp_path, grid)
    names = [Path(call[0][1]).name for call in saved]
    assert names == [f for f in files if f.endswith(".png")]
    assert len(written) == ("samples.safetensors" in files)
    assert [call[1]["scale"] for call in laid] == [3 if name == "grid.png" else 1 for name in names]
    assert [[len(row.images) for row in call[0][0]] for call in laid] == [[2]] * len(names)
    assert capsys.readouterr().out == line.format(out=tmp_path)


def test_a_contact_sheet_has_rows_of_eight(tmp_path, monkeypatch, capsys):
    from guidestar.io import images

    files = []
    for k in range(11):
        files.append(tmp_path / f"{k}.png")
        Image.new("L", (2, 2), k).save(files[-1])
    laid = noted(monkeypatch, images, "sheet", "sheet")
    saved = noted(monkeypatch, images, "save_png")
    results.write_grid(tmp_path, files)
    assert [len(row.images) for row in laid[0][0][0]] == [8, 3] and laid[0][1] == {"scale": 3}
    assert saved == [(("sheet", tmp_path / "grid.png"), {})] and not capsys.readouterr().err
    monkeypatch.setattr(results, "ON_A_GRID", 10)
    results.write_grid(tmp_path, files)
    assert [len(row.images) for row in laid[1][0][0]] == [8, 2]
    assert "the contact sheet shows the first 10 of 11 images" in capsys.readouterr().err


def test_a_strip_is_drawn_as_the_options_say(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(strip_command, "show_progress", no_bar)
    noted(monkeypatch, folder, "load", "model")
    between = noted(monkeypatch, strips, "morph", "images")
    up = noted(monkeypatch, strips, "rising", "images")
    written = noted(monkeypatch, strips, "write_strip")
    out = tmp_path / "s.png"
    strip_command.strip("m", ["a", "b"], out, 5, None, "cond", 7, 9)
    assert between == [(("model", "a", "b"), {"frames": 5, "seed": 7, "guidance": "cond",
                                              "steps": 9, "watch": "watch"})]  # fmt: skip
    strip_command.strip("m", ["a"], out, seed=7, steps=9)
    strip_command.strip("m", ["a"], out, scales="1,2")
    usual = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0]
    assert up == [
        (("model", "a", usual), {"seed": 7, "steps": 9, "watch": "watch"}),
        (("model", "a", [1.0, 2.0]), {"seed": 0, "steps": None, "watch": "watch"}),
    ]
    assert written == [(("images", out), {})] * 3 and capsys.readouterr().out == f"{out}\n" * 3
    refused: list[tuple[Any, str]] = [
        ((["a", "b", "c"],), "a strip goes between two prompts"),
        ((["a"], out, 9, None, "cond"), "so --guidance has no effect"),
        ((["a", "b"], out, 9, "1,2"), "leave --scales out, or give one prompt"),
    ]
    for given, line in refused:
        with pytest.raises(ValueError, match=line):
            strip_command.strip("m", *given)


def test_pictures_are_enlarged_as_the_options_say(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(upscaling, "show_progress", no_bar)
    from guidestar.model import upscaling as library

    loaded = noted(monkeypatch, folder, "load", "model")
    noted(monkeypatch, library, "need_low", SimpleNamespace(channels=1, size=2))
    saved: list[Any] = []
    made = samples_of(torch.zeros(2, 1, 4, 4))
    made.save = saved.append
    ran = noted(monkeypatch, library, "upscale", made)
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for k, file in enumerate(files):
        Image.new("RGB", (2, 2), (255 * k,) * 3).save(file)
    upscaling.upscale("m", files, "cat", 0.2, 5, "cond", "n", 3, "ddim", True, tmp_path / "out")
    assert loaded == [(("m",), {"trust": True})] and saved == [tmp_path / "out"]
    (given, more) = ran[0]
    assert given[0] == "model" and given[2] == "cat"
    assert given[1].tolist() == [[[[-1.0] * 2] * 2], [[[1.0] * 2] * 2]]
    assert more == {"augmentation": 0.2, "guidance": "cond", "seeds": [5, 6], "negative": "n",
                    "steps": 3, "solver": "ddim", "watch": "watch"}  # fmt: skip
    assert capsys.readouterr().out == f"2 images in {tmp_path / 'out'}: cfg(2), NFE 3\n"
    colours = upscaling._read(files[1], 3, 2)
    assert colours.shape == (3, 2, 2) and colours.dtype == torch.float32
    with pytest.raises(ValueError, match=r"a\.png has 2 x 2 pixels, and this model enlarges 3 x 3"):
        upscaling._read(files[0], 1, 3)


# Measuring


ROW = {"guidance": "g", "accuracy": 0.98761, "frechet": 1.23456, "diversity": 0.5,
       "shares": [0.08, 0.12], "nfe": 20.0, "seconds": 1.26}  # fmt: skip
TEXT_ROW = {"guidance": "g", "top 1": 0.5, "top 5": 0.98761, "score": 0.25, "frechet": 1.5,
            "nearest": 0.33333, "nfe": 8.0, "seconds": 3.0}  # fmt: skip
MOTION_ROW = {"guidance": "cond", "accuracy": 0.9375, "fid": 0.2211, "diversity": 12.189,
              "multimodality": 1.6111, "foot_skating": 0.2161, "jerk": 36.91, "floor": 0.0358,
              "nfe": 40.0, "seconds": 2.04}  # fmt: skip


def test_cells_of_figures():
    assert measuring._cells(ROW) == (
        "g", "98.76%", "1.235", "0.500", "8.0%-12.0%", "20", "1.3"
    )  # fmt: skip
    assert measuring._text_cells(TEXT_ROW) == (
        "g", "50.0%", "98.8%", "0.250", "1.500", "0.333", "8", "3.0"
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["class", "text", "motion"])
def test_guidances_are_measured_as_the_options_say(monkeypatch, tmp_path, capsys, kind):
    from guidestar.apps import measure, measure_motion, measure_text
    from guidestar.model import motions

    monkeypatch.setattr(measuring, "show_progress", no_bar)
    body = object() if kind == "motion" else None
    monkeypatch.setattr(motions, "body_of_model", lambda model: body)
    model = SimpleNamespace(takes_prompts=kind != "class")  # of motions too, by their captions
    loaded = noted(monkeypatch, loading, "load", model)
    classes = noted(monkeypatch, measure, "measure", [ROW])
    words = noted(monkeypatch, measure_text, "measure_text", [TEXT_ROW])
    moves = noted(monkeypatch, measure_motion, "measure_motions", [MOTION_ROW])
    given = {"seeds": "3-6", "steps": 5, "solver": "heun", "levels": "karras", "data": "d",
             "stage": None, "average": "a", "variant": "v", "trust": True}  # fmt: skip
    out = tmp_path / "r.json"
    measuring.evaluate("m", ["cond"], **{**given, "out": out})  # type: ignore[arg-type]
    assert loaded == [(("m",), {"average": "a", "variant": "v", "trust": True})]
    shared = {"steps": 5, "solver": "heun", "grid": "karras", "data": "d", "watch": "watch"}
    called = {"class": classes, "text": words, "motion": moves}
    own = {"count": 4, "seed": 3} if kind == "text" else {"seeds": range(3, 7)}
    assert called.pop(kind) == [((model, ["cond"]), {**shared, **own})]
    assert not any(called.values())
    assert json.loads(out.read_text()) == [
        {"class": ROW, "text": TEXT_ROW, "motion": MOTION_ROW}[kind]
    ]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["guidance", "top" if kind == "text" else "accuracy"]
    if kind == "motion":
        numbers = ["93.75%", "0.221", "12.19", "1.61", "0.216", "36.9", "0.036", "40", "2.0"]
        assert lines[1].split() == ["cond", *numbers]


# Serving


def test_a_server_is_started_as_the_options_say(monkeypatch, tmp_path):
    from guidestar.serve import loading as served
    from guidestar.serve import web
    from guidestar.serve.web import run

    noted(monkeypatch, serving, "_log")
    loaded = noted(monkeypatch, served, "load_models", "models")
    made = noted(monkeypatch, web, "Service", "service")
    apps = noted(monkeypatch, web, "make_app", "app")
    ran = noted(monkeypatch, web, "run_server", 5)
    known = noted(monkeypatch, web, "read_keys", "keys")
    monkeypatch.setattr(run, "is_loopback", lambda host: host != "0.0.0.0")
    start: dict[str, Any] = {"limit": ["samples=3"], "device": "cuda", "trust": True, "port": 9}
    with pytest.raises(typer.Exit) as stopped:
        serving.serve(["fashion-mnist"], **start, grace=4.0)
    assert stopped.value.exit_code == 5
    folders = {"fashion-mnist": "fashion-mnist"}
    assert loaded[0] == ((folders,), {"device": "cuda", "trust": True})
    assert made[0][0][0] == "models" and made[0][0][1].samples == 3 and made[0][0][2] is None
    hosts = {"localhost", "127.0.0.1", "[::1]"}
    assert apps[0][0] == ("service",)
    assert apps[0][1]["hosts"] == hosts and apps[0][1]["studio"] is False
    assert ran[0] == (("app", "service"), {"host": "127.0.0.1", "port": 9, "grace": 4.0})
    with pytest.raises(typer.Exit):
        serving.studio(["fashion-mnist"], host="0.0.0.0", keys=tmp_path)
    assert known == [((tmp_path,), {})] and apps[1][1] == {
        "keys": "keys", "hosts": None, "studio": True
    }  # fmt: skip
    assert ran[1][1]["grace"] == 5.0 and loaded[1][1] == {"device": "cpu", "trust": False}
    with pytest.raises(typer.Exit):
        serving.serve(["fashion-mnist"], host="0.0.0.0", insecure=True)
    with pytest.raises(ValueError, match="can be reached from other machines: name a file of API"):
        serving.serve(["fashion-mnist"], host="0.0.0.0")
    for more in ({"replicas": "2"}, {"per_replica": 3}, {"ray_address": "a"}):
        with pytest.raises(ValueError, match="go with --ray; add it"):
            serving.serve(["fashion-mnist"], **more)  # type: ignore[arg-type]
    cluster: list[Any] = []

    class Cluster:
        engine = "engine"

        def __init__(self, *given: Any, **more: Any) -> None:
            cluster.append((given, more))

        def __enter__(self):
            return self

        def __exit__(self, *_: object) -> None:
            cluster.append("closed")

    monkeypatch.setattr(serving, "_cluster", lambda: Cluster)
    with pytest.raises(typer.Exit):
        serving.serve(["fashion-mnist"], **start, on_ray=True, replicas="1-3", per_replica=7,
                      ray_address="a:1")  # fmt: skip
    (given, more), closed = cluster
    assert given[0] == folders and closed == "closed" and more["address"] == "a:1"
    scale = more["scale"]
    assert (scale.least, scale.most, scale.target) == (1, 3, 7)
    assert (more["device"], more["trust"]) == ("cuda", True)
    assert loaded[-1][1] == {"device": "cpu", "trust": True} and made[-1][0][2] == "engine"
    with pytest.raises(typer.Exit):
        serving.serve(["fashion-mnist"], on_ray=True)
    scale = cluster[2][1]["scale"]
    assert (scale.least, scale.most, scale.target) == (1, 1, 16)
