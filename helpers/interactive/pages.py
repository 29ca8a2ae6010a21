"""Write the series as pages to look at: run the notebooks, and open them from the README.

`python -m helpers.interactive.pages` runs them first, two at a time; with `--no-execute` it does
not. The pages need no script and no network: formulas in LaTeX become MathML.
Their frame with the navigation bar is notebooks/page.html.j2.
"""

import argparse
import html
import os
import re
import shutil
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import tostring

import nbformat
from joblib import Parallel, delayed
from latex2mathml.converter import convert_to_element
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbconvert.preprocessors import ClearOutputPreprocessor
from nbformat import NotebookNode

from helpers.interactive.live import write_live
from helpers.interactive.widgets import FRONT_ENDS
from helpers.support.command import one_line_errors

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "notebooks" / "page.html.j2"
BADGES = re.compile(r"^\[!\[.*\n", re.MULTILINE)  # drawn by another host
LINKED_FILES = re.compile(r'(?:\]\(|src=")(?:\.\./)*((?:images|helpers|\.github)/[^)"#?\s]+)')
EMPTY_HEADERS = re.compile("<th[^>]*></th>")  # of tables, which a screen reader stumbles over
TITLES = re.compile(r"^\| \[([^\]]+)\]\(notebooks/([\w/]+)\.ipynb\)", re.MULTILINE)
TOGETHER = 2  # notebooks that run at the same time, where there are as many cores


class PageRenderer(IPythonRenderer):
    """Formulas as MathML; headings, and links to notebooks, for pages."""

    def inline_math(self, body: str) -> str:
        """A formula in a line."""
        return as_mathml(body, "inline")

    def block_math(self, body: str) -> str:
        """A formula on a line of its own."""
        return as_mathml(body, "block")

    def heading(self, text: str, level: int, **attrs: Any) -> str:
        """A heading, with the anchor that GitHub gives it."""
        words = re.sub(r"<[^>]*>|[^\w\- ]", "", text).lower()
        return f'<h{level} id="{words.replace(" ", "-")}">{text}</h{level}>\n'

    def link(self, text: str, url: str, title: str | None = None) -> str:
        """A link, to a page where there is one."""
        return super().link(text, page_address(url), title)

    def image(self, text: str, url: str, title: str | None = None) -> str:
        """A picture that a text shows."""
        return super().image(text, page_address(url), title)


def to_html(text: str) -> str:
    """Text of a cell as HTML."""
    return MarkdownWithMath(renderer=PageRenderer(escape=False)).render(text)


def as_mathml(latex: str, display: str) -> str:
    """A formula as MathML; what is none, such as a price in dollars, as it stands."""
    try:
        formula = convert_to_element(latex, display=display)
    except Exception:  # latex2mathml raises errors of many kinds
        return html.escape(f"${latex}$")
    return tostring(formula, encoding="unicode").replace("&amp;#", "&#")  # its symbols


def page_address(link: str) -> str:
    """What a link in the README or in a notebook becomes on its page.

    The pages of `notebooks/` lie in the top folder, beside what else is linked to.
    """
    if re.match("https?:|#", link):
        return link
    link = re.sub(r"^\.\./((?:\.\./)*)(README|images|helpers|html|\.github)\b", r"\1\2", link)
    link = re.sub(r"^((?:\.\./)*)(?:notebooks|html|\.github)/", r"\1", link)
    link = re.sub(r"^((?:\.\./)*)README\.md", r"\1index.html", link)
    return re.sub(r"\.ipynb(?=#|$)", ".html", link)


def write_pages(folder: Path, execute: bool = False) -> None:
    """Write every notebook, the README as index.html, and the network in a page as live.html.

    Args:
        folder: where to.
        execute: run the notebooks; else their outputs are taken as they are.

    Raises:
        ValueError: notebooks stopped early; all pages are written, theirs up to that place.
    """
    together = min(TOGETHER, os.cpu_count() or 1) if execute else 1
    write = delayed(write_page)
    stopped = Parallel(together)(write(path, folder, execute) for path in notebooks())
    write_index(folder)
    write_live(folder / "live.html")
    if any(stopped):
        raise ValueError("notebooks that stopped early: " + "; ".join(filter(None, stopped)))


