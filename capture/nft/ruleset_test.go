package nft

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/nftables/expr"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestNamespaceGolden(t *testing.T) {
	base := Spec{Queue: 7, Form: TargetQueue, TCP: 4001, DNSUDP: 4002, DNSTCP: 4003}
	relay, unheld := base, base
	relay.UDPRelay = 4004
	unheld.Form = NoQueue
	for name, spec := range map[string]Spec{"namespace.nft": base, "namespace-udp.nft": relay, "namespace-unheld.nft": unheld} {
		file := filepath.Join("testdata", name)
		got := Namespace(spec).String()
		if *update {
			if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s:\n%s\nwant\n%s", file, got, want)
		}
	}
}

// TestQueueNeverBypasses holds the one property that fails open if it is lost: no
// queue expression carries the bypass flag, in either form.
func TestQueueNeverBypasses(t *testing.T) {
	for _, native := range []bool{true, false} {
		for _, e := range toQueue(7, native).exprs {
			switch e := e.(type) {
			case *expr.Queue:
				if e.Flag != 0 {
					t.Errorf("queue expression has flags %#x", e.Flag)
				}
			case *expr.Target:
				// Revision 1 has no room for flags.
				if e.Name != "NFQUEUE" || e.Rev != 1 {
					t.Errorf("target %s revision %d", e.Name, e.Rev)
				}
			default:
				t.Errorf("unexpected expression %T", e)
			}
		}
	}
	if text := Namespace(Spec{}).String(); strings.Contains(text, "bypass") {
		t.Error("the rule set says bypass")
	}
}
