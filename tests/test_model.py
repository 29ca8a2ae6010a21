import os
import pickle
import re
import zipfile
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.optim.swa_utils import AveragedModel

from helpers import shapes
from helpers.data import CLASSES
from helpers.gradcam import GradCAM
from helpers.model import (
    STAGES,
    PreActBlock,
    activations,
    dilated,
    load_pretrained,
    resnet18,
    save_weights,
)
from helpers.support.weights import WEIGHTS

SMALL_DISK = "2m"  # room for the weights once, not twice
SHIPPED = sorted(WEIGHTS.glob("*.pt"))
SEVEN = tuple("abcdefg")
REFUSED = r"net\.pt .*(train another|save_weights)"  # the file is named, and what to do


def randomise(module, seed=0):
    """Give every parameter and statistic a value of its own.

    Fresh batch norms are nearly the identity and hide mistakes.
    """
    generator = torch.Generator().manual_seed(seed)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.data = 0.5 + torch.rand(tensor.shape, generator=generator)
    return module.eval()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return randomise(resnet18(num_classes=7, width=16, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)))


def test_full_size_network_has_the_documented_number_of_parameters():
    assert sum(p.numel() for p in resnet18().parameters()) == 11_171_146


def test_network_that_pytorch_could_crash_on_is_refused():
    with pytest.raises(ValueError, match="at least 16"):
        resnet18(width=15)


@pytest.mark.parametrize(
    ("in_channels", "channels", "stride"), [(4, 6, 2), (4, 6, 1), (4, 4, 2), (4, 4, 1)]
)
def test_block_is_two_preactivated_convolutions_and_a_shortcut_of_the_activated_input(
    in_channels, channels, stride
):
    torch.manual_seed(0)
    block, x = (
        randomise(PreActBlock(in_channels, channels, stride)),
        torch.randn(2, in_channels, 8, 8),
    )
    p = dict(block.named_parameters()) | dict(block.named_buffers())

    def norm_relu(x, name):
        return F.batch_norm(
            x, *(p[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        ).relu()

    activated = norm_relu(x, "norm1")
    residual = F.conv2d(
        norm_relu(F.conv2d(activated, p["conv1.weight"], stride=stride, padding=1), "norm2"),
        p["conv2.weight"],
        padding=1,
    )
    keeps_shape = in_channels == channels and stride == 1
    shortcut = x if keeps_shape else F.conv2d(activated, p["shortcut.weight"], stride=stride)
    torch.testing.assert_close(block(x), residual + shortcut)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (24, 24), (32, 32), (64, 64), (16, 64)])
def test_logits_are_the_linear_layer_of_the_mean_of_layer4_without_a_relu(model, height, width):
    kept = []
    model.layer4.register_forward_hook(lambda module, inputs, output: kept.append(output))
    logits = model(torch.rand(2, 3, height, width))
    assert kept[0].shape == (2, 128, height // 8, width // 8)
    assert kept[0].min() < 0
    torch.testing.assert_close(logits, kept[0].mean((2, 3)) @ model.fc.weight.T + model.fc.bias)


def test_activations_are_what_each_stage_returns_in_the_forward_pass(model):
    images, kept = torch.rand(2, 3, 32, 32), {}
    for name in STAGES:
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: kept.update({name: output})
        )
    model(images)
    in_forward = dict(kept)
    found = activations(model, images)
    assert list(found) == ["stem", "layer1", "layer2", "layer3", "layer4"]
    for name, maps in found.items():
        torch.testing.assert_close(maps, in_forward[name])


def test_model_normalises_its_images_itself(model):
    images = torch.rand(2, 3, 32, 32)
    plain = resnet18(7, width=16, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)).eval()
    plain.load_state_dict(
        {k: v for k, v in model.state_dict().items() if k not in ("mean", "std")}, strict=False
    )
    by_hand = torch.stack(
        [(images[:, c] - 0.1 * (c + 1)) / (0.4 + 0.1 * c) for c in range(3)], dim=1
    )
    torch.testing.assert_close(model(images), plain(by_hand))
    assert not {"mean", "std"} & {name for name, _ in model.named_parameters()}