def notebooks() -> list[Path]:
    """The notebooks of the walk, then those of the second shelf."""
    top = ROOT / "notebooks"
    return [*sorted(top.glob("[!.]*.ipynb")), *sorted(top.glob("further/[!.]*.ipynb"))]


def name_of(path: Path) -> str:
    """A notebook's path below `notebooks/`, without its ending."""
    return path.relative_to(ROOT / "notebooks").with_suffix("").as_posix()


def series() -> list[tuple[str, str]]:
    """All pages as (name, short title), for the navigation bar; titles as the README has them."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    titles = {name: title for title, name in TITLES.findall(readme)}
    names = [name_of(path) for path in notebooks()]
    return [("index", "Start"), *((name, titles.get(name, name)) for name in names)]


def write_page(path: Path, folder: Path, execute: bool = False) -> str:
    """Write one notebook as a page.

    Args:
        path: of the notebook.
        folder: where the pages go; those of `notebooks/further` go to its subfolder of that name.
        execute: run it first.

    Returns:
        Where it stopped early, its name and why; else nothing.
    """
    notebook = nbformat.read(path, as_version=4)
    stopped = ""
    if execute:
        notebook, _ = ClearOutputPreprocessor().preprocess(notebook, {})
        resources = {"metadata": {"path": str(path.parent)}}
        # A page can show no widget, even where this runs in a terminal of JupyterLab.
        environment = {n: value for n, value in os.environ.items() if n not in FRONT_ENDS}
        try:
            NotebookClient(notebook, timeout=None, resources=resources).execute(env=environment)
        except CellExecutionError as error:  # images of one's own may be too few for a notebook
            stopped = f"{name_of(path)}: {error.evalue}"
    _write(notebook, name_of(path), folder)
    return stopped


def write_index(folder: Path) -> None:
    """Write the README as index.html, without its badges, and copy the files that are linked to.

    Args:
        folder: where to.
    """
    text = BADGES.sub("", (ROOT / "README.md").read_text(encoding="utf-8"))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])
    _write(notebook, "index", folder)


def _write(notebook: NotebookNode, name: str, folder: Path) -> None:
    """Write a page, and copy the files that it links to."""
    text = "\n".join(cell.source for cell in notebook.cells)
    notebook.metadata["title"] = text.strip().partition("\n")[0].lstrip("# ")
    resources = {"metadata": {"name": name}, "series": series(), "top": "../" * name.count("/")}
    exporter = HTMLExporter(template_file=str(TEMPLATE), filters={"markdown2html": to_html})
    page, _ = exporter.from_notebook_node(notebook, resources)
    target = folder / f"{name}.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(EMPTY_HEADERS.sub("<td></td>", page), encoding="utf-8")
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    for linked in LINKED_FILES.findall("\n".join(texts)):
        copy = folder / linked.removeprefix(".github/")  # hidden folders are not published
        if (ROOT / linked).is_file() and ".." not in linked:  # not dead, nor out of the project
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / linked, copy)
    print(target)


@one_line_errors()
def main(argv: list[str] | None = None) -> None:
    """Write the pages from the command line."""
    parser = argparse.ArgumentParser("python -m helpers.interactive.pages")
    parser.add_argument(
        "--no-execute",
        action="store_true",
        help="take the notebooks with the outputs that they hold, without running them",
    )
    args = parser.parse_args(argv)
    os.environ.setdefault("TQDM_DISABLE", "1")  # keeps progress bars out of the pages
    write_pages(ROOT / "html", execute=not args.no_execute)


if __name__ == "__main__":
    main()
