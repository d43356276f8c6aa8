package interop

// As much of a Kubernetes API server as kubectl needs to list, watch, fetch, send and
// exec, over TLS with a certificate of its own.

import (
	"bufio"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sshbroker/broker/gateway/ca"
	"sshbroker/test/netns"
)

const (
	kubePod   = "podreader-default-pod"
	kubeToken = "token-of-alice"
	kubeBig   = 24 << 20 // bytes of /big
)

// kubeAPI is the server.
type kubeAPI struct {
	caPEM  string
	marker string        // is in what it says
	events chan string   // names of pods that appear to whoever watches
	watch  chan struct{} // gets one for each watch that has begun
}

// startKubeAPI starts it on port 6443 of a machine, for the name api.internal.
func startKubeAPI(t *testing.T, m *netns.Machine, marker string) *kubeAPI {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ca")
	now := time.Now()
	key, err := ca.NewKey("p256")
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.Create(dir, ca.AuthorityOptions{Name: "the cluster's", Validity: ca.From(now, time.Hour, 24*time.Hour)}, key, nil, now, now.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	a, err := ca.Open(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	serverKey, err := ca.NewKey("p256")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := a.IssueServer(ca.Server{Names: []string{"api.internal"}}, serverKey.Public(), ca.From(now, time.Minute, time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	k := &kubeAPI{caPEM: string(ca.CertificatePEM(a.Certificate())), marker: marker, events: make(chan string), watch: make(chan struct{}, 9)}
	server := &http.Server{Handler: http.HandlerFunc(k.serve), ErrorLog: log.New(io.Discard, "", 0),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: serverKey}}}}
	l := m.Listen(t, "tcp", "10.99.2.2:6443")
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.ServeTLS(l, "", "")
	}()
	t.Cleanup(func() {
		server.Close()
		<-served
	})
	return k
}

// config is a kubeconfig for it.
func (k *kubeAPI) config() string {
	return `apiVersion: v1
kind: Config
clusters:
- name: prod # the one behind the bastion
  cluster:
    certificate-authority-data: ` + base64.StdEncoding.EncodeToString([]byte(k.caPEM)) + `
    server: "https://api.internal:6443"
contexts:
- name: work
  context: {cluster: prod, user: alice}
- name: play
  context: {cluster: prod, user: alice, namespace: other}
current-context: work
users:
- name: alice
  user: {token: ` + kubeToken + `}
`
}

type kubeObject map[string]any

func (k *kubeAPI) serve(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "Bearer "+kubeToken {
		http.Error(w, "who are you?", http.StatusUnauthorized)
		return
	}
	const pods = "/api/v1/namespaces/default/pods"
	meta := kubeObject{"resourceVersion": "1"}
	switch path := r.URL.Path; {
	case path == "/version":
		answer(w, kubeObject{"major": "1", "minor": "32", "gitVersion": "v1.32.0"})
	case path == "/api":
		answer(w, kubeObject{"kind": "APIVersions", "versions": []string{"v1"}})
	case path == "/apis":
		answer(w, kubeObject{"kind": "APIGroupList", "apiVersion": "v1", "groups": []any{}})
	case path == "/api/v1":
		answer(w, kubeObject{"kind": "APIResourceList", "groupVersion": "v1", "resources": []any{
			kubeObject{"name": "pods", "singularName": "pod", "namespaced": true, "kind": "Pod", "verbs": []string{"get", "list", "watch"}, "shortNames": []string{"po"}},
			kubeObject{"name": "pods/exec", "namespaced": true, "kind": "PodExecOptions", "verbs": []string{"create", "get"}}}})
	case path == pods && r.URL.Query().Get("watch") != "":
		k.serveWatch(w, r)
	case path == pods:
		answer(w, kubeObject{"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": meta, "columnDefinitions": columns(), "rows": []any{row(kubePod)}})
	case path == pods+"/"+kubePod:
		answer(w, kubeObject{"kind": "Pod", "apiVersion": "v1", "metadata": kubeObject{"name": kubePod, "namespace": "default"},
			"spec": kubeObject{"containers": []any{kubeObject{"name": "main"}}}, "status": kubeObject{"phase": "Running"}})
	case path == pods+"/"+kubePod+"/exec":
		k.serveExec(w, r)
	case path == "/marker":
		fmt.Fprintln(w, k.marker)
	case path == "/big":
		line := []byte(strings.Repeat("0123456789abcde\n", 1<<12))
		for range kubeBig / len(line) {
			if _, err := w.Write(line); err != nil {
				return
			}
		}
	case path == "/sink":
		sum := sha256.New()
		n, err := io.Copy(sum, r.Body)
		fmt.Fprintf(w, "%d %s %v\n", n, hex.EncodeToString(sum.Sum(nil)), err)
	default:
		http.NotFound(w, r)
	}
}

