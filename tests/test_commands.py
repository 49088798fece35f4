"Commands answer at once: help and wrong arguments need none of the large libraries. What ends them is one line and a status."
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from colanb.config import DataConfig, text_run

ROOT = Path(__file__).resolve().parents[1]
ENTRY = {"generate": ("colanb.release.cli", "main"), "score": ("colanb.measure.scoring", "score_main"),
         "plan": ("colanb.lab.plan", "main"), "picture": ("colanb.unified.unified_cli", "main")}
LARGE = ("torch", "pandas", "scipy.stats", "matplotlib", "transformers", "datasets", "huggingface_hub", "sklearn", "xformers", "nbformat")
WITH_COMMAND = [path for path in sorted((ROOT / "colanb").rglob("*.py")) if '__name__ == "__main__"' in path.read_text()]


def ask(command, *argv, folder=ROOT):
    "Run a command in a fresh process; its status, both streams, and which of the large libraries it imported."
    module, function = ENTRY[command]
    code = (f"import sys; from {module} import {function} as run\n"
            f"try: status = run({list(argv)})\n"
            "except SystemExit as end: status = end.code\n"
            f"print('IMPORTED', *[name for name in {LARGE} if name in sys.modules])\n"
            "sys.exit(status)")
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True)
    said, _, imported = done.stdout.rpartition("IMPORTED")
    return done.returncode, said, done.stderr, imported.split()


@pytest.mark.parametrize("command", ENTRY)
def test_help_needs_no_large_library(command):
    status, said, errors, imported = ask(command, "--help")
    assert (status, imported, errors) == (0, [], "") and f"usage: colanb-{command}" in said


@pytest.mark.parametrize("path", WITH_COMMAND, ids=lambda path: path.stem)
def test_help_of_a_module_comes_before_its_imports(path):
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    command = [sys.executable, "-X", "importtime", "-m", module, "--help"]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True)
    imported = re.findall(r"\| +([\w.]+)$", done.stderr, re.M)
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert (done.returncode, said) == (0, [])
    assert "colanb" in imported and not set(LARGE) & set(imported)
    assert re.match(rf"usage: (python -m {re.escape(module)}|colanb-\w+) ", done.stdout)


def test_a_worker_imports_only_what_most_runs_need():
    "Each of these takes a second or more, in every process of a campaign, of the kit and of the tests."
    slow = ("sklearn", "torch._inductor", "rfc3987_syntax.syntax_helpers", "datasets", "papermill")
    code = f"import sys, colanb.evidence.campaign, colanb.lab.gpu; print([name for name in {slow} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


WRONG = {
    ("generate", "--tokns", "3"): "no such argument: --tokns 3; did you mean '--tokens'?",
    ("generate", "--promt=Once"): "did you mean '--prompt'?",
    ("generate", "--model", "README.md"): "--model README.md is a file",
    ("generate", "--tokens", "0"): "--tokens 0: must be >= 1",
    ("generate", "--tokens", "many"): "invalid int value: 'many'",
    ("generate", "--items", "items.jsonl", "--prompt", "Once"): "--items takes the place of --prompt and --watch",
    ("generate", "--steps", "0"): "--steps 0: must be >= 1",
    ("generate", "--steps", "0", "--temperature", "-1"): "--temperature -1.0: must be >= 0",
    ("generate", "--model", "no/such/model"): f"no such folder {ROOT}/no/such/model",
    ("generate", "--model", "nbs"): "neither run.json nor cola_dit",
    ("score", "items", "written"): "--task",
    ("score", "items", "written", "--task", "arc"): "lambada",
    ("score", "items", "written", "--task", "obqa", "--rule", "ours"): "paper",
    ("plan", "tiny", "--gpus", "0"): "argument --gpus: '0' is not a whole number above 0",
    ("plan", "tiny", "--microbatch", "0"): "argument --microbatch: '0' is not a whole number above 0",
    ("plan", "tiny", "--gpsu", "8"): "--gpus",
    ("picture", "--caption", "here red disc top left ."): "the following arguments are required: --model",
    ("picture", "--model", "nbs"): "give --caption TEXT to draw, or --image FILE.png",
    ("picture", "--model", "nbs", "--caption", "here", "--image", "a.png"): "and not both",
    ("picture", "--model", "nbs", "--caption", "here"): "neither run.json nor cola_dit",
    ("picture", "--model", "nbs", "--caption", "here", "--question", "how ?"): "--question is asked of a picture",
    ("picture", "--model", "nbs", "--caption", "here", "--steps", "0"): "--steps 0: must be >= 1",
    ("picture", "--model", "nbs", "--caption", "here", "--scale", "0"): "'0' is not a whole number above 0",
    ("picture", "--model", "nbs", "--capton", "here"): "did you mean '--caption'?",
}


@pytest.mark.parametrize("asked", WRONG, ids=" ".join)
def test_wrong_argument_is_named_in_one_line(asked):
    status, said, errors, imported = ask(*asked)
    assert (status, said, imported) == (2, "", [])
    assert errors.startswith(f"colanb-{asked[0]}: ") and errors.count("\n") == 1
    assert WRONG[asked] in errors


def test_missing_file_is_told_without_large_libraries():
    status, _, errors, imported = ask("score", "nosuch.jsonl", "nosuch.jsonl", "--task", "obqa")
    assert (status, imported) == (1, []) and f"{ROOT}/nosuch.jsonl" in errors


def test_outside_a_project_it_is_told_where_one_is_named(tmp_path):
    status, _, errors, imported = ask("plan", "tiny", folder=tmp_path)
    assert (status, imported) == (1, []) and f"no parameter file params.yaml in {tmp_path}" in errors and "COLANB_ROOT" in errors


