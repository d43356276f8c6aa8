package captured

import "unsafe"

// addressOf is for a raw system call, which alone concerns one thread.
func addressOf(list []uint32) uintptr { return uintptr(unsafe.Pointer(&list[0])) }
