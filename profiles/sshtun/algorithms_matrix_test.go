package sshtun_test

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"sshbroker/profiles"
	"sshbroker/profiles/sshtun"
	"sshbroker/profiles/tuntest"
)

// algorithmKind is one list of algorithms: how a profile asks for them, and what a server has.
type algorithmKind struct {
	name       string // as ssh-broker-config(5) has it
	good, weak []string
	ask        func(p *profiles.Profile, name string)
	theirs     func(kexInit) []string
}

func algorithmKinds() []algorithmKind {
	good, weak := ssh.SupportedAlgorithms(), ssh.InsecureAlgorithms()
	return []algorithmKind{
		{"Key exchanges", good.KeyExchanges, weak.KeyExchanges,
			func(p *profiles.Profile, name string) { p.KEXs = []string{name} },
			func(k kexInit) []string { return k.KeyExchanges }},
		{"Ciphers", good.Ciphers, weak.Ciphers,
			func(p *profiles.Profile, name string) { p.Ciphers = []string{name} },
			func(k kexInit) []string { return k.CiphersUp }},
		{"MACs", good.MACs, weak.MACs,
			// Some ciphers need none.
			func(p *profiles.Profile, name string) { p.MACs, p.Ciphers = []string{name}, []string{"aes128-ctr"} },
			func(k kexInit) []string { return k.MACsUp }},
		{"Host key algorithms", good.HostKeys, weak.HostKeys,
			func(p *profiles.Profile, name string) { p.HostKeyAlgorithms = []string{name} },
			func(k kexInit) []string { return k.HostKeys }},
	}
}

// TestAlgorithms has each algorithm of ours as the only one of its kind, against each
// server: it carries what is sent, or the server does not have it, and we say so. Weak ones
// are tried where a profile may name them, with SSHBROKER_LONG=1.
func TestAlgorithms(t *testing.T) {
	long := os.Getenv("SSHBROKER_LONG") == "1"
	keys := newHostKeys(t)
	for _, peer := range []struct {
		name  string
		start func(*testing.T, *hostKeys) *profiles.Profile
	}{
		{"InProcess", startInProcess}, {"OpenSSH", startOpenSSH}, {"Dropbear", startDropbear},
	} {
		t.Run(peer.name, func(t *testing.T) {
			p := peer.start(t, keys)
			has := kexInitOf(t, net.JoinHostPort(p.Host, strconv.Itoa(int(p.Port))))
			port := listenRaw(t, func(c net.Conn) { io.Copy(struct{ io.Writer }{c}, c) })
			for _, k := range algorithmKinds() {
				try := k.good
				if long {
					try = slices.Concat(k.good, k.weak)
				}
				for _, name := range try {
					t.Run(strings.ReplaceAll(name, "@", "-at-"), func(t *testing.T) {
						q := *p
						k.ask(&q, name)
						if strings.Contains(name, "-cert-v01@") {
							q.KnownHosts = []string{keys.authorities(t, &q)}
						}
						tr, err := connect(t, &q, nil)
						if !slices.Contains(k.theirs(has), name) {
							if !errors.Is(err, profiles.ErrSetup) {
								t.Errorf("the server has only %s, and the connect ends with %v", strings.Join(k.theirs(has), ","), err)
							}
							return
						}
						if err != nil {
							t.Fatal(err)
						}
						requireEcho(t, tr, port)
						d := tr.(profiles.Describer).Describe()
						if len(q.KEXs) == 1 && d.KeyExchange != name || k.name == "Ciphers" && d.Cipher != name {
							t.Errorf("it says that it uses %s and %s", d.KeyExchange, d.Cipher)
						}
						tr.Close()
					})
				}
			}
		})
	}
}

