"Facts that hold for any input: hypothesis draws small ones, the same in every run."
import re
import tempfile
from functools import partial
from pathlib import Path
from string import ascii_uppercase

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from colanb.model.attention import BACKENDS, attend
from colanb.model.visibility import Visibility
from colanb.config import BaselineConfig, DataConfig, DiTConfig, SampleConfig, VAEConfig
from colanb.text.corpus import prepare, streamed_split, tokenise
from colanb.text.packing import CUT, Shards, assign_splits, cut_shares, first_fit, pack
from colanb.text.sources import Document
from colanb.text.tokenizer import EOS, PAD, Tokenizer, UNK, bpe_tokenizer, word_tokenizer
from colanb.model.baselines import make_baseline
from colanb.model.cola import ColaDLM
from colanb.model.dit import DiT
from colanb.measure.estimators import wilson
from colanb.generate.baselines import make_sampler
from colanb.generate.sample import Sampler, prompt_seeds
from colanb.measure.scoring import (
    best_options, cut, first_word, normalise, option_letter, score, score_pairs, similarity,
)
from colanb.measure.tasks import Item, TASKS
from colanb.model.trunk import use
from colanb.model.vae import TextVAE

settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=25, database=None)
settings.load_profile("fixed")

few = settings(max_examples=8)
lengths = st.lists(st.integers(1, 25), max_size=12)
words = st.text(
    st.characters(
        exclude_categories=[
            "Cs",
            "Cc",
            "Z"]),
            min_size=1,
            max_size=5).filter(
                lambda w: w not in (
                    PAD,
                    EOS,
                     UNK))
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


# packing

def numbered(sizes):
    "Documents in one array; every token has a number of its own, in order, and 0 is padding."
    return np.arange(1, sum(sizes) + 1, dtype=np.int32), np.array(sizes, np.int64)


@given(lengths, st.integers(1, 9))
def test_split_packing_is_the_text_and_padding_at_its_end(sizes, size):
    flat, counts = numbered(sizes)
    packed = pack(flat, counts, size, "split", 0)
    assert packed.shape[1] == size
    assert packed.ravel()[:len(flat)].tolist() == flat.tolist()
    rest = packed.ravel()[len(flat):]
    assert len(rest) < size and not rest.any()


@given(lengths, st.integers(1, 9))
def test_whole_packing_keeps_documents_together(sizes, size):
    flat, counts = numbered(sizes)
    packed = pack(flat, counts, size, "whole", 0)
    assert sorted(packed[packed > 0].tolist()) == flat.tolist()           # none is lost, none is there twice
    row_of = {int(token): number for number, row in enumerate(packed) for token in row if token}
    for row in packed:
        used = int((row > 0).sum())
        assert used and not row[used:].any()                              # padding at the end only
        assert (np.diff(row[:used]) > 0).all()                            # documents in order
    start = 1
    for length in sizes:
        for first in range(start, start + length, size):
            piece = range(first, min(first + size, start + length))
            assert len({row_of[token] for token in piece}) == 1           # a piece is in one sequence
        start += length


@given(st.integers(1, 12).flatmap(lambda size: st.tuples(st.just(size), st.lists(st.integers(1, size), max_size=20))))
def test_first_fit_is_the_loop_over_bins(drawn):
    size, sizes = drawn
    free, expected = [], []
    for length in sizes:
        found = next((i for i, room in enumerate(free) if room >= length), len(free))
        if found == len(free): free.append(size)
        free[found] -= length
        expected.append(found)
    assert first_fit(sizes, size).tolist() == expected


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=6), max_size=8), st.integers(1, 3))
def test_every_document_is_followed_by_end_of_text(documents, batch):
    tokenizer = word_tokenizer("abc")
    joined = [" ".join(document) for document in documents]
    groups = [joined[i:i + batch] for i in range(0, len(joined), batch)]
    flat, counted, counts = tokenise(groups, tokenizer, len(joined))
    expected = [token for document in joined for token in [*tokenizer.encode(document), tokenizer.eos_id]]
    assert flat.tolist() == expected
    assert counted.tolist() == [len(document) + 1 for document in documents]
    assert (counts["documents"], counts["separators"], counts["tokens"]) == (
        len(documents), len(documents), sum(map(len, documents)))


# splits

