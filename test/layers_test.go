package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/format"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "sshbroker"

// layers says, for a directory of the tree, which directories of ours its
// packages may import. "x/..." means x and everything below it. The longest
// key that covers a package counts; a key without "/..." covers that one
// package only. A row whose directory is gone fails, so that the table cannot rot.
var layers = []struct {
	dir     string
	imports []string
}{
	{"filter/...", []string{"filter/..."}},
	{"capture/...", []string{"capture/..."}},
	{"capture/leak", []string{"capture/leak/ways", "capture/message"}},
	{"capture/leak/ways", []string{"capture"}},
	{"capture/probe", []string{"capture", "capture/netns", "capture/nft"}},
	{"capture/descriptor", nil},
	{"capture/loglimit", nil},
	// For everybody, without privilege.
	{"capture/cgroup/view", nil},
	{"profiles/...", []string{"profiles/..."}},
	{"profiles/trialserver", nil},

	// One flow's life; the only package that knows two of the three above.
	{"broker", []string{"filter", "capture", "capture/service", "profiles", "broker/relay", "broker/audit", "broker/eventlog", "broker/regular"}},
	{"broker/...", []string{"filter", "capture", "profiles"}},
	{"broker/relay", nil},
	{"broker/audit", nil},
	{"broker/regular", nil},
	{"broker/replace", []string{"broker/regular"}},
	{"broker/location", []string{"filter", "broker/regular"}},
	{"broker/wake", nil},
	{"broker/eventlog", nil},
	{"broker/control", []string{"broker/audit"}},
	{"broker/prompt", []string{"broker/control"}},
	{"broker/config", []string{"filter/...", "profiles", "profiles/certfile", "profiles/keyfile", "profiles/proxy", "broker/config/...", "broker/eventlog", "broker/regular"}},
	{"broker/config/...", []string{"broker/config/...", "broker/replace"}},
	{"broker/gateway", []string{"broker/audit", "broker/relay", "broker/gateway/...", "profiles", "profiles/socket", "profiles/tlstun/wire"}},
	{"broker/gateway/...", nil},
	{"broker/gateway/generation", []string{"broker/gateway/gwconfig", "broker/gateway/policy", "broker/gateway/trust", "profiles/tlstun/wire"}},
	{"broker/gateway/trust", []string{"broker/regular"}},
	{"broker/gateway/ca", []string{"broker/gateway/policy", "broker/replace"}},
	{"broker/gateway/policy", nil},
	{"broker/gateway/gwconfig", []string{"broker/gateway/policy", "broker/config/schema", "broker/regular"}},
	{"broker/metrics", []string{"profiles", "broker", "broker/audit", "broker/eventlog", "broker/scrape"}},
	{"broker/scrape", nil},
	{"broker/gateway/metrics", []string{"broker/scrape"}},
	{"broker/listeners", []string{"capture", "profiles", "profiles/proxy", "broker"}},
	{"broker/kubeconfig", []string{"broker/regular", "broker/replace"}},
	{"broker/explain", []string{"filter", "capture", "broker", "broker/control"}},
	// A broker of its own to try things with, and what is said of a host.
	{"broker/trial", []string{"capture/command", "capture/leak", "profiles/trialserver", "broker/control"}},
	{"broker/doctor", []string{"capture", "capture/cgroup", "capture/probe", "capture/service/...", "profiles", "profiles/certfile", "profiles/creds", "broker/config", "broker/control", "broker/regular", "broker/trial"}},
	// Puts a broker together out of what the others offer.
	{"broker/daemon", []string{"filter", "capture", "capture/cgroup", "capture/netns", "capture/origin", "capture/owner", "capture/service/...", "profiles", "profiles/creds", "profiles/proxy", "profiles/sshconf", "profiles/tlstun/wire", "broker/..."}},

	{"cmd/...", []string{"filter/...", "capture/...", "profiles/...", "broker/...", "cmd/..."}},
	{"test/...", []string{"filter/...", "capture/...", "profiles/...", "broker/...", "cmd/...", "test/..."}},
	{"test/programs/...", []string{"test/programs/desktop"}},
}

// forTests may be imported by tests of broker and below, beside what the row says.
var forTests = []string{"filter/...", "capture/capturetest", "profiles/tuntest", "broker/gateway/gatewaytest"}

