package sut

import (
	"debug/elf"
	"os"
	"os/exec"
	"strings"
	"testing"
)

func TestMain(m *testing.M) { Main(m, nil) }

func TestProgram(t *testing.T) {
	path := Program(t, "testprog")
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(path).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "usage: testprog") {
		t.Errorf("%v: %s", err, out)
	}
	file, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, segment := range file.Progs {
		if segment.Type == elf.PT_INTERP {
			t.Error("it is not static")
		}
	}
	Program(t, "testprog")
	if after, err := os.Stat(path); err != nil || !after.ModTime().Equal(before.ModTime()) {
		t.Errorf("it was built again (%v)", err)
	}
}

func TestUnknownProgram(t *testing.T) {
	if _, err := programs.program("no-such-program"); err == nil {
		t.Error("it was built")
	}
	if _, err := new(builder).program("testprog"); err == nil || !strings.Contains(err.Error(), "sut.Main") {
		t.Errorf("without Main: %v", err)
	}
}
