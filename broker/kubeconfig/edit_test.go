package kubeconfig

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

var mark = Mark{Profile: "prod", ProxyURL: "http://127.0.0.1:3128"}

const block = `# of the operators
apiVersion: v1
kind: Config
clusters:
- name: prod   # the big one
  cluster:
    certificate-authority-data: QUJD
    # behind the bastion
    server: https://api.internal:6443 # not in DNS
    tls-server-name: api
- cluster:
    server: "https://dev.internal"
    proxy-url: 'socks5://old:1080'   # to be removed
    x-unknown: {a: [1, 2]}
  name: dev
contexts:
- context: {cluster: prod, user: ann}
  name: work
current-context: work
users: []
`

func mustParse(t testing.TB, text string) *Text {
	t.Helper()
	p, err := Parse("config", []byte(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return p
}

func mustSet(t testing.TB, p *Text, cluster string, m Mark) *Text {
	t.Helper()
	made, err := p.Set(cluster, m)
	if err != nil {
		t.Fatalf("%v\n%s", err, p.Bytes())
	}
	return made
}

// wantUndone fails unless the mark comes off and leaves exactly these bytes.
func wantUndone(t testing.TB, p *Text, cluster, want string) {
	t.Helper()
	before, exact, err := p.Unset(cluster)
	if err != nil {
		t.Fatalf("%v\n%s", err, p.Bytes())
	}
	if string(before.Bytes()) != want || !exact {
		t.Errorf("undone, exact %t, it is\n%s\nwant\n%s", exact, before.Bytes(), want)
	}
}

func TestSetInBlockStyle(t *testing.T) {
	p := mustSet(t, mustParse(t, block), "prod", mark)
	want := strings.Replace(block, "    server: https://api", `    extensions:
    - extension:
        profile: "prod"
        proxy-url: http://127.0.0.1:3128
      name: ssh-broker
    proxy-url: http://127.0.0.1:3128
    server: https://api`, 1)
	if string(p.Bytes()) != want {
		t.Errorf("got\n%s\nwant\n%s", p.Bytes(), want)
	}
	wantUndone(t, p, "prod", block)

	p = mustSet(t, mustParse(t, block), "dev", mark)
	want = strings.Replace(block, `    server: "https://dev`, `    extensions:
    - extension:
        profile: "prod"
        proxy-url: http://127.0.0.1:3128
        was: "'socks5://old:1080'"
      name: ssh-broker
    server: "https://dev`, 1)
	want = strings.Replace(want, "'socks5://old:1080'   #", "http://127.0.0.1:3128   #", 1)
	if string(p.Bytes()) != want {
		t.Errorf("got\n%s\nwant\n%s", p.Bytes(), want)
	}
	wantUndone(t, p, "dev", block)
}

// forms are ways to write the cluster c, with a proxy-url or without.
var forms = map[string]string{
	"block":                   "clusters:\n- cluster:\n    server: https://a\n  name: c\n",
	"no end of line":          "clusters:\n- name: c\n  cluster:\n    server: https://a",
	"indented list":           "clusters:\n    - name: c\n      cluster:\n        server: https://a\n",
	"one blank":               "clusters:\n- name: c\n  cluster:\n   server: https://a\n",
	"dash alone":              "clusters:\n-\n  name: c\n  cluster:\n    server: https://a\n",
	"tag":                     "clusters:\n- name: c\n  cluster: !!map\n    server: https://a\n",
	"anchor of nobody":        "clusters:\n- name: c\n  cluster: &c\n    server: https://a\n",
	"merge":                   "x: &x {proxy-url: http://b}\nclusters:\n- name: c\n  cluster:\n    <<: *x\n    server: https://a\n",
	"CRLF":                    "clusters:\r\n- cluster:\r\n    server: https://a\r\n  name: c\r\n",
	"CRLF, its own":           "clusters:\r\n- cluster:\r\n    server: https://a\r\n    proxy-url: http://b\r\n  name: c\r\n",
	"byte order mark":         "\ufeffclusters:\n- cluster:\n    server: https://a\n  name: c\n",
	"beyond ASCII":            "clusters:\n- cluster: {ä: é, server: https://a, ö: ü}\n  name: c\n",
	"in one line after that":  "users: [{name: é}]\nclusters: [{name: c, cluster: {é: 1, proxy-url: http://b, server: https://a}}]",
	"flow":                    "clusters: [{cluster: {server: https://a}, name: c}]\n",
	"flow, its own":           "clusters: [{cluster: {server: https://a, proxy-url: http://b}, name: c}]\n",
	"flow, its own, null":     "clusters: [{cluster: {proxy-url: ~, server: https://a}, name: c}]\n",
	"flow, its own, nothing":  "clusters: [{cluster: {proxy-url: , server: https://a}, name: c}]\n",
	"flow in block":           "clusters:\n- {name: c, cluster: {server: https://a}}\n",
	"flow over lines":         "clusters: [\n  { name: c, # it\n    cluster: {\n      server: https://a, # there\n    } }\n]\n",
	"JSON":                    `{"clusters":[{"name":"c","cluster":{"server":"https://a"}}],"contexts":null}`,
	"JSON over lines":         "{\n\t\"clusters\": [\n\t\t{\n\t\t\t\"name\": \"c\",\n\t\t\t\"cluster\": {\n\t\t\t\t\"server\": \"https://a\",\n\t\t\t\t\"x\": 1\n\t\t\t}\n\t\t}\n\t]\n}\n",
	"JSON, its own":           `{"clusters":[{"cluster":{"proxy-url":"http://b","server":"https://a"},"name":"c"}]}`,
	"JSON, extensions":        `{"clusters":[{"cluster":{"extensions":[{"name":"x","extension":{"a":[{}]}}],"server":"https://a"},"name":"c"}]}`,
	"JSON, extensions, lines": "{\"clusters\": [{\"cluster\": {\n  \"extensions\": [\n    {\"name\": \"x\"},\n    {}\n  ],\n  \"server\": \"https://a\"},\n \"name\": \"c\"}]}",
	"JSON, no extensions":     `{"clusters":[{"cluster":{"extensions":[],"server":"https://a"},"name":"c"}]}`,
	"JSON, null":              `{"clusters":[{"cluster":{"proxy-url":null,"server":"https://a"},"name":"c"}]}`,
	"its own, first":          "clusters:\n- cluster:\n    proxy-url: http://b\n    server: https://a\n  name: c\n",
	"its own, last":           "clusters:\n- name: c\n  cluster:\n    server: https://a\n    proxy-url: http://b",
	"its own, quoted":         "clusters:\n- cluster:\n    server: https://a\n    proxy-url: \"http://b\\x2fc\" # \"x\"\n  name: c\n",
	"its own, single quotes":  "clusters:\n- cluster:\n    server: https://a\n    \"proxy-url\" : 'it''s'\n  name: c\n",
	"its own, over lines":     "clusters:\n- cluster:\n    server: https://a\n    proxy-url: \"http:\\\n      //b\"\n  name: c\n",
	"its own, nothing":        "clusters:\n- cluster:\n    proxy-url:\n    server: https://a\n  name: c\n",
	"its own, comment":        "clusters:\n- cluster:\n    proxy-url:   # later\n    server: https://a\n  name: c\n",
	"its own, blanks":         "clusters:\n- cluster:\n    proxy-url:   \n    server: https://a\n  name: c\n",
	"its own, null":           "clusters:\n- cluster:\n    proxy-url: null\n    server: https://a\n  name: c\n",
	"its own, empty":          "clusters:\n- cluster:\n    proxy-url: ''\n    server: https://a\n  name: c\n",
	"extensions":              "clusters:\n- cluster:\n    extensions:\n    - extension: {last-update: x}\n      name: cluster_info\n    - name: y\n    server: https://a\n  name: c\n",
	"extensions behind":       "clusters:\n- cluster:\n    server: https://a\n    extensions:\n      # of minikube\n      - extension:\n          v: 1\n        name: z\n  name: c",
	"extensions, dash alone":  "clusters:\n- cluster:\n    server: https://a\n    extensions:\n    - \n      name: z\n  name: c",
	"extensions, flow":        "clusters:\n- cluster:\n    server: https://a\n    extensions: [ {name: z} ]\n  name: c\n",
	"extensions, empty":       "clusters:\n- cluster:\n    server: https://a\n    extensions: [ ]\n  name: c\n",
	"comments":                "clusters:\n- cluster:\n    # one\n\n    # two\n    server: https://a # three\n    # four\n  name: c\n",
	"text above":              "clusters:\n- cluster:\n    certificate-authority-data: |\n      QUJD\n      # REVG\n    server: https://a\n  name: c\n",
	"text below":              "clusters:\n- cluster:\n    server: https://a\n    ca: >-\n      QUJD\n\n      # REVG\n  name: c\n",
	"server quoted":           "clusters:\n- cluster:\n    \"server\": \"https://a\"\n  name: \"c\"\n",
	"many":                    "clusters:\n- name: b\n  cluster:\n    server: https://a\n- name: c\n  cluster:\n    server: https://a\n    proxy-url: x://b\n- name: d\n  cluster:\n    server: https://a\n",
	"marker of documents":     "%YAML 1.1\n---\nclusters:\n- name: c\n  cluster:\n    server: https://a\n...\n",
}

// TestForms sets, changes, forgets and unsets in every form.
func TestForms(t *testing.T) {
	for name, text := range forms {
		t.Run(name, func(t *testing.T) {
			p := mustParse(t, text)
			set := mustSet(t, p, "c", mark)
			sameButProxy(t, text, string(set.Bytes()), "c", mark.ProxyURL)
			c, _ := set.Cluster("c")
			if c.State != Set || c.Mark.Profile != "prod" || c.ProxyURL != mark.ProxyURL {
				t.Errorf("%+v", c)
			}
			if again := mustSet(t, set, "c", mark); again != set {
				t.Errorf("set again it is another:\n%s", again.Bytes())
			}
			wantUndone(t, set, "c", text)

			// Another port, and what was before is still known.
			other := mustSet(t, set, "c", Mark{Profile: "a \"b\"\\ <é>", ProxyURL: "http://[::1]:8081"})
			sameButProxy(t, text, string(other.Bytes()), "c", "http://[::1]:8081")
			wantUndone(t, other, "c", text)

			// Somebody writes another URL.
			odd := mustParse(t, strings.Replace(string(set.Bytes()), mark.ProxyURL, "http://odd:1", 1))
			if strings.Index(string(set.Bytes()), mark.ProxyURL) > strings.Index(string(set.Bytes()), markName) { // that of the mark
				at := strings.LastIndex(string(set.Bytes()), mark.ProxyURL)
				odd = mustParse(t, string(set.Bytes()[:at])+"http://odd:1"+string(set.Bytes()[at+len(mark.ProxyURL):]))
			}
			for what, edit := range map[string]func() (*Text, error){
				"set":   func() (*Text, error) { return odd.Set("c", mark) },
				"unset": func() (*Text, error) { p, _, err := odd.Unset("c"); return p, err },
			} {
				var e *Error
				if _, err := edit(); !errors.As(err, &e) || e.Line == 0 || !strings.Contains(e.Msg, "somebody has changed it since") || !strings.Contains(e.Cure, "unset c --forget") {
					t.Errorf("%s after a change: %v", what, err)
				}
			}
			forgotten, err := odd.Forget("c")
			if err != nil {
				t.Fatal(err)
			}
			was, _ := odd.Cluster("c")
			if c, _ := forgotten.Cluster("c"); c.State != Untouched || c.ProxyURL != was.ProxyURL {
				t.Errorf("forgotten, it is %+v", c)
			}
			sameButProxy(t, text, string(forgotten.Bytes()), "c", was.ProxyURL)
		})
	}
}

// sameButProxy decodes both texts, as a stranger to this package would, and compares.
func sameButProxy(t testing.TB, before, after, cluster, url string) {
	t.Helper()
	place := slices.IndexFunc(mustParse(t, before).Clusters(), func(c Cluster) bool { return c.Name == cluster })
	was, err := decoded(before)
	if err != nil {
		return // the parser takes no such tree, only its nodes
	}
	is, err := decoded(after)
	if err != nil {
		t.Fatalf("%v\n%s", err, after)
	}
	if got := strip(is, place); got != url && (got != nil || url != "") {
		t.Errorf("proxy-url is %v, want %q in\n%s", got, url, after)
	}
	strip(was, place)
	if !reflect.DeepEqual(was, is) {
		t.Errorf("something else is different in\n%s\nwas\n%s", after, before)
	}
}

// decoded is what a text means, with keys that are strings.
func decoded(text string) (map[string]any, error) {
	var tree any
	err := yaml.Unmarshal([]byte(text), &tree)
	root, _ := stringKeys(tree).(map[string]any)
	return root, err
}

func stringKeys(tree any) any {
	switch n := tree.(type) {
	case []any:
		for i := range n {
			n[i] = stringKeys(n[i])
		}
	case map[string]any:
		for k := range n {
			n[k] = stringKeys(n[k])
		}
	case map[any]any:
		m := map[string]any{}
		for k, v := range n {
			key, ok := k.(string)
			if !ok {
				key = fmt.Sprintf("%T %v", k, k)
			}
			m[key] = stringKeys(v)
		}
		return m
	}
	return tree
}

// strip takes out what Set may change of the cluster in that place, and returns the
// proxy-url.
func strip(tree map[string]any, place int) any {
	list, _ := tree["clusters"].([]any)
	for i, entry := range list {
		entry, _ := entry.(map[string]any)
		body, _ := entry["cluster"].(map[string]any)
		if i != place || body == nil {
			continue
		}
		url := body["proxy-url"]
		delete(body, "proxy-url")
		others := []any{}
		extensions, isList := body["extensions"].([]any)
		for _, x := range extensions {
			if m, _ := x.(map[string]any); m["name"] != "ssh-broker" {
				others = append(others, x)
			}
		}
		if body["extensions"] = others; len(others) == 0 && isList || extensions == nil {
			delete(body, "extensions")
		}
		return url
	}
	return nil
}

func TestRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		text string
		line int
		want string
	}{
		"no YAML":          {"clusters:\n- {name: c", 1, "this is not YAML"},
		"tab":              {"clusters:\n\t- name: c\n", 2, "this is not YAML"},
		"not UTF-8":        {"clusters: \xff", 0, "not UTF-8"},
		"scalar":           {"hello", 1, "this is not a kubeconfig"},
		"list":             {"- a", 1, "this is not a kubeconfig"},
		"clusters a map":   {"clusters:\n  c: {}\n", 2, "clusters is not a list"},
		"entry a text":     {"clusters:\n- c\n", 2, "not a mapping"},
		"contexts a map":   {"contexts:\n  c: {}\n", 2, "contexts is not a list"},
		"two documents":    {"clusters: []\n---\nclusters: []\n", 2, "a second document"},
		"two documents, 2": {"clusters: []\n---\n{", 0, "not YAML"},
		"name twice":       {"clusters:\n- {name: c}\n- {name: c}\n", 3, `second cluster "c", the first is in line 2`},
		"key twice":        {"clusters: []\nx: 1\nclusters: []\n", 3, "second time, the first is in line 1"},
		"proxy twice":      {"clusters:\n- name: c\n  cluster:\n    proxy-url: a\n    server: b\n    proxy-url: c\n", 6, "second time"},
		"mark twice":       {"clusters:\n- name: c\n  cluster: {server: x, extensions: [{name: ssh-broker}, {name: ssh-broker}]}\n", 3, "two extensions"},

		"no such cluster":  {"clusters:\n- {name: d, cluster: {server: x}}\n", 0, `there is no cluster "c"`},
		"empty":            {"", 0, `there is no cluster "c"`},
		"null":             {"clusters: null\n", 0, `there is no cluster "c"`},
		"no body":          {"clusters:\n- {name: c}\n", 2, `has no "cluster"`},
		"body a text":      {"clusters:\n- {name: c, cluster: x}\n", 2, "is not a mapping"},
		"no server":        {"clusters:\n- {name: c, cluster: {}}\n", 2, "has no server"},
		"alias":            {"x: &x {server: a}\nclusters:\n- {name: c, cluster: *x}\n", 3, "is an alias"},
		"entry an alias":   {"x: &x {name: c, cluster: {server: a}}\nclusters:\n- *x\n", 3, "is an alias"},
		"shared body":      {"clusters:\n- name: c\n  cluster: &x\n    server: a\n- {name: d, cluster: *x}\n", 5, "the alias *x"},
		"shared entry":     {"clusters:\n- &x\n  name: c\n  cluster:\n    server: a\nx: *x\n", 6, "the alias *x"},
		"shared list":      {"clusters: &x\n- name: c\n  cluster:\n    server: a\nx: *x\n", 5, "the alias *x"},
		"anchored proxy":   {"clusters:\n- name: c\n  cluster:\n    proxy-url: &x http://a\n    server: b\n", 4, "form that is not edited"},
		"tagged proxy":     {"clusters:\n- name: c\n  cluster:\n    proxy-url: !!str http://a\n    server: b\n", 4, "form that is not edited"},
		"literal proxy":    {"clusters:\n- name: c\n  cluster:\n    proxy-url: >-\n      http://a\n    server: b\n", 4, "form that is not edited"},
		"proxy over lines": {"clusters:\n- name: c\n  cluster:\n    proxy-url: http://a\n      b\n    server: b\n", 4, "form that is not edited"},
		"complex key":      {"clusters:\n- name: c\n  cluster:\n    ? server\n    : b\n", 4, "form that is not edited"},
		"extensions null":  {"clusters:\n- name: c\n  cluster:\n    extensions:\n    server: b\n", 4, "form that is not edited"},
	} {
		p, err := Parse("config", []byte(tt.text))
		if err == nil {
			_, err = p.Set("c", mark)
		}
		var e *Error
		if !errors.As(err, &e) || e.Line != tt.line && tt.line != 0 || !strings.Contains(e.Msg, tt.want) || e.File != "config" {
			t.Errorf("%s: %v, want %q in line %d", name, err, tt.want, tt.line)
		}
	}
	p := mustParse(t, block)
	for _, url := range []string{"", "x", "http://a b", "http://a #", "http://a\n", "\"x\"://", "http://é"} {
		if _, err := p.Set("prod", Mark{ProxyURL: url}); err == nil {
			t.Errorf("%q was written", url)
		}
	}
	if _, _, err := p.Unset("prod"); !errors.Is(err, ErrNotSet) {
		t.Errorf("unset of nothing: %v", err)
	}
	if _, err := p.Forget("dev"); !errors.Is(err, ErrNotSet) {
		t.Errorf("forget of nothing: %v", err)
	}
}

