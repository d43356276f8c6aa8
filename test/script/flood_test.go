package script

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sshbroker/capture/loglimit"
)

// TestRepeatedLines: whoever can reach the broker has it say a line as often as the limit
// allows, and how many were left out is told and counted.
func TestRepeatedLines(t *testing.T) {
	aboutNamespaces(t) // name queries of a capture by cgroups are those of ssh-captured's sockets
	eachAccount(t, func(t *testing.T, p *place) {
		p.write(".ssh2/ssh-broker-config.xml", `<secsh-broker version="1.0"><default-settings><tcp-connect-timeout time="5"/></default-settings>
<profiles><profile id="gone" host="127.0.0.1" port="1" user="me"/></profiles>
<filter-engine><rule ip-address=".*" action="TUNNEL" profile-id="gone" fallback-to-plain="yes"/></filter-engine></secsh-broker>`, 0o600)
		began := time.Now()
		p.run("ssh-broker", "-D", "3", "-l", "log").require(t, 0)
		const many = 4 * loglimit.Burst
		_, port, _ := net.SplitHostPort(p.echo())

		hello := `{"kind":"hello","protocol":1}`
		for range many {
			p.packets("nonsense")
			p.packets(hello, "nonsense")
		}
		address := strings.Fields(p.ctl("-s", "open-tunnel-listener", "--type", "socks-proxy", "127.0.0.1:0"))[0]
		_, address, _ = strings.Cut(address, `"listen":"`)
		address, _, _ = strings.Cut(address, `"`)
		for range many {
			c, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.WriteString(c, "\xff\xff\xff\xff")
			_, _ = io.Copy(io.Discard, c)
			c.Close()
		}
		// Connections whose tunnel fails, and names that cannot be used.
		script := fmt.Sprintf(`for ((i = 0; i < %d; i++)); do
			exec 4<>/dev/tcp/127.0.0.1/%s && exec 4>&-
			exec 5<>/dev/udp/127.0.0.53/53 && printf '\0\1\1\0\0\1\0\0\0\0\0\0\3a b\0\0\1\0\1' >&5 && exec 5>&-
		done`, many, port)
		p.run("ssh-capture", "-l", "bash", "-c", script).require(t, 0)

		metric := p.ctl("-q", "metrics")
		p.run("ssh-broker", "--exit").require(t, 0)
		log, err := os.ReadFile(filepath.Join(p.home, "log"))
		if err != nil {
			t.Fatal(err)
		}
		most := loglimit.Burst + int(time.Since(began)/loglimit.Every) + 1
		for _, kind := range []string{"client turned away", "client broke the protocol", "connection to a listener refused", "fallback to plain"} {
			said := strings.Count(string(log), fmt.Sprintf("msg=%q", kind))
			if said < loglimit.Burst || said > most {
				t.Errorf("%q was said %d times, want %d to %d", kind, said, loglimit.Burst, most)
			}
			if !strings.Contains(string(log), fmt.Sprintf("msg=\"log lines were left out\" of=%q lines=", kind)) {
				t.Errorf("%q: it is not told that lines are missing", kind)
			}
		}
		// The resolver has a slower limit of its own.
		if n := strings.Count(string(log), "a name that cannot be used"); n < 1 || n > 1+int(time.Since(began)/time.Minute) {
			t.Errorf("name queries: %d lines", n)
		}
		left := ""
		for line := range strings.Lines(metric) {
			if value, ok := strings.CutPrefix(line, "ssh_broker_log_lines_suppressed_total "); ok {
				left = strings.TrimSpace(value)
			}
		}
		if left == "" || left == "0" {
			t.Errorf("left out by the metrics: %q", left)
		}
		if t.Failed() {
			t.Logf("%.4000s", log)
		}
	})
}

// packets sends messages to the broker's control socket and waits until it has closed it.
func (p *place) packets(messages ...string) {
	p.t.Helper()
	c, err := net.Dial("unixpacket", p.address())
	if err != nil {
		p.t.Fatal(err)
	}
	defer c.Close()
	for _, m := range messages {
		if _, err := io.WriteString(c, m); err != nil {
			return // it was closed already
		}
	}
	buffer := make([]byte, 64<<10)
	for {
		if n, err := c.Read(buffer); err != nil || n == 0 {
			return
		}
	}
}
