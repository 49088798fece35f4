# Needs Python 3.11 or newer, git and make; everything else goes into .venv from requirements.lock.
PYTHON ?= python3
VENV := . .venv/bin/activate &&

# they start many processes: Python keeps what it compiled, wherever they run
test drift smoke: export PYTHONDONTWRITEBYTECODE :=

.PHONY: help .venv lab repro campaign preview figures site test drift smoke bench mutants export lock executed gpu-pack gpu-merge

help:  ## show this list
	@awk -F':.*## ' '/^[.a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv: .venv/.ready  ## the environment, from requirements.lock

.venv/.ready: requirements.lock settings.ini setup.py
	@$(PYTHON) -c 'import sys; sys.version_info < (3, 11) and sys.exit("colanb needs Python 3.11 or newer, e.g. make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

lab: .venv  ## open the notebooks in JupyterLab
	$(VENV) jupyter lab --LabApp.default_url=/lab/tree/nbs/index.ipynb

repro: .venv  ## run the pipeline of the active profile: data, training, scores, figures
	$(VENV) python .ci/pipeline && dvc repro

campaign: .venv  ## train the studies' runs that have no results yet (PROFILE=english WORKERS=1 CAMPAIGN="--study ladder --dry")
	$(VENV) python .ci/pipeline && python -m colanb.evidence.campaign $(if $(PROFILE),--profile $(PROFILE)) $(if $(WORKERS),--workers $(WORKERS)) $(CAMPAIGN)

preview: .venv  ## what `make repro` would run after your edits, and why (STAGE="rq3_cfg@quick" for one figure)
	$(VENV) python .ci/pipeline && python .ci/preview $(STAGE)

figures: .venv  ## draw the figures from committed results, without training (PROFILE=tiny; shared: those of no profile)
	$(VENV) python .ci/pipeline && python .ci/figures $(PROFILE)

site: .venv  ## build the site into _site/ from committed files (needs npm); look at it with python -m http.server -d _site
	$(VENV) python nbs/site/build.py

test: .venv drift $(if $(SITE),site)  ## export drift, notebook tests, tests/; annotations are checked (SITE=1: the site is built before, and tested)
	$(VENV) COLANB_TYPECHECK=1 OMP_NUM_THREADS=1 nbdev_test --n_workers 2 --timing
	$(VENV) OMP_NUM_THREADS=1 python -m pytest -q --numprocesses 2 --dist loadfile --no-loadscope-reorder -k "not test_drift_of" tests

drift: .venv  ## check that colanb/, README.md, dvc.yaml and pipeline/ are what the notebooks give
	$(VENV) python -m pytest -q tests/test_export.py tests/test_pipeline.py -k test_drift_of

smoke: .venv  ## the pipeline in its micro profile, in a temporary copy (SMOKE=--theory: with the theory)
	$(VENV) python .ci/smoke $(SMOKE)

bench: .venv  ## measure the speed into data/results/speed, 10 to 15 minutes on two idle cores
	$(VENV) python -m colanb.lab.bench

mutants: .venv  ## change the source in 25 places a module and see what the checks notice (MUTANTS="--modules flow --seed 1")
	$(VENV) python -m tests.mutation --known $(MUTANTS)

export: .venv  ## write colanb/, README.md, dvc.yaml and pipeline/ from the notebooks
	$(VENV) nbdev_export && python .ci/pipeline && python .ci/readme > README.md

lock: .venv  ## after a proof that results stay the same: write the new fingerprints into dvc.lock (LOCK=--since COMMIT)
	$(VENV) python .ci/lock $(LOCK)

executed: .venv  ## run the library notebooks and the README's in place, keep their outputs
	$(VENV) OMP_NUM_THREADS=1 TQDM_DISABLE=1 python -m nbconvert --to notebook --execute --inplace nbs/*.ipynb nbs/[1-9]_*/*.ipynb
	$(VENV) nbdev_clean && python .ci/scrub nbs/*.ipynb nbs/[1-9]_*/*.ipynb && python .ci/readme > README.md

gpu-pack: .venv  ## collect in .gpu/ what a machine with a graphics card needs; there: .ci/gpu
	$(VENV) python .ci/gpu-pack

gpu-merge: .venv  ## bring the results of .ci/gpu from the folder FROM into data/results/gpu and the store of runs
	$(VENV) python .ci/gpu-merge $(FROM)
