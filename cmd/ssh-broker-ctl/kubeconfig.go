package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/spf13/cobra"

	"sshbroker/broker/config"
	"sshbroker/broker/control"
	"sshbroker/broker/kubeconfig"
)

func (a *app) kubeconfigCommand() *cobra.Command {
	k := &kubeRun{app: a}
	cmd := &cobra.Command{
		Use:     "kubeconfig COMMAND",
		GroupID: groupConfig,
		Short:   "Lead kubectl through the broker, cluster by cluster",
		Long: `Lead kubectl, and whatever else reads the same file, through the broker: the proxy-url of
a cluster becomes that of an http-connect tunnel of the broker's. The cluster's server and
certificates stay as they are, so TLS is between kubectl and the API as before.

The files are those of KUBECONFIG, or ~/.kube/config. Only the cluster's entry is edited:
everything else stays as it is byte for byte. What was done is marked among the cluster's
extensions, so that it can be undone. Programs under ssh-capture need none of this.`,
		Example: `  ssh-broker-ctl kubeconfig list
  ssh-broker-ctl kubeconfig set prod --profile bastion
  ssh-broker-ctl kubeconfig unset prod`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{fmt.Errorf("%s: set, unset or list is missing; see %s --help", cmd.Name(), cmd.CommandPath())}
			}
			return usageError{fmt.Errorf("%s: %q is not one of set, unset, list", cmd.Name(), args[0])}
		},
		RunE: func(*cobra.Command, []string) error { return nil }, // Args never lets it run
	}
	cmd.PersistentFlags().StringVar(&k.file, "kubeconfig", "", "look in this `FILE` alone, whatever KUBECONFIG says")
	cmd.AddCommand(k.setCommand(), k.unsetCommand(), k.listCommand())
	return cmd
}

// kubeRun is one run of a kubeconfig command.
type kubeRun struct {
	*app
	file   string
	dryRun bool
}

// read reads the files that count.
func (k *kubeRun) read() ([]*kubeconfig.Text, error) {
	files := []string{k.file}
	if k.file == "" {
		files = kubeconfig.Files(k.getenv)
	}
	texts, err := kubeconfig.Read(files)
	switch {
	case err != nil:
		return nil, kubeFailed(err)
	case len(files) == 0:
		return nil, &control.Error{Message: "it is not known where your kubeconfig is, as you have no home directory", Hint: "name it with --kubeconfig"}
	case len(texts) == 0:
		return nil, &control.Error{Message: fmt.Sprintf("there is no kubeconfig: %s does not exist", strings.Join(files, " nor ")), Hint: "name it with --kubeconfig, or in KUBECONFIG"}
	}
	return texts, nil
}

// kubeFailed gives an error of the package the form of ours.
func kubeFailed(err error) error {
	var e *kubeconfig.Error
	if errors.As(err, &e) {
		return &control.Error{Message: err.Error(), Hint: e.Cure}
	}
	return err
}

// find returns the file that defines a cluster for kubectl, which is the first that has it.
func find(texts []*kubeconfig.Text, name string) (*kubeconfig.Text, kubeconfig.Cluster, error) {
	var files, known []string
	hint := ""
	for _, t := range texts {
		if c, ok := t.Cluster(name); ok {
			return t, c, nil
		}
		files = append(files, t.Name())
		for _, c := range t.Clusters() {
			if !slices.Contains(known, c.Name) {
				known = append(known, c.Name)
			}
		}
		if of := t.ClusterOf(name); of != "" && hint == "" {
			hint = fmt.Sprintf("%s is a context; its cluster is %s", name, of)
		}
	}
	if hint == "" && len(known) > 0 {
		hint = "there are: " + strings.Join(known, ", ")
	}
	return nil, kubeconfig.Cluster{}, &control.Error{Message: fmt.Sprintf("there is no cluster %q in %s", name, strings.Join(files, " or ")), Hint: hint}
}

// kubeRow is what the commands print with -s.
type kubeRow struct {
	File     string `json:"file"`
	Line     int    `json:"line"`
	Cluster  string `json:"cluster"`
	Server   string `json:"server,omitempty"`
	ProxyURL string `json:"proxy_url,omitempty"`
	State    string `json:"state"`             // untouched, set or changed
	Profile  string `json:"profile,omitempty"` // unless untouched
	Hidden   bool   `json:"hidden,omitempty"`  // a file before it has a cluster of that name
	Written  bool   `json:"written,omitempty"`
	Diff     string `json:"diff,omitempty"`
}