shares = st.sampled_from([0.0, 0.1, 0.25, 0.4])


@given(st.lists(st.integers(0, 30), min_size=1, max_size=40), shares, shares)
def test_rows_are_split_by_their_number(contents, validation, test):
    digests, sizes = [f"{content:04x}" for content in contents], [100] * len(contents)
    config, distinct = DataConfig(source="hf", dataset="x", validation=validation, test=test), len(set(digests))
    taken = max(1, round(validation * distinct)) if validation else 0
    left = distinct - taken
    tested = max(1, round(test * left)) if test and left else 0
    if left - tested < 1:
        with pytest.raises(ValueError, match="leave none for training"): assign_splits(
            [str(i) for i in contents], digests, sizes, config)
        return
    splits = assign_splits([str(i) for i in contents], digests, sizes, config)
    members = {split: {d for d, s in zip(digests, splits) if s == split} for split in ("train", "validation", "test")}
    assert len(splits) == len(contents) and set(splits) <= set(members)
    assert sum(map(len, members.values())) == distinct                    # each content is in one split
    assert (len(members["validation"]), len(members["test"])) == (taken, tested)
    assert members["validation"] == set(sorted(set(digests))[:taken])     # as ever: those whose hashes come first


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=40), shares, shares)
def test_files_of_any_length_meet_the_shares_in_characters(sizes, validation, test):
    "One file, three books, a long one beside short ones: cut in proportion, or whole up to a quarter of a share off."
    config = DataConfig(source="text", path="x", validation=validation, test=test)
    digests = [f"{i * 7919 % 65536:04x}" for i in range(len(sizes))]
    splits = assign_splits([str(i) for i in range(len(sizes))], digests, sizes, config)
    whole = {split: sum(n for n, own in zip(sizes, splits) if own == split) for split in ("train", "validation", "test", CUT)}
    for split, share in (("validation", validation), ("test", test)):
        smallest = min(s for s in (validation, test) if s) if share else 0
        assert abs(whole[split] + share * whole[CUT] - share * sum(sizes)) <= smallest * sum(sizes) / 4 + 1e-6


paragraphs = st.lists(st.text("ab .\n", max_size=40), max_size=30).map("\n\n".join)


@given(paragraphs, shares, shares)
def test_a_cut_document_loses_nothing(text, validation, test):
    wanted = {split: share for split, share in (("validation", validation), ("test", test)) if share}
    assume(wanted)
    stretches = cut_shares(text, wanted)
    assert "".join(stretch for _, stretch in stretches) == text
    for split, share in wanted.items():
        held = sum(len(stretch) for part, stretch in stretches if part == split)
        assert abs(held - share * len(text)) <= 2 * max(10, min(wanted.values()) * len(text) / 10) + 1


@given(st.lists(st.sampled_from(["train", "validation", "test"]), max_size=20))
def test_named_documents_go_where_they_are_named(places):
    places = [*places, "train"]
    names = [f"d{i}" for i in range(len(places))]
    named = {split: [n for n, p in zip(names, places) if p == split] for split in ("validation", "test")}
    config = DataConfig(source="text", path="x", **named)
    assert assign_splits(names, [f"{i:04x}" for i in range(len(names))], [9] * len(names), config) == places


@given(shares, shares)
def test_a_streamed_document_has_a_split_of_its_own(validation, test):
    config = DataConfig(source="text", path="x", validation=validation, test=test)
    found = [streamed_split(Document("a", f"text {i}"), config) for i in range(400)]
    assert found == [streamed_split(Document("b", f"text {i}"), config)
                                    for i in range(400)]   # the name does not matter
    for split, share in (("validation", validation), ("test", test)):
        assert abs(found.count(split) / 400 - share) <= 4 * (share * (1 - share) / 400) ** 0.5


# shards

@given(st.lists(st.integers(0, 4), min_size=1, max_size=5), st.data())
def test_shards_read_like_one_array(sizes, data):
    whole = np.arange(3 * sum(sizes), dtype=np.int32).reshape(-1, 3)
    shards = Shards(np.split(whole, np.cumsum(sizes)[:-1]), 3)
    assert len(shards) == len(whole) and [row.tolist() for row in shards] == whole.tolist()
    start, stop = data.draw(st.integers(-6, 12)), data.draw(st.integers(-6, 12))
    assert shards[start:stop].tolist() == whole[start:stop].tolist()
    if len(whole):
        rows = data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=6))
        assert shards[np.array(rows, np.int64)].tolist() == whole[np.array(rows, np.int64)].tolist()
        assert shards[len(whole) - 1].tolist() == whole[-1].tolist()
    for outside in (-1, len(whole)):
        with pytest.raises(IndexError): shards[outside]


