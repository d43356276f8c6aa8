package wire_test

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"

	"sshbroker/profiles/tlstun/wire"
)

func TestRequest(t *testing.T) {
	for _, r := range []wire.Request{
		{Kind: wire.KindFlow, Host: "db.example.org", Port: 5432, Service: "db", Flow: "0123-abc", Program: "/usr/bin/psql"},
		{Kind: wire.KindFlow, Host: "2001:db8::1", Port: 65535},
		{Kind: wire.KindFlow, Service: "fixed"},
		{Kind: wire.KindServices},
		{Kind: wire.KindFlow, Host: strings.Repeat("a", 255), Port: 1, Service: strings.Repeat("b", 255), Flow: strings.Repeat("c", 64), Program: strings.Repeat("d", 1024)},
	} {
		var b bytes.Buffer
		if err := wire.WriteRequest(&b, r); err != nil {
			t.Errorf("%+v: %v", r, err)
			continue
		}
		b.WriteString("data")
		got, err := wire.ReadRequest(&b)
		if err != nil || got != r {
			t.Errorf("%+v, %v; want %+v", got, err, r)
		}
		if b.String() != "data" {
			t.Errorf("left %q", b.String())
		}
	}
}

func TestRequestRefused(t *testing.T) {
	for name, r := range map[string]wire.Request{
		"the zero value":    {},
		"no kind":           {Host: "a", Port: 1},
		"unknown kind":      {Kind: 9, Host: "a", Port: 1},
		"nothing to go to":  {Kind: wire.KindFlow},
		"host without port": {Kind: wire.KindFlow, Host: "a"},
		"port without host": {Kind: wire.KindFlow, Service: "s", Port: 1},
		"long host":         {Kind: wire.KindFlow, Host: strings.Repeat("a", 256), Port: 1},
		"line end in host":  {Kind: wire.KindFlow, Host: "a\nb", Port: 1},
		"bad UTF-8":         {Kind: wire.KindFlow, Host: "a", Port: 1, Flow: "\xff"},
	} {
		var b bytes.Buffer
		if err := wire.WriteRequest(&b, r); !errors.Is(err, wire.ErrMalformed) || b.Len() > 0 {
			t.Errorf("%s: %v, wrote %d bytes", name, err, b.Len())
		}
	}
	// A program's path may be anything; it is made to fit.
	var b bytes.Buffer
	err := wire.WriteRequest(&b, wire.Request{Kind: wire.KindServices, Program: "/tmp/\x1b[2J" + strings.Repeat("é", 1000)})
	if err != nil {
		t.Fatal(err)
	}
	got, err := wire.ReadRequest(&b)
	if err != nil || !strings.HasPrefix(got.Program, "/tmp/?[2Jéé") || len(got.Program) > 1024 {
		t.Errorf("%q, %v", got.Program, err)
	}
}

