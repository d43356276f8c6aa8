package say

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// Lines that an outsider can repeat are said up to a rate, and what is left out is told.
func TestSayer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := new(bytes.Buffer)
		var counted uint64
		s := New(slog.New(slog.NewTextHandler(log, nil)), func(n uint64) { counted += n })
		lines := func(text string) int { return strings.Count(log.String(), text) }
		for range 1000 {
			s.Say(slog.LevelWarn, "one", "repeated")
			s.Say(slog.LevelDebug, "two", "not wanted")
		}
		s.Say(slog.LevelWarn, "three", "another kind")
		if lines("repeated") != Burst || counted != 1000-Burst || lines("another kind") != 1 {
			t.Errorf("%d lines, %d counted", lines("repeated"), counted)
		}
		s.Report(time.Now())
		if lines("left out") != 0 {
			t.Error("reported too early")
		}
		time.Sleep(ReportEvery)
		s.Report(time.Now())
		if !strings.Contains(log.String(), fmt.Sprintf("of=one lines=%d", 1000-Burst)) {
			t.Errorf("log %s", log)
		}
		for range 1000 {
			s.Say(slog.LevelWarn, "one", "repeated")
		}
		if n := lines("repeated"); n != Burst+int(ReportEvery/Every) {
			t.Errorf("%d lines after a while", n)
		}
	})
}
