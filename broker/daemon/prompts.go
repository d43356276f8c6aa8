package daemon

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"

	"sshbroker/broker/control"
	"sshbroker/broker/prompt"
	"sshbroker/profiles"
)

// prompts puts the questions of flows to a person: to the client that has become the
// handler of prompts last, else through the askpass program of the broker's own
// environment. The same question is put once, however many flows wait for its answer,
// and a refusal is a refusal to all of them.
type prompts struct {
	askpass string        // "": none
	turn    chan struct{} // a person is asked one thing at a time

	mu       sync.Mutex
	handlers []*control.Call
	open     map[profiles.Prompt]*question
}

// question is one that is being put.
type question struct {
	done    chan struct{}
	answer  string
	err     error
	waiters int
	shown   bool               // at a terminal, from where it cannot be taken back
	alone   context.CancelFunc // nobody waits any more
}

func newPrompts(askpass string) *prompts {
	return &prompts{askpass: askpass, turn: make(chan struct{}, 1), open: make(map[profiles.Prompt]*question)}
}

// askpassOf is the program that a broker may ask by, as ssh(1) chooses it for a process
// without a terminal.
func askpassOf(getenv func(string) string) string {
	if getenv("SSH_ASKPASS_REQUIRE") == "never" {
		return ""
	}
	if getenv("DISPLAY") == "" && getenv("WAYLAND_DISPLAY") == "" && getenv("SSH_ASKPASS_REQUIRE") != "force" {
		return ""
	}
	return getenv("SSH_ASKPASS")
}

// prompter is who can be asked now, nil where that is nobody.
func (p *prompts) prompter() profiles.Prompter {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.handlers) == 0 && p.askpass == "" {
		return nil
	}
	return p
}

// Ask puts a question, or waits for the answer to the same one.
func (p *prompts) Ask(ctx context.Context, q profiles.Prompt) (string, error) {
	p.mu.Lock()
	o := p.open[q]
	if o == nil {
		asking, alone := context.WithCancel(context.Background())
		o = &question{done: make(chan struct{}), alone: alone}
		p.open[q] = o
		go func() {
			o.answer, o.err = p.put(asking, o, q)
			p.mu.Lock()
			if p.open[q] == o {
				delete(p.open, q)
			}
			p.mu.Unlock()
			alone()
			close(o.done)
		}()
	}
	o.waiters++
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if o.waiters--; o.waiters == 0 {
			if p.open[q] == o && !o.shown { // who comes now asks anew
				delete(p.open, q)
			}
			o.alone()
		}
	}()
	select {
	case <-o.done:
		return o.answer, o.err
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// put asks the newest handler, or the next one where that goes away, or the program.
// What a terminal shows stays until it is answered, and whoever asks the same meanwhile
// gets that answer.
func (p *prompts) put(ctx context.Context, o *question, q profiles.Prompt) (string, error) {
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	asked := control.Prompt{Text: q.Text, Secret: q.Secret, YesNo: q.YesNo}
	for {
		call := p.show(ctx, o)
		if call == nil {
			break
		}
		answer, err := call.Ask(context.Background(), asked) // it ends with the call
		if !errors.Is(err, control.ErrClientGone) && !errors.Is(err, control.ErrNoPrompt) {
			return answer, err
		}
		p.leave(call)
	}
	if p.askpass == "" {
		return "", control.ErrNoPrompt
	}
	return prompt.Program(ctx, p.askpass, asked)
}

// show returns the handler that is to show a question, nil where there is none or
// nobody waits for the answer any more.
func (p *prompts) show(ctx context.Context, o *question) *control.Call {
	p.mu.Lock()
	defer p.mu.Unlock()
	o.shown = len(p.handlers) > 0 && ctx.Err() == nil
	if !o.shown {
		return nil
	}
	return p.handlers[len(p.handlers)-1]
}

// waiting counts the questions that wait for an answer.
func (p *prompts) waiting() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.open)
}

func (p *prompts) join(call *control.Call) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.handlers = append(p.handlers, call)
}

func (p *prompts) leave(call *control.Call) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.handlers = slices.DeleteFunc(p.handlers, func(c *control.Call) bool { return c == call })
}

// handleAuthHandler makes a client the handler of prompts for as long as it stays.
func (d *Daemon) handleAuthHandler(ctx context.Context, call *control.Call) error {
	d.prompts.join(call)
	defer d.prompts.leave(call)
	if err := call.Send(control.AuthHandlerRow{Ready: true}); err != nil {
		return err
	}
	d.pool.Hasten() // what failed for want of an answer has one now
	<-ctx.Done()
	return ctx.Err()
}

// newPrompts says who is asked for flows. Of the broker of the whole host only handlers are: it
// has nobody's display.
func (d *Daemon) newPrompts() *prompts {
	if d.System {
		return newPrompts("")
	}
	return newPrompts(askpassOf(os.Getenv))
}