def test_a_run_is_planned_outside_a_project(tmp_path):
    run = text_run(DataConfig(source="text", path="my_texts", tokenizer="bpe", vocab_size=512, seq_len=128))
    (tmp_path / "mine.json").write_text(run.model_dump_json())
    status, said, errors, _ = ask("plan", "mine.json", folder=tmp_path)
    assert (status, errors) == (0, "") and said.startswith("Run mine: 8 sequences of 128 tokens a step") and "tokens in 200 seconds" in said


def test_items_without_an_answer_or_a_file_are_named(tmp_path):
    (tmp_path / "items.jsonl").write_text('{"id": 1, "prompt": "a"}\n')
    status, _, errors, _ = ask("score", "items.jsonl", "items.jsonl", "--task", "lambada", folder=tmp_path)
    assert (status, errors) == (1, f"colanb-score: {tmp_path}/items.jsonl, line 1: answer (or ground_truth) is missing\n")
    status, _, errors, imported = ask("generate", "--model", "english", "--items", "nothere.jsonl", folder=tmp_path)
    assert (status, errors, imported) == (1, "colanb-generate: no such file: nothere.jsonl\n", [])


@pytest.mark.parametrize("rule", ["release", "paper"])
def test_items_without_choices_are_refused(tmp_path, rule):
    item = {"id": "q7", "prompt": "a", "answer": "quagga"}
    (tmp_path / "written.jsonl").write_text('{"id": "q7", "generate": "b"}\n')
    for more, reason in (({}, "item 'q7' has no choices: mmlu needs them"), ({"choices": ["c", "zebra"]}, "item 'q7': answer 'quagga' is none of")):
        (tmp_path / "items.jsonl").write_text(json.dumps({**item, **more}))
        status, _, errors, _ = ask("score", "items.jsonl", "written.jsonl", "--task", "mmlu", "--rule", rule, folder=tmp_path)
        assert status == 1 and reason in errors and errors.count("\n") == 1


def start(code, folder):
    "Start Python code that Ctrl-C can interrupt, though this process may run in the background."
    code = f"import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); {code}"
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    return subprocess.Popen([sys.executable, "-u", "-c", code], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("where", ["importing", "writing"])
def test_ctrl_c_leaves_the_text_so_far_and_one_line(tmp_path, where):
    told = "type('Told', (), {'find_spec': lambda name, *more: print('torch begins') if name == 'torch' else None})"   # imports nothing itself
    call = f"from colanb.release.cli import main; sys.meta_path.insert(0, {told}); sys.exit(main(['--model', 'english', '--prompt', 'Once', '--tokens', '4000']))"
    with start(call, tmp_path) as process:
        assert process.stdout.readline() == "torch begins\n"   # the largest of what the command imports
        shown = process.stdout.read(12) if where == "writing" else ""
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=300)
    [*notices, last] = errors.splitlines()
    assert (process.returncode, last) == (130, "colanb-generate: interrupted") and len(notices) <= 1
    assert (shown + rest).startswith("Once") and (shown + rest).endswith("\n") if where == "writing" else rest == ""


def test_a_reader_that_leaves_ends_a_command_silently(tmp_path):
    call = "from colanb.release.cli import main; sys.exit(main(['--model', 'english', '--tokens', '4000', '--seed', '3']))"
    with start(call, tmp_path) as process:
        assert process.stdout.read(1)
        process.stdout.close()
        errors = process.stderr.read()
    assert process.wait() == 141 and "Broken" not in errors and "Traceback" not in errors


def test_a_long_prompt_is_noticed(tmp_path):
    status, said, errors, _ = ask("generate", "--model", "english", "--prompt", "One fox. " * 100, "--tokens", "2", "--steps", "2", folder=tmp_path)
    assert status == 0 and said.startswith("One fox. ") and errors.count("\n") == 1
    assert "to write, but the model was trained on 256 at a time" in errors


def test_a_foreign_parameter_file_is_answered_with_the_option(tmp_path):
    (tmp_path / "params.yaml").write_text("lr: 1\n")
    status, _, errors, imported = ask("generate", folder=tmp_path)
    assert (status, imported) == (1, []) and "no profile 'profile'" in errors and "--model english" in errors


def test_generate_writes_without_any_training(tmp_path):
    "In a folder without a project the model that comes with the package writes."
    code = "import sys; from colanb.release.cli import main; sys.exit(main(['--prompt', 'Once upon a time', '--tokens', '8', '--steps', '4']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Once upon a time") and len(done.stdout.split()) > 6


NOTED = """import signal, sys, time
from pathlib import Path
def end(number, frame):
    signal.signal(number, signal.SIG_IGN)   # a slow machine is asked twice
    Path(note).write_text("ended"); sys.exit(143)
signal.signal(signal.SIGTERM, end)
Path(note).write_text("started")
time.sleep(300)"""


def test_ctrl_c_ends_a_notebook_run_in_one_line_and_its_kernel_in_peace(tmp_path):
    note, source = tmp_path / "note", tmp_path / "sleep.ipynb"
    parameters = nbformat.v4.new_code_cell(f"note = {str(note)!r}\nprofile = 'smoke'", metadata={"tags": ["parameters"]})
    kernel = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(NOTED)], metadata=kernel), source)
    command = [sys.executable, "-c", "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
               "from colanb.run import main; sys.exit(main(sys.argv[1:]))", str(source), str(tmp_path / "out.ipynb")]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        began = time.time()
        while not note.exists() or note.read_text() != "started":
            assert process.poll() is None and time.time() < began + 300
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=300)[1]
    assert (process.returncode, note.read_text()) == (130, "ended")
    assert said.splitlines()[-1] == "colanb.run: stopped by Ctrl-C" and "Traceback" not in said