func kubeRowOf(t *kubeconfig.Text, c kubeconfig.Cluster) kubeRow {
	row := kubeRow{File: t.Name(), Line: c.Line, Cluster: c.Name, Server: c.Server, ProxyURL: c.ProxyURL, Profile: c.Mark.Profile, State: "untouched"}
	switch c.State {
	case kubeconfig.Set:
		row.State = "set"
	case kubeconfig.Changed:
		row.State = "changed"
	}
	return row
}

// kubeEdit changes a text, and says what that has come to.
type kubeEdit func(*kubeconfig.Text) (made *kubeconfig.Text, say string, err error)

// edit changes a cluster's file, or with --dry-run shows how it would.
func (k *kubeRun) edit(t *kubeconfig.Text, name string, change kubeEdit) error {
	if k.dryRun {
		return k.change(t, name, change, nil)
	}
	f, err := kubeconfig.Open(t.Name())
	if err != nil {
		return kubeFailed(err)
	}
	now, err := kubeconfig.Parse(t.Name(), f.Data()) // it may be another by now
	if err != nil {
		err = kubeFailed(err)
	} else {
		err = k.change(now, name, change, f.Write)
	}
	return errors.Join(err, f.Close())
}

func (k *kubeRun) change(old *kubeconfig.Text, name string, change kubeEdit, write func([]byte) error) error {
	made, say, err := change(old)
	if err != nil {
		return kubeFailed(err)
	}
	c, _ := made.Cluster(name)
	row := kubeRowOf(made, c)
	switch changed := made != old; {
	case !changed:
		say = "nothing to change: " + say
	case write == nil:
		row.Diff = string(diff.Diff(old.Name(), old.Bytes(), old.Name(), made.Bytes()))
	default:
		if err := write(made.Bytes()); err != nil {
			return err
		}
		row.Written = true
	}
	switch {
	case k.short:
		k.printJSON(row)
	case row.Diff != "":
		k.printDiff(row.Diff)
	case !k.quiet:
		k.printf("%s:%d: %s\n", row.File, row.Line, say)
	}
	return nil
}

func (k *kubeRun) setCommand() *cobra.Command {
	var profile, listen string
	cmd := &cobra.Command{
		Use:   "set CLUSTER --profile PROFILE",
		Short: "Lead a cluster through a profile",
		Long: `Lead a cluster through a profile: its proxy-url becomes that of an http-connect tunnel of
static-tunnels, or one that open-tunnel-listener has opened. The rules decide about what
comes through such a tunnel, so they have to lead the cluster's server through the profile.
Both are looked up in the broker that runs, or else in its configuration; where one of them
is missing, nothing is written, and it is said what to add.

A proxy-url that the cluster has is kept, and comes back with unset. Said again it changes
nothing, or only the port.`,
		Example: `  ssh-broker-ctl kubeconfig set prod --profile bastion
  ssh-broker-ctl kubeconfig set prod --profile bastion --dry-run
  ssh-broker-ctl kubeconfig set prod --profile bastion --listen 3128`,
		Args: exactly("CLUSTER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if profile == "" {
				return usageError{errors.New("set: --profile PROFILE is missing; see ssh-broker-ctl kubeconfig set --help")}
			}
			texts, err := k.read()
			if err != nil {
				return err
			}
			t, c, err := find(texts, args[0])
			if err != nil {
				return err
			}
			m := kubeconfig.Mark{Profile: profile}
			note := ""
			if listen != "" {
				m.ProxyURL, err = proxyURL(listen)
				err = asUsage(err)
			} else {
				m, note, err = k.way(cmd.Context(), t, c, profile)
			}
			if err != nil {
				return err
			}
			say := fmt.Sprintf("cluster %s, %s, goes through profile %s, by %s", c.Name, c.Server, m.Profile, m.ProxyURL)
			set := func(t *kubeconfig.Text) (*kubeconfig.Text, string, error) {
				made, err := t.Set(c.Name, m)
				return made, say, err
			}
			if err := k.edit(t, c.Name, set); err != nil {
				return err
			}
			if note != "" && !k.quiet && !k.short {
				k.printf("%s\n", note)
			}
			return nil
		},
		ValidArgsFunction: k.completeClusters,
	}
	f := cmd.Flags()
	f.StringVar(&profile, "profile", "", "the id or name of the `PROFILE`")
	f.StringVar(&listen, "listen", "", "take the tunnel at this `[ADDRESS:]PORT` and look nothing up")
	k.dryRunFlag(cmd)
	_ = cmd.RegisterFlagCompletionFunc("profile", k.completeProfiles)
	return cmd
}

