PYTHON ?= python3
BIN := .venv/bin
# What is imported is compiled once, and not, as this would have it, at every start of every rank.
unexport PYTHONDONTWRITEBYTECODE

# Threads of one test must not keep a core from another's: of one thread each, and none spins.
WITH_OTHERS := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
# Tests of a file stay together, on one of as many workers as there are cores.
SIDE_BY_SIDE := -n logical --maxprocesses=8 --dist loadfile --no-loadscope-reorder

.PHONY: help setup demo demo-control test test-all test-slurm faults attack nightly coverage test-gpu bench check format api pictures wheel ci clean

# A line of a target is its help: `make` shows them.
help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

setup: .venv/ready ## make .venv and install everything

# Compiling all of torch takes longer than installing it; what is imported is compiled then.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	touch $@

# Two workers on this machine's CPU; about two minutes to install aside, it takes about four.
demo: setup ## train two workers on this CPU in four minutes
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node=2 -m and_dist train --config configs/demo.yaml

# The same epochs of instance learning, for comparison.
demo-control: setup ## train the same without neighbourhoods
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node=2 -m and_dist train --config configs/demo.yaml \
		name=demo-control method=instance

# What everyone runs after a change; CONTRIBUTING says what it leaves out, and how long each takes.
test: setup ## run the tests of every change, five minutes
	$(WITH_OTHERS) $(BIN)/python -m pytest --quick -m "not nightly" $(SIDE_BY_SIDE) --ignore=tests/slurm --ignore=tests/gpu

# Everything that needs no SLURM. Screenshots of reports go to artefacts/.
test-all: setup ## run all tests that need no SLURM, ten minutes
	$(WITH_OTHERS) $(BIN)/python -m pytest -m "not nightly" $(SIDE_BY_SIDE) --durations=20 --ignore=tests/slurm

# Jobs on a real SLURM of four nodes, each a set of namespaces on this machine: only root can.
test-slurm: setup ## run jobs on a real SLURM on this machine, as root
	@if [ "$$(id -u)" = 0 ]; then \
		$(BIN)/python slurm/testcluster/cluster.py true && $(WITH_OTHERS) $(BIN)/python -m pytest -m "not nightly" --durations=12 \
			-o faulthandler_timeout=1500 --dist load --maxschedchunk=1 \
			--tx "4*popen//python=$(BIN)/python slurm/testcluster/cluster.py $(BIN)/python" tests/slurm; \
	else echo "test-slurm: no job was tried on a real SLURM, only root can make its nodes"; fi

# Runs that are killed, stopped or frozen somewhere, and have to end as if they had not been.
faults: setup ## kill and freeze runs, which have to end the same
	$(BIN)/python -m tests.faults --trials 6 --seed 0

# Configs, sources, run folders, locks and disks that break a program: this one says what is wrong.
# By this seed no trial waits for UMAP's compiler or for two ranks on a full disk; nightly has those.
attack: setup ## attack with odd configs, files and disks
	$(WITH_OTHERS) $(BIN)/python -m tests.attack --trials 200 --seed 71

# What takes too long for every change, or fails where others use the cores.
nightly: setup ## run all that takes hours
	$(BIN)/python -m pytest -m "nightly or timed" --hold-seconds --durations=20 --ignore=tests/slurm
	$(BIN)/python slurm/testcluster/cluster.py $(BIN)/python -m pytest -m nightly -s -o faulthandler_timeout=1500 tests/slurm
	$(BIN)/python -m tests.foreign_files
	$(BIN)/python -m tests.faults --trials 50 --seed 1
	$(WITH_OTHERS) $(BIN)/python -m tests.attack --trials 3000 --seed 1
	$(BIN)/python -m tests.mutants

# Which lines the tests reach, ranks and other processes included; artefacts/coverage/ shows them.
coverage: setup ## find lines that no test reaches
	rm -f .coverage .coverage.*
	$(BIN)/python -m coverage run --source=and_dist,launcher -m keyword  # lists files that nothing imports
	-$(WITH_OTHERS) $(BIN)/python -m coverage run -m pytest -m "not nightly" $(SIDE_BY_SIDE) --ignore=tests/slurm
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage html --quiet
	$(BIN)/python -m coverage report --sort=cover --skip-covered

test-gpu: setup ## run the tests that need a GPU
	$(BIN)/python -m pytest tests/gpu

# Every benchmark at a small size, to see that it runs; its figures go to artefacts/bench/.
bench: setup ## run every benchmark at a small size
	$(BIN)/python -m benchmarks.all --smoke

check: setup ## run ruff, mypy, import-linter and our own checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.checks.file_calls
	$(BIN)/python -m tests.checks.shape_letters
	$(BIN)/python -m tests.checks.prose
	$(BIN)/python -m tests.checks.api_page
	@! grep -rn --include='*.py' 'fmt: skip' and_dist launcher benchmarks tests slurm

format: setup ## format the code, and mend what can be mended
	$(BIN)/ruff check --quiet --fix .
	$(BIN)/ruff format .

api: setup ## write docs/api.md from the docstrings
	$(BIN)/python -m tests.checks.api_page --write

# Of runs/demo and runs/demo-control; drawn by Debian's chromium.
pictures: setup ## draw the README's pictures
	$(BIN)/python -m tests.docs.pictures

wheel: setup ## build dist/*.whl and the sdist
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt build
	$(BIN)/python -m build --outdir dist .

# One after the other: side by side they take as long on two cores, and wait for each other.
ci: check test-all test-slurm faults attack ## run what CI runs, twenty minutes

clean: ## remove what can be made again, runs included
	rm -rf .venv runs .coverage .mypy_cache .ruff_cache .import_linter_cache
