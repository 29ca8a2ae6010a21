"""The notebooks and the pages as their readers use them: in a real browser, with the mouse and the keyboard."""

import base64
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from urllib.parse import quote
from urllib.request import urlopen

import matplotlib
import nbformat
import numpy as np
import pytest
import torch
from PIL import Image

from helpers import plots, shapes
from helpers.data import Dataset
from helpers.evaluation import Predictions, predict
from helpers.gradcam import GradCAM
from helpers.interactive.explorer import explore
from helpers.interactive.playground import play
from helpers.model import dilated, load_pretrained, resnet18

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")

NAMES = ["01_data_augmentation", "02_training", "03_evaluation", "04_gradcam_correct", "05_gradcam_incorrect"]
SETTINGS = {  # JupyterLab's defaults leave out the cells that are not in view, and ask about news
    "notebook-extension/tracker": '{"windowingMode": "none"}',
    "apputils-extension/notification": '{"fetchNews": "false"}',
}
DONE = """() => {
    const prompts = [...document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")]
        .filter(p => !p.classList.contains("jp-Placeholder-prompt")).map(p => p.textContent)  // a folded cell shows no number
    return prompts.length > 5 && prompts.every(p => /^\\[\\d+\\]:$/.test(p))
}"""
STARTED = "[...document.querySelectorAll('.jp-InputPrompt')].some(prompt => /[*0-9]/.test(prompt.textContent))"
FAILED = '[data-mime-type="application/vnd.jupyter.error"], [data-mime-type="application/vnd.jupyter.stderr"]'


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    """The folder that JupyterLab shows."""
    return tmp_path_factory.mktemp("some folder")


@pytest.fixture(scope="module")
def jupyterlab(top):
    """A JupyterLab, started outside a copy of the project; its address. The project's own notebooks are not written to."""
    project = os.path.join(os.path.dirname(__file__), os.pardir)
    for part in ("notebooks", "helpers"):
        shutil.copytree(os.path.join(project, part), top / "the project" / part, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (top / "the project" / "notebooks").glob("*.ipynb"):  # or old outputs would pass for new ones
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, path)
    for name, content in SETTINGS.items():
        path = top / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(content)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces", "IPYTHONDIR": "ipython"}
    environment = os.environ | {name: str(top / folder) for name, folder in folders.items()} | {"TQDM_DISABLE": "1"}
    options = [f"--port={port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={top}", "--IdentityProvider.token="]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", *options]
    log = (top / "server.log").open("w")
    server = subprocess.Popen(command, env=environment, cwd=top, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urlopen(f"{address}/api/status", timeout=1)
                break
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail(f"JupyterLab did not start: {(top / 'server.log').read_text()}")
        yield address
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def run(jupyterlab, browser):
    """Open a notebook, run all of its cells, and return the page."""
    opened = []

    def run(name):
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        opened.append(page)
        page.goto(f"{jupyterlab}/lab/workspaces/{name}/tree/{quote('the project/notebooks')}/{name}.ipynb?reset")
        page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
        page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]', timeout=60_000)
        while not page.evaluate(STARTED):  # a click before JupyterLab knows its current notebook is lost
            page.click(".lm-MenuBar >> text=Run")
            page.click(".lm-Menu >> text=Run All Cells >> nth=0")
            page.wait_for_timeout(2000)
            page.keyboard.press("Escape")  # closes the menu, where the entry was not active yet
        page.wait_for_function(DONE, timeout=300_000, polling=1000)  # not at every frame, which is work
        assert page.locator(FAILED).all_inner_texts() == []
        return page

    yield run
    for page in opened:
        page.close()


@pytest.mark.parametrize("name", NAMES)
def test_notebook(run, name, tmp_path):
    page = run(name)
    assert page.locator(".jp-RenderedImage img, .widget-image, .alive").count() >= 3
    if name.startswith("04"):
        arrow_keys_change_the_image(page)
        photograph_is_explained(page, tmp_path)


