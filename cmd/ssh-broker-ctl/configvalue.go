package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"sshbroker/broker/config"
	"sshbroker/broker/config/schema"
	"sshbroker/broker/config/values"
	"sshbroker/broker/control"
)

func (a *app) configValueCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:     "config-value PATH",
		GroupID: groupConfig,
		Short:   "Print the values of the configuration at a path, and where they come from",
		Long: `Print the values that hold at PATH, and the file, line and column that each comes from:
files merged, settings of profiles taken from default-settings, factory defaults where no
file says anything. Passwords are not printed.

A path names elements from the top, with / between them, and at its end @ and an
attribute; * stands for any. A path that ends with an element prints everything in it, and
/ prints all there is. Behind the name of an element, [2] takes the second, and
[@id='rock'] that with such an attribute.

The files are those of the broker that runs, as they are now; without a broker those that
one would read. With -f it is this file in place of the user's.`,
		Example: `  ssh-broker-ctl config-value default-settings/idle-timeout/@time
  ssh-broker-ctl config-value "profiles/profile[@id='rock']"
  ssh-broker-ctl config-value -f new.xml 'filter-engine/rule[3]/@action'
  ssh-broker-ctl config-value -s / | jq -r 'select(.origin == "file") | .path'`,
		Args:              exactly("PATH"),
		ValidArgsFunction: completePath,
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := values.ParsePath(args[0])
			if err != nil {
				return usageError{err}
			}
			source, err := a.valueSource(cmd.Context(), file)
			if err != nil {
				return err
			}
			tree, err := values.Load(source.files, ownEnv())
			if err != nil {
				return err
			}
			list, err := tree.Find(path)
			if missing, ok := errors.AsType[*values.NotFoundError](err); ok {
				return &control.Error{Message: missing.Msg, Hint: missing.Hint}
			}
			if err != nil {
				return err
			}
			a.configValues(source, list)
			return nil
		},
	}
	cmd.Flags().StringVarP(&file, "config-file", "f", "", "print the values of this `FILE` in place of the user's, without a broker")
	return cmd
}

// completePath offers the elements and attributes that the schema has behind the last /.
func completePath(_ *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	const directive = cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	if len(args) > 0 {
		return nil, directive
	}
	before := typed[:strings.LastIndex(typed, "/")+1]
	at := schema.RootName
	if steps := strings.Split(strings.Trim(before, "/"), "/"); before != "" && before != "/" {
		at, _, _ = strings.Cut(steps[len(steps)-1], "[")
	}
	var words []string
	for _, c := range schema.Children(at) {
		words = append(words, before+c.Name)
	}
	for _, a := range schema.Attributes(at) {
		words = append(words, before+"@"+a.Name)
	}
	return slices.DeleteFunc(words, func(w string) bool { return !strings.HasPrefix(w, typed) }), directive
}

// valueSource is which files are looked at, and why.
type valueSource struct {
	files   values.Files
	why     string
	changed bool // they are not what the broker has read
}

// valueSource finds the files: file, those of the broker that runs, or those that one
// would read.
func (a *app) valueSource(ctx context.Context, file string) (valueSource, error) {
	if file != "" {
		s := valueSource{why: "as a broker would have it that reads " + file}
		err := a.filesOf(&s, config.Options{File: file})
		return s, err
	}
	status, err := one[control.StatusRow](ctx, a, control.OpStatus, nil)
	switch {
	case err == nil:
		s := valueSource{why: fmt.Sprintf("of the broker that runs, process %d", status.PID)}
		s.set(status.ConfigFiles, a.globalFile)
		now, err := config.Digest(status.ConfigFiles...)
		if err != nil {
			return s, err
		}
		s.changed = status.ConfigDigest != "" && status.ConfigDigest != hex.EncodeToString(now[:])
		return s, nil
	case !errors.Is(err, control.ErrNoBroker):
		return valueSource{}, err
	}
	s := valueSource{why: "as a broker would have it, but none runs"}
	err = a.filesOf(&s, config.Options{})
	return s, err
}

// filesOf finds the files that a broker with these options would go by.
func (a *app) filesOf(s *valueSource, o config.Options) error {
	o.Env, o.GlobalFile = ownEnv(), a.globalFile
	if a.system {
		if o.System = true; o.File != "" {
			o.GlobalFile, o.File = o.File, ""
		}
	}
	c, err := config.Load(o)
	if err != nil {
		return err
	}
	s.set(c.Files, o.GlobalFile)
	return nil
}

// set takes the files apart, the first of which may be the global one.
func (s *valueSource) set(files []string, global string) {
	if len(files) > 0 && (len(files) > 1 || files[0] == global) {
		s.files.Global, files = files[0], files[1:]
	}
	if len(files) > 0 {
		s.files.User = files[0]
	}
}

// valueRow is what config-value prints with -s.
type valueRow struct {
	Path   string `json:"path"`
	Value  string `json:"value"`
	Origin string `json:"origin"`
	File   string `json:"file,omitempty"`
	Line   int    `json:"line,omitempty"`
	Col    int    `json:"col,omitempty"`
	Secret bool   `json:"secret,omitempty"`
	Note   string `json:"note,omitempty"`
}

func (a *app) configValues(s valueSource, list []values.Value) {
	t := a.newTable("PATH", "VALUE", "FROM")
	for _, v := range list {
		row := valueRow{Path: v.Path, Value: v.Text, Origin: v.Origin.String(), File: v.Pos.File, Line: v.Pos.Line, Col: v.Pos.Col, Secret: v.Secret}
		from := row.Origin
		if v.Origin == values.File {
			from = v.Pos.String()
		}
		if v.Effect != schema.General {
			row.Note = v.Effect.String()
			from += " (" + row.Note + ")"
		}
		switch {
		case a.short:
			a.printJSON(row)
		case a.quiet:
			a.printf("%s\n", strings.ReplaceAll(v.Text, "\n", " "))
		default:
			t.add(v.Path, v.Text, from)
		}
	}
	if a.short || a.quiet {
		return
	}
	a.printf("%s\n", s.why)
	if s.changed {
		a.printf("the files have changed since; the broker has the old values until: ssh-broker-ctl reload\n")
	}
	t.print(a)
}
