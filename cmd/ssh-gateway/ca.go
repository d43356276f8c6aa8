package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"sshbroker/broker/control"
	"sshbroker/broker/gateway/ca"
	"sshbroker/broker/prompt"
	"sshbroker/broker/regular"
)

// caError is an error of ssh-gateway ca with the exit code for it and what to do about it.
type caError struct {
	error
	code int
	hint string
}

func (e caError) Unwrap() error { return e.error }
func (e caError) ExitCode() int { return e.code }
func (e caError) Hint() string  { return e.hint }

func caUsage(cmd *cobra.Command, format string, args ...any) error {
	return caError{fmt.Errorf("%s: %w", cmd.Name(), fmt.Errorf(format, args...)), 2, "see " + cmd.CommandPath() + " --help"}
}

// caArgs is an argument check whose failure is a usage error.
func caArgs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return caUsage(cmd, "%s is missing", names[len(args)])
		case len(args) > len(names):
			return caUsage(cmd, "%q is one argument too many", args[len(names)])
		}
		return nil
	}
}

// days is a flag for a span of time in Go's form, or in days: 90d.
type days time.Duration

func (d *days) Set(text string) error {
	if n, ok := strings.CutSuffix(text, "d"); ok {
		count, err := strconv.ParseUint(n, 10, 16)
		if err != nil {
			return fmt.Errorf("%q is not a number of days", text)
		}
		*d = days(time.Duration(count) * 24 * time.Hour)
		return nil
	}
	t, err := time.ParseDuration(text)
	if err != nil || t < 0 {
		return fmt.Errorf("%q is not a span of time such as 30m, 12h or 90d", text)
	}
	*d = days(t)
	return nil
}

func (d *days) Type() string { return "duration" }

func (d *days) String() string {
	switch t := time.Duration(*d); {
	case t == 0:
		return ""
	case t%(24*time.Hour) == 0:
		return strconv.Itoa(int(t/(24*time.Hour))) + "d"
	case t%time.Hour == 0:
		return strconv.Itoa(int(t/time.Hour)) + "h"
	case t%time.Minute == 0:
		return strconv.Itoa(int(t/time.Minute)) + "m"
	default:
		return t.String()
	}
}

const (
	day = 24 * time.Hour

	defaultCADir    = "/etc/ssh-gateway/ca"
	nextUpdate      = 30 * day
	authorityLife   = 3650 * day
	clientLife      = 12 * time.Hour
	serverLife      = 90 * day
	authorityBefore = time.Hour // so that what it signs at once can be backdated
)

// caRun is what the commands of ssh-gateway ca have in common.
type caRun struct {
	dir            string
	passphraseFile string
	short          bool
}

// caCommand is ssh-gateway ca. Its errors may have the methods ExitCode, an int, and Hint,
// a string.
func caCommand() *cobra.Command {
	r := &caRun{}
	cmd := &cobra.Command{
		Use:   "ca COMMAND",
		Short: "Make a certificate authority, certificates and revocation lists",
		Long: `Make a small certificate authority for gateways and their clients: its certificate, a
certificate for each client and server, and the list of those that are revoked. All of it
is in one directory, which is its owner's alone. Any other authority will do as well: a
gateway takes what its configuration names.

Exit codes: 0 done, 1 failed, 2 wrong usage.`,
		Example: `  ssh-gateway ca init --name "Example gateways"
  ssh-gateway ca issue --server --dns gateway.example.com
  ssh-gateway ca issue --client --email ann@example.com --group staff
  ssh-gateway ca revoke ann@example.com.crt --reason keyCompromise`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return caUsage(cmd, "init, issue, revoke, crl or list is missing")
			}
			return caUsage(cmd, "%q is not one of init, issue, revoke, crl, list", args[0])
		},
		RunE:          func(*cobra.Command, []string) error { return nil }, // Args never lets it run
		SilenceErrors: true, SilenceUsage: true,
	}
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return caUsage(cmd, "%w", err) })
	f := cmd.PersistentFlags()
	f.SortFlags = false
	f.StringVar(&r.dir, "dir", defaultCADir, "the `DIR` of the authority")
	f.StringVar(&r.passphraseFile, "passphrase-file", "", "read the passphrase of the authority's key from this `FILE`")
	f.BoolVarP(&r.short, "short", "s", false, "print JSON, one object a line")
	cmd.AddCommand(r.initCommand(), r.issueCommand(), r.revokeCommand(), r.crlCommand(), r.listCommand())
	for _, c := range cmd.Commands() {
		c.Flags().SortFlags = false
		c.DisableFlagsInUseLine = true
		c.ValidArgsFunction = cobra.NoFileCompletions
		if c.Name() == "revoke" {
			c.ValidArgsFunction = nil
		}
	}
	cmd.DisableFlagsInUseLine = true
	return cmd
}

