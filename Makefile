# Testudo. `make` lists the targets; `make test` is all that CI runs.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

MODULES  := ipsec proto keymgr dataplane policyd services test
PACKAGES := $(MODULES:%=./%/...)
OUT      := $(CURDIR)/out
TOOLS    := $(OUT)/tools
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS  := -X github.com/testudo-ipsec/testudo/services/internal/daemon.Version=$(VERSION)
# Two packages at a time: the lab's daemons want processors too.
GOTEST   := go test -p 2 -timeout 40m

# Tests run these programs, not ones they would build themselves.
export TESTUDO_BIN := $(OUT)/bin

.PHONY: help
help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

## Building

.PHONY: deps
deps: ## Install the Debian packages that tests need (as root; else print how)
	@scripts/deps

.PHONY: build
build: ## Build the programs into out/bin
	@mkdir -p $(OUT)/bin
	go build -trimpath -ldflags '$(LDFLAGS)' -o $(OUT)/bin/ ./services/cmd/...

.PHONY: vaultserver
vaultserver: ## Build the Vault server that tests use (minutes, the first time)
	@mkdir -p $(OUT)/bin
	cd test/vaultserver && GOWORK=off nice go build -trimpath -o $(OUT)/bin/vaultserver .

.PHONY: tools
tools: $(TOOLS)/benchstat $(TOOLS)/buf $(TOOLS)/golangci-lint ## Build the pinned developer tools into out/tools

# A tool is built again when its pin changes.
$(TOOLS)/benchstat: tools/go.mod
	@mkdir -p $(TOOLS)
	cd tools && GOWORK=off go build -o $(TOOLS)/ tool
	@touch $@

$(TOOLS)/buf: tools/buf/go.mod
	@mkdir -p $(TOOLS)
	cd tools/buf && GOWORK=off nice go build -o $(TOOLS)/ tool
	@touch $@

$(TOOLS)/golangci-lint: tools/lint/go.mod
	@mkdir -p $(TOOLS)
	cd tools/lint && GOWORK=off nice go build -o $(TOOLS)/ tool
	@touch $@

.PHONY: clean
clean: ## Remove what was built
	rm -rf $(OUT)

## Testing

# In this order, so that what fails fast fails first and the summary of go test is
# the end of the output.
TEST_STEPS := deps verify build vaultserver race unit

.PHONY: test
test: ## Install what is needed, verify, build, and run every test
	@begin=$$(date +%s); for step in $(TEST_STEPS); do \
		echo "=== $$step (after $$(($$(date +%s) - begin)) s)"; $(MAKE) $$step; \
	done

.PHONY: unit
# What the live tests run are programs, which go test's cache does not see.
unit: build ## Run every test once, without the race detector
	$(GOTEST) $(filter-out ./test/...,$(PACKAGES))
	$(GOTEST) -count 1 ./test/...

# The lab's own processes are not instrumented, so live tests would gain nothing.
.PHONY: race
race: ## Run the tests of our own code with the race detector
	$(GOTEST) -race -short $(filter-out ./test/...,$(PACKAGES))

.PHONY: interop
interop: build ## Talk to strongSwan: a line for each scenario, and how many passed
	@go test -c -o $(OUT)/interop.test ./test/interop
	@cd test/interop && $(OUT)/interop.test -test.run '^TestInterop$$' -test.parallel 4 -test.timeout 40m

.PHONY: interop-vm
interop-vm: build ## Talk to peers in virtual machines, whose kernel does ESP and AH
	@scripts/deps machines
	@TESTUDO_MACHINES=1 go test -count 1 -run '^TestMachine$$' ./test/lab
	@go test -c -o $(OUT)/interop.test ./test/interop
	@cd test/interop && TESTUDO_MACHINES=1 $(OUT)/interop.test -test.run '^Test(Kernel|Libreswan|OpenIKED)$$' -test.timeout 40m

.PHONY: model
model: ## Run 10^5 random schedules of both ends of an IKE SA, and 10^4 of faults of two key managers (4 minutes)
	TESTUDO_SCHEDULES=100000 go test -count 1 -timeout 30m -run '^TestRandomSchedulesEndInAgreement$$' -v ./keymgr/ike/ikev2
	TESTUDO_SCHEDULES=10000 go test -count 1 -timeout 30m -run '^TestRandomFaultsEndInAgreement$$' ./keymgr/ike/engine

.PHONY: live
live: build ## Run the live tests without strongSwan's scenarios: namespaces, whole fleets
	$(GOTEST) -v ./test/lab/... $(patsubst %,./%/...,$(wildcard test/fleet test/e2e))

.PHONY: demo
demo: build ## Show the whole system on this machine, in namespaces of its own; needs no root
	@scripts/deps demo
	@$(OUT)/bin/testudo demo

.PHONY: bench
bench: ## Run the benchmarks of packages; compare runs with out/tools/benchstat
	go test -p 1 -run '^$$' -bench . -benchmem ./ipsec/... ./keymgr/... ./dataplane/... ./policyd/...

