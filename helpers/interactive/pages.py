"""Write the series as pages to look at: run the five notebooks, and open them from the README.

`python -m helpers.interactive.pages` runs them first; with `--no-execute` it does not.
"""

import argparse
import os
import re
import shutil
from pathlib import Path

from nbconvert import HTMLExporter
from nbconvert.nbconvertapp import NbConvertApp
from nbformat.v4 import new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = str(ROOT / "notebooks" / "page.html.j2")
BADGES = re.compile(r"^\[!\[.*\n", re.MULTILINE)  # drawn by another host
LINKED_FILES = re.compile(r'(?:\]\(|src=")((?:images|helpers|\.github)/[^)"]+)')


def write_pages(folder: Path, *options: str) -> None:
    """Write every notebook, and the README as index.html.

    Args:
        folder: where to.
        *options: of nbconvert, such as "--execute".
    """
    notebooks = [str(path) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    how = ["--to=html", f"--template-file={TEMPLATE}", f"--output-dir={folder}"]
    NbConvertApp.launch_instance([*options, *how, *notebooks])
    write_index(folder)


def write_index(folder: Path) -> None:
    """Write the README as index.html, without its badges, and copy the files that it links to.

    Args:
        folder: where to.
    """
    text = BADGES.sub("", (ROOT / "README.md").read_text(encoding="utf-8"))
    for name in LINKED_FILES.findall(text):
        copy = folder / name.removeprefix(".github/")  # hidden folders are not published
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy)
    text = text.replace("](.github/", "](")
    notebook = new_notebook(cells=[new_markdown_cell(text)])
    resources = {"metadata": {"name": "index"}}
    page, _ = HTMLExporter(template_file=TEMPLATE).from_notebook_node(notebook, resources)
    (folder / "index.html").write_text(page, encoding="utf-8")


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
    write_pages(ROOT / "html", *([] if args.no_execute else ["--execute"]))


if __name__ == "__main__":
    main()
