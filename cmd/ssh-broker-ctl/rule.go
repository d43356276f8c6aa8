package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"sshbroker/broker/config"
	"sshbroker/broker/config/edit"
	"sshbroker/broker/control"
	"sshbroker/broker/replace"
)

func (a *app) ruleCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "rule COMMAND",
		GroupID: groupConfig,
		Short:   "List, add, remove and move filter rules in a file",
		Long: `List, add, remove and move the filter rules of a configuration file: the user's, with
--system that for all users, with -f another one. No broker is needed.

Only the rule itself is edited: everything else in the file stays as it is byte for
byte, comments included. The result is checked as check-config does before it takes
the place of the file, whole or not at all; nothing is written if it has an error.

The rules have the numbers that explain, list-channels and the audit record give them.`,
		Example: `  ssh-broker-ctl rule list
  ssh-broker-ctl rule add --host '(.*\.)?internal' --action TUNNEL --profile-id bastion --dry-run
  ssh-broker-ctl rule move 3 --to 1 --reload`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{fmt.Errorf("%s: add, remove, move or list is missing; see %s --help", cmd.Name(), cmd.CommandPath())}
			}
			return usageError{fmt.Errorf("%s: %q is not one of add, remove, move, list", cmd.Name(), args[0])}
		},
		RunE: func(*cobra.Command, []string) error { return nil }, // Args never lets it run
	}
	cmd.AddCommand(a.ruleListCommand(), a.ruleAddCommand(), a.ruleRemoveCommand(), a.ruleMoveCommand())
	return cmd
}

// ruleFile says which file is edited, and how.
type ruleFile struct {
	name                   string
	create, dryRun, reload bool
}

func (r *ruleFile) flags(f *pflag.FlagSet) {
	r.fileFlag(f)
	f.BoolVarP(&r.dryRun, "dry-run", "n", false, "show the change as a unified diff and write nothing")
	f.BoolVar(&r.reload, "reload", false, "have the broker read its configuration again")
}

func (r *ruleFile) fileFlag(f *pflag.FlagSet) {
	f.StringVarP(&r.name, "config-file", "f", "", "edit this `FILE` in place of the user's")
}

// choose finds the file where -f does not name it.
func (a *app) choose(r *ruleFile) error {
	if r.name != "" {
		return nil
	}
	if r.name = a.globalFile; !a.system {
		r.name = a.checkOptions().UserFile()
	}
	if r.name == "" {
		return &control.Error{Message: "it is not known where your file is, as you have no home directory", Hint: "name it with -f"}
	}
	return nil
}

// checkOptions are those by which check-config judges a file.
func (a *app) checkOptions() config.Options {
	return config.Options{GlobalFile: a.globalFile, Env: ownEnv()}
}

// ruleChange is what an edit has come to.
type ruleChange struct {
	text *edit.Text
	from int    // number of the rule before; 0: it is new
	to   int    // its number now; 0: it is gone
	what string // for people: "added"
}

// ruleRow is what rule add, remove and move print with -s.
type ruleRow struct {
	File     string   `json:"file"`
	Rule     int      `json:"rule"`
	Line     int      `json:"line,omitempty"`
	Written  bool     `json:"written"`
	Warnings []string `json:"warnings"`
	Diff     string   `json:"diff,omitempty"`
}

// editRules does one edit of a file.
func (a *app) editRules(ctx context.Context, r ruleFile, change func(*edit.Text) (ruleChange, error)) error {
	if err := a.choose(&r); err != nil {
		return err
	}
	file, err := r.open()
	if err != nil {
		return err
	}
	defer file.Close()
	old, err := edit.Parse(r.name, file.Data())
	if err != nil {
		return err
	}
	done, err := change(old)
	if err != nil {
		return err
	}
	problems := config.CheckText(r.name, done.text.Bytes(), a.checkOptions())
	if bad := problems.Errors(); len(bad) > 0 {
		return &control.Error{Message: fmt.Sprintf("%s is left as it was; it would then be wrong:\n%v", r.name, bad)}
	}
	row := ruleRow{File: r.name, Rule: done.from, Warnings: ruleWarnings(r.name, old, done, problems)}
	if done.to > 0 {
		row.Rule, row.Line = done.to, done.text.Rules()[done.to-1].Pos.Line
	}
	if r.dryRun {
		row.Diff = string(diff.Diff(r.name, []byte(old.String()), r.name, []byte(done.text.String())))
	} else if err := file.Write(done.text.Bytes()); err != nil {
		return err
	}
	row.Written = !r.dryRun
	a.ruleChanged(row, done, r)
	if !row.Written || !r.reload {
		return nil
	}
	return a.reloadAfter(ctx, r.name)
}

