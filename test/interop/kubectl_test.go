package interop

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"sshbroker/test/netns"
)

// TestKubectl has a real kubectl reach an API that only the far side reaches, in both
// ways of the document and a third: by a proxy-url that kubeconfig set has written, by
// https_proxy, and under ssh-capture, which needs neither.
func TestKubectl(t *testing.T) {
	kubectl := netns.RequireProgram(t, "kubectl", "kubernetes-client")
	w := newBastionWorld(t, netns.SSHDOptions{})
	marker := "MARKER-" + rand.Text()
	hosts(t, w.Server, "10.99.2.2 api.internal")
	api := startKubeAPI(t, w.Inner, marker)
	before := w.settled(t)
	w.configure(t, `<profiles>`+w.profile("gw")+`</profiles>
<static-tunnels><tunnel type="http-connect" listen-port="3128"/></static-tunnels>
<filter-engine><rule host="api\.internal" ports="6443" pseudo-ip="yes" action="TUNNEL" profile-id="gw"/></filter-engine>`)
	config := w.Alice.Write(t, ".kube/config", api.config(), 0o600)
	expect(t, w.ctl(t, "start"), 0)
	near := w.Client.Capture(t, "to-server")
	far := w.Server.Capture(t, "to-inner")

	// Without any of them there is no way.
	plain := netns.Cmd{Args: []string{kubectl, "--request-timeout=10s"}, User: w.Alice}
	if r := w.Client.Run(t, with(plain, "--request-timeout=3s", "get", "--raw", "/marker")); r.Code == 0 {
		t.Fatalf("the API is reached without a tunnel: %v", r)
	}

	proxied := plain
	proxied.Env = []string{"https_proxy=http://127.0.0.1:3128"}
	captured := plain
	captured.Args = append([]string{w.Capture}, plain.Args...)
	ways := []struct {
		name string
		cmd  netns.Cmd
	}{{"https_proxy", proxied}, {"ssh-capture", captured}, {"proxy-url", plain}}
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			if way.name == "proxy-url" {
				r := expect(t, w.ctl(t, "kubeconfig", "set", "prod", "--profile", "gw"), 0)
				requireText(t, r, config+":4: cluster prod, https://api.internal:6443, goes through profile gw, by http://127.0.0.1:3128\n")
			}
			w.useKubectl(t, api, way.cmd, marker)
		})
	}

	// kubectl writes the file anew; comments go, the mark does not.
	requireText(t, w.Client.Run(t, with(plain, "config", "use-context", "play")), "play")
	requireText(t, w.ctl(t, "kubeconfig", "list"), "http://127.0.0.1:3128  gw")
	requireText(t, w.Client.Run(t, with(plain, "get", "--raw", "/marker")), marker)
	requireText(t, w.ctl(t, "kubeconfig", "unset", "prod"), "written anew since, so that only the values are")
	if text, err := os.ReadFile(config); err != nil || strings.Contains(string(text), "proxy-url") || strings.Contains(string(text), "ssh-broker") {
		t.Errorf("undone it is %s, %v", text, err)
	}
	requireText(t, w.Client.Run(t, with(plain, "config", "view", "-o", "jsonpath={.clusters[0].cluster.server}")), "https://api.internal:6443")

	// Byte for byte, where kubectl has left it alone; and it keeps out while it is at work.
	w.Alice.Write(t, ".kube/config", api.config(), 0o600)
	expect(t, w.ctl(t, "kubeconfig", "set", "prod", "--profile", "gw"), 0)
	w.Alice.Write(t, ".kube/config.lock", "", 0o600)
	if r := w.ctl(t, "kubeconfig", "unset", "prod"); r.Code != 1 || !strings.Contains(r.Stderr, config+".lock") {
		t.Errorf("beside a kubectl: %v", r)
	}
	if err := os.Remove(config + ".lock"); err != nil {
		t.Fatal(err)
	}
	expect(t, w.ctl(t, "kubeconfig", "unset", "prod"), 0)
	if text, err := os.ReadFile(config); err != nil || string(text) != api.config() {
		t.Errorf("undone it is %s, %v", text, err)
	}

	for _, r := range w.records(t) {
		if r.Reason != "carried" || r.Target != "api.internal:6443" || r.Profile != "gw" {
			t.Errorf("recorded %+v", r)
		}
	}
	w.requireNoneTo(t, near, 6443)
	if len(far.Packets(t, netns.NewConnections)) == 0 { // and would have been seen
		t.Error("no connection was seen behind the server")
	}
	for _, text := range []string{marker, kubeToken} {
		if near.Contains(t, []byte(text)) || far.Contains(t, []byte(text)) {
			t.Errorf("%q went in clear", text)
		}
	}
	w.finish(t, before)
}

