"""The site in a browser: every widget changes what it should, nothing is asked of another host, no link is dead.

Skipped without a built site (`make site`), without the packages of the extra `site`, or without Chromium (Debian: apt-get install chromium)."""
import functools
import http.server
import json
import re
import shutil
import subprocess
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest
import torch
from torch.distributions import Normal, SigmoidTransform, TransformedDistribution

from colanb.lab.analytic import gaussian_mixture

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "_site"
WIDGETS = ROOT / "nbs/site/static/widgets"
AXE = ROOT / ".scratch/site/npm/node_modules/axe-core/axe.min.js"
PAGES = sorted(path.relative_to(ROOT / "nbs/site/pages").with_suffix("").as_posix() for path in (ROOT / "nbs/site/pages").rglob("*.md"))
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

built = pytest.mark.skipif(not SITE.exists(), reason="no _site: run `make site` first")
needs_node = pytest.mark.skipif(not shutil.which("node"), reason="no node to run the page's formulas")
needs_browser = pytest.mark.skipif(not BROWSER or not SITE.exists(), reason="no Chromium, or no _site from `make site`")


# the page's formulas, in node

def in_node(expression):
    "The value of an expression over widgets/math.js."
    script = f"import * as m from {json.dumps((WIDGETS / 'math.js').as_uri())}; console.log(JSON.stringify({expression}))"
    done = subprocess.run(["node", "--input-type=module", "-e", script], capture_output=True, text=True, check=True)
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
@pytest.mark.parametrize("name", ["paper/rq3", "paper/appendix_f", "paper/noise_to_text", "paper/discussion"])
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
@pytest.mark.parametrize("name", ["index", "scorecard", "paper/rq3", "paper/discussion", "paper/appendix_f", "paper/noise_to_text"])
def test_accessible(visit, name):
    page = visit(name)
    page.add_script_tag(path=str(AXE))
    found = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
    serious = [f"{rule['id']}: {rule['nodes'][0]['html'][:150]}" for rule in found if rule["impact"] in ("serious", "critical")]
    assert not serious
