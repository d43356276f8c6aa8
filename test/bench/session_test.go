package bench

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"sshbroker/test/netns"
)

// session is a running load generator and the client processes that carry its
// flows.
type session struct {
	process  *netns.Process
	jobs     *os.File
	asked    int
	carriers []int // process ids; none: the kernel alone
	after    func(testing.TB)
}

// result is what testprog load answers; see there.
type result struct {
	Count    int64
	Bytes    int64
	Seconds  float64
	P50, P95 float64
	P99      float64
	Error    string
}

// startSession starts a load generator on a machine. When it has ended, after is called;
// nil for none.
func startSession(t testing.TB, m *netns.Machine, u *netns.User, args []string, after func(testing.TB)) *session {
	t.Helper()
	r, jobs, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	s := &session{jobs: jobs, after: after}
	s.process = m.Start(t, netns.Cmd{Args: args, User: u, Stdin: r, Limit: -1})
	return s
}

// do has a job done.
func (s *session) do(t testing.TB, format string, args ...any) result {
	t.Helper()
	job := fmt.Sprintf(format, args...)
	s.asked++
	if _, err := fmt.Fprintln(s.jobs, job); err != nil {
		t.Fatalf("%s: %v; it said:\n%s", job, err, s.process.Output())
	}
	end := fmt.Sprintf("\nend %d\n", s.asked)
	s.process.WaitFor(t, end)
	said, _, _ := strings.Cut(s.process.Stdout(), end)
	var r result
	if err := json.Unmarshal([]byte(said[strings.LastIndex(said, "\n")+1:]), &r); err != nil {
		t.Fatalf("%s: %v; it said:\n%s", job, err, said)
	}
	if r.Error != "" {
		t.Fatalf("%s: %s", s.process, r.Error)
	}
	return r
}

// end ends the load generator and what was started for it.
func (s *session) end(t testing.TB) {
	t.Helper()
	s.jobs.Close()
	if r := s.process.Wait(t); r.Code != 0 {
		t.Fatalf("%s: %v", s.process, r)
	}
	if s.after != nil {
		s.after(t)
	}
}

// tick is what /proc/PID/stat counts in; USER_HZ is 100 wherever Go runs on Linux.
const tick = 10 * time.Millisecond

// cpu is the time that the carriers have spent themselves, in user space and in the
// kernel; their children not.
func (s *session) cpu(t testing.TB) (spent time.Duration) {
	t.Helper()
	for _, pid := range s.carriers {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		// The name may hold anything; after it comes field 3.
		fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		user, err1 := strconv.ParseInt(fields[14-3], 10, 64)
		system, err2 := strconv.ParseInt(fields[15-3], 10, 64)
		if err1 != nil || err2 != nil {
			t.Fatalf("processor time of %d: %q", pid, b)
		}
		spent += time.Duration(user+system) * tick
	}
	return spent
}

// memory is the carriers' resident sets in bytes, all together.
func (s *session) memory(t testing.TB) (resident int64) {
	t.Helper()
	for _, pid := range s.carriers {
		resident += residentSet(t, pid)
	}
	return resident
}

func residentSet(t testing.TB, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(value)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kib << 10
		}
	}
	t.Fatalf("no VmRSS of %d", pid)
	return 0
}

// family is a process with its living children and theirs.
func family(t testing.TB, pid int) []int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	all := []int{pid}
	for child := range strings.FieldsSeq(string(b)) {
		n, err := strconv.Atoi(child)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, family(t, n)...)
	}
	return all
}
