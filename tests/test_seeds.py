"A stage that runs a notebook once a seed into one folder that is there already."
import json
import os
import shutil
import subprocess
import sys

import nbformat
import pytest

from colanb.config import ROOT, load_profile

CELLS = [
    "out = ''\nseed = 0",
    "import json, time\nfrom colanb.config import ROOT\ntime.sleep(seed / 4)\n(ROOT / out / f'{seed}.json').write_text(json.dumps(seed))\nassert seed != fails",
]


@pytest.fixture
def folder():
    "A folder of the project that git ignores, with results of an earlier run."
    place = ROOT / ".scratch" / f"seeds-{os.getpid()}"
    (place / "results").mkdir(parents=True)
    (place / "results/old.json").write_text("1")
    yield place
    shutil.rmtree(place)


@pytest.mark.parametrize("fails", [-1, 1])
def test_all_seeds_results_take_the_place_of_the_old_ones_together_or_not_at_all(folder, fails):
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}})
    cells = [CELLS[0], CELLS[1].replace("fails", str(fails))]
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in cells]
    notebook.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(notebook, folder / "seeds.ipynb")
    out = (folder / "results").relative_to(ROOT)
    command = [sys.executable, "-m", "colanb.run", str(folder / "seeds.ipynb"), str(folder / "{seed}.ipynb"), "seed=each", f"out={out}"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"DVC_ROOT": str(ROOT)}, capture_output=True, text=True)
    names = sorted(path.name for path in (folder / "results").iterdir())
    assert [path.name for path in folder.iterdir() if path.name.endswith("tmp")] == []
    if fails >= 0:
        assert done.returncode == 1 and names == ["old.json"], done.stdout + done.stderr
        return
    seeds = load_profile().seeds
    assert done.returncode == 0 and names == [f"{seed}.json" for seed in seeds], done.stdout + done.stderr
    assert [json.loads((folder / f"results/{seed}.json").read_text()) for seed in seeds] == seeds
