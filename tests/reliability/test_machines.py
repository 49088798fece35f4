"On other processors: with COLANB_PORTABLE's settings the same bits, without them differences that are recorded."
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from trainers import fork, ready, record, wait

from colanb.run import PORTABLE

MACHINES = {   # what an older processor would make of it: what MKL and glibc may use is taken away
    "this one": {},
    "no AVX in MKL": {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    "no AVX or FMA in glibc": {"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-AVX512F,-AVX"},
    "no AVX-512 in PyTorch": {"ATEN_CPU_CAPABILITY": "avx2"},
    "no AVX in PyTorch": {"ATEN_CPU_CAPABILITY": "default"},
}


@pytest.mark.skipif(platform.machine() != "x86_64" or platform.system() != "Linux", reason="the processors are emulated for x86-64 Linux")
@pytest.mark.parametrize("kind", ["prior"])
def test_portable_settings_give_the_same_bits(tmp_path, kind):
    assert wait(fork(lambda: ready(tmp_path))) == 0
    found = []
    for portable in (True, False) if "COLANB_RECORD" in os.environ else (True,):   # the others are for the figure
        for name, limits in MACHINES.items():
            folder = tmp_path / f"{portable}-{name}"
            settings = limits | PORTABLE if portable else {"OMP_NUM_THREADS": "1"} | limits
            began = time.monotonic()
            jobs = json.dumps([[kind, str(folder), {"steps": 12}]])
            command = [sys.executable, str(Path(__file__).with_name("trainers.py")), jobs]
            subprocess.run(command, env=os.environ | settings, check=True, capture_output=True)
            weights = hashlib.sha256(b"".join(f.read_bytes() for f in sorted((folder / kind).glob("*.safetensors")))).hexdigest()
            losses = pd.read_csv(folder / kind / "log.csv").loss.dropna().tolist()
            found.append({"kind": kind, "portable": portable, "machine": name, "weights": weights[:16], "losses": losses, "seconds": round(time.monotonic() - began, 1)})
    record("machines", found, kind)
    assert len({f["weights"] for f in found if f["portable"]}) == 1


@pytest.mark.parametrize("name,expected", [("no AVX-512 in PyTorch", {"AVX2", "DEFAULT"}), ("no AVX in PyTorch", {"DEFAULT"})])
def test_the_emulation_reaches_pytorch(name, expected):
    said = subprocess.run([sys.executable, "-c", "import torch; print(torch.backends.cpu.get_cpu_capability())"], env=os.environ | MACHINES[name], capture_output=True, text=True, check=True)
    assert said.stdout.strip() in expected
