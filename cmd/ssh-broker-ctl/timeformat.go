package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// layouts are the conversions of strftime(3) that have a layout of the package
// time. The locale is C, as for all output.
var layouts = map[byte]string{
	'a': "Mon", 'A': "Monday", 'b': "Jan", 'h': "Jan", 'B': "January",
	'c': "Mon Jan _2 15:04:05 2006", 'd': "02", 'D': "01/02/06", 'e': "_2", 'F': "2006-01-02",
	'H': "15", 'I': "03", 'j': "002", 'm': "01", 'M': "04", 'p': "PM", 'r': "03:04:05 PM", 'R': "15:04",
	'S': "05", 'T': "15:04:05", 'x': "01/02/06", 'X': "15:04:05", 'y': "06", 'Y': "2006",
	'z': "-0700", 'Z': "MST",
}

// formatTime prints t by a format of strftime(3).
func formatTime(t time.Time, format string) string {
	var b strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' || i+1 == len(format) {
			b.WriteByte(format[i])
			continue
		}
		i++
		switch c := format[i]; c {
		case '%':
			b.WriteByte('%')
		case 'n':
			b.WriteByte('\n')
		case 't':
			b.WriteByte('\t')
		case 's':
			b.WriteString(strconv.FormatInt(t.Unix(), 10))
		default:
			b.WriteString(t.Format(layouts[c]))
		}
	}
	return b.String()
}

// checkTimeFormat refuses conversions that formatTime does not have.
func checkTimeFormat(format string) error {
	for i := 0; i < len(format); i++ {
		if format[i] != '%' {
			continue
		}
		i++
		if i == len(format) {
			return usageError{fmt.Errorf("--time-format %q: it ends in a single %%; write %%%%", format)}
		}
		if _, ok := layouts[format[i]]; !ok && !strings.ContainsRune("%nts", rune(format[i])) {
			return usageError{fmt.Errorf("--time-format %q: %%%c is not supported", format, format[i])}
		}
	}
	return nil
}
