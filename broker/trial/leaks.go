package trial

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"

	"sshbroker/capture/command"
	"sshbroker/capture/leak"
)

// NoBackend makes the probes without a capture: each that is possible has to be a leak.
const NoBackend = "none"

// LeakOptions say what is tried. Only Programs.Capture and Inside are required.
type LeakOptions struct {
	Programs
	Inside       []string     // the command that calls leak.Serve, to which the descriptor's number is added
	Backend      string       // of ssh-capture, or NoBackend; "": auto
	UDP          string       // of ssh-capture; "": refuse
	CloseSockets bool         // as ssh-capture --close-sockets
	Probes       []leak.Probe // nil: all
	Found        func(leak.Finding)
}

// Leaks makes the probes in a capture whose rules send everything to a tunnel that is down,
// and calls Found for each. It returns the backend that was in force. The error says why
// there is no capture to try, or that it broke down; what was found till then counts.
func Leaks(ctx context.Context, o LeakOptions) (backend string, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if o.Probes == nil {
		o.Probes = leak.All()
	}
	field, err := leak.Survey()
	if err != nil {
		return "", err
	}
	bequests, err := leak.Bequeath(field, o.Probes)
	if err != nil {
		return "", err
	}
	defer func() {
		for _, b := range bequests {
			b.Close()
		}
	}()
	ours, theirs, err := command.Pair("probes")
	if err != nil {
		return "", err
	}
	defer ours.Close()
	defer theirs.Close()

	cmd, end, err := o.command(ctx)
	if err != nil {
		return "", err
	}
	defer end()
	cmd.ExtraFiles = []*os.File{theirs} // number 3
	for i, b := range bequests {
		b.FD = 4 + i
		cmd.ExtraFiles = append(cmd.ExtraFiles, b.File)
	}
	words := new(said)
	cmd.Stderr = words
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("leak test: %w", err)
	}
	theirs.Close()
	defer func() {
		cancel()
		_ = cmd.Wait()
	}()
	remote, elsewhere, err := leak.NewRemote(ctx, ours)
	if err != nil {
		cancel()
		_ = cmd.Wait()
		return "", fmt.Errorf("leak test: there is no capture to try: %w", because(err, words))
	}
	defer remote.Close()
	field.Namespace = elsewhere
	backend = "cgroup"
	switch {
	case o.Backend == NoBackend:
		backend = NoBackend
	case elsewhere:
		backend = "namespace"
	}
	if o.Found == nil {
		o.Found = func(leak.Finding) {}
	}
	if err := leak.Run(ctx, field, o.Probes, remote.Do, bequests, o.Found); err != nil {
		return backend, fmt.Errorf("leak test: %w", because(err, words))
	}
	return backend, remote.Done()
}

// because is the program's own words where it has said why.
func because(err error, words *said) error {
	if text := words.String(); text != "" && !errors.Is(err, context.Canceled) {
		return errors.New(text)
	}
	return err
}

// command is the one in a capture, and what ends all that was made for it.
func (o LeakOptions) command(ctx context.Context) (*exec.Cmd, func(), error) {
	inside := append(slices.Clone(o.Inside), "3")
	if o.Backend == NoBackend {
		return exec.CommandContext(ctx, inside[0], inside[1:]...), func() {}, nil
	}
	down, err := openDown()
	if err != nil {
		return nil, nil, err
	}
	t, err := Open(ctx, o.Programs, down.rules())
	if err != nil {
		down.Close()
		return nil, nil, err
	}
	options := []string{"-l"}
	if o.Backend != "" {
		options = append(options, "--backend="+o.Backend)
	}
	if o.UDP != "" {
		options = append(options, "--udp="+o.UDP)
	}
	if o.CloseSockets {
		options = append(options, "--close-sockets")
	}
	end := func() {
		_ = t.Close()
		down.Close()
	}
	return t.Command(ctx, options, inside...), end, nil
}

// down is the port of a tunnel that is down: it is ours, and lets go of who connects.
type down struct {
	net.Listener
	port int
}

func openDown() (*down, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("leak test: %w", err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	return &down{l, l.Addr().(*net.TCPAddr).Port}, nil
}

func (d *down) rules() string {
	return configuration(d.port, "", `
    <rule host=".*" action="TUNNEL" profile-id="down" pseudo-ip="yes"/>
    <rule action="TUNNEL" profile-id="down"/>`)
}

// configuration has the profile "down", further ones and those rules. It asks nobody, and
// knows no proxy.
func configuration(port int, profiles, rules string) string {
	return `<?xml version="1.0" encoding="UTF-8"?>
<secsh-broker version="1.0">
  <profiles>
    <profile id="down" name="down" host="127.0.0.1" port="` + strconv.Itoa(port) + `" user="nobody">
      <proxy ruleset=""/>
    </profile>` + profiles + `
  </profiles>
  <filter-engine>` + rules + `
  </filter-engine>
</secsh-broker>
`
}
