package audit

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func gatewayRecord(n int) GatewayRecord {
	return GatewayRecord{Time: time.Unix(1, 0), Event: GatewayOpen, Instance: "i", Flow: uint64(n), Reason: "carried"}
}

// What a record holds is the client's to choose in part: it is bounded, one line of
// ASCII, and reads back.
func TestGatewayRecordLine(t *testing.T) {
	r := gatewayRecord(1)
	nasty := "a\n\x1b[2J\xff\u202e\"" + strings.Repeat("x", 100_000)
	r.FlowID, r.Program, r.Host, r.Service, r.Error, r.Subject = nasty, nasty, nasty, nasty, nasty, nasty
	r.Emails = make([]string, 1000)
	for i := range r.Emails {
		r.Emails[i] = nasty
	}
	line, err := r.AppendLine(nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(line) > 64<<10 || strings.Count(string(line), "\n") != 1 || !strings.HasPrefix(string(line), string(lineStart)) {
		t.Errorf("%d bytes: %.200q", len(line), line)
	}
	for _, c := range line[:len(line)-1] {
		if c < ' ' || c >= 0x7f {
			t.Fatalf("the byte %#x in it", c)
		}
	}
	var back map[string]any
	if err := json.Unmarshal(line, &back); err != nil || back["flow"] != 1.0 || back["event"] != "open" {
		t.Errorf("%v, %v", back, err)
	}
	if _, there := back["dialled"]; there {
		t.Error("an address that is not known is there")
	}
}

// A record that is waited for is in the file when the wait is over.
func TestRecordGatewayNow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit")
	l, _ := open(t, Options{Path: path, MaxSize: 2000, Keep: 100})
	for i := range 100 {
		if i%3 == 0 {
			l.RecordGateway(gatewayRecord(-i))
		}
		if err := l.RecordGatewayNow(gatewayRecord(i + 1)); err != nil {
			t.Fatal(err)
		}
		text := ""
		for n := range 2 { // it may have been rotated behind it
			name := path
			if n > 0 {
				name += ".1"
			}
			b, _ := os.ReadFile(name)
			text += string(b)
		}
		if !strings.Contains(text, fmt.Sprintf(`"flow":%d,`, i+1)) {
			t.Fatalf("record %d is not there", i+1)
		}
	}
}

// Where it cannot be written the wait ends with an error, and with the log too.
func TestRecordGatewayNowFails(t *testing.T) {
	if _, err := os.Stat("/dev/full"); err != nil {
		skip(t, "no /dev/full")
	}
	l, e := open(t, Options{Path: "/dev/full"})
	if err := l.RecordGatewayNow(gatewayRecord(1)); !errors.Is(err, ErrCannotWrite) {
		t.Errorf("got %v", err)
	}
	e.next(t, "no space left")
	l.Close()
	if err := l.RecordGatewayNow(gatewayRecord(2)); !errors.Is(err, ErrCannotWrite) {
		t.Errorf("behind the end: %v", err)
	}
}

func TestGatewayRecordWithoutReason(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit")
	l, _ := open(t, Options{Path: path})
	l.RecordGateway(GatewayRecord{Event: GatewayClose})
	l.Close()
	text, _ := os.ReadFile(path)
	if s := l.Stats(); s.Unset != 1 || !strings.Contains(string(text), `"reason":"internal"`) {
		t.Errorf("%+v, %s", s, text)
	}
}