// TestOfferedAlgorithms holds ssh-broker-config(5) to what is offered, in its order.
func TestOfferedAlgorithms(t *testing.T) {
	source, err := os.ReadFile("../../docs/man/ssh-broker-config.5")
	if err != nil {
		t.Fatal(err)
	}
	page := strings.Join(strings.Fields(strings.ReplaceAll(string(source), `\-`, "-")), " ")
	offered, err := sshtun.Offered(&profiles.Profile{})
	if err != nil {
		t.Fatal(err)
	}
	for i, k := range algorithmKinds() {
		if !slices.Equal(slices.Sorted(slices.Values(k.good)), slices.Sorted(slices.Values(offered[i]))) {
			t.Errorf("%s: offered are %q, tested %q", k.name, offered[i], k.good)
		}
		for _, line := range []string{
			k.name + ": " + strings.Join(offered[i], ", ") + ".",
			k.name + ", weak: " + strings.Join(k.weak, ", ") + ".",
		} {
			if !strings.Contains(page, line) {
				t.Errorf("ssh-broker-config(5) does not say: %s", line)
			}
		}
	}
}

// requireEcho sends a byte and then a megabyte to and fro.
func requireEcho(t *testing.T, tr profiles.Transport, port uint16) {
	t.Helper()
	s, err := tr.Open(t.Context(), profiles.Destination{Host: "127.0.0.1", Port: port})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.SetDeadline(time.Now().Add(30 * time.Second))
	var one [1]byte
	if _, err := s.Write([]byte{'.'}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(s, one[:]); err != nil || one[0] != '.' {
		t.Fatalf("got %q, %v", one, err)
	}
	data := make([]byte, 1<<20)
	rand.Read(data)
	sent := make(chan error, 1)
	go func() {
		_, err := s.Write(data)
		sent <- errors.Join(err, s.CloseWrite())
	}()
	got, err := io.ReadAll(s)
	if err = errors.Join(err, <-sent); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d of %d bytes came back: %v", len(got), len(data), err)
	}
}

// kexInit is SSH_MSG_KEXINIT, RFC 4253 section 7.1.
type kexInit struct {
	Cookie          [16]byte `sshtype:"20"`
	KeyExchanges    []string
	HostKeys        []string
	CiphersUp       []string
	CiphersDown     []string
	MACsUp          []string
	MACsDown        []string
	CompressionUp   []string
	CompressionDown []string
	LanguagesUp     []string
	LanguagesDown   []string
	FirstKexFollows bool
	Reserved        uint32
}

// kexInitOf asks a server what it has.
func kexInitOf(t *testing.T, address string) (k kexInit) {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	fmt.Fprint(c, "SSH-2.0-asks\r\n")
	in := bufio.NewReader(c)
	if line, err := in.ReadString('\n'); err != nil || !strings.HasPrefix(line, "SSH-2.0-") {
		t.Fatalf("the server said %q, %v", line, err)
	}
	var head [5]byte // RFC 4253 section 6: length, padding
	if _, err := io.ReadFull(in, head[:]); err != nil {
		t.Fatal(err)
	}
	length := binary.BigEndian.Uint32(head[:])
	if length > 35000 || length < uint32(head[4])+1 {
		t.Fatalf("a packet of %d bytes", length)
	}
	packet := make([]byte, length-1)
	if _, err := io.ReadFull(in, packet); err != nil {
		t.Fatal(err)
	}
	if err := ssh.Unmarshal(packet[:len(packet)-int(head[4])], &k); err != nil {
		t.Fatal(err)
	}
	return k
}

// hostKeys are one of each type that a server may have, with a certificate each.
type hostKeys struct {
	dir       string
	files     []string
	signers   []ssh.Signer
	certs     []ssh.Signer
	authority ssh.Signer
}

func newHostKeys(t *testing.T) *hostKeys {
	t.Helper()
	keys := &hostKeys{dir: t.TempDir()}
	authority := keyPair(t, "")
	var err error
	if keys.authority, err = ssh.ParsePrivateKey(authority.Private); err != nil {
		t.Fatal(err)
	}
	add := func(name string, private any, err error) {
		if err != nil {
			t.Fatal(err)
		}
		block, err := ssh.MarshalPrivateKey(private, "")
		if err != nil {
			t.Fatal(err)
		}
		keys.add(t, name, pem.EncodeToMemory(block))
	}
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		private, err := ecdsa.GenerateKey(curve, rand.Reader)
		add("ecdsa"+curve.Params().Name, private, err)
	}
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	add("rsa", private, err)
	keys.add(t, "ed25519", keyPair(t, "").Private)
	return keys
}

