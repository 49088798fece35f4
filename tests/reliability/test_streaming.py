"Corpora beyond memory: the same from parquet files like FineWeb-Edu's and TinyStories', after a kill too; bounded memory; batches that read their own rows; a tokenizer from the hub."
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import hf_hub_download
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers
from trainers import fork, record, wait

from colanb.config import DataConfig, load_profile
from colanb.text.corpus import Corpus, cache_key, prepare
from colanb.text.packing import Shards
from colanb.evidence.report import read_logs

WORDS = "the fox and the hen went to the river and saw a boat full of apples under an old tree".split()


def texts(count, start=0):
    return [f"story {i} . " + " ".join(WORDS[(i * 7 + k * (1 + i % 5)) % len(WORDS)] for k in range(60 + i % 90)) for i in range(start, start + count)]


def fineweb(path, count, files=3):
    "Files with the columns of FineWeb-Edu."
    path.mkdir(parents=True)
    for f in range(files):
        part = texts(count // files, f * (count // files))
        n = len(part)
        pq.write_table(pa.table({
            "text": part, "id": [f"<urn:uuid:{f}-{i}>" for i in range(n)], "dump": ["CC-MAIN-2024-10"] * n, "url": ["https://example.org"] * n, "file_path": ["s3://"] * n, "language": ["en"] * n,
            "language_score": [0.9] * n, "token_count": [80] * n, "score": [3.1] * n, "int_score": [3] * n}), path / f"part-{f}.parquet", row_group_size=200)
    return DataConfig(source="hf", dataset="parquet", data_files=str(path / "*.parquet"), vocab_size=400, tokenizer="bpe", seq_len=64, validation=0.03, test=0.02, shard_sequences=64)


def olmo_like(path):
    "A tokenizer.json with the special tokens of OLMo 2's: no <|unk|>, padding the last of the vocabulary."
    backend = Backend(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.train_from_iterator(texts(200), trainers.BpeTrainer(vocab_size=500, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False))
    backend.add_special_tokens(["<|endoftext|>", "<|im_end|>", "<|pad|>"])
    backend.save(str(path))


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir())}


def documents(corpus, split):
    joined = corpus.split(split)[:].ravel()
    return sorted(corpus.tokenizer.decode(d) for d in np.split(joined, np.flatnonzero(joined == corpus.tokenizer.eos_id) + 1)[:-1])


def test_every_document_comes_back_and_files_of_any_number_hold_the_same(tmp_path):
    config = fineweb(tmp_path / "web", 1200)
    corpus = prepare(config, tmp_path / "out")
    assert sorted(sum((documents(corpus, s) for s in ("train", "validation", "test")), [])) == sorted(texts(1200))
    assert len(corpus.manifest["shards"]["train"]) > 5 and corpus.manifest["splits"]["validation"]["documents"] > 10
    other = prepare(config.replace(shard_sequences=1000), tmp_path / "other")
    assert (other.split("train")[:] == corpus.split("train")[:]).all()
    stories = DataConfig(source="hf", dataset="parquet", data_files=str(tmp_path / "tiny.parquet"), tokenizer="word", vocab_size=300, seq_len=64, packing="whole", validation=0.05, test=0.05, shard_sequences=20)
    pq.write_table(pa.table({"text": texts(300)}), tmp_path / "tiny.parquet")
    tiny = prepare(stories, tmp_path / "tiny")
    assert tiny.manifest["kept"] == 300 and len(tiny.split("train")) == tiny.manifest["splits"]["train"]["sequences"]


@pytest.mark.parametrize("when", [2, 5, 9])
def test_a_killed_reading_goes_on_and_ends_with_the_same_bytes(tmp_path, when):
    config = fineweb(tmp_path / "web", 3000)
    prepare(config, tmp_path / "whole")
    place = tmp_path / f".out-{cache_key(config)[:12]}" / "new"
    pid = fork(lambda: prepare(config, tmp_path / "out"))
    while len(list(place.glob("train-*.arrow"))) < when and not (tmp_path / "out").exists(): time.sleep(0.0005)
    os.kill(pid, signal.SIGKILL)
    assert wait(pid) == -signal.SIGKILL and not (tmp_path / "out").exists()
    assert wait(fork(lambda: prepare(config, tmp_path / "out"))) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole") and not place.exists()
    record("streaming_killed", {"killed after shards": when, "shards": len(Corpus.load(tmp_path / "out").manifest["shards"]["train"]), "same": True}, str(when))


