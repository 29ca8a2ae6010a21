import pytest
from matplotlib.figure import Figure

from helpers import plots, shapes
from helpers.interactive import playground

IMAGE = shapes.generate(1, seed=9)["images"][0]


@pytest.fixture
def shown(monkeypatch):
    """The images of each grid that is drawn."""
    found = []
    draw = plots.image_grid

    def record(images, *args, **kwargs):
        found.append(images)
        return draw(images, *args, **kwargs)

    monkeypatch.setattr(plots, "image_grid", record)
    return found


def test_without_a_front_end_the_playground_is_a_figure(shown, monkeypatch):
    monkeypatch.setattr(playground, "has_front_end", lambda: False)
    assert isinstance(playground.augmentation_playground(IMAGE), Figure)
    (images,) = shown
    assert len(images) == 10
    assert (images[0] == IMAGE).all()


def test_playground_draws_anew_and_follows_its_sliders(shown, monkeypatch):
    monkeypatch.setattr(playground, "has_front_end", lambda: True)
    *strengths, again, picture = playground.augmentation_playground(IMAGE).children
    assert len(shown[-1]) == 10
    assert (shown[-1][0] == IMAGE).all()
    before = picture.value
    again.click()
    assert picture.value != before
    assert not all((first == second).all() for first, second in zip(*shown[-2:]))
    for control in strengths:
        control.value = 0
    left = shown[-1]
    assert all((drawn == IMAGE).all() for drawn in left), "no step is left to change the image"
