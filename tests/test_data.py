import hashlib
import http.server
import io
import multiprocessing
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import CIFAR10

from helpers import shapes
from helpers.data import (
    CLASSES,
    MEAN,
    STD,
    Dataset,
    channel_statistics,
    load_dataset,
    make_loader,
)
from helpers.data import split as split_off
from helpers.support import downloads, files, image_folder
from helpers.support.files import project_root
from helpers.support.weights import WEIGHTS


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(path, **options)


def grey(level):
    return np.full((32, 32, 3), level, np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Dogs are even and cats odd; image n of train/ has the grey level n, of test/ 100 + n."""
    for part, offset in (("train", 0), ("test", 100)):
        for n in range(4):
            save(tmp_path / "pets" / part / ("dog", "cat")[n % 2] / f"{n}.png", grey(offset + n))
    (tmp_path / "pets" / "train" / "cat" / "notes.txt").write_text("no image")
    return tmp_path / "pets"


def levels(dataset):
    return dataset.images[:, 0, 0, 0].tolist()


def test_folder_is_read_in_the_order_of_file_names_with_classes_by_alphabet(folder):
    pair = load_dataset(str(folder))
    assert (levels(pair.train), levels(pair.test)) == ([0, 1, 2, 3], [100, 101, 102, 103])
    assert pair.train.labels.tolist() == pair.test.labels.tolist() == [1, 0, 1, 0]
    assert pair.classes == ("cat", "dog") and re.fullmatch("folder-pets-[0-9a-f]{8}", pair.name)
    assert pair.train.labels.dtype == np.int64 and pair.train.images.dtype == np.uint8


SHARP = {"quality": 95, "subsampling": 0}  # of a JPEG: colours do not run into each other
RAMP = np.arange(1024, dtype=np.uint16).reshape(32, 32)
COLOURS = np.stack([RAMP // 4, RAMP % 256, 255 - RAMP // 4], axis=-1).astype(np.uint8)
GREYS = np.repeat(COLOURS[..., :1], 3, axis=-1)
RED_AND_BLUE = np.array([[[250, 10, 10]], [[10, 10, 250]]], np.uint8)
HALVES = RED_AND_BLUE.repeat(16, axis=0).repeat(32, axis=1)  # red above blue
WIDE = np.concatenate(
    [
        np.full((64, 20, 3), 255, np.uint8),
        COLOURS.repeat(2, 0).repeat(2, 1),
        grey(255)[:, :20].repeat(2, 0),
    ],
    1,
)


@pytest.mark.parametrize(
    "file, image, expected, tolerance",
    [
        ("rgb.png", Image.fromarray(COLOURS), COLOURS, 0),
        (
            "rgba.png",
            Image.fromarray(np.dstack([COLOURS, np.full((32, 32), 255, np.uint8)])),
            COLOURS,
            0,
        ),
        ("grey.png", Image.fromarray(COLOURS[..., 0]), GREYS, 0),
        ("grey16.png", Image.fromarray(RAMP * 64), GREYS, 1),
        ("palette.png", Image.fromarray(HALVES).quantize(4), HALVES, 0),
        ("photo.jpg", Image.fromarray(HALVES), HALVES, 6),
        ("grey.JPG", Image.fromarray(GREYS[..., 0]), GREYS, 6),
        ("small.png", Image.fromarray(grey(70)[:5, :9]), grey(70), 0),
        # Its white margins are cut off; bicubic rings at the ramp's jumps.
        ("wide.png", Image.fromarray(WIDE), COLOURS, 40),
    ],
)
def test_any_image_becomes_32_pixels_of_rgb(folder, file, image, expected, tolerance):
    save(folder / "train" / "dog" / f"9{file}", image, **SHARP)
    last = load_dataset(folder).train.images[-1].astype(int)
    assert np.abs(last - expected).max() <= tolerance


def test_photographs_are_turned_upright_as_their_exif_asks(folder):
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise to view"
    save(folder / "train" / "dog" / "9.jpg", HALVES, exif=exif, **SHARP)
    upright = load_dataset(folder).train.images[-1].astype(int)
    assert np.abs(upright - np.rot90(HALVES, -1)).max() <= 6


@pytest.mark.parametrize(
    "spoil, error, offender",
    [
        (lambda f: shutil.rmtree(f), FileNotFoundError, "pets"),
        (lambda f: shutil.rmtree(f / "test"), FileNotFoundError, "test"),
        (lambda f: shutil.rmtree(f / "test" / "dog"), ValueError, "'dog'"),
        (lambda f: [(f / part / "owl").mkdir() for part in ("train", "test")], ValueError, "owl"),
        (
            lambda f: [shutil.rmtree(f / part / "dog") for part in ("train", "test")],
            ValueError,
            "'cat'",
        ),
        (
            lambda f: [shutil.rmtree(f / "test" / name) for name in ("cat", "dog")],
            ValueError,
            "test",
        ),
        (lambda f: (f / "test" / "cat" / "3.png").write_bytes(b"no image"), ValueError, "3.png"),
        (lambda f: os.truncate(f / "test" / "cat" / "3.png", 60), ValueError, "3.png"),
    ],
    ids=[
        "folder",
        "split",
        "class of one split",
        "empty class",
        "one class",
        "no class",
        "unreadable",
        "truncated",
    ],
)
def test_malformed_folder_is_one_line_that_names_the_offender(folder, spoil, error, offender):
    spoil(folder)
    with pytest.raises(error) as caught:
        load_dataset(folder)
    assert offender in str(caught.value) and len(str(caught.value).splitlines()) == 1


def add(path, content=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.mark.parametrize("place", [".", "train", "test", "train/cat", "test/dog"])
@pytest.mark.parametrize("name", [".git", "__MACOSX", "@eaDir", "$RECYCLE.BIN", "#recycle"])
def test_hidden_folders_are_neither_classes_nor_images(folder, place, name):
    shutil.copytree(folder / "test" / "cat", folder / place / name / "cat")
    add(folder / place / "._0.png", b"what macOS keeps about a file, no image")
    pair = load_dataset(folder)
    assert (levels(pair.train), levels(pair.test), pair.classes) == (
        [0, 1, 2, 3],
        [100, 101, 102, 103],
        ("cat", "dog"),
    )


def link(path, target):
    if os.name == "nt":
        pytest.skip("Windows lets few users make links")
    path.symlink_to(target)


@pytest.mark.parametrize(
    "path, target",
    [
        ("train/cat/9.png", "gone.png"),
        ("train/owl", "gone"),
        ("test/dog/more", "gone"),
        ("train/cat/9.png", "9.png"),
        ("train/loop", "loop"),
        ("train/dog/up", ".."),
        ("train/dog/up", "../.."),
        ("train/dog/self", "."),
        ("train/dog/cat", "../cat"),
        ("train/kitten", "cat"),
        ("test/cat/more", "../../train/cat"),
    ],
)
def test_link_that_loses_or_multiplies_images_is_named(folder, path, target):
    link(folder / path, target)
    with pytest.raises(
        ValueError, match="is a link to a folder that is read anyway|is a link that leads nowhere"
    ) as caught:
        load_dataset(folder)
    assert len(str(caught.value).splitlines()) == 1
    assert any(name in str(caught.value) for name in (path, "train/cat")) and "remove it" in str(
        caught.value
    )


def test_links_to_images_and_folders_elsewhere_are_read(folder, tmp_path):
    for n, part in enumerate(("train", "test")):
        save(tmp_path / f"owls {part}" / "deep" / "7.png", grey(7 + n))
        link(folder / part / "owl", tmp_path / f"owls {part}")
    link(folder / "train" / "cat" / "9.png", tmp_path / "owls test" / "deep" / "7.png")
    pair = load_dataset(folder)
    assert (levels(pair.train), pair.train.labels.tolist()) == (
        [0, 1, 2, 3, 7, 8],
        [1, 0, 1, 0, 2, 0],
    )
    assert (levels(pair.test), pair.classes) == ([100, 101, 102, 103, 8], ("cat", "dog", "owl"))


def test_names_that_are_no_text_are_read_as_files_and_named_as_classes(folder):
    try:
        path = os.fsdecode(bytes(folder / "train" / "cat") + b"/9\xe9.png")
        save(Path(path), grey(9))
    except (OSError, UnicodeError):
        pytest.skip("this system's names are all text")
    assert levels(load_dataset(folder).train) == [0, 1, 2, 3, 9]
    Path(path).write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"train/cat/9\\udce9.png \(it is not an image"):
        load_dataset(folder)
    for part in ("train", "test"):
        shutil.copytree(folder / "test" / "cat", os.fsdecode(bytes(folder / part) + b"/\xe9"))
    with pytest.raises(ValueError, match=r"class \\udce9 is not plain text.*: rename"):
        load_dataset(folder)


@pytest.mark.parametrize("name", ["a\x1b[2Jb", "a\nb", "a\x9b1mb", "a\u202eb", "$a$ b", "\x7f"])
def test_classes_whose_names_a_terminal_or_a_figure_would_obey_are_refused(folder, name):
    for part in ("train", "test"):
        shutil.copytree(folder / part / "cat", folder / part / name)
    with pytest.raises(ValueError, match="the name of class .* is not plain text") as caught:
        load_dataset(folder)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "name", ["<b>R&B", "a  b ", "5$", "猫\u00a0🐈", "کتاب\u200cها", "_cat", "%s"]
)
def test_other_names_of_classes_are_taken_as_they_are(folder, name):
    for part in ("train", "test"):
        shutil.copytree(folder / part / "cat", folder / part / name)
    assert name in load_dataset(folder).classes


@pytest.mark.parametrize("file", ["9.heic", "9.AVIF", "9.tif"])
def test_pictures_that_cannot_be_read_are_named_and_not_passed_over(folder, file):
    content = io.BytesIO()
    Image.fromarray(np.full((32, 32), 0.5, np.float32)).save(content, "TIFF")
    add(
        folder / "train" / "dog" / file,
        content.getvalue() if file == "9.tif" else b"\0\0\0\x18ftypheic" + bytes(40),
    )
    with pytest.raises(ValueError, match=f"dog.{file} .*(HEIC|floats).*: save it as JPEG or PNG"):
        load_dataset(folder)


def test_folder_that_may_not_be_looked_into_is_named(folder, monkeypatch):
    scandir = os.scandir  # permissions do not stop every user, so the system's answer is given here

    def forbid(path):
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbid)
    with pytest.raises(PermissionError, match="cannot look into .*train.cat .Permission denied"):
        load_dataset(folder)


@pytest.mark.parametrize("name", ["~nobody-of-this-name/pets", "no/" + 5000 * "a", "no/a\0b"])
def test_impossible_path_is_a_missing_folder(name):
    with pytest.raises(FileNotFoundError, match="no data set '(~nobody|no/a).*train/<class>/"):
        load_dataset(name)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="'cifar'.*'auto', 'cifar10', 'shapes10'.*folder"):
        load_dataset("cifar")


@pytest.mark.parametrize(
    "train, test",
    [("train", "val"), ("Train", "Valid"), ("train", "validation"), ("TRAIN", "Test")],
)
def test_test_images_may_be_called_otherwise(folder, train, test):
    (folder / "train").rename(folder / "1"), (folder / "test").rename(folder / "2")
    (folder / "1").rename(folder / train), (folder / "2").rename(folder / test)
    pair = load_dataset(folder)
    assert (levels(pair.train), levels(pair.test)) == ([0, 1, 2, 3], [100, 101, 102, 103])


def test_a_folder_around_the_folder_is_looked_through(folder, tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "__MACOSX").mkdir()
    shutil.move(folder, tmp_path / "a" / "b")
    assert levels(load_dataset(tmp_path / "a").test) == [100, 101, 102, 103]


def test_folder_without_a_split_is_split_at_random_and_it_is_said(tmp_path, capsys):
    for n in range(40):
        save(tmp_path / "pets" / ("cat", "tram", "train")[min(n % 4, 2)] / f"{n}.png", grey(n))
    pair, again = (load_dataset(tmp_path / "pets") for _ in range(2))
    assert pair.classes == ("cat", "train", "tram")
    assert np.bincount(pair.test.labels).tolist() == [2, 4, 2]
    assert sorted(levels(pair.train) + levels(pair.test)) == list(range(40))
    assert levels(pair.test) == levels(again.test)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == said[1] and "pets has no train/ and test/: 8 of its 40 images" in said[0]
    shutil.rmtree(tmp_path / "pets" / "cat")
    save(tmp_path / "pets" / "cat" / "one.png", grey(1))
    save(tmp_path / "pets" / "cat" / "two.png", grey(2))
    assert np.bincount(load_dataset(tmp_path / "pets").test.labels).tolist() == [1, 4, 2]
    (tmp_path / "pets" / "cat" / "two.png").unlink()
    with pytest.raises(
        ValueError, match="one.png is the only image of its class: add another, for"
    ):
        load_dataset(tmp_path / "pets")


def test_images_without_class_folders_are_told_what_to_do(folder, tmp_path):
    shutil.rmtree(folder / "train")
    save(folder / "train" / "0.png", grey(0))
    with pytest.raises(
        ValueError, match=r"train holds no .*: put the images .* into train/<class>/ \(a table"
    ):
        load_dataset(folder)
    save(folder / "train" / "cat" / "0.png", grey(0))
    shutil.move(folder / "test" / "cat" / "1.png", folder / "test" / "1.png")
    shutil.rmtree(folder / "test" / "cat"), shutil.rmtree(folder / "test" / "dog")
    with pytest.raises(ValueError, match="or load .* the training images alone"):
        load_dataset(folder)
    for name in ("train", "test", "meta"):
        add(tmp_path / "cifar-100-python" / name)
    with pytest.raises(ValueError, match=r"/<class>/ .* torchvision for an archive, says"):
        load_dataset(tmp_path / "cifar-100-python")


@pytest.mark.parametrize("name", ["{}.{}.png", "{}_{}.png"])
def test_names_that_sort_the_classes_leave_them_mixed(tmp_path, name):
    for part in ("train", "test"):
        for label, kind in enumerate(("cat", "dog", "owl")):
            for n in range(20):
                level = 20 * label + n + 100 * (part == "test")
                save(tmp_path / "pets" / part / kind / name.format(kind, n), grey(level))
    pair, again = (load_dataset(tmp_path / "pets") for _ in range(2))
    for dataset in pair[:2]:
        assert np.bincount(dataset.labels[:30]).min() >= 5
        assert [level % 100 // 20 for level in levels(dataset)] == dataset.labels.tolist()
    assert levels(pair.train) == levels(again.train)


@pytest.mark.parametrize(("run", "is_kept"), [(3, True), (5, False)])
def test_names_are_followed_where_classes_change_half_as_often_as_at_random(tmp_path, run, is_kept):
    for part in ("train", "test"):
        for n in range(20):  # ten changes are to be expected at random
            kind = ("cat", "dog")[n // run % 2]
            save(tmp_path / "pets" / part / kind / f"{n:02}.png", grey(n + 100 * (part == "test")))
    order = levels(load_dataset(tmp_path / "pets").train)
    assert (order == list(range(20))) == is_kept


@pytest.mark.parametrize("kinds", [("cat", "dog"), ()])
def test_training_images_without_test_images_are_no_class(tmp_path, kinds):
    for kind in kinds:
        save(tmp_path / "pets" / "train" / kind / "0.png", grey(0))
        (tmp_path / "pets" / "docs").mkdir(exist_ok=True)
    save(tmp_path / "pets" / "train" / "1.png", grey(0))
    message = "cannot look into .*test" if kinds else "train holds no folder for each class"
    with pytest.raises((OSError, ValueError), match=message):
        load_dataset(tmp_path / "pets")


def test_a_name_in_two_unicode_forms_is_one_class(folder):
    (folder / "train" / "cat").rename(folder / "train" / "ca\u0301t")
    (folder / "test" / "cat").rename(folder / "test" / "c\xe1t")
    pair = load_dataset(folder)
    assert pair.classes == ("c\xe1t", "dog")
    assert pair.train.labels.tolist() == pair.test.labels.tolist() == [1, 0, 1, 0]


def test_all_damaged_images_are_named_at_once_or_left_out(folder, capsys, monkeypatch):
    for part, level in (("train", 9), ("test", 109)):
        add(folder / part / "dog" / f"{level}.png", b"no image")
    with pytest.raises(
        ValueError, match=r"dog.9\.png \(.*dog.109\.png \(.*: save it as.*skip"
    ) as error:
        load_dataset(folder)
    assert len(str(error.value).splitlines()) == 1
    for _ in range(2):  # decoded, and from the cache
        pair = load_dataset(folder, skip_damaged=True)
        assert (levels(pair.train), levels(pair.test)) == ([0, 1, 2, 3], [100, 101, 102, 103])
        assert capsys.readouterr().out == "left out: 2 images of pets that cannot be read\n"
    with pytest.raises(ValueError, match="skip_damaged"):
        load_dataset(folder)
    monkeypatch.setenv("WALKTHROUGH_SKIP_DAMAGED", "1")
    assert len(load_dataset(folder).train) == 4
    for file in (folder / "test" / "cat").iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(ValueError, match="no image of class 'cat' can be read: add some"):
        load_dataset(folder)


def test_test_images_that_are_training_images_are_counted(folder, capsys):
    load_dataset(folder)
    assert capsys.readouterr().out == ""
    shutil.copy(folder / "train" / "cat" / "1.png", folder / "test" / "cat" / "9.png")
    link(folder / "test" / "dog" / "8.png", folder / "train" / "dog" / "2.png")
    load_dataset(folder)
    assert capsys.readouterr().out.startswith("2 of 6 test images are copies of training images")


@pytest.fixture
def standing(folder, tmp_path, monkeypatch):
    """In `tmp_path/project/notebooks`, as a kernel does; `pets` lies in `tmp_path`."""
    (tmp_path / "project" / "notebooks").mkdir(parents=True)
    monkeypatch.setattr(files, "PROJECT", tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project" / "notebooks")
    monkeypatch.setenv("PWD", str(tmp_path / "project" / "notebooks"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("MINE", str(tmp_path))
    monkeypatch.delenv("WALKTHROUGH_ROOT", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    "name", ["../../pets", "~/pets", " ~/pets\n", "'~/pets'", '"$MINE/pets"', "${MINE}/pets"]
)
def test_path_is_read_as_people_write_it(standing, monkeypatch, name):
    monkeypatch.setenv("WALKTHROUGH_DATA", name)
    assert levels(load_dataset().train) == levels(load_dataset(name).train) == [0, 1, 2, 3]


def test_relative_folder_is_looked_for_here_then_in_the_shell_then_in_the_project(
    standing, monkeypatch
):
    project = standing / "project"
    shutil.copytree(standing / "pets", project / "pets")
    assert load_dataset("pets").name == load_dataset(project / "pets").name
    monkeypatch.setenv("PWD", str(standing))
    assert load_dataset("pets").name == load_dataset(standing / "pets").name
    shutil.copytree(standing / "pets", project / "notebooks" / "pets")
    assert load_dataset("pets").name == load_dataset(project / "notebooks" / "pets").name
    for missing, error in (("dogs", ValueError), ("my/dogs", FileNotFoundError)):
        with pytest.raises(error) as caught:
            load_dataset(missing)
        for place in (project / "notebooks", standing, project):
            assert f" {place}" in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


def test_relative_root_is_where_it_lies_or_else_in_the_project(standing, monkeypatch):
    monkeypatch.setenv("WALKTHROUGH_ROOT", " work ")
    assert project_root() == standing / "project" / "work"
    monkeypatch.chdir(standing)
    assert project_root() == standing / "work"
    (standing / "project" / "work").mkdir()
    assert project_root() == standing / "project" / "work"
    (standing / "work").mkdir()
    assert project_root() == standing / "work"
    monkeypatch.setenv("WALKTHROUGH_ROOT", "~/elsewhere")
    assert project_root() == standing / "elsewhere"


def fail(*args, **kwargs):
    raise AssertionError("called")


def test_second_load_decodes_nothing(folder, monkeypatch):
    first = load_dataset(folder)
    monkeypatch.setattr(image_folder, "read_image", fail)
    second = load_dataset(folder)
    assert all(np.array_equal(a.images, b.images) for a, b in zip(first[:2], second[:2]))
    assert levels(second.test) == [100, 101, 102, 103]


@pytest.mark.skipif(
    os.name == "nt", reason="Windows keeps no time of a file's last change that nobody can set"
)
def test_file_changed_behind_its_size_and_time_invalidates_the_cache(folder):
    path = folder / "train" / "cat" / "9.bmp"
    for level in (9, 10):  # as unpacked from two archives whose files all have one date
        save(path, grey(level))
        os.utime(path, (10**9, 10**9))
        assert levels(load_dataset(folder).train) == [0, 1, 2, 3, level]


def test_changed_and_added_files_invalidate_the_cache(folder):
    # Not compressed, so only its time gives the change away.
    changed = folder / "train" / "cat" / "5.bmp"
    for level, seconds in ((5, 10**9), (55, 10**9 + 1)):
        save(changed, grey(level))
        os.utime(changed, (seconds, seconds))
        assert levels(load_dataset(folder).train) == [0, 1, 2, 3, level]
    save(folder / "train" / "cat" / "4.png", grey(4))
    assert levels(load_dataset(folder).train) == [0, 1, 2, 3, 4, 55]


@pytest.mark.parametrize(
    "damage",
    [lambda b: b"", lambda b: b"garbage", lambda b: b[:2000], lambda b: b[:2000] + b"?" + b[2001:]],
    ids=["empty", "garbage", "truncated", "one byte"],
)
def test_damaged_cache_is_ignored_and_replaced(folder, damage, monkeypatch):
    load_dataset(folder)
    (cache,) = folder.parent.glob("*.npz")
    cache.write_bytes(damage(cache.read_bytes()))
    assert levels(load_dataset(folder).test) == [100, 101, 102, 103]
    monkeypatch.setattr(image_folder, "read_image", fail)
    assert levels(load_dataset(folder).test) == [100, 101, 102, 103]


def test_cache_that_cannot_be_written_leaves_nothing_behind(folder):
    (folder.parent / "pets.cache.npz").mkdir()
    with pytest.warns(UserWarning, match="decoded again: cannot write .*pets.cache.npz"):
        assert levels(load_dataset(folder).train) == [0, 1, 2, 3]
    assert sorted(p.name for p in folder.parent.iterdir()) == ["pets", "pets.cache.npz"]


def test_read_only_parent_goes_without_a_cache(folder):
    folder.parent.chmod(0o500)
    try:
        if os.access(folder.parent, os.W_OK):
            pytest.skip("this user or system may write to read-only folders")
        with pytest.warns(UserWarning, match="decoded again: cannot write .*pets.cache.npz"):
            assert levels(load_dataset(folder).train) == [0, 1, 2, 3]
        assert list(folder.parent.iterdir()) == [folder]
    finally:
        folder.parent.chmod(0o700)


@pytest.fixture
def cifar10(monkeypatch):
    """CIFAR-10's seven files with three images a batch, and their MD5 in place of the real ones."""
    generator, files = np.random.default_rng(0), {}
    for name, md5s in (("train_list", CIFAR10.train_list), ("test_list", CIFAR10.test_list)):
        for batch, _ in md5s:
            pixels = generator.integers(0, 256, (3, 3072), dtype=np.uint8)
            files[batch] = pickle.dumps(
                {"data": pixels, "labels": generator.integers(0, 10, 3).tolist()}
            )
        monkeypatch.setattr(
            CIFAR10, name, [[batch, hashlib.md5(files[batch]).hexdigest()] for batch, _ in md5s]
        )
    files["batches.meta"] = pickle.dumps({"label_names": list(CLASSES)})
    monkeypatch.setitem(CIFAR10.meta, "md5", hashlib.md5(files["batches.meta"]).hexdigest())
    return files


@pytest.fixture
def archive(cifar10, monkeypatch):
    """The bytes of a cifar-10-python.tar.gz that holds those files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in cifar10.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(downloads, "MD5", hashlib.md5(buffer.getvalue()).hexdigest())
    return buffer.getvalue()


def answer(request):
    server = request.server
    request.send_response(200 if server.body else 404)
    for name, value in server.headers.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(server.body)


@pytest.fixture
def mirror(monkeypatch):
    """The server that CIFAR10_URL names.

    It gives its `.answer`, then waits for `.may_close`, and notes the `.requested_paths`.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            server.requested_paths.append(self.path)
            with suppress(ConnectionError):
                server.answer(self)
            server.may_close.wait(20)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requested_paths = []
    server.body, server.headers, server.answer = b"", {}, answer
    server.may_close = threading.Event()
    server.stopped = threading.Event()
    server.may_close.set()
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("WALKTHROUGH_DATA", raising=False)
    monkeypatch.setenv(
        "CIFAR10_URL", f"http://127.0.0.1:{server.server_address[1]}/mirrored.tar.gz"
    )
    yield server
    server.may_close.set()
    server.stopped.set()
    server.shutdown()
    server.server_close()


def assert_is_cifar10(pair, files):
    assert (pair.name, pair.classes) == ("cifar10", CLASSES)
    batches = [
        pickle.loads(files[name])
        for name in [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
    ]
    for dataset, parts in ((pair.train, batches[:5]), (pair.test, batches[5:])):
        assert dataset.labels.tolist() == sum((part["labels"] for part in parts), [])
        # A row of a batch is all red, then all green, then all blue pixels.
        assert np.array_equal(
            dataset.images.transpose(0, 3, 1, 2).reshape(-1, 3072),
            np.concatenate([p["data"] for p in parts]),
        )


@pytest.mark.parametrize("name", ["cifar10", "auto"])
def test_download_is_unpacked_and_not_repeated(
    tmp_path, monkeypatch, mirror, cifar10, archive, name
):
    monkeypatch.setenv("WALKTHROUGH_ROOT", str(tmp_path / "new"))
    mirror.body, mirror.headers = archive, {"Content-Length": len(archive)}
    assert_is_cifar10(load_dataset(name), cifar10)
    assert_is_cifar10(load_dataset(name), cifar10)
    assert mirror.requested_paths == ["/mirrored.tar.gz"]
    assert [p.name for p in (tmp_path / "new" / "data").iterdir()] == ["cifar-10-batches-py"]


@pytest.mark.parametrize("name", ["auto", "cifar10"])
@pytest.mark.parametrize("is_named", [False, True], ids=["in data", "in CIFAR10_URL"])
def test_archive_on_disk_is_unpacked(
    tmp_path, mirror, cifar10, archive, name, is_named, monkeypatch
):
    place = tmp_path / ("my own" if is_named else "data") / "cifar-10-python.tar.gz"
    add(place, archive)
    if is_named:
        monkeypatch.setenv("CIFAR10_URL", str(place))
    assert_is_cifar10(load_dataset(name, tmp_path / "data"), cifar10)
    assert mirror.requested_paths == []


def test_archive_that_came_after_a_failed_download_is_unpacked(tmp_path, mirror, cifar10, archive):
    assert load_dataset("auto", tmp_path, 1, 1).name == "shapes10"
    add(tmp_path / "cifar-10-python.tar.gz", archive)
    assert_is_cifar10(load_dataset("auto", tmp_path), cifar10)


def test_damaged_archive_on_disk_is_passed_over(tmp_path, mirror, cifar10, archive):
    mirror.body = archive
    add(tmp_path / "cifar-10-python.tar.gz", archive[:-1])
    assert_is_cifar10(load_dataset("cifar10", tmp_path), cifar10)
    assert len(mirror.requested_paths) == 1


def break_off(mirror, archive):
    mirror.body, mirror.headers = archive[:-100], {"Content-Length": len(archive)}


def break_off_within_a_chunk(mirror, archive):
    mirror.body, mirror.headers = (
        b"%x\r\n" % len(archive) + archive[:-100],
        {"Transfer-Encoding": "chunked"},
    )


def stall(mirror, archive):
    break_off(mirror, archive)
    mirror.may_close.clear()


def drip(mirror, archive, start=0):
    def answer(request):
        request.send_response(200)
        request.end_headers()
        request.wfile.write(bytes(start))
        while not mirror.stopped.wait(0.1):
            request.wfile.write(b"?")

    mirror.answer = answer


def drip_after_a_good_start(mirror, archive):
    drip(mirror, archive, start=1_000_000)  # 50 seconds at the least speed


def drip_the_headers(mirror, archive):
    def answer(request):
        request.wfile.write(b"HTTP/1.1 200 OK\r\nName: ")
        while not mirror.stopped.wait(0.1):
            request.wfile.write(b"?")

    mirror.answer = answer


def send_round_in_a_circle(mirror, archive):
    reply(mirror, b"HTTP/1.1 302 Found\r\nLocation: /mirrored.tar.gz\r\n\r\n")


def reply(mirror, content):
    mirror.answer = lambda request: request.wfile.write(content)


def send_another_file(mirror, archive):
    mirror.body, mirror.headers = archive + b"?", {"Content-Length": len(archive) + 1}


@pytest.mark.parametrize(
    "prepare, reason",
    [
        (send_another_file, "MD5"),
        (break_off, "bytes that arrived are not"),
        (break_off_within_a_chunk, "IncompleteRead|connection closed"),
        (stall, "timed out"),
        (lambda mirror, archive: None, "404"),
        (drip, "less than 20 kB a second"),
        (drip_after_a_good_start, "less than 20 kB a second"),
        (drip_the_headers, "no answer within 0.5 seconds"),
        (send_round_in_a_circle, "infinite loop"),
        (lambda mirror, archive: reply(mirror, b"\0\x1b[2J\xff garbage\n\n"), "garbage"),
        (
            lambda mirror, archive: reply(
                mirror, b"HTTP/1.1 404 " + b"very " * 10_000 + b"bad\r\n\r\n"
            ),
            "404: very .*bad",
        ),
        (
            lambda mirror, archive: reply(
                mirror, b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n"
            ),
            "many",
        ),
        (lambda mirror, archive: reply(mirror, b""), "closed connection without response"),
    ],
    ids=[
        "another file",
        "broken off",
        "broken off in a chunk",
        "stalled",
        "absent",
        "drips",
        "drips after a good start",
    ]
    + ["drips its headers", "circle", "garbage", "64 kB of reason", "no number", "nothing"],
)
def test_failed_download_names_the_remedies_and_leaves_nothing(
    tmp_path, monkeypatch, mirror, archive, prepare, reason
):
    monkeypatch.setattr(downloads, "CONNECT_TIMEOUT", 0.5)
    monkeypatch.setattr(downloads, "SLOW_GRACE_SECONDS", 0.5)
    prepare(mirror, archive)
    start = time.monotonic()
    remedies = f"{os.environ['CIFAR10_URL']}.*({reason}).*CIFAR10_URL.*data/cifar10/.*shapes10"
    with pytest.raises(RuntimeError, match=remedies) as caught:
        load_dataset("cifar10", tmp_path)
    assert (
        len(str(caught.value).splitlines()) == 1
        and str(caught.value).isprintable()
        and len(str(caught.value)) < 1000
    )
    assert list(tmp_path.iterdir()) == [] and time.monotonic() - start < 5


def send_without_end(mirror, archive):
    def answer(request):
        request.send_response(200)
        request.end_headers()
        while not mirror.stopped.is_set():
            request.wfile.write(bytes(1 << 16))
            mirror.sent += 1 << 16

    mirror.sent = 0
    mirror.answer = answer


def test_download_without_end_stops_at_the_size_of_the_archive(tmp_path, monkeypatch, mirror):
    monkeypatch.setattr(downloads, "SIZE", 1_000_000)
    send_without_end(mirror, None)
    with pytest.raises(RuntimeError, match="more came than the archive's 1,000,000 bytes"):
        load_dataset("cifar10", tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert mirror.sent < 20_000_000  # what lay in the connection's buffers


@pytest.mark.parametrize(
    "url, shown",
    [
        ("http://{host}/a/x?sig=s3cret", "http://{host}/a/x"),
        ("http://{host}/a/x?sig=s3cret&t=a%20b c", "http://{host}/a/x"),
        ("http://{host}/a/x;sig=s3cret#s3cret", "http://{host}/a/x..."),
        ("http://me:s3cret@{host}/a/x", "http://{host}/a/x"),
        ("https://s3cret@{host}/a/x", "https://{host}/a/x"),
        ("ftp://me:s3cret@{host}/a/x", "ftp://{host}/a/x"),
        ("http://me:s3cret/1@{host}/a/x", "the address in CIFAR10_URL"),
        ("http://me:s3cret?1@{host}/a/x", "the address in CIFAR10_URL"),
        ("http://[s3cret", "the address in CIFAR10_URL"),
        ("http://me:s3cret\u2100@{host}/a/x", "the address in CIFAR10_URL"),
        ("me:s3cret@{host}/a/x", "...{host}/a/x"),
        ("file:///gone?sig=s3c%72et", "/gone"),
    ],
)
def test_secrets_in_the_address_are_shown_nowhere(
    tmp_path, monkeypatch, mirror, capsys, url, shown
):
    host = os.environ["CIFAR10_URL"].split("/")[2]
    reply(mirror, b"HTTP/1.1 302 s3cret\r\nLocation: s3://me:s3cret@b/c?sig=s3cret\r\n\r\n")
    monkeypatch.setenv("CIFAR10_URL", url.format(host=host))
    with pytest.raises(RuntimeError) as caught:
        load_dataset("cifar10", tmp_path)
    assert f"downloaded from {shown.format(host=host)} (" in str(caught.value)
    assert load_dataset("auto", tmp_path, 1, 1).name == "shapes10"
    (note,) = tmp_path.iterdir()
    shown_anywhere = "".join(traceback.format_exception(caught.value)), *capsys.readouterr()
    for text in (*shown_anywhere, note.read_text()):
        assert "s3cret" not in text


def test_a_secret_in_a_longer_one_leaves_nothing_of_that(tmp_path, monkeypatch, mirror):
    reply(mirror, b"HTTP/1.1 404 hiddens3cret\r\n\r\n")
    monkeypatch.setenv("CIFAR10_URL", os.environ["CIFAR10_URL"] + "?a=s3cret&b=hiddens3cret")
    with pytest.raises(RuntimeError, match=r"404: \.\.\.\)"):
        load_dataset("cifar10", tmp_path)


def test_renewed_signature_is_tried_at_once(tmp_path, monkeypatch, mirror, cifar10, archive):
    monkeypatch.setenv("CIFAR10_URL", os.environ["CIFAR10_URL"] + "?sig=old")
    assert load_dataset("auto", tmp_path, 1, 1).name == "shapes10"
    mirror.body = archive
    monkeypatch.setenv("CIFAR10_URL", os.environ["CIFAR10_URL"].replace("old", "new"))
    assert_is_cifar10(load_dataset("auto", tmp_path), cifar10)


def test_user_and_password_are_refused_and_not_sent(tmp_path, monkeypatch, mirror):
    monkeypatch.setenv("CIFAR10_URL", os.environ["CIFAR10_URL"].replace("//", "//me:s3cret@"))
    with pytest.raises(RuntimeError, match="fetch the archive by hand and put it into data/"):
        load_dataset("cifar10", tmp_path)
    assert mirror.requested_paths == []


def test_slow_but_steady_download_is_waited_for(tmp_path, monkeypatch, mirror, cifar10, archive):
    def answer(request):
        request.send_response(200)
        request.end_headers()
        for place in range(0, len(archive), len(archive) // 20):
            request.wfile.write(archive[place : place + len(archive) // 20])
            time.sleep(0.05)

    mirror.answer = answer
    # In five seconds; it comes in one.
    monkeypatch.setattr(downloads, "MIN_BYTES_PER_SECOND", len(archive) / 5)
    monkeypatch.setattr(downloads, "SLOW_GRACE_SECONDS", 0.5)
    assert_is_cifar10(load_dataset("cifar10", tmp_path), cifar10)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:{port}/x", "http://127.0.0.1:port/x", "mirror/cifar-10-python.tar.gz"]
)
def test_address_without_a_server_is_a_failed_download(tmp_path, monkeypatch, url):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("CIFAR10_URL", url.format(port=port))
    with pytest.raises(RuntimeError, match="could not be downloaded from .*; check the network"):
        load_dataset("cifar10", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_name_that_is_looked_up_for_ever_is_a_failed_download(tmp_path, monkeypatch):
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait(20) and [])
    monkeypatch.setattr(downloads, "CONNECT_TIMEOUT", 0.5)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("CIFAR10_URL", "http://mirror.invalid/cifar-10-python.tar.gz")
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="no answer within 0.5 seconds.*CIFAR10_URL"):
        load_dataset("cifar10", tmp_path)
    assert time.monotonic() - start < 10 and list(tmp_path.iterdir()) == []
    over.set()


def test_auto_says_why_it_falls_back_and_asks_the_network_once_a_day(tmp_path, mirror, capsys):
    for _ in range(2):
        pair = load_dataset("auto", tmp_path, train_size=11, test_size=3)
        assert (pair.name, len(pair.train), len(pair.test)) == ("shapes10", 11, 3)
        (banner,) = capsys.readouterr().out.splitlines()
        assert "Shapes-10" in banner and "404" in banner and "CIFAR10_URL" in banner
    assert len(mirror.requested_paths) == 1
    (marker,) = tmp_path.iterdir()
    for hours, requests in ((23.9, 1), (24.1, 2)):
        before = time.time() - hours * 3600
        os.utime(marker, (before, before))
        load_dataset("auto", tmp_path, train_size=1, test_size=1)
        assert len(mirror.requested_paths) == requests
    load_dataset("auto", tmp_path, train_size=1, test_size=1)
    assert len(mirror.requested_paths) == 2  # the second failure is remembered as well


def test_changed_address_is_tried_at_once(tmp_path, monkeypatch, mirror, cifar10, archive):
    assert load_dataset("auto", tmp_path, 1, 1).name == "shapes10"
    monkeypatch.setenv("CIFAR10_URL", os.environ["CIFAR10_URL"].replace("mirrored", "another"))
    assert load_dataset("auto", tmp_path, 1, 1).name == "shapes10"
    assert mirror.requested_paths == ["/mirrored.tar.gz", "/another.tar.gz"]
    monkeypatch.setenv("CIFAR10_URL", os.environ["CIFAR10_URL"].replace("another", "good"))
    mirror.body = archive
    assert_is_cifar10(load_dataset("auto", tmp_path), cifar10)


def test_proxy_that_is_set_after_a_failure_is_used(tmp_path, monkeypatch, mirror, cifar10, archive):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"http://127.0.0.1:{closed.getsockname()[1]}/far.tar.gz"
    proxy = os.environ["CIFAR10_URL"].rpartition("/")[0]
    monkeypatch.setenv("CIFAR10_URL", address)
    for _ in range(2):  # the second time it is remembered
        assert load_dataset("auto", tmp_path, 1, 1).name == "shapes10"
    mirror.body = archive
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("http_proxy", proxy.replace("//", "//me:s3cret@"))
    note = (tmp_path / ".download-failed").read_text()
    assert_is_cifar10(load_dataset("auto", tmp_path), cifar10)
    assert mirror.requested_paths == [address] and "s3cret" not in note


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_named_pipe_in_place_of_the_note_of_a_failure_is_passed_over(tmp_path, mirror):
    os.mkfifo(tmp_path / ".download-failed")
    for _ in range(2):
        assert load_dataset("auto", tmp_path, 1, 1).name == "shapes10"
    assert len(mirror.requested_paths) == 1


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.uint16, np.int64])
def test_labels_become_int64_whatever_they_were(dtype):
    images, labels = np.zeros((3, 32, 32, 3), np.uint8), np.array([2, 0, 1])
    expected = Dataset(images, labels, ("a", "b", "c"))
    for same in (labels.astype(dtype), [2, 0, 1]):
        data = Dataset(images, same, ("a", "b", "c"))
        assert data.labels.dtype == np.int64 and data.labels.tolist() == [2, 0, 1]
        assert data.digest == expected.digest
        batch = next(iter(make_loader(data, 3)))
        assert batch[1].dtype == torch.int64


@pytest.mark.parametrize("labels", [[0.0, 1.0], ["a", "b"], [True, False], [None, 0]], ids=str)
def test_labels_that_are_no_whole_numbers_are_refused(labels):
    with pytest.raises(ValueError, match="^labels must be whole numbers, got .*: give indices"):
        Dataset(np.zeros((2, 32, 32, 3), np.uint8), np.array(labels), ("a", "b"))


def make_a_folder(marker, reason):
    marker.unlink()
    marker.mkdir()


def date_in_the_future(marker, reason):
    os.utime(marker, (time.time() + 10**8, time.time() + 10**8))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda marker, reason: marker.write_text(""),
        lambda marker, reason: marker.write_bytes(bytes(range(256))),
        lambda marker, reason: marker.write_text(f"\n\n{reason}"),
        lambda marker, reason: marker.write_text("because of an older version"),
        lambda marker, reason: marker.write_text(reason.partition("\n")[0] + "\n"),
        make_a_folder,
        date_in_the_future,
    ],
    ids=["empty", "binary", "lines", "other text", "cut", "folder", "future"],
)
def test_spoilt_memory_of_a_failure_is_none(tmp_path, mirror, capsys, spoil):
    load_dataset("auto", tmp_path, 1, 1)
    (marker,) = tmp_path.iterdir()
    spoil(marker, marker.read_text())
    for _ in range(2):
        capsys.readouterr()
        assert load_dataset("auto", tmp_path, 1, 1).name == "shapes10"
        (banner,) = capsys.readouterr().out.splitlines()
        assert (
            "because CIFAR-10 could not be downloaded from http://127.0.0.1" in banner
            and "404" in banner
        )
    # The failure is remembered where that can be written.
    assert len(mirror.requested_paths) == (3 if marker.is_dir() else 2)