@few
@given(st.lists(st.lists(st.sampled_from(["red", "blue", "one"]),
       min_size=1, max_size=9), min_size=12, max_size=30), st.integers(1, 7))
def test_shards_of_any_size_hold_the_same_sequences(documents, size):
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "texts").mkdir()
        for number, document in enumerate(documents): (place / f"texts/{number:03d}.txt").write_text(" ".join(document))
        config = DataConfig(source="text", path=str(place / "texts"), seq_len=5, validation=0.2, test=0.1)
        one, many = (prepare(config.replace(shard_sequences=n), place / str(n)) for n in (10_000, size))
        for split in ("train", "validation", "test"):
            assert many.split(split)[:].tolist() == one.split(split)[:].tolist()
        assert max(many.manifest["shards"]["train"]) <= size


# tokenizers

@given(st.lists(st.lists(words, min_size=1, max_size=4), min_size=1, max_size=3))
def test_words_come_back(lines):
    text = "\n".join(" ".join(line) for line in lines)
    tokenizer = word_tokenizer(sorted({word for line in lines for word in line}))
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(ids) == sum(map(len, lines)) + len(lines) - 1
    assert not {tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id} & set(ids)
    assert tokenizer.decode([*ids, tokenizer.eos_id, tokenizer.pad_id]) == text
    assert tokenizer.encode("not-one-of-them-at-all") == [tokenizer.unk_id]


BPE = bpe_tokenizer(["the cat sat on the mat", "naïve café, 猫 and 🙂"] * 3, 300)


@given(st.lists(st.one_of(texts, st.sampled_from([PAD, EOS, "the cat"])), max_size=3).map("".join))
def test_any_text_comes_back_from_bytes(text):
    ids = BPE.encode(text)
    assert BPE.decode(ids) == text
    # special strings inside a text are ordinary text
    assert not {BPE.pad_id, BPE.eos_id} & set(ids)
    assert all(0 <= i < BPE.vocab_size for i in ids)


@given(texts, texts)
def test_prompt_and_continuation_make_the_text(prompt, more):
    assert BPE.continuation(BPE.encode(prompt), BPE.encode(more)) == more


# visibility

def sees(row, column, n, s, packed):
    "Whether a latent of the packed (or plain) sequence sees another, by the words of section 3.3."
    clean = n - s if packed else n
    place = lambda i: ("clean", i // s) if i < clean else ("noisy", (i - clean) // s)
    (kind, block), (other, past) = place(row), place(column)
    if kind == "clean": return other == "clean" and past <= block
    return past < block if other == "clean" else past == block


def make_sight(s, k, cut, packed, noisy):
    "A packed pass has whole blocks; the last block of a clean sequence may be cut."
    n = s * k if packed else s * k - min(cut, s - 1)
    return Visibility(n, s, packed, packed and noisy)


sights = st.builds(make_sight, st.integers(1, 5), st.integers(1, 4), st.integers(0, 4), st.booleans(), st.booleans())
long_sights = st.builds(make_sight, st.integers(1, 33), st.integers(1, 9), st.integers(0, 32), st.booleans(),
                        st.booleans())


@given(sights)
def test_masks_are_what_a_loop_says(sight):
    n, s, packed, noisy_only = sight
    columns = 2 * n - s if packed else n
    rows = range(n - s if noisy_only else 0, columns)
    assert sight.mask().tolist() == [[sees(row, column, n, s, packed) for column in range(columns)] for row in rows]
    assert (sum(part.int() for part in sight.parts().values()) == sight.mask()).all()       # the parts do not overlap


def inputs(sight, heads, groups, seed):
    make = torch.Generator().manual_seed(seed)
    rows, columns = sight.mask().shape
    return [torch.randn(2, h, m, 4, generator=make).requires_grad_()
                        for h, m in ((heads, rows), (groups, columns), (groups, columns))]


@pytest.mark.parametrize("backend", sorted(set(BACKENDS) - {"dense", "xformers", "flex"}))
@given(st.one_of(sights, long_sights), st.sampled_from([(2, 2), (4, 2), (2, 1)]), st.integers(0, 9))
def test_backends_equal_the_dense_one(backend, sight, heads, seed):
    q, k, v = inputs(sight, *heads, seed)
    weight = torch.randn(q.shape, generator=torch.Generator().manual_seed(seed))
    found = []
    for name in (backend, "dense"):
        out = attend(q, k, v, sight, name)
        found.append([out, *torch.autograd.grad((out * weight).sum(), (q, k, v))])
    for ours, reference in zip(*found): torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-4)


