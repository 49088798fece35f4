"The world of scenes: its grammar and its judges agree with it for any scene, any wording and any few wrong pixels."
from math import exp, log

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from colanb.unified.scenes import (
    ALLOWED_WRONG, Clause, COLOURS, CONNECTORS, END, JITTERS, LENGTHS, OPENINGS, PLACES, SHAPES, Scene, Scenes, Thing,
    all_scenes, answer_to, candidates, caption_log_prob, from_rgb, judge_pictures, log_wordings, meaning_key, possible,
    question_bounds, questions, read_caption, render, scene_entropies, scene_tokenizer, things_told, to_rgb, token_rows,
    write_caption,
)

settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=50, database=None)
settings.load_profile("fixed")

SCENES = all_scenes()
WORLD, HINTS = Scenes("full"), Scenes("full", partial=True)
TOKENS = scene_tokenizer()

scenes = st.sampled_from(SCENES)
openings = st.sampled_from(OPENINGS)


@st.composite
def drawings(draw):
    "A scene and jitters for its things."
    scene = draw(scenes)
    jitter = st.integers(0, len(JITTERS) - 1)
    return scene, tuple(draw(jitter) for _ in scene.things)


def clauses(partial):
    "Any clause of a full or a partial caption; captions of these need not be possible."
    fields = [st.integers(0, len(values) - 1) for values in (PLACES, COLOURS, SHAPES)]
    full = st.builds(Clause, *fields)
    if not partial: return full
    return st.tuples(full, st.sampled_from(Clause._fields)).map(lambda pair: pair[0]._replace(**{pair[1]: None}))


def wordings(partial):
    "Clauses, an opening and connectors."
    many = st.lists(clauses(partial), min_size=1, max_size=3)
    connectors = st.lists(st.sampled_from(CONNECTORS), min_size=2, max_size=2)
    return st.tuples(many, openings, connectors).map(lambda parts: (parts[0], parts[1], parts[2][:len(parts[0]) - 1]))


# pictures

@given(drawings())
def test_judge_sees_what_is_drawn(drawing):
    scene, jitters = drawing
    seen, = judge_pictures(render(scene, jitters)[None])
    assert (seen.scene, seen.jitters, seen.wrong, seen.accepted) == (scene, jitters, 0, True)


@given(drawings(), st.lists(st.tuples(st.integers(0, 255), st.integers(0, 9)), max_size=ALLOWED_WRONG))
def test_few_wrong_pixels_change_nothing(drawing, changes):
    scene, jitters = drawing
    clean = render(scene, jitters).reshape(-1)
    noisy = clean.copy()
    for place, value in changes: noisy[place] = value
    seen, = judge_pictures(noisy.reshape(1, 16, 16))
    assert (seen.scene, seen.jitters, seen.wrong) == (scene, jitters, (noisy != clean).sum())
    assert seen.accepted


@given(st.integers(0, 2 ** 32 - 1), st.integers(4, 256))
def test_wrong_pixels_are_those_of_the_nearest_drawing(seed, count):
    "Whatever the judge says of a spoiled picture, drawing it again and counting gives its number."
    rng = np.random.default_rng(seed)
    scene = SCENES[rng.integers(len(SCENES))]
    picture = render(scene, [0] * len(scene.things)).reshape(-1)
    picture[rng.choice(256, count, replace=False)] = rng.integers(10, size=count)
    picture = picture.reshape(16, 16)
    seen, = judge_pictures(picture[None])
    assert seen.wrong <= count
    if seen.scene is not None:
        again = render(seen.scene, seen.jitters)
        assert (again != picture).sum() == seen.wrong
    assert seen.accepted == (seen.scene is not None and seen.wrong <= ALLOWED_WRONG)


@given(drawings())
def test_colours_and_indices(drawing):
    picture = render(*drawing)
    assert (from_rgb(to_rgb(picture)) == picture).all()


@pytest.mark.parametrize("picture, message", [
    (np.zeros((16, 15), int), "16x16"), (np.zeros((16, 16)), "float64"), (np.full((16, 16), 10), "palette index 10"),
    (np.full((16, 16), -1), "palette index -1")])
def test_judge_refuses_what_is_no_picture(picture, message):
    with pytest.raises(ValueError, match=message): judge_pictures(picture[None])


def test_a_colour_by_the_wrong_background_is_no_scene():
    picture = render(Scene(0, (Thing(0, 0, 0),)), (0,))
    picture[picture == 0] = 1
    seen, = judge_pictures(picture[None])
    assert (seen.theme, len(seen.things), seen.wrong, seen.scene, seen.accepted) == (1, 1, 0, None, False)


# captions

@given(st.booleans().flatmap(wordings))
def test_captions_are_read_as_written(wording):
    said, opening, connectors = wording
    text = write_caption(said, opening, connectors)
    assert read_caption(text) == tuple(said)
    ids = token_rows(TOKENS, [text], "caption")
    assert ids.shape == (1, LENGTHS["caption"]) and TOKENS.decode(ids[0].tolist()) == text


@settings(max_examples=12)
@given(st.booleans().flatmap(wordings))
def test_possible_means_that_some_scene_is_described(wording):
    "The rule of `possible`, the table of meanings and a search through all scenes agree."
    said, _, _ = wording
    partial = None in said[0]
    found = [scene for scene in SCENES if len(scene.things) == len(said) and things_told(said, scene) is not None]
    assert possible(said) == bool(found)
    world = HINTS if partial else WORLD
    assert [world.scenes[i] for i in candidates(world, said)] == found


