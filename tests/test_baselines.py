"AR is LLaMA, sizes in params.yaml are matched, and one entry opens the model of any family."
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML
from transformers import LlamaConfig, LlamaForCausalLM

from colanb.generate.baselines import ARSampler, BaselineSampler, load_sampler
from colanb.learn.baseline_losses import baseline_loss
from colanb.measure.cost import model_size
from colanb.model.baselines import make_baseline
from colanb.config import BaselineConfig, Profile, RunConfig, SampleConfig, TrainConfig, stream
from colanb.text.tokenizer import word_tokenizer
from colanb.model.cola import ColaDLM
from colanb.generate.sample import TextSampler
from colanb.learn.loop import fit
from colanb.learn.saving import save_model, write_folder

PARAMS = YAML(typ="safe").load((Path(__file__).resolve().parents[1] / "params.yaml").read_text())
PROFILES = {name: value for name, value in PARAMS.items() if name != "profile"}
SHAPE = dict(width=32, layers=3, heads=4, intermediate=44, init_std=0.3)


def llama_of(model):
    "LlamaForCausalLM of `transformers` with the weights of our AR."
    c = model.config
    theirs = LlamaForCausalLM(LlamaConfig(
        vocab_size=c.vocab_size + 1, hidden_size=c.width, intermediate_size=c.intermediate, num_hidden_layers=c.layers, num_attention_heads=c.heads,
        num_key_value_heads=c.kv_heads or c.heads, rms_norm_eps=c.norm_eps, max_position_embeddings=64, tie_word_embeddings=False, attn_implementation="eager",
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta}))
    weights = {"model.embed_tokens.weight": model.embedding.weight, "model.norm.weight": model.norm.weight}
    head = model.head.weight if model.head is not None else model.embedding.weight[:-1]
    weights["lm_head.weight"] = torch.cat([head, torch.zeros(1, c.width)])   # their output has a row for our start, too
    for i, block in enumerate(model.trunk.blocks):
        q, k, v = block.attention.qkv.weight.split(block.attention.widths)
        up, gate = block.mlp.proj_in.weight.chunk(2)
        ours = {"self_attn.q_proj": q, "self_attn.k_proj": k, "self_attn.v_proj": v, "self_attn.o_proj": block.attention.out.weight, "mlp.up_proj": up, "mlp.gate_proj": gate,
                "mlp.down_proj": block.mlp.proj_out.weight, "input_layernorm": block.norm_attention.weight, "post_attention_layernorm": block.norm_mlp.weight}
        weights |= {f"model.layers.{i}.{name}.weight": tensor for name, tensor in ours.items()}
    theirs.load_state_dict(weights)
    return theirs.eval()


@pytest.mark.parametrize("changes", [{}, {"kv_heads": 2}, {"rope_theta": 500_000.0}, {"tied": True}], ids=str)
def test_logits_equal_llama(changes):
    torch.manual_seed(0)
    ours = make_baseline(BaselineConfig(family="ar", vocab_size=50, **SHAPE, **changes)).eval()
    for norm in (m for m in ours.modules() if isinstance(m, torch.nn.RMSNorm)): torch.nn.init.uniform_(norm.weight, 0.5, 2)
    ids = torch.randint(0, 51, (3, 40))
    with torch.no_grad(): expected, found = llama_of(ours)(ids).logits[..., :-1], ours(ids)
    assert expected.std() > 0.5
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)


def test_greedy_text_equals_llama():
    "Our sampler's cache against their `generate`."
    torch.manual_seed(0)
    tokenizer = word_tokenizer([f"w{i}" for i in range(46)])
    ours = make_baseline(BaselineConfig(family="ar", vocab_size=50, **SHAPE))
    sampler, prompt = ARSampler(ours, tokenizer, SampleConfig(max_new_tokens=12)), "w3 w1 w4 w1 w5"
    sampler.stopped = lambda state: False
    states = list(sampler.blocks([prompt, "w2"]))[-1]
    ids = torch.tensor([[50, *tokenizer.encode(prompt)]])
    theirs = llama_of(ours).generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, min_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0,
                                     suppress_tokens=[50])
    assert states[0].tokens == theirs[0, ids.shape[1]:].tolist()


