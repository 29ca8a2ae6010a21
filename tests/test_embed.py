import base64
import zlib

import numpy as np
import torch
from matplotlib.figure import Figure
from tools import elements, embedded_data

from helpers.interactive.embed import FOLDER, embed, quantised


def test_an_element_brings_its_own_script_and_markup_and_none_of_the_other_kind():
    for kind, other in (("game", "explorer"), ("explorer", "game")):
        shown = embed(kind, {"number": 5}, Figure(), "a text")
        *_, script = elements(shown.data)
        for name in ("maps", kind):
            assert (FOLDER / f"{name}.js").read_text("utf-8") in script.text
        assert (FOLDER / f"{other}.js").read_text("utf-8") not in script.text
        data = embedded_data(shown)
        assert (data["kind"], data["number"]) == (kind, 5)
        assert data["markup"] == (FOLDER / f"{kind}.html").read_text("utf-8")


def test_texts_never_become_markup():
    text = "</script><b>\"'&<!--"
    shown = embed("game", {"text": text}, Figure(), text)
    found = elements(shown.data)
    assert [element.tag for element in found] == ["div", "img", "script", "script"]
    assert found[1].attributes["alt"] == text
    assert embedded_data(shown)["text"] == text


def test_quantised_maps_keep_half_a_step_of_each_image():
    maps = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    maps *= torch.tensor([1.0, 1e-3, 0.0])[:, None, None, None]  # the last is zero everywhere
    found = quantised(maps)
    whole = np.frombuffer(zlib.decompress(base64.b64decode(found["cells"])), np.int8)
    restored = whole.reshape(3, -1) * np.array(found["scales"])[:, None]
    expected = maps.flatten(1).numpy()
    step = np.abs(expected).max(1, keepdims=True) / 127
    assert found["side"] == 4
    assert (np.abs(restored - expected) <= 0.501 * step).all()
    assert np.abs(whole).max() == 127
