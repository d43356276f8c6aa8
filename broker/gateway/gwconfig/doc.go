// Package gwconfig reads ssh-gateway.yaml, the configuration of ssh-gateway in YAML or
// JSON, strictly, and turns it into the types of package policy.
//
// It owns the table of all keys with their defaults (keys.go), what the keys mean, the form
// of a good file, and what is said of one that was hardly meant so (lint.go). The shape of
// services is that of Banyan's service objects. What services decide is policy's to say;
// how problems are written down is that of package schema, as for ssh-broker-config.xml.
//
// A file is good or it is refused: there is no partial configuration. All errors are
// reported, with the line and the column (in characters, from 1) of what is wrong; a syntax
// error ends the list, as nothing after it can be trusted.
//
// Load reads the one file. Check also reads the certificates that it names, to warn of those
// that end; whether they can be used is for the gateway to find out. Nothing here connects
// or listens; the services that are returned ask the kernel which addresses the machine has,
// for flows to a port of the gateway's own. All functions are safe for concurrent use.
package gwconfig
