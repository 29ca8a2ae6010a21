"""The pages as files; test_browser.py opens them."""

import re
import shutil

import nbformat
import pytest
from tools import elements, figures

from helpers.interactive import pages as pages_module

NOTEBOOKS = {pages_module.name_of(path): path for path in pages_module.notebooks()}


def read_page(pages, name):
    return (pages / f"{name}.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_pages_have_both_themes_and_room_for_narrow_screens(pages, name):
    page = read_page(pages, name)
    assert "prefers-color-scheme: dark" in page
    assert "max-width: 600px" in page
    assert page.count("<summary>Set-up</summary>") == 1


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_image_of_a_page_has_an_alternative_text(pages, name):
    page = read_page(pages, name)
    texts = re.findall(r'<img [^>]*?alt="([^"]*)"', page)
    cells = nbformat.read(NOTEBOOKS[name], as_version=4).cells
    in_texts = sum(cell.source.count("![") for cell in cells if cell.cell_type == "markdown")
    assert len(texts) == page.count("<img") == len(figures(NOTEBOOKS[name])) + in_texts
    assert min(len(text) for text in texts) > 25


@pytest.mark.parametrize("name", ["index", *NOTEBOOKS])
def test_every_formula_of_a_page_is_understood(pages, name):
    unknown = re.findall(r"<m[a-z]+>(\\\w*)", read_page(pages, name))
    assert not unknown, "latex2mathml has no such command"


@pytest.mark.parametrize("name", ["index", *NOTEBOOKS])
def test_each_page_has_a_bar_with_links_to_all_and_is_marked_in_it(pages, name):
    bar = re.search(r"<nav.*?</nav>", read_page(pages, name), re.DOTALL).group()
    links = re.findall(r'href="([\w/.]+)\.html"[^>]*>([^<]+)<', bar)
    places = [(pages / f"{name}.html").parent.joinpath(link).resolve() for link, _ in links]
    assert places == [(pages / place).resolve() for place in ("index", *NOTEBOOKS)]
    assert [title for _, title in links] == [title for _, title in pages_module.series()]
    (marked,) = re.findall(r'<a aria-current="page" href="([^"]+)\.html"', bar)
    assert marked.removeprefix("../") == name


def test_pages_are_called_what_the_tables_of_the_readme_call_them(tmp_path, monkeypatch):
    (tmp_path / "notebooks" / "further").mkdir(parents=True)
    (tmp_path / "notebooks" / "01_one.ipynb").touch()
    (tmp_path / "notebooks" / "further" / "two.ipynb").touch()
    (tmp_path / "notebooks" / "further" / ".draft.ipynb").touch()
    table = "See [here](notebooks/01_one.ipynb).\n\n| [1 · One](notebooks/01_one.ipynb) | what? |"
    (tmp_path / "README.md").write_text(table, encoding="utf-8")
    monkeypatch.setattr(pages_module, "ROOT", tmp_path)
    expected = [("index", "Start"), ("01_one", "1 · One"), ("further/two", "further/two")]
    assert pages_module.series() == expected


@pytest.mark.parametrize(
    ("link", "address"),
    [
        ("https://example.org/a.ipynb", "https://example.org/a.ipynb"),
        ("#glossary", "#glossary"),
        ("notebooks/03_evaluation.ipynb", "03_evaluation.html"),
        ("notebooks/further/trust.ipynb#what", "further/trust.html#what"),
        ("further/trust.ipynb", "further/trust.html"),
        ("../03_evaluation.ipynb", "../03_evaluation.html"),
        ("../README.md", "index.html"),
        ("../../README.md#glossary", "../index.html#glossary"),
        ("../../helpers/studies/records/a.csv", "../helpers/studies/records/a.csv"),
        ("../images/a.png", "images/a.png"),
        (".github/CONTRIBUTING.md", "CONTRIBUTING.md"),
        ("../.github/CONTRIBUTING.md", "CONTRIBUTING.md"),
        ("helpers/weights/cifar10.csv", "helpers/weights/cifar10.csv"),
    ],
)
def test_links_lead_from_page_to_page(link, address):
    assert pages_module.page_address(link) == address


TEXT = r"""# A title, *and* more?

Inline $p_c = \frac{1}{2}$, code `$not$`, [the walk](../03_evaluation.ipynb),
[a record](../../helpers/record.csv).

$$\sum_{k=1}^{10} p_k = 1$$

| | a |
|---|---|
| row | $p$ |
"""


def test_a_page_of_the_second_shelf(tmp_path, monkeypatch):
    root = tmp_path / "project"
    further = root / "notebooks" / "further"
    further.mkdir(parents=True)
    (root / "helpers").mkdir()
    (root / "helpers" / "record.csv").write_text("a,b")
    (root / "README.md").write_text("# Title")
    shutil.copy(pages_module.TEMPLATE, root / "notebooks")
    monkeypatch.setattr(pages_module, "ROOT", root)
    monkeypatch.setenv("JPY_SESSION_NAME", "of a kernel from whose terminal the pages are made")
    code = "import os; print(6 * 7, os.environ.get('JPY_SESSION_NAME'))"
    cells = [nbformat.v4.new_markdown_cell(TEXT), nbformat.v4.new_code_cell(code)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), further / "one.ipynb")
    folder = tmp_path / "html"
    pages_module.write_page(further / "one.ipynb", folder, execute=True)
    page = read_page(folder, "further/one")
    assert '<h1 id="a-title-and-more">A title, <em>and</em> more?</h1>' in page
    assert page.count("<math ") == 3 and page.count('<math display="block"') == 1
    assert "<code>$not$</code>" in page
    assert 'href="../03_evaluation.html"' in page and 'href="../index.html"' in page
    assert (folder / "helpers" / "record.csv").is_file()
    assert "42 None" in page
    assert "<th></th>" not in page


