package netns

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// MailPassword is what every mailbox of StartMail opens with.
const MailPassword = "secret"

// StartMail starts mail servers without encryption on the usual ports of a machine,
// over IPv4, and returns once they listen: aiosmtpd takes what comes on port 25, for
// whomever, and Dovecot gives it out on 143 (IMAP) and 110 (POP3), to whomever.
func (m *Machine) StartMail(t testing.TB) {
	t.Helper()
	smtpd := RequireProgram(t, "aiosmtpd", "python3-aiosmtpd")
	dovecot := RequireProgram(t, "dovecot", "dovecot-imapd")
	if _, err := os.Stat("/usr/lib/dovecot/pop3"); err != nil {
		RequireProgram(t, "pop3", "dovecot-pop3d")
	}
	dir, err := os.MkdirTemp(m.dir, "mail-")
	if err != nil {
		t.Fatal(err)
	}
	box := filepath.Join(dir, "box")
	script := fmt.Sprintf("chmod 755 %[1]s && mkdir -p %[2]s/tmp %[2]s/new %[2]s/cur && chown -R nobody:nogroup %[2]s", dir, box)
	if r := m.Run(t, Cmd{Args: []string{"sh", "-ec", script}}); r.Code != 0 {
		t.Fatalf("mailbox: %v", r)
	}
	config := filepath.Join(dir, "dovecot.conf")
	if err := os.WriteFile(config, []byte(fmt.Sprintf(`base_dir = %[1]s/run
state_dir = %[1]s/state
log_path = /dev/stderr
protocols = imap pop3
listen = 0.0.0.0
ssl = no
disable_plaintext_auth = no
default_internal_user = nobody
default_internal_group = nogroup
default_login_user = nobody
mail_location = maildir:%[1]s/box
passdb {
  driver = static
  args = password=%[2]s
}
userdb {
  driver = static
  args = uid=nobody gid=nogroup home=%[1]s/box
}
service imap-login {
  chroot =
}
service pop3-login {
  chroot =
}
service anvil {
  chroot =
}
service stats {
  chroot =
}
`, dir, MailPassword)), 0o644); err != nil {
		t.Fatal(err)
	}
	m.Start(t, Cmd{Args: []string{dovecot, "-F", "-c", config}, Limit: -1}).WaitFor(t, "starting up for imap, pop3")
	m.Start(t, Cmd{Args: []string{smtpd, "-n", "-l", "0.0.0.0:25", "-c", "aiosmtpd.handlers.Mailbox", box}, Limit: -1})
	for _, port := range []uint16{25, 110, 143} {
		for end := time.Now().Add(patience); !m.Listening(port); {
			if time.Now().After(end) {
				t.Fatalf("%s: nobody listens on port %d", m.Name, port)
			}
			<-time.After(10 * time.Millisecond) // a table of the kernel has no event
		}
	}
}
