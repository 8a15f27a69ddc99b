package deploy

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/test/arch"
)

var link = regexp.MustCompile(`\]\(([^)#]*)(?:#([^)]*))?\)`)

func anchor(heading string) string {
	keep := func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case r == '-' || r >= 'a' && r <= 'z' || r >= '0' && r <= '9':
			return r
		}
		return -1
	}
	return strings.Map(keep, strings.ToLower(strings.TrimLeft(heading, "# ")))
}

func TestLinks(t *testing.T) {
	for _, file := range append(glob(t, "*.md"), glob(t, "docs/*.md")...) {
		for _, m := range link.FindAllStringSubmatch(read(t, file), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			target := file
			if m[1] != "" {
				target = filepath.Join(filepath.Dir(file), m[1])
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links to %s: %v", file, m[1], err)
				continue
			}
			if m[2] != "" && !hasHeading(read(t, target), m[2]) {
				t.Errorf("%s links to %s#%s, and there is no such heading", file, m[1], m[2])
			}
		}
	}
}

func hasHeading(text, want string) bool {
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "#") && anchor(strings.TrimSpace(line)) == want {
			return true
		}
	}
	return false
}

// The import table is written once for people and once as code.
func TestArchitectureHasTheImportTable(t *testing.T) {
	text := read(t, filepath.Join(root, "docs/architecture.md"))
	_, table, ok := strings.Cut(text, "## Folders and imports")
	if !ok {
		t.Fatal("docs/architecture.md has no section \"Folders and imports\"")
	}
	table, _, _ = strings.Cut(table, "\n## ")
	for _, r := range arch.ImportRules {
		if !strings.Contains(table, "`"+r.Folder+"`") {
			t.Errorf("docs/architecture.md does not say what %s may import", r.Folder)
		}
	}
	for _, r := range arch.VendorRules {
		if !strings.Contains(table, "| "+r.What) {
			t.Errorf("docs/architecture.md does not say where %s belongs", r.What)
		}
		for _, folder := range r.In {
			if !strings.Contains(table, "`"+folder+"`") {
				t.Errorf("docs/architecture.md does not name %s, where %s belongs", folder, r.What)
			}
		}
	}
}