func TestClusters(t *testing.T) {
	p := mustSet(t, mustParse(t, block), "dev", mark)
	got := p.Clusters()
	if len(got) != 2 || got[0].Name != "prod" || got[0].Server != "https://api.internal:6443" || got[0].State != Untouched || got[0].Line != 5 ||
		got[1].Name != "dev" || got[1].State != Set || p.ClusterOf("work") != "prod" || p.ClusterOf("prod") != "" {
		t.Errorf("%+v", got)
	}
}

// TestAfterKubectl undoes what kubectl has written anew meanwhile: keys sorted, comments
// gone, another kind of quotes.
func TestAfterKubectl(t *testing.T) {
	const rewritten = `apiVersion: v1
clusters:
- cluster:
    extensions:
    - extension:
        profile: prod
        proxy-url: http://127.0.0.1:3128
        was: '''socks5://old:1080'''
      name: ssh-broker
    proxy-url: http://127.0.0.1:3128
    server: https://dev.internal
  name: dev
- cluster:
    certificate-authority-data: QUJD
    extensions:
    - extension:
        profile: prod
        proxy-url: http://127.0.0.1:3128
      name: ssh-broker
    - extension:
        x: 1
      name: x
    proxy-url: http://127.0.0.1:3128
    server: https://api.internal:6443
  name: prod
`
	p := mustParse(t, rewritten)
	p, exact, err := p.Unset("dev")
	if err != nil || exact {
		t.Fatalf("exact %t, %v", exact, err)
	}
	p, exact, err = p.Unset("prod")
	if err != nil || exact {
		t.Fatalf("exact %t, %v", exact, err)
	}
	const want = `apiVersion: v1
clusters:
- cluster:
    proxy-url: 'socks5://old:1080'
    server: https://dev.internal
  name: dev
- cluster:
    certificate-authority-data: QUJD
    extensions:
    - extension:
        x: 1
      name: x
    server: https://api.internal:6443
  name: prod
`
	if string(p.Bytes()) != want {
		t.Errorf("got\n%s", p.Bytes())
	}
}

