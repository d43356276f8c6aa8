package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// Whatever a client sends, the server answers or disconnects it, closes its
// descriptors, and goes on to serve the next.
func FuzzServer(f *testing.F) {
	for _, seed := range []string{
		`{"kind":"call","op":"quick"}`,
		"{\"kind\":\"note\",\"body\":1}\n{\"kind\":\"answer\",\"id\":3}\n{\"kind\":\"call\",\"op\":\"quick\"}",
		"{\"kind\":\"call\",\"op\":\"decode\",\"body\":{\"id\":[]}}",
		"{\"kind\":\"call\",\"op\":\"decode\",\"body\":{\"id\":\"a\"}}\n{\"kind\":\"done\"}",
		"{\"kind\":\"call\"", "\n\n", "\x00", strings.Repeat("[", 70000), "{\"kind\":\"hello\",\"protocol\":-1}",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		address := serve(t, func(s *Server) {
			s.Handle("quick", func(context.Context, *Call) error { return nil })
			s.Handle("decode", func(_ context.Context, c *Call) error { return c.Decode(new(CaptureArgs)) })
		})
		before := openFiles(t)
		r := rawDial(t, address)
		r.hello(t)
		for packet := range bytes.SplitSeq(script, []byte("\n")) {
			_ = r.SetWriteDeadline(time.Now().Add(10 * time.Second))
			if _, _, err := r.WriteMsgUnix(packet, nil, nil); err != nil {
				break
			}
		}
		r.Close()
		c := dial(t, address)
		if err := c.Call(t.Context(), "quick", nil, nil, nil, nil); err != nil {
			t.Errorf("the next client: %v", err)
		}
		c.Close()
		sameFiles(t, before)
	})
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"kind":"ask","id":1,"prompt":{"text":"?","secret":true}}`))
	f.Add([]byte(`{"kind":"done","error":"no","code":"failed"}`))
	f.Add([]byte(`{"kind":"row","body":{"a":[1,2,{}]}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parse(b, 0, nil)
		if err != nil {
			var wrong errProtocol
			if !errors.As(err, &wrong) {
				t.Errorf("not a protocol error: %v", err)
			}
			return
		}
		again, err := json.Marshal(m)
		if err != nil {
			t.Fatalf("cannot be sent on: %v", err)
		}
		if _, err := parse(again, 0, nil); err != nil {
			t.Errorf("%s: %v", again, err)
		}
	})
}

// An error of any text fits a message and stays readable.
func FuzzErrorFits(f *testing.F) {
	f.Add("plain", "hint", uint16(1))
	f.Add("\x00", "<", uint16(65535))
	f.Add("\xff\n", "\x1b[2J", uint16(40000))
	f.Add("\u2028", "", uint16(30000))
	f.Fuzz(func(t *testing.T, text, hint string, times uint16) {
		if len(text)+len(hint) > 100 {
			return
		}
		m := done(&Error{Message: strings.Repeat(text, int(times)), Hint: strings.Repeat(hint, int(times))})
		b, err := json.Marshal(m)
		if err != nil || len(b) > MaxMessage {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
		if m.err() == nil {
			t.Error("an error became a success")
		}
		if !utf8.ValidString(m.Error) || strings.ContainsAny(m.Error, "\x00\x1b") {
			t.Errorf("%q", m.Error)
		}
	})
}

func TestParseEnd(t *testing.T) {
	if _, err := parse(nil, 0, io.EOF); err != io.EOF {
		t.Errorf("got %v", err)
	}
}
