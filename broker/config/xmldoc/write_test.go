package xmldoc

import (
	"fmt"
	"strings"
	"testing"
)

// written is a document as somebody else would write it: everything that can be a
// reference is one, single quotes, an end tag for every element.
func written(doc *Document) string {
	var b strings.Builder
	b.WriteString("<?xml version='1.0'?>\n")
	if doc.Doctype != "" {
		fmt.Fprintf(&b, "<!DOCTYPE %s>", doc.Doctype)
	}
	var element func(e *Element)
	element = func(e *Element) {
		b.WriteString("<" + e.Name)
		for _, a := range e.Attrs {
			fmt.Fprintf(&b, "\n%s = '%s'", a.Name, references(a.Value))
		}
		b.WriteString(">")
		for _, t := range e.Texts {
			// A comment keeps apart what were two runs, as an element may have stood there.
			b.WriteString(references(t.Data) + "<!-- -->")
		}
		for _, c := range e.Children {
			element(c)
		}
		b.WriteString("</" + e.Name + ">")
	}
	element(doc.Root)
	return b.String()
}

func references(text string) string {
	var b strings.Builder
	for _, r := range text {
		if isAlnum(r) {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, "&#x%X;", r)
		}
	}
	return b.String()
}

// meaning is what a document says, without where.
func meaning(e *Element) string {
	var b strings.Builder
	b.WriteString("<" + e.Name)
	for _, a := range e.Attrs {
		fmt.Fprintf(&b, " %s=%q", a.Name, a.Value)
	}
	for _, t := range e.Texts {
		fmt.Fprintf(&b, " %q", t.Data)
	}
	for _, c := range e.Children {
		b.WriteString(" " + meaning(c))
	}
	return b.String() + ">"
}

// FuzzParseWriteParse holds for any bytes that are a document: written anew it says
// the same, and written once more it is the same text.
func FuzzParseWriteParse(f *testing.F) {
	for _, seed := range []string{"<a/>", "<!DOCTYPE a><a b='&lt;\r\n\t&#9;'>x<b/>y<![CDATA[&]]></a>", "<é ü=\"'\">&quot;</é>",
		"\xFF\xFE" + utf16le("<a b='😀'/>"), "<?xml version='1.0' encoding='windows-1252'?><a b='\x80'/>"} {
		f.Add([]byte(seed))
	}
	limits := Limits{Bytes: 1 << 16, Depth: 8, Elements: 64, Attributes: 8}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<10 {
			return // written anew it is longer
		}
		first, err := Parse("f", data, limits)
		if err != nil {
			return
		}
		text := written(first)
		second, err := Parse("f", []byte(text), limits)
		if err != nil {
			t.Fatalf("%q was written as %q: %v", data, text, err)
		}
		if got, want := meaning(second.Root), meaning(first.Root); got != want || first.Doctype != second.Doctype {
			t.Fatalf("%q was written as %q\nbefore %s\nafter  %s", data, text, want, got)
		}
		if again := written(second); again != text {
			t.Fatalf("%q\n%q", text, again)
		}
	})
}

// The bounds at their default, each at the last size that is good and the first that
// is not.
func TestDefaultLimits(t *testing.T) {
	l := DefaultLimits()
	nested := func(n int) string { return strings.Repeat("<a>", n) + strings.Repeat("</a>", n) }
	children := func(n int) string { return "<a>" + strings.Repeat("<b/>\n", n) + "</a>" }
	attributes := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, " a%d=''", i)
		}
		return "<a" + b.String() + "/>"
	}
	for _, tt := range []struct{ name, good, bad, want string }{
		{"bytes", "<a>" + strings.Repeat(" ", l.Bytes-7) + "</a>", "<a>" + strings.Repeat(" ", l.Bytes-6) + "</a>", "f: the file is larger than 4194304 bytes"},
		{"depth", nested(32), nested(33), "f:1:97: a: elements are nested more than 32 deep"},
		{"elements", children(19999), children(20000), "f:20000:1: a: the file has more than 20000 elements"},
		{"attributes", attributes(64), attributes(65), "f:1:442: a: the element has more than 64 attributes"},
	} {
		if _, err := Parse("f", []byte(tt.good), l); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if _, err := Parse("f", []byte(tt.bad), l); err == nil || err.Error() != tt.want {
			t.Errorf("%s: got %v, want %s", tt.name, err, tt.want)
		}
	}
}

// No entity is ever declared, so none expands: not inside, not from outside, not in
// the names of parameters.
func TestEntitiesNeverExpand(t *testing.T) {
	const refused = "declarations inside the DOCTYPE are refused: entities could make the file say what nobody reads in it\nhint: take out everything from [ to ]"
	for in, want := range map[string]string{
		`<!DOCTYPE a [<!ENTITY x "y"><!ENTITY z "&x;&x;">]><a>&z;</a>`:   "f:1:13: " + refused,
		`<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a/>`:     "f:1:13: " + refused,
		`<!DOCTYPE a SYSTEM "a.dtd" [<!ENTITY % x "y"> %x;]><a/>`:        "f:1:28: " + refused,
		`<!DOCTYPE a SYSTEM "http://192.0.2.1/a.dtd"><a>&fromthere;</a>`: "f:1:48: a: entity \"fromthere\" is not known\nhint: only &amp; &lt; &gt; &quot; &apos; and &#...; are",
	} {
		if _, err := Parse("f", []byte(in), DefaultLimits()); err == nil || err.Error() != want {
			t.Errorf("%s:\n got %v\nwant %s", in, err, want)
		}
	}
}
