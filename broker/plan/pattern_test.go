package plan

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"sshbroker/filter/egrep"
)

func translated(t testing.TB, pattern string) (addresses, *egrep.Pattern) {
	t.Helper()
	p, err := egrep.Compile(pattern, egrep.Options{})
	if err != nil {
		t.Fatalf("%q: %v", pattern, err)
	}
	work := maxWork
	found := translate(p.Regexp(), &work)
	found.prefixes = joinPrefixes(found.prefixes)
	return found, p
}

func (a addresses) String() string {
	var b strings.Builder
	if !a.exact {
		b.WriteString("some of ")
	}
	if a.every {
		return b.String() + "every"
	}
	for i, p := range a.prefixes {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(p.String())
	}
	return b.String()
}

func (a addresses) contains(addr netip.Addr) bool {
	for _, p := range a.prefixes {
		if p.Contains(addr) {
			return true
		}
	}
	return a.every
}

func TestPatterns(t *testing.T) {
	for _, c := range []struct{ pattern, want string }{
		{`.*`, "every"},
		{`.+`, "every"},
		{`[0-9a-f:.]*`, "every"},
		{`(.*)`, "every"},
		{`.*\..*`, "0.0.0.0/0"},
		{`.*:.*`, "::/0"},
		{`[0-9.]+`, "0.0.0.0/0"},

		{`10\.1\.2\.3`, "10.1.2.3/32"},
		{`10\.1\..*`, "10.1.0.0/16"},
		{`10\..*`, "10.0.0.0/8"},
		{`192\.0\.2\.[0-9]+`, "192.0.2.0/24"},
		{`192\.0\.2\.[0-9]{1,3}`, "192.0.2.0/24"},
		{`192\.0\.2\.[0-9]*`, "192.0.2.0/24"},
		{`192\.0\.2\.[0-9]`, "192.0.2.0/29 192.0.2.8/31"},
		{`192\.0\.2\.1[0-9]?`, "192.0.2.1/32 192.0.2.10/31 192.0.2.12/30 192.0.2.16/30"},
		{`(10|127)\..*`, "10.0.0.0/8 127.0.0.0/8"},
		{`(10\..*|192\.168\..*|172\.(1[6-9]|2[0-9]|3[01])\..*)`, "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16"},
		{`10\.[0-9]+\.7\.1`, strings.TrimSpace(func() (s string) {
			for i := range 256 {
				s += fmt.Sprintf("10.%d.7.1/32 ", i)
			}
			return s
		}())},
		{`.*\.1`, "some of 0.0.0.0/0"},
		{`10\..*\.1`, "some of 10.0.0.0/8"},

		// Unescaped dots take any character, and the whole text must match.
		{`10.1.2.3`, "10.1.2.3/32"},
		{`10.1.2`, ""}, // four octets, or eight groups, have more characters
		{`10\.1`, ""},
		{`10\.1\.`, ""},
		{`010\.1\.2\.3`, ""},
		{`10\.1\.2\.256`, ""},
		{`10\.1\.2\.3/32`, ""},
		{`example\.com`, ""},
		{`.*example.*`, ""},
		{`10\.1\.2\.3\>.*`, "10.1.2.3/32"},
		{`.*\b10\.1`, "some of 0.0.0.0/0"},
		{`^10\.1\.2\.3$`, "10.1.2.3/32"},

		{`::1`, "::1/128"},
		{`0:0:0:0:0:0:0:1`, ""},
		{`::`, "::/128"},
		{`fe80::1`, "fe80::1/128"},
		{`fe80::0001`, ""},
		{`fe80:0:0:0:0:0:0:1`, ""},
		{`(::1|fe80::1|2001:db8::a:0:0:1)`, "::1/128 2001:db8::a:0:0:1/128 fe80::1/128"},
		{`(10\.0\.0\.1|::1|fe80::[1-4])`, "10.0.0.1/32 ::1/128 fe80::1/128 fe80::2/127 fe80::4/128"},
		{`2001:db8:.*`, "2001:db8::/32"},
		{`2001:DB8:.*`, ""},
		{`fe80:.*`, "fe80::/16"},
		{`fe80:[0-9a-f:]+`, "fe80::/16"},
		{`fe[89ab][0-9a-f]:.*`, "fe80::/10"},
		{`2001:.*:1`, "some of 2001::/16"},
		{`2001:db8::.*`, "some of 2001:db8::/64"},
		{`2001:db8:0:.*`, "some of 2001:db8::/48"},
		{`2001:db8:(0|:).*`, "2001:db8::/48"},
		{`::.*`, "some of ::/32"},
		{`(0:|::).*`, "::/16"},
		{`::ffff:10\.0\.0\.1`, ""},
		{`::10\.0\.0\.1`, ""},
		{`1:2:3:4:5:6:7:8`, "1:2:3:4:5:6:7:8/128"},
		{`1:2:3:4:5:6:7:0`, "1:2:3:4:5:6:7:0/128"},
		{`1:2:3:4:5:6:7:[0-9a-f]+`, "1:2:3:4:5:6:7:0/112"},
		{`1:2:3:4:5:6::`, "1:2:3:4:5:6::/128"},
		{`1:2:3:4:5:0:0:8`, ""},
		{`a[0-9a-f]*:.*`, "a::/16 a0::/12 a00::/8 a000::/4"},
	} {
		found, _ := translated(t, c.pattern)
		if got := found.String(); got != c.want {
			t.Errorf("%q: %s, want %s", c.pattern, got, c.want)
		}
	}
}

