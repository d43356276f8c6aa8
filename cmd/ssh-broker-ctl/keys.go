package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sshbroker/broker/control"
	"sshbroker/broker/prompt"
)

func (a *app) listKeysCommand() *cobra.Command {
	var extra string
	cmd := &cobra.Command{
		Use:     "list-keys",
		GroupID: groupKeys,
		Short:   "List the private keys that may be tried",
		Long: `List the private keys that may be tried with some server: those of the agent, of the
configuration, of ~/.ssh2 and ~/.ssh, and those that were added. STATE is ready,
locked (its passphrase will be asked for), open (its passphrase is remembered), agent,
or unusable. --extra=certificates adds the certificates and how long they are good.`,
		Example: `  ssh-broker-ctl list-keys
  ssh-broker-ctl list-keys -s | jq -r 'select(.state == "locked") | .file'`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if extra != "" && extra != "certificates" {
				return usageError{fmt.Errorf("--extra=%s: there is only certificates", extra)}
			}
			return a.listKeys(cmd.Context(), extra != "")
		},
	}
	cmd.Flags().StringVar(&extra, "extra", "", "show also the `WHAT` of each key: certificates")
	return cmd
}

func (a *app) listKeys(ctx context.Context, certificates bool) error {
	rows, err := fetch[control.KeyRow](ctx, a, control.OpListKeys, control.KeyArgs{})
	if err != nil {
		return err
	}
	if a.short {
		for _, r := range rows {
			a.printJSON(r)
		}
		return nil
	}
	t := a.newTable("ID", "TYPE", "STATE", "FINGERPRINT", "KEY")
	var notes []string
	for _, r := range rows {
		if r.Note != "" {
			notes = append(notes, r.Note)
			continue
		}
		t.add(r.ID, cmp.Or(r.Type, "?"), a.keyState(r), cmp.Or(r.Fingerprint, "-"), keyName(r))
		if r.Problem != "" {
			t.note(r.Problem)
		}
		if c := r.Certificate; c != nil && (certificates || a.verbose) {
			t.note(a.certificate(c))
		}
	}
	switch {
	case len(t.rows) > 0:
		t.print(a)
	case !a.quiet:
		a.printf("no keys\n")
	}
	for _, n := range notes {
		if !a.quiet {
			fmt.Fprintf(a.err, "ssh-broker-ctl: %s\n", printable(n))
		}
	}
	return nil
}

func (a *app) keyState(r control.KeyRow) string {
	if r.State == "open" && !r.Until.IsZero() {
		return "open until " + a.time(r.Until)
	}
	return r.State
}

func keyName(r control.KeyRow) string {
	name := r.File
	switch {
	case name == "":
		name = cmp.Or(r.Comment, "-")
	case r.Added:
		name += " (added)"
	}
	return name
}

// certificate says in a line what a certificate is good for.
func (a *app) certificate(c *control.CertificateRow) string {
	if c.KeyID == "" && c.Authority == "" {
		return fmt.Sprintf("certificate %s: %s", c.File, c.Problem)
	}
	text := fmt.Sprintf("certificate %q, serial %d", c.KeyID, c.Serial)
	if len(c.Principals) > 0 {
		text += ", for " + strings.Join(c.Principals, ",")
	}
	if c.ValidAfter.After(time.Now()) {
		text += ", from " + a.time(c.ValidAfter)
	}
	if c.ValidBefore.IsZero() {
		text += ", for ever"
	} else {
		text += ", until " + a.time(c.ValidBefore)
	}
	text += ", of authority " + c.Authority
	if c.Problem != "" {
		text += ": NOT OFFERED, " + c.Problem
	}
	return text
}

func (a *app) viewKeyCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:     "view-key KEY",
		GroupID: groupKeys,
		Short:   "Show one private key's public side",
		Long: `Show one key: its hashes, its certificate, and with -v its public half. KEY is its id,
a hash of it, or its file. --write-key writes the public half to a file, as a line for
authorized_keys.`,
		Example: `  ssh-broker-ctl view-key 0123456789abcdef
  ssh-broker-ctl view-key --write-key=my.pub ~/.ssh/id_ed25519`,
		Args: exactly("KEY"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.viewKey(cmd.Context(), args[0], file) },
	}
	cmd.Flags().StringVar(&file, "write-key", "", "write the public half to this `FILE`")
	return cmd
}