func (r *caRun) initCommand() *cobra.Command {
	var o ca.AuthorityOptions
	var keyType string
	var encrypt bool
	var networks []string
	life, next := days(authorityLife), days(nextUpdate)
	cmd := &cobra.Command{
		Use:   "init [options]",
		Short: "Make a new authority",
		Long: `Make the directory of a new authority: ca.crt, its certificate, which gateways and clients
are given; ca.key, which nobody is; index.txt, a line for each certificate; and crl.pem,
what is revoked. The directory must not exist, or be empty. Either all of it is made or
nothing.

With --permit options the authority can sign for nothing else of that kind, whoever has
its key. A domain that begins with "." stands for all names below it.`,
		Example: `  ssh-gateway ca init --dir ca --name "Example gateways" --permit-dns example.com
  ssh-gateway ca init --encrypt --lifetime 730d`,
		Args: caArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, text := range networks {
				_, n, err := net.ParseCIDR(text)
				if err != nil {
					return caUsage(cmd, "--permit-ip %s: it is not a network such as 10.0.0.0/8", text)
				}
				o.Networks = append(o.Networks, n)
			}
			key, err := ca.NewKey(keyType)
			if err != nil {
				return caUsage(cmd, "--key-type: %w", err)
			}
			passphrase, err := r.newPassphrase(cmd.Context(), encrypt)
			if err != nil {
				return err
			}
			now := time.Now()
			o.Validity = ca.From(now, authorityBefore, time.Duration(life))
			if err := ca.Create(r.dir, o, key, passphrase, now, now.Add(time.Duration(next))); err != nil {
				return caFailed(err)
			}
			cert, err := ca.ReadAuthority(r.dir)
			if err != nil {
				return err
			}
			return r.say(cmd, caRow{Serial: ca.SerialOf(cert.SerialNumber), Certificate: ca.CertificateFile(r.dir), CRL: ca.ListFile(r.dir), From: cert.NotBefore, Until: cert.NotAfter},
				"%s: the authority, until %s\n%s: what it has revoked: nothing; due again by %s\n",
				ca.CertificateFile(r.dir), localTime(cert.NotAfter), ca.ListFile(r.dir), localTime(now.Add(time.Duration(next))))
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Name, "name", "ssh-gateway CA", "the `NAME` that is shown of it")
	f.StringVar(&keyType, "key-type", ca.KeyTypes[0], "type of its key: `p256|ed25519`")
	f.Var(&life, "lifetime", "how long it counts, a `SPAN` such as 12h or 90d")
	f.BoolVar(&encrypt, "encrypt", false, "ask for a passphrase to keep its key under")
	f.StringArrayVar(&o.DNS, "permit-dns", nil, "sign for servers of this `DOMAIN` only; may be repeated")
	f.StringArrayVar(&o.Emails, "permit-email", nil, "sign for addresses of this `DOMAIN` only; may be repeated")
	f.StringArrayVar(&o.URIHosts, "permit-uri", nil, "sign for URIs with this `HOST` only; may be repeated")
	f.StringArrayVar(&networks, "permit-ip", nil, "sign for servers of this `NETWORK` only; may be repeated")
	nextUpdateFlag(f, &next)
	return cmd
}

func nextUpdateFlag(f *pflag.FlagSet, next *days) {
	f.Var(next, "next-update", "how long gateways may take the revocation list, a `SPAN` such as 12h or 90d")
}

