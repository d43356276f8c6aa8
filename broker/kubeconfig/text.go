package kubeconfig

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// Most is the largest file that is read, in bytes.
const Most = 8 << 20

// Error is what is wrong at a place of a file, and what to do about it.
type Error struct {
	File string
	Line int // from 1; 0: of no line
	Msg  string
	Cure string // "" where there is nothing to say

	class error // nil, or what it is one of
}

func (e *Error) Unwrap() error { return e.class }

func (e *Error) Error() string {
	if e.Line == 0 {
		return e.File + ": " + e.Msg
	}
	return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Msg)
}

// State is what has been done to a cluster.
type State uint8

const (
	Untouched State = iota // nothing
	Set                    // its proxy-url is ours
	Changed                // it was, and somebody has changed it since
)

// Cluster is a cluster as a file has it.
type Cluster struct {
	Name     string
	Server   string // URL of its API
	ProxyURL string // "": none
	Line     int
	State    State
	Mark     Mark // unless Untouched
}

// Mark is what was done to a cluster.
type Mark struct {
	Profile  string // through which it is led
	ProxyURL string
	had      bool
	was      string // the text of the proxy-url before, if it had one
}

// Text is what a file holds.
type Text struct {
	name     string
	data     []byte
	lines    []int // where each begins, in data
	doc      *yaml.Node
	clusters []*cluster
	contexts map[string]string // name of a context -> of its cluster
}

// cluster is a Cluster with its nodes.
type cluster struct {
	Cluster
	entry *yaml.Node // of the list
	body  *yaml.Node // "cluster"; an alias where it is one
	proxy *yaml.Node // the value of its own proxy-url, nil without
	ours  *yaml.Node // our item of its extensions, nil without
}

// Keys of a kubeconfig that count here.
const (
	keyClusters   = "clusters"
	keyCluster    = "cluster"
	keyContexts   = "contexts"
	keyContext    = "context"
	keyName       = "name"
	keyServer     = "server"
	keyProxy      = "proxy-url"
	keyExtensions = "extensions"
	keyExtension  = "extension"

	// markName is the name of our extension.
	markName   = "ssh-broker"
	keyProfile = "profile"
	keyWas     = "was"
)

// Parse reads what the file of that name holds. Its error is an *Error.
func Parse(name string, data []byte) (*Text, error) {
	t := &Text{name: name, data: data}
	switch {
	case len(data) > Most:
		return nil, t.fail(0, "", "it is larger than %d bytes", Most)
	case !utf8.Valid(data):
		return nil, t.fail(0, "convert it with iconv", "it is not UTF-8")
	}
	t.lines = lineStarts(data)
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, more yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return t, nil // kubectl takes an empty file for an empty configuration
	case err != nil:
		return nil, t.syntax(err)
	}
	if err := dec.Decode(&more); err == nil {
		return nil, t.fail(more.Line, "keep one document a file, and name all files in KUBECONFIG", "a second document begins, and kubectl reads the first alone")
	} else if !errors.Is(err, io.EOF) {
		return nil, t.syntax(err)
	}
	t.doc = &doc
	return t, t.read(doc.Content[0])
}

func (t *Text) fail(line int, cure, format string, args ...any) error {
	return &Error{File: t.name, Line: line, Msg: fmt.Sprintf(format, args...), Cure: cure}
}

var yamlLine = regexp.MustCompile(`^yaml: line (\d+): `)

// syntax is an error of the YAML parser with the file's name.
func (t *Text) syntax(err error) error {
	msg, line := err.Error(), 0
	if m := yamlLine.FindStringSubmatch(msg); m != nil {
		line, _ = strconv.Atoi(m[1])
		msg = msg[len(m[0]):]
	}
	return t.fail(line, "", "this is not YAML: %s", strings.TrimPrefix(msg, "yaml: "))
}

// read finds the clusters.
func (t *Text) read(root *yaml.Node) error {
	if root.Kind == yaml.ScalarNode && root.ShortTag() == "!!null" {
		return nil
	}
	if root.Kind != yaml.MappingNode {
		return t.fail(root.Line, "", "this is not a kubeconfig: it is no mapping with clusters, contexts and users")
	}
	if err := t.noneTwice(root); err != nil {
		return err
	}
	list, err := t.list(root, keyClusters)
	if err != nil {
		return err
	}
	first := map[string]int{}
	for _, entry := range list {
		c, err := t.cluster(entry)
		if err != nil {
			return err
		}
		if line, twice := first[c.Name]; twice {
			return t.fail(c.Line, "take one of them out", "there is a second cluster %q, the first is in line %d", c.Name, line)
		}
		first[c.Name] = c.Line
		t.clusters = append(t.clusters, c)
	}
	list, err = t.list(root, keyContexts)
	if err != nil {
		return err
	}
	t.contexts = map[string]string{}
	for _, entry := range list {
		_, context := pair(resolved(entry), keyContext)
		_, of := pair(resolved(context), keyCluster)
		if name := text(entry, keyName); of != nil {
			t.contexts[name] = of.Value
		}
	}
	return nil
}

// list returns the mappings in a list of the root; null is an empty one.
func (t *Text) list(root *yaml.Node, key string) ([]*yaml.Node, error) {
	_, list := pair(root, key)
	if list = resolved(list); list == nil || list.Kind == yaml.ScalarNode && list.ShortTag() == "!!null" {
		return nil, nil
	}
	if list.Kind != yaml.SequenceNode {
		return nil, t.fail(list.Line, "", "%s is not a list", key)
	}
	for _, entry := range list.Content {
		if resolved(entry).Kind != yaml.MappingNode {
			return nil, t.fail(entry.Line, "", "an entry of %s is not a mapping", key)
		}
	}
	return list.Content, nil
}