def test_failure_is_told_where_only_ascii_can_be_printed(tmp_path, mirror, project):
    reply(mirror, "HTTP/1.1 404 Página não encontrada\r\n\r\n".encode("latin-1"))
    ascii_only = {
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "ascii:strict",
    }
    environment = os.environ | ascii_only | {"PYTHONPATH": str(project)}
    code = "from helpers.data import load_dataset\n"
    code += f"for _ in range(2): print(load_dataset('auto', {str(tmp_path)!r}, 1, 1).name)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.count("404: P\\xe1gina n\\xe3o encontrada") == 2
    assert done.stdout.endswith("***\nshapes10\n")
    assert len(mirror.requested_paths) == 1


@pytest.mark.parametrize("fails", [False, True], ids=["both succeed", "this one fails"])
def test_what_another_process_finished_first_is_taken(tmp_path, mirror, cifar10, archive, fails):
    def finish_elsewhere_first(request):
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(tmp_path)
        mirror.body = b"" if fails else archive
        answer(request)

    mirror.answer = finish_elsewhere_first
    assert_is_cifar10(load_dataset("auto", tmp_path), cifar10)
    assert [p.name for p in tmp_path.iterdir()] == ["cifar-10-batches-py"]
    assert sorted(p.name for p in (tmp_path / "cifar-10-batches-py").iterdir()) == sorted(cifar10)