@given(st.booleans().flatmap(wordings))
def test_probability_is_that_of_the_scenes(wording):
    said, opening, connectors = wording
    partial = None in said[0]
    world = HINTS if partial else WORLD
    text = write_caption(said, opening, connectors)
    numbers = candidates(world, said)
    expected = sum(world.probabilities()[i] * exp(caption_log_prob(world, text, world.scenes[i])) for i in numbers)
    assert exp(caption_log_prob(world, text)) == pytest.approx(expected)
    other = WORLD if partial else HINTS
    assert caption_log_prob(other, text) == -np.inf                       # a text of the other form


@given(st.booleans().flatmap(wordings), st.integers(0, 30), st.sampled_from(["zebra", "", "and", END, *COLOURS]))
def test_a_changed_word_is_another_caption_or_none(wording, place, word):
    text = write_caption(*wording)
    words = text.split(" ")
    place %= len(words)
    assume(words[place] != word)
    words[place] = word
    changed = " ".join(words)
    try:
        said = read_caption(changed)
    except ValueError as error:
        assert repr(changed) in str(error)
    else:
        assert list(said) != wording[0]


@given(st.text(max_size=40))
def test_any_text_is_judged(text):
    verdict = WORLD.judge_caption(text, SCENES[0])
    assert not verdict.parses or text.startswith(OPENINGS)


@given(scenes, st.integers(0, 2 ** 32 - 1), st.booleans())
def test_a_drawn_caption_describes_its_scene(scene, seed, partial):
    world = HINTS if partial else WORLD
    text = world.caption(scene, np.random.default_rng(seed))
    assert world.judge_caption(text, scene)[:3] == (True, True, True)
    count = len(scene.things)
    assert caption_log_prob(world, text, scene) == pytest.approx(-log_wordings(count) - count * log(3) * partial)


@given(st.permutations([Clause(0, 0, 0), Clause(1, 1, None), Clause(None, 2, 3)]))
def test_order_says_nothing(said):
    assert meaning_key(said) == meaning_key([Clause(None, 2, 3), Clause(0, 0, 0), Clause(1, 1, None)])


# questions

@given(scenes, st.integers(0, 2 ** 32 - 1))
def test_answers(scene, seed):
    asked = WORLD.ask(scene, np.random.default_rng(seed))
    assert answer_to(asked.block, scene) == asked.answer
    for text, kind in ((asked.block, "question"), (asked.answer, "answer")):
        assert TOKENS.decode(token_rows(TOKENS, [text], kind)[0].tolist()) == text


@given(scenes, scenes)
def test_answers_tell_scenes_apart(one, other):
    "Who knows all answers knows the scene, but for shapes that two things share."
    answers = [{asked.block: asked.answer for kind in questions(scene).values() for asked in kind} for scene in (one, other)]
    assert (one == other) == (answers[0] == answers[1])


# the world

@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("partial", [False, True])
def test_numbers_of_a_split(split, partial):
    world = HINTS if partial else WORLD
    inside, whole = scene_entropies(world, split), scene_entropies(world)
    assert world.probabilities(split).sum() == pytest.approx(1)
    assert inside.H_G < whole.H_G and inside.information < whole.information
    assert inside.H_G_given_text == pytest.approx(0, abs=1e-9) or partial


def test_questions_of_a_split():
    bounds = question_bounds(WORLD, "test")
    assert 0.2 < bounds.image_only < bounds.question_only < 0.5 and 1 < bounds.nats < log(30)


def test_splits_share_no_scene_and_draw_their_own():
    seen = {}
    for split in ("train", "validation", "test"):
        seen[split] = {example.scene for example in WORLD.draw(400, seed=0, split=split)}
        assert all(WORLD.probabilities(split)[WORLD.scenes.index(scene)] > 0 for scene in list(seen[split])[:20])
    assert not seen["train"] & seen["test"] and not seen["train"] & seen["validation"]
    again = WORLD.draw(400, seed=0, split="train")
    assert {example.scene for example in again} == seen["train"]


def test_empirical_frequencies_meet_the_probabilities():
    drawn = HINTS.draw(1000, seed=1)
    surprise = -np.array([caption_log_prob(HINTS, example.caption) for example in drawn])
    expected = scene_entropies(HINTS, "train")
    # p of the whole world prices captions of its training scenes at their cross-entropy, a little above their entropy
    assert abs(surprise.mean() - expected.H_text) < 0.1 + 3 * surprise.std() / 1000 ** 0.5


def test_bad_input():
    with pytest.raises(ValueError, match="at most 4"): token_rows(TOKENS, ["how many things are there ?"], "answer")
    with pytest.raises(ValueError, match="'poem' is no word"): token_rows(TOKENS, ["the poem"], "answer")
    with pytest.raises(ValueError, match="kind='poem': choose from caption"): token_rows(TOKENS, ["day"], "poem")
    with pytest.raises(ValueError, match="1 to 3"): render(Scene(0, ()), ())
    with pytest.raises(ValueError, match="must differ"): render(Scene(0, (Thing(0, 0, 0), Thing(1, 0, 0))), (0, 0))
