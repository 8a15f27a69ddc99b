package arch

import (
	"bufio"
	"bytes"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// root is the repository, seen from this folder.
const root = "../.."

func sources(t *testing.T) []goFile {
	t.Helper()
	files, err := goFiles(root)
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 10 {
		t.Fatalf("found %d Go files below %s; is it the repository?", len(files), root)
	}
	return files
}

func TestImportTable(t *testing.T) {
	for _, f := range sources(t) {
		for _, problem := range checkImports(f) {
			t.Error(problem)
		}
	}
}

// The checker must object to what the table forbids, or the test above proves nothing.
func TestImportTableCanFail(t *testing.T) {
	for _, tc := range []struct {
		path, imported string
		ok             bool
	}{
		{"keymgr/sadb/x.go", module + "ipsec", true},
		{"keymgr/sadb/x.go", module + "dataplane/esp", false},
		{"keymgr/sadb/x.go", module + "proto/gen/testudo/worker/v1", false},
		{"keymgr/sadb/x_test.go", module + "dataplane/esp", false},
		{"keymgr/ike/ikev1/x.go", module + "keymgr/ike/ikev2", false},
		{"keymgr/ike/ikev2/x.go", module + "keymgr/ike/engine", false},
		{"keymgr/ike/ikev2/x.go", module + "keymgr/ike/wire", true},
		{"keymgr/ike/ikev2/x_test.go", module + "keymgr/ike/iketest", true},
		{"keymgr/ike/ikev2/x.go", "net", false},
		{"keymgr/ike/ikev2/x.go", "net/netip", true},
		{"keymgr/ike/engine/x.go", module + "keymgr/ike/ikev2", true},
		{"keymgr/ike/engine/x.go", "github.com/hashicorp/vault/api", false},
		{"keymgr/cred/vault/x.go", "github.com/hashicorp/vault/api", true},
		{"dataplane/engine/x.go", module + "dataplane/backend/userspace", false},
		{"dataplane/backend/userspace/x.go", module + "dataplane/engine", true},
		{"dataplane/esp/x.go", module + "dataplane/sad", false},
		{"dataplane/netio/x.go", module + "dataplane/packet", false},
		{"policyd/feed/x.go", "go.etcd.io/etcd/client/v3", false},
		{"policyd/feed/x.go", "google.golang.org/protobuf/proto", false},
		{"policyd/store/etcd/x.go", "go.etcd.io/etcd/client/v3", true},
		{"services/internal/convert/x.go", "google.golang.org/protobuf/proto", true},
		{"ipsec/x.go", "golang.org/x/crypto/blake2s", false},
		{"elsewhere/x.go", module + "ipsec", false},
	} {
		fset := token.NewFileSet()
		tree, err := parser.ParseFile(fset, tc.path, "package x\nimport _ \""+tc.imported+"\"\n", 0)
		if err != nil {
			t.Fatal(err)
		}
		f := goFile{path: tc.path, folder: folderOf(tc.path), test: strings.HasSuffix(tc.path, "_test.go"), ast: tree, fset: fset}
		if problems := checkImports(f); (len(problems) == 0) != tc.ok {
			t.Errorf("%s imports %s: problems %q; want ok %v", tc.path, tc.imported, problems, tc.ok)
		}
	}
}

func TestProgramsDoNotLink(t *testing.T) {
	for _, ban := range LinkBans {
		if mains, _ := filepath.Glob(filepath.Join(root, ban.Program, "*.go")); len(mains) == 0 {
			t.Skipf("%s has no Go files yet", ban.Program)
		}
		cmd := exec.Command("go", "list", "-deps", "./"+ban.Program)
		cmd.Dir = root
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("go list -deps ./%s: %v\n%s", ban.Program, err, &stderr)
		}
		linked := strings.Fields(string(out))
		if len(linked) < 50 {
			t.Errorf("%s links %d packages: is that the whole program?", ban.Program, len(linked))
		}
		for _, pkg := range linked {
			for _, not := range ban.Not {
				if within(pkg, not) {
					t.Errorf("%s links %s; it must not", ban.Program, pkg)
				}
			}
		}
	}
}

func TestEveryPackageHasADocComment(t *testing.T) {
	documented := map[string]bool{}
	for _, f := range sources(t) {
		if !f.test && !f.generated {
			documented[f.folder] = documented[f.folder] || f.ast.Doc != nil
		}
	}
	for folder, ok := range documented {
		if !ok {
			t.Errorf("%s: no doc comment before any package clause", folder)
		}
	}
}

// Code that sleeps hides what it waits for. A demo may: it is paced for a reader. So
// may a test in a synctest bubble, where to sleep is to move the clock.
func TestNothingSleeps(t *testing.T) {
	for _, f := range sources(t) {
		if strings.Contains(f.path, "demo") || f.test && slices.Contains(f.imports(), "testing/synctest") {
			continue
		}
		for _, pos := range f.uses("time", "Sleep") {
			t.Errorf("%s: time.Sleep; wait for the event, by a channel, a timer in a select or testing/synctest", pos)
		}
	}
}

func TestStateMachinesDoNotReadTheClock(t *testing.T) {
	for _, f := range sources(t) {
		for _, folder := range Pure {
			if !within(f.folder, folder) || f.test {
				continue
			}
			for _, name := range []string{"Now", "Since", "Until", "After", "AfterFunc", "NewTimer", "NewTicker", "Tick"} {
				for _, pos := range f.uses("time", name) {
					t.Errorf("%s: time.%s; a state machine is told the time", pos, name)
				}
			}
		}
	}
}

// foreign are words that mean nothing to somebody who has only the repository. The
// brackets keep this file from matching.
var foreign = regexp.MustCompile(`(?i)` + strings.Join([]string{
	`(^|[^\w.])/(wor[k]|roo[t])/`, `/hom[e]/\w`, `\.\./share[d]\b`, // somebody's directories
	`prox[y]\.golang\.org`, `su[m]\.golang\.org`, `registr[y]\.npmjs`, `pyp[i]\.org`, // package registries
	`claud[e]`, `anthropi[c]`, `opena[i]`, `chatgp[t]`, `copilo[t]\b`,
}, "|"))

func TestNoForeignWords(t *testing.T) {
	if !foreign.MatchString("see /wor" + "k/x") {
		t.Fatal("the expression finds nothing")
	}
	err := walk(root, func(path string) error {
		if strings.HasSuffix(path, "go.sum") {
			return nil
		}
		b, err := os.ReadFile(filepath.Join(root, path))
		if err != nil || !isText(b) {
			return err
		}
		in := bufio.NewScanner(bytes.NewReader(b))
		in.Buffer(nil, len(b)+1)
		for n := 1; in.Scan(); n++ {
			if found := foreign.FindString(in.Text()); found != "" {
				t.Errorf("%s:%d: %q says nothing to a reader of this repository", path, n, found)
			}
		}
		return in.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
}