CONTEXT = multiprocessing.get_context(
    "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
)
# What takes long to import, once for all processes.
CONTEXT.set_forkserver_preload(
    ["helpers.augmentation", "hypothesis", "pytest", "torchvision.datasets"]
)


def load_elsewhere(root, environment, checksums, start, results):
    """What another process does; it has neither this one's environment nor its patches."""
    os.environ.update(environment)
    downloads.MD5 = checksums.pop("archive")
    for name, value in checksums.items():
        setattr(CIFAR10, name, value)
    start.wait()
    pair = load_dataset("auto", root)
    results.put((pair.name, int(pair.train.images.sum()), pair.train.labels.tolist()))


@pytest.fixture
def elsewhere(tmp_path, mirror, archive):
    """Starts processes that load "auto" from `tmp_path` at the same moment.

    A queue brings (name, sum of pixels, labels) from each.
    """
    environment = {name: os.environ[name] for name in ("CIFAR10_URL", "no_proxy")}
    environment["WALKTHROUGH_DATA"] = ""
    checksums = {name: getattr(CIFAR10, name) for name in ("train_list", "test_list", "meta")}
    checksums["archive"] = downloads.MD5
    processes, results, barriers = [], CONTEXT.Queue(), []

    def begin(count):
        barriers.append(CONTEXT.Barrier(count))  # which has to stay alive here
        arguments = tmp_path, environment, checksums, barriers[-1], results
        processes.extend(
            CONTEXT.Process(target=load_elsewhere, args=arguments) for _ in range(count)
        )
        for process in processes:
            process.start()
        return processes, results

    yield begin
    for process in processes:
        process.kill()
        process.join()


