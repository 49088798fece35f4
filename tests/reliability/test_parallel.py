"A training on two processes is the training on one; checkpoints pass from one number of processes to another; a killed rank ends the job, which resumes."
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
from trainers import KINDS, ready, record, start

SCRIPT = Path(__file__).with_name("trainers.py")
INTERVAL = dict(strategy='"interval"', interval_joint=3, interval_fixed=3, steps=12)
BOUNDS = {"adamw": 1e-4, "muon": 1e-3}     # on losses; Muon works in bfloat16, whose rounding differs between processors


def launch(world, kind, folder, **changes):
    "Start a training on `world` processes."
    words = [str(SCRIPT), kind, str(folder), *(f"{k}={v}" for k, v in changes.items())]
    command = [sys.executable, *words] if world == 1 else [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}", *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def trained(world, kind, folder, **changes):
    "Log of a finished training."
    job = launch(world, kind, folder, **changes)
    _, errors = job.communicate(timeout=900)   # bf16 without instructions for it is slow
    assert job.returncode == 0, errors[-2000:]
    return pd.read_csv(folder / kind / "log.csv")


def apart(a, b):
    "Largest difference of losses, in training and on validation text."
    names = [c for c in a if c in ("loss", "val_fm", "val_nats", "val_reconstruction")]
    return float(np.nanmax(np.abs(a[names].to_numpy() - b[names].to_numpy())))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return ready(tmp_path_factory.mktemp("parallel"))


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_learn_what_one_learns(place, kind):
    one, two = (trained(n, kind, place / f"{kind}{n}", accumulate=a, steps=12, optimizer='"adamw"') for n, a in ((1, 1), (2, 2)))
    record("parallel", {"kind": kind, "processes": 2, "apart": apart(one, two), "losses": [t.loss.dropna().tolist() for t in (one, two)]}, kind)
    assert apart(one, two) < 1e-5
    assert one.loss.dropna().iloc[-1] < one.loss.dropna().iloc[0]


@pytest.mark.parametrize("optimizer", BOUNDS)
def test_interval_and_recompute(place, optimizer):
    how = INTERVAL | dict(optimizer=f'"{optimizer}"')
    one, two = (trained(n, "prior", place / f"interval-{optimizer}{n}", recompute=again, **how) for n, again in ((1, "false"), (2, "true")))
    assert apart(one, two) < BOUNDS[optimizer]


def test_bf16(place):
    full, *half = (trained(n, "prior", place / f"{kind}{n}", precision=f'"{kind}"', **INTERVAL) for n, kind in ((1, "fp32"), (1, "bf16"), (2, "bf16")))
    assert max(apart(full, half[0]), apart(*half)) < 0.05


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precision_of_the_linear_maps(place, precision):
    seen = set()
    def note(module, given, out):
        if isinstance(module, torch.nn.Linear): seen.add(out.dtype)
    hook = torch.nn.modules.module.register_module_forward_hook(note)
    try: start("vae", place / f"precision-{precision}", steps=1, precision=precision)
    finally: hook.remove()
    assert (torch.bfloat16 in seen) == (precision == "bf16")


@pytest.mark.parametrize("optimizer", BOUNDS)
def test_checkpoints_pass_between_numbers_of_processes(place, optimizer):
    how = dict(steps=24, optimizer=f'"{optimizer}"')
    whole = trained(1, "prior", place / f"{optimizer}1", **how)
    for first, second in ((2, 1), (1, 2)):
        folder = place / f"{optimizer}{first}{second}"
        job = launch(first, "prior", folder, **how)
        while not (folder / "scratch/step-0000010").exists() and job.poll() is None: time.sleep(0.01)
        job.send_signal(signal.SIGTERM)                     # torchrun hands it on to its processes, which save
        job.communicate(timeout=300)
        assert job.returncode and not (folder / "prior/log.csv").exists()
        assert apart(whole, trained(second, "prior", folder, **how)) < BOUNDS[optimizer]
        assert min(int(p.name[5:]) for p in (folder / "scratch").glob("step-*")) > 5


def test_a_killed_rank_ends_the_job_and_it_resumes(place):
    whole, folder = trained(2, "ar", place / "ranks", steps=60), place / "killed"
    job = launch(2, "ar", folder, steps=60)
    while not (folder / "scratch/step-0000010").exists() and job.poll() is None: time.sleep(0.01)
    ranks = [int(p) for p in subprocess.run(["ps", "--ppid", str(job.pid), "-o", "pid="], capture_output=True, text=True).stdout.split()]
    os.kill(ranks[-1], signal.SIGKILL)
    job.communicate(timeout=300)
    assert job.returncode != 0 and not (folder / "ar/log.csv").exists()
    assert apart(whole, trained(2, "ar", folder, steps=60)) == 0


def test_from_the_command_line(tmp_path):
    words = ["-m", "colanb.learn.train", "profile=smoke", "run=smoke", "stage=vae", f"out={tmp_path}"]
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *words], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    log = pd.read_csv(tmp_path / "vaes/smoke/0/log.csv")
    assert log.step.iloc[-1] == 150 and log.accuracy.dropna().iloc[-1] > 0.9
    assert (tmp_path / "vaes/smoke/0/vae.safetensors").exists()
