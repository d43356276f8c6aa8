// Testprog is what tests run inside and outside a capture: one static program
// that knows nothing of this project and says exactly what the kernel told it.
//
//	testprog connect   connect(2), blocking or not, and the errno by name
//	testprog serve     a server whose behaviour the client chooses
//	testprog exchange  the client's side of those behaviours, checked
//	testprog flood     bulk data one way or both, with checksums
//	testprog load      jobs for measurements, read from standard input
//	testprog target    the server that load wants
//	testprog desktop   a remote desktop's client
//	testprog sandbox   a program that may make no namespaces
//
// Results go to standard output, one line each; the exit status is 0 when every
// expectation held, 1 when one did not, 2 for wrong usage.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout)
	switch {
	case err == nil:
	case errors.Is(err, errUsage):
		fmt.Fprintln(os.Stderr, "testprog:", err)
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "testprog:", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("usage: testprog connect|serve|exchange|flood|load|target|desktop|sandbox [options] ADDRESS...; -h after the word lists the options")

func run(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	if len(args) == 0 {
		return errUsage
	}
	var command func(context.Context, []string, io.Reader, io.Writer) error
	switch args[0] {
	case "connect":
		command = runConnect
	case "serve":
		command = runServe
	case "exchange":
		command = runExchange
	case "flood":
		command = runFlood
	case "load":
		command = runLoad
	case "target":
		command = runTarget
	case "desktop":
		command = runDesktop
	case "sandbox":
		command = runSandbox
	default:
		return errUsage
	}
	err := command(ctx, args[1:], stdin, stdout)
	if errors.Is(err, flag.ErrHelp) {
		return errUsage
	}
	return err
}
