package config

import "sshbroker/broker/config/schema"

// What is found in files is reported in the types of schema, under these names.
type (
	Pos      = schema.Pos
	Kind     = schema.Kind
	Problem  = schema.Problem
	Problems = schema.Problems
)

// Kinds of warnings; see schema.Kind.
const (
	General    = schema.General
	NotActedOn = schema.NotActedOn
	NotBuilt   = schema.NotBuilt
)

// DTD returns the document type definition of the file, as it is installed as
// ssh-broker-ng-config-1.dtd.
func DTD() string { return schema.DTD() }