def test_in_a_notebook_that_is_not_trusted_the_still_figure_is_seen(jupyterlab, top, browser, sets, model):
    """As on GitHub and wherever else no script runs."""
    page = browser.new_page()
    data = {"text/html": explore(model, sets, count=10).data, "text/plain": ""}
    cell = {"cell_type": "code", "source": "", "metadata": {}, "execution_count": 1, "id": "a"}
    cell["outputs"] = [{"output_type": "execute_result", "data": data, "metadata": {}, "execution_count": 1}]
    notebook = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (top / "untrusted.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    page.goto(f"{jupyterlab}/lab/workspaces/untrusted/tree/untrusted.ipynb?reset")
    picture = page.locator(".jp-OutputArea-output img")
    picture.wait_for(timeout=60_000)
    assert picture.evaluate("image => image.naturalWidth > 800 && image.getClientRects().length == 1")
    assert page.locator(".jp-OutputArea-output form").count() == 0
    assert page.locator(".jp-OutputArea-output").inner_text().strip() == ""
    page.close()


def arrow_keys_change_the_image(page):
    """And move JupyterLab to no other cell: its shortcuts keep out."""
    explorer = page.locator(".alive", has=page.locator("#bars"))
    position = explorer.locator("#position")
    assert position.inner_text().startswith("1 of")
    cell = page.locator(".jp-Notebook-cell.jp-mod-selected").evaluate("cell => cell.dataset.windowedListIndex ?? cell.id")
    explorer.locator("#next").click()
    page.keyboard.press("ArrowRight")
    assert position.inner_text().startswith("3 of")
    page.keyboard.press("d")
    page.keyboard.press("d")  # outside of the explorer this would delete the cell
    assert explorer.count() == 1 and cell is not None


def photograph_is_explained(page, folder):
    Image.linear_gradient("L").resize((640, 480)).convert("RGB").save(folder / "photo.jpg")
    (folder / "no photo.txt").write_text("text")
    button = page.locator(".widget-upload")
    output = page.locator(".jp-OutputArea-output", has=button)
    for name, says in (("photo.jpg", "The network can answer nothing but"), ("no photo.txt", "is not an image")):
        with page.expect_file_chooser() as chooser:
            button.click()
        chooser.value.set_files(folder / name)
        output.get_by_text(says).wait_for(timeout=20_000)


# ---- The pages and what is alive on them, from disk, without a network


@pytest.fixture(scope="module")
def model():
    return load_pretrained("shapes10")


@pytest.fixture(scope="module")
def sets(model):
    """Sixty images; nine of them are given another image's logits, as if they had been mistaken."""
    dataset = Dataset(**shapes.generate(60, 7), classes=shapes.CLASSES)
    logits = predict(model, dataset).logits
    logits[3:12] = logits[4:13]
    return {"test": (dataset, Predictions(logits, dataset.labels, shapes.CLASSES))}


@pytest.fixture
def show(browser, tmp_path):
    """Open a page from disk, or one that holds these outputs; afterwards nothing has gone wrong or left the machine."""
    contexts, troubles = [], []

    def show(*content, width=1280, scheme="light", anchor=""):
        path = content[0]
        if not isinstance(path, os.PathLike):
            path = tmp_path / "page.html"
            body = "".join(output.data for output in content)
            path.write_text(f'<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">{body}')
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, has_touch=True, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: message.type in ("error", "warning") and troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: (troubles.append(dialog.message), dialog.dismiss()))
        page.on("requestfailed", lambda request: troubles.append(request.url))
        page.on("request", lambda request: request.url.startswith(("file:", "data:", "blob:")) or troubles.append(request.url))
        page.goto(path.as_uri() + anchor)
        page.wait_for_function("[...document.querySelectorAll('.alive')].every(e => !e.shadowRoot.querySelector('slot'))")
        return page

    yield show
    for context in contexts:
        context.close()
    assert troubles == []


@pytest.mark.parametrize("name", ["index", *NAMES])
def test_page_needs_no_network_and_all_its_links_resolve(show, pages, name):
    page = show(pages / f"{name}.html")
    links = page.eval_on_selector_all("a[href]", "links => links.map(link => [link.href, link.getAttribute('href')])")
    assert len(links) > 10
    for target, text in links:
        if not target.startswith("https:"):  # to a paper or a library, elsewhere
            file, _, anchor = target.removeprefix(pages.as_uri() + "/").partition("#")
            assert (pages / file).is_file() and not file.endswith(".ipynb"), text
            assert not anchor or page.locator(f"[id='{anchor}']").count() or file != f"{name}.html", text
    assert page.eval_on_selector_all("img", "images => images.every(image => image.naturalWidth > 0)")


