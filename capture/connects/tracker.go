package connects

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"sshbroker/capture"
	"sshbroker/capture/origin"
)

// remembered is how many connects are; the least recently used are forgotten first. A
// SYN that is held for long has its caller found when it arrives or by /proc.
const remembered = 65536

// call is one connect(), as the programs store it by the cookie of its socket.
type call struct {
	PIDTGID uint64 // the process in the upper half, the thread in the lower
	At      uint64 // nanoseconds of CLOCK_BOOTTIME
}

// Where the programs have key and value on their stack, and size of the value.
const (
	keyAt    = -8
	callAt   = -24
	callSize = 16
)

// protocolAt is the offset of protocol in struct bpf_sock_addr of linux/bpf.h.
const protocolAt = 36

// program stores who connects a TCP socket, and lets it.
func program(calls *ebpf.Map) asm.Instructions {
	return asm.Instructions{
		asm.LoadMem(asm.R0, asm.R1, protocolAt, asm.Word),
		asm.JNE.Imm(asm.R0, unix.IPPROTO_TCP, "let"),
		asm.FnGetSocketCookie.Call(), // R1 is the context still
		asm.StoreMem(asm.RFP, keyAt, asm.R0, asm.DWord),
		asm.FnGetCurrentPidTgid.Call(),
		asm.StoreMem(asm.RFP, callAt, asm.R0, asm.DWord),
		asm.FnKtimeGetBootNs.Call(),
		asm.StoreMem(asm.RFP, callAt+8, asm.R0, asm.DWord),
		asm.LoadMapPtr(asm.R1, calls.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, keyAt),
		asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, callAt),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnMapUpdateElem.Call(),
		asm.Mov.Imm(asm.R0, 1).WithSymbol("let"),
		asm.Return(),
	}
}

// Tracker knows who connected the sockets that were made below its cgroup, from Attach
// on. Its methods are safe for concurrent use.
type Tracker struct {
	calls *ebpf.Map
	links []*link.RawLink
}

// Attach starts to track the sockets made in the cgroup2 directory cgroupRoot and below
// it; a socket belongs to the cgroup of the process that made it. Other programs there
// stay in force. It fails on kernels before 5.8, on later ones that do not let such a
// program ask for the process, and outside the initial pid namespace, in whose terms the
// answer is: search /proc then.
func Attach(cgroupRoot string) (*Tracker, error) {
	t := &Tracker{}
	if err := t.attach(cgroupRoot); err != nil {
		t.Close()
		return nil, fmt.Errorf("track connects below %s: %w", cgroupRoot, err)
	}
	return t, nil
}

func (t *Tracker) attach(cgroupRoot string) error {
	const initial = "pid:[4026531836]" // PROC_PID_INIT_INO of linux/proc_ns.h
	if ns, err := os.Readlink("/proc/self/ns/pid"); err != nil || ns != initial {
		return fmt.Errorf("not in the initial pid namespace: %s: %w", ns, errors.Join(errors.ErrUnsupported, err))
	}
	dir, err := os.Open(cgroupRoot)
	if err != nil {
		return err
	}
	defer dir.Close()
	t.calls, err = ebpf.NewMap(&ebpf.MapSpec{Name: "ssh_connects", Type: ebpf.LRUHash, KeySize: 8, ValueSize: callSize, MaxEntries: remembered})
	if err != nil {
		return err
	}
	for _, at := range []ebpf.AttachType{ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupInet6Connect} {
		p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Name: "ssh_connects", Type: ebpf.CGroupSockAddr, AttachType: at, Instructions: program(t.calls), License: "Apache-2.0",
		})
		if err != nil {
			return err
		}
		// Not link.AttachCgroup, which may fall back to what outlives the process.
		l, err := link.AttachRawLink(link.RawLinkOptions{Target: int(dir.Fd()), Program: p, Attach: at})
		p.Close()
		if err != nil {
			return err
		}
		t.links = append(t.links, l)
	}
	return nil
}

// Close stops tracking.
func (t *Tracker) Close() error {
	var errs []error
	for _, l := range t.links {
		errs = append(errs, l.Close())
	}
	return errors.Join(append(errs, t.calls.Close())...)
}

func (t *Tracker) find(cookie uint64) (c call, ok bool) {
	return c, t.calls.Lookup(&cookie, &c) == nil
}

// Origin is the process that called connect() on the socket, if it lives: one that made
// the socket or holds it today is not meant. Exe is what the process runs by now, should
// it have called execve since.
//
// A process that got the id of a dead one later is not taken for it: /proc/PID/stat has
// to show a start before the connect. The kernel shows it in hundredths of a second, so
// what remains is an id that goes once round, to a process that starts within the same
// hundredth. The zero Origin is for everything unknown.
func (t *Tracker) Origin(sock origin.Socket) capture.Origin {
	c, ok := t.find(sock.Cookie)
	o := origin.Running(int(c.PIDTGID >> 32))
	if !ok || !o.Known {
		return capture.Origin{}
	}
	// Only now: the process that is old enough here was there when its exe was read.
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", o.PID))
	if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
		return capture.Origin{Err: err}
	}
	if started, ok := startTime(stat); err != nil || !ok || started > c.At/uint64(tick) {
		return capture.Origin{}
	}
	return o
}

// tick is the unit of times in /proc: USER_HZ is 100 wherever Go runs.
const tick = 10 * time.Millisecond

// startTime reads field 22 of /proc/PID/stat, in ticks of CLOCK_BOOTTIME; see proc(5).
// The second field is a name in brackets, in which anything may stand.
func startTime(stat []byte) (ticks uint64, ok bool) {
	const afterName = 22 - 2 // fields
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < afterName {
		return 0, false
	}
	ticks, err := strconv.ParseUint(string(fields[afterName-1]), 10, 64)
	return ticks, err == nil
}