func (a *app) viewKey(ctx context.Context, name, file string) error {
	r, err := one[control.KeyRow](ctx, a, control.OpListKeys, control.KeyArgs{Key: keyArg(name)})
	if err != nil {
		return err
	}
	if file != "" {
		if r.Public == "" {
			return fmt.Errorf("key %s: its public half is not known before its passphrase is", name)
		}
		line := strings.TrimSpace(r.Public + " " + r.Comment)
		if err := os.WriteFile(file, []byte(line+"\n"), 0o644); err != nil {
			return err
		}
	}
	if a.short {
		a.printJSON(r)
		return nil
	}
	a.printKey(r)
	return nil
}

func (a *app) printKey(r control.KeyRow) {
	field := func(name, value string) {
		if value != "" {
			a.line(fmt.Sprintf("%-12s %s", name, strings.ReplaceAll(value, "\n", " ")))
		}
	}
	field("id", r.ID)
	field("file", r.File)
	field("comment", r.Comment)
	field("type", r.Type)
	field("fingerprint", r.Fingerprint)
	field("state", a.keyState(r))
	field("problem", r.Problem)
	if r.Certificate != nil {
		field("certificate", a.certificate(r.Certificate))
		field("", r.Certificate.File)
	}
	if a.verbose {
		field("public", r.Public)
	}
}

// keyArg makes a file that is there absolute: the broker's directory is another.
func keyArg(name string) string {
	if _, err := os.Stat(name); err == nil {
		if abs, err := filepath.Abs(name); err == nil {
			return abs
		}
	}
	return name
}

func (a *app) addKeyCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "add-key FILE",
		GroupID: groupKeys,
		Short:   "Have a private key tried until the broker ends",
		Long: `Have a private key tried with every server whose profile names no keys of its own,
until the broker ends. Its passphrase is asked for here.`,
		Example: `  ssh-broker-ctl add-key ~/keys/guest`,
		Args:    exactly("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			file, err := filepath.Abs(args[0])
			if err != nil {
				return err
			}
			return a.keyDone(cmd.Context(), "added", control.OpAddKey, control.KeyArgs{Key: file})
		},
	}
}

func (a *app) removeKeyCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "remove-key KEY",
		GroupID: groupKeys,
		Short:   "Take back what add-key did",
		Long: `Take back what add-key did, and forget the passphrase. KEY is the key's id, a hash of
it, or its file. The file stays.`,
		Example: `  ssh-broker-ctl remove-key ~/keys/guest`,
		Args:    exactly("KEY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.keyDone(cmd.Context(), "removed", control.OpRemoveKey, control.KeyArgs{Key: keyArg(args[0])})
		},
	}
}

func (a *app) keyPassphraseCommand() *cobra.Command {
	var all, forget bool
	var file, text string
	cmd := &cobra.Command{
		Use:     "key-passphrase [KEY]",
		GroupID: groupKeys,
		Short:   "Give the passphrase of a key, or have it forgotten",
		Long: `Give the passphrase of a key before a connection needs it, or have it forgotten. How
long it is remembered says the configuration (user-keys, identification). KEY is the
key's id, a hash of it, or its file. The passphrase is asked for unless one of the
options gives it; what stands on a command line others can read while it runs.`,
		Example: `  ssh-broker-ctl key-passphrase ~/.ssh/id_ed25519
  ssh-broker-ctl key-passphrase --all
  ssh-broker-ctl key-passphrase --clear --all`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case all && len(args) > 0:
				return usageError{errors.New("--all and KEY: use one of the two")}
			case file != "" && text != "":
				return usageError{errors.New("--passphrase-file and --passphrase-string: use one of the two")}
			case !all:
				if err := exactly("KEY")(cmd, args); err != nil {
					return err
				}
			}
			phrase := text
			if file != "" {
				content, err := os.ReadFile(file)
				if err != nil {
					return err
				}
				if phrase = strings.TrimRight(string(content), "\r\n"); phrase == "" {
					return fmt.Errorf("%s: no passphrase in it", file)
				}
			}
			request := control.PassphraseArgs{Passphrase: phrase, Clear: forget}
			if !all {
				request.Key = keyArg(args[0])
			}
			done := "opened"
			if forget {
				done = "locked"
			}
			return a.keyDone(cmd.Context(), done, control.OpPassphrase, request)
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "all keys that have one")
	cmd.Flags().BoolVar(&forget, "clear", false, "forget it")
	cmd.Flags().StringVar(&file, "passphrase-file", "", "read it from the first line of this `FILE`")
	cmd.Flags().StringVar(&text, "passphrase-string", "", "this `TEXT` is it")
	return cmd
}

