# Every target sets up what it needs first (deploy/setup.sh, quick when there is nothing to do).
# Everything goes into .venv/ and build/ in this checkout.

BIN := .venv/bin
# Four workers more than there are cores (tests/conftest.py); a file stays on one, because its tests share servers.
PYTEST_ARGS ?= -n auto --dist loadfile --no-loadscope-reorder
LAB_ARGS ?=

.PHONY: lab test test-slow-path test-fast bench check format soak fuzz sbom dist node image systemd pictures setup clean

## the main job: a two-site cluster in network namespaces, proven, then taken down
lab: setup
	$(BIN)/isthmus lab --once $(LAB_ARGS)

## every test: unit, property, contract, integration, end to end, fault
test:
	@bash deploy/setup.sh test
	$(BIN)/pytest $(PYTEST_ARGS)

## every test of packets with the fast path off: by default they run with it, where the kernel takes it
test-slow-path:
	@bash deploy/setup.sh test
	ISTHMUS_FASTPATH=off $(BIN)/pytest $(PYTEST_ARGS) -m netns --ignore-glob='*/test_fastpath*'

## the daily loop: pure and unit tests with a small budget and in one order, under 20 s
test-fast:
	@bash deploy/setup.sh
	ISTHMUS_HYPOTHESIS=fast $(BIN)/pytest -q -n auto -p no:randomly --dist worksteal -m "not bus and not netns and not slow" \
		-k "not runTest" --ignore tests/controlplane/test_long_history.py \
		tests/controlplane tests/events tests/contract tests/nodeagent

## the benchmarks: prints a table and writes build/bench.json
bench:
	@bash deploy/setup.sh bench
	$(BIN)/python -m tests.bench

## the property tests with new seeds and a large budget; an hour each of kills, pauses, cuts and clocks that are set on
## one server and on three (ISTHMUS_SOAK_S seconds instead); a long lab with processes killed under churn
soak: setup
	ISTHMUS_HYPOTHESIS=explore ISTHMUS_PATIENCE=1 ISTHMUS_SOAK_S=$${ISTHMUS_SOAK_S:-3600} $(BIN)/pytest $(PYTEST_ARGS)
	$(BIN)/isthmus lab --name soak --churn tests/data/node-churn --kills 20 --seed $$(date +%s)

## coverage-guided fuzzing of everything that reads what others wrote; FUZZ_S seconds for each reader
fuzz: setup
	$(BIN)/python -m pip install -q -c deploy/constraints.txt atheris
	$(BIN)/python -m tests.fuzz --seconds $${FUZZ_S:-300}

## the bill of materials (build/sbom.json), the licences, versions against the pins, known vulnerabilities
sbom: setup
	$(BIN)/python -m deploy.supply sbom --to build/sbom.json
	$(BIN)/python -m deploy.supply licences
	$(BIN)/python -m deploy.supply check

## wheel, file for bare machines, Debian package (DEBIAN=12 or 13), image context, bill of materials and checksums, in dist/
dist: setup
	deploy/packages/build.sh --debian $${DEBIAN:-12}

## only isthmus-VERSION-node.pyz: the one file that makes a node of a machine with only Python, in dist/
node: setup
	deploy/packages/build.sh --node

## the units under a real systemd, a node of a Debian with only Python, and a newcomer's walk through the README: boots Debians made by mmdebstrap,
## 12 unless DEBIAN=13; a quarter of an hour
systemd:
	@bash deploy/setup.sh systemd
	ISTHMUS_SYSTEMD=1 ISTHMUS_TEST_SUITE=$$([ "$${DEBIAN:-12}" = 13 ] && echo trixie || echo bookworm) \
		$(BIN)/pytest -v -s tests/join/test_systemd_join.py tests/join/test_walk.py

## the container image, by buildah on a base made from Debian's packages, built twice, compared and run
image:
	@bash deploy/setup.sh
	ISTHMUS_IMAGE=1 $(BIN)/pytest -v tests/deploy/test_image.py

## the pictures of the console in deploy/docs/, taken anew from a lab under churn
pictures:
	@bash deploy/setup.sh test
	$(BIN)/python -m tests.console.pictures

## lint, format, types, and who may import whom
check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup:
	@bash deploy/setup.sh

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
