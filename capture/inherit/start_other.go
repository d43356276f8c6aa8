//go:build !amd64 && !arm64

package inherit

// Entry is empty: for this processor nobody has written one.
const Entry = ""
