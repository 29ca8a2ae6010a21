"""What holds for every notebook as a file; that they run is tested by nbval."""

import ast
import base64
import io
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nbformat
import pytest
from PIL import Image
from tools import BORDER, PIXELS_PER_INCH, code_cells, figures

from helpers import data, plots, shapes
from helpers.interactive import pages
from helpers.studies import RECORDS
from helpers.support.weights import WEIGHTS

PROJECT = Path(__file__).parents[1]
NOTEBOOKS = pages.notebooks()
WALK = ["01_data_augmentation", "02_training", "03_evaluation"]
WALK += ["04_gradcam_correct", "05_gradcam_incorrect"]
FURTHER = ["fair_comparison", "finer_maps", "ingredients", "methods", "remedies", "trust"]

of_every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=pages.name_of)


def test_the_series_is_complete():
    assert [pages.name_of(path) for path in NOTEBOOKS] == [
        *WALK,
        *(f"further/{name}" for name in FURTHER),
    ]


@of_every_notebook
def test_the_first_code_cell_is_the_same_everywhere_and_folded(path):
    cell = code_cells(path)[0]
    assert cell.source == code_cells(NOTEBOOKS[0])[0].source
    assert cell.source.startswith("#@title Set-up")
    assert cell.metadata["cellView"] == "form"  # Colab's way
    assert cell.metadata["jupyter"]["source_hidden"]  # JupyterLab's way


def markdown_texts(path):
    cells = nbformat.read(path, as_version=4).cells
    return [cell.source for cell in cells if cell.cell_type == "markdown"]


@of_every_notebook
def test_metadata_asks_colab_for_a_gpu(path):
    metadata = nbformat.read(path, as_version=4).metadata
    assert metadata["accelerator"] == "GPU" and metadata["kernelspec"]["name"] == "python3"
    assert "widgets" not in metadata, (
        "a still figure was wanted, not the state of widgets that nobody can move"
    )


@of_every_notebook
def test_a_cell_of_code_is_one_idea(path):
    for cell in code_cells(path)[1:]:  # the set-up aside
        lines = cell.source.splitlines()
        assert len(lines) <= 12, cell.source
        assert max(len(line) for line in lines) <= 100, cell.source


