package main

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sshbroker/broker/config"
	"sshbroker/broker/control"
	"sshbroker/broker/doctor"
	"sshbroker/capture/leak"
)

// patience is how long a shell waits for words after a key was pressed.
const patience = 2 * time.Second

// words finds what may stand at one place of the command line that cmd has; nil is nothing.
// It never starts a broker, and without one it offers what can be known without.
type words func(ctx context.Context, a *app, cmd *cobra.Command) []cobra.Completion

// arguments are what the arguments of a command may be. The zero value is nothing, not
// even files.
type arguments struct {
	each   []words // one for each
	repeat bool    // the last one may be given again
	files  bool    // or files
}

// completed has an entry for each command whose arguments are what the broker has, or a
// file. Those that set ValidArgs or ValidArgsFunction themselves are not in it.
var completed = map[string]arguments{
	"disconnect-client":     {each: []words{clientWords}, repeat: true},
	"close-connection":      {each: []words{connectionWords}, repeat: true},
	"connection-status":     {each: []words{connectionWords}},
	"close-channel":         {each: []words{channelWords}, repeat: true},
	"close-tunnel-listener": {each: []words{listenerWords}, repeat: true},
	"open-tunnel-listener":  {each: []words{nil, profileWords}},
	"list-profiles":         {each: []words{profileWords}, repeat: true},
	"view-key":              {each: []words{keyWords}, files: true},
	"remove-key":            {each: []words{keyWords}, files: true},
	"key-passphrase":        {each: []words{keyWords}, files: true},
	"add-key":               {files: true},
	"check-config":          {files: true},
	"rule remove":           {each: []words{ruleWords}},
	"rule move":             {each: []words{ruleWords}},
}

// completedOptions are the same for values of options.
var completedOptions = map[string]map[string]words{
	"explain":   {"flow": channelWords},
	"rule add":  {"profile-id": profileWords, "before": ruleWords, "after": ruleWords, "at": ruleWords},
	"rule move": {"to": ruleWords},
	"list-keys": {"extra": fixed("certificates")},
	"doctor":    {"check": checkWords},
	"leak-test": {"probe": probeWords, "backend": fixed("auto", "cgroup", "namespace", "none"), "udp": fixed("refuse", "direct")},
}

// fixed are words that are always the same.
func fixed(list ...cobra.Completion) words {
	return func(context.Context, *app, *cobra.Command) []cobra.Completion { return slices.Clone(list) }
}

// checkWords are the checks of doctor.
func checkWords(context.Context, *app, *cobra.Command) (list []cobra.Completion) {
	for _, c := range doctor.Checks() {
		list = append(list, word(c.Name, "%s", c.What))
	}
	return list
}

// probeWords are the probes of leak-test.
func probeWords(context.Context, *app, *cobra.Command) (list []cobra.Completion) {
	for _, p := range leak.All() {
		list = append(list, word(p.Name, "%s", p.What))
	}
	return list
}

// completions gives all commands below cmd their words. Where nothing is known of an
// argument, the names of files are not offered either.
func (a *app) completions(cmd *cobra.Command) {
	for _, below := range cmd.Commands() {
		a.completions(below)
	}
	name := strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" ")
	for option, find := range completedOptions[name] {
		err := cmd.RegisterFlagCompletionFunc(option, func(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			return a.ask(cmd, find, nil), cobra.ShellCompDirectiveNoFileComp
		})
		if err != nil {
			panic(err) // the table has an option that is not there
		}
	}
	if cmd.HasSubCommands() || cmd.ValidArgsFunction != nil || len(cmd.ValidArgs) > 0 {
		return
	}
	is := completed[name]
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		directive := cobra.ShellCompDirectiveNoFileComp
		if is.files {
			directive = cobra.ShellCompDirectiveDefault
		}
		at := len(args)
		if is.repeat {
			at = min(at, len(is.each)-1)
		}
		if at >= len(is.each) {
			return nil, directive
		}
		return a.ask(cmd, is.each[at], args), directive
	}
}

