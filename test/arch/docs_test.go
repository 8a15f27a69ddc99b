package arch

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// The threat model says which test shows that an attack does not work. A test
// that was renamed or removed must take its row along.
func TestTheThreatModelNamesTestsThatExist(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join(root, "docs/threat-model.md"))
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile("`((?:Test|Fuzz)[A-Z]\\w*)`").FindAllSubmatch(doc, -1)
	if len(names) < 20 {
		t.Fatalf("found %d tests in docs/threat-model.md; has its table gone?", len(names))
	}
	defined := map[string]bool{}
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	for _, f := range sources(t) {
		b, err := os.ReadFile(filepath.Join(root, f.path))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range function.FindAllSubmatch(b, -1) {
			defined[string(m[1])] = true
		}
	}
	for _, m := range names {
		if !defined[string(m[1])] {
			t.Errorf("docs/threat-model.md names %s, which does not exist", m[1])
		}
	}
}
