package system

import (
	"testing"

	"sshbroker/test/sut"
)

func TestMain(m *testing.M) { sut.Main(m, nil) }
