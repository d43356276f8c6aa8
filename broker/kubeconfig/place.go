package kubeconfig

import (
	"bytes"
	"errors"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// The parser says where a node starts, in lines and characters. Where one ends is found
// here, for the forms that people and programs write; others are refused.

var errForm = errors.New("it is written in a form that is not edited")

// start is where a node starts in the bytes. Of one with an anchor or a tag that is the
// start of these.
func (t *Text) start(n *yaml.Node) (int, error) {
	if n.Line < 1 || n.Line > len(t.lines) {
		return 0, errForm
	}
	i := t.lines[n.Line-1]
	for range n.Column - 1 {
		if i >= len(t.data) {
			return 0, errForm
		}
		_, size := utf8.DecodeRune(t.data[i:])
		i += size
	}
	return i, nil
}

// end is where a node ends.
func (t *Text) end(n *yaml.Node) (int, error) {
	if n.Anchor != "" || n.Style&yaml.TaggedStyle != 0 || n.Kind == yaml.AliasNode {
		return 0, errForm
	}
	if n.Kind == yaml.ScalarNode {
		return t.scalarEnd(n)
	}
	from, err := t.start(n)
	if err != nil {
		return 0, err
	}
	last := from + 1 // behind the bracket, if it has one
	if len(n.Content) > 0 {
		if last, err = t.end(n.Content[len(n.Content)-1]); err != nil {
			return 0, err
		}
	}
	if n.Style&yaml.FlowStyle == 0 {
		if len(n.Content) == 0 {
			return 0, errForm
		}
		return last, nil
	}
	return t.closing(last)
}

// closing is where the bracket ends that is the next after i but for blanks, line ends,
// commas and comments.
func (t *Text) closing(i int) (int, error) {
	for i < len(t.data) {
		switch c := t.data[i]; {
		case c == '}' || c == ']':
			return i + 1, nil
		case c == ' ' || c == '\t' || c == ',' || c == '\r' || c == '\n':
			i++
		case c == '#':
			for i < len(t.data) && breakLen(t.data[i:]) == 0 {
				i++
			}
		default:
			return 0, errForm
		}
	}
	return 0, errForm
}

func (t *Text) scalarEnd(n *yaml.Node) (int, error) {
	from, err := t.start(n)
	if err != nil {
		return 0, err
	}
	switch {
	case n.Anchor != "" || n.Style&(yaml.TaggedStyle|yaml.LiteralStyle|yaml.FoldedStyle) != 0:
		return 0, errForm
	case n.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle) != 0:
		return t.quoteEnd(from)
	case !bytes.HasPrefix(t.data[from:], []byte(n.Value)): // on several lines
		return 0, errForm
	}
	return from + len(n.Value), nil
}

// quoteEnd is where the quoted scalar at i ends.
func (t *Text) quoteEnd(i int) (int, error) {
	if i >= len(t.data) || t.data[i] != '"' && t.data[i] != '\'' {
		return 0, errForm
	}
	quote := t.data[i]
	for i++; i < len(t.data); i++ {
		switch {
		case t.data[i] == '\\' && quote == '"':
			i++
		case t.data[i] == quote && quote == '\'' && i+1 < len(t.data) && t.data[i+1] == quote:
			i++
		case t.data[i] == quote:
			return i + 1, nil
		}
	}
	return 0, errForm
}

// lineStart is where the line begins that i is in.
func (t *Text) lineStart(i int) int {
	return max(bytes.LastIndexAny(t.data[:i], "\r\n")+1, t.lines[0])
}

// ownLine returns what stands before i in its line if that is blanks, and whether it is.
func (t *Text) ownLine(i int) (indent string, ok bool) {
	indent = string(t.data[t.lineStart(i):i])
	return indent, strings.Trim(indent, " \t") == ""
}

// restOfLine is where the line of i ends, its line end included, if there are only blanks
// from i on.
func (t *Text) restOfLine(i int) (end int, ok bool) {
	for i < len(t.data) && (t.data[i] == ' ' || t.data[i] == '\t') {
		i++
	}
	n := breakLen(t.data[i:])
	return i + n, n > 0 || i == len(t.data)
}