def test_saved_weights_come_back_in_half_precision(model, tmp_path):
    save_weights(model, tmp_path / "net.pt", SEVEN)
    loaded = load_pretrained(tmp_path / "net.pt")
    assert (loaded.fc.out_features, loaded.stem.out_channels, loaded.training) == (7, 16, False)
    for name, value in model.state_dict().items():
        exact = name in ("mean", "std") or not value.is_floating_point()
        assert torch.equal(loaded.state_dict()[name], value if exact else value.half().float()), (
            name
        )
        assert loaded.state_dict()[name].dtype == value.dtype, name
    assert [p.name for p in tmp_path.iterdir()] == ["net.pt"]
    assert (tmp_path / "net.pt").stat().st_size < 2.3 * sum(
        v.numel() for v in model.state_dict().values()
    ) + 50_000


def test_weights_of_a_run_are_found_by_name(model, tmp_path, monkeypatch):
    monkeypatch.setenv("WALKTHROUGH_ROOT", str(tmp_path))
    (tmp_path / "runs").mkdir()
    save_weights(model, tmp_path / "runs" / "flowers.pt", SEVEN)
    for name in ("flowers", "runs/flowers.pt", tmp_path / "runs" / "flowers.pt"):
        assert torch.equal(load_pretrained(name).fc.weight, model.fc.weight.half().float())


def test_weights_for_other_classes_are_refused_with_both_lists(model, tmp_path):
    save_weights(model, tmp_path / "net.pt", SEVEN)
    for same in (SEVEN, list(SEVEN), None):
        load_pretrained(tmp_path / "net.pt", same)
    for other in (SEVEN[:4], SEVEN[::-1], (*SEVEN[:6], "h")):
        with pytest.raises(ValueError) as caught:
            load_pretrained(tmp_path / "net.pt", other)
        said = str(caught.value)
        assert (
            "\n" not in said and str(SEVEN) in said and str(other) in said and "notebook 02" in said
        )


def test_weights_without_their_classes_are_refused_where_classes_are_asked_for(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "net.pt")
    assert load_pretrained(tmp_path / "net.pt").fc.out_features == 7
    with pytest.raises(ValueError, match="knows the classes None.* save_weights adds them"):
        load_pretrained(tmp_path / "net.pt", SEVEN)


@pytest.mark.parametrize(
    ("name", "value"),
    [("fc.weight", "nan"), ("layer1.0.norm1.running_var", "inf"), ("stem.weight", "1e6")],
)
def test_weights_that_are_not_finite_are_neither_written_nor_loaded(model, tmp_path, name, value):
    model.state_dict()[name].view(-1)[3] = float(value)
    with pytest.raises(ValueError, match=r"NaN, or beyond half precision.*net\.pt.*lower peak_lr"):
        save_weights(model, tmp_path / "net.pt", SEVEN)
    assert not any(tmp_path.iterdir())
    torch.save(
        {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()},
        tmp_path / "net.pt",
    )
    with pytest.raises(ValueError, match=r"NaN or infinite.*train another"):
        load_pretrained(tmp_path / "net.pt")


def test_a_flipped_bit_is_refused_or_changes_nothing(model, tmp_path):
    save_weights(model, tmp_path / "net.pt", SEVEN)
    expected = load_pretrained(tmp_path / "net.pt").state_dict()
    whole, rng, refused = (tmp_path / "net.pt").read_bytes(), np.random.default_rng(0), 0
    anywhere = rng.integers(0, len(whole), 30)
    in_directory = rng.integers(len(whole) - 20_000, len(whole), 60)  # which is at the end
    for place in [*anywhere, *in_directory]:
        content = bytearray(whole)
        content[place] ^= 1 << rng.integers(8)
        (tmp_path / "net.pt").write_bytes(content)
        try:
            state = load_pretrained(tmp_path / "net.pt", SEVEN).state_dict()
            assert all(torch.equal(value, expected[name]) for name, value in state.items())
        except ValueError as error:
            assert re.search(REFUSED, str(error)) and "\n" not in str(error)
            refused += 1
    assert refused >= 30


def test_network_that_the_file_could_not_tell_from_another_is_not_written(model, tmp_path):
    for stages in (("layer4",), ("layer3",), ("layer2",)):
        with pytest.raises(ValueError, match="dilated network is not written: write the one"):
            save_weights(dilated(model, stages), tmp_path / "net.pt", SEVEN)
    model.unfinished = True  # as `fit` leaves a network when it is stopped
    with pytest.raises(ValueError, match=r"training was stopped: let `fit` end, then write .*net"):
        save_weights(model, tmp_path / "net.pt", SEVEN)
    assert not any(tmp_path.iterdir())


