package bench

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// figures is all that was measured, and where.
type figures struct {
	When    time.Time `json:"when"`
	Kernel  string    `json:"kernel"`
	CPUs    int       `json:"cpus"`
	Load    string    `json:"load_before"` // of the machine: 1, 5 and 15 minutes
	OpenSSH string    `json:"openssh"`
	Cipher  string    `json:"cipher"`
	Version string    `json:"version"` // git describe
	Rounds  int       `json:"rounds"`
	Ways    []string  `json:"ways"`
	Metrics []metric  `json:"metrics"`
	// Values are by metric and way, one for each round.
	Values map[string]map[string][]float64 `json:"values"`

	mine string // the way that the others are compared with
}

func newFigures(ways []string, metrics []metric, rounds int) *figures {
	f := &figures{
		When: time.Now().UTC().Truncate(time.Second), CPUs: runtime.NumCPU(), Cipher: cipher,
		Kernel: "unknown", Load: "unknown", OpenSSH: said("ssh", "-V"), Version: said("git", "describe", "--tags", "--always", "--dirty"),
		Rounds: rounds, Ways: ways, Metrics: metrics, Values: map[string]map[string][]float64{},
		mine: ours,
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		f.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		f.Load = strings.Join(strings.Fields(string(b))[:3], " ")
	}
	return f
}

// said is a command's first line, on either stream.
func said(args ...string) string {
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	if err != nil || line == "" {
		return "unknown"
	}
	return line
}

func (f *figures) add(name, way string, value float64) {
	if f.Values[name] == nil {
		f.Values[name] = map[string][]float64{}
	}
	f.Values[name][way] = append(f.Values[name][way], value)
}

// write stores everything as JSON.
func (f *figures) write(file string) error {
	b, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(b, '\n'), 0o644)
}

// ratio is a column that says how one way is to another.
type ratio struct{ name, mine, other string }

// ratios are ours to every other tunnel, and ours by TLS, where it is there, to what
// issue 6 compares it with.
func (f *figures) ratios() (list []ratio) {
	for _, way := range f.Ways {
		if way != plain && way != f.mine && way != byTLS {
			list = append(list, ratio{"ours / " + way, f.mine, way})
		}
	}
	if slices.Contains(f.Ways, byTLS) {
		list = append(list, ratio{"TLS / " + sshL, byTLS, sshL}, ratio{"TLS / " + plain, byTLS, plain})
	}
	return list
}

// table is for people: medians with their ranges, and the ratios of them.
func (f *figures) table() string {
	var text strings.Builder
	fmt.Fprintf(&text, "%s  %s  kernel %s  %d CPUs  load before %s\n%s  %s  %d rounds  median (range)\n\n",
		f.When.Format(time.RFC3339), f.Version, f.Kernel, f.CPUs, f.Load, f.OpenSSH, f.Cipher, f.Rounds)
	tw := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "\t\tbetter\t%s", strings.Join(f.Ways, "\t"))
	for _, r := range f.ratios() {
		fmt.Fprintf(tw, "\t%s", r.name)
	}
	fmt.Fprintln(tw)
	for _, m := range f.Metrics {
		better := "lower"
		if m.Higher {
			better = "higher"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s", m.Name, m.Unit, better)
		for _, way := range f.Ways {
			fmt.Fprintf(tw, "\t%s", spread(f.Values[m.Name][way], m.digits))
		}
		for _, r := range f.ratios() {
			fmt.Fprintf(tw, "\t%s", m.verdict(median(f.Values[m.Name][r.mine]), median(f.Values[m.Name][r.other])))
		}
		fmt.Fprintln(tw)
	}
	tw.Flush()
	return text.String()
}

func spread(values []float64, digits int) string {
	if len(values) == 0 {
		return "-"
	}
	number := func(v float64) string { return strconv.FormatFloat(v, 'f', digits, 64) }
	if len(values) == 1 {
		return number(values[0])
	}
	return fmt.Sprintf("%s (%s-%s)", number(median(values)), number(slices.Min(values)), number(slices.Max(values)))
}

// median of an even number is the mean of the two in the middle; of none, 0.
func median(values []float64) float64 {
	n := len(values)
	if n == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	return (s[(n-1)/2] + s[n/2]) / 2
}

// verdict is the ratio of ours to theirs, and who is ahead.
func (m metric) verdict(ours, theirs float64) string {
	if theirs <= 0 || ours <= 0 {
		return "-"
	}
	ratio := ours / theirs
	switch {
	case ratio == 1:
		return "1.00 level"
	case ratio > 1 == m.Higher:
		return fmt.Sprintf("%.2f ahead", ratio)
	}
	return fmt.Sprintf("%.2f behind", ratio)
}

func TestTable(t *testing.T) {
	f := &figures{mine: ours, Ways: []string{plain, sshL, ours}, Metrics: metrics(), Values: map[string]map[string][]float64{
		"1 stream up": {plain: {1000}, sshL: {100, 300, 200}, ours: {500, 400, 300, 600}},
		"echo p50":    {plain: {0.01}, sshL: {0.2}, ours: {0.3}},
		memory:        {sshL: {30}, ours: {15}},
	}}
	for _, want := range []string{
		"1 stream up                  MB/s  higher  1000       200 (100-300)  450 (300-600)  2.25 ahead\n",
		"echo p50                     ms    lower   0.010      0.200          0.300          1.50 behind\n",
		"memory per idle flow         KiB   lower   -          30.0           15.0           0.50 ahead\n",
		"client CPU up                s/GB  lower   -          -              -              -\n",
	} {
		if !strings.Contains(f.table(), want) {
			t.Errorf("no %q in\n%s", want, f.table())
		}
	}
}
