"The lm-evaluation-harness runs local tasks with our model class. Skipped where the extra `harness` is not installed: it is not in requirements.lock."
import json

import pytest
import torch

from colanb.text import testbed as synthetic
from colanb.config import DataConfig, DiTConfig, RunConfig, SampleConfig, VAEConfig
from colanb.text.tokenizer import word_tokenizer
from colanb.model.cola import ColaDLM
from colanb.measure.harness import harness_model
from colanb.release.hub import ColaModel
from colanb.config import ODEConfig

lm_eval = pytest.importorskip("lm_eval", reason="pip install colanb[harness]")
task_files = pytest.importorskip("lm_eval.tasks")

TASKS = {
    "choice": dict(output_type="multiple_choice", doc_to_text="{{prompt}}", doc_to_choice="{{choices}}", doc_to_target="{{choices.index(answer)}}",
                   metric_list=[dict(metric="acc", aggregation="mean", higher_is_better=True)]),
    "written": dict(output_type="generate_until", doc_to_text="{{prompt}}", doc_to_target=" {{answer}}", generation_kwargs=dict(until=["\n"], max_gen_toks=4),
                    metric_list=[dict(metric="exact_match", aggregation="mean", higher_is_better=True)]),
    "rolling": dict(output_type="loglikelihood_rolling", doc_to_text="", doc_to_target="{{text}}",
                    metric_list=[dict(metric="word_perplexity"), dict(metric="bits_per_byte")]),
}


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    "Items of the testbed as tasks of the harness: a YAML file and a local jsonl each."
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache")); monkeypatch.setenv("HF_HUB_OFFLINE", "1"); monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    testbed = synthetic.Testbed("tiny")
    items = [dict(prompt=i["prompt"], choices=i["choices"], answer=i["answer"]) for i in testbed.items("mmlu", 3, seed=0)]
    stories = [dict(text=text) for text in testbed.documents(2, seed=0, story_fraction=1.0)]
    for name, task in TASKS.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (stories if name == "rolling" else items)))
        where = dict(path="json", kwargs=dict(data_files=dict(test=str(tmp_path / f"{name}.jsonl")), cache_dir=str(tmp_path / "cache")))
        full = dict(task=f"testbed_{name}", dataset_path=where["path"], dataset_kwargs=where["kwargs"], test_split="test", **task)
        (tmp_path / f"{name}.yaml").write_text(json.dumps(full))     # JSON is YAML
    return tmp_path, testbed


def test_harness_runs_local_tasks(tasks):
    folder, testbed = tasks
    tokenizer = word_tokenizer(testbed.vocabulary)
    torch.manual_seed(0)
    vae = VAEConfig(vocab_size=tokenizer.vocab_size, d_latent=4, width=16, heads=2, encoder_layers=1, decoder_layers=1, ffn_dim=32)
    dit = DiTConfig(d_latent=4, width=16, heads=2, head_dim=8, layers=1, rope_dim=8, block_size=4)
    run = RunConfig(name="own", data=DataConfig(seq_len=96), vae=vae, dit=dit, sample=SampleConfig(steps=2))
    model = harness_model(ColaModel(run, ColaDLM(vae, dit), tokenizer), ode=ODEConfig(steps=2, divergence="rademacher", probes=2), samples=2)
    manager = task_files.TaskManager(include_path=str(folder), include_defaults=False)
    found = lm_eval.simple_evaluate(model=model, tasks=[f"testbed_{name}" for name in TASKS], task_manager=manager, bootstrap_iters=0)["results"]
    assert 0 <= found["testbed_choice"]["acc,none"] <= 1 and 0 <= found["testbed_written"]["exact_match,none"] <= 1
    assert found["testbed_rolling"]["word_perplexity,none"] > 1 and found["testbed_rolling"]["bits_per_byte,none"] > 0
    assert model.world_size == 1
