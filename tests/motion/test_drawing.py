"""Stick figures: where joints are drawn, how many frames there are, which files can be written."""

from itertools import pairwise

import pytest
import torch
from PIL import Image

from guidestar.motion import Skeleton
from guidestar.motion.drawing import draw_motions, write_animation

SKELETON = Skeleton(
    names=("Hips", "Head", "Foot_L", "Foot_R"),
    parents=(-1, 0, 0, 0),
    offsets=((0, 0, 0), (0, 1, 0), (1, -1, 0), (-1, -1, 0)),
)


def walk(frames, speed=0.2):
    joints = torch.tensor([[0, 1, 0], [0, 2, 0], [0.2, 0, 0.1], [-0.2, 0, -0.1]])
    return joints + torch.arange(frames)[:, None, None] * torch.tensor([0, 0, speed])


def inked(picture, colour, box):
    """Where pixels of a colour are within a box: their columns and rows."""
    pixels = picture.load()
    left, top, right, bottom = box
    wanted = tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return [
        (x, y) for x in range(left, right) for y in range(top, bottom) if pixels[x, y] == wanted
    ]


def test_a_figure_walks_to_the_right_and_stands_on_the_ground():
    frames = draw_motions([walk(6)], SKELETON, size=100)
    assert len(frames) == 6 and frames[0].size == (100, 145)
    side, above = (0, 0, 100, 100), (0, 101, 100, 145)
    spine = [inked(f, "#34495e", side) for f in frames]
    assert all(48 <= x <= 52 for spots in spine for x, _ in spots)  # the view goes with the root
    seen = [inked(f, "#1b6ca8", above) + inked(f, "#c0392b", above) for f in frames]
    middles = [sum(x for x, _ in spots) / len(spots) for spots in seen]
    assert all(b - a > 3 for a, b in pairwise(middles))
    marks = [{x for x, y in inked(f, "#c8c8c8", side) if y > 92} for f in frames]
    assert marks[0] and marks[0] != marks[1]
    legs = inked(frames[0], "#1b6ca8", side) + inked(frames[0], "#c0392b", side)
    assert min(y for _, y in spine[0]) < min(y for _, y in legs)  # the head is above the feet
    ground = inked(frames[0], "#c8c8c8", side)
    assert abs(max(y for _, y in legs) - ground[0][1]) <= 2
    left, right = (inked(frames[0], c, above) for c in ("#1b6ca8", "#c0392b"))
    assert max(y for _, y in left) < max(y for _, y in right)  # x, to the left, is upwards
    assert len(inked(frames[5], "#d68910", above)) > len(inked(frames[1], "#d68910", above))


def test_motions_stand_side_by_side_and_wait_for_the_longest():
    frames = draw_motions([walk(3), walk(5), walk(4)], SKELETON, size=80, columns=2, labels="abc")
    assert len(frames) == 5 and frames[0].size == (160, 2 * (80 + 36 + 18))
    first = (0, 18, 80, 134)
    assert frames[2].crop(first).tobytes() == frames[4].crop(first).tobytes()
    assert frames[1].crop(first).tobytes() != frames[2].crop(first).tobytes()
    with pytest.raises(ValueError, match="there are no motions to draw"):
        draw_motions([], SKELETON)


@pytest.mark.parametrize("kind", ["webp", "gif"])
def test_animations_have_their_frames_and_pace(tmp_path, kind):
    frames = draw_motions([walk(4)], SKELETON, size=64)
    write_animation(frames, tmp_path / f"a.{kind}", 20)
    with Image.open(tmp_path / f"a.{kind}") as found:
        assert found.n_frames == 4 and found.size == frames[0].size
        found.load()
        assert found.info["duration"] == 50


def test_other_endings_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"ends in .webp, .gif or .mp4, not '.png'"):
        write_animation(draw_motions([walk(1)], SKELETON), tmp_path / "a.png", 20)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="an MP4 needs imageio-ffmpeg, which is not installed"):
        write_animation(draw_motions([walk(1)], SKELETON), tmp_path / "a.mp4", 20)
    assert not list(tmp_path.iterdir())
