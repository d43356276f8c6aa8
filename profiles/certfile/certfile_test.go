package certfile_test

import (
	"crypto/x509"
	"os"
	"strings"
	"testing"
	"time"

	"sshbroker/profiles/certfile"
	"sshbroker/profiles/tuntest"
)

// TestLoad: what the files hold is there, its sum changes with them and with nothing
// else, and its time is judged by whoever asks.
func TestLoad(t *testing.T) {
	authority := tuntest.NewAuthority(t, "ca")
	cert, key := authority.Issue(t, "me", nil)
	names := certfile.Names{Authorities: []string{authority.File}, Certificate: cert, Key: key}
	first, err := certfile.Load(names)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.Certificate.Leaf.Verify(x509.VerifyOptions{Roots: first.Roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	again, err := certfile.Load(names)
	if err != nil || again.Sum != first.Sum {
		t.Errorf("the same files have another sum (%v)", err)
	}
	authority.Issue(t, "me", nil) // into the same files
	other, err := certfile.Load(names)
	if err != nil || other.Sum == first.Sum {
		t.Errorf("other files have the same sum (%v)", err)
	}
	leaf := first.Certificate.Leaf
	for at, want := range map[time.Time]string{
		leaf.NotBefore.Add(-time.Second): "not valid before", leaf.NotBefore: "", leaf.NotAfter: "", leaf.NotAfter.Add(time.Second): "has expired",
	} {
		if err := first.Current(at); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("at %s: %v; want %q", at, err, want)
		}
	}
	none, err := certfile.Load(certfile.Names{Authorities: names.Authorities})
	if err != nil || none.Certificate != nil || !none.Expires().IsZero() || none.Current(time.Now()) != nil {
		t.Errorf("%+v, %v", none, err)
	}
	if _, err := certfile.Load(certfile.Names{}); err == nil {
		t.Error("nobody is trusted, and that is no error")
	}
}

// TestCertificates: text between certificates does not count, other blocks neither.
func TestCertificates(t *testing.T) {
	authority := tuntest.NewAuthority(t, "ca")
	cert, key := authority.Issue(t, "me", nil)
	var text strings.Builder
	for _, name := range []string{cert, key, authority.File} {
		part, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		text.WriteString("subject=/CN=x\n" + string(part))
	}
	list, err := certfile.Certificates([]byte(text.String()))
	if err != nil || len(list) != 2 {
		t.Errorf("%d certificates, %v", len(list), err)
	}
	for _, bad := range []string{"", "x", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"} {
		if _, err := certfile.Certificates([]byte(bad)); err == nil {
			t.Errorf("%q has certificates", bad)
		}
	}
}
