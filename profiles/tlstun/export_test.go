package tlstun

// ProxyStatus is proxyStatus.
func ProxyStatus(header string) (reason, details string) { return proxyStatus(header) }