// editable is a file that an edit is for.
type editable interface {
	Data() []byte
	Write([]byte) error
	Close() error
}

// unlocked is a file that is only looked at.
type unlocked struct{ data []byte }

func (u unlocked) Data() []byte     { return u.data }
func (unlocked) Write([]byte) error { return errors.ErrUnsupported }
func (unlocked) Close() error       { return nil }

// open opens the file for the edit. A dry run leaves no trace.
func (r ruleFile) open() (editable, error) {
	var f editable
	var err error
	switch {
	case !r.dryRun:
		if r.create {
			if err := os.MkdirAll(filepath.Dir(r.name), 0o700); err != nil {
				return nil, err
			}
		}
		f, err = edit.Open(r.name, r.create)
	default:
		var data []byte
		data, err = config.ReadFile(r.name)
		if r.create && errors.Is(err, fs.ErrNotExist) {
			data, err = edit.Empty(), nil
		}
		f = unlocked{data}
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, &control.Error{Message: fmt.Sprintf("%s does not exist", r.name), Hint: "rule add --create makes it"}
	case errors.Is(err, replace.ErrBusy):
		return nil, &control.Error{Message: err.Error(), Hint: "try again when it has ended"}
	}
	return f, err
}

// ruleWarnings is what is to be said about an edit that is done.
func ruleWarnings(name string, old *edit.Text, done ruleChange, problems config.Problems) []string {
	list := []string{}
	if done.from > 0 {
		if line := old.Rules()[done.from-1].Comment; line > 0 {
			list = append(list, fmt.Sprintf("%s:%d: warning: this comment seems to be about the rule; it stays where it is", name, line))
		}
	}
	rules := done.text.Rules()
	if len(rules) == 0 {
		list = append(list, name+": warning: there is no rule any more: all connections go by default-action")
	}
	about := func(config.Pos) bool { return false } // where the rule is
	if done.to > 0 {
		r := rules[done.to-1]
		about = func(p config.Pos) bool {
			return !p.Before(r.Pos) && (done.to == len(rules) || p.Before(rules[done.to].Pos))
		}
	}
	for _, p := range problems.Warnings() {
		of := p.Element == "filter-engine" || (p.Element == "rule" || p.Element == "filter") && about(p.Pos)
		if text := p.String(); of && !slices.Contains(list, text) {
			list = append(list, text)
		}
	}
	return list
}

func (a *app) ruleChanged(row ruleRow, done ruleChange, r ruleFile) {
	if a.short {
		a.printJSON(row)
		return
	}
	a.printDiff(row.Diff)
	if a.quiet {
		return
	}
	for _, w := range row.Warnings {
		a.printf("%s\n", w)
	}
	if !row.Written {
		return
	}
	where := row.File
	if row.Line > 0 {
		where += ":" + strconv.Itoa(row.Line)
	}
	a.printf("rule %d %s: %s\n", row.Rule, done.what, where)
	if !r.reload {
		hint := "ssh-broker-ctl reload"
		if a.system {
			hint = "ssh-broker-ctl --system reload"
		}
		a.printf("a broker that runs has the old rules until: %s\n", hint)
	}
}

// printDiff prints a diff with the line ends that it has.
func (a *app) printDiff(text string) {
	for line := range strings.SplitAfterSeq(text, "\n") {
		body := strings.TrimRight(line, "\r\n")
		fmt.Fprint(a.out, printable(body)+line[len(body):])
	}
}

// reloadAfter has the broker read its files after one of them was changed.
func (a *app) reloadAfter(ctx context.Context, name string) error {
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	reload, err := rowsOf[control.ReloadResult](ctx, c, control.OpReload, nil)
	if err != nil {
		return err
	}
	status, err := rowsOf[control.StatusRow](ctx, c, control.OpStatus, nil)
	if err != nil {
		return err
	}
	for _, row := range reload {
		switch {
		case a.short:
			a.printJSON(row)
		case !a.quiet:
			a.reloaded(row)
		}
	}
	if len(status) == 1 && !a.quiet && !a.short && !slices.ContainsFunc(status[0].ConfigFiles, func(f string) bool { return sameFile(f, name) }) {
		a.printf("note: the broker that runs does not read %s\n", name)
	}
	return nil
}

func sameFile(a, b string) bool {
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	return errX == nil && errY == nil && os.SameFile(x, y)
}

// ruleNumber reads the number of a rule.
func ruleNumber(text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		return 0, usageError{fmt.Errorf("%q is not the number of a rule; see ssh-broker-ctl rule list", text)}
	}
	return n, nil
}

