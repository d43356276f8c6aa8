package control

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func TestListenModesAndCleanUp(t *testing.T) {
	p := tempPlaces(t)
	before := openFiles(t)
	path := filepath.Join(p.tmpDir(), "ssh-broker")
	old := unix.Umask(0)
	l, err := p.listen(path)
	unix.Umask(old)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]os.FileMode{
		path:           os.ModeSocket | 0o600,
		path + ".lock": 0o600,
		p.tmpDir():     os.ModeDir | 0o700,
	} {
		st, err := os.Lstat(name)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode() != want {
			t.Errorf("%s: mode %v, want %v", name, st.Mode(), want)
		}
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if left, err := os.ReadDir(p.tmpDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left behind: %v %v", left, err)
	}
	sameFiles(t, before)
}

// The directory is removed with what is in it; what somebody else has put there stays.
func TestListenLeavesFilesOfOthers(t *testing.T) {
	p := tempPlaces(t)
	l, err := p.listen(filepath.Join(p.tmpDir(), "ssh-broker"))
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(p.tmpDir(), "names-x")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	l.RemoveDir() // as at the very end of a broker that removes its name maps after Close
	if left, err := os.ReadDir(p.tmpDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestListenStrangeUmask(t *testing.T) {
	p := tempPlaces(t)
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	unix.Umask(0o277)
	l, err := p.listen(filepath.Join(p.tmpDir(), "ssh-broker"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if st, err := os.Stat(p.tmpDir()); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
}

// However many start at once, over and over, one listens and the others know why not.
func TestLockRace(t *testing.T) {
	path := socketPath(t)
	for range 20 {
		var (
			start   = make(chan struct{})
			wg      sync.WaitGroup
			mu      sync.Mutex
			winners []*Listener
		)
		for range 20 {
			wg.Go(func() {
				<-start
				l, err := Listen(path)
				if err != nil && !errors.Is(err, ErrRunning) {
					t.Errorf("loser: %v", err)
				}
				if err == nil {
					mu.Lock()
					winners = append(winners, l)
					mu.Unlock()
				}
			})
		}
		close(start)
		wg.Wait()
		if len(winners) != 1 {
			t.Fatalf("%d listen, want 1", len(winners))
		}
		winners[0].Close()
	}
}

// Closing and starting at once never leaves two, nor a socket that nobody serves.
func TestLockHandOver(t *testing.T) {
	t.Run("directory that stays", func(t *testing.T) { handOver(t, systemPlaces(), socketPath(t)) })
	t.Run("directory that goes with the socket", func(t *testing.T) {
		p := tempPlaces(t)
		handOver(t, p, filepath.Join(p.tmpDir(), "ssh-broker"))
	})
}

func handOver(t *testing.T, p places, path string) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	holders := 0
	for range 8 {
		wg.Go(func() {
			for done := 0; done < 50; {
				l, err := p.listen(path)
				if errors.Is(err, ErrRunning) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if holders++; holders > 1 {
					t.Error("two hold the address")
				}
				mu.Unlock()
				nc, err := net.Dial("unixpacket", path)
				if err != nil {
					t.Errorf("dial while held: %v", err)
				} else {
					nc.Close()
				}
				mu.Lock()
				holders--
				mu.Unlock()
				l.Close()
				done++
			}
		})
	}
	wg.Wait()
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestRunningNamesProcess(t *testing.T) {
	path := socketPath(t)
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err = Listen(path); !errors.Is(err, ErrRunning) || !strings.Contains(err.Error(), "process") {
		t.Errorf("got %v", err)
	}
}

func TestWhatIsInTheWay(t *testing.T) {
	t.Run("stale socket", func(t *testing.T) {
		path := socketPath(t)
		old, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
		if err != nil {
			t.Fatal(err)
		}
		old.SetUnlinkOnClose(false)
		old.Close()
		if err := os.WriteFile(path+".lock", []byte("4711\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := Listen(path)
		if err != nil {
			t.Fatalf("what a dead broker left was not replaced: %v", err)
		}
		l.Close()
	})
	for _, network := range []string{"unix", "unixpacket"} {
		t.Run("live "+network, func(t *testing.T) {
			path := socketPath(t)
			agent, err := net.ListenUnix(network, &net.UnixAddr{Name: path, Net: network})
			if err != nil {
				t.Fatal(err)
			}
			defer agent.Close()
			if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "another program's socket") {
				t.Errorf("got %v", err)
			}
			if _, err := os.Lstat(path); err != nil {
				t.Errorf("the other program's socket is gone: %v", err)
			}
		})
	}
	t.Run("file", func(t *testing.T) {
		path := socketPath(t)
		if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "not a socket") {
			t.Errorf("got %v", err)
		}
		if b, _ := os.ReadFile(path); string(b) != "mine" {
			t.Error("the file was touched")
		}
	})
	t.Run("lock is a symlink", func(t *testing.T) {
		path := socketPath(t)
		target := filepath.Join(filepath.Dir(path), "precious")
		if err := os.WriteFile(target, []byte("mine"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, path+".lock"); err != nil {
			t.Fatal(err)
		}
		if l, err := Listen(path); err == nil {
			l.Close()
			t.Error("a symbolic link served as the lock")
		}
		if b, _ := os.ReadFile(target); string(b) != "mine" {
			t.Error("written through the link")
		}
	})
}

func TestCloseLeavesWhatIsNotOurs(t *testing.T) {
	path := socketPath(t)
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	l.Close()
	if b, _ := os.ReadFile(path); string(b) != "new" {
		t.Error("Close removed a file that was not its socket")
	}
}
