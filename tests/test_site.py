"""The site in a browser: every widget changes what it should, nothing is asked of another host, no link is dead.

Skipped without a built site (`make site`), without the packages of the extra `site`, or without Chromium (Debian: apt-get install chromium)."""
import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest
import torch
from torch.distributions import Normal, SigmoidTransform, TransformedDistribution

from colanb.config import DiTConfig, SampleConfig, VAEConfig, shipped_models, stream
from colanb.generate.sample import Sampler
from colanb.lab.analytic import gaussian_mixture
from colanb.measure.text_likelihood import SamplerScorer, sampler_start
from colanb.model.cola import ColaDLM
from colanb.release.hub import open_any_model
from colanb.text.tokenizer import Tokenizer, bpe_tokenizer, word_tokenizer

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "_site"
WIDGETS = ROOT / "nbs/site/static/widgets"
MODULES = ROOT / ".scratch/site/npm/node_modules"
AXE = MODULES / "axe-core/axe.min.js"
ORT = MODULES / "onnxruntime-web/dist/ort.node.min.mjs"
PAGES = sorted(path.relative_to(ROOT / "nbs/site/pages").with_suffix("").as_posix() for path in (ROOT / "nbs/site/pages").rglob("*.md"))
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

built = pytest.mark.skipif(not SITE.exists(), reason="no _site: run `make site` first")
needs_node = pytest.mark.skipif(not shutil.which("node"), reason="no node to run the page's formulas")
needs_browser = pytest.mark.skipif(not BROWSER or not SITE.exists(), reason="no Chromium, or no _site from `make site`")


# the page's formulas, in node

def in_node(expression, module="math.js", before=""):
    "The value of an expression over a module of widgets/."
    script = f"import * as m from {json.dumps((WIDGETS / module).as_uri())}; {before}; console.log(JSON.stringify({expression}))"
    done = subprocess.run(["node", "--input-type=module", "-"], input=script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_node
def test_density_of_times_is_the_librarys():
    times = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    for loc, scale in ((0.0, 1.0), (1.0, 0.5), (2.5, 1.5)):
        law = TransformedDistribution(Normal(torch.tensor(loc, dtype=torch.float64), scale), SigmoidTransform())
        found = in_node(f"{times.tolist()}.map((t) => m.timeDensity(t, {loc}, {scale}))")
        torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), law.log_prob(times).exp(), rtol=1e-9, atol=1e-12)


@needs_node
def test_mean_time_is_exact_and_near_the_draws_of_the_training_sampler():
    drawn = pd.read_csv(ROOT / "figures/theory_h.csv")
    pairs = drawn[["loc", "scale"]].values.tolist()
    found = in_node(f"{json.dumps(pairs)}.map(([loc, scale]) => m.meanTime(loc, scale))")
    normal = torch.linspace(-9, 9, 20001, dtype=torch.float64)
    weight = (-0.5 * normal**2).softmax(0)
    exact = [(weight * torch.sigmoid(loc + scale * normal)).sum().item() for loc, scale in pairs]
    assert found == pytest.approx(exact, abs=1e-6)
    errors = (drawn["mean"] - found) / ((drawn.high - drawn.low) / (2 * 1.96))   # in standard errors
    assert errors.abs().max() < 4
    assert (errors.abs() < 1.96).mean() >= 0.8


@needs_node
@pytest.mark.parametrize("width,dx,gold,sd", [(0.35, 0.0, 0.125, 0.35), (0.2, 0.7, 0.5, 0.05), (1.0, -1.5, 0.0, 0.01)])
def test_coverage_and_score_are_the_librarys(width, dx, gold, sd):
    nodes = torch.tensor(in_node("m.planeNodes()"), dtype=torch.float64)
    modes = torch.tensor(in_node("m.modes()"), dtype=torch.float64)
    weights = torch.full((8,), (1 - gold) / 7, dtype=torch.float64)
    weights[0] = gold
    means = modes + torch.tensor([dx, 0.0], dtype=torch.float64)
    prior = gaussian_mixture(weights.clamp_min(1e-300), means, width)

    def answers(z):   # the decoder of nbs/exp/86_theory_f.ipynb
        near = -(z[:, None] - modes).square().sum(-1) / (2 * 0.3**2)
        return torch.cat([near, torch.full((len(z), 1), -1 / (2 * 0.3**2), dtype=z.dtype)], 1).log_softmax(-1)

    covered = sum(weight * ((answers(mean + width * nodes[:, :2])[:, :8].logsumexp(-1).exp() >= 0.9) * nodes[:, 2]).sum()
                  for weight, mean in zip(weights, means))
    z = modes[0] + sd * nodes[:, :2]
    posterior = torch.distributions.MultivariateNormal(modes[0], sd**2 * torch.eye(2, dtype=torch.float64))
    reconstruction = (nodes[:, 2] * answers(z)[:, 0]).sum()
    gap = (nodes[:, 2] * (posterior.log_prob(z) - prior.log_prob(z))).sum()
    setting = f"m.priorOf({{width: {width}, dx: {dx}, gold: {gold}}})"
    found = in_node(f"[m.coverage({setting}), m.score({setting}, {sd}).score]")
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), torch.stack([covered, reconstruction - gap]), rtol=1e-9, atol=1e-9)