func (a *app) ruleRemoveCommand() *cobra.Command {
	var r ruleFile
	cmd := &cobra.Command{
		Use:   "remove N",
		Short: "Remove a rule",
		Long: `Remove rule N. If it stands alone in its lines they go with it; comments stay. The
rules behind it get new numbers.`,
		Example: `  ssh-broker-ctl rule remove 3 --dry-run
  ssh-broker-ctl rule remove 3 --reload`,
		Args: exactly("N"),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := ruleNumber(args[0])
			if err != nil {
				return err
			}
			return a.editRules(cmd.Context(), r, func(t *edit.Text) (ruleChange, error) {
				text, err := t.Remove(n)
				return ruleChange{text: text, from: n, what: "removed"}, err
			})
		},
	}
	r.flags(cmd.Flags())
	return cmd
}

func (a *app) ruleMoveCommand() *cobra.Command {
	var r ruleFile
	var to int
	cmd := &cobra.Command{
		Use:   "move N --to M",
		Short: "Move a rule to another place",
		Long: `Make rule N the rule of number M: the first rule whose conditions all hold decides, so
their order counts. The rules in between get new numbers; comments stay.`,
		Example: `  ssh-broker-ctl rule move 3 --to 1`,
		Args:    exactly("N"),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := ruleNumber(args[0])
			switch {
			case err != nil:
				return err
			case !cmd.Flags().Changed("to"):
				return usageError{errors.New("move: --to M is missing; see ssh-broker-ctl rule move --help")}
			case to < 1:
				return usageError{fmt.Errorf("--to %d: the first rule has the number 1", to)}
			}
			return a.editRules(cmd.Context(), r, func(t *edit.Text) (ruleChange, error) {
				text, err := t.Move(n, to)
				return ruleChange{text: text, from: n, to: to, what: "moved"}, err
			})
		},
	}
	cmd.Flags().IntVar(&to, "to", 0, "the number `M` that it has afterwards")
	r.flags(cmd.Flags())
	return cmd
}

// ruleListRow is a rule as rule list -s prints it.
type ruleListRow struct {
	Rule       int               `json:"rule"`
	File       string            `json:"file"`
	Line       int               `json:"line"`
	Element    string            `json:"element"`
	Attributes map[string]string `json:"attributes"`
}

func (a *app) ruleListCommand() *cobra.Command {
	var r ruleFile
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the rules of a file",
		Long: `List the rules of a file in their order, with their numbers and lines. The element
"filter", which with a "dns" is the older form of a rule, counts as well.`,
		Example: `  ssh-broker-ctl rule list
  ssh-broker-ctl --system rule list
  ssh-broker-ctl rule list -s | jq -r 'select(.attributes.action == "BLOCK") | .rule'`,
		Args: exactly(),
		RunE: func(*cobra.Command, []string) error {
			text, err := a.readRules(&r)
			if err != nil {
				return err
			}
			a.ruleList(r.name, text, config.CheckText(r.name, text.Bytes(), a.checkOptions()))
			return nil
		},
	}
	r.fileFlag(cmd.Flags())
	cmd.Flags().Lookup("config-file").Usage = "list the rules of this `FILE` in place of the user's"
	return cmd
}

// readRules reads the file that r means.
func (a *app) readRules(r *ruleFile) (*edit.Text, error) {
	if err := a.choose(r); err != nil {
		return nil, err
	}
	data, err := config.ReadFile(r.name)
	if err != nil {
		return nil, err
	}
	return edit.Parse(r.name, data)
}

func (a *app) ruleList(name string, text *edit.Text, problems config.Problems) {
	t := a.newTable("RULE", "LINE", "ACTION", "CONDITIONS AND THE REST")
	t.right(0, 1)
	for _, r := range text.Rules() {
		row := ruleListRow{r.Number, name, r.Pos.Line, r.Element, map[string]string{}}
		var rest []string
		for _, attr := range r.Attrs {
			row.Attributes[attr.Name] = attr.Value
			if attr.Name != "action" {
				quote := `"`
				if strings.Contains(attr.Value, quote) {
					quote = "'"
				}
				rest = append(rest, attr.Name+"="+quote+attr.Value+quote)
			}
		}
		if a.short {
			a.printJSON(row)
			continue
		}
		t.add(strconv.Itoa(r.Number), strconv.Itoa(r.Pos.Line), row.Attributes["action"], strings.Join(rest, " "))
	}
	switch {
	case a.short:
		return
	case len(t.rows) > 0:
		t.print(a)
	case !a.quiet:
		a.printf("%s has no rules\n", name)
	}
	if a.quiet {
		return
	}
	for _, p := range problems.Warnings() {
		if p.Element == "filter-engine" {
			a.printf("%v\n", p)
		}
	}
	if bad := problems.Errors(); len(bad) > 0 {
		a.printf("%s: %s; see ssh-broker-ctl check-config %s\n", name, count(len(bad), "error"), name)
	}
}
