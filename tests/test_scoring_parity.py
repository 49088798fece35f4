"The release rule gives the published accuracies on the released generations."
import json
import os
from pathlib import Path

import pytest

from colanb.tasks import TASKS, Question, build_prompt, load_items, score_file, score_main

SHARED = Path(__file__).resolve().parents[1].parent / "shared"
ITEMS, GENERATIONS = SHARED / "data/benchmarks", SHARED / "data/official_generations"
PUBLISHED = {"lambada": "50.80", "mmlu": "19.30", "siqa": "28.90", "squad": "30.90"}

pytestmark = pytest.mark.skipif(not GENERATIONS.is_dir(), reason=f"reference generations are not at {GENERATIONS}")


@pytest.mark.parametrize("task", PUBLISHED)
def test_release_rule_gives_the_published_accuracy(task):
    scored = score_file(ITEMS / f"{task}.jsonl", GENERATIONS / f"{task}.jsonl", task)
    assert f"{100 * scored.accuracy:.2f}" == PUBLISHED[task]
    assert (scored.n, scored.rejected, scored.unmatched) == (1000, 0, 0)
    assert scored.low < scored.accuracy < scored.high


def test_command_prints_accuracy_n_and_interval(capsys):
    assert score_main([str(ITEMS / "lambada.jsonl"), str(GENERATIONS / "lambada.jsonl"), "--task", "lambada"]) == 0
    assert capsys.readouterr().out.startswith(
        "lambada (release rule): accuracy 50.80 %, n 1000, 95 % Wilson interval 47.70 to 53.89 %")


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


@pytest.mark.parametrize("task", [task for task in TASKS if task != "lambada"])
def test_prompts_are_rebuilt_to_the_character(task):
    items, form = load_items(ITEMS / f"{task}.jsonl"), TASKS[task]
    head = os.path.commonprefix([item.prompt for item in items])
    *worked, _ = head.removeprefix(form.head).split(f"\n\n{form.cue}")
    shots = [parse_block(task, block) for block in worked]
    assert len(shots) == form.shots
    for item in items:
        question = parse_block(task, item.prompt[len(head) - len(form.cue):])
        assert build_prompt(task, question, shots) == item.prompt
        assert question.choices == item.choices and len(item.choices or []) == form.choices
