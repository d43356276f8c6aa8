package prompt

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/broker/control"
)

// Person is whoever sits at the terminal, or the program that SSH_ASKPASS names where
// there is no terminal. A nil Person answers nothing. Safe for concurrent use.
type Person struct {
	ctx context.Context // its end takes a question back

	mu      sync.Mutex
	left    bool
	current sync.WaitGroup
}

// NewPerson returns the person of this process. The end of ctx takes questions back.
func NewPerson(ctx context.Context) *Person { return &Person{ctx: ctx} }

// Leave has nobody asked any more. It returns when the terminal is as it was.
func (p *Person) Leave() {
	p.mu.Lock()
	p.left = true
	p.mu.Unlock()
	p.current.Wait()
}

// Ask is a control.Prompter.
func (p *Person) Ask(q control.Prompt) (string, error) {
	if p == nil {
		return "", control.ErrNoPrompt
	}
	p.mu.Lock()
	if p.left || p.ctx.Err() != nil {
		p.mu.Unlock()
		return "", control.ErrNoPrompt
	}
	p.current.Add(1)
	p.mu.Unlock()
	defer p.current.Done()

	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if program := os.Getenv("SSH_ASKPASS"); program != "" &&
		(err != nil || os.Getenv("SSH_ASKPASS_REQUIRE") == "force") {
		if err == nil {
			tty.Close()
		}
		return Program(p.ctx, program, q)
	}
	if err != nil {
		return "", control.ErrNoPrompt
	}
	defer tty.Close()
	defer context.AfterFunc(p.ctx, func() { _ = tty.SetReadDeadline(time.Unix(1, 0)) })()
	return askTerminal(tty, q)
}

func askTerminal(tty *os.File, q control.Prompt) (string, error) {
	text := strings.TrimRight(q.Text, "\n")
	lines := bufio.NewReader(tty)
	for {
		fmt.Fprintf(tty, "%s ", text)
		answer, err := readAnswer(tty, lines, q.Secret)
		if err != nil {
			return "", fmt.Errorf("read the answer: %w", err)
		}
		if q.Secret {
			return answer, nil
		}
		answer = strings.TrimSpace(answer)
		if !q.YesNo {
			return answer, nil
		}
		switch lower := strings.ToLower(answer); {
		case lower == "yes" || lower == "no":
			return lower, nil
		case strings.HasPrefix(answer, "SHA256:"): // the fingerprint, for the broker to compare
			return answer, nil
		}
		text = "Please type yes or no:"
	}
}

// readAnswer reads a line, which is not shown if it is secret. Unlike a read of the
// bare descriptor, this one can be given up.
func readAnswer(tty *os.File, lines *bufio.Reader, secret bool) (string, error) {
	if secret {
		restore, err := hideTyping(tty)
		if err != nil {
			return "", err
		}
		defer restore()
	}
	line, err := lines.ReadString('\n')
	return strings.TrimRight(line, "\r\n"), err
}

// hideTyping turns the terminal's echo off until restore is called.
func hideTyping(tty *os.File) (restore func(), err error) {
	raw, err := tty.SyscallConn()
	if err != nil {
		return nil, err
	}
	var saved *unix.Termios
	cerr := raw.Control(func(fd uintptr) {
		if saved, err = unix.IoctlGetTermios(int(fd), unix.TCGETS); err != nil {
			return
		}
		hidden := *saved
		hidden.Lflag = hidden.Lflag&^unix.ECHO | unix.ICANON | unix.ISIG
		hidden.Iflag |= unix.ICRNL
		err = unix.IoctlSetTermios(int(fd), unix.TCSETS, &hidden)
	})
	if err = errors.Join(cerr, err); err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	return func() {
		_ = raw.Control(func(fd uintptr) { _ = unix.IoctlSetTermios(int(fd), unix.TCSETS, saved) })
		fmt.Fprintln(tty) // the one that was typed was not shown
	}, nil
}

// Program runs an askpass program as ssh(1) does: the question is its argument,
// the answer its output, and its failure a refusal.
func Program(ctx context.Context, program string, q control.Prompt) (string, error) {
	cmd := exec.CommandContext(ctx, program, q.Text)
	cmd.Env = os.Environ()
	if q.YesNo {
		cmd.Env = append(cmd.Env, "SSH_ASKPASS_PROMPT=confirm")
	}
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return "", errors.New("the askpass program declined")
	}
	if err != nil {
		return "", fmt.Errorf("askpass program: %w", err)
	}
	answer := strings.TrimRight(string(out), "\r\n")
	if q.YesNo && answer == "" {
		return "yes", nil // a confirmation answers by its exit status
	}
	return answer, nil
}
