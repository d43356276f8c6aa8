package kubeconfig

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// splice puts text in the place of other bytes.
type splice struct {
	from, to int
	text     string
}

// Set leads a cluster through a proxy and marks it. A proxy-url that it has is kept in
// the mark; one that is ours already is replaced, and what the mark has kept stays kept.
// Where nothing changes it returns t itself. Its error is an *Error.
func (t *Text) Set(name string, m Mark) (*Text, error) {
	c, err := t.editable(name)
	if err != nil {
		return nil, err
	}
	m.had, m.was = false, ""
	switch c.State {
	case Changed:
		return nil, t.changed(c)
	case Set:
		if c.Mark.Profile == m.Profile && c.Mark.ProxyURL == m.ProxyURL {
			return t, nil
		}
		before, _, err := t.Unset(name)
		if err != nil {
			return nil, err
		}
		return before.Set(name, m)
	}
	if !plainURL(m.ProxyURL) {
		return nil, t.fail(c.Line, "", "%q is not a URL that can be written", m.ProxyURL)
	}
	return t.insert(c, m)
}

// plainURL tells whether a URL can stand in YAML without quotes.
func plainURL(s string) bool {
	for _, c := range []byte(s) {
		if c <= ' ' || c >= 0x7f || strings.IndexByte("#\"'`{},&*!|>%@\\", c) >= 0 {
			return false
		}
	}
	return strings.Contains(s, "://") && s[0] >= 'a' && s[0] <= 'z' && !strings.HasSuffix(s, ":")
}

// insert is Set for a cluster without a mark.
func (t *Text) insert(c *cluster, m Mark) (*Text, error) {
	body := c.body
	server, _ := pair(body, keyServer)
	at, err := t.start(server)
	if err != nil {
		return nil, t.form(server)
	}
	var splices []splice
	if c.proxy != nil {
		s, was, err := t.replaceProxy(c, m.ProxyURL)
		if err != nil {
			return nil, t.form(c.proxy)
		}
		m.had, m.was = true, was
		splices = append(splices, s)
	}
	entries := writer{t: t, at: at, flow: body.Style&yaml.FlowStyle != 0}
	if entries.indent, entries.alone = t.ownLine(at); !entries.alone && !entries.flow {
		return nil, t.form(server)
	}
	if key, extensions := pair(body, keyExtensions); key == nil {
		entries.extensions(m)
	} else if s, err := t.addItem(extensions, m); err != nil {
		return nil, t.form(key)
	} else {
		splices = append(splices, s)
	}
	if c.proxy == nil {
		entries.proxy(m.ProxyURL)
	}
	splices = append(splices, splice{at, at, entries.text.String()})
	return t.result(c, Set, m, splices...)
}

// writer writes entries of a mapping that are to stand right before its key at at.
type writer struct {
	t      *Text
	at     int
	flow   bool
	alone  bool   // the key starts its line
	indent string // of it
	text   strings.Builder
}

// entry writes lines, of which the first has the indentation already.
func (w *writer) entry(lines ...string) {
	between := w.t.eol() + w.indent
	w.text.WriteString(strings.Join(lines, between))
	switch {
	case !w.flow:
		w.text.WriteString(between)
	case w.alone:
		w.text.WriteString("," + between)
	default:
		w.text.WriteString(", ")
	}
}

func (w *writer) extensions(m Mark) {
	if w.flow {
		w.entry(quoted(keyExtensions) + ": [" + m.flowItem() + "]")
		return
	}
	w.entry(append([]string{keyExtensions + ":"}, m.blockItem()...)...)
}

func (w *writer) proxy(url string) {
	if w.flow {
		w.entry(quoted(keyProxy) + ": " + quoted(url))
		return
	}
	w.entry(keyProxy + ": " + url)
}

