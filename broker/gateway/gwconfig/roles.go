package gwconfig

import (
	"errors"
	"strings"

	"sshbroker/broker/config/schema"
	"sshbroker/broker/gateway/policy"
)

// named are things of one kind by their names: roles, policies.
type named[T any] struct {
	what  string        // as people call one
	key   string        // where they stand
	items map[string]*T // nil for one that is wrong itself, which was said
	at    map[string]value
	names []string // in the order of the file
	used  map[string]bool
}

func newNamed[T any](what, key string) *named[T] {
	return &named[T]{what: what, key: key, items: make(map[string]*T), at: make(map[string]value), used: make(map[string]bool)}
}

// add takes one in; a second of the same name is an error.
func (n *named[T]) add(r *reader, at value, name string, item *T) {
	if name == "" {
		return
	}
	if first, ok := n.at[name]; ok {
		r.fail(at, "give one of them another name", "there is a %s %s already, at %d:%d", n.what, name, first.pos.Line, first.pos.Col)
		return
	}
	n.items[name], n.at[name] = item, at
	n.names = append(n.names, name)
}

// find returns what a reference means; nil after an error.
func (n *named[T]) find(r *reader, v value) *T {
	name := r.ident(v)
	if name == "" {
		return nil
	}
	item, ok := n.items[name]
	if !ok {
		hint := "there is none at all; write some under " + n.key
		if len(n.names) > 0 {
			hint = schema.DidYouMean(name, n.names, "there are: "+strings.Join(n.names, ", "))
		}
		r.fail(v, hint, "there is no %s %q", n.what, name)
	}
	n.used[name] = true
	return item
}

func (r *reader) roles(v value) *named[policy.Role] {
	roles := newNamed[policy.Role]("role", "roles")
	for _, v := range r.list(v) {
		o, ok := r.object(v, nil)
		if !ok {
			continue
		}
		before := r.wrong
		role := &policy.Role{
			Name:         r.ident(o.get("name")),
			Emails:       parsed(r, o.get("emails"), `write it as alice@example.com`, policy.ParseEmail),
			EmailDomains: parsed(r, o.get("email_domains"), `write it as example.com, without @ and *; a subdomain is another domain`, policy.ParseDomain),
			URIs:         parsed(r, o.get("uris"), `write it as spiffe://example.com/team/a or spiffe://example.com/team/*`, policy.ParseURIPattern),
			Groups:       each(r.list(o.get("groups")), r.text),
			Issuers:      each(r.list(o.get("issuers")), r.text),
		}
		if err := role.Check(); err != nil && r.wrong == before {
			r.fail(v, "add emails, email_domains, uris, groups or issuers", "it does not say whom it is for")
		}
		r.lintRole(o, role)
		if r.wrong > before {
			role = nil
		}
		roles.add(r, v, r.nameOf(o), role)
	}
	return roles
}

// nameOf returns the name of a role, policy or service, once more and without errors.
func (r *reader) nameOf(o object) string {
	if v := o.get("name"); v.given() && goodName.MatchString(v.node.Value) {
		return v.node.Value
	}
	return ""
}

// parsed reads the entries of a list of text by parse, and shows each to the visitors.
func parsed[T any](r *reader, v value, hint string, parse func(string) (T, error), visitors ...func(value, T)) []T {
	var list []T
	for _, v := range r.list(v) {
		text := r.text(v)
		if text == "" {
			continue
		}
		item, err := parse(text)
		if cured, ok := errors.AsType[*curedError](err); ok {
			r.fail(v, cured.hint, "%s", cured.msg)
			continue
		}
		if err != nil {
			r.fail(v, hint, "%v", err)
			continue
		}
		for _, visit := range visitors {
			visit(v, item)
		}
		list = append(list, item)
	}
	return list
}

// curedError knows its cure better than the list that it is in.
type curedError struct{ msg, hint string }

func (e *curedError) Error() string { return e.msg + "; " + e.hint }

func (r *reader) policies(v value, roles *named[policy.Role]) *named[policy.Policy] {
	policies := newNamed[policy.Policy]("policy", "policies")
	for _, v := range r.list(v) {
		o, ok := r.object(v, nil)
		if !ok {
			continue
		}
		before := r.wrong
		p := &policy.Policy{
			Name:     r.ident(o.get("name")),
			Anywhere: !o.get("allow").given(),
			Allow:    r.patterns(o.get("allow"), true),
			Deny:     r.patterns(o.get("deny"), false),
		}
		for _, v := range r.list(o.get("roles")) {
			if role := roles.find(r, v); role != nil {
				p.Roles = append(p.Roles, role)
			}
		}
		if r.wrong > before {
			p = nil
		}
		policies.add(r, v, r.nameOf(o), p)
	}
	return policies
}