def test_full_disk_is_named_and_leaves_the_weights_there_are(model, small_disk):
    path = small_disk / "net.pt"
    save_weights(model, path, SEVEN)
    before = path.read_bytes()
    with pytest.raises(
        OSError, match=r"cannot write .*net\.pt \(the disk is full\): make room"
    ) as caught:
        save_weights(randomise(model, 1), path, SEVEN)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before and [p.name for p in small_disk.iterdir()] == ["net.pt"]


def test_folder_that_is_a_file_is_named(model, tmp_path):
    (tmp_path / "runs").write_text("in the way")
    with pytest.raises(OSError, match=r"cannot write .*net\.pt \((File exists|Not a dir.*)\)"):
        save_weights(model, tmp_path / "runs" / "net.pt", SEVEN)


WRONG_IMAGES = {
    "one channel": torch.rand(2, 1, 32, 32),
    "channels last": torch.rand(2, 32, 32, 3),
    "one image": torch.rand(3, 32, 32),
    "a film": torch.rand(2, 3, 4, 32, 32),
    "whole numbers": torch.ones(2, 3, 32, 32, dtype=torch.uint8),
}


@pytest.mark.parametrize("images", WRONG_IMAGES.values(), ids=WRONG_IMAGES)
def test_wrong_images_are_refused_with_what_was_given(model, images):
    for network in (model, GradCAM(model)):
        with pytest.raises(ValueError, match=r"images must .*got .*") as caught:
            network(images)
        assert str(images.dtype) in str(caught.value) or str(tuple(images.shape)) in str(
            caught.value
        )


def test_images_in_double_precision_are_taken_in_the_networks(model):
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(model(images.double()), model(images))
    assert torch.equal(GradCAM(model)(images.double(), 3), GradCAM(model)(images, 3))


def test_weights_of_a_folder_that_moved_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("WALKTHROUGH_ROOT", str(tmp_path))
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "damaged.pt").write_bytes(b"no weights")
    for name, classes in (("folder-pets-1", ("cat", "dog")), ("others", ("dog", "cat"))):
        save_weights(resnet18(2, width=16), tmp_path / "runs" / f"{name}.pt", classes)
    with pytest.raises(FileNotFoundError) as caught:
        load_pretrained("folder-pets-2", ["cat", "dog"])
    old, new = (tmp_path / "runs" / f"folder-pets-{n}.pt" for n in (1, 2))
    hint = f"; if {old} was trained on these images, copy it to {new}"
    assert str(caught.value).endswith(hint)
    with pytest.raises(FileNotFoundError, match="saves others$"):
        load_pretrained("folder-pets-2", ["cat", "owl"])


def test_missing_weights_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("WALKTHROUGH_ROOT", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="'nothing_here'"):
        load_pretrained("nothing_here")


@pytest.mark.parametrize("share", [0, 0.01, 0.1, 0.5, 0.99])
def test_truncated_weights_are_refused_in_one_line(model, tmp_path, share):
    path = tmp_path / "net.pt"
    save_weights(model, path, SEVEN)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=REFUSED) as caught:
        load_pretrained(path)
    assert "\n" not in str(caught.value)


FOREIGN = {
    "other net": ({"weight": torch.zeros(2)}, r"no weights of this network \(weight\)"),
    "empty": ({}, r"no weights of this network \(\)"),
    "list": ([1], r"no weights of this network \(list\)"),
    "tensor": (torch.zeros(3), r"no weights of this network \(Tensor\)"),
    "number": ({"fc.weight": 1}, "no weights of this network"),
    "checkpoint": (
        {"model": {"fc.weight": torch.zeros(2)}, "step": 3},
        r"a checkpoint \(model, step\): load 'model'",
    ),
    "another's": ({"acc": 93.1, "net": {"module.fc": torch.zeros(2)}}, "a checkpoint .* 'net'"),
    "pickled": (nn.ReLU(), "a pickled model .* run code"),
}


