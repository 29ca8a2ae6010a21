"""The configuration, the optimiser, the schedule, the loss, and the loop that learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as tv
from sklearn.metrics import accuracy_score, log_loss
from tools import CPU, assert_same_weights, shapes_dataset, small_net, states_of
from torch import nn

from helpers import training
from helpers.augmentation import AugmentedDataset
from helpers.data import Dataset
from helpers.model import resnet18
from helpers.support.loader import seed_epoch
from helpers.training import (
    TrainConfig,
    TrainingState,
    fit,
    make_criterion,
    make_optimizer,
    resize,
    training_loader,
)

SMALL = TrainConfig(epochs=4, batch_size=5, image_sizes=(16, 16, 24), seed=3)
UNCHANGED = {"padding": 0, "hole": 0, "degrees": 0, "flip": False, "mixed_precision": False}


@pytest.fixture
def data():
    return shapes_dataset(13)  # the last of three batches of 5 is smaller


class Quarters:
    """Images whose four quarters have a colour each, and a linear network of these colours.

    Attributes:
        x: (N, 12) what the linear layer is given.
        batches: the indices of the images of each training batch.
    """

    def __init__(self, labels):
        labels, rng = np.array(labels), np.random.default_rng(0)
        colours = rng.integers(0, 256, (len(labels), 2, 2, 3), dtype=np.uint8)
        images = colours.repeat(16, axis=1).repeat(16, axis=2)
        self.data = Dataset(images, labels, ("a", "b", "c"))
        self.x = colours.transpose(0, 3, 1, 2).reshape(len(labels), 12) / 255
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 3))
        self.model.register_forward_pre_hook(self._record)
        self.batches = []

    def _record(self, module, inputs):
        given = inputs[0][:, :, ::16, ::16].reshape(-1, 1, 12).numpy()
        matches = np.isclose(given, self.x, atol=1e-6).all(2)
        assert (matches.sum(1) == 1).all(), "an image is not as it was"
        self.batches.append(matches.argmax(1))

    def parameters(self):
        return [p.detach().double().numpy().copy() for p in self.model[2].parameters()]


def softmax(logits):
    exponentials = np.exp(logits)
    return exponentials / exponentials.sum(1, keepdims=True)


def test_two_epochs_are_sgd_nesterov_on_the_smoothed_loss_computed_in_numpy():
    quarters = Quarters([0, 2, 1, 1, 0, 2, 2])
    config = TrainConfig(
        epochs=2,
        batch_size=4,
        one_cycle=False,
        momentum=0.8,
        weight_decay=0.3,
        label_smoothing=0.2,
        peak_lr=0.5,
        **UNCHANGED,
    )
    weight, bias = quarters.parameters()
    history = fit(quarters.model, quarters.data, None, config, CPU)
    # Of unequal size: a mean over batches is not the mean over images.
    assert [len(batch) for batch in quarters.batches] == [4, 3, 4, 3]
    velocity_w, velocity_b = 0.0, 0.0
    for epoch in range(2):
        losses, hits = [], []
        batches = quarters.batches[2 * epoch : 2 * epoch + 2]
        assert sorted(np.concatenate(batches)) == list(range(7))
        for batch in batches:
            x, labels = quarters.x[batch], quarters.data.labels[batch]
            p, target = softmax(x @ weight.T + bias), 0.8 * np.eye(3)[labels] + 0.2 / 3
            losses += list(-(target * np.log(p)).sum(1))
            hits += list(p.argmax(1) == labels)
            # Weight decay: on the matrix, not on the bias.
            gradient_w = (p - target).T @ x / len(x) + 0.3 * weight
            gradient_b = (p - target).mean(0)
            velocity_w = 0.8 * velocity_w + gradient_w
            velocity_b = 0.8 * velocity_b + gradient_b
            weight = weight - 0.5 * (gradient_w + 0.8 * velocity_w)
            bias = bias - 0.5 * (gradient_b + 0.8 * velocity_b)
        assert history.train_loss[epoch] == pytest.approx(np.mean(losses), rel=1e-4)
        assert history.train_accuracy[epoch] == pytest.approx(np.mean(hits))
    found_weight, found_bias = quarters.parameters()
    np.testing.assert_allclose(found_weight, weight, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found_bias, bias, rtol=1e-4, atol=1e-6)


def test_class_weights_make_a_mean_over_images_of_the_smoothed_loss_times_their_share():
    quarters = Quarters([0, 0, 0, 1, 2, 2])
    config = TrainConfig(
        epochs=1,
        batch_size=4,
        peak_lr=1e-12,
        class_weights=(1.0, 2.0, 6.0),
        label_smoothing=0.3,
        **UNCHANGED,
    )
    weight, bias = quarters.parameters()
    history = fit(quarters.model, quarters.data, None, config, CPU)
    assert [len(batch) for batch in quarters.batches] == [4, 2]
    target = 0.7 * np.eye(3)[quarters.data.labels] + 0.1
    losses = -(target * np.log(softmax(quarters.x @ weight.T + bias))).sum(1)
    share = np.array([1, 1, 1, 2, 6, 6]) * 6 / 17  # their mean over the training images is 1
    # Over images, not over batches.
    assert history.train_loss[0] == pytest.approx((share * losses).mean(), rel=1e-5)


@pytest.mark.parametrize("weight", [1.0, 0.7])
def test_equal_class_weights_train_to_the_same_bits_as_none_and_unequal_ones_do_not(data, weight):
    config = replace(SMALL, epochs=1)
    nets, losses = [], []
    for weights in ((), (weight,) * 10, (2.0, *[1.0] * 9)):
        nets.append(small_net())
        history = fit(nets[-1], data, None, replace(config, class_weights=weights), CPU)
        losses.append(history.train_loss[0])
    assert losses[0] == losses[1] != losses[2]
    assert_same_weights(nets[0], nets[1])
    assert not torch.equal(nets[0].fc.weight, nets[2].fc.weight)


def test_nearly_equal_class_weights_give_nearly_the_same_loss_and_gradient(data):
    logits = torch.randn(13, 10, generator=torch.Generator().manual_seed(0))
    found = []
    for weights in ((), (*[1.0] * 9, 1 + 1e-7)):
        leaf = logits.clone().requires_grad_()
        criterion = make_criterion(data, replace(SMALL, class_weights=weights))
        loss = criterion(leaf, torch.from_numpy(data.labels))
        loss.backward()
        found.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("weights", [(), (0.7,) * 10])
def test_equal_class_weights_give_the_bits_of_pytorchs_own_loss(data, weights):
    logits = torch.randn(13, 10, generator=torch.Generator().manual_seed(0))
    labels = torch.from_numpy(data.labels)
    loss = make_criterion(data, replace(SMALL, class_weights=weights))(logits, labels)
    assert torch.equal(loss, F.cross_entropy(logits, labels, label_smoothing=0.1))


@pytest.mark.parametrize("weights", [(1.0, 2.0), (1.0,) * 9, (2.0,)], ids=str)
def test_class_weights_that_are_not_one_for_each_class_are_refused(data, weights):
    with pytest.raises(ValueError, match="class_weights must be 10 numbers, one for each class"):
        fit(small_net(), data, None, replace(SMALL, class_weights=weights), CPU)


def test_only_tensors_of_two_dimensions_decay():
    model = resnet18(width=16)
    groups = make_optimizer(model, SMALL).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    for name, module in model.named_modules():
        expected = SMALL.weight_decay if isinstance(module, (nn.Conv2d, nn.Linear)) else 0.0
        for part, parameter in module.named_parameters(recurse=False):
            assert decay[id(parameter)] == (0.0 if part == "bias" else expected), name


def learning_rates(config, steps_per_epoch):
    """The rate of each step and group, and the one after the last step."""
    state = TrainingState(nn.Linear(2, 2), config, steps_per_epoch, CPU)
    groups, rates = state.optimizer.param_groups, []
    for _ in range(config.epochs * steps_per_epoch):
        rates.append([group["lr"] for group in groups])
        state.optimizer.step()
        state.scheduler.step()
    assert [group["momentum"] for group in groups] == [config.momentum] * 2
    return np.array(rates), state.scheduler.get_last_lr()[0]


def test_learning_rate_rises_to_its_peak_and_falls_to_about_zero_in_straight_lines():
    # The peak is at step 0.2 * 40 - 1 = 7.
    rates, last = learning_rates(TrainConfig(epochs=3, peak_lr=0.4, warmup=0.2), 13)
    expected = np.concatenate([np.linspace(0.4 / 25, 0.4, 8), np.linspace(0.4, 0, 33)[1:-1]])
    np.testing.assert_allclose(rates, np.stack([expected] * 2, axis=1), atol=1e-5)
    assert last < 1e-5


@pytest.mark.parametrize(
    ("epochs", "steps", "options"),
    [
        (3, 13, {"peak_lr": 0.4}),
        (2, 391, {}),
        (10, 7, {"warmup": 0.5, "peak_lr": 0.02}),
        (4, 5, {"warmup": 0.0}),
        (4, 5, {"warmup": 0.95}),
        (1, 1, {}),
        (1, 2, {}),
        (2, 2, {"warmup": 0.3}),
        (3, 5, {"one_cycle": False, "peak_lr": 0.3}),
    ],
)
def test_learning_rates_are_those_of_pytorchs_one_cycle_schedule(epochs, steps, options):
    config, total_steps = TrainConfig(epochs=epochs, **options), epochs * steps + 1
    flat = {} if config.one_cycle else {"div_factor": 1, "final_div_factor": 1}
    oracle = torch.optim.lr_scheduler.OneCycleLR(
        torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=config.peak_lr),
        max_lr=config.peak_lr,
        total_steps=total_steps,
        pct_start=max(config.warmup, 1.5 / total_steps),  # at 1 / total it divides by zero
        anneal_strategy="linear",
        cycle_momentum=False,
        **flat,
    )
    expected = [oracle.get_last_lr()[0]]
    for _ in range(epochs * steps):
        oracle.optimizer.step()
        oracle.step()
        expected.append(oracle.get_last_lr()[0])
    rates, last = learning_rates(config, steps)
    tolerance = 1e-12 * config.peak_lr  # relative to the peak: the last rate is a difference
    np.testing.assert_allclose([*rates[:, 0], last], expected, rtol=1e-12, atol=tolerance)
    np.testing.assert_array_equal(rates[:, 0], rates[:, 1])


def test_without_the_cycle_the_learning_rate_stays():
    rates, last = learning_rates(TrainConfig(epochs=3, peak_lr=0.3, one_cycle=False), 5)
    np.testing.assert_allclose(rates, 0.3)
    assert last == pytest.approx(0.3)


@pytest.mark.parametrize(("epochs", "steps"), [(1, 1), (1, 2), (1, 4), (2, 2), (4, 1), (1, 5)])
def test_learning_rate_of_a_very_short_run_stays_between_zero_and_its_peak(epochs, steps):
    rates, last = learning_rates(TrainConfig(epochs=epochs), steps)
    assert rates.shape == (epochs * steps, 2)
    assert (0 < rates).all() and (rates <= 0.1 + 1e-9).all() and last < 1e-5


def test_without_momentum_it_is_plain_gradient_descent():
    quarters = Quarters([0, 1, 2])
    config = TrainConfig(epochs=1, batch_size=3, momentum=0.0, one_cycle=False, **UNCHANGED)
    config = replace(config, weight_decay=0.0, label_smoothing=0.0, peak_lr=0.5)
    weight, bias = quarters.parameters()
    fit(quarters.model, quarters.data, None, config, CPU)
    x, labels = quarters.x[quarters.batches[0]], quarters.data.labels[quarters.batches[0]]
    error = softmax(x @ weight.T + bias) - np.eye(3)[labels]
    np.testing.assert_allclose(quarters.parameters()[1], bias - 0.5 * error.mean(0), rtol=1e-4)


def test_image_sizes_apply_epoch_by_epoch_and_validation_keeps_the_full_size(data):
    seen, model = [], small_net().eval()  # which it must not stay
    model.register_forward_pre_hook(
        lambda module, inputs: seen.append((module.training, tuple(inputs[0].shape[2:])))
    )
    history = fit(model, data, data, replace(SMALL, epochs=3, image_sizes=(16, 24)), CPU)
    full, small, larger = (False, (32, 32)), (True, (16, 16)), (True, (24, 24))
    assert seen == [*[small] * 3, full, *[larger] * 3, full, *[larger] * 3, full]
    assert list(history.image_size) == [16, 24, 24]


def scores(model, data):
    """Unsmoothed loss and accuracy per image, from scikit-learn."""
    p = model(data.tensor()).double().softmax(1).detach().numpy()
    return log_loss(data.labels, p, labels=range(10)), accuracy_score(data.labels, p.argmax(1))


def test_history_names_every_epoch_and_scores_the_validation_set(data):
    model, rows = small_net(), []
    history = fit(model, data, data, replace(SMALL, epochs=2), CPU, log=rows.append)
    assert list(history) == [
        *("epoch", "image_size", "train_loss", "train_accuracy"),
        *("validation_loss", "validation_accuracy", "learning_rate", "seconds"),
    ]
    assert rows == history.to_dict("records")
    assert list(history.epoch) == [1, 2]
    assert not any(module.training for module in model.modules())
    loss, accuracy = scores(model, data)
    assert history.validation_loss.iloc[-1] == pytest.approx(loss, rel=1e-5)
    assert history.validation_accuracy.iloc[-1] == pytest.approx(accuracy)
    assert history.learning_rate[0] > 0.05 and history.learning_rate[1] < 1e-5
    assert (history.seconds < 60).all()
    without = fit(small_net(), data, None, replace(SMALL, epochs=2), CPU)
    assert without[["validation_loss", "validation_accuracy"]].isna().all(axis=None)
    assert list(without.train_loss) == list(history.train_loss)


def test_fit_hands_its_settings_on(data):
    still = TrainConfig(epochs=1, batch_size=13, peak_lr=1e-9, label_smoothing=0.4, **UNCHANGED)
    model, twin = resnet18(width=16), resnet18(width=16)
    twin.load_state_dict(model.state_dict())
    for net in (model, twin):
        net.fc.weight.data *= 20  # far from even probabilities, which smoothing would not change
    history = fit(model, data, None, still, CPU)
    assert not any(module.training for module in model.modules())
    # Batch norm sees the whole batch, in whatever order.
    log_p = twin.train()(data.tensor()).log_softmax(1)
    expected = -(0.6 * log_p[range(13), data.labels] + 0.4 * log_p.mean(1)).mean().item()
    assert history.train_loss[0] == pytest.approx(expected, rel=1e-4)


def test_training_is_on_the_default_device_where_none_is_given(data, monkeypatch):
    asked = []
    monkeypatch.setattr(training, "default_device", lambda: asked.append(1) or CPU)
    fit(small_net(), data, None, replace(SMALL, epochs=1))
    assert asked == [1]


def test_network_that_fit_returns_and_scores_is_the_average_over_all_steps(data):
    config, model, steps, calls = replace(SMALL, epochs=2, ema=0.75), small_net(), [], []

    def before_batch(module, inputs):
        if module is model and module.training:
            calls.append(len(steps))
            steps.append(states_of(module))

    model.register_forward_pre_hook(before_batch)
    history = fit(model, data, data, config, CPU, log=lambda row: steps.append(states_of(model)))
    assert calls == [0, 1, 2, 4, 5, 6]
    # The states after each of the six steps: the first is the start, the fifth the fourth again.
    steps = steps[1:4] + steps[5:]
    assert len(steps) == 6
    averaged = {n: value for n, value in model.state_dict().items() if value.is_floating_point()}
    for name, value in averaged.items():
        expected = steps[0][name]  # the first update copies
        for state in steps[1:]:
            expected = 0.75 * expected + 0.25 * state[name]
        torch.testing.assert_close(value, expected, msg=name)
    for name in ("fc.weight", "norm.running_mean", "norm.running_var"):
        last = steps[-1][name]
        assert not torch.allclose(model.state_dict()[name], last), f"{name} is the last step's"
    assert history.validation_loss[1] == pytest.approx(scores(model, data)[0], rel=1e-5)
    model.load_state_dict(steps[-1])
    assert history.validation_loss[1] != pytest.approx(scores(model, data)[0], rel=1e-4)


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "wanted", "dtype"),
    [
        (True, True, True, torch.bfloat16),
        (False, True, True, torch.bfloat16),
        (True, True, False, torch.float32),
        (False, False, True, torch.float32),
    ],
)
def test_mixed_precision_is_used_where_the_cpu_is_faster_with_it(
    data, monkeypatch, amx, avx512_bf16, wanted, dtype
):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16, raising=False)
    model, dtypes = small_net(), []
    model.register_forward_hook(lambda module, inputs, logits: dtypes.append(logits.dtype))
    history = fit(model, data, None, replace(SMALL, epochs=1, mixed_precision=wanted), CPU)
    assert dtypes == [dtype] * 3
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert 1 < history.train_loss[0] < 4


AUGMENTATIONS = {
    "padding": 1,
    "hole": 20,
    "degrees": 40.0,
    "flip": False,
    "trivial": True,
    "alternate_flip": True,
    "stronger_classes": ("ring", "star"),
}


@pytest.mark.parametrize(("name", "value"), AUGMENTATIONS.items(), ids=AUGMENTATIONS)
def test_each_setting_of_the_augmentation_reaches_the_images(name, value):
    data, draws = shapes_dataset(100), []
    usual = training_loader(data, SMALL, CPU).dataset
    changed = training_loader(data, replace(SMALL, **{name: value}), CPU).dataset
    expected = AugmentedDataset(data, TrainConfig(**{name: value}))
    for dataset in (usual, changed, expected):
        assert dataset.dataset is data
        dataset.seed(1)
        dataset.mirror_alternately(seed=0, epoch=0)
        draws.append(torch.stack([dataset[i][0] for i in range(100)]))
    assert torch.equal(draws[1], draws[2]) and not torch.equal(draws[0], draws[1])


def test_order_and_augmentation_depend_on_seed_and_epoch_alone(data):
    def draw(loader, seed, epoch):
        seed_epoch(loader, seed, epoch)
        return next(iter(loader))

    config = replace(SMALL, batch_size=13)
    loader, fresh = (training_loader(data, config, CPU) for _ in range(2))
    first, second = draw(loader, 0, 0), draw(loader, 0, 1)
    alone = draw(fresh, 0, 1)
    assert torch.equal(alone[0], second[0]) and torch.equal(alone[1], second[1])
    repeats = torch.equal(first[0].sort(0)[0], second[0].sort(0)[0])
    assert not repeats, "the augmentation repeats itself"
    assert not torch.equal(first[1], second[1]), "the order repeats itself"
    assert not torch.equal(first[0], draw(loader, 1, 0)[0]), "the seed changes nothing"


def test_alternating_flip_changes_sides_from_epoch_to_epoch_in_a_loader_too():
    data = shapes_dataset(200)
    config = TrainConfig(batch_size=200, padding=0, hole=0, degrees=0, alternate_flip=True)
    loader, epochs = training_loader(data, config, CPU), []
    for epoch in range(3):
        seed_epoch(loader, config.seed, epoch)
        drawn, labels = next(iter(loader))
        assert sorted(labels.tolist()) == sorted(data.labels.tolist())
        drawn = {image.tobytes() for image in drawn.permute(0, 2, 3, 1).contiguous().numpy()}
        is_mirrored = np.array([image[:, ::-1].tobytes() in drawn for image in data.images])
        is_whole = np.array([image.tobytes() in drawn for image in data.images])
        assert (is_mirrored ^ is_whole).all()
        epochs.append(is_mirrored)
    assert 70 < epochs[0].sum() < 130
    np.testing.assert_array_equal(epochs[1], ~epochs[0])
    np.testing.assert_array_equal(epochs[2], epochs[0])


def test_fit_draws_each_epoch_anew_with_the_seed_of_its_run(data):
    def inputs_of(seed):
        model, inputs = small_net(), []
        model.register_forward_pre_hook(lambda module, given: inputs.append(given[0].clone()))
        fit(model, data, None, replace(SMALL, epochs=2, image_sizes=(32,), seed=seed), CPU)
        return torch.cat(inputs)

    first, again, other = inputs_of(3), inputs_of(3), inputs_of(4)
    assert torch.equal(first, again) and not torch.equal(first, other)
    loader = training_loader(data, SMALL, CPU)
    expected = []
    for epoch in range(2):
        seed_epoch(loader, 3, epoch)
        expected += [images / 255 for images, _ in loader]
    assert torch.equal(first, torch.cat(expected))


@pytest.mark.parametrize("size", [16, 24, 48])
def test_resize_is_torchvisions_antialiased_one(size):
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = tv.resize(images, [size, size], antialias=True)
    torch.testing.assert_close(resize(images, size), expected)
    assert resize(images, 32) is images


@pytest.mark.parametrize("part", ["train", "validation"])
def test_no_images_are_refused_before_anything_is_learned(data, part):
    nothing, model = data.subset(slice(0)), small_net()
    model.register_forward_pre_hook(lambda *_: pytest.fail("it began to learn"))
    with pytest.raises(ValueError, match="no images"):
        fit(model, *((nothing, data) if part == "train" else (data, nothing)), SMALL, CPU)


@pytest.mark.parametrize("part", ["train", "validation"])
def test_images_of_floats_are_refused(data, part):
    floats = replace(data, images=(data.images / 255).astype(np.float32))
    config = replace(SMALL, epochs=1, hole=0, degrees=0)
    with pytest.raises(ValueError, match="uint8.*float32"):
        fit(small_net(), *((floats, data) if part == "train" else (data, floats)), config, CPU)


WRONG_LABELS = {"too large": 10, "negative": -1, "what PyTorch passes over": -100}


@pytest.mark.parametrize("part", ["train", "validation"])
@pytest.mark.parametrize("label", WRONG_LABELS.values(), ids=WRONG_LABELS)
def test_labels_that_are_no_class_are_refused_before_anything_is_learned(data, part, label):
    wrong, model = replace(data, labels=np.array([label, *data.labels[1:]])), small_net()
    model.register_forward_pre_hook(lambda *_: pytest.fail("it began to learn"))
    with pytest.raises(ValueError, match="13 labels from .* do not fit 13 images of 10 classes"):
        fit(model, *((wrong, data) if part == "train" else (data, wrong)), SMALL, CPU)


@pytest.mark.parametrize("count", [12, 14])
def test_another_number_of_labels_than_images_is_refused(data, count):
    wrong = replace(data, labels=np.resize(data.labels, count))
    with pytest.raises(ValueError, match=f"{count} labels from 0 to 9 do not fit 13 images"):
        fit(small_net(), wrong, None, SMALL, CPU)


@pytest.mark.parametrize("num_classes", [9, 12])
def test_network_of_other_classes_is_refused(data, num_classes):
    model = resnet18(num_classes, width=16)
    with pytest.raises(ValueError, match=rf"logits \(5, {num_classes}\) do not fit .* 10 classes"):
        fit(model, data, None, SMALL, CPU)
