"""Folders of motions: what is read, how it is cut, padded and standardised, what is refused."""

import json
from dataclasses import replace

import pytest
import torch

from guidestar.core.rng import Draw
from guidestar.data.identity import identify
from guidestar.data.motions import MotionSettings, motion_folder
from guidestar.io.files import Damaged
from guidestar.motion import parse_bvh
from guidestar.motion.body import Body, is_body
from helpers.motions import NAMES, walker, write_walkers

NAMED = MotionSettings(rate=20, frames=32, names="{action}_{mood}_{}")


@pytest.fixture
def folder(tmp_path):
    return write_walkers(tmp_path / "clips", each=3)


def test_names_of_files_become_classes_and_captions(folder):
    found = motion_folder(folder, replace(NAMED, caption="somebody walks {action}, {mood}"))
    assert found.size == 12 and found.shape == (32, 1 + 2 + 1 + 18 + 42 + 21 + 2)
    assert found.columns["action"].classes == ("fast", "slow")
    assert found.columns["mood"].classes == ("calm", "dizzy-head")
    assert (found.columns["length"].kind, found.columns["length"].width) == ("length", 32)
    rows = [0, 3, 8]
    x, targets = found.batch(rows, Draw(rows))
    assert targets["action"].tolist() == [0, 0, 1] and targets["mood"].tolist() == [0, 1, 0]
    assert targets["text"] == [
        *("somebody walks fast, calm", "somebody walks fast, dizzy head"),
        "somebody walks slow, calm",
    ]
    assert found.captions("text", [3]) == [("somebody walks fast, dizzy head",)]
    assert x.shape == (3, *found.shape) and x.dtype == torch.float32