def names_from_helpers(code):
    """What a notebook takes from helpers: `from helpers.x import y` as y, `plots.z` as plots.z."""
    tree = ast.parse(re.sub(r"^%.*$", "", code, flags=re.MULTILINE))
    names, modules = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "helpers":
            for alias in node.names:
                module = PROJECT.joinpath(*node.module.split("."), f"{alias.name}.py")
                (modules if module.is_file() else names).add(alias.asname or alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in modules:
                names.add(f"{node.value.id}.{node.attr}")
    return names


def test_names_from_helpers_are_found():
    code = "%matplotlib inline\nfrom helpers import plots\nfrom helpers.data import split as s"
    code += "\nimport numpy as np\nplots.lines(np.zeros(3)); plots.lines(s)"
    assert names_from_helpers(code) == {"plots.lines", "s"}


@of_every_notebook
def test_a_notebook_takes_few_names_from_helpers(path):
    names = names_from_helpers("\n".join(cell.source for cell in code_cells(path)))
    assert len(names) <= 15, sorted(names)


@of_every_notebook
def test_code_names_no_class(path):
    code = "\n".join(cell.source for cell in code_cells(path))
    assert not re.search(rf"""["']({"|".join(data.CLASSES + shapes.CLASSES)})["']""", code)


def firsts(code):
    """Where code takes the first images of a data set, which may all be of one class."""
    for node in ast.walk(ast.parse(re.sub(r"^%.*$", "", code, flags=re.MULTILINE))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "slice":
            starts_at_0 = ast.unparse(node.args[0]) in ("0", "None") or len(node.args) == 1
            if starts_at_0 and ast.unparse(node) != "slice(None)":
                yield ast.unparse(node)
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice):
            of_data = re.search(r"\.(train|test)\b", ast.unparse(node.value))
            if of_data and node.slice.lower is None:
                yield ast.unparse(node)


def test_the_first_images_are_found():
    code = "a.train.subset(slice(6000)); slice(0, 9); data.test.labels[:5]; load().train.images[:2]"
    assert len(list(firsts(code))) == 4
    code = "slice(7, 8); slice(None); order[:500]; data.train.images[order[:5]]; names[1:]"
    assert not list(firsts(code))


@of_every_notebook
def test_no_call_takes_the_first_images(path):
    assert not list(firsts("\n".join(cell.source for cell in code_cells(path))))


@of_every_notebook
def test_outputs_come_from_one_clean_run(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    kinds = {output.output_type for output in outputs}
    assert kinds <= {"stream", "execute_result", "display_data"}
    assert not [output for output in outputs if output.get("name") == "stderr"]


@of_every_notebook
def test_a_committed_notebook_is_small_and_holds_no_machine_path(path):
    assert path.stat().st_size <= 1_600_000
    machine_path = r"/(home|root|tmp|Users|content)/|[A-Z]:\\\\"
    assert not re.search(machine_path, path.read_text(encoding="utf-8"))


@of_every_notebook
def test_every_figure_has_a_caption_and_an_alternative_text(path):
    assert figures(path)
    for cell, text in figures(path):
        # An interactive figure brings a text of its own.
        is_interactive = any("text/html" in output.get("data", {}) for output in cell.outputs)
        assert is_interactive or len(cell.metadata.get("alt", "")) > 25, cell.source
        assert re.match(r"\*[A-Z][^*]+[.:?]\*", text.source), f"no caption after\n{cell.source}"


@of_every_notebook
def test_no_figure_is_so_wide_that_a_page_shrinks_its_type(path):
    for cell in code_cells(path):
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                png = Image.open(io.BytesIO(base64.b64decode(output["data"]["image/png"])))
                assert png.width <= PIXELS_PER_INCH * plots.WIDEST + BORDER, cell.source


@of_every_notebook
def test_opens_with_a_question_its_message_and_what_it_takes(path):
    heading, question, message, table = (
        nbformat.read(path, as_version=4).cells[0].source.split("\n\n")
    )
    number = rf"{path.stem[1]} · " if path.stem in WALK else ""
    assert re.fullmatch(f"# {number}[^\n]+", heading)
    assert "?" in question
    assert re.fullmatch(r"\*[A-Z][^*]+[.!]\*", message)
    head, _, row = table.strip().splitlines()
    assert head == "| you will need | new words | time |"
    *_, time = row.strip("| ").split("|")
    assert "CPU cores" in time
    assert int(re.search(r"(\d+) minutes", time)[1]) <= 60


LEADS = {"Predict, then run.", "Next:"}  # what is bold and no term


def normal(term):
    """A term without capitals, and in the singular."""
    return term.strip().lower().rstrip("s")


def bold(texts):
    """The terms that are bold, in their order."""
    text = re.sub(r"```.*?```|`[^`]*`", "", "\n\n".join(texts), flags=re.DOTALL)
    return [normal(term) for term in re.findall(r"\*\*(.+?)\*\*", text) if term not in LEADS]


@of_every_notebook
def test_bold_are_the_new_words_and_nothing_else(path):
    opening, *texts = markdown_texts(path)
    row = opening.strip().splitlines()[-1].strip("| ").split("|")
    terms = bold(texts)
    assert sorted(terms) == sorted({normal(word) for word in row[1].split(",")})
    assert len(terms) <= 12
    earlier = NOTEBOOKS[: NOTEBOOKS.index(path)]
    explained = [term for other in earlier for term in bold(markdown_texts(other))]
    assert not set(terms) & set(explained), "explained in an earlier notebook"


@of_every_notebook
def test_every_new_word_stands_in_the_glossary_of_the_readme(path):
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    glossary = readme.split("\n## Glossary\n")[1].split("\n## ")[0]
    assert not set(bold(markdown_texts(path)[1:])) - set(bold([glossary]))


@of_every_notebook
def test_ends_with_questions_exercises_and_where_to_go_on(path):
    texts = markdown_texts(path)
    assert any("**Predict, then run.**" in text for text in texts)
    ending = "\n\n".join(texts[-3:])
    parts = ["## What we found", "## Can you answer these?", "<details><summary>Answers"]
    parts += ["</details>", "## Try it", "(1) *Run it.*", "(2) *Change it.*", "(3) *Build it.*"]
    parts += ["<details><summary>Solutions", "**Next:**", ".ipynb)"]
    places = []
    for part in parts:
        assert part in ending, part
        places.append(ending.index(part))
    assert places == sorted(places)
    questions = ending[places[1] : places[2]]
    assert 3 <= len(re.findall(r"^(?:\d\.|[-*]) ", questions, re.MULTILINE)) <= 5


NUMBER = re.compile(r"(?<![\w.])\d+(?:,\d{3})*(\.\d+)?( ?%)?(?![\w.]*\w)")


def read_numbers(text):
    """For each number in a text: (as written, value, half a unit of its last digit).

    A number in per cent has the value of the share, a hundredth of what is written.
    """
    for match in NUMBER.finditer(text):
        decimals = len(match[1] or ".") - 1
        unit = 0.01 if match[2] else 1
        value = float(re.sub("[ ,%]", "", match[0]))
        yield match[0], value * unit, 0.5 * unit * 10**-decimals


def without_source(text, sources):
    """The numbers in a text that no source rounds to, neither as it is nor in percentage points.

    Only numbers with a decimal point or a per cent sign are looked at.
    """
    # Code, addresses, equations (which a reader can compute), and a convention.
    ignored = r"`[^`]*`|\]\([^)]*\)|95 % (confidence )?interval"
    ignored += r"|\$\$.*?\$\$|\$[^$]*=[^$]*\$"
    text = re.sub(ignored, " ", text, flags=re.DOTALL)
    text = text.replace("{,}", ",").replace("\\,", " ").replace("\\%", "%")  # in LaTeX
    candidates = [*sources, *(100 * source for source in sources)]
    missing = []
    for written, value, half_unit in read_numbers(text):
        has_source = any(abs(value - source) <= 1.001 * half_unit for source in candidates)
        if re.search("[.%]", written) and not has_source:
            missing.append(written)
    return missing


def test_numbers_without_a_source_are_found():
    sources = [0.9491, 0.0511, 2.303]
    text = "94.9 % of 10,000, 5.1 points, near 2.30; `lr=0.7`, [see](1603.05027)"
    assert without_source(text, sources) == []
    assert (
        without_source(r"$p = 0.7$ and $$q \approx 0.3$$ and $94.9\,\%$ of $10{,}000$", sources)
        == []
    )
    assert without_source(r"$0.123 \pm 0.5$", sources) == ["0.123", "0.5"]
    assert without_source("95.9 % and 0.95 but 0.96, 2.31", sources) == ["95.9 %", "0.96", "2.31"]


def written_out(path):
    """What a notebook's outputs and code hold as text, and the records that it names."""
    outputs = [output for cell in code_cells(path) for output in cell.outputs]
    texts = [output.get("text", "") for output in outputs]
    for output in outputs:
        for kind, text in output.get("data", {}).items():
            # The data of an interactive figure hold so many numbers that they hold every number.
            if kind.startswith("text/") and 'class="alive"' not in text:
                texts.append(text)
    texts += [cell.source for cell in code_cells(path)[1:]]
    named = path.read_text(encoding="utf-8")
    records = [*WEIGHTS.glob("*.csv"), *RECORDS.glob("*.csv")]
    texts += [record.read_text() for record in records if record.name in named]
    return "\n".join(texts)


@of_every_notebook
def test_numbers_in_prose_stand_in_an_output_or_in_a_record_or_say_where_they_come_from(path):
    sources = [value for _, value, _ in read_numbers(written_out(path))]
    for cell in nbformat.read(path, as_version=4).cells[2:]:
        if cell.cell_type == "markdown":
            # A number as it is written: how it was measured, or who reports it.
            measured = cell.metadata.get("measured", {})
            for number, how in measured.items():
                assert number in cell.source and len(how) >= 10
            missing = without_source(cell.source, sources)
            assert [number for number in missing if number not in measured] == []


def test_links_of_the_readme_and_the_notebooks_resolve(project):
    for path in (project / "README.md", *NOTEBOOKS):
        if path.suffix == ".md":
            text = path.read_text(encoding="utf-8")
        else:
            text = "\n".join(markdown_texts(path))
        code_or_badge = r"```.*?```|`[^`]*`|^\[!\[.*?$"
        text = re.sub(code_or_badge, "", text, flags=re.DOTALL | re.MULTILINE)
        pairs = re.findall(r'\]\(([^)\s]+)\)|(?:src|href)="([^"]+)"', text)
        links = [in_markdown or in_html for in_markdown, in_html in pairs]
        local = [link for link in links if not re.match("https?:|#", link)]
        local = [link for link in local if not link.endswith("html/live.html")]  # not in Git
        missing = [link for link in local if not (path.parent / link.split("#")[0]).exists()]
        assert local and not missing, path.name


def test_the_readme_lists_every_notebook(project):
    readme = (project / "README.md").read_text(encoding="utf-8")
    missing = [
        name
        for name in map(pages.name_of, NOTEBOOKS)
        if f"({'notebooks/' + name}.ipynb)" not in readme
    ]
    assert not missing


def run_first_cell_on_colab(folder, url="", port=1, **environment):
    """In a fresh Python with a stand-in for google.colab, in an empty folder.

    Args:
        folder: an empty one.
        url: what is written into the cell.
        port: where Colab's server answers; nothing does at 1.
        **environment: further variables.
    """
    cell = code_cells(NOTEBOOKS[0])[0].source
    cell = cell.replace('PROJECT_URL = ""', f"PROJECT_URL = {url!r}").replace(":9000", f":{port}")
    stand_in = "import socket, sys, types; sys.modules['google.colab'] = types.ModuleType('colab')"
    stand_in += "; socket.gethostbyname = lambda name: '127.0.0.1'"
    check = "import helpers.data\n"
    check += "from helpers.support.files import project_root\n"
    check += "print(helpers.data.__file__, project_root())"
    left_out = ("WALKTHROUGH_ROOT", "PYTHONPATH")
    inherited = {name: value for name, value in os.environ.items() if name not in left_out}
    environment = inherited | {"no_proxy": "127.0.0.1"} | environment
    command = [sys.executable, "-c", "\n".join([stand_in, cell, check])]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def assert_project_was_fetched(done, folder):
    assert done.returncode == 0, done.stderr
    # Before these three lines pip may have said something.
    *_, gpu, checkpoints, found = done.stdout.strip().splitlines()
    assert "GPU" in gpu
    assert checkpoints == f"Data and checkpoints go to {folder / 'project'}"
    assert found == f"{folder / 'project' / 'helpers' / 'data.py'} {folder / 'project'}"


needs_git = pytest.mark.skipif(
    not (PROJECT / ".git").exists(), reason="this copy of the project is no repository to clone"
)


@needs_git
def test_first_cell_on_colab_fetches_the_project_and_says_where_checkpoints_go(tmp_path):
    for _ in range(2):  # the second time the project is there
        assert_project_was_fetched(run_first_cell_on_colab(tmp_path, str(PROJECT)), tmp_path)


def run_first_cell_elsewhere(folder, url="", **environment):
    cell = code_cells(NOTEBOOKS[0])[0].source.replace('PROJECT_URL = ""', f"PROJECT_URL = {url!r}")
    cell += "\nimport helpers.data; print(helpers.data.__file__)"
    inherited = {name: os.environ[name] for name in os.environ if name != "PYTHONPATH"}
    command = [sys.executable, "-c", cell]
    environment = inherited | environment
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@needs_git
def test_first_cell_on_kaggle_fetches_the_project(tmp_path):
    kaggle = {"KAGGLE_KERNEL_RUN_TYPE": "Interactive", "WALKTHROUGH_ROOT": str(tmp_path)}
    done = run_first_cell_elsewhere(tmp_path, str(PROJECT), **kaggle)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "project" / "helpers" / "data.py")


def test_first_cell_without_a_project_says_where_to_start(tmp_path):
    (tmp_path / "project").mkdir()  # of somebody else
    done = run_first_cell_elsewhere(tmp_path)
    last = done.stderr.splitlines()[-1]
    assert done.returncode and last.startswith(f"AssertionError: no project in or above {tmp_path}")
    assert "start Jupyter in the project's folder, or clone" in last


@pytest.fixture
def colab():
    """A stand-in for the server that says which notebooks a machine of Colab runs."""

    class Sessions(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/api/sessions" else 404)
            self.end_headers()
            self.wfile.write(json.dumps([{"path": self.server.notebook}]).encode())

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Sessions)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@needs_git
def test_first_cell_on_colab_finds_the_project_of_a_notebook_opened_from_github(tmp_path, colab):
    repository = "https%3A//github.com/someone/walk"
    colab.notebook = f"fileId={repository}/blob/main/notebooks/further/trust.ipynb"
    git = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.{PROJECT}.insteadOf"}
    git["GIT_CONFIG_VALUE_0"] = "https://github.com/someone/walk"
    done = run_first_cell_on_colab(tmp_path, port=colab.server_port, **git)
    assert_project_was_fetched(done, tmp_path)


@pytest.mark.parametrize("notebook", [None, "fileId=1aB-of-drive"])
def test_first_cell_on_colab_names_what_is_missing(tmp_path, colab, notebook):
    colab.notebook = notebook
    done = run_first_cell_on_colab(tmp_path, port=colab.server_port if notebook else 1)
    assert done.stderr.strip().endswith(
        "AssertionError: set PROJECT_URL in this cell "
        "to the address of the project's Git repository"
    )
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["", "notebooks", "notebooks/further"])
def test_first_cell_finds_the_project_that_a_notebook_lies_in(tmp_path, place):
    for folder in ("notebooks/further", "helpers"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "helpers" / "gradcam.py").touch()
    program = code_cells(NOTEBOOKS[0])[0].source + "\nprint(sys.path[0])"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path / place, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == tmp_path.resolve()
