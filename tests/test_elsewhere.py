"""What a model on a GPU is asked for in the notebooks, with the GPU played (see elsewhere.py): a real one is for test_gpu.py."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from elsewhere import elsewhere
from PIL import Image

from helpers import explanation, shapes
from helpers.data import Dataset
from helpers.evaluation import predict
from helpers.gradcam import GradCAM
from helpers.interactive.explorer import explore
from helpers.interactive.photo import explain_photo
from helpers.interactive.playground import play
from helpers.model import dilated, load_pretrained, resnet18
from helpers.training import TrainConfig, fit

if torch.cuda.is_available():
    pytest.skip("a real GPU is here: pytest -m gpu", allow_module_level=True)

DATA = Dataset(**shapes.generate(40, seed=0), classes=shapes.CLASSES)


@pytest.fixture
def gpu():
    with elsewhere():
        yield torch.device("cuda")


def test_the_played_gpu_refuses_what_a_real_one_would(gpu):
    model = load_pretrained("shapes10").to(gpu)
    with pytest.raises(RuntimeError, match="same device"):
        model(DATA.tensor())
    with pytest.raises(TypeError, match="numpy"):
        model(DATA.tensor().to(gpu)).detach().numpy()


@pytest.mark.parametrize("layer", ["layer4", "layer3"])
def test_maps_lie_where_the_images_do(gpu, layer):
    expected = GradCAM(load_pretrained("shapes10"), layer).evidence(DATA.tensor(), DATA.labels)
    cam = GradCAM(load_pretrained("shapes10").to(gpu), layer)
    here, there = cam.evidence(DATA.tensor(), DATA.labels), cam.evidence(DATA.tensor().to(gpu), DATA.labels)
    assert here.device.type == "cpu" and there.device.type == "cuda"
    assert torch.equal(here, expected) and torch.equal(there.cpu(), expected)
    assert cam(DATA.tensor(), DATA.labels).device.type == "cpu"


def test_measures_take_images_from_elsewhere(gpu):
    model = load_pretrained("shapes10").to(gpu)
    maps = explanation.all_maps(GradCAM(dilated(model)), DATA.tensor(), len(DATA.classes))
    orders = explanation.deletion_orders(explanation.of_class(maps, DATA.labels), np.random.default_rng(0))
    gains = explanation.deletion_gains(model, DATA.tensor(), DATA.labels, orders, at_once=16)
    assert gains["own map"].mean() > 0.05
    assert explanation.randomisation(model, DATA.tensor(), DATA.labels, parts=("fc",))["as trained"].loc["same", "mean"] > 0.999
    cams, pairs = {"layer4": GradCAM(model)}, shapes.generate_pairs(4, seed=2)
    assert explanation.pointing_games(cams, DATA, pairs)["layer4", "one object"].mean() > 0.3


def test_a_network_that_was_trained_there_is_explained(gpu):
    torch.manual_seed(0)
    model = resnet18(width=16)
    with pytest.warns(UserWarning, match="cuda|CUDA"):  # mixed precision finds no GPU
        fit(model, DATA, None, TrainConfig(epochs=1, batch_size=20, image_sizes=(16,)), gpu)
    assert next(model.parameters()).device.type == "cuda"
    assert GradCAM(dilated(model))(DATA.tensor()).shape == (40, 32, 32)


def test_explorer_game_and_photo_take_a_model_from_elsewhere(gpu, tmp_path):
    model = load_pretrained("shapes10").to(gpu)
    found = predict(model, DATA)
    predictions = replace(found, labels=np.where(np.arange(40) < 5, (found.predicted + 1) % 10, found.predicted))  # five mistakes
    assert "alive" in explore(model, {"test": (DATA, predictions)}, count=8).data
    assert "alive" in play(model, DATA, predictions, rounds=4).data
    path = tmp_path / "photo.png"
    Image.fromarray(DATA.images[0]).save(path)
    assert "sure" in explain_photo(model, path, DATA.classes)[1]