func TestRequestCutShort(t *testing.T) {
	var b bytes.Buffer
	if err := wire.WriteRequest(&b, wire.Request{Kind: wire.KindFlow, Host: "a", Port: 1, Flow: "f"}); err != nil {
		t.Fatal(err)
	}
	whole := b.Bytes()
	for n := range len(whole) {
		_, err := wire.ReadRequest(bytes.NewReader(whole[:n]))
		if want := map[bool]error{true: io.EOF, false: io.ErrUnexpectedEOF}[n == 0]; !errors.Is(err, want) {
			t.Errorf("%d bytes of %d: %v; want %v", n, len(whole), err, want)
		}
	}
	for _, bad := range []string{"\x00\x00", "\xff\xff", "\x00\x01\x02", "\x00\x01\x01",
		string(whole[:len(whole)-1]) + "\xff", "\x00" + string(rune(whole[1]+1)) + string(whole[2:]) + "x"} {
		if _, err := wire.ReadRequest(strings.NewReader(bad)); !errors.Is(err, wire.ErrMalformed) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestAnswer(t *testing.T) {
	for status := wire.OK; status <= wire.Failed; status++ {
		want := wire.Answer{Status: status, Detail: "as it is", Rule: "db/allow_patterns[2]"}
		var b bytes.Buffer
		if err := wire.WriteAnswer(&b, want); err != nil {
			t.Fatal(err)
		}
		if got, err := wire.ReadAnswer(&b); err != nil || got != want {
			t.Errorf("%+v, %v; want %+v", got, err, want)
		}
	}
	for _, status := range []wire.Status{0, wire.Failed + 1} {
		if err := wire.WriteAnswer(io.Discard, wire.Answer{Status: status}); !errors.Is(err, wire.ErrMalformed) {
			t.Errorf("%s: %v", status, err)
		}
		if _, err := wire.ReadAnswer(strings.NewReader("\x00\x06\x01" + string(rune(status)) + "\x00\x00\x00\x00")); !errors.Is(err, wire.ErrMalformed) {
			t.Errorf("reading %s: %v", status, err)
		}
	}
	var b bytes.Buffer
	if err := wire.WriteAnswer(&b, wire.Answer{Status: wire.Failed, Detail: strings.Repeat("\x00\n", 2000)}); err != nil {
		t.Fatal(err)
	}
	if got, err := wire.ReadAnswer(&b); err != nil || len(got.Detail) != 2048 || !strings.HasPrefix(got.Detail, "? ? ") {
		t.Errorf("%d bytes, %v", len(got.Detail), err)
	}
}

func TestServices(t *testing.T) {
	list := []wire.Service{
		{Name: "db", Kind: "tcp", Target: "10.0.0.1:5432", Port: 15432, Overridable: true, Description: "the books"},
		{Name: "all", Kind: "http-connect", Hosts: []string{"*.example.org", "10.0.0.0/8"}},
	}
	var b bytes.Buffer
	if err := wire.WriteServices(&b, list); err != nil {
		t.Fatal(err)
	}
	if got, err := wire.ReadServices(&b); err != nil || !reflect.DeepEqual(got, list) || b.Len() > 0 {
		t.Errorf("%+v, %v", got, err)
	}
	if err := wire.WriteServices(&b, nil); err != nil {
		t.Fatal(err)
	}
	if got, err := wire.ReadServices(&b); err != nil || got == nil || len(got) != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	if err := wire.WriteServices(io.Discard, make([]wire.Service, 10_001)); err == nil {
		t.Error("a list without bounds was written")
	}
	for _, bad := range []string{"\x00\x10\x00\x01", "\x00\x00\x00\x01{", "\x00\x00\x00\x02{}", "\xff\xff\xff\xff"} {
		if _, err := wire.ReadServices(strings.NewReader(bad)); !errors.Is(err, wire.ErrMalformed) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := wire.ReadServices(strings.NewReader("\x00\x00\x00\x09[]")); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut short: %v", err)
	}
}

// FuzzReadRequest: whatever is read is written as it was.
func FuzzReadRequest(f *testing.F) {
	var b bytes.Buffer
	wire.WriteRequest(&b, wire.Request{Kind: wire.KindFlow, Host: "a.example", Port: 1, Service: "s", Flow: "f", Program: "/p"})
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		q, err := wire.ReadRequest(r)
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := wire.WriteRequest(&out, q); err != nil || !bytes.Equal(out.Bytes(), in[:len(in)-r.Len()]) {
			t.Fatalf("%+v: %v, %x from %x", q, err, out.Bytes(), in)
		}
	})
}

func FuzzReadAnswer(f *testing.F) {
	var b bytes.Buffer
	wire.WriteAnswer(&b, wire.Answer{Status: wire.Refused, Detail: "d", Rule: "r"})
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		a, err := wire.ReadAnswer(r)
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := wire.WriteAnswer(&out, a); err != nil || !bytes.Equal(out.Bytes(), in[:len(in)-r.Len()]) {
			t.Fatalf("%+v: %v, %x from %x", a, err, out.Bytes(), in)
		}
	})
}

func FuzzReadServices(f *testing.F) {
	var b bytes.Buffer
	wire.WriteServices(&b, []wire.Service{{Name: "n", Hosts: []string{"h"}}})
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, in []byte) {
		if list, err := wire.ReadServices(bytes.NewReader(in)); err == nil && len(list) > 10_000 {
			t.Fatal("too many")
		}
	})
}
