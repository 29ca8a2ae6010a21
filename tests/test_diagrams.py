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
