"One-way imports, one owner of every name, and nothing that belongs to one machine."
import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ORDER = {p.stem.split("_", 1)[1]: int(p.stem.split("_")[0]) for p in (ROOT / "nbs").glob("[0-9]*.ipynb")}
MODULES = sorted(p for p in (ROOT / "colanb").glob("*.py") if not p.stem.startswith("_"))


def imports(tree):
    "Names of the colanb modules a module imports."
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 1: yield node.module
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("colanb."): yield node.module.split(".")[1]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_imports_point_to_lower_numbers(path):
    tree = ast.parse(path.read_text())
    upward = [name for name in imports(tree) if ORDER[name] >= ORDER[path.stem]]
    assert upward == [], f"{path.stem} ({ORDER[path.stem]}) imports {upward}"
    assert not any(alias.name == "*" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names)


def test_training_does_not_know_sampling_and_plots_do_not_know_models():
    trees = {path.stem: set(imports(ast.parse(path.read_text()))) for path in MODULES}
    assert not trees["train"] & {"sample", "tasks", "sweep"}
    assert trees["plots"] <= {"config", "estimators"}


def test_one_definition_of_each_public_name():
    "A second function of the same name is a second way of doing something."
    shared = {"main", "testbed_of", "Question"}  # commands; a corpus's or a run's language; a question of the language or of a benchmark
    owner, twice = {}, []
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_") and node.name not in shared:
                if node.name in owner: twice.append((node.name, owner[node.name], path.stem))
                owner[node.name] = path.stem
    assert twice == []


def test_definitions_are_short():
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)): continue
            lines = node.end_lineno - node.lineno + 1
            limit = 40 if isinstance(node, ast.FunctionDef) else 100
            assert lines <= limit, f"{path.stem}.{node.name} has {lines} lines"


def test_repository_names_no_machine():
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    foreign = re.compile(r"/(?:home|Users|root|work|opt|tmp/[a-z])/\w+")
    for name in listed:
        path = ROOT / name
        if not path.is_file() or path.suffix in (".svg", ".lock") or path == Path(__file__).resolve(): continue
        found = foreign.search(path.read_text(errors="ignore"))
        assert not found, f"{name}: {found.group(0)}"
