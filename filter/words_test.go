package filter

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestParsePorts(t *testing.T) {
	for _, tt := range []struct {
		text string
		want []PortRange
	}{
		{"", nil},
		{"*", nil},
		{" * ", nil},
		{"23", []PortRange{{23, 23}}},
		{"1-65535", []PortRange{{1, 65535}}},
		{"80-80", []PortRange{{80, 80}}},
		{"22, 80 - 90 ,443", []PortRange{{22, 22}, {80, 90}, {443, 443}}},
		{"0022", []PortRange{{22, 22}}},
	} {
		got, err := ParsePorts(tt.text)
		if err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%q: %v, %v", tt.text, got, err)
		}
	}
	for text, msg := range map[string]string{
		"90-80":                   "did you mean 80-90?",
		"0":                       "between 1 and 65535",
		"65536":                   "between 1 and 65535",
		"1-70000":                 "between 1 and 65535",
		"99999999999999999999999": "between 1 and 65535",
		"http":                    "is no port",
		"-1":                      "is no port",
		"80-":                     "is no port",
		"1-2-3":                   "is no port",
		"+80":                     "is no port",
		"0x50":                    "is no port",
		"8_0":                     "is no port",
		"80;443":                  "is no port",
		"80,":                     "nothing between",
		",":                       "nothing between",
		"80,*":                    "stands alone",
		"*-80":                    "is no port",
	} {
		got, err := ParsePorts(text)
		if got != nil || !errors.Is(err, ErrPorts) || !strings.Contains(err.Error(), msg) {
			t.Errorf("%q: %v, %v; want %q", text, got, err, msg)
		}
	}
}

func FuzzParsePorts(f *testing.F) {
	for _, s := range []string{"", "*", "23", "80-90", "1, 2-3 ,4", "90-80", "0", "65536", "80,,", "x-y"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := ParsePorts(text)
		if err != nil {
			if got != nil || !errors.Is(err, ErrPorts) {
				t.Fatalf("%q: %v, %v", text, got, err)
			}
			return
		}
		again, err := ParsePorts(portsText(got))
		if err != nil || !slices.Equal(got, again) {
			t.Fatalf("%q: read %v, written %q, read %v, %v", text, got, portsText(got), again, err)
		}
		if _, err := NewSet([]Rule{{Ports: got}}, Block); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
	})
}

func TestActions(t *testing.T) {
	for _, tt := range []struct {
		text string
		want Action
	}{
		{"DIRECT", Direct}, {"direct", Direct}, {"Block", Block}, {"tunnel", Tunnel}, {"ftp-tunnel", FTPTunnel}, {"Ftp-Proxy", FTPProxy},
	} {
		got, err := ParseAction(tt.text)
		if err != nil || got != tt.want || !strings.EqualFold(got.String(), tt.text) {
			t.Errorf("%q: %v, %v", tt.text, got, err)
		}
	}
	for text, msg := range map[string]string{
		"TUNEL":        "did you mean TUNNEL?",
		"tunnle":       "did you mean TUNNEL?",
		"BLOKC":        "did you mean BLOCK?",
		"FTP_TUNNEL":   "did you mean FTP-TUNNEL?",
		"ftpproxy":     "did you mean FTP-PROXY?",
		"ftp-sftp":     "did you mean FTP-PROXY?",
		"deny":         "did you mean BLOCK?",
		"pass":         "did you mean DIRECT?",
		"":             "there are DIRECT, BLOCK",
		"nonsense":     "there are DIRECT, BLOCK",
		"BLOC\u212a":   "unknown action",
		"d\u0131rect":  "unknown action",
		"DIRECT ":      "did you mean DIRECT?",
		"FTP-TUNNEL\n": `"FTP-TUNNEL\n"`,
	} {
		got, err := ParseAction(text)
		if got != Block || !errors.Is(err, ErrAction) || !strings.Contains(err.Error(), msg) {
			t.Errorf("%q: %v, %v; want %q", text, got, err, msg)
		}
	}
	if got := Action(9).String(); got != "Action(9)" {
		t.Errorf("unknown action is %q", got)
	}
	if got := Application.String() + Groups.String() + Condition(0).String() + Condition(9).String(); got != "applicationgroupsnoneCondition(9)" {
		t.Errorf("conditions are %q", got)
	}
}
