# The two commands: `make run` sets all up and runs the sunspots job on four
# local nodes; `make test` sets all up and passes every test.

GO ?= go
ifeq ($(origin CC),default)
CC = gcc
endif
GO_NEEDED = 1.26
PROFILE ?= examples/jobs/sunspots/sunspots.xml
NODES ?= 4
FUZZTIME ?= 1m
TEST_TIMEOUT ?= 14m

STAMP := .stamp
LIB := queuevm/c/lib
CLIENT := queuevm/c/mvm.c queuevm/c/collective.c queuevm/c/mvm.h
SLIM := node/embedded/mvm-process
AGENT := osvm/pid1/embedded/agent.gz
SOURCES := $(shell find . \( -path ./.git -o -path ./.stamp \) -prune -o \( -name '*.go' -o -name '*.wsdl' -o -name '*.xsd' -o -name '*.py' -o -name '*.c' -o -name '*.h' \) -print) go.mod go.sum

.DEFAULT_GOAL := build
.PHONY: run build test race lint fresh generate fuzz corpus bench bench-setup microbench conformance soak setup clean help

run: setup build ## set up, build, and run PROFILE on NODES local nodes
	./mvm lab --nodes $(NODES) $(PROFILE)

build: mvm ## build ./mvm with the slim MVM process and the C library in it

# The slim program, the VMs' first program and the C library are embedded, so they
# come first. The two programs say nothing of the commit, nor of the folder: what is
# made of them, as images and templates, would be another after each.
mvm: $(SLIM) $(AGENT) $(LIB)/libmvm.a $(LIB)/libmvm.so $(SOURCES)
	$(GO) build -trimpath -o $@ .

$(SLIM): $(SOURCES)
	@mkdir -p $(@D)
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '-s -w -buildid=' -o $@ ./node/mvm/process

$(AGENT): $(SLIM) $(LIB)/libmvm.a $(LIB)/libmvm.so $(SOURCES)
	@mkdir -p $(@D) $(STAMP)
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '-s -w -buildid=' -o $(STAMP)/agent ./osvm/guest/agent
	gzip -9nc $(STAMP)/agent >$@

$(LIB)/libmvm.a: $(CLIENT)
	@mkdir -p $(@D) $(STAMP)
	$(CC) -std=gnu11 -O2 -fPIC -pthread -Wall -Wextra -c queuevm/c/mvm.c -o $(STAMP)/mvm.o
	rm -f $@ && $(AR) rcs $@ $(STAMP)/mvm.o

$(LIB)/libmvm.so: $(CLIENT)
	@mkdir -p $(@D)
	$(CC) -std=gnu11 -O2 -fPIC -pthread -Wall -Wextra -shared -Wl,-soname,libmvm.so queuevm/c/mvm.c -o $@

test: setup lint fresh build ## set up, lint, check generated code, run every test
	@mkdir -p $(STAMP); rm -f $(AGAIN)
	$(GO) tool gotestsum --format pkgname $(RERUN) --packages ./... -- -timeout $(TEST_TIMEOUT)
	@[ ! -s $(AGAIN) ] || { echo "FAILED AT FIRST, passed when run again alone; each is a defect to be mended:"; cat $(AGAIN); }

# Thousands of tests start real processes and VMs, and a machine can stand still
# for longer than one of them bears. A few that fail are run once more, alone, and
# named at the end: a defect fails again, and what is named is not forgotten.
AGAIN := $(STAMP)/again
RERUN ?= --rerun-fails=1 --rerun-fails-max-failures=6 --rerun-fails-run-root-test --rerun-fails-report=$(AGAIN)

race: setup build ## every test under the race detector, a package at a time
	$(GO) test -race -p 1 -timeout 60m ./...

lint: ## gofmt, go vet, and staticcheck where go.mod names it as a tool
	@unformatted=$$(git ls-files -z --cached --others --exclude-standard '*.go' | xargs -0 gofmt -l); \
	if [ -n "$$unformatted" ]; then echo "not formatted, run gofmt -w on:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	@if $(GO) tool -n staticcheck >/dev/null 2>&1; then $(GO) tool staticcheck ./...; fi

generate: ## write the generated code anew
	$(GO) generate ./...

# Generates in a copy and compares, so that a failed check changes nothing.
fresh: ## fail when generated code is not what its sources give
	@copy=$$(mktemp -d) && trap 'rm -rf "$$copy"' EXIT && \
	git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' f; do [ -f "$$f" ] && printf '%s\0' "$$f"; done | xargs -0 cp --parents -t "$$copy" && \
	(cd "$$copy" && $(GO) generate ./...) && \
	stale=$$(cd "$$copy" && find . -type f | while IFS= read -r f; do cmp -s "$$f" "$(CURDIR)/$$f" || echo "$$f"; done) && \
	if [ -n "$$stale" ]; then echo "generated code is not fresh, run 'make generate':"; echo "$$stale"; exit 1; fi
fresh lint: SHELL := /bin/bash

fuzz: setup build ## run each fuzzer for FUZZTIME, then tell what each did; RESUME=1 goes on
	@GO="$(GO)" FUZZTIME=$(FUZZTIME) FUZZ="$(FUZZ)" RESUME=$(RESUME) PARALLEL=$(PARALLEL) .ci/fuzz run

corpus: setup build ## keep the least of what fuzzing found that runs all that it ran
	@GO="$(GO)" FUZZ="$(FUZZ)" .ci/fuzz corpus

# Ratios against its peers, measured in turns. BENCH='-case launch,jobs' runs
# some cases and only prints.
bench: bench-setup build ## measure MVM against MPICH, Slurm, nginx and others, into examples/bench/RESULTS.md
	$(GO) run ./examples/bench -mvm ./mvm $(or $(BENCH),-o examples/bench/RESULTS.md)

