package docs

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"sshbroker/profiles/tuntest"
	"sshbroker/test/sut"
)

// block is one fenced block of a document.
type block struct {
	heading string
	line    int
	lang    string
	mark    string // of the comment above it
	text    string
}

// blocks reads the fenced blocks of a document.
func blocks(t testing.TB, path string) []block {
	t.Helper()
	var list []block
	heading, mark := "", ""
	var open *block
	for number, line := range strings.Split(read(t, path), "\n") {
		switch {
		case strings.HasPrefix(line, "```") && open == nil:
			open = &block{heading: heading, line: number + 1, lang: line[3:], mark: mark}
		case strings.HasPrefix(line, "```"):
			list = append(list, *open)
			open, mark = nil, ""
		case open != nil:
			open.text += line + "\n"
		case strings.HasPrefix(line, "## "):
			heading = line[3:]
		case strings.HasPrefix(line, "<!-- ") && strings.HasSuffix(line, " -->"):
			mark = strings.TrimSuffix(line[5:], " -->")
		}
	}
	return list
}

// whole makes a file of XML that a document shows in part.
func whole(xml string) string {
	if strings.HasPrefix(xml, "<?xml") {
		return xml
	}
	return "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<secsh-broker version=\"1.0\">\n" + xml + "</secsh-broker>\n"
}

// Marks of the guide's blocks, beside "tested", asRoot and "not tested: REASON".
const (
	// served, of XML: bastion.example.com is the test's server, and ports are free ones,
	// in this and all that follows in the section.
	served = "tested with a server"
	// gated, of XML: the same of gateway.example.com, an ssh-gateway.
	gated = "tested with a gateway"
	// after, of commands: what has to be done before, as the reader's host differs.
	after = "tested after: "
)

// TestGuide runs the recipes, each under a home directory of its own.
func TestGuide(t *testing.T) {
	sections := map[string][]block{}
	var order []string
	for _, b := range blocks(t, "docs/guide.md") {
		if b.lang == "console" && b.mark != "tested" && b.mark != asRoot && !strings.HasPrefix(b.mark, after) && !strings.HasPrefix(b.mark, "not tested: ") {
			t.Errorf("docs/guide.md:%d: it is not said whether this is tested", b.line)
		}
		if len(sections[b.heading]) == 0 {
			order = append(order, b.heading)
		}
		sections[b.heading] = append(sections[b.heading], b)
	}
	needed := map[string]string{"bash": "bash", "curl": "curl", "git": "git", "jq": "jq", "ssh-keygen": "openssh-client"}
	for program, pkg := range needed {
		if _, err := exec.LookPath(program); err != nil {
			skip(t, "needs "+program+" (Debian package "+pkg+")")
		}
	}
	for _, heading := range order {
		t.Run(heading, func(t *testing.T) {
			h := newHome(t)
			for _, b := range sections[heading] {
				switch {
				case b.lang == "xml":
					switch b.mark {
					case served:
						h.serve(t)
					case gated:
						h.gateway(t)
					}
					h.write(t, ".ssh2/ssh-broker-config.xml", whole(h.here(b.text)))
				case b.lang == "yaml" && !strings.HasPrefix(b.mark, "not tested: "):
					h.write(t, "gateway.yaml", b.text)
				case strings.HasPrefix(b.mark, after):
					if out, err := h.command(h.here(strings.TrimPrefix(b.mark, after))).CombinedOutput(); err != nil {
						t.Fatalf("docs/guide.md:%d: what has to be done before: %v\n%s", b.line, err, out)
					}
					h.run(t, b)
				case b.mark == "tested":
					h.run(t, b)
				}
			}
		})
	}
}

// TestExamplesAreInTheGuide: the guide shows the rules of each example as they stand in
// the file. test/interop runs the files, and TestHostGuide the one for whole hosts.
func TestExamplesAreInTheGuide(t *testing.T) {
	headings := map[string]string{
		"capture": "Telnet, host by host", "email": "Mail through a gateway", "databases": "Databases behind a bastion",
		"bastion": "Everything through one bastion", "users": "Rules by program and by user", "gateway": "Through the gateway", "system": "System-wide filter rules",
	}
	files, err := filepath.Glob(filepath.Join(root, "etc/ssh-broker-config-example-*.xml"))
	if err != nil || len(files) != len(headings) {
		t.Errorf("%d examples, %d in the guide (%v)", len(files), len(headings), err)
	}
	rule := regexp.MustCompile(`(?s)<rule .*?/>`)
	rules := func(text string) (list []string) {
		for _, r := range rule.FindAllString(text, -1) {
			list = append(list, strings.Join(strings.Fields(r), " "))
		}
		return list
	}
	shown := map[string]string{}
	for _, b := range blocks(t, "docs/guide.md") {
		if b.lang == "xml" {
			shown[b.heading] += b.text
		}
	}
	for name, heading := range headings {
		want := rules(read(t, "etc/ssh-broker-config-example-"+name+".xml"))
		if got := rules(shown[heading]); !slices.Equal(got, want) || len(got) == 0 {
			t.Errorf("%q shows the rules\n%s\nthe example %s has\n%s", heading, strings.Join(got, "\n"), name, strings.Join(want, "\n"))
		}
	}
}