def test_pages_lead_through_the_series_and_back(show, pages):
    page = show(pages / "index.html")
    for name in NAMES:
        page.click("[rel=next]")
        assert page.url.endswith(f"/{name}.html") and page.locator("nav [aria-current]").count() == 1
    assert page.locator("[rel=next]").count() == 0
    page.click("[rel=prev]")
    page.click("nav >> text=Start")
    assert page.url.endswith("/index.html")


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_explorer_fits_and_is_legible(show, model, sets, width, scheme):
    page = show(explore(model, sets), width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    sizes = page.eval_on_selector_all(".alive form *", "all => all.map(one => parseFloat(getComputedStyle(one).fontSize))")
    assert min(sizes) >= 16 and len(sizes) > 100
    names = page.eval_on_selector_all(
        ".alive :is(button, select, input, canvas[role])",
        "all => all.map(e => e.ariaLabel || e.textContent || e.labels?.[0]?.textContent)",
    )
    assert all(names), "everything to be used has a name"


def test_explorer_pages_through_images_and_its_address_remembers_the_one_shown(show, model, sets):
    page = show(explore(model, sets))
    said = page.locator("#headline")
    assert said.inner_text().endswith("wrong ✗")
    page.locator("#next").focus()
    seen = {said.inner_text() + page.locator("#reading").inner_text()}
    for i in range(20):
        page.keyboard.press("ArrowRight")
        assert page.locator("#position").inner_text() == f"{i + 2} of 60"
        seen.add(said.inner_text() + page.locator("#reading").inner_text())
    assert len(seen) == 21
    before, address = said.inner_text() + page.locator("#reading").inner_text(), page.url
    page.reload()
    page.wait_for_function("!document.querySelector('.alive').shadowRoot.querySelector('slot')")
    assert page.url == address and "#test-" in address
    assert said.inner_text() + page.locator("#reading").inner_text() == before
    page.evaluate("location.hash = '#test-5'")
    page.wait_for_function("document.querySelector('.alive').shadowRoot.querySelector('#position').textContent != '21 of 60'")
    predictions, classes = sets["test"][1], shapes.CLASSES
    expected = f"said {classes[predictions.predicted[5]]}, is {classes[predictions.labels[5]]}:"
    assert said.inner_text().startswith(expected)


def test_explorer_filters_and_its_matrix_leave_the_images_they_name(show, model, sets):
    page, predictions = show(explore(model, sets)), sets["test"][1]
    position = page.locator("#position")
    for outcome, count in (("right", predictions.correct.sum()), ("wrong", (~predictions.correct).sum())):
        page.get_by_role("radio", name=outcome).check(force=True)
        assert position.inner_text() == f"1 of {count}"
    actual, said = predictions.labels[4], predictions.predicted[4]
    count = ((predictions.labels == actual) & (predictions.predicted == said)).sum()
    cell = page.get_by_label(f"is {shapes.CLASSES[actual]}, said {shapes.CLASSES[said]}: {count} images")
    cell.click()
    assert position.inner_text() == f"1 of {count}" and cell.get_attribute("aria-pressed") == "true"
    page.get_by_role("radio", name="right").check(force=True)
    assert page.locator("#headline").inner_text().startswith("No image here") and not page.locator(".panels").is_visible()
    page.get_by_role("radio", name="all").check(force=True)
    cell.click()
    assert position.inner_text() == "1 of 60"


@pytest.mark.parametrize("side, explain", [(4, GradCAM), (8, lambda model: GradCAM(dilated(model)))])
def test_explorer_draws_grad_cams(show, model, sets, side, explain):
    """One cell's number and colour, and the whole heatmap over the grey image, against those computed here."""
    page, dataset = show(explore(model, sets), anchor="#test-20"), sets["test"][0]
    page.locator("select[name=first]").select_option(shapes.CLASSES[3])
    page.locator("#bars button", has_text=shapes.CLASSES[8]).click(modifiers=["Shift"])
    page.get_by_text(f"{side} × {side} cells").click()
    raw = explain(model).evidence(dataset.tensor([20]), [[3, 8]])[0]
    heat = explain(model)(dataset.tensor([20]), [[3, 8]])[0].numpy()
    grey = dataset.images[20].mean(-1, keepdims=True)
    colours = matplotlib.colormaps[plots.HEAT](heat, bytes=True)[..., :3]
    for k in range(2):
        difference = np.abs(pixels(page, k + 1) - (0.6 * colours[k] + 0.4 * grey))
        assert np.median(difference) < 4 and difference.mean() < 8  # JPEG, and maps in 8 bits
    page.get_by_text("evidence", exact=True).click()
    maps = torch.stack([*raw, raw[0] - raw[1]]).numpy()
    limit = np.abs(maps).max()
    for k in range(3):
        expected = matplotlib.colormaps[plots.SIGNED]((maps[k] / limit + 1) / 2, bytes=True)[..., :3]
        assert np.abs(pixels(page, k + 1) - expected).max() <= 12, "a step of a map is at most two of the palette"
    box = page.locator("figure canvas").nth(1).bounding_box()
    row, column = np.unravel_index(maps[0].argmax(), maps[0].shape)
    page.mouse.move(box["x"] + (column + 0.5) * box["width"] / side, box["y"] + (row + 0.5) * box["height"] / side)
    where, numbers = page.locator("#reading").inner_text().split(": ")
    assert where == f"row {row + 1}, column {column + 1}"
    found = [float(text.split()[-1].replace("−", "-")) for text in numbers.removesuffix(" logit units").split(", ")]
    np.testing.assert_allclose(found, maps[:, row, column], atol=2 * limit / 127 + 0.006)


def pixels(page, number):
    """The pixels of a canvas of the explorer, (h, w, 3)."""
    png = page.locator("figure canvas").nth(number).evaluate("canvas => canvas.toDataURL().split(',')[1]")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")).astype(float)


def test_cells_are_reached_by_keyboard_and_images_by_swipe(show, model, sets):
    page = show(explore(model, sets), width=400)
    page.locator("figure canvas").nth(1).focus()
    for key in ("ArrowDown", "ArrowLeft", "ArrowLeft", "ArrowLeft"):
        page.keyboard.press(key)
    assert page.locator("#reading").inner_text().startswith("row 4, column 1:")
    swipe = """panels => {
        const touch = clientX => new Touch({identifier: 0, target: panels, clientX, clientY: 300});
        panels.dispatchEvent(new TouchEvent("touchstart", {changedTouches: [touch(300)]}));
        panels.dispatchEvent(new TouchEvent("touchend", {changedTouches: [touch(200)]}));
    }"""
    page.locator(".panels").evaluate(swipe)
    assert page.locator("#position").inner_text() == "2 of 60"


def test_two_explorers_and_a_game_on_one_page_keep_apart(show, model, sets):
    page = show(explore(model, sets), explore(model, sets, count=10), play(model, *sets["test"], rounds=6))
    first, second, game = (page.locator(".alive").nth(i) for i in range(3))
    second.locator("#next").click()
    assert first.locator("#position").inner_text() == "1 of 60" and second.locator("#position").inner_text() == "2 of 10"
    for _ in range(6):
        assert game.locator("canvas").count() == 1
        game.get_by_text("it was right").click()
    verdict = "3 of 6 guessed right; a coin does as well or better in 65.6 % of such games."  # 42 / 64
    assert game.locator("#headline").inner_text() == verdict
    captions = game.locator("figcaption").all_inner_texts()
    assert game.locator("canvas").count() == 6 and sorted(captions) == ["right"] * 3 + ["wrong"] * 3
    assert game.get_by_text("it was right").is_disabled()


@pytest.mark.parametrize("count", [3, 100])
def test_explorer_of_any_classes_shows_their_names_as_text(show, sets, count):
    names = ("<img src=x onerror=alert(1)>", "</script><script>alert(1)</script>", *(f"class {i}" for i in range(2, count)))
    dataset = Dataset(sets["test"][0].images, sets["test"][0].labels % count, names)
    model = resnet18(count, width=16)
    page = show(explore(model, {"<b>mine</b>": (dataset, predict(model, dataset))}))
    assert page.locator("select[name=first] option").all_inner_texts() == list(names)
    assert page.locator("#bars button").count() == min(count, 12) and page.locator("table").is_visible() == (count == 3)
    page.locator("#next").click()
    assert page.locator("#position").inner_text().startswith("2 of") and page.locator("img[src=x], b b").count() == 0


def test_explorer_of_a_network_without_mistakes(show, model, sets):
    dataset, predictions = sets["test"]
    page = show(explore(model, {"test": (dataset, Predictions(predictions.logits, predictions.predicted, shapes.CLASSES))}))
    assert page.locator("#headline").inner_text().endswith("right ✓")
    page.get_by_role("radio", name="wrong").check(force=True)
    assert page.locator("#position").inner_text() == "0 of 0"


CHANGES = """async root => {
    const form = root.querySelector("form"), times = [];
    for (let i = 0; i < 200; i++) {
        await new Promise(requestAnimationFrame);
        const start = performance.now();
        [() => root.querySelector("#next").click(), () => form.elements.grid[i >> 2 & 1].click(),
         () => root.querySelectorAll("#bars button")[i % 10].click(), () => form.elements.view[i >> 2 & 1].click()][i % 4]();
        form.offsetHeight;  // the layout, too
        times.push(performance.now() - start);
    }
    return times.sort((a, b) => a - b);
}"""


def test_a_change_is_drawn_in_the_next_frame(show, model, sets):
    page = show(explore(model, sets))
    times = page.locator("form").evaluate_handle("form => form.getRootNode()").evaluate(CHANGES)
    print(f"200 changes: median {times[100]:.1f} ms, worst {times[-1]:.1f} ms")
    assert times[100] <= 16 and times[190] <= 50  # the very worst depends on what else this machine does