@few
@given(sights)
def test_flex_equals_dense_without_compilation(sight):
    q, k, v = (x.detach() for x in inputs(sight, 4, 2, 0))
    torch.testing.assert_close(attend(q, k, v, sight, "flex"), attend(q, k, v, sight, "dense"), atol=1e-5, rtol=1e-4)


@given(st.lists(st.sampled_from([1, 2, 3, 6]), min_size=2, max_size=2), st.sampled_from(["dense", "tiles", "masked"]))
def test_a_block_size_for_each_sample(sizes, backend):
    q, k, v = inputs(Visibility(6, 1), 2, 2, 0)
    both = attend(q, k, v, Visibility(6, tuple(sizes)), backend)
    for row, size in enumerate(sizes):
        alone = attend(*(x[row:row + 1] for x in (q, k, v)), Visibility(6, size), "dense")
        torch.testing.assert_close(both[row:row + 1], alone, atol=1e-5, rtol=1e-4)


# caches

def small_dit(size, **changes):
    torch.manual_seed(size)
    return DiT(DiTConfig(**dict(d_latent=4, width=16, heads=2, head_dim=8, layers=2,
               rope_dim=4, block_size=size, zero_init=False) | changes)).eval()


def small_vae(size, patch=1, **changes):
    torch.manual_seed(patch)
    return TextVAE(VAEConfig(**dict(vocab_size=28, d_latent=4, width=16, heads=2, encoder_layers=1,
                   decoder_layers=2, ffn_dim=32, init_std=0.3, patch_size=patch, block_size=size) | changes)).eval()


@given(st.integers(1, 4), st.lists(st.integers(0, 3), min_size=1, max_size=3), st.floats(0.05, 1), st.integers(0, 9))
def test_cached_velocities_are_those_of_the_whole_sequence(size, pasts, t, seed):
    "Samples whose pasts differ in length, in one batch."
    dit, longest = small_dit(size), max(pasts) * size
    z = torch.randn(len(pasts), longest + size, 4, generator=torch.Generator().manual_seed(seed))
    cache = dit.trunk.cache(len(pasts), longest + size)
    with torch.no_grad():
        if longest: dit(z[:, :longest], torch.zeros(len(pasts), 1), cache)
        cache.length = torch.tensor(pasts) * size
        found = dit(z[:, longest:], torch.full((len(pasts), 1), t), cache)
        for row, past in enumerate(pasts):
            whole = torch.cat([z[row, :past * size], z[row, longest:]])[None]
            times = torch.tensor([[0.0] * past + [t]])
            torch.testing.assert_close(found[row:row + 1], dit(whole, times)[:, past * size:], atol=2e-5, rtol=1e-4)


@given(st.sampled_from([(1, [1, 2, 1]), (1, [3, 1]), (2, [2, 4]),
       (3, [3, 3]), (2, [2, 2, 2])]), st.integers(1, 2), st.integers(1, 3))
def test_cached_logits_are_those_of_the_whole_sequence(drawn, patch, batch):
    size, chunks = drawn
    vae, n = small_vae(size, patch, kv_heads=1), sum(chunks)
    z = torch.randn(batch, n, 4, generator=torch.Generator().manual_seed(n))
    with torch.no_grad():
        cache = vae.decoder.trunk.cache(batch, n)
        parts = [vae.decode(part, cache) for part in z.split(chunks, 1)]
        torch.testing.assert_close(torch.cat(parts, 1), vae.decode(z), atol=2e-5, rtol=1e-4)
    assert cache.past == [n] * batch


