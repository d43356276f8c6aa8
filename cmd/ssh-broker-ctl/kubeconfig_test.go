package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sshbroker/broker/control"
)

const kubeXML = `<secsh-broker>
  <profiles>
    <profile id="gw" name="the gateway" host="bastion.example.com" user="ann"/>
    <profile id="other" host="other.example.com" user="ann"/>
  </profiles>
  <static-tunnels>
    <tunnel type="socks-proxy" listen-port="1080"/>
    <tunnel type="http-connect" listen-port="3128"/>
  </static-tunnels>
  <filter-engine>
    <rule host=".*\.internal" ports="6443" profile-id="gw" action="tunnel"/>
    <rule ip-address="10\..*" profile-id="other" action="tunnel"/>
  </filter-engine>
</secsh-broker>
`

const kubeFile = `apiVersion: v1
clusters:
# of the operators
- cluster:
    certificate-authority-data: QUJD
    server: https://api.internal:6443
  name: prod
- cluster: {server: https://10.1.2.3}
  name: lab
- cluster: {server: "unix:///x"}
  name: odd
contexts:
- context: {cluster: prod, user: ann}
  name: work
`

// newKubeWorld is a world with that configuration and that kubeconfig, and no broker.
func newKubeWorld(t *testing.T) (w *world, name string) {
	w = newWorld(t, kubeXML, "")
	name = filepath.Join(os.Getenv("HOME"), ".kube", "config")
	w.write(name, kubeFile)
	t.Setenv("KUBECONFIG", "")
	return w, name
}

// failsWith runs the program, which has to fail with these texts.
func (w *world) failsWith(args []string, texts ...string) {
	w.t.Helper()
	code, out, errs := w.ctl(args...)
	if code != exitFailed || out != "" {
		w.t.Errorf("%q: code %d, %s", args, code, out)
	}
	wants(w.t, errs, texts...)
}

func TestKubeconfigByConfiguration(t *testing.T) {
	w, name := newKubeWorld(t)
	out := w.done("kubeconfig", "set", "prod", "--profile", "the gateway")
	wants(t, out, name+":4: cluster prod, https://api.internal:6443, goes through profile gw, by http://127.0.0.1:3128\n", "no broker is running: the proxy answers after ssh-broker-ctl start\n")
	set := w.read(name)
	if set == kubeFile || !strings.Contains(set, "    proxy-url: http://127.0.0.1:3128\n    server: https://api.internal:6443\n") {
		t.Errorf("the file is\n%s", set)
	}
	wants(t, w.done("kubeconfig", "set", "prod", "--profile", "gw"), "nothing to change: cluster prod")
	wants(t, w.done("kubeconfig", "list"), "CLUSTER  SERVER", "prod     https://api.internal:6443  http://127.0.0.1:3128  gw       "+name+":4\n", "lab      https://10.1.2.3           -                      -  ")
	var row kubeRow
	if err := json.Unmarshal([]byte(strings.Split(w.done("kubeconfig", "list", "-s"), "\n")[0]), &row); err != nil || row.State != "set" || row.Profile != "gw" || row.Server == "" {
		t.Errorf("%+v, %v", row, err)
	}
	// Another port, by hand.
	wants(t, w.done("kubeconfig", "set", "prod", "--profile", "gw", "--listen", "[::1]:8081"), "by http://[::1]:8081")
	wants(t, w.done("kubeconfig", "unset", "prod", "--dry-run"), "-    proxy-url: http://[::1]:8081\n")
	if !strings.Contains(w.read(name), "[::1]:8081") {
		t.Error("a dry run has written")
	}
	wants(t, w.done("kubeconfig", "unset", "prod"), name+":4: cluster prod is as it was before\n")
	if got := w.read(name); got != kubeFile {
		t.Errorf("undone it is\n%s", got)
	}
	wants(t, w.done("kubeconfig", "unset", "prod"), "nothing to change: cluster prod was not set")
	if list, err := os.ReadDir(filepath.Dir(name)); err != nil || len(list) != 1 {
		t.Errorf("left behind: %v", list)
	}
}

