package arch

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// skipped are folders that hold no source of ours.
var skipped = []string{".git", "out", "bin", "node_modules", "testdata"}

// walk calls f with each file of the repository, by its path relative to the root.
func walk(root string, f func(path string) error) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && slices.Contains(skipped, d.Name()):
			return filepath.SkipDir
		case !d.Type().IsRegular(), d.Name() == ".git": // a file, in a linked worktree
			return nil
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		return f(filepath.ToSlash(rel))
	})
}

// goFile is a parsed source file.
type goFile struct {
	path      string // relative to the root
	folder    string
	test      bool
	generated bool
	ast       *ast.File
	fset      *token.FileSet
}

// goFiles parses all Go source below root.
func goFiles(root string) ([]goFile, error) {
	var out []goFile
	fset := token.NewFileSet()
	err := walk(root, func(path string) error {
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		text, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			return err
		}
		tree, err := parser.ParseFile(fset, path, text, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		out = append(out, goFile{path: path, folder: folderOf(path), test: strings.HasSuffix(path, "_test.go"),
			generated: ast.IsGenerated(tree), ast: tree, fset: fset})
		return nil
	})
	return out, err
}

func folderOf(path string) string {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i]
	}
	return "."
}

// imports lists what a file imports.
func (f goFile) imports() []string {
	var out []string
	for _, i := range f.ast.Imports {
		if p, err := strconv.Unquote(i.Path.Value); err == nil {
			out = append(out, p)
		}
	}
	return out
}

// uses lists the places where pkg.name is mentioned, for a standard package that is
// imported under its own name.
func (f goFile) uses(pkg, name string) []token.Position {
	if !slices.Contains(f.imports(), pkg) {
		return nil
	}
	var out []token.Position
	ast.Inspect(f.ast, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok && s.Sel.Name == name {
			if x, ok := s.X.(*ast.Ident); ok && x.Name == pkg {
				out = append(out, f.fset.Position(s.Pos()))
			}
		}
		return true
	})
	return out
}

// within reports whether a path is folder or below it.
func within(path, folder string) bool {
	return path == folder || strings.HasPrefix(path, folder+"/")
}

// covers reports whether a pattern of a rule stands for a package.
func covers(pattern, pkg string) bool {
	if folder, ok := strings.CutSuffix(pattern, "/..."); ok {
		return within(pkg, folder)
	}
	return pkg == pattern
}

// ruleFor finds the longest rule for a folder; for a test file, the module's.
func ruleFor(folder string, test bool) (ImportRule, bool) {
	var best ImportRule
	found := false
	for _, r := range ImportRules {
		if within(folder, r.Folder) && len(r.Folder) >= len(best.Folder) && !(test && strings.Contains(r.Folder, "/")) {
			best, found = r, true
		}
	}
	return best, found
}

// checkImports says what is wrong with what a file imports.
func checkImports(f goFile) []string {
	var out []string
	bad := func(imported, why string) {
		out = append(out, fmt.Sprintf("%s imports %s: %s", f.path, imported, why))
	}
	for _, imported := range f.imports() {
		if pkg, ours := strings.CutPrefix(imported, module); ours {
			rule, ok := ruleFor(f.folder, f.test)
			may := func(pattern string) bool { return covers(pattern, pkg) }
			switch {
			case !ok:
				bad(imported, "its folder is not in ImportRules")
			case !within(pkg, rule.Folder) && !slices.ContainsFunc(rule.May, may):
				bad(imported, fmt.Sprintf("%s may import of ours only %v", rule.Folder, rule.May))
			}
			continue
		}
		for _, v := range VendorRules {
			ofVendor := func(prefix string) bool { return within(imported, prefix) }
			inFolder := func(folder string) bool { return within(f.folder, folder) }
			if slices.ContainsFunc(v.Prefixes, ofVendor) && !slices.ContainsFunc(v.In, inFolder) {
				bad(imported, fmt.Sprintf("%s belongs in %v only", v.What, v.In))
			}
		}
		first, _, _ := strings.Cut(imported, "/")
		for _, folder := range StandardOnly {
			if within(f.folder, folder) && strings.Contains(first, ".") {
				bad(imported, folder+" imports the standard library only")
			}
		}
		for _, folder := range Pure {
			if within(f.folder, folder) && !f.test && (imported == "net" || imported == "os" || imported == "syscall") {
				bad(imported, folder+" is a pure state machine")
			}
		}
	}
	return out
}

// isText reports a file without NUL octets at its start.
func isText(b []byte) bool { return !bytes.Contains(b[:min(len(b), 8000)], []byte{0}) }