@pytest.mark.parametrize(("content", "said"), FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("is_new", [True, False])
def test_what_a_foreign_file_holds_is_said_and_nobody_told_to_delete_it(
    tmp_path, content, said, is_new
):
    path = tmp_path / "net.pt"
    torch.save(content, path, _use_new_zipfile_serialization=is_new)
    with pytest.raises(ValueError, match=REFUSED) as caught:
        load_pretrained(path)
    message = str(caught.value)
    assert "delete" not in message and "\n" not in message
    assert re.search(f"(holds|is) {said if is_new else 'a pickled model'}", message)


def test_weights_of_a_wrapped_network_are_those_of_the_network(model, tmp_path):
    model.layer2 = torch.compile(model.layer2, backend="eager")
    wrapped = nn.DataParallel(AveragedModel(torch.compile(model, backend="eager")))
    save_weights(wrapped, tmp_path / "net.pt", SEVEN)
    torch.save(nn.DataParallel(model).state_dict(), tmp_path / "plain.pt")
    images = torch.rand(2, 3, 32, 32)
    for path, classes in ((tmp_path / "net.pt", SEVEN), (tmp_path / "plain.pt", None)):
        loaded = load_pretrained(path, classes)
        torch.testing.assert_close(loaded(images), model(images), rtol=0.01, atol=0.01)
        assert torch.equal(loaded.mean, model.mean)
    assert torch.equal(dilated(wrapped)(images), dilated(model)(images))
    assert torch.equal(activations(wrapped, images)["stem"], activations(model, images)["stem"])


@pytest.mark.parametrize("kind", [list, np.array, pd.Index])
def test_classes_may_be_a_list_or_an_array(model, tmp_path, kind):
    save_weights(model, tmp_path / "net.pt", kind(SEVEN))
    load_pretrained(tmp_path / "net.pt", SEVEN)
    load_pretrained(tmp_path / "net.pt", kind(SEVEN))
    torch.save(model.state_dict() | {"classes": list(SEVEN)}, tmp_path / "net.pt")
    load_pretrained(tmp_path / "net.pt", SEVEN)


@pytest.mark.parametrize("text", ["not a network", "epoch,loss\n1,2\n", "<html>404</html>"])
def test_text_file_is_refused(tmp_path, text):
    (tmp_path / "net.pt").write_text(text)
    with pytest.raises(ValueError, match=REFUSED):
        load_pretrained(tmp_path / "net.pt")


def test_reason_is_said_in_words_or_else_by_the_name_of_the_error(tmp_path):
    with zipfile.ZipFile(tmp_path / "net.pt", "w") as archive:
        archive.writestr("letter.txt", "Dear reader")
    with pytest.raises(ValueError, match=r"no file of weights \(RuntimeError\): copy it again"):
        load_pretrained(tmp_path / "net.pt")
    (tmp_path / "net.pt").write_text("Dear reader")
    with pytest.raises(ValueError, match=r"no file of weights \(File is not a zip file\): copy it"):
        load_pretrained(tmp_path / "net.pt")


class Code:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("is_archive", [False, True])
def test_code_in_a_weights_file_is_not_run(tmp_path, is_archive):
    path, target = tmp_path / "net.pt", tmp_path / "made by the pickle"
    content = {"fc.weight": Code(target)}
    torch.save(content, path) if is_archive else path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=REFUSED):
        load_pretrained(path)
    assert not target.exists()
    # The same bytes do run where nothing stops them.
    torch.load(path, weights_only=False) if is_archive else pickle.loads(path.read_bytes())
    assert target.exists()


@pytest.mark.parametrize("path", SHIPPED, ids=[p.stem for p in SHIPPED])
def test_shipped_weights_load_by_name(path):
    loaded, stored = load_pretrained(path.stem).state_dict(), torch.load(path, weights_only=True)
    assert stored.pop("classes") == (shapes.CLASSES if "shapes" in path.stem else CLASSES)
    assert loaded.keys() == stored.keys()
    load_pretrained(path.stem, shapes.CLASSES if "shapes" in path.stem else CLASSES)
    with pytest.raises(
        ValueError,
        match="knows the classes .*airplane.*circle|knows the classes .*circle.*airplane",
    ):
        load_pretrained(path.stem, CLASSES if "shapes" in path.stem else shapes.CLASSES)
    assert all(torch.equal(loaded[k], stored[k].to(loaded[k].dtype)) for k in stored)
    assert all(v.isfinite().all() for v in loaded.values()), "half precision overflowed"
    assert len(loaded["fc.bias"]) == 10


