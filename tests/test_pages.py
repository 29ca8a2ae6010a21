"""The pages as files; test_browser.py opens them."""

import re
from pathlib import Path

import pytest
from tools import figures

from helpers.interactive import pages as pages_module

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_pages_have_both_themes_and_room_for_narrow_screens(pages, path):
    page = (pages / f"{path.stem}.html").read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in page
    assert "max-width: 600px" in page
    assert page.count("<summary>Set-up</summary>") == 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_image_of_a_page_has_an_alternative_text(pages, path):
    page = (pages / f"{path.stem}.html").read_text(encoding="utf-8")
    texts = re.findall(r'<img alt="([^"]*)"', page)
    assert len(texts) == page.count("<img") == len(figures(path))
    assert min(len(text) for text in texts) > 25


def test_pages_name_the_series_as_the_readme_does(pages, project):
    readme = (project / "README.md").read_text(encoding="utf-8")
    titles = re.findall(r"\| \[([^\]]+)\]\(notebooks/(\w+)\.ipynb\)", readme)
    expected = [(name, title) for title, name in titles]
    assert len(expected) == len(NOTEBOOKS)
    for path in [pages / "index.html", *pages.glob("0*.html")]:
        bar = re.search(r"<nav.*?</nav>", path.read_text(encoding="utf-8"), re.DOTALL).group()
        start, *series = re.findall(r'href="(\w+)\.html"[^>]*>([^<]+)<', bar)
        assert start[0] == "index"
        assert series == expected
        assert re.findall(r'<a aria-current="page" href="(\w+)\.html"', bar) == [path.stem]


def test_the_index_is_the_readme_without_badges_and_brings_what_it_links_to(tmp_path, monkeypatch):
    root = tmp_path / "project"
    for name in ("images", ".github"):
        (root / name).mkdir(parents=True)
    (root / ".github" / "GUIDE.md").write_text("how to")
    (root / "images" / "a.png").write_bytes(b"a picture")
    (root / "images" / "unused.png").write_bytes(b"another")
    lines = [
        "# Title",
        "[![tests](https://example.org/badge.svg)](https://example.org)",
        "![what it shows](images/a.png)",
        "See [the first](notebooks/01_data_augmentation.ipynb) and [how to](.github/GUIDE.md).",
    ]
    (root / "README.md").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(pages_module, "ROOT", root)
    folder = tmp_path / "html"
    pages_module.write_index(folder)
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert "badge.svg" not in page
    assert 'href="01_data_augmentation.html"' in page
    assert (folder / "images" / "a.png").read_bytes() == b"a picture"
    assert not (folder / "images" / "unused.png").exists()
    assert 'href="GUIDE.md"' in page
    assert (folder / "GUIDE.md").read_text() == "how to"
