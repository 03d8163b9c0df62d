"""Stick figures: where joints are drawn, how many frames there are, which files can be written."""

import io
import math
import sys
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from guidestar.motion import Skeleton, drawing
from guidestar.motion.drawing import animation_bytes, draw_motions, write_animation

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


# --- numbers of the views ---


def test_a_motion_is_put_above_the_origin():
    joints = torch.tensor([[[1.0, 5, 10], [3, 2, 30]], [[2.0, 4, 0], [1, 9, 20]]])
    assert drawing._centred(joints).tolist() == (joints - torch.tensor([2.0, 2, 15])).tolist()


def test_a_view_says_where_points_are_drawn():
    view = drawing._View(axes=(2, 1), low=(-2.0, -1.0), pixels=10.0, top=7, height=40)
    points = torch.tensor([[9.0, 0, 0], [9, 3, -2], [9, -1, 1.5]])
    assert view.spots(points) == [(20.0, 37.0), (0.0, 7.0), (35.0, 47.0)]


def test_views_hold_the_tallest_and_the_farthest():
    tall = torch.tensor([[[0.0, 0, 0], [0, 8, 1]]])
    (side, above), free = drawing._views([tall], 100), 100 * 0.84
    assert side.pixels == pytest.approx(free / 8) and (side.axes, side.top) == ((2, 1), 0)
    assert side.low == pytest.approx((-100 / side.pixels / 2, -8 / side.pixels))
    assert side.height == 100 and (above.axes, above.top, above.height) == ((2, 0), 100, 45)
    assert above.pixels == pytest.approx(free / 8)
    assert above.low == pytest.approx((-100 / above.pixels / 2, -45 / above.pixels / 2))
    far = torch.tensor([[[0.0, 0, 0], [0, 8, 1]], [[3, 0, 10], [0, 8, 16]]])
    side, above = drawing._views([far, tall], 100)
    assert side.pixels == pytest.approx(free / 12)  # 6 from the root to either side
    assert above.pixels == pytest.approx(free / 32)  # 16 along z, to either side of the middle
    deep = torch.tensor([[[9.0, 0, 0], [0, 8, 1]]])
    assert drawing._views([deep], 100)[1].pixels == pytest.approx(free / (18 / 0.45))
    flat = torch.zeros(1, 2, 3)
    assert drawing._views([flat], 100)[0].pixels == pytest.approx(free / 1e-6)


def test_marks_stand_on_the_ground_a_quarter_of_the_view_apart():
    view = drawing._View(axes=(2, 1), low=(-2.0, -1.0), pixels=10.0, top=0, height=40)
    assert drawing._marks(view, 0.0) == pytest.approx([0, 10, 20, 30, 40, 50])
    assert drawing._marks(view, 0.25) == pytest.approx([-2.5, 7.5, 17.5, 27.5, 37.5, 47.5])
    assert drawing._marks(view, 3.0) == pytest.approx([0, 10, 20, 30, 40, 50])


def test_left_limbs_are_blue_and_right_ones_red():
    assert drawing._inks(SKELETON) == ["#34495e", "#34495e", "#1b6ca8", "#c0392b"]


class Lines:
    """Notes the lines that are drawn."""

    def __init__(self):
        self.drawn = []

    def line(self, spots, fill, width=1):
        self.drawn.append((fill, width, [tuple(round(v, 3) for v in s) for s in spots]))


def test_what_is_drawn_of_a_frame():
    side = drawing._View(axes=(2, 1), low=(-2.0, -1.0), pixels=10.0, top=0, height=40)
    above = drawing._View(axes=(2, 0), low=(-2.0, -1.0), pixels=10.0, top=40, height=20)
    places = torch.tensor([[[0.0, 1, 0], [0, 2, 0]], [[0.5, 1, 1], [0, 2, 1.5]]])
    lines = Lines()
    drawing._draw_frame(lines, places, 1, (side, above), (-1, 0), ["red", "blue"])  # type: ignore[arg-type]
    grey = "#c8c8c8"
    assert lines.drawn[0] == (grey, 1, [(0, 30), (10_000, 30)])
    marks = lines.drawn[1:7]
    assert [m[2] for m in marks] == [[(10 * k, 30), (10 * k - 4, 36)] for k in range(6)]
    assert {m[0] for m in marks} == {grey}
    assert lines.drawn[7] == (grey, 1, [(0, 40), (10_000, 40)])
    assert lines.drawn[8] == ("#d68910", 2, [(20, 50), (30, 45)])
    assert lines.drawn[9:] == [
        ("blue", 2, [(20, 20), (25, 10)]), ("blue", 2, [(30, 45), (35, 50)])
    ]  # fmt: skip
    lines = Lines()
    drawing._draw_frame(lines, places, 0, (side, above), (-1, 0), ["red", "blue"])  # type: ignore[arg-type]
    assert [d for d in lines.drawn if d[0] == "#d68910"] == []
    assert lines.drawn[-1] == ("blue", 2, [(20, 50), (20, 50)])


