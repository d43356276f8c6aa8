package edit

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"

	"golang.org/x/text/encoding/charmap"

	"sshbroker/broker/config/xmldoc"
)

func mustParse(t testing.TB, data string) *Text {
	t.Helper()
	text, err := Parse("f.xml", []byte(data))
	if err != nil {
		t.Fatalf("%v\n%s", err, data)
	}
	return text
}

var block = []Attr{{"host", "x"}, {"action", "BLOCK"}}

// file is a document with these lines between the tags of a filter-engine.
func file(engine string) string {
	return "<secsh-broker>\n  <filter-engine>\n" + engine + "  </filter-engine>\n</secsh-broker>\n"
}

const (
	a   = "    <rule host=\"a\" action=\"DIRECT\" />\n"
	b   = "    <rule host='b'\n          action='BLOCK'></rule>\n"
	dns = "    <dns id=\"d\" host=\"d\" />\n    <filter dns-id=\"d\" action=\"DIRECT\" />\n"
	x   = "    <rule host=\"x\" action=\"BLOCK\" />\n"
)

func TestAdd(t *testing.T) {
	last := Place{}
	for _, tt := range []struct {
		name, in string
		at       Place
		want     string
	}{
		{"last", file(a + b), last, file(a + b + x)},
		{"before the first", file(a + b), Place{Before: 1}, file(x + a + b)},
		{"before", file(a + b), Place{Before: 2}, file(a + x + b)},
		{"behind", file(a + b), Place{Behind: 1}, file(a + x + b)},
		{"legacy filters count", file(dns + a), Place{Before: 2}, file(dns + x + a)},
		{"before the comments above", file(a + "    <!-- about\n         b -->\n    <!-- more -->\n" + b), Place{Before: 2},
			file(a + x + "    <!-- about\n         b -->\n    <!-- more -->\n" + b)},
		{"behind a comment that stands alone", file(a + "    <!-- section -->\n\n" + b), Place{Before: 2},
			file(a + "    <!-- section -->\n\n" + x + b)},
		{"behind the comment in the line", file(strings.TrimSuffix(a, "\n") + " <!-- about a -->\n" + b), Place{Behind: 1},
			file(strings.TrimSuffix(a, "\n") + " <!-- about a -->\n" + x + b)},
		{"no rules yet", file("    <!-- none -->\n"), last, file("    <!-- none -->\n" + x)},
		{"an empty engine", file(""), last, file(x)},
		{"only dns", file("    <network id=\"n\" />\n"), last, file("    <network id=\"n\" />\n" + x)},
		{"an engine that closes itself", "<secsh-broker>\n  <filter-engine />\n</secsh-broker>\n", last, file(x)},
		{"all in one line", "<secsh-broker><filter-engine><rule action='BLOCK'/></filter-engine></secsh-broker>", last,
			"<secsh-broker><filter-engine><rule action='BLOCK'/><rule host=\"x\" action=\"BLOCK\" /></filter-engine></secsh-broker>"},
		{"in one line, before", "<secsh-broker><filter-engine><rule action='BLOCK'/></filter-engine></secsh-broker>", Place{Before: 1},
			"<secsh-broker><filter-engine><rule host=\"x\" action=\"BLOCK\" /><rule action='BLOCK'/></filter-engine></secsh-broker>"},
		{"tags side by side", "<secsh-broker><filter-engine></filter-engine></secsh-broker>", last,
			"<secsh-broker><filter-engine><rule host=\"x\" action=\"BLOCK\" /></filter-engine></secsh-broker>"},
		{"CR LF", strings.ReplaceAll(file(a), "\n", "\r\n"), last, strings.ReplaceAll(file(a+x), "\n", "\r\n")},
		{"CR", strings.ReplaceAll(file(a), "\n", "\r"), last, strings.ReplaceAll(file(a+x), "\n", "\r")},
		{"tabs", strings.ReplaceAll(file(a), "  ", "\t"), last, strings.ReplaceAll(file(a+x), "  ", "\t")},
		{"no engine", "<secsh-broker>\n  <profiles/>\n  <logging/>\n</secsh-broker>\n", last,
			"<secsh-broker>\n  <profiles/>\n  <filter-engine>\n    <rule host=\"x\" action=\"BLOCK\" />\n  </filter-engine>\n  <logging/>\n</secsh-broker>\n"},
		{"no engine, nothing before it", "<secsh-broker>\n\t<!-- log -->\n\t<logging/>\n</secsh-broker>\n", last,
			"<secsh-broker>\n\t<filter-engine>\n\t\t<rule host=\"x\" action=\"BLOCK\" />\n\t</filter-engine>\n\t<!-- log -->\n\t<logging/>\n</secsh-broker>\n"},
		{"no engine, nothing at all", "<secsh-broker version='1.0' />\n", last,
			"<secsh-broker version='1.0'>\n  <filter-engine>\n    <rule host=\"x\" action=\"BLOCK\" />\n  </filter-engine>\n</secsh-broker>\n"},
		{"a new file", string(Empty()), last,
			strings.Replace(string(Empty()), "</", "  <filter-engine>\n    <rule host=\"x\" action=\"BLOCK\" />\n  </filter-engine>\n</", 1)},
		{"byte order mark", "\xEF\xBB\xBF" + file(a), last, "\xEF\xBB\xBF" + file(a+x)},
		{"Latin 1", "<?xml version='1.0' encoding='ISO-8859-1'?><!-- \xE4\xF6 -->" + file(a+"<!-- \xFC -->\n"), last,
			"<?xml version='1.0' encoding='ISO-8859-1'?><!-- \xE4\xF6 -->" + file(a+x+"<!-- \xFC -->\n")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := mustParse(t, tt.in).Add(block, tt.at)
			if err != nil {
				t.Fatal(err)
			}
			if string(got.Bytes()) != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got.Bytes(), tt.want)
			}
		})
	}
}