def test_ten_processes_share_one_folder(tmp_path, elsewhere, mirror, cifar10, archive):
    mirror.body = archive
    processes, results = elsewhere(10)
    found = [results.get(timeout=120) for _ in processes]
    here = load_dataset("cifar10", tmp_path)
    assert_is_cifar10(here, cifar10)
    assert found == 10 * [("cifar10", here.train.images.sum(), here.train.labels.tolist())]
    for process in processes:
        process.join()
    assert [p.name for p in tmp_path.iterdir()] == ["cifar-10-batches-py"]


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_leftovers_of_killed_processes_are_removed_and_no_others(
    tmp_path, elsewhere, mirror, cifar10, archive
):
    def begin_and_wait(request):
        request.send_response(200)
        request.end_headers()
        request.wfile.write(archive[:1000])
        mirror.may_close.wait(60)
        request.wfile.write(archive[1000:])

    mirror.answer = begin_and_wait
    mirror.may_close.clear()
    processes, results = elsewhere(3)
    wait_for(lambda: len(list(tmp_path.glob(".download-*/*.tar.gz"))) == 3)
    for process in processes[:2]:
        process.kill()
        process.join()
    for lock in tmp_path.glob(f".download-*/{files.FOLDER_LOCK}"):
        # Old enough to be swept, were it not for the one that is held.
        os.utime(lock, (10**9, 10**9))
    files.remove_stale_temporaries(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    mirror.may_close.set()
    assert results.get(timeout=60)[0] == "cifar10"
    processes[2].join()
    assert_is_cifar10(load_dataset("auto", tmp_path), cifar10)
    assert [p.name for p in tmp_path.iterdir()] == ["cifar-10-batches-py"]


@pytest.mark.parametrize(
    "error", [OSError(95, "Operation not supported"), NotImplementedError("no flock here")]
)
def test_disk_without_locks_is_downloaded_to_and_never_swept(
    tmp_path, monkeypatch, mirror, cifar10, archive, error
):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(files.FileLock, "acquire", refuse)
    add(tmp_path / ".download-another" / files.FOLDER_LOCK)
    os.utime(tmp_path / ".download-another" / files.FOLDER_LOCK, (10**9, 10**9))
    mirror.body = archive
    assert_is_cifar10(load_dataset("auto", tmp_path), cifar10)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".download-another",
        "cifar-10-batches-py",
    ]


