import contextlib
import gc
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tools import resnet_with_lively_norms
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint
from torchvision.models import SwinTransformer, VisionTransformer

from helpers.gradcam import GradCAM, as_heatmaps
from helpers.model import resnet18
from helpers.support.device import unwrapped

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
STAGES = ["layer1", "layer2", "layer3", "layer4"]


@pytest.fixture
def model():
    return resnet_with_lively_norms()


def tiny_net(*fc_weights, inplace=False):
    """Images -> one channel, their mean -> ReLU -> pooling -> a logit for each of these weights."""
    conv = nn.Conv2d(3, 1, 1, bias=False)
    conv.weight.data.fill_(1 / 3)
    fc = nn.Linear(1, len(fc_weights))
    fc.weight.data = torch.tensor(fc_weights).view(-1, 1)
    fc.bias.data.zero_()
    return nn.Sequential(conv, nn.ReLU(inplace), nn.AdaptiveAvgPool2d(1), nn.Flatten(), fc)


def captums(model, layer, images, class_number):
    """The map of one class according to Captum."""
    reference = LayerGradCam(model.eval(), model.get_submodule(layer))
    return reference.attribute(images, class_number, relu_attributions=False)[:, 0].detach()


# what a map is


def test_map_at_layer4_sums_to_the_logit_less_its_bias(model):
    maps = GradCAM(model).evidence(IMAGES, torch.arange(10).expand(3, 10))
    logits = model.eval()(IMAGES)
    assert_close(maps.sum((2, 3)), logits - model.fc.bias, rtol=1e-4, atol=1e-5)