microbench: setup build ## run every package's own benchmarks
	$(GO) test -run '^$$' -bench . -benchtime 2s ./...

conformance: setup build ## other people's SOAP stacks against a running grid
	$(GO) test -count 1 -run 'TestScripts/conformance' .
	MVM_CONFORMANCE=all $(GO) test -count 1 -v ./examples/conformance/...

# The seed that it prints replays a run: make soak SOAK='-seed 1234'.
soak: PEERS = need mmdebstrap mmdebstrap; need sfdisk fdisk;
soak: setup build ## the long loops of faults: 2,000 jobs through four nodes, every kill point, 10 million items
	$(GO) test -count 1 -v -timeout 120m ./examples/soak -args -long $(SOAK)
	MVM_SOAK=1 $(GO) test -count 1 -timeout 120m -p 1 ./node ./node/worker ./queuevm ./osvm

bench bench-setup: PEERS = need mpicc.mpich mpich; need mpicc.mpich libmpich-dev; need mpiexec.openmpi openmpi-bin; need mpicc.openmpi libopenmpi-dev; need slurmctld slurm-wlm; need munged munge; need nginx nginx-light; need curl curl; need soapcpp2 gsoap; need wrk wrk;
bench-setup: setup ## install also what MVM is measured against

# The end of a recipe: what is in $$missing is installed where that may be, and
# else named. The first argument names the log, the second says what it is for.
define debian
[ -z "$$missing" ] && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing:$$missing"; mkdir -p $(CURDIR)/$(STAMP); \
		{ apt-get install -y --no-install-recommends $$missing || \
		{ apt-get update && apt-get install -y --no-install-recommends $$missing; }; } >$(CURDIR)/$(STAMP)/$(1).log 2>&1 && exit 0; \
		tail -20 $(CURDIR)/$(STAMP)/$(1).log; \
	fi; \
	echo "install these Debian packages ($(2)):$$missing"; \
	echo "for example: sudo apt-get install$$missing"; exit 1
endef

setup: ## install what is missing from Debian, or say what to install
	@if ! command -v $(GO) >/dev/null; then \
		echo "Go $(GO_NEEDED) or newer is needed: install it from https://go.dev/dl/ and put its bin folder on PATH"; exit 1; fi
	@version=$$($(GO) env GOVERSION | sed 's/^go//; s/[^0-9.].*//'); \
	if [ "$$(printf '%s\n%s\n' $(GO_NEEDED) "$$version" | sort -V | head -1)" != "$(GO_NEEDED)" ]; then \
		echo "Go $(GO_NEEDED) or newer is needed, this is $$version: install it from https://go.dev/dl/"; exit 1; fi
	@missing=""; \
	need() { command -v "$$1" >/dev/null || missing="$$missing $$2"; }; \
	[ "$$(uname -m)" != x86_64 ] || need qemu-system-x86_64 qemu-system-x86; need cpio cpio; \
	need gcc gcc; need g++ g++; need python3 python3; need xmllint libxml2-utils; \
	need curl curl; need git git; need ar binutils; need taskset util-linux; need scotch_gmap scotch; \
	PATH="$$PATH:/usr/sbin:/sbin"; $(PEERS) \
	need qemu-img qemu-utils; need mke2fs e2fsprogs; \
	[ -e /usr/include/stdio.h ] || missing="$$missing libc6-dev"; \
	[ -e /etc/ssl/certs/ca-certificates.crt ] || missing="$$missing ca-certificates"; \
	$(call debian,setup,or what your system calls them)
	@$(MAKE) -s --no-print-directory stacks || \
		echo "MISSING: these SOAP stacks will not be tried; all else works without them"

# Nothing but the tests of examples/conformance needs these, and they skip what
# is missing; make conformance fails then.
.PHONY: stacks
stacks: ## install other people's SOAP stacks, or say what to install
	@missing=""; \
	need() { command -v "$$1" >/dev/null || missing="$$missing $$2"; }; \
	need wsdl2h gsoap; need php php-cli; need node nodejs; need npm npm; need dash dash; \
	[ -e /usr/include/stdsoap2.h ] || missing="$$missing libgsoap-dev"; \
	[ -e /usr/include/openssl/evp.h ] || missing="$$missing libssl-dev"; \
	/usr/bin/python3 -c 'import zeep' 2>/dev/null || missing="$$missing python3-zeep"; \
	php -r 'exit(class_exists("SoapClient") ? 0 : 1);' 2>/dev/null || missing="$$missing php-soap"; \
	perl -MSOAP::Lite -e 1 2>/dev/null || missing="$$missing libsoap-lite-perl"; \
	$(call debian,stacks,to try every SOAP stack)
	@$(MAKE) -s --no-print-directory $(NODE_SOAP)/.installed

# npm gets a home of its own: it works without one, and make clean removes it.
NODE_SOAP = $(STAMP)/node-soap
$(NODE_SOAP)/.installed: $(addprefix examples/conformance/node-soap/,package.json package-lock.json .npmrc)
	@rm -rf $(NODE_SOAP) && mkdir -p $(NODE_SOAP) && cp $^ $(NODE_SOAP)
	@echo "installing: node-soap"
	@cd $(NODE_SOAP) && npm ci --cache $(CURDIR)/$(STAMP)/npm --ignore-scripts --no-audit --no-fund --no-update-notifier >npm.log 2>&1 || \
		{ tail -5 npm.log; echo "npm cannot install node-soap"; exit 1; }
	@touch $@

clean: ## remove what was built
	rm -rf mvm $(SLIM) $(AGENT) $(LIB)/libmvm.a $(LIB)/libmvm.so $(STAMP)

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 14
