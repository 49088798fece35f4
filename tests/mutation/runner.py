"Run a module's checks on a changed copy of the package: a process for each mutant, the cheapest check first."
import importlib
import importlib.util
import math
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from runpy import run_path
from typing import NamedTuple

from execnb.nbio import read_nb

from .mutator import Mutant

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = {
    ".".join(part.split("_", 1)[1] for part in path.relative_to(ROOT / "nbs").with_suffix("").parts): path
    for path in (ROOT / "nbs").rglob("[0-9]*.ipynb") if "exp" not in path.parts}
SKIPPED = re.compile(r"^#\|\s*(export|exporti|exports|default_exp|slow|gpu|eval: *false)", re.M)
# a cell of a figure that has none of these checks nothing
MISSED = re.compile(r"^\s*(assert|test_\w+\(|with )", re.M)
HEAVY = ("torch", "torch._dynamo", "pytest", "hypothesis", "pandas", "scipy.stats", "fastcore.test",
         "matplotlib.pyplot", "transformers")
FORK = multiprocessing.get_context("fork")

# files of tests/ that run a module's code in the test's own process, and
# which of their tests (pytest's -k); files that are not there are left
# out
COVERED_BY = {
    "model.vae": {"test_kills.py": "vae", "test_objective.py": "", "test_properties.py": "logits", "test_isolation.py": ""},
    "model.dit": {"test_kills.py": "dit", "test_objective.py": "", "test_properties.py": "velocities", "test_isolation.py": ""},
    "model.baselines": {"test_kills.py": "baselines", "test_baseline_objectives.py": "",
                        "test_baselines.py": "not llama", "test_isolation.py": ""},
    "learn.path": {"test_kills.py": "flow", "test_objective.py": ""},
    "learn.losses": {"test_kills.py": "flow", "test_objective.py": "", "test_isolation.py": "",
                     "test_options.py": "token or first_guess"},
    "learn.baseline_losses": {"test_kills.py": "baselines", "test_baseline_objectives.py": "", "test_isolation.py": ""},
    "generate.sample": {"test_kills.py": "sample", "test_properties.py": "alone", "test_options.py": "sampler"},
    "generate.baselines": {"test_kills.py": "baselines", "test_baselines.py": "not llama"},
    "measure.estimators": {"test_kills.py": "estimators"},
    "measure.density": {"test_kills.py": "likelihood"},
    "measure.likelihood": {"test_kills.py": "likelihood"},
    "measure.text_likelihood": {"test_kills.py": "likelihood"},
    "measure.baseline_likelihood": {"test_kills.py": "baselines", "test_baselines.py": "not llama"},
}


PIPELINE = run_path(str(ROOT / ".ci/pipeline"))
MODULES = {name: path for name, path in PIPELINE["modules_of"](ROOT).items() if path.stem != "_modidx"}


def source_of(module: str) -> str:
    "The text of a module of the library, such as `model.vae`."
    return MODULES[f"colanb.{module}"].read_text()


class Verdict(NamedTuple):
    "What became of a mutant."
    mutant: Mutant
    killed_by: str | None   # check, or 'time limit'; None: it survived
    seconds: float


def needed_by(module: str) -> set[str]:
    "The module and those that import it, directly or not."
    uses = {name: PIPELINE["imports_of"](path, name.rpartition(".")[0], MODULES) for name, path in MODULES.items()}
    found, size = {f"colanb.{module}"}, 0
    while size < len(found):
        size = len(found)
        found |= {name for name, others in uses.items() if others & found}
    return found


def run_pytest(path: Path, module: str) -> None:
    import pytest
    chosen = COVERED_BY[module][path.name]
    code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--rootdir",
                       str(ROOT), str(path), *(["-k", chosen] if chosen else [])])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED): raise AssertionError(path.name)


def run_notebook(path: Path, module: str) -> None:
    "The cells that are not exported, as plain Python on the names of the changed module."
    names = dict(vars(importlib.import_module(f"colanb.{module}"))) | {
                 "__name__": "__notebook__", "display": lambda *shown, **more: None}
    for number, cell in enumerate(read_nb(path).cells):
        if cell.cell_type != "code" or SKIPPED.search(cell.source): continue
        if "plt." in cell.source and "import" not in cell.source and not MISSED.search(cell.source): continue
        exec(compile(cell.source, f"{path.name}, cell {number}", "exec"), names)


