package main

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestSize(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0 B", 999: "999 B", 1000: "1.00 kB", 1234: "1.23 kB", 9_994: "9.99 kB", 9_996: "10.0 kB", 99_940: "99.9 kB", 99_960: "100 kB",
		999_499: "999 kB", 999_500: "1.00 MB", 1_500_000_000: "1.50 GB", 1<<64 - 1: "18.4 EB",
	} {
		if got := size(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

func TestFormatTime(t *testing.T) {
	at := time.Date(2026, 3, 4, 15, 6, 7, 0, time.FixedZone("EET", 7200))
	for format, want := range map[string]string{
		"%F %T": "2026-03-04 15:06:07", "%s": "1772629567", "%%F%n%t": "%F\n\t", "%e. %b %y, %I:%M %p": " 4. Mar 26, 03:06 PM",
		"%j %a %A %B %z %Z": "063 Wed Wednesday March +0200 EET", "": "", "2006 Jan": "2006 Jan", "%D %R": "03/04/26 15:06",
	} {
		if err := checkTimeFormat(format); err != nil {
			t.Errorf("%q: %v", format, err)
		}
		if got := formatTime(at, format); got != want {
			t.Errorf("%q: %q, want %q", format, got, want)
		}
	}
	for _, format := range []string{"%", "%Y%", "%Q", "%\xff", "%E"} {
		if err := checkTimeFormat(format); err == nil {
			t.Errorf("%q passes", format)
		}
	}
}

// A format that was accepted prints something for each conversion.
func FuzzTimeFormat(f *testing.F) {
	f.Add("%F %T")
	f.Add("%")
	f.Add("a%%b%s")
	at := time.Date(2026, 3, 4, 15, 6, 7, 0, time.UTC)
	f.Fuzz(func(t *testing.T, format string) {
		if checkTimeFormat(format) != nil {
			return
		}
		if got := formatTime(at, format); len(format) > 0 && got == "" {
			t.Errorf("%q prints nothing", format)
		}
	})
}

// What a broker, a server or a program is called never steers the terminal.
func FuzzPrintable(f *testing.F) {
	f.Add("\x1b[2J")
	f.Add("a\u009b31mb\u202e\x7f")
	f.Fuzz(func(t *testing.T, s string) {
		got := printable(s)
		if strings.ContainsAny(got, "\x1b\x07\x08\r\x7f\u009b\u202e") {
			t.Errorf("%q", got)
		}
		if utf8.ValidString(s) && utf8.RuneCountInString(got) != utf8.RuneCountInString(s) {
			t.Errorf("%q became %q", s, got)
		}
	})
}
