package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"

	"sshbroker/broker/control"
	"sshbroker/capture/leak"
)

// tryCapture has ssh-broker-ctl leak-test try a capture of the same kind by rules that are
// known, for what does not hang on rules: whether a connection is caught. It returns a
// *leaksError where one is not.
func tryCapture(ctx context.Context, o options) error {
	program, err := control.FindProgram("ssh-broker-ctl")
	if err != nil {
		return fmt.Errorf("--strict: %w", err)
	}
	args := []string{"leak-test", "-s", "--backend", o.backend}
	for _, p := range leak.Rest() {
		args = append(args, "--probe", p.Name)
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, runErr := cmd.Output()
	var leaks []leak.Finding
	found := 0
	for d := json.NewDecoder(bytes.NewReader(out)); ; found++ {
		var f leak.Finding
		if err := d.Decode(&f); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return fmt.Errorf("--strict: what %s says: %w", program, err)
		}
		if f.Verdict == leak.Leaked {
			leaks = append(leaks, f)
		}
	}
	switch {
	case context.Cause(ctx) != nil:
		return context.Cause(ctx)
	case len(leaks) > 0:
		return &leaksError{leaks}
	case runErr != nil:
		return fmt.Errorf("--strict: %s leak-test: %w: %s", program, runErr, strings.TrimSpace(errs.String()))
	case found != len(leak.Rest()):
		return fmt.Errorf("--strict: %s made %d of %d probes; install it and ssh-capture of the same version", program, found, len(leak.Rest()))
	}
	return nil
}