func (k *kubeRun) dryRunFlag(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&k.dryRun, "dry-run", "n", false, "show the change as a unified diff and write nothing")
}

func asUsage(err error) error {
	if err != nil {
		return usageError{err}
	}
	return nil
}

// proxyURL is the URL of a tunnel at [ADDRESS:]PORT. One at all addresses of this host is
// reached by the one that does not leave it.
func proxyURL(listen string) (string, error) {
	if !strings.Contains(listen, ":") {
		listen = ":" + listen
	}
	host, service, err := net.SplitHostPort(listen)
	if err != nil {
		return "", fmt.Errorf("%q is not an address with a port", listen)
	}
	port, err := readPort(service)
	if err != nil {
		return "", err
	}
	addr, err := config.ListenAddress(host, false)
	if err != nil {
		return "", err
	}
	switch {
	case addr == netip.IPv6Unspecified() || addr == netip.IPv4Unspecified():
		addr = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	case addr.Zone() != "":
		return "", fmt.Errorf("%q has a zone, which a URL cannot have here", listen)
	}
	return "http://" + netip.AddrPortFrom(addr, port).String(), nil
}

// offer is what a broker, or its configuration, has for programs that are not captured.
type offer struct {
	profiles  []control.ProfileRow
	listeners []control.ListenerRow
	explain   func(control.ExplainArgs) ([]control.ExplainRow, error)
	where     string // for people
	note      string
}

// offered asks the broker that runs, else it reads the configuration.
func (k *kubeRun) offered(ctx context.Context) (offer, error) {
	c, err := k.dial(ctx)
	if errors.Is(err, control.ErrNoBroker) {
		return k.configured()
	}
	if err != nil {
		return offer{}, err
	}
	defer c.Close()
	o := offer{where: "the broker"}
	if o.profiles, err = rowsOf[control.ProfileRow](ctx, c, control.OpProfiles, nil); err != nil {
		return offer{}, err
	}
	if o.listeners, err = rowsOf[control.ListenerRow](ctx, c, control.OpListeners, nil); err != nil {
		return offer{}, err
	}
	o.explain = func(args control.ExplainArgs) ([]control.ExplainRow, error) {
		return fetch[control.ExplainRow](ctx, k.app, control.OpExplain, args)
	}
	return o, nil
}

func (k *kubeRun) configured() (offer, error) {
	options := k.checkOptions()
	if options.System = k.system; k.system {
		options.File = k.globalFile
	}
	c, err := config.Load(options)
	if err != nil {
		return offer{}, err
	}
	o := offer{where: "the configuration", note: "no broker is running: the proxy answers after ssh-broker-ctl start",
		explain: func(args control.ExplainArgs) ([]control.ExplainRow, error) {
			return explainConfig(c, options.Env, args)
		}}
	for _, id := range slices.Sorted(maps.Keys(c.Profiles)) {
		o.profiles = append(o.profiles, control.ProfileRow{ID: id, Name: c.Profiles[id].Name})
	}
	for _, t := range c.StaticTunnels {
		o.listeners = append(o.listeners, control.ListenerRow{Type: t.Type, Listen: t.Listen.String(), Profile: t.Profile, Source: t.Source, Open: true})
	}
	return o, nil
}

// way finds the proxy by which a cluster's server is reached through a profile. The
// profile of the mark is its id.
func (k *kubeRun) way(ctx context.Context, t *kubeconfig.Text, c kubeconfig.Cluster, profile string) (m kubeconfig.Mark, note string, err error) {
	host, port, err := serverOf(c)
	if err != nil {
		return m, "", &control.Error{Message: fmt.Sprintf("%s:%d: %v", t.Name(), c.Line, err)}
	}
	o, err := k.offered(ctx)
	if err != nil {
		return m, "", err
	}
	if m.Profile, err = o.profile(profile); err != nil {
		return m, "", err
	}
	l, err := o.listener(m.Profile)
	if err != nil {
		return m, "", err
	}
	if l.Profile == "" {
		if err := o.leads(host, port, m.Profile); err != nil {
			return m, "", err
		}
	}
	m.ProxyURL, err = proxyURL(l.Listen)
	return m, o.note, err
}

