package main

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sshbroker/broker/gateway/ca"
	"sshbroker/broker/replace"
)

// issueOptions are those of ca issue.
type issueOptions struct {
	client, server bool
	who            ca.Client
	names, addrs   []string
	csr, keyType   string
	out            string
	bundle, force  bool
	life, back     days
	prefix         string // of the files that are made
	key            crypto.PublicKey
	private        crypto.Signer // nil with a request
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