func TestKubeconfigRefuses(t *testing.T) {
	w, name := newKubeWorld(t)
	for line, texts := range map[string][]string{
		"set none --profile gw": {`there is no cluster "none" in ` + name, "hint: there are: prod, lab, odd"},
		"set work --profile gw": {`there is no cluster "work"`, "hint: work is a context; its cluster is prod"},
		"set prod --profile x":  {`the configuration has no profile "x"`, "hint: there are: gw, other"},
		"set prod --profile other": {"the rules do not lead kubectl to api.internal:6443 through profile other: TUNNEL through profile gw by rule 1, " + w.user + ":11",
			`hint: ssh-broker-ctl rule add --host 'api\.internal' --ports 6443 --action TUNNEL --profile-id other --before 1 --reload`},
		"set lab --profile gw":   {"10.1.2.3:443 through profile gw: TUNNEL through profile other by rule 2", `rule add --ip-address '10\.1\.2\.3' --ports 443`},
		"set odd --profile gw":   {name + `:10: the server of cluster "odd"`, "not a URL such as https://"},
		"unset none":             {`there is no cluster "none"`},
		"list --kubeconfig /x/y": {"there is no kubeconfig: /x/y does not exist", "--kubeconfig"},
	} {
		w.failsWith(append([]string{"kubeconfig"}, strings.Fields(line)...), texts...)
	}
	for line, want := range map[string]string{
		"":                                    "set, unset or list is missing",
		"remove":                              `"remove" is not one of set, unset, list`,
		"set":                                 "CLUSTER is missing",
		"set prod":                            "--profile PROFILE is missing",
		"set prod --profile gw --listen x":    `"x" is not a port`,
		"set prod --profile gw --listen h:80": `"h" is not an address`,
		"set prod --profile gw --listen 0":    `"0" is not a port`,
		"unset":                               "CLUSTER is missing",
		"list prod":                           "one argument too many",
	} {
		if code, _, errs := w.ctl(append([]string{"kubeconfig"}, strings.Fields(line)...)...); code != exitUsage || !strings.Contains(errs, want) {
			t.Errorf("%q: code %d, %s", line, code, errs)
		}
	}
	w.write(w.user, strings.Replace(kubeXML, `<tunnel type="http-connect" listen-port="3128"/>`, "", 1))
	w.failsWith([]string{"kubeconfig", "set", "prod", "--profile", "gw"}, "the configuration has no http-connect tunnel", `<tunnel type="http-connect" listen-port="3128" />`, "open-tunnel-listener")
	w.write(w.user, strings.Replace(kubeXML, `\.internal`, `\.example`, 1))
	w.failsWith([]string{"kubeconfig", "set", "prod", "--profile", "gw"}, "DIRECT, as no rule matches", `--profile-id gw --reload`)

	w.write(w.user, strings.Replace(strings.Replace(kubeXML, "<filter-engine>", "<!--", 1), "</filter-engine>", "-->", 1))
	w.failsWith([]string{"kubeconfig", "set", "prod", "--profile", "gw"}, "through profile gw: there is no filter-engine in "+w.user, "hint: ssh-broker-ctl rule add --host")
	w.write(name, strings.Replace(kubeFile, "api.internal", "a';b", 1))
	w.failsWith([]string{"kubeconfig", "set", "prod", "--profile", "gw"}, `"a';b" is not a host`)
	w.write(name, kubeFile)

	// Of the file itself.
	w.write(w.user, kubeXML)
	if err := os.WriteFile(name+".lock", nil, 0); err != nil {
		t.Fatal(err)
	}
	w.failsWith([]string{"kubeconfig", "set", "prod", "--profile", "gw"}, name+".lock: this lock exists, since 20", "remove "+name+".lock")
	if err := os.Remove(name + ".lock"); err != nil {
		t.Fatal(err)
	}
	w.write(name, "clusters: [{name: prod")
	w.failsWith([]string{"kubeconfig", "list"}, name+":1: this is not YAML")
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	w.failsWith([]string{"kubeconfig", "list"}, "there is no kubeconfig: "+name+" does not exist")
	t.Setenv("HOME", "")
	w.failsWith([]string{"kubeconfig", "list"}, "you have no home directory")
}

func TestKubeconfigByBroker(t *testing.T) {
	w, name := newKubeWorld(t)
	result := &control.ExplainResult{Action: "TUNNEL", Rule: 3, Source: "x.xml:9", Profile: "gw"}
	var asked shared[control.ExplainArgs]
	listeners := []control.ListenerRow{
		{Type: "socks-proxy", Listen: "127.0.0.1:1080", Open: true},
		{Type: "http-connect", Listen: "192.0.2.1:3128", Open: true, Since: time.Now()},
		{Type: "http-connect", Listen: "127.0.0.1:3129", Error: "address already in use", Source: "x.xml:7"},
		{Type: "http-connect", Listen: "[::]:3130", Open: true},
	}
	serve := func(listeners ...control.ListenerRow) {
		w.address = fakeBroker(t, func(s *control.Server, _ func()) {
			s.Handle(control.OpProfiles, rows(control.ProfileRow{ID: "gw", Name: "the gateway"}))
			s.Handle(control.OpListeners, rows(listeners...))
			s.Handle(control.OpExplain, func(_ context.Context, c *control.Call) error {
				var args control.ExplainArgs
				if err := c.Decode(&args); err != nil {
					return err
				}
				asked.set(args)
				return c.Send(control.ExplainRow{Result: result})
			})
		})
	}
	serve(listeners...)
	if out := w.done("kubeconfig", "set", "prod", "--profile", "the gateway"); !strings.Contains(out, "profile gw, by http://127.0.0.1:3130") || strings.Contains(out, "no broker") {
		t.Error(out)
	}
	if got := asked.get(); got.Host != "api.internal" || got.Port != 6443 || filepath.Base(got.Program) == "" {
		t.Errorf("asked for %+v", got)
	}
	serve(listeners[:3]...)
	wants(t, w.done("kubeconfig", "set", "prod", "--profile", "gw"), "by http://192.0.2.1:3128")
	serve(listeners[2])
	w.failsWith([]string{"kubeconfig", "set", "prod", "--profile", "gw"}, "the http-connect tunnel at 127.0.0.1:3129 (x.xml:7) is not open: address already in use", "hint: free its port")
	serve(listeners[0])
	w.failsWith([]string{"kubeconfig", "set", "prod", "--profile", "gw"}, "the broker has no http-connect tunnel", "hint: put <tunnel")
	serve(listeners...)
	result = &control.ExplainResult{Action: "BLOCK", Rule: 1, Source: "x.xml:5"}
	w.failsWith([]string{"kubeconfig", "set", "prod", "--profile", "gw"}, "BLOCK by rule 1, x.xml:5", "--before 1 --reload")
	w.failsWith([]string{"kubeconfig", "set", "prod", "--profile", "none"}, `the broker has no profile "none"`, "there are: gw")
	w.done("kubeconfig", "unset", "prod")
	if got := w.read(name); got != kubeFile {
		t.Errorf("undone it is\n%s", got)
	}
}