// serverOf is where the API of a cluster is.
func serverOf(c kubeconfig.Cluster) (host string, port uint16, err error) {
	u, err := url.Parse(c.Server)
	if err == nil && (u.Hostname() == "" || u.Scheme != "https" && u.Scheme != "http") {
		err = errors.New("it is not a URL such as https://api.example.com:6443")
	}
	if err != nil {
		return "", 0, fmt.Errorf("the server of cluster %q, %q: %w", c.Name, c.Server, err)
	}
	text := u.Port()
	if text == "" {
		text = map[string]string{"https": "443", "http": "80"}[u.Scheme]
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return "", 0, fmt.Errorf("the server of cluster %q, %q: %q is not a port", c.Name, c.Server, text)
	}
	if !plainHost.MatchString(u.Hostname()) {
		return "", 0, fmt.Errorf("the server of cluster %q, %q: %q is not a host", c.Name, c.Server, u.Hostname())
	}
	return u.Hostname(), uint16(n), nil
}

// plainHost also keeps what is not a host out of commands that a hint offers.
var plainHost = regexp.MustCompile(`^[A-Za-z0-9_.:-]+$`)

// profile is the id of a profile that is given by its id or name.
func (o *offer) profile(name string) (string, error) {
	var ids []string
	for _, p := range o.profiles {
		if p.ID == name {
			return p.ID, nil
		}
		ids = append(ids, p.ID)
	}
	for _, p := range o.profiles {
		if p.Name == name {
			return p.ID, nil
		}
	}
	hint := ""
	if len(ids) > 0 {
		hint = "there are: " + strings.Join(ids, ", ")
	}
	return "", &control.Error{Message: fmt.Sprintf("%s has no profile %q", o.where, name), Hint: hint}
}

// listener chooses the tunnel: one of the profile's own before one that the rules judge, one
// that is open before one that is not, and one of this host alone before others.
func (o *offer) listener(profile string) (control.ListenerRow, error) {
	best, most := control.ListenerRow{}, -1
	for _, l := range o.listeners {
		if !strings.HasPrefix(l.Type, "http-connect") || l.Profile != "" && l.Profile != profile {
			continue
		}
		rank := 0
		if l.Open {
			rank += 4
		}
		if l.Profile == profile {
			rank += 2
		}
		if at, err := netip.ParseAddrPort(l.Listen); err == nil && (at.Addr().IsLoopback() || at.Addr().IsUnspecified()) {
			rank++
		}
		if rank > most {
			best, most = l, rank
		}
	}
	const cure = `put <tunnel type="http-connect" listen-port="3128" /> into static-tunnels and say ssh-broker-ctl reload, or ssh-broker-ctl open-tunnel-listener 3128 --type http-connect; --listen names another proxy`
	switch {
	case most < 0:
		return best, &control.Error{Message: o.where + " has no http-connect tunnel that kubectl could go through", Hint: cure}
	case !best.Open:
		return best, &control.Error{Message: fmt.Sprintf("the http-connect tunnel at %s (%s) is not open: %s", best.Listen, best.Source, best.Error), Hint: "free its port, or choose another, and say ssh-broker-ctl reload"}
	}
	return best, nil
}

// leads refuses unless the rules lead kubectl to host and port through a profile.
func (o *offer) leads(host string, port uint16, profile string) error {
	condition := "--host"
	if _, err := netip.ParseAddr(host); err == nil {
		condition = "--ip-address"
	}
	refuse := func(does, place string) error {
		return &control.Error{Message: fmt.Sprintf("the rules do not lead kubectl to %s through profile %s: %s", net.JoinHostPort(host, strconv.Itoa(int(port))), profile, does),
			Hint: fmt.Sprintf("ssh-broker-ctl rule add %s '%s' --ports %d --action TUNNEL --profile-id %s%s --reload", condition, strings.ReplaceAll(host, ".", `\.`), port, profile, place)}
	}
	rows, err := o.explain(control.ExplainArgs{Program: executable("kubectl"), Host: host, Port: port})
	if answer := (*control.Error)(nil); errors.As(err, &answer) {
		return refuse(answer.Message, "") // as there are no rules at all
	}
	if err != nil {
		return err
	}
	r := takeApart(rows).result
	switch {
	case r == nil:
		return errors.New("explain: the broker answered without a result")
	case r.Action == "TUNNEL" && r.Profile == profile:
		return nil
	}
	does, place := r.Action, ""
	if r.Profile != "" {
		does += " through profile " + r.Profile
	}
	if r.Rule == 0 {
		does += ", as no rule matches"
	} else {
		does += fmt.Sprintf(" by rule %d, %s", r.Rule, r.Source)
		place = fmt.Sprintf(" --before %d", r.Rule)
	}
	return refuse(does, place)
}