def die_while_writing(parent):
    with files.temporary_sibling(parent, ".cache-") as unfinished:
        (unfinished / "pets.cache.npz").write_bytes(b"half of it")
        os._exit(1)


def test_unfinished_cache_of_a_dead_process_is_removed(folder):
    process = CONTEXT.Process(target=die_while_writing, args=(folder.parent,))
    process.start()
    process.join()
    (lock,) = folder.parent.glob(f".cache-*/{files.FOLDER_LOCK}")
    os.utime(lock, (10**9, 10**9))
    assert levels(load_dataset(folder).train) == [0, 1, 2, 3]
    assert sorted(p.name for p in folder.parent.iterdir()) == ["pets", "pets.cache.npz"]


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of a megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        shutil.which("mount") is None
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk]).returncode
    ):
        pytest.skip("this user or system may not mount a small disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize(
    "room", [0.5, 1.5, 2.5], ids=["for half of the archive", "for half of its files", "for both"]
)
def test_full_disk_ends_a_download_in_one_line(small_disk, mirror, cifar10, archive, room):
    mirror.body = archive
    (small_disk / "filler").write_bytes(bytes((1 << 20) - int(room * len(archive))))
    if room > 2:
        assert_is_cifar10(load_dataset("cifar10", small_disk), cifar10)
        return
    with pytest.raises(RuntimeError, match="No space left on device.*WALKTHROUGH_ROOT") as caught:
        load_dataset("cifar10", small_disk)
    assert len(str(caught.value).splitlines()) == 1
    assert [p.name for p in small_disk.iterdir()] == ["filler"]


