package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"sshbroker/broker/control"
	"sshbroker/capture"
	"sshbroker/capture/capturetest"
	"sshbroker/profiles"
)

// asker is a connector that asks a question before it connects.
type asker struct {
	connector
	question profiles.Prompt
}

func (a *asker) Connect(ctx context.Context, p *profiles.Profile, via profiles.DialFunc, ask profiles.Prompter) (profiles.Transport, error) {
	if ask == nil {
		return nil, errors.Join(profiles.ErrAuth, errors.New("nobody to ask"))
	}
	answer, err := ask.Ask(ctx, a.question)
	if err == nil && answer != "sesame" {
		err = errors.New("wrong answer")
	}
	if err != nil {
		return nil, errors.Join(profiles.ErrAuth, err)
	}
	return a.connector.Connect(ctx, p, via, ask)
}

// handler is a client that has become the handler of prompts.
type handler struct {
	conn  *control.Client
	asked chan control.Prompt
	say   chan string // "": declines
	done  chan error
}

func (b *bench) handler() *handler {
	b.t.Helper()
	h := &handler{conn: b.dial(), asked: make(chan control.Prompt, 16), say: make(chan string, 16), done: make(chan error, 1)}
	ready := make(chan struct{})
	go func() {
		h.done <- h.conn.Call(context.Background(), control.OpAuthHandler, nil, nil,
			func(json.RawMessage) error { close(ready); return nil },
			func(q control.Prompt) (string, error) {
				h.asked <- q
				if text := <-h.say; text != "" {
					return text, nil
				}
				return "", errors.New("declined")
			})
	}()
	b.t.Cleanup(func() { h.conn.Close(); close(h.say) })
	<-ready
	return h
}

func (h *handler) leave(t *testing.T) {
	t.Helper()
	h.conn.Close()
	if err := within(t, h.done); err == nil {
		t.Error("the call of a handler that left has succeeded")
	}
}

// A flow waits for the answer of whoever has become the handler of prompts; all flows
// that wait for the same share it, a refusal too.
func TestAuthHandler(t *testing.T) {
	for name, answer := range map[string]string{"answered": "sesame", "refused": ""} {
		t.Run(name, func(t *testing.T) {
			tunnels := &asker{question: profiles.Prompt{Text: "Passphrase? ", Secret: true}}
			b := begin(t, "", `<rule ports="1" action="TUNNEL" profile-id="gw"/><rule ports="2" action="TUNNEL" profile-id="plain"/>`,
				func(o *Options) { o.Tunnels = tunnels })
			c := b.capture(cgroupArgs())
			s := b.captured.source(t, "abcd")
			within(t, c.rows)
			h := b.handler()
			var flows []*capturetest.Attempt
			for _, to := range []string{"192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1", "192.0.2.4:2", "192.0.2.5:2"} {
				flows = append(flows, capturetest.NewAttempt(to))
				s.Offer(flows[len(flows)-1])
			}
			if q := within(t, h.asked); q != (control.Prompt{Text: "Passphrase? ", Secret: true}) {
				t.Errorf("asked %+v", q)
			}
			// Both profiles ask the same: wait until both do before there is an answer.
			eventually(t, "both ask", func() bool {
				b.prompts.mu.Lock()
				defer b.prompts.mu.Unlock()
				for _, o := range b.prompts.open {
					return o.waiters == 2
				}
				return false
			})
			h.say <- answer
			for _, f := range flows {
				got := f.Outcome()
				if answer != "" && !got.Admitted || answer == "" && got.Refusal != capture.Unreachable {
					t.Errorf("outcome %+v", got)
				}
				if got.Admitted {
					talk(t, f)
				}
			}
			if n := len(h.asked); n != 0 {
				t.Errorf("asked %d times more", n)
			}
			want := "carried"
			if answer == "" {
				want = "auth-failed"
			}
			for _, r := range b.records(len(flows)) {
				if r["reason"] != want {
					t.Errorf("record %v", r)
				}
			}
		})
	}
}

