package config

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"

	"sshbroker/broker/config/schema"
	"sshbroker/broker/config/xmldoc"
	"sshbroker/broker/eventlog"
	"sshbroker/broker/regular"
	"sshbroker/filter"
	"sshbroker/profiles"
)

// DefaultGlobalFile is where the configuration for all users stands.
const DefaultGlobalFile = "/etc/ssh2/ssh-broker-config.xml"

// FileName is the name of the user's file in Env.UserDir.
const FileName = "ssh-broker-config.xml"

// Options say which files make up a configuration.
type Options struct {
	GlobalFile string // usually DefaultGlobalFile; "" reads none
	File       string // in place of the user's file; has to exist. "": FileName in the user's directory, if it exists
	System     bool   // for the broker of a whole host: no user's file, and a malformed global file is an error
	Env        Env
}

// Config is a complete configuration. It is not changed after it is returned.
type Config struct {
	Filter        *filter.Set // nil where no file has the element filter-engine
	FilterPresent bool        // some file has it, be it empty
	FilterSource  string      // that file

	Profiles map[string]*profiles.Profile // by id, complete: defaults merged, gateways resolved
	Defaults *profiles.Profile            // for rules without profile-id

	Startup []string // ids of profiles with connect-on-startup

	StaticTunnels []Tunnel // open while the broker runs
	LocalTunnels  []Tunnel // each while its profile has a connection

	Pool4 netip.Prefix // pseudo IPv4 addresses
	Pool6 netip.Prefix // pseudo IPv6 addresses; zero: none are given out

	// Networks are those of Filter, in the order of the file: a rule with a Network is in
	// force on it alone; see filter.Set.At.
	Networks []Network

	Host Host

	Logging eventlog.Routing // of the last file that has the element logging; the zero one logs nothing

	Metrics Metrics // of the last file that has the element metrics

	// Logins are the names to log in with that a file gives, by profile id, "" for
	// Defaults. Where there is none, Profile.User is the name of Env's user.
	Logins map[string]string

	Files    []string          // the files that were read, in their order
	Digest   [sha256.Size]byte // of their names and content: equal where nothing has changed
	Warnings Problems
}

// Load reads and merges the configuration. Its error is a Problems where a file is
// wrong, and then lists all that is; the Config is nil with any error.
//
// A file that does not exist is skipped, unless Options.File names it. A malformed
// global file is ignored as a whole, with a warning, but for Options.System.
func Load(o Options) (*Config, error) {
	global, user, err := o.read()
	if err != nil {
		return nil, err
	}
	var ignored Problems
	if global != nil && !o.System && len(global.Sorted().Errors()) > 0 {
		ignored = ignore(global)
		global = nil
	}
	m := merge(o.Env, o.userDir(global), global, user)
	if o.System { // the environment of a service is nobody's choice of a proxy
		m.defaults.HTTPSProxy, m.defaults.NoProxy = "", ""
	}
	var problems Problems
	for _, f := range m.files {
		problems = append(problems, f.Sorted()...)
	}
	if bad := problems.Errors(); len(bad) > 0 {
		return nil, bad
	}
	c, err := m.config()
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	c.Warnings = append(ignored, problems...)
	return c, nil
}

// Check returns everything that is to be said about one file, as check-config lists
// it, sorted by position. It is judged as the user's file beside o.GlobalFile, whose
// profiles its rules may name, or as the global file where it is that one; o.File is
// not looked at. Beside what Load finds it lints.
func Check(name string, o Options) Problems {
	data, info, err := readRegular(name)
	if err != nil {
		return Problems{{Pos: Pos{File: name}, Msg: reason(err)}}
	}
	return check(name, data, info, o)
}

// CheckText is Check for what a file of that name would hold. It is judged with the
// mode and owner that the file has now, if there is one.
func CheckText(name string, data []byte, o Options) Problems {
	info, err := os.Stat(name)
	if err != nil {
		info = nil
	}
	return check(name, data, info, o)
}

