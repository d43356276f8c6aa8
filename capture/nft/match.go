package nft

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"

	"sshbroker/capture"
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

func l4proto(name string, proto byte) term {
	return term{text: "meta l4proto " + name, exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
	}}
}

func tcp() term { return l4proto("tcp", unix.IPPROTO_TCP) }
func udp() term { return l4proto("udp", unix.IPPROTO_UDP) }

// syn matches a SYN alone among SYN, ACK, FIN and RST: a connection that lives
// already is never touched.
func syn() term {
	return term{text: "tcp flags & (fin | syn | rst | ack) == syn", exprs: []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{0x17}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0x02}},
	}}
}

func dport(port uint16) term {
	return term{text: fmt.Sprintf("th dport %d", port), exprs: []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: be16(port)},
	}}
}

// askedFor matches the destination port that the program asked for, whatever NAT has
// made of it.
func askedFor(port uint16) term {
	return term{text: fmt.Sprintf("ct original proto-dst %d", port), exprs: []expr.Any{
		&expr.Ct{Key: expr.CtKeyPROTODST, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: be16(port)},
	}}
}

func class(c uint32) term    { return mark("==", expr.CmpOpEq, c) }
func notClass(c uint32) term { return mark("!=", expr.CmpOpNeq, c) }

func mark(op string, cmp expr.CmpOp, c uint32) term {
	return term{text: fmt.Sprintf("meta mark & 0x%08x %s 0x%08x", capture.MarkMask, op, c), exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: host32(capture.MarkMask), Xor: make([]byte, 4)},
		&expr.Cmp{Op: cmp, Register: 1, Data: host32(c)},
	}}
}

// setClass writes our bits of the mark and keeps the others.
func setClass(c uint32) term {
	return term{text: fmt.Sprintf("meta mark set meta mark & 0x%08x | 0x%08x", ^capture.MarkMask, c), exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: host32(^capture.MarkMask), Xor: host32(c)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
	}}
}

// never is a condition that cannot hold.
func never() term {
	return term{text: "meta mark 0xffffffff meta mark 0", exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: host32(0xffffffff)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: host32(0)},
	}}
}

func outLoopback(out bool) term {
	if !out {
		return loopback(`oifname != "lo"`, expr.MetaKeyOIFNAME, expr.CmpOpNeq)
	}
	return loopback(`oifname "lo"`, expr.MetaKeyOIFNAME, expr.CmpOpEq)
}

func inLoopback() term { return loopback(`iifname "lo"`, expr.MetaKeyIIFNAME, expr.CmpOpEq) }

func loopback(text string, key expr.MetaKey, op expr.CmpOp) term {
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, "lo")
	return term{text: text, exprs: []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: op, Register: 1, Data: name},
	}}
}

// noteSender has a packet take its sender's capture.SenderMark along as its priority,
// or 0 where the kernel knows none: the condition fails then, between the two.
func noteSender() term {
	return term{text: "meta priority set 0 meta priority set meta skuid ^ 0xffffffff", exprs: []expr.Any{
		&expr.Immediate{Register: 1, Data: host32(0)},
		&expr.Meta{Key: expr.MetaKeyPRIORITY, SourceRegister: true, Register: 1},
		&expr.Meta{Key: expr.MetaKeySKUID, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: host32(^uint32(0)), Xor: host32(capture.SenderMark(0))},
		&expr.Meta{Key: expr.MetaKeyPRIORITY, SourceRegister: true, Register: 1},
	}}
}

// markSender makes the mark of what noteSender noted.
func markSender() term {
	return term{text: "meta mark set meta priority", exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPRIORITY, Register: 1},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
	}}
}

// hasOwner matches the packets of a socket that a process has open.
func hasOwner() term {
	return term{text: "meta skuid >= 0", exprs: []expr.Any{&expr.Meta{Key: expr.MetaKeySKUID, Register: 1}}}
}

// ownersZone has connection tracking keep what the sockets of each uid send apart, by
// zones: a socket may have the addresses and ports that another user's had a moment
// ago, and would get what NAT made of those. Answers are told apart by NAT, and stay in
// the common zone. It has 16 bits; uids that have them in common are not kept apart.
func ownersZone() term {
	return term{
		text:  "ct original zone set meta skuid",
		exprs: []expr.Any{&expr.Meta{Key: expr.MetaKeySKUID, Register: 1}},
		raw: slices.Concat(text(unix.NFTA_EXPR_NAME, "ct"), nest(unix.NFTA_EXPR_DATA,
			num(unix.NFTA_CT_KEY, unix.NFT_CT_ZONE), num(unix.NFTA_CT_SREG, 1), attr(unix.NFTA_CT_DIRECTION, []byte{0}))),
	}
}

func accept() term {
	return term{text: "accept", exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}}
}

func countedDrop() term {
	return term{text: "counter drop", exprs: []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}}}
}

func resetTCP() term {
	return term{text: "reject with tcp reset", exprs: []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}}
}

// hostUnreachable is EHOSTUNREACH in both families; admin-prohibited would be
// EACCES in IPv6.
func hostUnreachable() term {
	return term{text: "reject with icmpx host-unreachable", exprs: []expr.Any{
		&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_HOST_UNREACH}}}
}

func redirect(port uint16) term {
	return term{text: fmt.Sprintf("redirect to :%d", port), exprs: []expr.Any{
		&expr.Immediate{Register: 1, Data: be16(port)},
		&expr.Redir{RegisterProtoMin: 1},
	}}
}

// toQueue sends a packet to user space. Where the kernel lacks the nft_queue module
// the xt target does the same through nft's compatibility expression. Neither form
// is ever given the bypass flag.
func toQueue(number uint16, native bool) term {
	text := fmt.Sprintf("queue num %d", number)
	if native {
		return term{text: text, exprs: []expr.Any{&expr.Queue{Num: number, Total: 1}}}
	}
	info := xt.Unknown(binary.NativeEndian.AppendUint16(binary.NativeEndian.AppendUint16(nil, number), 1))
	return term{text: text, exprs: []expr.Any{&expr.Target{Name: "NFQUEUE", Rev: 1, Info: &info}}}
}

func count(name string) term {
	return term{text: "counter name " + name, exprs: []expr.Any{&expr.Objref{Type: objectCounter, Name: name}}}
}

func drop() term {
	return term{text: "drop", exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}}
}

func jump(chain string) term {
	return term{text: "jump " + chain, exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}}
}

func goTo(chain string) term {
	return term{text: "goto " + chain, exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain}}}
}

func notTCP() term {
	return term{text: "meta l4proto != tcp", exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
	}}
}

// diverted matches the packets of a connection whose destination was changed.
func diverted() term {
	return term{text: "ct status dnat", exprs: []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: host32(statusDNAT), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}}
}

func be16(v uint16) []byte   { return binary.BigEndian.AppendUint16(nil, v) }
func host32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