func (keys *hostKeys) add(t *testing.T, name string, text []byte) {
	t.Helper()
	signer, err := ssh.ParsePrivateKey(text)
	if err != nil {
		t.Fatal(err)
	}
	cert := &ssh.Certificate{Key: signer.PublicKey(), CertType: ssh.HostCert, KeyId: name,
		ValidPrincipals: []string{"127.0.0.1"}, ValidBefore: ssh.CertTimeInfinity}
	if err := cert.SignCert(rand.Reader, keys.authority); err != nil {
		t.Fatal(err)
	}
	certSigner, err := ssh.NewCertSigner(cert, signer)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(keys.dir, name)
	for name, text := range map[string][]byte{path: text, path + "-cert.pub": ssh.MarshalAuthorizedKey(cert)} {
		if err := os.WriteFile(name, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	keys.files, keys.signers, keys.certs = append(keys.files, path), append(keys.signers, signer), append(keys.certs, certSigner)
}

// known is a known_hosts file with all of them, beside what the profile knows; authorities
// is one with the certification authority alone.
func (keys *hostKeys) known(t *testing.T, p *profiles.Profile) string {
	t.Helper()
	text, err := os.ReadFile(p.KnownHosts[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range keys.signers {
		text = fmt.Appendf(text, "[%s]:%d %s", p.Host, p.Port, ssh.MarshalAuthorizedKey(s.PublicKey()))
	}
	return file(t, "known_hosts", string(text))
}

func (keys *hostKeys) authorities(t *testing.T, p *profiles.Profile) string {
	t.Helper()
	return file(t, "known_hosts", fmt.Sprintf("@cert-authority [%s]:%d %s", p.Host, p.Port, ssh.MarshalAuthorizedKey(keys.authority.PublicKey())))
}

func startInProcess(t *testing.T, keys *hostKeys) *profiles.Profile {
	good, weak := ssh.SupportedAlgorithms(), ssh.InsecureAlgorithms()
	_, p := tuntest.StartServer(t, &tuntest.Server{
		// The last one of a type counts: those of the files, not the server's own.
		MoreKeys: slices.Concat(keys.signers, keys.certs),
		Algorithms: ssh.Algorithms{KeyExchanges: slices.Concat(good.KeyExchanges, weak.KeyExchanges),
			Ciphers: slices.Concat(good.Ciphers, weak.Ciphers), MACs: slices.Concat(good.MACs, weak.MACs)},
	})
	p.KnownHosts = []string{keys.known(t, p)}
	return p
}

func startOpenSSH(t *testing.T, keys *hostKeys) *profiles.Profile {
	var lines []string
	for _, file := range keys.files {
		lines = append(lines, "HostKey "+file, "HostCertificate "+file+"-cert.pub")
	}
	for option, query := range map[string]string{"KexAlgorithms": "kex", "Ciphers": "cipher", "MACs": "mac", "HostKeyAlgorithms": "HostKeyAlgorithms"} {
		out, err := exec.Command("ssh", "-Q", query).Output()
		tuntest.Need(t, err == nil, "needs ssh (Debian package openssh-client): %v", err)
		lines = append(lines, option+" "+strings.Join(strings.Fields(string(out)), ","))
	}
	p := tuntest.StartOpenSSH(t, lines...).Profile
	p.KnownHosts = []string{keys.known(t, p)}
	return p
}

func startDropbear(t *testing.T, keys *hostKeys) *profiles.Profile {
	var options []string
	// It takes four keys, and has an Ed25519 one already.
	for _, file := range slices.DeleteFunc(slices.Clone(keys.files[:len(keys.files)-1]), func(f string) bool { return strings.HasSuffix(f, "P-384") }) {
		own := filepath.Join(t.TempDir(), "key")
		out, err := exec.Command("dropbearconvert", "openssh", "dropbear", file, own).CombinedOutput()
		tuntest.Need(t, err == nil, "needs dropbearconvert (Debian package dropbear-bin): %s", out)
		options = append(options, "-r", own)
	}
	p := tuntest.StartDropbear(t, options...).Profile
	p.KnownHosts = []string{keys.known(t, p)}
	return p
}
