package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"sshbroker/broker/control"
)

func (a *app) metricsCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "metrics",
		GroupID: groupBroker,
		Short:   "Print the metrics of the broker",
		Long: `Print the metrics of the broker in the text format of Prometheus, which other programs
read as well. Attempts by their outcome, and the times that deciding and opening took,
are among them where the configuration has the element metrics.`,
		Example: `  ssh-broker-ctl metrics | grep ssh_broker_attempts_total`,
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			rows, err := fetch[control.MetricsRow](cmd.Context(), a, control.OpMetrics, nil)
			if err != nil {
				return err
			}
			counting := false
			for _, r := range rows {
				counting = counting || r.Counting
				a.printf("%s", r.Text)
			}
			if !counting && !a.quiet {
				fmt.Fprintln(a.err, "hint: attempts and times are not counted: put <metrics/> into the element general of the configuration, then ssh-broker-ctl reload")
			}
			return nil
		},
	}
}
