"Both rules on answers judged by hand, and the release rule's published accuracies on the released generations."
import json
import math
import os
from pathlib import Path

import pytest

from colanb.measure.scoring import score, score_file, score_main
from colanb.measure.tasks import Question, TASKS, build_prompt, load_items

TESTS = Path(__file__).resolve().parent
SHARED = TESTS.parents[1] / "shared/data"
ITEMS, GENERATIONS = SHARED / "benchmarks", SHARED / "official_generations"
OWN_ITEMS, OWN_ANSWERS = TESTS / "fixtures/benchmarks", TESTS / "fixtures/generations"   # by hand, as are the verdicts
PUBLISHED = {"lambada": "50.80", "mmlu": "19.30", "siqa": "28.90", "squad": "30.90"}
BENCHMARKS = [OWN_ITEMS] + [ITEMS] * ITEMS.is_dir()

published = pytest.mark.skipif(not GENERATIONS.is_dir(), reason=f"reference generations are not at {GENERATIONS}")


def judged(task):
    "Items with what was written and each rule's verdict by hand; the paper's is absent where only a letter is given."
    answers = [json.loads(line) for line in (OWN_ANSWERS / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()]
    return list(zip(load_items(OWN_ITEMS / f"{task}.jsonl"), answers, strict=True))


@pytest.mark.parametrize("rule", ["release", "paper"])
@pytest.mark.parametrize("task", TASKS)
def test_verdicts_by_hand(task, rule):
    known = [(item, answer) for item, answer in judged(task) if rule in answer]
    for item, answer in known: assert score(item, answer["generate"], task, rule) == answer[rule], answer
    assert {answer[rule] for _, answer in known} == {True, False}


@pytest.mark.parametrize("task", TASKS)
def test_accuracy_by_hand(task, capsys):
    "Files in, Wilson's interval out; by the function and by the command."
    paths = OWN_ITEMS / f"{task}.jsonl", OWN_ANSWERS / f"{task}.jsonl"
    right = [answer["release"] for _, answer in judged(task)]
    scored, n, z = score_file(*paths, task), len(right), 1.959964
    p = sum(right) / n
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    assert (scored.accuracy, scored.n, scored.rejected, scored.unmatched) == (p, n, 0, 0)
    assert (scored.low, scored.high) == pytest.approx((middle - half, middle + half), abs=1e-6)
    assert [outcome.correct for outcome in scored.outcomes] == right
    assert scored.chance == pytest.approx(1 / TASKS[task].choices if TASKS[task].choices else 0)
    assert score_main([*map(str, paths), "--task", task]) == 0
    line = f"{task} (release rule): accuracy {100 * p:.2f} %, n {n}, 95 % Wilson interval {100 * scored.low:.2f} to"
    assert capsys.readouterr().out.startswith(line)


@published
@pytest.mark.parametrize("task", PUBLISHED)
def test_release_rule_gives_the_published_accuracy(task):
    scored = score_file(ITEMS / f"{task}.jsonl", GENERATIONS / f"{task}.jsonl", task)
    assert f"{100 * scored.accuracy:.2f}" == PUBLISHED[task]
    assert (scored.n, scored.rejected, scored.unmatched) == (1000, 0, 0)
    assert scored.low < scored.accuracy < scored.high


@published
def test_command_prints_accuracy_n_and_interval(capsys):
    assert score_main([str(ITEMS / "lambada.jsonl"), str(GENERATIONS / "lambada.jsonl"), "--task", "lambada"]) == 0
    assert capsys.readouterr().out.startswith(
        "lambada (release rule): accuracy 50.80 %, n 1000, 95 % Wilson interval 47.70 to 53.89 %")


@published
@pytest.mark.parametrize("task", PUBLISHED)
def test_paper_rule_never_loses_an_exact_answer(task):
    "Both rules agree on the tasks without options; where they map to options, an exact copy stays right."
    release, paper = (score_file(ITEMS / f"{task}.jsonl", GENERATIONS / f"{task}.jsonl", task, rule) for rule in ("release", "paper"))
    assert paper.n == release.n and (TASKS[task].choices == 0 or paper.accuracy >= release.accuracy)


def parse_block(task, block):
    "Take one prompt block apart; the inverse of `question_block` for the benchmarks' prompts."
    form = TASKS[task]
    body, _, answer = block.removeprefix(form.cue).rpartition(f"\n{form.anchor}")
    if task == "squad":
        context, _, question = body.rpartition("\nQuestion: ")
        return Question(context=context, question=question, answer=answer.strip())
    body, letters = body, "ABCD"[:form.choices]
    choices = []
    for letter in reversed(letters):
        body, _, choice = body.rpartition(f"\n({letter}) ")
        choices.insert(0, choice)
    return Question(question=body.removesuffix("\nOptions:"), choices=choices, answer=answer.strip())


@pytest.mark.parametrize("folder", BENCHMARKS, ids=lambda path: path.parent.name)
@pytest.mark.parametrize("task", [task for task in TASKS if task != "lambada"])
def test_prompts_are_rebuilt_to_the_character(task, folder):
    items, form = load_items(folder / f"{task}.jsonl"), TASKS[task]
    common = os.path.commonprefix([item.prompt for item in items])
    head = common[:common.rindex(form.cue) + len(form.cue)]   # questions may begin alike
    *worked, _ = head.removeprefix(form.head).split(f"\n\n{form.cue}")
    shots = [parse_block(task, block) for block in worked]
    assert len(shots) == form.shots
    for item in items:
        question = parse_block(task, item.prompt[len(head) - len(form.cue):])
        assert build_prompt(task, question, shots) == item.prompt
        assert question.choices == item.choices and len(item.choices or []) == form.choices