@needs_node
def test_coverage_is_that_of_the_notebook():
    ours = json.loads((ROOT / "figures/theory_f.json").read_text())[0]["ours"]
    low, high = map(float, re.search(r"coverage [\d.]+ \[([\d.]+), ([\d.]+)\]", ours).groups())
    assert low <= in_node("m.coverage(m.priorOf())") <= high
    drawn = pd.read_csv(ROOT / "figures/theory_f.csv")
    for row in drawn.itertuples():
        assert row.low - 0.01 <= in_node(f"m.score(m.priorOf(), {row.sd}).score") <= row.high + 0.01


@needs_node
def test_turning_is_two_rotations():
    points = torch.randn(20, 3, generator=stream(0, "points"), dtype=torch.float64)
    turn, tilt = 40.0, -25.0
    a, b = torch.tensor([turn, tilt], dtype=torch.float64).deg2rad()
    about = torch.tensor([[a.cos(), 0, a.sin()], [0, 1, 0], [-a.sin(), 0, a.cos()]])
    down = torch.tensor([[1, 0, 0], [0, b.cos(), -b.sin()], [0, b.sin(), b.cos()]])
    found = in_node(f"{points.tolist()}.map((point) => m.turned(point, {turn}, {tilt}))", "transport.js")
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), points @ (down @ about).double().T)


@needs_node
def test_divergence_is_the_mean_of_the_first_probes_summed_over_latents():
    sums = torch.randn(3, 4, 6, generator=stream(0, "sums"), dtype=torch.float64)   # (latent, probe, time)
    data = {"times": [0] * 6, "sums": {"gaussian": sums.tolist()}}
    for latent, expected in (("null", sums[:, :2].mean(1).sum(0)), ("1", sums[1, :2].mean(0))):
        found = in_node(f"m.addedUp({json.dumps(data)}, 'gaussian', {latent}, 2)", "density.js")
        torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), expected)


@needs_node
def test_bars_of_the_budget_follow_each_other():
    setting = {"reconstruction": [-1], "rate": [2], "prior": [4], "elbo": [-7.5], "truth": [-3]}
    bars = in_node(f"m.barsOf({json.dumps(setting)}).map(({{ from, to }}) => [from, to])", "budget.js")
    assert bars == [[0, -1], [-1, -3], [-3, -7], [0, -7.5], [0, -3]]


# the page's sampler, in node

@needs_node
def test_noise_is_pytorchs():
    places = [(66, seed, block) for seed in (0, 1, 2**31 - 1) for block in (0, 7)]
    for count in (1, 7, 15, 16, 20, 64, 1300):   # few are drawn in another way, and more than 624 need the generator to go on
        found = in_node(f"{json.dumps(places)}.map((place) => [...m.noiseOf(place, {count})])", "random.js")
        drawn = torch.stack([torch.randn(count, generator=stream(*place)) for place in places])
        torch.testing.assert_close(torch.tensor(found), drawn, rtol=1e-5, atol=1e-6)


ODD = [
    "", "Once upon a time", "'Twas we'll  \r\n  end  ", "“Don’t!” said he…\n\n\tIt's 1234 naïve 😀", "x\x85y \xa0z\ufeff", "日本語 e\u0301 ½²",
    "<|endoftext|> <|pad|>", "aaaaaaaaaaa      b",
]


@needs_node
def test_ids_and_texts_are_the_tokenizers():
    path = shipped_models()["english"] / "tokenizer.json"
    tokenizer = Tokenizer.load(path)
    read = f"const t = new m.Tokenizer({path.read_text()})"
    ids = in_node(f"{json.dumps(ODD)}.map((text) => t.encode(text))", "tokenizer.js", read)
    assert ids == tokenizer.encode_batch(ODD)
    parts = [*ids, list(range(tokenizer.vocab_size)), ids[3][:-1]]   # the last one ends inside a character
    assert in_node(f"{json.dumps(parts)}.map((ids) => t.decode(ids, [0, 1]))", "tokenizer.js", read) == list(map(tokenizer.decode, parts))


@pytest.fixture(scope="module")
def exporter():
    "The module that writes a model for the page."
    pytest.importorskip("onnx", reason="the extra `site` is not installed")
    sys.path.insert(0, str(ROOT / "nbs/site"))
    yield __import__("export")
    sys.path.remove(str(ROOT / "nbs/site"))


def small_model(vae, dit):
    "A model with random weights that says something, and a tokenizer."
    torch.manual_seed(0)
    tokenizer = bpe_tokenizer(["once upon a time there was a dog, and once there was a cat"] * 9, 300)
    vae = VAEConfig(**{"vocab_size": tokenizer.vocab_size, "d_latent": 6, "width": 32, "heads": 4, "encoder_layers": 1, "decoder_layers": 2, "ffn_dim": 48, "init_std": 0.4} | vae)
    dit = DiTConfig(**{"d_latent": 6, "width": 32, "heads": 2, "head_dim": 16, "layers": 2, "rope_dim": 12, "zero_init": False} | dit)
    return ColaDLM(vae, dit).eval(), tokenizer


