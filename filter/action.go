package filter

import (
	"errors"
	"fmt"
	"strings"
)

// ErrAction is the class of errors about a word that is no action.
var ErrAction = errors.New("unknown action")

// actionNames are the values of the attribute "action" of ssh-broker-config(5).
var actionNames = [...]string{
	Block:     "BLOCK",
	Direct:    "DIRECT",
	Tunnel:    "TUNNEL",
	FTPTunnel: "FTP-TUNNEL",
	FTPProxy:  "FTP-PROXY",
}

func (a Action) known() bool { return int(a) < len(actionNames) }

// String returns the action as a rule file spells it.
func (a Action) String() string {
	if a.known() {
		return actionNames[a]
	}
	return fmt.Sprintf("Action(%d)", uint8(a))
}

// secures tells whether a is carried by an SSH server and so needs one.
func (a Action) secures() bool { return a == Tunnel || a == FTPTunnel || a == FTPProxy }

// ParseAction reads an action in any letter case, as rule files have both. Its
// error is an ErrAction and says what may have been meant.
func ParseAction(text string) (Action, error) {
	upper := strings.Map(func(r rune) rune { // ASCII only: no dotless i passes for an I
		if 'a' <= r && r <= 'z' {
			return r - 'a' + 'A'
		}
		return r
	}, text)
	nearest, distance := "", 3 // farther than two slips is no hint
	for a, name := range actionNames {
		if upper == name {
			return Action(a), nil
		}
		if d := slips(upper, name); d < distance {
			nearest, distance = name, d
		}
	}
	switch upper {
	case "FTP-SFTP", "SFTP": // the name of the feature, which is no value of the attribute
		nearest = "FTP-PROXY"
	case "PASS", "ALLOW", "ACCEPT", "PLAIN":
		nearest = "DIRECT"
	case "DENY", "DROP", "REJECT", "REFUSE":
		nearest = "BLOCK"
	}
	if nearest != "" {
		return Block, fmt.Errorf("%w %.40q; did you mean %s?", ErrAction, text, nearest)
	}
	return Block, fmt.Errorf("%w %.40q; there are DIRECT, BLOCK, TUNNEL, FTP-TUNNEL, FTP-PROXY", ErrAction, text)
}

// slips counts the letters to insert, delete or replace to make b of a
// (the Levenshtein distance). Only lengths near one another are worth counting.
func slips(a, b string) int {
	if d := len(a) - len(b); d > 2 || d < -2 {
		return 3
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