def small_baseline(family):
    torch.manual_seed(0)
    own = {"d_embed": 6} if family == "plaid" else {}
    config = BaselineConfig(family=family, vocab_size=28, width=16, layers=1, heads=2, intermediate=24, init_std=0.3, **own)
    return make_baseline(config).double().eval() if family == "llada" else make_baseline(config).eval()


@pytest.mark.parametrize("size, n", [(8, 260), (4, 258), (16, 303)])   # long enough for the kernel of long sequences
def test_the_last_block_of_a_long_sequence_may_be_cut(size, n):
    vae, dit, make = small_vae(size), small_dit(size), torch.Generator().manual_seed(n)
    ids, z, t = torch.randint(0, 28, (1, n), generator=make), torch.randn(1, n, 4, generator=make), torch.tensor([[.5]])
    with torch.no_grad():
        found = vae.encode(ids).mean, vae.decode(z), dit(z, t)
        for model in (vae, dit): use(model, "dense")
        expected = vae.encode(ids).mean, vae.decode(z), dit(z, t)
    for ours, reference in zip(found, expected): torch.testing.assert_close(ours, reference, atol=1e-4, rtol=1e-4)


# sampling

class Letters(Tokenizer):
    "A tokenizer of letters."
    def __init__(self): pass   # no backend

    pad_id, eos_id, vocab_size = 0, 1, 28
    def encode(self, text, special=False): return [ord(letter) - 95 for letter in text]
    def decode(self, ids, skip_special=True): return "".join(chr(i + 95) for i in ids if i > 1)


prompts = st.lists(st.text("abcdef", max_size=7), min_size=2, max_size=4)
ways = st.builds(
    dict,
    first_block=st.sampled_from(["clean", "repaint", "left_pad", "right_pad"]),
    solver=st.sampled_from(["euler", "heun"]),
    guidance_scale=st.sampled_from([0.0, 1.0, 3.0]),
    repaint_rounds=st.integers(1, 2),
    repaint_m=st.sampled_from([0.5, 1.0]),
    temperature=st.sampled_from([0.0, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3]))


@settings(max_examples=15)
@given(prompts, ways, st.integers(1, 3), st.sampled_from([(1, 1), (2, 1), (1, None)]))
def test_a_prompt_is_continued_as_if_it_were_alone(asked, way, size, shape):
    patch, own = shape
    sampler = Sampler(small_vae(own, patch), small_dit(size), Letters(), SampleConfig(steps=2, max_new_tokens=6, **way))
    seeds = list(range(10, 10 + len(asked)))
    for prompt, seed, made in zip(asked, seeds, sampler.generate(asked, seeds)):
        alone = sampler.generate([prompt], [seed])[0]
        assert (alone.tokens, alone.text) == (made.tokens, made.text)
        torch.testing.assert_close(alone.latents, made.latents[:len(alone.latents)], atol=1e-4, rtol=1e-4)
        assert len(made.tokens) <= 6 and Letters.eos_id not in made.tokens


FAMILIES = {
    "cola": lambda: ColaDLM(small_vae(1), small_dit(2)),
    **{name: partial(small_baseline, name) for name in ("ar", "llada", "plaid")},
}