// replaceProxy writes the URL in the place of the value that there is, and returns the
// text of that.
func (t *Text) replaceProxy(c *cluster, url string) (splice, string, error) {
	if c.body.Style&yaml.FlowStyle != 0 {
		url = quoted(url)
	}
	if c.proxy.Kind == yaml.ScalarNode && c.proxy.Value == "" && c.proxy.Style == 0 { // nothing behind the colon
		key, _ := pair(c.body, keyProxy)
		i, err := t.scalarEnd(key)
		if err != nil {
			return splice{}, "", err
		}
		for i < len(t.data) && (t.data[i] == ' ' || t.data[i] == '\t') {
			i++
		}
		if i == len(t.data) || t.data[i] != ':' {
			return splice{}, "", errForm
		}
		return splice{i + 1, i + 1, " " + url}, "", nil
	}
	if c.proxy.Kind != yaml.ScalarNode {
		return splice{}, "", errForm
	}
	from, err := t.start(c.proxy)
	if err != nil {
		return splice{}, "", err
	}
	to, err := t.scalarEnd(c.proxy)
	if err != nil {
		return splice{}, "", err
	}
	return splice{from, to, url}, string(t.data[from:to]), nil
}

// addItem puts the mark before the items of a list of extensions.
func (t *Text) addItem(list *yaml.Node, m Mark) (splice, error) {
	if list.Kind != yaml.SequenceNode || list.Anchor != "" || list.Style&yaml.TaggedStyle != 0 {
		return splice{}, errForm
	}
	at, err := t.start(list)
	if err != nil {
		return splice{}, err
	}
	if list.Style&yaml.FlowStyle == 0 {
		dash, err := t.dash(list.Content[0])
		if err != nil {
			return splice{}, err
		}
		indent, _ := t.ownLine(dash)
		eol := t.eol()
		return splice{dash, dash, strings.Join(m.blockItem(), eol+indent) + eol + indent}, nil
	}
	if at >= len(t.data) || t.data[at] != '[' {
		return splice{}, errForm
	}
	if len(list.Content) == 0 {
		return splice{at + 1, at + 1, " " + m.flowItem()}, nil // the blank tells it from a list that we have made
	}
	if at, err = t.start(list.Content[0]); err != nil {
		return splice{}, err
	}
	w := writer{t: t, flow: true}
	w.indent, w.alone = t.ownLine(at)
	w.entry(m.flowItem())
	return splice{at, at, w.text.String()}, nil
}

// dash is where the dash of an item stands, which has to start its line.
func (t *Text) dash(item *yaml.Node) (int, error) {
	at, err := t.start(item)
	if err != nil {
		return 0, err
	}
	i := len(bytes.TrimRight(t.data[:at], " \t\r\n")) - 1
	if i < 0 || t.data[i] != '-' {
		return 0, errForm
	}
	if _, alone := t.ownLine(i); !alone {
		return 0, errForm
	}
	return i, nil
}

// blockItem is the mark as an item of a list, a line each without indentation.
func (m Mark) blockItem() []string {
	lines := []string{"- " + keyExtension + ":", "    " + keyProfile + ": " + quoted(m.Profile), "    " + keyProxy + ": " + m.ProxyURL}
	if m.had {
		lines = append(lines, "    "+keyWas+": "+quoted(m.was))
	}
	return append(lines, "  "+keyName+": "+markName)
}

func (m Mark) flowItem() string {
	was := ""
	if m.had {
		was = ", " + quoted(keyWas) + ": " + quoted(m.was)
	}
	return fmt.Sprintf("{%q: {%q: %s, %q: %s%s}, %q: %q}", keyExtension, keyProfile, quoted(m.Profile), keyProxy, quoted(m.ProxyURL), was, keyName, markName)
}

// quoted is a string as JSON has it, which is YAML too.
func quoted(s string) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(s) // strings always encode
	return strings.TrimSuffix(b.String(), "\n")
}

// ErrNotSet says that a cluster has no mark of ours.
var ErrNotSet = errors.New("nothing was set")

