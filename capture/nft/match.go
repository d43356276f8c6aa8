package nft

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"

	"sshbroker/capture"
	"sshbroker/capture/netlink"
)

const (
	objectCounter = 1      // NFT_OBJECT_COUNTER
	statusDNAT    = 1 << 5 // IPS_DST_NAT
)

// Term is one part of a rule: what it says to people and to the kernel. Register 1
// is used throughout. A set is looked up after the expressions. Terms are never changed.
type Term struct {
	text  string
	exprs []expr.Any
	raw   []byte // one more that the library has no words for
	set   *set
}

func say(text string, exprs ...expr.Any) Term { return Term{text: text, exprs: exprs} }

// What terms are made of. Numbers that the kernel keeps in registers are in host order.

func meta(key expr.MetaKey) expr.Any { return &expr.Meta{Key: key, Register: 1} }
func setMeta(key expr.MetaKey) expr.Any {
	return &expr.Meta{Key: key, Register: 1, SourceRegister: true}
}
func load(data []byte) expr.Any              { return &expr.Immediate{Register: 1, Data: data} }
func track(key expr.CtKey) expr.Any          { return &expr.Ct{Key: key, Register: 1} }
func ofSocket(key expr.SocketKey) expr.Any   { return &expr.Socket{Key: key, Register: 1} }
func equal(data ...byte) expr.Any            { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }
func unequal(data ...byte) expr.Any          { return &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: data} }
func verdict(kind expr.VerdictKind) expr.Any { return &expr.Verdict{Kind: kind} }

func transport(offset, n uint32) expr.Any {
	return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: n}
}

func network(offset, n uint32) expr.Any {
	return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: n}
}

// masked keeps those of mask and flips those of xor.
func masked(mask, xor []byte) expr.Any {
	return &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(len(mask)), Mask: mask, Xor: xor}
}

func be16(v uint16) []byte   { return binary.BigEndian.AppendUint16(nil, v) }
func be32(v uint32) []byte   { return binary.BigEndian.AppendUint32(nil, v) }
func host32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// loopback is the index of that device, in every network namespace (LOOPBACK_IFINDEX).
// To compare names takes longer.
const loopback = 1

// The bits by which MarkPass and MarkDirect differ from all other classes.
const (
	passMask  = 0x0070_0000
	judgeMask = 0x0060_0000
)

// Conditions.
var (
	TCP    = say("meta l4proto tcp", meta(expr.MetaKeyL4PROTO), equal(unix.IPPROTO_TCP))
	UDP    = say("meta l4proto udp", meta(expr.MetaKeyL4PROTO), equal(unix.IPPROTO_UDP))
	notTCP = say("meta l4proto != tcp", meta(expr.MetaKeyL4PROTO), unequal(unix.IPPROTO_TCP))

	// SYN matches a SYN alone among SYN, ACK, FIN and RST: a connection that lives
	// already is never touched.
	SYN = say("tcp flags & (fin | syn | rst | ack) == syn", transport(13, 1), masked([]byte{0x17}, []byte{0}), equal(0x02))

	OutLoopback   = say(`oif "lo"`, meta(expr.MetaKeyOIF), equal(host32(loopback)...))
	OutElsewhere  = say(`oif != "lo"`, meta(expr.MetaKeyOIF), unequal(host32(loopback)...))
	fromElsewhere = say(`iif != "lo"`, meta(expr.MetaKeyIIF), unequal(host32(loopback)...))

	// Never is a condition that cannot hold.
	Never = say("meta mark 0xffffffff meta mark 0", meta(expr.MetaKeyMARK), equal(host32(0xffffffff)...), equal(host32(0)...))

	// mayLeave matches both classes with which a SYN leaves, toJudge those that say more
	// than that. direct matches the SYN that a compiled rule lets through, if it has no other mark.
	mayLeave = markBits(passMask, "==", capture.MarkPass, equal)
	toJudge  = markBits(judgeMask, "!=", 0, unequal)
	direct   = say(fmt.Sprintf("meta mark 0x%08x", capture.MarkDirect), meta(expr.MetaKeyMARK), equal(host32(capture.MarkDirect)...))

	// diverted matches the packets of a connection whose destination was changed,
	// unchanged those of one whose destination NAT has let alone.
	diverted  = say("ct status dnat", track(expr.CtKeySTATUS), masked(host32(statusDNAT), host32(0)), unequal(host32(0)...))
	unchanged = say("ct status & dnat == 0", track(expr.CtKeySTATUS), masked(host32(statusDNAT), host32(0)), equal(host32(0)...))

	// hasOwner matches the packets of a socket that a process has open.
	hasOwner = say("meta skuid >= 0", meta(expr.MetaKeySKUID))

	// heard matches packets to a socket with capture.MarkServer.
	heard = say(fmt.Sprintf("socket mark & 0x%08x == 0x%08x", capture.MarkMask, capture.MarkServer),
		ofSocket(expr.SocketKeyMark), masked(host32(capture.MarkMask), host32(0)), equal(host32(capture.MarkServer)...))
	// overheard matches packets to any socket that is more than the beginning or the end of a
	// connection, of which the kernel keeps no mark. lingers matches packets to those as well:
	// to any socket that is not transparent, which needs privilege.
	overheard = say("socket mark >= 0", ofSocket(expr.SocketKeyMark))
	lingers   = say("socket transparent 0", ofSocket(expr.SocketKeyTransparent), equal(0))
)

