package gateway

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
	"time"

	"sshbroker/broker/gateway/gatewaytest"
	"sshbroker/profiles/tlstun/wire"
)

// A connection that was let in by an authority's certificate ends with that, however long
// the client's own may be good for.
func TestAuthorityExpires(t *testing.T) {
	w := newWorld(t, setup{})
	now := time.Now()
	middle := w.ca.Sign(&x509.Certificate{Subject: pkix.Name{CommonName: "middle"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(2 * time.Second)})
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf := gatewaytest.ClientTemplate("anna@example.com")
	leaf.SerialNumber, leaf.NotBefore, leaf.NotAfter = big.NewInt(now.UnixNano()), now.Add(-time.Hour), now.Add(time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, leaf, middle.Leaf, key.Public(), middle.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	if leaf, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	cert := tls.Certificate{Certificate: [][]byte{der, middle.Leaf.Raw}, PrivateKey: key, Leaf: leaf}
	session := w.mux(cert, "gw.test")
	w.echoes(w.open(session, w.flowTo("a.test")), "hello")
	w.awaitEvent("close", "expired")
	<-session.Done()
}

// What is open goes on when a revocation list is out of date, and no flow begins, in a
// connection that is there already as little as in a new one.
func TestListOutOfDate(t *testing.T) {
	w := prepare(t, setup{})
	gatewaytest.Write(t, w.dir, "ca.crl", w.ca.List(func(l *x509.RevocationList) { l.NextUpdate = time.Now().Add(3 * time.Second) }))
	w.start()
	session := w.mux(w.client("anna@example.com"), "gw.test")
	live := w.open(session, w.flowTo("a.test"))
	if err := w.eventually(func() bool {
		s, a, err := ask(session, w.flowTo("a.test"))
		if s != nil {
			s.Close()
		}
		return err != nil || a.Status != wire.OK && a.Status != wire.Limited
	}); err != nil {
		t.Errorf("flows begin: %v", err)
	}
	w.echoes(live, "still here")
}
