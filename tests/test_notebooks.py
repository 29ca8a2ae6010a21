"""What holds for every notebook as a file; that they run is tested by nbval."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from tools import code_cells, figures

from helpers import data, shapes
from helpers.model import WEIGHTS
from helpers.studies import RECORDS

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))

MESSAGES = [  # one a notebook, in its first cell and in its last
    "a label survives changes that the numbers do not",
    "how a network learns, and what each ingredient buys",
    "one number hides where it errs",
    "a heatmap is an account of a logit, and how far to trust it",
    "on mistakes, compare before you conclude",
]


def test_the_series_is_complete():
    assert [path.stem for path in NOTEBOOKS] == [
        "01_data_augmentation",
        "02_training",
        "03_evaluation",
        "04_gradcam_correct",
        "05_gradcam_incorrect",
    ]


def test_the_first_code_cell_is_the_same_everywhere_and_folded():
    assert len({code_cells(path)[0].source for path in NOTEBOOKS}) == 1
    assert code_cells(NOTEBOOKS[0])[0].source.startswith("#@title Set-up")
    for path in NOTEBOOKS:
        metadata = code_cells(path)[0].metadata
        assert metadata["cellView"] == "form"  # Colab's way
        assert metadata["jupyter"]["source_hidden"]  # JupyterLab's way


def markdown_texts(path):
    cells = nbformat.read(path, as_version=4).cells
    return [cell.source for cell in cells if cell.cell_type == "markdown"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_metadata_asks_colab_for_a_gpu(path):
    metadata = nbformat.read(path, as_version=4).metadata
    assert metadata["accelerator"] == "GPU" and metadata["kernelspec"]["name"] == "python3"
    assert "widgets" not in metadata, (
        "a still figure was wanted, not the state of widgets that nobody can move"
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_lesson_is_short(path):
    cells = nbformat.read(path, as_version=4).cells
    code = [cell.source.splitlines() for cell in code_cells(path)[1:]]  # the set-up aside
    assert 18 <= len(cells) <= 30
    assert max(len(lines) for lines in code) <= 12
    assert sum(bool(line.strip()) for lines in code for line in lines) <= 125
    assert sum(len(text.split()) for text in markdown_texts(path)) <= 1400


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_code_names_no_class(path):
    code = "\n".join(cell.source for cell in code_cells(path))
    assert not re.search(rf"""["']({"|".join(data.CLASSES + shapes.CLASSES)})["']""", code)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_come_from_one_clean_run(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    kinds = {output.output_type for output in outputs}
    assert kinds <= {"stream", "execute_result", "display_data"}
    assert not [output for output in outputs if output.get("name") == "stderr"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_is_small_and_holds_no_machine_path(path):
    assert path.stat().st_size < 1_500_000
    machine_path = r"/(home|root|tmp|Users|content)/|[A-Z]:\\\\"
    assert not re.search(machine_path, path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_figure_has_a_caption_and_an_alternative_text(path):
    assert figures(path)
    for cell, text in figures(path):
        # An interactive figure brings a text of its own.
        is_interactive = any("text/html" in output.get("data", {}) for output in cell.outputs)
        assert is_interactive or len(cell.metadata.get("alt", "")) > 25, cell.source
        assert re.match(r"\*[A-Z][^*]+[.:]\*", text.source), f"no caption after\n{cell.source}"


@pytest.mark.parametrize(
    ("path", "message"), list(zip(NOTEBOOKS, MESSAGES)), ids=[path.stem for path in NOTEBOOKS]
)
def test_opens_with_a_question_and_a_figure_and_ends_with_its_message_and_exercises(path, message):
    cells = nbformat.read(path, as_version=4).cells
    opening, ending = cells[0].source, cells[-1].source
    assert opening.startswith("# ") and re.search(r"\*\*[^*]+\?\*\*", opening)
    assert "| time | from before |" in opening and "CPU cores" in opening and "GPU" in opening
    first_text = next(i for i, cell in enumerate(cells[1:], 1) if cell.cell_type == "markdown")
    # No text stands between the opening and the figure.
    outputs = [output for cell in cells[1:first_text] for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    for text in (opening, ending):
        assert message in " ".join(text.lower().split())
    assert any("**Predict, then run.**" in cell.source for cell in cells)
    grades = ["**Try it.** (1) *Run it.*", "(2) *Change it.*", "(3) *Build it.*"]
    parts = [
        "**What we found.**",
        *grades,
        "<details><summary>Solutions",
        "</details>",
        "](0",
        "**More:**",
    ]
    places = [ending.rfind(part) for part in parts]
    assert -1 not in places and places == sorted(places)


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
    # Code, addresses, formulas, and a convention.
    ignored = r"`[^`]*`|\]\([^)]*\)|\$[^$]*\$|95 % (confidence )?interval"
    candidates = [*sources, *(100 * source for source in sources)]
    missing = []
    for written, value, half_unit in read_numbers(re.sub(ignored, " ", text)):
        has_source = any(abs(value - source) <= 1.001 * half_unit for source in candidates)
        if re.search("[.%]", written) and not has_source:
            missing.append(written)
    return missing


def test_numbers_without_a_source_are_found():
    sources = [0.9491, 0.0511, 2.303]
    text = "94.9 % of 10,000, 5.1 points, near 2.30; `lr=0.7`, [see](1603.05027)"
    assert without_source(text, sources) == []
    assert without_source("95.9 % and 0.95 but 0.96, 2.31", sources) == ["95.9 %", "0.96", "2.31"]


def written_out(path):
    """What a notebook's outputs hold as text, and the records that its code names."""
    outputs = [output for cell in code_cells(path) for output in cell.outputs]
    texts = [output.get("text", "") for output in outputs]
    for output in outputs:
        for kind, text in output.get("data", {}).items():
            # The data of an interactive figure hold so many numbers that they hold every number.
            if kind.startswith("text/") and 'class="alive"' not in text:
                texts.append(text)
    code = "\n".join(cell.source for cell in code_cells(path))
    records = [*WEIGHTS.glob("*.csv"), *RECORDS.glob("*.csv")]
    texts += [record.read_text() for record in records if f'"{record.name}"' in code]
    return "\n".join(texts)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_formulas_are_plain_text(path):
    assert not re.search(r"\$[^$`]+\$", "\n".join(markdown_texts(path))), (
        "write it in Unicode: the pages load no typesetter from another host"
    )


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
        assert local and not [link for link in local if not (path.parent / link).exists()]


def run_first_cell_on_colab(folder, url, **environment):
    """In a fresh Python with a stand-in for google.colab, in an empty folder."""
    cell = code_cells(NOTEBOOKS[0])[0].source.replace('PROJECT_URL = ""', f"PROJECT_URL = {url!r}")
    stand_in = "import sys, types; sys.modules['google.colab'] = types.ModuleType('google.colab')"
    # Where it would be imported from is enough: importing it brings torch, which takes long.
    check = "from importlib.util import find_spec\n"
    check += "from helpers.support.files import project_root\n"
    check += "print(find_spec('helpers.data').origin, project_root())"
    left_out = ("WALKTHROUGH_ROOT", "PYTHONPATH")
    inherited = {name: value for name, value in os.environ.items() if name not in left_out}
    command = [sys.executable, "-c", "\n".join([stand_in, cell, check])]
    return subprocess.run(
        command, cwd=folder, env=inherited | environment, capture_output=True, text=True
    )


def test_first_cell_on_colab_fetches_the_project_and_says_where_checkpoints_go(tmp_path, project):
    if not (project / ".git").exists():
        pytest.skip("this copy of the project is no Git repository to clone")
    for _ in range(2):  # the second time the project is there
        done = run_first_cell_on_colab(tmp_path, str(project))
        assert done.returncode == 0, done.stderr
        # Before these three lines pip may have said something.
        *_, gpu, checkpoints, found = done.stdout.strip().splitlines()
        assert "GPU" in gpu
        assert checkpoints == f"Data and checkpoints go to {tmp_path / 'project'}"
        assert found == f"{tmp_path / 'project' / 'helpers' / 'data.py'} {tmp_path / 'project'}"


def test_first_cell_on_colab_names_what_is_missing(tmp_path):
    done = run_first_cell_on_colab(tmp_path, "")
    assert done.stderr.strip().endswith(
        "AssertionError: set PROJECT_URL in this cell "
        "to the address of the project's Git repository"
    )
    assert not any(tmp_path.iterdir())