SMALL = {
    "paper": ({"scaling_factor": 1.7, "shifting_factor": 0.1}, {"block_size": 4}),
    "skip": ({"block_size": 4, "kv_heads": 2, "activation": "silu"}, {"block_size": 4, "skip": True, "rope_dim": 16}),
    "whole": ({"block_size": None, "post_norm": False, "logsnr": 4.0}, {"block_size": 2, "prediction": "z0"}),
    "recipe": ({}, {"block_size": 1, "prediction": "z0", "output": "tokens"}),
}


EXPORT = """
import sys; sys.path.insert(0, sys.argv[1])
import torch
from pathlib import Path
from export import export_model
for path in Path(sys.argv[2]).glob("*.pt"):
    export_model(*torch.load(path, weights_only=False), path.with_suffix(""))
"""
CONFIG = SampleConfig(steps=4, max_new_tokens=6, seed=5)


@pytest.fixture(scope="module")
def exported(exporter, tmp_path_factory):
    "A folder with each of the small models, exported by a process that does not check types: tracing puts tensors where plain numbers are."
    folder = tmp_path_factory.mktemp("models")
    for form, parts in SMALL.items():
        model, tokenizer = small_model(*parts)
        torch.save((model, tokenizer, CONFIG), folder / f"{form}.pt")
    environment = {name: value for name, value in os.environ.items() if name != "COLANB_TYPECHECK"}
    subprocess.run([sys.executable, "-c", EXPORT, str(ROOT / "nbs/site"), str(folder)], env=environment, cwd=ROOT, check=True)
    return folder


@needs_node
@pytest.mark.skipif(not ORT.exists(), reason="no onnxruntime-web: run `make site`")
@pytest.mark.parametrize("form", SMALL)
def test_pages_sampler_writes_what_pythons_does(exported, form):
    model, tokenizer = small_model(*SMALL[form])
    prompts = ["once upon a dog", "", "a cat"]   # some end inside a block
    settings = [(1.0, 0), (2.5, 0), (2.5, 3)]   # guidance, seed
    expected = []
    for guidance, seed in settings:
        sampler = Sampler(model.vae, model.dit, tokenizer, CONFIG.replace(guidance_scale=guidance))
        expected += sampler.generate(prompts, [seed] * len(prompts))
    before = f"""
        import * as ort from {json.dumps(ORT.as_uri())}; import {{ readFileSync }} from "node:fs";
        import {{ Tokenizer }} from {json.dumps((WIDGETS / "tokenizer.js").as_uri())};
        const read = (name) => readFileSync(`{exported / form}/${{name}}`);
        const graphs = {{}};
        for (const name of ["encode", "decode", "times", "step"]) graphs[name] = await ort.InferenceSession.create(read(`${{name}}.onnx`));
        const sampler = new m.Sampler(ort, graphs, JSON.parse(read("manifest.json")), new Tokenizer(JSON.parse(read("tokenizer.json"))));
        const found = [];
        for (const [guidance, seed] of {json.dumps(settings)}) for (const prompt of {json.dumps(prompts)}) {{
            const parts = [];
            for await (const part of sampler.write(prompt, {{ steps: 4, guidance, seed, tokens: 6 }})) if (part.done) parts.push(part);
            found.push([parts.at(-1).ids, parts.flatMap((part) => [...part.latents])]);
        }}"""
    found = in_node("found", "sampler.js", before)
    assert [ids for ids, _ in found] == [generation.tokens for generation in expected]
    for (_, latents), generation in zip(found, expected):
        torch.testing.assert_close(torch.tensor(latents), generation.latents.flatten(), rtol=1e-4, atol=1e-4)
    assert len({tuple(generation.tokens) for generation in expected}) > len(expected) / 2   # prompts, guidance and seeds all matter


def test_page_refuses_what_it_cannot_run(exporter, tmp_path):
    model, tokenizer = small_model({}, {"block_size": 1})
    for config, said in ((SampleConfig(solver="heun"), "sample.solver='heun'"), (SampleConfig(temperature=0.5), "sample.temperature=0.5")):
        with pytest.raises(ValueError, match=said): exporter.export_model(model, tokenizer, config, tmp_path / "model")
    with pytest.raises(ValueError, match="tokenizer of words"): exporter.export_model(model, word_tokenizer(["a"]), SampleConfig(), tmp_path / "model")
    with pytest.raises(ValueError, match="stage 1"): exporter.export_model(ColaDLM(model.vae), tokenizer, SampleConfig(), tmp_path / "model")
    patches, _ = small_model({"patch_size": 2}, {"block_size": 1})
    with pytest.raises(ValueError, match="vae.patch_size=2"): exporter.export_model(patches, tokenizer, SampleConfig(), tmp_path / "model")


@pytest.fixture(scope="module")
def recorder():
    "The module that records what a model does on its way."
    sys.path.insert(0, str(ROOT / "nbs/site"))
    yield __import__("record")
    sys.path.remove(str(ROOT / "nbs/site"))