@settings(max_examples=4)
@pytest.mark.parametrize("family", FAMILIES)
@given(st.lists(st.sampled_from(["", "a", "bc", "decaf"]), min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_results_depend_neither_on_company_nor_on_order(family, asked, chance):
    "Without seeds, too: a text's first result is that of the text alone, and its copies differ in noise."
    sampler = make_sampler(FAMILIES[family](), Letters(), SampleConfig(steps=2, max_new_tokens=4, temperature=1.0))
    made = sampler.generate(asked)
    shuffled = list(asked)
    chance.shuffle(shuffled)
    for prompt in set(asked):
        own = [g.tokens for g, other in zip(made, asked) if other == prompt]
        assert own == [g.tokens for g, other in zip(sampler.generate(shuffled), shuffled) if other == prompt]
        assert own[:1] == [g.tokens for g in sampler.generate(prompt)]
    assert len(set(prompt_seeds(asked))) == len(asked)
    assert sampler.generate([]) == [] and list(sampler.blocks([])) == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_sampler_runs_in_every_type(family, dtype):
    "Weights are rounded, constants and the solver's state are not: the latents stay near those of float32."
    config = SampleConfig(steps=4, max_new_tokens=8, guidance_scale=2.0)
    rounded, exact = (
        make_sampler(FAMILIES[family]().to(kind), Letters(), config).generate(["abcab", "f"], [1, 2])
        for kind in (dtype, torch.float32))
    for ours, reference in zip(rounded, exact):
        assert ours.latents.dtype in (torch.float32, dtype if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(ours.latents[:2].float(), reference.latents[:2], atol=0.1, rtol=0)
        if dtype != torch.bfloat16: assert ours.tokens == reference.tokens


def test_a_long_prompt_whose_end_cuts_a_block_of_the_vae():
    prompt = "abcde" * 60   # 300 tokens, in whole blocks of the DiT
    sampler = Sampler(small_vae(16), small_dit(4), Letters(), SampleConfig(steps=1, max_new_tokens=4))
    assert len(sampler.generate([prompt], [0])[0].tokens) == 4


# scorers

written = st.text("abcAB .,!\n(é", max_size=14)


@given(written)
def test_cut_keeps_the_first_line(text):
    assert cut(text, "paper") == text.split("\n")[0]
    lines, kept = text.split("\n"), []
    for line in lines:                                                    # the release goes on until a line has a word
        kept.append(line)
        if re.search(r"\w", line): break
    assert cut(text) == "\n".join(kept)


@given(written, written)
def test_normal_form_and_similarity(a, b):
    letters = "".join(c for c in a.lower() if c.isalnum() or c == "_" or c.isspace())
    assert normalise(a) == " ".join(letters.split()) == normalise(normalise(a))
    assert first_word(a) == (normalise(a).split() + [""])[0]
    assert (similarity(a, b) == 1) == (normalise(a) == normalise(b))
    assert 0 <= similarity(a, b) <= 1 and similarity(a, a + "!") == 1


@given(st.lists(st.sampled_from(["cat", "dog", "cow", "a cat", "horse"]), min_size=1, max_size=4, unique=True), written)
def test_best_options_have_the_largest_similarity(choices, text):
    found, values = best_options(text, choices), {c: similarity(text, c) for c in choices}
    best = max(values.values())
    assert found == ({c for c in choices if values[c] == best} if best > 0 and normalise(text) else set())
    for number, choice in enumerate(choices):
        forms = [
    choice,
    f"The answer is {choice}",
    f"({ascii_uppercase[number]})",
     f"Answer: {ascii_uppercase[number]}"]
        if not any(choice != other and (choice in other or other in choice) for other in choices):
            assert [option_letter(form, choices, segment=True)
                                  for form in forms] == [ascii_uppercase[number]] * len(forms)


answers = st.sampled_from(["cat", "dog", "red fox"])
replies = st.sampled_from(["cat", "Cat.", "dog\nmore", "red", "", "red  fox!"])


@given(st.lists(st.tuples(answers, replies), min_size=1, max_size=12), st.sampled_from(["lambada", "squad"]))
def test_accuracy_is_the_share_of_right_answers(drawn, task):
    items = [Item(id=str(i), prompt="p", answer=answer, bayes=0.5) for i, (answer, _) in enumerate(drawn)]
    scored = score_pairs(zip(items, [text for _, text in drawn]), task)
    plain = lambda text: re.sub(r"[^\w\s]", "", text.split("\n")[0].lower()).split()
    right = [
    plain(text) == plain(answer) if task == "squad" else plain(text)[
        :1] == plain(answer)[
            :1] for answer,
             text in drawn]
    assert [outcome.correct for outcome in scored.outcomes] == right
    assert scored.accuracy == pytest.approx(sum(right) / len(right)) and scored.n == len(right)
    assert (scored.low, scored.high) == (wilson(sum(right), len(right)).low, wilson(sum(right), len(right)).high)
    assert (scored.chance, scored.bayes) == (0.0, pytest.approx(0.5))


@given(st.integers(0, 3), st.sampled_from([task for task, form in TASKS.items() if form.verdict == "letter"]))
def test_letters_count_as_their_options(number, task):
    choices = ["red", "blue", "green", "white"]
    item = Item(id="0", prompt="p", answer=choices[number], choices=choices)
    for letter, choice in zip("ABCD", choices):
        for form in (letter, f"({letter})", f"{letter}.", choice, f"answer: {choice}"):
            assert score(item, form, task) == (choice == choices[number])
        assert score(item, choice, task, "paper") == (choice == choices[number])
