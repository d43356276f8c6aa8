// Package gwconfig reads ssh-gateway.yaml.
package gwconfig