func TestHintsAreSafeToPaste(t *testing.T) {
	p := mustParse(t, "clusters:\n- {name: \"x'; rm y '\", cluster: {server: a, extensions: [{name: ssh-broker}]}}\n")
	var e *Error
	if _, _, err := p.Unset("x'; rm y '"); !errors.As(err, &e) || !strings.Contains(e.Cure, `unset 'x'\''; rm y '\''' --forget`) {
		t.Errorf("%v", err)
	}
}

// A mark that somebody has made up cannot get anything else into the file.
func TestHostileMark(t *testing.T) {
	for _, was := range []string{`http://x\n    insecure-skip-tls-verify: true`, `x, insecure-skip-tls-verify: true`, `*x`, `&x y`, `[a]`, `"`, `# x`, `\u0000`, `x: y`} {
		for _, form := range []string{
			"clusters:\n- name: c\n  cluster:\n    extensions:\n    - extension:\n        proxy-url: http://a\n        was: \"%s\"\n      name: ssh-broker\n    proxy-url: http://a\n    server: b\n",
			`{"clusters":[{"name":"c","cluster":{"extensions":[{"extension":{"proxy-url":"http://a","was":"%s"},"name":"ssh-broker"}],"proxy-url":"http://a","server":"b"}}]}`,
		} {
			text := strings.Replace(form, "%s", strings.ReplaceAll(was, `"`, `\"`), 1)
			p, err := Parse("config", []byte(text))
			if err != nil {
				continue
			}
			made, _, err := p.Unset("c")
			if err != nil {
				continue
			}
			tree, err := decoded(string(made.Bytes()))
			if err != nil {
				t.Fatal(err)
			}
			strip(tree, 0)
			if got := fmt.Sprint(tree); got != "map[clusters:[map[cluster:map[server:b] name:c]]]" {
				t.Errorf("%q: %s", was, got)
			}
		}
	}
}

