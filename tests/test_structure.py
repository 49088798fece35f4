"One-way imports, one owner of every name, and nothing that belongs to one machine."
import ast
import re
import subprocess
from pathlib import Path
from runpy import run_path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = [path.relative_to(ROOT / "nbs") for path in (ROOT / "nbs").rglob("[0-9]*.ipynb") if "exp" not in path.parts]
PIPELINE = run_path(str(ROOT / ".ci/pipeline"))
MODULES = {name: path for name, path in PIPELINE["modules_of"](ROOT).items() if not path.stem.startswith("_")}


def place(notebook):
    "Numbers of a notebook's folder and of the notebook; those at the root come first."
    return [int(part.split("_")[0]) for part in notebook.parts] if len(notebook.parts) > 1 else [0, int(notebook.stem.split("_")[0])]


def module(notebook):
    "The module that a notebook exports."
    return ".".join(["colanb", *(part.split("_", 1)[1] for part in notebook.with_suffix("").parts)])


ORDER = {module(notebook): place(notebook) for notebook in NOTEBOOKS}


def imports(name):
    "Modules that a module imports anywhere: at its top, inside a function, or by a text that is a module's name."
    found = PIPELINE["imports_of"](MODULES[name], name.rpartition(".")[0], PIPELINE["modules_of"](ROOT))
    return {other for other in found if other in ORDER and other != name}


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_to_lower_numbers(name):
    assert {other for other in imports(name) if ORDER[other] >= ORDER[name]} == set()
    tree = ast.parse(MODULES[name].read_text())
    assert not any(alias.name == "*" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names)


def test_plots_do_not_know_models():
    assert imports("colanb.evidence.plots") <= {"colanb.config", "colanb.measure.estimators"}


def test_one_definition_of_each_public_name():
    "A second function of the same name is a second way of doing something."
    shared = {"main", "testbed_of", "Question"}  # commands; a corpus's or a run's language; a question of the language or of a benchmark
    owner, twice = {}, []
    for module, path in MODULES.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_") and node.name not in shared:
                if node.name in owner: twice.append((node.name, owner[node.name], module))
                owner[node.name] = module
    assert twice == []


def test_definitions_are_short():
    for module, path in MODULES.items():
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)): continue
            lines = node.end_lineno - node.lineno + 1
            limit = 40 if isinstance(node, ast.FunctionDef) else 100
            assert lines <= limit, f"{module}.{node.name} has {lines} lines"


def test_repository_names_no_machine():
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    foreign = re.compile(r"/(?:home|Users|root|work|opt|tmp/[a-z])/\w+")
    for name in listed:
        path = ROOT / name
        if not path.is_file() or path.suffix in (".svg", ".lock") or path == Path(__file__).resolve(): continue
        found = foreign.search(path.read_text(errors="ignore"))
        assert not found, f"{name}: {found.group(0)}"
