"The store of runs: what names a file, one file for studies that share a run, what is missing or damaged is named."
import json

import pytest
from hypothesis import given, settings, strategies as st

from colanb.config import load_profile
from colanb.evidence import campaign, store
from colanb.evidence.report import read_results, study_rows

TINY = load_profile(name="tiny")
RUN = TINY.study_runs("rq2")[0][1]
PLAN = store.plan_of(TINY, "rq2")
KEY = store.run_key(RUN, "text", 0, PLAN)


def varied(**changes):
    "The run with fields such as flow__loc changed."
    for name, value in changes.items():
        part, field = name.split("__")
        run = RUN.replace(**{part: getattr(RUN, part).replace(**{field: value})})
    return run


@pytest.mark.parametrize("change", [
    {"flow__loc": 0.3}, {"flow__beta": 0.5}, {"vae__width": 32}, {"vae__logsnr": None}, {"dit__block_size": 8}, {"stage1__steps": 7},
    {"stage2__strategy": "joint"}, {"stage2__lr": 0.5}, {"sample__steps": 9}, {"data__documents": 5}, {"data__seq_len": 64}])
def test_every_setting_of_a_run_names_its_file(change):
    assert store.run_key(varied(**change), "text", 0, PLAN) != KEY


def test_neither_the_name_nor_the_place_of_the_text_does():
    assert store.run_key(RUN.replace(name="other"), "text", 0, PLAN) == KEY
    english = load_profile(name="english").study_runs("ladder")[0][1]
    moved = english.replace(data=english.data.replace(path="elsewhere"))
    assert store.run_key(moved, "text", 0, PLAN) == store.run_key(english, "text", 0, PLAN)


@pytest.mark.parametrize("field, value", [
    ("items", 7), ("texts", 7), ("names", ["lambada"]), ("probes", []), ("checkpoints", []), ("settings", [{"steps": 2}])])
def test_every_choice_of_a_study_names_its_files(field, value):
    changed = TINY.replace(studies=TINY.studies | {"rq2": TINY.studies["rq2"].replace(**{field: value})})
    assert store.run_key(RUN, "text", 0, store.plan_of(changed, "rq2")) != KEY


@pytest.mark.parametrize("field, value", [("text_tokens", 7), ("rule", "paper"), ("seed", 1), ("batch_size", 3), ("judge", "x")])
def test_how_a_profile_asks_names_its_files(field, value):
    changed = TINY.replace(tasks=TINY.tasks.replace(**{field: value}))
    assert store.run_key(RUN, "text", 0, store.plan_of(changed, "rq2")) != KEY


def test_what_a_study_replaces_or_what_it_varies_does_not():
    changed = TINY.replace(tasks=TINY.tasks.replace(items=7, texts=7))
    assert store.plan_of(changed, "rq2") == PLAN
    changed = TINY.replace(studies={"other": TINY.studies["rq2"].replace(grid=[{}], seeds=[5])})
    assert store.plan_of(changed, "other") == PLAN


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=8), st.integers(0, 9), st.floats(0.01, 5.0))
def test_equal_runs_have_equal_names_and_others_have_not(corpus, seed, loc):
    key = store.run_key(varied(flow__loc=loc), corpus, seed, PLAN)
    assert key == store.run_key(varied(flow__loc=loc), corpus, seed, dict(reversed(PLAN.items())))
    assert (key == KEY) == ((corpus, seed, loc) == ("text", 0, RUN.flow.loc))


@pytest.mark.parametrize("name", ["quick", "tiny", "books"])
def test_the_committed_store_has_all_that_its_studies_ask_for(name):
    profile = load_profile(name=name)
    folder = store.STORE / name
    corpora = store.known_corpora(folder)
    assert (folder / "index.json").read_text() == store.index_text(profile, corpora), f"make campaign PROFILE={name}"
    asked = {unit.key for unit in store.units_of(profile, corpora)}
    assert {file.stem for file in folder.glob("*.json")} == asked | {"index"}