def test_full_disk_goes_without_a_cache(small_disk, folder):
    pets = shutil.copytree(folder, small_disk / "pets")
    (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free - (1 << 14)))
    with pytest.warns(
        UserWarning, match="decoded again: cannot write .*pets.cache.npz .*disk is full"
    ):
        assert levels(load_dataset(pets).train) == [0, 1, 2, 3]
    assert sorted(p.name for p in small_disk.iterdir()) == ["filler", "pets"]


def test_read_only_disk_is_told_and_gone_on_with(small_disk, folder, mirror, capsys):
    pets = shutil.copytree(folder, small_disk / "pets")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.warns(
        UserWarning, match="decoded again: cannot write .*pets.cache.npz .*Read-only"
    ):
        assert levels(load_dataset(pets).train) == [0, 1, 2, 3]
    assert load_dataset("auto", small_disk / "data", 1, 1).name == "shapes10"
    assert "Read-only file system" in capsys.readouterr().out and mirror.requested_paths == []


def test_auto_goes_on_where_nothing_can_be_written(tmp_path, mirror, capsys):
    (tmp_path / "file").touch()
    assert (
        load_dataset("auto", tmp_path / "file" / "data", train_size=1, test_size=1).name
        == "shapes10"
    )
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_auto_and_cifar10_use_a_folder_on_disk(tmp_path, mirror):
    for part in ("train", "test"):
        for n, name in enumerate(CLASSES):
            save(tmp_path / "cifar10" / part / name / f"{9 - n}.png", grey(n))
    for name in ("auto", "cifar10"):
        pair = load_dataset(name, tmp_path)
        assert (pair.name, pair.classes, levels(pair.train)) == (
            "cifar10",
            CLASSES,
            [9, 8, 7, 6, 5, 4, 3, 2, 1, 0],
        )
    assert mirror.requested_paths == []