// home is where one recipe is followed.
type home struct {
	dir     string
	env     []string
	port    string            // of the SSH server
	behind  string            // address of what is behind it
	replace map[string]string // names and ports of the guide by those of the test
}

func newHome(t *testing.T) *home {
	t.Helper()
	programs := sut.Build(t)
	sut.Program(t, "ssh-gateway") // beside them
	// Not t.TempDir: the path of a socket has little room.
	dir, err := os.MkdirTemp("", "guide")
	if err != nil {
		t.Fatal(err)
	}
	h := &home{dir: dir, env: append(os.Environ(), "HOME="+dir, "SSH_SECSH_BROKER="+filepath.Join(dir, "broker"), "SSH_AUTH_SOCK=",
		"SSH_CAPTURE=", "KUBECONFIG=", "LC_ALL=C.UTF-8", "GIT_CONFIG_NOSYSTEM=1", "http_proxy=", "https_proxy=", "all_proxy=", "ALL_PROXY=",
		"PATH="+filepath.Join(dir, "bin")+":"+programs.Dir+":"+os.Getenv("PATH"))}
	t.Cleanup(func() {
		for _, broker := range []string{"broker", "strict"} {
			out, err := h.command("ssh-broker-ctl -a ~/" + broker + " stop").CombinedOutput()
			var exit *exec.ExitError
			if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 3) {
				t.Errorf("stop the broker: %v\n%s", err, out)
			}
		}
		os.RemoveAll(dir)
	})
	h.bastion(t)
	return h
}

func (h *home) write(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join(h.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
}

// bastion starts the SSH server of the guide, with a wiki and a git server behind it,
// and makes it known as its reader would have it.
func (h *home) bastion(t *testing.T) {
	t.Helper()
	hostKey, err := tuntest.NewKeyPair("")
	if err != nil {
		t.Fatal(err)
	}
	key, err := tuntest.NewKeyPair("")
	if err != nil {
		t.Fatal(err)
	}
	h.behind = h.inside(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &tuntest.Server{HostKey: hostKey.Private, Authorized: []string{key.Public},
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			var d net.Dialer
			switch address {
			case "wiki.internal:80", "git.internal:80":
				return d.DialContext(ctx, network, h.behind)
			case "lab.internal:22": // another server as far as anybody can tell
				return d.DialContext(ctx, network, l.Addr().String())
			}
			return nil, errors.New("connection refused")
		}}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(l)
	}()
	t.Cleanup(func() {
		server.Close()
		l.Close()
		<-served
	})
	known, err := server.HostKeyLine(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_, h.port, _ = net.SplitHostPort(l.Addr().String())
	h.write(t, ".ssh/id_ed25519", string(key.Private))
	_, hostKeyLine, _ := strings.Cut(known, " ")
	h.write(t, ".ssh/known_hosts", known+"\nlab.internal "+hostKeyLine+"\n")
	h.write(t, ".ssh/config", "Host bastion\n  HostName 127.0.0.1\n  Port "+h.port+"\n")
}

// serve has the section's bastion.example.com, proxy.example.com and ports be there.
func (h *home) serve(t *testing.T) {
	t.Helper()
	if h.replace != nil {
		return
	}
	h.freePorts(t, "1080", "3128", "8080", "8081")
	h.replace[`host="bastion.example.com"`] = `host="127.0.0.1" port="` + h.port + `"`
	h.replace["bastion.example.com"] = "127.0.0.1#" + h.port
	h.replace["proxy.example.com"] = "127.0.0.1"
}

// freePorts has ports of the guide be free ones.
func (h *home) freePorts(t *testing.T, ports ...string) {
	t.Helper()
	h.replace = map[string]string{}
	for _, port := range ports {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close() // all are open at once, so that they differ
		h.replace[port] = strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	}
}

// gateway starts the section's ssh-gateway, before what is behind the bastion, and gives
// its reader a certificate.
func (h *home) gateway(t *testing.T) {
	t.Helper()
	h.freePorts(t, "3128", "8081", "8443")
	_, h.replace["8080"], _ = net.SplitHostPort(h.behind)
	h.replace[`host="gateway.example.com"`] = `host="127.0.0.1"`
	h.write(t, "gateway.yaml", fmt.Sprintf(`listen: "127.0.0.1:%s"
certificates: [{certificate: server.crt, key: server.key}]
client_ca: ca/ca.crt
audit: {file: audit.jsonl}
limits: {drain_timeout: 1s}
services:
  - name: wiki
    description: The wiki
    backend: {target: {name: 127.0.0.1, port: %[2]s}}
    policy: staff
  - name: internal
    description: All that is called internal
    backend:
      http_connect: true
      dns_overrides: {wiki.internal: 127.0.0.1, payroll.internal: 127.0.0.1}
      allow_patterns: [{hostnames: ["*.internal"]}]
      exclude_patterns: [{hostnames: [payroll.internal]}]
    policy: staff
roles: [{name: staff, email_domains: [example.com]}]
policies: [{name: staff, roles: [staff]}]
`, h.replace["8443"], h.replace["8080"]))
	if out, err := h.command(`set -e; mkdir -m 700 .ssh2
ssh-gateway ca --dir ca init --name office
ssh-gateway ca --dir ca issue --server --ip 127.0.0.1 --out server
ssh-gateway ca --dir ca issue --client --email ann@example.com --out .ssh2/office
cp ca/ca.crt .ssh2/office-ca.crt`).CombinedOutput(); err != nil {
		t.Fatalf("certificates: %v\n%s", err, out)
	}
	cmd := h.command("exec ssh-gateway --config gateway.yaml")
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	for lines := bufio.NewScanner(log); !strings.Contains(said.String(), "configuration in force") && lines.Scan(); {
		said.WriteString(lines.Text() + "\n")
	}
	if !strings.Contains(said.String(), "configuration in force") {
		t.Fatalf("ssh-gateway: %v\n%s", cmd.Wait(), said.String())
	}
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		_, _ = io.Copy(io.Discard, log)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-drained
		if err := cmd.Wait(); err != nil {
			t.Errorf("ssh-gateway: %v", err)
		}
	})
}

