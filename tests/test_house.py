"""The package's one rule of imports, and what keeps its rooms readable."""

import ast
import sys
from pathlib import Path

import pytest

HELPERS = Path(__file__).resolve().parents[1] / "helpers"
MODULES = sorted(HELPERS.rglob("*.py"))
ROOMS = ("support", "interactive", "studies")
SPINE = [path for path in MODULES if path.parent == HELPERS]
LONGEST_FUNCTION = 35  # lines of code


def imported(path):
    """The modules of this package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] == "helpers"}


def rooms_of(names):
    parts = [name.split(".") for name in names]
    return {part[1] for part in parts if len(part) > 1}


def identify(path):
    return str(path.relative_to(HELPERS))


@pytest.mark.parametrize("path", SPINE, ids=identify)
def test_the_spine_imports_neither_studies_nor_interactive(path):
    assert not rooms_of(imported(path)) & {"studies", "interactive"}


@pytest.mark.parametrize("path", sorted((HELPERS / "support").glob("*.py")), ids=identify)
def test_support_imports_nothing_of_the_spine(path):
    assert rooms_of(imported(path)) <= {"support"}


def test_imports_are_found_where_they_stand(tmp_path):
    source = "def f():\n    from helpers import studies\n    import helpers.data as d\n"
    (tmp_path / "module.py").write_text(source)
    assert rooms_of(imported(tmp_path / "module.py")) == {"studies", "data"}


def functions(path):
    """The functions and methods of a module, without those that stand inside another function."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        for inner in node.body if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(inner, ast.FunctionDef):
                yield inner


@pytest.mark.parametrize("path", MODULES, ids=identify)
def test_no_function_is_long_and_every_public_one_says_what_it_does(path):
    for node in functions(path):
        docstring = ast.get_docstring(node, clean=False) or ""
        lines = node.end_lineno - node.lineno + 1 - len(docstring.splitlines())
        assert lines <= LONGEST_FUNCTION, node.name
        is_property_or_forward = node.decorator_list or node.name == "forward"
        if not node.name.startswith("_") and not is_property_or_forward:
            assert docstring, f"{node.name} has no docstring"


@pytest.mark.parametrize("path", SPINE, ids=identify)
def test_every_parameter_of_the_spine_has_a_type(path):
    for node in functions(path):
        parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        untyped = [p.arg for p in parameters if p.annotation is None]
        assert set(untyped) <= {"self", "cls"}, f"{node.name}({', '.join(untyped)})"


def test_the_map_of_the_package_names_every_module_of_the_spine():
    docstring = ast.get_docstring(ast.parse((HELPERS / "__init__.py").read_text()))
    for path in SPINE[1:]:
        assert path.stem in docstring, path.stem
    for room in ROOMS:
        assert room in docstring


@pytest.mark.process
def test_importing_training_is_quick_and_brings_nothing_that_loads_slowly():
    import subprocess

    code = "import sys, time, torch; start = time.process_time(); import helpers.training"
    code += "; print(time.process_time() - start, *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=HELPERS.parent, check=True
    )
    seconds, *loaded = done.stdout.split()
    assert not {"albumentations", "pandas", "scipy", "sklearn", "torchvision"} & set(loaded)
    assert float(seconds) < 1  # measured: 0.2 on an idle machine