SOAK ?= 10m
.PHONY: soak
soak: build ## Two hosts under mixed traffic, rekeys every few seconds and daemons killed at random, for SOAK (10m)
	@scripts/deps
	TESTUDO_SOAK=$(SOAK) go test -count 1 -timeout 6h -run TestSoak -v ./test/soak

.PHONY: scale
scale: ## Hold 100,000 IKE SAs in one engine and rekey them all (minutes, a gigabyte)
	TESTUDO_SCALE=1 go test -count 1 -timeout 30m -run TestHundredThousandIKESAs -v ./keymgr/ike/engine

RIVALS := $(OUT)/rivals
.PHONY: bench-dataplane
bench-dataplane: build ## Measure our workers beside wireguard-go and strongSwan's libipsec (10 minutes, wants the machine to itself)
	@scripts/deps
	@mkdir -p $(RIVALS)
	cd test/rivals && GOWORK=off go build -trimpath -o $(RIVALS)/wireguard-go golang.zx2c4.com/wireguard
	go build -trimpath -tags testudo_null_cipher -o $(RIVALS)/workerd-null ./services/cmd/workerd
	go test -run '^$$' -bench 'Ratio/(seal|open)/aes128gcm16/(64|1400)' ./dataplane/esp
	go test -run '^$$' -bench 'InstalledSAs|Train/.*/tunnel|Single' -benchmem ./dataplane/engine
	TESTUDO_BENCH=$(RIVALS) go test -count 1 -timeout 60m -run TestDataplane -v ./test/bench

.PHONY: bench-ike
bench-ike: build ## Measure our responder beside strongSwan's charon with the same initiator, and ordinary peers beside floods (12 minutes, wants the machine to itself)
	@scripts/deps
	TESTUDO_BENCH_IKE=1 go test -count 1 -timeout 60m -run TestIKE -v ./test/bench

## Verifying: each verify-x that a program can repair has its fix-x

.PHONY: verify
verify: verify-fmt verify-tidy verify-modules verify-proto verify-scripts verify-lint ## Check all that needs no test

.PHONY: fix
fix: fix-fmt fix-tidy fix-proto fix-lint ## Repair what can be repaired

.PHONY: verify-fmt
verify-fmt: ## Is the Go code formatted?
	@out=$$(gofmt -l $(MODULES)); if [ -n "$$out" ]; then echo "not formatted, run make fix-fmt:"; echo "$$out"; exit 1; fi

.PHONY: fix-fmt
fix-fmt: ## Format the Go code
	gofmt -w $(MODULES)

.PHONY: verify-tidy
verify-tidy: ## Do go.mod and go.sum say what the code imports?
	@for m in $(MODULES) test/vaultserver test/rivals tools tools/buf tools/lint; do \
		(cd $$m && GOWORK=off go mod tidy -diff) || { echo "$$m: run make fix-tidy"; exit 1; }; \
	done

.PHONY: fix-tidy
fix-tidy: ## Tidy every module
	@for m in $(MODULES) test/vaultserver test/rivals tools tools/buf tools/lint; do (cd $$m && GOWORK=off go mod tidy); done

.PHONY: verify-modules
verify-modules: ## Does each module build and vet by itself, without go.work?
	@for m in $(MODULES); do echo "$$m"; (cd $$m && GOWORK=off go build ./... && GOWORK=off go vet ./...); done

# The sums cover sources, options and pins, so a check needs no buf.
PROTO_SUMS = find proto/testudo proto/gen tools/buf/buf.gen.yaml tools/go.mod tools/buf/go.mod -type f | LC_ALL=C sort | xargs sha256sum

.PHONY: verify-proto
verify-proto: ## Is proto/gen made from proto/testudo by the pinned tools?
	@$(PROTO_SUMS) | diff tools/buf/generated.sha256 - || { echo "proto: sources or generated code changed, run make fix-proto"; exit 1; }

.PHONY: fix-proto
fix-proto: $(TOOLS)/buf $(TOOLS)/benchstat ## Generate proto/gen
	$(TOOLS)/buf lint proto
	rm -rf proto/gen
	$(TOOLS)/buf generate proto --template tools/buf/buf.gen.yaml
	$(PROTO_SUMS) > tools/buf/generated.sha256

# The state to stay compatible with: a tag, a branch or a commit.
AGAINST ?= main
.PHONY: verify-breaking
verify-breaking: $(TOOLS)/buf ## Would the contracts break programs built from AGAINST (default main)?
	$(TOOLS)/buf breaking proto --against '.git#ref=$(AGAINST),subdir=proto'

.PHONY: verify-lint
verify-lint: $(TOOLS)/golangci-lint ## Do the linters of .golangci.yml agree?
	$(TOOLS)/golangci-lint run $(PACKAGES)

.PHONY: fix-lint
fix-lint: $(TOOLS)/golangci-lint ## Let the linters repair what they can
	$(TOOLS)/golangci-lint run --fix $(PACKAGES)

.PHONY: verify-scripts
verify-scripts: ## Are the shell scripts free of the usual mistakes?
	shellcheck scripts/* .ci/run
