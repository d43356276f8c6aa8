package netlink

import (
	"bytes"
	"encoding/binary"
	"errors"
	"maps"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMessagesReadBack(t *testing.T) {
	b := Append(nil, 7, unix.NLM_F_REQUEST, 42, Netfilter(unix.AF_INET, 0x0102), Attr(3, []byte("odd")), Nest(5, Uint32(6, 1, 2)))
	b = Append(b, 8, 0, 43, Attr(1, []byte{1}))
	list, err := Messages(b)
	if err != nil || len(list) != 2 {
		t.Fatalf("%+v, %v", list, err)
	}
	first := list[0]
	if first.Type != 7 || first.Flags != unix.NLM_F_REQUEST || first.Seq != 42 || list[1].Type != 8 || list[1].Seq != 43 {
		t.Errorf("%+v", list)
	}
	if !bytes.Equal(first.Body[:NetfilterLen], []byte{unix.AF_INET, 0, 1, 2}) {
		t.Errorf("header %v", first.Body[:NetfilterLen])
	}
	attrs := maps.Collect(Attributes(first.Body[NetfilterLen:]))
	if len(attrs) != 2 || string(attrs[3]) != "odd" || !bytes.Equal(Find(attrs[5], 6), []byte{0, 0, 0, 1, 0, 0, 0, 2}) || Find(attrs[5], 7) != nil {
		t.Errorf("attributes %v", attrs)
	}
}

// TestUnalignedEnd: the payload of a queued packet may end anywhere, and so the message.
func TestUnalignedEnd(t *testing.T) {
	b := Append(nil, 7, 0, 1, []byte("xyz"))
	list, err := Messages(b)
	if err != nil || len(list) != 1 || string(list[0].Body) != "xyz" {
		t.Errorf("%+v, %v", list, err)
	}
}

func TestMalformed(t *testing.T) {
	good := Append(nil, 7, 0, 1, []byte("four"))
	for name, n := range map[string]uint32{"too long": 100, "shorter than its header": 15, "none": 0, "negative": 1 << 31} {
		bad := binary.NativeEndian.AppendUint32(slices.Clone(good), n)
		list, err := Messages(append(bad, make([]byte, 20)...))
		if !errors.Is(err, unix.EBADMSG) || len(list) != 1 || string(list[0].Body) != "four" {
			t.Errorf("%s: %+v, %v", name, list, err)
		}
	}
}

func TestErr(t *testing.T) {
	errno := func(n int32) []byte { return binary.NativeEndian.AppendUint32(nil, uint32(n)) }
	for _, c := range []struct {
		m    Message
		want error
	}{
		{Message{Type: unix.NLMSG_ERROR, Body: errno(-int32(unix.EPERM))}, unix.EPERM},
		{Message{Type: unix.NLMSG_ERROR, Body: errno(0)}, nil},
		{Message{Type: unix.NLMSG_ERROR, Body: []byte{1, 2, 3}}, unix.EBADMSG},
		{Message{Type: unix.NLMSG_DONE, Body: errno(-1)}, nil},
	} {
		if got := c.m.Err(); got != c.want {
			t.Errorf("%+v: %v, want %v", c.m, got, c.want)
		}
	}
}

// TestAsk asks the kernel for its links: the first answer to the question that is asked,
// and not to one that was given up.
func TestAsk(t *testing.T) {
	s, err := Open(unix.NETLINK_ROUTE, 0)
	if err != nil {
		t.Fatal(err)
	}
	a := Asker{Socket: s}
	defer a.Close()
	loopback := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(loopback[4:], 1)
	if err := a.Send(Append(nil, unix.RTM_GETLINK, unix.NLM_F_REQUEST, 12345, loopback)); err != nil { // nobody reads the answer
		t.Fatal(err)
	}
	for range 2 {
		m, err := a.Ask(unix.RTM_GETLINK, loopback)
		if err != nil || m.Type != unix.RTM_NEWLINK || m.Seq != a.seq {
			t.Fatalf("type %d, number %d of %d: %v", m.Type, m.Seq, a.seq, err)
		}
		if name := Find(m.Body[unix.SizeofIfInfomsg:], unix.IFLA_IFNAME); unix.ByteSliceToString(name) != "lo" {
			t.Errorf("link 1 is %q", name)
		}
	}
	m, err := a.Ask(unix.RTM_GETLINK, append(make([]byte, 4), 0xff, 0xff, 0xff, 0x7f, 0, 0, 0, 0, 0, 0, 0, 0))
	if err != nil || m.Err() != unix.ENODEV {
		t.Errorf("no such link: %v, %v", m.Err(), err)
	}
}

func TestSocket(t *testing.T) {
	s, err := Open(unix.NETLINK_ROUTE, 0)
	if err != nil {
		t.Fatal(err)
	}
	if s.Port() == 0 {
		t.Error("no port")
	}
	if _, err := s.Poll(make([]byte, 100)); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("nothing is there: %v", err)
	}
	ended := make(chan error)
	go func() {
		_, err := s.Receive(make([]byte, 100))
		ended <- err
	}()
	s.Close()
	if err := <-ended; !errors.Is(err, os.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	if err := s.Send(Append(nil, unix.NLMSG_NOOP, 0, 0)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("send after that: %v", err)
	}
}

func FuzzMessages(f *testing.F) {
	f.Add(Append(Append(nil, 1, 2, 3, Nest(1, Attr(2, []byte("x")))), unix.NLMSG_ERROR, 0, 0, []byte{1, 2}))
	f.Add([]byte{16, 0, 0, 0, 2, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		list, _ := Messages(b)
		size := 0
		for _, m := range list {
			_ = m.Err()
			size += headerLen + len(m.Body)
			inner := 0
			for _, data := range Attributes(m.Body) {
				inner += attrHeaderLen + len(data)
			}
			if inner > len(m.Body) {
				t.Errorf("%d bytes of attributes in %d", inner, len(m.Body))
			}
		}
		if size > len(b) {
			t.Errorf("%d bytes of messages in %d", size, len(b))
		}
	})
}
