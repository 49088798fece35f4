"Claims: rules fixed before the runs, carried out on a store of made-up results."
import json
import math

import numpy as np
import pandas as pd
import pytest

from colanb.config import load_profile
from colanb.evidence import claims
from colanb.evidence.claims import Check, Claim, Claims, chosen, criterion_text, field_value, jackknife, judge_claim, read_claims
from colanb.evidence.claims import seed_table, seeds_to_decide
from colanb.evidence.store import FIELDS, plan_of, run_text, settings_of, units_of

QUICK = load_profile(name="quick")
STUDY = {"base": "study", "corpus": "study", "seeds": list(range(8)), "checkpoints": [80], "settings": [{}, {"guidance_scale": 7.0}],
         "grid": [{"d_latent": [4, 16], "flow.loc": [0.0, 1.0, 2.0]}]}


@pytest.fixture
def store(tmp_path):
    "Scores: d/100 + .1 with the last step, -.05 * (loc - 1)^2, +.3 with guidance 7, noise of .01 for a seed, and less of it for a run."
    profile = QUICK.replace(studies={"made": STUDY})
    corpora = {"study": "key"}
    folder = tmp_path / profile.name
    folder.mkdir()
    (folder / "index.json").write_text(json.dumps({"corpora": corpora, "studies": {}}))
    rng = np.random.default_rng(3)
    of_seed = rng.normal(0, 0.05, 8)
    for unit in units_of(profile, corpora):
        d, loc = unit.changes["d_latent"], unit.changes["flow.loc"]
        rows = []
        for step, guidance in ((80, None), (160, None), (160, 7.0)):
            value = d / 100 + 0.1 * (step == 160) - 0.05 * (loc - 1) ** 2 + 0.3 * (guidance == 7.0)
            value += of_seed[unit.seed] + rng.normal(0, 0.005)
            setting = {"step": step} | ({"guidance_scale": guidance} if guidance else {})
            rows += [{"seed": unit.seed, **setting, "metric": name, "value": value + shift, "n": 1, "unit": "", "outcomes": [value]}
                     for name, shift in (("a", 0.0), ("b", 0.2))]
        values = (unit.study, settings_of(unit.run), unit.corpus, unit.seed, plan_of(profile, unit.study), {}, "", 1.0, rows)
        (folder / f"{unit.key}.json").write_text(run_text(dict(zip(FIELDS, values))))
    return profile, tmp_path


def judged(store, checks, seeds=8, measures=None, **more):
    profile, place = store
    claim = Claim(text="x", paper="y", study="made", metric="a", seeds=seeds, checks=checks, **more)
    rules = Claims(profile=profile.name, since="2026-01-01", measures=measures or {}, claims={"X1": claim})
    return judge_claim("X1", rules, profile, place).verdict


def contrast(plus, minus, rule="more", margin=0.05, **more):
    return {"statistic": "contrast", "plus": [plus], "minus": [minus], "rule": rule, "margin": margin, **more}


PLAIN = {"guidance_scale": 2.0}


def test_pairs_by_seed_and_decides_both_ways(store):
    higher = contrast({"d_latent": 16}, {"d_latent": 4}, where=PLAIN)
    found = judged(store, [higher])
    assert found.verdict == "R" and found.note == ""
    assert "n=8" in found.ours and found.ours.startswith("0.1")     # .12, though seeds differ by .05
    lower = contrast({"d_latent": 4}, {"d_latent": 16}, where=PLAIN)
    assert judged(store, [lower]).verdict == "NR"
    assert judged(store, [higher, lower]).verdict == "NR"
    assert judged(store, [contrast({"flow.loc": 0.0}, {"flow.loc": 2.0}, where=PLAIN, rule="near", margin=0.02)]).verdict == "R"
    assert judged(store, [contrast({"flow.loc": 0.0}, {"flow.loc": 2.0}, where=PLAIN, rule="more", margin=0.02)]).verdict == "NR"
    open_one = judged(store, [contrast({"flow.loc": 0.0}, {"flow.loc": 2.0}, where=PLAIN, rule="more", margin=0.0005)])
    assert open_one.verdict == "U" and "seeds would decide" in open_one.note