// near returns addresses about which a translation could err: the ends of its
// prefixes and what is beside them, and their forms with runs of zeros.
func near(rng *rand.Rand, a addresses) []netip.Addr {
	addrs := []netip.Addr{
		netip.IPv4Unspecified(), netip.IPv6Unspecified(), netip.IPv6Loopback(),
		netip.AddrFrom4([4]byte{255, 255, 255, 255}), netip.MustParseAddr("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
	}
	prefixes := a.prefixes
	if len(prefixes) > 50 {
		prefixes = append(prefixes[:25:25], prefixes[len(prefixes)-25:]...)
	}
	for _, p := range prefixes {
		lo, hi := p.Addr(), last(p)
		addrs = append(addrs, lo, hi, lo.Prev(), hi.Next())
		for range 8 {
			addrs = append(addrs, randomWithin(rng, p))
		}
	}
	for range 20 {
		addrs = append(addrs, randomWithin(rng, everywhere[0]), randomWithin(rng, everywhere[1]))
	}
	var plain []netip.Addr
	for _, addr := range addrs {
		if addr.IsValid() && !addr.Is4In6() {
			plain = append(plain, addr)
		}
	}
	return plain
}

// last returns the last address of a prefix.
func last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	addr, _ := netip.AddrFromSlice(b)
	return addr
}

// randomWithin returns an address of p in which zeros, small numbers and all ones
// are as likely as anything.
func randomWithin(rng *rand.Rand, p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := 0; i < len(b); i += 2 {
		v := []uint32{0, 0, 1, rng.Uint32N(16), rng.Uint32N(256), 0x100 << rng.Uint32N(8), 0xffff, rng.Uint32()}[rng.IntN(8)]
		for j, octet := range []byte{byte(v >> 8), byte(v)} {
			bit := 8 * (i + j)
			if bit+8 > p.Bits() {
				free := byte(0xff)
				if p.Bits() > bit {
					free >>= p.Bits() - bit
				}
				b[i+j] |= octet & free
			}
		}
	}
	addr, _ := netip.AddrFromSlice(b)
	return addr
}

// checkPattern holds a translation to the matcher.
func checkPattern(t testing.TB, rng *rand.Rand, a addresses, p *egrep.Pattern) {
	t.Helper()
	for _, addr := range near(rng, a) {
		in, matched := a.contains(addr), p.Match(addr.String())
		if a.exact && in != matched || matched && !in {
			t.Fatalf("%q: %s in %s is %t, but the pattern matches: %t", p, addr, a, in, matched)
		}
	}
}

