"""Notebooks and pages as their readers use them: a real browser, the mouse, the keyboard."""

import base64
import io
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote
from urllib.request import urlopen

import matplotlib
import nbformat
import numpy as np
import pytest
import torch
from conftest import CHROMIUM, notebook_environment
from PIL import Image
from tools import COLUMN

from helpers import plots, shapes
from helpers.data import Dataset
from helpers.evaluation import Predictions, predict
from helpers.gradcam import GradCAM
from helpers.interactive.explorer import explore
from helpers.interactive.game import play
from helpers.interactive.pages import name_of, notebooks
from helpers.model import dilated, load_pretrained, resnet18

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium"
    ),
]

PROJECT = Path(__file__).parents[1]
NAMES = [name_of(path) for path in notebooks()]
# Those with widgets; the others are run by nbval, which starts faster.
IN_JUPYTERLAB = [name for name in NAMES if name[:2] in ("01", "04")]
SETTINGS = {  # JupyterLab's defaults leave out the cells that are not in view, and ask about news
    "notebook-extension/tracker": '{"windowingMode": "none"}',
    "apputils-extension/notification": '{"fetchNews": "false"}',
}
FAILED = ", ".join(
    f'[data-mime-type="application/vnd.jupyter.{kind}"]' for kind in ("error", "stderr")
)
# A cell has failed, and the others will not run; or every code cell has its number. (A folded cell
# shows none.)
ENDED = """failed => {
    if (document.querySelector(failed)) return true;
    const prompts = [...document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")]
        .filter(prompt => !prompt.classList.contains("jp-Placeholder-prompt"))
        .map(prompt => prompt.textContent);
    return prompts.length > 5 && prompts.every(text => /^\\[\\d+\\]:$/.test(text));
}"""
STARTED = """() => [...document.querySelectorAll(".jp-InputPrompt")]
    .some(prompt => /[*0-9]/.test(prompt.textContent))"""
BUILT = """() => [...document.querySelectorAll(".alive")]
    .every(host => host.shadowRoot && !host.shadowRoot.querySelector("slot"))"""


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    """The folder that JupyterLab shows."""
    return tmp_path_factory.mktemp("some folder")


def copy_without_outputs(folder):
    """A copy of the project whose notebooks have no outputs: old ones would pass for new ones."""
    for part in ("notebooks", "helpers"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PROJECT / part, folder / part, ignore=ignore)
    for path in (folder / "notebooks").rglob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = []
                cell.execution_count = None
        nbformat.write(notebook, path)


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def wait_for(address, log):
    for _ in range(120):
        try:
            urlopen(f"{address}/api/status", timeout=1)
            return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"JupyterLab did not start: {log.read_text()}")


@pytest.fixture(scope="module")
def jupyterlab(top):
    """The address of a JupyterLab that was started outside a copy of the project."""
    copy_without_outputs(top / "the project")
    for name, content in SETTINGS.items():
        path = top / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(content)
    port = free_port()
    environment = (
        os.environ
        | notebook_environment()
        | {
            "JUPYTERLAB_SETTINGS_DIR": str(top / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(top / "workspaces"),
            "IPYTHONDIR": str(top / "ipython"),
            "TQDM_DISABLE": "1",
        }
    )
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
        *(f"--port={port}", "--ServerApp.port_retries=0"),
        *(f"--ServerApp.root_dir={top}", "--IdentityProvider.token="),
    ]
    log = top / "server.log"
    with log.open("w") as output:
        server = subprocess.Popen(command, env=environment, cwd=top, stdout=output, stderr=output)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(address, log)
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
        path = f"tree/{quote('the project/notebooks')}/{name}.ipynb"
        page.goto(f"{jupyterlab}/lab/workspaces/{name}/{path}?reset")
        page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
        idle = '.jp-Notebook-ExecutionIndicator[data-status="idle"]'
        page.wait_for_selector(idle, timeout=60_000)
        page.wait_for_timeout(4000)  # for a question that would take the first cell's kernel away
        end = time.monotonic() + 180
        while not page.evaluate(STARTED):
            assert time.monotonic() < end, page.locator(".jp-Dialog").all_inner_texts()
            try_to_run_all_cells(page)
        page.wait_for_function(ENDED, arg=FAILED, timeout=900_000, polling=1000)  # milliseconds
        assert page.locator(FAILED).all_inner_texts() == []
        return page

    yield run
    for page in opened:
        page.close()


