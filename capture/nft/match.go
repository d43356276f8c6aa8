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

// term is one part of a rule: what it says to people and to the kernel. Register 1
// is used throughout. A set is looked up after the expressions.
type term struct {
	text  string
	exprs []expr.Any
	raw   []byte // one more that the library has no words for
	set   *set
}

func say(text string, exprs ...expr.Any) term { return term{text: text, exprs: exprs} }

// What terms are made of. Numbers that the kernel keeps in registers are in host order.

func meta(key expr.MetaKey) expr.Any { return &expr.Meta{Key: key, Register: 1} }
func setMeta(key expr.MetaKey) expr.Any {
	return &expr.Meta{Key: key, Register: 1, SourceRegister: true}
}
func load(data []byte) expr.Any              { return &expr.Immediate{Register: 1, Data: data} }
func track(key expr.CtKey) expr.Any          { return &expr.Ct{Key: key, Register: 1} }
func equal(data ...byte) expr.Any            { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }
func unequal(data ...byte) expr.Any          { return &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: data} }
func verdict(kind expr.VerdictKind) expr.Any { return &expr.Verdict{Kind: kind} }

func transport(offset, n uint32) expr.Any {
	return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: n}
}

// masked keeps those of mask and flips those of xor.
func masked(mask, xor []byte) expr.Any {
	return &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(len(mask)), Mask: mask, Xor: xor}
}

func be16(v uint16) []byte   { return binary.BigEndian.AppendUint16(nil, v) }
func be32(v uint32) []byte   { return binary.BigEndian.AppendUint32(nil, v) }
func host32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

func tcp() term { return say("meta l4proto tcp", meta(expr.MetaKeyL4PROTO), equal(unix.IPPROTO_TCP)) }
func udp() term { return say("meta l4proto udp", meta(expr.MetaKeyL4PROTO), equal(unix.IPPROTO_UDP)) }
func notTCP() term {
	return say("meta l4proto != tcp", meta(expr.MetaKeyL4PROTO), unequal(unix.IPPROTO_TCP))
}

// syn matches a SYN alone among SYN, ACK, FIN and RST: a connection that lives
// already is never touched.
func syn() term {
	return say("tcp flags & (fin | syn | rst | ack) == syn", transport(13, 1), masked([]byte{0x17}, []byte{0}), equal(0x02))
}

func dport(port uint16) term {
	return say(fmt.Sprintf("th dport %d", port), transport(2, 2), equal(be16(port)...))
}

// askedFor matches the destination port that the program asked for, whatever NAT has
// made of it.
func askedFor(port uint16) term {
	return say(fmt.Sprintf("ct original proto-dst %d", port), track(expr.CtKeyPROTODST), equal(be16(port)...))
}

// diverted matches the packets of a connection whose destination was changed.
func diverted() term {
	return say("ct status dnat", track(expr.CtKeySTATUS), masked(host32(statusDNAT), host32(0)), unequal(host32(0)...))
}

func class(c uint32) term { return markBits(capture.MarkMask, "==", c, equal) }

// The bits by which MarkPass and MarkDirect differ from all other classes.
const (
	passMask  = 0x0070_0000
	judgeMask = 0x0060_0000
)

// mayLeave matches both classes with which a SYN leaves.
func mayLeave() term { return markBits(passMask, "==", capture.MarkPass, equal) }

// toJudge matches classes that say more than that a packet may leave.
func toJudge() term { return markBits(judgeMask, "!=", 0, unequal) }

// direct matches the SYN that a compiled rule lets through, if it has no other mark.
func direct() term {
	return say(fmt.Sprintf("meta mark 0x%08x", capture.MarkDirect), meta(expr.MetaKeyMARK), equal(host32(capture.MarkDirect)...))
}

func notClass(c uint32) term { return markBits(capture.MarkMask, "!=", c, unequal) }

func markBits(mask uint32, op string, bits uint32, compare func(...byte) expr.Any) term {
	return say(fmt.Sprintf("meta mark & 0x%08x %s 0x%08x", mask, op, bits),
		meta(expr.MetaKeyMARK), masked(host32(mask), host32(0)), compare(host32(bits)...))
}

// unchanged matches the packets of a connection whose destination NAT has let alone.
func unchanged() term {
	return say("ct status & dnat == 0", track(expr.CtKeySTATUS), masked(host32(statusDNAT), host32(0)), equal(host32(0)...))
}

// setClass writes our bits of the mark and keeps the others.
func setClass(c uint32) term {
	return say(fmt.Sprintf("meta mark set meta mark & 0x%08x | 0x%08x", ^capture.MarkMask, c),
		meta(expr.MetaKeyMARK), masked(host32(^capture.MarkMask), host32(c)), setMeta(expr.MetaKeyMARK))
}

// never is a condition that cannot hold.
func never() term {
	return say("meta mark 0xffffffff meta mark 0", meta(expr.MetaKeyMARK), equal(host32(0xffffffff)...), equal(host32(0)...))
}

