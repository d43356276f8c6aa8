package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/term"

	"sshbroker/broker/control"
)

// prompter asks on the terminal, or by the program that SSH_ASKPASS names where
// there is no terminal. It is used only before the command starts.
func prompter(stderr io.Writer) control.Prompter {
	return func(p control.Prompt) (string, error) {
		tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
		if program := os.Getenv("SSH_ASKPASS"); program != "" &&
			(err != nil || os.Getenv("SSH_ASKPASS_REQUIRE") == "force") {
			if err == nil {
				tty.Close()
			}
			return askProgram(program, p)
		}
		if err != nil {
			return "", control.ErrNoPrompt
		}
		defer tty.Close()
		return askTerminal(tty, p)
	}
}

func askTerminal(tty *os.File, p control.Prompt) (string, error) {
	text := strings.TrimRight(p.Text, "\n")
	for {
		fmt.Fprintf(tty, "%s ", text)
		var answer string
		if p.Secret {
			b, err := term.ReadPassword(int(tty.Fd()))
			fmt.Fprintln(tty)
			if err != nil {
				return "", fmt.Errorf("read the answer: %w", err)
			}
			return string(b), nil
		}
		answer, err := bufio.NewReader(tty).ReadString('\n')
		if err != nil {
			return "", fmt.Errorf("read the answer: %w", err)
		}
		answer = strings.TrimSpace(answer)
		if !p.YesNo {
			return answer, nil
		}
		switch strings.ToLower(answer) {
		case "yes", "no":
			return strings.ToLower(answer), nil
		}
		text = "Please type yes or no:"
	}
}

// askProgram runs an askpass program as ssh(1) does: the question is its argument,
// the answer its output, and its failure a refusal.
func askProgram(program string, p control.Prompt) (string, error) {
	cmd := exec.Command(program, p.Text)
	cmd.Env = os.Environ()
	if p.YesNo {
		cmd.Env = append(cmd.Env, "SSH_ASKPASS_PROMPT=confirm")
	}
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return "", errors.New("the askpass program declined")
	}
	if err != nil {
		return "", fmt.Errorf("askpass program: %w", err)
	}
	answer := strings.TrimRight(string(out), "\r\n")
	if p.YesNo && answer == "" {
		return "yes", nil // a confirmation answers by its exit status
	}
	return answer, nil
}
