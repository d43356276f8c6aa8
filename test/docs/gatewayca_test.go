package docs

import (
	"regexp"
	"strings"
	"testing"

	"sshbroker/broker/gateway/ca"
	"sshbroker/test/sut"
)

// TestGatewayCAPage holds the page to the help of each command, and to what the index and
// the reasons are.
func TestGatewayCAPage(t *testing.T) {
	const file = "ssh-gateway-ca.8"
	program := sut.Program(t, "ssh-gateway")
	helpOf := func(words ...string) string {
		return output(t, program, append(append([]string{"ca"}, words...), "--help")...)
	}
	listed := func(text string) set {
		options := set{}
		for _, m := range helpOption.FindAllStringSubmatch(text, -1) {
			options[m[2]] = true
			if m[1] != "" {
				options[m[1]] = true
			}
		}
		return options
	}
	sections := page(t, file)
	inPage := map[string]section{}
	for _, s := range below(t, sections, "COMMANDS")[1:] {
		inPage[strings.Fields(s.heading)[0]] = s
	}
	commands, documented := set{}, set{}
	for name := range inPage {
		documented[name] = true
	}
	general := set{}
	for _, m := range regexp.MustCompile(`(?m)^  ([a-z]+) +[A-Z]`).FindAllStringSubmatch(helpOf(), -1) {
		commands[m[1]] = true
		text := helpOf(m[1])
		usage, _, _ := strings.Cut(text, "\nGlobal Flags:\n")
		_, own, _ := strings.Cut(usage, "\nFlags:\n")
		_, global, _ := strings.Cut(text, "\nGlobal Flags:\n")
		if global == "" || own == "" {
			t.Fatalf("the help of %s was not read right:\n%s", m[1], text)
		}
		options := listed(own)
		for _, o := range []string{"-h", "--help"} {
			delete(options, o)
			general[o] = true
		}
		for o := range listed(global) {
			general[o] = true
		}
		equal(t, file+", "+m[1], options, inPage[m[1]].options())
	}
	if len(commands) < 5 {
		t.Fatalf("only these commands were found: %v", commands)
	}
	equal(t, file, commands, documented)
	equal(t, file, general, below(t, sections, "OPTIONS")[0].options())

	for _, e := range inPage["revoke"].entries {
		if strings.HasPrefix(e.tag, "--reason") {
			for _, reason := range ca.Reasons() {
				if !strings.Contains(e.text, reason) {
					t.Errorf("%s: the reason %s is not documented", file, reason)
				}
			}
		}
	}
	files, inFiles := set{}, set{}
	for _, f := range []func(string) string{ca.CertificateFile, ca.ListFile, ca.IndexFile} {
		files[f("")] = true
	}
	files["ca.key"], files["lock"] = true, true
	for _, e := range below(t, sections, "FILES")[0].entries {
		inFiles[e.tag] = true
	}
	equal(t, file+", FILES", files, inFiles)
}
