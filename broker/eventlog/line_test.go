package eventlog

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestLine(t *testing.T) {
	for _, tt := range []struct {
		args []Arg
		want string
	}{
		{nil, "1003 KEX_success"},
		{[]Arg{ArgUsername.Is("ann"), ArgProgram.Is(""), ArgAlgorithm.Is("curve25519-sha256@libssh.org")}, "1003 KEX_success, Username: ann, Algorithm: curve25519-sha256@libssh.org"},
		{[]Arg{ArgSrc.Is("[2001:db8::1]:22"), ArgRule.Is("0")}, "1003 KEX_success, Src: [2001:db8::1]:22, Rule: 0"},
		{[]Arg{ArgProgram.Is("/opt/my program")}, `1003 KEX_success, Program: "/opt/my program"`},
		{[]Arg{ArgProgram.Is("/x, Username: root")}, `1003 KEX_success, Program: "/x, Username: root"`},
		{[]Arg{ArgProgram.Is("a\nNov 22 host sshd[1]: b")}, `1003 KEX_success, Program: "a\nNov 22 host sshd[1]: b"`},
		{[]Arg{ArgProgram.Is("\x1b[2J\x00\r\u2028\u202e\u00e9\xff")}, `1003 KEX_success, Program: "\x1b[2J\x00\r\u2028\u202e\u00e9\xff"`},
		{[]Arg{ArgProgram.Is(`say "x" \ 'y'`)}, `1003 KEX_success, Program: "say \"x\" \\ 'y'"`},
		{[]Arg{ArgProgram.Is(`"`)}, `1003 KEX_success, Program: "\""`},
		{[]Arg{ArgProgram.Is("#011%s%n")}, `1003 KEX_success, Program: #011%s%n`},
	} {
		if got := string(appendText(nil, KEXSuccess, tt.args)); got != tt.want {
			t.Errorf("got  %s\nwant %s", got, tt.want)
		}
	}
}

func TestFileLine(t *testing.T) {
	e := &entry{at: time.Date(2026, 11, 22, 19, 0, 1, 2e6, time.FixedZone("", 3600)), event: KEXFailure, severity: SecurityFailure, facility: Local3, text: "1000 KEX_failure"}
	want := "2026-11-22T19:00:01.002+01:00" + prefix + "local3.security-failure: 1000 KEX_failure\n"
	if got := string(appendFileLine(nil, e)); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestLineIsBounded(t *testing.T) {
	var args []Arg
	for _, name := range carried {
		args = append(args, name.Is(cut(strings.Repeat("\u00e9", 10000))))
	}
	text := string(appendText(nil, TunnelFailed, args))
	if len(text) > maxLine+100 || !strings.HasSuffix(text, ", ...") {
		t.Errorf("%d bytes, ending in %q", len(text), text[len(text)-20:])
	}
	if got := cut(strings.Repeat("\u00e9", 10000)); len(got) > maxValue || !strings.HasSuffix(got, "\u00e9...") {
		t.Errorf("cut to %q", got)
	}
}

// parse reads a line back, as a strict reader of logs would.
func parse(line string) (number int, name string, args []Arg, err error) {
	head, rest, _ := strings.Cut(line, ",")
	if _, err = fmt.Sscanf(head, "%d %s", &number, &name); err != nil {
		return
	}
	for rest != "" {
		if rest == " ..." {
			return
		}
		key, value, ok := strings.Cut(strings.TrimPrefix(rest, " "), ": ")
		if !ok {
			return 0, "", nil, fmt.Errorf("no value in %q", rest)
		}
		if strings.HasPrefix(value, `"`) {
			quoted, err := strconv.QuotedPrefix(value)
			if err != nil {
				return 0, "", nil, err
			}
			rest = value[len(quoted):]
			if value, err = strconv.Unquote(quoted); err != nil {
				return 0, "", nil, err
			}
		} else if value, rest, ok = strings.Cut(value, ","); ok {
			rest = "," + rest
		}
		args = append(args, ArgName(key).Is(value))
		if rest != "" && rest[0] != ',' {
			return 0, "", nil, fmt.Errorf("something behind a value: %q", rest)
		}
		rest = strings.TrimPrefix(rest, ",")
	}
	return number, name, args, nil
}

// FuzzLine holds for any values: the line is printable ASCII, it is bounded, and reads
// back as the arguments that it was made of, no more and no others.
func FuzzLine(f *testing.F) {
	f.Add("/usr/bin/curl", "host.example", "connect: refused")
	f.Add("a\nb", "x, Rule: 7", `"quoted"`)
	f.Add("\x00\x7f\x80\xff", "\u2028\u202e", "\x1b]0;t\x07")
	f.Add(", ...", "...", `\`)
	f.Fuzz(func(t *testing.T, program, name, text string) {
		args := []Arg{ArgProgram.Is(cut(program)), ArgHost.Is(cut(name)), ArgText.Is(cut(text))}
		line := string(appendText(nil, TunnelFailed, args))
		if len(line) > maxLine+100 {
			t.Fatalf("%d bytes", len(line))
		}
		for i := range len(line) {
			if line[i] < ' ' || line[i] > '~' {
				t.Fatalf("%q at %d", line[i], i)
			}
		}
		number, event, got, err := parse(line)
		if err != nil || number != TunnelFailed.Definition().Number || event != "Tunnel_failed" {
			t.Fatalf("%q: %d %s %v", line, number, event, err)
		}
		whole := !strings.HasSuffix(line, ", ...")
		for _, a := range args {
			if a.Value == "" {
				continue
			}
			if len(got) == 0 {
				if whole {
					t.Fatalf("%q lacks %v", line, a)
				}
				return
			}
			if got[0] != a {
				t.Fatalf("%q: got %v, want %v", line, got[0], a)
			}
			got = got[1:]
		}
		if len(got) > 0 {
			t.Fatalf("%q has more: %v", line, got)
		}
	})
}