// caRow is what the commands print with -s.
type caRow struct {
	Serial      string    `json:"serial,omitempty"`
	Kind        ca.Kind   `json:"kind,omitempty"`
	Names       []string  `json:"names,omitempty"`
	State       string    `json:"state,omitempty"`
	From        time.Time `json:"from,omitzero"`
	Until       time.Time `json:"until,omitzero"`
	Revoked     time.Time `json:"revoked,omitzero"`
	Reason      string    `json:"reason,omitempty"`
	Certificate string    `json:"certificate,omitempty"` // names of files, also below
	Key         string    `json:"key,omitempty"`
	Bundle      string    `json:"bundle,omitempty"`
	CRL         string    `json:"crl,omitempty"`
	Number      string    `json:"number,omitempty"` // of the list, in figures
	Entries     int       `json:"entries,omitempty"`
	NextUpdate  time.Time `json:"next_update,omitzero"`
}

// say prints a row, as JSON with -s.
func (r *caRun) say(cmd *cobra.Command, row caRow, format string, args ...any) error {
	out := cmd.OutOrStdout()
	if !r.short {
		_, err := fmt.Fprintf(out, format, args...)
		return err
	}
	e := json.NewEncoder(out)
	e.SetEscapeHTML(false)
	return e.Encode(row)
}

func readSmall(name string) ([]byte, error) {
	const most = 1 << 20
	text, _, err := regular.Read(name, most+1)
	if err == nil && len(text) > most {
		err = fmt.Errorf("%s is larger than %d bytes", name, most)
	}
	return text, err
}

func localTime(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }

// open opens the authority, with the passphrase if its key has one.
func (r *caRun) open(ctx context.Context) (*ca.Authority, error) {
	a, err := ca.Open(r.dir, func() ([]byte, error) {
		if r.passphraseFile != "" {
			return readPassphrase(r.passphraseFile)
		}
		return ask(ctx, "Passphrase of the authority's key:")
	})
	return a, caFailed(err)
}

// newPassphrase is that of a new key, nil for none.
func (r *caRun) newPassphrase(ctx context.Context, encrypt bool) ([]byte, error) {
	switch {
	case r.passphraseFile != "":
		return readPassphrase(r.passphraseFile)
	case !encrypt:
		return nil, nil
	}
	first, err := ask(ctx, "New passphrase of the authority's key:")
	if err != nil {
		return nil, err
	}
	second, err := ask(ctx, "The same again:")
	if err != nil {
		return nil, err
	}
	if string(first) != string(second) {
		return nil, errors.New("the two passphrases differ; nothing was made")
	}
	return first, nil
}

func ask(ctx context.Context, text string) ([]byte, error) {
	answer, err := prompt.NewPerson(ctx).Ask(control.Prompt{Text: text, Secret: true})
	if errors.Is(err, control.ErrNoPrompt) {
		return nil, caError{errors.New("the passphrase of the authority's key is needed, and nobody can be asked for it"), 1, "give it with --passphrase-file"}
	}
	if err == nil && answer == "" {
		err = errors.New("an empty passphrase is none")
	}
	return []byte(answer), err
}

// readPassphrase reads the first line of a file that others cannot read.
func readPassphrase(name string) ([]byte, error) {
	text, info, err := regular.Read(name, 4096)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, caError{fmt.Errorf("%s: others can read this passphrase: its mode is %04o", name, info.Mode().Perm()), 1, "chmod 600 " + name}
	}
	line, _, _ := strings.Cut(string(text), "\n")
	if line = strings.TrimSuffix(line, "\r"); line == "" {
		return nil, fmt.Errorf("%s: its first line is empty", name)
	}
	return []byte(line), nil
}

// caFailed adds what can be done about an error of the package.
func caFailed(err error) error {
	hint := ""
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ca.ErrNoAuthority):
		hint = "ssh-gateway ca init makes one; --dir says where"
	case errors.Is(err, ca.ErrBusy):
		hint = "try again when it has ended"
	case errors.Is(err, ca.ErrExists):
		hint = "choose another directory with --dir, or remove that one if nobody needs it"
	case errors.Is(err, ca.ErrExposed):
		hint = "an authority is its owner's alone: work as that user, and chmod 700 the directory, 600 ca.key; if others may have read the key, make a new authority"
	case errors.Is(err, ca.ErrPassphrase):
		hint = "type it again, or see what --passphrase-file has"
	case errors.Is(err, ca.ErrNotIssued):
		hint = "ssh-gateway ca list --all has those that it has issued"
	default:
		return err
	}
	return caError{err, 1, hint}
}
