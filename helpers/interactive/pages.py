"""Write the series as pages to look at: run the five notebooks, then make of the README the page that opens them.

python -m helpers.interactive.pages
"""

import os
import re
import shutil
from pathlib import Path

from nbconvert import HTMLExporter
from nbconvert.nbconvertapp import NbConvertApp
from nbformat.v4 import new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = str(ROOT / "notebooks" / "page.html.j2")


def write_pages(folder: Path, *options: str) -> None:
    """Write every notebook, and the README as index.html, to a folder; options: of nbconvert, such as "--execute"."""
    notebooks = map(str, sorted((ROOT / "notebooks").glob("*.ipynb")))
    how = ["--to=html", f"--template-file={TEMPLATE}", f"--output-dir={folder}"]
    NbConvertApp.launch_instance([*options, *how, *notebooks])
    write_index(folder)


def write_index(folder: Path) -> None:
    """Write the README to a folder as index.html, without the badges, which another host draws, and copy what it shows."""
    text = re.sub(r"^\[!\[.*\n", "", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    for name in re.findall(r'(?:\]\(|src=")((?:images|helpers)/[^)"]+)', text):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    exporter, metadata = HTMLExporter(template_file=TEMPLATE), {"metadata": {"name": "index"}}
    page, _ = exporter.from_notebook_node(new_notebook(cells=[new_markdown_cell(text)]), metadata)
    (folder / "index.html").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("TQDM_DISABLE", "1")  # keeps progress bars out of the pages
    write_pages(ROOT / "html", "--execute")
