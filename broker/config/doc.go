// Package config reads ssh-broker-config.xml, the configuration file of the Tectia
// Connection Broker, strictly, and turns it into the module's own types.
//
// It owns what the elements mean, the rules by which the factory defaults, the
// global file and the user's file are merged (merge.go), who may own and write these
// files (access.go), the expansion of variables in values (expand.go), and what is
// said of a good file that was hardly meant so (lint.go). Below it, xmldoc owns
// well-formedness, encodings and positions, and schema the names of all elements and
// attributes; which rules never decide is filter's to say.
//
// It does not match rules (filter), connect anywhere or open a key file (profiles),
// or act on what it reads. It reads the files it is told to read and nothing from
// the process: no environment variable, no current directory, no user database but
// what Env gives it.
//
// A file is good or it is refused: there is no partial configuration. All errors of
// a file are reported, sorted by position; a syntax error ends the list, as nothing
// after it can be trusted.
//
// # Variables
//
// Values may hold %NAME%, $NAME, ${NAME} and ${NAME:-default}, and the short forms
// %U %G %D %IU %IG. They are not expanded in regular expressions, where $ has a
// meaning of its own, nor in a password, an environment value or a proxy ruleset.
//
// Load and Check are safe for concurrent use; a Config is not changed after it is
// returned.
package config