def test_folders_tables_and_captions_beside_files_give_columns_too(tmp_path):
    for name in ("run", "walk"):
        (tmp_path / "a" / name).mkdir(parents=True)
        for k in range(2):
            (tmp_path / "a" / name / f"{k}.bvh").write_text(walker())
    found = motion_folder(tmp_path / "a", MotionSettings())
    assert found.columns["label"].classes == ("run", "walk")
    assert found.targets["label"].tolist() == [0, 0, 1, 1]

    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "one.bvh").write_text(walker())
    (tmp_path / "b" / "one.txt").write_text("a walk\n")
    assert motion_folder(tmp_path / "b", MotionSettings()).captions("text", [0]) == [("a walk",)]

    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "one.bvh").write_text(walker())
    row = {"file_name": "one.bvh", "caption": ["a walk", "somebody walks"], "pace": 1.5}
    (tmp_path / "c" / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    found = motion_folder(tmp_path / "c", MotionSettings())
    assert {n: c.kind for n, c in found.columns.items()} == {
        "caption": "text",
        "pace": "vector",
        "length": "length",
    }
    assert found.captions("caption", [0]) == [("a walk", "somebody walks")]


def test_short_motions_are_padded_with_zeros_and_long_ones_cut(folder):
    found = motion_folder(folder, NAMED)  # of 40, 36 and 32 frames
    short = replace(found, frames=38)
    rows = list(range(12))
    x, targets = short.batch(rows, Draw(rows))
    assert targets["length"].tolist() == [38, 36, 32] * 4 == [min(c, 38) for c in found.counts]
    assert not x[1, 36:].any() and bool(x[1, :36].any(1).all())
    plain = found.numbers[: found.counts[0]]
    wanted = (plain[1:39] - found.scale.mean) / found.scale.std  # the middle 38 of 40
    torch.testing.assert_close(x[0], wanted)


def test_random_cuts_take_all_places_and_stay_within_a_motion(folder):
    found = replace(motion_folder(folder, NAMED), frames=30, crop="random")
    motion = (found.numbers[: found.counts[0]] - found.scale.mean) / found.scale.std
    starts = set()
    for seed in range(60):
        x = found.batch([0], Draw([seed]))[0][0]
        fits = [s for s in range(11) if torch.allclose(x, motion[s : s + 30])]
        assert len(fits) == 1
        starts.add(fits[0])
    assert starts == set(range(11))


def test_numbers_are_standardised_by_parts(folder):
    found = motion_folder(folder, NAMED)
    x = ((found.numbers - found.scale.mean) / found.scale.std).double()
    torch.testing.assert_close(x.mean(0), torch.zeros_like(x[0]), atol=1e-4, rtol=0)
    for where in found.body.format.parts.values():
        assert float(x[:, where].square().mean()) == pytest.approx(1, abs=1e-3)
        assert len(found.scale.std[where].unique()) == 1


def test_a_body_is_kept_as_json_and_gives_files_back(folder):
    found = motion_folder(folder, NAMED)
    values = json.loads(json.dumps(found.body.to_json()))
    assert is_body(values) and not is_body({**values, "bvh": "HIERARCHY"}) and not is_body([])
    for key in values:
        with pytest.raises(ValueError, match=f"^card: {key} is missing"):
            Body.from_json({k: v for k, v in values.items() if k != key}, "card")
    again = Body.from_json(values)
    assert again.format == found.body.format and again.rate == 20
    numbers = found.numbers[: found.counts[0]]
    one, other = found.body.to_bvh(numbers), again.to_bvh(numbers)
    torch.testing.assert_close(one.values, other.values)
    assert [j.name for j in one.joints] == list(NAMES) and one.seconds == pytest.approx(0.05)
    back = found.body.rig.pose(one).joints(found.body.format.skeleton)
    source = parse_bvh((folder / "fast_calm_0.bvh").read_text())
    wanted = found.body.rig.pose(source).joints(found.body.format.skeleton)
    wanted = wanted - wanted[:1, :1] * torch.tensor([1.0, 0, 1.0])
    assert float((back - wanted).norm(dim=-1).max()) < 1e-4 * found.body.format.size


def test_joints_and_steps_agree_with_positions_and_velocities(folder):
    found = motion_folder(folder, NAMED)
    form, numbers = found.body.format, found.numbers[: found.counts[0]].double()
    local = form.local(numbers)
    near = numbers[:, form.parts["positions"]].unflatten(-1, (-1, 3))
    torch.testing.assert_close(local[:, 1:], near, atol=2e-3, rtol=0)
    moved = numbers[1:, form.parts["velocities"]].unflatten(-1, (-1, 3))
    torch.testing.assert_close(form.steps(numbers, local), moved, atol=4e-3, rtol=0)
    turning = found.numbers[sum(found.counts[:3]) :][: found.counts[3]].double()
    moved = turning[1:, form.parts["velocities"]].unflatten(-1, (-1, 3))
    torch.testing.assert_close(form.steps(turning, form.local(turning)), moved, atol=4e-3, rtol=0)


def test_channels_in_another_order_are_the_same_motion(tmp_path):
    (tmp_path / "1.bvh").write_text(walker(order="ZXY"))
    (tmp_path / "2.bvh").write_text(walker(order="YZX"))
    found = motion_folder(tmp_path, MotionSettings())
    one, other = found.numbers.split(found.counts)
    torch.testing.assert_close(one, other, atol=1e-3, rtol=0)


def test_the_identity_follows_frames_and_their_columns(folder):
    found = motion_folder(folder, NAMED)
    assert identify(found) == identify(motion_folder(folder, NAMED))
    other = replace(found, numbers=found.numbers + 1)
    assert identify(other)["digest"] != identify(found)["digest"]
    assert identify(found)["columns"]["length"] == ["length", 32]


OTHER = ("Hips", "Spine", "Neck", *NAMES[3:])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (walker()[:-900], r"two.bvh: not a whole BVH file: frame \d+ has \d+ numbers, but"),
        (walker().replace("Frame Time: 0.05", "Frame Time: 0"), "Frame Time must be above 0 sec"),
    ],
)
def test_files_that_cannot_be_read_are_refused_or_skipped(tmp_path, text, words):
    (tmp_path / "one.bvh").write_text(walker())
    (tmp_path / "two.bvh").write_text(text)
    with pytest.raises(Damaged, match=words):
        motion_folder(tmp_path, MotionSettings())
    lines = []
    found = motion_folder(tmp_path, MotionSettings(), max_bad=1, say=lines.append)
    assert found.size == 1 and len(lines) == 1 and lines[0].startswith("skipped ")
    (tmp_path / "three.bvh").write_text(text)
    with pytest.raises(Damaged, match=r"; 1 were skipped before \(data.max_bad\)$"):
        motion_folder(tmp_path, MotionSettings(), max_bad=1)
    (tmp_path / "one.bvh").write_text(text)
    with pytest.raises(Damaged, match="none of its 3 files can be read"):
        motion_folder(tmp_path, MotionSettings(), max_bad=3)


