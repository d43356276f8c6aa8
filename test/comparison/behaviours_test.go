package comparison

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"sshbroker/test/netns"
)

// behaviour is one line of the table.
type behaviour struct {
	name string
	// truth is what a program on the bastion sees, which the test tries there where
	// onBastion says so; else what one would want.
	truth     string
	onBastion bool
	see       func(t *testing.T, c *client) string
}

// client is a world with its way open.
type client struct {
	*world
	way  *way
	on   *netns.Machine
	kill func(t *testing.T)
}

// command is args, run by Alice as the way has it. Shells are /bin/sh: to tsocks and
// torsocks the word sh is one of their own.
func (c *client) command(args ...string) netns.Cmd {
	cmd := netns.Cmd{Args: args, User: c.Alice, Dir: c.Alice.Home}
	if c.way.wrap != nil {
		cmd.Args, cmd.Env = c.way.wrap(c.world, args)
	}
	return cmd
}

// probe is the command line of probe.py.
func (c *client) probe(what string, host string, port uint16) []string {
	return []string{c.python, c.script, what, host, fmt.Sprint(port)}
}

// run runs a command and returns the line that it printed last, with what the wire saw.
func (c *client) run(t *testing.T, cmd netns.Cmd) string {
	t.Helper()
	wire := c.Client.Capture(t, "to-server")
	r := c.on.Run(t, cmd)
	lines := strings.Split(strings.TrimSpace(r.Stdout), "\n")
	said := lines[len(lines)-1]
	if said == "" {
		t.Logf("%s: %v said nothing: %v", c.way.name, cmd.Args, r)
		said = fmt.Sprintf("ends with code %d", r.Code)
	}
	return said + c.seen(t, wire)
}

// seen is what stands behind an outcome where something went in clear.
func (c *client) seen(t *testing.T, wire *netns.Wire) string {
	if c.inClear(t, wire) {
		return " (**in clear**)"
	}
	return ""
}

// try runs the probe.
func (c *client) try(t *testing.T, what, host string, port uint16) string {
	t.Helper()
	return c.run(t, c.command(c.probe(what, host, port)...))
}

var behaviours = []behaviour{
	{"connect() to a closed port", "ECONNREFUSED", true, func(t *testing.T, c *client) string {
		return c.try(t, "connect", c.Inner.Addr4.String(), closedPort)
	}},
	{"connect() to an unreachable host", "EHOSTUNREACH", true, func(t *testing.T, c *client) string {
		return c.try(t, "connect", unreachable.String(), greetingPort)
	}},
	{"a server that speaks first", theGreeting, true, func(t *testing.T, c *client) string {
		return c.try(t, "greeting", c.Inner.Addr4.String(), greetingPort)
	}},
	{"300 kB after our end of file", "all of it, EOF", true, func(t *testing.T, c *client) string {
		return c.try(t, "half", c.Inner.Addr4.String(), halfPort)
	}},
	{"the server resets: the program sees", "ECONNRESET", true, func(t *testing.T, c *client) string {
		return c.try(t, "reset-far", c.Inner.Addr4.String(), resetPort)
	}},
	{"the program resets: the server sees", "a reset", true, func(t *testing.T, c *client) string {
		if said := c.try(t, "reset-own", c.Inner.Addr4.String(), ownPort); said != "reset" {
			return said
		}
		return <-c.ends
	}},
	{"a name that only the bastion knows", theGreeting, true, func(t *testing.T, c *client) string {
		return c.try(t, "greeting", "db.internal", greetingPort)
	}},
	{"that name asked for in clear", "no", false, func(t *testing.T, c *client) string {
		before := len(c.asked.Asked())
		c.try(t, "greeting", "db.internal", greetingPort)
		if len(c.asked.Asked()) > before {
			return "**yes**"
		}
		return "no"
	}},
	{"IPv6", theGreeting, true, func(t *testing.T, c *client) string {
		return c.try(t, "greeting", c.Inner.Addr6.String(), greetingPort)
	}},
	{"a static binary", "ok", true, func(t *testing.T, c *client) string {
		at := netip.AddrPortFrom(c.Inner.Addr4, greetingPort).String()
		said := c.run(t, c.command(c.Testprog, "connect", "-nonblock", "-timeout", "3s", at))
		return strings.Join(append(strings.Fields(said)[1:2], strings.Fields(said)[3:]...), " ")
	}},
	{"a set-uid program", theGreeting + ", with its rights", false, func(t *testing.T, c *client) string {
		python := filepath.Join(c.Net.Dir, "set-uid-python")
		content, err := os.ReadFile(c.python)
		if err != nil {
			t.Fatal(err)
		}
		for _, err := range []error{os.WriteFile(python, content, 0o755), os.Chown(python, int(c.Bob.UID), -1), os.Chmod(python, 0o755|os.ModeSetuid)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		line := func(what string) netns.Cmd {
			return c.command("/bin/sh", "-c", strings.Join(append([]string{python}, c.probe(what, c.Inner.Addr4.String(), greetingPort)[1:]...), " "))
		}
		rights := ", with its rights"
		if uid := c.run(t, line("uid")); uid != strconv.Itoa(int(c.Bob.UID)) {
			rights = ", without its rights"
		}
		return c.run(t, line("greeting")) + rights
	}},
	{"UDP", "sent, or refused", false, func(t *testing.T, c *client) string {
		return c.try(t, "udp", c.Inner.Addr4.String(), greetingPort)
	}},
	{"another user's program", "as without", false, func(t *testing.T, c *client) string {
		cmd := netns.Cmd{Args: c.probe("greeting", c.Inner.Addr4.String(), greetingPort), User: c.Bob}
		if c.run(t, cmd) == theGreeting {
			return "goes by the tunnel too"
		}
		return "as without"
	}},
	{"the command's exit status, and its death", "7, 137", false, func(t *testing.T, c *client) string {
		if c.way.wrap == nil {
			return "–"
		}
		var codes []string
		for _, script := range []string{"exit 7", "kill -9 $$"} {
			r := c.Client.Run(t, c.command("/bin/sh", "-c", script))
			code := strconv.Itoa(r.Code)
			if r.Signal != 0 { // it has become the command
				code = strconv.Itoa(128 + int(r.Signal))
			}
			codes = append(codes, code)
		}
		return strings.Join(codes, ", ")
	}},
	// Last, as there is no tunnel afterwards.
	{"what carries the tunnel is killed: the next connect()", "not in clear", false, func(t *testing.T, c *client) string {
		stdin, typing, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer stdin.Close()
		defer typing.Close()
		once := strings.Join(c.probe("greeting", c.Inner.Addr4.String(), greetingPort), " ")
		cmd := c.command("/bin/sh", "-c", once+"; read -r go; "+once)
		cmd.Stdin = stdin
		p := c.Client.Start(t, cmd)
		p.WaitFor(t, theGreeting)
		c.kill(t)
		wire := c.Client.Capture(t, "to-server")
		if _, err := typing.WriteString("go\n"); err != nil {
			t.Fatal(err)
		}
		r := p.Wait(t)
		lines := strings.Split(strings.TrimSpace(r.Stdout), "\n")
		if len(lines) < 2 {
			t.Fatalf("it said only %v", r)
		}
		return lines[len(lines)-1] + c.seen(t, wire)
	}},
}
