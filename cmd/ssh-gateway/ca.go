package main

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"sshbroker/broker/control"
	"sshbroker/broker/gateway/ca"
	"sshbroker/broker/prompt"
	"sshbroker/broker/regular"
	"sshbroker/broker/replace"
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

// issueOptions are those of ca issue.
type issueOptions struct {
	client, server      bool
	who                 ca.Client
	names, addrs        []string
	csr, keyType        string
	out                 string
	bundle, force       bool
	life, back          days
	prefix              string // of the files that are made
	key                 crypto.PublicKey
	private             crypto.Signer // nil with a request
	certificate, pemKey string        // names of files
}

func (r *caRun) issueCommand() *cobra.Command {
	o := issueOptions{back: days(5 * time.Minute)}
	cmd := &cobra.Command{
		Use:   "issue --client|--server [options]",
		Short: "Make a certificate for a client or a server",
		Long: `Make a certificate, and the key for it. A client has a URI, which should never change, an
email, or both, and groups, by which policies know it; a server has names and addresses.

With --csr the key is that of a signing request and stays where it is; nothing else is
taken from the request, as whoever made it could ask for any name.

The files are PREFIX.crt, PREFIX.key (mode 0600) and with --bundle PREFIX.pem, which has
certificate, key and the authority's certificate. PREFIX is the email or the DNS name
unless given with --out. No file is replaced without --force.`,
		Example: `  ssh-gateway ca issue --client --email ann@example.com --uri https://login.example.com/ann --group staff
  ssh-gateway ca issue --server --dns gateway.example.com --ip 192.0.2.7 --out /etc/ssh-gateway/tls
  ssh-gateway ca issue --client --email ann@example.com --csr ann.csr --lifetime 30m`,
		Args: caArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(cmd); err != nil {
				return err
			}
			return r.issue(cmd, &o)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.client, "client", false, "for a client")
	f.BoolVar(&o.server, "server", false, "for a server")
	f.StringArrayVar(&o.who.URIs, "uri", nil, "the client's lasting name, a `URI`; may be repeated")
	f.StringArrayVar(&o.who.Emails, "email", nil, "the client's email `ADDRESS`; may be repeated")
	f.StringArrayVar(&o.who.Groups, "group", nil, "a `GROUP` that the client is in; may be repeated")
	f.StringArrayVar(&o.names, "dns", nil, "a DNS `NAME` of the server; may be repeated")
	f.StringArrayVar(&o.addrs, "ip", nil, "an IP `ADDRESS` of the server; may be repeated")
	f.Var(&o.life, "lifetime", "how long it counts from now on, a `SPAN` (default 12h for a client, 90d for a server)")
	f.Var(&o.back, "backdate", "how long it has counted by now, a `SPAN`, for clocks that are behind")
	f.StringVar(&o.csr, "csr", "", "sign the key of the request in this `FILE`")
	f.StringVar(&o.keyType, "key-type", ca.KeyTypes[0], "type of the key that is made: `p256|ed25519`")
	f.StringVar(&o.out, "out", "", "the `PREFIX` of the files' names")
	f.BoolVar(&o.bundle, "bundle", false, "write certificate, key and authority into one file as well")
	f.BoolVar(&o.force, "force", false, "replace files that are there")
	return cmd
}

// check reads the command line.
func (o *issueOptions) check(cmd *cobra.Command) error {
	given := func(names ...string) string {
		for _, name := range names {
			if cmd.Flags().Changed(name) {
				return "--" + name
			}
		}
		return ""
	}
	switch {
	case o.client == o.server:
		return caUsage(cmd, "one of --client and --server is needed")
	case o.client && given("dns", "ip") != "":
		return caUsage(cmd, "%s is for a server; a client has --uri and --email", given("dns", "ip"))
	case o.server && given("uri", "email", "group") != "":
		return caUsage(cmd, "%s is for a client; a server has --dns and --ip", given("uri", "email", "group"))
	case o.client && given("uri", "email") == "":
		return caUsage(cmd, "--uri or --email is needed: whose is the certificate?")
	case o.server && given("dns", "ip") == "":
		return caUsage(cmd, "--dns or --ip is needed: which server is it?")
	case o.csr != "" && given("key-type", "bundle") != "":
		return caUsage(cmd, "--csr and %s: whoever made the request has the key", given("key-type", "bundle"))
	}
	if !cmd.Flags().Changed("lifetime") {
		o.life = days(serverLife)
		if o.client {
			o.life = days(clientLife)
		}
	}
	if o.prefix = o.out; o.prefix == "" {
		for _, name := range append(o.who.Emails, o.names...) {
			o.prefix = strings.Replace(name, "*.", "_.", 1)
			break
		}
	}
	if o.out == "" && (o.prefix == "" || strings.ContainsAny(o.prefix, "/\\ ") || strings.HasPrefix(o.prefix, "-") || strings.HasPrefix(o.prefix, ".")) {
		return caUsage(cmd, "--out is needed, as no name is given that files could have")
	}
	if strings.HasSuffix(o.out, string(filepath.Separator)) {
		return caUsage(cmd, "--out %s: the last part of a prefix is the beginning of a file's name", o.out)
	}
	return nil
}

