import numpy as np
from tools import smallest_type

from helpers import plots
from helpers.interactive import picture


def test_the_readmes_picture_shows_both_maps_their_difference_and_the_sums():
    image = np.random.default_rng(0).random((3, 8, 8))
    maps = np.array([[[0.5, 0.25], [0, -0.25]], [[0.1, 0.3], [-0.001, 0]]])
    figure = picture.draw_mistake(image, "an image", ("dog", "cat"), maps)
    first, *others = figure.axes
    np.testing.assert_array_equal(first.get_images()[0].get_array(), np.moveaxis(image, 0, -1))
    assert [line.get_xdata()[0] for line in first.lines] == [3.5, 0], "one square a cell"
    for ax, values in zip(others, [*maps, maps[0] - maps[1]], strict=True):
        (drawn,) = ax.get_images()
        np.testing.assert_array_equal(drawn.get_array(), values)
        assert drawn.get_clim() == (-0.5, 0.5), "one scale for all"
    assert [ax.get_xlabel() for ax in others] == [f"together {n}" for n in ("0.50", "0.40", "0.10")]
    assert [text.get_text() for text in others[1].texts] == ["0.10", "0.30", "0.00", "0.00"]
    assert others[0].texts[-1].get_text() == "−0.25"
    assert figure.get_figwidth() == plots.WIDEST and smallest_type(figure) >= 12
