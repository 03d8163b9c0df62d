"""A recipe that is proposed for a folder of motions."""

import tomllib
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from guidestar.cli import main
from guidestar.data.motions import Motions
from guidestar.data.source import Column, InMemory
from guidestar.train.build.data import sources
from guidestar.train.recipe import propose_motion
from guidestar.train.recipe.propose import propose
from guidestar.train.recipe.propose_motion import guess_names, motion_lines, motion_table
from guidestar.train.recipe.schema import checked
from guidestar.train.recipe.tables import Data, MotionTable
from helpers.motions import walker, write_walkers


@pytest.mark.parametrize(
    ("stems", "wanted"),
    [
        (["walk_old_1", "walk_new_2", "run_old_1", "run_new_2"], "{action}_{style}_{}"),
        (["set-2_walk_1", "set-2_run_1", "set-2_walk_2", "set-2_run_2"], "set-2_{action}_{}"),
        (["a_x_p_u", "b_y_q_u", "a_x_p_u", "b_y_q_u"], "{action}_{style}_{part3}_u"),
        (["walk_k1", "walk_k2", "run_k3", "run_k4"], "{action}_{}"),  # words that none share
        (["walk_1", "walk_2"], None),  # no class
        (["walk_1", "walk_old_2"], None),
        (["walk", "run"], None),
    ],
)
def test_words_that_differ_are_classes(stems, wanted):
    assert guess_names(stems) == wanted


@pytest.mark.parametrize(
    ("seconds", "frames", "rate", "wanted"),
    [
        (1 / 30, 90, 15.0, 44),  # each second frame; 3 seconds
        (1 / 120, 600, 20.0, 100),
        (0.05, 31, 20.0, 30),
        (0.1, 2000, 10.0, 100),  # 10 seconds at most
        (0.05, 2, 20.0, 4),
    ],
)
def test_rate_and_length_are_of_the_files(tmp_path, seconds, frames, rate, wanted):
    (tmp_path / "a.bvh").write_text(walker(frames, seconds=seconds))
    (tmp_path / "b.bvh").write_text("HIERARCHY")  # is passed over
    found = motion_table(tmp_path)
    assert (found.rate, found.frames, found.names) == (rate, wanted, None)


def test_a_folder_of_motions_becomes_a_recipe_that_trains(tmp_path, capsys):
    clips = write_walkers(tmp_path / "clips", each=3)
    text, found = propose(clips, name="steps", steps=600)
    content = tomllib.loads(text)
    table = {"rate": 20, "frames": 36, "names": "{action}_{style}_{}"}
    assert content["data"]["kind"] == "motion" and content["data"]["motion"] == table
    assert content["conditions"] == {"action": {"dropout": 0.1}, "style": {"dropout": 0.1}}
    assert content["judge"]["column"] == "action" and content["model"]["train"]["steps"] == 600
    assert found.startswith(f"{clips}: motion, 11 samples to train on of [36, 87]; columns: ")
    source, aside = sources(checked(content, "steps.toml"))
    assert aside is not None and aside.size == 1
    assert isinstance(source.source, Motions)  # type: ignore[attr-defined]
    out = tmp_path / "steps.toml"
    with pytest.raises(SystemExit) as end:
        main(["recipe", str(clips), "--out", str(out), "--steps", "600"])
    assert end.value.code == 0
    assert tomllib.loads(out.read_text()) == content
    assert f"{out}; try: guidestar train {out} --dry-run" in capsys.readouterr().out


def test_folders_name_the_classes(tmp_path):
    for name in ("walk", "run"):
        (tmp_path / name).mkdir()
        for k in range(2):
            (tmp_path / name / f"x_{name}_{k}.bvh").write_text(walker(30, phase=k))
    content = tomllib.loads(propose(tmp_path, name="r")[0])
    assert "names" not in content["data"]["motion"]
    assert list(content["conditions"]) == ["label"] and content["judge"]["column"] == "label"


def test_motions_that_cannot_be_read_make_no_recipe(tmp_path):
    (tmp_path / "a.bvh").write_text("HIERARCHY")
    with pytest.raises(ValueError, match=r"none of its 1 BVH files can be read$"):
        propose(tmp_path, name="r")


@pytest.mark.parametrize(
    ("stems", "wanted"),
    [
        (["a_p", "b_p", "a_q", "b_q"], "{action}_{style}"),  # two words of four: shared enough
        (["a_p", "b_p", "a_q"], None),  # two of three are not
        (["a_{x}_1", "b_{x}_1", "a_{x}_2", "b_{x}_2"], "{action}_{style}_{}"),  # braces never stay
        (["a__1", "b__2", "a__3", "b__4"], "{action}__{}"),
        (["a_", "a_x", "b_", "b_x"], "{action}_{}"),  # a word that is missing names no class
        (["a_b_c_d"] * 2 + ["e_f_g_h"] * 2, "{action}_{style}_{part3}_{part4}"),
        ([], None),
    ],
)
def test_which_words_are_classes(stems, wanted):
    assert guess_names(stems) == wanted


