package probe

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"sshbroker/capture/nft"
)

// Trouble is what rules of another program may do to a capture of the host.
type Trouble uint8

// The kinds of trouble. The zero one is none.
const (
	TakesMark Trouble = iota + 1 // they write marks between our verdict and its execution
	Diverts                      // they redirect connections before we do
	Drops                        // their policy drops what we redirect to the loopback device
	Invisible                    // they are not nftables', so nobody can say
)

// Conflict is such a table.
type Conflict struct {
	Trouble  Trouble
	Where    string // "inet foreign, chain out, output, priority -120"
	Priority int32
}

// Where the host's table decides, and where the last of it is executed; see capture/nft.
const (
	decides  = -145
	executes = -99
	diverts  = -105
)

// Conflicts looks through the rules of others in the current network namespace. It takes
// CAP_NET_ADMIN: the error is fs.ErrPermission else.
func Conflicts() ([]Conflict, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("rules of others: %w", err)
	}
	chains, err := c.ListChains()
	if err != nil {
		return nil, fmt.Errorf("rules of others: %w", err)
	}
	tables := map[table]*ruleset{}
	for _, ch := range chains {
		if ch.Table.Name == nft.HostTableName && ch.Table.Family == nftables.TableFamilyINet {
			continue
		}
		at := table{ch.Table.Family, ch.Table.Name}
		if tables[at] == nil {
			tables[at] = &ruleset{rules: map[string][]*nftables.Rule{}}
		}
		rules, err := c.GetRules(ch.Table, ch)
		if errors.Is(err, fs.ErrNotExist) { // gone meanwhile
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("rules of others: table %s: %w", ch.Table.Name, err)
		}
		tables[at].rules[ch.Name] = rules
		if ch.Hooknum != nil {
			tables[at].bases = append(tables[at].bases, ch)
		}
	}
	var list []Conflict
	for at, t := range tables {
		for _, base := range t.bases {
			if trouble := t.trouble(base); trouble != 0 {
				list = append(list, Conflict{trouble, fmt.Sprintf("table %s %s, chain %s, %s, priority %d",
					familyName(at.family), at.name, base.Name, hookName(*base.Hooknum), *base.Priority), int32(*base.Priority)})
			}
		}
	}
	legacy, err := legacyTables("/proc/net")
	if err != nil {
		return nil, err
	}
	for _, name := range legacy {
		list = append(list, Conflict{Trouble: Invisible, Where: name})
	}
	slices.SortFunc(list, func(a, b Conflict) int { return strings.Compare(a.Where, b.Where) })
	return list, nil
}

type table struct {
	family nftables.TableFamily
	name   string
}

// ruleset is one table of another program.
type ruleset struct {
	bases []*nftables.Chain
	rules map[string][]*nftables.Rule // by chain
}

func (t *ruleset) trouble(base *nftables.Chain) Trouble {
	priority := int32(*base.Priority)
	output := *base.Hooknum == *nftables.ChainHookOutput
	switch {
	case output && base.Type != nftables.ChainTypeNAT && priority >= decides && priority <= executes &&
		t.reaches(base.Name, writesMark):
		return TakesMark
	case output && base.Type == nftables.ChainTypeNAT && priority <= diverts && t.reaches(base.Name, diverting):
		return Diverts
	case (output || *base.Hooknum == *nftables.ChainHookInput) && base.Policy != nil && *base.Policy == nftables.ChainPolicyDrop &&
		!t.reaches(base.Name, mentionsDevice):
		return Drops
	}
	return 0
}

// reaches says whether a rule of the chain, or of one that it jumps to, does that.
func (t *ruleset) reaches(chain string, does func(expr.Any) bool) bool {
	seen := map[string]bool{}
	var walk func(string) bool
	walk = func(name string) bool {
		if seen[name] {
			return false
		}
		seen[name] = true
		for _, r := range t.rules[name] {
			for _, e := range r.Exprs {
				if does(e) {
					return true
				}
				if v, ok := e.(*expr.Verdict); ok && v.Chain != "" && walk(v.Chain) {
					return true
				}
			}
		}
		return false
	}
	return walk(chain)
}

func writesMark(e expr.Any) bool {
	switch e := e.(type) {
	case *expr.Meta:
		return e.SourceRegister && e.Key == expr.MetaKeyMARK
	case *expr.Target:
		return e.Name == "MARK" || e.Name == "CONNMARK"
	}
	return false
}

func diverting(e expr.Any) bool {
	switch e := e.(type) {
	case *expr.NAT:
		return e.Type == expr.NATTypeDestNAT
	case *expr.Redir:
		return true
	case *expr.Target:
		return e.Name == "DNAT" || e.Name == "REDIRECT"
	}
	return false
}

// mentionsDevice: a firewall that drops by policy lets the loopback device be by naming it.
func mentionsDevice(e expr.Any) bool {
	m, ok := e.(*expr.Meta)
	if !ok {
		return false
	}
	switch m.Key {
	case expr.MetaKeyIIF, expr.MetaKeyIIFNAME, expr.MetaKeyOIF, expr.MetaKeyOIFNAME, expr.MetaKeyIIFTYPE, expr.MetaKeyOIFTYPE:
		return true
	}
	return false
}

func familyName(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyINet:
		return "inet"
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	}
	return fmt.Sprintf("of family %d", f)
}

func hookName(h nftables.ChainHook) string {
	if h == *nftables.ChainHookInput {
		return "input"
	}
	return "output"
}

// legacyTables are those of iptables-legacy that could matter, which nftables does not show.
func legacyTables(dir string) (list []string, err error) {
	for file, program := range map[string]string{"ip_tables_names": "iptables-legacy", "ip6_tables_names": "ip6tables-legacy"} {
		b, err := os.ReadFile(dir + "/" + file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("rules of others: %w", err)
		}
		for name := range strings.FieldsSeq(string(b)) {
			if name == "mangle" || name == "nat" {
				list = append(list, fmt.Sprintf("table %s of %s", name, program))
			}
		}
	}
	return list, nil
}
