"""Pictures: which bytes a sample becomes, and where each lies on a sheet."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from guidestar.io.images import SheetRow, read_settings, save_png, sheet, to_drawings, to_pil


def pixels(picture):
    return np.asarray(picture).tolist()


def test_samples_become_bytes():
    """round((x + 1)·127.5), what is beyond −1 and 1 at the ends."""
    x = torch.tensor([-3.0, -1.0, -0.5, 0.0, 0.25, 1.0, 7.0]).reshape(1, 1, 1, 7)
    assert pixels(to_pil(x)[0]) == [[0, 0, 64, 128, 159, 255, 255]]
    assert to_pil(x)[0].mode == "L"
    colour = torch.stack([torch.full((2, 3), v) for v in (-1.0, 0.2, 1.0)])[None]
    (picture,) = to_pil(colour.double().requires_grad_())
    assert picture.mode == "RGB" and picture.size == (3, 2)
    assert pixels(picture) == [[[0, 153, 255]] * 3] * 2
    assert len(to_pil(torch.zeros(4, 3, 2, 2))) == 4


@pytest.mark.parametrize(
    "shape", [(1, 2, 4, 4), (1, 4, 4, 4), (3, 4, 4), (1, 3, 4), (1, 1, 1, 4, 4)]
)
def test_other_shapes_are_no_pictures(shape):
    with pytest.raises(
        ValueError, match=r"images must be \[B, 1 or 3, H, W\], not .*; for other data"
    ):
        to_pil(torch.zeros(shape))


def test_sequences_are_drawn_as_curves_over_their_common_range():
    """The first column of pixels has the first value, the last the last; up is more."""
    x = torch.tensor([[[0.0], [2.0]], [[1.0], [0.0]]])  # two sequences of two numbers
    first, second = (np.asarray(p).astype(int) for p in to_drawings(x, size=9))
    ink, ground = [0x1B, 0x6C, 0xA8], [0xF4, 0xF4, 0xF4]
    assert first.shape == (9, 9, 3)
    assert first[8, 0].tolist() == ink == first[0, 8].tolist() == first[4, 4].tolist()
    assert second[4, 0].tolist() == ink == second[8, 8].tolist()
    assert second[0, 8].tolist() == ground == first[0, 0].tolist()
    (peak,) = (np.asarray(p).astype(int) for p in to_drawings(torch.tensor([[0.0, 1.0, 0.0]]), 9))
    assert peak[0, 4].tolist() == ink == peak[8, 0].tolist() == peak[8, 8].tolist()
    flat = to_drawings(torch.tensor([[0.0, 2.0], [1.0, 0.0]]), size=9)
    assert [pixels(p) for p in flat] == [first.tolist(), second.tolist()]  # vectors likewise
    two = np.asarray(to_drawings(torch.tensor([[[0.0, 1.0], [0.0, 1.0]]]), size=5)[0])
    assert two[4, 2].tolist() == ink and two[0, 2].tolist() == [0xC0, 0x39, 0x2B]
    odd = to_drawings(torch.tensor([[[[0.0, 1.0]], [[1.0, 0.0]]]]), size=5)  # [1, 2, 1, 2]
    same = to_drawings(torch.tensor([[0.0, 1.0, 1.0, 0.0]]), size=5)
    assert pixels(odd[0]) == pixels(same[0])
    (still,) = to_drawings(torch.full((1, 3), 5.0), size=5)  # no range: at the bottom
    assert np.asarray(still)[4].tolist() == [ink] * 5
    (one,) = to_drawings(torch.full((1, 1), 5.0), size=5)
    assert one.size == (5, 5) and np.asarray(one)[4].tolist() == [ink] * 5
    low, high = to_drawings(torch.tensor([[1.0], [3.0]]), size=5)  # of one range: flat lines
    assert np.asarray(low)[4].tolist() == np.asarray(high)[0].tolist() == [ink] * 5
    picture = torch.zeros(1, 3, 4, 6)
    assert to_drawings(picture)[0].size == (6, 4)
    assert to_drawings(x)[0].size == (96, 96)


def solid(colour, size=(2, 3)):
    return Image.new("RGB", size, colour)


def box(found, colour):
    """Return the box of all pixels of a colour: left, top, right, bottom."""
    rows, cols = np.nonzero((np.asarray(found) == colour).all(-1))
    return cols.min(), rows.min(), cols.max() + 1, rows.max() + 1


RED, BLUE, GREEN, LIME = (255, 0, 0), (0, 0, 255), (0, 128, 0), (0, 255, 0)


def test_pictures_lie_on_a_sheet_with_gaps():
    """Pixels are enlarged twice; 4 pixels lie between pictures and around them."""
    found = sheet(
        [
            SheetRow(label="", images=[solid(RED), solid(BLUE)]),
            SheetRow(label="", images=[solid(GREEN), Image.new("L", (2, 3), 0)]),
        ]
    )
    assert found.size == (4 + 2 * (4 + 4) + 4, 4 + 2 * (6 + 4))
    assert box(found, RED) == (4, 4, 8, 10) and box(found, BLUE) == (12, 4, 16, 10)
    assert box(found, GREEN) == (4, 14, 8, 20) and box(found, (0, 0, 0)) == (12, 14, 16, 20)
    assert found.getpixel((10, 5)) == (255, 255, 255)


def test_groups_of_pictures_lie_further_apart():
    found = sheet(
        [SheetRow(label="", images=[solid(c) for c in (RED, BLUE, GREEN, LIME)])],
        span=2,
        scale=3,
        gap=5,
    )
    lefts = [box(found, c)[0] for c in (RED, BLUE, GREEN, LIME)]
    # 6 wide and 5 apart; 10 more after two
    assert lefts == [5, 16, 37, 48] and box(found, RED) == (5, 5, 11, 14)
    assert found.size == (48 + 6 + 5 + 10 + 5, 5 + 9 + 5)


def test_labels_make_room():
    rows = [SheetRow(label="", images=[solid(RED), solid(BLUE)])]
    plain = sheet(rows)
    under = sheet(rows, columns=["a", "b"])
    assert under.size == (plain.width, plain.height + 6 + 16)
    assert sheet(rows, columns=["a\nb", "c"]).height == plain.height + 6 + 2 * 16
    titled = sheet(rows, title="t")
    assert titled.size == (plain.width, plain.height - 4 + 32)
    ink = np.asarray(titled)[:28].min(-1) < 128
    assert ink.any() and box(titled, RED)[1] == 32
    named = sheet([SheetRow(label="x\nlonger", images=[solid(RED)])])
    left = box(named, RED)[0]
    assert left > 16 + 20 and named.width == left + (4 + 4) + 4
    assert (np.asarray(named)[:, : left - 4].min(-1) < 128).any()


def test_a_label_stands_over_the_middle_of_its_group():
    """Over three pictures of 40 pixels: at (first + last + 40)/2."""
    rows = [SheetRow(label="", images=[solid(c, (20, 20)) for c in (RED, BLUE, GREEN, LIME)])]
    found = np.asarray(sheet(rows, columns=["I", "I"], span=2))[:22].min(-1) < 200
    cols = np.nonzero(found.any(0))[0]
    middles = [cols[cols < 96].mean(), cols[cols >= 96].mean()]
    # lefts 4, 48, 100, 144
    assert middles == pytest.approx([(4 + 48 + 40) / 2, (100 + 144 + 40) / 2], abs=1.5)


def test_words_stand_at_their_places():
    """The title at (8, 7) in 17, a label from 8 on at half the height of its row, and what is over
    a group 3 above it, both in 13; drawn again here, over the same pictures.
    """
    a, b = solid(RED, (30, 20)), solid(BLUE, (30, 20))
    rows = [SheetRow(label="one\ntwo", images=[a, b]), SheetRow(label="x", images=[b, a])]
    found = sheet(rows, columns=["u\nvw", "y"], title="A title", scale=2, gap=4)
    font, bold = ImageFont.load_default(13), ImageFont.load_default(17)
    left = int(max(font.getlength(t) for t in ("one", "two", "x"))) + 16
    top = 32 + 6 + 2 * 16
    wanted = Image.new("RGB", (left + 2 * (60 + 4) + 4, top + 2 * (40 + 4)), "white")
    draw = ImageDraw.Draw(wanted)
    draw.text((8, 7), "A title", "black", font=bold)
    for middle, name in ((left + 30, "u\nvw"), (left + 64 + 30, "y")):
        draw.multiline_text((middle, top - 3), name, "black", font=font, anchor="md",
                            align="center", spacing=2)  # fmt: skip
    for k, row in enumerate(rows):
        y = top + 44 * k
        draw.multiline_text((8, y + 20), row.label, "black", font=font, anchor="lm", spacing=3)
        for i, image in enumerate(row.images):
            wanted.paste(image.resize((60, 40)), (left + 64 * i, y))
    assert found.size == wanted.size and (np.asarray(found) == np.asarray(wanted)).all()


def test_settings_are_carried_and_read(tmp_path):
    path = tmp_path / "p.png"
    save_png(solid(RED), path, {"seeds": [1, 2], "guidance": "cfg(3) é"})
    assert read_settings(path) == {"seeds": [1, 2], "guidance": "cfg(3) é"}
    with Image.open(path) as image:
        assert image.size == (2, 3) and image.getpixel((0, 0)) == RED
    save_png(solid(RED), path)
    with pytest.raises(ValueError, match="holds no guidestar settings"):
        read_settings(path)


def test_samples_of_a_graph_are_drawn():
    x = torch.tensor([[0.0, 1.0, 0.0]])
    (wanted,), (found,) = to_drawings(x, 9), to_drawings(x.requires_grad_(), 9)
    assert found.tobytes() == wanted.tobytes()


def test_a_picture_of_one_line_keeps_its_colours():
    (found,) = to_pil(torch.tensor([[[[1.0, -1.0]], [[-1.0, -1.0]], [[-1.0, 1.0]]]]))
    assert (found.mode, found.size) == ("RGB", (2, 1))
    assert [found.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (0, 0, 255)]
    (grey,) = to_pil(torch.tensor([[[[1.0], [-1.0]]]]))
    assert (grey.mode, grey.size) == ("L", (1, 2))


def test_what_holds_no_settings_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"a\.txt cannot be read as a picture \(unknown format\)"):
        read_settings(tmp_path / "a.txt")
    with pytest.raises(ValueError, match=r"^the picture cannot be read as a picture"):
        read_settings(b"x")
    save_png(Image.new("L", (2, 2)), tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"b\.png holds no guidestar settings"):
        read_settings(tmp_path / "b.png")