def try_to_run_all_cells(page):
    """Before JupyterLab has a current notebook, clicks are lost.

    On a busy machine it may ask a question first, such as which kernel to take, at any moment.
    """
    from playwright.sync_api import TimeoutError

    with suppress(TimeoutError):
        question = page.locator(".jp-Dialog .jp-mod-accept")
        if question.count():
            question.first.click(timeout=3000)
        page.click(".lm-MenuBar >> text=Run", timeout=3000)
        page.click(".lm-Menu >> text=Run All Cells >> nth=0", timeout=3000)
    page.wait_for_timeout(2000)
    page.keyboard.press("Escape")  # closes the menu, where the entry was not active yet


@pytest.mark.notebooks
@pytest.mark.parametrize("name", IN_JUPYTERLAB)
def test_notebook(run, name, tmp_path):
    page = run(name)
    assert page.locator(".jp-RenderedImage img, .widget-image, .alive").count() >= 3
    if name.startswith("04"):
        arrow_keys_change_the_image(page)
        photograph_is_explained(page, tmp_path)


def test_in_a_notebook_that_is_not_trusted_the_still_figure_is_seen(
    jupyterlab, top, browser, explored
):
    """As on GitHub and wherever else no script runs."""
    page = browser.new_page()
    data = {"text/html": explored.data, "text/plain": ""}
    output = nbformat.v4.new_output("execute_result", data=data, execution_count=1)
    cell = nbformat.v4.new_code_cell(execution_count=1, outputs=[output])
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), top / "untrusted.ipynb")
    page.goto(f"{jupyterlab}/lab/workspaces/untrusted/tree/untrusted.ipynb?reset")
    picture = page.locator(".jp-OutputArea-output img")
    picture.wait_for(timeout=60_000)
    assert picture.evaluate("image => image.naturalWidth > 800")
    assert picture.evaluate("image => image.getClientRects().length == 1")
    assert page.locator(".jp-OutputArea-output form").count() == 0
    assert page.locator(".jp-OutputArea-output").inner_text().strip() == ""
    page.close()


def arrow_keys_change_the_image(page):
    """And move JupyterLab to no other cell: its shortcuts keep out."""
    explorer = page.locator(".alive", has=page.locator("#bars"))
    position = explorer.locator("#position")
    assert position.inner_text().startswith("1 of")
    selected = page.locator(".jp-Notebook-cell.jp-mod-selected")
    cell = selected.evaluate("cell => cell.dataset.windowedListIndex ?? cell.id")
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
    answers = {"photo.jpg": "The network can answer nothing but", "no photo.txt": "is not an image"}
    for name, says in answers.items():
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


@pytest.fixture(scope="module")
def explored(model, sets):
    """The explorer of these images."""
    return explore(model, sets)


def as_page(path, outputs):
    """Write a page that holds these outputs."""
    viewport = '<meta name="viewport" content="width=device-width">'
    body = "".join(output.data for output in outputs)
    path.write_text(f'<!doctype html><meta charset="utf-8">{viewport}{body}', encoding="utf-8")
    return path


def collect_troubles(page, troubles):
    """Take down what goes wrong on a page, or would leave the machine."""

    def on_console(message):
        if message.type in ("error", "warning"):
            troubles.append(message.text)

    def on_dialog(dialog):
        troubles.append(dialog.message)
        dialog.dismiss()

    def on_request(request):
        if not request.url.startswith(("file:", "data:", "blob:")):
            troubles.append(request.url)

    page.on("console", on_console)
    page.on("dialog", on_dialog)
    page.on("request", on_request)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("requestfailed", lambda request: troubles.append(request.url))


