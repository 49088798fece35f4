"What the widgets show, as JSON from committed tables: our measurements with intervals, the paper's digitised points, texts that models wrote."

import json
from collections import defaultdict

import pandas as pd

LABELS = {
    "average": "average of the eight tasks", "lambada": "LAMBADA", "squad": "SQuAD", "story_cloze": "Story Cloze", "mmlu": "MMLU", "obqa": "OBQA",
    "race": "RACE", "siqa": "SIQA", "hellaswag": "HellaSwag", "grammatical": "sentences grammatical", "consistent": "stories consistent",
    "reconstruction": "tokens read back",
}
PANELS = {"Tasks Average": "average", "Text reconstruction accuracy": "reconstruction"} | {text: name for name, text in LABELS.items()}
STRATEGIES = {   # the paper's names of Table 5
    "clean": "clean history", "left_pad": "padding on the left", "right_pad": "padding on the right",
} | {f"partial_t{t}_m{m}": f"partial repaint, t={t}, m={m}" for t in (1, 3) for m in ("1.0", "0.7", "0.3")}


def points(table, columns):
    "Rows of plain numbers, in the order of the first column; what is not known is null."
    rows = table.sort_values(columns[0])[columns].round(5).values.tolist()
    return [[None if value != value else value for value in row] for row in rows]


def by_series(table, series, columns, scale):
    "Measure -> series -> points; numbers but x and n in per cent."
    measured = [column for column in columns[1:] if column != "n"]
    table = table.assign(**{column: table[column] * scale for column in measured})
    found = defaultdict(dict)
    for (metric, name), part in table.groupby(["metric", series], sort=False):
        found[metric][str(name)] = points(part, columns)
    return {metric: found[metric] for metric in LABELS if metric in found}


def ours_of(root, figure, series):
    "The curves of a figure's table."
    table = pd.read_csv(root / f"figures/{figure}.csv")
    if not series: table, series = table.assign(own="Cola DLM"), "own"
    return by_series(table, series, ["x", "value", "low", "high", "n"], 100)


def paper_of(root, name, series=None, scale=1, x="x"):
    "The paper's digitised curves, by the same measures."
    table = pd.read_csv(root / f"data/paper/{name}.csv").dropna(subset="y")
    table["metric"] = table.panel.map(PANELS)
    table = table.dropna(subset="metric")
    table["x"] = x(table) if callable(x) else table[x]
    if not series: table, series = table.assign(own="the paper"), "own"
    return by_series(table, series, ["x", "y"], scale)


def block_sizes(root):
    "Fig 6, with the block size on the axis and a curve for each checkpoint."
    table = pd.read_csv(root / "data/paper/Fig6_rq3_block_size.csv")
    table["metric"] = table.panel.map(PANELS)
    table["x"] = table.series.str.removeprefix("block size=").astype(int)
    table["own"] = "step " + table.x_steps.astype(str)
    return by_series(table, "own", ["x", "y"], 1)


def shifts(root):
    "Fig 2: points below the best loc, for each dimension."
    table = pd.read_csv(root / "data/paper/Fig2_rq1_timeshift.csv")
    table = table[table.panel.str.startswith("Normalized")].assign(metric="average")
    return by_series(table, "series", ["x", "y"], 1)


def logsnr_table(root):
    "Table 3, by budget."
    table = pd.read_csv(root / "data/paper/table3_vae_logsnr.csv").melt(["setting", "EFLOPs"], var_name="panel", value_name="y")
    table["metric"] = table.panel.replace({"Avg": "Tasks Average"}).map(PANELS)
    table["x"] = table.EFLOPs
    return by_series(table, "setting", ["x", "y"], 1)