func (k *kubeRun) unsetCommand() *cobra.Command {
	var forget bool
	cmd := &cobra.Command{
		Use:   "unset CLUSTER",
		Short: "Undo what set has done",
		Long: `Undo what set has done to a cluster: its proxy-url goes, or becomes what it was before.
Where nobody has touched the file meanwhile it is the same as before, byte for byte; where
kubectl has written it anew, it means the same.

If somebody has changed the proxy-url since, nothing is done. With --forget the mark of set
is taken off, and the proxy-url stays.`,
		Example: `  ssh-broker-ctl kubeconfig unset prod
  ssh-broker-ctl kubeconfig unset prod --forget`,
		Args: exactly("CLUSTER"),
		RunE: func(_ *cobra.Command, args []string) error {
			texts, err := k.read()
			if err != nil {
				return err
			}
			t, c, err := find(texts, args[0])
			if err != nil {
				return err
			}
			for _, other := range texts { // it may have been the first when it was set
				if marked, ok := other.Cluster(c.Name); c.State == kubeconfig.Untouched && ok && marked.State != kubeconfig.Untouched {
					t, c = other, marked
				}
			}
			undo := func(t *kubeconfig.Text) (*kubeconfig.Text, string, error) {
				made, exact, err := t.Unset(c.Name)
				say := fmt.Sprintf("cluster %s is as it was before", c.Name)
				if err == nil && !exact {
					say += "; the file was written anew since, so that only the values are"
				}
				return made, say, err
			}
			switch {
			case c.State == kubeconfig.Untouched:
				undo = func(t *kubeconfig.Text) (*kubeconfig.Text, string, error) {
					return t, fmt.Sprintf("cluster %s was not set", c.Name), nil
				}
				k.dryRun = true // for which there is no need of a lock
			case forget:
				undo = func(t *kubeconfig.Text) (*kubeconfig.Text, string, error) {
					made, err := t.Forget(c.Name)
					return made, fmt.Sprintf("cluster %s keeps its proxy-url", c.Name), err
				}
			}
			return k.edit(t, c.Name, undo)
		},
		ValidArgsFunction: k.completeClusters,
	}
	cmd.Flags().BoolVar(&forget, "forget", false, "take the mark off and leave the proxy-url as it is")
	k.dryRunFlag(cmd)
	return cmd
}

func (k *kubeRun) listCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List clusters, and which are led through a profile",
		Long: `List the clusters of the files that kubectl reads, their proxy-url, and what set has done:
the profile, or that somebody has changed the proxy-url since.`,
		Example: `  ssh-broker-ctl kubeconfig list
  ssh-broker-ctl kubeconfig list -s | jq -r 'select(.state == "set") | .cluster'`,
		Args:              exactly(),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			texts, err := k.read()
			if err != nil {
				return err
			}
			var rows []kubeRow
			for _, t := range texts {
				for _, c := range t.Clusters() {
					row := kubeRowOf(t, c)
					row.Hidden = slices.ContainsFunc(rows, func(r kubeRow) bool { return r.Cluster == c.Name })
					rows = append(rows, row)
				}
			}
			list(k.app, rows, k.table, "no clusters")
			return nil
		},
	}
}

func (k *kubeRun) table(rows []kubeRow) {
	t := k.newTable("CLUSTER", "SERVER", "PROXY", "THROUGH", "FILE")
	for _, r := range rows {
		through := "-"
		if r.State != "untouched" {
			through = r.Profile
		}
		proxy := r.ProxyURL
		if proxy == "" {
			proxy = "-"
		}
		t.add(r.Cluster, r.Server, proxy, through, r.File+":"+strconv.Itoa(r.Line))
		if r.State == "changed" {
			t.note("somebody has changed its proxy-url since it was set")
		}
		if r.Hidden {
			t.note("kubectl takes the one above it")
		}
	}
	t.print(k.app)
}

// completeClusters offers the names of clusters.
func (k *kubeRun) completeClusters(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var names []string
	if texts, err := k.read(); err == nil && len(args) == 0 {
		for _, t := range texts {
			for _, c := range t.Clusters() {
				names = append(names, c.Name)
			}
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeProfiles offers the ids of profiles.
func (k *kubeRun) completeProfiles(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	var ids []string
	if o, err := k.configured(); err == nil {
		for _, p := range o.profiles {
			ids = append(ids, p.ID)
		}
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}
