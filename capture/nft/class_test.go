package nft

import (
	"testing"

	"sshbroker/capture"
)

// TestClassBits has the masks tell the classes apart as the rules need it, also those
// that no verdict has.
func TestClassBits(t *testing.T) {
	leaves := map[uint32]bool{capture.MarkPass: true, capture.MarkDirect: true}
	judged := map[uint32]bool{capture.MarkTunnel: true, capture.MarkReset: true, capture.MarkUnreachable: true}
	for bits := uint32(0); bits < 16; bits++ {
		class := bits << 20
		if got := class&passMask == capture.MarkPass; got != leaves[class] {
			t.Errorf("class %#x may leave: %v", class, got)
		}
		if judged[class] && class&judgeMask == 0 || leaves[class] && class&judgeMask != 0 {
			t.Errorf("class %#x is judged: %v", class, class&judgeMask != 0)
		}
		if class&capture.MarkMask != class {
			t.Errorf("class %#x is beyond our bits", class)
		}
	}
	for class := range leaves {
		if judged[class] || class == capture.MarkServer {
			t.Errorf("class %#x means two things", class)
		}
	}
}
