package daemon

import (
	"context"
	"time"

	"sshbroker/broker"
	"sshbroker/capture/service"
	"sshbroker/capture/service/client"
)

// carryEvery is how often a user's broker looks whether there is an ssh-captured to
// carry for. Most hosts have none.
const carryEvery = 30 * time.Second

// carry takes what the broker of the whole host hands over for our user.
func (d *Daemon) carry(ctx context.Context) {
	said := ""
	for ctx.Err() == nil {
		if err := d.carryOnce(ctx); err != nil && ctx.Err() == nil && err.Error() != said {
			said = err.Error()
			d.Log.Debug("nothing to carry for a system broker", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(carryEvery):
		}
	}
}

func (d *Daemon) carryOnce(ctx context.Context) error {
	limit, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	source, err := d.captured.carry(limit, client.Options{Log: d.Log})
	if err != nil {
		return err
	}
	defer source.Close()
	d.setCarrier(source)
	defer d.setCarrier(nil)
	d.Log.Info("carries what a system broker hands over")
	return d.broker.Run(ctx, &broker.Capture{
		ID: service.System, Backend: "system", Source: source, User: d.account.name, Groups: d.account.groups,
		FindOrigin: func() bool { return false }, // the system broker has it in its record
	})
}

func (d *Daemon) setCarrier(s capturedSource) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.carrier = s
}

// carries reports whether flows live that a system broker has handed over or that came to
// a listener, or may come to one that was opened by hand.
func (d *Daemon) carries() bool {
	for _, f := range d.broker.Flows() {
		if f.Capture == service.System || f.Record.Backend == backendListener {
			return true
		}
	}
	for _, in := range d.ports.set.List() {
		if in.ByHand {
			return true
		}
	}
	return false
}
