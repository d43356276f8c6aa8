package filter

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// ErrPorts is the class of errors about ports.
var ErrPorts = errors.New("wrong ports")

// String returns the range as ParsePorts reads it.
func (r PortRange) String() string {
	if r.Lo == r.Hi {
		return strconv.Itoa(int(r.Lo))
	}
	return fmt.Sprintf("%d-%d", r.Lo, r.Hi)
}

// ParsePorts reads the attribute "ports": a port, a range "lo-hi", or a comma list
// of these. "*" and the empty text are all ports, for which it returns nil. Spaces
// around numbers are passed over. Its error is an ErrPorts.
func ParsePorts(text string) ([]PortRange, error) {
	if t := strings.TrimSpace(text); t == "" || t == "*" {
		return nil, nil
	}
	var ranges []PortRange
	for item := range strings.SplitSeq(text, ",") {
		r, err := parsePortRange(strings.TrimSpace(item))
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrPorts, err)
		}
		ranges = append(ranges, r)
	}
	return ranges, nil
}

func parsePortRange(text string) (PortRange, error) {
	switch text {
	case "":
		return PortRange{}, errors.New("there is nothing between two commas, or next to one")
	case "*":
		return PortRange{}, errors.New(`"*" is every port and stands alone`)
	}
	low, high, isRange := strings.Cut(text, "-")
	lo, err := parsePort(low)
	if err != nil || !isRange {
		return PortRange{lo, lo}, err
	}
	hi, err := parsePort(high)
	if err != nil {
		return PortRange{}, err
	}
	if lo > hi {
		return PortRange{}, fmt.Errorf("%d-%d runs backwards; did you mean %d-%d?", lo, hi, hi, lo)
	}
	return PortRange{lo, hi}, nil
}

func parsePort(text string) (uint16, error) {
	text = strings.TrimSpace(text)
	v, err := strconv.ParseUint(text, 10, 64)
	switch {
	case errors.Is(err, strconv.ErrRange) || err == nil && (v == 0 || v > 65535):
		return 0, fmt.Errorf("%.40s is not between 1 and 65535", text)
	case err != nil:
		return 0, fmt.Errorf("%.40q is no port; write a port, lo-hi, or a comma list of these", text)
	}
	return uint16(v), nil
}

// portsText returns ranges as ParsePorts reads them.
func portsText(ranges []PortRange) string {
	if len(ranges) == 0 {
		return "*"
	}
	items := make([]string, len(ranges))
	for i, r := range ranges {
		items[i] = r.String()
	}
	return strings.Join(items, ",")
}

// everyPort tells whether ranges are no condition.
func everyPort(ranges []PortRange) bool {
	for _, r := range ranges {
		if r.Lo == 1 && r.Hi == 65535 {
			return true
		}
	}
	return len(ranges) == 0
}

func inPorts(ranges []PortRange, port uint16) bool {
	for _, r := range ranges {
		if r.Lo <= port && port <= r.Hi {
			return true
		}
	}
	return len(ranges) == 0
}
