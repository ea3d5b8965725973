# `make` alone prints this list of targets.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
DEMO   ?= demo-store
DATA   ?= ../shared/data
SET    ?= .cache/gaussians
IMAGES  ?= cpu reader
BUILDER ?= docker
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
AIRFLOW ?= airflow

.PHONY: help demo test test-quick check format bench bench-models bench-quality bench-folds bench-yardsticks bench-claims bench-refresh bench-kill bench-turmoil bench-scale bench-bad-nights bench-serve bench-encode bench-flat bench-tail bench-churn bench-latency bench-hosts cluster-growing cluster-watch cluster-nights cluster-thirty cluster-sized install clean image test-schedulers test-pods bench-measures bench-flips bench-space bench-segments bench-reader

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1|/' | column -t -s '|'

demo: $(VENV)/.run  ## the whole way on a rendered catalogue, in ./demo-store (about four minutes with two cores)
	$(BIN)/codebooks demo store=$(DEMO)

test: $(VENV)/.dev  ## all tests, in two processes: real Ray, real FAISS, a real S3 server process
	$(BIN)/python -m pytest -n 2 --no-loadscope-reorder

test-quick: $(VENV)/.dev  ## the tests that need neither Ray, nor an S3 server, nor more than about a second each
	$(BIN)/python -m pytest -n 2 -m "not slow and not ray and not s3" --no-loadscope-reorder

check: $(VENV)/.dev  ## ruff and mypy (strict)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev  ## small benchmarks; each compares two ways in one run and prints a ratio
	@for name in decode encode search train; do echo "== $$name"; $(BIN)/python tests/benchmarks/bench_$$name.py || exit 1; done

bench-models: $(VENV)/.dev  ## every preset trained and measured (DATA=folder), about an hour; can be continued
	$(BIN)/python tests/benchmarks/bench_models.py --data $(DATA) --jobs 2
	$(BIN)/python tests/benchmarks/bench_models.py --data $(DATA) --jobs 2 --catalogue clothing

bench-quality: $(VENV)/.dev  ## models and baselines by the same measures, three seeds (DATA=folder), hours; can be continued
	$(BIN)/python tests/benchmarks/bench_quality.py --data $(DATA) --jobs 2
	$(BIN)/python tests/benchmarks/bench_quality.py --data $(DATA) --jobs 2 --catalogue clothing

bench-folds: $(VENV)/.dev  ## clothing photos over five folds by contributor (DATA=folder LITE0=file.onnx)
	$(BIN)/python tests/benchmarks/bench_folds.py --data $(DATA) $(if $(LITE0),--weights $(LITE0))

bench-yardsticks: $(VENV)/.dev  ## what labels would give, what fewer numbers cost, what outweighs a design (DATA=folder)
	$(BIN)/python tests/benchmarks/bench_yardsticks.py --data $(DATA) --seeds 0
	$(BIN)/python tests/benchmarks/bench_yardsticks.py --data $(DATA) --seeds 0 --catalogue clothing

bench-claims: $(VENV)/.dev  ## what the seed texts claim, as small experiments (DATA=folder), about 12 minutes
	$(BIN)/python tests/benchmarks/bench_claims.py --data $(DATA) --jobs 2

bench-refresh: $(VENV)/.dev  ## refreshes of real catalogues (DATA=folder), about ten minutes
	$(BIN)/python tests/benchmarks/bench_refresh.py --data $(DATA)

bench-space: $(VENV)/.dev  ## a retrain with and without the kept space: neighbours, and a consumer's classifier (DATA=folder)
	$(BIN)/python tests/benchmarks/bench_space.py --data $(DATA) --json tests/benchmarks/results/space.json

bench-flips: $(VENV)/.dev  ## every file of a signed release damaged in every way: who refuses it by name
	$(BIN)/python tests/benchmarks/bench_flips.py --json tests/benchmarks/results/flips.json

bench-kill: $(VENV)/.dev  ## ten refreshes killed with -9 and run again, about ten minutes
	$(BIN)/python tests/benchmarks/bench_kill.py

bench-bad-nights: $(VENV)/.dev  ## which gate stops which bad night, and 37 honest ones (DATA=folder), about five minutes
	$(BIN)/python tests/benchmarks/bench_bad_nights.py --data $(DATA)

bench-turmoil: $(VENV)/.dev  ## sixteen processes on one store while calls fail, on a disk and on SeaweedFS, about fifteen minutes
	$(BIN)/python tests/benchmarks/bench_turmoil.py --json tests/benchmarks/results/turmoil.json

bench-scale: $(VENV)/.dev  ## nights of 100,000 to 1,000,000 photos without photos: seconds and the driver's memory, ten minutes
	$(BIN)/python tests/benchmarks/bench_scale.py --photos 100000 300000 1000000 --json scale.json --plot scale.png

bench-serve: $(VENV)/.dev  ## hot swap: 200 requests a second at `codebooks serve` while its channel moves 24 times, two minutes
	$(BIN)/python tests/benchmarks/bench_serve.py --json tests/benchmarks/results/serve.json

bench-measures: $(VENV)/.dev  ## what the nightly measures cost at 60,000 and 1 million items (DATA=folder), some minutes
	$(BIN)/python tests/benchmarks/bench_measures.py --data $(DATA) --json tests/benchmarks/results/measures.json

