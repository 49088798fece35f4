#!/usr/bin/env python3
"""Run the pipeline on this processor and on an older one (emulated: what MKL, glibc, NumPy and OpenBLAS may use is taken away), with COLANB_PORTABLE=1, and compare all outputs.

    python tests/reliability/move_repro.py [FOLDER]     # about a quarter of an hour on two cores

Writes data/results/reliability/moved.json."""
import json
import os
import sys
import tempfile
from pathlib import Path

from kill_repro import ROOT, SMOKE, compare, timeline
from test_machines import MACHINES

OLDER = {name: value for limits in MACHINES.values() for name, value in limits.items()}
OLDER |= {"NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR", "OPENBLAS_CORETYPE": "Nehalem"}


def main(place):
    here, there = place / "here", place / "there"
    os.environ["COLANB_PORTABLE"] = "1"
    for copy in (here, there): copy.mkdir(parents=True); SMOKE["prepare"](ROOT, copy, theory=False)
    timeline(here)
    os.environ.update(OLDER)
    timeline(there)
    found = {"older": OLDER} | compare(here, there)
    (ROOT / "data/results/reliability/moved.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    return 1 if found["different"] else 0


if __name__ == "__main__": sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="colanb-move-"))))
