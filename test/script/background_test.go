package script

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestBackground: what the command leaves running stays captured, under a keeper that
// ends with it.
func TestBackground(t *testing.T) {
	eachAccount(t, func(t *testing.T, p *place) {
		// By program, so that the broker is asked.
		p.configure(`<rule ip-address="192\.0\.2\..*" application="bash" action="BLOCK"/>`)
		fifo := filepath.Join(p.home, "go")
		p.run("mkfifo", fifo).require(t, 0)
		// Descriptor 5 stands for a pipe of the caller's that the child gave up.
		script := `exec 5>&1; exec ssh-capture -D 5 bash -c '
			(read go <go; (: </dev/tcp/192.0.2.7/77) 2>/dev/null; read go <go) >/dev/null 2>&1 5>&- & exit 3'`
		began := time.Now()
		p.run("bash", "-c", script).require(t, 3) // returns when its standard output is closed by all
		if took := time.Since(began); took > patience/2 {
			t.Errorf("it took %v to return", took)
		}
		keeper := p.one("--keep-capture")
		left := p.one("bash -c").pid
		broker := p.one("--ready-fd").pid
		if outside, inside := surroundings(t, os.Getpid()), surroundings(t, left); outside == inside {
			t.Error("what was left is not captured")
		}
		write(t, fifo)
		p.waitAudit(func(r map[string]any) bool { return r["action"] == "BLOCK" && fmt.Sprint(r["dst"]) == "192.0.2.7:77" })

		// The keeper has a new broker take over.
		p.kill(broker, 9)
		waitExit(t, broker, patience)
		p.eventually(func() bool { now := p.broker(); return now != 0 && now != broker }, func() string { return "no new broker" })

		write(t, fifo)
		waitExit(t, left, patience)
		waitExit(t, keeper.pid, patience)
	})
}

// surroundings are what a capture gives a process of its own: a namespace or a cgroup.
func surroundings(t testing.TB, pid int) string {
	t.Helper()
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		t.Fatal(err)
	}
	cgroups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	return ns + string(cgroups)
}

func write(t testing.TB, fifo string) {
	t.Helper()
	if err := os.WriteFile(fifo, []byte("go\n"), 0); err != nil {
		t.Fatal(err)
	}
}

// audit reads the audit records there are.
func (p *place) audit() (records []map[string]any) {
	b, _ := os.ReadFile(p.auditFile())
	for line := range strings.Lines(string(b)) {
		var r map[string]any
		if json.Unmarshal([]byte(line), &r) == nil {
			records = append(records, r)
		}
	}
	return records
}

// waitAudit waits for a record.
func (p *place) waitAudit(is func(map[string]any) bool) (record map[string]any) {
	p.t.Helper()
	p.eventually(func() bool {
		for _, r := range p.audit() {
			if is(r) {
				record = r
				return true
			}
		}
		return false
	}, func() string { return fmt.Sprintf("audit has only %v", p.audit()) })
	return record
}

// TestManyAtOnce: they find or start the same broker.
func TestManyAtOnce(t *testing.T) {
	eachAccount(t, func(t *testing.T, p *place) {
		const many = 20
		var wg sync.WaitGroup
		results := make([]result, many)
		for i := range many {
			cmd := p.command("ssh-capture", "--allow-direct", "sh", "-c", fmt.Sprintf("echo $SSH_CAPTURE; exit %d", i))
			wg.Go(func() { results[i] = p.finish(cmd) })
		}
		wg.Wait()
		seen := map[string]bool{}
		for i, r := range results {
			if r.code != i || seen[r.stdout] {
				t.Errorf("number %d: %v", i, r)
			}
			seen[r.stdout] = true
		}
		if brokers := p.processes("--ready-fd"); len(brokers) != 1 {
			t.Errorf("brokers: %v", brokers)
		}
	})
}
