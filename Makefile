# `make demo` and `make test` do all the set-up themselves. ARGS are passed on: make test ARGS="-k journal"
BIN := .venv/bin
READY := .venv/ready
ARGS ?=
# make test-power SEED=1 CUTS=5000 STORY="good update" KIND=btrfs; or AGAIN=FOLDER CUT=NUMBER:SEED of a kept recording
SEED ?= 1
CUTS ?= 5000
# make test-machines CYCLES=200
CYCLES ?= 200
# so many test files at a time; 0: all in one process, as --pdb needs it
JOBS ?= 3

help:
	@echo "make demo       a good update, a sick one that is rolled back; ARGS=--keep leaves it all running"
	@echo "make test       all tests, linters included; ARGS are pytest's, JOBS=3 files at a time"
	@echo "make test-fast  the tests that need neither btrfs nor a Prefect server"
	@echo "make test-power power cuts: every story at each of its moments and at CUTS=5000 others (docs/testing.md; root)"
	@echo "make test-machines  CYCLES=200 updates of a machine with systemd in a row, every third one broken (root)"
	@echo "make test-vm    real boots, in qemu with GRUB: half an hour, some more the first time (docs/testing.md; root)"
	@echo "make lint       ruff and mypy"
	@echo "make format     ruff's formatter"
	@echo "make bench      the benchmarks"
	@echo "make pictures   the pictures of docs/operating.md, made anew (root, chromium)"
	@echo "make clean      remove .venv and what the tools left"

demo: $(READY)
	@.ci/packages demo
	@$(BIN)/otaflow demo $(ARGS)

# All that the tests write is in one folder, removed at the end; Prefect's database, too, whatever server the user has.
test: $(READY)
	@.ci/packages test
	@scratch=$$(.ci/scratch) && trap 'rm -rf "$$scratch"' EXIT && trap 'exit 130' INT TERM && \
	env -u PREFECT_API_URL -u OTAFLOW_CONFIG PREFECT_HOME="$$scratch/prefect" TMPDIR="$$scratch/tmp" \
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --basetemp="$$scratch/t" $(ARGS)

test-fast: $(READY)
	@$(BIN)/python -m pytest -q tests/package tests/platform tests/repo -m "not btrfs" $(ARGS)

test-power: $(READY)
	@.ci/packages test
	@$(BIN)/python tests/support/power_run.py --seed $(SEED) --cuts $(CUTS) --jobs $(JOBS) \
	$(if $(STORY),--story "$(STORY)") $(if $(KIND),--kind $(KIND)) $(if $(AGAIN),--again $(AGAIN) --cut $(CUT)) $(ARGS)

test-machines: $(READY)
	@.ci/packages test
	@scratch=$$(.ci/scratch) && trap 'rm -rf "$$scratch"' EXIT && trap 'exit 130' INT TERM && \
	CYCLES=$(CYCLES) TMPDIR="$$scratch/tmp" $(BIN)/python -m pytest -q -m cycles tests/machines --basetemp="$$scratch/t" $(ARGS)

test-vm: $(READY)
	@.ci/packages vm
	@$(BIN)/python tests/support/vm_booted.py
	@$(BIN)/python -m pytest -m vm tests/vm -n $(JOBS) --dist loadfile $(ARGS)

lint: $(READY)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(READY)
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

bench: $(READY)
	@.ci/packages demo
	@$(BIN)/python -m bench $(ARGS)

pictures: $(READY)
	@.ci/packages test
	@$(BIN)/python tests/support/screenshots.py $(ARGS)

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@python=$$(.ci/python) && { test -x $(BIN)/python || "$$python" -m venv .venv; }
	@echo "installing into .venv"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

.PHONY: help demo test test-fast test-power test-machines test-vm lint format bench pictures clean
