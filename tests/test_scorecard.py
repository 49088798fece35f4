"Every claim of the paper has one row, and every verdict a run behind it."
import json
import subprocess
from pathlib import Path

from colanb.evidence.report import read_verdicts

ROOT = Path(__file__).resolve().parents[1]
CLAIMS = [f"{letter}{i}" for letter, count in dict(A=21, B=5, C=14, D=11, E=9, F=11).items() for i in range(1, count + 1)]


def scorecard():
    "Rows of figures/scorecard.md by claim."
    lines = [line.replace(r"\|", "\0")[2:-2].split(" | ") for line in (ROOT / "figures/scorecard.md").read_text().split("\n") if line.startswith("| ")]
    head, rows = lines[0], [r for r in lines[2:]]
    assert all(len(r) == len(head) for r in rows), "a cell is empty at the end or holds a bar"
    return [dict(zip(head, (cell.strip() for cell in r))) for r in rows]


def verdicts():
    "Verdicts as the figures left them."
    return [v._asdict() for v in read_verdicts(ROOT / "figures").itertuples(index=False)]


def test_every_claim_has_one_row():
    assert [r["Claim"] for r in scorecard()] == CLAIMS


def test_rows_are_the_verdicts_of_the_figures():
    left = {v["claim"]: v for v in verdicts()}
    for row in scorecard():
        if row["Claim"] not in left: assert row["Verdict"] == "**NT**" and row["Note"], row["Claim"]
        else:
            v = left[row["Claim"]]
            assert row["Verdict"] == f"**{v['verdict']}**" and f"({v['slug']}.ipynb)" in row["Figure"], row["Claim"]


def test_every_verdict_has_a_run_behind_it():
    tracked = set(subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n"))
    for v in verdicts():
        slug = v["slug"]
        if v["verdict"] in ("U", "NT"): assert v["note"], f"{v['claim']} has no reason"
        results = v["results"] if isinstance(v["results"], str) else f"data/results/{slug}/{v['profile']}"
        runs = [name for name in tracked if name.startswith(results)] or [name for name in tracked if name == f"figures/{slug}.ipynb" and slug.startswith("theory")]
        assert runs, f"{v['claim']}: nothing in {results}"
        executed = json.loads((ROOT / f"figures/{slug}.ipynb").read_text())
        assert any(cell.get("outputs") for cell in executed["cells"]), slug


def test_the_sentence_at_the_top_counts_the_rows():
    given = [row["Verdict"].strip("*") for row in scorecard()]
    counts = ", ".join(f"{given.count(verdict)} {verdict}" for verdict in ("R", "NR", "U", "NT"))
    text = (ROOT / "figures/scorecard.md").read_text()
    assert f"\n{len(CLAIMS)} claims: {counts}. Profile" in text


def test_rows_name_the_commit_of_their_run():
    for row in scorecard():
        if row["Figure"] != "[scorecard](scorecard.ipynb)": assert row["Commit"] and row["Compute"] and row["Paper"] and row["Here"], row["Claim"]
