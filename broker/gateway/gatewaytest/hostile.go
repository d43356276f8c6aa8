package gatewaytest

import (
	"fmt"
	"strings"
)

// HostileRequest is bytes that somebody sends in place of a good CONNECT.
type HostileRequest struct {
	Text   string
	Status int // that it is answered with; 0: it does not end as a request would, and is closed
}

// Hostile is a table of them. None may be carried, none may harm.
func Hostile() []HostileRequest {
	var all []HostileRequest
	add := func(status int, texts ...string) {
		for _, text := range texts {
			all = append(all, HostileRequest{text, status})
		}
	}
	each := func(status int, form string, values ...string) {
		for _, v := range values {
			add(status, strings.Replace(form, "%", v, 1))
		}
	}
	long := strings.Repeat

	// Targets that are no host with a port.
	each(400, "CONNECT % HTTP/1.1\r\nHost: x\r\n\r\n",
		"", "a", "a.test", ":", ":443", "a.test:", "a.test:0", "a.test:00", "a.test:080", "a.test:+443", "a.test:-1", "a.test:65536", "a.test:99999999999999999999",
		"a.test:0x50", "a.test:443a", "a.test:443:", "a.test:4_3", "a.test:\u0661", "a.test:https", "/", "/a.test:443", "//a.test:443", "*", "http://a.test:443/", "https://a.test:443",
		"http://a.test", "a.test:443/", "a.test:443/x", "a.test:443?x", "a.test:443#x", "a.test/x:443", "a?b:443", "a#b:443", "user@a.test:443", "user:pw@a.test:443", "@a.test:443",
		"a.test@:443", "a:b:443", "::1:443", "2001:db8::1:443", "[::1]", "[::1]443", "[]:443", "[::1:443", "::1]:443", "[a.test]:443", "[127.0.0.1]:443", "[fe80::1%25eth0]:443",
		"[fe80::1%eth0]:443", "[::1]]:443", "[[::1]]:443", "[::1]:0", "[::ffff:127.0.0.1%1]:443", "[v1.x]:443", "[::1]:443:443", "fe80::1%eth0:443", "a%00.test:443", "a%2e.test:443",
		"a\\b:443", "a\"b:443", "a<b:443", "a>b:443", "a|b:443", "a`b:443", "a{b}:443", "a^b:443", "a.test:443\tx", "a\tb:443",
		long("a", 256)+":443", long("a.", 200)+":443")
	// Names and addresses that a request may have, and that lead nowhere.
	each(400, "CONNECT % HTTP/1.1\r\nHost: x\r\n\r\n",
		"0177.0.0.1:443", "2130706433:443", "0x7f000001:443", "0x7f.1:443", "127.1:443", "127.0.0.1.:443", "127.0.0.01:443", "1.2.3.4.5:443", "256.1.1.1:443", "a..test:443", ".a.test:443", "..:443", ".:443",
		"-a.test:443", "a b.test:443", long("a", 64)+".test:443", "a_b$.test:443", "a*.test:443", "a,b.test:443", "a;b.test:443", "a'b.test:443", "a(b).test:443", "a&b.test:443", "a=b.test:443", "a!b.test:443", "a~b.test:443",
		"xn--a.test:443", "\xff\xfe.test:443", "\u202ea.test:443")

	// Request lines that are none.
	add(400, " CONNECT a.test:443 HTTP/1.1\r\nHost: x\r\n\r\n", "CONNECT  a.test:443 HTTP/1.1\r\nHost: x\r\n\r\n", "CONNECT a.test:443  HTTP/1.1\r\nHost: x\r\n\r\n",
		"CONNECT a.test:443 HTTP/1.1 \r\nHost: x\r\n\r\n", "CONNECT\ta.test:443\tHTTP/1.1\r\nHost: x\r\n\r\n", "CONNECT a.test:443\r\nHost: x\r\n\r\n", "CONNECT a.test:443 \r\n\r\n", "CONNECT\r\n\r\n",
		"CONNECT a.test:443 HTTP\r\nHost: x\r\n\r\n", "CONNECT a.test:443 HTTP/1\r\nHost: x\r\n\r\n", "CONNECT a.test:443 HTTP/1.10\r\nHost: x\r\n\r\n", "CONNECT a.test:443 HTTP/11.1\r\nHost: x\r\n\r\n",
		"CONNECT a.test:443 http/1.1\r\nHost: x\r\n\r\n", "CONNECT a.test:443 HTTP/a.b\r\nHost: x\r\n\r\n", "CONNECT a.test:443 HTTPS/1.1\r\nHost: x\r\n\r\n", "CONNECT a.test:443 HTTP/1.1 x\r\nHost: x\r\n\r\n",
		"\r\nCONNECT a.test:443 HTTP/1.1\r\nHost: x\r\n\r\n", "\r\n\r\n", "CONN(ECT) a.test:443 HTTP/1.1\r\nHost: x\r\n\r\n", "CONNECT\x00 a.test:443 HTTP/1.1\r\nHost: x\r\n\r\n",
		"C\xc3\x96NNECT a.test:443 HTTP/1.1\r\nHost: x\r\n\r\n", "CONNECT a.test:443 HTTP/1.1\nHost: x\n\n", "CONNECT a.test:443 HTTP/1.1\r\nHost: x\n\r\n", "CONNECT a.test:443 HTTP/1.1\rHost: x\r\r\n\r\n")
	add(505, "CONNECT a.test:443 HTTP/2.0\r\nHost: x\r\n\r\n", "CONNECT a.test:443 HTTP/0.9\r\nHost: x\r\n\r\n", "CONNECT a.test:443 HTTP/1.2\r\nHost: x\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "GET / HTTP/9.9\r\nHost: x\r\n\r\n")
	each(405, "% HTTP/1.1\r\nHost: a.test\r\n\r\n",
		"GET /", "GET http://a.test/", "HEAD /", "POST /", "PUT /", "DELETE /", "OPTIONS *", "TRACE /", "PATCH /", "connect a.test:443", "Connect a.test:443", "CONNECTX a.test:443", "PROPFIND /", "RDG_OUT_DATA /remoteDesktopGateway/")

	// Header fields.
	each(400, "CONNECT a.test:443 HTTP/1.1\r\n%\r\n\r\n",
		"X: y", "Host: a\r\nHost: a", "Host: a\r\nhost: b", "Host : a", " Host: a", "\tHost: a", "Host", "Host: x\r\n folded", "Host: x\r\n\tfolded: y", ": x\r\nHost: a", "Host: x\r\nbad name: y",
		"Host: x\r\nb(ad): y", "Host: x\r\nb\x00d: y", "Host: x\r\nA: \x00", "Host: x\r\nA: \x1b[2J", "Host: x\r\nA: \x7f", "Host: x\r\nA: b\rc", "Host: x\r\nA: b\nc: d", "Host: x\r\n\xc3\xa4: y",
		"Host: x\r\nContent-Length: 0", "Host: x\r\nContent-Length: 5", "Host: x\r\nContent-Length: -1", "Host: x\r\ncontent-length: 5\r\nContent-Length: 6", "Host: x\r\nTransfer-Encoding: chunked", "Host: x\r\nTransfer-Encoding: identity",
		"Host: x\r\ntransfer-encoding: chunked\r\nContent-Length: 3", "Host: x\r\nTrailer: A", "Host: x\r\nUpgrade: websocket\r\nConnection: Upgrade", "Host: x\r\nExpect: 100-continue",
		"Host: x\r\nTransfer-Encoding : chunked", "Host: x\r\nContent-Length\x0b: 4", "Host: x\r\nTransfer-Encoding: \x0bchunked", "Host: x\r\nX: y\r\n\tTransfer-Encoding: chunked",
		"Host: x\r\nSsh-Broker-Flow: a\r\nSsh-Broker-Flow: b")
	add(400, "CONNECT a.test:443 HTTP/1.1\r\n\r\n")
	add(431, "CONNECT a.test:443 HTTP/1.1\r\nHost: x\r\n"+long("A: b\r\n", 65)+"\r\n", "CONNECT a.test:443 HTTP/1.1\r\nHost: x\r\nA: "+long("b", 9000)+"\r\n\r\n",
		"CONNECT "+long("a", 9000)+":443 HTTP/1.1\r\n", long("A", 9000), "CONNECT a.test:443 HTTP/1.1\r\n"+long("\r", 9000))

	// What is spoken elsewhere.
	add(400, "SSH-2.0-OpenSSH_9.2\r\n\r\n", "EHLO a.test\r\n\r\n", "\x05\x01\x00", "\x04\x01\x01\xbb\x7f\x00\x00\x01\x00", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "\x00\x00\x00\x08\x04\xd2\x16\x2f",
		"\x03\x00\x00\x13\x0e\xe0\x00\x00\x00\x00\x00", "\xff\xfb\x01\xff\xfd\x03\r\n\r\n", "*1\r\n$4\r\nPING\r\n\r\n", "<?xml version=\"1.0\"?>\r\n\r\n", "PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n\r\n",
		"\r\n\r\n\x00\r\nQUIT\n", "{\"method\":\"CONNECT\"}\r\n\r\n")
	// Beginnings of something.
	add(0, "C", "CONNECT", "CONNECT a.test:443 HTTP/1.1", "CONNECT a.test:443 HTTP/1.1\r\nHost: x", "CONNECT a.test:443 HTTP/1.1\r\nHost: x\r\n", "CONNECT a.test:443 HTTP/1.1\r\nHost: x\r\n\r", "\r\n", "\r")
	for i := range all {
		if all[i].Text == "" {
			panic(fmt.Sprintf("entry %d is empty", i))
		}
	}
	return all
}
