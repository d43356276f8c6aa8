package config

import (
	"testing"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/unicode"
)

// The same file means the same in every encoding that is understood, and mistakes
// have the same place.
func TestEncodings(t *testing.T) {
	body := func(name, action string) string {
		return `<?xml version="1.0" encoding="` + name + `"?>` + "\r\n" + `<secsh-broker><filter-engine><rule host="` + "m\u00fcller" + `\.example" action="` + action + `"/></filter-engine></secsh-broker>`
	}
	for name, e := range map[string]encoding.Encoding{
		"UTF-8": unicode.UTF8, "utf-8": unicode.UTF8BOM, "ISO-8859-1": charmap.ISO8859_1, "ISO-8859-15": charmap.ISO8859_15, "windows-1252": charmap.Windows1252,
		"UTF-16": unicode.UTF16(unicode.BigEndian, unicode.UseBOM), "UTF-16LE": unicode.UTF16(unicode.LittleEndian, unicode.UseBOM), "utf-16le": unicode.UTF16(unicode.LittleEndian, unicode.IgnoreBOM),
	} {
		in := func(text string) string {
			data, err := e.NewEncoder().String(text)
			if err != nil {
				t.Fatal(err)
			}
			return data
		}
		c := loadText(t, in(body(name, "block")))
		equal(t, name, lines(c.Filter), []string{"1 host=müller\\.example: BLOCK"})
		equal(t, name, short(Check(write(t, "f.xml", in(body(name, "blokc"))), Options{Env: testEnv()})),
			[]string{`2:67: rule: action: "blokc" is not one of DIRECT, BLOCK, TUNNEL, FTP-TUNNEL, FTP-PROXY`})
	}
	equal(t, "US-ASCII", lines(loadText(t, `<?xml version="1.0" encoding="US-ASCII"?><secsh-broker><filter-engine><rule host="m&#252;ller" action="BLOCK"/></filter-engine></secsh-broker>`).Filter),
		[]string{"1 host=müller: BLOCK"})
}
