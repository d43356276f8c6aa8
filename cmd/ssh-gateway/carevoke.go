package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"sshbroker/broker/gateway/ca"
	"sshbroker/broker/replace"
)

func (r *caRun) revokeCommand() *cobra.Command {
	var reason, out string
	next := days(nextUpdate)
	cmd := &cobra.Command{
		Use:   "revoke SERIAL|FILE [options]",
		Short: "Have a certificate count no more",
		Long: `Note that a certificate is revoked, and sign a new revocation list. The certificate is
given by its serial number in hexadecimal, as ssh-gateway ca list and openssl x509 print
it, or by its file. Gateways refuse it once they have read the list again.

Reasons: ` + strings.Join(ca.Reasons(), ", ") + ".",
		Example: `  ssh-gateway ca revoke ann@example.com.crt --reason keyCompromise
  ssh-gateway ca revoke 3f:9a:01:... --out /etc/ssh-gateway/crl.pem`,
		Args: caArgs("SERIAL or FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			why, err := ca.ParseReason(reason)
			if err != nil {
				return caUsage(cmd, "--reason: %w", err)
			}
			a, err := r.open(cmd.Context())
			if err != nil {
				return err
			}
			defer a.Close()
			serial, err := serialOf(a, args[0])
			if err != nil {
				return err
			}
			e, err := a.Revoke(serial, why, time.Now())
			already := errors.Is(err, ca.ErrRevoked)
			if err != nil && !already {
				return caFailed(err)
			}
			if already {
				fmt.Fprintf(cmd.ErrOrStderr(), "note: %v\n", err)
			}
			row := caRow{Serial: serial, Revoked: e.Revoked, Reason: e.Reason.String(), From: e.Validity.From, Until: e.Validity.Until}
			return r.list(cmd, a, time.Duration(next), out, row, fmt.Sprintf("%s is revoked: %s\n", serial, strings.Join(e.Names, " ")))
		},
	}
	f := cmd.Flags()
	f.StringVar(&reason, "reason", ca.Reasons()[0], "why: a `REASON` of those above")
	nextUpdateFlag(f, &next)
	listOutFlag(f, &out)
	return cmd
}

func listOutFlag(f *pflag.FlagSet, out *string) {
	f.StringVar(out, "out", "", "put a copy of the list in the place of this `FILE`, mode 0644")
}

// serialOf reads the serial number of a certificate, or its file.
func serialOf(a *ca.Authority, arg string) (string, error) {
	text, err := readSmall(arg)
	if errors.Is(err, fs.ErrNotExist) {
		serial, notOne := ca.ParseSerial(arg)
		if notOne != nil {
			return "", fmt.Errorf("%s is neither a file nor a serial number in hexadecimal", arg)
		}
		return serial, nil
	}
	if err != nil {
		return "", err
	}
	cert, err := ca.ReadCertificate(text)
	if err != nil {
		return "", fmt.Errorf("%s: %w", arg, err)
	}
	serial, err := a.SerialIn(cert)
	if err != nil {
		return "", fmt.Errorf("%s: %w", arg, err)
	}
	return serial, nil
}

func (r *caRun) crlCommand() *cobra.Command {
	var out string
	next := days(nextUpdate)
	cmd := &cobra.Command{
		Use:   "crl [options]",
		Short: "Sign the revocation list anew",
		Long: `Sign the list of revoked certificates anew, with a higher number and a later time at which
the next one is due. A gateway refuses every certificate of an authority whose list is out
of date, so have this run well before, by a timer or cron: once a week for the default.`,
		Example: `  ssh-gateway ca crl --out /etc/ssh-gateway/crl.pem`,
		Args:    caArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			a, err := r.open(cmd.Context())
			if err != nil {
				return err
			}
			defer a.Close()
			return r.list(cmd, a, time.Duration(next), out, caRow{}, "")
		},
	}
	nextUpdateFlag(cmd.Flags(), &next)
	listOutFlag(cmd.Flags(), &out)
	return cmd
}

// list writes the revocation list, and says so after what was said before it.
func (r *caRun) list(cmd *cobra.Command, a *ca.Authority, next time.Duration, out string, row caRow, before string) error {
	now := time.Now()
	list, err := a.WriteList(now, now.Add(next))
	text := []byte(nil)
	if row.CRL = ca.ListFile(r.dir); err == nil && out != "" {
		row.CRL = out
		if text, err = os.ReadFile(ca.ListFile(r.dir)); err == nil {
			err = replace.Make(out, text, 0o644, true)
		}
	}
	if err != nil {
		hint := "mend this and say ssh-gateway ca crl"
		if row.Serial != "" {
			hint = row.Serial + " is noted as revoked, but gateways do not know yet; " + hint
		}
		return caError{err, 1, hint}
	}
	row.Number, row.Entries, row.NextUpdate = list.Number.String(), len(list.RevokedCertificateEntries), list.NextUpdate
	return r.say(cmd, row, "%s%s: list %s, %d revoked, due again by %s\n", before, row.CRL, row.Number, row.Entries, localTime(list.NextUpdate))
}

func (r *caRun) listCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "list [options]",
		Short: "List the certificates that were issued",
		Long: `List the certificates that the authority has issued and that have not ended yet, in the
order of their making. Neither the key nor the lock is needed.`,
		Example: `  ssh-gateway ca list
  ssh-gateway ca list --all -s | jq -r 'select(.state == "revoked") | .serial'`,
		Args: caArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			entries, err := ca.List(r.dir)
			if err != nil {
				return caFailed(err)
			}
			now, shown := time.Now(), 0
			for _, e := range entries {
				row := caRow{Serial: e.Serial, Kind: e.Kind, Names: e.Names, State: "good", From: e.Validity.From, Until: e.Validity.Until}
				switch {
				case !e.Revoked.IsZero():
					row.State, row.Revoked, row.Reason = "revoked", e.Revoked, e.Reason.String()
				case now.After(e.Validity.Until):
					row.State = "ended"
				}
				if now.After(e.Validity.Until) && !all {
					continue
				}
				shown++
				if err := r.say(cmd, row, "%-40s  %-6s  %-7s  %s  %s\n", row.Serial, row.Kind, row.State, localTime(row.Until), strings.Join(row.Names, " ")); err != nil {
					return err
				}
			}
			if shown == 0 && !r.short {
				_, err = fmt.Fprintln(cmd.OutOrStdout(), "no certificates")
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "list those that have ended as well")
	return cmd
}