// thirdParty says where a package from outside may be imported at all, tests
// included. What is not listed may be imported anywhere.
var thirdParty = []struct {
	pkg  string // itself and everything below it
	dirs []string
}{
	{"github.com/google/nftables", []string{"capture/...", "test/..."}},
	{"github.com/mdlayher/netlink", []string{"capture/...", "test/..."}},
	{"github.com/vishvananda/netlink", []string{"capture/...", "broker/location", "test/..."}},
	{"golang.org/x/crypto/ssh", []string{"profiles/...", "test/..."}},
	{"github.com/hashicorp/yamux", []string{"broker/gateway", "profiles/tlstun/...", "profiles/tuntest", "test/..."}},
	{"github.com/spf13/cobra", []string{"cmd/..."}},
	{"github.com/prometheus", []string{"broker/metrics", "broker/scrape", "broker/gateway/...", "test/..."}},
	{"github.com/youmark/pkcs8", []string{"profiles/keyfile", "broker/gateway/ca"}},
	{"go.yaml.in/yaml/v3", []string{"broker/kubeconfig", "broker/gateway/..."}},
	{"encoding/xml", []string{"broker/config"}},
}

// topLevel is everything that may stand at the top of the tree. The last two
// are git's own and what `make build` makes.
var topLevel = []string{
	"cmd", "broker", "capture", "filter", "profiles", "etc", "test", "docs", ".ci",
	"go.mod", "go.sum", "Makefile", "LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", ".gitignore",
	".git", "bin",
}

// covers reports whether dir is named by pattern.
func covers(pattern, dir string) bool {
	if parent, ok := strings.CutSuffix(pattern, "/..."); ok {
		return dir == parent || strings.HasPrefix(dir, parent+"/")
	}
	return dir == pattern
}

func coveredByAny(patterns []string, dir string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return covers(p, dir) })
}

// allowed returns what the package in dir may import, by the longest row that
// covers it. An exact row beats a row with "/..." of the same directory.
func allowed(dir string) (imports []string, ok bool) {
	best := -1
	for _, row := range layers {
		if !covers(row.dir, dir) {
			continue
		}
		weight := 2 * len(strings.TrimSuffix(row.dir, "/..."))
		if row.dir == dir {
			weight++
		}
		if weight > best {
			best, imports, ok = weight, row.imports, true
		}
	}
	return imports, ok
}

// forbidden explains why the package in dir may not import imported, an import
// path; it returns "" when it may.
func forbidden(dir, imported string) string {
	if imported == module || strings.HasPrefix(imported, module+"/") {
		target := strings.TrimPrefix(strings.TrimPrefix(imported, module), "/")
		may, ok := allowed(dir)
		switch {
		case !ok:
			return fmt.Sprintf("%s has no row in the table of layers", dir)
		case target == dir || coveredByAny(may, target):
			return ""
		case len(may) == 0:
			return fmt.Sprintf("%s imports %s, and may import nothing of ours", dir, target)
		}
		return fmt.Sprintf("%s imports %s, and may import only %s", dir, target, strings.Join(may, ", "))
	}
	for _, row := range thirdParty {
		if covers(row.pkg+"/...", imported) && !coveredByAny(row.dirs, dir) {
			return fmt.Sprintf("%s imports %s, which is kept to %s", dir, imported, strings.Join(row.dirs, ", "))
		}
	}
	return ""
}

func TestLayers(t *testing.T) {
	root := moduleRoot(t)
	for _, pkg := range listPackages(t, root) {
		dir := strings.TrimPrefix(strings.TrimPrefix(pkg.ImportPath, module), "/")
		for _, imported := range pkg.Imports {
			if why := forbidden(dir, imported); why != "" {
				t.Error(why)
			}
		}
		for _, imported := range slices.Concat(pkg.TestImports, pkg.XTestImports) {
			if covers("broker/...", dir) && coveredByAny(forTests, strings.TrimPrefix(imported, module+"/")) {
				continue
			}
			if why := forbidden(dir, imported); why != "" {
				t.Errorf("in its tests: %s", why)
			}
		}
	}
	for _, dir := range namedDirectories() {
		if info, err := os.Stat(filepath.Join(root, dir)); err != nil || !info.IsDir() {
			t.Errorf("the table of layers names %s, which is no directory any more", dir)
		}
	}
}

func namedDirectories() []string {
	var dirs []string
	add := func(pattern string) { dirs = append(dirs, strings.TrimSuffix(pattern, "/...")) }
	for _, dir := range forTests {
		add(dir)
	}
	for _, row := range layers {
		add(row.dir)
		for _, dir := range row.imports {
			add(dir)
		}
	}
	for _, row := range thirdParty {
		for _, dir := range row.dirs {
			add(dir)
		}
	}
	slices.Sort(dirs)
	return slices.Compact(dirs)
}

