//go:build amd64 || arm64

package inherit

// Entry is the entry point to link a program with: go build -ldflags "-E ENTRY". It is
// empty where there is none for the processor.
const Entry = "sshbroker/capture/inherit.start"

// start is the entry point; it is never called from Go.
func start()

// action is room for a struct sigaction of the kernel, for start.
var action [4]uint64

// The linker keeps start only where it is the entry point; vet and the compiler see
// its use here.
var _, _ = start, &action
