package doctor

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"sshbroker/broker/config"
	"sshbroker/broker/control"
	"sshbroker/broker/trial"
	"sshbroker/capture"
	"sshbroker/capture/probe"
	"sshbroker/capture/service"
	"sshbroker/profiles"
)

// run makes checks with nothing around them, and returns what was found by check.
func run(t *testing.T, env Env, names ...string) map[string][]Result {
	t.Helper()
	found := map[string][]Result{}
	var checks []Check
	for _, c := range Checks() {
		for _, n := range names {
			if c.Name == n {
				checks = append(checks, c)
			}
		}
	}
	if len(checks) != len(names) {
		t.Fatalf("%v: %d checks", names, len(checks))
	}
	if err := Run(t.Context(), env, checks, func(Check) {}, func(r Result) { found[r.Check] = append(found[r.Check], r) }); err != nil {
		t.Fatal(err)
	}
	return found
}

func require(t *testing.T, rs []Result, status Status, text string) {
	t.Helper()
	if len(rs) != 1 || rs[0].Status != status || !strings.Contains(rs[0].Text+"\n"+rs[0].Cure, text) || (rs[0].Cure != "") != (status == Warning || status == Failed) {
		t.Errorf("%+v, want %s and %q", rs, status, text)
	}
}

// captureSaying is an ssh-capture that makes this report.
func captureSaying(t *testing.T, r probe.Report) trial.Programs {
	t.Helper()
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "ssh-capture")
	if err := os.WriteFile(path, []byte("#!/bin/sh\ncat <<'!'\n"+string(b)+"\n!\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return trial.Programs{Capture: path}
}

// TestKernels are those that the tests' own machine is not.
func TestKernels(t *testing.T) {
	all := probe.Features{Queue: probe.QueueNative, Owner: true, Persist: true, Cgroup: true, Zones: true}
	with := func(change func(*probe.Report)) Env {
		r := probe.Report{Held: true, IPv6: true, Features: all}
		change(&r)
		return Env{Programs: captureSaying(t, r)}
	}
	for _, c := range []struct {
		check  string
		change func(*probe.Report)
		status Status
		text   string
	}{
		{"namespaces", func(*probe.Report) {}, OK, ""},
		{"namespaces", func(r *probe.Report) { r.IPv6 = false }, Warning, "without IPv6"},
		{"namespaces", func(r *probe.Report) { r.Namespace = probe.Outcome{Error: "forbidden", Cure: "allow it"} }, Failed, "allow it"},
		{"namespaces", func(r *probe.Report) { r.Namespace.Error = "broken" }, Failed, "--backend=cgroup needs no namespaces"},
		{"namespace", func(r *probe.Report) { r.Namespace.Error = "broken" }, Skipped, "see the check namespaces"},
		{"packet-queue", func(*probe.Report) {}, OK, "nft's own"},
		{"packet-queue", func(r *probe.Report) { r.Features.Queue = probe.QueueTarget }, OK, "NFQUEUE"},
		{"packet-queue", func(r *probe.Report) { r.Features.Queue = probe.QueueNone }, Warning, "modprobe nft_queue"},
		{"packet-queue", func(r *probe.Report) { r.Probed = probe.Outcome{Error: "forbidden", Cure: "allow it"} }, Unknown, "allow it"},
		{"packet-queue", func(r *probe.Report) { r.Probed.Error = "broken" }, Unknown, "broken"},
		{"table-owner", func(*probe.Report) {}, OK, ""},
		{"table-owner", func(r *probe.Report) { r.Features.Persist = false }, Warning, "6.9"},
		{"table-owner", func(r *probe.Report) { r.Features.Persist, r.Features.Owner = false, false }, Warning, "any program can flush"},
		{"cgroups", func(r *probe.Report) { r.Features.Cgroup = false }, Warning, "CONFIG_SOCK_CGROUP_DATA"},
		{"cgroups", func(r *probe.Report) { r.Probed.Error = "broken" }, Unknown, "broken"},
	} {
		require(t, run(t, with(c.change), c.check)[c.check], c.status, c.text)
	}
	require(t, run(t, Env{Programs: trial.Programs{Capture: "/no/such/program"}}, "namespaces")["namespaces"], Unknown, "/no/such/program")
}

func TestTracking(t *testing.T) {
	sys := func(count, most int) Env {
		dir := filepath.Join(t.TempDir(), "sys")
		if err := os.MkdirAll(filepath.Join(dir, "net/netfilter"), 0o755); err != nil {
			t.Fatal(err)
		}
		for name, n := range map[string]int{"count": count, "max": most} {
			if err := os.WriteFile(filepath.Join(dir, "net/netfilter/nf_conntrack_"+name), fmt.Appendln(nil, n), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		return Env{Sys: dir}
	}
	for _, c := range []struct {
		count, most int
		want        Status
	}{{0, 100, OK}, {79, 100, OK}, {80, 100, Warning}, {94, 100, Warning}, {95, 100, Failed}, {300, 100, Failed}, {5, 0, OK}} {
		require(t, run(t, sys(c.count, c.most), "tracking")["tracking"], c.want, "are tracked")
	}
	require(t, run(t, Env{Sys: t.TempDir()}, "tracking")["tracking"], Skipped, "does not track")
}

func TestJudgeBroker(t *testing.T) {
	v := &visit{Env: Env{Version: "1"}}
	good := control.StatusRow{Version: "1"}
	if got := v.judgeBroker(good); len(got) > 0 {
		t.Errorf("%+v", got)
	}
	for _, c := range []struct {
		change func(*control.StatusRow)
		status Status
		text   string
	}{
		{func(r *control.StatusRow) { r.Version = "2" }, Warning, "of version 2, and this program of 1"},
		{func(r *control.StatusRow) { r.Audit.Failed = 3 }, Failed, "3 are lost"},
		{func(r *control.StatusRow) { r.Audit.Error = "disk full" }, Failed, "disk full"},
		{func(r *control.StatusRow) { r.Log = []control.LogTarget{{Target: "syslog", Lost: 4}} }, Warning, "4 are lost"},
		{func(r *control.StatusRow) { r.ListenerErrors = []string{"port taken"} }, Failed, "port taken"},
		{func(r *control.StatusRow) { r.PlaceError = "no netlink" }, Warning, "no netlink"},
		{func(r *control.StatusRow) { r.Captured = &control.CapturedStatus{Error: "gone"} }, Warning, "not connected to ssh-captured: gone"},
		{func(r *control.StatusRow) { r.ConfigFiles, r.ConfigDigest = []string{"/no/such/file"}, "00" }, Warning, "cannot be read any more"},
	} {
		row := good
		c.change(&row)
		require(t, v.judgeBroker(row), c.status, c.text)
	}
}

func TestJudgeCaptured(t *testing.T) {
	if got := judgeCaptured(service.Status{Keeper: "parent", Enabled: true, Serving: true}); len(got) > 0 {
		t.Errorf("%+v", got)
	}
	for _, c := range []struct {
		change func(*service.Status)
		status Status
		text   string
	}{
		{func(s *service.Status) { s.Serving = false; s.Policy = "closed" }, Failed, "decide wait"},
		{func(s *service.Status) { s.Serving = false; s.Policy = "open" }, Failed, "go out in clear"},
		{func(s *service.Status) { s.Captures = []service.Capture{{ID: "abc", Owner: 7}} }, Failed, "capture abc of uid 7 has no broker"},
		{func(s *service.Status) { s.Keeper = "none" }, Warning, "--no-keeper"},
		{func(s *service.Status) { s.LostMark = 2 }, Warning, "2 connections were dropped, as a foreign rule had taken"},
		{func(s *service.Status) { s.Diverted = 2 }, Warning, "diverted"},
		{func(s *service.Status) { s.Repairs = 2 }, Warning, "flush ruleset"},
		{func(s *service.Status) { s.Overruns = 2 }, Warning, "not read in time"},
	} {
		s := service.Status{Keeper: "parent", Enabled: true, Serving: true}
		c.change(&s)
		require(t, judgeCaptured(s), c.status, c.text)
	}
}

func TestCapturesText(t *testing.T) {
	one := service.Capture{ID: "a", Owner: 7, Spec: &capture.Spec{Rules: make([]capture.SpecRule, 2)}}
	for _, c := range []struct {
		captures []service.Capture
		want     string
	}{
		{nil, "no captures"},
		{[]service.Capture{one, {ID: service.System}}, "captures: a of uid 7 by 2 rules, the whole system"},
		{[]service.Capture{one, one, one, one}, "captures: " + strings.Repeat("a of uid 7 by 2 rules, ", 3) + "a of uid 7 by 2 rules"},
		{[]service.Capture{one, one, one, one, one, one}, "captures: " + strings.Repeat("a of uid 7 by 2 rules, ", 4) + "2 more"},
	} {
		if got := capturesText(c.captures); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

func TestJudgeCertificate(t *testing.T) {
	now := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		cert   certificate
		status Status
		text   string
	}{
		{certificate{before: now.Add(soon - time.Second)}, Warning, "renew it"},
		{certificate{before: now}, Failed, "has expired at 2026-06-01 12:00:00 UTC"},
		{certificate{after: now.Add(time.Second)}, Failed, "see the check clock"},
		{certificate{problem: "for another user"}, Failed, "for another user"},
	} {
		c.cert.cure = "renew it"
		require(t, c.cert.judge(now), c.status, c.text)
	}
	for _, c := range []certificate{{}, {before: now.Add(soon)}, {after: now}} {
		if got := c.judge(now); len(got) > 0 {
			t.Errorf("%+v: %+v", c, got)
		}
	}
}

// TestTLSCertificates: ours and those of authorities, of profiles of TLS alone, each file once.
func TestTLSCertificates(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string, ends ...time.Duration) string {
		t.Helper()
		var text []byte
		for _, end := range ends {
			c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-1000 * time.Hour), NotAfter: now.Add(end)}
			der, err := x509.CreateCertificate(nil, c, c, key.Public(), key)
			if err != nil {
				t.Fatal(err)
			}
			text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good, old, mixed := file("good", 2*soon), file("old", -time.Hour), file("mixed", 2*soon, time.Hour)
	certificates := func(tls ...profiles.TLSSettings) []Result {
		c := &config.Config{Profiles: map[string]*profiles.Profile{"ssh": {ID: "ssh", TLS: profiles.TLSSettings{Certificate: old}}}}
		for i, settings := range tls {
			id := fmt.Sprint(i)
			c.Profiles[id] = &profiles.Profile{ID: id, Protocol: profiles.TLS, TLS: settings}
		}
		v := &visit{Env: Env{Now: time.Now}, loaded: c}
		v.once.config.Do(func() {})
		return v.certificates(t.Context())
	}
	require(t, certificates(), Skipped, "there are none")
	require(t, certificates(profiles.TLSSettings{Certificate: good}), OK, "1 are valid")
	require(t, certificates(profiles.TLSSettings{Certificate: old}, profiles.TLSSettings{Certificate: old, CAFiles: []string{good}}), Failed, `certificate "CN=old" in `+old+" has expired")
	require(t, certificates(profiles.TLSSettings{CAFiles: []string{mixed}}), Warning, `"CN=mixed" in `+mixed+" expires at ")
	require(t, certificates(profiles.TLSSettings{Certificate: dir + "/none"}), Failed, "check-config")
	if err := os.WriteFile(good, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	require(t, certificates(profiles.TLSSettings{Certificate: good}), Failed, good)
}

// TestTime: a check that hangs is left behind, one that heeds its context is waited for.
func TestTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		checks := []Check{
			{"g", "hangs", "hang", time.Second, func(*visit, context.Context) []Result { <-release; return fine("late") }},
			{"g", "heeds", "heed", time.Second, func(_ *visit, ctx context.Context) []Result {
				<-ctx.Done()
				return unknown("%v", context.Cause(ctx))
			}},
			{"g", "quick", "be quick", time.Second, func(*visit, context.Context) []Result { return fine("done") }},
		}
		var got []string
		begin := time.Now()
		err := Run(t.Context(), Env{}, checks, func(Check) {}, func(r Result) { got = append(got, fmt.Sprintf("%s %s %s", r.Check, r.Status, r.Text)) })
		want := []string{"hangs unknown unknown, because to hang has taken more than 1s", "heeds unknown unknown, because it takes too long", "quick ok done"}
		if err != nil || strings.Join(got, "\n") != strings.Join(want, "\n") || time.Since(begin) != 8*time.Second {
			t.Errorf("%q, %v after %v", got, err, time.Since(begin))
		}
		close(release)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := Run(ctx, Env{}, checks[2:], func(Check) {}, func(Result) {}); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}
