"""Pictures of every mode of Pillow, against the grey or the colours that they show."""

import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from guidestar.apps.observe import read_observed
from guidestar.data.pictures import PictureFormat, decode
from guidestar.io import decoding
from guidestar.io.decoding import is_grey, open_picture, to_8_bits

RAMP = np.array([[0, 257, 128 * 257, 65535]])  # 16 bits: black, 1/255, 128/255, white
WANTED = [[0, 1, 128, 255]]


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def grey(image):
    return np.asarray(to_8_bits(image, 1)).tolist()


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
def test_16_bits_of_every_byte_order_are_scaled(mode):
    order = ">" if mode == "I;16B" else "<"
    image = Image.frombytes(mode, (4, 1), RAMP.astype(f"{order}u2").tobytes())
    assert is_grey(image) and grey(image) == WANTED
    assert np.asarray(to_8_bits(image, 3)).tolist() == [[[v] * 3 for v in WANTED[0]]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_files_are_scaled(kind):
    file = saved(Image.fromarray(RAMP.astype(np.uint16)), kind)
    assert grey(open_picture(file)) == WANTED


def tiff(pixels, bits, order="<", *, photometric=1, kind=1, turn=1):
    """Write a grey TIFF of one row of four pixels, tag by tag."""
    entries = [(256, 3, 1, 4), (257, 3, 1, 1), (258, 3, 1, bits), (259, 3, 1, 1)]
    entries += [(262, 3, 1, photometric), (273, 4, 1, 8), (274, 3, 1, turn), (277, 3, 1, 1)]
    entries += [(278, 3, 1, 1), (279, 4, 1, len(pixels)), (339, 3, 1, kind)]
    packed = b"".join(
        struct.pack(f"{order}HHI", tag, kind, n)
        + (struct.pack(f"{order}HH", v, 0) if kind == 3 else struct.pack(f"{order}I", v))
        for tag, kind, n, v in entries
    )
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(pixels))
    end = struct.pack(f"{order}I", 0)
    return head + pixels + struct.pack(f"{order}H", len(entries)) + packed + end


def test_a_big_endian_16_bit_tiff_is_scaled():
    image = open_picture(tiff(RAMP.astype(">u2").tobytes(), 16, ">"))
    assert image.mode == "I;16B" and grey(image) == WANTED


def test_a_tiff_of_12_bits_is_scaled():
    packed = bytes([0x00, 0x00, 0x10, 0x80, 0x0F, 0xFF])  # 0, 16, 2048 and 4095, of 4095
    image = open_picture(tiff(packed, 12))
    assert np.asarray(image).tolist() == [[0, 256, 32776, 65535]]  # of 65535
    assert grey(image) == [[0, 1, 128, 255]]
    with pytest.raises(OSError, match=r"^not a picture of a known format; save it as PNG or JPEG$"):
        open_picture(tiff(packed, 12, photometric=0))


def test_a_tiff_whose_zero_is_white_is_turned():
    ramp = RAMP.astype("<u2").tobytes()
    assert grey(open_picture(tiff(ramp, 16, photometric=0))) == [[255, 254, 127, 0]]
    upright = open_picture(tiff(ramp, 16, photometric=0, turn=6))  # a quarter to the right
    assert grey(upright) == [[255], [254], [127], [0]]
    floats = np.array([0, 0.25, 0.5, 1], "<f4").tobytes()
    assert grey(open_picture(tiff(floats, 32, kind=3))) == [[0, 64, 128, 255]]
    with pytest.raises(OSError, match="floats whose zero is white cannot be read"):
        open_picture(tiff(floats, 32, kind=3, photometric=0))


def test_signed_numbers_and_those_of_fits_are_refused():
    with pytest.raises(ValueError, match="signed or of 32 bits, have no known white"):
        to_8_bits(open_picture(tiff(RAMP.astype("<u2").tobytes(), 16, kind=2)), 1)
    cards = ["SIMPLE  =                    T", "BITPIX  =                   16"]
    cards += [f"{k:8}= {v:20}" for k, v in (("NAXIS", 2), ("NAXIS1", 4), ("NAXIS2", 1))]
    head = "".join(card.ljust(80) for card in (*cards, "END")).ljust(2880)
    with pytest.raises(OSError, match="the numbers of FITS have no known white"):
        open_picture(head.encode() + RAMP.astype(">i2").tobytes().ljust(2880, b"\0"))


