package captured

import (
	"strings"
	"testing"
	"time"

	"sshbroker/capture/loglimit"
	"sshbroker/capture/message"
	"sshbroker/capture/service"
)

// TestRepeatedLines: a user who connects again and again and talks nonsense does not fill
// the log, and what is left out is told and counted.
func TestRepeatedLines(t *testing.T) {
	s := start(t, newOptions(t))
	const many = 4 * loglimit.Burst
	began := time.Now()
	for range many {
		c := s.dial(t, bob)
		if err := c.conn.Send(service.Message{Op: service.OpStatus, Seq: 1}); err != nil {
			t.Fatal(err)
		}
		for err := error(nil); err == nil; { // until it is cut off
			var m service.Message
			files, rerr := c.conn.Receive(&m)
			message.CloseAll(files)
			err = rerr
		}
		c.conn.Close()
	}
	left := s.status(t).Suppressed
	most := loglimit.Burst + int(time.Since(began)/loglimit.Every) + 1
	if left < uint64(many-most) || left > many-loglimit.Burst {
		t.Errorf("%d lines left out", left)
	}
	s.limited.Flush()
	log := s.log.String()
	if n := strings.Count(log, `msg="client cut off"`); n < loglimit.Burst || n > most || !strings.Contains(log, `msg="log lines were left out" of="client cut off" lines=`) {
		t.Errorf("%d lines, want %d to %d\n%.2000s", n, loglimit.Burst, most, log)
	}
}
