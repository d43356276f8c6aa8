// Package packages installs what is shipped as an administrator would: by make, and as
// Debian packages on Debian systems of its own, where the units are run by a systemd
// that is PID 1. The latter takes minutes and a mirror, so it is part of the long form.
package packages
