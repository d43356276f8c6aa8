package control

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	adminGID = 54330
	otherGID = 54331
)

// The members of one group are served beside root, and nobody else is, whatever the
// mode of the socket.
func TestAdmins(t *testing.T) {
	needRoot(t)
	ln, err := Listen(openDirFor(t, os.Geteuid(), 0o755) + "/broker")
	if err != nil {
		t.Fatal(err)
	}
	if err := ln.Share(adminGID); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(ln.Address(), &st); err != nil || st.Mode&0o7777 != 0o660 || st.Gid != adminGID {
		t.Errorf("the socket has mode %04o and group %d, %v", st.Mode&0o7777, st.Gid, err)
	}
	s := NewServer(slog.New(slog.DiscardHandler))
	s.Admins = adminGID
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, ln) }()
	defer func() { cancel(); within(t, served) }()

	many := make([]uint32, 300) // more than are asked for at first
	for i := range many {
		many[i] = uint32(60000 + i)
	}
	say := func(gid uint32, groups ...uint32) string {
		cmd := foreign(t, "foreign-admin", ln.Address())
		cmd.SysProcAttr.Credential.Gid, cmd.SysProcAttr.Credential.Groups = gid, groups
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	for _, c := range []struct {
		what   string
		gid    uint32
		groups []uint32
		want   string
	}{
		{"a stranger", foreignUID, nil, "permission denied"},
		{"primary group", adminGID, nil, "admin done"},
		{"supplementary group", foreignUID, []uint32{otherGID, adminGID}, "admin done"},
		{"one of many groups", foreignUID, append(slices.Clone(many), adminGID), "admin done"},
		{"another group", foreignUID, []uint32{otherGID}, "permission denied"},
	} {
		if got := say(c.gid, c.groups...); !strings.Contains(got, c.want) {
			t.Errorf("%s: %s", c.what, got)
		}
	}
	if err := os.Chmod(ln.Address(), 0o666); err != nil { // were the mode ever lost
		t.Fatal(err)
	}
	if got := say(foreignUID, otherGID); !strings.Contains(got, "this broker belongs to") {
		t.Errorf("a stranger at the broker: %s", got)
	}
	if got := say(foreignUID, many...); !strings.Contains(got, "this broker belongs to") {
		t.Errorf("a stranger with many groups: %s", got)
	}
}

// Only a socket of ours is shared, not what somebody has put in its place.
func TestShareKnowsItsSocket(t *testing.T) {
	ln, err := Listen(socketPath(t))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if err := os.Remove(ln.Address()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(ln.Address(), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ln.Share(os.Getegid()); err == nil || !strings.Contains(err.Error(), "not our socket") {
		t.Errorf("shared: %v", err)
	}
	if st, err := os.Stat(ln.Address()); err != nil || st.Mode() != 0o600 {
		t.Errorf("the other file: %v, %v", st, err)
	}
}

// The account that a system broker runs as is trusted at the one place that only root
// can have made for it.
func TestSystemBrokerIsTrusted(t *testing.T) {
	if (Dialer{Address: "/tmp/broker"}).isSystem(foreignUID) {
		t.Error("anybody is a system broker")
	}
	needRoot(t)
	dir := "/run/ssh-broker-system"
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skipf("a system broker has been here: %v", err)
	}
	t.Cleanup(func() { os.Remove(dir) })
	d := Dialer{Address: SystemAddress}
	if err := os.Chown(dir, foreignUID, foreignUID); err != nil {
		t.Fatal(err)
	}
	if !d.isSystem(foreignUID) || d.isSystem(foreignUID+1) {
		t.Error("the account is not the one that owns the directory")
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/tmp", dir); err != nil {
		t.Fatal(err)
	}
	if d.isSystem(0) || d.isSystem(foreignUID) {
		t.Error("a link is followed")
	}
}

// playForeignAdmin makes one call as a member of other groups. It takes the broker's
// account for its own user's.
func playForeignAdmin(address string) int {
	uc, err := Dialer{Address: address}.connect(context.Background())
	if err != nil {
		fmt.Println(err)
		return 0
	}
	c := newConn(uc, helloTimeout)
	defer c.Close()
	_ = c.write(message{Kind: kindHello, Protocol: protocol, Version: Version()})
	m, err := c.readPlain()
	switch {
	case err != nil:
		fmt.Println(err)
	case m.Kind == kindHello:
		fmt.Println("admin done")
	default:
		fmt.Println(m.err())
	}
	return 0
}
