package schema

import "strings"

// suggest returns the candidate nearest to word, "" where none is near. Case does
// not count as a difference, nor does one attribute name holding the other
// ("profile" for "profile-id").
func Suggest(word string, candidates []string) string {
	word = strings.ToLower(word)
	best, nearest := "", 0
	for _, c := range candidates {
		lower := strings.ToLower(c)
		d := distance(word, lower)
		near := d <= max(1, len(lower)/3)
		if strings.HasPrefix(lower, word+"-") || strings.HasSuffix(lower, "-"+word) {
			near = true
		}
		if near && (best == "" || d < nearest) {
			best, nearest = c, d
		}
	}
	return best
}

// DidYouMean is the hint that goes with suggest; otherwise stands where nothing is
// near.
func DidYouMean(word string, candidates []string, otherwise string) string {
	if s := Suggest(word, candidates); s != "" {
		return "did you mean " + s + "?"
	}
	return otherwise
}

// distance counts the insertions, deletions, replacements and swaps of neighbours
// that turn a into b. Words longer than any name in the schema count as far away.
func distance(a, b string) int {
	const longest = 64
	if len(a) > longest || len(b) > longest {
		return longest
	}
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