MEASURE = """
    import sys, json, threading, time, psutil
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    from colanb.config import DataConfig
    from colanb.text.corpus import prepare
    config, out = DataConfig.model_validate_json(sys.argv[2]), sys.argv[3]
    process, peak, on = psutil.Process(), [0], [True]
    def own(): m = process.memory_info(); return m.rss - getattr(m, "shared", 0)   # mapped files left out
    def watch():
        while on[0]: peak[0] = max(peak[0], own()); time.sleep(0.005)
    import datasets, tokenizers
    prepare(config.replace(limit=60), out + "-warm")
    base = own()
    thread = threading.Thread(target=watch); thread.start(); began = time.time()
    corpus = prepare(config, out); seconds = time.time() - began
    on[0] = False; thread.join()
    print(json.dumps({"grown": peak[0] - base, "seconds": seconds, "tokens": corpus.manifest["splits"]["train"]["tokens"]}))
"""


def test_memory_does_not_grow_with_the_source(tmp_path):
    found = {}
    olmo_like(tmp_path / "tokenizer.json")
    for count in (3000, 30_000):
        config = fineweb(tmp_path / f"web{count}", count).replace(tokenizer=str(tmp_path / "tokenizer.json"))   # what a trained one holds grows until TRAINED_ON
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(MEASURE), str(Path(__file__).parent), config.model_dump_json(), str(tmp_path / f"out{count}")], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-1500:]
        found[count] = json.loads(done.stdout)
    record("streaming_memory", found)
    assert found[30_000]["grown"] < found[3000]["grown"] + 40 * 2**20, found


def test_a_batch_reads_its_own_rows(tmp_path, monkeypatch):
    "Rows from many memory-mapped files in random order: a batch asks for as many as it has, each once in an epoch. What that takes is recorded, not tested."
    config = fineweb(tmp_path / "web", 3000).replace(seq_len=96)
    corpus, run = prepare(config, tmp_path / "out"), load_profile(name="tiny").run("tiny")
    sequences, size = corpus.split("train"), run.stage2.batch_size
    assert len(sequences.parts) > 1 and not any(part.flags.owndata or part.flags.writeable for part in sequences.parts)
    batches, asked, read = corpus.batches("train", size, 0), [], Shards.__getitem__
    monkeypatch.setattr(Shards, "__getitem__", lambda self, rows: (asked.append(list(rows)), read(self, rows))[1])
    whole = np.concatenate(sequences.parts)
    steps = len(whole) // size
    for step in range(steps): assert (batches[step].numpy() == whole[asked[-1]]).all()
    assert [len(rows) for rows in asked] == [size] * steps and len(set(sum(asked, []))) == steps * size
    began = time.perf_counter()
    for step in range(300): batches[step]
    loader = 300 * size * 96 / (time.perf_counter() - began)
    trainer = max(log.tokens_per_second.median() for log in read_logs("tiny", "prior").values())
    record("streaming_throughput", {"loader": loader, "trainer": trainer, "ratio": loader / trainer, "shards": len(sequences.parts)})


def test_a_tokenizer_from_the_hub(tmp_path, monkeypatch):
    "The hub's cache, as a download leaves it; without it, a message."
    snapshot = tmp_path / "hub/models--allenai--OLMo-2-1124-7B"
    (snapshot / "snapshots/abc").mkdir(parents=True); (snapshot / "refs").mkdir(); (snapshot / "refs/main").write_text("abc")
    olmo_like(snapshot / "snapshots/abc/tokenizer.json")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", partial(hf_hub_download, cache_dir=tmp_path / "hub", local_files_only=True))
    config = fineweb(tmp_path / "web", 300).replace(tokenizer="allenai/OLMo-2-1124-7B")
    corpus = prepare(config, tmp_path / "out")
    assert (corpus.tokenizer.pad_id, corpus.tokenizer.unk_id) == (corpus.tokenizer.vocab_size - 1, None)
    assert sorted(sum((documents(corpus, s) for s in ("train", "validation", "test")), [])) == sorted(texts(300))
    with pytest.raises(ValueError, match="allenai/OLMo-3.*no such file, and no tokenizer.json of that name"): prepare(config.replace(tokenizer="allenai/OLMo-3"), tmp_path / "none")
