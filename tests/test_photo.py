import html

import numpy as np
import pytest
import torch
from PIL import Image
from tools import as_bytes, assert_same_weights, states_of

from helpers import plots
from helpers.gradcam import GradCAM
from helpers.interactive import photo
from helpers.model import resnet18
from helpers.support.image_files import read_image

# Black, but for a red upper left and a blue lower right quarter.
QUARTERS = np.zeros((40, 60, 3), np.uint8)
QUARTERS[:20, :30] = (255, 0, 0)
QUARTERS[20:, 30:] = (0, 0, 255)
CLASSES = tuple("abcdefghij")


def test_the_network_gets_the_central_square():
    image = np.full((64, 128, 3), 255, np.uint8)
    image[:, 32:96] = 51
    got = photo.to_network(Image.fromarray(image))
    assert got.shape == (1, 3, 32, 32)
    torch.testing.assert_close(got[..., 1:-1], torch.full((1, 3, 32, 30), 0.2), atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("factor", "words"), [(0, "only 10% sure, so do not rely on it"), (500, "100% sure")]
)
def test_explanation_is_of_the_two_likeliest_classes(monkeypatch, factor, words):
    torch.manual_seed(0)
    model = resnet18(width=16).eval()
    model.fc.weight.data *= factor
    model.fc.bias.data *= 0
    shown = {}

    def record(*args, **kwargs):
        names = ("image", "title", "probabilities", "classes", "labels", "maps")
        shown.update(zip(names, args), **kwargs)

    monkeypatch.setattr(plots, "explanation_card", record)
    content = as_bytes(Image.fromarray(QUARTERS))
    _, verdict = photo.explain_photo(model, content, CLASSES)
    assert words in verdict and "a, b, c" in verdict
    images = photo.to_network(read_image(content))
    best = model(images).topk(2).indices
    assert shown["labels"] == [CLASSES[number] for number in best[0]]
    assert shown["photo"].size == (60, 40)
    expected = GradCAM(model).evidence(images, best)[0]
    raw = shown["maps"]["4 × 4 cells"][0]
    difference = expected[:1] - expected[1:]
    torch.testing.assert_close(raw, torch.cat([expected, difference]), rtol=1e-4, atol=1e-4)
    assert list(shown["maps"]) == ["4 × 4 cells"]


def test_without_a_front_end_upload_says_how_to_get_one(monkeypatch, capsys):
    monkeypatch.setattr(photo, "has_front_end", lambda: False)
    assert photo.upload(resnet18(width=16).eval(), CLASSES) is None
    assert "upload" in capsys.readouterr().out


def upload_files(monkeypatch, classes):
    """Uploads one set of files after the other, and gives what is shown of each."""
    monkeypatch.setattr(photo, "has_front_end", lambda: True)
    button, note, picture = photo.upload(resnet18(width=16).eval(), classes).children

    def upload(files):
        button.notify_change({"name": "value", "type": "change", "old": None, "new": files})
        return note, picture

    return upload


def uploaded(content):
    return {"name": "x", "type": "", "size": 1, "content": memoryview(content)}


GOOD = uploaded(as_bytes(Image.fromarray(QUARTERS)))


def test_upload_explains_a_photo_and_survives_a_bad_one(monkeypatch):
    upload = upload_files(monkeypatch, CLASSES)
    bad = uploaded(b"<no image>")
    for files, is_image in (((GOOD,), True), ((bad,), False), ({"x": GOOD}, True)):
        note, picture = upload(files)
        assert bool(picture.value) is is_image
        assert ("sure" in note.value) is is_image
        assert ("not an image" in note.value) is not is_image


@pytest.mark.parametrize("nothing", [(), {}])
def test_clearing_the_upload_clears_what_is_shown(monkeypatch, nothing):
    upload = upload_files(monkeypatch, CLASSES)
    note, picture = upload((GOOD,))
    assert note.value and picture.value
    upload(nothing)
    assert (note.value, picture.value) == ("", b"")


def test_names_of_classes_are_no_markup_in_what_is_said_of_an_upload(monkeypatch):
    classes = [f"<img src={number} onerror=alert(1)>&amp;" for number in range(10)]
    note, _ = upload_files(monkeypatch, classes)((GOOD,))
    assert "<" not in note.value
    assert ", ".join(classes) in html.unescape(note.value)


def test_a_network_in_training_mode_says_the_same_and_stays_as_it_is():
    torch.manual_seed(0)
    model = resnet18(width=16).eval()
    content = as_bytes(Image.fromarray(QUARTERS))
    _, expected = photo.explain_photo(model, content, CLASSES)
    before = states_of(model.train())
    assert photo.explain_photo(model, content, CLASSES)[1] == expected
    assert model.training
    assert_same_weights(model, before)
