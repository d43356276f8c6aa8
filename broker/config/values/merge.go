package values

import (
	"slices"

	"sshbroker/broker/config"
	"sshbroker/broker/config/schema"
)

// combine merges two files, each of which may be nil, by the rules of 2014 (package
// config, merge.go), and fills in what holds without them.
func combine(global, user *element, env config.Env) *element {
	root := empty(schema.RootName, schema.General)
	if user != nil && global != nil {
		if g := user.child("general"); g != nil { // this one counts in the global file only
			g.children = slices.DeleteFunc(g.children, func(c *element) bool { return c.name == "user-config-directory" })
		}
	}
	for _, f := range []*element{global, user} {
		if f != nil {
			root = merge(root, f)
		}
	}
	policy(root)
	fill(root, env)
	if profiles, defaults := root.child("profiles"), root.child("default-settings"); profiles != nil {
		for i, p := range profiles.children {
			profiles.children[i] = inherit(defaults, p)
			fill(profiles.children[i], env)
		}
	}
	return root
}

// merge returns base with over on top of it. Neither is changed.
func merge(base, over *element) *element {
	out := *over
	out.attrs = slices.Clone(over.attrs)
	for i, a := range base.attrs {
		if silent(over.name, over.attrs[i]) {
			out.attrs[i] = a
		}
	}
	if over.text == "" {
		out.text, out.textPos = base.text, base.textPos
	}
	switch {
	case out.name == "authentication-methods": // one list, in its order
		out.password = base.secret()
		out.children = methods(base, over)
	case out.name == "profiles":
		out.children = byID(base.children, over.children)
	default:
		out.children = byName(&out, base.children, over.children)
	}
	return &out
}

// silent tells whether an attribute leaves its value to the level below.
func silent(element string, a attr) bool {
	return a.origin == NotSet || a.text == "" && a.name == "user" && element == "profile"
}

// added are the elements of which both files count.
var added = []string{"key-stores", "cert-validation", "static-tunnels"}

// byName merges children that stand once. Of those that may stand several times the
// list on top counts, where there is one, unless both are added.
func byName(parent *element, base, over []*element) []*element {
	out := slices.Clone(base)
	for _, c := range over {
		i := slices.IndexFunc(out, func(b *element) bool { return b.name == c.name })
		switch {
		case many(parent.name, c.name) && !slices.Contains(added, parent.name):
			out = slices.DeleteFunc(out, func(b *element) bool { return b.name == c.name && slices.Contains(base, b) })
			out = append(out, c)
		case i < 0 || many(parent.name, c.name):
			out = append(out, c)
		case c.name == "filter-engine": // the first one, whole
		case c.name == "gui" || c.name == "logging":
			out[i] = c
		case c.name == "crypto-lib" && out[i].get("mode") == "fips": // if either file asks for it
		default:
			out[i] = merge(out[i], c)
		}
	}
	return out
}

// byID puts a profile in the place of one with the same id.
func byID(base, over []*element) []*element {
	out := slices.Clone(base)
	for _, p := range over {
		i := slices.IndexFunc(out, func(b *element) bool { return b.get("id") == p.get("id") })
		if i >= 0 {
			out[i] = p
		} else {
			out = append(out, p)
		}
	}
	return out
}

// secret is the password that counts with an authentication-methods, nil for none.
func (e *element) secret() *element {
	if p := e.child("auth-password", "password"); p != nil {
		return p
	}
	return e.password
}

// methods is the list on top, where there is one, with the password that counts.
func methods(base, over *element) []*element {
	if len(over.children) == 0 {
		return base.children
	}
	out := slices.Clone(over.children)
	secret := base.secret()
	for i, c := range out {
		if c.name == "auth-password" && secret != nil && c.child("password") == nil {
			with := *c
			with.children = append(slices.Clone(c.children), secret)
			out[i] = &with
		}
	}
	return out
}

// inherited are the attributes that default-settings say for profiles.
var inherited = []string{"user", "transports"}

// inherit is a profile with what default-settings say where it is silent.
func inherit(defaults, p *element) *element {
	below := &element{name: p.name, attrs: slices.Clone(p.attrs)}
	for i := range below.attrs {
		below.attrs[i].origin, below.attrs[i].text = NotSet, ""
		if name := below.attrs[i].name; slices.Contains(inherited, name) {
			below.attrs[i] = *defaults.attr(name)
		}
	}
	for _, c := range schema.Children("profile") {
		if d := defaults.child(c.Name); d != nil {
			below.children = append(below.children, d)
		}
	}
	out := merge(below, p)
	inOrder(out)
	return out
}

// policy puts what the deprecated switches of general mean where no policy is given.
func policy(root *element) {
	general := root.child("general")
	if general == nil {
		return
	}
	value, by := "", (*element)(nil)
	for _, old := range []struct{ name, value string }{{"host-key-always-ask", "ask"}, {"strict-host-key-checking", "strict"}, {"accept-unknown-host-keys", "tofu"}} {
		if e := general.child(old.name); e != nil && e.get("enable") == "yes" && by == nil {
			value, by = old.value, e
		}
	}
	if by == nil {
		return
	}
	at := root
	for _, name := range []string{"default-settings", "server-authentication-methods", "auth-server-publickey"} {
		next := at.child(name)
		if next == nil {
			next = empty(name, at.effect)
			at.children = append(at.children, next)
		}
		at = next
	}
	if a := at.attr("policy"); a.origin == NotSet {
		a.text, a.origin, a.pos = value, File, by.attr("enable").pos
	}
}

// present are elements that mean something by being there, so that none is made up.
var present = []string{"filter-engine", "authentication-methods"}

// fill puts in the factory defaults, in e and everything below, and in elements that
// no file has.
func fill(e *element, env config.Env) {
	for i, a := range schema.Attributes(e.name) {
		if v := &e.attrs[i]; silent(e.name, *v) {
			v.text, v.origin, v.pos = "", NotSet, schema.Pos{}
			if a.Default != "" {
				v.text, v.origin = variables(env.Expand(a.Default).Text, env), Factory
			}
			v.effect = max(e.effect, a.Effect(v.text))
		}
	}
	if e.name == "profiles" { // each inherits first
		return
	}
	for _, c := range e.children {
		fill(c, env)
	}
	for _, c := range schema.Children(e.name) {
		if c.Many || e.child(c.Name) != nil || slices.Contains(present, c.Name) || slices.Contains(present, e.name) || e.name == "profile" {
			continue
		}
		made := empty(c.Name, e.effect)
		if fill(made, env); made.effect != schema.NotActedOn && made.says() {
			e.children = append(e.children, made)
		}
	}
	inOrder(e)
}

// says tells whether there is any value in e.
func (e *element) says() bool {
	return slices.ContainsFunc(e.attrs, func(a attr) bool { return a.origin != NotSet }) ||
		slices.ContainsFunc(e.children, (*element).says)
}

// inOrder sorts children as the schema does where their order means nothing.
func inOrder(e *element) {
	if !slices.Contains([]string{schema.RootName, "general", "default-settings", "profile"}, e.name) {
		return
	}
	order := schema.Children(e.name)
	index := func(c *element) int {
		return slices.IndexFunc(order, func(o schema.Child) bool { return o.Name == c.name })
	}
	slices.SortStableFunc(e.children, func(a, b *element) int { return index(a) - index(b) })
}