func (t *Text) cluster(entry *yaml.Node) (*cluster, error) {
	c := &cluster{entry: entry, Cluster: Cluster{Name: text(entry, keyName), Line: entry.Line}}
	if err := t.noneTwice(resolved(entry)); err != nil {
		return nil, err
	}
	_, c.body = pair(resolved(entry), keyCluster)
	body := resolved(c.body)
	if body == nil || body.Kind != yaml.MappingNode {
		return c, nil // kubectl takes it for an empty one
	}
	if err := t.noneTwice(body); err != nil {
		return nil, err
	}
	c.Server = text(body, keyServer)
	if _, c.proxy = pair(body, keyProxy); c.proxy != nil {
		c.ProxyURL = resolved(c.proxy).Value
		if c.proxy.ShortTag() == "!!null" {
			c.ProxyURL = ""
		}
	}
	_, extensions := pair(body, keyExtensions)
	if extensions = resolved(extensions); extensions == nil || extensions.Kind != yaml.SequenceNode {
		return c, nil
	}
	for _, item := range extensions.Content {
		if text(item, keyName) != markName {
			continue
		}
		if c.ours != nil {
			return nil, t.fail(item.Line, "take one of them out", "cluster %q has two extensions %s", c.Name, markName)
		}
		c.ours = item
	}
	if c.ours == nil {
		return c, nil
	}
	_, mark := pair(resolved(c.ours), keyExtension)
	c.Mark = Mark{Profile: text(mark, keyProfile), ProxyURL: text(mark, keyProxy), was: text(mark, keyWas)}
	_, was := pair(resolved(mark), keyWas)
	c.Mark.had = was != nil
	if c.State = Changed; c.ProxyURL != "" && c.ProxyURL == c.Mark.ProxyURL {
		c.State = Set
	}
	return c, nil
}

// noneTwice refuses a mapping that has a key twice: which of the two counts depends on
// who reads it.
func (t *Text) noneTwice(m *yaml.Node) error {
	first := map[string]int{}
	for i := 0; i+1 < len(m.Content); i += 2 {
		key := m.Content[i]
		if key.Kind != yaml.ScalarNode {
			continue
		}
		if line, twice := first[key.Value]; twice {
			return t.fail(key.Line, "take one of them out", "%q stands here a second time, the first is in line %d", key.Value, line)
		}
		first[key.Value] = key.Line
	}
	return nil
}

// pair returns a key of a mapping and its value, nil where it does not have it.
func pair(m *yaml.Node, key string) (k, v *yaml.Node) {
	if m == nil || m.Kind != yaml.MappingNode {
		return nil, nil
	}
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Kind == yaml.ScalarNode && m.Content[i].Value == key {
			return m.Content[i], m.Content[i+1]
		}
	}
	return nil, nil
}

// text is the scalar at a key, "" where there is none.
func text(m *yaml.Node, key string) string {
	_, v := pair(resolved(m), key)
	if v = resolved(v); v == nil || v.Kind != yaml.ScalarNode || v.ShortTag() == "!!null" {
		return ""
	}
	return v.Value
}

// resolved is what an alias stands for, and any other node itself.
func resolved(n *yaml.Node) *yaml.Node {
	if n != nil && n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// Name is the file's.
func (t *Text) Name() string { return t.name }

// Bytes is the content of the file. It must not be changed.
func (t *Text) Bytes() []byte { return t.data }

// Clusters lists the clusters in their order.
func (t *Text) Clusters() []Cluster {
	list := make([]Cluster, len(t.clusters))
	for i, c := range t.clusters {
		list[i] = c.Cluster
	}
	return list
}

// Cluster returns the cluster of that name.
func (t *Text) Cluster(name string) (Cluster, bool) {
	if c := t.named(name); c != nil {
		return c.Cluster, true
	}
	return Cluster{}, false
}

func (t *Text) named(name string) *cluster {
	for _, c := range t.clusters {
		if c.Name == name {
			return c
		}
	}
	return nil
}

// ClusterOf is the cluster of a context, "" where there is no such context.
func (t *Text) ClusterOf(context string) string { return t.contexts[context] }

// eol is the line end that new lines get: the first of the file.
func (t *Text) eol() string {
	i := bytes.IndexByte(t.data, '\n')
	if i > 0 && t.data[i-1] == '\r' {
		return "\r\n"
	}
	return "\n"
}

// lineStarts is where the lines begin, as the YAML parser counts them: it knows the line
// ends of YAML 1.1, and a byte order mark is none of the first line's columns.
func lineStarts(data []byte) []int {
	starts := []int{0}
	if bytes.HasPrefix(data, []byte("\ufeff")) {
		starts[0] = len("\ufeff")
	}
	for i := 0; i < len(data); {
		n := breakLen(data[i:])
		if i += cmp.Or(n, 1); n > 0 {
			starts = append(starts, i)
		}
	}
	return starts
}

// breakLen is the length of the line end that b starts with, 0 without.
func breakLen(b []byte) int {
	for _, end := range []string{"\r\n", "\r", "\n", "\u0085", "\u2028", "\u2029"} {
		if bytes.HasPrefix(b, []byte(end)) {
			return len(end)
		}
	}
	return 0
}