@pytest.mark.parametrize(("stage", "expected"), [("layer1", 11), ("layer2", 25), ("layer3", 53)])
def test_receptive_field_is_the_extent_of_the_input_gradient(model, stage, expected):
    kept = []
    model.get_submodule(stage).register_forward_hook(
        lambda module, inputs, output: kept.append(output)
    )
    # Several images, as a ReLU may close a path in one.
    images = torch.rand(8, 3, 64, 64, requires_grad=True)
    model(images)
    middle = kept[0].shape[-1] // 2
    (gradient,) = torch.autograd.grad(kept[0][:, :, middle, middle].sum(), images)
    rows, columns = np.nonzero(gradient.abs().sum((0, 1)).numpy())
    assert np.ptp(rows) + 1 == np.ptp(columns) + 1 == expected


def grid(network, images):
    """What the last stage puts out."""
    kept = []
    handle = network.layer4.register_forward_hook(
        lambda module, inputs, output: kept.append(output)
    )
    network(images)
    handle.remove()
    return kept[0]


@pytest.mark.parametrize(
    "stages", [("layer4",), ("layer3", "layer4"), ("layer3",), ("layer2", "layer4")], ids="+".join
)
@torch.no_grad()
def test_each_phase_of_a_dilated_grid_is_the_strided_networks_for_the_shifted_image(model, stages):
    images = torch.rand(1, 3, 288, 288, generator=torch.Generator().manual_seed(0))
    fine, times = grid(dilated(model, stages), images), 2 ** len(stages)
    assert fine.shape[-2:] == (36 * times, 36 * times)
    # A cell depends on 109 pixels: nearer to the border it would see where that is.
    inside = slice(8, 24)
    for down, right in product(range(times), repeat=2):
        pixels = [8 * phase // times for phase in (down, right)]
        shifted = grid(model, images[..., pixels[0] : pixels[0] + 280, pixels[1] : pixels[1] + 280])
        cells = fine[..., down::times, right::times]
        torch.testing.assert_close(
            cells[..., inside, inside], shifted[..., inside, inside], rtol=1e-3, atol=1e-4
        )


@torch.no_grad()
def test_every_second_cell_of_a_dilated_grid_is_the_strided_networks_at_the_border_too(model):
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        grid(dilated(model), images)[..., ::2, ::2], grid(model, images), rtol=1e-4, atol=1e-5
    )


def test_dilated_is_a_copy_that_leaves_the_model_as_it_was(model):
    images = torch.rand(2, 3, 32, 32)
    before = model(images)
    fine = dilated(model)
    assert all(
        torch.equal(value, model.state_dict()[name]) for name, value in fine.state_dict().items()
    )
    assert not {p.data_ptr() for p in fine.parameters()} & {
        p.data_ptr() for p in model.parameters()
    }
    assert torch.equal(model(images), before) and not torch.allclose(
        fine(images), before, atol=1e-3
    )
    assert fine.training == model.training


def test_dilation_of_no_stage_is_the_network_itself_from_a_dilated_one_too(model):
    images = torch.rand(2, 3, 32, 32)
    for network in (model, dilated(model), dilated(model, ("layer2", "layer3", "layer4"))):
        assert torch.equal(dilated(network, ())(images), model(images))


@pytest.mark.parametrize(
    ("stages", "cells"), [((), 4), (("layer4",), 8), (("layer3", "layer4"), 16)], ids=str
)
def test_maps_of_a_dilated_network_sum_to_its_logit_less_the_bias(model, stages, cells):
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    fine = dilated(model, stages)
    maps = GradCAM(fine).evidence(images, [0, 3, 6])
    assert maps.shape == (3, cells, cells)
    expected = (fine(images) - fine.fc.bias)[range(3), [0, 3, 6]]
    torch.testing.assert_close(maps.sum((1, 2)), expected, rtol=1e-4, atol=1e-5)


def test_dilated_explains_what_was_made_in_inference_mode_and_refuses_other_stages(model):
    with torch.inference_mode():
        fine = dilated(model)
    assert GradCAM(fine).evidence(torch.rand(1, 3, 32, 32)).shape == (1, 8, 8)
    for stages in (("layer1",), ("fc",), ("layer4", "stem")):
        with pytest.raises(ValueError, match="cannot dilate .*choose among layer2, layer3, layer4"):
            dilated(model, stages)
    for other in (nn.ReLU(), torchvision.models.resnet18()):
        with pytest.raises(ValueError, match=r"cannot dilate a Re.*: give a network that resnet18"):
            dilated(other)
