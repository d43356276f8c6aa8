package daemon

import (
	"fmt"
	"strconv"
	"strings"
)

// debugLevel is the highest level in a list like "SshTun=5,2" (ssh-broker-g3(1)).
// Modules are accepted and not told apart.
func debugLevel(s string) (int, error) {
	highest := 0
	for part := range strings.SplitSeq(s, ",") {
		_, level, named := strings.Cut(part, "=")
		if !named {
			level = part
		}
		n, err := strconv.Atoi(strings.TrimSpace(level))
		if err != nil || n < 0 || n > 99 {
			return 0, fmt.Errorf("debug level %q: it is 0 to 99, or MODULE=LEVEL, several separated by commas", part)
		}
		highest = max(highest, n)
	}
	return highest, nil
}
