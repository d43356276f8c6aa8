package relay

import (
	"context"
	"io"
	"syscall"
	"testing"
	"time"
)

// BenchmarkPipe moves 256 MiB up through each kind of far end.
func BenchmarkPipe(b *testing.B) {
	const size = 256 << 20
	for _, kind := range farKinds {
		b.Run(kind, func(b *testing.B) {
			r := new(Relay)
			defer r.Close()
			b.SetBytes(size)
			start := processorTime()
			block := make([]byte, 128<<10)
			for b.Loop() {
				app, prog := tcpPair(b)
				inner, server := tcpPair(b)
				done := make(chan Result, 1)
				go func() { done <- r.Pipe(context.Background(), prog, newFar(kind, inner), nil) }()
				go func() {
					for range size / len(block) {
						app.Write(block)
					}
					app.CloseWrite()
				}()
				if n, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{server}, make([]byte, 256<<10)); n != size || err != nil {
					b.Fatal(n, err)
				}
				server.Close()
				<-done
				app.Close()
			}
			// Of both outer ends too, which is the same for each kind.
			b.ReportMetric(float64((processorTime()-start).Milliseconds())/float64(b.N)*4, "cpu-ms/GiB")
		})
	}
}

func processorTime() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
