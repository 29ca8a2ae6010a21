import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from helpers import evaluation, shapes, studies
from helpers.data import load_dataset
from helpers.evaluation import Predictions
from helpers.gradcam import GradCAM
from helpers.model import resnet18, save_weights
from helpers.studies import covering, likeness, networks

SIXTEEN = np.arange(16)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    return resnet18(width=16).eval()


class BrightestBlock(nn.Module):
    """Says the number of the brightest of sixteen blocks."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(1, 3, 1, 1))

    def forward(self, images):
        return nn.functional.avg_pool2d(images, 8).mean(1).flatten(1)


def image_of_blocks(values):
    blocks = torch.tensor(values, dtype=torch.float32).reshape(1, 1, 4, 4)
    return nn.functional.interpolate(blocks, scale_factor=8).expand(1, 3, 32, 32)


def test_a_covered_block_is_that_block_and_nothing_else():
    image = image_of_blocks(SIXTEEN / 16)
    sixth = torch.arange(16)[None] == 6
    covered = networks.cover_cells(image, sixth, torch.full((1, 3, 1, 1), 9.0))
    assert (covered[0, :, 8:16, 16:24] == 9).all() and (covered == 9).sum() == 3 * 64
    assert torch.equal(covered[covered != 9], image[covered != 9])


def test_the_second_brightest_is_said_once_the_brightest_is_covered():
    images = torch.cat([image_of_blocks(SIXTEEN), image_of_blocks(15 - SIXTEEN)])
    logits = covering.logits_when_covered(BrightestBlock(), images, torch.zeros(1, 3, 1, 1))
    expected = np.repeat([[15], [0]], 16, axis=1)
    expected[0, 15], expected[1, 0] = 14, 1
    assert logits.argmax(1).tolist() == expected.tolist()


def test_rules_by_hand():
    turned = np.zeros((3, 16), dtype=bool)
    turned[0, 3] = turned[1, [3, 5]] = True  # the third is never turned
    own = np.eye(16)[[3, 5, 3]] - np.eye(16)[[0, 1, 2]]  # top cells 3, 5, 3
    roles = np.array([[0, 1], [0, 1], [2, 1]])
    found = covering.turned_by_rule(turned, {covering.OWN: own}, roles)
    assert found[covering.OWN].tolist() == [1, 1, 0]
    assert found["map of another image"].tolist() == [0.5, 1, 0]
    alike = found["map of another image, same two classes"]
    assert alike[:2].tolist() == [0, 1] and np.isnan(alike[2])
    assert found["any block"].tolist() == [1 / 16, 2 / 16, 0]
    assert found["best of sixteen"].tolist() == [1, 1, 0]
    row = covering.rates(found).loc["map of another image"]
    assert row["mean"] == 0.5 and row["images"] == 3
    assert row["lead mean"] == pytest.approx((0.5 + 0 + 0) / 3, abs=1e-4)


def test_groups_are_the_mistakes_and_right_predictions_of_the_nearest_margins():
    logits = np.zeros((5, 3), dtype=np.float32)
    logits[:, 0] = [2, 5, 1, 1.9, 8]
    logits[2, 1] = 0.5
    predictions = Predictions(logits, np.array([1, 2, 0, 0, 0]), ("a", "b", "c"))
    (wrong, roles), (close, of_close) = covering.mistakes_and_close_calls(predictions).values()
    assert sorted(wrong) == [0, 1] and roles[wrong == 0].tolist() == [[0, 1]]
    assert sorted(close) == [3, 4]  # margins 1.9 and 8, for 2 and 5
    assert (of_close[:, 0] == 0).all()


def test_fewer_than_two_mistakes_are_refused():
    predictions = Predictions(np.eye(3, dtype=np.float32), np.array([0, 1, 0]), ("a", "b", "c"))
    with pytest.raises(ValueError, match="makes 1 mistakes on these images: take more"):
        covering.mistakes_and_close_calls(predictions)


@pytest.mark.filterwarnings("ignore:Mean of empty slice")  # no two mistakes are of one kind
def test_the_study_has_rows_for_each_group_and_paint(model, monkeypatch):
    dataset = load_dataset("shapes10", train_size=1, test_size=20).test
    logits = np.random.default_rng(0).normal(size=(20, 10)).astype(np.float32)
    order = np.argsort(-logits, axis=1)
    labels = order[:, 0].copy()
    labels[:3] = order[range(3), [1, 2, 1]]  # three mistakes, in two the actual class is second
    predictions = Predictions(logits, labels, dataset.classes)
    monkeypatch.setattr(covering, "predict", lambda *of: predictions)
    rows = covering.cover(model, dataset)
    assert len(rows) == 4 * 2 * 7
    images = dict(zip(rows["group"], rows["images"]))
    assert list(images.values()) == [3, 3, 3, 2]


def test_mistakes_less_right_by_hand(model, monkeypatch):
    dataset = load_dataset("shapes10", train_size=1, test_size=5).test
    logits = np.eye(10, dtype=np.float32)[[0, 1, 2, 3, 4]]
    logits[:, 9] = 0.5  # the second class of all
    predictions = Predictions(logits, np.array([9, 8, 2, 3, 4]), dataset.classes)
    monkeypatch.setattr(covering, "predict", lambda *of: predictions)
    turned = iter([[1.0, 0.0], [0.0, 0.0]])  # of two mistakes, then of two right predictions
    monkeypatch.setattr(
        covering, "turned_by_paint", lambda *of: {"grey": pd.DataFrame({"own map": next(turned)})}
    )
    rows = covering.cover(model, dataset)
    assert rows["mean"].tolist() == [0.5, 0, 0.5, 1] and rows["images"].tolist() == [2, 2, 2, 1]


@pytest.mark.parametrize("name", ["cifar10-covering", "shapes10-covering"])
def test_own_map_leads_itself_by_nothing_in_the_records(name):
    record = pd.read_csv(studies.RECORDS / f"{name}.csv")
    own = record[record["rule"] == covering.OWN]
    assert len(own) and (own[["lead mean", "lead from", "lead to"]] == 0).all(axis=None)
    is_rate = ~record["group"].str.startswith("mistakes less right")
    best = record[is_rate & (record["rule"] == "best of sixteen")]
    assert (best["lead mean"] <= 0).all()


def test_occlusion_maps_are_the_logits_that_fall():
    image = image_of_blocks(SIXTEEN)
    drops = likeness.occlusion_maps(BrightestBlock(), image)
    assert drops.shape == (1, 16, 4, 4)
    torch.testing.assert_close(drops[0, :, :, :].flatten(1), torch.diag(torch.arange(16.0)))


def test_order_of_roles_and_what_the_others_zero_is():
    logits = np.array([[3.0, 1, 2, 4], [0, 5, 6, 7]])
    order = likeness.role_order(logits, np.array([[3, 1], [2, 0]]))
    assert order.tolist() == [[3, 1, 0, 2], [2, 0, 3, 1]]
    maps = likeness.in_order(torch.arange(2 * 4 * 4.0).view(2, 4, 2, 2), order)
    first, second = likeness.two_maps(maps, other_zero=True)
    np.testing.assert_allclose(first[0], maps[0, 0] - (maps[0, 2] + maps[0, 3]) / 2)
    np.testing.assert_allclose(second[1], maps[1, 1] - (maps[1, 2] + maps[1, 3]) / 2)


def test_patchworks_sum_to_zero_and_take_maps_from_images_of_the_kind():
    rng = np.random.default_rng(0)
    maps = np.zeros((6, 3, 2)) + 10.0 ** np.arange(6)[:, None, None]  # an image's number is a power
    kinds = np.array([7, 7, 7, 7, 8, 8])
    patched = likeness.patchwork(maps, kinds, rng)
    np.testing.assert_allclose(patched[:4].sum(1), 0, atol=1e-9)
    assert np.isnan(patched[4:]).all()  # too few of a kind
    second = maps[:4, 0] - (patched[:4, 0] - patched[:4, 1])  # what stands in the second place
    assert (second != maps[:4, 0]).all() and np.isin(second, 10.0 ** np.arange(4)).all()


def test_maps_of_one_image_without_a_tie_are_no_more_alike_than_a_patchworks():
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(300, 10, 16))
    maps -= maps.mean(1, keepdims=True)
    for other_zero, expected in ((False, -1 / 9), (True, 1 / 9)):
        found = likeness.against_patchworks(maps, np.zeros(300), other_zero)
        assert found["same"] == pytest.approx(expected, abs=0.03)
        assert found["from"] < 0 < found["to"]
    maps[:, :2] += rng.normal(size=(300, 1, 16))  # now there is something
    assert likeness.against_patchworks(maps, np.zeros(300), False)["from"] > 0.2


def test_top_cell_by_hand():
    drops = np.zeros((2, 3, 16))
    drops[0, :, 5], drops[1, :, 6] = (2, -1, 0.5), (1, -0.5, 0)
    assert likeness.top_cells(drops).tolist() == [[5, 6], [0, 0]]
    found = likeness.gain_at_top_cell(drops, of=0)
    assert [found[name] for name in ("images", "same", "other", "difference")] == [2, 1, 0, 1]
    swapped = likeness.gain_at_top_cell(drops[:, [1, 0, 2]], of=1)
    assert swapped == found


def test_the_pair_confused_most_by_hand():
    maps = np.random.default_rng(0).normal(size=(4, 4, 16))
    roles = np.array([[0, 1], [1, 0], [0, 2], [2, 3]])
    rows = likeness.by_most_frequent_pair(maps, roles).values()
    assert [row["images"] for row in rows] == [2, 1, 1]
    alike = [np.corrcoef(of_image[:2])[0, 1] for of_image in maps]
    expected = [np.mean(alike[:2]), alike[2], alike[3]]
    assert [row["same"] for row in rows] == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore")  # no two mistakes are of one kind
def test_likeness_has_rows_for_each_null_and_zero_of_both_groups(model):
    test = load_dataset("shapes10", train_size=1, test_size=40).test
    table = likeness.compare(model, test).set_index(["comparison", "null"])
    assert len(table) == 2 * (2 * 2 * 4 + 2 + 1 + 3)
    assert set(table["group"]) == {"mistakes", "right, as close"}
    first, _ = table.loc[("its two classes", "another image"), "same"]
    predictions = evaluation.predict(model, test)
    wrong, roles = covering.mistakes_and_close_calls(predictions)["mistakes"]
    maps = GradCAM(model).evidence(test.tensor(wrong), roles).flatten(2)
    assert first == pytest.approx(np.mean([np.corrcoef(of_image)[0, 1] for of_image in maps]))


def test_two_networks_of_one_name_are_refused_before_anything_is_measured(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(covering, "cover", lambda *_: pytest.fail("it measured"))
    paths = [str(tmp_path / folder / "net.pt") for folder in ("one", "other")]
    for path in paths:
        save_weights(resnet18(width=16), path, shapes.CLASSES)
    with pytest.raises(SystemExit, match="2"):
        covering.main(["--data", "shapes10", "--test-size", "9", "--networks", *paths])
    assert "two networks have the same name" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        covering.main(["--data", "shapes10", "--test-size", "9", "--networks", paths[0], "none"])
    assert "none" in capsys.readouterr().err


@pytest.mark.parametrize("study", [covering, likeness])
def test_the_command_writes_rows_of_each_network(tmp_path, monkeypatch, capsys, study):
    def measure(model, test):
        row = {"width": model.stem.out_channels, "images": len(test)}
        return pd.DataFrame([row | {"score": 0.123456}])

    monkeypatch.setattr(study, "cover" if study is covering else "compare", measure)
    paths = [str(tmp_path / f"net-{width}.pt") for width in (16, 24)]
    for path, width in zip(paths, (16, 24)):
        save_weights(resnet18(width=width), path, shapes.CLASSES)
    options = f"--data shapes10 --test-size 9 --output {tmp_path / 't.csv'} --networks".split()
    study.main([*options, *paths])
    rows = pd.read_csv(tmp_path / "t.csv").to_numpy().tolist()
    assert rows == [["net-16", 16, 9, 0.1235], ["net-24", 24, 9, 0.1235]]