def test_only_cifar10_itself_has_its_name_whatever_the_classes(tmp_path, monkeypatch):
    for part in ("train", "test"):
        for n, name in enumerate(CLASSES):
            save(tmp_path / "mine" / part / name / f"{n}.png", grey(n))
    mine = load_dataset(tmp_path / "mine")
    assert mine.classes == CLASSES and mine.name.startswith("folder-mine-")
    monkeypatch.setattr("helpers.data.CIFAR10_DIGESTS", (mine.train.digest, mine.test.digest))
    assert load_dataset(tmp_path / "mine").name == "cifar10"
    save(tmp_path / "mine" / "test" / "cat" / "3.png", grey(99))
    assert load_dataset(tmp_path / "mine").name == mine.name


def test_environment_overrides_auto_and_nothing_else(tmp_path, mirror, folder, monkeypatch):
    shutil.copytree(folder, tmp_path / "cifar10")
    monkeypatch.setenv("WALKTHROUGH_DATA", str(folder))
    found = [load_dataset(name, tmp_path).name.rsplit("-", 1)[0] for name in ("auto", "cifar10")]
    assert found == ["folder-pets", "folder-cifar10"]
    assert mirror.requested_paths == []


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_damaged_batches_are_named(tmp_path, cifar10, name):
    batches = tmp_path / "cifar-10-batches-py"
    batches.mkdir()
    for file, content in cifar10.items():
        (batches / file).write_bytes(content[:-1] if file == name else content)
    with pytest.raises(RuntimeError, match="cifar-10-batches-py is damaged: delete that folder"):
        load_dataset("cifar10", tmp_path)


NUMBERED = Dataset(
    images=np.arange(20, dtype=np.uint8).repeat(3072).reshape(20, 32, 32, 3),
    labels=np.arange(20),
    classes=CLASSES,
    masks=(np.arange(20) % 2 == 1).repeat(1024).reshape(20, 32, 32),
)


def test_split_is_disjoint_complete_and_fixed_by_its_seed():
    rest, chosen = split_off(NUMBERED, 6, seed=1)
    assert len(chosen) == 6 and sorted(levels(rest) + levels(chosen)) == list(range(20))
    for part in (rest, chosen):  # images, labels and masks stay together
        assert levels(part) == part.labels.tolist()
        assert part.masks[:, 5, 5].tolist() == [n % 2 == 1 for n in levels(part)]
    assert (
        levels(chosen)
        == levels(split_off(NUMBERED, 6, seed=1)[1])
        != levels(split_off(NUMBERED, 6, seed=2)[1])
    )


