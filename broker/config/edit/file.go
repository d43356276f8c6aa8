package edit

import (
	"sshbroker/broker/config/xmldoc"
	"sshbroker/broker/replace"
)

// Open locks a configuration file and reads it, to be replaced. With create one that
// does not exist is made when it is written, and reads as Empty.
//
// Its error is a replace.ErrBusy, or fs.ErrNotExist, among others.
func Open(name string, create bool) (*replace.File, error) {
	return replace.Open(name, replace.Options{Most: int64(xmldoc.DefaultLimits().Bytes) + 1, Create: create, Empty: Empty()})
}