func TestRemove(t *testing.T) {
	for _, tt := range []struct {
		name, in string
		number   int
		want     string
	}{
		{"first", file(a + b), 1, file(b)},
		{"last, of two lines", file(a + b), 2, file(a)},
		{"legacy", file(dns + a), 1, file("    <dns id=\"d\" host=\"d\" />\n" + a)},
		{"comments stay", file("    <!-- a -->\n" + a + b), 1, file("    <!-- a -->\n" + b)},
		{"the comment in the line stays", file("    <rule action='BLOCK'/> <!-- a -->\n" + b), 1, file("     <!-- a -->\n" + b)},
		{"of two in a line", file("    <rule action='BLOCK'/><rule action='DIRECT'/>\n"), 1, file("    <rule action='DIRECT'/>\n")},
		{"the only one", file(a), 1, file("")},
		{"CR LF", strings.ReplaceAll(file(a+b), "\n", "\r\n"), 2, strings.ReplaceAll(file(a), "\n", "\r\n")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := mustParse(t, tt.in).Remove(tt.number)
			if err != nil {
				t.Fatal(err)
			}
			if string(got.Bytes()) != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got.Bytes(), tt.want)
			}
		})
	}
}

func TestMove(t *testing.T) {
	for _, tt := range []struct {
		name, in   string
		number, to int
		want       string
	}{
		{"down", file(a + b + x), 1, 3, file(b + x + a)},
		{"down by one", file(a + b + x), 1, 2, file(b + a + x)},
		{"up", file(a + b + x), 3, 1, file(x + a + b)},
		{"nowhere", file(a + b + x), 2, 2, file(a + b + x)},
		{"comments stay", file(a + "    <!-- b -->\n" + b + x), 2, 1, file(b + a + "    <!-- b -->\n" + x)},
		{"in front of comments", file("    <!-- a -->\n" + a + b), 2, 1, file(b + "    <!-- a -->\n" + a)},
		{"out of a line", file("    <rule action='BLOCK'/><rule action='DIRECT'/>\n" + a), 1, 3, file("    <rule action='DIRECT'/>\n" + a + "    <rule action='BLOCK'/>\n")},
		{"into a line", file(a + "    <rule action='BLOCK'/><rule action='DIRECT'/>\n"), 1, 2, file("    <rule action='BLOCK'/><rule host=\"a\" action=\"DIRECT\" /><rule action='DIRECT'/>\n")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := mustParse(t, tt.in).Move(tt.number, tt.to)
			if err != nil {
				t.Fatal(err)
			}
			if string(got.Bytes()) != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got.Bytes(), tt.want)
			}
		})
	}
}

