# Every target works through tools/setup_env.sh, which prepares the environment or finds it ready.
# No target is a file: make cannot name files in a folder with a space in its name.
.PHONY: help demo test soak lint format clean distclean

ENV = @sh tools/setup_env.sh

help:
	@echo 'make demo       train a small HyperNet in ten to twenty minutes, or take the one that'
	@echo '                ships where detectron2 is missing; its AP and pictures of its detections'
	@echo 'make test       run the test suite (ARGS="-k windows" is passed on to pytest)'
	@echo 'make soak       run the long reliability tests (docs/RELIABILITY.md)'
	@echo 'make lint       check style and format; make format mends what can be mended'
	@echo 'make clean      remove caches and build products; make distclean also ./.venv and output/'
	@echo
	@echo 'PYTHON=python3.12      the Python that creates ./.venv where no environment is active'
	@echo 'DETECTRON2=<path>      a wheel or a checkout of detectron2; none goes without it'

demo:
	$(ENV) sh demo/run.sh

test:
	$(ENV) python -m pytest $(ARGS)

soak:
	$(ENV) sh -c 'python -m tests.reliability.kills && python -m tests.reliability.several \
		&& python -m tests.reliability.load \
		&& python tests/reliability/fuzz.py'

lint:
	$(ENV) sh -c 'python -m ruff check . && python -m ruff format --check .'

format:
	$(ENV) sh -c 'python -m ruff check --fix . ; python -m ruff format .'

clean:
	rm -rf build dist hypernet_d2.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name .venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv output
