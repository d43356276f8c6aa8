package top

import (
	"testing"
	"unicode/utf8"

	"github.com/rivo/uniseg"

	"sshbroker/broker/control"
)

// FuzzLine: whatever names hold, a row takes no more cells than it has.
func FuzzLine(f *testing.F) {
	for _, s := range []string{"", "curl", "数据库", "e\u0301\u0301\u0301", "👩‍👩‍👧", "\u200d\ufe0f", "\xff\xfe", "::1"} {
		f.Add(s, 40)
	}
	f.Fuzz(func(t *testing.T, s string, width int) {
		if width < 1 || width > 500 || !utf8.ValidString(s) { // JSON brings no other strings
			t.Skip()
		}
		rows := []*flow{{ChannelRow: control.ChannelRow{ID: 1, Program: s, Name: s, Dst: s, Rule: s, Action: s, Profile: s, State: s, Owner: s}, problem: s}}
		list := fit(rows, width)
		for _, n := range []*flow{nil, rows[0]} {
			text, used := cut(line(n, list), width)
			if used > width || uniseg.StringWidth(text) > width {
				t.Errorf("%q takes %d cells of %d", text, used, width)
			}
		}
	})
}
