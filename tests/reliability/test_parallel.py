"A training on two processes is the training on one; checkpoints pass from one number of processes to another; a killed rank ends the job, which resumes."
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from trainers import KINDS, fork, keep_checkpoints, ready, record, start, wait

SCRIPT = Path(__file__).with_name("trainers.py")
INTERVAL = dict(strategy="interval", interval_joint=3, interval_fixed=3, steps=12)
BOUNDS = {"adamw": 1e-4, "muon": 1e-3}     # on losses; Muon works in bfloat16, whose rounding differs between processors
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLANB_TYPECHECK": "0"}   # annotations are checked in this process
# trainings on two processes, all started at once: name -> (kind, changes)
TOGETHER = {kind: (kind, dict(accumulate=2, steps=12, optimizer="adamw")) for kind in KINDS}
TOGETHER |= {f"interval-{name}": ("prior", INTERVAL | dict(optimizer=name, recompute=True)) for name in BOUNDS}
TOGETHER |= {"bf16": ("prior", INTERVAL | dict(precision="bf16")), "ranks": ("ar", dict(steps=60))}


def launch(world, *jobs):
    "Start trainings (kind, folder, changes), one after another, on `world` processes."
    words = [str(SCRIPT), json.dumps([[kind, str(folder), changes] for kind, folder, changes in jobs])]
    many = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    command = [sys.executable, *(many if world > 1 else []), *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def finish(job):
    "Wait for a job, which must succeed."
    _, errors = job.communicate(timeout=900)   # bf16 without instructions for it is slow
    assert job.returncode == 0, errors[-2000:]


def log_of(kind, folder):
    "Log of a finished training."
    return pd.read_csv(folder / kind / "log.csv")


def alone(kind, folder, **changes):
    "Train in this process; the log."
    start(kind, folder, **changes)
    return log_of(kind, folder)


def apart(a, b):
    "Largest difference of losses, in training and on validation text."
    names = [name for name in a if name in ("loss", "val_fm", "val_nats", "val_reconstruction")]
    return float(np.nanmax(np.abs(a[names].to_numpy() - b[names].to_numpy())))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return ready(tmp_path_factory.mktemp("parallel"))


@pytest.fixture(scope="module")
def together(place):
    "Logs of the trainings on two processes."
    finish(launch(2, *((kind, place / f"two-{name}", changes) for name, (kind, changes) in TOGETHER.items())))
    return {name: log_of(kind, place / f"two-{name}") for name, (kind, _) in TOGETHER.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_learn_what_one_learns(place, together, kind):
    one, two = alone(kind, place / f"one-{kind}", steps=12, optimizer="adamw"), together[kind]
    losses = [log.loss.dropna().tolist() for log in (one, two)]
    record("parallel", {"kind": kind, "processes": 2, "apart": apart(one, two), "losses": losses}, kind)
    assert apart(one, two) < 1e-5
    assert losses[0][-1] < losses[0][0]


@pytest.mark.parametrize("optimizer", BOUNDS)
def test_interval_and_recompute(place, together, optimizer):
    one = alone("prior", place / f"one-interval-{optimizer}", optimizer=optimizer, **INTERVAL)
    assert apart(one, together[f"interval-{optimizer}"]) < BOUNDS[optimizer]


def test_bf16(place, together):
    full, half = (alone("prior", place / f"one-{kind}", precision=kind, **INTERVAL) for kind in ("fp32", "bf16"))
    assert max(apart(full, half), apart(half, together["bf16"])) < 0.05


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precision_of_the_linear_maps(place, precision):
    seen = set()
    def note(module, given, out):
        if isinstance(module, torch.nn.Linear): seen.add(out.dtype)
    hook = torch.nn.modules.module.register_module_forward_hook(note)
    try: start("vae", place / f"precision-{precision}", steps=1, precision=precision)
    finally: hook.remove()
    assert (torch.bfloat16 in seen) == (precision == "bf16")


# ---- trainings that are stopped and go on: with one process, which is forked and so has imported everything, or with two ----

ENDED = {name: dict(steps=24, optimizer=name) for name in BOUNDS}


def work(folder, changes):
    keep_checkpoints()
    start("prior", folder, **changes)


def at_checkpoint(folder, alive):
    "Wait for a checkpoint of a training."
    while not (folder / "scratch/step-0000010").exists() and alive(): time.sleep(0.01)


def stop_one(folder, changes):
    "End a training on one process after a checkpoint."
    pid = fork(lambda: work(folder, changes))
    at_checkpoint(folder, lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None)
    os.kill(pid, signal.SIGTERM)
    assert wait(pid) == 143


def stop_two(kind, folder, changes, act):
    "The same on two, whose job must fail after what `act` does to it."
    job = launch(2, (kind, folder, changes))
    at_checkpoint(folder, lambda: job.poll() is None)
    act(job)
    job.communicate(timeout=300)
    finished = [path for path in folder.glob("*/log.csv") if path.parent.name != "scratch"]
    assert job.returncode and not finished


def terminate(job):
    "torchrun hands it on to its processes, which save."
    job.send_signal(signal.SIGTERM)


def kill_one(job):
    "Kill a rank of a job."
    listed = subprocess.run(["ps", "--ppid", str(job.pid), "-o", "pid="], capture_output=True, text=True).stdout
    os.kill(int(listed.split()[-1]), signal.SIGKILL)


@pytest.fixture(scope="module")
def resumed(place):
    "A folder for each training that was stopped on one, on two or by the loss of a rank, and then went on to its end."
    folders = {name: place / name for name in ("adamw12", "muon12", "adamw21", "muon21", "killed")}
    for name, how in ENDED.items():
        stop_one(folders[f"{name}12"], how)
        stop_two("prior", folders[f"{name}21"], how, terminate)
        assert wait(fork(lambda: work(folders[f"{name}21"], how))) == 0
    stop_two("ar", folders["killed"], dict(steps=60), kill_one)
    finish(launch(2, *(("prior", folders[f"{name}12"], how) for name, how in ENDED.items()), ("ar", folders["killed"], dict(steps=60))))
    return folders


@pytest.mark.parametrize("optimizer", BOUNDS)
def test_checkpoints_pass_between_numbers_of_processes(place, resumed, optimizer):
    whole = alone("prior", place / f"{optimizer}1", **ENDED[optimizer])
    for order in ("21", "12"):
        folder = resumed[f"{optimizer}{order}"]
        assert apart(whole, log_of("prior", folder)) < BOUNDS[optimizer]
        assert min(int(path.name[5:]) for path in (folder / "scratch").glob("step-*")) > 5


def test_a_killed_rank_ends_the_job_and_it_resumes(resumed, together):
    assert apart(together["ranks"], log_of("ar", resumed["killed"])) == 0


def test_from_the_command_line(tmp_path):
    words = ["-m", "colanb.learn.train", "profile=smoke", "run=smoke", "stage=vae", f"out={tmp_path}"]
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *words], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-2000:]
    log = pd.read_csv(tmp_path / "vaes/smoke/0/log.csv")
    assert log.step.iloc[-1] == 150 and log.accuracy.dropna().iloc[-1] > 0.9
    assert (tmp_path / "vaes/smoke/0/vae.safetensors").exists()