@pytest.mark.parametrize("form", ["recipe", "paper"])
def test_recorded_ways_are_the_samplers(recorder, form):
    model, tokenizer = small_model(*SMALL[form])
    config = CONFIG.replace(max_new_tokens=recorder.TOKENS, guidance_scale=2.0)
    sampler = Sampler(model.vae, model.dit, tokenizer, config)
    expected = sampler.generate([""] * len(recorder.SEEDS), list(recorder.SEEDS))
    paths, tokens = recorder.sampled_paths(model, tokenizer, config)
    assert paths.shape[2] == config.steps + 1
    size = model.dit.config.block_size
    for path, own, seed, generation in zip(paths, tokens, recorder.SEEDS, expected):
        assert own == generation.tokens
        torch.testing.assert_close(path[:, -1].flatten(0, 1), generation.latents)
        noise = torch.randn(size, path.shape[-1], generator=stream(config.seed, seed, 1))
        torch.testing.assert_close(path[1, 0], noise)
        read = recorder.readings(model, path)
        assert read[:, -1].flatten().tolist() == own
        assert (read[:, 0] != read[:, -1]).any()


def test_recorded_record_names_what_is_read(recorder):
    model, tokenizer = small_model(*SMALL["recipe"])
    record = recorder.flow_record(model, tokenizer, CONFIG)
    [first, *_] = record["texts"]
    assert "".join(point["words"][-1] for point in first["points"]) == first["text"]
    assert [len(point["path"]) for point in first["points"]] == [len(record["times"])] * recorder.TOKENS
    assert 3 / record["channels"] <= record["shares"][-1] < 1   # the best three of so many
    kinds = {" dog": "start of a word", "og": "inside of a word", ".\n": "end of a line", "”": "punctuation"}
    assert {token: recorder.kind_of(token) for token in kinds} == kinds


def test_directions_are_those_of_most_variance(recorder):
    points = torch.randn(200, 5, generator=stream(0, "pca"), dtype=torch.float64) * torch.tensor([1, 3, 0.5, 2, 4])
    _, axes = recorder.principal_axes(points + 7)
    values = torch.linalg.svdvals(points - points.mean(0)).square()
    assert recorder.share_shown(points, axes) == pytest.approx((values[:3].sum() / values.sum()).item())
    assert axes.abs().argmax(0).tolist() == [4, 1, 3]
    assert (axes.gather(0, axes.abs().argmax(0, keepdim=True)) > 0).all()


@pytest.mark.parametrize("start,kind", [(0.3, "exact"), (0.0, "gaussian")])
def test_recorded_density_is_the_librarys(recorder, start, kind):
    model, tokenizer = small_model({}, {"block_size": 1})
    scorer = SamplerScorer(model, start, recorder.solve_of(kind))
    x = scorer.texts([tokenizer.encode("a dog")])
    latents, _ = scorer.infer(x, stream(0, "latents"))
    way = recorder.density_way(model, x, latents, start, kind)
    density = scorer.log_prior(x, latents, stream(0, "probes"))
    total = (way.normal + way.integrals[-1].mean(0)).sum()
    torch.testing.assert_close(total, density.log_prob[0])
    assert way.times[0].item() == pytest.approx(start)
    assert not way.integrals[0].any()


@built
def test_exported_weights_are_as_small_as_the_shipped_ones():
    shipped = sum(path.stat().st_size for path in shipped_models()["english"].iterdir())
    assert sum(path.stat().st_size for path in (SITE / "_static/models/english").iterdir()) < 1.1 * shipped


# the built pages, without a browser

def references(text):
    "What a page points to: links, pictures, styles, scripts."
    return [target for target in re.findall(r'(?:href|src)="([^"]+)"', text) if not re.match(r"data:|mailto:|javascript:", target)]


@built
def test_every_link_leads_somewhere_and_nothing_is_loaded_from_elsewhere():
    dead, loaded = [], []
    for page in SITE.rglob("*.html"):
        text = page.read_text()
        loaded += re.findall(r'<(?:script|img|iframe)[^>]* src="(?:https?:)?//[^"]+"', text)
        loaded += re.findall(r'<link[^>]* rel="(?:stylesheet|preload)"[^>]* href="(?:https?:)?//[^"]+"', text)
        for target in references(text):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc or not parts.path: continue
            if not (page.parent / unquote(parts.path)).exists(): dead.append(f"{page.relative_to(SITE)}: {target}")
    assert not loaded
    assert not dead, f"{len(dead)} dead links, such as {dead[:5]}"


@built
def test_pages_are_light_pictures_have_words_and_equations_are_set():
    for page in SITE.rglob("*.html"):
        text = page.read_text()
        assert page.stat().st_size < 1.5e6, page
        assert "math-source" not in text, page
        for picture in re.findall(r"<img [^>]*>", text):
            assert " alt=" in picture, f"{page}: {picture[:200]}"


@built
def test_every_page_is_there_and_search_knows_it():
    known = (SITE / "searchindex.js").read_text()
    for name in PAGES:
        assert (SITE / f"{name}.html").exists()
        assert f'"{name}"' in known, f"search does not know {name}"