// Unset takes what Set has done back. exact says that the bytes are those from before;
// else the file was written anew since, and the values are. Without a mark it is an
// ErrNotSet, else its error is an *Error.
func (t *Text) Unset(name string) (before *Text, exact bool, err error) {
	c, err := t.editable(name)
	switch {
	case err != nil:
		return nil, false, err
	case c.State == Untouched:
		return nil, false, fmt.Errorf("%s: cluster %q: %w", t.name, name, ErrNotSet)
	case c.State == Changed:
		return nil, false, t.changed(c)
	}
	proxy, err := t.takeBack(c)
	if err != nil {
		return nil, false, t.form(c.proxy)
	}
	marks, err := t.takeMark(c)
	if err != nil {
		return nil, false, t.form(c.ours)
	}
	// What was before the mark may be the same in two ways; the one that Set makes this
	// text of is the true one.
	for _, mark := range marks {
		made, err := t.result(c, Untouched, c.Mark, proxy, mark)
		if err != nil {
			continue
		}
		if again, err := made.Set(name, c.Mark); err == nil && bytes.Equal(again.data, t.data) {
			return made, true, nil
		}
		before = cmp.Or(before, made)
	}
	if before == nil {
		return nil, false, t.fail(c.ours.Line, c.forget(), "what was before this mark cannot be put back: it is not one value that can stand there")
	}
	return before, false, nil
}

// Forget takes the mark off and leaves the proxy-url as it is.
func (t *Text) Forget(name string) (*Text, error) {
	c, err := t.editable(name)
	if err != nil {
		return nil, err
	}
	if c.State == Untouched {
		return nil, fmt.Errorf("%s: cluster %q: %w", t.name, name, ErrNotSet)
	}
	marks, err := t.takeMark(c)
	if err != nil {
		return nil, t.form(c.ours)
	}
	var problem error
	for _, mark := range marks {
		made, err := t.splice(mark)
		if err != nil {
			problem = cmp.Or(problem, err)
			continue
		}
		if after := made.named(name); after != nil && after.State == Untouched && after.ProxyURL == c.ProxyURL && t.sameOthers(c, made, after) {
			return made, nil
		}
		problem = cmp.Or(problem, t.form(c.ours))
	}
	return nil, problem
}

// takeBack restores the proxy-url.
func (t *Text) takeBack(c *cluster) (splice, error) {
	key, value := pair(c.body, keyProxy)
	if !c.Mark.had {
		return t.takeEntry(c.body, key, value)
	}
	from, err := t.start(value)
	if err != nil {
		return splice{}, err
	}
	to, err := t.scalarEnd(value)
	if err != nil {
		return splice{}, err
	}
	if c.Mark.was == "" && from > 0 && t.data[from-1] == ' ' {
		from--
	}
	return splice{from, to, c.Mark.was}, nil
}

// takeMark returns the ways to take our item out of the extensions: with their key where
// there is no other, and without.
func (t *Text) takeMark(c *cluster) ([]splice, error) {
	key, list := pair(c.body, keyExtensions)
	if len(list.Content) > 1 {
		s, err := t.takeItem(list, c.ours)
		return []splice{s}, err
	}
	all, err := t.takeEntry(c.body, key, list)
	if err != nil || list.Style&yaml.FlowStyle == 0 {
		return []splice{all}, err
	}
	from, err := t.start(c.ours)
	if err != nil {
		return nil, err
	}
	if bytes.HasSuffix(t.data[:from], []byte("[ ")) {
		from--
	}
	to, err := t.end(c.ours)
	return []splice{all, {from, to, ""}}, err
}

// takeEntry takes a key with its value out of a mapping, with their lines where they
// stand alone there.
func (t *Text) takeEntry(m, key, value *yaml.Node) (splice, error) {
	from, err := t.start(key)
	if err != nil {
		return splice{}, err
	}
	to, err := t.end(value)
	if err != nil {
		return splice{}, err
	}
	if m.Style&yaml.FlowStyle == 0 {
		return t.takeLines(from, to)
	}
	return t.takeFlow(m, slices.Index(m.Content, key), 2, from, to)
}

