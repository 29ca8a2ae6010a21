import io
import os
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers.support import image_files
from helpers.support.files import one_line
from helpers.support.image_files import crop_and_shrink, read_image

# Black, but for a red upper left and a blue lower right quarter.
QUARTERS = np.zeros((40, 60, 3), np.uint8)
QUARTERS[:20, :30], QUARTERS[20:, 30:] = (255, 0, 0), (0, 0, 255)
bounded = settings(max_examples=60, derandomize=True, database=None, deadline=None)


def as_bytes(image, form="PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def test_a_path_and_the_bytes_of_a_file_give_the_same_pixels(tmp_path, monkeypatch):
    path = tmp_path / "a photo.png"
    path.write_bytes(as_bytes(Image.fromarray(QUARTERS)))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))  # what ~ is on Windows
    content = path.read_bytes()
    for source in (
        path,
        str(path),
        "~/a photo.png",
        content,
        bytearray(content),
        memoryview(content),
    ):
        np.testing.assert_array_equal(read_image(source), QUARTERS)


def test_exif_turns_the_picture_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise to view"
    turned = read_image(
        as_bytes(Image.fromarray(QUARTERS), "JPEG", exif=exif, quality=100, subsampling=0)
    )
    np.testing.assert_allclose(np.asarray(turned).astype(int), np.rot90(QUARTERS, -1), atol=8)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "CMYK", "1", "I;16"])
def test_any_colour_mode_becomes_rgb(mode):
    grey = Image.fromarray(np.where(QUARTERS[..., 0] > 0, 255, 0).astype(np.uint8))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    else:
        image = grey.convert(mode)
    got = read_image(as_bytes(image, "TIFF" if mode == "CMYK" else "PNG"))
    assert got.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(got)[..., 1], grey)


@pytest.mark.parametrize("level", [2**12 - 1, 2**12])
def test_grey_of_16_bits_is_read_where_its_brightest_pixel_needs_more_than_12(level):
    content = as_bytes(Image.fromarray(np.full((9, 7), level, np.uint16)))
    if level < 2**12:
        with pytest.raises(ValueError, match="12 bits or fewer"):
            read_image(content)
    else:
        assert np.asarray(read_image(content)).max() == level / 2**8


def test_transparent_parts_become_white():
    image = Image.fromarray(
        np.dstack([QUARTERS, np.where(QUARTERS[..., 2] > 0, 0, 255).astype(np.uint8)])
    )
    got = np.asarray(read_image(as_bytes(image)))
    assert got[30, 45].tolist() == [255] * 3 and got[5, 5].tolist() == [255, 0, 0]
    palette = Image.fromarray(QUARTERS).quantize(4)
    clear = int(np.asarray(palette)[30, 45])
    got = np.asarray(read_image(as_bytes(palette, transparency=clear)))
    assert got[30, 45].tolist() == [255] * 3 and got[5, 5].tolist() == [255, 0, 0]


