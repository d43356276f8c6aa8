package interop

import (
	"testing"

	"sshbroker/test/netns"
)

// TestTelnet is the purpose of the whole: telnet to a host that refuses everything
// but SSH, with nothing of the conversation on the wire in clear.
func TestTelnet(t *testing.T) {
	w := newWorld(t, netns.SSHDOptions{})
	telnetd := w.Server.StartTelnetd(t, 23)
	host := w.Server.Addr4.String()

	w.configure(t, "<profiles>"+w.profile("srv")+`</profiles>
<filter-engine><rule ip-address=".*" ports="23" action="TUNNEL" profile-id="srv"/></filter-engine>`)
	wire := w.Client.Capture(t, "to-server")
	secret := "my-secret-line"
	p := w.Client.Start(t, netns.Cmd{Args: []string{w.Capture, "telnet", host}, User: w.Alice, TTY: &terminal})
	p.WaitFor(t, telnetd.Marker)
	p.Type(t, secret+"\r")
	p.WaitFor(t, telnetd.Answer)
	p.Type(t, "bye\r")
	p.Wait(t)
	for _, text := range []string{telnetd.Marker, telnetd.Answer, secret} {
		if wire.Contains(t, []byte(text)) {
			t.Errorf("%q was on the wire in clear", text)
		}
	}
	if r := w.awaitRecords(t, 1)[0]; r.Reason != "carried" || r.Rule != 1 || r.Profile != "srv" || r.BytesDown == 0 {
		t.Errorf("recorded %+v", r)
	}

	// The positive control: the same with DIRECT shows on the wire.
	w.configure(t, `<filter-engine><rule ip-address=".*" action="DIRECT"/></filter-engine>`)
	expect(t, w.ctl(t, "reload"), 0)
	w.Server.AllowAll(t)
	p = w.Client.Start(t, netns.Cmd{Args: []string{w.Capture, "telnet", host}, User: w.Alice, TTY: &terminal})
	p.WaitFor(t, telnetd.Marker)
	p.Type(t, "bye\r")
	p.Wait(t)
	if !wire.Contains(t, []byte(telnetd.Marker)) {
		t.Error("the control conversation is not on the wire: the capture proves nothing")
	}
}
