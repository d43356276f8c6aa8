package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// accessFiles writes a global and a user's file that say what they are given of
// file-access-control, "-" for a file that is not there, and returns how to read them.
func accessFiles(t *testing.T, global, user string) Options {
	t.Helper()
	env := testEnv()
	env.Home, env.UID = t.TempDir(), os.Getuid()
	o := Options{GlobalFile: filepath.Join(env.Home, "global.xml"), Env: env}
	if err := os.Mkdir(env.UserDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, said := range map[string]string{o.GlobalFile: global, filepath.Join(env.UserDir(), FileName): user} {
		text := "<secsh-broker/>"
		switch said {
		case "-":
			continue
		case "":
		default:
			text = document(`<general><file-access-control enable="` + said + `"/></general>`)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

func chmod(t *testing.T, name string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(name, mode); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}

// The table of ssh-broker-config(5): who said what, and what is checked for it.
func TestFileAccessControl(t *testing.T) {
	for _, tt := range []struct {
		global, user string
		want         string // of global, user, keys
	}{
		{"yes", "yes", "global user keys"},
		{"yes", "", "global user keys"},
		{"yes", "-", "global keys"},
		{"", "yes", "user keys"},
		{"-", "yes", "user keys"},
		{"yes", "no", "global user"},
		{"no", "yes", "user keys"},
		{"NO", "YES", "user keys"},
		{"no", "no", ""},
		{"no", "", ""},
		{"", "no", ""},
		{"", "", ""},
		{"-", "-", ""},
	} {
		t.Run(fmt.Sprintf("%q %q", tt.global, tt.user), func(t *testing.T) {
			o := accessFiles(t, tt.global, tt.user)
			userFile := filepath.Join(o.Env.UserDir(), FileName)
			c, err := Load(o)
			if err != nil {
				t.Fatal(err)
			}
			var checked []string
			chmod(t, o.GlobalFile, 0o666)
			if _, err := Load(o); err != nil {
				checked = append(checked, "global")
			}
			chmod(t, o.GlobalFile, 0o664)
			chmod(t, userFile, 0o640)
			if _, err := Load(o); err != nil {
				checked = append(checked, "user")
			}
			if c.Defaults.CheckKeyModes {
				checked = append(checked, "keys")
			}
			if got := strings.Join(checked, " "); got != tt.want {
				t.Errorf("checked are %q, want %q", got, tt.want)
			}
		})
	}
}

// What each file may be, and what is said of one that is more.
func TestFileModes(t *testing.T) {
	o := accessFiles(t, "yes", "")
	userFile := filepath.Join(o.Env.UserDir(), FileName)
	for _, tt := range []struct {
		global, user os.FileMode
		want         string
	}{
		{0o644, 0o600, ""},
		{0o664, 0o400, ""},
		{0o600, 0o700, ""},
		{0o646, 0o600, o.GlobalFile + ": the file has the mode 0646: others may write it, and file-access-control is on\nhint: chmod o-w " + o.GlobalFile},
		{0o644, 0o604, userFile + ": the file has the mode 0604: others may read or write it, and file-access-control is on\nhint: chmod 600 " + userFile},
		{0o644, 0o620, userFile + ": the file has the mode 0620: others may read or write it, and file-access-control is on\nhint: chmod 600 " + userFile},
	} {
		chmod(t, o.GlobalFile, tt.global)
		chmod(t, userFile, tt.user)
		got := ""
		c, err := Load(o)
		if err != nil {
			got = err.Error()
		} else if len(c.Warnings) > 0 {
			t.Errorf("%v", c.Warnings)
		}
		if got != tt.want {
			t.Errorf("%o and %o:\n got %s\nwant %s", tt.global, tt.user, got, tt.want)
		}
		found := append(Check(o.GlobalFile, o), Check(userFile, o)...)
		if len(found) > 0 != (tt.want != "") || len(found) > 0 && found.Error() != tt.want {
			t.Errorf("check-config: %v", found)
		}
	}
}

// A file of somebody else is refused, but for root's; the named file stands for the
// user's, and a system's broker has the global one alone.
func TestFileOwners(t *testing.T) {
	o := accessFiles(t, "yes", "yes")
	if os.Getuid() == 0 {
		o.Env.UID = 12345
		if _, err := Load(o); err != nil {
			t.Errorf("root's files: %v", err)
		}
		if err := os.Chown(o.GlobalFile, 54321, -1); err != nil {
			t.Fatal(err)
		}
	} else {
		o.Env.UID++
	}
	_, err := Load(o)
	if err == nil || !strings.Contains(err.Error(), "global.xml: the file belongs to uid ") || !strings.Contains(err.Error(), "chown ann ") {
		t.Errorf("files of another: %v", err)
	}
	o.System = true
	if _, err := Load(o); err == nil {
		t.Error("a system's broker takes it")
	}
	named := write(t, "f.xml", document(`<general><file-access-control enable="yes"/></general>`))
	chmod(t, named, 0o644)
	if _, err := Load(Options{File: named, Env: o.Env}); err == nil || !strings.Contains(err.Error(), "mode 0644") {
		t.Errorf("named file: %v", err)
	}
}

// A global file that is ignored asks for nothing.
func TestIgnoredFileChecksNothing(t *testing.T) {
	o := accessFiles(t, "yes", "")
	text := document(`<general><file-access-control enable="yes"/></general><rul/>`)
	if err := os.WriteFile(o.GlobalFile, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	chmod(t, o.GlobalFile, 0o666)
	if c, err := Load(o); err != nil || c.Defaults.CheckKeyModes {
		t.Errorf("%v, %v", c, err)
	}
}
