"`pip install .` gives a package that imports without the pipeline's tools and brings its commands."
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    place = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--target", place, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    return place


def test_every_module_imports_without_the_tools_of_development_and_xformers(installed):
    paths = [path.relative_to(installed).with_suffix("") for path in (installed / "colanb").rglob("*.py") if not path.stem.startswith("_")]
    modules = [".".join(path.parts) for path in paths]
    assert {"colanb.config", "colanb.model.vae", "colanb.learn.train", "colanb.generate.sample", "colanb.release.cli"} <= set(modules)
    blocked = "import sys; sys.modules.update(dict.fromkeys(['dvc', 'nbdev', 'execnb', 'fastcore', 'beartype', 'xformers']));"
    code = blocked + f"import importlib; [importlib.import_module(m) for m in {modules}]; import colanb; print(colanb.__file__)"
    environment = os.environ | {"COLANB_TYPECHECK": "0"}   # the checks need beartype
    done = subprocess.run([sys.executable, "-c", code], cwd=installed, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(installed)


@pytest.mark.parametrize("command", ["colanb-generate", "colanb-score", "colanb-picture"])
def test_command_explains_itself(installed, command):
    done = subprocess.run([installed / "bin" / command, "--help"], env={"PYTHONPATH": str(installed), "PATH": ""}, capture_output=True, text=True)
    assert done.returncode == 0 and "usage: " + command in done.stdout
