"Training the unified prior: the loss of a step by hand, stops that leave no trace, rules of the study, and what is refused."
import json
import os
import signal

import pytest
import torch

from colanb.config import load_profile, stream
from colanb.learn.losses import StepContext
from colanb.learn.path import sample_time
from colanb.unified.mmdit import MMDiT, Packed, TASKS
from colanb.unified.multimodal_sample import image_field
from colanb.unified.scenes import Scenes, things_told, read_caption
from colanb.unified.unified_study import RIVALS, judge_unified, read_unified_study, unified_rows
from colanb.unified.unified_train import (
    Autoencoders, PairRows, UnifiedRun, load_unified, load_vaes, pair_corpus, train_unified, train_vaes, unified_loss)

TINY = dict(width=16, heads=2, encoder_layers=1, decoder_layers=1, ffn_dim=32)
STAGE = dict(steps=6, batch_size=8, lr=1e-3, warmup=1, log_every=2, eval_every=6, save_seconds=0)


def run(**changes):
    made = UnifiedRun(
        name="tiny", data=dict(pairs=60, partial=0.5), vaes=dict(name="vaes", vae=dict(vocab_size=64, **TINY), image=TINY, stage1=STAGE),
        prior=dict(dit=dict(width=16, heads=2, head_dim=16, layers=3, rope_dim=8, block_size=4), image=dict(rope_dim=4, table=True)),
        flow=dict(text=dict(stratified=False), image=dict(stratified=False, loc=0.0), caption_dropout=0.5), training=dict(STAGE, ema=0.9),
        text_sample=dict(steps=2), image_sample=dict(steps=2))
    return made.replace(**changes)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A folder with both VAEs, and the pairs."
    home, pairs = tmp_path_factory.mktemp("unified"), pair_corpus(run())
    train_vaes(run(), pairs, home / "vaes", 0, "cpu")
    return home, pairs


def velocity_error(found, z0, z1):
    return (found - (z1 - z0)).square()


