package gwconfig

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"sshbroker/broker/config/schema"
)

// Bounds of a file. A configuration of a thousand services is far below them. How deep it
// goes is bounded by the library, and what is looked at of it by the table of keys.
const (
	maxSize  = 1 << 20 // bytes
	maxNodes = 200_000 // values that are looked at, those behind aliases each time
)

// syntaxError is a file that is neither YAML nor JSON.
type syntaxError struct {
	pos       schema.Pos
	msg, hint string
}

func (e *syntaxError) Error() string { return e.pos.String() + ": " + e.msg }

// document parses the one document of a file. An error is a *syntaxError.
func document(name string, data []byte) (*yaml.Node, error) {
	if len(data) > maxSize {
		return nil, &syntaxError{schema.Pos{File: name}, fmt.Sprintf("the file has more than %d bytes", maxSize), ""}
	}
	if filepath.Ext(name) == ".json" {
		if err := checkJSON(name, data); err != nil {
			return nil, err
		}
	}
	d := yaml.NewDecoder(bytes.NewReader(data))
	root, err := decode(d)
	switch {
	case errors.Is(err, io.EOF):
		return nil, &syntaxError{schema.Pos{File: name}, "the file is empty", "start from the example, etc/ssh-gateway.yaml"}
	case err != nil:
		return nil, &syntaxError{where(name, data, err), strings.TrimPrefix(problem(err), "yaml: "), hintOf(err)}
	}
	switch next, err := decode(d); {
	case err == nil:
		return nil, &syntaxError{schema.Pos{File: name, Line: next.Line, Col: next.Column}, "a second document begins here", "one file is one gateway: remove the line ---"}
	case !errors.Is(err, io.EOF):
		return nil, &syntaxError{where(name, data, err), strings.TrimPrefix(problem(err), "yaml: "), hintOf(err)}
	}
	return root.Content[0], nil
}

// decode reads one document. What the library gives up on by panicking is an error too.
func decode(d *yaml.Decoder) (root *yaml.Node, err error) {
	defer func() {
		if p := recover(); p != nil {
			root, err = nil, fmt.Errorf("yaml: %v", p)
		}
	}()
	var n yaml.Node
	if err := d.Decode(&n); err != nil {
		return nil, err
	}
	if n.Kind != yaml.DocumentNode || len(n.Content) != 1 || n.Content[0] == nil {
		return nil, io.EOF
	}
	return &n, nil
}

// checkJSON finds what JSON does not have and YAML would put up with, such as two values
// without a comma between them.
func checkJSON(name string, data []byte) error {
	var any json.RawMessage
	err := json.Unmarshal(data, &any)
	syntax, ok := errors.AsType[*json.SyntaxError](err)
	if !ok {
		return nil
	}
	// The offset is behind the byte that is wrong, or at the end where the file ends too soon.
	return &syntaxError{position(name, data[:max(syntax.Offset-1, 0)]), syntax.Error(), ""}
}

var lineOf = regexp.MustCompile(`^yaml: line (\d+): (.*)`)

// ofScanner is what the library says when its scanner finds something wrong.
var ofScanner = regexp.MustCompile(`^(yaml: )?(found (a tab |character|unexpected|unknown|invalid)|could not find|mapping |block |did not find expected (alphabetic|comment|whitespace|digit|hexdecimal|tag|version))`)

var unknownAnchor = regexp.MustCompile(`unknown anchor '(.*)' referenced`)

// where tells the place of a syntax error. For what its scanner finds wrong the library gives
// the line where that begins, or where it noticed, or none for the first line. For the rest
// it is where the library noticed, which is the last thing that it had read by then.
func where(name string, data []byte, err error) schema.Pos {
	if m := unknownAnchor.FindStringSubmatch(err.Error()); m != nil {
		return position(name, data[:max(bytes.Index(data, []byte("*"+m[1])), 0)])
	}
	if ofScanner.MatchString(problem(err)) {
		line := 1
		if m := lineOf.FindStringSubmatch(err.Error()); m != nil {
			line, _ = strconv.Atoi(m[1])
		}
		text := data
		for range line - 1 {
			_, text, _ = bytes.Cut(text, []byte("\n"))
		}
		text, _, _ = bytes.Cut(text, []byte("\n"))
		return schema.Pos{File: name, Line: line, Col: len(text) - len(bytes.TrimLeft(text, " \t")) + 1}
	}
	r := &slowReader{data: data}
	d := yaml.NewDecoder(r)
	for {
		if _, err := decode(d); err != nil {
			break
		}
	}
	read := bytes.TrimRight(data[:r.n], " \t\r\n")
	return position(name, read[:max(len(read)-1, 0)])
}

// slowReader gives one byte at a time, so that n tells how far the parser came.
type slowReader struct {
	data []byte
	n    int
}

func (r *slowReader) Read(p []byte) (int, error) {
	if r.n == len(r.data) {
		return 0, io.EOF
	}
	r.n++
	return copy(p[:1], r.data[r.n-1:r.n]), nil
}

// position is the place behind before.
func position(name string, before []byte) schema.Pos {
	start := bytes.LastIndexByte(before, '\n') + 1
	return schema.Pos{File: name, Line: bytes.Count(before, []byte("\n")) + 1, Col: utf8.RuneCount(before[start:]) + 1}
}

func problem(err error) string {
	if m := lineOf.FindStringSubmatch(err.Error()); m != nil {
		return m[2]
	}
	return err.Error()
}

// hintOf explains what people most often do wrong in YAML.
func hintOf(err error) string {
	text := err.Error()
	switch {
	case strings.Contains(text, "tab character"), strings.Contains(text, "cannot start any token"):
		return "indent with blanks, and put what begins with @, % or a backquote, or holds a tab, in quotes"
	case strings.Contains(text, "unknown anchor"), strings.Contains(text, "alphabetic or numeric character"):
		return "put a value that begins with * or & in quotes"
	case strings.Contains(text, "mapping values are not allowed"):
		return "the line is indented too far, or a value with a colon in it needs quotes"
	case strings.Contains(text, "did not find expected"), strings.Contains(text, "could not find expected"):
		return "look for a bracket that is not closed, a missing colon, and the indentation of this line and those before"
	case strings.Contains(text, "escape c"):
		return `write the character itself: escapes are those of YAML, which has neither \/ nor pairs of \u`
	case strings.Contains(text, "unexpected end of stream"):
		return "a quote is opened here or before, and not closed"
	}
	return ""
}