def test_of_many_files_every_so_many_is_looked_at(tmp_path, monkeypatch):
    """Of 101 files each second; a rate a little above 20 is taken as it is."""
    looked: list[str] = []
    made = lambda file: looked.append(file.name) or SimpleNamespace(rate=20.01, values=range(81))
    monkeypatch.setattr(propose_motion, "read_bvh", made)
    files = [tmp_path / f"x_{k:03}.bvh" for k in range(101)] + [tmp_path / "x_1.txt"]
    monkeypatch.setattr(propose_motion, "find_files", lambda folder: files)
    found = motion_table(tmp_path)
    assert looked == [f"x_{k:03}.bvh" for k in range(0, 101, 2)]
    assert (found.rate, found.frames, found.names) == (20.01, 80, None)
    looked.clear()
    files[50:] = []
    motion_table(tmp_path)
    assert len(looked) == 50
    files[:] = [tmp_path / f"{a}_{k}.BVH" for k in range(3) for a in ("run", "walk")]
    assert motion_table(tmp_path).names == "{action}_{}"
    (tmp_path / "metadata.csv").write_text("")
    assert motion_table(tmp_path).names is None


NAMED = Column(kind="class", classes=tuple("abcdefghi"))
HEAD = """name = "é"
licence = "" # of your data
seed = 0

[data]
kind = "motion"
path = "p"
crop = "random" # another part of a longer motion each time
max_bad = 10 # unreadable files to skip before giving up
holdout = 0.05 # kept aside, to measure on

[data.motion]
rate = 12.5 # frames a second
frames = 40 # of a sample: 3.2 seconds
"""
TAIL = """[schedule] # MDM's: betas by a cosine
kind = "vp"
beta_schedule = "squaredcos_cap_v2"
num_train_timesteps = 50

[levels]
kind = "uniform"

[objective]
predicts = "x0"

[objective.motion]
positions = 0.5
velocities = 0.5
contacts = 0.5

[model]
network = "motion"
width = 192
layers = 6
heads = 6
"""
EXPORT = """[export]
guidance = "cfg(1.5)"
grid = "uniform"
steps = 20
"""


def lines(steps, names, **columns):
    data = Data(kind="motion", path="p", holdout=0.05,
                motion=MotionTable(rate=12.5, frames=40, names=names))  # fmt: skip
    source = InMemory(x=torch.zeros(1, 2, 3), targets={}, columns=columns)
    return "\n".join(motion_lines("é", data, source, steps))


def test_the_lines_of_a_recipe():
    found = lines(
        900, "{x}_{}", **{"ä b": replace(NAMED, classes=("a\n", "b")), "x": NAMED},
        length=Column(kind="length", width=40), text=Column(kind="text"),
    )  # fmt: skip
    assert found == (
        f'{HEAD}names = "{{x}}_{{}}" # words in braces are columns of classes\n\n'
        '[conditions."ä b"] # class: a, b\ndropout = 0.1\n\n'
        "[conditions.x] # class: a, b, c, d, e, f, g, h, …\ndropout = 0.1\n\n"
        '[conditions.text] # text\nencoder = "openai/clip-vit-base-patch32"\n'
        'output = "projected"\ndropout = 0.1\n\n'
        f"{TAIL}train = {{ steps = 900, batch = 32, rate = 8e-4, warmup = 90, decay = 0.998 }}\n\n"
        '[judge] # only measures\ncolumn = "ä b"\nwidths = [64, 128]\ndropout = 0.1\n'
        "train = { steps = 300, batch = 32, rate = 1e-3, warmup = 30, decay = 0.99, "
        f"weight_decay = 0.01 }}\n\n{EXPORT}"
    )
    plain = lines(30_000, None)
    train = "train = { steps = 30000, batch = 32, rate = 8e-4, warmup = 200, decay = 0.998 }"
    assert plain == f"{HEAD}\n{TAIL}{train}\n\n{EXPORT}"
    eight = lines(2, None, x=replace(NAMED, classes=tuple("abcdefgh")))
    assert "[conditions.x] # class: a, b, c, d, e, f, g, h\n" in eight
    assert "train = { steps = 1, batch = 32, rate = 1e-3, warmup = 0," in eight
    assert "warmup = 50, decay = 0.99, weight" in lines(30_000, None, x=NAMED)
