package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
)

// maxList bounds a list of services, in bytes and in entries.
const (
	maxList    = 1 << 20
	maxEntries = 10_000
)

// Service is one thing that a gateway offers. Its texts are the gateway's: make them fit
// for a terminal before they are shown.
type Service struct {
	Name        string   `json:"name"`
	Kind        string   `json:"kind"`                  // "tcp", "http-connect", or what the gateway's administrator calls it
	Target      string   `json:"target,omitempty"`      // host:port, of a service with a destination of its own
	Hosts       []string `json:"hosts,omitempty"`       // patterns of what the client may name
	Port        uint16   `json:"port,omitempty"`        // that the gateway suggests for a listener; 0: none
	Overridable bool     `json:"overridable,omitempty"` // the user may take another Port
	Description string   `json:"description,omitempty"`
}

// WriteServices writes the list that answers a Request of KindServices, after an Answer
// of OK.
func WriteServices(w io.Writer, list []Service) error {
	if list == nil {
		list = []Service{}
	}
	text, err := json.Marshal(list)
	if err != nil {
		return fmt.Errorf("services: %w", err)
	}
	if len(text) > maxList || len(list) > maxEntries {
		return fmt.Errorf("services: %d in %d bytes are too many", len(list), len(text))
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(text))), text...))
	return err
}

// ReadServices reads what WriteServices wrote. What it does not know in it, as of a newer
// gateway, it passes over. Its error is ErrMalformed, or r's.
func ReadServices(r io.Reader) ([]Service, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, fmt.Errorf("services: %w", err)
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > maxList {
		return nil, fmt.Errorf("services: %w: %d bytes", ErrMalformed, n)
	}
	// Grown as the bytes come, as their number is only promised.
	var text bytes.Buffer
	if _, err := io.CopyN(&text, r, int64(n)); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("services: %w", err)
	}
	var list []Service
	if err := json.Unmarshal(text.Bytes(), &list); err != nil {
		return nil, fmt.Errorf("services: %w: %w", ErrMalformed, err)
	}
	if len(list) > maxEntries {
		return nil, fmt.Errorf("services: %w: %d of them", ErrMalformed, len(list))
	}
	return list, nil
}