def test_a_pgm_with_a_white_of_1000_is_scaled():
    pixels = np.array([0, 500, 1000], dtype=">u2").tobytes()
    assert grey(open_picture(b"P5 3 1 1000\n" + pixels)) == [[0, 128, 255]]


def test_floats_from_0_to_1_are_scaled():
    image = Image.fromarray(np.array([[0, 0.25, 0.5, 1]], dtype=np.float32))
    assert grey(open_picture(saved(image, "TIFF"))) == [[0, 64, 128, 255]]


@pytest.mark.parametrize("values", [[0.0, 1.5], [-0.1, 1.0], [float("nan"), 1.0]])
def test_floats_of_unknown_range_are_refused(values):
    image = Image.fromarray(np.array([values], dtype=np.float32))
    with pytest.raises(ValueError, match=r"floats must be from 0 \(black\) to 1 \(white\)"):
        to_8_bits(image, 1)


def test_whole_numbers_of_32_bits_are_refused():
    image = Image.fromarray(np.array([[0, 2**31 - 1]], dtype=np.int32))
    for picture in (image, open_picture(saved(image, "TIFF"))):
        with pytest.raises(ValueError, match="signed or of 32 bits, have no known white"):
            to_8_bits(picture, 3)


def lab():
    image = Image.new("LAB", (2, 1))
    image.putdata([(255, 128, 128), (0, 128, 128)])  # L* 100 and 0, a and b 0
    return image


def palette(mode="P"):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    return image.convert("PA") if mode == "PA" else image


RED, BLUE, BLACK, WHITE, PINK = [255, 0, 0], [0, 0, 255], [0] * 3, [255] * 3, [255, 127, 127]
MODES = {
    "1": (lambda: Image.frombytes("1", (2, 1), b"\x40"), [BLACK, WHITE]),
    "L": (lambda: Image.frombytes("L", (2, 1), bytes([0, 100])), [BLACK, [100] * 3]),
    "LA": (lambda: Image.frombytes("LA", (2, 1), bytes([0, 255, 0, 0])), [BLACK, WHITE]),
    "La": (lambda: Image.frombytes("La", (2, 1), bytes([0, 255, 0, 0])), [BLACK, WHITE]),
    "P": (palette, [RED, BLUE]),
    "PA": (lambda: palette("PA"), [RED, BLUE]),
    "RGB": (lambda: Image.frombytes("RGB", (2, 1), bytes(RED + BLUE)), [RED, BLUE]),
    "RGBX": (lambda: Image.frombytes("RGBX", (2, 1), bytes([*RED, 0, *BLUE, 9])), [RED, BLUE]),
    "RGBA": (lambda: Image.frombytes("RGBA", (2, 1), bytes([*RED, 128, *RED, 0])), [PINK, WHITE]),
    "RGBa": (
        lambda: Image.frombytes("RGBa", (2, 1), bytes([128, 0, 0, 128, *RED, 255])),
        [PINK, RED],
    ),
    "CMYK": (
        lambda: Image.frombytes("CMYK", (2, 1), bytes([0, 255, 255, 0, 0, 0, 0, 255])),
        [RED, BLACK],
    ),
    "YCbCr": (
        lambda: Image.frombytes("YCbCr", (2, 1), bytes([76, 85, 255, 0, 128, 128])),
        [[254, 0, 0], BLACK],
    ),
    "LAB": (lab, [WHITE, BLACK]),
    "HSV": (lambda: Image.frombytes("HSV", (2, 1), bytes([0, 255, 255, 0, 0, 0])), [RED, BLACK]),
}


def test_every_mode_of_pillow_has_a_test():
    here = {*MODES, "I", "F", "I;16", "I;16L", "I;16B", "I;16N"}
    assert set(Image.MODES) <= here


@pytest.mark.parametrize("mode", MODES)
def test_modes_of_8_bits_show_their_colours(mode):
    make, wanted = MODES[mode]
    image = make()
    assert image.mode == mode
    off = np.abs(np.asarray(to_8_bits(image, 3)).astype(int) - [wanted])
    assert off.max() <= (1 if mode == "LAB" else 0)  # which goes through a profile


@pytest.mark.parametrize("mode", ["1", "L", "LA", "I", "I;16B", "F"])
def test_grey_modes_are_grey(mode):
    assert is_grey(Image.new(mode, (1, 1)))


