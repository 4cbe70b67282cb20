# Every target runs through tools/setup_env.sh, which prepares the environment if it is not ready.
# All targets are phony: make cannot name files in a folder with a space in its name.
.PHONY: help demo test test-all test-plain test-compiled soak matrix lint format clean distclean

ENV = @sh tools/setup_env.sh

# Two processes, each of which takes whole files. WORKERS=0 runs all in one, as pytest --pdb needs.
WORKERS ?= 2
PYTEST = python -m pytest -n $(WORKERS) --dist loadfile

# Threads of OpenMP that wait must sleep, not spin: on a busy machine this is three times faster.
OMP_WAIT_POLICY ?= passive
export OMP_WAIT_POLICY

help:
	@echo 'make demo       detect digits with the model that ships, then train a small HyperNet'
	@echo '                (ten to twenty minutes on two cores; without detectron2: no training)'
	@echo 'make test       run the test suite without its slow tests, in about three minutes'
	@echo '                (ARGS="-k windows" is passed on to pytest; WORKERS=0: in one process)'
	@echo 'make test-all   run the slow tests too'
	@echo 'make test-plain run the tests that touch the compiled part of detectron2, without it;'
	@echo '                make test-compiled the same tests with it'
	@echo 'make soak       run the long reliability tests (docs/RELIABILITY.md)'
	@echo 'make matrix     run tests with several versions of PyTorch and detectron2 (hours;'
	@echo '                ARGS="--torch 2.4.1" chooses, PYTHON=python3.13 too)'
	@echo 'make lint       check style and format; make format fixes what can be fixed'
	@echo 'make clean      remove caches and build products; make distclean also ./.venv and output/'
	@echo
	@echo 'PYTHON=python3.12      the Python that creates ./.venv if no environment is active'
	@echo 'DETECTRON2=<path>      a wheel, an sdist or a checkout of detectron2; none: without it'
	@echo 'DETECTRON2_BUILD=1     compile the compiled part of detectron2 (optional, takes minutes)'

demo:
	$(ENV) sh demo/run.sh

test:
	$(ENV) $(PYTEST) $(ARGS)

test-all:
	$(ENV) $(PYTEST) --slow $(ARGS)

# The tests of what uses the compiled part of detectron2, if it is there.
TOUCHING = tests/evaluation tests/modeling tests/engine/test_training.py tests/cli/test_compare.py

test-plain:
	$(ENV) env DETECTRON2=plain $(PYTEST) $(TOUCHING) $(ARGS)

test-compiled:
	$(ENV) $(PYTEST) $(TOUCHING) $(ARGS)

matrix:
	@$${PYTHON:-python3} tools/matrix.py $(ARGS)

soak:
	$(ENV) sh -c 'python -m tests.reliability.kills && python -m tests.reliability.several \
		&& python -m tests.reliability.load && python tests/reliability/fuzz.py'

lint:
	$(ENV) sh -c 'python -m ruff check . && python -m ruff format --check .'

format:
	$(ENV) sh -c 'python -m ruff check --fix . ; python -m ruff format .'

clean:
	rm -rf build dist hypernet_d2.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name .venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv output
