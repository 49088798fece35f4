"The world of real digits: nothing of the test is seen, captions and questions are exact, chance is what it says."
from collections import Counter

import numpy as np
import pytest

from colanb.text.testbed import SPLITS
from colanb.unified.digits import DIGITS, Digits, digit_judge, digit_questions, four_of_each, handwriting, picture_world, read_digits, write_digits
from colanb.unified.scenes import PLACES, Scenes, question_bounds, to_rgb

WORLD, OPEN = Digits(), Digits(partial=True)


def test_the_judge_has_seen_training_digits_alone():
    "Its known digits are those of the training split, to the last; all ten classes are in every split."
    written = handwriting()
    train = written.pictures[written.of("train")]
    assert (digit_judge().known == train.reshape(len(train), -1)).all()
    assert digit_judge().classifier.shape_fit_ == (len(train), 64)
    sizes = {split: len(written.of(split)) for split in SPLITS}
    assert sum(sizes.values()) == len(written.classes) and abs(sizes["test"] / len(written.classes) - 0.1) < 0.01
    for split in SPLITS: assert set(written.classes[written.of(split)]) == set(range(10))


@pytest.mark.parametrize("split", SPLITS)
def test_pictures_are_digits_of_their_split(split):
    written = handwriting()
    for example in WORLD.draw(40, 7, split):
        assert (four_of_each(example.picture[None]) == written.pictures[list(example.sources)]).all()
        assert {int(written.split[source]) for source in example.sources} == {SPLITS.index(split)}
        assert WORLD.split_numbers[WORLD.scenes.index(example.scene)] == SPLITS.index(split)
        assert tuple(written.classes[list(example.sources)].tolist()) == example.scene == read_digits(example.caption)


def test_judge_of_pictures_and_captions():
    "A digit in a wrong place is wrong, half a digit is none, and a caption is judged by all four."
    picture = WORLD.draw(1, 0)[0].picture
    sight, = WORLD.see(picture[None])
    swapped = np.concatenate([picture[8:], picture[:8]])
    other, = WORLD.see(swapped[None])
    assert other.scene == sight.scene[2:] + sight.scene[:2]
    wrong = tuple((digit + 1) % 10 for digit in sight.scene)
    assert WORLD.shown(sight, sight.scene) == 1 and WORLD.shown(sight, wrong[:1] + sight.scene[1:]) == 0.75
    assert WORLD.fits(sight, write_digits(sight.scene)) and not WORLD.fits(sight, write_digits(wrong[:1] + sight.scene[1:]))
    assert WORLD.fits(sight, write_digits([None, *sight.scene[1:]]))
    noise = picture.copy()
    noise[:8, :8] = np.random.default_rng(0).integers(5, size=(8, 8))
    spoilt, = WORLD.see(noise[None])
    assert not spoilt.accepted and not WORLD.fits(spoilt, write_digits(spoilt.scene))
    for place in range(4):
        said = list(sight.scene)
        said[place] = wrong[place]
        assert WORLD.judge_caption(write_digits(said), sight.scene)[:3] == (True, True, False)
    assert OPEN.judge_caption(write_digits([None] * 4), sight.scene).describes


def test_questions_are_answered_by_the_picture():
    "Each answer by a plain count."
    for example in WORLD.draw(60, 3):
        counts = Counter(example.scene)
        asked = {question.block: question.answer for own in digit_questions(example.scene).values() for question in own}
        for text, answer in asked.items():
            words = text.split()
            if words[0] == "what": assert answer == DIGITS[example.scene[PLACES.index(" ".join(words[2:4]))]]
            if words[0] == "how": assert answer == DIGITS[counts[DIGITS.index(words[2])]]
            if words[0] == "where": assert answer == PLACES[example.scene.index(DIGITS.index(words[2]))] and counts[DIGITS.index(words[2])] == 1
        assert len(asked) == 4 + len(counts) + sum(count == 1 for count in counts.values())


def test_chance_by_simulation():
    "Captions of other pictures, and open ones; a question without its picture."
    rng, fours = np.random.default_rng(0), np.random.default_rng(1).integers(10, size=(2, 20000, 4))
    left_open = rng.random((20000, 4)) < 0.5
    same = fours[0] == fours[1]
    assert (left_open | same).all(1).mean() == pytest.approx(OPEN.matching()["picture fits caption"].chance, abs=0.005)
    guessed = fours[1] * left_open + fours[0] * ~left_open
    assert (guessed == fours[0]).all(1).mean() == pytest.approx(OPEN.matching()["exact scene from caption"].bayes, abs=0.005)
    assert WORLD.matching()["caption fits picture"].chance == pytest.approx(1e-4)
    answers, right = {}, 0
    scenes = [WORLD.scenes[number] for number in np.flatnonzero(WORLD.split_numbers == SPLITS.index("test"))]
    asked = [WORLD.ask(scene, rng)[:2] for scene in scenes * 3]
    for question, answer in asked: answers.setdefault(question, Counter())[answer] += 1
    for own in answers.values(): right += max(own.values())
    assert right / len(asked) == pytest.approx(question_bounds(WORLD, "test").question_only, abs=0.02)


def test_worlds_do_not_mix():
    "A caption or a picture of one world is refused by the other, by name."
    scenes = Scenes("micro")
    with pytest.raises(ValueError, match="must be here or look"): scenes.check_caption(write_digits((1, 2, 3, 4)))
    with pytest.raises(ValueError, match="word 1 of 'here red"): WORLD.check_caption("here red disc top left .")
    with pytest.raises(ValueError, match="palette index 9: must be 0 to 4"): to_rgb(np.full((16, 16), 9), WORLD.palette)
    with pytest.raises(ValueError, match="choose from digits, scenes"): picture_world("faces")
