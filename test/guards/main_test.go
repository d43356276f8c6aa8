package guards

import (
	"os"
	"testing"

	"sshbroker/test/sut"
)

func TestMain(m *testing.M) {
	if os.Getenv(dialerEnv) != "" {
		dialAll()
		return
	}
	sut.Main(m, nil)
}