@pytest.fixture
def show(browser, tmp_path):
    """Open a page from disk, or one that holds these outputs; afterwards nothing went wrong."""
    contexts, troubles = [], []

    def show(*content, width=1280, scheme="light", anchor=""):
        path = content[0]
        if not isinstance(path, os.PathLike):
            path = as_page(tmp_path / "page.html", content)
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,
            has_touch=True,
            offline=True,
        )
        contexts.append(context)
        page = context.new_page()
        collect_troubles(page, troubles)
        page.goto(path.as_uri() + anchor)
        page.wait_for_function(BUILT)
        return page

    yield show
    for context in contexts:
        context.close()
    assert troubles == []


@pytest.mark.parametrize("name", ["index", *NAMES])
def test_page_needs_no_network_and_all_its_links_resolve(show, pages, name):
    page = show(pages / f"{name}.html")
    both = "links => links.map(link => [link.href, link.getAttribute('href')])"
    links = page.eval_on_selector_all("a[href]", both)
    assert len(links) > 10
    for target, text in links:
        if not target.startswith("https:"):  # to a paper or a library, elsewhere
            file, _, anchor = target.removeprefix(pages.as_uri() + "/").partition("#")
            assert (pages / file).is_file() and not file.endswith(".ipynb"), text
            if anchor and file == f"{name}.html":
                assert page.locator(f"[id='{anchor}']").count(), text
    loaded = "images => images.every(image => image.naturalWidth > 0)"
    assert page.eval_on_selector_all("img", loaded)


def axe(page, *rules):
    """What axe-core finds on a page, by these rules or by all."""
    from axe_playwright_python.sync_playwright import Axe

    options = {"resultTypes": ["violations"]}  # to list all that is well takes twice as long
    found = Axe().run(page, options=options | ({"runOnly": rules} if rules else {}))
    return found.generate_report() if found.violations_count else ""


@pytest.mark.parametrize("name", ["index", *NAMES])
def test_page_fits_and_axe_finds_nothing(show, pages, name):
    page = show(pages / f"{name}.html", width=1000)
    fits = "document.documentElement.scrollWidth <= innerWidth"
    assert page.evaluate(fits)
    assert axe(page) == ""
    page.emulate_media(color_scheme="dark")
    assert axe(page, "color-contrast", "link-in-text-block") == ""
    page.set_viewport_size({"width": 400, "height": 900})
    page.evaluate("new Promise(requestAnimationFrame)")
    assert page.evaluate(fits)
    assert axe(page, "scrollable-region-focusable", "target-size") == ""


def test_a_page_of_a_thousand_pixels_has_the_column_that_figures_are_made_for(show, pages):
    page = show(pages / f"{NAMES[0]}.html", width=1000)
    widths = page.eval_on_selector_all(".jp-RenderedImage", "all => all.map(e => e.clientWidth)")
    assert min(widths) == COLUMN


