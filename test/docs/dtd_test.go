package docs

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// The DTD that is installed is one that validators read: they pass what is shipped and
// the good files of the corpus, and refuse what it can tell.
func TestDTDInAValidator(t *testing.T) {
	xmllint, err := exec.LookPath("xmllint")
	if err != nil {
		skip(t, "needs xmllint (Debian package libxml2-utils)")
	}
	valid := func(file string) (bool, string) {
		out, err := exec.Command(xmllint, "--noout", "--nonet", "--nowarning", "--dtdvalid", filepath.Join(root, "etc/ssh-broker-ng-config-1.dtd"), file).CombinedOutput()
		return err == nil, string(out)
	}
	good := 0
	for _, pattern := range []string{"etc/*.xml", "broker/config/testdata/*.xml"} {
		files, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			good++
			if ok, out := valid(file); !ok {
				t.Errorf("%s: %s", file, out)
			}
		}
	}
	if good < 8 {
		t.Errorf("only %d files", good)
	}
	for _, name := range []string{"bad/bad-action", "bad/misspelt-attribute", "bad/misspelt-element", "bad/wrong-order", "broken/rule-without-action",
		"broken/rule-outside-of-filter-engine", "broken/settings-out-of-order", "broken/true-for-yes", "broken/text-among-rules"} {
		if ok, _ := valid(filepath.Join(root, "broker/config/testdata", name+".xml")); ok {
			t.Errorf("%s passes", name)
		}
	}
}
