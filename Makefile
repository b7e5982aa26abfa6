# `make` lists the commands that people use, `make help-all` all of them. They need
# Python 3.11 or newer, git and make.
PYTHON ?= python3
RUN := .venv/bin/python
# Three files of tests at a time, since many wait for a browser or another process, each
# on one thread. They begin in the order of tests/conftest.py, the longest first.
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -n 3 --dist loadfile \
	--no-loadscope-reorder
# What Jupyter saves besides outputs; .pre-commit-config.yaml has the same list.
SAVED := codemirror_mode file_extension mimetype nbconvert_exporter pygments_lexer \
	version
STRIP := .venv/bin/nbstripout --keep-id \
	--extra-keys "$(SAVED:%=metadata.language_info.%)"

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help help-all environment notebooks book pdf test test-slow test-kills \
	test-properties fuzz test-colab pythons bench experiments lab lint format vendor \
	lock audit repository screenshots nightly release-check clean

# `make` shows comments with ##, `make help-all` also those with ###.
help:
	@awk -F ':.* ## ' '/^[a-z-]+:.* ## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile
	@echo "make help-all     list all commands"

help-all:
	@awk -F ':.* ###? ' '/^[a-z-]+:.* ###? / { printf "make %-15s %s\n", $$1, $$2 }' \
		Makefile

environment: ### create or update .venv with the pinned packages
	@$(PYTHON) tools/environment.py

notebooks: environment ### run the chapters that have changed
	@$(RUN) tools/notebooks.py

book: environment ## run changed chapters and build the book into _build/html
	@$(RUN) tools/build_book.py

pdf: book ## print the book as one file, _build/book.pdf (needs Chromium)
	@$(RUN) tools/pdf.py

# With another torch the book is not needed: tests of pages are skipped.
test: $(if $(TORCH),environment,book) ## run the tests (TORCH=2.6.0: with that torch)
	@$(if $(TORCH),$(RUN) tools/versions.py $(TORCH),$(PYTEST))

test-slow: environment ### train from scratch, and fuzz the GPU kernels (4 minutes)
	@$(PYTEST) -m slow

test-kills: environment ### kill a run at 20 random moments (2 minutes; SEED=7)
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -q -s -m kills tests/test_kills.py

test-properties: environment ### compare backends on many random examples (10 minutes)
	@HYPOTHESIS_PROFILE=long $(PYTEST) \
		tests/test_properties.py tests/test_extremes.py tests/test_determinism.py

fuzz: environment ### read random files and texts (10 minutes; QUICK=1: one)
	@$(RUN) tests/fuzz.py --seconds $(if $(QUICK),60,600)

test-colab: environment ## run every chapter with Google Colab's versions
	@$(RUN) tools/versions.py colab

pythons: environment ### check wheels and code for every supported Python
	@$(RUN) tools/versions.py pythons

bench: environment ## measure speed and memory (1.5 hours; QUICK=1: 4 minutes)
	@$(RUN) benchmarks/run.py $(if $(QUICK),--quick)

experiments: environment ## train what the book quotes (30 hours; QUICK=1: 10 minutes)
	@for name in tiny_shakespeare shipped shell_game links tracking \
		code_execution language playground; do \
		echo "experiments/$$name.py"; \
		$(RUN) experiments/$$name.py $(if $(QUICK),--quick) || exit 1; done

lab: environment ## open the chapters in JupyterLab
	@.venv/bin/jupyter lab --notebook-dir=book

lint: environment ## check format, style, types, and that notebooks have no outputs
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@$(STRIP) --verify book/*.ipynb

format: environment ## format code, complete the notebooks and remove their outputs
	@$(RUN) tools/cells.py
	@.venv/bin/ruff check --fix-only .
	@.venv/bin/ruff format .
	@$(STRIP) book/*.ipynb

vendor: environment ### compare the bundled browser files with npm's (needs npm)
	@$(RUN) tools/vendor.py

lock: environment ### resolve all packages, with hashes (UPGRADE=1: newest versions)
	@$(RUN) tools/environment.py lock $(if $(UPGRADE),--upgrade)

audit: environment ### look up known vulnerabilities of all packages
	@$(RUN) tools/audit.py

repository: ### write the address in fbt/_repository.py into all files that contain it
	@$(PYTHON) tools/repository.py

screenshots: book ### photograph the pages in light and dark (needs Chromium)
	@$(RUN) tools/browser.py

nightly: environment ### run all checks (half a day; QUICK=1: an hour)
	@$(RUN) tools/nightly.py $(if $(QUICK),--quick)

release-check: environment ### check everything that a release needs
	@$(RUN) tools/release.py

clean: ## remove everything that these commands made, except .venv
	rm -rf _build build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