def test_pages_lead_through_the_series_and_back(show, pages):
    page = show(pages / "index.html")
    for name in NAMES:
        page.click("[rel=next]")
        assert page.url.endswith(f"/{name}.html")
        assert page.locator("nav [aria-current]").count() == 1
    assert page.locator("[rel=next]").count() == 0
    page.click("[rel=prev]")
    page.click("nav >> text=Start")
    assert page.url.endswith("/index.html")


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_explorer_fits_and_is_legible(show, explored, width, scheme):
    page = show(explored, width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    size_of_each = "all => all.map(one => parseFloat(getComputedStyle(one).fontSize))"
    sizes = page.eval_on_selector_all(".alive form *", size_of_each)
    assert min(sizes) >= 16
    assert len(sizes) > 100
    names = page.eval_on_selector_all(
        ".alive :is(button, select, input, canvas[role])",
        "all => all.map(e => e.ariaLabel || e.textContent || e.labels?.[0]?.textContent)",
    )
    assert all(names), "everything to be used has a name"


def test_explorer_pages_through_images_and_its_address_remembers_the_one_shown(
    show, explored, sets
):
    page = show(explored)
    headline, position = page.locator("#headline"), page.locator("#position")

    def state():
        return headline.inner_text() + page.locator("#reading").inner_text()

    assert headline.inner_text().endswith("wrong ✗")
    page.locator("#next").focus()
    seen = {state()}
    for i in range(20):
        page.keyboard.press("ArrowRight")
        assert position.inner_text() == f"{i + 2} of 60"
        seen.add(state())
    assert len(seen) == 21
    before, address = state(), page.url
    page.reload()
    page.wait_for_function(BUILT)
    assert page.url == address and "#test-" in address
    assert state() == before

    page.evaluate("location.hash = '#test-5'")
    page.wait_for_function(
        """() => document.querySelector(".alive").shadowRoot
            .querySelector("#position").textContent != "21 of 60" """
    )
    predictions, classes = sets["test"][1], shapes.CLASSES
    expected = f"said {classes[predictions.predicted[5]]}, is {classes[predictions.labels[5]]}:"
    assert headline.inner_text().startswith(expected)


def test_explorer_filters_and_its_matrix_leave_the_images_they_name(show, explored, sets):
    page, predictions = show(explored), sets["test"][1]
    position = page.locator("#position")
    right = predictions.correct.sum()
    for outcome, count in (("right", right), ("wrong", len(predictions.labels) - right)):
        page.get_by_role("radio", name=outcome).check(force=True)
        assert position.inner_text() == f"1 of {count}"
    actual, said = predictions.labels[4], predictions.predicted[4]
    count = ((predictions.labels == actual) & (predictions.predicted == said)).sum()
    names = f"is {shapes.CLASSES[actual]}, said {shapes.CLASSES[said]}"
    cell = page.get_by_label(f"{names}: {count} images")
    cell.click()
    assert position.inner_text() == f"1 of {count}"
    assert cell.get_attribute("aria-pressed") == "true"
    page.get_by_role("radio", name="right").check(force=True)
    assert page.locator("#headline").inner_text().startswith("No image here")
    assert not page.locator(".panels").is_visible()
    page.get_by_role("radio", name="all").check(force=True)
    cell.click()
    assert position.inner_text() == "1 of 60"


@pytest.mark.parametrize(
    "side, explain", [(4, GradCAM), (8, lambda model: GradCAM(dilated(model)))]
)
def test_explorer_draws_grad_cams(show, model, sets, explored, side, explain):
    """One cell's number and colour, and the whole heatmap over the grey image."""
    page, dataset = show(explored, anchor="#test-20"), sets["test"][0]
    page.locator("select[name=first]").select_option(shapes.CLASSES[3])
    second = page.locator("#bars button", has_text=shapes.CLASSES[8])
    second.click(modifiers=["Shift"])
    page.get_by_text(f"{side} × {side} cells").click()
    raw = explain(model).evidence(dataset.tensor([20]), [[3, 8]])[0]
    heat = explain(model)(dataset.tensor([20]), [[3, 8]])[0].numpy()
    grey = dataset.images[20].mean(-1, keepdims=True)
    colours = matplotlib.colormaps[plots.HEATMAP_COLOURS](heat, bytes=True)[..., :3]
    for k in range(2):
        difference = np.abs(pixels(page, k + 1) - (0.6 * colours[k] + 0.4 * grey))
        assert np.median(difference) < 4  # JPEG, and maps in 8 bits
        assert difference.mean() < 8

    page.get_by_text("evidence", exact=True).click()
    maps = torch.stack([*raw, raw[0] - raw[1]]).numpy()
    limit = np.abs(maps).max()
    signed_colours = matplotlib.colormaps[plots.SIGNED_COLOURS]
    for k in range(3):
        expected = signed_colours((maps[k] / limit + 1) / 2, bytes=True)[..., :3]
        difference = np.abs(pixels(page, k + 1) - expected)
        assert difference.max() <= 12, "a step of a map is at most two of the palette"

    row, column = np.unravel_index(maps[0].argmax(), maps[0].shape)
    point_at_cell(page, row, column, side)
    where, numbers = page.locator("#reading").inner_text().split(": ")
    assert where == f"row {row + 1}, column {column + 1}"
    texts = numbers.removesuffix(" logit units").split(", ")
    found = [float(text.split()[-1].replace("−", "-")) for text in texts]
    np.testing.assert_allclose(found, maps[:, row, column], atol=2 * limit / 127 + 0.006)


def point_at_cell(page, row, column, side):
    """Move the mouse to the middle of a cell of the first map."""
    box = page.locator("figure canvas").nth(1).bounding_box()
    x = box["x"] + (column + 0.5) * box["width"] / side
    y = box["y"] + (row + 0.5) * box["height"] / side
    page.mouse.move(x, y)


def pixels(page, number):
    """The pixels of a canvas of the explorer, (h, w, 3)."""
    canvas = page.locator("figure canvas").nth(number)
    png = base64.b64decode(canvas.evaluate("canvas => canvas.toDataURL().split(',')[1]"))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(float)


def test_cells_are_reached_by_keyboard_and_images_by_swipe(show, explored):
    page = show(explored, width=400)
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


def test_two_explorers_and_a_game_on_one_page_keep_apart(show, model, sets, explored):
    small = explore(model, sets, count=10)
    page = show(explored, small, play(model, *sets["test"], rounds=6))
    first, second, game = (page.locator(".alive").nth(i) for i in range(3))
    second.locator("#next").click()
    assert first.locator("#position").inner_text() == "1 of 60"
    assert second.locator("#position").inner_text() == "2 of 10"
    for _ in range(6):
        assert game.locator("canvas").count() == 1
        game.get_by_text("it was right").click()
    coin = "a coin does as well or better in 65.6 % of such games."  # 42 / 64
    assert game.locator("#headline").inner_text() == f"3 of 6 guessed right; {coin}"
    captions = game.locator("figcaption").all_inner_texts()
    assert game.locator("canvas").count() == 6
    assert sorted(captions) == ["right"] * 3 + ["wrong"] * 3
    assert game.get_by_text("it was right").is_disabled()


@pytest.mark.parametrize("count", [3, 100])
def test_explorer_of_any_classes_shows_their_names_as_text(show, sets, count):
    hostile = ("<img src=x onerror=alert(1)>", "</script><script>alert(1)</script>")
    names = (*hostile, *(f"class {i}" for i in range(2, count)))
    images = sets["test"][0]
    dataset = Dataset(images.images, images.labels % count, names)
    model = resnet18(count, width=16)
    page = show(explore(model, {"<b>mine</b>": (dataset, predict(model, dataset))}))
    assert page.locator("select[name=first] option").all_inner_texts() == list(names)
    assert page.locator("#bars button").count() == min(count, 12)
    assert page.locator("table").is_visible() == (count == 3)
    page.locator("#next").click()
    assert page.locator("#position").inner_text().startswith("2 of")
    assert page.locator("img[src=x], b b").count() == 0


def test_explorer_of_a_network_without_mistakes(show, model, sets):
    dataset, predictions = sets["test"]
    all_right = Predictions(predictions.logits, predictions.predicted, shapes.CLASSES)
    page = show(explore(model, {"test": (dataset, all_right)}))
    assert page.locator("#headline").inner_text().endswith("right ✓")
    page.get_by_role("radio", name="wrong").check(force=True)
    assert page.locator("#position").inner_text() == "0 of 0"


CHANGES = """async root => {
    const form = root.querySelector("form");
    const bars = root.querySelectorAll("#bars button");
    const times = [];
    for (let i = 0; i < 200; i++) {
        const choice = i >> 2 & 1;
        const targets = [
            root.querySelector("#next"),
            form.elements.grid[choice],
            bars[i % 10],
            form.elements.view[choice],
        ];
        await new Promise(requestAnimationFrame);
        const start = performance.now();
        targets[i % 4].click();
        form.offsetHeight;  // the layout, too
        times.push(performance.now() - start);
    }
    return times.sort((a, b) => a - b);
}"""


@pytest.mark.wallclock
def test_a_change_is_drawn_in_the_next_frame(show, explored):
    page = show(explored)
    times = page.locator("form").evaluate_handle("form => form.getRootNode()").evaluate(CHANGES)
    print(f"200 changes: median {times[100]:.1f} ms, worst {times[-1]:.1f} ms")
    assert times[100] <= 16
    assert times[190] <= 50  # the very worst depends on what else this machine does