func answer(w http.ResponseWriter, o kubeObject) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(o)
}

func columns() []kubeObject {
	var list []kubeObject
	for _, name := range []string{"Name", "Ready", "Status", "Restarts", "Age"} {
		list = append(list, kubeObject{"name": name, "type": "string", "format": "", "description": "", "priority": 0})
	}
	return list
}

func row(pod string) kubeObject {
	return kubeObject{"cells": []any{pod, "1/1", "Running", "0", "35h"}, "object": kubeObject{"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
		"metadata": kubeObject{"name": pod, "namespace": "default", "resourceVersion": "2"}}}
}

// serveWatch tells of each pod of events at once.
func (k *kubeAPI) serveWatch(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(w).Flush
	_ = flush()
	k.watch <- struct{}{}
	for {
		select {
		case <-r.Context().Done():
			return
		case pod := <-k.events:
			_ = json.NewEncoder(w).Encode(kubeObject{"type": "ADDED", "object": kubeObject{"kind": "Table", "apiVersion": "meta.k8s.io/v1",
				"metadata": kubeObject{"resourceVersion": "2"}, "columnDefinitions": columns(), "rows": []any{row(pod)}}})
			_ = flush()
		}
	}
}

// Channels of v5.channel.k8s.io, the first byte of each message of a WebSocket.
const (
	kubeStdin  = 0
	kubeStdout = 1
	kubeStatus = 3
	kubeClose  = 255
)

// serveExec is a cat: what comes in goes out, until its end.
func (k *kubeAPI) serveExec(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Sec-WebSocket-Protocol") != "v5.channel.k8s.io" {
		http.Error(w, "only WebSocket here", http.StatusBadRequest)
		return
	}
	c, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer c.Close()
	sum := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11")) // RFC 6455 section 1.3
	fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n",
		base64.StdEncoding.EncodeToString(sum[:]))
	for {
		op, message, err := readFrame(buffered.Reader)
		switch {
		case err != nil || op == 8:
			return
		case op == 9: // ping
			_ = writeFrame(c, 10, message)
		case op == 2 && len(message) > 0 && message[0] == kubeStdin:
			_ = writeFrame(c, 2, append([]byte{kubeStdout}, message[1:]...))
		case op == 2 && len(message) == 2 && message[0] == kubeClose && message[1] == kubeStdin:
			_ = writeFrame(c, 2, append([]byte{kubeStatus}, `{"metadata":{},"status":"Success"}`...))
			_ = writeFrame(c, 8, []byte{3, 232}) // 1000: normal
			_, _, _ = readFrame(buffered.Reader)
			return
		}
	}
}

// readFrame reads a frame of a client, which is masked (RFC 6455 section 5.2).
func readFrame(r *bufio.Reader) (op byte, message []byte, err error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	size := uint64(head[1] & 0x7f)
	if head[0]&0x80 == 0 || head[1]&0x80 == 0 {
		return 0, nil, errors.New("a fragment, or not masked")
	}
	long := make([]byte, map[uint64]int{126: 2, 127: 8}[size])
	if _, err := io.ReadFull(r, long); err != nil {
		return 0, nil, err
	}
	switch len(long) {
	case 2:
		size = uint64(binary.BigEndian.Uint16(long))
	case 8:
		size = binary.BigEndian.Uint64(long)
	}
	if size > 1<<20 {
		return 0, nil, errors.New("too long")
	}
	body := make([]byte, 4+size)
	if _, err := io.ReadFull(r, body); err != nil {
		return 0, nil, err
	}
	for i := range body[4:] {
		body[4+i] ^= body[i%4]
	}
	return head[0] & 0x0f, body[4:], nil
}

func writeFrame(w io.Writer, op byte, message []byte) error {
	head := []byte{0x80 | op, byte(len(message))}
	if len(message) > 125 {
		head = binary.BigEndian.AppendUint16([]byte{0x80 | op, 126}, uint16(len(message)))
	}
	if len(message) > 1<<16-1 {
		head = binary.BigEndian.AppendUint64([]byte{0x80 | op, 127}, uint64(len(message)))
	}
	_, err := w.Write(append(head, message...))
	return err
}
