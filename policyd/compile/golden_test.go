package compile_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/testudo-ipsec/testudo/policyd/compile"
	"github.com/testudo-ipsec/testudo/policyd/model"
)

var update = flag.Bool("update", false, "write the golden files")

const examples = "../../deploy/examples"

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test -update writes it)\ngot:\n%s\nwant:\n%s", file, got, want)
	}
}

// Each example and each testdata/*.yaml compiles to exactly its golden file, or
// fails with exactly the errors in it.
func TestCompilesToGolden(t *testing.T) {
	var files []string
	for _, pattern := range []string{examples + "/*.yaml", "testdata/*.yaml"} {
		found, err := filepath.Glob(pattern)
		if err != nil || len(found) < 4 {
			t.Fatalf("%s: %d files, %v", pattern, len(found), err)
		}
		files = append(files, found...)
	}
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".yaml")
		t.Run(name, func(t *testing.T) { golden(t, "testdata/"+name+".golden", result(t, f)) })
	}
}

func result(t *testing.T, file string) string {
	t.Helper()
	set, _, err := model.Read(file)
	if err != nil {
		t.Fatal(err)
	}
	nodes, err := compile.All(set)
	if err != nil {
		return "error: " + err.Error() + "\n"
	}
	var out []string
	for _, n := range set.NodeNames() {
		if p, ok := nodes[n]; ok {
			out = append(out, compile.Text(p))
		}
	}
	return strings.Join(out, "\n")
}