def test_correlation_of_two_measures(store):
    same = {"statistic": "correlation", "along": "d_latent", "metric": "a", "against": "b", "where": PLAIN, "rule": "more", "than": 0.9, "margin": 0.05}
    assert judged(store, [same]).verdict == "R"                  # b is a, moved
    assert judged(store, [{**same, "rule": "less", "than": 0.5}]).verdict == "NR"
    with pytest.raises(ValueError, match="needs along, against"): Check(statistic="correlation", rule="more", margin=0.1)


def test_peaks_slopes_ratios_and_steps(store):
    peak = {"statistic": "peak", "along": "flow.loc", "where": PLAIN, "rule": "near", "than": 1.0, "margin": 0.1}
    assert judged(store, [peak]).verdict == "R"
    assert judged(store, [{**peak, "than": 2.0}]).verdict == "NR"
    slope = {"statistic": "slope", "along": "d_latent", "where": PLAIN, "rule": "more", "than": 0.0, "margin": 0.02}
    assert float(judged(store, [slope]).ours.split()[0]) == pytest.approx(0.12 / math.log(4), abs=0.01)
    guided = contrast({"guidance_scale": 7.0}, {"guidance_scale": 2.0})
    assert float(judged(store, [guided]).ours.split()[0]) == pytest.approx(0.3, abs=0.01)
    later = contrast({"step": 160}, {"step": 80}, where=PLAIN)
    assert float(judged(store, [later]).ours.split()[0]) == pytest.approx(0.1, abs=0.01)
    ratio = {"statistic": "ratio", "plus": [{"guidance_scale": 7.0}], "minus": [PLAIN], "metric": "b", "rule": "more", "than": 1.0, "margin": 0.5}
    assert judged(store, [ratio]).verdict == "R"


def test_no_verdict_with_fewer_seeds_than_fixed_and_none_more_count(store):
    higher = contrast({"d_latent": 16}, {"d_latent": 4}, where=PLAIN)
    short = judged(store, [higher], seeds=9)
    assert (short.verdict, short.note) == ("U", "8 of 9 seeds are done")
    assert "n=5" in judged(store, [higher], seeds=5).ours
    profile, place = store
    for file in (place / profile.name).glob("*.json"):
        if file.stem != "index" and json.loads(file.read_text())["seed"] == 7: file.unlink()
    assert judged(store, [higher]).note == "7 of 8 seeds are done"


def test_what_cannot_be_read_is_undecided_with_the_reason(store):
    assert "measures none of ['c']" in judged(store, [contrast({"d_latent": 4}, {"d_latent": 16}, metric="c")]).note
    assert "no setting has {'d_latent': 5}" in judged(store, [contrast({"d_latent": 5}, {"d_latent": 16})]).note
    assert "'flow.lock'" in judged(store, [contrast({"flow.lock": 5}, {"d_latent": 16})]).note
    profile, place = store
    nothing = judge_claim("X1", Claims(profile="x", claims={"X1": Claim(text="x", paper="y", untested="too small")}), profile, place).verdict
    assert (nothing.verdict, nothing.note) == ("NT", "too small")


def test_a_draft_judges_nothing(store):
    profile, place = store
    claim = Claim(text="x", paper="y", study="made", metric="a", checks=[contrast({"d_latent": 16}, {"d_latent": 4}, where=PLAIN)])
    found = judge_claim("X1", Claims(profile="x", claims={"X1": claim}), profile, place).verdict
    assert found.verdict == "U" and "draft" in found.note


RULES = read_claims()


