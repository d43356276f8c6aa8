package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"sshbroker/broker/eventlog"
)

func TestLogging(t *testing.T) {
	dir := t.TempDir()
	syslog := eventlog.Target{Type: eventlog.Syslog}
	discard := eventlog.Target{Type: eventlog.Nowhere}
	file := func(path string) eventlog.Target { return eventlog.Target{Type: eventlog.File, Path: path} }
	for _, tt := range []struct {
		name, in string
		want     eventlog.Routing
	}{
		{"none", "", eventlog.Routing{}},
		{"empty", "<logging/>", eventlog.Routing{}},
		{"the defaults to a file and to syslog", `<logging><log-target file="` + dir + `/e.log"/><log-target type="syslog"/></logging>`,
			eventlog.Routing{Targets: []eventlog.Target{file(dir + "/e.log"), syslog}}},
		{"relative", `<logging><log-target type="file" file="logs/../e.log"/></logging>`,
			eventlog.Routing{Targets: []eventlog.Target{file("/home/ann/.ssh2/e.log")}}},
		{"of the home directory", `<logging><log-target file="~/%U.log"/></logging>`,
			eventlog.Routing{Targets: []eventlog.Target{file("/home/ann/ann.log")}}},
		{"one family is not logged", `<logging><log-target file="/tmp/e.log"/><log-events facility="discard">Key_store_*</log-events></logging>`,
			eventlog.Routing{Targets: []eventlog.Target{file("/tmp/e.log")}, Rules: []eventlog.Rule{{Names: []string{"Key_store_*"}, Facility: eventlog.Discard}}}},
		{"everything of a log-events", `<logging><log-target type="discard"/><log-events facility="LOCAL7" severity="security-failure">
			KEX_failure
			Host_key_*<log-target file="/tmp/a"/><log-target type="SYSLOG"/>KEX_success </log-events><log-events severity="notice"/></logging>`,
			eventlog.Routing{Targets: []eventlog.Target{discard}, Rules: []eventlog.Rule{
				{Names: []string{"KEX_failure", "Host_key_*", "KEX_success"}, Facility: eventlog.Local7, Severity: eventlog.SecurityFailure,
					Targets: []eventlog.Target{file("/tmp/a"), syslog}},
				{Severity: eventlog.Notice}}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := loadText(t, "<secsh-broker>"+tt.in+"</secsh-broker>")
			if !reflect.DeepEqual(c.Logging, tt.want) {
				t.Errorf("got  %+v\nwant %+v", c.Logging, tt.want)
			}
			for _, kind := range []Kind{NotActedOn, NotBuilt} {
				if w := c.Warnings.OfKind(kind); len(w) > 0 {
					t.Errorf("%v", w)
				}
			}
		})
	}
}

// The words of the configuration file are those of the package that acts on them.
func TestLoggingWords(t *testing.T) {
	for _, facility := range strings.Fields("normal daemon user auth local0 local1 local2 local3 local4 local5 local6 local7 discard") {
		c := loadText(t, `<secsh-broker><logging><log-events facility="`+facility+`"/></logging></secsh-broker>`)
		if got := c.Logging.Rules[0].Facility.String(); got != facility {
			t.Errorf("%s is read as %s", facility, got)
		}
	}
	for _, severity := range strings.Fields("informational notice warning error critical security-success security-failure") {
		c := loadText(t, `<secsh-broker><logging><log-events severity="`+severity+`"/></logging></secsh-broker>`)
		if got := c.Logging.Rules[0].Severity.String(); got != severity {
			t.Errorf("%s is read as %s", severity, got)
		}
	}
}

// The corpus names one event and no target: it goes to the system's log, and nothing else
// is logged.
func TestLoggingOfCorpus(t *testing.T) {
	c, err := Load(Options{File: "testdata/ftp-socks.xml", Env: testEnv()})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range eventlog.Events() {
		got := c.Logging.Route(e)
		if e != eventlog.ConnectorFilterRule {
			if len(got.Targets) > 0 {
				t.Errorf("%v goes to %v", e, got.Targets)
			}
			continue
		}
		want := eventlog.Route{Rule: 0, Severity: eventlog.Informational, Facility: eventlog.Auth, Targets: []eventlog.Target{{Type: eventlog.Syslog}}}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
}

func TestLoggingIsReplacedByTheUsers(t *testing.T) {
	global := write(t, "global.xml", `<secsh-broker><logging><log-target type="syslog"/></logging></secsh-broker>`)
	for text, want := range map[string]int{"": 1, "<logging/>": 0} {
		c, err := Load(Options{GlobalFile: global, File: write(t, "user.xml", "<secsh-broker>"+text+"</secsh-broker>"), Env: testEnv()})
		if err != nil {
			t.Fatal(err)
		}
		if len(c.Logging.Targets) != want {
			t.Errorf("beside %q: %+v", text, c.Logging)
		}
	}
}

// A log that cannot be written must not cost the rules of the same file.
func TestUnwritableLogKeepsRules(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Log("as root only what is missing cannot be written to")
	} else {
		dir := t.TempDir()
		if err := os.Chmod(dir, 0o500); err != nil {
			t.Fatal(err)
		}
		c := loadText(t, `<secsh-broker><logging><log-target file="`+dir+`/e.log"/></logging></secsh-broker>`)
		if len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0].Msg, "permission denied") {
			t.Errorf("warnings %v", c.Warnings)
		}
	}
	global := write(t, "global.xml", `<secsh-broker><filter-engine><rule action="BLOCK"/></filter-engine><logging><log-target file="/nonexistent/e.log"/></logging></secsh-broker>`)
	c, err := Load(Options{GlobalFile: global, Env: testEnv()})
	if err != nil || !c.FilterPresent || c.Logging.Targets == nil {
		t.Fatalf("%+v, %v", c, err)
	}
	if list := c.Warnings.OfKind(General); len(list) != 1 || list[0].Element != "log-target" {
		t.Errorf("warnings %v", list)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink("/tmp/elsewhere", link); err != nil {
		t.Fatal(err)
	}
	if c := loadText(t, `<secsh-broker><logging><log-target file="`+link+`"/></logging></secsh-broker>`); len(c.Warnings) != 1 {
		t.Errorf("warnings of a link: %v", c.Warnings)
	}
}

func TestManyLogEvents(t *testing.T) {
	name := write(t, "f.xml", "<secsh-broker><logging>"+strings.Repeat("<log-events>KEX_*</log-events>", 5000)+"</logging></secsh-broker>")
	_, err := Load(Options{File: name, Env: testEnv()})
	if err == nil || !strings.Contains(err.Error(), "there are more than 200 of them") {
		t.Errorf("error: %v", err)
	}
}