# in a browser

class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


@pytest.fixture(scope="module")
def address():
    handler = functools.partial(Quiet, directory=str(SITE))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="the extra `site` is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, address):
    "Opens pages; at the end, no error may have been said and no other host asked."
    faults, contexts = [], []

    def seen(request):
        if urlsplit(request.url).hostname not in ("127.0.0.1", None): faults.append(f"asked {request.url}")

    def answered(response):
        if response.status >= 400: faults.append(f"{response.status} {response.url}")

    def visit(name, width=1440, script=True):
        context = chromium.new_context(viewport={"width": width, "height": 900}, java_script_enabled=script)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: message.type == "error" and faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", seen)
        page.on("response", answered)
        page.goto(f"{address}/{name}.html")
        if script: page.wait_for_function("document.documentElement.dataset.widgets === 'ready'")
        return page

    yield visit
    for context in contexts: context.close()
    assert not faults


def control(page, widget, name):
    return page.locator(f"[data-widget={widget}]").first.locator(f"[name={name}]")


def move(page, widget, name, value):
    "Set a slider as a hand would: the widget hears of it."
    control(page, widget, name).evaluate("(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", str(value))


def words(page, widget, part=".reading"):
    return page.locator(f"[data-widget={widget}]").first.locator(part).first.inner_text()


def percent(row):
    return f"{100 * row.value:.1f} % ({100 * row.low:.1f} to {100 * row.high:.1f}; n={row.n})"


@needs_browser
@pytest.mark.parametrize("name,figure", [("paper/rq3", "rq3_steps"), ("paper/rq3_block", "rq3_block"), ("paper/rq4", "rq4"), ("paper/rq1", "rq1")])
def test_dial_reads_the_committed_table(visit, name, figure):
    page = visit(name)
    table = pd.read_csv(ROOT / f"figures/{figure}.csv")
    control(page, "dial", "measure").select_option("lambada")
    xs = sorted(table.x.unique())
    move(page, "dial", "dial", len(xs) - 2)
    x = xs[-2]
    rows = table[(table.metric == "lambada") & (table.x == x)]
    said = words(page, "dial")
    assert any(percent(row) in said for row in rows.itertuples()), (said, rows)
    assert f" {x:g}:" in said


@needs_browser
def test_dial_shows_the_papers_point_and_one_curve(visit):
    page = visit("paper/rq3")
    paper = pd.read_csv(ROOT / "data/paper/Fig9a_rq3_denoising_steps.csv").query("panel == 'Tasks Average'").set_index("x").y
    move(page, "dial", "dial", 6)
    assert f"denoising steps 16: {paper[16]:.1f}" in words(page, "dial")
    page = visit("paper/rq4")
    before = words(page, "dial").count("\n")
    control(page, "dial", "curve").select_option("AR")
    assert words(page, "dial").count("\n") < before


@needs_browser
def test_dial_is_moved_by_keys(visit):
    page = visit("paper/rq3")
    before = words(page, "dial")
    control(page, "dial", "dial").focus()
    page.keyboard.press("ArrowRight")
    assert words(page, "dial") != before
    assert control(page, "dial", "dial").get_attribute("aria-valuetext") == "2"


@needs_browser
def test_scorecard_filters_and_opens(visit):
    page = visit("scorecard")
    counts = json.loads((ROOT / "figures/scorecard.json").read_text())
    assert words(page, "scorecard").startswith(f"{sum(counts.values())} of")
    for verdict, number in counts.items():
        control(page, "scorecard", "verdict").select_option(verdict)
        assert page.locator(".claim:visible").count() == number
    control(page, "scorecard", "verdict").select_option("")
    control(page, "scorecard", "words").fill("rise with guidance, stay, and collapse")
    assert page.locator(".claim:visible").count() == 1
    page.locator(".claim:visible summary").focus()
    page.keyboard.press("Enter")
    assert "executed notebook evidence" in page.locator(".claim:visible").inner_text()


@needs_browser
def test_noise_ends_in_the_recorded_text(visit):
    page = visit("paper/noise_to_text")
    first = words(page, "noise", ".text")
    move(page, "noise", "time", 15)
    trace = json.loads((ROOT / "data/results/noise_to_text/tiny/traces.json").read_text())[0]
    last = max((step for step in trace if step["t"] == 0), key=lambda step: step["block"])
    assert words(page, "noise", ".text").split() == last["text"].split() != first.split()
    assert "100 %" in words(page, "noise")
    control(page, "noise", "model").select_option("children's books")
    assert words(page, "noise", ".text").split() != last["text"].split()


@needs_browser
def test_times_follow_loc(visit):
    page = visit("paper/rq3_schedule")
    move(page, "times", "loc", 2.5)
    row = pd.read_csv(ROOT / "figures/rq1.csv").query("d == 16 and metric == 'average' and x == 2.5").iloc[0]
    said = words(page, "times")
    assert "logSNR -5.0" in said
    assert f"{100 * row.value:.1f} % of the tasks ({100 * row.low:.1f} to {100 * row.high:.1f}; n={row.n:.0f} seeds)" in said
    move(page, "times", "scale", 0.5)
    assert "No model was trained" in words(page, "times")