// readKey makes the key, or reads the request for one.
func (o *issueOptions) readKey(cmd *cobra.Command, note io.Writer) error {
	if o.csr == "" {
		key, err := ca.NewKey(o.keyType)
		if err != nil {
			return caUsage(cmd, "--key-type: %w", err)
		}
		o.private, o.key = key, key.Public()
		return nil
	}
	text, err := readSmall(o.csr)
	if err != nil {
		return err
	}
	request, err := ca.ReadRequest(text)
	if err != nil {
		return fmt.Errorf("%s: %w", o.csr, err)
	}
	if len(request.Names) > 0 {
		fmt.Fprintf(note, "%s: note: what the request asks for is not taken from it: %q\n", o.csr, request.Names)
	}
	o.key = request.Key
	return nil
}

func readSmall(name string) ([]byte, error) {
	const most = 1 << 20
	text, _, err := regular.Read(name, most+1)
	if err == nil && len(text) > most {
		err = fmt.Errorf("%s is larger than %d bytes", name, most)
	}
	return text, err
}

// caFile is a file that ca issue makes.
type caFile struct {
	name string
	mode fs.FileMode
	text []byte
}

func (r *caRun) issue(cmd *cobra.Command, o *issueOptions) error {
	if err := o.readKey(cmd, cmd.ErrOrStderr()); err != nil {
		return err
	}
	if err := o.free(); err != nil {
		return err
	}
	a, err := r.open(cmd.Context())
	if err != nil {
		return err
	}
	defer a.Close()
	cert, err := o.sign(a)
	if err != nil {
		return caFailed(err)
	}
	files, err := o.files(cert, a.Certificate())
	if err != nil {
		return err
	}
	row := caRow{Serial: ca.SerialOf(cert.SerialNumber), From: cert.NotBefore, Until: cert.NotAfter}
	text := ""
	for i, f := range files {
		if err := replace.Make(f.name, f.text, f.mode, o.force); err != nil {
			for _, made := range files[:i] {
				err = errors.Join(err, os.Remove(made.name))
			}
			return caError{err, 1, "certificate " + row.Serial + " was made and noted, but nobody has it; mend this and issue another"}
		}
		switch filepath.Ext(f.name) {
		case ".crt":
			row.Certificate = f.name
			text += fmt.Sprintf("%s: serial %s, until %s\n", f.name, row.Serial, localTime(row.Until))
		case ".key":
			row.Key = f.name
			text += f.name + ": its key\n"
		default:
			row.Bundle = f.name
			text += f.name + ": both, and the authority's certificate\n"
		}
	}
	return r.say(cmd, row, "%s", text)
}

// names of the files that are made.
func (o *issueOptions) fileNames() []string {
	names := []string{o.prefix + ".crt"}
	if o.csr == "" {
		names = append(names, o.prefix+".key")
	}
	if o.bundle {
		names = append(names, o.prefix+".pem")
	}
	return names
}

// free refuses before anything is issued if a file is in the way.
func (o *issueOptions) free() error {
	for _, name := range o.fileNames() {
		if _, err := os.Lstat(name); err == nil && !o.force {
			return caError{fmt.Errorf("%s exists already", name), 1, "--force replaces it, --out chooses another name"}
		}
		if info, err := os.Stat(filepath.Dir(name)); err != nil {
			return err
		} else if !info.IsDir() {
			return fmt.Errorf("%s is not a directory", filepath.Dir(name))
		}
	}
	return nil
}

func (o *issueOptions) sign(a *ca.Authority) (*x509.Certificate, error) {
	validity := ca.From(time.Now(), time.Duration(o.back), time.Duration(o.life))
	if o.client {
		return a.IssueClient(o.who, o.key, validity)
	}
	server := ca.Server{Names: o.names}
	for _, text := range o.addrs {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fmt.Errorf("--ip %s: it is not an address", text)
		}
		server.Addrs = append(server.Addrs, addr)
	}
	return a.IssueServer(server, o.key, validity)
}

func (o *issueOptions) files(cert, authority *x509.Certificate) ([]caFile, error) {
	names := o.fileNames()
	text := ca.CertificatePEM(cert)
	files := []caFile{{names[0], 0o644, text}}
	if o.private == nil {
		return files, nil
	}
	key, err := ca.KeyPEM(o.private)
	if err != nil {
		return nil, err
	}
	files = append(files, caFile{names[1], 0o600, key})
	if o.bundle {
		all := append(append(append([]byte{}, text...), key...), ca.CertificatePEM(authority)...)
		files = append(files, caFile{names[2], 0o600, all})
	}
	return files, nil
}

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
