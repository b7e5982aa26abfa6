# The project's commands; `make` alone lists them. They need Python 3.11 or newer, git and make, and nothing else beforehand.
PYTHON ?= python3
RUN := .venv/bin/python
# Tests run two at a time, each on one thread; the notebooks have run before them and are not run again.
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile
# What Jupyter writes into every notebook it saves, besides outputs. (.pre-commit-config.yaml says the same.)
SAVED := codemirror_mode file_extension mimetype nbconvert_exporter pygments_lexer version
STRIP := .venv/bin/nbstripout --keep-id --extra-keys "$(SAVED:%=metadata.language_info.%)"

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help environment notebooks book pdf test test-slow test-kills test-properties fuzz test-colab pythons bench experiments lab lint format vendor lock audit \
	repository screenshots nightly release-check clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

environment: ## make or update .venv with the pinned packages
	@$(PYTHON) tools/environment.py

notebooks: environment ## run the chapters that have changed
	@$(RUN) tools/run_notebooks.py

book: environment ## run what has changed and build the book into _build/html
	@$(RUN) tools/build_book.py

pdf: book ## print the book as one file, _build/book.pdf (needs Chromium)
	@$(RUN) tools/pdf.py

# A torch of one's own choice has nothing to do with the book's pages.
test: $(if $(TORCH),environment,book) ## run the tests, on what `make book` made (TORCH=2.6.0: with that torch, without the pages)
	@$(if $(TORCH),$(RUN) tools/versions.py $(TORCH),$(PYTEST))

test-slow: environment ## train models from scratch and check that they learn (two minutes)
	@$(PYTEST) -m slow

test-kills: environment ## kill a run at twenty random moments and check that nothing is lost (two minutes; SEED=7: again)
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -q -s -m kills tests/test_kills.py

test-properties: environment ## look for numbers that differ, with many random examples (about ten minutes)
	@HYPOTHESIS_PROFILE=long $(PYTEST) tests/test_properties.py tests/test_extremes.py tests/test_determinism.py

fuzz: environment ## feed all that reads files and texts what nobody would write, ten minutes (QUICK=1: one)
	@$(RUN) tests/fuzz.py --seconds $(if $(QUICK),60,600)

test-colab: environment ## run every chapter with the versions Google Colab has
	@$(RUN) tools/colab.py

pythons: environment ## see whether other Pythons have all packages, and compile the code with those that are here
	@$(RUN) tools/versions.py

bench: environment ## measure speed, memory, growth and decoding (half an hour; QUICK=1: about three minutes)
	@$(RUN) benchmarks/run.py $(if $(QUICK),--quick)

experiments: environment ## train what the book quotes, ten hours, resumable (QUICK=1: ten minutes, a small version)
	@for name in tiny_shakespeare shipped fixed_point tracking code_execution language; do \
		echo "experiments/$$name.py"; $(RUN) experiments/$$name.py $(if $(QUICK),--quick) || exit 1; done

lab: environment ## open the chapters in JupyterLab
	@.venv/bin/jupyter lab --notebook-dir=book

lint: environment ## check formatting, style, types and that notebooks carry no outputs
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@$(STRIP) --verify book/*.ipynb

format: environment ## format the code, and strip outputs from the notebooks
	@.venv/bin/ruff check --fix-only .
	@.venv/bin/ruff format .
	@$(STRIP) book/*.ipynb

vendor: environment ## fetch the browser files of THIRD_PARTY.md again and compare them (needs npm)
	@$(RUN) tools/vendor.py

lock: environment ## write out in full, with hashes, what each requirements.txt brings along (UPGRADE=1: in its newest versions)
	@$(RUN) tools/lock.py $(if $(UPGRADE),--upgrade)

audit: environment ## ask whether a vulnerability of any package is known; one that cannot be looked up is a failure
	@$(RUN) tools/audit.py

repository: ## after editing fbt/_repository.py: write the new address wherever it is spelled out
	@$(PYTHON) tools/repository.py

screenshots: book ## photograph the pages in light and dark, wide and narrow (needs Chromium)
	@$(RUN) tools/screenshots.py

nightly: environment ## all that checks and measures, to the end, with a report (half a day; QUICK=1: under an hour)
	@$(RUN) tools/nightly.py $(if $(QUICK),--quick)

release-check: environment ## go through what a release needs, and say what is missing
	@$(RUN) tools/release.py

clean: ## remove everything the commands above made, except .venv
	rm -rf _build build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
