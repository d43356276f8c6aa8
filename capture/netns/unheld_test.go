package netns

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"sshbroker/capture"
)

// TestWithoutPacketQueue shows the same contract on a kernel that cannot hold a SYN:
// connections arrive accepted, a refusal resets them, loopback is the namespace's own.
func TestWithoutPacketQueue(t *testing.T) {
	t.Setenv(insideScript, "192.0.2.9:23 [2001:db8::9]:23 192.0.2.9:24 listen 127.0.0.1:8081 127.0.0.1:23 udp/192.0.2.9:443")
	p := launch(t, Options{Unheld: true})
	if p.child.Manifest.Held {
		t.Error("the manifest says that SYNs are held")
	}
	p.serve(func(ctx context.Context) {
		for {
			a, err := p.served.Next(ctx)
			if err != nil {
				return
			}
			if a.Flow().Dst.Port() != 23 {
				a.Refuse(capture.Refused)
				continue
			}
			c, err := a.Admit(ctx)
			if err != nil {
				t.Errorf("admit: %v", err)
				continue
			}
			o := a.Flow().Origin()
			fmt.Fprintf(c, "%v known=%v\n", a.Flow().Dst, o.Known && o.Exe == exe(t))
			c.Close()
		}
	})
	want := `192.0.2.9:23 "192.0.2.9:23 known=true\n" <nil>
[2001:db8::9]:23 "[2001:db8::9]:23 known=true\n" <nil>
192.0.2.9:24 `
	out := p.finish()
	if len(out) < len(want) || out[:len(want)] != want {
		t.Errorf("captured program printed\n%s\nwant at first\n%s", out, want)
	}
	// The reset may come before connect() has returned.
	if !strings.Contains(out, "\n192.0.2.9:24 connection reset by peer\n") &&
		!(strings.Contains(out, "\n192.0.2.9:24 \"\" read tcp ") && strings.Contains(out, ": connection reset by peer\n")) {
		t.Errorf("the refused connection was not reset:\n%s", out)
	}
	for _, line := range []string{"127.0.0.1:8081 \"inside\\n\" <nil>\n", "127.0.0.1:23 ECONNREFUSED\n", "udp/192.0.2.9:443 EPERM\n"} {
		if !strings.Contains(out, line) {
			t.Errorf("captured program did not print %q:\n%s", line, out)
		}
	}
}
