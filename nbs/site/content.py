"What the pages quote from committed files: verdicts, rules of the running campaign, figures, notebooks, symbols."

import functools
import html
import json
import re
from functools import cached_property

import nbformat
import pandas as pd
from ruamel.yaml import YAML

from colanb.evidence.report import read_verdicts

VERDICTS = {"R": "reproduced", "NR": "not reproduced", "U": "undecided", "NT": "without a verdict"}
SECTIONS = {
    "A": "Theory", "B": "RQ1 global structure", "C": "RQ2 latent space", "D": "RQ3 diffusion process", "E": "RQ4 scaling", "F": "Discussion",
}


def number_of(claim):
    "Claims in the order of counting: A2 before A10."
    return claim[0], int(re.search(r"\d+", claim)[0]), claim


def title_and_blurb(path):
    "A notebook's title and the line that says what it is about."
    lines = nbformat.read(path, as_version=4).cells[0].source.split("\n")
    blurb = next((line[1:].strip() for line in lines if line.startswith(">")), "")
    return lines[0].lstrip("# "), blurb


def scorecard_rows(text):
    "Claims in the committed scorecard, as records."
    for line in text.split("\n"):
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if not re.fullmatch(r"[A-F]\d+", cells[0]): continue
        fields = ("claim", "text", "paper", "ours", "criterion", "verdict", "note")
        record = dict(zip(fields, cells))
        yield {**record, "verdict": record["verdict"].strip("*"), "figure": "scorecard"}