@needs_browser
def test_written_texts_are_those_of_the_runs(visit):
    page = visit("paper/discussion")
    stored = (json.loads(path.read_text()) for path in (ROOT / "data/results/runs/tiny").glob("*.json"))
    rows = [row for record in stored if record.get("study") == "sampling" for row in record["rows"]]
    for strategy in ("clean", "right_pad"):
        control(page, "written", "strategy").select_option(strategy)
        control(page, "written", "seed").select_option("2")
        expected = next(row["examples"][0] for row in rows
                        if row.get("first_block") == strategy and row["metric"] == "grammatical" and row["seed"] == 2)
        assert words(page, "written", ".text").split() == expected.split()


@needs_browser
def test_bars_show_the_parity(visit):
    page = visit("paper/discussion")
    table = pd.read_csv(ROOT / "figures/patch.csv").set_index("model")
    control(page, "bars", "kind").select_option("odd length")
    lost = 100 * (table["odd length"]["patch 1"] - table["odd length"]["patch 2"])
    assert f"{abs(lost):.1f} points" in words(page, "bars")


@needs_browser
def test_coverage_moves_with_the_prior(visit):
    page = visit("paper/appendix_f")
    before = words(page, "coverage")
    assert "The notebook drew" in before
    move(page, "coverage", "dx", 2)
    moved = words(page, "coverage")
    assert float(re.search(r"Coverage: ([\d.]+)", moved)[1]) < 2 < float(re.search(r"Coverage: ([\d.]+)", before)[1])
    move(page, "coverage", "sd", 6)
    assert float(re.search(r"answer: (-[\d.]+)", words(page, "coverage"))[1]) < -8


def dots(page):
    "Where the dots of the picture are, by latent."
    circles = page.locator("[data-widget=transport] circle")
    place = "(dot) => [dot.dataset.latent, [dot.getAttribute('cx'), dot.getAttribute('cy')]]"
    return dict(circles.evaluate_all(f"(all) => all.map({place})"))


@needs_browser
def test_transport_ends_in_the_words_that_python_writes(visit):
    page = visit("paper/flow", width=390)
    record = json.loads((SITE / "_static/data/flow.json").read_text())
    run, model, tokenizer = open_any_model(shipped_models()["english"])
    sampler = Sampler(model.vae, model.dit, tokenizer, run.sampling().replace(max_new_tokens=2))
    [generation] = sampler.generate([""], [record["seeds"][1]])
    control(page, "transport", "text").select_option("1")
    for place, token in enumerate(generation.tokens):
        control(page, "transport", "token").select_option(str(place))
        move(page, "transport", "time", 0)
        before = dots(page)
        started = words(page, "transport")
        assert "t = 1.00" in started
        move(page, "transport", "time", len(record["times"]) - 1)
        word = tokenizer.decode([token]).strip()
        assert f"at t = 0.00 the decoder reads “{word}”, in the end “{word}”" in words(page, "transport")
        assert f"in the end “{word}”" in started
        text = page.locator("[data-widget=transport] .text")
        assert text.locator("mark").text_content() == tokenizer.decode([token])
        assert text.text_content() == record["texts"][1]["text"]
        assert dots(page).keys() == before.keys()
        assert all(dots(page)[latent] != spot for latent, spot in before.items())
    assert "100 % read as they will" in words(page, "transport")
    assert f"show {100 * record['shares'][-1]:.0f} %" in words(page, "transport")


@needs_browser
def test_transport_turns_by_keys_and_by_hand_and_dots_are_chosen(visit):
    page = visit("paper/flow")
    picture = page.locator("[data-widget=transport] .space")
    picture.focus()
    before = dots(page)
    page.keyboard.press("ArrowRight")
    assert control(page, "transport", "turn").input_value() == "40"
    assert dots(page) != before
    page.keyboard.press("ArrowUp")
    assert control(page, "transport", "tilt").input_value() == "30"
    for _ in range(15): page.keyboard.press("ArrowRight")
    assert control(page, "transport", "turn").input_value() == "-170"
    box = picture.bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    page.mouse.down()
    page.mouse.move(box["x"] + 45, box["y"] + 5, steps=4)
    page.mouse.up()
    assert control(page, "transport", "turn").input_value() == "-150"
    front = page.locator("[data-widget=transport] circle").last   # nothing lies before it
    latent = int(front.get_attribute("data-latent"))
    front.click()
    texts = json.loads((SITE / "_static/data/flow.json").read_text())["texts"]
    length = len(texts[0]["points"])
    assert words(page, "transport").startswith(f"Text {latent // length + 1}, token {latent % length + 1}:")
    assert control(page, "transport", "token").input_value() == str(latent % length)