@pytest.mark.parametrize("name", [name for name, claim in RULES.claims.items() if claim.checks])
def test_rules_ask_for_runs_that_the_profile_has(name):
    "Every arm of every check is a run, a budget or a way of sampling of its study, and the study has the seeds."
    profile, claim = load_profile(name=RULES.profile), RULES.claims[name]
    for check in claim.checks:
        study = profile.studies[check.study or claim.study]
        assert claim.seeds <= len(study.seeds or profile.seeds)
        settings = []
        for _, run in profile.study_runs(check.study or claim.study):
            steps = [{"step": step} for step in study.checkpoints] if "step" in check.fields() else []
            for setting in (*study.settings, *steps):
                if "step" in check.fields() and "step" not in setting: continue
                settings.append({field: field_value({"run": settings_of(run)}, setting, field) for field in check.fields()})
        index = pd.MultiIndex.from_frame(pd.DataFrame(settings, columns=check.fields()).drop_duplicates())
        kept = index[chosen(index, check.where)]
        for arm in (*check.plus, *check.minus): assert chosen(kept, arm).any()
        for field in (check.along, check.over): assert field is None or len(set(kept.get_level_values(field))) >= 3
        assert criterion_text(check, check.metric or claim.metric)


def test_measures_are_averages_of_metrics(store):
    profile, place = store
    both = seed_table(profile, "made", claims.Measure(metrics=["a", "b"]), ["d_latent"], place)
    one = seed_table(profile, "made", claims.Measure(metrics=["a"]), ["d_latent"], place)
    assert np.allclose(both - one, 0.1)
    assert np.allclose(seed_table(profile, "made", claims.Measure(metrics=["a"], spread=True), ["d_latent"], place), 0)   # one outcome each
    named = judged(store, [contrast({"d_latent": 16}, {"d_latent": 4}, where=PLAIN, metric="both")], measures={"both": {"metrics": ["a", "b"]}})
    assert named.verdict == "R"


def test_several_checks_need_a_stricter_no():
    "One check of eight, just refused at 95 %, leaves the claim open."
    scores = pd.DataFrame([np.linspace(-1, 1, 8), np.zeros(8)], index=pd.MultiIndex.from_tuples([("p",), ("q",)], names=["arm"]))
    check = Check(statistic="contrast", plus=[{"arm": "p"}], minus=[{"arm": "q"}], rule="more", margin=0.65)
    assert claims.side(jackknife(check.value, scores), "more", 0, 0.65) == "NR"
    assert claims.side(jackknife(check.value, scores, 1 - 0.05 / 8), "more", 0, 0.65) == "U"
    one, eight = (claims.judge_scores(check, scores, claims.Measure(metrics=["a"]), 8, checks).verdict for checks in (1, 8))
    assert (one, eight) == ("NR", "U")


def test_seeds_to_decide_makes_the_interval_as_narrow_as_the_margin():
    rng = np.random.default_rng(0)
    table = pd.DataFrame([rng.normal(0, 1, 10)], index=["x"])
    found = jackknife(lambda mean: mean["x"], table)
    needed = seeds_to_decide(found, 0.5)
    spread = found.se * math.sqrt(10)
    width = lambda n: 2 * claims.stats.t.ppf(0.975, n - 1) * spread / math.sqrt(n)
    assert width(needed) <= 0.5 < width(needed - 1)


def test_scores_without_room_decide_nothing(store):
    higher = contrast({"d_latent": 16}, {"d_latent": 4}, where=PLAIN)
    assert judged(store, [higher], measures={"a": {"metrics": ["a"], "low": 0.1}}).verdict == "R"      # one of the two is above
    floor = judged(store, [higher], measures={"a": {"metrics": ["a"], "low": 0.5}})
    assert floor.verdict == "U" and "at the floor" in floor.note
    ceiling = judged(store, [higher], measures={"a": {"metrics": ["a"], "high": 0.05}})
    assert ceiling.verdict == "U" and "at the ceiling" in ceiling.note
    with pytest.raises(ValueError, match="give either checks or the reason"): Claim(text="x", paper="y")