class Content:
    "Macros for a page that lies `depth` folders below the home page; `data` is the folder of the widgets' numbers."

    def __init__(self, root, depth, data):
        self.root = root
        self.data = data
        self.up = "../" * depth

    def macros(self):
        "What a page may call."
        names = (
            "claims", "counts", "symbols", "widget", "picture", "notebooks", "gallery", "scorecard", "open_rules",
            "share", "sample", "drawn", "densities", "recorded")
        return {name: getattr(self, name) for name in names}

    @cached_property
    def verdicts(self):
        "Claim -> its record and the figure it comes from, of the main profile."
        judged = read_verdicts(self.root / "figures").fillna("").rename(columns={"slug": "figure"})
        found = {record["claim"]: record for record in judged.to_dict("records")}
        for record in scorecard_rows((self.root / "figures/scorecard.md").read_text()):
            found.setdefault(record["claim"], record)   # those that no figure judges
        return dict(sorted(found.items(), key=lambda pair: number_of(pair[0])))

    @cached_property
    def rules(self):
        "Claim -> the rule by which the running campaign will judge it."
        return YAML(typ="safe").load((self.root / "nbs/exp/claims.yaml").read_text())["claims"]

    @cached_property
    def symbol_table(self):
        "Name -> symbol and meaning."
        return YAML(typ="safe").load((self.root / "nbs/site/symbols.yaml").read_text())

    def chosen(self, names):
        "Ids of claims: names, or a letter for all of a section."
        for name in names.split():
            yield from [claim for claim in self.verdicts if claim[0] == name] if len(name) == 1 else [name]

    def rule_text(self, claim):
        "What the campaign will do about a claim, if it has a rule."
        rule = self.rules.get(claim)
        if not rule: return ""
        if not rule.get("checks"): return rule.get("untested", "")
        checks = len(rule["checks"])
        return f"study {rule['study']}, measured by {rule['metric']}, {rule['seeds']} seeds, {checks} check{'s' * (checks != 1)}"

    def claim_entry(self, claim):
        "A claim that opens to show its evidence."
        record = self.verdicts[claim]
        verdict = record["verdict"]
        rows = {
            "Criterion": record["criterion"], "The paper": record["paper"], "Here": record["ours"], "Note": record.get("note", ""),
            "Cost": record.get("compute", ""), "Results": record.get("results", ""), "Running campaign": self.rule_text(claim),
        }
        shown = "".join(f"<dt>{name}</dt><dd>{html.escape(str(text))}</dd>" for name, text in rows.items() if text)
        link = f'<dt>Figure</dt><dd><a href="{self.up}figures/{record["figure"]}.html">executed notebook {record["figure"]}</a></dd>'
        head = f'<span class="code">{claim}</span> <span class="words">{html.escape(record["text"])}</span>'
        return (f'<details class="claim" id="claim-{claim}" data-verdict="{verdict}" data-section="{claim[0]}"><summary>'
                f'<span class="verdict {verdict}">{VERDICTS[verdict]}</span> {head}</summary><dl>{shown}{link}</dl></details>')

    def claims(self, names):
        "Claims with their verdicts; each opens to show its evidence."
        return raw("".join(self.claim_entry(claim) for claim in self.chosen(names)))

    def counts(self, verdict=None, section=""):
        "How many claims have a verdict, or how many there are, of a section or all."
        chosen = [record for claim, record in self.verdicts.items() if claim.startswith(section)]
        return sum(verdict in (None, record["verdict"]) for record in chosen)

    def scorecard(self):
        "All claims by section, for the widget that filters them."
        parts = [f"<h3>{SECTIONS[letter]}</h3>" + "".join(map(self.claim_entry, self.chosen(letter))) for letter in SECTIONS]
        groups = "".join(f'<section class="group">{part}</section>' for part in parts)
        return raw(f'<div class="widget-scorecard" data-widget="scorecard">{groups}</div>')

    def symbols(self, names):
        "A legend of the symbols of a page."
        rows = [f"| ${self.symbol_table[name][0]}$ | {self.symbol_table[name][1]} |" for name in names.split()]
        return "\n".join(["| Symbol | Meaning |", "| --- | --- |", *rows])

    def picture(self, figure, alt=None):
        "A committed figure with a link to the notebook that draws it."
        title, blurb = title_and_blurb(self.root / f"figures/{figure}.ipynb")
        words = html.escape(alt or f"Figure: {blurb or title}", quote=True)
        return raw(f'<figure class="picture"><a href="{self.up}figures/{figure}.html"><img loading="lazy" alt="{words}" '
                   f'src="{self.up}_static/figures/{figure}.svg"></a><figcaption>Drawn by the notebook <a href="{self.up}figures/{figure}.html">'
                   f"{html.escape(title)}</a></figcaption></figure>")

    def widget(self, kind, label, figure=None, source=None, still="", **options):
        "A place for a widget: without JavaScript the committed figure stays, or what is given as `still`."
        if figure:
            blurb = html.escape(title_and_blurb(self.root / f"figures/{figure}.ipynb")[1], quote=True)
            still = f'<img class="still" loading="lazy" alt="Figure: {blurb}" src="{self.up}_static/figures/{figure}.svg">'
        data = f' data-source="{self.up}_static/data/{source}.json"' if source else ""
        extra = "".join(f' data-{name}="{html.escape(str(value), quote=True)}"' for name, value in options.items())
        return raw(f'<section class="widget" data-widget="{kind}" aria-label="{html.escape(label, quote=True)}"{data}{extra}>{still}</section>')

    def drawn(self, name, alt):
        "A picture that the build draws beside a widget's numbers."
        words = html.escape(alt, quote=True)
        return f'<img class="still" loading="lazy" alt="{words}" src="{self.up}_static/data/{name}.svg">'

    def recorded(self, name):
        "A widget's numbers."
        return json.loads((self.data / f"{name}.json").read_text())

    def densities(self):
        "The density of each latent of a text, and what it is made of."
        record = self.recorded("density")
        rows = []
        for token, normal, [line] in zip(record["tokens"], record["normal"], record["sums"]["exact"]):
            cells = "".join(f"<td>{number:.2f}</td>" for number in (normal, line[-1], normal + line[-1]))
            rows.append(f"<tr><th scope=\"row\">{html.escape(token)}</th>{cells}</tr>")
        names = "Token", "log N at the end", "divergence added up", "log p, nats"
        heads = "".join(f'<th scope="col">{name}</th>' for name in names)
        table = f'<table><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
        return f'<div class="still table-wrapper">{table}</div>'

    def sample(self):
        "What the shipped model wrote, as the readme quotes it."
        [prompt, text] = re.search(r"^> \*\*(.+?)\*\*(.+)$", (self.root / "README.md").read_text(), re.M).groups()
        return f'<div class="text still"><strong>{html.escape(prompt)}</strong>{html.escape(text)}</div>'

    def notebooks(self, names):
        "Links to notebooks of the library (folder/name) or executed figures (figures/name), with what they hold."
        lines = []
        for name in names.split():
            path = self.root / (f"{name}.ipynb" if name.startswith("figures/") else f"nbs/{name}.ipynb")
            title, blurb = title_and_blurb(path)
            lines.append(f"- [{title}](/{path.relative_to(self.root)}): {blurb}")
        return "\n".join(lines)

    def gallery(self):
        "All figures, small, each with its question."
        cards = []
        for path in sorted((self.root / "figures").glob("*.svg")):
            title, blurb = title_and_blurb(path.with_suffix(".ipynb"))
            cards.append(f'<a class="card" href="{self.up}figures/{path.stem}.html"><img loading="lazy" alt="" src="{self.up}_static/figures/{path.name}">'
                         f"<span>{html.escape(title)}</span></a>")
        return raw(f'<div class="gallery">{"".join(cards)}</div>')

    def share(self, figure, interval=True, unit=100, **where):
        "A measured value of a figure's table with its interval, in per cent: the one row in which the columns have these values."
        table = self.tables(figure)
        for column, value in where.items():
            table = table[table[column.replace("__", ".")] == value]
        if len(table) != 1: raise ValueError(f"{figure}.csv has {len(table)} rows with {where}, and should have 1")
        row = table.iloc[0]
        number = f"{unit * row.value:.3g}"
        return f"{number} ({unit * row.low:.3g} to {unit * row.high:.3g})" if interval else number

    @functools.cache
    def tables(self, figure):
        "The table behind a figure."
        return pd.read_csv(self.root / f"figures/{figure}.csv")

    def open_rules(self):
        "Every rule of the running campaign."
        rows = ["| Claim | What it says | Study | Seeds | Why this rule |", "| --- | --- | --- | --- | --- |"]
        for name, rule in self.rules.items():
            words = [str(rule.get(field, "")).replace("|", "/").replace("$", "\\$") for field in ("text", "study", "seeds", "why")]
            rows.append(f"| {name} | {' | '.join(words)} |")
        return "\n".join(rows)


def raw(text):
    "HTML for a page."
    return f"```{{raw}} html\n{text}\n```"
