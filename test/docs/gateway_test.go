package docs

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"sshbroker/broker/audit"
	"sshbroker/broker/gateway"
	"sshbroker/broker/gateway/generation"
	"sshbroker/broker/gateway/gwconfig"
	"sshbroker/broker/gateway/metrics"
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

// TestGatewayRecordIsDocumented holds fields, reasons, outcomes and metrics of
// ssh-gateway(8) to the program.
func TestGatewayRecordIsDocumented(t *testing.T) {
	const file = "ssh-gateway.8"
	sections := page(t, file)
	tags := func(heading string) set {
		found := set{}
		for _, e := range below(t, sections, heading)[0].entries {
			for tag := range strings.SplitSeq(e.tag, ", ") {
				found[strings.TrimSpace(tag)] = true
			}
		}
		return found
	}
	setOf := func(words []string) set {
		s := set{}
		for _, w := range words {
			s[w] = true
		}
		return s
	}
	equal(t, file+", Reasons", setOf(gateway.Reasons()), tags("Reasons"))
	equal(t, file+", Outcomes of handshakes", setOf(generation.Outcomes()), tags("Outcomes of handshakes"))

	addr := netip.MustParseAddrPort("192.0.2.1:1")
	full := audit.GatewayRecord{Time: time.Unix(1, 0), Event: audit.GatewayOpen, Instance: "i", Flow: 1, FlowID: "f", Connection: 1, Generation: 1,
		Client: addr, Carrier: "c", Subject: "s", Issuer: "i", Serial: "s", Fingerprint: "f", Emails: []string{"e"}, URIs: []string{"u"}, Groups: []string{"g"},
		NotAfter: time.Unix(1, 0), Program: "p", Host: "h", Port: 1, Service: "s", Rule: "r", Permissive: true, Target: "t", Dialled: addr, Reason: "r", Error: "e",
		ClientEnd: "e", BackendEnd: "e", Decision: 1, Dial: 1, Duration: 1, BytesUp: 1, BytesDown: 1}
	for i := range reflect.TypeFor[audit.GatewayRecord]().NumField() {
		if reflect.ValueOf(full).Field(i).IsZero() {
			t.Errorf("this test does not fill in %s", reflect.TypeFor[audit.GatewayRecord]().Field(i).Name)
		}
	}
	line, err := full.AppendLine(nil)
	if err != nil {
		t.Fatal(err)
	}
	var object map[string]any
	if err := json.Unmarshal(line, &object); err != nil {
		t.Fatal(err)
	}
	fields := set{}
	for name := range object {
		fields[name] = true
	}
	equal(t, file+", Fields", fields, tags("Fields"))

	m := metrics.New("test", metrics.Live{Connections: func() int { return 0 }, Flows: func() int { return 0 }, Bytes: func() (int64, int64) { return 0, 0 },
		Generation: func() uint64 { return 1 }, Expiry: func() map[string]time.Time { return map[string]time.Time{"certificate": time.Now()} },
		Audit: func() (uint64, uint64) { return 0, 0 }})
	m.Handshake("done")
	m.Flow("", "carried")
	m.Carried("mux", time.Second)
	m.Dialled(time.Second)
	m.Limit("flows")
	m.Reload(true)
	text, err := m.Gather()
	if err != nil {
		t.Fatal(err)
	}
	shown := set{}
	for _, name := range regexp.MustCompile(`(?m)^# TYPE (ssh_gateway_\w+)`).FindAllStringSubmatch(text, -1) {
		shown[name[1]] = true
	}
	equal(t, file+", METRICS", shown, tags("METRICS"))
}
