package docs

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"sshbroker/test/sut"
)

// shell is how one is told to load the completions of a directory, and to write the line
// that is being edited to a FIFO: when it is ready for the first, and on Control-X
// Control-T (Control-S would stop the output).
type shell struct {
	name, pkg string
	args      []string
	file      string // below the home directory, read at the start
	setup     string // of that file; DIR and FIFO stand for the two
}

var shells = []shell{
	{"bash", "bash-completion", []string{"--rcfile", ".rc", "-i"}, ".rc", `
. /usr/share/bash-completion/bash_completion
for f in DIR/*.bash; do . "$f"; done
PROMPT_COMMAND='echo ready >FIFO; PROMPT_COMMAND='
bind -x '"\C-x\C-t": printf "%s\n" "$READLINE_LINE" >FIFO'
bind 'set completion-query-items 0'
bind 'set page-completions off'
`},
	{"zsh", "zsh", []string{"-i"}, ".zshrc", `
fpath=(DIR $fpath)
autoload -U compinit && compinit -u -D
show() { print -r -- "$BUFFER" >FIFO }
zle -N show
bindkey '^X^T' show
LISTMAX=1000
precmd() { print ready >FIFO; unfunction precmd }
`},
	{"fish", "fish", []string{"-i"}, ".config/fish/config.fish", `
set fish_complete_path DIR $fish_complete_path
set fish_greeting
function fish_prompt
    if not set -q told
        set -g told yes
        echo ready >FIFO
    end
end
bind \cx\ct 'commandline >FIFO'
`},
}

// TestCompletionsInShells types at the prompt of each shell, presses Tab, and looks at the
// line: with a broker that runs, and a file with one rule and one profile.
func TestCompletionsInShells(t *testing.T) {
	lines := []struct{ typed, want string }{
		{"ssh-broker-ctl statu", "ssh-broker-ctl status"},
		{"ssh-broker-ctl status --shor", "ssh-broker-ctl status --short"},
		{"ssh-broker-ctl list-prof", "ssh-broker-ctl list-profiles"},
		{"ssh-broker-ctl list-profiles bas", "ssh-broker-ctl list-profiles bastion"},
		{"ssh-broker-ctl rule rem", "ssh-broker-ctl rule remove"},
		{"ssh-broker-ctl rule remove ", "ssh-broker-ctl rule remove 1"},
		{"ssh-broker-ctl rule add --action BL", "ssh-broker-ctl rule add --action BLOCK"},
		{"ssh-broker-ctl kubeconfig unse", "ssh-broker-ctl kubeconfig unset"},
		{"ssh-broker --foregr", "ssh-broker --foreground"},
		{"ssh-captured --rele", "ssh-captured --release"},
		{"ssh-gateway ca rev", "ssh-gateway ca revoke"},
		{"ssh-capture --allow", "ssh-capture --allow-direct"},
		{"ssh-capture --udp re", "ssh-capture --udp refuse"},
		// Behind the options stands another command line.
		{"ssh-capture --udp refuse ssh-broker-ctl statu", "ssh-capture --udp refuse ssh-broker-ctl status"},
	}
	dir, err := filepath.Abs(filepath.Join(root, completions))
	if err != nil {
		t.Fatal(err)
	}
	sut.Program(t, "ssh-gateway") // beside the others, on the PATH
	for _, s := range shells {
		t.Run(s.name, func(t *testing.T) {
			path, err := exec.LookPath(s.name)
			if s.name == "bash" && err == nil {
				_, err = os.Stat("/usr/share/bash-completion/bash_completion")
			}
			if err != nil {
				skip(t, "needs "+s.name+" (Debian package "+s.pkg+")")
			}
			h := newHome(t)
			h.write(t, ".ssh2/ssh-broker-config.xml", whole(`<profiles><profile id="bastion" host="bastion.example.com" user="me"/></profiles>
<filter-engine><rule ports="23" action="TUNNEL" profile-id="bastion"/></filter-engine>`))
			if out, err := h.command("ssh-broker-ctl start").CombinedOutput(); err != nil {
				t.Fatalf("start the broker: %v\n%s", err, out)
			}
			fifo := filepath.Join(h.dir, "lines")
			if err := unix.Mkfifo(fifo, 0o600); err != nil {
				t.Fatal(err)
			}
			told, err := os.OpenFile(fifo, os.O_RDWR, 0) // both ends, so that it never ends
			if err != nil {
				t.Fatal(err)
			}
			defer told.Close()
			h.write(t, s.file, strings.NewReplacer("DIR", dir, "FIFO", fifo).Replace(s.setup))

			cmd := exec.Command(path, s.args...)
			cmd.Dir = h.dir
			cmd.Env = append(h.env, "TERM=xterm", "ZDOTDIR="+h.dir, "XDG_CONFIG_HOME="+filepath.Join(h.dir, ".config"), "XDG_DATA_HOME="+h.dir)
			terminal, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 50, Cols: 200})
			if err != nil {
				t.Fatal(err)
			}
			screen := make(chan string)
			go func() {
				var said strings.Builder
				_, _ = bufio.NewReader(terminal).WriteTo(&said) // until it ends, which is an error of a pty
				screen <- said.String()
			}()
			defer func() {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
				terminal.Close()
				if text := <-screen; t.Failed() {
					t.Logf("on the screen: %q", text)
				}
			}()
			reader := bufio.NewReader(told)
			next := func() string {
				t.Helper()
				if err := told.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
					t.Fatal(err)
				}
				line, err := reader.ReadString('\n')
				if err != nil {
					t.Fatalf("the shell does not answer: %v", err)
				}
				return strings.TrimSpace(line)
			}
			if got := next(); got != "ready" {
				t.Fatalf("it says %q", got)
			}
			for _, line := range lines {
				// Control-U takes away what the line before left.
				if _, err := terminal.WriteString("\x15" + line.typed + "\t\x18\x14"); err != nil {
					t.Fatal(err)
				}
				if got := next(); got != line.want {
					t.Errorf("%q becomes %q, want %q", line.typed, got, line.want)
				}
			}
		})
	}
}