// keyDone does an operation on keys, which may ask here, and says of each key what was
// done to it.
func (a *app) keyDone(ctx context.Context, done, op string, args any) error {
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	person := prompt.NewPerson(ctx)
	defer person.Leave()
	var rows []control.KeyRow
	err = c.Call(ctx, op, args, nil, func(b json.RawMessage) error {
		var r control.KeyRow
		if err := json.Unmarshal(b, &r); err != nil {
			return fmt.Errorf("the broker's answer: %w", err)
		}
		rows = append(rows, r)
		return nil
	}, person.Ask)
	for _, r := range rows {
		switch {
		case a.short:
			a.printJSON(r)
		case !a.quiet:
			a.printf("%s %s\n", done, strings.TrimSuffix(keyName(r), " (added)"))
		}
	}
	return err
}

func (a *app) probeKeyCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "probe-key ADDRESS[#PORT]",
		GroupID: groupKeys,
		Short:   "Show the host keys of an SSH server",
		Long: `Show the host keys of an SSH server, as the broker reaches it without a gateway, one
of each type. Nothing proves that they are the server's: compare the fingerprints with
what its owner says before storing them. The port is 22 unless it is given. -v prints
them as known_hosts has them.`,
		Example: `  ssh-broker-ctl probe-key bastion.example.com
  ssh-broker-ctl probe-key -v 192.0.2.7#2222`,
		Args: exactly("ADDRESS#PORT"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.probeKey(cmd.Context(), args[0]) },
	}
}

func (a *app) probeKey(ctx context.Context, server string) error {
	host, service, given := strings.Cut(server, "#")
	port := uint64(22)
	if given {
		var err error
		if port, err = strconv.ParseUint(service, 10, 16); err != nil || port == 0 {
			return usageError{fmt.Errorf("%s: %q is no port", server, service)}
		}
	}
	rows, err := fetch[control.HostKeyRow](ctx, a, control.OpProbeKey, control.ProbeKeyArgs{Host: host, Port: uint16(port)})
	if err != nil {
		return err
	}
	known := host
	if port != 22 {
		known = "[" + host + "]:" + strconv.FormatUint(port, 10)
	}
	for _, r := range rows {
		switch {
		case a.short:
			a.printJSON(r)
		case a.verbose:
			a.printf("%s %s %s\n", known, r.Type, r.Public)
		default:
			a.line(fmt.Sprintf("%s  %s  %s", net.JoinHostPort(host, strconv.FormatUint(port, 10)), r.Fingerprint, r.Type))
		}
	}
	return nil
}

func (a *app) authHandlerCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "auth-handler",
		GroupID: groupKeys,
		Short:   "Answer the broker's questions at this terminal",
		Long: `Answer the broker's questions at this terminal: passphrases, passwords, user names and
host keys that captured connections need. Without one they are asked by the program
SSH_ASKPASS of the broker's environment, if it has a display, and else those
connections fail. The newest handler is asked. It runs until it is interrupted.`,
		Example: `  ssh-broker-ctl auth-handler`,
		Args:    exactly(),
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.authHandler(cmd.Context()) },
	}
}

func (a *app) authHandler(ctx context.Context) error {
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	person := prompt.NewPerson(ctx)
	defer person.Leave()
	err = c.Call(ctx, control.OpAuthHandler, nil, nil, func(json.RawMessage) error {
		if !a.quiet {
			a.printf("questions of the broker come here; interrupt to end\n")
		}
		return nil
	}, person.Ask)
	if ctx.Err() != nil {
		return nil // which is how it ends
	}
	return err
}