// DestPort matches packets to a port.
func DestPort(port uint16) Term {
	return say(fmt.Sprintf("th dport %d", port), transport(2, 2), equal(be16(port)...))
}

// askedFor matches the destination port that the program asked for, whatever NAT has
// made of it.
func askedFor(port uint16) Term {
	return say(fmt.Sprintf("ct original proto-dst %d", port), track(expr.CtKeyPROTODST), equal(be16(port)...))
}

// HasClass and HasNotClass match our bits of the mark.
func HasClass(c uint32) Term    { return markBits(capture.MarkMask, "==", c, equal) }
func HasNotClass(c uint32) Term { return markBits(capture.MarkMask, "!=", c, unequal) }

func markBits(mask uint32, op string, bits uint32, compare func(...byte) expr.Any) Term {
	return say(fmt.Sprintf("meta mark & 0x%08x %s 0x%08x", mask, op, bits),
		meta(expr.MetaKeyMARK), masked(host32(mask), host32(0)), compare(host32(bits)...))
}

// What becomes of a packet.
var (
	Accept      = say("accept", verdict(expr.VerdictAccept))
	drop        = say("drop", verdict(expr.VerdictDrop))
	CountedDrop = say("counter drop", &expr.Counter{}, verdict(expr.VerdictDrop))
	ResetTCP    = say("reject with tcp reset", &expr.Reject{Type: unix.NFT_REJECT_TCP_RST})

	// HostUnreachable is EHOSTUNREACH in both families; admin-prohibited would be
	// EACCES in IPv6.
	HostUnreachable = say("reject with icmpx host-unreachable",
		&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_HOST_UNREACH})

	// noteSender has a packet take its sender's capture.SenderMark along as its priority,
	// or 0 where the kernel knows none: the condition fails then, between the two.
	noteSender = say("meta priority set 0 meta priority set meta skuid ^ 0xffffffff",
		load(host32(0)), setMeta(expr.MetaKeyPRIORITY),
		meta(expr.MetaKeySKUID), masked(host32(^uint32(0)), host32(capture.SenderMark(0))), setMeta(expr.MetaKeyPRIORITY))
	// markSender makes the mark of what noteSender noted.
	markSender = say("meta mark set meta priority", meta(expr.MetaKeyPRIORITY), setMeta(expr.MetaKeyMARK))

	// ownersZone has connection tracking keep what the sockets of each uid send apart, by
	// zones: a socket may have the addresses and ports that another user's had a moment
	// ago, and would get what NAT made of those. Answers are told apart by NAT, and stay in
	// the common zone. It has 16 bits; uids that have them in common are not kept apart.
	ownersZone = Term{text: "ct original zone set meta skuid", exprs: []expr.Any{meta(expr.MetaKeySKUID)},
		raw: slices.Concat(text(unix.NFTA_EXPR_NAME, "ct"), netlink.Nest(unix.NFTA_EXPR_DATA, netlink.Uint32(unix.NFTA_CT_KEY, unix.NFT_CT_ZONE),
			netlink.Uint32(unix.NFTA_CT_SREG, 1), netlink.Attr(unix.NFTA_CT_DIRECTION, []byte{0})))}
)

// SetClass writes our bits of the mark and keeps the others.
func SetClass(c uint32) Term {
	return say(fmt.Sprintf("meta mark set meta mark & 0x%08x | 0x%08x", ^capture.MarkMask, c),
		meta(expr.MetaKeyMARK), masked(host32(^capture.MarkMask), host32(c)), setMeta(expr.MetaKeyMARK))
}

func count(name string) Term {
	return say("counter name "+name, &expr.Objref{Type: objectCounter, Name: name})
}

func jump(chain string) Term { return toChain("jump", expr.VerdictJump, chain) }
func goTo(chain string) Term { return toChain("goto", expr.VerdictGoto, chain) }

func toChain(how string, kind expr.VerdictKind, chain string) Term {
	return say(how+" "+chain, &expr.Verdict{Kind: kind, Chain: chain})
}

// Redirect sends a packet to a port of this host.
func Redirect(port uint16) Term {
	return say(fmt.Sprintf("redirect to :%d", port), load(be16(port)), &expr.Redir{RegisterProtoMin: 1})
}

// ToQueue sends a packet to user space. Where the kernel lacks the nft_queue module
// the xt target does the same through nft's compatibility expression. Neither form
// is ever given the bypass flag.
func ToQueue(number uint16, form QueueForm) Term {
	text := fmt.Sprintf("queue num %d", number)
	if form == NativeQueue {
		return say(text, &expr.Queue{Num: number, Total: 1})
	}
	info := xt.Unknown(binary.NativeEndian.AppendUint16(binary.NativeEndian.AppendUint16(nil, number), 1))
	return say(text, &expr.Target{Name: "NFQUEUE", Rev: 1, Info: &info})
}