def dials(root):
    "Every curve that a dial shows: x axis, ours, the paper's, and the files they come from."
    steps = paper_of(root, "Fig9a_rq3_denoising_steps")
    guidance = paper_of(root, "Fig9b_rq3_cfg")
    noise = paper_of(root, "Fig13_vae_robustness", scale=100, x=lambda table: table.x.abs() / 1000)
    strategies = paper_of(root, "Fig3_rq2_fixed_vs_evolving", "series", x="x_steps")
    scaling = paper_of(root, "Fig10_rq4_scaling", "series")

    blocks = pd.read_csv(root / "figures/rq3_block.csv").assign(step=lambda table: "step " + table.step.astype(str))
    blocks = by_series(blocks[blocks["flow.loc"] == 1.5], "step", ["x", "value", "low", "high", "n"], 100)
    dims = pd.read_csv(root / "figures/rq1.csv").assign(d=lambda table: "d=" + table.d.astype(str))
    training = pd.read_csv(root / "figures/rq2.csv").drop(columns="x").rename(columns={"step": "x"})
    training = by_series(training, "strategy", ["x", "value", "low", "high", "n"], 100)
    return {
        "rq1": ("loc", "loc", False, by_series(dims, "d", ["x", "value", "low", "high", "n"], 100), shifts(root),
                "figures/rq1.csv data/paper/Fig2_rq1_timeshift.csv"),
        "rq2": ("step", "step", False, training, strategies, "figures/rq2.csv data/paper/Fig3_rq2_fixed_vs_evolving.csv"),
        "rq2_logsnr": ("step", "EFLOPs", False, ours_of(root, "rq2_logsnr", "logsnr"), logsnr_table(root),
                       "figures/rq2_logsnr.csv data/paper/table3_vae_logsnr.csv"),
        "rq3_steps": ("denoising steps", "denoising steps", True, ours_of(root, "rq3_steps", None), steps,
                      "figures/rq3_steps.csv data/paper/Fig9a_rq3_denoising_steps.csv"),
        "rq3_cfg": ("guidance scale", "guidance scale", False, ours_of(root, "rq3_cfg", None), guidance,
                    "figures/rq3_cfg.csv data/paper/Fig9b_rq3_cfg.csv"),
        "rq3_block": ("block size", "block size", True, blocks, block_sizes(root), "figures/rq3_block.csv data/paper/Fig6_rq3_block_size.csv"),
        "rq4": ("step", "EFLOPs", True, ours_of(root, "rq4", "family"), scaling, "figures/rq4.csv data/paper/Fig10_rq4_scaling.csv"),
        "vae_robustness": ("noise t", "noise t", False, ours_of(root, "vae_robustness", None), noise,
                           "figures/vae_robustness.csv data/paper/Fig13_vae_robustness.csv"),
    }


def dial_record(x, paper_x, log, ours, paper, sources):
    "A dial's file."
    labels = {metric: LABELS[metric] for metric in ours}
    return {"x": x, "paper_x": paper_x, "log": log, "labels": labels, "ours": ours, "paper": paper, "sources": sources.split()}


def times_record(root):
    "Scores by loc at d=16, those of uniform times, and the means of t that the sampler of training gave."
    shifted = pd.read_csv(root / "figures/rq1.csv").query("d == 16 and metric == 'average'")
    even = pd.read_csv(root / "figures/rq3_schedule.csv").query("setting == 'Fix uniform' and metric == 'average' and x == 400")
    drawn = pd.read_csv(root / "figures/theory_h.csv")
    return {
        "scores": points(shifted, ["x", "value", "low", "high", "n"]),
        "uniform": points(even, ["value", "low", "high", "n"])[0],
        "drawn": points(drawn, ["loc", "scale", "mean", "low", "high"]),
        "sources": ["figures/rq1.csv", "figures/rq3_schedule.csv", "figures/theory_h.csv"],
    }


def noise_record(root):
    "Traces of the main model and of the one trained on books: for each text its steps, block, time, text."
    models = {"tiny": "made-up language", "books": "children's books"}
    traces = {label: json.loads((root / f"data/results/noise_to_text/{name}/traces.json").read_text()) for name, label in models.items()}
    sources = [f"data/results/noise_to_text/{name}/traces.json" for name in models]
    return {"models": traces, "sources": sources}