GREY_LEVELS = np.full((9, 7), 100)
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n"
REFUSED = {
    "HEIC": (b"\0\0\0\x18ftypheic" + bytes(40), "HEIC"),
    "text": (b"not an image", "not an image"),
    "empty": (b"", "not an image"),
    "truncated": (as_bytes(Image.fromarray(QUARTERS), "JPEG")[:-200], "truncated"),
    "huge": (as_bytes(Image.new("1", (10000, 9000))), "90 megapixels are more than 89"),
    "a bomb": (as_bytes(Image.new("1", (20000, 20000))), "megapixels|decompression bomb"),
    "floats": (
        as_bytes(Image.fromarray(GREY_LEVELS.astype(np.float32)), "TIFF"),
        "floats or 32-bit integers",
    ),
    "32-bit integers": (
        as_bytes(Image.fromarray(GREY_LEVELS.astype(np.int32)), "TIFF"),
        "floats or 32-bit integers",
    ),
    "12 bits": (
        as_bytes(Image.fromarray((16 * GREY_LEVELS).astype(np.uint16)), "TIFF"),
        "12 bits or fewer",
    ),
    "a program": (POSTSCRIPT, "not an image"),  # Pillow would have Ghostscript run it
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_cannot_be_read_is_refused_in_one_line_that_names_it(tmp_path, content, message):
    path = tmp_path / "picture.jpg"
    path.write_bytes(content)
    for source, name in ((content, "this file"), (path, str(path))):
        with pytest.raises(ValueError, match=f"{message}.*: save it as JPEG or PNG") as caught:
            read_image(source)
        text = str(caught.value)
        assert (
            text.startswith(f"cannot read {name} (")
            and "\n" not in text
            and " object at 0x" not in text
        )


def test_largest_picture_is_read_and_one_of_a_row_more_is_not(monkeypatch):
    monkeypatch.setattr(image_files, "MAX_PIXELS", 1000)
    assert read_image(as_bytes(Image.new("L", (50, 20)))).size == (50, 20)
    with pytest.raises(ValueError, match="megapixels"):
        read_image(as_bytes(Image.new("L", (50, 21))))


@pytest.mark.parametrize("name", ["nowhere.jpg", "~nobody-of-this-name/x.jpg", "", "a\0b.jpg", "."])
def test_missing_file_is_named(name):
    with pytest.raises(FileNotFoundError) as caught:
        read_image(name)
    assert (
        str(caught.value)
        == f"no file {name.replace(chr(0), ' ') or repr(name)}: give the path of a JPEG or PNG"
    )


def test_overlong_path_is_named_by_its_ends():
    with pytest.raises(
        FileNotFoundError, match=r"no file /begin/aaa.*a \.\.\. a.*aaa/end.jpg: give"
    ) as caught:
        read_image("/begin/" + 5000 * "a" + "/end.jpg")
    assert len(str(caught.value)) < 400


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in this system's folders")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(FileNotFoundError, match="x.png"):
        read_image(tmp_path / "x.png")


def test_one_line_can_be_printed_anywhere():
    assert (
        one_line(OSError("a\n b\tc \0\x1b[2J")) == "a b c [2J"
        and one_line(OSError()) == "OSError()"
    )
    assert one_line("a" * 300) == "a" * 300 and " ... " in one_line("a" * 301)
    assert one_line("Zoë \udce9") == "Zoë \\udce9" and one_line("Zoë", "ascii") == "Zo\\xeb"


# The file format in which a grey level is saved in each mode. Mode "1" has only black and white,
# and 16 bits are refused that leave their upper four unused.
FILE_FORMATS = {
    "1": "PNG",
    "L": "PNG",
    "LA": "PNG",
    "P": "GIF",
    "RGB": "BMP",
    "RGBA": "WEBP",
    "CMYK": "TIFF",
    "I;16": "PNG",
    "YCbCr": "JPEG",
}


@given(
    st.sampled_from(sorted(FILE_FORMATS)),
    st.integers(1, 70),
    st.integers(1, 70),
    st.integers(0, 255),
)
@bounded
def test_picture_of_one_grey_is_that_grey_in_every_mode_and_size(mode, width, height, level):
    level = {"1": 255 * (level > 127), "I;16": max(level, 16)}.get(mode, level)
    image = Image.new("L", (width, height), level)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    options = {"lossless": True} if mode == "RGBA" else {}
    picture = read_image(as_bytes(image, FILE_FORMATS[mode], **options))
    assert (picture.mode, picture.size) == ("RGB", (width, height))
    pixels = crop_and_shrink(picture)
    assert pixels.dtype == np.uint8 and pixels.shape == (32, 32, 3)
    assert np.abs(pixels.astype(int) - level).max() <= 2


@given(st.integers(0, 2**32 - 1))
@bounded
def test_picture_of_the_right_size_keeps_its_pixels(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(crop_and_shrink(read_image(as_bytes(Image.fromarray(pixels)))), pixels)


FILES = [
    as_bytes(Image.fromarray(QUARTERS), form)
    for form in ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "PPM")
]
damaged = st.builds(
    lambda file, place, new: file[: place % len(file)] + new + file[place % len(file) + len(new) :],
    st.sampled_from(FILES),
    st.integers(0, 2**20),
    st.binary(max_size=4),
)


@given(st.one_of(st.binary(max_size=200), damaged))
@settings(bounded, max_examples=400)
def test_damaged_file_is_refused_or_read_but_breaks_nothing(content):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            picture = read_image(content)
        except ValueError as error:
            assert (
                str(error).startswith("cannot read this file (")
                and len(str(error).splitlines()) == 1
            )
        else:
            assert picture.mode == "RGB" and crop_and_shrink(picture).shape == (32, 32, 3)


def test_flipped_bit_of_a_png_is_noticed_or_changes_nothing():
    for place in range(8 * len(FILES[0])):
        content = bytearray(FILES[0])
        content[place // 8] ^= 1 << place % 8
        try:
            assert np.array_equal(read_image(content), QUARTERS), place
        except ValueError:
            continue
