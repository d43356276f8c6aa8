package capture

// The verdict of a held SYN travels on its packet mark. Only these bits are
// written, all others are kept: WireGuard, Tailscale and Kubernetes use marks too.
const (
	MarkMask uint32 = 0x00f0_0000

	MarkPass        uint32 = 0x0010_0000 // the kernel carries the flow
	MarkDirect      uint32 = 0x0090_0000 // the same, by a compiled rule: no verdict's
	MarkTunnel      uint32 = 0x0020_0000 // redirected to the capture's listener
	MarkReset       uint32 = 0x0030_0000 // TCP reset: ECONNREFUSED
	MarkUnreachable uint32 = 0x0040_0000 // ICMP host unreachable: EHOSTUNREACH

	// MarkServer is no verdict's but that of sockets (SO_MARK): those that the host's
	// table diverts name queries to, which it knows from others on their ports by this.
	MarkServer uint32 = 0x0050_0000
)

// SenderMark is the mark with which a name query arrives at the resolver of the whole
// host's capture: the complement of its sender's uid, whatever the redirect made of its
// source port. So a query that our rules did not see, with mark 0, is nobody's.
func SenderMark(uid uint32) uint32 { return ^uid }

// Sender is the inverse of SenderMark; nobody has the uid of mark 0.
func Sender(mark uint32) (uid uint32, ok bool) { return ^mark, mark != 0 }

// WithClass returns old with the verdict class set and every foreign bit kept.
func WithClass(old, class uint32) uint32 { return old&^MarkMask | class&MarkMask }
