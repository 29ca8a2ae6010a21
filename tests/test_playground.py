import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from helpers import shapes
from helpers.data import Dataset
from helpers.evaluation import Predictions
from helpers.gradcam import GradCAM
from helpers.interactive import explorer, playground
from helpers.model import load_pretrained

DRAWN = Dataset(**shapes.generate(60, seed=9), classes=shapes.CLASSES)


@pytest.fixture
def predictions():
    """Every image in its own class with a confidence of its own, but for images 0 to 9, each taken for the next class."""
    said = DRAWN.labels.copy()
    said[:10] = (said[:10] + 1) % 10
    logits = np.zeros((60, 10), np.float32)
    logits[np.arange(60), said] = np.linspace(2, 5, 60)
    return Predictions(logits, DRAWN.labels, shapes.CLASSES)


@pytest.fixture
def game(predictions):
    return playground.GuessGame(load_pretrained("shapes10"), DRAWN, predictions, rounds=12)


@pytest.fixture(params=[True, False], ids=["widgets", "page"])
def front_end(request, monkeypatch):
    for module in (explorer, playground):
        monkeypatch.setattr(module, "has_front_end", lambda: request.param)
    return request.param


def test_half_of_the_rounds_are_mistakes_and_each_has_its_like(game, predictions):
    wrong, right = game.indices[~game.truth], game.indices[game.truth]
    assert len(game.indices) == len(set(game.indices)) == 12 and len(wrong) == len(right) == 6
    assert sorted(predictions.predicted[wrong]) == sorted(predictions.predicted[right])
    for index in wrong:  # images 10 to 19 are the surest of no class: the closest in confidence to images 0 to 9
        assert predictions.predicted[index] + 10 in right
    expected = GradCAM(load_pretrained("shapes10"))(DRAWN.tensor(game.indices), predictions.predicted[game.indices])
    torch.testing.assert_close(game.heatmaps, expected)


def test_like_in_confidence_is_the_nearest_above_or_below():
    logits = np.zeros((60, 10), np.float32)
    said = DRAWN.labels.copy()
    said[0] = (said[0] + 1) % 10
    logits[np.arange(60), said] = 2  # far below the mistake's confidence ...
    members = [i for i in range(1, 60) if said[i] == said[0]]
    logits[0, said[0]], logits[members[-1], said[0]] = 4, 4.1  # ... but for one that is just above
    game = playground.GuessGame(load_pretrained("shapes10"), DRAWN, Predictions(logits, DRAWN.labels, shapes.CLASSES), rounds=2)
    assert len(members) > 1 and sorted(game.indices) == [0, members[-1]]


def test_score_is_held_against_a_coin(game):
    assert "right or wrong?" in game.verdict()
    for is_right in game.truth[:5]:
        game.guess(bool(is_right))
    assert game.verdict() == "5 of 5 guessed; a coin does as well or better in 3% of such games."  # 1 / 32
    game.guess(not game.truth[5])
    assert game.verdict().startswith("5 of 6 guessed; a coin does as well or better in 11%")  # 7 / 64


def test_game_without_mistakes_is_refused(predictions):
    with pytest.raises(ValueError, match="more images"):
        playground.GuessGame(
            load_pretrained("shapes10"), DRAWN, Predictions(predictions.logits[10:], DRAWN.labels[10:], shapes.CLASSES)
        )


def test_game_is_played_with_two_buttons(game, front_end):
    shown = playground.play(game)
    if not front_end:
        assert isinstance(shown, Figure) and [ax.get_title() == "right" for ax in shown.axes if ax.get_title()] == list(
            game.truth
        )
        return
    (it_was_right, it_was_wrong), note, picture = shown.children[0].children, *shown.children[1:]
    pictures = {picture.value}
    for _ in game.truth:
        assert not it_was_wrong.disabled
        it_was_right.click()
        pictures.add(picture.value)
    assert game.guesses == [True] * 12 and "6 of 12" in note.value
    assert it_was_right.disabled and it_was_wrong.disabled and len(pictures) == 13


def test_playground_draws_anew_and_follows_its_sliders(front_end, monkeypatch):
    shown = []
    draw = playground.plots.image_grid
    monkeypatch.setattr(
        playground.plots, "image_grid", lambda images, *args, **kwargs: shown.append(images) or draw(images, *args, **kwargs)
    )
    image = DRAWN.images[0]
    box = playground.augmentation_playground(image)
    assert len(shown[-1]) == 9 and (shown[-1][0] == image).all()
    if not front_end:
        assert isinstance(box, Figure)
        return
    *strengths, again, picture = box.children
    before = picture.value
    again.click()
    assert picture.value != before and not all((a == b).all() for a, b in zip(*shown[-2:]))
    for control in strengths:
        control.value = 0
    assert all((drawn == image).all() for drawn in shown[-1]), "with no step left, every draw is the image"