// takeItem takes an item out of a list.
func (t *Text) takeItem(list, item *yaml.Node) (splice, error) {
	from, err := t.start(item)
	if err != nil {
		return splice{}, err
	}
	to, err := t.end(item)
	if err != nil {
		return splice{}, err
	}
	if list.Style&yaml.FlowStyle != 0 {
		return t.takeFlow(list, slices.Index(list.Content, item), 1, from, to)
	}
	if from, err = t.dash(item); err != nil {
		return splice{}, err
	}
	return t.takeLines(from, to)
}

// takeLines takes the lines out that have nothing else in them; of a comment behind it
// the line is kept.
func (t *Text) takeLines(from, to int) (splice, error) {
	if _, alone := t.ownLine(from); !alone {
		return splice{}, errForm
	}
	end, alone := t.restOfLine(to)
	if !alone {
		return splice{from, to, ""}, nil
	}
	return splice{t.lineStart(from), end, ""}, nil
}

// takeFlow takes the part of a collection in brackets that is from from to to, and the
// comma that is its. Part i has n nodes.
func (t *Text) takeFlow(in *yaml.Node, i, n, from, to int) (splice, error) {
	switch {
	case i+n < len(in.Content):
		next, err := t.start(in.Content[i+n])
		return splice{from, next, ""}, err
	case i > 0:
		last, err := t.end(in.Content[i-1])
		return splice{last, to, ""}, err
	}
	return splice{from, to, ""}, nil
}

// editable returns a cluster whose entry stands for itself alone.
func (t *Text) editable(name string) (*cluster, error) {
	c := t.named(name)
	switch {
	case c == nil:
		return nil, t.fail(0, "", "there is no cluster %q", name)
	case c.body == nil:
		return nil, t.fail(c.Line, "add it", "cluster %q has no %q", name, keyCluster)
	case c.body.Kind == yaml.AliasNode || c.entry.Kind == yaml.AliasNode:
		return nil, t.fail(c.Line, "write it out", "cluster %q is an alias of another", name)
	case c.body.Kind != yaml.MappingNode:
		return nil, t.fail(c.body.Line, "", "cluster %q is not a mapping", name)
	case c.Server == "":
		return nil, t.fail(c.Line, "kubectl config set "+word("clusters."+name+".server")+" URL adds it", "cluster %q has no server", name)
	}
	// What an alias elsewhere stands for would change with it.
	_, extensions := pair(c.body, keyExtensions)
	path := []*yaml.Node{c.entry, c.body, c.proxy, extensions, c.ours}
	if shared := t.aliasOf(t.doc, func(n *yaml.Node) bool { return slices.Contains(path, n) || slices.Contains(n.Content, c.entry) }); shared != nil {
		return nil, t.fail(shared.Line, "write it out", "the alias *%s stands for a part of cluster %q, which would change with it", shared.Value, name)
	}
	return c, nil
}

// aliasOf finds an alias whose target is so.
func (t *Text) aliasOf(n *yaml.Node, so func(*yaml.Node) bool) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		if so(n.Alias) {
			return n
		}
		return nil
	}
	for _, child := range n.Content {
		if found := t.aliasOf(child, so); found != nil {
			return found
		}
	}
	return nil
}

func (t *Text) changed(c *cluster) error {
	line, is := c.Line, "is gone"
	if c.proxy != nil {
		line, is = c.proxy.Line, fmt.Sprintf("is %q", c.ProxyURL)
	}
	return t.fail(line, c.forget(),
		"the proxy-url of cluster %q %s and was set to %q: somebody has changed it since", c.Name, is, c.Mark.ProxyURL)
}

// forget is what one can do about a mark that does not fit any more.
func (c *cluster) forget() string {
	return "to keep the proxy-url as it is: ssh-broker-ctl kubeconfig unset " + word(c.Name) + " --forget"
}