def test_what_does_not_fit_is_refused_in_one_line(tmp_path, folder):
    def refused(words, where=folder, **changes):
        with pytest.raises(ValueError, match=words) as caught:
            motion_folder(where, MotionSettings(**changes))
        assert "\n" not in str(caught.value)

    (folder / "slow_calm_9.bvh").write_text(walker(names=OTHER))
    refused(r"slow_calm_9.bvh: another skeleton than that of the first file: it lacks joint 'Head'")
    (folder / "slow_calm_9.bvh").write_text(walker(frames=3))
    refused(r"slow_calm_9.bvh: it has 3 frames at 20 frames a second; a motion needs at least 4")
    refused(r"slow_calm_9.bvh: it has 2 frames at 10 frames a second", rate=10)
    (folder / "slow_calm_9.bvh").unlink()
    refused(r"names = '\{a\}\+\{b\}' fits no file, e.g. not 'fast_calm_0.bvh'", names="{a}+{b}")
    (folder / "other.bvh").write_text(walker())
    refused(r"fits 12 of 13 files, but not 'other.bvh'", names="{a}_{b}_{}")
    (folder / "other.bvh").unlink()
    refused(r"needs words in braces, each once, as \{action\}; 'a' is not one", names="{a}_{a}")
    refused(r"; '1' is not one", names="{1}_{a}")
    refused(r"; there is none", names="{}_{}")
    refused(
        r"caption = 'a \{b\}' should hold .* in braces; there is a", names="{a}", caption="a {b}"
    )
    refused(r"there is none, as data.motion.names is missing", caption="a {b}")
    refused(r"two columns would be called 'length'; rename one", names="{length}")
    refused(r"there is no joint 'Tail'; the joints are Hips, Spine", root="Tail")
    with pytest.raises(FileNotFoundError, match=r"holds no .bvh files; check data.path"):
        motion_folder((tmp_path / "empty").mkdir() or tmp_path / "empty", MotionSettings())
    with pytest.raises(FileNotFoundError, match=r"there is no such folder; check data.path"):
        motion_folder(tmp_path / "none", MotionSettings())


def test_joints_of_a_mask_are_named(folder):
    form = motion_folder(folder, NAMED).body.format
    mask = form.mask(["Leg_L", "Foot_L"])
    assert mask.shape == (form.channels,) and int(mask.sum()) == 6 + 12 + 6 + 1
    assert mask[form.parts["positions"]].tolist() == [0] * 6 + [1] * 6 + [0] * 6
    assert mask[form.parts["contacts"]].tolist() == [1, 0]
    root = form.mask(["Hips"])
    assert int(root.sum()) == 1 + 2 + 1 + 6 + 3 and not root[form.parts["positions"]].any()
    assert int(form.mask(NAMES).sum()) == form.channels
    with pytest.raises(ValueError, match="no joint 'Tail'; its joints are Hips, Spine, Head"):
        form.mask(["Tail"])