func check(name string, data []byte, info fs.FileInfo, o Options) Problems {
	isGlobal := sameFile(name, o.GlobalFile)
	var global *file
	if !isGlobal {
		var err error
		global, err = readOptional(o.GlobalFile, o.Env, o.Env.UserDir())
		if err != nil || global != nil && len(global.List.Errors()) > 0 {
			global = nil
		}
	}
	dir := o.userDir(global)
	f := readFile(name, data, o.Env, dir)
	f.info = info
	user := f
	if isGlobal {
		global, user = f, nil
	}
	l := lint{merged: merge(o.Env, dir, global, user), file: f, resolve: (&reader{env: o.Env, userDir: dir}).path}
	l.run()
	return f.Sorted()
}

// reason is what went wrong with a file, without its name.
func reason(err error) string {
	if path, ok := errors.AsType[*fs.PathError](err); ok {
		return path.Err.Error()
	}
	return err.Error()
}

func sameFile(a, b string) bool {
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	return errX == nil && errY == nil && os.SameFile(x, y)
}

// read reads the files that exist; nil stands for one that does not.
func (o Options) read() (global, user *file, err error) {
	global, err = readOptional(o.GlobalFile, o.Env, o.Env.UserDir())
	if err != nil {
		if o.System {
			return nil, nil, fmt.Errorf("configuration: %w", err)
		}
		// It cannot be read, so it is to this user as a malformed one.
		global = &file{name: o.GlobalFile}
		global.Fail(Pos{File: o.GlobalFile}, "", "", "%s", reason(err))
	}
	dir := o.userDir(global)
	switch {
	case o.File != "":
		user, err = readExisting(o.File, o.Env, dir)
	case !o.System && dir != "":
		user, err = readOptional(filepath.Join(dir, FileName), o.Env, dir)
	default:
		return global, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("configuration: %w", err)
	}
	if user != nil && user.general.userDirPos.Line != 0 {
		user.Warn(schema.General, user.general.userDirPos, "user-config-directory", "", "it counts only in the global file")
	}
	return global, user, nil
}

// UserFile is the user's file that Load would look for, whether it exists or not; ""
// where there is none to look for.
func (o Options) UserFile() string {
	if o.File != "" || o.System {
		return o.File
	}
	global, err := readOptional(o.GlobalFile, o.Env, o.Env.UserDir())
	if err != nil {
		global = nil
	}
	if dir := o.userDir(global); dir != "" {
		return filepath.Join(dir, FileName)
	}
	return ""
}

// userDir is the user's directory, which a good global file may move.
func (o Options) userDir(global *file) string {
	if global != nil && global.general.userDir != "" && len(global.List.Errors()) == 0 {
		return global.general.userDir
	}
	return o.Env.UserDir()
}

func readOptional(name string, env Env, userDir string) (*file, error) {
	if name == "" {
		return nil, nil
	}
	f, err := readExisting(name, env, userDir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, nil
	}
	return f, err
}

func readExisting(name string, env Env, userDir string) (*file, error) {
	data, info, err := readRegular(name)
	if err != nil {
		return nil, err
	}
	f := readFile(name, data, env, userDir)
	f.info = info
	return f, nil
}

// ReadFile reads one regular file as it is. It does not wait for a pipe that somebody
// put in its place, and reads no more than the limit and one byte.
func ReadFile(name string) ([]byte, error) {
	data, _, err := readRegular(name)
	return data, err
}

func readRegular(name string) ([]byte, fs.FileInfo, error) {
	return regular.Read(name, int64(xmldoc.DefaultLimits().Bytes)+1)
}

// ignore turns what is wrong with a global file into warnings.
func ignore(global *file) Problems {
	bad := global.Sorted().Errors()
	out := Problems{{Pos: Pos{File: global.name}, Warning: true, Msg: fmt.Sprintf("the global configuration is ignored as a whole: %d errors", len(bad)),
		Hint: "ask the administrator to run ssh-broker-ctl check-config on it"}}
	for _, p := range bad {
		p.Warning = true
		out = append(out, p)
	}
	return out
}