def by_hand(model, vaes, own, rows, g):
    "The loss of a step, sample by sample; draws come in the order that the docstrings give: task, posteriors, text, image, dropout."
    task = TASKS[int(torch.multinomial(torch.tensor(own.flow.weights), 1, generator=g))]
    asked = float(torch.rand((), generator=g)) < own.data.questions
    draw = lambda q: q.mean + q.logvar.exp().sqrt() * torch.randn(q.mean.shape, generator=g)
    texts = dict(t2t=rows.caption, t2i=rows.said, it2t=rows.answer if asked else rows.caption)
    text = draw(vaes.text.encode(texts[task]))
    image = None if task == "t2t" else vaes.image.encode(rows.pixels)
    image = image and (draw(image) if task == "t2i" else image.mean)
    t = sample_time(own.flow.text, (len(text), text.shape[1] // 4), g)
    z1 = torch.randn(text.shape, generator=g)
    spread = t.repeat_interleave(4, 1)[..., None]
    packed = Packed(task, noisy=(1 - spread) * text + spread * z1, t=t, clean=text)
    if task == "t2t": return task, velocity_error(model.packed(packed).text, text, z1).mean()
    if task == "it2t":
        ask = rows.question if asked else torch.tensor([own_instruction]).expand(len(text), -1)
        packed = packed._replace(image=image, image_t=torch.zeros(len(image), 1), prompt=vaes.text.encode(ask).mean)
        return task, velocity_error(model.packed(packed).text, text, z1).mean()
    image_t = sample_time(own.flow.image, (len(image), 1), g)
    image1 = torch.randn(image.shape, generator=g)
    zt = (1 - image_t[..., None]) * image + image_t[..., None] * image1
    hidden = torch.rand(len(text), generator=g) < own.flow.caption_dropout
    losses, says_all = [], (rows.said == rows.caption).all(1)
    for i in range(len(text)):
        alone = slice(i, i + 1)
        given = Packed(task, noisy=packed.noisy[alone], t=t[alone], clean=text[alone], image=zt[alone], image_t=image_t[alone])
        found = model.packed(given)
        seen = image_field(model)(zt[alone], image_t[alone]) if hidden[i] else found.image
        losses.append(velocity_error(seen, image[alone], image1[alone]).mean() / len(text))
        if says_all[i]: losses.append(velocity_error(found.text, text[alone], z1[alone]).mean() / says_all.sum())
    assert 0 < says_all.sum() < len(text) and 0 < hidden.sum() < len(text)
    return task, sum(losses)


@torch.no_grad()
def test_the_loss_of_a_step_by_hand(made):
    home, pairs = made
    own, vaes = run(), load_vaes(home / "vaes")
    global own_instruction
    words = pairs.tokenizer.encode("describe the picture .")
    own_instruction = words + [pairs.tokenizer.eos_id] * (8 - len(words))
    torch.manual_seed(0)
    model = MMDiT(own.prior.replace(dit=own.prior.dit.replace(zero_init=False)))
    torch.nn.init.normal_(model.kinds)
    torch.nn.init.normal_(model.image.places)
    ids, loss_fn, seen = pairs.batches("train", 12, 0)[0], unified_loss(own, vaes, pairs.tokenizer), set()
    for step in range(10):
        task, wanted = by_hand(model, vaes, own, PairRows.of(ids), stream(step))
        found = loss_fn(model, ids, ids >= 0, stream(step), slice(None), StepContext(step))
        assert found.total.item() == pytest.approx(wanted.item(), rel=1e-5), task
        assert all(name.startswith(task) for name in found.parts)
        seen.add(task)
    assert seen == {"t2t", "t2i", "it2t"}


def test_rows_belong_together():
    "Captions and pictures of one scene, questions with their answers, and captions that leave things open as often as asked."
    from colanb.unified.image_vae import pictures_of
    from colanb.unified.scenes import answer_to, judge_pictures
    own = run(data=dict(pairs=400, partial=0.25))
    pairs = pair_corpus(own)
    scenes = {}
    for split in ("train", "validation", "test"):
        rows = PairRows.of(torch.from_numpy(pairs.split(split)).long())
        seen = judge_pictures(pictures_of(rows.pixels, own.vaes.image))
        scenes[split] = {sight.scene for sight in seen}
        for sight, *texts in zip(seen, rows.caption, rows.said, rows.question, rows.answer):
            caption, said, question, answer = (pairs.tokenizer.decode(ids.tolist()) for ids in texts)
            assert sight.wrong == 0 and answer_to(question, sight.scene) == answer
            for text in (caption, said): assert things_told(read_caption(text), sight.scene) is not None
            assert "some" not in caption.split() and "thing" not in caption.split()
    rows = PairRows.of(torch.from_numpy(pairs.split("train")).long())
    assert (rows.said != rows.caption).any(1).float().mean() == pytest.approx(0.25, abs=0.06)
    assert not scenes["train"] & (scenes["validation"] | scenes["test"])


def test_a_stop_leaves_no_trace(made, monkeypatch):
    "SIGTERM in the middle of a step, then on: the same weights and the same log, to the bit."
    home, pairs = made
    whole = train_unified(run(), pairs, home / "vaes", home / "whole", 3, "cpu")
    from colanb.unified import unified_train
    calls, make = [], unified_train.unified_loss

    def stopping(*args):
        loss_fn = make(*args)
        def wrapped(*own):
            calls.append(1)
            if len(calls) == 4: os.kill(os.getpid(), signal.SIGTERM)
            return loss_fn(*own)
        return wrapped

    monkeypatch.setattr(unified_train, "unified_loss", stopping)
    with pytest.raises(SystemExit): train_unified(run(), pairs, home / "vaes", home / "parts", 3, "cpu")
    assert len(calls) == 4 and not (home / "parts/run.json").exists()
    parts = train_unified(run(), pairs, home / "vaes", home / "parts", 3, "cpu")
    assert (home / "whole/unified.safetensors").read_bytes() == (home / "parts/unified.safetensors").read_bytes()
    clocks = ["tokens_per_second", "seconds"]
    assert whole.drop(columns=clocks).equals(parts.drop(columns=clocks))
    assert not (home / "parts/resume").exists()


def test_a_folder_opens_again(made):
    "All of a model comes back, moved elsewhere, with its VAEs; each part that is missing or damaged is named."
    home, pairs = made
    train_unified(run(), pairs, home / "vaes", home / "own", 0, "cpu")
    (home / "own").rename(home / "moved")
    model = load_unified(home / "moved")
    assert model.run == run() and model.describe([1, 2], model.draw([1, 2])) == load_unified(home / "moved").describe([1, 2], model.draw([1, 2]))
    for name, message in (("unified.safetensors", "holds no unified"), ("text/vae.safetensors", "text VAE is missing"), ("run.json", "no run.json")):
        (home / "moved" / name).rename(home / "aside")
        with pytest.raises(ValueError, match=message): load_unified(home / "moved")
        (home / "aside").rename(home / "moved" / name)
    (home / "moved/unified.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="damaged or cut off"): load_unified(home / "moved")
    (home / "moved/run.json").write_text('{"name": ')
    with pytest.raises(ValueError, match="not JSON, or cut off"): load_unified(home / "moved")


def test_one_item_alone_is_what_it_is_in_a_batch(made):
    home, pairs = made
    train_unified(run(), pairs, home / "vaes", home / "batch", 0, "cpu")
    model = load_unified(home / "batch")
    captions = [example.caption for example in Scenes().draw(5, 0)]
    together, model.batch_size = model.draw(range(5), captions), 2
    assert all((one == other).all() for one, other in zip(together, model.draw(range(5), captions)))


def test_real_digits_by_configuration_alone(tmp_path):
    "The same functions train, draw and score pictures of another world, judged by it; a palette of another size is refused."
    from colanb.unified.digits import Digits
    from colanb.unified.unified_scores import score_references, score_unified, unified_exam
    own = run(data=dict(world="digits", pairs=60, partial=0.5))
    pairs = pair_corpus(own)
    with pytest.raises(ValueError, match="image.vocab_size=10: pictures of this world have 16 pixels each way and 5 colours"):
        train_vaes(own, pairs, tmp_path / "refused", 0, "cpu")
    own = own.replace(vaes=own.vaes.replace(image=own.vaes.image.replace(vocab_size=5)))
    train_vaes(own, pairs, tmp_path / "vaes", 0, "cpu")
    train_unified(own, pairs, tmp_path / "vaes", tmp_path / "model", 0, "cpu")
    model, exam = load_unified(tmp_path / "model"), unified_exam(6, kind="digits")
    assert model.watch(3, exam.captions[0])[-1].tolist() == model.draw([3], exam.captions[:1])[0].tolist()
    assert isinstance(exam.world, Digits) and model.draw([0], exam.captions[:1])[0].max() <= 4
    found = {row["metric"]: row for row in score_unified(model, exam, 0, {})}
    assert set(score_references(exam.world, exam.open_world)) | {"things of caption", "digits that look real", "distance of free digit"} >= set(found) - {"well-formed", "digits that are copies"}
    assert found["scene of caption"]["chance"] == pytest.approx(1e-4) and 0 <= found["things of caption"]["value"] <= 1
    with pytest.raises(ValueError, match="word 1 of 'here"): model.draw([0], ["here red disc top left ."])
    with pytest.raises(ValueError, match="palette index 7: must be 0 to 4"): model.describe([0], [exam.pictures[0] * 0 + 7])


def test_both_modalities_at_their_own_times(made):
    "The variant `joint` as a switch: both losses, gradients in every weight that it uses, and pairs drawn together; nothing of it in other runs."
    home, pairs = made
    own = run(flow=dict(t2t=0, t2i=0, it2t=0, joint=1))
    torch.manual_seed(0)
    model = MMDiT(own.prior.replace(dit=own.prior.dit.replace(zero_init=False)))
    ids = pairs.batches("train", 8, 0)[0]
    loss = unified_loss(own, load_vaes(home / "vaes"), pairs.tokenizer)(model, ids, ids >= 0, stream(0), slice(None), StepContext(0))
    assert list(loss.parts) == ["joint_text", "joint_image"]
    loss.total.backward()
    assert all(weights.grad is not None and weights.grad.abs().max() > 0 for weights in model.parameters())
    assert model.kinds.grad.abs().amax(1).gt(0).tolist() == [False, False, True, True]   # P and C are not in the pass
    train_unified(own, pairs, home / "vaes", home / "joint", 0, "cpu")
    [(text, picture)] = load_unified(home / "joint").both([1], "together")
    assert isinstance(text, str) and picture.shape == (16, 16)
    assert run().flow.joint == 0


def test_rules_of_the_study():
    "All arms are valid runs, seeds that chose the settings count nowhere, and without results nothing is judged."
    study = read_unified_study()
    assert not set(study.seeds) & set(study.pilot) and len(study.seeds) >= 3
    steps = {name: study.arm(name).training.steps for name in study.arms}
    flow = study.arm("unified").flow
    for name, task in (("text", "t2t"), ("pictures", "t2i"), ("answers", "it2t")):
        alone = study.arm(name).flow
        assert [own for own in TASKS if getattr(alone, own)] == [task]
        share = getattr(flow, task) / sum(flow.weights)
        assert steps[name] == pytest.approx(share * steps["unified"], abs=1), f"{name}: as many samples of its task"
    assert {verdict.verdict for verdict in judge_unified(study, unified_rows(study, study_folder_without_results()))} == {"NT"}
    with pytest.raises(ValueError, match="choose from unified"): study.arm("both")


def test_the_pipeline_trains_all_arms_and_rivals():
    study, profile = read_unified_study(), load_profile(name="tiny")
    of_scenes = [entry.arm for entry in profile.unified.values() if entry.rules == "unified"]
    assert sorted(of_scenes) == sorted([*study.arms, *RIVALS]) and profile.seeds == study.seeds
    digits = [entry for entry in profile.unified.values() if entry.rules == "unified_digits"]
    assert [entry.arm for entry in digits] == ["unified"]
    assert study.captioner.vocab_size == study.arm("answers").vaes.vae.vocab_size


def test_real_pictures_have_rules_that_judge_nothing():
    from colanb.unified.unified_study import UNIFIED_STUDY
    study = read_unified_study(UNIFIED_STUDY.with_name("unified_digits.yaml"))
    assert study.arm("unified").data.world == "digits" and study.claims == {} and not set(study.seeds) & set(study.pilot)


def study_folder_without_results():
    from pathlib import Path
    return Path("nowhere")


@pytest.mark.parametrize("change,message", [
    (dict(data=dict(level="huge")), "choose from micro, full"), (dict(data=dict(world="faces")), "choose from scenes, digits"), (dict(data=dict(partial=1.5)), "partial=1.5"),
    (dict(training=dict(STAGE, block_schedule=[(1, 0.5)])), "one block size"), (dict(vaes=dict(name="vaes", image=TINY, vae=dict(TINY, d_latent=8), dit=dict(d_latent=8))), "d_latent=16"),
    (dict(vaes=dict(name="vaes", image=TINY, vae=dict(TINY, block_size=4))), "block_size=4"), (dict(prior=dict(image=None)), "text alone"),
])
def test_settings_that_do_not_fit_are_named(change, message):
    with pytest.raises(ValueError, match=message): run(**change)