@needs_browser
def test_density_is_pythons_step_by_step(visit, recorder):
    page = visit("paper/estimators", width=390)
    run, model, tokenizer = open_any_model(shipped_models()["english"])
    start = sampler_start(run)
    scorer = SamplerScorer(model, start, recorder.solve_of("rademacher"))
    x = scorer.texts([tokenizer.encode(recorder.TEXT)])
    latents, _ = scorer.infer(x, stream(0, "latents"))
    density = scorer.log_prior(x, latents, stream(0, "probes")).log_prob.item()
    move(page, "density", "probes", recorder.PROBES)
    said = words(page, "density").replace("−", "-")
    guessed, off = map(float, re.search(r"by the probes (\S+), off by (\S+)\.", said).groups())
    exact = float(re.search(r"so log p = (\S+) nats", said)[1])
    assert guessed == pytest.approx(density, abs=0.02)
    assert guessed - exact == pytest.approx(off, abs=0.011)
    assert 0 < abs(off) < 30
    control(page, "density", "kind").select_option("gaussian")
    assert words(page, "density").replace("−", "-") != said
    control(page, "density", "latent").select_option("3")
    move(page, "density", "step", 5)
    record = json.loads((SITE / "_static/data/density.json").read_text())
    line = record["sums"]["exact"][3][0]
    assert f"Added up so far: {line[5]:+.2f} nats" in words(page, "density").replace("−", "-")
    assert f"spreads by {line[5] - line[4]:+.2f} nats" in words(page, "density").replace("−", "-")


@needs_browser
def test_without_javascript_the_densities_stand_in_a_table(visit):
    page = visit("paper/estimators", script=False)
    record = json.loads((SITE / "_static/data/density.json").read_text())
    rows = page.locator("[data-widget=density] tbody tr")
    assert rows.count() == len(record["tokens"])
    *_, last = rows.last.inner_text().split("\t")
    assert float(last) == pytest.approx(record["normal"][-1] + record["sums"]["exact"][-1][0][-1], abs=0.006)


@needs_browser
def test_bounds_are_those_of_the_figures(visit):
    page = visit("paper/estimators")
    table = pd.read_csv(ROOT / "figures/likelihood.csv").set_index("quantity")
    move(page, "bounds", "k", 3)
    said = words(page, "bounds").replace("−", "-")
    row, truth = table.loc["IWAE_8"], table.loc["log p(x), exact"].value
    assert f"K = 8: IWAE {row.value:.2f} ({row.low:.2f} to {row.high:.2f}) nats; the truth is {truth:.2f}" in said
    assert f"rose by {row.value - table.loc['ELBO'].value:.2f} nats" in said
    control(page, "bounds", "case").select_option("trained model, text 2")
    seeds = [json.loads(path.read_text())[1] for path in (ROOT / "data/results/likelihood/tiny").glob("*.json")]
    mean = sum(seed["iwae_8"] for seed in seeds) / len(seeds)
    said = words(page, "bounds").replace("−", "-")
    assert f"K = 8: IWAE {mean:.2f} nats; the truth is {seeds[0]['truth']:.2f}" in said
    control(page, "bounds", "case").select_option("toy that can be solved")
    toy = pd.read_csv(ROOT / "figures/theory_b.csv").query("series == 'IWAE - log p(x)' and x == 8").iloc[0]
    assert f"K = 8: IWAE {toy.value:.4f}" in words(page, "bounds").replace("−", "-")


@needs_browser
def test_budget_adds_up(visit):
    page = visit("paper/elbo", width=390)
    table = pd.read_csv(ROOT / "figures/likelihood.csv").set_index("quantity")
    said = words(page, "budget").replace("−", "-")
    fine, elbo = table.loc["- prior KL"], table.loc["ELBO"]
    assert f"prior KL {-fine.value:.2f} ({-fine.high:.2f} to {-fine.low:.2f}) nats" in said
    assert f"the ELBO is {elbo.value:.2f} ({elbo.low:.2f} to {elbo.high:.2f})" in said
    move(page, "budget", "dial", 1)
    seeds = [json.loads(path.read_text())[0] for path in (ROOT / "data/results/likelihood/tiny").glob("*.json")]
    assert f"prior KL {sum(seed['prior_kl'] for seed in seeds) / len(seeds):.2f} nats" in words(page, "budget")
    control(page, "budget", "case").select_option("toy: the latent names the text")
    toy = pd.read_csv(ROOT / "figures/theory_c.csv").query("label == 'invertible'")
    toy = toy.pivot(index="x", columns="panel", values="value")
    truths = set()
    for at, (_, row) in enumerate(toy.iterrows()):
        move(page, "budget", "dial", at)
        said = words(page, "budget").replace("−", "-")
        cost, rate, fine = row["A10 cost"], row["A10 rate"], row["A10 prior"]
        assert f"rate {rate:.2f}" in said and f"prior KL {fine:.2f} nats" in said
        assert f"The parts give {-cost - rate - fine:.2f}; the ELBO is {-cost - rate - fine:.2f}" in said
        truths.add(round(cost + rate, 2))
    assert len(truths) == 1


PROMPT = "Once upon a time"


