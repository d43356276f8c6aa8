// Command demo shows the main job in one go: an SSH server of its own, a service
// behind it that only that server can reach, and the real ssh-capture running a real
// program that talks to the service. With -gateway it is an ssh-gateway instead, with an
// authority for its certificates. It needs no root and leaves nothing behind.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"sshbroker/profiles/tuntest"
)

const (
	host   = "greeter.demo" // resolves nowhere
	port   = "2323"
	answer = "The greeter got your line through the tunnel: "
)

func main() {
	bin := flag.String("bin", "bin", "where the programs are")
	gateway := flag.Bool("gateway", false, "show a TLS tunnel by ssh-gateway")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, 50*time.Second)
	defer cancel()
	if err := run(ctx, *bin, *gateway); err != nil {
		fmt.Fprintf(os.Stderr, "demo: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, bin string, gateway bool) error {
	home, err := os.MkdirTemp("", "ssh-capture-demo")
	if err != nil {
		return err
	}
	defer os.RemoveAll(home)
	d := &demo{ctx: ctx, bin: bin, home: home}
	if gateway {
		return d.runGateway()
	}

	server, err := d.serve()
	if err != nil {
		return err
	}
	defer server.Close()
	defer d.quiet("ssh-broker-ctl", "stop")

	say("1. An SSH server runs on %s. Behind it is a service, %s port %s, that nothing but this server can reach.", d.address, host, port)
	if out, err := d.output("getent", "hosts", host); err == nil {
		return fmt.Errorf("%s should not resolve here, but does: %s", host, out)
	}
	say("   Nobody here knows that name: getent hosts %s finds nothing.", host)

	say("\n2. The rule, in ssh-broker-config.xml:")
	if err := d.configure(); err != nil {
		return err
	}
	say("   and what it means for this connection (ssh-broker-ctl explain):")
	if err := d.show("ssh-broker-ctl", "explain", "-f", d.config(), host, port); err != nil {
		return err
	}

	program := d.program()
	say("\n3. ssh-capture %s", strings.Join(program, " "))
	if err := d.capture(program); err != nil {
		return err
	}
	say("\n4. What the broker recorded of it:")
	return d.record()
}

// demo is one run.
type demo struct {
	ctx     context.Context
	bin     string
	home    string
	address string // of the SSH server
	port    uint16
	key     tuntest.KeyPair
	known   string
}

func (d *demo) config() string { return filepath.Join(d.home, ".ssh2", "ssh-broker-config.xml") }

// serve starts the SSH server with a service that exists inside it alone.
func (d *demo) serve() (*tuntest.Server, error) {
	hostKey, err := tuntest.NewKeyPair("")
	if err != nil {
		return nil, err
	}
	if d.key, err = tuntest.NewKeyPair(""); err != nil {
		return nil, err
	}
	s := &tuntest.Server{HostKey: hostKey.Private, Authorized: []string{d.key.Public}, Dial: greeter}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	d.address = l.Addr().String()
	d.port = uint16(l.Addr().(*net.TCPAddr).Port)
	go func() { _ = s.Serve(l) }()
	d.known, err = s.HostKeyLine(d.address)
	return s, err
}

// greeter is the private service: no socket of the host leads to it.
func greeter(_ context.Context, _, address string) (net.Conn, error) {
	if address != net.JoinHostPort(host, port) {
		return nil, errors.New("connection refused")
	}
	near, far := net.Pipe()
	go func() {
		defer far.Close()
		fmt.Fprint(far, "Hello. Say something.\r\n")
		line, err := bufio.NewReader(far).ReadString('\n')
		if err == nil {
			fmt.Fprintf(far, "%s%s\r\n", answer, strings.TrimSpace(line))
		}
	}()
	return near, nil
}

func (d *demo) configure() error {
	ssh := filepath.Join(d.home, ".ssh")
	rule := fmt.Sprintf(`<rule host="%s" pseudo-ip="YES" action="TUNNEL" profile-id="demo" />`, strings.ReplaceAll(host, ".", `\.`))
	profile := fmt.Sprintf(`<profile id="demo" name="demo" host="127.0.0.1" port="%d" user="demo">
      <user-identities><identity identity-file="%s" /></user-identities>
      <server-authentication-methods><auth-server-publickey policy="strict" /></server-authentication-methods>
    </profile>`, d.port, filepath.Join(ssh, "id_demo"))
	say("      %s", rule)
	return errors.Join(
		os.MkdirAll(ssh, 0o700),
		os.WriteFile(filepath.Join(ssh, "id_demo"), d.key.Private, 0o600),
		os.WriteFile(filepath.Join(ssh, "known_hosts"), []byte(d.known+"\n"), 0o600),
		d.writeConfig(profile, rule),
	)
}

func (d *demo) writeConfig(profile, rule string) error {
	config := fmt.Sprintf(`<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE secsh-broker SYSTEM "ssh-broker-ng-config-1.dtd">
<secsh-broker version="1.0">
  <profiles>
    %s
  </profiles>
  <filter-engine>
    %s
  </filter-engine>
</secsh-broker>
`, profile, rule)
	return errors.Join(os.MkdirAll(filepath.Dir(d.config()), 0o700), os.WriteFile(d.config(), []byte(config), 0o600))
}

// program is a real one that can talk to the greeter: telnet if it is here.
func (d *demo) program() []string {
	if _, err := exec.LookPath("telnet"); err == nil {
		return []string{"telnet", host, port}
	}
	if _, err := exec.LookPath("curl"); err == nil {
		return []string{"curl", "--silent", "--http0.9", "--max-time", "20", "telnet://" + net.JoinHostPort(host, port)}
	}
	return []string{"bash", "-c", "exec 3<>/dev/tcp/" + host + "/" + port + "; cat <&0 >&3 & cat <&3"}
}

// capture runs the program, types one line once it was greeted, and expects the
// answer.
func (d *demo) capture(program []string) error {
	cmd := d.command(filepath.Join(d.bin, "ssh-capture"), program...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	var seen bytes.Buffer
	lines := bufio.NewScanner(io.TeeReader(stdout, &seen))
	for lines.Scan() {
		say("   | %s", lines.Text())
		if strings.Contains(lines.Text(), "Say something") {
			fmt.Fprintln(stdin, "good morning")
		}
		if strings.Contains(lines.Text(), answer) {
			stdin.Close()
		}
	}
	err = cmd.Wait()
	if !strings.Contains(seen.String(), answer+"good morning") {
		return fmt.Errorf("the answer did not come: %s: %w", strings.Join(program, " "), errors.Join(err, errHelp))
	}
	return nil // telnet says by its exit code that the other end closed, which it did
}

var errHelp = errors.New("ssh-capture's own messages are above")

func (d *demo) record() error {
	// The broker writes its record when it stops at the latest.
	d.quiet("ssh-broker-ctl", "stop")
	b, err := os.ReadFile(filepath.Join(d.home, ".ssh2", "ssh-broker-audit.jsonl"))
	for end := time.Now().Add(10 * time.Second); err != nil || len(b) == 0; b, err = os.ReadFile(filepath.Join(d.home, ".ssh2", "ssh-broker-audit.jsonl")) {
		if time.Now().After(end) {
			return fmt.Errorf("no audit record: %w", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	var r map[string]any
	if err := json.Unmarshal(bytes.SplitN(b, []byte("\n"), 2)[0], &r); err != nil {
		return err
	}
	for _, field := range []string{"program", "name", "dst", "rule", "action", "server", "target", "reason", "bytes_up", "bytes_down", "open_ms"} {
		if v, ok := r[field]; ok {
			if n, isNumber := v.(float64); isNumber {
				v = strconv.FormatFloat(n, 'f', -1, 64)
			}
			say("   %-11s %v", field, v)
		}
	}
	if r["reason"] != "carried" {
		return fmt.Errorf("the flow was %v, not carried", r["reason"])
	}
	return nil
}

// command runs with the demo's home and nothing of the user's own configuration.
func (d *demo) command(name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(d.ctx, name, args...)
	cmd.Env = append(os.Environ(), "HOME="+d.home, "SSH_SECSH_BROKER="+filepath.Join(d.home, "broker"), "SSH_AUTH_SOCK=")
	return cmd
}

func (d *demo) output(name string, args ...string) (string, error) {
	b, err := d.command(name, args...).Output()
	return strings.TrimSpace(string(b)), err
}

func (d *demo) quiet(name string, args ...string) {
	_ = d.command(filepath.Join(d.bin, name), args...).Run()
}

func (d *demo) show(name string, args ...string) error {
	out, err := d.command(filepath.Join(d.bin, name), args...).CombinedOutput()
	for line := range strings.Lines(string(out)) {
		say("      %s", strings.TrimRight(line, "\n"))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func say(format string, args ...any) { fmt.Printf(format+"\n", args...) }
