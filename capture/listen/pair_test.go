package listen

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sshbroker/capture/privilege"
)

// envKeep makes the test binary a program with these capabilities alone, by number.
const envKeep = "LISTEN_TEST_KEEP"

func TestMain(m *testing.M) {
	if list, ok := os.LookupEnv(envKeep); ok {
		receiveWith(list)
		return
	}
	os.Exit(m.Run())
}

func receiveWith(list string) {
	var keep []privilege.Capability
	for _, text := range strings.Fields(list) {
		var c privilege.Capability
		fmt.Sscan(text, &c)
		keep = append(keep, c)
	}
	if err := privilege.Reduce(keep...); err != nil {
		fmt.Println(err)
		return
	}
	files, _, err := Pair(OpenUDP, true)
	if err != nil {
		fmt.Println(err)
		return
	}
	err = ReceiveMarks(files...)
	for _, f := range files {
		on, _ := unix.GetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_RCVMARK)
		fmt.Print(on, " ")
	}
	fmt.Println(err)
}

// TestReceiveMarks has no more than ssh-captured, and CAP_NET_ADMIN alone, which is what
// kernels ask for. This one may ask for nothing.
func TestReceiveMarks(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root, and CI=true allows no skip")
		}
		t.Skip("needs root")
	}
	all := []privilege.Capability{privilege.NetAdmin, privilege.SysPtrace, privilege.DACOverride, privilege.BPF}
	for _, keep := range [][]privilege.Capability{all, all[:1]} {
		var list []string
		for _, k := range keep {
			list = append(list, fmt.Sprint(uint8(k)))
		}
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), envKeep+"="+strings.Join(list, " "))
		out, err := cmd.CombinedOutput()
		got := strings.TrimSpace(string(out))
		if strings.Contains(got, unix.ENOPROTOOPT.Error()) {
			t.Skip("the kernel tells no marks (5.19)")
		}
		if err != nil || got != "1 1 <nil>" {
			t.Errorf("with %v: %s, %v", keep, got, err)
		}
	}
}