def test_every_committed_file_is_whole_and_names_no_change():
    for file in store.STORE.glob("*/*.json"):
        if file.stem == "index": continue
        record = store.read_record(file)
        assert not any("." in name for row in record["rows"] for name in row), file
        assert file.read_text().count("\n") == len(record["rows"]) + len(store.FIELDS) + 2, file


@pytest.fixture
def place(tmp_path, monkeypatch):
    "A profile with two studies that share a run, and a trainer that writes a number."
    profile = TINY.replace(studies={
        "first": {"base": "study", "corpus": "study", "grid": [{"flow.loc": [0.5, 1.5]}]},
        "second": {"base": "study", "corpus": "study", "seeds": [0], "grid": [{"stage2.steps": [400]}]}})
    trained = []

    def train(unit, profile, place):
        trained.append(unit)
        return [{"seed": unit.seed, "step": 400, "metric": name, "value": float(len(trained)), "n": 1, "unit": "", "outcomes": [1]}
                for name in ("loss", "flops")]

    def run_all(units, profile, place, workers, seconds=None, report=lambda records: None):
        records = []
        for unit in units:
            records.append({"study": unit.study, "seed": unit.seed, "index": unit.index, **campaign.run_unit(unit, profile, place)})
            report(records)
        return records

    monkeypatch.setattr(campaign, "train_unit", train)
    monkeypatch.setattr(campaign, "run_campaign", run_all)
    monkeypatch.setattr(campaign, "prepare_needs", lambda *_: None)
    monkeypatch.setattr(campaign, "flops_of", lambda units, *_: [1.0] * len(units))
    return profile, campaign.Place(tmp_path / "tokens", tmp_path / "vaes", tmp_path / "store/tiny"), trained


def test_two_studies_that_share_a_run_train_it_once(place, tmp_path):
    profile, folders, trained = place
    with pytest.raises(ValueError, match="study second, stage2.steps=400, seed 0: `make campaign PROFILE=tiny`"):
        study_rows(profile, "second", tmp_path / "store")
    campaign.train_missing(profile, folders, 1)
    assert len(trained) == 6 and len(list(folders.store.glob("*.json"))) == 7
    second = study_rows(profile, "second", tmp_path / "store")
    first = study_rows(profile, "first", tmp_path / "store")
    assert second["stage2.steps"].tolist() == [400, 400] and "flow.loc" not in second
    assert list(first)[:4] == ["seed", "flow.loc", "step", "metric"] and len(first) == 12
    assert second.value.tolist() == first[(first.seed == 0) & (first["flow.loc"] == 1.5)].value.tolist()


def test_a_finished_run_is_not_trained_again_unless_other_code_made_it(place, monkeypatch, capsys):
    profile, folders, trained = place
    campaign.train_missing(profile, folders, 1)
    campaign.train_missing(profile, folders, 1, again=True)
    assert len(trained) == 6
    monkeypatch.setattr(campaign, "code_fingerprint", lambda: "new code")
    assert len(campaign.train_missing(profile, folders, 1).made_by_other_code()) == 6 and len(trained) == 6
    assert "6 runs were made by other code" in capsys.readouterr().out
    campaign.train_missing(profile, folders, 1, again=True)
    assert len(trained) == 12


def test_what_is_finished_before_a_stop_is_kept(place, monkeypatch, tmp_path):
    profile, folders, trained = place
    whole = campaign.train_unit

    def stopped(unit, *rest):
        if len(trained) == 3: raise KeyboardInterrupt
        return whole(unit, *rest)

    monkeypatch.setattr(campaign, "train_unit", stopped)
    monkeypatch.setattr(campaign, "local_place", lambda profile: folders)
    monkeypatch.setattr(campaign, "load_profile", lambda name=None: profile)
    assert campaign.main(["--profile", "tiny"]) == 130
    with pytest.warns(UserWarning, match=r"seeds \[1, 2\] are left out: 3 of 6 runs have no results, the first is study first, flow.loc=1.5, seed 1"):
        assert set(study_rows(profile, "first", tmp_path / "store").seed) == {0}
    monkeypatch.setattr(campaign, "train_unit", whole)
    assert campaign.main(["--profile", "tiny"]) == 0 and len(trained) == 6