@pytest.mark.parametrize("size", [-1, 0, 20])
def test_split_needs_images_on_both_sides(size):
    with pytest.raises(ValueError, match="between 1 and 19"):
        split_off(NUMBERED, size)


@pytest.mark.parametrize("sizes", [(0, 1), (1, 0), (-3, 1), ("10", 1), (1, 2.5), (1, [3])])
@pytest.mark.parametrize("name", ["shapes10", "folder"])
def test_sizes_other_than_whole_numbers_from_one_are_refused(folder, name, sizes):
    wrong = "test_size" if sizes[0] == 1 else "train_size"
    with pytest.raises(ValueError, match=f"^{wrong} must be a whole number of at least 1"):
        load_dataset(folder if name == "folder" else name, None, *sizes)


def test_sizes_choose_images_at_random_but_always_the_same(folder):
    for n in range(4, 40):
        save(folder / "train" / ("dog", "cat")[n % 2] / f"{n:02}.png", grey(n))
    pair, again = (load_dataset(folder, train_size=20, test_size=99) for _ in range(2))
    assert len(set(levels(pair.train))) == 20 and len(pair.test) == 4
    assert levels(pair.train) == levels(again.train) != levels(load_dataset(folder).train)[:20]
    assert pair.train.labels.tolist() == [1 - n % 2 for n in levels(pair.train)]


def test_shapes10_has_the_test_images_on_which_the_readme_scores(monkeypatch, project):
    draw, counts = shapes.generate, []
    monkeypatch.setattr(shapes, "generate", lambda n, seed: counts.append(n) or draw(1, seed))
    load_dataset("shapes10")
    readme = (project / "README.md").read_text(encoding="utf-8")
    scored = re.search(r"\(Shapes-10\).* % of ([\d,]+) \(", readme)[1]
    assert f"{counts[1]:,}" == scored


def test_items_are_channels_first_and_tensors_scaled_to_one():
    dataset = Dataset(COLOURS[None], np.array([4]), CLASSES)
    image, label = dataset[0]
    assert label == 4 and image.dtype == torch.uint8 and np.array_equal(image[2], COLOURS[..., 2])
    assert np.allclose(
        dataset.tensor()[0, 1], COLOURS[..., 1] / 255
    ) and dataset.tensor().shape == (1, 3, 32, 32)


def test_digest_tells_images_labels_classes_and_their_order_apart_and_nothing_else():
    others = [
        replace(
            NUMBERED,
            images=NUMBERED.images + (np.arange(20) == 7).astype(np.uint8)[:, None, None, None],
        ),
        replace(NUMBERED, labels=np.roll(NUMBERED.labels, 1)),
        replace(NUMBERED, classes=(*CLASSES[:9], "lorry")),
        replace(NUMBERED, images=NUMBERED.images.reshape(20, 16, 64, 3)),
        NUMBERED.subset(np.arange(20)[::-1]),
        NUMBERED.subset(np.arange(19)),
    ]
    assert len({NUMBERED.digest, *(other.digest for other in others)}) == 7
    same = replace(
        NUMBERED, images=np.asfortranarray(NUMBERED.images), masks=None, classes=list(CLASSES)
    )
    assert same.digest == NUMBERED.digest and len(NUMBERED.digest) == 16


def test_two_folders_of_one_name_have_names_of_their_own(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "elsewhere" / "pets")
    names = [
        load_dataset(str(path)).name for path in (folder, tmp_path / "elsewhere" / "pets", folder)
    ]
    assert names[0] == names[2] != names[1]


def test_channel_statistics_are_those_of_the_floats():
    images = np.random.default_rng(0).integers(0, [256, 100, 30], (5, 32, 32, 3), dtype=np.uint8)
    means, stds = channel_statistics(images)
    with pytest.raises(ValueError, match="must be uint8"):
        channel_statistics(images.astype(np.int64))
    assert means == pytest.approx((images / 255).mean((0, 1, 2)))
    assert stds == pytest.approx((images / 255).std((0, 1, 2)))


def test_mean_and_std_are_those_of_all_training_pixels(monkeypatch):
    root = project_root() / "data"
    if not any((root / name).is_dir() for name in ("cifar10", CIFAR10.base_folder)):
        pytest.skip("CIFAR-10 is not in data/")
    # A test leaves data/ as it was.
    monkeypatch.setattr(image_folder, "_write_cache", lambda *_, **__: None)
    train = load_dataset("cifar10", root).train
    assert train.images.shape == (50000, 32, 32, 3)
    means, stds = channel_statistics(train.images)
    assert means == pytest.approx(MEAN, abs=5e-5) and stds == pytest.approx(STD, abs=5e-5)


def test_mean_and_std_are_those_that_the_shipped_network_measured():
    state = torch.load(WEIGHTS / "cifar10.pt", weights_only=True)
    assert state["mean"].flatten().tolist() == pytest.approx(MEAN, abs=5e-5)
    assert state["std"].flatten().tolist() == pytest.approx(STD, abs=5e-5)


def test_loader_keeps_the_order_or_shuffles_every_epoch_anew():
    assert [labels.tolist() for _, labels in make_loader(NUMBERED, 8)] == [
        [*range(8)],
        [*range(8, 16)],
        [*range(16, 20)],
    ]
    loader = make_loader(NUMBERED, 8, torch.Generator().manual_seed(0))
    assert loader.num_workers == 0  # it would take seconds to start some
    first, second = (torch.cat([labels for _, labels in loader]).tolist() for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(20)) and first != second
    assert all(torch.equal(images[:, 0, 0, 0], labels) for images, labels in loader)


bounded = settings(max_examples=50, derandomize=True, database=None, deadline=None)


def numbered(count):
    """So many images; image n has the label n.

    Its pixel (row, column) is n + row + 7 x column + 50 x channel.
    """
    row, column, channel = np.ogrid[:32, :32, :3]
    images = np.stack([(n + row + 7 * column + 50 * channel) % 256 for n in range(count)])
    images = images.astype(np.uint8)
    return Dataset(images, np.arange(count), CLASSES, masks=images[..., 0] > 99)


@given(st.integers(1, 60), st.integers(1, 70), st.one_of(st.none(), st.integers(0, 2**63)))
@bounded
def test_loader_serves_every_image_once_with_its_label(count, batch_size, seed):
    dataset = numbered(count)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    batches = list(make_loader(dataset, batch_size, generator))
    assert [len(labels) for _, labels in batches] == [
        min(batch_size, count - n) for n in range(0, count, batch_size)
    ]
    images, labels = (torch.cat(parts).numpy() for parts in zip(*batches))
    assert sorted(labels) == list(range(count)) and (
        seed is not None or labels.tolist() == list(range(count))
    )
    assert images.dtype == np.uint8 and np.array_equal(
        images.transpose(0, 2, 3, 1), dataset.images[labels]
    )


@given(st.integers(2, 60), st.data())
@bounded
def test_split_and_subset_keep_images_labels_and_masks_together(count, draw):
    dataset, size = numbered(count), draw.draw(st.integers(1, count - 1))
    rest, chosen = split_off(dataset, size, seed=draw.draw(st.integers(0, 2**32)))
    order = draw.draw(st.lists(st.integers(-count, count - 1), max_size=20))
    assert (len(rest), len(chosen)) == (count - size, size)
    assert sorted([*rest.labels, *chosen.labels]) == list(range(count))
    for part in (rest, chosen, dataset.subset(order), dataset.subset(np.array(order, int))):
        assert np.array_equal(part.images, dataset.images[part.labels])
        assert np.array_equal(part.masks, dataset.masks[part.labels])
    assert dataset.subset(order).labels.tolist() == [n % count for n in order]
    assert np.array_equal(dataset.images, numbered(count).images)
