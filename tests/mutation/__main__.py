"Measure which mutants the checks kill; the survivors go to a JSON file."
import argparse
import json
import os
import sys
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")      # before PyTorch is loaded
os.environ["COLANB_TYPECHECK"] = "0"                # facts must notice a mistake, not types

from ruamel.yaml import YAML
from tqdm import tqdm

from .mutator import Mutant, mutants, replaced, sample
from .runner import COVERED_BY, Verdict, laboratory, source_of

HERE = Path(__file__).parent


def known_mutants() -> list[Mutant]:
    "Those of known.yaml."
    entries = YAML(typ="safe").load((HERE / "known.yaml").read_text())
    return [replaced(e["module"], source_of(e["module"]), e["old"], e["new"], e["what"]) for e in entries]


def equivalents() -> set[tuple[str, str]]:
    "Module and difference of mutants that change nothing a check could see, from equivalent.yaml."
    entries = YAML(typ="safe").load((HERE / "equivalent.yaml").read_text()) or []
    return {(e["module"], e["diff"].strip()) for e in entries}


def described(verdict: Verdict) -> dict:
    mutant = verdict.mutant
    return {"module": mutant.module, "line": mutant.line, "kind": mutant.kind,
        "diff": mutant.diff.split("\n"), "seconds": round(verdict.seconds, 2)}


def summary(verdicts: list[Verdict]) -> dict:
    "Counts, rate and survivors; equivalent mutants do not count."
    same = equivalents()
    counted = [v for v in verdicts if (v.mutant.module, v.mutant.diff.strip()) not in same]
    killed = [v for v in counted if v.killed_by]
    return {
        "mutants": len(counted),
        "equivalent": len(verdicts) - len(counted),
        "killed": len(killed),
        "rate": round(len(killed) / max(len(counted), 1), 4),
        "seconds": round(sum(v.seconds for v in verdicts), 1),
        "by": Counter(v.killed_by for v in killed),
        "survivors": [described(v) for v in counted if not v.killed_by]}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    made.add_argument(
    "--modules",
    nargs="+",
    default=list(COVERED_BY),
    choices=list(COVERED_BY),
    metavar="MODULE",
     help=", ".join(COVERED_BY))
    made.add_argument("--sample", type=int, default=25, help="mutants of each module; 0: none")
    made.add_argument("--seed", type=int, default=0, help="of the sample")
    made.add_argument("--known", action="store_true", help="the mutants of known.yaml too")
    made.add_argument("--out", type=Path, help="JSON file of the result")
    return made


def main() -> int:
    args = parser().parse_args()
    out = args.out and args.out.resolve()
    chosen = {module: sample(mutants(module, source_of(module)), args.sample, args.seed) for module in args.modules}
    if args.known: chosen["known"] = known_mutants()
    with laboratory() as lab, tqdm(total=sum(map(len, chosen.values())), unit="mutant") as bar:
        found = {}
        for group, members in chosen.items():
            bar.set_description(group)
            verdicts = []
            for mutant in members:
                verdicts.append(lab.judge(mutant))
                bar.update()
            found[group] = summary(verdicts)
            tqdm.write(
                "{}: {killed} of {mutants} killed, {equivalent} equivalent, {seconds} s".format(group, **found[group]))
            if out: out.write_text(json.dumps(found, indent=1) + "\n")
    if not out: print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__": sys.exit(main())
