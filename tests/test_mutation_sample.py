"A sample of wrong changes of the source is noticed: the known mistakes all, of others a fixed few at least 85 in 100."
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = ["learn.losses", "model.vae", "model.dit", "measure.estimators"]     # whose checks take seconds; the others: `python -m tests.mutation`


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("mutation") / "found.json"
    command = [sys.executable, "-m", "tests.mutation", "--known", "--modules", *MODULES, "--sample", "5", "--seed", "1", "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(out.read_text())


def test_known_mistakes_are_noticed(found):
    assert found["known"]["mutants"] >= 9
    assert [mutant["kind"] for mutant in found["known"]["survivors"]] == []


def test_most_of_a_sample_is_noticed(found):
    groups = [found[module] for module in MODULES]
    mutants, killed = (sum(group[name] for group in groups) for name in ("mutants", "killed"))
    survivors = ["\n".join(mutant["diff"]) for group in groups for mutant in group["survivors"]]
    assert mutants >= 15 and killed >= 0.85 * mutants, survivors
