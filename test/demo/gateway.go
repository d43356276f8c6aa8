package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// The names that only the gateway knows.
const (
	wiki    = "wiki.demo"
	payroll = "payroll.demo"
	page    = "The wiki got your request through the gateway."
)

// runGateway shows a TLS tunnel: an authority, a gateway, a website behind it, and what
// the gateway does not let through.
func (d *demo) runGateway() error {
	site, err := website()
	if err != nil {
		return err
	}
	defer site.Close()
	_, private, err := net.SplitHostPort(site.Addr().String())
	if err != nil {
		return err
	}

	say("1. An authority, and certificates for a gateway and for Ann:")
	if err := d.certificates(); err != nil {
		return err
	}
	gateway, stop, err := d.startGateway(private)
	if err != nil {
		return err
	}
	defer stop()
	defer d.quiet("ssh-broker-ctl", "stop")
	say("\n2. ssh-gateway runs on %s. Ann may reach *.demo through it, but not %s.", gateway, payroll)
	if out, err := d.output("getent", "hosts", wiki); err == nil {
		return fmt.Errorf("%s should not resolve here, but does: %s", wiki, out)
	}
	say("   Behind it is a website, %s port %s. Nobody else knows that name: getent hosts %s finds nothing.", wiki, private, wiki)

	say("\n3. The rule, in ssh-broker-config.xml:")
	if err := d.configureGateway(gateway); err != nil {
		return err
	}
	say("   and what it means for this connection (ssh-broker-ctl explain):")
	if err := d.show("ssh-broker-ctl", "explain", "-q", "-f", d.config(), wiki, private); err != nil {
		return err
	}
	say("   What the gateway offers Ann (ssh-broker-ctl start, ssh-broker-ctl services):")
	d.quiet("ssh-broker-ctl", "start")
	if err := d.show("ssh-broker-ctl", "services", "--wide"); err != nil {
		return err
	}

	program := fetch(wiki, private)
	say("\n4. ssh-capture %s", strings.Join(program, " "))
	if out, err := d.captured(program); err != nil || !strings.Contains(out, page) {
		return fmt.Errorf("the page did not come: %w", errors.Join(err, errHelp))
	}
	program = fetch(payroll, private)
	say("\n5. ssh-capture %s", strings.Join(program, " "))
	if out, err := d.captured(program); err == nil || strings.Contains(out, page) {
		return errors.New("it was to be refused")
	}

	say("\n6. What the broker recorded of both, and beside it the gateway, under the same flow_id:")
	d.quiet("ssh-broker-ctl", "stop") // which writes what is not written yet
	return d.joined()
}

// website answers each request with the page.
func website() (net.Listener, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	server := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, page) }), ReadTimeout: 20 * time.Second}
	go func() { _ = server.Serve(l) }()
	return l, nil
}

