package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
)

// stage stands in for the test that the packages netns and host are made for: what was
// put up on it is taken down at the end, however that comes.
type stage struct {
	testing.TB // nil: what is not below is not used
	ctx        context.Context

	mu       sync.Mutex
	cleanups []func()
	failed   bool
	ending   bool // cleanups run
}

// play runs show and takes everything down. It returns whether all went well.
func play(ctx context.Context, show func(*stage)) bool {
	s := &stage{ctx: ctx}
	complete := false
	s.perform(func() { show(s); complete = true })
	if ctx.Err() != nil {
		fmt.Fprintf(os.Stderr, "demo-system: %v, everything is taken down\n", context.Cause(ctx))
	}
	s.mu.Lock()
	s.ending = true
	s.mu.Unlock()
	for {
		s.mu.Lock()
		left := len(s.cleanups)
		if left == 0 {
			defer s.mu.Unlock()
			return complete && !s.failed
		}
		last := s.cleanups[left-1]
		s.cleanups = slices.Delete(s.cleanups, left-1, left)
		s.mu.Unlock()
		s.perform(last)
	}
}

// perform runs f to its end, which Fatal may be.
func (s *stage) perform(f func()) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		f()
	}()
	<-ended
}

// Helper ends a show that was interrupted: every step of the harness begins with it.
func (s *stage) Helper() {
	s.mu.Lock()
	ending := s.ending
	s.mu.Unlock()
	if s.ctx.Err() != nil && !ending {
		runtime.Goexit()
	}
}

func (s *stage) Cleanup(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cleanups = append(s.cleanups, f)
}

func (s *stage) Failed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

func (s *stage) Error(args ...any) {
	s.mu.Lock()
	s.failed = true
	s.mu.Unlock()
	fmt.Fprintln(os.Stderr, "demo-system:", fmt.Sprint(args...))
}

func (s *stage) Errorf(format string, args ...any) { s.Error(fmt.Sprintf(format, args...)) }
func (s *stage) Logf(format string, args ...any)   { fmt.Fprintf(os.Stderr, format+"\n", args...) }

func (s *stage) Fatal(args ...any) {
	s.Error(args...)
	runtime.Goexit()
}

func (s *stage) Fatalf(format string, args ...any) { s.Fatal(fmt.Sprintf(format, args...)) }

// Skip says what is missing here. A demonstration that shows nothing has failed.
func (s *stage) Skip(args ...any) { s.Fatal(args...) }