def test_labels_are_cut_to_their_motion(monkeypatch):
    from PIL import ImageDraw

    texts = []

    class Draw(type(ImageDraw.Draw(Image.new("RGB", (1, 1))))):  # type: ignore[misc]
        def text(self, place, text, fill, font):
            texts.append((place, text, fill))

    monkeypatch.setattr(ImageDraw, "Draw", Draw)
    draw_motions([walk(1)] * 3, SKELETON, size=35, columns=2, labels=("abcdefgh", "b", "c"))
    high = 18 + 35 + round(35 * 0.45)
    assert texts == [((4, 2), "abcde", "black"), ((39, 2), "b", "black"),
                     ((4, 2 + high), "c", "black")]  # fmt: skip
    texts.clear()
    draw_motions([walk(1)], SKELETON, size=5, labels=("abc",))
    assert texts == [((4, 2), "a", "black")]


def test_a_film_has_even_sides(monkeypatch, tmp_path):
    asked, sent = [], []

    def write_frames(path, size, **more):
        asked.append((size, more))

        def take():
            while True:
                sent.append((yield))

        writer = take()
        open(path, "w").close()
        return writer

    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", SimpleNamespace(write_frames=write_frames))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    frames = [Image.new("RGB", (7, 5), "red"), Image.new("RGB", (7, 5), "blue")]
    write_animation(frames, tmp_path / "a.MP4", 12.5)
    more = {"fps": 12.5, "output_params": ["-f", "mp4"], "macro_block_size": 2}
    assert asked == [((6, 4), more)] and [s.shape for s in sent] == [(4, 6, 3)] * 2
    assert sent[0][0, 0].tolist() == [255, 0, 0] and sent[1][3, 5].tolist() == [0, 0, 255]
    write_animation(frames[1:], tmp_path / "b.mp4", 5)
    assert asked[1] == ((6, 4), {**more, "fps": 5}) and len(sent) == 3


def test_frames_of_a_gif_are_cleared_before_the_next():
    frames = [Image.new("L", (4, 4), shade) for shade in (0, 120, 250)]
    with Image.open(io.BytesIO(animation_bytes(frames, 10, "gif"))) as found:
        ways = []
        for k in range(3):
            found.seek(k)
            ways.append(found.disposal_method)  # type: ignore[attr-defined]
    assert ways == [2, 2, 2]  # to the background


def test_a_webp_is_of_the_quality_of_films():
    torch.manual_seed(0)
    noise = torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8).numpy()
    frames = [Image.fromarray(noise), Image.fromarray(255 - noise)]
    wanted = io.BytesIO()
    more = {"quality": 60, "duration": 40, "loop": 0}
    frames[0].save(wanted, "WEBP", save_all=True, append_images=frames[1:], **more)
    assert animation_bytes(frames, 25, "webp") == wanted.getvalue()


def test_labels_stand_in_small_letters_above_their_motion():
    pole = Skeleton(names=("a", "b"), parents=(-1, 0), offsets=((0, 0, 0), (0, 1, 0)))
    joints = torch.tensor([[[0.0, 0, 0], [0, 1, 0]]] * 2)
    (found, _) = draw_motions([joints, joints], pole, labels=["run", "walk"], size=64, columns=2)
    wanted = Image.new("RGB", (128, 18), "white")
    font = ImageFont.load_default(12)
    for left, name in ((4, "run"), (68, "walk")):
        ImageDraw.Draw(wanted).text((left, 2), name, "black", font)
    assert found.crop((0, 0, 128, 18)).tobytes() == wanted.tobytes()


def test_marks_go_on_where_the_root_has_gone():
    view = SimpleNamespace(low=(-1.0, 0.0), pixels=10.0)  # marks at every half of a length
    for at in (0.7, -3.3):
        first = 0.5 * math.floor((at - 1) / 0.5)
        wanted = [10 * (first + 0.5 * k - at + 1) for k in range(6)]
        assert drawing._marks(view, at) == pytest.approx(wanted)  # type: ignore[arg-type]


def test_a_png_that_moves_carries_texts():
    frames = [Image.new("L", (4, 4), shade) for shade in (0, 250)]
    with Image.open(io.BytesIO(animation_bytes(frames, 8, "png", {"a": "b", "c": "d"}))) as found:
        assert (found.info["a"], found.info["c"], found.info["duration"]) == ("b", "d", 125)
        assert found.n_frames == 2 and found.info["loop"] == 0  # type: ignore[attr-defined]
    with Image.open(io.BytesIO(animation_bytes(frames, 8, "png"))) as found:
        assert "a" not in found.info