// FuzzAddressPattern holds the translation of any pattern to the matcher, at
// random addresses and at the ends of its prefixes.
func FuzzAddressPattern(f *testing.F) {
	for i, pattern := range []string{
		`10\.1\.2\.3`, `10\.1\..*`, `10.1.2.3`, `192\.0\.2\.[0-9]+`, `.*\.1`, `::1`, `fe80::.*`, `2001:db8:.*`, `(0:|::).*`,
		`[0-9a-f:]+`, `.*:0:.*`, `.*::`, `1:.*:(0|:)`, `(10|fe80).*`, `\<1.*`, `.*\B0`, `[^:]*`, `..+`, `.{7,9}`, `1?.*:(a|b)?`,
	} {
		f.Add(pattern, uint64(i), []byte{10, 1, 2, 3})
	}
	f.Fuzz(func(t *testing.T, pattern string, seed uint64, raw []byte) {
		p, err := egrep.Compile(pattern, egrep.Options{})
		if err != nil {
			return
		}
		work := maxWork
		a := translate(p.Regexp(), &work)
		a.prefixes = joinPrefixes(a.prefixes)
		if len(a.prefixes) > 2*maxPrefixes {
			t.Errorf("%q: %d prefixes", pattern, len(a.prefixes))
		}
		if used := maxWork - work; used > maxPatternWork {
			t.Errorf("%q: %d steps", pattern, used)
		}
		if addr, ok := netip.AddrFromSlice(raw); ok && !addr.Is4In6() {
			if in, matched := a.contains(addr), p.Match(addr.String()); a.exact && in != matched || matched && !in {
				t.Fatalf("%q: %s in %s is %t, but the pattern matches: %t", p, addr, a, in, matched)
			}
		}
		checkPattern(t, rand.New(rand.NewPCG(seed, 1)), a, p)
	})
}

// TestRandomPatterns does what the fuzz target does with patterns that are more
// like addresses than its mutations are.
func TestRandomPatterns(t *testing.T) {
	exact := 0
	const n = 1_500
	for seed := range uint64(n) {
		rng := rand.New(rand.NewPCG(seed, 2))
		pattern := randomPattern(rng)
		a, p := translated(t, pattern)
		if a.exact && (a.every || len(a.prefixes) > 0) {
			exact++
		}
		checkPattern(t, rng, a, p)
	}
	t.Logf("%d of %d patterns are exact and take something", exact, n)
	if exact < n/5 {
		t.Errorf("only %d of %d", exact, n)
	}
}

func randomPattern(rng *rand.Rand) string {
	piece := func(pieces ...string) string { return pieces[rng.IntN(len(pieces))] }
	one := func() string {
		var b strings.Builder
		if rng.IntN(2) == 0 {
			for i := range 1 + rng.IntN(4) {
				if i > 0 {
					b.WriteString(piece(`\.`, `\.`, `\.`, `.`, ``))
				}
				b.WriteString(piece("10", "0", "1", "25[0-5]", "[0-9]+", "[0-9]{1,3}", "1?", ".*", "(1|2)", "[1-3][0-9]?", "255"))
			}
		} else {
			for i := range 1 + rng.IntN(8) {
				if i > 0 {
					b.WriteString(piece(":", ":", ":", ":", "::", ".", ":?"))
				}
				b.WriteString(piece("0", "1", "db8", "2001", "", "[0-9a-f]+", "[0-9a-f]{1,4}", ".*", "(0|)", "f[ef]80", "[1-9a-f][0-9a-f]*", "ffff"))
			}
		}
		b.WriteString(piece("", "", "", ".*", ".+", `(\.|:).*`))
		return b.String()
	}
	if p := one(); p != "" && rng.IntN(4) > 0 {
		return p
	}
	return "(" + one() + "|" + one() + ")"
}
