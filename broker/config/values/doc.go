// Package values tells which value holds at a path of the configuration, and where it
// comes from: a line of a file, or the factory defaults.
//
// It owns the syntax of paths, and a tree of all that is in force: files merged by the
// rules of package config, settings of profiles inherited from default-settings,
// defaults filled in. It is for people who look; the broker does not go by it, and a
// test holds it to what config.Load says.
//
// It does not judge a configuration: a file has to be well-formed and fit the schema,
// whether it makes sense config.Check knows. Secrets do not leave it.
//
// A Tree is not changed after it was loaded and is safe for concurrent use.
package values
