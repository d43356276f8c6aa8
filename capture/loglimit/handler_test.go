package loglimit

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// output is a log that is read while it is written.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

func (o *output) Reset() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text.Reset()
}

func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out output
		h := New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
		log := slog.New(h)
		lines := func(text string) int { return strings.Count(out.String(), "msg="+text) }
		derived := log.With("uid", 5).WithGroup("g")
		for i := range 1000 {
			log.Warn("repeated", "number", i)
			derived.Info("repeated", "number", i) // is of the same kind
			log.Debug("asked-for")
		}
		log.Warn("another")
		if lines("repeated") != Burst || lines("another") != 1 || lines("asked-for") != 1000 || h.Suppressed() != 2000-Burst {
			t.Errorf("%d repeated, %d of another, %d asked for, %d left out", lines("repeated"), lines("another"), lines("asked-for"), h.Suppressed())
		}
		if strings.Contains(out.String(), "left out") {
			t.Error("told too early")
		}
		time.Sleep(ReportEvery + time.Millisecond)
		synctest.Wait()
		if want := fmt.Sprintf(`level=WARN msg="log lines were left out" of=repeated lines=%d`+"\n", 2000-Burst); strings.Count(out.String(), want) != 1 {
			t.Errorf("no %q in %s", want, out.String())
		}
		out.Reset()
		for range 1000 {
			log.Warn("repeated")
		}
		if n := lines("repeated"); n != int(ReportEvery/Every) {
			t.Errorf("%d lines after %v", n, ReportEvery)
		}
		h.Flush()
		h.Flush()
		if strings.Count(out.String(), "left out") != 1 {
			t.Errorf("%s", out.String())
		}
		out.Reset()
		time.Sleep(2 * Burst * Every) // a burst again, not two
		synctest.Wait()
		for range 1000 {
			log.Warn("repeated")
		}
		if n := lines("repeated"); n != Burst {
			t.Errorf("%d lines after a rest", n)
		}
		h.Flush()
	})
}

// TestKinds: messages without end, which nobody should make, do not fill the memory.
func TestKinds(t *testing.T) {
	var out bytes.Buffer
	h := New(slog.NewTextHandler(&out, nil))
	log := slog.New(h)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for j := range 2 * maxKinds {
				log.Warn(fmt.Sprint(i, j))
			}
		})
	}
	wg.Wait()
	if len(h.kinds) > maxKinds+1 {
		t.Errorf("%d kinds", len(h.kinds))
	}
	if n := uint64(strings.Count(out.String(), "\n")); n+h.Suppressed() != 8*maxKinds {
		t.Errorf("%d lines and %d left out", n, h.Suppressed())
	}
	h.Flush()
	if !strings.Contains(out.String(), `of=""`) {
		t.Error("what had no kind of its own is not told")
	}
}
