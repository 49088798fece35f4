"Isolated documents in one sequence are trained as if each had a sequence of its own."
import numpy as np
import pytest
import torch

from colanb.config import BaselineConfig, DiTConfig, FlowConfig, RunConfig, VAEConfig, stream
from colanb.learn import losses, train
from colanb.learn.baseline_losses import baseline_loss
from colanb.learn.losses import BlockTimes, stage1_loss, stage2_loss
from colanb.evidence.scores import reconstruction
from colanb.measure.latents import text_latents
from colanb.measure.quality import openings
from colanb.measure.text_likelihood import known_texts
from colanb.model import baselines
from colanb.model.baselines import Plaid, make_baseline
from colanb.model.cola import ColaDLM
from colanb.model.trunk import use
from colanb.model.vae import Encoder
from colanb.text.corpus import prepare
from colanb.text.packing import document_starts, pack

PAD, END, UNIT, LENGTH, VOCABULARY = 0, 1, 8, 40, 30
SHAPE = dict(width=32, heads=4, vocab_size=VOCABULARY)
VAE = VAEConfig(d_latent=8, encoder_layers=2, decoder_layers=2, ffn_dim=64, init_std=0.2, **SHAPE)
DIT = DiTConfig(d_latent=8, width=32, heads=4, head_dim=8, layers=2, rope_dim=8, block_size=4, zero_init=False)


def text_of(*lengths):
    "Documents of random tokens, filled up to whole units."
    documents = []
    for number, length in enumerate(lengths):
        ids = torch.randint(3, VOCABULARY, (length,), generator=stream("text", number)).tolist()
        documents.append([*ids, END, *[PAD] * (-(length + 1) % UNIT)])
    return documents


def sequences(documents):
    "The documents in common sequences, and each in a sequence of its own."
    flat, lengths = np.concatenate(documents), np.array([len(document) for document in documents])
    together = pack(flat, lengths, LENGTH, "whole", PAD)
    alone = np.stack([[*document, *[PAD] * (LENGTH - len(document))] for document in documents])
    return [torch.tensor(ids, dtype=torch.long) for ids in (together, alone)]


TEXT = text_of(6, 14, 7, 3, 22, 15, 1)


def at(places, shape):
    "Mark some tokens of each unit."
    return torch.isin(torch.arange(shape[1]) % UNIT, torch.tensor(places)).expand(shape)


