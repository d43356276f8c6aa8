package config

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	dtdElement  = regexp.MustCompile(`<!ELEMENT (\S+) (.*)>`)
	dtdName     = regexp.MustCompile(`[a-z0-9-]+`)
	dtdList     = regexp.MustCompile(`(?s)<!ATTLIST (\S+)(.*?)>`)
	dtdRequired = regexp.MustCompile(`(?m)^\s+(\S+) (CDATA|\(([^|)]*)[^)]*\)) #REQUIRED`)
	dtdDefault  = regexp.MustCompile(`(?m)^<!-- default of (\S+)/@(\S+): (.*) -->`)
)

// minimal are values of required attributes where another one than "1", or the first
// of an enumeration, is called for.
var minimal = map[string]string{"rule/action": "BLOCK", "filter/action": "BLOCK", "filter/dns-id": "1"}

// skeleton is a document with an element at its first possible place, attrs beside
// what it requires.
func skeleton(element, attrs string) string {
	parent, required := make(map[string]string), make(map[string]string)
	for _, m := range dtdElement.FindAllStringSubmatch(DTD(), -1) {
		for _, child := range dtdName.FindAllString(m[2], -1) {
			if parent[child] == "" {
				parent[child] = m[1]
			}
		}
	}
	for _, list := range dtdList.FindAllStringSubmatch(DTD(), -1) {
		for _, m := range dtdRequired.FindAllStringSubmatch(list[2], -1) {
			v := "1"
			if m[3] != "" {
				v = m[3]
			}
			if special := minimal[list[1]+"/"+m[1]]; special != "" {
				v = special
			}
			required[list[1]] += fmt.Sprintf(" %s=%q", m[1], v)
		}
	}
	if element == "tls" { // of one kind of profile alone, which cannot be without files
		required["profile"] += ` protocol="tls"`
		required["tls"] = ` ca-file="a" certificate="b" key="c"`
	}
	text := "<" + element + required[element] + attrs + "/>"
	if element == "filter" {
		text = `<dns id="1"/>` + text
	}
	for element != "secsh-broker" {
		element = parent[element]
		text = "<" + element + required[element] + ">" + text + "</" + element + ">"
	}
	return text
}

// Each default that the schema names, and so the DTD and the manual page, is what
// holds where nothing is said: a file that says it means the same as one that does not.
func TestSayingTheDefaultChangesNothing(t *testing.T) {
	meant := func(text string) string {
		c, err := Load(Options{File: write(t, "f.xml", text), Env: testEnv()})
		if err != nil {
			return "error: " + strings.Join(short(err.(Problems)), "; ")
		}
		return fmt.Sprintf("%v %v %v %+v %v %v %+v", lines(c.Filter), c.Pool4, c.Pool6, *c.Defaults, c.Host, c.FilterPresent, values(c))
	}
	loaded, defaults := 0, dtdDefault.FindAllStringSubmatch(DTD(), -1)
	for _, m := range defaults {
		element, attr, value := m[1], m[2], m[3]
		without := meant(skeleton(element, ""))
		with := meant(skeleton(element, fmt.Sprintf(" %s=%q", attr, value)))
		if !strings.HasPrefix(with, "error") {
			loaded++
		}
		if strip(with) != strip(without) {
			t.Errorf("%s/@%s=%q:\n with %s\nwithout %s", element, attr, value, with, without)
		}
	}
	if loaded < 40 || loaded < len(defaults)*9/10 {
		t.Errorf("of %d defaults only %d were loaded", len(defaults), loaded)
	}
}

// position is where an error stands, which the attribute in question may move.
var position = regexp.MustCompile(`\b1:\d+: `)

func strip(text string) string { return position.ReplaceAllString(text, "") }

// values are the profiles of a configuration, without their pointers.
func values(c *Config) []string {
	var list []string
	for id, p := range c.Profiles {
		list = append(list, fmt.Sprintf("%s: %+v", id, *p))
	}
	slices.Sort(list)
	return list
}
