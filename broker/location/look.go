package location

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sshbroker/broker/regular"
)

// Files are where a host has its names; "" for one that does not count.
type Files struct {
	Hosts  string // hosts(5), for the host's full name
	Resolv string // resolv.conf(5), for its domains
}

// Look looks once. What it cannot find out is unknown.
func Look(f Files) *Place {
	h, err := openHandle()
	if err != nil {
		return &Place{addresses{err: err}, lookDomains(f)}
	}
	defer h.Close()
	return look(h, f)
}

func look(h *netlink.Handle, f Files) *Place { return &Place{lookAddresses(h), lookDomains(f)} }

const (
	answerTime = 5 * time.Second // of the kernel, which may be busy with a change
	tries      = 5               // at a list that changes while it is read
	maxFile    = 16 << 20        // bytes; hosts files may be long lists
)

func openHandle() (*netlink.Handle, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("look for addresses: %w", err)
	}
	if err := h.SetSocketTimeout(answerTime); err != nil {
		h.Close()
		return nil, fmt.Errorf("look for addresses: %w", err)
	}
	return h, nil
}

func lookAddresses(h *netlink.Handle) addresses {
	var err error
	for range tries {
		var list []address
		if list, err = listAddresses(h); err == nil {
			return addresses{known: true, list: list}
		}
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return addresses{err: fmt.Errorf("look for addresses: %w", err)}
}

// listAddresses lists the addresses of interfaces that are up and have somebody at the
// other end, but for loopback.
func listAddresses(h *netlink.Handle) ([]address, error) {
	links, err := h.LinkList()
	if err != nil {
		return nil, err
	}
	inUse := make(map[int]bool)
	for _, l := range links {
		const wanted = unix.IFF_UP | unix.IFF_RUNNING
		a := l.Attrs()
		inUse[a.Index] = a.RawFlags&(wanted|unix.IFF_LOOPBACK) == wanted
	}
	found, err := h.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	var list []address
	for _, a := range found {
		own, network := addressOf(a.IPNet), networkOf(a.IPNet)
		if !inUse[a.LinkIndex] || !own.IsValid() || a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0 {
			continue
		}
		if peer := networkOf(a.Peer); peer.IsValid() {
			network = peer
		}
		list = append(list, address{own, network})
	}
	slices.SortFunc(list, func(a, b address) int {
		if c := a.own.Compare(b.own); c != 0 {
			return c
		}
		return strings.Compare(a.network.String(), b.network.String())
	})
	return slices.Compact(list), nil
}

func addressOf(n *net.IPNet) netip.Addr {
	if n == nil {
		return netip.Addr{}
	}
	addr, _ := netip.AddrFromSlice(n.IP)
	return addr.Unmap()
}

// networkOf is the zero Prefix where there is none.
func networkOf(n *net.IPNet) netip.Prefix {
	addr := addressOf(n)
	if !addr.IsValid() {
		return netip.Prefix{}
	}
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(addr, ones).Masked()
}

// lookDomains finds the host's domains: what follows the first label of its full name,
// and those that it looks names up in.
func lookDomains(f Files) domains {
	name, err := os.Hostname()
	if err != nil {
		return domains{err: fmt.Errorf("look for the domain: %w", err)}
	}
	d := domains{known: true}
	add := func(domain string) {
		if domain = strings.ToLower(strings.TrimSuffix(domain, ".")); domain != "" && !slices.Contains(d.list, domain) {
			d.list = append(d.list, domain)
		}
	}
	if !strings.Contains(name, ".") {
		text, err := readFile(f.Hosts)
		if err != nil {
			return domains{err: fmt.Errorf("look for the domain: %w", err)}
		}
		name = fullName(text, name)
	}
	_, domain, _ := strings.Cut(name, ".")
	add(domain)
	text, err := readFile(f.Resolv)
	if err != nil {
		return domains{err: fmt.Errorf("look for the domain: %w", err)}
	}
	for _, domain := range searched(text) {
		add(domain)
	}
	return d
}

// fullName is the first name, if it has a domain, of the first line of a hosts file that
// has name, as hostname(1) -f has it.
func fullName(hosts, name string) string {
	for line := range strings.Lines(hosts) {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		if len(fields) < 2 || !slices.ContainsFunc(fields[1:], func(f string) bool { return strings.EqualFold(f, name) }) {
			continue
		}
		if strings.Contains(fields[1], ".") {
			return fields[1]
		}
		return name
	}
	return name
}

// searched are the domains of the last domain or search of a resolv.conf, which is the
// one that counts.
func searched(resolv string) (list []string) {
	for line := range strings.Lines(resolv) {
		if fields := strings.Fields(line); len(fields) >= 2 && (fields[0] == "domain" || fields[0] == "search") {
			list = fields[1:]
		}
	}
	return list
}

// readFile reads a file; one that is not there is empty. It waits for no pipe that
// somebody put in its place.
func readFile(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	text, _, err := regular.Read(path, maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return string(text), err
}
