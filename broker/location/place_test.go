package location

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"sshbroker/filter"
)

func placed(networks []string, names ...string) *Place {
	p := &Place{addresses{known: true}, domains{known: true, list: names}}
	for _, text := range networks {
		n := netip.MustParsePrefix(text)
		p.addresses.list = append(p.addresses.list, address{n.Addr(), n.Masked()})
	}
	return p
}

func TestOn(t *testing.T) {
	office := placed([]string{"10.1.5.7/24", "fd00:7::5/64"}, "office.example", "example")
	noAddresses := &Place{addresses{err: errors.New("no socket")}, office.domains}
	noDomains := &Place{office.addresses, domains{err: errors.New("no file")}}
	for _, tt := range []struct {
		name    string
		place   *Place
		address string // "=" before one that is to be exact
		domain  string
		want    filter.Presence
	}{
		{"neither", office, "", "", filter.Here},
		{"inside", office, "10.1.0.0/16", "", filter.Here},
		{"the interface's own", office, "10.1.5.0/24", "", filter.Here},
		{"inside a smaller one", office, "10.1.5.0/28", "", filter.Here},
		{"beside a smaller one", office, "10.1.5.128/25", "", filter.Away},
		{"the other end of the interface's", office, "10.1.5.8/32", "", filter.Away},
		{"IPv6", office, "fd00::/8", "", filter.Here},
		{"the other family", office, "::/0", "", filter.Here},
		{"begins there", office, "=10.1.5.0/32", "", filter.Here},
		{"begins before", office, "=10.1.0.0/32", "", filter.Away},
		{"the host itself", office, "=10.1.5.7/32", "", filter.Away},
		{"IPv6 begins there", office, "=fd00:7::/128", "", filter.Here},
		{"domain", office, "", "office.example", filter.Here},
		{"second domain", office, "", "example", filter.Here},
		{"domain below", office, "", "site.office.example", filter.Away},
		{"both", office, "10.1.0.0/16", "example", filter.Here},
		{"address alone", office, "10.1.0.0/16", "home.example", filter.Away},
		{"domain alone", office, "10.2.0.0/16", "example", filter.Away},
		{"nowhere", placed(nil), "0.0.0.0/0", "", filter.Away},

		{"addresses unknown", noAddresses, "10.1.0.0/16", "", filter.Unknown},
		{"addresses unknown, domain alone", noAddresses, "", "example", filter.Here},
		{"addresses unknown, domain holds", noAddresses, "10.1.0.0/16", "example", filter.Unknown},
		{"addresses unknown, domain does not", noAddresses, "10.1.0.0/16", "else", filter.Away},
		{"domain unknown", noDomains, "", "example", filter.Unknown},
		{"domain unknown, address alone", noDomains, "10.1.0.0/16", "", filter.Here},
		{"nothing known", &Place{}, "10.1.0.0/16", "example", filter.Unknown},
		{"nothing known or asked", &Place{}, "", "", filter.Here},
	} {
		var prefix netip.Prefix
		text, exact := strings.CutPrefix(tt.address, "=")
		if text != "" {
			prefix = netip.MustParsePrefix(text)
		}
		if got := tt.place.On(prefix, exact, tt.domain); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
	if office.Err() != nil || noAddresses.Err() == nil || noDomains.Err() == nil {
		t.Error("errors are not told")
	}
}

// TestPointToPoint: the network is the peer's.
func TestPointToPoint(t *testing.T) {
	p := &Place{addresses: addresses{known: true, list: []address{{netip.MustParseAddr("10.9.0.1"), netip.MustParsePrefix("10.8.0.0/24")}}}}
	for text, want := range map[string]filter.Presence{"10.8.0.0": filter.Here, "10.9.0.1": filter.Away} {
		if got := p.On(netip.PrefixFrom(netip.MustParseAddr(text), 32), true, ""); got != want {
			t.Errorf("%s: %d, want %d", text, got, want)
		}
	}
}

func TestFullName(t *testing.T) {
	for _, tt := range []struct{ hosts, name, want string }{
		{"127.0.0.1 localhost\n127.0.1.1 box.office.example box\n", "box", "box.office.example"},
		{"127.0.1.1 box box.office.example\n", "box", "box"},
		{"127.0.1.1 BOX.office.example Box # box.else\n", "box", "BOX.office.example"},
		{"# 127.0.1.1 box.office.example box\n", "box", "box"},
		{"127.0.1.1 box\n127.0.1.2 box.office.example box\n", "box", "box"}, // the first line counts
		{"", "box", "box"},
		{"box.office.example\n", "box.office.example", "box.office.example"},
	} {
		if got := fullName(tt.hosts, tt.name); got != tt.want {
			t.Errorf("%q in %q: %q, want %q", tt.name, tt.hosts, got, tt.want)
		}
	}
}

func TestSearched(t *testing.T) {
	for text, want := range map[string][]string{
		"nameserver 1.1.1.1\nsearch a.example b.example\n": {"a.example", "b.example"},
		"domain a.example\n":                   {"a.example"},
		"domain a.example\nsearch b.example\n": {"b.example"},
		"search b.example\ndomain a.example":   {"a.example"},
		"search\n#search x\n;domain y\n":       nil,
		"":                                     nil,
	} {
		if got := searched(text); !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// TestLookDomains has a file for each way in which one can be wrong.
func TestLookDomains(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "resolv.conf")
	if err := os.WriteFile(file, []byte("search Office.Example. example.\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := lookDomains(Files{Resolv: file})
	got.list = slices.DeleteFunc(got.list, func(d string) bool { return d != "office.example" && d != "example" }) // this host may have one
	if !reflect.DeepEqual(got, domains{known: true, list: []string{"office.example", "example"}}) {
		t.Errorf("%+v", got)
	}
	if d := lookDomains(Files{Resolv: filepath.Join(dir, "none"), Hosts: filepath.Join(dir, "none")}); !d.known || d.err != nil {
		t.Errorf("no files: %+v", d)
	}
	if d := lookDomains(Files{Resolv: dir}); d.known || d.err == nil {
		t.Errorf("a directory: %+v", d)
	}
}

func FuzzNames(f *testing.F) {
	f.Add("127.0.1.1 box.office.example box # x\nsearch a b\ndomain c", "box")
	f.Fuzz(func(t *testing.T, text, name string) {
		if full := fullName(text, name); full != name && !strings.Contains(text, full) {
			t.Errorf("full name %q of %q in %q", full, name, text)
		}
		for _, domain := range searched(text) {
			if domain == "" || strings.ContainsAny(domain, " \t\n") || !strings.Contains(text, domain) {
				t.Errorf("domain %q of %q", domain, text)
			}
		}
	})
}
