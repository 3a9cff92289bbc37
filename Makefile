# Everything runs in .venv, which `make .venv` (or the README's second line) creates.
PY := .venv/bin/python

.PHONY: check test test-all bench demo clean

.venv: pyproject.toml
	python3 -m venv .venv
	.venv/bin/pip install -q -e '.[test]'
	touch .venv

check: .venv            ## linters, types, layers, house rules
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	$(PY) -m pytest -q tests/house

test: .venv             ## the default run, under four minutes
	$(PY) -m pytest -q

test-all: .venv         ## everything, the long ones too
	$(PY) -m pytest -q -m "long or not long"

bench: .venv            ## against the rivals found on this machine; writes benchmarks/RESULTS.md
	.venv/bin/pip install -q -e '.[bench]'
	$(PY) -m benchmarks.end_to_end

demo: .venv
	.venv/bin/sidewall demo

clean:
	rm -rf .venv .sidewall .mypy_cache .ruff_cache .import_linter_cache

.PHONY: test-compiled
test-compiled: .venv    ## the default run against the compiled build (needs a C compiler)
	rm -rf build/under-test
	cp -r "$$($(PY) -m benchmarks.compiled)" build/under-test
	cp -r tests benchmarks $(wildcard charts) pyproject.toml README.md Makefile build/under-test/
	cd build/under-test && PYTHONPATH=. ../../$(PY) -m pytest -q --ignore tests/house --ignore tests/integration/test_readme.py