@pytest.mark.parametrize("name", [name for name in PROFILES if "rq4" in PROFILES[name].get("studies", {})])
def test_rivals_are_matched(name):
    "All rows of Table 1; parameters outside token tables differ from the latent model's by 2 % at most, and data, batches and steps are the same."
    runs = [run for _, run in Profile.model_validate(PROFILES[name]).study_runs("rq4")]
    main, budgets = runs[0], lambda family: [run.stage2.steps for run in runs if (run.baseline and run.baseline.family) == family]
    for rival in runs:
        assert abs(model_size(rival, 100).body / model_size(main, 100).body - 1) <= 0.02, rival.baseline
        assert rival.data == main.data and rival.stage2.batch_size == main.stage2.batch_size
        assert rival.sample.max_new_tokens == main.sample.max_new_tokens and rival.sample.stop_at_newline == main.sample.stop_at_newline
    assert budgets("ar") == budgets("llada") == budgets("plaid") == budgets(None)


def test_smoke_profile_has_all_rows_of_table_1():
    runs = [run for _, run in Profile.model_validate(PROFILES["smoke"]).study_runs("rq4")]
    assert {run.baseline.family for run in runs if run.baseline} == {"ar", "llada", "plaid"}


def test_one_entry_opens_every_family(tmp_path):
    tokenizer = word_tokenizer(["a", "b"])
    for family in ("ar", "llada", "plaid"):
        run = RunConfig(name=family, baseline=BaselineConfig(family=family, vocab_size=tokenizer.vocab_size, **SHAPE))
        write_folder(tmp_path / family, {"baseline": make_baseline(run.baseline)}, run, tokenizer)
    cola = RunConfig(name="cola", vae=dict(vocab_size=tokenizer.vocab_size, width=32, heads=2, encoder_layers=1, decoder_layers=1, ffn_dim=32),
                     dit=dict(width=32, heads=2, head_dim=16, layers=1, rope_dim=8, block_size=4))
    save_model(tmp_path / "cola", ColaDLM(cola.vae, cola.dit), cola, tokenizer)
    save_model(tmp_path / "vae", ColaDLM(cola.vae), cola, tokenizer)
    for family in ("ar", "llada", "plaid", "cola"):
        run, sampler = load_sampler(tmp_path / family, max_new_tokens=3, guidance_scale=1.0)
        assert isinstance(sampler, TextSampler) and isinstance(sampler, BaselineSampler) == (family != "cola")
        assert run.name == family and sampler.config.max_new_tokens == 3 and len(sampler.generate(["a b", ""])) == 2
    with pytest.raises(ValueError, match="cannot generate"): load_sampler(tmp_path / "vae")


@pytest.mark.parametrize("family", ["llada", "plaid"])
def test_resumed_run_is_the_same_run(family, tmp_path):
    "Weights and Plaid's noise levels after a stop in between are those of a run without one."
    class Tokens:
        def __getitem__(self, step): return torch.randint(1, 20, (4, 8), generator=stream("tokens", step))
    config, models = TrainConfig(steps=9, batch_size=4, warmup=1, save_every=3), []
    for name, stops in (("whole", [9]), ("parts", [5, 9])):
        for stop in stops:
            torch.manual_seed(0)
            model = make_baseline(BaselineConfig(family=family, vocab_size=20, width=16, layers=1, heads=2, intermediate=16, clean_prefix=0.5 * (family != "ar")))
            after_step = model.levels.settle if family == "plaid" else None
            fit(model, baseline_loss, Tokens(), config, tmp_path / name, seed=0, until=stop, after_step=after_step)
        models.append(model)
    for (name, whole), (_, parts) in zip(*(m.state_dict().items() for m in models)): assert torch.equal(whole, parts), name
    if family == "plaid": assert (models[0].levels.height != 1).any()