// What is written is read back, and beyond ASCII is written so that the encoding holds it.
func TestValues(t *testing.T) {
	odd := "a\"b'c<d>&e\tf\ng\rh é\u20ac😀"
	for _, head := range []string{"", "\xEF\xBB\xBF", "<?xml version='1.0' encoding='ISO-8859-1'?>", "<?xml version='1.0' encoding='US-ASCII'?>"} {
		got, err := mustParse(t, head+file("")).Add([]Attr{{"host", odd}}, Place{})
		if err != nil {
			t.Fatal(err)
		}
		if value := got.Rules()[0].Attrs[0].Value; value != odd {
			t.Errorf("%s: %q is read back as %q", head, odd, value)
		}
		if ascii := strings.Contains(string(got.Bytes()), "&#233;&#8364;&#128512;"); ascii != strings.Contains(head, "encoding") {
			t.Errorf("%s: %s", head, got.Bytes())
		}
	}
	for _, bad := range []string{"\x00", "\x1b[2J", "\xff", "\uFFFE"} {
		if _, err := mustParse(t, file("")).Add([]Attr{{"host", bad}}, Place{}); err == nil || !strings.HasPrefix(err.Error(), "host: ") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestRules(t *testing.T) {
	text := mustParse(t, file(dns+"    <!-- about\r\n a -->\n"+a+"\n    <!-- section -->\n\n"+b+"    <rule action='BLOCK'/> <!-- x -->\n"))
	var got []string
	for _, r := range text.Rules() {
		got = append(got, fmt.Sprintf("%d %s %v %v %d", r.Number, r.Element, r.Pos, r.Attrs, r.Comment))
	}
	want := []string{
		"1 filter f.xml:4:5 [{dns-id d} {action DIRECT}] 0",
		"2 rule f.xml:7:5 [{host a} {action DIRECT}] 5",
		"3 rule f.xml:11:5 [{host b} {action BLOCK}] 0",
		"4 rule f.xml:13:5 [{action BLOCK}] 13",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if text.engine == nil {
		t.Error("no filter-engine")
	}
}

func TestRefused(t *testing.T) {
	text := mustParse(t, file(a+b))
	for _, n := range []int{-1, 3} {
		_, err := text.Remove(n)
		_, moved := text.Move(n, 1)
		_, target := text.Move(1, n)
		_, added := text.Add(block, Place{Before: n, Behind: n})
		for _, err := range []error{err, moved, target, added} {
			if !errors.Is(err, ErrNoRule) || !strings.Contains(err.Error(), "f.xml has 1 to 2") {
				t.Errorf("%d: %v", n, err)
			}
		}
	}
	if _, err := mustParse(t, file("")).Remove(1); !errors.Is(err, ErrNoRule) || !strings.Contains(err.Error(), "has none") {
		t.Error(err)
	}
	for data, want := range map[string]string{"<x/>": "not a broker configuration", "<secsh-broker>": "the file ends inside"} {
		if _, err := Parse("f.xml", []byte(data)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", data, err)
		}
	}
}

func TestLayout(t *testing.T) {
	text := "<a b='é😀'/>"
	wide := func(little bool, mark bool) []byte {
		var out []byte
		if mark {
			out = append(out, 0xFE, 0xFF)
		}
		for _, u := range utf16.Encode([]rune(text)) {
			out = append(out, byte(u>>8), byte(u))
		}
		if little {
			for i := 0; i < len(out); i += 2 {
				out[i], out[i+1] = out[i+1], out[i]
			}
		}
		return out
	}
	for _, tt := range []struct {
		name     string
		data     []byte
		text     string
		encoding string
		want     layout
	}{
		{"UTF-8", []byte(text), text, "", layout{kind: utf8Bytes, raw: true}},
		{"UTF-8, named", []byte(text), text, "utf-8", layout{kind: utf8Bytes, raw: true}},
		{"UTF-8, marked", []byte("\xEF\xBB\xBF" + text), text, "", layout{mark: 3, kind: utf8Bytes, raw: true}},
		{"ASCII in another", []byte("<a/>"), "<a/>", "windows-1252", layout{kind: utf8Bytes}},
		{"one byte", []byte("<a b='\xE9'/>"), "<a b='é'/>", "latin1", layout{kind: oneByte}},
		{"UTF-16LE", wide(true, false), text, "UTF-16", layout{kind: littleEndian}},
		{"UTF-16BE", wide(false, false), text, "UTF-16", layout{kind: bigEndian}},
		{"UTF-16LE, marked", wide(true, true), text, "", layout{mark: 2, kind: littleEndian}},
		{"UTF-16BE, marked", wide(false, true), text, "", layout{mark: 2, kind: bigEndian}},
	} {
		got, err := layoutOf(tt.data, tt.text, tt.encoding)
		if err != nil || got != tt.want {
			t.Errorf("%s: %+v, %v", tt.name, got, err)
			continue
		}
		if ascii := tt.data[got.mark : got.mark+got.bytesOf("<a")]; !bytes.Equal(got.encode("<a"), ascii) {
			t.Errorf("%s: %q is written %q", tt.name, ascii, got.encode("<a"))
		}
	}
	if _, err := layoutOf([]byte("abc"), "a", "?"); !errors.Is(err, ErrEncoding) {
		t.Error(err)
	}
}

// A file of UTF-16 is edited where it can be read at all.
func TestWideFile(t *testing.T) {
	wide := func(s string) []byte {
		out := []byte{0xFF, 0xFE}
		for _, u := range utf16.Encode([]rune(s)) {
			out = append(out, byte(u), byte(u>>8))
		}
		return out
	}
	text, err := Parse("f.xml", wide(file(a+"<!-- é😀 -->\n")))
	if err != nil {
		if !strings.Contains(err.Error(), "UTF-16") {
			t.Error(err)
		}
		return
	}
	got, err := text.Add(block, Place{})
	if err != nil || !bytes.Equal(got.Bytes(), wide(file(a+x+"<!-- é😀 -->\n"))) {
		t.Errorf("%v: %v", err, got)
	}
}

// generator makes documents as people and programs write them, and worse.
type generator struct {
	*rand.Rand
	eol string
}

func (g *generator) pick(of ...string) string { return of[g.IntN(len(of))] }

func (g *generator) space() string { return g.pick(" ", "  ", "\t", g.eol, " "+g.eol+"    ") }

// between is what may stand between elements; text only where a schema would complain.
func (g *generator) between() string {
	var s string
	for range g.IntN(4) {
		s += g.pick("", " ", g.eol, g.eol+"    ", g.eol+g.eol+"\t", "<!-- é <rule/> -->", "<!--"+g.eol+"-->", "<?pi <rule/>?>", "<![CDATA[ ]]>", "<![CDATA[<rule/>]]>", "&amp;ä")
	}
	return s + g.pick("", g.eol+"    ", g.eol+"    ")
}

func (g *generator) attr(name string) string {
	quote := g.pick(`"`, `'`)
	value := g.pick("x", "", "&lt;&#228;&quot;", "a  b", `.*\.é`, "x>y", "a"+g.eol+"b")
	return g.space() + name + g.pick("=", " = ", "="+g.eol) + quote + value + quote
}

func (g *generator) element(name string) string {
	s := "<" + name
	for _, a := range []string{"host", "action", "id"}[:g.IntN(4)] {
		s += g.attr(a)
	}
	return s + g.pick("/>", " />", g.eol+"/>", "></"+name+">", " ><!-- in --></"+name+g.pick("", " ")+">")
}

func (g *generator) engine() string {
	if g.IntN(8) == 0 {
		return "<filter-engine" + g.pick("/>", " />", " a='b'/>")
	}
	s := "<filter-engine>" + g.between()
	for range g.IntN(6) {
		s += g.element(g.pick("rule", "rule", "rule", "filter", "dns")) + g.between()
	}
	return s + "</filter-engine>"
}

// document returns the text of a file, and an encoding of it.
func (g *generator) document() (text string, data []byte) {
	g.eol = g.pick("\n", "\n", "\r\n", "\r")
	text = g.pick("", "<!-- ü -->") + "<secsh-broker>" + g.between()
	for _, name := range []string{"general", "profiles", "filter-engine", "logging"} {
		switch {
		case g.IntN(3) == 0:
		case name == "filter-engine":
			text += g.engine() + g.between()
		default:
			text += g.element(name) + g.between()
		}
	}
	text += "</secsh-broker>" + g.pick("", g.eol)
	switch g.IntN(4) {
	case 0:
		latin, err := charmap.ISO8859_1.NewEncoder().Bytes([]byte("<?xml version='1.0' encoding='ISO-8859-1'?>" + text))
		if err != nil {
			panic(err)
		}
		return text, latin
	case 1:
		return text, []byte("\xEF\xBB\xBF" + text)
	}
	return text, []byte(text)
}

// outline is the tree, in which the rules are marked by what they say.
func outline(e *xmldoc.Element) []string {
	line := e.Name
	for _, a := range e.Attrs {
		line += fmt.Sprintf(" %s=%q", a.Name, a.Value)
	}
	list := []string{line + " " + characters(e)}
	for _, c := range e.Children {
		for _, below := range outline(c) {
			list = append(list, "  "+below)
		}
	}
	return list
}

// spliced tells whether b is a with one piece put in.
func spliced(a, b []byte) bool {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return len(b) >= len(a) && bytes.HasSuffix(b, a[n:])
}

// properties holds for any document and any edit of it: everything outside of the
// edited element is the same byte for byte, and the rules are what they were with just
// that change.
func properties(t *testing.T, data []byte, number, to int, value string) {
	old, err := Parse("f.xml", data)
	if err != nil {
		return
	}
	fail := func(what string, got *Text, err error) {
		t.Helper()
		result := []byte(nil)
		if got != nil {
			result = got.Bytes()
		}
		t.Fatalf("%s: %v\nfrom %q\nto   %q", what, err, data, result)
	}
	texts := func(x *Text) []string {
		var list []string
		for _, r := range x.Rules() {
			list = append(list, fmt.Sprint(r.Element, r.Attrs))
		}
		return list
	}
	rest := func(x *Text) []string { // everything but the rules
		list := outline(x.doc.Root)
		return slices.DeleteFunc(list, func(line string) bool {
			return strings.HasPrefix(line, "    rule ") || strings.HasPrefix(line, "    filter ")
		})
	}
	before := texts(old)
	n := len(before)
	attrs := []Attr{{"host", value}, {"action", "BLOCK"}}
	added := fmt.Sprint("rule", attrs)

	for _, p := range []Place{{}, {Before: number}, {Behind: number}} {
		got, err := old.Add(attrs, p)
		i := n
		switch {
		case p.Before > 0:
			i = p.Before - 1
		case p.Behind > 0:
			i = p.Behind
		}
		if err != nil && strings.HasPrefix(err.Error(), "host: ") {
			continue // what XML cannot hold
		}
		if p != (Place{}) && (number < 1 || number > n) {
			if !errors.Is(err, ErrNoRule) && number > 0 {
				fail("no such rule", got, err)
			}
			continue
		}
		if err != nil {
			fail(fmt.Sprintf("add %+v", p), got, err)
		}
		if want := slices.Insert(slices.Clone(before), i, added); !slices.Equal(texts(got), want) {
			fail(fmt.Sprintf("add %+v: rules are %q, want %q", p, texts(got), want), got, nil)
		}
		if old.engine != nil && !slices.Equal(rest(got), rest(old)) {
			fail(fmt.Sprintf("add %+v: something else is %q, was %q", p, rest(got), rest(old)), got, nil)
		}
		closed := old.engine == nil || old.engine.Span.Inner == old.engine.Span.End
		if closed {
			continue
		}
		if !spliced(data, got.Bytes()) {
			fail(fmt.Sprintf("add %+v: other bytes have changed", p), got, nil)
		}
		back, err := got.Remove(i + 1)
		if err != nil || !bytes.Equal(back.Bytes(), data) {
			fail(fmt.Sprintf("add %+v, remove: %v does not restore it", p, back), got, err)
		}
	}
	if number < 1 || number > n {
		return
	}
	without, err := old.Remove(number)
	if err != nil {
		fail("remove", without, err)
	}
	if want := slices.Delete(slices.Clone(before), number-1, number); !slices.Equal(texts(without), want) || !slices.Equal(rest(without), rest(old)) {
		fail(fmt.Sprintf("remove: rules are %q, want %q", texts(without), want), without, nil)
	}
	if !spliced(without.Bytes(), data) {
		fail("remove: other bytes have changed", without, nil)
	}
	if to < 1 || to > n {
		return
	}
	moved, err := old.Move(number, to)
	if err != nil {
		fail("move", moved, err)
	}
	want := slices.Delete(slices.Clone(before), number-1, number)
	want = slices.Insert(want, to-1, before[number-1])
	if !slices.Equal(texts(moved), want) || !slices.Equal(rest(moved), rest(old)) {
		fail(fmt.Sprintf("move to %d: rules are %q, want %q", to, texts(moved), want), moved, nil)
	}
	if again, err := moved.Remove(to); err != nil || !bytes.Equal(again.Bytes(), without.Bytes()) {
		fail(fmt.Sprintf("move to %d: without the rule it is %v, and was %s", to, again, without), moved, err)
	}
}

func TestProperties(t *testing.T) {
	const documents = 5_000
	g := &generator{Rand: rand.New(rand.NewPCG(4, 4))}
	parsed := 0
	for range documents {
		_, data := g.document()
		if text, err := Parse("f.xml", data); err == nil && len(text.Rules()) > 1 {
			parsed++
		}
		properties(t, data, 1+g.IntN(5), 1+g.IntN(5), g.pick("x", "é&<>'\"\n", "", "10.0.0.0/8"))
		if t.Failed() {
			return
		}
	}
	if parsed < documents/10 {
		t.Errorf("only %d documents had rules to move", parsed)
	}
}

func FuzzEdit(f *testing.F) {
	g := &generator{Rand: rand.New(rand.NewPCG(1, 2))}
	for range 20 {
		_, data := g.document()
		f.Add(data, 1, 2, "é")
	}
	f.Add([]byte(file(a+b)), 2, 1, "x")
	f.Add(Empty(), 1, 1, "x")
	f.Fuzz(func(t *testing.T, data []byte, number, to int, value string) {
		if len(data) > 4096 {
			return
		}
		properties(t, data, number, to, value)
	})
}
