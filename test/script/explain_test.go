package script

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"sshbroker/broker/control"
)

// TestExplainLiveConnection: what decided a connection that is open, and after an edit
// of the rules what would now.
func TestExplainLiveConnection(t *testing.T) {
	aboutNamespaces(t) // else the kernel carries what goes in clear, and no broker lists it
	eachAccount(t, func(t *testing.T, p *place) {
		path := p.configure(direct)
		host, port, _ := strings.Cut(p.echo(), ":")
		p.run("ssh-broker").require(t, 0)
		cmd := p.command("ssh-capture", "-l", "bash", "-c", `exec 4<>/dev/tcp/`+host+`/`+port+`
			echo hello >&4; read answer <&4; echo "$answer"; read line; exec 4>&-`)
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		start(t, cmd).line("hello")

		var channel control.ChannelRow
		if err := json.Unmarshal([]byte(p.ctl("-s", "list-channels")), &channel); err != nil {
			t.Fatal(err)
		}
		id := strconv.FormatUint(channel.ID, 10)
		then := []string{"DIRECT by rule 1, " + path + ":4\n", "/bash\n", "to           " + host + ":" + port + "\n", "of configuration 1; "}
		explain := func(want ...string) {
			t.Helper()
			out := p.ctl("explain", "--flow", id)
			for _, w := range append(then, want...) {
				if !strings.Contains(out, w) {
					t.Errorf("%q is missing in:\n%s", w, out)
				}
			}
		}
		explain("which is in force\n")
		p.ctl("rule", "add", "--ports", port, "--action", "BLOCK", "--before", "1", "--reload")
		explain("now 2 is in force\n", "BLOCK by rule 1, "+path+":4\n")
		p.ctl("rule", "remove", "1", "--reload")
		explain("now 3 is in force\n", "  rule 1   "+path+":4: matches\n")
		none := p.run("ssh-broker-ctl", "explain", "--flow", "4711").require(t, 1)
		none.says(t, "no captured connection of number 4711 is open", "hint: list-channels")

		fmt.Fprintln(stdin, "go")
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
}
