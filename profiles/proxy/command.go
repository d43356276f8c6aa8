package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sshbroker/profiles"
)

const (
	commandSays = 1 << 10         // what is kept of a command's standard error, in bytes
	commandEnds = 2 * time.Second // how long it may take to end by itself
)

// command is a connection that a program carries between its standard input and output
// and the server.
type command struct {
	net.Conn
	process *os.Process
	said    *beginning
	ended   chan struct{} // closed when it has ended
	err     error         // how; read after ended
	once    sync.Once
}

// Command starts a command line in a shell of its own process group, as ProxyCommand of
// ssh_config(5) has it, and returns the connection that it carries. Closing that ends
// the command, within seconds. Its standard error is in the errors of Read.
func Command(ctx context.Context, line string) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%w: %w", profiles.ErrConnect, context.Cause(ctx))
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("ProxyCommand: %w", os.NewSyscallError("socketpair", err))
	}
	theirs := os.NewFile(uintptr(fds[1]), "ProxyCommand")
	defer theirs.Close()
	ours := os.NewFile(uintptr(fds[0]), "ProxyCommand")
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		return nil, fmt.Errorf("ProxyCommand: %w", err)
	}
	c := &command{Conn: conn, said: &beginning{}, ended: make(chan struct{})}
	cmd := exec.Command("/bin/sh", "-c", "exec "+line)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, theirs, c.said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = time.Second // of a grandchild that holds standard error
	if err := cmd.Start(); err != nil {
		conn.Close()
		return nil, fmt.Errorf("ProxyCommand: %w: %w", profiles.ErrConnect, err)
	}
	c.process = cmd.Process
	go func() {
		c.err = cmd.Wait()
		close(c.ended)
	}()
	return c, nil
}

// Read tells the end of a command that has failed from the end of a connection.
func (c *command) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n == 0 && (errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)) {
		err = c.why(err)
	}
	return n, err
}

func (c *command) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if errors.Is(err, syscall.EPIPE) {
		err = c.why(err)
	}
	return n, err
}

// why is err, of a connection whose other end is closed, unless the command has failed.
func (c *command) why(err error) error {
	select {
	case <-c.ended:
	case <-time.After(commandEnds): // it closed its end and goes on
		return err
	}
	if said := c.said.String(); said != "" || c.err != nil {
		return fmt.Errorf("ProxyCommand ended: %v: %q", c.err, profiles.RemoteText(said, commandSays, false))
	}
	return err
}

// Close ends the command: by the end of its input, by SIGHUP as ssh does, by SIGKILL.
func (c *command) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		c.signal(syscall.SIGHUP)
		select {
		case <-c.ended:
		case <-time.After(commandEnds):
			c.signal(syscall.SIGKILL)
			<-c.ended
		}
	})
	return err
}

// signal reaches the command's group, unless it has ended: then the number may be
// another group's.
func (c *command) signal(s syscall.Signal) {
	select {
	case <-c.ended:
	default:
		_ = syscall.Kill(-c.process.Pid, s)
	}
}

// beginning keeps the first bytes that are written to it.
type beginning struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *beginning) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buf.Write(p[:min(len(p), commandSays-b.buf.Len())])
	return len(p), nil
}

func (b *beginning) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(bytes.TrimSpace(b.buf.Bytes()))
}