@pytest.mark.parametrize("mode", ["P", "PA"])
@pytest.mark.parametrize(
    ("colours", "grey"),
    [
        ([0, 0, 0, 9, 9, 9], True),
        ([0, 0, 0, 9, 9, 8], False),
        ([0, 0, 0, 9, 8, 9], False),
        ([0, 0, 0, 8, 9, 9], False),
    ],
)
def test_a_palette_is_grey_where_all_three_parts_agree(mode, colours, grey):
    image = Image.new(mode, (2, 1))
    image.putpalette(colours)
    assert is_grey(image) is grey


def test_a_palette_is_grey_where_its_colours_are():
    image = palette()
    assert not is_grey(image)
    image.putpalette([3, 3, 3, 9, 9, 9])
    assert is_grey(image)


def test_transparent_entries_of_a_palette_are_white():
    file = saved(palette(), "PNG", transparency=1)
    assert np.asarray(to_8_bits(open_picture(file), 3)).tolist() == [[RED, WHITE]]


def test_a_transparent_grey_of_16_bits_is_white():
    image = Image.fromarray(RAMP.astype(np.uint16))
    image.info["transparency"] = 257
    assert grey(image) == [[0, 255, 128, 255]]


def turned():
    """Return a picture that is stored lying on its side: upright it is black above white."""
    image = Image.frombytes("L", (2, 1), bytes([255, 0]))
    exif = Image.Exif()
    exif[0x0112] = 8  # to be turned by 90°, left
    return saved(image, "PNG", exif=exif)


def test_pictures_are_turned_upright():
    assert grey(open_picture(turned())) == [[0], [255]]
    pixels = decode(open_picture(turned()), PictureFormat(size=1), 1)
    assert pixels.shape == (1, 1, 1)


def test_observations_are_turned_upright_and_scaled(tmp_path):
    (tmp_path / "x.png").write_bytes(turned())
    x = read_observed(tmp_path / "x.png", (1, 2, 1), "the model's pictures")
    assert torch.equal(x, torch.tensor([[[-1.0], [1.0]]]))
    (tmp_path / "deep.png").write_bytes(saved(Image.fromarray(RAMP.astype(np.uint16)), "PNG"))
    x = read_observed(tmp_path / "deep.png", (1, 1, 4), "the model's pictures")
    assert torch.allclose(x, torch.tensor([[WANTED[0]]]) / 127.5 - 1)


def test_the_mean_of_a_16_bit_ramp_is_half():
    ramp = Image.fromarray(np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16))
    pixels = decode(open_picture(saved(ramp, "PNG")), PictureFormat(size=16), 1)
    assert abs(pixels.float().mean() / 255 - 0.5) < 2e-3


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "exif"])
def test_a_damaged_picture_is_one_kind_of_error(damage):
    whole = saved(
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)), "PNG"
    )
    files = {"cut": whole[: len(whole) // 2], "empty": b"", "text": b"no picture"}
    files["exif"] = whole[:-12] + b"\0\0\0\4eXIfxxxx\0\0\0\0" + whole[-12:]
    with pytest.raises(OSError) as caught:
        open_picture(files[damage])
    assert "\n" not in str(caught.value) and str(caught.value)


def test_a_decompression_bomb_is_refused_with_what_to_do(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    file = saved(Image.new("L", (50, 50)), "PNG")
    with pytest.raises(OSError, match="more than 200 pixels; make it smaller"):
        open_picture(file)


VALUES = [0, 1, 4095, 5000]


@pytest.mark.parametrize(
    ("bits", "photometric", "wanted"),
    [
        (12, 1, [0, 16, 65535, 65535]),  # above 12 bits is white
        (12, 0, [65535, 65519, 0, 0]),
        (16, 0, [65535, 65534, 61440, 60535]),
        (16, 1, [0, 1, 4095, 5000]),
    ],
)
def test_values_of_a_tiff_are_scaled_from_its_bits(bits, photometric, wanted):
    image = Image.open(io.BytesIO(saved(Image.fromarray(np.array([VALUES], np.uint16)), "TIFF")))
    image.load()
    image.tag_v2 = {258: (bits,), 262: photometric}
    assert np.asarray(decoding._tiff_16_bits(image)).tolist() == [wanted]
