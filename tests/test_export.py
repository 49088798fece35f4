"colanb/ and README.md are what the notebooks give; notebooks are kept as the pipeline needs them."
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = sorted(path for path in (ROOT / "nbs").rglob("[0-9]*.ipynb") if "exp" not in path.parts)
PIPELINE = sorted((ROOT / "nbs/exp").glob("*.ipynb"))


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_drift_of_colanb(tmp_path):
    "Exporting again gives the same files, none missing and none left over."
    for name in ("settings.ini", "setup.py", "README.md", "LICENSE"): shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "nbs", tmp_path / "nbs")
    (tmp_path / "colanb").mkdir()
    shutil.copy(ROOT / "colanb/__init__.py", tmp_path / "colanb")   # nbdev writes its version and keeps the rest
    subprocess.run([Path(sys.executable).with_name("nbdev_export")], cwd=tmp_path, check=True, capture_output=True)
    fresh, kept = ({str(path.relative_to(root)): path.read_text() for path in (root / "colanb").rglob("*.py")} for root in (tmp_path, ROOT))
    assert fresh.keys() == kept.keys(), "a notebook was added, renamed or removed: run `make export`"
    assert [name for name in fresh if fresh[name] != kept[name]] == [], "run `make export`"


def test_drift_of_readme():
    made = subprocess.run([sys.executable, ROOT / ".ci/readme"], check=True, capture_output=True, text=True).stdout
    assert made == (ROOT / "README.md").read_text(), "README.md is made from nbs/index.ipynb: run `make export`"


def test_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 10_000


@pytest.mark.parametrize("name", ["index", "contents"])
def test_results_are_displayed_by_cells(name):
    "Verdicts and scores stand in outputs of code cells, which read the figures' files; none is typed into a text cell."
    cells = nbformat.read(ROOT / f"nbs/{name}.ipynb", as_version=4).cells
    typed = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    shown = [cell for cell in cells if cell.cell_type == "code" and not cell.source.startswith("#| hide")]
    assert all(cell.outputs for cell in shown), "run `make executed`"
    assert all("text/markdown" in output.get("data", {}) for cell in shown for output in cell.outputs), "a cell shows something else than Markdown"
    displayed = "\n".join(output.data["text/markdown"] for cell in shown for output in cell.outputs)
    if name == "index": return
    claims = [v["claim"] for path in sorted((ROOT / "figures").glob("*.json")) if isinstance(found := json.loads(path.read_text()), list) for v in found if "verdict" in v]
    assert claims
    for claim in claims:
        assert f"[{claim}](" in displayed, f"{claim} is in no displayed table: run `make executed`"
        assert f"[{claim}](" not in typed and not re.search(rf"^\| *\[?{claim}\b", typed, re.M), f"{claim} is typed by hand"


def test_every_module_has_its_notebook():
    for path in LIBRARY:
        names = [part.split("_", 1)[1] for part in path.relative_to(ROOT / "nbs").with_suffix("").parts]
        found = [m for cell in code_cells(path) if (m := re.match(r"#\| default_exp ([\w.]+)", cell.source))]
        assert [m.group(1) for m in found] == [".".join(names)], path.name


@pytest.mark.parametrize("path", PIPELINE, ids=lambda p: p.stem)
def test_pipeline_notebook(path):
    "One cell of parameters, nothing exported, no outputs: an output would change the stage's dependency."
    cells = code_cells(path)
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in cells) == 1
    assert not any(cell.outputs or cell.execution_count for cell in cells), "strip the outputs; executed copies are in figures/"
    assert not any("#| export" in cell.source for cell in cells)
    assert not any(re.search(r"^class ", cell.source, re.M) for cell in cells), "classes belong in a library notebook"
    assert len(cells) <= 15
