"""A recipe that is proposed for a folder of motions."""

import tomllib

import pytest

from guidestar.cli import main
from guidestar.data.motions import Motions
from guidestar.train.build.data import sources
from guidestar.train.recipe.propose import propose
from guidestar.train.recipe.propose_motion import guess_names, motion_table
from guidestar.train.recipe.schema import checked
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
