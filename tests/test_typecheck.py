"Annotations are checked in test runs, and in them alone."
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import TypeCheckError

from colanb.learn.path import interpolate
from colanb.model.linear import linear
from colanb.model.trunk import SelfAttention

ROOT = Path(__file__).resolve().parents[1]
MISFIT = "import torch; from colanb.model.linear import linear; linear(torch.ones(2, 3), torch.ones(5, 4))"
pytestmark = pytest.mark.skipif(os.environ["COLANB_TYPECHECK"] != "1", reason="COLANB_TYPECHECK is not 1")


def test_a_wrong_shape_is_refused():
    with pytest.raises(TypeCheckError, match="weight"): linear(torch.ones(2, 3), torch.ones(5, 4))


def test_a_wrong_shape_that_pytorch_would_take_is_refused():
    "Times of another length would be broadcast."
    z = torch.ones(2, 4, 3)
    with pytest.raises(TypeCheckError): interpolate(z, z, torch.ones(1, 4))


def test_a_wrong_type_is_refused():
    with pytest.raises(BeartypeCallHintViolation, match="config"): SelfAttention({"width": 8})


@pytest.mark.parametrize("setting,error", [("1", "TypeCheckError"), ("0", "RuntimeError"), (None, "RuntimeError")])
def test_a_process_reads_the_variable(setting, error):
    environment = {name: value for name, value in os.environ.items() if name != "COLANB_TYPECHECK"}
    if setting is not None: environment["COLANB_TYPECHECK"] = setting
    done = subprocess.run([sys.executable, "-c", MISFIT], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert error in done.stderr, done.stderr
    assert ("TypeCheckError" in done.stderr) == (error == "TypeCheckError")


def bytecode(folder, *command):
    "Run a command whose bytecode goes into a folder; what it wrote."
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | {"PYTHONPYCACHEPREFIX": str(folder)}
    for checks in ("1", "0"):
        subprocess.run([sys.executable, *command], cwd=ROOT, env=environment | {"COLANB_TYPECHECK": checks}, capture_output=True, check=True)
    return [path.relative_to(folder) for path in folder.rglob("*.pyc")]


def test_other_packages_keep_their_bytecode(tmp_path):
    "The library's modules are compiled with the checks; what they import is not compiled a second time, which takes seconds."
    wrapped = [path for path in bytecode(tmp_path, "-c", "import colanb.config") if ".opt-jaxtyping" in path.name]
    assert [path.name.partition(".")[0] for path in wrapped] == ["config"]


def test_wrapped_bytecode_is_never_found_by_a_process_without_checks(tmp_path):
    "Also that of a module that is run by its name, which such a process can still run."
    kept = [path.name for path in bytecode(tmp_path, "-m", "colanb.lab.plan", "--help") if path.name.startswith("plan.")]
    assert sorted(".opt-jaxtyping" in name for name in kept) == [False, True]


def test_checks_need_no_pytorch():
    done = subprocess.run([sys.executable, "-c", "import sys, colanb.config; sys.exit('torch' in sys.modules)"], cwd=ROOT)
    assert done.returncode == 0


def test_notebooks_are_checked(tmp_path):
    "A notebook run by nbdev's own runner, in its own process, fails on a wrong shape."
    run = "import sys; from pathlib import Path; from nbdev.test import test_nb; sys.exit(not test_nb(Path(sys.argv[1]), basepath=sys.argv[2])[0])"
    for width, passes in [(3, True), (4, False)]:
        cell = nbformat.v4.new_code_cell(MISFIT.replace("5, 4", f"5, {width}"))
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "one.ipynb")
        done = subprocess.run([sys.executable, "-c", run, str(tmp_path / "one.ipynb"), str(ROOT)], cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode == 0) == passes, done.stderr
        assert ("TypeCheckError" in done.stderr) != passes
