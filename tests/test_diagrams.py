import numpy as np
from matplotlib.patches import FancyBboxPatch

from helpers import diagrams


def texts(ax):
    return [text.get_text() for text in ax.texts if text.get_text()]


def test_a_box_has_its_text_in_its_middle():
    _, ax = diagrams.canvas(4, 2)
    diagrams.box(ax, (2, 1), "hello", width=1, height=0.5)
    (patch,) = ax.patches
    assert isinstance(patch, FancyBboxPatch)
    extent = patch.get_extents().transformed(ax.transData.inverted())
    assert (extent.x0 + extent.x1, extent.y0 + extent.y1) == (4, 2)
    assert ax.texts[0].get_position() == (2, 1) and texts(ax) == ["hello"]


def test_augmentation_names_each_step_and_how_often_it_changes_an_image():
    (ax,) = diagrams.augmentation({"Pad": 1, "CoarseDropout": 0.3}).axes
    assert len(ax.patches) == 4
    expected = {"image\nand label", "Pad", "every\nimage", "Coarse\nDropout", "30 % of the\nimages"}
    assert set(texts(ax)) == expected | {"new image,\nsame label"}
    places = {text.get_text(): text.get_position()[0] for text in ax.texts}
    assert places["Pad"] == places["every\nimage"] < places["Coarse\nDropout"]


def test_the_network_is_drawn_with_the_shapes_that_were_given():
    (ax,) = diagrams.network({"image": (3, 32), "layer1": (16, 8)}, 7).axes
    texts = [text.get_text() for text in ax.texts]
    assert {"3 channels\n32 × 32", "16 channels\n8 × 8", "16\nnumbers", "7\nlogits"} <= {*texts}


def test_a_residual_block_has_two_convolutions_and_a_way_around_them():
    (ax,) = diagrams.residual_block().axes
    texts = [text.get_text() for text in ax.texts]
    assert texts.count("3 × 3\nconvolution") == 2 and "the shortcut: x as it is" in texts


def test_gradcam_goes_from_an_image_over_channels_and_a_logit_to_a_map_and_a_heatmap():
    rng = np.random.default_rng(0)
    image, channels, raw = (
        rng.random((3, 8, 8)),
        rng.normal(size=(3, 4, 4)),
        rng.normal(size=(4, 4)),
    )
    heat = rng.random((8, 8))
    (ax,) = diagrams.gradcam(image, channels, 3.714, raw, heat).axes
    drawn = [picture.get_array() for picture in ax.get_images()]
    expected = [image.transpose(1, 2, 0), *channels, raw, image.mean(0), heat]
    for found, values in zip(drawn, expected, strict=True):
        np.testing.assert_allclose(found, values)
    for picture, values in zip(ax.get_images()[1:5], [channels] * 3 + [raw]):  # white is zero
        assert picture.get_clim() == (-abs(values).max(), abs(values).max())
    assert {"logit of\nthe class\n3.71", "channels of 4 × 4 cells"} <= set(texts(ax))
