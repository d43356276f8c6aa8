package daemon

import (
	"os"
	"strconv"
	"strings"

	"sshbroker/broker/config"
	"sshbroker/capture"
)

// loginDefs has the range of ordinary accounts; login.defs(5).
const loginDefs = "/etc/login.defs"

// Uids that are never those of a person.
const (
	defaultMinUID, defaultMaxUID = 1000, 60000
	nobodyUID                    = 65534
	dynamicLo, dynamicHi         = 61184, 65519 // systemd's DynamicUser=
)

// whoseFlows are the uids that a system broker of uid own captures.
func whoseFlows(h config.Host, own uint32) []capture.UIDRange {
	var wanted []capture.UIDRange
	for _, r := range h.CaptureUsers {
		wanted = append(wanted, capture.UIDRange{Lo: r.Lo, Hi: r.Hi})
	}
	if len(wanted) == 0 {
		text, _ := os.ReadFile(loginDefs) // without it the defaults hold
		wanted = append(wanted, ordinaryUIDs(string(text)))
	}
	for _, never := range []capture.UIDRange{{Lo: nobodyUID, Hi: nobodyUID}, {Lo: dynamicLo, Hi: dynamicHi}, {Lo: own, Hi: own}} {
		wanted = without(wanted, never)
	}
	if h.CaptureRoot {
		wanted = append([]capture.UIDRange{{}}, wanted...)
	}
	return wanted
}

// ordinaryUIDs reads UID_MIN and UID_MAX.
func ordinaryUIDs(defs string) capture.UIDRange {
	r := capture.UIDRange{Lo: defaultMinUID, Hi: defaultMaxUID}
	for line := range strings.Lines(defs) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		n, err := strconv.ParseUint(fields[1], 0, 32)
		switch {
		case err != nil || n == 0:
		case fields[0] == "UID_MIN":
			r.Lo = uint32(n)
		case fields[0] == "UID_MAX":
			r.Hi = uint32(n)
		}
	}
	if r.Lo > r.Hi {
		return capture.UIDRange{Lo: defaultMinUID, Hi: defaultMaxUID}
	}
	return r
}

// without takes one range out of others.
func without(list []capture.UIDRange, out capture.UIDRange) []capture.UIDRange {
	var left []capture.UIDRange
	for _, r := range list {
		if r.Hi < out.Lo || r.Lo > out.Hi {
			left = append(left, r)
			continue
		}
		if r.Lo < out.Lo {
			left = append(left, capture.UIDRange{Lo: r.Lo, Hi: out.Lo - 1})
		}
		if r.Hi > out.Hi {
			left = append(left, capture.UIDRange{Lo: out.Hi + 1, Hi: r.Hi})
		}
	}
	return left
}
