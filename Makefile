# Targets for people and for .ci/run. `make help` lists them.

GO       ?= $(shell command -v go || echo /usr/local/go/bin/go)
DESTDIR  ?=
PREFIX   ?= /usr/local
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
# -race for the packages that run in one process; needs a C compiler.
RACE     ?=
# Options of `make bench`, `make bench-growth`, `make bench-beside` and `make bench-direct`.
BENCH    ?=
# What of ours is linked into ssh-captured, the one privileged program, is to stay readable: lines at most.
CAPTURED := 4000

PROGRAMS := ssh-broker ssh-capture ssh-broker-ctl ssh-captured ssh-gateway
# ssh-captured has no package of the broker's in it, and so a version of its own.
LDFLAGS  := -s -w -X sshbroker/broker/control.version=$(VERSION) -X main.version=$(VERSION)
# ssh-capture notes down what its command is to inherit before the Go runtime changes it.
ENTRY    := $(if $(filter amd64 arm64,$(shell $(GO) env GOARCH)),-E sshbroker/capture/inherit.start)
SHELLS   := $(wildcard .ci/run .ci/install-packages .ci/vulncheck .ci/fuzz test/*/*.sh etc/*.sh etc/deb/*.sh etc/deb/*.p*) etc/completions/ssh-capture.bash etc/completions/ssh-captured.bash

# The recipes and scripts call go by name.
export PATH := $(PATH):$(dir $(GO))

.PHONY: build demo demo-gateway demo-system test test-long cover compare bench bench-growth bench-beside bench-direct size lint print-shells install uninstall deb clean help packages
.DEFAULT_GOAL := build

build: ## static programs into bin/
	@mkdir -p bin
	for p in $(PROGRAMS); do \
		case $$p in ssh-capture) entry='$(ENTRY)';; *) entry=;; esac; \
		CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags "$(LDFLAGS) $$entry" -o bin/$$p ./cmd/$$p || exit 1; \
	done
	ln -sf ssh-broker bin/ssh-broker-g3

demo: build ## a captured program and its tunnel, shown on this machine; no root, no server
	./test/demo/run.sh

demo-gateway: build ## ssh-gateway with an authority of its own and a captured program, shown on this machine; no root
	./test/demo/run.sh -gateway

demo-system: ## rules for a whole host with three users, shown in namespaces of this machine; needs root
	@./test/demo/system.sh

packages:
	@.ci/install-packages

test: packages ## all tests; as root the privileged ones too
	$(GO) test -count=1 -timeout 15m $(RACE) $$($(GO) list ./... | grep -v '/test\(/\|$$\)')
	$(GO) test -count=1 -timeout 25m -p 1 ./test/...

test-long: packages ## what takes long: volume, repetition, every fuzz target
	SSHBROKER_LONG=1 $(GO) test -count=1 -timeout 120m -p 1 ./profiles/... ./test/...
	.ci/fuzz

cover: packages ## how much of the code the tests run, in the programs that they start too; one figure, and cover.out
	@dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && chmod 777 "$$dir" && export SSHBROKER_COVER="$$dir" && status=0 && \
	packages=$$($(GO) list ./... | grep -v '/test\(/\|$$\)') && \
	{ $(GO) test -count=1 -timeout 25m -cover $$packages -args -test.gocoverdir="$$dir" || status=1; } && \
	{ $(GO) test -count=1 -timeout 60m -p 1 ./test/... || status=1; } && \
	$(GO) tool covdata textfmt -i="$$dir" -o cover.out -pkg="$$(echo $$packages | tr ' ' ,)" && \
	$(GO) tool cover -func cover.out | tail -1 && exit $$status

compare: packages ## writes the table of docs/comparison.md: neighbours and ssh-capture side by side; needs root
	$(GO) test ./test/comparison -count=1 -timeout 15m -args -update

bench: packages ## compares ssh-capture with ssh -L and no tunnel; needs root; BENCH=-quick, see docs/performance.md
	$(GO) test ./test/bench -run '^$$' -bench Tunnels -benchtime 1x -timeout 20m -args $(BENCH)

bench-growth: packages ## how the figures of bench change from 1 to 10,000 open flows; needs root; BENCH as for bench
	$(GO) test ./test/bench -run '^$$' -bench Growth -benchtime 1x -timeout 60m -args $(BENCH)

bench-beside: packages ## what a session feels of a transfer beside it; needs root; BENCH as for bench
	$(GO) test ./test/bench -run '^$$' -bench Beside -benchtime 1x -timeout 20m -args $(BENCH)

bench-direct: packages ## what captures of the whole host cost traffic that is let alone; needs root; BENCH as for bench
	$(GO) test ./test/bench -run '^$$' -bench Direct -benchtime 1x -timeout 30m -args $(BENCH)
	$(GO) test ./capture/connects -run '^$$' -bench Origin

size: ## lines of ours that are linked into ssh-captured: of code, at most 4,000, and all
	@files=$$($(GO) list -deps -f '{{if .Module}}{{if .Module.Main}}{{range $$f := .GoFiles}}{{$$.ImportPath}} {{$$.Dir}}/{{$$f}}{{"\n"}}{{end}}{{range $$f := .SFiles}}{{$$.ImportPath}} {{$$.Dir}}/{{$$f}}{{"\n"}}{{end}}{{end}}{{end}}' ./cmd/ssh-captured) || exit 1; \
	echo "$$files" | awk -v most=$(CAPTURED) 'NF == 2 { while ((getline line < $$2) > 0) { lines[$$1]++; if (line !~ /^[ \t]*(\/\/.*)?$$/) code[$$1]++ } close($$2) } \
		END { printf "%6s %6s\n", "code", "all"; for (p in lines) { total += lines[p]; sum += code[p]; printf "%6d %6d %s\n", code[p], lines[p], p | "sort -k 3" } close("sort -k 3"); \
			printf "%6d %6d of at most %d of code\n", sum, total, most; exit !sum || sum > most }'

lint: ## gofmt, go vet, staticcheck, govulncheck, shellcheck
	@unformatted=$$(gofmt -l $$(find . -name '*.go' -not -path './.git/*')); \
	if [ -n "$$unformatted" ]; then echo "gofmt: $$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	.ci/vulncheck
	@if command -v shellcheck >/dev/null; then \
		echo shellcheck $(SHELLS); shellcheck $(SHELLS); \
	elif [ "$$CI" = true ]; then echo "shellcheck: not installed, and CI=true allows no skip"; exit 1; \
	else echo "shellcheck: not installed, skipped"; fi

print-shells: # for a test
	@echo $(SHELLS)

install: build ## programs, manual pages, units, examples, completions; DESTDIR, PREFIX
	@PROGRAMS='$(PROGRAMS)' DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' etc/install.sh install

uninstall: ## removes what install has put there; DESTDIR and PREFIX as for that
	@PROGRAMS='$(PROGRAMS)' DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' etc/install.sh uninstall

deb: build ## Debian packages into bin/; needs dpkg-deb
	@PROGRAMS='$(PROGRAMS)' VERSION='$(VERSION)' etc/deb/build.sh bin

clean: ## what build and the tests made
	rm -rf bin
	find . -name '*.test' -o -name '*.prof' | grep -v '^./.git/' | xargs -r rm -f

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