def test_a_failed_run_is_told_and_the_others_go_on(place, monkeypatch, capsys):
    profile, folders, trained = place
    whole = campaign.train_unit

    def fails(unit, *rest):
        if unit.seed == 1: raise ValueError("no luck")
        return whole(unit, *rest)

    monkeypatch.setattr(campaign, "train_unit", fails)
    with pytest.raises(RuntimeError, match="2 of 6 runs failed, the first with ValueError: no luck"):
        campaign.train_missing(profile, folders, 1)
    assert len(trained) == 4 and "FAILED: ValueError: no luck" in capsys.readouterr().out


def test_a_store_is_read_once(place, monkeypatch):
    profile, folders, trained = place
    campaign.train_missing(profile, folders, 1, ["second"])
    before, read, seen = len(trained), store.read_record, []
    monkeypatch.setattr(store, "read_record", lambda file: (seen.append(file.stem), read(file))[1])
    assert campaign.train_missing(profile, folders, 1).missing == [] and len(trained) == 6
    assert 0 < before < 6 and len(seen) == len(set(seen)) == 6


def test_a_damaged_file_is_named(place, tmp_path):
    profile, folders, _ = place
    campaign.train_missing(profile, folders, 1)
    file = next(file for file in folders.store.glob("*.json") if file.stem != "index")
    for text in (file.read_text()[:500], "", "[]", "{}"):
        file.write_text(text)
        with pytest.raises(ValueError, match=f"tiny/{file.name} is damaged"): campaign.train_missing(profile, folders, 1)
        with pytest.raises(ValueError, match=f"tiny/{file.name} is damaged"): study_rows(profile, "first", tmp_path / "store")
    (folders.store / "index.json").write_text("{")
    with pytest.raises(ValueError, match="tiny/index.json is damaged"): study_rows(profile, "first", tmp_path / "store")


def test_a_file_of_another_default_does_not_count(place, monkeypatch):
    profile, folders, trained = place
    campaign.train_missing(profile, folders, 1)
    file = next(file for file in folders.store.glob("*.json") if file.stem != "index")
    record = json.loads(file.read_text())
    record["run"]["flow"]["beta"] = 0.123
    file.write_text(store.run_text(record))
    campaign.train_missing(profile, folders, 1)
    assert len(trained) == 7 and json.loads(file.read_text())["run"]["flow"]["beta"] != 0.123


def test_unused_files_are_told_and_stay(place, capsys):
    profile, folders, _ = place
    campaign.train_missing(profile, folders, 1)
    fewer = profile.replace(studies={"second": profile.studies["second"]})
    status = campaign.train_missing(fewer, folders, 1)
    assert len(status.unused) == 5 and f"no study asks for {status.unused[0]}" in capsys.readouterr().out
    assert len(list(folders.store.glob("*.json"))) == 7


def test_the_command_says_what_is_missing_and_refuses_what_it_does_not_know(tmp_path, capsys):
    before = {file: file.read_bytes() for file in store.STORE.glob("english/*.json")}
    assert campaign.main(["--profile", "quick", "--dry"]) == 0
    assert "144 runs are there, 0 missing; hours: about 0.0" in capsys.readouterr().out
    assert campaign.main(["--profile", "english", "--study", "ladder", "--seeds", "1,2", "--dry"]) == 0
    assert "ladder: missing" in capsys.readouterr().out
    for words, said in ((["--profile", "huge"], "no profile 'huge'"), (["--profile", "quick", "--study", "rq9"], "study 'rq9' is not in profile 'quick'"),
                        (["--profile", "quick", "--seeds", "5"], "has no seed [5]"), (["--seeds", "one"], "one")):
        assert campaign.main([*words, "--dry"]) == 1
        assert said in capsys.readouterr().err
    assert before == {file: file.read_bytes() for file in store.STORE.glob("english/*.json")}


def test_a_name_that_is_no_study_is_a_sweep():
    assert set(read_results("results", "quick").seed) == {0, 1, 2}
    with pytest.raises(ValueError, match="data/results/nothing/quick"): read_results("nothing", "quick")