def test_map_at_layer4_is_the_class_activation_map_divided_by_the_cells(model):
    kept = []
    layer = model.eval().layer4
    handle = layer.register_forward_hook(lambda module, inputs, output: kept.append(output))
    predicted = model(IMAGES).argmax(1)
    handle.remove()
    expected = torch.einsum("nc,nchw->nhw", model.fc.weight[predicted], kept[0]) / 16
    assert_close(GradCAM(model).evidence(IMAGES), expected.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layer", [*STAGES, "layer3.0.conv1", "stem"])
def test_evidence_equals_captum_for_every_class(model, layer):
    cam = GradCAM(model, layer)
    together = cam.evidence(IMAGES, torch.arange(10).expand(3, 10))
    for c in range(10):
        assert_close(together[:, c], captums(model, layer, IMAGES, c), rtol=1e-3, atol=1e-6)
    for c in (0, 9):
        alone = cam.evidence(IMAGES, c)
        assert_close(alone, captums(model, layer, IMAGES, c), rtol=1e-3, atol=1e-6)


def test_batch_of_one_and_an_image_that_is_not_square_equal_captum(model):
    images = torch.rand(1, 3, 24, 40, generator=torch.Generator().manual_seed(1))
    maps = GradCAM(model, "layer3").evidence(images, [[1, 8]])
    assert maps.shape == (1, 2, 6, 10)
    for k, c in enumerate((1, 8)):
        assert_close(maps[:, k], captums(model, "layer3", images, c), rtol=1e-3, atol=1e-6)


def test_difference_map_sums_to_the_margin_less_the_difference_of_the_biases(model):
    pairs = [(2, 7), (0, 1), (9, 3)]
    maps = GradCAM(model).evidence(IMAGES, pairs)
    scores = model.eval()(IMAGES) - model.fc.bias
    expected = torch.stack([scores[n, a] - scores[n, b] for n, (a, b) in enumerate(pairs)])
    difference = (maps[:, 0] - maps[:, 1]).sum((1, 2))
    assert_close(difference, expected, rtol=1e-4, atol=1e-5)


def test_maps_of_a_tiny_net_by_hand():
    images = torch.zeros(1, 3, 2, 2)
    images[0, :, 0, 1] = 1.0
    cam = GradCAM(tiny_net(8.0, -8.0, 0.0), "0")
    # One cell of four is positive: its gradient through the ReLU is 8 / 4, the mean over all four
    # cells 8 / 16.
    raw = cam.evidence(images, [[0, 1, 2]])[0]
    assert raw.tolist() == [[[0, 0.5], [0, 0]], [[0, -0.5], [0, 0]], [[0, 0], [0, 0]]]
    # All-negative and constant zero maps are blank, never NaN.
    heat = cam(images, [[0, 1, 2]])[0]
    assert heat.tolist() == [[[0, 1], [0, 0]], [[0, 0], [0, 0]], [[0, 0], [0, 0]]]
    assert cam(torch.ones(1, 3, 2, 2), 0).tolist() == [[[1, 1], [1, 1]]]


@pytest.mark.parametrize("shape", [(32, 32), (16, 40)])
def test_heatmap_is_the_positive_evidence_upsampled_and_divided_by_its_maximum(model, shape):
    images = F.interpolate(IMAGES, shape)
    classes = [[1, 2], [3, 4], [5, 6]]
    raw = GradCAM(model, "layer3").evidence(images, classes)
    heat = GradCAM(model, "layer3")(images, classes)
    assert raw.shape == (3, 2, shape[0] // 4, shape[1] // 4)
    positive = raw.clamp(min=0)
    large = F.interpolate(positive, shape, mode="bilinear", align_corners=False)
    for n in range(3):
        for k in range(2):
            expected = large[n, k] / large[n, k].max()
            assert_close(heat[n, k], expected, rtol=1e-4, atol=1e-6)
    assert heat.amax((2, 3)).tolist() == [[1, 1]] * 3


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_heatmap_does_not_depend_on_the_scale_of_the_logits(factor):
    expected = GradCAM(tiny_net(1.0), "0")(IMAGES[:1], 0)
    assert_close(GradCAM(tiny_net(factor), "0")(IMAGES[:1], 0), expected)


def test_heatmap_of_nan_is_not_drawn_as_a_blank_one():
    maps = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
    maps[1, 2, 2] = float("nan")
    heat = as_heatmaps(maps, (8, 8))
    assert heat[0].isfinite().all() and heat[1].isnan().all()


# which classes


def test_each_image_gets_its_own_classes(model):
    classes = torch.tensor([[4, 0], [9, 9], [2, 7]])
    cam = GradCAM(model, "layer3")
    for method in (cam, cam.evidence):
        both = method(IMAGES, classes)
        for k in range(2):
            one = method(IMAGES, classes[:, k])
            assert_close(both[:, k], one, rtol=1e-4, atol=1e-6)
        for n in range(3):
            alone = method(IMAGES[n : n + 1], int(classes[n, 0]))
            assert_close(both[n, :1], alone, rtol=1e-4, atol=1e-6)


FIVES = {
    "int": 5,
    "NumPy's int": np.int64(5),
    "list": [5] * 3,
    "tuple": (5, 5, 5),
    "array": np.full(3, 5),
    "int32 array": np.full(3, 5, np.int32),
    "tensor without dimensions": torch.tensor(5),
    "uint8 tensor": torch.full((3,), 5).byte(),
}


@pytest.mark.parametrize("classes", FIVES.values(), ids=FIVES)
def test_classes_may_be_numbers_lists_or_arrays(model, classes):
    cam = GradCAM(model)
    expected = cam.evidence(IMAGES, torch.full((3,), 5))
    assert torch.equal(cam.evidence(IMAGES, classes), expected)
    assert torch.equal(cam.evidence(IMAGES, np.full((3, 1), 5))[:, 0], expected)


def test_no_classes_means_the_predicted_ones(model):
    with torch.no_grad():
        model.fc.weight.mul_(-30)
        images = torch.cat([IMAGES[:1], IMAGES[:1] * 0.1, IMAGES[:1].round()])
        predicted = model.eval()(images).argmax(1)
    assert len(set(predicted.tolist())) > 1
    assert torch.equal(GradCAM(model)(images), GradCAM(model)(images, predicted))


def test_classes_may_have_been_predicted_in_inference_mode(model):
    with torch.inference_mode():
        predicted = model.eval()(IMAGES).topk(2).indices
    cam = GradCAM(model)
    expected = cam.evidence(IMAGES, predicted.tolist())
    assert torch.equal(cam.evidence(IMAGES, predicted), expected)


def test_all_classes_share_one_forward_pass(model):
    passes = []
    model.fc.register_forward_hook(lambda *_: passes.append("forward"))
    model.fc.register_full_backward_hook(lambda *_: passes.append("backward"))
    GradCAM(model, "layer3").evidence(IMAGES, torch.arange(10).expand(3, 10))
    assert passes == ["forward"] + ["backward"] * 10


# which networks, and in which mode


def test_in_place_operation_after_the_layer_changes_nothing():
    maps = []
    for inplace in (False, True):
        net = tiny_net(2.0, -3.0, inplace=inplace)
        net[0].bias = nn.Parameter(torch.tensor([-0.5]))  # the ReLU overwrites negative activations
        maps.append(GradCAM(net, "0").evidence(IMAGES, 1))
    assert torch.equal(*maps)
    mean = IMAGES.mean(1) - 0.5
    weight = -3.0 * (mean > 0).float().mean((1, 2), keepdim=True) / 1024
    assert_close(maps[0], weight * mean, rtol=1e-4, atol=1e-8)


MODES = [torch.no_grad, torch.enable_grad, torch.inference_mode, contextlib.nullcontext]


@pytest.mark.parametrize("mode", MODES)
def test_callers_grad_mode_neither_matters_nor_changes(model, mode):
    expected = GradCAM(model, "layer3")(IMAGES, 3)
    with mode():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        images = IMAGES.clone()  # in inference mode, an inference tensor
        heat = GradCAM(model, "layer3")(images, 3)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
    assert torch.equal(heat, expected)
    assert not heat.requires_grad


def test_frozen_network_has_the_same_maps(model):
    expected = GradCAM(model, "layer2")(IMAGES, 3)
    assert torch.equal(GradCAM(model.requires_grad_(False), "layer2")(IMAGES, 3), expected)


def test_half_precision_network_has_nearly_the_same_maps(model):
    expected = GradCAM(model, "layer3").evidence(IMAGES, 3)
    maps = GradCAM(model.half(), "layer3").evidence(IMAGES.half(), 3)
    assert maps.dtype == torch.float32
    assert_close(maps, expected, rtol=0.02, atol=0.02 * float(expected.abs().max()))


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


def compiled_in_parts(model):
    model.layer3.compile(backend="eager")
    model.layer4 = torch.compile(model.layer4, backend="eager")
    return model


WRAPPERS = {
    "compile": partial(torch.compile, backend="eager"),
    "compile in place": compiled_in_place,
    "compile a part": compiled_in_parts,
    "DataParallel": nn.DataParallel,
    "AveragedModel": AveragedModel,
    "two of them": lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrapped_model_has_the_maps_of_the_model(model, wrap):
    expected = GradCAM(model.eval(), "layer3").evidence(IMAGES, 3)
    wrapped = wrap(model).eval()
    logits = wrapped(IMAGES)
    module = unwrapped(wrapped).layer3  # AveragedModel holds a copy of the model
    for layer in ("layer3", "module.layer3", "module._orig_mod.layer3", module):
        assert torch.equal(GradCAM(wrapped, layer).evidence(IMAGES, 3), expected)
    assert torch.equal(wrapped(IMAGES), logits)


def test_model_among_several_processes_has_the_maps_of_the_model(model):
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        assert torch.equal(GradCAM(wrapped)(IMAGES, 3), GradCAM(model)(IMAGES, 3))
    finally:
        torch.distributed.destroy_process_group()


def test_attribute_called_module_is_no_wrapper(model):
    class Negative(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = model

        def forward(self, images):
            return -self.module(images)

    maps = GradCAM(Negative(), "module.layer3").evidence(IMAGES, 3)
    assert torch.equal(maps, -GradCAM(model, "layer3").evidence(IMAGES, 3))


@pytest.mark.filterwarnings("ignore")  # tracing is an old way, but people have such files
def test_traced_or_scripted_model_is_refused_by_name(model):
    script = torch.jit.script(nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten()))
    for hidden, layer in ((torch.jit.trace(model.eval(), IMAGES), "layer4"), (script, "0")):
        with pytest.raises(ValueError, match="traced or scripted .*: give what it was made of"):
            GradCAM(hidden, layer)


def test_layer_may_be_a_module_or_a_list_of_one(model):
    expected = GradCAM(model, "layer3").evidence(IMAGES, 3)
    for layer in (model.layer3, [model.layer3], ["layer3"], (model.layer3,)):
        assert torch.equal(GradCAM(model, layer).evidence(IMAGES, 3), expected)
    model.same = model.layer3
    assert torch.equal(GradCAM(model, "same").evidence(IMAGES, 3), expected)


def test_anything_but_one_layer_of_the_model_is_refused(model):
    for wrong in ([model.layer3, model.layer4], [], None, 4, nn.ReLU(), model):
        with pytest.raises(ValueError, match="give one layer .* its name or the module; .*stem"):
            GradCAM(model, wrong)


class OpensModes(nn.Module):
    """The network, with its stages and the pooling in gradient modes of its own, and a bypass."""

    def __init__(self, net, mode):
        super().__init__()
        self.net, self.mode = net, mode

    def forward(self, images):
        net = self.net
        with self.mode():
            below = net.layer1(net.stem(net.normalise(images)))
            middle = net.layer3(net.layer2(below))
        x = net.layer4(middle)
        with self.mode():
            bypass = below.mean((2, 3)).repeat(1, 8) + middle.amax((2, 3)).repeat(1, 2)
            pooled = x.mean((2, 3)) * bypass
        return net.fc(pooled)


NO_GRAD = partial(torch.set_grad_enabled, False)
OWN_MODES = [torch.no_grad, NO_GRAD, torch.enable_grad, torch.inference_mode]


@pytest.mark.parametrize("mode", OWN_MODES)
@pytest.mark.parametrize("layer", ["stem", "layer2.0", "layer3", "layer4"])
def test_gradient_mode_that_the_model_opens_itself_changes_no_map(model, layer, mode):
    plain = OpensModes(model, contextlib.nullcontext)
    expected = captums(plain, f"net.{layer}", IMAGES, 3)
    maps = GradCAM(OpensModes(model, mode), f"net.{layer}").evidence(IMAGES, 3)
    assert_close(maps, expected, rtol=1e-3, atol=1e-6)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("mode", OWN_MODES)
def test_gradient_mode_around_the_whole_forward_pass_changes_no_map(model, mode):
    expected = GradCAM(model, "layer3").evidence(IMAGES, 3)
    model.forward = mode()(model.forward)
    assert torch.equal(GradCAM(model, "layer3").evidence(IMAGES, 3), expected)


def test_model_may_take_gradients_itself_below_the_layer():
    class Edges(nn.Module):
        def forward(self, images):
            with torch.enable_grad():
                images = images.detach().requires_grad_()
                return torch.autograd.grad((images**3).sum(), images)[0]

    upper = tiny_net(1.0, -2.0)
    expected = GradCAM(upper, "0", scale_checked=False).evidence(3 * IMAGES**2, 1)
    assert_close(GradCAM(nn.Sequential(Edges(), upper), "1.0").evidence(IMAGES, 1), expected)


class Checkpoints(nn.Module):
    def __init__(self, net, reentrant):
        super().__init__()
        self.net, self.reentrant = net, reentrant

    def forward(self, images):
        x = self.net.layer1(self.net.stem(self.net.normalise(images)))
        upper = nn.Sequential(self.net.layer2, self.net.layer3, self.net.layer4)
        x = checkpoint(upper, x, use_reentrant=self.reentrant)
        return self.net.fc(x.mean((2, 3)))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("layer", ["layer1", "layer2", "layer4"])
def test_checkpointed_model_has_its_maps_or_one_line_that_says_why_not(model, layer, frozen):
    model.requires_grad_(not frozen)
    expected = GradCAM(model, layer).evidence(IMAGES, 3)
    cam = GradCAM(Checkpoints(model, False), f"net.{layer}")
    assert torch.equal(cam.evidence(IMAGES, 3), expected)
    with pytest.raises(
        ValueError, match="no gradient leads .*: switch off .*checkpoints"
    ) as caught:
        GradCAM(Checkpoints(model, True), f"net.{layer}").evidence(IMAGES, 3)
    assert "\n" not in str(caught.value)


def test_detached_layer_is_refused_in_one_line():
    class Detached(nn.Module):
        def forward(self, x):
            return x.detach()

    for frozen in (True, False):
        net = nn.Sequential(nn.Identity(), Detached(), nn.Flatten(), nn.Linear(3072, 2))
        with pytest.raises(ValueError, match="no gradient leads .*: switch off what detaches"):
            GradCAM(net.requires_grad_(not frozen), "0")(IMAGES)


class Returns(nn.Module):
    def __init__(self, net, pack):
        super().__init__()
        self.net, self.pack = net, pack

    def forward(self, images):
        return self.pack(self.net(images))


PACKED = {
    "tuple": (lambda logits: (logits, 0), lambda out: out[0]),
    "dict": (lambda logits: {"logits": logits}, lambda out: out["logits"]),
    "object": (lambda logits: SimpleNamespace(logits=logits), lambda out: out.logits),
}


@pytest.mark.parametrize(("pack", "take"), PACKED.values(), ids=PACKED)
def test_logits_are_taken_out_of_what_the_model_returns(model, pack, take):
    packed = Returns(model, pack)
    maps = GradCAM(packed, "net.layer3", output=take).evidence(IMAGES, 3)
    assert torch.equal(maps, GradCAM(model, "layer3").evidence(IMAGES, 3))
    with pytest.raises(ValueError, match=r"must return logits .*got \w+: .* output=, a function"):
        GradCAM(packed, "net.layer3").evidence(IMAGES, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_maps_under_autocast_are_float32_and_sum_to_its_logits(model, dtype):
    with torch.autocast("cpu", dtype=dtype):
        maps = GradCAM(model).evidence(IMAGES, 3)
        logits = model.eval()(IMAGES)
    assert logits.dtype == dtype and maps.dtype == torch.float32
    tolerance = 4 * torch.finfo(dtype).eps * float(logits.abs().max())
    expected = (logits.float() - model.fc.bias)[:, 3].detach()
    assert_close(maps.sum((1, 2)), expected, rtol=0, atol=tolerance)
    exact = GradCAM(model).evidence(IMAGES, 3)
    assert_close(maps, exact, rtol=0, atol=4 * torch.finfo(dtype).eps * float(exact.abs().max()))


@pytest.fixture
def swin():
    torch.manual_seed(0)
    return SwinTransformer([4, 4], 16, [1, 1], [2, 4], [4, 4], num_classes=10).eval()


def test_layer_with_channels_last_is_explained_with_reshape_and_refused_without(swin):
    images = IMAGES[:, :, :24]  # not square
    kept = []
    handle = swin.features[3].register_forward_hook(lambda module, inputs, out: kept.append(out))
    scores = swin(images)[:, 2]
    handle.remove()
    (gradients,) = torch.autograd.grad(scores.sum(), kept[0])
    expected = torch.einsum("nhwc,nc->nhw", kept[0], gradients.mean((1, 2))).detach()
    cam = GradCAM(swin, "features.3", reshape=lambda out: out.permute(0, 3, 1, 2))
    assert_close(cam.evidence(images, 2), expected)
    assert cam(images).shape == (3, 24, 32)
    for size in (IMAGES, images, IMAGES[..., :24]):
        with pytest.raises(ValueError, match=r"channels last: say so with reshape=lambda.*0, 3, 1"):
            GradCAM(swin, "features.3").evidence(size)


def test_as_many_channels_as_rows_are_questioned_only_where_layernorms_are(swin):
    with pytest.raises(ValueError, match=r"\(3, 16, 16, 16\) may have its channels last"):
        GradCAM(swin, "features.0").evidence(F.interpolate(IMAGES, (64, 64)))
    net = nn.Sequential(nn.Conv2d(3, 32, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert GradCAM(net, "0").evidence(IMAGES).shape == (3, 32, 32)


def test_tokens_are_explained_with_reshape_and_refused_without():
    torch.manual_seed(0)
    vit = VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=10).eval()
    nn.init.normal_(vit.heads.head.weight)
    layer, kept = "encoder.layers.encoder_layer_1.ln_1", []
    handle = vit.get_submodule(layer).register_forward_hook(lambda *args: kept.append(args[2]))
    score = vit(IMAGES)[:, 2].sum()
    handle.remove()
    (gradients,) = torch.autograd.grad(score, kept[0])
    patches, weights = kept[0].detach()[:, 1:], gradients[:, 1:].mean(1)
    cam = GradCAM(vit, layer, reshape=lambda out: out[:, 1:].mT.unflatten(2, (4, 4)))
    for i, row in enumerate(cam.evidence(IMAGES, 2).unbind(1)):
        by_hand = torch.einsum("npc,nc->np", patches[:, 4 * i : 4 * i + 4], weights)
        assert_close(row, by_hand, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r"got \(3, 17, 32\): choose another, .* reshape="):
        GradCAM(vit, layer).evidence(IMAGES)


def test_images_of_another_range_are_taken_where_the_network_wants_them(model):
    class Shifted(nn.Sequential):
        def forward(self, images):
            return self[0](images / 255)

    cam = GradCAM(Shifted(model), "0.layer3", scale_checked=False)
    expected = GradCAM(model, "layer3").evidence(IMAGES, 3)
    assert_close(cam.evidence(IMAGES * 255, 3), expected, rtol=1e-3, atol=1e-6)
    with pytest.raises(ValueError, match="scale_checked=False"):
        GradCAM(Shifted(model), "0.layer3").evidence(IMAGES * 255, 3)


def test_threads_neither_disturb_each_other_nor_somebody_elses_forward_pass(model):
    logits = model.eval()(IMAGES).detach()
    expected = {layer: GradCAM(model, layer).evidence(IMAGES, 3) for layer in STAGES}

    def explain(layer):
        return torch.equal(GradCAM(model, layer).evidence(IMAGES, 3), expected[layer])

    def predict(_):
        with torch.no_grad():
            return torch.equal(model(IMAGES), logits)

    with ThreadPoolExecutor(6) as pool:
        explained = pool.map(explain, STAGES * 5)
        predicted = pool.map(predict, range(40))
        assert all(explained) and all(predicted)


def test_layer_may_hand_on_the_images_themselves():
    net = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(12, 1))
    images = torch.rand(2, 3, 2, 2)
    weights = net[2].weight.view(3, 4).mean(1)
    expected = torch.einsum("c,nchw->nhw", weights, images).detach()
    for mode in (contextlib.nullcontext, torch.inference_mode):
        with mode():
            mine = images.clone()
            maps = GradCAM(net, "0").evidence(mine, 0)
        assert_close(maps, expected)
        assert not mine.requires_grad


# what is left behind


def tensors_alive():
    return sum(issubclass(type(kept), torch.Tensor) for kept in gc.get_objects())


def test_fifty_calls_keep_no_tensor(model):
    cam, images = GradCAM(model, "layer4"), IMAGES[:1, :, :16, :16]
    cam(images, [[0, 1]])
    gc.collect()
    before = tensors_alive()
    for _ in range(50):
        cam(images, [[0, 1]])
    # Without collecting: nothing is left that only the garbage collector would free.
    assert tensors_alive() <= before


def test_images_stay_as_they_are_and_get_no_gradient(model):
    images = IMAGES.clone().requires_grad_()
    GradCAM(model)(images)
    assert torch.equal(images, IMAGES)
    assert images.grad is None and images.requires_grad


def test_nothing_below_the_layer_is_differentiated(model):
    tracked = {}

    def watch(name):
        def note(module, inputs, output):
            tracked[name] = output.requires_grad

        model.get_submodule(name).register_forward_hook(note)

    for name in ("stem", *STAGES):
        watch(name)
    images = IMAGES.clone().requires_grad_()
    GradCAM(model, "layer3.1.norm2").evidence(images)
    above = {"layer3", "layer4"}
    assert tracked == {name: name in above for name in ("stem", *STAGES)}


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def state_of(model):
    """All that explaining must leave alone."""
    modules, parameters = {}, {}
    for name, module in model.named_modules():
        modules[name] = module.training, *(len(getattr(module, hooks)) for hooks in HOOKS)
    for name, value in model.named_parameters():
        grad = None if value.grad is None else value.grad.numpy().tobytes()
        parameters[name] = value.requires_grad, grad
    values = {name: value.numpy().tobytes() for name, value in model.state_dict().items()}
    return modules, parameters, values


@pytest.fixture
def odd_model(model):
    """In training mode but for two modules, partly frozen, with gradients not yet used."""
    F.cross_entropy(model.train()(IMAGES), torch.tensor([0, 1, 2])).backward()
    model.layer2[0].eval()
    model.layer4[1].norm1.eval()
    model.layer1.requires_grad_(False)
    model.layer3.zero_grad(set_to_none=True)
    return model


def test_model_is_left_as_it_was_found(odd_model):
    before = state_of(odd_model)
    for layer in STAGES:
        GradCAM(odd_model, layer)(IMAGES, [[0, 1]] * 3)
    assert state_of(odd_model) == before


def test_training_mode_does_not_change_the_maps(odd_model):
    heat = GradCAM(odd_model, "layer2")(IMAGES, 0)
    assert torch.equal(heat, GradCAM(odd_model.eval(), "layer2")(IMAGES, 0))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("failing", ["stem", "layer3.0", "layer4", "fc"])
def test_model_is_left_as_it_was_found_after_an_exception(odd_model, failing, grad):
    def fail(module, inputs):
        raise MemoryError("full")

    odd_model.get_submodule(failing).register_forward_pre_hook(fail)
    before = state_of(odd_model)
    with torch.set_grad_enabled(grad):
        with pytest.raises(MemoryError):
            GradCAM(odd_model, "layer3")(IMAGES)
        assert torch.is_grad_enabled() is grad
    assert state_of(odd_model) == before


def test_refused_classes_leave_the_model_as_it_was_found(odd_model):
    before = state_of(odd_model)
    with pytest.raises(ValueError, match="between 0 and 9"):
        GradCAM(odd_model)(IMAGES, 10)
    assert state_of(odd_model) == before


# any input


MODEL = resnet18(width=16).eval()
PROPERTIES = settings(derandomize=True, max_examples=15, deadline=None, database=None)
SIZES = st.sampled_from([16, 24, 32, 40])
TWO_CLASSES = st.tuples(st.integers(0, 9), st.integers(0, 9))


@st.composite
def batches(draw):
    """Images, two classes of each, and another order of the images."""
    count = draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    images = torch.rand(count, 3, draw(SIZES), draw(SIZES), generator=generator)
    images = images.to(draw(st.sampled_from([torch.float32, torch.float64])))
    classes = draw(st.lists(TWO_CLASSES, min_size=count, max_size=count))
    return images, torch.tensor(classes), torch.tensor(draw(st.permutations(range(count))))


@PROPERTIES
@given(batches())
def test_maps_of_any_batch_sum_to_logits_and_heatmaps_lie_in_their_bounds(batch):
    images, classes, order = batch
    cam = GradCAM(MODEL)
    maps, heat = cam.evidence(images, classes), cam(images, classes)
    logits = (MODEL(images) - MODEL.fc.bias).gather(1, classes).detach()
    assert_close(maps.sum((2, 3)), logits, rtol=1e-3, atol=1e-5)
    assert maps.dtype == heat.dtype == torch.float32
    assert heat.shape == (len(images), 2, *images.shape[-2:])
    assert heat.min() >= 0 and heat.max() <= 1
    reordered = cam.evidence(images[order], classes[order])
    assert_close(reordered, maps[order], rtol=1e-3, atol=1e-6)


CELLS = st.floats(-(2.0**60), 2.0**60, width=32)
RAW = arrays(np.float32, st.tuples(*[st.integers(1, 5)] * 4), elements=CELLS)


@PROPERTIES
@given(RAW, st.integers(1, 40), st.integers(1, 40))
def test_heatmaps_of_any_maps_have_a_peak_of_1_or_are_blank(raw, height, width):
    maps = torch.from_numpy(raw)
    heat = as_heatmaps(maps, (height, width))
    assert heat.shape == (*maps.shape[:2], height, width)
    assert (heat >= 0).all() and (heat <= 1 + 1e-6).all()
    peaks = heat.amax((2, 3))
    assert (((peaks - 1).abs() < 1e-6) | (peaks == 0)).all()
    nothing_positive = (maps <= 0).all(3).all(2)
    assert (peaks[nothing_positive] == 0).all()
    assert_close(as_heatmaps(maps[:, 0], (height, width)), heat[:, 0])
    assert_close(as_heatmaps(maps.flip(0), (height, width)), heat.flip(0))


# wrong input


@pytest.mark.parametrize("layer", ["layer5", "", "layer4.2"])
def test_unknown_layer_is_refused_with_the_names_there_are(model, layer):
    known = r"stem, layer1, layer1\.0, layer1\.1, layer2, .*, fc$"
    with pytest.raises(ValueError, match=f"no layer '{layer}'.* one of {known}"):
        GradCAM(model, layer)


def test_layer_without_a_map_or_a_call_is_refused(model):
    with pytest.raises(ValueError, match="channels, h, w"):
        GradCAM(model, "fc")(IMAGES)
    model.unused = nn.Conv2d(3, 3, 1)
    with pytest.raises(ValueError, match="does not call this layer"):
        GradCAM(model, "unused")(IMAGES)
    relu, pool = nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    runs_twice = nn.Sequential(relu, nn.Conv2d(3, 2, 1), relu, pool, nn.Flatten())
    with pytest.raises(ValueError, match="run once"):
        GradCAM(runs_twice, "0")(IMAGES)
    with pytest.raises(ValueError, match=r"must return logits .*\(3, 3, 1, 1\)"):
        GradCAM(nn.Sequential(relu, pool), "0")(IMAGES)


WRONG_IMAGES = {
    "0 to 255": (IMAGES * 255, r"\[0, 1\], got .* to 25\d"),
    "normalised": ((IMAGES - 0.5) / 0.25, r"\[0, 1\], got -2"),
    "NaN": (IMAGES / 0 * 0, r"\[0, 1\], got nan"),
    "one channel": (IMAGES[:, :1], r"\(N, 3, H, W\).*\(3, 1, 32, 32\)"),
    "channels last": (IMAGES.permute(0, 2, 3, 1), r"\(N, 3, H, W\).*\(3, 32, 32, 3\)"),
    "uint8": (IMAGES.byte(), "floats.*uint8"),
    "numpy": (IMAGES.numpy(), "tensor"),
    "one image": (IMAGES[0], r"\(N, 3, H, W\).*\(3, 32, 32\)"),
    "empty batch": (IMAGES[:0], r"at least 1.*\(0, 3, 32, 32\)"),
}


@pytest.mark.parametrize(("images", "message"), WRONG_IMAGES.values(), ids=WRONG_IMAGES)
def test_wrong_images_are_refused(model, images, message):
    with pytest.raises(ValueError, match=f"images must .*{message}"):
        GradCAM(model)(images)


WRONG_CLASSES = {
    "floats": (torch.ones(3), "integers.*float32"),
    "float": (1.0, "integers"),
    "bool": (True, "integers.*bool"),
    "bools": ([True, False, True], "integers.*bool"),
    "name": ("cat", "integers"),
    "names": (["cat", "dog", "cat"], "integers"),
    "nothing": ([None] * 3, "integers"),
    "too large": ([0, 10, 2], "between 0 and 9.*10"),
    "negative": ([0, -1, 2], "between 0 and 9.*-1"),
    "too few": ([1, 2], r"each of the 3 images.*\(2,\)"),
    "transposed": (torch.zeros(2, 3).long(), r"each of the 3 images.*\(2, 3\)"),
    "3-D": (torch.zeros(3, 1, 1).long(), r"\(3, 1, 1\)"),
    "no columns": (torch.zeros(3, 0).long(), r"\(3, 0\)"),
}


@pytest.mark.parametrize(("classes", "message"), WRONG_CLASSES.values(), ids=WRONG_CLASSES)
def test_wrong_classes_are_refused(model, classes, message):
    with pytest.raises(ValueError, match=f"classes must .*{message}"):
        GradCAM(model)(IMAGES, classes)
