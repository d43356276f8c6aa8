// Package xmldoc reads the part of XML that configuration files need, strictly and
// with the position of everything it hands out.
//
// It owns well-formedness, character encodings and the bounds on what a file may
// cost. It does not know which elements and attributes exist: a repeated attribute
// or an unknown name is kept for the caller, who has the schema and reports it
// beside its other findings.
//
// What is left out is left out on purpose: entity declarations (a small file could
// expand without end, and its reader would not see what it says), external
// entities (nothing is ever fetched), namespaces, XML 1.1. encoding/xml is not used
// because it has no position for attributes and accepts what a policy file must not
// contain: repeated attributes, stray text, content after the root.
//
// Parse is safe for concurrent use; a Document is not changed after it is returned.
package xmldoc
