import io

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import plots
from helpers.gradcam import GradCAM
from helpers.interactive import explorer, photo
from helpers.model import resnet18

QUARTERS = np.zeros((40, 60, 3), np.uint8)  # black, but for a red upper left and a blue lower right quarter
QUARTERS[:20, :30], QUARTERS[20:, 30:] = (255, 0, 0), (0, 0, 255)
CLASSES = tuple("abcdefghij")


def as_bytes(image, form="PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def test_a_path_and_the_bytes_of_a_file_give_the_same_pixels(tmp_path):
    path = tmp_path / "a photo.png"
    path.write_bytes(as_bytes(Image.fromarray(QUARTERS)))
    for source in (path, str(path), path.read_bytes(), memoryview(path.read_bytes())):
        np.testing.assert_array_equal(photo.read_photo(source), QUARTERS)


def test_exif_turns_the_photo_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise to view"
    turned = photo.read_photo(as_bytes(Image.fromarray(QUARTERS), "JPEG", exif=exif, quality=100, subsampling=0))
    np.testing.assert_allclose(np.asarray(turned).astype(int), np.rot90(QUARTERS, -1), atol=8)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "CMYK", "1", "I;16"])
def test_any_colour_mode_becomes_rgb(mode):
    grey = Image.fromarray(np.where(QUARTERS[..., 0] > 0, 255, 0).astype(np.uint8))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    else:
        image = grey.convert(mode)
    got = photo.read_photo(as_bytes(image, "TIFF" if mode == "CMYK" else "PNG"))
    assert got.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(got)[..., 1], grey)


def test_transparent_parts_become_white():
    image = Image.fromarray(np.dstack([QUARTERS, np.where(QUARTERS[..., 2] > 0, 0, 255).astype(np.uint8)]))
    got = np.asarray(photo.read_photo(as_bytes(image)))
    assert got[30, 45].tolist() == [255] * 3 and got[5, 5].tolist() == [255, 0, 0]
    palette = Image.fromarray(QUARTERS).quantize(4)
    clear = int(np.asarray(palette)[30, 45])
    got = np.asarray(photo.read_photo(as_bytes(palette, transparency=clear)))
    assert got[30, 45].tolist() == [255] * 3 and got[5, 5].tolist() == [255, 0, 0]


REFUSED = {
    "HEIC": (b"\0\0\0\x18ftypheic" + bytes(40), "HEIC.*JPEG"),
    "text": (b"not an image", "not an image"),
    "empty": (b"", "not an image"),
    "truncated": (as_bytes(Image.fromarray(QUARTERS), "JPEG")[:-200], "damaged"),
    "huge": (as_bytes(Image.new("1", (10000, 5001))), "50 megapixels are more than 50"),
    "a bomb": (as_bytes(Image.new("1", (20000, 20000))), "megapixels|decompression bomb"),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_refused_in_one_line(content, message):
    with pytest.raises(ValueError, match=message) as caught:
        photo.read_photo(content)
    assert "\n" not in str(caught.value)


def test_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match="no file nowhere.jpg"):
        photo.read_photo("nowhere.jpg")


def test_the_network_gets_the_central_square():
    image = np.full((64, 128, 3), 255, np.uint8)
    image[:, 32:96] = 51
    got = photo.to_network(Image.fromarray(image))
    assert got.shape == (1, 3, 32, 32)
    torch.testing.assert_close(got[..., 1:-1], torch.full((1, 3, 32, 30), 0.2), atol=0.01, rtol=0)


@pytest.mark.parametrize(("factor", "words"), [(0, "only 10% sure, so do not rely on it"), (500, "100% sure")])
def test_explanation_is_of_the_two_likeliest_classes(monkeypatch, factor, words):
    torch.manual_seed(0)
    model = resnet18(width=16).eval()
    model.fc.weight.data *= factor
    model.fc.bias.data *= 0
    shown = {}
    monkeypatch.setattr(plots, "explanation", lambda *args, **kwargs: shown.update(zip("itpclm", args), **kwargs))
    content = as_bytes(Image.fromarray(QUARTERS))
    _, verdict = photo.explain_photo(model, content, CLASSES)
    assert words in verdict and "a, b, c" in verdict
    images = photo.to_network(photo.read_photo(content))
    best = model(images).topk(2).indices
    assert shown["l"] == [CLASSES[i] for i in best[0]] and shown["photo"].size == (60, 40)
    expected = GradCAM(model).evidence(images, best)[0]
    raw = shown["m"]["4 × 4 cells"][0]
    torch.testing.assert_close(raw, torch.cat([expected, expected[:1] - expected[1:]]), rtol=1e-4, atol=1e-4)
    assert shown["m"]["8 × 8 cells"][0].shape == (3, 8, 8)


def test_upload_explains_a_photo_and_survives_a_bad_one(monkeypatch, capsys):
    model = resnet18(width=16).eval()
    monkeypatch.setattr(explorer, "has_front_end", lambda: False)
    assert explorer.upload(model, CLASSES) is None and "upload" in capsys.readouterr().out
    monkeypatch.setattr(explorer, "has_front_end", lambda: True)
    button, note, picture = explorer.upload(model, CLASSES).children
    good, bad = ({"name": "x", "type": "", "size": 1, "content": c} for c in (as_bytes(Image.fromarray(QUARTERS)), b"<no image>"))
    for files, there in (((good,), True), ((bad,), False), ({"x": good}, True)):
        button.notify_change({"name": "value", "type": "change", "old": None, "new": files})
        assert bool(picture.value) is there
        assert ("sure" in note.value) is there and ("not an image" in note.value) is not there