// ask finds words, without those that are given already.
func (a *app) ask(cmd *cobra.Command, find words, given []string) []cobra.Completion {
	if find == nil {
		return nil
	}
	ctx := cmd.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return slices.DeleteFunc(find(ctx, a, cmd), func(word cobra.Completion) bool {
		text, _, _ := strings.Cut(word, "\t")
		return slices.Contains(given, text)
	})
}

// word is one with what it means, which is from elsewhere: programs choose names.
func word(text, format string, args ...any) cobra.Completion {
	lines := strings.NewReplacer("\n", "?", "\t", "?")
	return cobra.CompletionWithDesc(lines.Replace(printable(text)), lines.Replace(printable(fmt.Sprintf(format, args...))))
}

// brokerWords asks the broker that runs; nothing where none does.
func brokerWords[Row any](op string, args any, each func(Row) cobra.Completion) words {
	return func(ctx context.Context, a *app, _ *cobra.Command) (list []cobra.Completion) {
		rows, err := fetch[Row](ctx, a, op, args)
		if err != nil {
			return nil // there is nobody to tell while a line is typed
		}
		for _, r := range rows {
			if w := each(r); w != "" {
				list = append(list, w)
			}
		}
		return list
	}
}

var (
	clientWords = brokerWords(control.OpClients, nil, func(r control.ClientRow) cobra.Completion {
		return word(id(r.ID), "%s[%d] %s", filepath.Base(cmp.Or(r.Program, "?")), r.PID, r.Operation)
	})
	connectionWords = brokerWords(control.OpConnections, nil, func(r control.ConnectionRow) cobra.Completion {
		return word(id(r.ID), "%s@%s, %s", cmp.Or(r.User, "?"), r.Server, r.State)
	})
	channelWords = brokerWords(control.OpChannels, nil, func(r control.ChannelRow) cobra.Completion {
		return word(id(r.ID), "%s[%d] to %s", filepath.Base(cmp.Or(r.Program, "?")), r.PID, cmp.Or(r.Name, r.Dst))
	})
	listenerWords = brokerWords(control.OpListeners, nil, func(r control.ListenerRow) cobra.Completion {
		return word(id(r.ID), "%s %s", r.Type, r.Listen)
	})
	keyWords = brokerWords(control.OpListKeys, control.KeyArgs{}, func(r control.KeyRow) cobra.Completion {
		if name := cmp.Or(r.File, r.ID); name != "" {
			return word(name, "%s, %s", cmp.Or(r.Type, "?"), r.State)
		}
		return ""
	})
	brokerProfiles = brokerWords(control.OpProfiles, nil, func(r control.ProfileRow) cobra.Completion {
		return word(r.ID, "%s", cmp.Or(r.Name, strings.Join(r.Servers, ", ")))
	})
)

// profileWords are the profiles in force; without a broker those of the configuration.
func profileWords(ctx context.Context, a *app, cmd *cobra.Command) []cobra.Completion {
	if list := brokerProfiles(ctx, a, cmd); list != nil {
		return list
	}
	o := a.checkOptions()
	if o.System = a.system; a.system {
		o.File = a.globalFile
	}
	c, err := config.Load(o)
	if err != nil {
		return nil
	}
	var list []cobra.Completion
	for id, p := range c.Profiles {
		list = append(list, word(id, "%s", p.Name))
	}
	slices.Sort(list)
	return list
}

// ruleWords are the numbers of the rules in the file that would be edited.
func ruleWords(_ context.Context, a *app, cmd *cobra.Command) []cobra.Completion {
	var r ruleFile
	if file := cmd.Flag("config-file"); file != nil {
		r.name = file.Value.String()
	}
	text, err := a.readRules(&r)
	if err != nil {
		return nil
	}
	var list []cobra.Completion
	for _, rule := range text.Rules() {
		var says []string
		for _, attr := range rule.Attrs {
			says = append(says, attr.Name+"="+attr.Value)
		}
		list = append(list, word(strconv.Itoa(rule.Number), "%s", strings.Join(says, " ")))
	}
	return list
}