// The file that defines a cluster is the first of KUBECONFIG that has it.
func TestKubeconfigList(t *testing.T) {
	w, _ := newKubeWorld(t)
	dir := t.TempDir()
	first, second, third := filepath.Join(dir, "1"), filepath.Join(dir, "2"), filepath.Join(dir, "3")
	w.write(first, "clusters: [{name: other, cluster: {server: https://o}}]\n")
	w.write(second, kubeFile)
	w.write(third, strings.Replace(kubeFile, "api.internal", "new.internal", 1))
	t.Setenv("KUBECONFIG", strings.Join([]string{first, filepath.Join(dir, "none"), second, third}, ":"))
	wants(t, w.done("kubeconfig", "set", "prod", "--profile", "gw"), second+":4: cluster prod, https://api.internal")
	if w.read(second) == kubeFile || strings.Contains(w.read(first)+w.read(third), "proxy-url") {
		t.Error("the wrong file was edited")
	}
	if out := w.done("kubeconfig", "list"); strings.Count(out, "kubectl takes the one above it") != 3 {
		t.Error(out)
	}
	// In another order it is a later file that has the mark.
	t.Setenv("KUBECONFIG", third+":"+second)
	wants(t, w.done("kubeconfig", "unset", "prod"), second+":4: cluster prod is as it was before")
	if got := w.read(second); got != kubeFile {
		t.Errorf("undone it is\n%s", got)
	}
}

func TestKubeconfigChangedSince(t *testing.T) {
	w, name := newKubeWorld(t)
	w.done("kubeconfig", "set", "prod", "--profile", "gw")
	odd := strings.Replace(w.read(name), "    proxy-url: http://127.0.0.1:3128\n    server", "    proxy-url: http://proxy.example.com:8080\n    server", 1)
	w.write(name, odd)
	for _, args := range [][]string{{"kubeconfig", "unset", "prod"}, {"kubeconfig", "set", "prod", "--profile", "gw"}} {
		w.failsWith(args, name+`:11: the proxy-url of cluster "prod" is "http://proxy.example.com:8080" and was set to "http://127.0.0.1:3128"`, "hint: to keep the proxy-url as it is: ssh-broker-ctl kubeconfig unset prod --forget")
	}
	if got := w.read(name); got != odd {
		t.Errorf("it was written:\n%s", got)
	}
	wants(t, w.done("kubeconfig", "list"), "somebody has changed its proxy-url since it was set")
	wants(t, w.done("kubeconfig", "unset", "prod", "--forget"), "cluster prod keeps its proxy-url")
	if got, want := w.read(name), strings.Replace(kubeFile, "    server: https://api", "    proxy-url: http://proxy.example.com:8080\n    server: https://api", 1); got != want {
		t.Errorf("got\n%s", got)
	}
	wants(t, w.done("kubeconfig", "unset", "prod"), "was not set")
}

func TestKubeconfigCompletion(t *testing.T) {
	w, _ := newKubeWorld(t)
	for line, want := range map[string]string{"set ": "prod\nlab\nodd\n", "unset ": "prod\nlab\nodd\n", "set prod --profile ": "gw\nother\n", "set prod ": ""} {
		_, out, _ := w.ctl(append([]string{"__complete", "kubeconfig"}, strings.Split(line, " ")...)...)
		if got, _, _ := strings.Cut(out, ":"); got != want {
			t.Errorf("%q: %q", line, out)
		}
	}
}
