package names

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestParseHosts(t *testing.T) {
	h := parseHosts([]byte(`# comment
127.0.0.1	localhost loopback   # more
::1 localhost
192.0.2.1 Db.Example. db
192.0.2.2 db
2001:db8::1 db
nonsense db
192.0.2.3
192.0.2.4 -bad good bad/name
`))
	if got := fmt.Sprint(h.addrs["db"], h.addrs["db.example"], h.addrs["good"], len(h.addrs)); got != "[192.0.2.1 192.0.2.2 2001:db8::1] [192.0.2.1] [192.0.2.4] 5" {
		t.Error(got)
	}
	if got := fmt.Sprint(h.names[addr("192.0.2.1")], h.names[addr("192.0.2.4")]); got != "[db.example db] [good]" {
		t.Error(got)
	}
}

func FuzzFiles(f *testing.F) {
	f.Add([]byte("127.0.0.1 localhost\nnameserver 1.2.3.4\noptions timeout:1 attempts:99999999999999999999\n"))
	f.Add([]byte("nameserver fe80::1%eth0\n\x00 \xff"))
	f.Fuzz(func(t *testing.T, text []byte) {
		for name := range parseHosts(text).addrs {
			if got, err := Normalize(name); err != nil || got != name {
				t.Fatalf("hosts gave %q", name)
			}
		}
		c := parseResolvConf(text)
		if len(c.servers) < 1 || len(c.servers) > maxServers || c.timeout <= 0 || c.timeout > maxTimeout || c.attempts < 1 || c.attempts > maxAttempts {
			t.Fatalf("resolv.conf gave %+v", c)
		}
	})
}

func TestParseResolvConf(t *testing.T) {
	for _, tc := range []struct{ text, want string }{
		{"", "[127.0.0.1:53] 2s 2"},
		{"nameserver 192.0.2.1\nnameserver 2001:db8::1\nnameserver fe80::1%eth0\n", "[192.0.2.1:53 [2001:db8::1]:53 [fe80::1%eth0]:53] 2s 2"},
		{"nameserver 127.0.0.1:5353\nnameserver [::1]:5353 # x\nnameserver x\nnameserver 1.2.3.4:0\n", "[127.0.0.1:5353 [::1]:5353] 2s 2"},
		{"# nameserver 1.1.1.1\n;nameserver 1.1.1.1\n nameserver 192.0.2.1\nnameserver 192.0.2.1", "[192.0.2.1:53] 2s 2"},
		{"options timeout:1 attempts:3 rotate\nnameserver 192.0.2.1\n", "[192.0.2.1:53] 1s 3"},
		{"options timeout:99 attempts:99\nnameserver 192.0.2.1\n", "[192.0.2.1:53] 10s 5"},
		{"options timeout:0 attempts:-1 timeout:x\nnameserver 192.0.2.1\n", "[192.0.2.1:53] 2s 2"},
	} {
		c := parseResolvConf([]byte(tc.text))
		if got := fmt.Sprint(c.servers, c.timeout, c.attempts); got != tc.want {
			t.Errorf("%q: %s, want %s", tc.text, got, tc.want)
		}
	}
}

func TestWatched(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	parsed := 0
	w := watched[string]{path: path, parse: func(b []byte) string { parsed++; return string(b) }}
	want := func(value string, times int) {
		t.Helper()
		if got := w.get(); got != value || parsed != times {
			t.Fatalf("%q after %d readings, want %q after %d", got, parsed, value, times)
		}
	}
	write := func(p, text string) {
		t.Helper()
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want("", 0)
	write(path, "one")
	want("one", 1)
	want("one", 1)
	write(path, "longer")
	want("longer", 2)
	write(path+".new", "renam!")
	os.Rename(path+".new", path)
	want("renam!", 3)
	os.Chtimes(path, time.Time{}, time.Now().Add(time.Hour))
	want("renam!", 4)
	os.Remove(path)
	want("renam!", 4) // being replaced
	write(path, "back")
	want("back", 5)
	if (&watched[int]{parse: func([]byte) int { return 1 }}).get() != 0 {
		t.Error("no path, but a value")
	}
}
