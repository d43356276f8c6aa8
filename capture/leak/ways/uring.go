package ways

import (
	"net/netip"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Parts of io_uring's interface (linux/io_uring.h), which golang.org/x/sys has not.
const (
	uringOpConnect = 16 // IORING_OP_CONNECT
	uringSQRing    = 0
	uringCQRing    = 0x8000000
	uringSQEs      = 0x10000000
)

type uringParams struct {
	SQEntries, CQEntries, Flags, SQThreadCPU, SQThreadIdle, Features, WQFD uint32
	_                                                                      [3]uint32
	SQ                                                                     struct {
		Head, Tail, RingMask, RingEntries, Flags, Dropped, Array, _ uint32
		_                                                           uint64
	}
	CQ struct {
		Head, Tail, RingMask, RingEntries, Overflow, CQEs, Flags, _ uint32
		_                                                           uint64
	}
}

type uringSQE struct {
	Opcode, Flags uint8
	IOPrio        uint16
	FD            int32
	Off, Addr     uint64
	Len, OpFlags  uint32
	UserData      uint64
	_             [3]uint64
}

type uringCQE struct {
	UserData uint64
	Res      int32
	Flags    uint32
}

// uring connects without the system call connect(2), which a seccomp filter or a tracer
// would see.
func uring(r Request) Result {
	fd, err := socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return failed("socket", err)
	}
	defer unix.Close(fd)
	var p uringParams
	ring, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return failed("io_uring_setup", errno)
	}
	defer unix.Close(int(ring))
	var maps [3][]byte
	for i, m := range []struct {
		at   int64
		size int
	}{
		{uringSQRing, int(p.SQ.Array) + 4*int(p.SQEntries)},
		{uringCQRing, int(p.CQ.CQEs) + int(unsafe.Sizeof(uringCQE{}))*int(p.CQEntries)},
		{uringSQEs, int(unsafe.Sizeof(uringSQE{})) * int(p.SQEntries)},
	} {
		if maps[i], err = unix.Mmap(int(ring), m.at, m.size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE); err != nil {
			return failed("mmap of the ring", err)
		}
		defer unix.Munmap(maps[i])
	}
	sq, cq := maps[0], maps[1]
	to := rawInet4(r.To)
	*(*uringSQE)(unsafe.Pointer(&maps[2][0])) = uringSQE{Opcode: uringOpConnect, FD: int32(fd),
		Addr: uint64(uintptr(unsafe.Pointer(to))), Off: unix.SizeofSockaddrInet4}
	*(*uint32)(unsafe.Pointer(&sq[p.SQ.Array])) = 0
	atomic.AddUint32((*uint32)(unsafe.Pointer(&sq[p.SQ.Tail])), 1)
	_, _, errno = unix.Syscall6(unix.SYS_IO_URING_ENTER, ring, 1, 0, 0, 0, 0)
	if errno != 0 {
		return failed("io_uring_enter", errno)
	}
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(ring), Events: unix.POLLIN}}, int(Limit.Milliseconds()))
	runtime.KeepAlive(to)
	head := atomic.LoadUint32((*uint32)(unsafe.Pointer(&cq[p.CQ.Head])))
	switch {
	case err != nil && err != unix.EINTR:
		return failed("poll of the ring", err)
	case n <= 0 && head == atomic.LoadUint32((*uint32)(unsafe.Pointer(&cq[p.CQ.Tail]))):
		return failed("connect", unix.ETIMEDOUT)
	}
	mask := *(*uint32)(unsafe.Pointer(&cq[p.CQ.RingMask]))
	done := (*uringCQE)(unsafe.Pointer(&cq[p.CQ.CQEs+uint32(unsafe.Sizeof(uringCQE{}))*(head&mask)]))
	if done.Res < 0 {
		return failed("connect", unix.Errno(-done.Res))
	}
	return say(fd, r.Token, nil)
}

func rawInet4(to netip.AddrPort) *unix.RawSockaddrInet4 {
	return &unix.RawSockaddrInet4{Family: unix.AF_INET, Port: htons(to.Port()), Addr: to.Addr().As4()}
}