func (d *demo) certificates() error {
	for _, args := range [][]string{
		{"ca", "--dir", "ca", "init", "--name", "Demonstration"},
		{"ca", "--dir", "ca", "issue", "--server", "--dns", "gateway.demo", "--ip", "127.0.0.1", "--out", "server"},
		{"ca", "--dir", "ca", "issue", "--client", "--email", "ann@demo.example", "--out", "ann"},
	} {
		say("      ssh-gateway %s", strings.Join(args, " "))
		cmd := d.command(filepath.Join(d.bin, "ssh-gateway"), args...)
		cmd.Dir = d.home
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("ssh-gateway %s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}

// startGateway returns where it listens, and what stops it.
func (d *demo) startGateway(private string) (address string, stop func(), err error) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	address = free.Addr().String()
	free.Close()
	config := filepath.Join(d.home, "gateway.yaml")
	err = os.WriteFile(config, fmt.Appendf(nil, `listen: "%[4]s"
certificates: [{certificate: server.crt, key: server.key}]
client_ca: ca/ca.crt
audit: {file: gateway-audit.jsonl}
limits: {drain_timeout: 1s}
services:
  - name: private
    description: Websites of the demonstration
    backend:
      http_connect: true
      dns_overrides: {%[1]s: 127.0.0.1, %[2]s: 127.0.0.1}
      allow_patterns: [{hostnames: ["*.demo"], ports: {port_list: [%[3]s]}}]
      exclude_patterns: [{hostnames: [%[2]s]}]
    policy: staff
roles: [{name: staff, email_domains: [demo.example]}]
policies: [{name: staff, roles: [staff]}]
`, wiki, payroll, private, address), 0o600)
	if err != nil {
		return "", nil, err
	}
	cmd := d.command(filepath.Join(d.bin, "ssh-gateway"), "--config", config)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 3 * time.Second
	log, err := cmd.StderrPipe()
	if err != nil {
		return "", nil, err
	}
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	stop = func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}
	var said strings.Builder
	for lines := bufio.NewScanner(io.TeeReader(log, &said)); lines.Scan(); {
		if strings.Contains(lines.Text(), "configuration in force") {
			go func() { _, _ = io.Copy(io.Discard, log) }()
			return address, stop, nil
		}
	}
	stop()
	return "", nil, fmt.Errorf("ssh-gateway does not start:\n%s", said.String())
}

func (d *demo) configureGateway(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	rule := `<rule host=".*\.demo" pseudo-ip="YES" action="TUNNEL" profile-id="gateway" />`
	say("      %s", rule)
	profile := fmt.Sprintf(`<profile id="gateway" protocol="tls" host="%s" port="%s">
      <tls ca-file="%s" certificate="%s" key="%s" />
    </profile>`, host, port, filepath.Join(d.home, "ca", "ca.crt"), filepath.Join(d.home, "ann.crt"), filepath.Join(d.home, "ann.key"))
	return d.writeConfig(profile, rule)
}

// fetch is a program that gets a page: curl if it is here.
func fetch(host, port string) []string {
	if _, err := exec.LookPath("curl"); err == nil {
		return []string{"curl", "--silent", "--show-error", "--max-time", "20", "http://" + net.JoinHostPort(host, port) + "/"}
	}
	return []string{"bash", "-c", "exec 3<>/dev/tcp/" + host + "/" + port + ` && printf 'GET / HTTP/1.0\r\n\r\n' >&3 && cat <&3`}
}

// captured runs a program to its end and shows what it says.
func (d *demo) captured(program []string) (string, error) {
	out, err := d.command(filepath.Join(d.bin, "ssh-capture"), program...).CombinedOutput()
	for line := range strings.Lines(string(out)) {
		say("   | %s", strings.TrimRight(line, "\r\n"))
	}
	return string(out), err
}

// joined shows the records of both ends.
func (d *demo) joined() error {
	ours, err := records(filepath.Join(d.home, ".ssh2", "ssh-broker-audit.jsonl"))
	if err != nil {
		return err
	}
	theirs, err := records(filepath.Join(d.home, "gateway-audit.jsonl"))
	if err != nil {
		return err
	}
	if len(ours) != 2 {
		return fmt.Errorf("%d records of the broker, want 2", len(ours))
	}
	for _, r := range ours {
		want := "carried"
		if r["name"] == payroll {
			want = "prohibited"
		}
		if r["reason"] != want {
			return fmt.Errorf("the flow to %v was %v, not %s", r["target"], r["reason"], want)
		}
		say("   %v", r["flow_id"])
		say("      broker   %v, for %v: %v", r["target"], r["program"], r["reason"])
		if text, told := r["error"]; told {
			say("               %v", text)
		}
		found := false
		for _, g := range theirs {
			if g["flow_id"] == r["flow_id"] && g["event"] != "open" {
				found = true
				say("      gateway  %v:%v, for %v: %v", g["host"], g["port"], g["emails"], g["reason"])
			}
		}
		if !found {
			return fmt.Errorf("the gateway has no record of flow %v", r["flow_id"])
		}
	}
	return nil
}

// records reads a file of audit records; both ends write theirs when a flow has ended.
func records(file string) (list []map[string]any, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	for line := range bytes.Lines(text) {
		var r map[string]any
		if err := json.Unmarshal(line, &r); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		list = append(list, r)
	}
	return list, nil
}
