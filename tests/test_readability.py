"""One idea a line: limits that notice a relapse into dense code. `python tests/test_readability.py [TEXT ...]` lists the faults.

Lines are those of code: blank ones, comments and docstrings do not count."""
import ast
import re
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
COLUMNS, FUNCTION, LINE = 120, 250, 11   # columns; syntax nodes of a function; syntax nodes a line, over a module
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
NOTEBOOKS = sorted((ROOT / "nbs").rglob("*.ipynb"))
LIBRARY = [path for path in NOTEBOOKS if path.stem != "index" and "exp" not in path.parts]


def size(tree):
    "Nodes of a syntax tree."
    return sum(1 for _ in ast.walk(tree))


def docstrings(tree):
    "Numbers of the lines that docstrings take."
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, (*FUNCTIONS, ast.ClassDef, ast.Module)) or ast.get_docstring(node) is None: continue
        found |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return found


def code_lines(source):
    "How many lines hold code."
    left_out = docstrings(ast.parse(source))
    lines = enumerate(source.split("\n"), 1)
    return sum(number not in left_out and bool(line.strip()) and not line.strip().startswith("#") for number, line in lines)


def code_cells(notebook):
    "Sources of a notebook's code cells; lines for the shell are left out."
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return [re.sub(r"^[%!].*", "", source, flags=re.M) for source in cells]


def dense_places(source):
    "What of a piece of code is over a limit that holds everywhere."
    for number, line in enumerate(source.split("\n"), 1):
        if len(line) > COLUMNS: yield f"{len(line)} columns: {line.strip()[:60]}"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, FUNCTIONS) and size(node) > FUNCTION: yield f"{node.name} has {size(node)} nodes"
        inner = [other for other in ast.walk(node) if isinstance(other, COMPREHENSIONS) and other is not node]
        if isinstance(node, COMPREHENSIONS) and inner: yield f"a comprehension in a comprehension: {ast.unparse(node)[:60]}"


def density(notebook):
    "Nodes a line over a notebook's exported code."
    sources = [source for source in code_cells(notebook) if re.match(r"#\| *export", source)]
    return sum(size(ast.parse(source)) for source in sources) / max(sum(map(code_lines, sources)), 1)


def unexplained(notebook):
    "Exported definitions that follow two others without prose or an example between."
    row = 0
    for cell in notebook.cells:
        exported = cell.cell_type == "code" and re.match(r"#\| *export", cell.source)
        row = row + 1 if exported else 0
        if row > 2: yield f"third export in a row: {cell.source.split(chr(10))[1][:60]}"


def faults(path):
    "All that is over a limit in a notebook."
    notebook = nbformat.read(path, as_version=4)
    found = [fault for source in code_cells(notebook) for fault in dense_places(source)]
    if path not in LIBRARY: return found
    if density(notebook) > LINE: found.append(f"{density(notebook):.1f} nodes a line")
    return [*found, *unexplained(notebook)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: str(path.relative_to(ROOT / "nbs")))
def test_one_idea_a_line(path):
    assert faults(path) == []


@pytest.mark.parametrize("source, fault", [
    ("x = " + "1 + " * 40 + "1", "columns"), ("def f():\n" + "    x = a + b * c\n" * 40, "f has"),
    ("[a for b in c for a in [d for d in b]]", "in a comprehension")])
def test_limits_notice_what_is_dense(source, fault):
    assert [fault in found for found in dense_places(source)] == [True]


if __name__ == "__main__":
    for path in NOTEBOOKS:
        name = str(path.relative_to(ROOT / "nbs"))
        if sys.argv[1:] and not any(text in name for text in sys.argv[1:]): continue
        for fault in faults(path): print(f"{name}: {fault}")
