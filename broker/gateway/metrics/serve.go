package metrics

import (
	"fmt"
	"log/slog"

	"sshbroker/broker/scrape"
)

// Serve has the metrics read at a Unix socket ("unix" and a path), which root and our own
// account may connect to, or at a loopback address ("tcp"). It returns at once; the caller
// closes the server.
func (m *Metrics) Serve(network, address string, log *slog.Logger) (*scrape.Server, error) {
	s, err := scrape.Serve(network, address, scrape.Options{Metrics: m.registry, Log: log})
	if err != nil {
		return nil, fmt.Errorf("metrics at %s: %w", address, err)
	}
	return s, nil
}
