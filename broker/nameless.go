package broker

import "net/netip"

// nameless is a capture's Names where nobody can know any.
type nameless struct{}

func (nameless) Lookup(netip.Addr) []string    { return nil }
func (nameless) Asked(netip.Addr, string) bool { return false }
func (nameless) IsPool(netip.Addr) bool        { return false }
func (nameless) Hold(netip.Addr) func()        { return func() {} }