// The newest handler is asked; where it goes away the one before, and where nobody is
// left nobody. One who comes does not have to wait for the next attempt.
func TestHandlersComeAndGo(t *testing.T) {
	b := begin(t, "", tunnel, func(o *Options) { o.Tunnels = &asker{question: profiles.Prompt{Text: "yes? ", YesNo: true}} })
	c := b.capture(cgroupArgs())
	s := b.captured.source(t, "abcd")
	within(t, c.rows)
	offer := func() *capturetest.Attempt {
		a := capturetest.NewAttempt("192.0.2.7:23")
		s.Offer(a)
		return a
	}
	if got := offer().Outcome(); got.Refusal != capture.Unreachable { // and rests for seconds
		t.Errorf("nobody there: %+v", got)
	}
	first := b.handler()
	second := b.handler()
	flow := offer()
	within(t, second.asked)
	second.leave(t)
	within(t, first.asked)
	first.say <- "sesame"
	if got := flow.Outcome(); !got.Admitted {
		t.Errorf("outcome %+v", got)
	}
	talk(t, flow)
	first.leave(t)
	eventually(t, "nobody is left", func() bool { return b.prompts.prompter() == nil })
}

// Where there is no handler the askpass program is asked, one question at a time.
func TestAskpass(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "askpass")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"+
		"mkdir "+dir+"/busy || exit 1\nprintf '%s\\n' \"$1\" >>"+dir+"/asked\ncase $1 in no*) rmdir "+dir+"/busy; exit 1;; esac\necho sesame\nrmdir "+dir+"/busy\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	p := newPrompts(script)
	if p.prompter() == nil {
		t.Fatal("nobody can be asked")
	}
	var all sync.WaitGroup
	for _, text := range []string{"one", "two", "three", "two"} {
		all.Go(func() {
			if answer, err := p.Ask(t.Context(), profiles.Prompt{Text: text}); answer != "sesame" || err != nil {
				t.Errorf("%s: %q, %v", text, answer, err)
			}
		})
	}
	all.Wait()
	if _, err := p.Ask(t.Context(), profiles.Prompt{Text: "no"}); err == nil {
		t.Error("a refusal is an answer")
	}
	text, err := os.ReadFile(filepath.Join(dir, "asked"))
	if n := strings.Count(string(text), "\n"); err != nil || n < 4 || n > 5 {
		t.Errorf("asked %q, %v", text, err)
	}
	for env, want := range map[string]string{
		"":                          "",
		"DISPLAY":                   "/x/askpass",
		"WAYLAND_DISPLAY":           "/x/askpass",
		"SSH_ASKPASS_REQUIRE=force": "/x/askpass",
		"SSH_ASKPASS_REQUIRE=never": "",
	} {
		name, value, given := strings.Cut(env, "=")
		got := askpassOf(func(key string) string {
			switch {
			case key == "SSH_ASKPASS":
				return "/x/askpass"
			case key == name && given:
				return value
			case key == name, key == "DISPLAY" && value == "never":
				return ":0"
			}
			return ""
		})
		if got != want {
			t.Errorf("with %s: %q, want %q", env, got, want)
		}
	}
}

// A question that nobody waits for any more stays on the terminal: who asks the same
// gets its answer, and what else is asked comes after it.
func TestQuestionThatStays(t *testing.T) {
	b := begin(t, "", tunnel, nil)
	h := b.handler()
	ctx, leave := context.WithCancel(t.Context())
	left := make(chan error, 1)
	q := profiles.Prompt{Text: "Password? ", Secret: true}
	go func() {
		_, err := b.prompts.Ask(ctx, q)
		left <- err
	}()
	within(t, h.asked)
	leave()
	if err := within(t, left); !errors.Is(err, context.Canceled) {
		t.Errorf("who left: %v", err)
	}
	answers := make(chan string, 2)
	ask := func(q profiles.Prompt) {
		answer, _ := b.prompts.Ask(t.Context(), q)
		answers <- answer
	}
	go ask(q)
	eventually(t, "somebody waits again", func() bool {
		b.prompts.mu.Lock()
		defer b.prompts.mu.Unlock()
		return b.prompts.open[q] != nil && b.prompts.open[q].waiters == 1
	})
	other := profiles.Prompt{Text: "User name? "}
	go ask(other)
	h.say <- "sesame"
	if got := within(t, answers); got != "sesame" {
		t.Errorf("answered %q", got)
	}
	if got := within(t, h.asked); got.Text != other.Text {
		t.Errorf("asked %+v", got)
	}
	h.say <- "ann"
	if got := within(t, answers); got != "ann" {
		t.Errorf("answered %q", got)
	}
}