// FuzzEdit: set and undone gives the same bytes; what is set says the same but for the
// proxy-url; nothing panics.
func FuzzEdit(f *testing.F) {
	for _, text := range forms {
		f.Add([]byte(text))
		if p, err := Parse("config", []byte(text)); err == nil {
			if p, err := p.Set("c", mark); err == nil {
				f.Add(p.Bytes())
			}
		}
	}
	f.Add([]byte(block))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Parse("config", data)
		if err != nil {
			return
		}
		for _, c := range p.Clusters() {
			if c.State != Untouched {
				if p, _, err := p.Unset(c.Name); err == nil {
					if c, _ := p.Cluster(c.Name); c.State != Untouched {
						t.Errorf("undone, it is %+v", c)
					}
				}
				if made, err := p.Forget(c.Name); err == nil {
					if after, _ := made.Cluster(c.Name); after.State != Untouched || after.ProxyURL != c.ProxyURL {
						t.Errorf("forgotten, it is %+v", after)
					}
				}
			}
			if c.State == Changed {
				continue
			}
			set, err := p.Set(c.Name, mark)
			if err != nil {
				continue
			}
			sameButProxy(t, string(data), string(set.Bytes()), c.Name, mark.ProxyURL)
			if c.State == Set {
				continue // by whom, and is its mark true?
			}
			before, exact, err := set.Unset(c.Name)
			if err != nil {
				t.Fatalf("%v\n%s", err, set.Bytes())
			}
			if !exact || string(before.Bytes()) != string(data) {
				t.Fatalf("exact %t, undone it is\n%q\nwas\n%q\nset\n%q", exact, before.Bytes(), data, set.Bytes())
			}
		}
	})
}
