package model

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Pos is a place in a policy file. Line counts from 1; 0 is the whole file.
type Pos struct {
	File string
	Line int
}

func (p Pos) String() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d", p.File, p.Line)
}

// Error is one mistake in a policy document.
type Error struct {
	Pos   Pos
	Field string // path from the document's root, such as spec.rules[0].action
	Text  string // what was got, what was wanted
}

func (e *Error) Error() string {
	if e.Field == "" {
		return fmt.Sprintf("%s: %s", e.Pos, e.Text)
	}
	return fmt.Sprintf("%s: %s: %s", e.Pos, e.Field, e.Text)
}

// Errors is every mistake of a set of documents. It is never empty when it is
// returned as an error.
type Errors []*Error

func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, x := range e {
		lines[i] = x.Error()
	}
	return strings.Join(lines, "\n")
}

// Add appends one mistake.
func (e *Errors) Add(at Pos, field, format string, args ...any) {
	*e = append(*e, &Error{Pos: at, Field: field, Text: fmt.Sprintf(format, args...)})
}

// Err returns the mistakes in the order of the files, or nil when there are none.
func (e Errors) Err() error {
	if len(e) == 0 {
		return nil
	}
	slices.SortStableFunc(e, func(a, b *Error) int {
		return cmp.Or(cmp.Compare(a.Pos.File, b.Pos.File), cmp.Compare(a.Pos.Line, b.Pos.Line))
	})
	return e
}

// Join merges what several steps found into one list in the order of the files.
// An error of another type is returned as it is.
func Join(errs ...error) error {
	var all Errors
	for _, err := range errs {
		if err == nil {
			continue
		}
		var es Errors
		if !errors.As(err, &es) {
			return err
		}
		all = append(all, es...)
	}
	return all.Err()
}

// maxGot bounds how much of a file an error quotes.
const maxGot = 60

func quote(s string) string {
	if len(s) > maxGot {
		return fmt.Sprintf("%q...", s[:maxGot])
	}
	return fmt.Sprintf("%q", s)
}

// suggest ends a message about an unknown name with the nearest known one.
func suggest(got string, known []string) string {
	best, bestDistance := "", min(len(got)/3+1, len(got)-1)
	for _, k := range known {
		if len(got) >= 3 && (strings.HasPrefix(k, got) || strings.HasPrefix(got, k)) {
			return fmt.Sprintf("; did you mean %q?", k)
		}
		if d := distance(got, k, bestDistance); d < bestDistance || d == bestDistance && (best == "" || k < best) {
			best, bestDistance = k, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// distance is the edit distance of two names, or limit+1 when it is greater.
func distance(a, b string, limit int) int {
	if len(a) > len(b)+limit || len(b) > len(a)+limit {
		return limit + 1
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return min(row[len(b)], limit+1)
}