def strategy_of(row):
    "A setting's name in Table 5, nothing for others."
    if row.get("first_block") == "repaint":
        return f"partial_t{int(row['repaint_rounds'])}_m{float(row['repaint_m'])}"
    return row.get("first_block")


def recorded_rows(root, study):
    "Rows of a study's runs in the store that keep what the model wrote, with the run's settings."
    for path in sorted((root / "data/results/runs/tiny").glob("*.json")):
        record = json.loads(path.read_text())
        if record.get("study") == study:
            yield from (({**row, "run": record["run"]}) for row in record["rows"] if "examples" in row)


def written_texts(rows, name_of):
    "Name -> measure -> seed -> texts."
    found = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        name = name_of(row)
        if name and row["metric"] in LABELS:
            found[name][row["metric"]][str(row["seed"])] = row["examples"][:3]
    return found


def written_record(root):
    "Scores and texts of the strategies for the first block."
    table = pd.read_csv(root / "figures/first_block.csv")
    scores = {name: {row.metric: [row.value, row.low, row.high, row.n] for row in part.itertuples() if row.metric in LABELS}
              for name, part in table.groupby("strategy")}
    texts = written_texts(recorded_rows(root, "sampling"), strategy_of)
    paper = pd.read_csv(root / "data/paper/table5_first_block.csv").set_index("task").loc["Avg"]
    return {
        "names": STRATEGIES, "labels": LABELS, "scores": scores, "texts": texts, "paper": paper.to_dict(),
        "sources": ["figures/first_block.csv", "data/results/runs/tiny", "data/paper/table5_first_block.csv"],
    }


def patch_record(root):
    "Scores by patch size and parity, with the paper's Table 6."
    ours = pd.read_csv(root / "figures/patch.csv").set_index("model")
    paper = pd.read_csv(root / "data/paper/table6_patch_size.csv").set_index("task").loc["Avg"]
    names = {"overall": "overall", "even length": "mod0", "odd length": "mod1"}
    paper = {f"patch {size}": {kind: paper[f"{column}_p{size}"] for kind, column in names.items()} for size in (1, 2)}
    ours = {model: {kind: 100 * row[kind] for kind in names} for model, row in ours.iterrows()}
    return {"kinds": list(names), "ours": ours, "paper": paper, "sources": ["figures/patch.csv", "data/paper/table6_patch_size.csv"]}


def coverage_record(root):
    "The scores that the notebook of Appendix F drew, to stand beside those of the page."
    table = pd.read_csv(root / "figures/theory_f.csv")
    return {"drawn": points(table, ["sd", "score", "low", "high"]), "sources": ["figures/theory_f.csv"]}


def measured_texts(root):
    "What each seed of the main model gave for each text: bounds, parts, truth."
    files = sorted((root / "data/results/likelihood/tiny").glob("*.json"))
    table = pd.concat([pd.read_json(path) for path in files], ignore_index=True)
    return table[table.kind == "text"]


def interval_of(table, name):
    "A quantity of a figure's table with its interval."
    row = table.loc[name]
    return [row.value, row.low, row.high]


def alone(value):
    "A number without an interval."
    return [float(value), None, None]


def bounds_record(root):
    "ELBO and IWAE over the number of draws: of the trained model, all texts and each, and of a toy that can be solved."
    table = pd.read_csv(root / "figures/likelihood.csv").set_index("quantity")
    sizes = [int(name.removeprefix("IWAE_")) for name in table.index if name.startswith("IWAE_")]
    count = int(table.loc["ELBO"].n)
    mean = {
        "bounds": [[k, *interval_of(table, f"IWAE_{k}")] for k in sizes], "truth": table.loc["log p(x), exact"].value,
        "unit": "nats per text", "about": f"Means over {count} pairs of seed and text, with 95 % intervals.",
    }
    cases = {"trained model, all texts": mean}
    for item, part in measured_texts(root).groupby("item"):
        means = part.mean(numeric_only=True)
        cases[f"trained model, text {int(item) + 1}"] = {
            "bounds": [[k, *alone(means[f"iwae_{k}"])] for k in sizes], "truth": means.truth, "unit": "nats",
            "about": f"Means over {len(part)} seeds of a text of {means.words:.0f} words.",
        }
    toy = pd.read_csv(root / "figures/theory_b.csv").query("series == 'IWAE - log p(x)'")
    cases["toy that can be solved"] = {
        "bounds": points(toy, ["x", "value", "low", "high"]), "truth": 0.0, "unit": "above the truth",
        "about": f"Distance to log p(x) of {toy.n.iloc[0]:.0f} texts of a linear-Gaussian model, with 95 % intervals.",
    }
    sources = ["figures/likelihood.csv", "data/results/likelihood/tiny", "figures/theory_b.csv"]
    return {"cases": cases, "sources": sources}


