"Commands answer at once: help and wrong arguments need none of the large libraries."
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENTRY = {"generate": ("colanb.release.cli", "main"), "score": ("colanb.measure.scoring", "score_main")}
LARGE = ("torch", "pandas", "scipy.stats", "matplotlib", "transformers", "datasets", "huggingface_hub", "sklearn", "xformers")


def ask(command, *argv):
    "Run a command in a fresh process; its status, both streams, and which of the large libraries it imported."
    module, function = ENTRY[command]
    code = (f"import sys; from {module} import {function} as run\n"
            f"try: status = run({list(argv)})\n"
            "except SystemExit as end: status = end.code\n"
            f"print('IMPORTED', *[name for name in {LARGE} if name in sys.modules])\n"
            "sys.exit(status)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True)
    said, _, imported = done.stdout.rpartition("IMPORTED")
    return done.returncode, said, done.stderr, imported.split()


@pytest.mark.parametrize("command", ENTRY)
def test_help_needs_no_large_library(command):
    status, said, errors, imported = ask(command, "--help")
    assert (status, imported, errors) == (0, [], "") and f"usage: colanb-{command}" in said


WRONG = {
    ("generate", "--tokns", "3"): "--tokens",
    ("generate", "--tokens", "0"): "max_new_tokens=0: must be >= 1",
    ("generate", "--tokens", "many"): "invalid int value: 'many'",
    ("generate", "--items", "items.jsonl", "--prompt", "Once"): "--items takes the place of --prompt and --watch",
    ("generate", "--steps", "0"): "steps=0: must be >= 1",
    ("generate", "--steps", "0", "--temperature", "-1"): "temperature=-1.0: must be >= 0",
    ("generate", "--model", "no/such/model"): "no such folder",
    ("generate", "--model", "nbs"): "neither run.json nor cola_dit",
    ("score", "items", "written"): "--task",
    ("score", "items", "written", "--task", "arc"): "lambada",
    ("score", "items", "written", "--task", "obqa", "--rule", "ours"): "paper",
}


@pytest.mark.parametrize("asked", WRONG, ids=" ".join)
def test_wrong_argument_is_named_in_one_line(asked):
    status, said, errors, imported = ask(*asked)
    assert (status, said, imported) == (2, "", [])
    assert errors.startswith(f"colanb-{asked[0]}: ") and errors.count("\n") == 1
    assert WRONG[asked] in errors


def test_missing_file_is_told_without_large_libraries():
    status, _, errors, imported = ask("score", "nosuch.jsonl", "nosuch.jsonl", "--task", "obqa")
    assert (status, imported) == (1, []) and "nosuch.jsonl" in errors


def test_generate_writes_without_any_training(tmp_path):
    "In a folder without a project the model that comes with the package writes."
    code = "import sys; from colanb.release.cli import main; sys.exit(main(['--prompt', 'Once upon a time', '--tokens', '8', '--steps', '4']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Once upon a time") and len(done.stdout.split()) > 6
