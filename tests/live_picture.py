"""The still picture of html/live.html: `python tests/live_picture.py` writes images/live.png.

It opens the page in Chromium, hides a part of an image, and takes a picture of what comes of it.
"""

import sys
from pathlib import Path

from conftest import CHROMIUM
from playwright.sync_api import sync_playwright

PROJECT = Path(__file__).resolve().parents[1]


def main(source: Path, target: Path) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(source.as_uri() + "#image=2")
        page.wait_for_function("document.querySelector('.alive').live?.maps.length")
        page.evaluate(
            """() => {
                const { live } = document.querySelector(".alive");
                live.down(11, 9);
                for (const place of [[20, 9], [20, 13], [11, 13]]) live.drag(...place);
                live.up();
            }"""
        )
        page.wait_for_function("document.querySelector('.alive').live.now.answers[4]")
        page.locator("#desk").screenshot(path=target)


if __name__ == "__main__":
    paths = [Path(argument).resolve() for argument in sys.argv[1:]]
    main(*(paths or [PROJECT / "html" / "live.html", PROJECT / "images" / "live.png"]))
