PYTHON ?= python3
BIN := .venv/bin
# What is imported is compiled once, and not, as this would have it, at every start of every rank.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo demo-control test test-ci test-files test-slurm faults nightly test-gpu bench check ci clean

setup: .venv/ready

# Compiling all of torch takes longer than installing it; what is imported is compiled then.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]'
	touch $@

# Two workers on this machine's CPU; about two minutes to install aside, it takes about four.
demo: setup
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node=2 -m and_dist train --config configs/demo.yaml

# The same epochs of instance learning, for comparison.
demo-control: setup
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node=2 -m and_dist train --config configs/demo.yaml \
		name=demo-control method=instance

# Everything that needs no GPU and no SLURM. Screenshots of reports go to artefacts/.
test: setup
	$(BIN)/python -m pytest --durations=12 -m "not ci and not nightly" --ignore=tests/gpu \
		--ignore=tests/slurm --ignore=tests/foreign_files

# What is marked `ci`: runs of earlier revisions, Triton kernels under the interpreter.
test-ci: setup
	$(BIN)/python -m pytest --durations=4 -m "ci and not nightly"

# Commands beside files of a user's, which have to be there afterwards; `make nightly` tries them all.
test-files: setup
	$(BIN)/python -m pytest tests/foreign_files

# Jobs on a real SLURM of four nodes, each a set of namespaces on this machine: only root can.
test-slurm: setup
	@if [ "$$(id -u)" = 0 ]; then \
		$(BIN)/python slurm/testcluster/cluster.py true && $(BIN)/python -m pytest -m "not nightly" --durations=12 \
			-o faulthandler_timeout=1500 --dist load --maxschedchunk=1 \
			--tx "4*popen//python=$(BIN)/python slurm/testcluster/cluster.py $(BIN)/python" tests/slurm; \
	else echo "test-slurm: no job was tried on a real SLURM, only root can make its nodes"; fi

# Runs that are killed, stopped or frozen somewhere, and have to end as if they had not been.
faults: setup
	$(BIN)/python -m tests.faults --trials 6 --seed 0

# What takes too long for every change.
nightly: setup
	$(BIN)/python -m pytest --durations=12 -m nightly
	$(BIN)/python -m tests.foreign_files

test-gpu: setup
	$(BIN)/python -m pytest tests/gpu

# Every benchmark at a small size, to see that it runs; its figures go to artefacts/bench/.
bench: setup
	$(BIN)/python -m benchmarks.all --smoke

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.checks.file_calls
	$(BIN)/python -m tests.checks.shape_letters
	@! grep -rn --include='*.py' 'fmt: skip' and_dist launcher benchmarks tests slurm

# One after the other: side by side they take as long on two cores, and wait for each other.
ci: check test-slurm test test-ci test-files faults

clean:
	rm -rf .venv runs .mypy_cache .ruff_cache .import_linter_cache