@pytest.fixture(autouse=True)
def nothing_is_random(monkeypatch):
    "Make noise a function of what it is added to, and times and masks one of the place in a unit."
    noise = lambda x: torch.cos(3 * x.detach())

    def times(valid, config, block_size, generator):
        units = valid.shape[1] * patch // UNIT
        block = torch.tensor([0.3, 0.8]).repeat(len(valid), units)[:, :valid.shape[1] // block_size]
        pinned = at([4], (len(valid), LENGTH))[:, ::patch]
        latent = block.repeat_interleave(block_size, 1).masked_fill(pinned, 0.0)
        return BlockTimes(block, latent, pinned, valid & ~pinned)

    def masked_copy(ids, valid, mask_id, ratio, generator):
        hit = at([1, 4], ids.shape) & valid
        return ids.masked_fill(hit, mask_id), hit

    def draw(self, ids, generator):
        by_token = noise(ids[..., None] * torch.arange(1., 1 + self.config.d_embed))
        one = torch.ones(len(ids))
        return by_token, by_token + 1, 0.5 * one, one

    patch = 1
    monkeypatch.setattr(losses, "batch_noise", lambda like, *_: noise(like))
    monkeypatch.setattr(losses, "draw_times", times)
    monkeypatch.setattr(losses, "masked_copy", masked_copy)
    monkeypatch.setattr(baselines, "mask_tokens", lambda target, *_: (at([1, 2, 5], target.shape) & target, torch.full((len(target), 1), 2.0)))
    monkeypatch.setattr(Plaid, "_draw", draw)
    monkeypatch.setattr(Plaid, "_guess_count", lambda self, batch, rows: len(range(batch)[rows]))


def compare(model, loss, patch_size=1):
    "Losses and gradients of common sequences, isolated and not, against those of each document alone."
    found = []
    together, alone = sequences(TEXT)
    assert len(together) < len(alone)
    starts = document_starts(together, END, UNIT, patch_size)
    for ids, documents in ((together, starts), (alone, None), (together, None)):
        model.zero_grad()
        total = loss(model, ids, ids != PAD, documents).total
        total.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((total.detach(), gradient))
    isolated, expected, joined = found
    torch.testing.assert_close(isolated[0], expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(isolated[1], expected[1], rtol=1e-4, atol=2e-5 * expected[1].abs().max().item())
    assert (joined[1] - expected[1]).abs().max() > 1e-2 * expected[1].abs().max()


@pytest.mark.parametrize("block_size", [1, 4])
@pytest.mark.parametrize("patch_size", [1, 2])
def test_the_vae(block_size, patch_size):
    torch.manual_seed(0)
    model, flow = ColaDLM(VAE.replace(block_size=block_size, patch_size=patch_size)), FlowConfig(lambda_mask=0.5, beta=.1)
    compare(model, lambda model, ids, valid, starts:
            stage1_loss(model, ids, valid, flow, stream(0), starts=starts), patch_size)


OPTIONS = dict(dit=dict(output="tokens", prediction="z0", next_head=True), flow=dict(lambda_ce=1.0, lambda_next=0.3))


@pytest.mark.parametrize("options", [dict(dit={}, flow={}), OPTIONS])
@pytest.mark.parametrize("train_vae", [False, True])
def test_the_prior(options, train_vae):
    torch.manual_seed(0)
    model = ColaDLM(VAE, DIT.replace(**options["dit"]), Encoder(VAE))
    flow = FlowConfig(lambda_mask=0.5, **options["flow"])
    compare(model, lambda model, ids, valid, starts:
            stage2_loss(model, ids, valid, flow, stream(0), train_vae, starts=starts))


@pytest.mark.parametrize("backend", ["dense", "tiles", "flex"])
def test_every_backend(backend):
    torch.manual_seed(0)
    model = use(ColaDLM(VAE, DIT), backend)
    ids, _ = sequences(TEXT)
    starts = document_starts(ids, END, UNIT)
    found = [stage2_loss(use(model, name), ids, ids != PAD, FlowConfig(), stream(0), starts=starts).total
             for name in (backend, "sdpa")]
    torch.testing.assert_close(*found, rtol=1e-4, atol=0)


@pytest.mark.parametrize("family", ["ar", "llada", "plaid"])
def test_the_baselines(family):
    torch.manual_seed(0)
    model = make_baseline(BaselineConfig(family=family, layers=2, intermediate=48, init_std=.2, **SHAPE))
    for p in model.parameters(): p.data += 0.1 * torch.randn(p.shape)   # gates begin at zero
    compare(model, lambda model, ids, valid, starts: baseline_loss(model, ids, valid, stream(0), starts=starts))


@torch.no_grad()
def test_a_vae_that_sees_both_ways():
    torch.manual_seed(0)
    vae = ColaDLM(VAE.replace(block_size=None)).vae
    ids, _ = sequences(TEXT)
    starts = document_starts(ids, END, UNIT)
    q = vae.encode(ids, starts)
    logits = vae.decode(q.mean, starts=starts)
    for row, first in {(row, int(first)) for row in range(len(ids)) for first in starts[row]}:
        own = starts[row] == first
        alone = vae.encode(ids[row, own][None])
        torch.testing.assert_close(q.mean[row, own][None], alone.mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logits[row, own][None], vae.decode(alone.mean), rtol=1e-4, atol=1e-4)


STAGE = dict(steps=2, batch_size=4, warmup=1, log_every=1, eval_every=2, save_every=2)


def a_run(**changes):
    data = dict(level="micro", documents=120, seq_len=64, packing="whole", isolate_by=16, validation=0.2, test=0.1)
    stages = dict(stage1=STAGE, stage2=STAGE)
    return RunConfig.read(dict(name="x", data=data, vae=VAE.model_dump(), dit=DIT.model_dump(), **stages, **changes))


def test_a_corpus_says_whether_its_documents_are_isolated(tmp_path, monkeypatch):
    monkeypatch.undo()
    run = a_run()
    run = run.replace(stage2=run.stage2.replace(recompute=True, precision="bf16"))
    corpus = prepare(run.data, tmp_path / "tokens")
    assert all(counts["tokens"] + counts["separators"] + counts["pads"] == counts["sequences"] * 64
               for counts in corpus.manifest["splits"].values())
    seen = []
    inner = train.stage2_loss
    monkeypatch.setattr(train, "stage2_loss", lambda *given: seen.append(given[-1]) or inner(*given))
    train.train_vae(run, corpus, tmp_path / "vae", 0, "cpu", tmp_path / "a")
    train.train_prior(run, corpus, tmp_path / "vae", tmp_path / "prior", 0, None, "cpu", tmp_path / "b")
    assert seen and all((starts % 16 == 0).all() and (starts > 0).any() for starts in seen)


@pytest.mark.parametrize("family", ["ar", "llada", "plaid"])
def test_a_baseline_trains_on_isolated_documents(tmp_path, family, monkeypatch):
    monkeypatch.undo()
    run = a_run(baseline=dict(family=family, width=32, heads=4, layers=1, intermediate=32))
    corpus = prepare(run.data, tmp_path / "tokens")
    log = train.train_baseline(run, corpus, tmp_path / "model", 0, None, "cpu", tmp_path / "scratch")
    assert torch.isfinite(torch.tensor(log["val_nats"].dropna().to_numpy())).all()


def test_what_is_measured_is_measured_document_by_document(tmp_path):
    run = a_run()
    corpus = prepare(run.data, tmp_path / "tokens")
    texts, end = corpus.texts("validation", 9), corpus.tokenizer.eos_id
    assert texts.shape == (9, 64) and ((texts == end).sum(1) == 1).all()
    for known, row in zip(known_texts(corpus, None, 9, 0, "validation"), texts):
        assert known.ids == row[row != PAD].tolist() and known.ids[-1] == end
    for opening in openings(corpus, 3, 6, 4): assert end not in opening.prompt and end not in opening.rest[:-1]
    model = ColaDLM(VAE.replace(vocab_size=corpus.tokenizer.vocab_size))
    held = text_latents(model, corpus, "validation", 9)
    torch.testing.assert_close(held.q.mean[4:5], model.vae.encode(torch.tensor(texts[4:5]).long()).mean)
    assert reconstruction(model, corpus, [0.0], 0, 9, "validation")[0]["n"] == 9


def test_corpus_and_run_must_agree(tmp_path):
    run = a_run()
    corpus = prepare(run.data.replace(isolate_by=None), tmp_path / "tokens")
    assert corpus.document_starts(torch.zeros(1, 64, dtype=torch.long)) is None
    with pytest.raises(ValueError, match="data.isolate_by=16 of run 'x', but the corpus has None"):
        train.train_vae(run, corpus, tmp_path / "vae", 0, "cpu", tmp_path / "scratch")


def test_streamed_and_gathered_corpora_isolate_alike(tmp_path):
    data = a_run().data.replace(packing="split", shard_sequences=None)
    gathered = prepare(data, tmp_path / "gathered")
    streamed = prepare(data.replace(shard_sequences=3), tmp_path / "streamed")
    for corpus in (gathered, streamed):
        for row in torch.as_tensor(np.array(corpus.split("train"))).long():
            starts = corpus.document_starts(row[None])[0]
            for first in starts.unique():
                own = row[starts == first]
                ends = (own == corpus.tokenizer.eos_id).nonzero().flatten()
                assert len(ends) <= 1 and first % 16 == 0
                if len(ends): assert (own[ends[0] + 1:] == corpus.tokenizer.pad_id).all()
