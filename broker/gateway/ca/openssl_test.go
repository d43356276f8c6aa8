package ca

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// openssl runs the program in a directory and returns what it says.
func openssl(t *testing.T, dir string, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath("openssl")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs openssl (Debian package openssl), and CI=true allows no skip")
		}
		t.Skip("needs openssl (Debian package openssl)")
	}
	cmd := exec.Command(path, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func mustOpenssl(t *testing.T, dir string, args ...string) string {
	t.Helper()
	out, err := openssl(t, dir, args...)
	if err != nil {
		t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func write(t *testing.T, dir, name string, text []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// today is a time at which openssl, which goes by the clock, takes what is issued.
var today = time.Now()

// TestOpenSSLVerifies: a stranger to Go takes chain, purpose and list as they are meant.
func TestOpenSSLVerifies(t *testing.T) {
	for _, kind := range KeyTypes {
		dir := filepath.Join(t.TempDir(), "ca")
		if err := Create(dir, AuthorityOptions{Name: "test", Validity: From(today, time.Hour, 3650*24*time.Hour), DNS: []string{"example.com"}}, mustKey(t, kind),
			[]byte("secret"), today, today.Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		a, err := Open(dir, func() ([]byte, error) { return []byte("secret"), nil })
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		validity := From(today, 5*time.Minute, time.Hour)
		c, err := a.IssueClient(ann, mustKey(t, kind).Public(), validity)
		if err != nil {
			t.Fatal(err)
		}
		s, err := a.IssueServer(Server{Names: []string{"gw.example.com"}}, mustKey(t, kind).Public(), validity)
		if err != nil {
			t.Fatal(err)
		}
		write(t, dir, "client.crt", CertificatePEM(c))
		write(t, dir, "server.crt", CertificatePEM(s))
		verify := func(want string, args ...string) {
			t.Helper()
			out, err := openssl(t, dir, append([]string{"verify", "-x509_strict", "-CAfile", "ca.crt"}, args...)...)
			if (err == nil) != (want == "OK") || !strings.Contains(out, want) {
				t.Errorf("%s: %v, %s: %v %s", kind, args, want, err, out)
			}
		}
		list := []string{"-crl_check", "-CRLfile", "crl.pem"}
		verify("OK", append(list, "-purpose", "sslclient", "client.crt")...)
		verify("OK", append(list, "-purpose", "sslserver", "-verify_hostname", "gw.example.com", "server.crt")...)
		verify("purpose", "-purpose", "sslserver", "client.crt")
		verify("purpose", "-purpose", "sslclient", "server.crt")
		verify("certificate has expired", "-attime", fmt.Sprint(validity.Until.Unix()+1), "client.crt")
		if _, err := a.Revoke(SerialOf(c.SerialNumber), 1, today); err != nil {
			t.Fatal(err)
		}
		if _, err := a.WriteList(today, today.Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		verify("certificate revoked", append(list, "client.crt")...)
		verify("OK", append(list, "server.crt")...)
		verify("CRL has expired", append(list, "-attime", fmt.Sprint(today.Unix()+3601), "server.crt")...)

		if out := mustOpenssl(t, dir, "x509", "-in", "client.crt", "-noout", "-serial"); true {
			if serial, err := ParseSerial(strings.TrimSpace(out)); err != nil || serial != SerialOf(c.SerialNumber) {
				t.Errorf("openssl says %s: %q, %v", out, serial, err)
			}
		}
		mustOpenssl(t, dir, "pkey", "-in", "ca.key", "-passin", "pass:secret", "-check", "-noout")
		if out, err := openssl(t, dir, "pkey", "-in", "ca.key", "-passin", "pass:wrong", "-noout"); err == nil {
			t.Errorf("a wrong passphrase opens the key: %s", out)
		}
	}
}

// TestRequestsOfOpenSSL are read, for each type of key.
func TestRequestsOfOpenSSL(t *testing.T) {
	a := mustOpen(t, create(t, AuthorityOptions{}, ""))
	for name, args := range map[string][]string{"p256": {"-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"}, "p384": {"-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384"},
		"rsa": {"-newkey", "rsa:2048"}, "ed25519": {"-newkey", "ed25519"}, "old": {"-newkey", "rsa:2048", "-newhdr"}} {
		dir := t.TempDir()
		mustOpenssl(t, dir, append([]string{"req", "-new", "-nodes", "-subj", "/CN=admin", "-keyout", "k", "-out", "r"}, args...)...)
		text, err := os.ReadFile(filepath.Join(dir, "r"))
		if err != nil {
			t.Fatal(err)
		}
		r, err := ReadRequest(text)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		cert, err := a.IssueClient(ann, r.Key, short)
		if err != nil || cert.Subject.CommonName != "ann@example.com" {
			t.Errorf("%s: %v, %v", name, cert, err)
			continue
		}
		write(t, dir, "c", CertificatePEM(cert))
		// The certificate is for the key that openssl made.
		if key, cert := mustOpenssl(t, dir, "pkey", "-in", "k", "-pubout"), mustOpenssl(t, dir, "x509", "-in", "c", "-noout", "-pubkey"); key != cert {
			t.Errorf("%s: the key is\n%s, that of the certificate\n%s", name, key, cert)
		}
	}
	dir := t.TempDir()
	mustOpenssl(t, dir, "req", "-new", "-nodes", "-subj", "/CN=x", "-newkey", "rsa:1024", "-keyout", "k", "-out", "r")
	text, _ := os.ReadFile(filepath.Join(dir, "r"))
	if _, err := ReadRequest(text); err == nil {
		t.Error("a key of 1024 bits is taken")
	}
}

// party is one end of a handshake: its certificate, and the authority that it trusts.
type party struct {
	cert tls.Certificate
	pool *x509.CertPool
}

// TestHandshakes has certificates of ours and of an authority that openssl made meet in
// TLS: an authority from outside works as well, and each kind is for its end only.
func TestHandshakes(t *testing.T) {
	ours := filepath.Join(t.TempDir(), "ca")
	if err := Create(ours, AuthorityOptions{Name: "ours", Validity: From(today, time.Hour, 24*time.Hour)}, mustKey(t, "p256"), nil, today, today.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	a := mustOpen(t, ours)
	made := func(client bool) tls.Certificate {
		key := mustKey(t, "ed25519")
		cert, err := a.IssueServer(Server{Addrs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}, key.Public(), From(today, time.Minute, time.Hour))
		if client {
			cert, err = a.IssueClient(ann, key.Public(), From(today, time.Minute, time.Hour))
		}
		if err != nil {
			t.Fatal(err)
		}
		return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
	}
	pool := x509.NewCertPool()
	pool.AddCert(a.Certificate())

	dir := t.TempDir()
	mustOpenssl(t, dir, "req", "-x509", "-nodes", "-newkey", "rsa:2048", "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=theirs", "-days", "2",
		"-addext", "keyUsage=critical,keyCertSign,cRLSign")
	write(t, dir, "client.cnf", []byte("extendedKeyUsage=clientAuth\nkeyUsage=digitalSignature\nsubjectAltName=email:bob@example.com,URI:https://login.example.com/bob\n"))
	write(t, dir, "server.cnf", []byte("extendedKeyUsage=serverAuth\nkeyUsage=digitalSignature\nsubjectAltName=IP:127.0.0.1\n"))
	theirs := func(kind string) tls.Certificate {
		mustOpenssl(t, dir, "req", "-new", "-nodes", "-newkey", "rsa:2048", "-keyout", kind+".key", "-out", kind+".csr", "-subj", "/O=staff/CN="+kind)
		mustOpenssl(t, dir, "x509", "-req", "-in", kind+".csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "1", "-extfile", kind+".cnf", "-out", kind+".crt")
		cert, err := tls.LoadX509KeyPair(filepath.Join(dir, kind+".crt"), filepath.Join(dir, kind+".key"))
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	theirCA, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	theirPool := x509.NewCertPool()
	theirPool.AppendCertsFromPEM(theirCA)

	clients := map[string]party{"our client": {made(true), pool}, "their client": {theirs("client"), theirPool}, "our server as client": {made(false), pool}}
	servers := map[string]party{"our server": {made(false), pool}, "their server": {theirs("server"), theirPool}, "our client as server": {made(true), pool}}
	for clientName, client := range clients {
		for serverName, server := range servers {
			good := !strings.Contains(clientName, "as") && !strings.Contains(serverName, "as")
			// Each end is told of the other's authority.
			err := handshake(t, client.cert, server.pool, server.cert, client.pool)
			if (err == nil) != good {
				t.Errorf("%s at %s: %v", clientName, serverName, err)
			}
			if good { // and not of it, it refuses
				other := pool
				if client.pool == pool {
					other = theirPool
				}
				if err := handshake(t, client.cert, server.pool, server.cert, other); err == nil {
					t.Errorf("%s at %s, which trusts another authority: let in", clientName, serverName)
				}
			}
		}
	}
}

// handshake returns the first error of either end.
func handshake(t *testing.T, client tls.Certificate, servers *x509.CertPool, server tls.Certificate, clients *x509.CertPool) error {
	t.Helper()
	near, far := net.Pipe()
	result := make(chan error, 1)
	go func() {
		c := tls.Server(far, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{server}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients})
		_, err := io.WriteString(c, "in")
		far.Close()
		result <- err
	}()
	c := tls.Client(near, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{client}, RootCAs: servers, ServerName: "127.0.0.1"})
	said, err := io.ReadAll(c)
	near.Close()
	if far := <-result; far != nil {
		return far
	}
	if string(said) == "in" {
		return nil
	}
	return errors.Join(err, fmt.Errorf("the server said %q", said))
}
