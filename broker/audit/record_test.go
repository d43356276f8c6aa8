package audit

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestReasons(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range append(Reasons(), Unset) {
		word := r.String()
		if word == "" || strings.HasPrefix(word, "reason(") || seen[word] {
			t.Errorf("reason %d is called %q", r, word)
		}
		seen[word] = true
		var back Reason
		if err := back.UnmarshalText([]byte(word)); err != nil || back != r {
			t.Errorf("%q reads back as %v, %v", word, back, err)
		}
	}
	// The words are read by others: none may be lost.
	for _, word := range strings.Fields(`carried direct passed blocked refused-by-destination unreachable prohibited
		name-not-found server-unreachable auth-failed host-key profile-error transport-lost abandoned not-built
		fallback limit handed-over refused-by-carrier carrier-gone no-descriptors audit-required shutdown bad-name internal`) {
		if !seen[word] {
			t.Errorf("no reason is called %q", word)
		}
	}
	if got := Reason(200).String(); got != "reason(200)" {
		t.Errorf("unknown value is called %q", got)
	}
	var r Reason
	if r != Unset {
		t.Error("the zero value is not Unset")
	}
	if err := r.UnmarshalText([]byte("reason(200)")); err == nil {
		t.Error("an unknown word was taken")
	}
}

func fullRecord() Record {
	return Record{
		Time:       time.Date(2026, 5, 4, 3, 2, 1, 5e8, time.FixedZone("x", 3600)),
		Flow:       42,
		Capture:    "c1",
		Backend:    "namespace",
		Generation: 7,
		UID:        1000,
		User:       "anna",
		Groups:     []string{"anna", "video"},
		PID:        4711,
		Program:    "/usr/bin/telnet",
		Src:        netip.MustParseAddrPort("10.0.0.1:40000"),
		Dst:        netip.MustParseAddrPort("[2001:db8::1]:23"),
		Names:      []string{"host.example", "other.example"},
		Name:       "host.example",
		Rule:       3,
		RuleSource: "ssh-broker-config.xml:12",
		Action:     "tunnel",
		Profile:    "gw",
		Server:     "me@gw.example:22",
		Target:     "host.example:23",
		Reason:     Carried,
		Error:      "none",
		UpEnd:      "eof",
		DownEnd:    "reset-by-far",
		Decision:   1234 * time.Microsecond,
		Open:       56 * time.Millisecond,
		Duration:   3 * time.Second,
		BytesUp:    10,
		BytesDown:  20,
	}
}

func TestRecordLine(t *testing.T) {
	for _, tc := range []struct {
		name string
		r    Record
		want string
	}{
		{"full", fullRecord(), `{"v":1,"time":"2026-05-04T02:02:01.5Z","flow":42,"capture":"c1","backend":"namespace","generation":7,` +
			`"uid":1000,"user":"anna","groups":["anna","video"],"pid":4711,"program":"/usr/bin/telnet","src":"10.0.0.1:40000",` +
			`"dst":"[2001:db8::1]:23","names":["host.example","other.example"],"name":"host.example","rule":3,` +
			`"rule_source":"ssh-broker-config.xml:12","action":"tunnel","profile":"gw","server":"me@gw.example:22",` +
			`"target":"host.example:23","reason":"carried","error":"none","up_end":"eof","down_end":"reset-by-far",` +
			`"decision_ms":1.234,"open_ms":56.000,"duration_ms":3000.000,"bytes_up":10,"bytes_down":20}` + "\n"},
		{"least", Record{Reason: Blocked}, `{"v":1,"time":"0001-01-01T00:00:00Z","flow":0,"generation":0,"uid":0,"rule":0,` +
			`"reason":"blocked","decision_ms":0.000,"open_ms":0.000,"duration_ms":0.000,"bytes_up":0,"bytes_down":0}` + "\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := tc.r.AppendLine(nil)
			if err != nil || string(got) != tc.want {
				t.Errorf("got  %s\nwant %s (%v)", got, tc.want, err)
			}
		})
	}
}

func TestRecordIsBounded(t *testing.T) {
	r := fullRecord()
	long := strings.Repeat("ü", 1<<20)
	r.Program, r.Error, r.Name = long, long, long
	for range 1000 {
		r.Names = append(r.Names, long)
	}
	got, err := r.AppendLine(nil)
	if err != nil || len(got) > 128<<10 {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	var back struct{ Names []string }
	if err := json.Unmarshal(got, &back); err != nil || len(back.Names) != maxNames {
		t.Errorf("%d names, %v", len(back.Names), err)
	}
	for _, n := range back.Names[2:] {
		if !strings.HasSuffix(n, "ü...") {
			t.Fatalf("a name ends in %q", n[len(n)-8:])
		}
	}
}

// Whatever the outside puts into texts: one line, pure printable ASCII, the same text
// back.
func FuzzRecordCannotBeForged(f *testing.F) {
	f.Add("plain.example", "/bin/x")
	f.Add("x\n{\"v\":1,\"reason\":\"passed\"}", "\x1b[2J\u009b31m\u202e")
	f.Add("\"},{\"v\":1", "\xff\xfe\x00\r\n\u2028")
	f.Add("\U0001f600", "\x7f\\u000a")
	f.Fuzz(func(t *testing.T, a, b string) {
		r := Record{Reason: Carried, Name: a, Names: []string{a, b}, Program: b, Error: a + b, User: b, Groups: []string{a}}
		got, err := r.AppendLine(nil)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Count(got, []byte{'\n'}) != 1 || got[len(got)-1] != '\n' {
			t.Fatalf("not one line: %q", got)
		}
		for _, c := range got[:len(got)-1] {
			if c < 0x20 || c > 0x7e {
				t.Fatalf("byte %#x in %q", c, got)
			}
		}
		var back map[string]any
		if err := json.Unmarshal(got, &back); err != nil {
			t.Fatalf("%v in %q", err, got)
		}
		if back["reason"] != "carried" {
			t.Fatalf("reason became %v", back["reason"])
		}
		if utf8.ValidString(a) && a != "" && len(a) <= maxText && back["name"] != a {
			t.Fatalf("name %q became %q", a, back["name"])
		}
	})
}
