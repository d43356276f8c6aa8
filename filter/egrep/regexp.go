package egrep

import "regexp"

// Regexp returns a Go regular expression that matches what p matches among texts
// of ASCII letters, digits, dots and colons. It is for reasoning about the pattern,
// as all addresses are such texts; matching is for Match, which has no such limit.
func (p *Pattern) Regexp() string {
	const anything = `[^\x00\n\f\r]*`
	var expr string
	switch p.form {
	case formNone:
		return `[^\x00-\x{10ffff}]`
	case formGeneral:
		return p.expr
	case formAny:
		expr = anything
	case formExact:
		expr = p.quoted()
	case formPrefix:
		expr = p.quoted() + anything
	case formSuffix:
		expr = anything + p.quoted()
	}
	return `\A(?:` + expr + `)\z`
}

// quoted is the literal as an expression, its bytes as code points as everywhere.
func (p *Pattern) quoted() string {
	runes := make([]rune, len(p.literal))
	for i := range len(p.literal) {
		runes[i] = rune(p.literal[i])
	}
	expr := regexp.QuoteMeta(string(runes))
	if p.ignoreCase {
		return `(?i:` + expr + `)`
	}
	return expr
}