// with is a command with more arguments.
func with(c netns.Cmd, args ...string) netns.Cmd {
	c.Args = append(append([]string{}, c.Args...), args...)
	return c
}

// useKubectl does what people do with kubectl.
func (w *world) useKubectl(t *testing.T, api *kubeAPI, cmd netns.Cmd, marker string) {
	t.Helper()
	requireText(t, w.Client.Run(t, with(cmd, "get", "--raw", "/marker")), marker)
	requireText(t, w.Client.Run(t, with(cmd, "version")), "v1.32.0")
	r := expect(t, w.Client.Run(t, with(cmd, "get", "pods")), 0)
	if !regexp.MustCompile(`(?m)^NAME +READY +STATUS +RESTARTS +AGE\n` + kubePod + ` +1/1 +Running +0 +35h$`).MatchString(r.Stdout) {
		t.Errorf("the pods: %v", r)
	}

	// Large bodies, either way.
	if r := expect(t, w.Client.Run(t, with(cmd, "--request-timeout=60s", "get", "--raw", "/big")), 0); len(r.Stdout) != kubeBig || strings.Count(r.Stdout, "0123456789abcde\n") != kubeBig/16 {
		t.Errorf("%d bytes came, want %d", len(r.Stdout), kubeBig)
	}
	body := make([]byte, 4<<20)
	if _, err := rand.Read(body); err != nil {
		t.Fatal(err)
	}
	file := w.Alice.Write(t, "body", string(body), 0o600)
	requireText(t, w.Client.Run(t, with(cmd, "--request-timeout=60s", "create", "--raw", "/sink", "-f", file)), fmt.Sprintf("%d %x <nil>\n", len(body), sha256.Sum256(body)))

	// A watch, which is told of what happens when it happens.
	watch := w.Client.Start(t, with(cmd, "--request-timeout=0", "get", "pods", "--watch"))
	watch.WaitFor(t, kubePod)
	select {
	case <-api.watch:
	case <-time.After(settle):
		t.Fatal("no watch has begun")
	}
	for i := range 20 {
		name := fmt.Sprintf("pod-%d-", i)
		api.events <- name
		watch.WaitFor(t, name)
	}
	watch.Signal(t, syscall.SIGTERM)
	watch.Wait(t)

	w.execKubectl(t, cmd)
}

// execKubectl has kubectl upgrade a connection to a WebSocket, and both sides speak.
func (w *world) execKubectl(t *testing.T, cmd netns.Cmd) {
	t.Helper()
	var version struct {
		ClientVersion struct{ Major, Minor string }
	}
	r := expect(t, w.Client.Run(t, netns.Cmd{Args: []string{cmd.Args[len(cmd.Args)-2], "version", "--client", "-o", "json"}, User: w.Alice}), 0)
	if err := json.Unmarshal([]byte(r.Stdout), &version); err != nil {
		t.Fatalf("%v: %v", err, r)
	}
	if minor, _ := strconv.Atoi(strings.TrimRight(version.ClientVersion.Minor, "+")); minor < 30 {
		t.Logf("kubectl 1.%d speaks SPDY with exec, which this API does not", minor)
		return
	}
	text := bytes.Repeat([]byte("over the wire and back\n"), 1<<13)
	exec := with(cmd, "--request-timeout=60s", "exec", "-i", kubePod, "--", "cat")
	exec.Stdin = bytes.NewReader(text)
	if r := expect(t, w.Client.Run(t, exec), 0); r.Stdout != string(text) {
		t.Errorf("exec gave %d bytes back of %d: %v", len(r.Stdout), len(text), r)
	}
}