def run_check(path: Path, module: str) -> None:
    (run_notebook if path.suffix == ".ipynb" else run_pytest)(path, module)


def checks_of(module: str) -> list[Path]:
    "The notebook and the test files that are there."
    files = [ROOT / "tests" / name for name in COVERED_BY[module]]
    return [NOTEBOOKS[module], *(path for path in files if path.exists())]


def forget(name: str) -> None:
    "Let the next import of a module read it again; a package keeps its modules as attributes, too."
    sys.modules.pop(name, None)
    package, _, last = name.rpartition(".")
    if last in vars(sys.modules.get(package, sys)): delattr(sys.modules[package], last)


def attempt(module: str, checks: list[Path], answer, limit: int) -> None:
    "In a process of its own: run the checks up to the first that fails, and say which that was."
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))       # processor time: other work on the machine does not matter
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2): os.dup2(nowhere, stream)
    for name in needed_by(module): forget(name)
    for path in checks:
        began = time.process_time()
        try: run_check(path, module)
        except BaseException as error:
            answer.send((path.name, f"{type(error).__name__}: {error}"))
            os._exit(0)
        answer.send((None, time.process_time() - began))
    os._exit(0)


def put(place: Path, source: str) -> None:
    "Write a module, whose bytecode could be of the same size and second."
    place.write_text(source)
    Path(importlib.util.cache_from_source(str(place))).unlink(missing_ok=True)


class Laboratory:
    "A temporary copy of the package, in which one module at a time is changed."
    def __init__(self, folder: Path):
        self.folder, self.order, self.limit = folder, {}, {}
        shutil.copytree(ROOT / "colanb", folder / "colanb", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("params.yaml", "nbs", "data", "figures"): (folder / name).symlink_to(ROOT / name)
        sys.path.insert(0, str(folder))
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"    # they take longer than most checks
        os.chdir(folder)                     # what a cell writes goes to the copy
        self.load()

    def load(self) -> None:
        "Import what every attempt needs, once."
        import matplotlib
        matplotlib.use("Agg")
        for name in HEAVY: importlib.import_module(name)
        for name in (*COVERED_BY, "learn.train", "measure.scoring", "evidence.plots"): importlib.import_module(f"colanb.{name}")
        assert Path(sys.modules["colanb.learn.losses"].__file__).is_relative_to(self.folder)

    def attempt(self, module: str, source: str, checks: list[Path], limit: float) -> tuple[str | None, list]:
        "The check that fails on a source, or None, and what the checks said."
        original = source_of(module)
        place = self.folder / MODULES[f"colanb.{module}"].relative_to(ROOT)
        put(place, source)
        receiver, sender = FORK.Pipe(duplex=False)
        process = FORK.Process(target=attempt, args=(module, checks, sender, math.ceil(limit)))
        process.start()
        sender.close()
        process.join(60 + 30 * limit)                             # for one that waits
        late = process.is_alive()
        if late: os.killpg(process.pid, signal.SIGKILL)
        process.join()
        late = late or process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
        put(place, original)
        said = []
        while receiver.poll():
            try: said.append(receiver.recv())
            except EOFError: break
        if late: return "time limit", said
        failed = [name for name, _ in said if name]
        if failed: return failed[0], said
        return (None if len(said) == len(checks) else "crash"), said

    def prepare(self, module: str) -> None:
        "Run the checks on the module as it is: they must pass, and their times give order and limit."
        checks = checks_of(module)
        failed, said = self.attempt(module, source_of(module), checks, limit=600)
        if failed: raise RuntimeError(f"{module}: {failed} fails without a mutant: {said}")
        seconds = [spent for _, spent in said]
        self.order[module] = [path for _, path in sorted(zip(seconds, checks))]
        self.limit[module] = 10 + 5 * sum(seconds)

    def judge(self, mutant: Mutant) -> Verdict:
        if mutant.module not in self.order: self.prepare(mutant.module)
        began = time.perf_counter()
        killed_by, _ = self.attempt(mutant.module, mutant.source, self.order[mutant.module], self.limit[mutant.module])
        return Verdict(mutant, killed_by, time.perf_counter() - began)


@contextmanager
def laboratory() -> Iterator[Laboratory]:
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        try: yield Laboratory(Path(folder))
        finally: os.chdir(here)
