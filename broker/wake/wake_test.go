package wake

import (
	"context"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestWatch sets the clock to what it says, which is an event as any other setting.
func TestWatch(t *testing.T) {
	set := func() error {
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_REALTIME, &now); err != nil {
			return err
		}
		return unix.ClockSettime(unix.CLOCK_REALTIME, &now)
	}
	if err := set(); err != nil {
		if os.Getenv("CI") == "true" && os.Geteuid() == 0 {
			t.Fatalf("the clock cannot be set: %v", err)
		}
		t.Skipf("the clock cannot be set: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	told, done := make(chan struct{}, 100), make(chan error, 1)
	go func() { done <- Watch(ctx, func() { told <- struct{}{} }) }()
	await := func() {
		again := time.NewTicker(10 * time.Millisecond) // the first setting may come before the timer
		defer again.Stop()
		for end := time.After(10 * time.Second); ; {
			if err := set(); err != nil {
				t.Fatal(err)
			}
			select {
			case <-told:
				return
			case <-again.C:
			case <-end:
				t.Fatal("not told that the clock was set")
			}
		}
	}
	for range 3 {
		await()
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
