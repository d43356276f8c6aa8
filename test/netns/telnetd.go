package netns

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Inetd listens on a port of the machine, for both families, and starts a
// command for every connection with the connection as its standard input and
// output, as inetd's nowait services are. It listens when it returns. The test's
// end stops it, or the function returned does; what was started goes on.
func (m *Machine) Inetd(t testing.TB, port uint16, c Cmd) (stop func()) {
	t.Helper()
	l := m.Listen(t, "tcp", fmt.Sprintf(":%d", port))
	var accepting sync.WaitGroup
	stop = func() { l.Close(); accepting.Wait() }
	t.Cleanup(stop)
	accepting.Go(func() {
		for {
			conn, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				t.Logf("inetd on %s: %v", m.Name, err)
				time.Sleep(10 * time.Millisecond) // out of descriptors, say
				continue
			}
			if err := m.startWith(conn.(*net.TCPConn), c); err != nil {
				t.Logf("inetd on %s: %v", m.Name, err)
			}
		}
	})
	return stop
}

// startWith starts a command on a connection, which it takes over.
func (m *Machine) startWith(conn *net.TCPConn, c Cmd) error {
	defer conn.Close()
	file, err := conn.File() // a blocking descriptor, which is what programs expect
	if err != nil {
		return err
	}
	defer file.Close()
	c.conn = file
	_, err = m.start(c)
	return err
}

// Telnetd is a telnet server whose "login" greets with a marker and then
// answers every line, until the line "bye".
type Telnetd struct {
	Port uint16
	// Marker is in the greeting, Answer before every answer; no other test has
	// the same ones, so finding them on a wire means something.
	Marker, Answer string

	Stop func() // no new connections; those there are go on
}

// StartTelnetd serves the telnetd of GNU inetutils on a port.
func (m *Machine) StartTelnetd(t testing.TB, port uint16) *Telnetd {
	t.Helper()
	path := RequireProgram(t, "telnetd", "inetutils-telnetd")
	d := &Telnetd{Port: port, Marker: "MARKER-" + rand.Text(), Answer: "ANSWER-" + rand.Text()}
	script := filepath.Join(m.dir, fmt.Sprintf("telnet-login-%d", port))
	content := strings.NewReplacer("@MARKER@", d.Marker, "@ANSWER@", d.Answer).Replace(`#!/bin/sh
echo "This is $(hostname). @MARKER@"
while read -r line; do
	echo "@ANSWER@ $line"
	if [ "$line" = bye ]; then exit 0; fi
done
`)
	if err := os.WriteFile(script, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
	d.Stop = m.Inetd(t, port, Cmd{Args: []string{path, "-h", "-E", script}, Limit: -1})
	return d
}
