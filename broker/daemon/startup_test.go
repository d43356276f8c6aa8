package daemon

import (
	"os"
	"strings"
	"testing"

	"sshbroker/broker/control"
)

// profilesOf writes a configuration of these profiles and of no rule.
func (b *bench) profilesOf(profiles string) {
	b.t.Helper()
	text := `<secsh-broker><profiles>` + profiles + `</profiles><filter-engine/></secsh-broker>`
	if err := os.WriteFile(b.file, []byte(text), 0o600); err != nil {
		b.t.Fatal(err)
	}
}

// connections waits until the servers that are connected are these.
func (b *bench) connections(want string) {
	b.t.Helper()
	eventually(b.t, want, func() bool {
		var up []string
		for _, in := range b.pool.List() {
			if in.Connected {
				up = append(up, in.Server)
			}
		}
		return strings.Join(up, " ") == want
	})
}

func TestConnectOnStartup(t *testing.T) {
	b := prepare(t, "", "")
	b.profilesOf(`<profile id="a" host="a" user="u" connect-on-startup="yes"/><profile id="b" host="b" user="u"/>`)
	if err := b.start(nil); err != nil {
		t.Fatal(err)
	}
	b.connections("a:22")

	b.profilesOf(`<profile id="a" host="a" user="u" connect-on-startup="yes"/><profile id="b" host="b" user="u" connect-on-startup="yes"/>`)
	if _, err := one[control.ReloadResult](b, control.OpReload, nil); err != nil {
		t.Fatal(err)
	}
	b.connections("a:22 b:22")
	if n := len(b.tunnels.seen); n != 2 {
		t.Errorf("%d connects: what stays is not to be opened again", n)
	}

	b.profilesOf(`<profile id="b" host="b" user="u" connect-on-startup="yes"/>`)
	if _, err := one[control.ReloadResult](b, control.OpReload, nil); err != nil {
		t.Fatal(err)
	}
	b.connections("b:22")
}