def test_a_notebook_that_stops_early_has_its_page_and_the_others_are_written(tmp_path, monkeypatch):
    root = tmp_path / "project"
    (root / "notebooks").mkdir(parents=True)
    (root / "README.md").write_text("# Title")
    shutil.copy(pages_module.TEMPLATE, root / "notebooks")
    monkeypatch.setattr(pages_module, "ROOT", root)
    monkeypatch.setattr(pages_module, "TOGETHER", 1)
    monkeypatch.setattr(pages_module, "write_live", lambda path: None)
    for name, code in {"01_few": "assert not 1, 'take more images'", "02_fine": "6 * 7"}.items():
        cells = [nbformat.v4.new_code_cell(code), nbformat.v4.new_code_cell("print('on')")]
        cells[1].outputs = [nbformat.v4.new_output("stream", text="of an earlier run")]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), root / "notebooks" / f"{name}.ipynb")
    with pytest.raises(ValueError, match="stopped early: 01_few: take more images$"):
        pages_module.write_pages(tmp_path / "html", execute=True)
    few, fine = (read_page(tmp_path / "html", name) for name in ("01_few", "02_fine"))
    assert "take more images" in few and "of an earlier run" not in few
    assert "42" in fine and (tmp_path / "html" / "index.html").is_file()


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


@pytest.mark.parametrize(
    "latex, shown",
    [
        (r"\text{<script>alert(1)</script>}", "<script>alert(1)</script>"),
        (r"\text{R&B &lt;b>}", "R&B &lt;b>"),
        ("a < b", "a<b"),
        (r"p \ne q", "p≠q"),
        (r"\frac", r"$\frac$"),
        (r"\left( <b>", r"$\left( <b>$"),
    ],
)
def test_formulas_never_become_markup_and_prices_stand_as_they_are(latex, shown):
    made = elements(f"<p>{pages_module.as_mathml(latex, 'inline')}")
    assert "".join(element.text for element in made).replace("\xa0", " ") == shown
    assert {element.tag for element in made} <= {"p", "math", "mrow", "mi", "mo", "mtext"}


@pytest.mark.parametrize("cells", [[], ["", "# <b>Mine</b> & yours"], ["costs $5_ and $6, or {"]])
def test_a_notebook_of_the_reader_is_written_whatever_it_holds(tmp_path, monkeypatch, cells):
    monkeypatch.setattr(pages_module, "ROOT", tmp_path)
    (tmp_path / "README.md").write_text("# Title\n| [A & <b>](notebooks/mine.ipynb) |")
    (tmp_path / "notebooks").mkdir()
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(c) for c in cells])
    nbformat.write(notebook, tmp_path / "notebooks" / "mine.ipynb")
    pages_module.write_page(tmp_path / "notebooks" / "mine.ipynb", tmp_path)
    assert ">A &amp; &lt;b&gt;</a>" in read_page(tmp_path, "mine")


def test_files_outside_the_project_and_dead_links_are_not_copied(tmp_path, monkeypatch):
    root, folder = tmp_path / "project", tmp_path / "pages" / "html"
    (root / "images").mkdir(parents=True)
    (root / "images" / "a.png").write_bytes(b"a picture")
    (tmp_path / "secret.txt").write_text("not for others")
    monkeypatch.setattr(pages_module, "ROOT", root)
    links = '![a](images/a.png "a title") [b](images/../../secret.txt) ![c](images/none.png)'
    (root / "README.md").write_text(f"# Title\n{links} [d](images/) ![e](images/a.png?raw=true)")
    pages_module.write_index(folder)
    assert {path.name for path in folder.rglob("*") if path.is_file()} == {"index.html", "a.png"}
    assert [path.name for path in folder.parent.iterdir()] == ["html"]
