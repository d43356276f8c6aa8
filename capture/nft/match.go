package nft

import (
	"encoding/binary"
	"fmt"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"

	"sshbroker/capture"
)

// term is one part of a rule: what it says to people and to the kernel. Register 1
// is used throughout.
type term struct {
	text  string
	exprs []expr.Any
}

func l4proto(name string, proto byte) term {
	return term{"meta l4proto " + name, []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
	}}
}

func tcp() term { return l4proto("tcp", unix.IPPROTO_TCP) }
func udp() term { return l4proto("udp", unix.IPPROTO_UDP) }

// syn matches a SYN alone among SYN, ACK, FIN and RST: a connection that lives
// already is never touched.
func syn() term {
	return term{"tcp flags & (fin | syn | rst | ack) == syn", []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{0x17}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0x02}},
	}}
}

func dport(port uint16) term {
	return term{fmt.Sprintf("th dport %d", port), []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: be16(port)},
	}}
}

func class(c uint32) term    { return mark("==", expr.CmpOpEq, c) }
func notClass(c uint32) term { return mark("!=", expr.CmpOpNeq, c) }

func mark(op string, cmp expr.CmpOp, c uint32) term {
	return term{fmt.Sprintf("meta mark & 0x%08x %s 0x%08x", capture.MarkMask, op, c), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: host32(capture.MarkMask), Xor: make([]byte, 4)},
		&expr.Cmp{Op: cmp, Register: 1, Data: host32(c)},
	}}
}

// setClass writes our bits of the mark and keeps the others.
func setClass(c uint32) term {
	return term{fmt.Sprintf("meta mark set meta mark & 0x%08x | 0x%08x", ^capture.MarkMask, c), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: host32(^capture.MarkMask), Xor: host32(c)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
	}}
}

// never is a condition that cannot hold.
func never() term {
	return term{"meta mark 0xffffffff meta mark 0", []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: host32(0xffffffff)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: host32(0)},
	}}
}

func outLoopback(out bool) term {
	text, op := `oifname "lo"`, expr.CmpOpEq
	if !out {
		text, op = `oifname != "lo"`, expr.CmpOpNeq
	}
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, "lo")
	return term{text, []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: op, Register: 1, Data: name},
	}}
}

func accept() term {
	return term{"accept", []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}}
}

func countedDrop() term {
	return term{"counter drop", []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}}}
}

func resetTCP() term {
	return term{"reject with tcp reset", []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}}
}

// hostUnreachable is EHOSTUNREACH in both families; admin-prohibited would be
// EACCES in IPv6.
func hostUnreachable() term {
	return term{"reject with icmpx host-unreachable", []expr.Any{
		&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_HOST_UNREACH}}}
}

func redirect(port uint16) term {
	return term{fmt.Sprintf("redirect to :%d", port), []expr.Any{
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
		return term{text, []expr.Any{&expr.Queue{Num: number, Total: 1}}}
	}
	info := xt.Unknown(binary.NativeEndian.AppendUint16(binary.NativeEndian.AppendUint16(nil, number), 1))
	return term{text, []expr.Any{&expr.Target{Name: "NFQUEUE", Rev: 1, Info: &info}}}
}

func be16(v uint16) []byte   { return binary.BigEndian.AppendUint16(nil, v) }
func host32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