// loopback is the index of that device, in every network namespace (LOOPBACK_IFINDEX).
// To compare names takes longer.
const loopback = 1

func fromElsewhere() term {
	return say(`iif != "lo"`, meta(expr.MetaKeyIIF), unequal(host32(loopback)...))
}

func outLoopback(out bool) term {
	if !out {
		return say(`oif != "lo"`, meta(expr.MetaKeyOIF), unequal(host32(loopback)...))
	}
	return say(`oif "lo"`, meta(expr.MetaKeyOIF), equal(host32(loopback)...))
}

// noteSender has a packet take its sender's capture.SenderMark along as its priority,
// or 0 where the kernel knows none: the condition fails then, between the two.
func noteSender() term {
	return say("meta priority set 0 meta priority set meta skuid ^ 0xffffffff",
		load(host32(0)), setMeta(expr.MetaKeyPRIORITY),
		meta(expr.MetaKeySKUID), masked(host32(^uint32(0)), host32(capture.SenderMark(0))), setMeta(expr.MetaKeyPRIORITY))
}

// markSender makes the mark of what noteSender noted.
func markSender() term {
	return say("meta mark set meta priority", meta(expr.MetaKeyPRIORITY), setMeta(expr.MetaKeyMARK))
}

// hasOwner matches the packets of a socket that a process has open.
func hasOwner() term { return say("meta skuid >= 0", meta(expr.MetaKeySKUID)) }

// ownersZone has connection tracking keep what the sockets of each uid send apart, by
// zones: a socket may have the addresses and ports that another user's had a moment
// ago, and would get what NAT made of those. Answers are told apart by NAT, and stay in
// the common zone. It has 16 bits; uids that have them in common are not kept apart.
func ownersZone() term {
	t := say("ct original zone set meta skuid", meta(expr.MetaKeySKUID))
	t.raw = slices.Concat(text(unix.NFTA_EXPR_NAME, "ct"), netlink.Nest(unix.NFTA_EXPR_DATA,
		netlink.Uint32(unix.NFTA_CT_KEY, unix.NFT_CT_ZONE), netlink.Uint32(unix.NFTA_CT_SREG, 1), netlink.Attr(unix.NFTA_CT_DIRECTION, []byte{0})))
	return t
}

// heard matches packets to a socket with capture.MarkServer.
func heard() term {
	return say(fmt.Sprintf("socket mark & 0x%08x == 0x%08x", capture.MarkMask, capture.MarkServer),
		ofSocket(expr.SocketKeyMark), masked(host32(capture.MarkMask), host32(0)), equal(host32(capture.MarkServer)...))
}

// overheard matches packets to any socket that is more than the beginning or the end of a
// connection, of which the kernel keeps no mark. lingers matches packets to those as well:
// to any socket that is not transparent, which needs privilege.
func overheard() term { return say("socket mark >= 0", ofSocket(expr.SocketKeyMark)) }
func lingers() term {
	return say("socket transparent 0", ofSocket(expr.SocketKeyTransparent), equal(0))
}

func ofSocket(key expr.SocketKey) expr.Any { return &expr.Socket{Key: key, Register: 1} }

func accept() term      { return say("accept", verdict(expr.VerdictAccept)) }
func drop() term        { return say("drop", verdict(expr.VerdictDrop)) }
func countedDrop() term { return say("counter drop", &expr.Counter{}, verdict(expr.VerdictDrop)) }
func count(name string) term {
	return say("counter name "+name, &expr.Objref{Type: objectCounter, Name: name})
}
func jump(chain string) term {
	return say("jump "+chain, &expr.Verdict{Kind: expr.VerdictJump, Chain: chain})
}
func goTo(chain string) term {
	return say("goto "+chain, &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain})
}

func resetTCP() term {
	return say("reject with tcp reset", &expr.Reject{Type: unix.NFT_REJECT_TCP_RST})
}

// hostUnreachable is EHOSTUNREACH in both families; admin-prohibited would be
// EACCES in IPv6.
func hostUnreachable() term {
	return say("reject with icmpx host-unreachable",
		&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_HOST_UNREACH})
}

func redirect(port uint16) term {
	return say(fmt.Sprintf("redirect to :%d", port), load(be16(port)), &expr.Redir{RegisterProtoMin: 1})
}

// toQueue sends a packet to user space. Where the kernel lacks the nft_queue module
// the xt target does the same through nft's compatibility expression. Neither form
// is ever given the bypass flag.
func toQueue(number uint16, native bool) term {
	text := fmt.Sprintf("queue num %d", number)
	if native {
		return say(text, &expr.Queue{Num: number, Total: 1})
	}
	info := xt.Unknown(binary.NativeEndian.AppendUint16(binary.NativeEndian.AppendUint16(nil, number), 1))
	return say(text, &expr.Target{Name: "NFQUEUE", Rev: 1, Info: &info})
}
