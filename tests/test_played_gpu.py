"""What a model on a GPU is asked for in the notebooks, with the GPU played (see played_gpu.py).

What only a real one shows is in test_gpu.py.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from played_gpu import played_gpu
from tools import shapes_dataset

from helpers import shapes, similarity
from helpers.evaluation import predict
from helpers.gradcam import GradCAM
from helpers.interactive.explorer import explore
from helpers.interactive.game import play
from helpers.interactive.photo import explain_photo
from helpers.model import dilated, load_pretrained, resnet18
from helpers.studies import trust
from helpers.training import TrainConfig, fit

if torch.cuda.is_available():
    pytest.skip("a real GPU is here: pytest -m gpu", allow_module_level=True)

DATA = shapes_dataset(40)


@pytest.fixture(params=["cuda", "mps"])
def gpu(request):
    with played_gpu(request.param):
        yield torch.device(request.param)


def test_the_played_gpu_refuses_what_a_real_one_would(gpu):
    model = load_pretrained("shapes10").to(gpu)
    with pytest.raises(RuntimeError, match="same device"):
        model(DATA.tensor())
    with pytest.raises(TypeError, match="numpy"):
        model(DATA.tensor().to(gpu)).detach().numpy()
    if gpu.type == "mps":
        with pytest.raises(TypeError, match="float64"):
            DATA.tensor().to(gpu).double()


@pytest.mark.parametrize("layer", ["layer4", "layer3"])
def test_maps_lie_where_the_images_do(gpu, layer):
    images, labels = DATA.tensor(), DATA.labels
    expected = GradCAM(load_pretrained("shapes10"), layer).evidence(images, labels)
    cam = GradCAM(load_pretrained("shapes10").to(gpu), layer)
    here, there = cam.evidence(images, labels), cam.evidence(images.to(gpu), labels)
    assert here.device.type == "cpu" and there.device.type == gpu.type
    assert torch.equal(here, expected) and torch.equal(there.cpu(), expected)
    assert cam(images, labels).device.type == "cpu"


@pytest.mark.filterwarnings("ignore:.*(cuda|CUDA)")  # mixed precision finds no GPU
def test_measures_take_images_from_elsewhere(gpu):
    model, images, labels = load_pretrained("shapes10").to(gpu), DATA.tensor(), DATA.labels
    maps = similarity.all_maps(GradCAM(dilated(model)), images, len(DATA.classes))
    own = maps[torch.arange(len(maps)), torch.as_tensor(labels)]
    coarse = trust.maps_of(model, images, labels)["own map"]
    torch.testing.assert_close(4 * own[:, ::2, ::2], coarse)
    deleted = trust.deletion(model, images[:4], labels[:4]).set_index(["paint", "order"])
    assert deleted.loc[("grey", "random order"), "own ahead"] > 0.05
    likeness = trust.randomisation(model, images[:4], labels[:4], 1).set_index(["part", "map"])
    assert likeness.loc[("none", "own map"), "same"] > 0.999
    assert trust.score(model, shapes.add_tag, DATA)["on object without mark"] > 0.9


@pytest.mark.filterwarnings("ignore:.*(cuda|CUDA)")  # mixed precision finds no GPU
@pytest.mark.parametrize("weights", [(), (2.0, *[1.0] * 9)], ids=["alike", "class weights"])
def test_a_network_that_was_trained_there_is_scored_saved_and_explained(gpu, tmp_path, weights):
    config = TrainConfig(epochs=1, batch_size=20, image_sizes=(16,), ema=0.9, class_weights=weights)
    devices = set()
    for _ in range(2):  # the second one goes on from the first one's end
        torch.manual_seed(0)
        model = resnet18(width=16)
        model.register_forward_hook(lambda *given: devices.add(given[-1].device.type))
        history = fit(model, DATA, DATA, config, gpu, tmp_path / "run.pt")
    assert devices == {gpu.type}
    assert {p.device.type for p in model.parameters()} == {gpu.type}
    assert {p.grad.device.type for p in model.parameters() if p.grad is not None} <= {gpu.type}
    assert history.validation_loss[0] == pytest.approx(predict(model, DATA).loss, rel=1e-4)
    assert GradCAM(dilated(model))(DATA.tensor()).shape == (40, 32, 32)


def test_explorer_game_and_photo_take_a_model_from_elsewhere(gpu, tmp_path):
    model = load_pretrained("shapes10").to(gpu)
    found = predict(model, DATA)
    is_mistaken = np.arange(40) < 5
    labels = np.where(is_mistaken, (found.predicted + 1) % 10, found.predicted)
    predictions = replace(found, labels=labels)
    assert "alive" in explore(model, {"test": (DATA, predictions)}, count=8).data
    assert "alive" in play(model, DATA, predictions, rounds=4).data
    path = tmp_path / "photo.png"
    Image.fromarray(DATA.images[0]).save(path)
    assert "sure" in explain_photo(model, path, DATA.classes)[1]
