// Package doctor has tests of ssh-broker-ctl doctor: each check is broken, on a host made for
// that, and has to say so with a cure; on a host where all is well it says nothing.
//
// It owns what is broken and how. What a check is belongs to broker/doctor, whose own tests
// have what no host here can be: kernels without a feature, a full table of connections.
package doctor