// TestLayersTableRefuses shows that the table has teeth: every edge here is one
// that somebody would be tempted by.
func TestLayersTableRefuses(t *testing.T) {
	for _, edge := range []struct {
		dir, imported string
		refused       bool
	}{
		{"filter", "sshbroker/profiles", true},
		{"filter/egrep", "sshbroker/filter", false},
		{"profiles/sshtun", "sshbroker/broker/relay", true},
		{"profiles/sshtun", "sshbroker/capture", true},
		{"capture/nft", "sshbroker/filter", true},
		{"capture/nft", "sshbroker/test/netns", true},
		{"broker", "sshbroker/capture/nft", true},
		{"broker", "sshbroker/broker/relay", false},
		{"broker", "sshbroker/broker/config", true},
		{"broker/relay", "sshbroker/capture", true},
		{"broker/audit", "sshbroker/filter", true},
		{"broker/control", "sshbroker/broker", true},
		{"broker/control", "sshbroker/broker/audit", false},
		{"broker/config", "sshbroker/broker", true},
		{"broker/config", "sshbroker/profiles", false},
		{"cmd/ssh-broker", "sshbroker/profiles/sshtun", false},
		{"cmd/ssh-broker", "sshbroker/test/netns", true},
		{"test/programs/testprog", "sshbroker/broker/relay", true},
		{"unheard/of", "sshbroker/filter", true},
		{"filter", "regexp", false},
		{"broker/control", "golang.org/x/crypto/ssh", true},
		{"cmd/ssh-broker", "golang.org/x/crypto/ssh/knownhosts", true},
		{"profiles/sshtun", "golang.org/x/crypto/ssh", false},
		{"profiles", "golang.org/x/crypto/ed25519", false},
		{"broker", "github.com/google/nftables/expr", true},
		{"filter", "encoding/xml", true},
		{"broker/config", "encoding/xml", false},
		{"broker", "github.com/spf13/cobra", true},
	} {
		if why := forbidden(edge.dir, edge.imported); (why != "") != edge.refused {
			t.Errorf("%s -> %s: refused %t (%q), want %t", edge.dir, edge.imported, why != "", why, edge.refused)
		}
	}
}

func TestTopLevel(t *testing.T) {
	entries, err := os.ReadDir(moduleRoot(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if !slices.Contains(topLevel, entry.Name()) {
			t.Errorf("%s stands at the top level, which is fixed", entry.Name())
		}
	}
}

// TestPackageDocs holds each package to one introduction, in doc.go; a program
// may have its own in main.go.
func TestPackageDocs(t *testing.T) {
	root := moduleRoot(t)
	for _, pkg := range listPackages(t, root) {
		dir := strings.TrimPrefix(strings.TrimPrefix(pkg.ImportPath, module), "/")
		var documented []string
		for _, file := range slices.Concat(pkg.GoFiles, pkg.IgnoredGoFiles) {
			parsed, err := parser.ParseFile(token.NewFileSet(), filepath.Join(pkg.Dir, file), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Error(err)
				continue
			}
			if parsed.Doc == nil {
				continue
			}
			documented = append(documented, file)
			start := "Package " + pkg.Name + " "
			if pkg.Name == "main" {
				start = ""
			}
			if text := parsed.Doc.Text(); !strings.HasPrefix(text, start) {
				t.Errorf("%s: its package comment does not begin with %q", path.Join(dir, file), start)
			}
		}
		switch {
		case len(documented) == 0:
			t.Errorf("%s has no package comment; doc.go is its place", dir)
		case len(documented) > 1:
			t.Errorf("%s has %d package comments: %s", dir, len(documented), strings.Join(documented, ", "))
		case documented[0] != "doc.go" && (pkg.Name != "main" || documented[0] != "main.go"):
			t.Errorf("%s has its package comment in %s; doc.go is its place", dir, documented[0])
		}
	}
}

func TestFormatted(t *testing.T) {
	root := moduleRoot(t)
	err := filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // deleted meanwhile
		case err != nil:
			return err
		case entry.IsDir() && (entry.Name() == ".git" || entry.Name() == "bin"):
			return fs.SkipDir
		case entry.IsDir() || !strings.HasSuffix(name, ".go"):
			return nil
		}
		source, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		formatted, err := format.Source(source)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !bytes.Equal(source, formatted) {
			t.Errorf("%s is not formatted; run gofmt -w on it", name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// goPackage is what go list says of a package, as far as this file asks.
type goPackage struct {
	Dir, ImportPath, Name              string
	GoFiles, IgnoredGoFiles            []string
	Imports, TestImports, XTestImports []string
}

func listPackages(t *testing.T, root string) []goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-json=Dir,ImportPath,Name,GoFiles,IgnoredGoFiles,Imports,TestImports,XTestImports", "./...")
	cmd.Dir = root
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var pkgs []goPackage
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var pkg goPackage
		if err := dec.Decode(&pkg); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("go list: %v", err)
		}
		pkgs = append(pkgs, pkg)
	}
	if len(pkgs) < 3 {
		t.Fatalf("go list found %d packages, which cannot be all", len(pkgs))
	}
	return pkgs
}

// moduleRoot is the directory of go.mod.
func moduleRoot(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		t.Fatalf("go env GOMOD: %v", err)
	}
	return filepath.Dir(strings.TrimSpace(string(out)))
}