var plainWord = regexp.MustCompile(`^[\w.:/@%+=][\w.:/@%+=-]*$`)

// word is a text as one word of a shell: whoever has written the file may not say what is
// pasted from a hint.
func word(s string) string {
	if plainWord.MatchString(s) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// form is the error about a node that is written in a form that is not edited.
func (t *Text) form(n *yaml.Node) error {
	return t.fail(n.Line, "write it in the usual form, one key a line and without anchors, aliases, tags or text over several lines; kubectl config view --raw shows it so",
		"this is written in a form that is not edited here")
}

// result is the text after splices, in which the cluster has to be as it was to become
// and all else as it was.
func (t *Text) result(c *cluster, state State, m Mark, splices ...splice) (*Text, error) {
	made, err := t.splice(splices...)
	if err != nil {
		return nil, err
	}
	after := made.named(c.Name)
	good := after != nil && after.State == state && t.sameOthers(c, made, after)
	switch {
	case !good:
	case state == Set:
		good = after.Mark == m && after.ProxyURL == m.ProxyURL
	case m.had:
		was, err := valueOf(m.was, c.body.Style&yaml.FlowStyle != 0)
		good = err == nil && after.proxy != nil && after.ProxyURL == was
	default:
		good = after.proxy == nil
	}
	if !good {
		return nil, t.form(c.body)
	}
	return made, nil
}

// valueOf is what the text of a scalar means, in brackets or not.
func valueOf(text string, flow bool) (string, error) {
	text = "x: " + text
	if flow {
		text = "{" + text + ",}"
	}
	var n yaml.Node
	if err := yaml.Unmarshal([]byte(text), &n); err != nil {
		return "", err
	}
	_, v := pair(n.Content[0], "x")
	switch {
	case v == nil || v.Kind != yaml.ScalarNode || len(n.Content[0].Content) != 2:
		return "", errForm
	case v.ShortTag() == "!!null":
		return "", nil
	}
	return v.Value, nil
}

func (t *Text) splice(splices ...splice) (*Text, error) {
	slices.SortStableFunc(splices, func(a, b splice) int { return cmp.Compare(a.from, b.from) })
	var out bytes.Buffer
	done := 0
	for _, s := range splices {
		if s.from < done || s.to < s.from || s.to > len(t.data) {
			return nil, t.fail(0, "", "%v", errForm)
		}
		out.Write(t.data[done:s.from])
		out.WriteString(s.text)
		done = s.to
	}
	out.Write(t.data[done:])
	return Parse(t.name, out.Bytes())
}

// sameOthers tells whether two texts say the same but for a cluster's proxy-url and mark.
func (t *Text) sameOthers(c *cluster, other *Text, after *cluster) bool {
	return same(t.doc, other.doc, c.others, after.others)
}

// others are the children of a node, but for what is ours to change.
func (c *cluster) others(n *yaml.Node) []*yaml.Node {
	_, extensions := pair(c.body, keyExtensions)
	switch n {
	case extensions:
		return slices.DeleteFunc(slices.Clone(n.Content), func(item *yaml.Node) bool { return item == c.ours })
	case c.body:
		var list []*yaml.Node
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, value := n.Content[i], n.Content[i+1]
			ours := key.Kind == yaml.ScalarNode && (key.Value == keyProxy ||
				key.Value == keyExtensions && value.Kind == yaml.SequenceNode && len(c.others(value)) == 0)
			if !ours {
				list = append(list, key, value)
			}
		}
		return list
	}
	return n.Content
}

func same(a, b *yaml.Node, of, ofB func(*yaml.Node) []*yaml.Node) bool {
	if a.Kind != b.Kind || a.ShortTag() != b.ShortTag() || a.Value != b.Value || a.Anchor != b.Anchor || a.Style != b.Style {
		return false
	}
	return slices.EqualFunc(of(a), ofB(b), func(x, y *yaml.Node) bool { return same(x, y, of, ofB) })
}