@functools.cache
def written_by_python(**settings):
    "Ids that the shipped model writes with seed 3."
    run, model, tokenizer = open_any_model(shipped_models()["english"])
    sampler = Sampler(model.vae, model.dit, tokenizer, run.sampling().replace(**settings))
    return sampler.generate([PROMPT], [3])[0].tokens


def await_state(page, *states):
    page.wait_for_function("(states) => states.includes(document.querySelector('[data-widget=cola]').dataset.state)", arg=list(states), timeout=120_000)


def written_ids(page):
    return json.loads(page.locator("[data-widget=cola]").get_attribute("data-ids"))


@needs_browser
def test_cola_writes_pythons_ids_at_390_pixels_by_keys(visit):
    page = visit("write", width=390)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    control(page, "cola", "prompt").fill(PROMPT)
    control(page, "cola", "seed").fill("3")
    control(page, "cola", "steps").select_option("8")
    move(page, "cola", "tokens", 12)
    control(page, "cola", "seed").focus()
    page.keyboard.press("Tab")
    began = time.monotonic()
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('[data-widget=cola] .open')?.textContent", timeout=60_000)
    waited = time.monotonic() - began
    await_state(page, "done")
    assert written_ids(page) == written_by_python(steps=8, max_new_tokens=12)
    assert any(url.endswith("step.onnx") for url in asked), "the worker's requests are not seen"
    assert waited < 20   # 2 to 3 seconds on a free core
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    drafts = page.locator("[data-widget=cola] .path li")
    move(page, "cola", "view", 1)
    assert drafts.first.inner_text().startswith("t = 0.9")
    tokenizer = Tokenizer.load(shipped_models()["english"] / "tokenizer.json")
    assert drafts.last.locator("code").inner_text().strip() == tokenizer.decode(written_ids(page)[:1]).strip()


@needs_browser
def test_cola_follows_its_dials_and_stops(visit):
    page = visit("write")
    control(page, "cola", "seed").fill("3")
    control(page, "cola", "steps").select_option("8")
    move(page, "cola", "tokens", 12)
    move(page, "cola", "guidance", 1)
    control(page, "cola", "go").click()
    await_state(page, "done")
    assert written_ids(page) == written_by_python(steps=8, max_new_tokens=12, guidance_scale=1.0) != written_by_python(steps=8, max_new_tokens=12)
    move(page, "cola", "tokens", 64)
    control(page, "cola", "go").click()
    page.wait_for_function("JSON.parse(document.querySelector('[data-widget=cola]').dataset.ids).length > 1", timeout=60_000)
    control(page, "cola", "go").click()
    await_state(page, "stopped")
    assert 2 <= len(written_ids(page)) < 64
    control(page, "cola", "prompt").fill("")   # a text from nothing, right after a stop: nothing of the old one comes in
    move(page, "cola", "tokens", 4)
    control(page, "cola", "go").click()
    await_state(page, "done")
    assert len(written_ids(page)) == 4
    assert words(page, "cola").startswith("Done: 4 tokens")


@needs_browser
def test_without_javascript_the_text_of_the_readme_stays(visit):
    page = visit("write", script=False)
    text = page.locator("[data-widget=cola] .still").inner_text()
    assert text.startswith(PROMPT)
    assert text.removeprefix(PROMPT) in (ROOT / "README.md").read_text()
    assert len(text) > 100


@needs_browser
def test_pages_fit_phones_and_screens_and_say_no_error(visit, address):
    page = visit("index")
    for name in PAGES:
        page.goto(f"{address}/{name}.html")
        page.wait_for_function("document.documentElement.dataset.widgets === 'ready'")
        assert page.locator("[data-ready=no]").count() == 0, name
        for width in (390, 1440):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{name} at {width}"


@needs_browser
@pytest.mark.parametrize("name", [
    "paper/rq3", "paper/appendix_f", "paper/noise_to_text", "paper/discussion", "paper/flow", "paper/elbo"])
def test_without_javascript_the_picture_stays(visit, name):
    page = visit(name, script=False)
    stills = page.locator("[data-widget] img.still")
    assert stills.count() == page.locator("[data-widget]").count() > 0
    for still in stills.all():
        assert (SITE / name).parent.joinpath(still.get_attribute("src")).resolve().exists()
        assert len(still.get_attribute("alt")) > 20


@needs_browser
def test_search_finds(visit, address):
    page = visit("index")
    page.goto(f"{address}/search.html?q=hutchinson")
    page.wait_for_selector("#search-results li a")
    assert "estimators" in " ".join(link.get_attribute("href") for link in page.locator("#search-results li a").all())


@needs_browser
@pytest.mark.skipif(not AXE.exists(), reason="no axe-core: run `make site`")
@pytest.mark.parametrize("name", [
    "index", "scorecard", "paper/rq3", "paper/discussion", "paper/appendix_f", "paper/noise_to_text", "paper/flow", "paper/elbo",
    "paper/estimators", "write"])
def test_accessible(visit, name):
    page = visit(name)
    page.add_script_tag(path=str(AXE))
    found = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
    serious = [f"{rule['id']}: {rule['nodes'][0]['html'][:150]}" for rule in found if rule["impact"] in ("serious", "critical")]
    assert not serious
