"""The notebooks as their readers use them: in JupyterLab, in a real browser, with the mouse."""

import os
import shutil
import socket
import subprocess
import sys
import time
from urllib.parse import quote
from urllib.request import urlopen

import pytest
from PIL import Image

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
FAILED = '[data-mime-type="application/vnd.jupyter.error"], [data-mime-type="application/vnd.jupyter.stderr"]'


@pytest.fixture(scope="module")
def jupyterlab(tmp_path_factory):
    """A JupyterLab, started outside a copy of the project; its address. The project's own notebooks are not written to."""
    top = tmp_path_factory.mktemp("some folder")
    project = os.path.join(os.path.dirname(__file__), os.pardir)
    for part in ("notebooks", "helpers"):
        shutil.copytree(os.path.join(project, part), top / "the project" / part, ignore=shutil.ignore_patterns("__pycache__"))
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
    pages = []

    def run(name):
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        pages.append(page)
        page.goto(f"{jupyterlab}/lab/workspaces/{name}/tree/{quote('the project/notebooks')}/{name}.ipynb?reset")
        page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
        page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]', timeout=60_000)
        for menu, entry in (("Edit", "Clear Outputs of All Cells"), ("Run", "Run All Cells")):
            page.click(f".lm-MenuBar >> text={menu}")
            page.click(f".lm-Menu >> text={entry} >> nth=0")
        page.wait_for_function(DONE, timeout=300_000)
        assert page.locator(FAILED).all_inner_texts() == []
        return page

    yield run
    for page in pages:
        page.close()


@pytest.mark.parametrize("name", NAMES)
def test_notebook(run, name, tmp_path):
    page = run(name)
    assert page.locator(".jp-RenderedImage img, .widget-image").count() >= 3
    if name.startswith("04"):
        slider_changes_the_picture(page)
        photograph_is_explained(page, tmp_path)


def slider_changes_the_picture(page):
    explorer = page.locator(".jp-OutputArea-output", has_text="strength")
    picture = explorer.locator("img.widget-image")
    handle = explorer.locator(".widget-slider", has_text="strength").locator(".noUi-handle")
    before = picture.get_attribute("src")
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] - 100, box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    page.wait_for_function("([image, before]) => image.src != before", arg=[picture.element_handle(), before], timeout=5_000)


def photograph_is_explained(page, folder):
    Image.linear_gradient("L").resize((640, 480)).convert("RGB").save(folder / "photo.jpg")
    (folder / "no photo.txt").write_text("text")
    button = page.locator(".widget-upload")
    output = page.locator(".jp-OutputArea-output", has=button)
    for name, says in (("photo.jpg", "The network can answer nothing but"), ("no photo.txt", "this is not an image")):
        with page.expect_file_chooser() as chooser:
            button.click()
        chooser.value.set_files(folder / name)
        output.get_by_text(says).wait_for(timeout=20_000)