bench-index: $(VENV)/.dev  ## every kind of index over 60,000 real latents, and the open set of Gaussians (DATA=folder SET=folder)
	$(BIN)/python tests/benchmarks/bench_index.py --data $(DATA) --json tests/benchmarks/results/index.json
	$(BIN)/python tests/benchmarks/bench_divergence.py --data $(DATA) --set $(SET) --only set,kinds \
	  --json tests/benchmarks/results/divergence.json

bench-segments: $(VENV)/.dev  ## an index of segments of 1,000,000 rows (DATA=folder): nights, a builder, readers, ten minutes
	$(BIN)/python tests/benchmarks/bench_segments.py --data $(DATA)/fashion-mnist --json tests/benchmarks/results/segments.json

bench-reader: $(VENV)/.dev  ## a release of 1,000,000 items as a service meets it (DATA=folder): opening, questions, memory
	$(BIN)/python tests/benchmarks/bench_reader.py --data $(DATA)/fashion-mnist --json tests/benchmarks/results/reader.json

bench-flat: $(VENV)/.dev  ## 200,000 generated photos encoded: memory of driver and actors over time
	$(BIN)/python tests/benchmarks/bench_flat.py --json tests/benchmarks/results/flat.json --plot flat.png

bench-tail: $(VENV)/.dev  ## what smaller last shards save beside a slow actor
	$(BIN)/python tests/benchmarks/bench_tail.py --json tests/benchmarks/results/tail.json

bench-churn: $(VENV)/.dev  ## photo-seconds of a night of 1 % churn against a full encode (DATA=folder)
	$(BIN)/python tests/benchmarks/bench_churn.py --data $(DATA) --json tests/benchmarks/results/churn.json

bench-hosts: $(VENV)/.dev  ## two nights over three hundred web hosts, slow, dead and signed
	$(BIN)/python tests/benchmarks/bench_hosts.py --json tests/benchmarks/results/hosts.json

bench-latency: $(VENV)/.dev  ## encoding from an S3 server process that takes 20 ms a GET
	$(BIN)/python tests/benchmarks/bench_latency.py --json tests/benchmarks/results/latency.json

bench-encode: $(VENV)/.dev  ## encoding on Ray against as many plain processes and against Ray's documented pipeline, ten minutes
	$(BIN)/python tests/benchmarks/bench_encode.py --count 20000 --pairs 3 --documented
	$(BIN)/python tests/benchmarks/bench_encode.py --count 5000 --slow-s 0.45

cluster-growing: $(VENV)/.dev  ## 400 actors and a GPU asked of a cluster that grows from one small node (root, about four minutes)
	$(BIN)/python tests/cluster/autoscaled_encoding.py --out tests/benchmarks/results/growing.json

cluster-nights: $(VENV)/.dev  ## nights on five machines in namespaces, nodes and head lost (root, about half an hour)
	$(BIN)/python tests/cluster/nights.py --json tests/benchmarks/results/nights.json

cluster-thirty: $(VENV)/.dev  ## thirty submitted nights by the crontab's line, faults among them (root)
	$(BIN)/python tests/cluster/thirty_nights.py --json tests/benchmarks/results/thirty.json

cluster-sized: $(VENV)/.dev  ## sizing's simulation against nights on one, two and four Ray nodes (root)
	$(BIN)/python tests/cluster/sized_nodes.py --json tests/benchmarks/results/sized_nodes.json

image:  ## container images (IMAGES="cpu gpu reader serve" BUILDER=docker or podman), and what each layer adds
	@for target in $(IMAGES); do \
	  $(BUILDER) build --file docker/Dockerfile --target $$target --build-arg VERSION=$(VERSION) \
	    --build-arg REVISION=$$(git rev-parse --short HEAD) $(BUILD_OPTIONS) --tag visual-codebooks-$$target:$(VERSION) . || exit 1; \
	  echo "visual-codebooks-$$target:$(VERSION), layer by layer:"; \
	  $(BUILDER) history --format '{{.Size}}|{{.CreatedBy}}' visual-codebooks-$$target:$(VERSION) | grep -v '^0 *B' | cut -c1-110; \
	done

test-schedulers: $(VENV)/.dev  ## the DAG in a real Airflow 3 (AIRFLOW=program; PostgreSQL's server)
	$(BIN)/python tests/cluster/airflow_nights.py --airflow $(AIRFLOW) --json tests/benchmarks/results/airflow.json
	$(BIN)/python tests/cluster/airflow_backfill.py --airflow $(AIRFLOW) --json tests/benchmarks/results/airflow.json

test-pods: $(VENV)/.dev  ## Kubernetes' pods by podman (as root, after make image BUILDER=podman IMAGES="cpu reader serve")
	kubectl kustomize cluster/kubernetes/overlays/aws > rendered.yaml
	$(BIN)/python tests/cluster/pod_templates.py rendered.yaml --json tests/benchmarks/results/pods.json

cluster-watch: $(VENV)/.dev  ## nights told to a real Prometheus and Alertmanager, rules against wrong versions (Debian's prometheus*)
	$(BIN)/python tests/cluster/watch_chain.py --write

install: $(VENV)/.dev  ## everything into .venv

clean:  ## remove the environment and the demo's folder
	rm -rf $(VENV) $(DEMO) .cache build ./*.egg-info

$(VENV)/.run: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -c constraints.txt -e '.[cpu,run,serve]'
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(PIP) install --quiet -c constraints.txt -e '.[cpu,run,serve,dev]'
	$(PIP) install --quiet -c constraints.txt --no-deps lightly  # oracle of losses; MIT; its trainer is not needed
	$(BIN)/python tests/moto_server.py  # an environment of its own for the S3 server of tests
	touch $@
