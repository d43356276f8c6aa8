package creds

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"sshbroker/profiles"
)

// agentTime bounds each exchange with the agent but the signatures, which may wait
// for a person's touch.
const agentTime = 5 * time.Second

// agentKey is a key that the agent signs with. Keys of security tokens are among them.
type agentKey struct {
	signer  ssh.Signer
	comment string
}

// agentConn is a connection to the agent that lasts as long as the authentication,
// as the signatures are made over it.
type agentConn struct {
	net.Conn
	unbind func() bool
}

func (a *agentConn) Close() error {
	a.unbind()
	return a.Conn.Close()
}

// dialAgent asks the agent at path for its keys. The caller closes the connection when
// no signature is needed any more.
func dialAgent(ctx context.Context, path string) (*agentConn, []agentKey, error) {
	dialer := net.Dialer{Timeout: agentTime}
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, nil, fmt.Errorf("agent: %w", err)
	}
	conn.SetDeadline(time.Now().Add(agentTime))
	client := agent.NewClient(conn)
	signers, err := client.Signers()
	var listed []*agent.Key
	if err == nil {
		listed, err = client.List()
	}
	if err != nil {
		conn.Close()
		return nil, nil, fmt.Errorf("agent %s: %w", path, err)
	}
	conn.SetDeadline(time.Time{})
	keys := make([]agentKey, len(signers))
	for i, signer := range signers {
		keys[i].signer = signer
		for _, l := range listed {
			if bytes.Equal(l.Blob, signer.PublicKey().Marshal()) {
				keys[i].comment = l.Comment
			}
		}
	}
	return &agentConn{Conn: conn, unbind: context.AfterFunc(ctx, func() { conn.Close() })}, keys, nil
}

// agentKeys returns the keys of the agent; none where it cannot be asked, with a note.
func (s *Session) agentKeys() []agentKey {
	if s.profile.Agent == "" {
		return nil
	}
	conn, keys, err := dialAgent(s.ctx, s.profile.Agent)
	if err != nil {
		s.noteLack("publickey", err)
		s.note(err.Error())
		s.tell(profiles.AgentFailed, "", "", err)
		return nil
	}
	s.agent = conn
	return keys
}
