package capture

// The verdict of a held SYN travels on its packet mark. Only these bits are
// written, all others are kept: WireGuard, Tailscale and Kubernetes use marks too.
const (
	MarkMask uint32 = 0x00f0_0000

	MarkPass        uint32 = 0x0010_0000 // the kernel carries the flow
	MarkTunnel      uint32 = 0x0020_0000 // redirected to the capture's listener
	MarkReset       uint32 = 0x0030_0000 // TCP reset: ECONNREFUSED
	MarkUnreachable uint32 = 0x0040_0000 // ICMP host unreachable: EHOSTUNREACH
)

// WithClass returns old with the verdict class set and every foreign bit kept.
func WithClass(old, class uint32) uint32 { return old&^MarkMask | class&MarkMask }
