package xmldoc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode/utf16"
	"unicode/utf8"
)

// outline writes a document as one line, with the positions of everything.
func outline(e *Element) string {
	if e == nil {
		return "nothing"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s@%d:%d", e.Name, e.Pos.Line, e.Pos.Col)
	for _, a := range e.Attrs {
		fmt.Fprintf(&b, " %s@%d:%d=%q@%d:%d", a.Name, a.Pos.Line, a.Pos.Col, a.Value, a.ValuePos.Line, a.ValuePos.Col)
	}
	for _, t := range e.Texts {
		fmt.Fprintf(&b, " %q@%d:%d", t.Data, t.Pos.Line, t.Pos.Col)
	}
	for _, c := range e.Children {
		b.WriteString(" (" + outline(c) + ")")
	}
	if !e.Complete {
		b.WriteString(" cut")
	}
	return b.String()
}

func utf16le(text string) string { return string(inUnits(binary.LittleEndian, text)) }
func utf16be(text string) string { return string(inUnits(binary.BigEndian, text)) }

func inUnits(order binary.AppendByteOrder, text string) (data []byte) {
	for _, unit := range utf16.Encode([]rune(text)) {
		data = order.AppendUint16(data, unit)
	}
	return data
}

func TestParse(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"empty element", `<a/>`, `a@1:1`},
		{"byte order mark", "\xEF\xBB\xBF<a/>", `a@1:1`},
		{"declaration", `<?xml version='1.0' encoding="utf-8" standalone="yes" ?><a/>`, `a@1:57`},
		{"positions", "<a>\n  <b c='1'\n     d = \"2\" />\n</a >", `a@1:1 (b@2:3 c@2:6="1"@2:9 d@3:6="2"@3:11)`},
		{"columns count characters", `<é ü="ä" b="1"/>`, `é@1:1 ü@1:4="ä"@1:7 b@1:10="1"@1:13`},
		{"CR LF and CR", "<a>\r\n<b/>\r<c/></a>", `a@1:1 (b@2:1) (c@3:1)`},
		{"references", `<a b="&lt;&gt;&amp;&quot;&apos;&#65;&#x42;&#x1F600;"/>`, `a@1:1 b@1:4="<>&\"'AB😀"@1:7`},
		{"white space in values", "<a b='x\ty\r\nz&#10;'/>", `a@1:1 b@1:4="x y z\n"@1:7`},
		{"text", "<a> \n x&lt;y <b/>z</a>", `a@1:1 " \n x<y "@2:2 "z"@2:13 (b@2:9)`},
		{"cdata", "<a><![CDATA[<&]]]]></a>", `a@1:1 "<&]]"@1:13`},
		{"cdata with line ends", "<a><![CDATA[x\r\ny]]></a>", `a@1:1 "x\ny"@1:13`},
		{"comments and instructions", "<!-- a --><?p q?><a><!-- - --><?p?></a><!---->", `a@1:18`},
		{"repeated attributes are kept", `<a b="1" b="2"/>`, `a@1:1 b@1:4="1"@1:7 b@1:10="2"@1:13`},
		{"doctype", `<!DOCTYPE a SYSTEM "a>.dtd"><a/>`, `a@1:29`},
		{"doctype public", `<!DOCTYPE a PUBLIC "x" 'y' ><a/>`, `a@1:29`},
		{"latin 1", "<?xml version=\"1.0\" encoding=\"ISO-8859-1\"?><a b=\"\xE9\" c=\"\"/>", `a@1:44 b@1:47="é"@1:50 c@1:53=""@1:56`},
		{"ascii", `<?xml version="1.0" encoding="us-ascii"?><a/>`, `a@1:42`},
		{"latin 9", "<?xml version=\"1.0\" encoding=\"iso-8859-15\"?><a b=\"\xA4\"/>", `a@1:45 b@1:48="€"@1:51`},
		{"windows", "<?xml version=\"1.0\" encoding=\"Windows-1252\"?><a b=\"\x80\xE9\" c=\"\"/>", `a@1:46 b@1:49="€é"@1:52 c@1:56=""@1:59`},
		{"UTF-16, little end first", "\xFF\xFE" + utf16le("<?xml version='1.0' encoding='UTF-16'?><a b='é€😀' c=''/>"), `a@1:40 b@1:43="é€😀"@1:46 c@1:51=""@1:54`},
		{"UTF-16, big end first", "\xFE\xFF" + utf16be("<a>\r\n<b c='é'/></a>"), `a@1:1 (b@2:1 c@2:4="é"@2:7)`},
		{"UTF-16 by its declaration", utf16be("<?xml version='1.0' encoding='utf-16be'?><a/>"), `a@1:42`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			doc, err := Parse("f", []byte(tt.in), DefaultLimits())
			if err != nil {
				t.Fatal(err)
			}
			if got := outline(doc.Root); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestSyntaxErrors(t *testing.T) {
	small := Limits{Bytes: 200, Depth: 3, Elements: 5, Attributes: 2}
	tests := []struct{ name, in, want, hint string }{
		{"empty file", " \n", `1:1: the file is empty`, ""},
		{"comment only", "<!-- -->\n", `2:1: the file has no root element`, ""},
		{"only the start of a declaration", "<?xml", `1:1: the XML declaration is not at the start of the file`, ""},
		{"declaration without version", "<?xml?><a/>", `1:8: the XML declaration has no version`, "version="},
		{"declaration version", `<?xml version="1.1"?><a/>`, `1:16: XML version "1.1" is not understood`, ""},
		{"declaration order", `<?xml encoding="UTF-8" version="1.0"?><a/>`, `1:7: encoding is not expected in the XML declaration here`, ""},
		{"declaration open", `<?xml version="1.0"`, `1:20: the XML declaration is not closed`, ""},
		{"declaration standalone", `<?xml version="1.0" standalone="on"?><a/>`, `1:33: standalone is yes or no, not "on"`, ""},
		{"declaration late", "\n<?xml version='1.0'?><a/>", `2:1: the XML declaration is not at the start of the file`, "move it"},
		{"encoding", `<?xml version="1.0" encoding="EBCDIC-CP-US"?><a/>`, `1:31: the encoding "EBCDIC-CP-US" is not understood`, "UTF-8"},
		{"UTF-32", "\xFF\xFE\x00\x00<\x00\x00\x00", `1:1: the encoding UTF-32 is not understood`, "UTF-8"},
		{"UTF-16 that nothing says", utf16le("<a/>"), `1:1: the file is UTF-16, but neither a byte order mark nor the XML declaration says so`, "UTF-8"},
		{"UTF-16 that says UTF-8", "\xFF\xFE" + utf16le(`<?xml version="1.0" encoding="UTF-8"?><a/>`), `1:31: the file says UTF-8, but it is UTF-16LE`, "UTF-8"},
		{"UTF-16 of the other order", utf16be(`<?xml version="1.0" encoding="UTF-16LE"?><a/>`), `1:31: the file says UTF-16LE, but it is UTF-16BE`, "UTF-8"},
		{"UTF-16 cut off", "\xFF\xFE" + utf16le("<a>") + "x", `1:4: the file is UTF-16, but its last character is cut off`, "UTF-8"},
		{"half of a surrogate pair", "\xFE\xFF" + utf16be("<a>\n") + "\xD8\x3D\x00<", `2:1: half a character of UTF-16, 0xD83D, stands alone`, "UTF-8"},
		{"bytes that say UTF-16", `<?xml version="1.0" encoding="UTF-16"?><a/>`, `1:31: the file says UTF-16, but its characters have one byte`, "UTF-8"},
		{"hole of windows-1252", "<?xml version='1.0' encoding='windows-1252'?>\n<a b='\xE9\x81'/>", `2:8: byte 0x81 is no character of windows-1252`, "UTF-8"},
		{"not UTF-8", "<a\n b='\xE9'/>", `2:5: byte 0xE9 is not UTF-8`, "UTF-8"},
		{"not ASCII", "<?xml version='1.0' encoding='US-ASCII'?>\n<a b='\xE9'/>", `2:7: the file says US-ASCII, but byte 0xE9 is none of its characters`, "UTF-8"},
		{"mark and latin 1", "\xEF\xBB\xBF<?xml version='1.0' encoding='ISO-8859-1'?><a/>", `1:31: the file says ISO-8859-1, but starts with the byte order mark of UTF-8`, ""},
		{"text before root", "x<a/>", `1:1: text stands outside of the root element`, ""},
		{"text after root", "<a/>\nx", `2:1: something follows the end of <a>`, ""},
		{"second root", "<a/><b/>", `1:5: something follows the end of <a>`, "inside"},
		{"end inside element", "<a>\n <b>", `2:5: b: the file ends inside <b>, which starts at 2:2`, "</b>"},
		{"end inside tag", "<a", `1:3: a: the file ends inside the tag <a>, which starts at 1:1`, "close it"},
		{"end inside value", `<a b="`, `1:7: a: the file ends inside the value of b, which starts at 1:7`, `close it with "`},
		{"end inside comment", "<a><!--", `1:4: a: the comment that starts here is not closed`, "-->"},
		{"end inside cdata", "<a><![CDATA[", `1:4: a: the CDATA section that starts here is not closed`, "]]>"},
		{"end inside instruction", "<?p ", `1:1: the processing instruction that starts here is not closed`, "?>"},
		{"end inside doctype", "<!DOCTYPE a SYSTEM \"", `1:1: the DOCTYPE that starts here is not closed`, ""},
		{"end inside end tag", "<a></a", `1:7: a: the end tag </a> is not closed with >`, ""},
		{"wrong end tag", "<a><b></a>", `1:7: b: </a> stands where <b>, which starts at 1:4, is to be closed`, "</b>"},
		{"tag in tag", "<a\n<b/>", `2:1: a: a new tag starts before the one at 1:1 is closed`, "<a"},
		{"lone <", "<a>1 < 2</a>", `1:6: a: "<" starts an element, but no name follows`, "&lt;"},
		{"value without quotes", "<a b=1/>", `1:6: a: the value of attribute b is not in quotes`, `b="value"`},
		{"no value", "<a b/>", `1:5: a: attribute b has no value`, `b="value"`},
		{"no space", `<a b="1"c="2"/>`, `1:9: a: there is no space before this attribute`, ""},
		{"odd character in tag", `<a =/>`, `1:4: a: '=' is not expected in a tag`, ""},
		{"< in value", `<a b="x<y"/>`, `1:8: a: "<" in the value of b, which starts at 1:7`, "&lt;"},
		{"lone &", `<a b="x & y"/>`, `1:9: a: "&" starts a reference, but none follows`, "&amp;"},
		{"unknown entity", `<a>&nbsp;</a>`, `1:4: a: entity "nbsp" is not known`, "&amp;"},
		{"entity without end", `<a>&amp </a>`, `1:4: a: "&" starts a reference, but none follows`, ""},
		{"reference to nothing", `<a>&#;</a>`, `1:4: a: "" is not the number of a character`, ""},
		{"reference to NUL", `<a b="&#0;"/>`, `1:7: a: character number 0 is not allowed in XML`, ""},
		{"reference too large", `<a b="&#x110000;"/>`, `1:7: a: character number 1114112 is not allowed in XML`, ""},
		{"reference far too large", `<a b="&#99999999999999999999;"/>`, `1:7: a: "99999999999999999999" is not the number of a character`, ""},
		{"reference open", `<a b="&#65"/>`, `1:7: a: character reference without its semicolon`, ""},
		{"control character", "<a>\x01</a>", `1:4: a: character U+0001 is not allowed in XML`, ""},
		{"control character in value", "<a b='\x00'/>", `1:7: a: character U+0000 is not allowed in XML`, ""},
		{"hyphens in comment", "<a><!-- -- --></a>", `1:9: a: a comment must not hold "--"`, ""},
		{"]]> in text", "<a>]]></a>", `1:4: a: "]]>" is not allowed in text`, ""},
		{"namespace", "<x:a/>", `1:1: name "x:a": namespaces are not used here`, "colon"},
		{"namespace of attribute", "<a xml:b='1'/>", `1:4: a: name "xml:b": namespaces are not used here`, ""},
		{"declaration inside", "<a><!ELEMENT b></a>", `1:4: a: declarations are not allowed inside the root element`, ""},
		{"internal subset", "<!DOCTYPE a [<!ENTITY b 'c'>]><a/>", `1:13: declarations inside the DOCTYPE are refused: entities could make the file say what nobody reads in it`, "take out"},
		{"internal subset after id", "<!DOCTYPE a SYSTEM 'x' []><a/>", `1:24: declarations inside the DOCTYPE are refused: entities could make the file say what nobody reads in it`, ""},
		{"two doctypes", "<!DOCTYPE a><!DOCTYPE a><a/>", `1:13: there is a second DOCTYPE`, ""},
		{"doctype late", "<a/><!DOCTYPE a>", `1:5: the DOCTYPE must stand before the root element`, ""},
		{"doctype without name", "<!DOCTYPE><a/>", `1:10: the DOCTYPE names no root element`, ""},
		{"doctype without id", "<!DOCTYPE a SYSTEM><a/>", `1:19: the DOCTYPE lacks an identifier in quotes`, ""},
		{"doctype open", "<!DOCTYPE a x><a/>", `1:13: the DOCTYPE is not closed here`, ""},
		{"too large", strings.Repeat(" ", 201), `the file is larger than 200 bytes`, ""},
		{"too deep", "<a><a><a><a/></a></a></a>", `1:10: a: elements are nested more than 3 deep`, ""},
		{"too many elements", "<a><b/><b/><b/><b/><b/></a>", `1:20: a: the file has more than 5 elements`, ""},
		{"too many attributes", "<a b='' c='' d=''/>", `1:14: a: the element has more than 2 attributes`, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse("", []byte(tt.in), small)
			syntax, ok := errors.AsType[*SyntaxError](err)
			if !ok {
				t.Fatalf("error is %v, not a *SyntaxError", err)
			}
			message, _, _ := strings.Cut(syntax.Error(), "\n")
			if message = strings.TrimPrefix(message, ": "); message != tt.want {
				t.Errorf("got  %s\nwant %s", message, tt.want)
			}
			if !strings.Contains(syntax.Hint, tt.hint) {
				t.Errorf("hint %q does not contain %q", syntax.Hint, tt.hint)
			}
		})
	}
}

// What stands before a syntax error is handed out with it.
func TestPartialDocument(t *testing.T) {
	doc, err := Parse("f", []byte("<a x='1'>\n<b/>\n<c>\n<d"), DefaultLimits())
	if err == nil {
		t.Fatal("no error")
	}
	if got, want := outline(doc.Root), `a@1:1 x@1:4="1"@1:7 (b@2:1) (c@3:1 cut) cut`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestAttrAt(t *testing.T) {
	doc, err := Parse("f", []byte("<a b='é&lt;x\r\ny&#x1F600;z'/>"), DefaultLimits())
	if err != nil {
		t.Fatal(err)
	}
	a := doc.Root.Attr("b")
	tests := []struct {
		before string // the value up to the place in question
		want   string
	}{
		{"", "1:7"}, {"é", "1:8"}, {"é<", "1:12"}, {"é<x", "1:13"}, {"é<x ", "2:1"}, {"é<x y", "2:2"}, {"é<x y😀", "2:11"}, {"é<x y😀z and more", "2:12"},
	}
	for _, tt := range tests {
		pos := a.At(len(tt.before))
		if got := fmt.Sprintf("%d:%d", pos.Line, pos.Col); got != tt.want {
			t.Errorf("after %q: %s, want %s", tt.before, got, tt.want)
		}
	}
}

func TestSpans(t *testing.T) {
	doc, err := Parse("f", []byte("\xEF\xBB\xBF<?xml version='1.0' encoding='UTF-8'?><a é='>'>x<b></b\n><!--<c/>--><b x='1' /></a >"), DefaultLimits())
	if err != nil || doc.Encoding != "UTF-8" || !strings.HasPrefix(doc.Text, "<?xml") {
		t.Fatalf("%v, %q, %q", err, doc.Encoding, doc.Text)
	}
	parts := func(e *Element) string {
		s := e.Span
		return doc.Text[s.Start:s.Inner] + "|" + doc.Text[s.Inner:s.InnerEnd] + "|" + doc.Text[s.InnerEnd:s.End]
	}
	for i, want := range []string{"<b>||</b\n>", "<b x='1' />||"} {
		if got := parts(doc.Root.Children[i]); got != want {
			t.Errorf("child %d: %q, want %q", i, got, want)
		}
	}
	if got, want := parts(doc.Root), "<a é='>'>|x<b></b\n><!--<c/>--><b x='1' />|</a >"; got != want {
		t.Errorf("root: %q, want %q", got, want)
	}
}

func TestPos(t *testing.T) {
	for want, p := range map[string]Pos{"f:1:2": {"f", 1, 2}, "f": {File: "f"}, "3:4": {"", 3, 4}, "": {}} {
		if got := p.String(); got != want {
			t.Errorf("%#v is written %q, want %q", p, got, want)
		}
	}
	if !(Pos{Line: 1, Col: 9}).Before(Pos{Line: 2, Col: 1}) || (Pos{Line: 1, Col: 2}).Before(Pos{Line: 1, Col: 2}) {
		t.Error("positions are not ordered by line, then column")
	}
}

// FuzzParse holds for any bytes: no panic; an error is a *SyntaxError inside the
// file; without one the document is complete and every position is a real one.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{"", "<a/>", "<a b='&lt;\r\n'>x<![CDATA[y]]><c/></a>", "<?xml version='1.0' encoding='ISO-8859-1'?><a b='\xE9'/>",
		"<!DOCTYPE a SYSTEM 'b'><a><!-- --><?p?></a>", "<a b=\"&#x1F600;&amp;\"/>", "<?xml", "<a", "<!DOCTYPE a [", "\xEF\xBB\xBF", "\xFF\xFE"} {
		f.Add([]byte(seed))
	}
	limits := Limits{Bytes: 1 << 12, Depth: 8, Elements: 64, Attributes: 8}
	f.Fuzz(func(t *testing.T, data []byte) {
		doc, err := Parse("f", data, limits)
		if doc == nil {
			t.Fatal("no document")
		}
		if err != nil {
			syntax, ok := errors.AsType[*SyntaxError](err)
			if !ok || syntax.Msg == "" {
				t.Fatalf("error is %#v", err)
			}
			return
		}
		var walk func(e *Element, depth int)
		walk = func(e *Element, depth int) {
			if !e.Complete || e.Name == "" || e.Pos.Line < 1 || e.Pos.Col < 1 || depth > limits.Depth || len(e.Attrs) > limits.Attributes {
				t.Fatalf("element %+v", e)
			}
			s := e.Span
			if !strings.HasPrefix(doc.Text[s.Start:s.Inner], "<"+e.Name) || doc.Text[s.Inner-1] != '>' || doc.Text[s.End-1] != '>' || s.InnerEnd < s.Inner {
				t.Fatalf("element %+v", e)
			}
			for _, a := range e.Attrs {
				if !utf8.ValidString(a.Value) || a.At(0) != a.ValuePos || a.At(len(a.Value)).Before(a.ValuePos) {
					t.Fatalf("attribute %+v", a)
				}
			}
			for _, c := range e.Children {
				if !e.Pos.Before(c.Pos) {
					t.Fatalf("child at %v in parent at %v", c.Pos, e.Pos)
				}
				walk(c, depth+1)
			}
		}
		walk(doc.Root, 1)
	})
}
