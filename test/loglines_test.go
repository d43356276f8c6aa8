package test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// logMethods of slog.Logger, by where their message stands.
var logMethods = map[string]int{"Debug": 0, "Info": 0, "Warn": 0, "Error": 0, "InfoContext": 1, "WarnContext": 1, "ErrorContext": 1}

// Messages that are handed on, from constants; the resolver limits them, and the gateway as well.
var handedOn = map[string]bool{"broker/names/responder.go": true, "broker/gateway/reload.go": true}

// TestLogLines holds every line of a log to what capture/loglimit needs: messages are
// constants, as those are its kinds, and the two daemons have no logger that goes round it.
func TestLogLines(t *testing.T) {
	root := moduleRoot(t)
	lines, limited := 0, map[string]int{}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil || strings.HasPrefix(name, "test/") {
			return err
		}
		files := token.NewFileSet()
		file, err := parser.ParseFile(files, path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			method, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if at, ok := logMethods[method.Sel.Name]; ok && isLog(method.X) && len(call.Args) > at {
				lines++
				if _, constant := call.Args[at].(*ast.BasicLit); !constant && !handedOn[name] {
					t.Errorf("%s: the message of a log line is no constant: put what varies into attributes", files.Position(call.Pos()))
				}
			}
			if pkg, ok := method.X.(*ast.Ident); ok && pkg.Name == "slog" && method.Sel.Name == "New" {
				dir := filepath.Dir(name)
				if arg, ok := call.Args[0].(*ast.Ident); ok && arg.Name == "limited" {
					limited[dir]++
				} else if dir == "cmd/ssh-broker" || dir == "cmd/ssh-captured" {
					t.Errorf("%s: this logger goes round capture/loglimit", files.Position(call.Pos()))
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if lines < 50 {
		t.Errorf("only %d lines were found", lines)
	}
	if limited["cmd/ssh-broker"] != 1 || limited["cmd/ssh-captured"] != 1 {
		t.Errorf("limited loggers: %v", limited)
	}
}

// isLog reports whether an expression is called as loggers are in this module.
func isLog(x ast.Expr) bool {
	name := ""
	switch x := x.(type) {
	case *ast.Ident:
		name = x.Name
	case *ast.SelectorExpr:
		name = x.Sel.Name
	}
	return name == "log" || name == "Log" || name == "Logger" || name == "logger" || name == "slog"
}
