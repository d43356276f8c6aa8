package nft

import (
	"flag"
	"testing"

	"github.com/google/nftables/expr"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestQueueNeverBypasses holds the one property that fails open if it is lost: no
// queue expression carries the bypass flag, in either form.
func TestQueueNeverBypasses(t *testing.T) {
	for _, form := range []QueueForm{NativeQueue, TargetQueue} {
		for _, e := range ToQueue(7, form).exprs {
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
}