var (
	guideNames = regexp.MustCompile(`host="(?:bastion|gateway)\.example\.com"|(?:bastion|proxy)\.example\.com|\b(?:1080|3128|808[01]|8443)\b`)
	testNumber = regexp.MustCompile(`\b\d{4,5}\b`)
)

// here is text of the guide with the names and ports of the test, if it has any.
func (h *home) here(text string) string {
	return guideNames.ReplaceAllStringFunc(text, func(name string) string { return cmp.Or(h.replace[name], name) })
}

// there is output with the home, the names and the ports of the guide.
func (h *home) there(text string) string {
	text = strings.ReplaceAll(text, h.dir, "~")
	if h.replace == nil {
		return text
	}
	for _, server := range []string{"127.0.0.1:", "127.0.0.1#", "[127.0.0.1]:"} {
		text = regexp.MustCompile(regexp.QuoteMeta(server+h.port)+`\b`).ReplaceAllString(text, "bastion.example.com:22")
	}
	return testNumber.ReplaceAllStringFunc(text, func(number string) string {
		for guide, test := range h.replace {
			if number == test {
				return guide
			}
		}
		return number
	})
}

// inside serves what is behind the bastion and returns its address.
func (h *home) inside(t *testing.T) string {
	t.Helper()
	site := filepath.Join(h.dir, "site")
	h.write(t, "site/wiki", "Welcome to the wiki.\n")
	script := `set -e; cd ~/site; git -c init.defaultBranch=main init -q work; echo hello > work/README
cd work; git add README; git -c user.name=x -c user.email=x@example.com commit -q -m x; cd ..
git clone -q --bare work x.git; git -C x.git update-server-info`
	if out, err := h.command(script).CombinedOutput(); err != nil {
		t.Fatalf("git: %v\n%s", err, out)
	}
	files := http.FileServer(http.Dir(site))
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if name, _, _ := strings.Cut(r.Host, ":"); name == "wiki.internal" {
			http.ServeFile(w, r, filepath.Join(site, "wiki"))
			return
		}
		files.ServeHTTP(w, r)
	})}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(l)
	}()
	t.Cleanup(func() {
		server.Close()
		<-served
	})
	return l.Addr().String()
}

func (h *home) command(line string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	cmd := exec.CommandContext(ctx, "bash", "-c", line)
	cmd.Cancel = func() error { defer cancel(); return cmd.Process.Kill() }
	cmd.WaitDelay = time.Second
	cmd.Dir, cmd.Env = h.dir, h.env
	return cmd
}

// run gives each command of a block and expects what stands below it.
func (h *home) run(t *testing.T, b block) {
	t.Helper()
	for part := range strings.SplitSeq("\n"+b.text, "\n$ ") {
		line, want, _ := strings.Cut(strings.TrimPrefix(part, "\n"), "\n")
		if line == "" {
			continue
		}
		want = strings.TrimSuffix(want, "\n")
		// A record is written after the program has its answer, and a file has no
		// event that says it is complete.
		reads := strings.HasPrefix(line, "jq ")
		for end := time.Now().Add(10 * time.Second); ; {
			out, _ := h.command(h.here(line)).CombinedOutput() // what it says tells whether it is as it should
			got := strings.TrimSuffix(h.there(string(out)), "\n")
			if bytes.Contains(out, []byte("namespaces are forbidden")) {
				skip(t, got)
			}
			if like(got, want) {
				break
			}
			if !reads || time.Now().After(end) {
				t.Fatalf("docs/guide.md:%d: %s\n--- prints\n%s\n--- the guide says\n%s", b.line, line, got, want)
			}
			<-time.After(10 * time.Millisecond)
		}
	}
}

// like reports whether got is want, where "..." stands for anything in a line.
func like(got, want string) bool {
	pattern := strings.ReplaceAll(regexp.QuoteMeta(want), `\.\.\.`, `.*`)
	return regexp.MustCompile(`\A` + pattern + `\z`).MatchString(got)
}
