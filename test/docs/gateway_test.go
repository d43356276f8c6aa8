package docs

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"sshbroker/broker/gateway/gwconfig"
	"sshbroker/broker/gateway/policy"
)

const gatewayPage = "ssh-gateway.yaml.5"

// sameKeys are subsections of KEYS for keys that stand in several places.
var sameKeys = map[string]string{"Patterns": "", "Ports of patterns": ".ports", "Ranges of ports": ".ports.port_ranges[]"}

var patternLists = []string{"services[].backend.allow_patterns", "services[].backend.exclude_patterns", "policies[].allow", "policies[].deny"}

// TestGatewayPageHasEveryKey holds the page to the table of keys, with types and defaults.
func TestGatewayPageHasEveryKey(t *testing.T) {
	inProgram, inPage := set{}, set{}
	for _, k := range gwconfig.Keys() {
		says := k.Type
		if k.Default != "" {
			says += ", default " + k.Default
		}
		if k.Required {
			says += ", required"
		}
		inProgram[fmt.Sprintf("%s (%s)", k.Path, says)] = true
	}
	for _, s := range below(t, page(t, gatewayPage), "KEYS")[1:] {
		parents := []string{s.heading}
		if suffix, ok := sameKeys[s.heading]; ok {
			parents = nil
			for _, list := range patternLists {
				parents = append(parents, list+"[]"+suffix)
			}
		}
		for _, e := range s.entries {
			if strings.TrimSpace(e.text) == "" {
				t.Errorf("%s: %s, %s: nothing is said of it", gatewayPage, s.heading, e.tag)
			}
			for _, parent := range parents {
				switch parent {
				case "The file":
					inPage[e.tag] = true
				case "certificates", "services", "roles", "policies": // lists
					inPage[parent+"[]."+e.tag] = true
				default:
					inPage[parent+"."+e.tag] = true
				}
			}
		}
	}
	equal(t, gatewayPage+", KEYS", inProgram, inPage)
}

// TestGatewayPageHasEveryReason holds its list of refusals to the table of reasons.
func TestGatewayPageHasEveryReason(t *testing.T) {
	reasons, documented := set{}, set{}
	for _, r := range policy.Reasons() {
		if r != policy.Permitted {
			reasons[fmt.Sprintf("%s (%d, %s)", r, r.Status(), r.ProxyError())] = true
		}
	}
	for _, e := range below(t, page(t, gatewayPage), "REFUSALS")[0].entries {
		documented[e.tag] = true
	}
	equal(t, gatewayPage+", REFUSALS", reasons, documented)
}

// TestGatewayPageExamples finds what the page shows in etc/ssh-gateway.yaml, line by line;
// the package gwconfig tests what that file does.
func TestGatewayPageExamples(t *testing.T) {
	whole := unindented(read(t, "etc/ssh-gateway.yaml"))
	examples := regexp.MustCompile(`(?s)\.nf\n\.RS\n(.*?)\.RE\n\.fi`).FindAllStringSubmatch(read(t, "docs/man/"+gatewayPage), -1)
	if len(examples) < 4 {
		t.Fatalf("%d examples were found", len(examples))
	}
	for _, e := range examples {
		text := unindented(strings.NewReplacer(`\-`, "-", `\e`, `\`).Replace(e[1]))
		if !strings.Contains("\n"+whole, "\n"+text) {
			t.Errorf("etc/ssh-gateway.yaml does not have\n%s", text)
		}
	}
}

// unindented takes the blanks off the beginning of each line.
func unindented(text string) string {
	return regexp.MustCompile(`(?m)^ +`).ReplaceAllString(text, "")
}