def trained_settings(root):
    "Parts of the trained model's ELBO: of all texts with intervals, then of each text."
    table = pd.read_csv(root / "figures/likelihood.csv").set_index("quantity")
    names = {"reconstruction": "reconstruction", "elbo": "ELBO", "truth": "log p(x), exact"}
    mean = {name: interval_of(table, quantity) for name, quantity in names.items()}
    for name, quantity in {"rate": "- rate", "prior": "- prior KL"}.items():
        value, low, high = interval_of(table, quantity)
        mean[name] = [-value, -high, -low]
    yield {"label": "all texts", "x": None, **mean}
    for item, part in measured_texts(root).groupby("item"):
        means = part.mean(numeric_only=True).rename({"prior": "log_prior", "prior_kl": "prior"})
        parts = {name: alone(means[name]) for name in ("reconstruction", "rate", "prior", "elbo", "truth")}
        yield {"label": f"text {int(item) + 1}", "x": int(item) + 1, **parts}


def toy_settings(table, code):
    "Parts of a toy's ELBO over the noise of its encoder, with the best decoder and a standard normal prior."
    own = table[table.label == code]
    parts = {panel: own[own.panel == f"A10 {panel}"].set_index("x") for panel in ("rate", "cost", "prior")}
    truth = -table[(table.panel == "bound") & (table.label == "AR")].value.item()     # AR pays the language's entropy
    for x in sorted(parts["rate"].index):
        cost, rate = (interval_of(parts[panel], x) for panel in ("cost", "rate"))
        prior = float(parts["prior"].loc[x].value)
        yield {
            "label": f"noise {x:.2g}", "x": float(f"{x:.2g}"), "rate": rate, "prior": alone(prior),
            "reconstruction": [-cost[0], -cost[2], -cost[1]], "elbo": alone(-cost[0] - rate[0] - prior), "truth": alone(truth),
        }


def budget_record(root):
    "The ELBO in parts: of the trained model, text by text, and of two toys, over the noise of their encoders."
    table = pd.read_csv(root / "figures/theory_c.csv")
    trained = {
        "settings": list(trained_settings(root)), "dial": "text", "curves": ["elbo", "truth"], "log": False,
        "about": "Trained model,",
    }
    toys = {
        f"toy: the latent names the {name}": {
            "settings": list(toy_settings(table, code)), "dial": "noise of the encoder",
            "curves": ["reconstruction", "rate", "prior"], "log": True, "top": 12, "about": "Toy,",
        }
        for name, code in {"text": "invertible", "factors": "factors only"}.items()
    }
    sources = ["figures/likelihood.csv", "data/results/likelihood/tiny", "figures/theory_c.csv"]
    return {"cases": {"trained model": trained, **toys}, "sources": sources}


def write_data(root, out):
    "Write the widgets' files."
    out.mkdir(parents=True)
    records = {name: dial_record(*parts) for name, parts in dials(root).items()}
    records |= {
        "times": times_record(root), "noise_to_text": noise_record(root), "first_block": written_record(root), "patch": patch_record(root),
        "coverage": coverage_record(root), "bounds": bounds_record(root), "budget": budget_record(root),
    }
    for name, record in records.items():
        (out / f"{name}.json").write_text(json.dumps(record, allow_nan=False))
