package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"

	"sshbroker/broker/config"
	"sshbroker/broker/control"
)

const valuesXML = `<secsh-broker>
  <general></general>
  <default-settings><idle-timeout time="60"/></default-settings>
  <profiles>
    <profile id="rock" host="rock.example.com"><compression name="zlib"/><password string="hunter2"/></profile>
  </profiles>
</secsh-broker>
`

func TestConfigValue(t *testing.T) {
	w := newWorld(t, valuesXML, strings.Replace(goodXML, "<profiles>", `<default-settings user="root"/><profiles>`, 1))

	// Without a broker.
	out := w.done("config-value", "default-settings/idle-timeout/@time")
	wants(t, out, "as a broker would have it, but none runs\n", "default-settings/idle-timeout/@time  60     "+w.user+":3:41\n")
	wants(t, w.done("config-value", "profiles/profile[@id='rock']/@user"), "  root   "+w.global+":2:27")
	wants(t, w.done("config-value", "default-settings/tcp-connect-timeout/@time"), "  5      factory default\n")
	wants(t, w.done("config-value", "profiles/profile[@id='rock']/@gateway-profile"), "not set")
	wants(t, w.done("config-value", "profiles/profile/compression/@name"), "(not acted on)")
	if out := w.done("config-value", "-q", "filter-engine/rule/@action"); out != "BLOCK\nTUNNEL\n" {
		t.Errorf("-q: %q", out)
	}
	var row valueRow
	if err := json.Unmarshal([]byte(w.done("config-value", "-s", "filter-engine/rule[2]/@ports")), &row); err != nil ||
		row != (valueRow{Path: "filter-engine/rule[2]/@ports", Value: "23", Origin: "file", File: w.global, Line: 7, Col: 18}) {
		t.Errorf("%+v, %v", row, err)
	}
	if err := json.Unmarshal([]byte(w.done("config-value", "-s", "profiles/*/password/@string")), &row); err != nil || row.Value != "(secret)" || !row.Secret {
		t.Errorf("%+v, %v", row, err)
	}
	for _, args := range [][]string{{"config-value", "/"}, {"config-value", "-s", "/"}, {"config-value", "-q", "/"}, {"config-value", "profiles/profile/password"}} {
		if out := w.done(args...); strings.Contains(out, "hunter2") || !strings.Contains(out, "(secret)") {
			t.Errorf("%v:\n%s", args, out)
		}
	}

	// Of one file, in place of the user's.
	file := writeFile(t, strings.Replace(valuesXML, "60", "7", 1))
	wants(t, w.done("config-value", "-f", file, "default-settings/idle-timeout/@time"), "that reads "+file, "  7      "+file+":3:41")
	wants(t, w.done("config-value", "-f", file, "filter-engine/rule[1]/@action"), w.global)
	wants(t, w.done("--system", "config-value", "-f", file, "default-settings/@user"), "factory default")
	wants(t, w.done("--system", "config-value", "-f", file, "default-settings/idle-timeout/@time"), file+":3:41")

	for path, want := range map[string][]string{
		"default-settings/idle-timeot":     {"default-settings has no element idle-timeot", "hint: did you mean idle-timeout?"},
		"profiles/profile[@id='rok']/@id":  {"there is no profiles/profile[@id='rok']", "hint: did you mean rock?"},
		"default-settings/idle-timeout/@x": {"idle-timeout has no attribute x", "hint: attributes: time, type"},
		"logging":                          {"no file has an element logging"},
	} {
		code, out, errs := w.ctl("config-value", path)
		if code != exitFailed || out != "" {
			t.Errorf("%s: code %d, %s", path, code, out)
		}
		wants(t, errs, want...)
	}
	for path, want := range map[string]string{"a[": `path "a[", at ""`, "@a/b": "nothing follows an attribute", "a b": "a / is missing"} {
		if code, out, errs := w.ctl("config-value", path); code != exitUsage || out != "" || !strings.Contains(errs, want) {
			t.Errorf("%s: %d %s", path, code, errs)
		}
	}
	if code, _, errs := w.ctl("config-value"); code != exitUsage || !strings.Contains(errs, "PATH is missing") {
		t.Errorf("%d %s", code, errs)
	}
	w.write(w.user, strings.Replace(valuesXML, `"60"`, `"soon"`, 1))
	if code, _, errs := w.ctl("config-value", "/"); code != exitFailed || !strings.Contains(errs, w.user+":3:41: idle-timeout:") {
		t.Errorf("a bad file: %d %s", code, errs)
	}
}

func TestConfigValueCompletesPaths(t *testing.T) {
	w := newWorld(t, "", "")
	for typed, want := range map[string]string{
		"default-s":                      "default-settings\n:6\n",
		"default-settings/idle-timeout/": "default-settings/idle-timeout/@time\ndefault-settings/idle-timeout/@type\n:6\n",
		"profiles/profile[@id='x']/@po":  "profiles/profile[@id='x']/@port\n:6\n",
		"/gen":                           "/general\n:6\n",
		"nonsense/":                      ":6\n",
	} {
		_, out, _ := w.ctl("__complete", "config-value", typed)
		if out != want {
			t.Errorf("%s: %q, want %q", typed, out, want)
		}
	}
	if _, out, _ := w.ctl("__complete", "rule", "add", "--action", "TUN"); !strings.Contains(out, "\nTUNNEL\n") || !strings.HasSuffix(out, "\n:4\n") { // the shell chooses
		t.Errorf("%q", out)
	}
	if _, out, _ := w.ctl("__complete", "rule", "remove", ""); out != ":4\n" {
		t.Errorf("%q", out)
	}
}

// The files are those of the broker that runs, whichever these are.
func TestConfigValueOfBroker(t *testing.T) {
	w := newWorld(t, valuesXML, "")
	other := writeFile(t, strings.Replace(valuesXML, "60", "7", 1))
	digest, err := config.Digest(other)
	if err != nil {
		t.Fatal(err)
	}
	w.address = fakeBroker(t, func(s *control.Server, _ func()) {
		s.Handle(control.OpStatus, func(_ context.Context, c *control.Call) error {
			return c.Send(control.StatusRow{PID: 4711, ConfigFiles: []string{other}, ConfigDigest: hex.EncodeToString(digest[:])})
		})
	})
	out := w.done("config-value", "default-settings/idle-timeout/@time")
	wants(t, out, "of the broker that runs, process 4711\n", "  7      "+other+":3:41")
	if strings.Contains(out, "changed") {
		t.Error(out)
	}
	w.write(other, strings.Replace(valuesXML, "60", "8", 1))
	wants(t, w.done("config-value", "default-settings/idle-timeout/@time"), "the files have changed since", "  8      ")
	if out := w.done("config-value", "-q", "default-settings/idle-timeout/@time"); out != "8\n" {
		t.Errorf("%q", out)
	}
	wants(t, w.done("config-value", "-f", w.user, "default-settings/idle-timeout/@time"), "  60     ")
}
